"""What a scene is."""

from __future__ import annotations

import json

from companion.tabletop.scene import BONES, FINISHES, JOINTS, KINDS, PLACES, RELATIONS, TIMES, WITHHELD, Scene

from .helpers import some


def test_the_world_is_as_large_as_it_says():
    assert len(KINDS) >= 10 and len(FINISHES) == 11 and len(PLACES) == 5 and len(TIMES) == 3 and len(RELATIONS) == 4
    assert len(WITHHELD) >= 6 and all(kind in KINDS and finish in FINISHES for kind, finish in WITHHELD)
    assert {joint for bone in BONES for joint in bone} == set(JOINTS)


def test_a_scene_survives_json():
    for scene in some("train", 40):
        assert Scene.from_dict(json.loads(json.dumps(scene.to_dict()))) == scene


def test_things_are_read_from_left_to_right():
    for scene in some("train", 40):
        things = scene.left_to_right()
        assert sorted(things, key=lambda t: t.x) == list(things) and set(things) == set(scene.things)
