"""How a scene is drawn from a seed, and which seeds are for training or for tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np

from companion.tabletop.camera import boxes, frame, outline
from companion.tabletop.scene import FINISHES, KINDS, PLACES, RELATIONS, TIMES, WITHHELD, Scene, Thing

Split = Literal["train", "pairs", "val", "test", "withheld", "robots"]
#: First seed and number of seeds of each split; the ranges do not overlap. "train" holds no withheld pair, "pairs" (for
#: the judge and the VAE) and "withheld" hold at least one, "val" and "test" are drawn like "train". So is "robots", but
#: one of its things is a robot: arms have so many poses that training needs more of them than of other things.
SPLITS: dict[str, tuple[int, int]] = {
    "train": (0, 1_000_000),
    "pairs": (1_000_000, 1_000_000),
    "val": (2_000_000, 1_000_000),
    "test": (3_000_000, 1_000_000),
    "withheld": (4_000_000, 1_000_000),
    "robots": (5_000_000, 1_000_000),
}
HIDDEN = 0.30  # how much of the far thing's width the near one may cover


def split_of(seed: int) -> str:
    """The split that a seed belongs to. Raises ValueError outside all of them."""
    for name, (first, count) in SPLITS.items():
        if first <= seed < first + count:
            return name
    raise ValueError(
        f"seed={seed} is outside every split; the seeds are 0 to {max(f + c for f, c in SPLITS.values()) - 1}"
    )


#: Of a robot's pose on each side: the least and largest angle of the upper arm and of the forearm, and leg spread.
POSES = ((-75.0, 75.0), (-50.0, 90.0), (0.0, 0.22))


def _pose(rng: np.random.Generator) -> tuple[float, ...]:
    return tuple(round(float(rng.uniform(low, high)), 3) for _ in range(2) for low, high in POSES)


def _pairs(rng: np.random.Generator, n: int, split: str) -> list[tuple[str, str]]:
    """`n` kind-finish pairs for a split; two things never share both kind and finish."""
    wanted = split in ("pairs", "withheld")
    while True:
        pairs = [(str(rng.choice(KINDS)), str(rng.choice(FINISHES))) for _ in range(n)]
        if split == "robots":
            i = int(rng.integers(n))
            pairs[i] = "robot", pairs[i][1]
        if wanted:
            held = sorted(WITHHELD)
            pairs[int(rng.integers(n))] = held[int(rng.integers(len(held)))]
        elif any(p in WITHHELD for p in pairs):
            continue
        if len(set(pairs)) == n:
            return pairs


def _thing(rng: np.random.Generator, kind: str, finish: str) -> Thing:
    """A thing at the origin."""
    size, yaw = round(float(rng.uniform(0.95, 1.25)), 3), round(float(rng.uniform(-35, 35)), 2)
    return Thing(kind, finish, 0.0, 0.0, size, yaw, _pose(rng) if kind == "robot" else ())


def _at(thing: Thing, x: float, y: float) -> Thing:
    return replace(thing, x=round(float(x), 3), y=round(float(y), 3))


def _place(rng: np.random.Generator, first: Thing, second: Thing, relation: str) -> tuple[Thing, Thing]:
    """Place two things as their relation says, close but without touching."""
    (low, high), (low2, high2) = ((o[:, 0].min(), o[:, 0].max()) for o in map(outline, (first, second)))
    if relation in ("left of", "right of"):
        left, right = ((low, high), (low2, high2)) if relation == "left of" else ((low2, high2), (low, high))
        # From the right side of the left thing to the left side of the right one.
        gap = left[1] - right[0] + rng.uniform(0.15, 0.55)
        x = (-gap / 2, gap / 2) if relation == "left of" else (gap / 2, -gap / 2)
        y = rng.uniform(-0.3, 0.3, 2)
    else:
        side = rng.choice([-1, 1])
        wide = (high - low + high2 - low2) / 2
        gap = side * wide * rng.uniform(0.62, 0.95)
        near, far = rng.uniform(-1.15, -0.75), rng.uniform(0.85, 1.35)
        x, y = (-gap / 2, gap / 2), (near, far) if relation == "in front of" else (far, near)
    return _at(first, x[0], y[0]), _at(second, x[1], y[1])


def _covered(camera, look_at, things: tuple[Thing, ...]) -> float:
    """The share of the far thing's width that the near one covers."""
    near, far = sorted(range(2), key=lambda i: things[i].y)
    found = boxes(camera, look_at, things)
    both = min(found[near, 2], found[far, 2]) - max(found[near, 0], found[far, 0])
    return max(0.0, both) / (found[far, 2] - found[far, 0])


