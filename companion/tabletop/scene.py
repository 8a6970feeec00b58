"""The miniature world: what a scene is.

A scene is one or two things on a ground, under a light, seen by a camera. Everything the course measures is defined
here once: the kinds, the finishes (colours and materials), the places, the times of day, the relations, and the
kind-finish pairs that training never sees.

Coordinates are right-handed, in units of about one thing: x to the right, y away from the camera, z up; the ground is
z = 0. Angles are in degrees.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

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
    "head",
    "neck",
    "left_shoulder",
    "left_elbow",
    "left_hand",
    "right_shoulder",
    "right_elbow",
    "right_hand",
    "hips",
    "left_foot",
    "right_foot",
)
#: Bones as pairs of joints, for drawing a pose.
BONES = (
    ("head", "neck"),
    ("neck", "left_shoulder"),
    ("left_shoulder", "left_elbow"),
    ("left_elbow", "left_hand"),
    ("neck", "right_shoulder"),
    ("right_shoulder", "right_elbow"),
    ("right_elbow", "right_hand"),
    ("neck", "hips"),
    ("hips", "left_foot"),
    ("hips", "right_foot"),
)


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
    #: Where the camera stands, and the point in the middle of its picture.
    camera: tuple[float, float, float] = (0.0, -4.0, 1.8)
    look_at: tuple[float, float, float] = (0.0, 0.0, 0.8)
    seed: int = 0

    def to_dict(self) -> dict:
        """A JSON-ready dictionary, the inverse of `from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> Scene:
        things = tuple(Thing(**t | {"pose": tuple(t["pose"])}) for t in d["things"])
        return cls(**d | {"things": things, "camera": tuple(d["camera"]), "look_at": tuple(d["look_at"])})

    def left_to_right(self) -> tuple[Thing, ...]:
        """The things by their place in the frame, leftmost first (as the judge reads them)."""
        return tuple(sorted(self.things, key=lambda t: t.x))
