"""What the tests of the miniature world share."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import pytest

from companion.tabletop.scene import Scene, Thing
from companion.tabletop.splits import SPLITS, sample_scene

needs_mitsuba = pytest.mark.skipif(
    not all(find_spec(name) for name in ("mitsuba", "oidn")), reason="the extra [build] is not installed"
)

drawn = cache(sample_scene)  # framing takes about 10 ms a scene, and many tests look at the same ones


def some(split: str, n: int = 300, things: int | None = None) -> list[Scene]:
    """The first `n` scenes of a split, with `things` things each."""
    first = SPLITS[split][0]
    return [drawn(seed, things) for seed in range(first, first + n)]


def one(kind: str, finish: str = "red", **changes) -> Scene:
    """A scene with one thing, on grass by day."""
    pose = (30, 20, 0.1, -20, 40, 0.1) if kind == "robot" else ()
    return Scene((Thing(kind, finish, 0.0, 0.0, 1.2, 20.0, pose),), None, "grass", "day", seed=5, **changes)