def sample_scene(seed: int, n: int | None = None) -> Scene:
    """The scene for a seed; the seed's split decides which kind-finish pairs may occur.

    The camera is as close as a photographer would go: one thing fills 45 % to 75 % of the picture's height (or nearly
    all of its width), and two are both whole.

    Args:
        seed: 0 to 5,999,999 (see `SPLITS`).
        n: 1 or 2 things; None draws it (45 % one, 55 % two).
    Raises:
        ValueError: for a seed outside the splits or another `n`.
    """
    split = split_of(seed)
    if n not in (None, 1, 2):
        raise ValueError(f"n={n} things cannot be placed; use 1 or 2")
    rng = np.random.default_rng([seed, 7])
    n = n or (1 if rng.random() < 0.45 else 2)
    things = tuple(_thing(rng, *pair) for pair in _pairs(rng, n, split))
    place, time = str(rng.choice(PLACES)), str(rng.choice(TIMES))
    relation = str(rng.choice(RELATIONS)) if n == 2 else None
    return photographed(rng, things, relation, place, time, seed)


def photographed(
    rng: np.random.Generator, things: tuple[Thing, ...], relation: str | None, place: str, time: str, seed: int
) -> Scene:
    """One or two things, put where their relation says and seen as by a photographer (see `sample_scene`)."""
    if relation is None:
        camera, look_at = frame(
            things,
            height=rng.uniform(0.45, 0.75),
            width=0.9,
            margin=rng.uniform(0.06, 0.16),
            shift=rng.uniform(-0.6, 0.6),
            azimuth=rng.uniform(-12, 12),
            pitch=rng.uniform(8, 16),
        )
        return Scene(things, None, place, time, camera, look_at, seed)
    first, second = things
    side_by_side = relation in ("left of", "right of")
    while True:
        placed = _place(rng, first, second, relation)
        camera, look_at = frame(
            placed,
            height=rng.uniform(0.6, 0.8),
            width=rng.uniform(0.82, 0.94),
            margin=rng.uniform(0.06, 0.16),
            shift=rng.uniform(-0.6, 0.6),
            azimuth=rng.uniform(-8, 8),
            pitch=rng.uniform(9, 16),
        )
        if side_by_side or _covered(camera, look_at, placed) <= HIDDEN:
            return Scene(placed, relation, place, time, camera, look_at, seed)


def emptied(scene: Scene) -> Scene:
    """The same place, time and view without things."""
    return replace(scene, things=(), relation=None)


def swapped(scene: Scene) -> Scene:
    """The same scene with each thing's kind replaced by another; finish, place and size stay."""
    rng = np.random.default_rng([scene.seed, 13])

    def other(thing: Thing) -> Thing:
        kind = str(rng.choice([k for k in KINDS if k != thing.kind]))
        return replace(thing, kind=kind, pose=_pose(rng) if kind == "robot" else ())

    return replace(scene, things=tuple(other(t) for t in scene.things))


#: Changes to the scenes of a split: "train-empty" is "train" without things. They show what a judge must reject.
CHANGES: dict[str, Callable[[Scene], Scene]] = {"empty": emptied, "swapped": swapped}


def split_scenes(name: str, first: int, count: int) -> list[Scene]:
    """Scenes number `first` to `first + count - 1` of a split, such as "train", or of a changed one ("train-empty").

    Raises:
        ValueError: for an unknown name, or numbers outside of the split.
    """
    split, _, change = name.partition("-")
    if split not in SPLITS or change not in ("", *CHANGES):
        known = f"{', '.join(SPLITS)}, and each of them with -{' or -'.join(CHANGES)}"
        raise ValueError(f"split={name!r} is unknown; the splits are {known}")
    start, size = SPLITS[split]
    if first < 0 or first + count > size:
        raise ValueError(f"{split!r} has {size} scenes; numbers {first} to {first + count - 1} are not among them")
    scenes = [sample_scene(start + i) for i in range(first, first + count)]
    return [CHANGES[change](scene) for scene in scenes] if change else scenes
