"""The noise predictor's timesteps, weights and loss, and how it is trained with a frozen text encoder."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn

from companion.pretraining.clip import trained_tokenizer
from companion.pretraining.unet import (
    CELLS_BELOW,
    DROP,
    LOW,
    SCHEDULE,
    Conditioned,
    cells_weight,
    deepened,
    draw_timesteps,
    favouring,
    make_unet,
    own_parts,
    train_unet,
    unet_loss,
)
from companion.tabletop.caption import parse
from companion.tabletop.samples import held_out
from companion.training import noise_loss, save_start

from .helpers import names_in, same_weights, untrained_text_encoder


def test_timesteps_are_drawn_one_in_each_of_equal_parts():
    t = draw_timesteps(50, torch.Generator().manual_seed(0))
    assert t.dtype == torch.int64 and (t // 20).tolist() == list(range(50))
    assert (t % 20).unique().numel() > 10, "within a part they are random"
    assert not torch.equal(t, draw_timesteps(50, torch.Generator().manual_seed(1)))


def test_a_share_of_the_timesteps_is_drawn_at_little_noise():
    t = draw_timesteps(50, torch.Generator().manual_seed(0), low=0.4)
    near, rest = t[:20], t[20:]
    assert (near < LOW).all() and (near * 20 // LOW).tolist() == list(range(20))
    assert (rest * 30 // 1000).tolist() == list(range(30))
    every = torch.cat([draw_timesteps(50, torch.Generator().manual_seed(i), low=0.4) for i in range(40)])
    assert (every < LOW).float().mean().item() == pytest.approx(0.4 + 0.6 * LOW / 1000, abs=0.02)
    assert (draw_timesteps(50, torch.Generator().manual_seed(0), low=1.0) < LOW).all()


def test_favoured_kinds_are_seen_as_often_as_said(tmp_path):
    words, (_, scenes) = trained_tokenizer(tmp_path), held_out(60)
    often = favouring(scenes, ["robot", "car"], 5.0)
    favoured = [any(thing.kind in ("robot", "car") for thing in scene.things) for scene in scenes]
    assert often.tolist() == [5.0 if f else 1.0 for f in favoured] and 5 < sum(favoured) < 40
    seen = []
    model = Halving([], words)

    def parts(model, index):
        seen.append(index)
        return own_parts(model, index)

    loss = unet_loss(torch.zeros(60, 4, 8, 8), scenes, words, 400, True, parts=parts, often=often)
    loss(model, torch.Generator().manual_seed(0), 0)
    share = np.mean([favoured[i] for i in seen[0].tolist()])
    assert share == pytest.approx(5 * sum(favoured) / float(often.sum()), abs=0.08)


def test_errors_on_things_count_more_at_little_noise():
    things = torch.zeros(3, 2, 2, dtype=torch.uint8)
    things[:, 0, 1] = 1
    weight = cells_weight(things, torch.tensor([0, CELLS_BELOW - 1, CELLS_BELOW]), 4.0)
    assert weight.shape == (3, 1, 2, 2)
    assert weight[:, 0].tolist() == [[[1, 4], [1, 1]], [[1, 4], [1, 1]], [[1, 1], [1, 1]]]
    assert (cells_weight(things, torch.tensor([0, 1, 2]), 1.0) == 1).all()
    assert cells_weight(things, torch.tensor([0, 699, 700]), 4.0, below=700).amax((1, 2, 3)).tolist() == [4, 4, 1]


@pytest.mark.parametrize("layers", [(2, 2, 1), (1, 3, 2)])
def test_a_deepened_unet_predicts_the_same_and_can_learn_more(layers):
    unet = make_unet(3)
    deep = deepened(unet, layers)
    assert [len(b.resnets) for b in deep.down_blocks] == list(layers)
    x, states = torch.randn(2, 4, 16, 16), torch.randn(2, 32, 192)
    expected, got = unet(x, 300, states).sample, deep(x, 300, states).sample
    assert torch.allclose(got, expected, atol=1e-5) and expected.abs().mean() > 0.01
    got.square().sum().backward()
    new = [b.resnets[1] for b, n in zip(deep.down_blocks, layers, strict=True) if n > 1]
    assert all(layer.conv2.weight.grad.abs().sum() > 0 for layer in new)


def test_a_unet_is_not_made_shallower():
    with pytest.raises(ValueError, match="a block of 2 layers cannot be deepened to 1"):
        deepened(make_unet(layers_per_block=(2, 1, 1)), (1, 1, 1))


class Halving(nn.Module):
    """A model that predicts half of the noisy latents as the noise, and keeps the captions it was given."""

    def __init__(self, told: list[str], words):
        super().__init__()
        self.told, self.words = told, words

    def text_encoder(self, ids):
        self.told += [text.strip() for text in self.words.batch_decode(ids, skip_special_tokens=True)]
        return SimpleNamespace(last_hidden_state=torch.zeros(len(ids), 32, 192))

    def unet(self, noisy, t, states):
        assert states.shape == (len(noisy), 32, 192)
        return SimpleNamespace(sample=noisy / 2)


@pytest.mark.parametrize(
    "options", [{}, {"low": 0.5}, {"factor": 3.0}, {"low": 0.5, "factor": 3.0, "min_snr": 1.0}], ids=str
)
def test_the_loss_is_that_of_the_noise_by_hand(tmp_path, options):
    words, (_, scenes) = trained_tokenizer(tmp_path), held_out(6)
    latents = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    things = (torch.rand(6, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.2).byte()
    low, factor, min_snr = (options.get(name, plain) for name, plain in (("low", 0.0), ("factor", 1.0), ("min_snr", 5)))
    told = []
    loss = unet_loss(latents, scenes, words, 40, True, things=things, **options)
    found = loss(Halving(told, words), torch.Generator().manual_seed(2), 0)

    generator, scheduler = torch.Generator().manual_seed(2), DDPMScheduler(**SCHEDULE)
    index = torch.randint(6, (40,), generator=generator)
    torch.randint(2**31, (1,), generator=generator)  # the seed of the captions
    t, before = draw_timesteps(40, generator, low), generator.get_state()
    noise = torch.randn(40, 4, 8, 8, generator=generator)
    a = scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    snr = (a / (1 - a)).flatten()
    error = (0.5 * (a.sqrt() * latents[index] + (1 - a).sqrt() * noise) - noise) ** 2
    error = (error * cells_weight(things[index], t, factor)).mean((1, 2, 3)) * snr.clamp(max=min_snr) / snr
    assert found.item() == pytest.approx(error.mean().item(), rel=1e-5)
    # The training loop's own loss gives the same with those timesteps and weights.
    generator.set_state(before)
    weight = cells_weight(things[index], t, factor)
    common = noise_loss(
        lambda x, t: x / 2, scheduler, latents[index], generator, timesteps=t, min_snr=min_snr, weight=weight
    )
    assert found.item() == pytest.approx(common.item(), rel=1e-6)
    # Captions are those of the chosen scenes, except about a tenth, which are empty.
    empty = np.mean([not text for text in told])
    assert len(told) == 40 and 0 < empty < 4 * DROP
    for text, i in zip(told, index.tolist(), strict=True):
        assert not text or sorted(parse(text).kinds) == sorted(thing.kind for thing in scenes[i].things)


def test_bfloat16_gives_nearly_the_gradient_of_single_precision(tmp_path):
    words, (_, scenes) = trained_tokenizer(tmp_path), held_out(8)
    latents = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    gradients = []
    for bfloat16 in (False, True):
        torch.manual_seed(0)
        loss = unet_loss(latents, scenes, words, 8, train_text=False, bfloat16=bfloat16)
        model = Conditioned(make_unet(), untrained_text_encoder(words))
        loss(model, torch.Generator().manual_seed(1), 0).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.unet.parameters()]))
    assert gradients[1].dtype == torch.float32
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


def test_a_frozen_text_encoder_is_kept_beside_the_checkpoints(tmp_path):
    """The second stage begins with the first one's text encoder, whichever one it is given, and does not change it."""
    words, (_, scenes) = trained_tokenizer(tmp_path), held_out(6)
    latents = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    first = Conditioned(make_unet(seed=1), untrained_text_encoder(words, seed=1))
    save_start(tmp_path / "first.safetensors", first)
    kept, second = tmp_path / "words.safetensors", tmp_path / "second.safetensors"

    def go_on(steps: int, start_from=None) -> Conditioned:
        given = untrained_text_encoder(words, seed=2)
        options = {"start_from": start_from, "words": kept, "batch": 2, "train_text": False}
        *_, (_, ema) = train_unet(latents, scenes, words, given, steps, second, **options)
        return ema

    for ema in (go_on(1, tmp_path / "first.safetensors"), go_on(2)):  # begun, and resumed
        assert same_weights(ema.text_encoder, first.text_encoder)
        assert not same_weights(ema.unet, first.unet)
    assert not any("text_encoder" in name for name in names_in(second))
    assert {f"ema.text_encoder.{name}" for name in names_in(kept)} <= names_in(tmp_path / "first.safetensors")


