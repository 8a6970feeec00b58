"""Twelve subjects that no model has seen, each whole in its pictures, with captions that say what is there."""

from __future__ import annotations

import numpy as np
import pytest

from companion.tabletop.camera import boxes
from companion.tabletop.caption import parse
from companion.tabletop.scene import KINDS, PLACES, TIMES
from companion.tabletop.shapes import solid
from companion.tabletop.subjects import PHOTOGRAPHS, SUBJECTS, TESTS, build, scenes_of

every_subject = pytest.mark.parametrize("subject", SUBJECTS.values(), ids=list(SUBJECTS))


def test_there_are_enough_and_their_kinds_are_new():
    assert len(SUBJECTS) >= 10 and not set(SUBJECTS) & set(KINDS)
    assert {s.noun for s in SUBJECTS.values()} <= set(KINDS)


@every_subject
def test_photographs_are_of_it_alone_and_tests_show_what_they_do_not(subject):
    scenes = scenes_of(subject)
    seen, tests = scenes[:PHOTOGRAPHS], scenes[PHOTOGRAPHS:]
    assert len(scenes) == PHOTOGRAPHS + TESTS and scenes == scenes_of(subject)
    assert all([t.kind for t in s.things] == [subject.name] for s in seen)
    assert {s.place for s in seen} == set(PLACES) and {s.time for s in seen} == set(TIMES)
    assert not {(s.place, s.time) for s in seen} & {(s.place, s.time) for s in tests}
    assert sum(len(s.things) == 2 for s in tests) == TESTS // 2
    for scene in scenes:
        found = boxes(scene.camera, scene.look_at, scene.things)
        assert found.min() > -0.02 and found.max() < 1.02, "nothing is cut off"


@every_subject
def test_prompts_call_it_by_a_rare_word_and_its_class(subject):
    for scene in scenes_of(subject):
        prompt, plain = subject.prompt(scene, "sks"), subject.prompt(scene, "")
        assert f"a sks {subject.noun}" in prompt and "red" not in prompt and subject.name not in prompt.split()
        assert f"a {subject.noun}" in plain and "  " not in plain
        wish = parse(prompt)
        assert (wish.place, wish.time, wish.relation) == (scene.place, scene.time, scene.relation)
        assert wish.finishes[0] is None and wish.kinds[0] == subject.noun
        assert wish.finishes[1:] == tuple(t.finish for t in scene.things[1:])


@every_subject
def test_its_pictures_are_the_stored_ones(subject):
    (photographs, scenes), (tests, others) = subject.photographs(), subject.tests()
    assert photographs.shape == (PHOTOGRAPHS, 128, 128, 3) and tests.shape == (TESTS, 128, 128, 3)
    assert [*scenes, *others] == scenes_of(subject)
    assert photographs.reshape(PHOTOGRAPHS, -1).std(0).mean() > 10, "no two are alike"


@every_subject
def test_every_part_has_a_colour_of_its_own_and_the_renderer_can_scale_it(subject):
    for part in solid(scenes_of(subject)[0].things[0]).parts:
        assert part.colour is not None
        if part.shape == "sphere":  # the renderer's spheres know one radius only
            lengths = np.linalg.norm(part.to_world[:3, :3], axis=0)
            assert lengths == pytest.approx(lengths[0])


def test_a_subject_is_drawn_again_as_it_is_stored(tmp_path):
    pytest.importorskip("mitsuba")
    subject = SUBJECTS["duck"]
    paths = build(subject, tmp_path)
    stored = np.concatenate([subject.photographs()[0], subject.tests()[0]]).astype(float)
    from PIL import Image

    again = np.stack([np.asarray(Image.open(p).convert("RGB")) for p in paths]).astype(float)
    assert np.abs(again - stored).mean() < 1  # other CPUs round differently
