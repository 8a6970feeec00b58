"""What is measured of a subject tells it from its class, and teaching leaves the pipeline as it was."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

import companion
from companion import diffusion, dreambooth
from companion.dreambooth import (
    PREPARED,
    RARE_WORD,
    class_prompts,
    class_scenes,
    class_set,
    colour_drift,
    drift,
    errors_at,
    feature_likeness,
    likeness,
    other_scenes,
    photographs_for,
    shape_likeness,
    share,
    spread,
    standardised,
    subject_prompts,
    subject_set,
    teach,
    text_likeness,
    unrelated,
)
from companion.finetuning import Lora
from companion.models import seeded
from companion.tabletop import measures
from companion.tabletop.caption import caption, parse
from companion.tabletop.samples import held_out
from companion.tabletop.scene import KINDS, PLACES, TIMES, WITHHELD
from companion.tabletop.subjects import SUBJECTS
from companion.training import noise_loss


@pytest.fixture(scope="module")
def pipe():
    return companion.load("tabletop", device="cpu")


@pytest.fixture(scope="module")
def renders():
    return held_out()


@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=list(SUBJECTS))
def test_a_subject_is_more_like_itself_than_its_class_is(subject, renders):
    """In other places, at other times, it still looks like its photographs, more than its class and most others do."""
    pictures, scenes = renders
    photographs, tests = subject.photographs()[0], subject.tests()[0][1::2]  # those without a neighbour
    kind = [i for i, s in enumerate(scenes) if len(s.things) == 1 and s.things[0].kind == subject.noun]
    assert all(len(s.things) == 1 for s in subject.tests()[1][1::2])
    itself, its_class = likeness(tests, photographs).mean(), likeness(pictures[kind], photographs).mean()
    others = [float(likeness(o.tests()[0][1::2], photographs).mean()) for o in SUBJECTS.values() if o is not subject]
    assert itself > its_class + 0.1 and itself > max(others)
    colours = feature_likeness(pictures, photographs)
    rivals = pictures[colours.argsort(descending=True)[:8].numpy()]  # of the same colours, but of other shapes
    assert itself > likeness(rivals, photographs).mean() + 0.1


def test_a_yellow_ball_is_no_duck(renders):
    """Its colours alone say that it is one, as an eye does not."""
    pictures, scenes = renders
    photographs, tests = SUBJECTS["duck"].photographs()[0], SUBJECTS["duck"].tests()[0][1::2]
    alone = [(i, s.things[0]) for i, s in enumerate(scenes) if len(s.things) == 1]
    balls = pictures[[i for i, t in alone if t.kind in ("ball", "cube") and t.finish in ("yellow", "gold")]]
    assert len(balls) >= 3
    assert feature_likeness(balls, photographs).mean() > 0.7 and shape_likeness(balls, photographs).max() < 0
    assert shape_likeness(tests, photographs).min() > 0.5
    assert likeness(tests, photographs).min() > likeness(balls, photographs).max() + 0.2


def test_a_picture_without_a_thing_is_as_unlike_as_can_be(renders, monkeypatch):
    assert measures.thing_outlines(renders[0][:1], smallest=64 * 64 + 1)[0].shape == (0, 64)
    seen = {1: [torch.zeros(0, 64)], 2: measures.thing_outlines(renders[0][:2])}
    dreambooth._outlines()
    monkeypatch.setattr(measures, "thing_outlines", lambda pictures: seen[len(pictures)])
    assert shape_likeness(renders[0][:1], renders[0][:2]).tolist() == [-1]


def test_an_outline_is_that_of_the_thing_wherever_it_stands(renders):
    one, two = (next(i for i, s in enumerate(renders[1]) if len(s.things) == n) for n in (1, 2))
    found = measures.thing_outlines(renders[0][[one, two]])
    assert all(len(outlines) in (1, 2) and outlines.shape[1] == 64 for outlines in found)
    assert all(0 <= outlines.min() < outlines.max() <= 1 for outlines in found)
    mask = np.zeros((64, 64), bool)
    mask[10:26, 30:46] = True
    mask[10:18, 30:38] = False
    small, large = measures._outline(mask), measures._outline(mask.repeat(2, 0).repeat(2, 1)[:, ::-1])
    assert torch.allclose(small.view(8, 8)[:, :4].sum(), torch.tensor(16.0)) and small.sum() == 48
    assert torch.equal(large.view(8, 8).flip(1), small.view(8, 8))


def test_similarities_are_cosines_of_standardised_features(renders):
    pictures = renders[0]
    f = standardised(pictures)
    assert torch.allclose(f.norm(dim=1), torch.ones(len(f)))
    same = likeness(pictures[:3], pictures[:1])
    assert same[0] == pytest.approx(1, abs=1e-5) and (same[1:] < 0.99).all()
    assert abs(float(likeness(pictures[:128], pictures[128:]).mean())) < 0.1, "unrelated pictures have about 0"
    clip = feature_likeness(pictures[:3], pictures[:1], measures.clip_pictures)
    assert clip[0] == pytest.approx(1, abs=1e-5)


def test_spread_and_drift_are_0_where_nothing_differs(renders):
    pictures = renders[0]
    twice = np.concatenate([pictures[:1]] * 3)
    assert spread(twice) == pytest.approx(0, abs=1e-5) and spread(pictures[:8]) > 0.3
    assert drift(pictures[:4], pictures[:4]).abs().max() < 1e-5 and drift(pictures[:4], pictures[4:8]).min() > 0.05
    assert colour_drift(pictures[:4], pictures[:4]).max() == 0
    with pytest.raises(ValueError, match="one picture has no diversity"):
        spread(pictures[:1])
    with pytest.raises(ValueError, match="4 pictures before and 3 after"):
        drift(pictures[:4], pictures[:3])


def test_colours_drift_in_units_of_cielab():
    white, grey = (np.full((1, 128, 128, 3), v, np.uint8) for v in (255, 119))
    assert float(colour_drift(white, grey)[0]) == pytest.approx(50, abs=0.5), "grey 119 has lightness 50"
    # A fine chequerboard of black and white is as light as the grey of half its light.
    board = np.indices((128, 128)).sum(0) % 2 * 255
    board = np.repeat(board[None, ..., None], 3, -1).astype(np.uint8)
    assert float(colour_drift(board, np.full_like(board, 188))[0]) < 0.5


def test_clip_finds_a_picture_closer_to_its_own_caption(renders):
    pictures, scenes = renders
    texts = [caption(s) for s in scenes[:32]]
    own, other = text_likeness(pictures[:32], texts), text_likeness(pictures[:32], texts[1:] + texts[:1])
    assert (own > other).float().mean() > 0.9
    with pytest.raises(ValueError, match="2 pictures but 1 prompts"):
        text_likeness(pictures[:2], texts[:1])


def test_a_share_is_0_at_the_floor_and_1_at_the_ceiling():
    assert (share(0.2, 0.2, 0.6), share(0.6, 0.2, 0.6)) == (0, 1) and share(0.5, 0.2, 0.6) == pytest.approx(0.75)


def test_the_sets_are_called_as_the_paper_calls_them(pipe):
    duck = SUBJECTS["duck"]
    assert set(subject_set(pipe, duck, scenes=False).prompts) == {f"a {RARE_WORD} ball"}
    assert set(subject_set(pipe, duck, noun="cube", scenes=False).prompts) == {f"a {RARE_WORD} cube"}
    assert set(subject_set(pipe, duck, noun="", scenes=False).prompts) == {f"a {RARE_WORD}"}
    assert len(subject_set(pipe, duck).latents) == 5
    assert class_prompts("ball", 2) == ["a ball"] * 2
    with pytest.raises(ValueError, match="knows no 'duck'; the kinds are ball"):
        class_prompts("duck", 2)


def test_captions_say_where_and_when(pipe):
    duck = SUBJECTS["duck"]
    scenes = duck.photographs()[1]
    prompts = subject_set(pipe, duck).prompts
    assert len(set(prompts)) == 5 and all(p.startswith(f"a {RARE_WORD} ball on ") for p in prompts)
    for prompt, scene in zip(prompts, scenes, strict=True):
        assert (parse(prompt).place, parse(prompt).time) == (scene.place, scene.time)
    assert subject_prompts(duck, scenes, "")[0] == prompts[0].replace(f"{RARE_WORD} ", "")
    assert subject_prompts(duck, scenes, RARE_WORD, "")[0] == prompts[0].replace("ball ", "")
    assert subject_prompts(duck, duck.tests()[1][:1], RARE_WORD, "cube")[0].count("cube") == 1


@pytest.mark.parametrize("noun", KINDS)
def test_the_second_set_reminds_of_the_class_and_of_other_things_everywhere(noun):
    own, others = class_scenes(noun, 45), other_scenes(noun, 90)
    for prompts in (own, others):
        wheres = [(parse(p).place, parse(p).time) for p in prompts]
        assert set(Counter(wheres)) == set(itertools.product(PLACES, TIMES))
    assert {parse(p).kinds for p in own} == {(noun,)}
    things = [(parse(p).kinds[0], parse(p).finishes[0]) for p in others]
    assert {kind for kind, _ in things} == {*KINDS} - {noun} and not WITHHELD.intersection(things)
    for kind in {*KINDS} - {noun}:
        assert len({parse(p).time for p in others if parse(p).kinds == (kind,)}) == 3
        assert len({finish for k, finish in things if k == kind}) > 3


def test_what_is_tested_is_not_what_it_is_reminded_of():
    tested = {(parse(p).kinds[0], parse(p).finishes[0]) for p in unrelated()}
    assert len(tested) == 20 and not WITHHELD.intersection(tested)
    for noun in KINDS:
        prompts = unrelated(noun)
        assert len(set(prompts)) == 18 and not any(f" {noun} " in p for p in prompts)
        reminded = {(parse(p).kinds[0], parse(p).finishes[0]) for p in other_scenes(noun, 200)}
        assert len(reminded) > 40 and not reminded & tested


def test_photographs_are_prepared_as_their_ways_say(pipe):
    x = photographs_for(pipe, SUBJECTS["duck"])
    made = {name: way(x) for name, way in PREPARED.items()}
    assert torch.equal(made["cropped"], x) and made["small"].shape == (5, 3, 64, 64)
    assert all(y.shape == x.shape for name, y in made.items() if name != "small")
    assert all(-1 <= y.min() and y.max() <= 1 for y in made.values())
    assert 0 < float((made["JPEG"] - x).abs().mean()) < 0.02 and float((made["enlarged"] - x).abs().mean()) > 0.01
    masks = [measures.thing_masks(y, grow=0)[:, 0] for y in (x, made["stretched"])]
    wide, high = ([m.amax(d).sum(1).median() for m in masks] for d in (1, 2))
    assert wide[1] < 0.85 * wide[0] and high[1] > 0.9 * high[0], "things become narrower, and stay as high"
    bars = made["with bars"]
    assert (bars[:, :, :15] == 1).all() and (bars[:, :, -15:] == 1).all() and not (bars[:, :, 20:-20] == 1).all()
    assert subject_set(pipe, SUBJECTS["duck"], prepared="small").latents.shape[-2:] == (8, 8)
    with pytest.raises(ValueError, match="prepared='squeezed' is unknown; the ways are cropped, JPEG"):
        subject_set(pipe, SUBJECTS["duck"], prepared="squeezed")


def test_errors_by_timestep_are_those_of_training(pipe):
    given = subject_set(pipe, SUBJECTS["duck"], photographs=2)
    found = errors_at(pipe, given, [100, 700], draws=2, seed=5)
    assert found.shape == (2, 2) and torch.equal(found, errors_at(pipe, given, [100, 700], draws=2, seed=5))
    scheduler, text = DDPMScheduler.from_config(pipe.scheduler.config), diffusion.encode_prompt(pipe, given.prompts)
    for row, t in zip(found, (100, 700), strict=True):
        options = {"timesteps": torch.tensor([t, t])}
        with torch.no_grad():
            losses = [
                noise_loss(lambda x, t: pipe.unet(x, t, text).sample, scheduler, given.latents, seeded(seed), **options)
                for seed in (5, 6)
            ]
        assert float(row.mean()) == pytest.approx(float(torch.stack(losses).mean()), rel=1e-4)


def test_teaching_moves_a_copy_towards_the_subject_and_not_the_pipeline(pipe):
    duck, options = SUBJECTS["duck"], {"steps": 4, "guidance_scale": 2.0}
    before = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    prior = class_set(pipe, "ball", 3, **options)
    assert list(prior.prompts) == class_scenes("ball", 3) + other_scenes("ball", 3) and prior.weight == 1
    assert len(prior.latents) == 6 and len(class_set(pipe, "ball", 1, others=0, **options).latents) == 1
    states = list(teach(pipe, duck, Lora(rank=2), steps=3, prior=prior, lr=1e-2, batch=2))
    assert [s.progress.step for s in states] == [1, 2, 3]
    assert all(torch.equal(v, before[k]) for k, v in pipe.unet.state_dict().items())
    drawn, plain = (diffusion.draw(p, f"a {RARE_WORD} ball", 3, **options) for p in (states[-1].tuned.pipe, pipe))
    assert not torch.allclose(drawn, plain, atol=1e-3)


def test_the_word_moves_what_the_encoder_says_of_the_noun_and_the_usual_one_hardly_does(pipe):
    def noun(prompt):  # the state of the last word, before the end
        return diffusion.encode_prompt(pipe, [prompt])[0, len(pipe.tokenizer(prompt).input_ids) - 2]

    for kind in ("ball", "tree", "robot"):
        moved = {w: float((noun(f"a {w} {kind}") - noun(f"a {kind}")).norm()) for w in (RARE_WORD, "sks", "red")}
        assert moved["red"] > moved[RARE_WORD] > 1.5 * moved["sks"]
    assert len(pipe.tokenizer("sks").input_ids) == 3, "one token between start and end"
