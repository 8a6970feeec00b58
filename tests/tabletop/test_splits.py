"""How scenes are drawn from seeds, and which seeds are for what."""

from __future__ import annotations

import numpy as np
import pytest

from companion.tabletop.camera import TANGENT, boxes, view
from companion.tabletop.scene import FINISHES, KINDS, RELATIONS, WITHHELD
from companion.tabletop.splits import HIDDEN, SPLITS, sample_scene, split_of

from .helpers import some


def test_every_kind_finish_and_relation_is_drawn():
    seen = some("train", 400)
    assert {t.kind for s in seen for t in s.things} == set(KINDS)
    assert {t.finish for s in seen for t in s.things} == set(FINISHES)
    assert {s.relation for s in seen} == {None, *RELATIONS}


def test_a_scene_depends_on_its_seed_alone():
    assert sample_scene(12) == sample_scene(12) != sample_scene(13)


def test_withheld_pairs_are_where_they_belong_and_nowhere_else():
    def held(s):
        return any((t.kind, t.finish) in WITHHELD for t in s.things)

    assert not any(held(s) for split in ("train", "val", "test", "robots") for s in some(split, 400))
    assert all(held(s) for split in ("pairs", "withheld") for s in some(split))


def test_scenes_of_robots_have_one():
    seen = some("robots", 400)
    assert all("robot" in [t.kind for t in s.things] for s in seen)
    assert {t.kind for s in seen for t in s.things} == set(KINDS), "beside everything"
    assert {t.finish for s in seen for t in s.things if t.kind == "robot"} == set(FINISHES) - {"red"}


def test_splits_do_not_overlap():
    ranges = sorted((first, first + count) for first, count in SPLITS.values())
    assert all(a[1] <= b[0] for a, b in zip(ranges, ranges[1:], strict=False))
    assert [split_of(first) for first, _ in SPLITS.values()] == list(SPLITS)


@pytest.mark.parametrize("bad", [-1, 6_000_000])
def test_a_seed_outside_the_splits_is_refused(bad):
    with pytest.raises(ValueError, match=f"seed={bad} is outside every split"):
        sample_scene(bad)


@pytest.mark.parametrize("bad", [0, 3])
def test_no_or_many_things_are_refused(bad):
    with pytest.raises(ValueError, match=f"n={bad} things cannot be placed; use 1 or 2"):
        sample_scene(0, bad)


def test_relations_are_true_of_the_places():
    for s in some("train", 1000, 2):
        a, b = s.things
        gap_x, gap_y = a.x - b.x, a.y - b.y
        if s.relation in ("left of", "right of"):
            assert (gap_x < 0) == (s.relation == "left of") and abs(gap_y) < 0.65 < abs(gap_x)
        else:
            assert (gap_y < 0) == (s.relation == "in front of") and abs(gap_y) > 1.55


def test_one_thing_fills_the_picture_as_a_photographer_would_have_it():
    found = np.array([boxes(s.camera, s.look_at, s.things)[0] for s in some("train", 400, 1)])
    left, bottom, right, top = found.T
    height, width = top - bottom, right - left
    assert ((height >= 0.445) & (height <= 0.755) | (abs(width - 0.9) < 0.005)).all()
    assert height.std() > 0.06, "the distance hardly varies"
    assert (found > 0.005).all() and (found < 0.995).all(), "a thing is cut off"


def test_two_things_are_whole_and_the_far_one_is_seen():
    for s in some("train", 400, 2):
        found = boxes(s.camera, s.look_at, s.things)
        assert (found > 0.005).all() and (found < 0.995).all(), f"a thing of seed {s.seed} is cut off"
        near, far = sorted(range(2), key=lambda i: s.things[i].y)
        both = min(found[near, 2], found[far, 2]) - max(found[near, 0], found[far, 0])
        if s.relation in ("in front of", "behind"):
            assert both <= HIDDEN * (found[far, 2] - found[far, 0]) + 1e-9


def test_the_sky_is_seen_above_every_scene():
    """Its colour tells the time of day."""
    for s in some("train", 400):
        down = np.rad2deg(np.arcsin(view(s.camera, s.look_at)[2, 2]))
        assert 0.04 < 0.5 - np.tan(np.deg2rad(down)) / TANGENT / 2 < 0.35
        assert s.camera[2] > 0.4
