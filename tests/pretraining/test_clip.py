"""The miniature's CLIP."""

from __future__ import annotations

import numpy as np
import torch

from companion.pretraining.clip import halved, make_clip, near_miss, text_tower, tokenize, trained_tokenizer
from companion.tabletop.caption import caption
from companion.tabletop.splits import sample_scene


def test_a_near_miss_says_something_else():
    rng = np.random.default_rng(0)
    scenes = [sample_scene(seed) for seed in range(500)]
    changed = [caption(near_miss(s, rng)) != caption(s) for s in scenes]
    assert np.mean(changed) > 0.9  # two things of one finish, for instance, can be swapped without a change


def test_the_text_tower_gives_the_states_of_its_clip(tmp_path):
    words = trained_tokenizer(tmp_path)
    clip, ids = make_clip(words).eval(), tokenize(words, ["a red ball on grass by day", ""])
    with torch.no_grad():
        states = text_tower(clip).eval()(ids).last_hidden_state
        assert torch.equal(states, clip.text_model(ids).last_hidden_state)
    assert states.shape == (2, 32, 192)


def test_pictures_are_halved_by_averaging():
    pictures = np.zeros((2, 4, 4, 3), np.uint8)
    pictures[0, :2, :2] = 100
    pictures[1, 0, 0] = 10  # a quarter of it is 2.5, which is rounded to an even number
    half = halved(pictures)
    assert half.shape == (2, 2, 2, 3) and half.dtype == torch.uint8
    assert half[0, ..., 0].tolist() == [[100, 0], [0, 0]] and half[1, ..., 0].tolist() == [[2, 0], [0, 0]]
