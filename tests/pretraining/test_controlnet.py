"""ControlNets learn to follow exact maps, while the U-Net stays as it was."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from companion.conditions import CONDITIONS
from companion.controlnet import adapter_of, controlnet_of
from companion.pretraining import controlnet, unet
from companion.pretraining.clip import trained_tokenizer
from companion.pretraining.controlnet import DROP, to_follow, train_controlnet
from companion.pretraining.unet import Conditioned, make_unet
from companion.tabletop import dataset
from companion.tabletop.samples import held_out
from companion.training import load_weights

from .helpers import untrained_text_encoder


@pytest.fixture
def scene(tmp_path):
    """Everything for a step: an untrained base, soft edges of eight held-out renders, and latents."""
    words, (pictures, scenes) = trained_tokenizer(tmp_path), held_out(8)
    base = Conditioned(make_unet(1), untrained_text_encoder(words, 1))
    maps = CONDITIONS["softedge"].annotate(pictures)
    latents = torch.randn(8, 4, 16, 16, generator=torch.Generator().manual_seed(0)).half()
    return base, CONDITIONS["softedge"], maps, latents, scenes, words


def test_half_of_the_captions_are_left_out_and_the_maps_are_those_of_the_renders(scene, monkeypatch):
    base, condition, maps, latents, scenes, words = scene
    told, shown = [], []
    states = SimpleNamespace(last_hidden_state=torch.zeros(4, 32, 192))
    monkeypatch.setattr(unet, "tokenize", lambda _, texts: told.extend(texts))
    monkeypatch.setattr(base.text_encoder, "forward", lambda _: states)
    monkeypatch.setattr(controlnet, "as_controls", lambda p, size: shown.append(p) or torch.zeros(4, 3, size, size))
    net = controlnet_of(base.unet)
    list(train_controlnet(net, base, condition, maps, latents, scenes, words, 12, batch=4))
    assert len(shown) == 12 and np.mean([text == "" for text in told]) == pytest.approx(DROP, abs=0.15)
    every = condition.paint(maps)
    assert all(any(np.array_equal(p, e) for e in every) for some in shown for p in some)


def test_renders_without_anything_to_follow_are_left_out(small_world):
    renders, condition = small_world / "renders", CONDITIONS["softedge"]
    blank = replace(condition, exact=lambda columns, scenes: condition.exact(columns, scenes) * _every_third(scenes))
    maps, places, scenes = to_follow(renders, "val", blank, 20)
    assert places.tolist() == [0, 3, 6, 9, 12, 15, 18] and len(maps) == len(scenes) == 7
    assert scenes == [dataset.scenes(renders, "val")[i] for i in places]
    few, places, scenes = to_follow(renders, "val", blank, 20, 2)
    assert np.array_equal(few, maps[:2]) and places.tolist() == [0, 3] and len(scenes) == 2


def _every_third(scenes: list) -> np.ndarray:
    return (np.arange(len(scenes)) % 3 == 0).astype(np.uint8)[:, None, None]


@pytest.mark.parametrize("bfloat16", [False, True])
def test_only_the_controlnet_learns_and_it_goes_on_where_it_stopped(scene, tmp_path, bfloat16):
    base, condition, maps, latents, scenes, words = scene
    before = {k: v.clone() for k, v in base.state_dict().items()}
    path, options = tmp_path / "softedge.safetensors", {"batch": 2, "bfloat16": bfloat16}

    def train(steps: int, checkpoint=None):
        net = controlnet_of(base.unet, attention=False, open_embedder=True)
        given = (base, condition, maps, latents, scenes, words)
        *_, (_, ema) = train_controlnet(net, *given, steps, checkpoint=checkpoint, **options)
        return ema

    def stopped(after: int) -> None:
        net = controlnet_of(base.unet, attention=False, open_embedder=True)
        given = (base, condition, maps, latents, scenes, words)
        for progress, _ in train_controlnet(net, *given, 4, checkpoint=path, every=0, **options):
            if progress.step == after:
                return

    whole = train(4)
    stopped(2)
    broken = train(4, path)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), broken.parameters(), strict=True))
    assert all(torch.equal(v, before[k]) for k, v in base.state_dict().items())
    assert whole.controlnet_mid_block.weight.abs().sum() > 0
    assert load_weights(path, controlnet_of(base.unet, attention=False)).config.mid_block_type == "UNetMidBlock2D"


@pytest.mark.parametrize("bfloat16", [False, True])
def test_an_adapter_learns_in_the_same_way(scene, bfloat16):
    base, condition, maps, latents, scenes, words = scene
    adapter = adapter_of(base.unet)
    run = train_controlnet(
        adapter, base, condition, maps, latents, scenes, words, 3, batch=2, bfloat16=bfloat16, warmup=0
    )
    *_, (progress, ema) = run
    changed = [
        name for name, p in adapter.named_parameters() if not torch.equal(p, adapter_of(base.unet).state_dict()[name])
    ]
    assert progress.step == 3 and len(changed) == len(list(adapter.parameters()))
    assert ema.adapter.conv_in.weight.abs().sum() > 0
