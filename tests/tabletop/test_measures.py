"""What the course's judge says about the renders that ship with it."""

from __future__ import annotations

import pytest
import torch

from companion.metrics import pictures_to_tensor
from companion.tabletop.caption import Wish, caption
from companion.tabletop.measures import diversity, met, patch_features, prompt_accuracy, read, thing_masks
from companion.tabletop.samples import held_out


def test_held_out_renders_are_what_their_captions_say():
    pictures, scenes = held_out(64)
    found = prompt_accuracy(pictures, [Wish.of(s) for s in scenes])
    assert found.keys() == {"count", "kind", "finish", "place", "time", "relation", "all"}
    assert min(found.values()) > 0.9
    assert found == prompt_accuracy(pictures_to_tensor(pictures), [caption(s) for s in scenes])


def test_accuracy_is_the_share_of_the_pictures_that_were_asked_for_it():
    pictures, scenes = held_out(8)
    seen = read(pictures)
    right = [r.kinds[0] if len(r.kinds) == 1 else f"{r.kinds[0]} and a {r.kinds[1]}" for r in seen]
    elsewhere = [s.place for s in scenes[1:]] + [scenes[0].place]
    prompts = [f"a {kinds} on {place}" for kinds, place in zip(right, elsewhere, strict=True)]
    here = sum(r.place == place for r, place in zip(seen, elsewhere, strict=True)) / 8
    assert prompt_accuracy(pictures, prompts) == {"count": 1.0, "kind": 1.0, "place": here, "all": here}
    assert prompt_accuracy(pictures[:2], [prompts[0], f"a {right[1]}"])["place"] == float(seen[0].place == elsewhere[0])
    assert met(pictures_to_tensor(pictures), prompts) == [True] * 8
    assert sum(met(pictures_to_tensor(pictures), prompts, ("kind", "place"))) == 8 * here


def test_every_picture_needs_a_prompt():
    with pytest.raises(ValueError, match="3 pictures but 2 prompts; give one prompt for each picture"):
        prompt_accuracy(held_out(3)[0], ["a ball", "a cube"])
    with pytest.raises(ValueError, match="name one or two of"):
        prompt_accuracy(held_out(1)[0], ["a dog"])


def test_pictures_that_are_all_the_same_have_no_diversity():
    pictures = pictures_to_tensor(held_out(4)[0])
    assert diversity(pictures[:1].expand(4, -1, -1, -1)) == pytest.approx(0, abs=1e-4)
    assert diversity(pictures) > 0.01


def test_patches_are_those_of_things():
    pictures = pictures_to_tensor(held_out(6)[0])
    found = patch_features(pictures, batch=4)
    share = float(thing_masks(pictures, 0).mean())
    assert found.shape[1] == 96 and len(found) == pytest.approx(share * 6 * 16 * 16, rel=0.25)
    alone = patch_features(pictures[4:])
    assert torch.allclose(found[-len(alone) :], alone, atol=1e-4)
