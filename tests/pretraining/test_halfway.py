"""What is measured of a half-trained U-Net."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from companion.diffusion import decode, sample
from companion.pretraining.halfway import ADDED, TIMESTEPS, drawer, errors, judged, redrawn, sketch
from companion.pretraining.latents import cells, encode
from companion.pretraining.report import load_tabletop
from companion.pretraining.unet import SCHEDULE, Conditioned
from companion.tabletop.samples import held_out


@pytest.fixture(scope="module")
def pipe():
    return load_tabletop()


def segments(n: int, size: int = 128) -> np.ndarray:
    """Made-up labels (n, size, size): a thing takes a corner of each picture."""
    labels = np.ones((n, size, size), np.uint8)
    labels[:, :40, :56] = 2
    return labels


def test_captions_help_the_published_model_on_held_out_renders(pipe):
    found = errors(Conditioned(pipe.unet, pipe.text_encoder), pipe.vae, pipe.tokenizer, *held_out(8), segments(8))
    assert 0 < found["error"] < found["error_untold"] < 1
    by_timestep = [found[f"error_{t}"] for t in TIMESTEPS]
    assert found["error"] == pytest.approx(np.mean(by_timestep), abs=2e-5)
    assert by_timestep == sorted(by_timestep, reverse=True), "the more noise there is, the better it is seen"
    names = {f"error{where}_{t}" for where in ("", "_things") for t in TIMESTEPS}
    assert found.keys() == {"error", "error_untold", *names}


@pytest.mark.parametrize("size", [8, 16])
def test_errors_are_those_of_the_noise_and_on_things_where_the_cells_say(pipe, size):
    """A model that predicts the noise has no error, half of it leaves a quarter of the noise's variance, and one that
    misses it on the cells of things has an error only there."""
    pictures, scenes = held_out(3)
    small = pictures if size == 16 else pictures.reshape(3, 64, 2, 64, 2, 3).mean((2, 4)).round().astype(np.uint8)
    x0 = encode(pipe.vae, small).float()
    a = DDPMScheduler(**SCHEDULE).alphas_cumprod
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    thing = cells(segments(3), 128 // size)[:, None].float()

    def found(share: torch.Tensor) -> dict[str, float]:
        def unet(noisy, t, states):
            at = a[t].view(-1, 1, 1, 1)
            return SimpleNamespace(sample=share * (noisy - at.sqrt() * x0) / (1 - at).sqrt())

        model = SimpleNamespace(unet=unet, text_encoder=pipe.text_encoder)
        return errors(model, pipe.vae, pipe.tokenizer, pictures, scenes, segments(3), size, (50, 500))

    def expected(everywhere: float, things: float) -> dict[str, float]:
        both = {f"error_{t}": everywhere for t in (50, 500)} | {f"error_things_{t}": things for t in (50, 500)}
        values = {"error": everywhere, "error_untold": everywhere, **both}
        return {k: pytest.approx(v, abs=2e-5) for k, v in values.items()}

    squared = noise**2
    on_things = float((squared * thing).sum() / (4 * thing.sum()))
    assert thing.mean().item() == pytest.approx(5 * 7 / 256 if size == 16 else 3 * 4 / 64)
    assert found(torch.tensor(1.0)) == expected(0, 0)
    assert found(torch.tensor(0.5)) == expected(float(squared.mean()) / 4, on_things / 4)
    assert found(1 - 0.5 * thing) == expected(float((squared * thing).mean()) / 4, on_things / 4)
    assert found(0.5 + 0.5 * thing) == expected(float((squared * (1 - thing)).mean()) / 4, 0)


def test_a_sketch_begins_with_the_noise_of_its_number_whatever_the_batch(pipe):
    half_trained = drawer(Conditioned(pipe.unet, pipe.text_encoder), pipe.vae, pipe.tokenizer)
    prompts = ["a red ball on grass by day", "a blue cube on snow at night", "a gold ring on sand by day"]
    drawn = sketch(half_trained, prompts, steps=4)
    assert drawn.shape == (3, 3, 128, 128)
    assert torch.allclose(drawn, sketch(half_trained, prompts, steps=4, batch=2), atol=1e-4)
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(2))
    *_, last = sample(half_trained, prompts[2], ADDED + 2, steps=4, guidance_scale=3.0, noise=noise)
    assert torch.allclose(drawn[2:], decode(pipe, last.latents), atol=1e-4)
    assert sketch(half_trained, prompts[:1], size=8, steps=2).shape == (1, 3, 64, 64)


@pytest.mark.parametrize("size", [8, 16])
def test_renders_drawn_again_are_at_no_distance_and_what_was_asked_for(pipe, monkeypatch, size):
    """Held-out renders stand in for what a perfect model draws."""
    pictures, scenes = held_out(170)
    drawn = torch.as_tensor(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    if size == 8:
        drawn = torch.nn.functional.avg_pool2d(drawn, 2)
    monkeypatch.setattr("companion.pretraining.halfway.sketch", lambda pipe, prompts, size: drawn[: len(prompts)])
    found = judged(pipe, pictures, scenes, size)
    assert {"frechet", "all", "kind", "finish", "place", "time", "relation"} <= found.keys()
    if size == 16:
        assert found["frechet"] == pytest.approx(0, abs=1e-3) and found["all"] > 0.9
    else:
        assert found["frechet"] > 0.001 and found["place"] > 0.8, "enlarged pictures are blurred"


def test_latents_are_redrawn_exactly_by_a_model_that_knows_them(pipe):
    _, scenes = held_out(5)
    x0, alphas, seen = torch.randn(5, 4, 16, 16), DDPMScheduler(**SCHEDULE).alphas_cumprod, []

    def unet(noisy, t, states):
        seen.append((float(t), noisy, states))
        a = alphas[int(t)]
        left = x0[:3] if len(noisy) == 6 else x0[3:]
        return SimpleNamespace(sample=(noisy - a.sqrt() * torch.cat([left, left])) / (1 - a).sqrt())

    unet.device, unet.dtype = pipe.unet.device, pipe.unet.dtype
    knowing = SimpleNamespace(
        unet=unet, text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer, scheduler=pipe.scheduler
    )
    again = torch.cat(list(redrawn(knowing, x0.half(), scenes, batch=3)))
    assert torch.allclose(again, x0, atol=1e-2)
    times = [t for t, *_ in seen]
    assert 50 <= times[0] <= 170 and times[0] > times[1]
    a = alphas[int(times[0])]
    noise = (seen[0][1][:3] - a.sqrt() * x0[:3]) / (1 - a).sqrt()
    assert noise.std().item() == pytest.approx(1, abs=0.1) and noise.mean().item() == pytest.approx(0, abs=0.1)
    nothing, told = seen[0][2].chunk(2)
    assert (nothing == nothing[:1]).all() and not torch.equal(told[0], told[1]), "guidance, with each one's caption"
