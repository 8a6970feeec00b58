"""The miniature world: what a scene is, and how one is drawn from a seed.

A scene is one or two things on a ground, under a light, seen by a camera. Everything the course measures is defined
here once: the kinds, the finishes (colours and materials), the places, the times of day, the relations, and the
kind-finish pairs that training never sees.

Coordinates are right-handed, in units of about one thing: x to the right, y away from the camera, z up; the ground is
z = 0. Angles are in degrees.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Literal

import numpy as np

KINDS = ("ball", "cube", "cone", "can", "tree", "house", "robot", "ring", "mushroom", "car")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
MATERIALS = ("gold", "steel", "glass")
FINISHES = COLOURS + MATERIALS
PLACES = ("grass", "sand", "snow", "water", "brick")
TIMES = ("day", "sunset", "night")
RELATIONS = ("left of", "right of", "in front of", "behind")

#: Kind-finish pairs that no training picture shows, so that composition can be tested.
WITHHELD = frozenset(
    {
        ("cube", "purple"),
        ("robot", "red"),
        ("tree", "blue"),
        ("car", "yellow"),
        ("mushroom", "green"),
        ("house", "orange"),
        ("ring", "glass"),
        ("can", "gold"),
    }
)

#: Joints of a robot, in the order of the key-point arrays.
JOINTS = (
    "head", "neck", "left_shoulder", "left_elbow", "left_hand", "right_shoulder", "right_elbow", "right_hand",
    "hips", "left_foot", "right_foot",
)  # fmt: skip
#: Bones as pairs of joints, for drawing a pose.
BONES = (
    ("head", "neck"), ("neck", "left_shoulder"), ("left_shoulder", "left_elbow"), ("left_elbow", "left_hand"),
    ("neck", "right_shoulder"), ("right_shoulder", "right_elbow"), ("right_elbow", "right_hand"), ("neck", "hips"),
    ("hips", "left_foot"), ("hips", "right_foot"),
)  # fmt: skip

Split = Literal["train", "pairs", "val", "test", "withheld"]
#: First seed and number of seeds of each split; the ranges do not overlap. "train" holds no withheld pair, "pairs" (for
#: the judge and the VAE) and "withheld" hold at least one, "val" and "test" are drawn as "train" is.
SPLITS: dict[str, tuple[int, int]] = {
    "train": (0, 1_000_000),
    "pairs": (1_000_000, 1_000_000),
    "val": (2_000_000, 1_000_000),
    "test": (3_000_000, 1_000_000),
    "withheld": (4_000_000, 1_000_000),
}


@dataclass(frozen=True)
class Thing:
    """One thing: its kind and finish, where it stands (x, y), its size and yaw, and a robot's pose."""

    kind: str
    finish: str
    x: float
    y: float
    size: float
    yaw: float
    #: A robot's pose in degrees: for the left and the right side, upper arm, forearm (relative) and leg spread in
    #: units.
    pose: tuple[float, ...] = ()


@dataclass(frozen=True)
class Scene:
    """A whole scene. `relation` is that of the first thing to the second, or None when there is one thing."""

    things: tuple[Thing, ...]
    relation: str | None
    place: str
    time: str
    camera_x: float
    camera_z: float
    seed: int = field(default=0)

    def to_dict(self) -> dict:
        """A JSON-ready dictionary, the inverse of `from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, d: dict) -> Scene:
        things = tuple(Thing(**{**t, "pose": tuple(t["pose"])}) for t in d["things"])
        return cls(**{**d, "things": things})

    def left_to_right(self) -> tuple[Thing, ...]:
        """The things by their place in the frame, leftmost first (as the judge reads them)."""
        return tuple(sorted(self.things, key=lambda t: t.x))


def split_of(seed: int) -> str:
    """The split that a seed belongs to. Raises ValueError outside all of them."""
    for name, (first, count) in SPLITS.items():
        if first <= seed < first + count:
            return name
    raise ValueError(
        f"seed={seed} is outside every split; the seeds are 0 to {max(f + c for f, c in SPLITS.values()) - 1}"
    )


def _pose(rng: np.random.Generator) -> tuple[float, ...]:
    return tuple(
        round(float(v), 3)
        for _ in range(2)
        for v in (rng.uniform(-75, 75), rng.uniform(-50, 90), rng.uniform(0.0, 0.22))
    )


def _pairs(rng: np.random.Generator, n: int, split: str) -> list[tuple[str, str]]:
    """`n` kind-finish pairs of a split: two things never share their kind and their finish both."""
    wanted = split in ("pairs", "withheld")
    while True:
        pairs = [(str(rng.choice(KINDS)), str(rng.choice(FINISHES))) for _ in range(n)]
        if wanted:
            held = sorted(WITHHELD)
            pairs[int(rng.integers(n))] = held[int(rng.integers(len(held)))]
        elif any(p in WITHHELD for p in pairs):
            continue
        if len(set(pairs)) == n:
            return pairs


def sample_scene(seed: int, n: int | None = None) -> Scene:
    """The scene of a seed; the split the seed belongs to decides which kind-finish pairs may occur.

    Args:
        seed: 0 to 4,999,999 (see `SPLITS`).
        n: 1 or 2 things; None draws it (45 % one, 55 % two).
    Raises:
        ValueError: for a seed outside the splits or another `n`.
    """
    split = split_of(seed)
    if n not in (None, 1, 2):
        raise ValueError(f"n={n} things cannot be placed; use 1 or 2")
    rng = np.random.default_rng([seed, 7])
    n = n or (1 if rng.random() < 0.45 else 2)
    pairs = _pairs(rng, n, split)
    place, time = str(rng.choice(PLACES)), str(rng.choice(TIMES))
    size = rng.uniform(0.95, 1.25, n)
    yaw = rng.uniform(-35, 35, n)
    relation = None
    if n == 1:
        x, y = [rng.uniform(-1.0, 1.0)], [rng.uniform(-0.5, 0.8)]
        size = size * 1.12
    else:
        relation = str(rng.choice(RELATIONS))
        if relation in ("left of", "right of"):
            gap = rng.uniform(1.85, 2.5)
            middle = rng.uniform(-0.15, 0.15)
            x = [middle - gap / 2, middle + gap / 2]
            y0 = rng.uniform(-0.4, 0.7)
            y = [y0, y0 + rng.uniform(-0.35, 0.35)]
            if relation == "right of":
                x, y = x[::-1], y[::-1]
        else:
            gap = float(rng.choice([-1, 1])) * rng.uniform(0.95, 1.45)
            x = [-gap / 2, gap / 2]
            near, far = rng.uniform(-1.3, -0.8), rng.uniform(1.1, 1.8)
            y = [near, far] if relation == "in front of" else [far, near]
    things = tuple(
        Thing(
            kind, finish, round(float(x[i]), 3), round(float(y[i]), 3), round(float(size[i]), 3), round(float(yaw[i]),
            2),
            _pose(rng) if kind == "robot" else (),
        )
        for i, (kind, finish) in enumerate(pairs)
    )  # fmt: skip
    camera_x, camera_z = round(float(rng.uniform(-0.5, 0.5)), 3), round(float(rng.uniform(2.0, 2.8)), 3)
    return Scene(things, relation, place, time, camera_x, camera_z, seed)