def test_a_frozen_stage_can_follow_a_frozen_stage(tmp_path):
    words, (_, scenes) = trained_tokenizer(tmp_path), held_out(6)
    latents, given = torch.randn(6, 4, 8, 8), untrained_text_encoder(words, seed=1)
    options = {"words": tmp_path / "words.safetensors", "batch": 2, "train_text": False}
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    list(train_unet(latents, scenes, words, given, 1, first, **options))
    again = untrained_text_encoder(words, seed=2)
    *_, (_, ema) = train_unet(latents, scenes, words, again, 1, second, start_from=first, **options)
    assert same_weights(ema.text_encoder, untrained_text_encoder(words, seed=1))


def test_adopted_weights_bring_their_own_text_encoder(tmp_path):
    words, (_, scenes) = trained_tokenizer(tmp_path), held_out(6)
    adopted = Conditioned(make_unet(seed=1), untrained_text_encoder(words, seed=1))
    path = tmp_path / "unet16.safetensors"
    save_start(path, adopted)
    options = {"words": tmp_path / "words.safetensors", "batch": 2, "train_text": False}
    given = untrained_text_encoder(words, seed=2)
    *_, (_, ema) = train_unet(torch.randn(6, 4, 8, 8), scenes, words, given, 1, path, **options)
    assert same_weights(ema.text_encoder, adopted.text_encoder)
