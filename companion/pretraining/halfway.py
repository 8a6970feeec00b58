"""What a half-trained U-Net can do: pictures to look at while it learns, and its errors by timestep."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTokenizer

from companion.diffusion import decode, denoise, fresh, noise_predictor, sample
from companion.metrics import frechet
from companion.models import GUIDANCE
from companion.pretraining.clip import halved, tokenize
from companion.pretraining.latents import cells, encode
from companion.pretraining.pipeline import pipeline
from companion.pretraining.unet import SCHEDULE, Conditioned
from companion.tabletop.caption import Wish, caption
from companion.tabletop.measures import picture_features, prompt_accuracy
from companion.tabletop.scene import Scene

SKETCH_PROMPTS = (
    "a red cube on grass by day",
    "a green robot on snow by day",
    "a blue house on sand at sunset",
    "a yellow cone on brick by day",
    "a purple tree on water at sunset",
    "a glass cube on grass at night",
    "a red robot left of a blue ball on sand by day",
    "a green tree left of a yellow cube on snow at sunset",
    "an orange can on brick at night",
    "a blue cone right of a red house on grass by day",
    "a gold ring on sand by day",
    "a white mushroom behind a red car on grass by day",
    "a steel cube on water by day",
    "a black car on snow at sunset",
    "a purple cube on sand by day",
    "a gold robot in front of a green house on grass at sunset",
)
ADDED = 10_000  # the first seed of noise that is added while drawing
TIMESTEPS = (20, 50, 100, 200, 350, 500, 800)


def drawer(model: Conditioned, vae: AutoencoderKL, words: CLIPTokenizer) -> StableDiffusionPipeline:
    """The stock pipeline of a half-trained model."""
    return pipeline(vae, model.text_encoder, words, model.unet)


@torch.no_grad()
def sketch(
    pipe: StableDiffusionPipeline,
    prompts: tuple[str, ...] | list[str] = SKETCH_PROMPTS,
    size: int = 16,
    steps: int = 20,
    guidance: float = GUIDANCE,
    batch: int = 32,
) -> Tensor:
    """Pictures (N, 3, 8 size, 8 size); picture i begins with the noise of seed i, and adds that of seed `ADDED` + i."""
    drawn = []
    for i in range(0, len(prompts), batch):
        some = list(prompts[i : i + batch])
        noise = [torch.randn(4, size, size, generator=torch.Generator().manual_seed(i + j)) for j in range(len(some))]
        seeds = [ADDED + i + j for j in range(len(some))]  # other ones, or it would add the same noise again
        *_, last = sample(pipe, some, seeds, steps=steps, guidance_scale=guidance, noise=torch.stack(noise))
        drawn.append(decode(pipe, last.latents))
    return torch.cat(drawn).cpu()


@torch.no_grad()
def redrawn(
    pipe: StableDiffusionPipeline,
    latents: Tensor,
    scenes: Sequence[Scene],
    *,
    between: tuple[int, int] = (50, 170),
    steps: int = 20,
    guidance: float = GUIDANCE,
    seed: int = 0,
    batch: int = 64,
) -> Iterator[Tensor]:
    """Scaled latents (N, 4, h, w) with some noise added and removed again, a batch at a time, as the model draws.

    The scene stays but fine detail is the model's, as in what a decoder gets when the model draws: the last of `steps`
    steps of the pipeline's own sampler, with guidance. Each batch begins at a timestep of that sampler's, chosen by
    lot from those `between` two.
    """
    generator, device = torch.Generator().manual_seed(seed), pipe.unet.device
    for i in range(0, len(latents), batch):
        x0, texts = latents[i : i + batch].float().to(device), [caption(s) for s in scenes[i : i + batch]]
        ids = tokenize(pipe.tokenizer, ["", *texts]).to(device)
        states = dict(zip(["", *texts], pipe.text_encoder(ids).last_hidden_state[:, None], strict=True))
        predict = noise_predictor(pipe, texts, [guidance], encode=states.__getitem__)
        scheduler = fresh(pipe.scheduler)
        scheduler.set_timesteps(steps, device=device)
        among = [k for k, t in enumerate(scheduler.timesteps.tolist()) if between[0] <= t <= between[1]]
        first = among[int(torch.randint(len(among), (), generator=generator))]
        scheduler.set_begin_index(first)
        noise = torch.randn(x0.shape, generator=generator).to(device)
        noisy = scheduler.add_noise(x0, noise, scheduler.timesteps[first].expand(len(x0)))
        generators = [torch.Generator().manual_seed(seed + i + j) for j in range(len(x0))]
        *_, last = denoise(scheduler, predict, noisy, scheduler.timesteps[first:], generators)
        yield last.latents.cpu()


@torch.no_grad()
def errors(
    model: Conditioned,
    vae: AutoencoderKL,
    words: CLIPTokenizer,
    renders: np.ndarray,
    scenes: list[Scene],
    segments: np.ndarray,
    size: int = 16,
    timesteps: tuple[int, ...] = TIMESTEPS,
) -> dict[str, float]:
    """Squared error of the predicted noise of renders (N, 128, 128, 3) with their captions, by timestep: "error_50" on
    all cells, "error_things_50" on those that a thing touches. "error" is the mean over the timesteps, "error_untold"
    the mean with empty captions. The gap between the two is what the words tell the model.
    """
    x0 = encode(vae, halved(renders) if size == 8 else renders).float()
    thing = cells(segments, segments.shape[-1] // size)[:, None].float()
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    told, untold = (
        torch.cat(
            [model.text_encoder(tokenize(words, texts[i : i + 64])).last_hidden_state for i in range(0, len(x0), 64)]
        )
        for texts in ([caption(s) for s in scenes], [""] * len(scenes))
    )
    scheduler, found = DDPMScheduler(**SCHEDULE), {"error": 0.0, "error_untold": 0.0}
    for t in timesteps:
        times: Any = torch.full((len(x0),), t)
        noisy = scheduler.add_noise(x0, noise, times)
        for name, states in (("error", told), ("error_untold", untold)):
            parts = zip(noisy.split(64), states.split(64), strict=True)
            error = (torch.cat([model.unet(x, t, s).sample for x, s in parts]) - noise) ** 2
            found[name] += float(error.mean()) / len(timesteps)
            if name == "error":
                found[f"error_{t}"] = float(error.mean())
                found[f"error_things_{t}"] = float((error * thing).sum() / (4 * thing.sum()))
    return {k: round(v, 5) for k, v in found.items()}


def judged(pipe: StableDiffusionPipeline, renders: np.ndarray, scenes: list[Scene], size: int = 16) -> dict[str, float]:
    """Fréchet distance from N pictures to as many renders (N, 128, 128, 3), and prompts met.

    With so few pictures the distance is large even between renders: only its fall matters. Pictures of 64 pixels
    (size 8) are enlarged for the judge, so compare them only with each other.
    """
    drawn = sketch(pipe, [caption(s) for s in scenes], size)
    if size != 16:
        drawn = F.interpolate(drawn, size=(128, 128), mode="bicubic", antialias=True)
    met = prompt_accuracy(drawn, [Wish.of(s) for s in scenes])
    return {"frechet": round(frechet(picture_features(drawn), picture_features(renders)), 3)} | {
        k: round(v, 3) for k, v in met.items()
    }
