"""The edits of notebook 03: drawing that starts from a picture, or keeps a part of one.

    *steps, last = img2img(pipe, picture, "a blue cube on snow", 7, strength=0.6, steps=20, guidance_scale=3.0)
    *steps, last = inpaint(pipe, picture, mask, "a blue cube on snow", 7, steps=20, guidance_scale=3.0)
    result = composite(picture, decode(pipe, last.latents), mask)

Pictures are floats (N, 3, H, W) in [-1, 1], on the CPU. Masks are floats (N, 1, H, W), 1 where something new is drawn.
`img2img` and `inpaint` use the loop of `companion.diffusion`: only the start, and what is kept after a step, differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from companion.diffusion import (
    Step,
    UNet,
    decode,
    denoise,
    for_each,
    fresh,
    noise_in,
    noise_predictor,
    picture_size,
    predicted_x0,
    sample,
)
from companion.intervals import paired_difference
from companion.metrics import pictures_to_tensor
from companion.models import seeded
from companion.tabletop.caption import caption
from companion.tabletop.measures import can_be_judged, thing_masks
from companion.tabletop.scene import FINISHES, KINDS, WITHHELD, Scene

if TYPE_CHECKING:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

# ---- A different starting point --------------------------------------------------------------------------------------


def timesteps_from_strength(scheduler: Any, steps: int, strength: float, device: Any = None) -> Tensor:
    """Set a scheduler to the last int(steps * strength) of its steps, and return their timesteps.

    A second-order scheduler (Heun, DPM2) has two entries for each step but the last; it begins at the first of a pair.

    Raises:
        ValueError: for a strength outside [0, 1], or one that leaves no step.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength={strength:g} is outside [0, 1]; 0.6 keeps the layout of most pictures")
    remaining = min(int(steps * strength), steps)
    if remaining < 1:
        least = math.ceil(1000 / steps) / 1000  # rounded up: int(3 * 0.33) is 0
        raise ValueError(
            f"strength={strength:g} of {steps} steps leaves none to take; use {least:g} or more, or more steps"
        )
    scheduler.set_timesteps(steps, device=device)
    index = (steps - remaining) * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(index)
    return scheduler.timesteps[index:]


@torch.no_grad()
def _encode_sampled(pipe: StableDiffusionPipeline, pictures: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Latents sampled from the encoder's distribution, one generator for each picture, as in the stock pipelines."""
    vae = pipe.vae
    parts = []
    for picture, generator in zip(pictures.to(vae.device, vae.dtype), generators, strict=True):
        parts.append(vae.encode(picture[None]).latent_dist.sample(generator))
    return (torch.cat(parts) * vae.config.scaling_factor).to(pipe.unet.dtype)


def _noise(like: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Standard normal noise in the shape of `like` (N, C, h, w), one generator for each of N."""
    shape = (1, *like.shape[1:])
    return torch.cat([torch.randn(shape, generator=g, dtype=like.dtype) for g in generators]).to(like.device)


@dataclass(frozen=True)
class _Batch:
    """Pictures, prompts, guidance scales and generators, equally many of each."""

    pictures: Tensor
    prompts: list[str]
    scales: list[float]
    generators: list[torch.Generator]

    def masks(self, masks: Any) -> Tensor:
        """One mask for all pictures, or one for each, as (N, 1, H, W); see `as_mask`."""
        masks = as_mask(masks, *self.pictures.shape[-2:])
        return torch.stack(for_each({"masks": list(masks)}, len(self.pictures))[0])


def _batch(pipe: StableDiffusionPipeline, pictures: Tensor, prompts: Any, seeds: Any, scales: Any) -> _Batch:
    pictures = pictures[None] if pictures.ndim == 3 else pictures
    factor = pipe.vae_scale_factor
    high, wide = pictures.shape[-2:]
    if high % factor or wide % factor:
        raise ValueError(
            f"pictures of {wide} x {high} pixels: both sides must be multiples of {factor}; "
            "companion.pictures.load_picture makes them so"
        )
    given = {"pictures": list(pictures), "prompts": prompts, "guidance scales": scales, "seeds": seeds}
    given, prompts, scales, seeds = for_each(given)
    return _Batch(torch.stack(given), prompts, scales, [seeded(seed) for seed in seeds])


@torch.no_grad()
def img2img(
    pipe: StableDiffusionPipeline,
    pictures: Tensor,
    prompts: str | Sequence[str],
    seeds: int | Sequence[int] = 0,
    *,
    strength: float,
    steps: int,
    guidance_scale: float | Sequence[float],
    negative_prompt: str = "",
    scheduler: Any = None,
    unet: UNet | None = None,
) -> Iterator[Step]:
    """Draw from pictures (N, 3, H, W) or one (3, H, W): noised to a timestep, then denoised (SDEdit, arXiv 2108.01073).

    The last step's latents, decoded, are what `StableDiffusionImg2ImgPipeline` draws with the same seeds.

    Args:
        strength: how far back towards noise it starts, in (0, 1]; int(steps * strength) steps are taken.
        unet: used instead of the pipeline's own, such as one that listens to a ControlNet.
    Raises:
        ValueError: for an unusable strength or size, or numbers of pictures, prompts and seeds that do not match.
    """
    batch = _batch(pipe, pictures, prompts, seeds, guidance_scale)
    scheduler = fresh(scheduler or pipe.scheduler)
    timesteps = timesteps_from_strength(scheduler, steps, strength, pipe.unet.device)
    source = _encode_sampled(pipe, batch.pictures, batch.generators)
    noise = _noise(source, batch.generators)
    latents = scheduler.add_noise(source, noise, timesteps[:1].repeat(len(source)))
    predict = noise_predictor(pipe, batch.prompts, batch.scales, negative_prompt, unet)
    yield from denoise(scheduler, predict, latents, timesteps, batch.generators)


# ---- Masks -----------------------------------------------------------------------------------------------------------


def as_mask(mask: Any, high: int, wide: int) -> Tensor:
    """A mask in any usual form as floats (N, 1, H, W) of 0 and 1; values from 0.5 (or 128 of 255) up become 1.

    Args:
        mask: (H, W), (N, H, W) or (N, 1, H, W): booleans, uint8 of 0 to 255, or floats in [0, 1]; or a PIL picture.
        high, wide: the size that it must have.
    Raises:
        ValueError: for another size, values outside the range, or a mask that is 0 everywhere.
    """
    if hasattr(mask, "convert"):
        mask = np.asarray(mask.convert("L"))
    mask = torch.as_tensor(np.array(mask) if isinstance(mask, np.ndarray) else mask)
    if mask.dtype == torch.uint8:
        mask = mask >= 128
    mask = mask.float()
    mask = mask[None, None] if mask.ndim == 2 else mask[:, None] if mask.ndim == 3 else mask
    if mask.ndim != 4 or mask.shape[1:] != (1, high, wide):
        shape = " x ".join(map(str, reversed(mask.shape[-2:])))
        raise ValueError(f"the mask has {shape} pixels and the picture {wide} x {high}; make them equal")
    if float(mask.min()) < 0 or float(mask.max()) > 1:
        least, most = float(mask.min()), float(mask.max())
        raise ValueError(f"the mask has values from {least:g} to {most:g}; use booleans, or floats in [0, 1]")
    mask = (mask >= 0.5).float()
    if not mask.flatten(1).any(1).all():
        raise ValueError("the mask is empty: paint where something new is to be drawn")
    return mask


def shrink_mask(mask: Tensor, factor: int, cover: Literal["nearest", "any"] = "nearest") -> Tensor:
    """A mask (N, 1, H, W) at the size of the latents, (N, 1, H/factor, W/factor).

    "nearest" takes one pixel of each patch, as the stock pipeline does; "any" masks every patch that the mask touches.
    """
    if cover == "any":
        return F.max_pool2d(mask, factor)
    return F.interpolate(mask, scale_factor=1 / factor, mode="nearest")


def composite(source: Tensor, result: Tensor, mask: Tensor, feather: int = 0) -> Tensor:
    """`result` where the mask is 1, `source` where it is 0, exactly; all (N, 3, H, W), the mask (N, 1, H, W).

    feather: the width in pixels of a soft transition inside the mask.
    """
    if feather > 0:
        inside = [
            np.asarray(ndimage.distance_transform_edt(m)) if not m.all() else np.inf + m for m in mask[:, 0].numpy()
        ]
        weight = torch.tensor(np.stack(inside), dtype=source.dtype)[:, None] / (feather + 1)
        result = torch.lerp(source, result, weight.clamp(max=1))
    return torch.where(mask.bool(), result, source)


def seam(pictures: Tensor, mask: Tensor) -> Tensor:
    """How much the mask's edge shows in each picture (N, 3, H, W): the mean step across it minus that beside it, (N,).

    A step is the absolute difference of two neighbouring pixels in grey levels of 255, averaged over channels. Steps
    beside the edge lie wholly inside or wholly outside the mask, and touch a pixel at the edge. At 0 the edge looks
    like its surroundings. A feathered edge has a small seam whatever is in the mask, even noise, so compare hard edges.
    """
    values = []
    for picture, m in zip(pictures, mask.expand(len(pictures), -1, -1, -1)[:, 0].bool(), strict=True):
        across, beside = [], []
        for axis in (0, 1):
            p, k = picture.movedim(1 + axis, 1), m.movedim(axis, 0)
            step = (p[:, 1:] - p[:, :-1]).abs().mean(0)
            edge = k[1:] != k[:-1]
            near = torch.zeros_like(edge)
            near[1:] |= edge[:-1]
            near[:-1] |= edge[1:]
            across.append(step[edge])
            beside.append(step[near & ~edge])
        values.append(127.5 * (torch.cat(across).mean() - torch.cat(beside).mean()))
    return torch.stack(values)


# ---- Inpainting ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def inpaint(
    pipe: StableDiffusionPipeline,
    pictures: Tensor,
    masks: Any,
    prompts: str | Sequence[str],
    seeds: int | Sequence[int] = 0,
    *,
    steps: int,
    guidance_scale: float | Sequence[float],
    strength: float = 1.0,
    negative_prompt: str = "",
    scheduler: Any = None,
    cover: Literal["nearest", "any"] = "nearest",
    unet: UNet | None = None,
) -> Iterator[Step]:
    """Draw inside masks (see `as_mask`), keeping the pictures (N, 3, H, W) or (3, H, W) outside them.

    With a U-Net of 4 input channels, each step's latents outside the mask become those of the picture with as much
    noise (Blended Latent Diffusion, arXiv 2206.02779). One of 9, trained to inpaint, also gets the shrunken mask and
    the latents of the picture without its masked part. Both equal `StableDiffusionInpaintPipeline` with the same seeds.

    Args:
        unet: used instead of the pipeline's own, such as one that listens to a ControlNet.
    Raises:
        ValueError: for unusable masks, strength or sizes, or a U-Net whose number of channels is neither 4 nor 9.
    """
    batch = _batch(pipe, pictures, prompts, seeds, guidance_scale)
    n, mask = len(batch.pictures), batch.masks(masks)
    channels, kept = pipe.unet.config.in_channels, pipe.vae.config.latent_channels
    if channels not in (kept, 2 * kept + 1):
        raise ValueError(f"a U-Net of {channels} channels cannot inpaint; it takes {kept} or {2 * kept + 1}")
    scheduler = fresh(scheduler or pipe.scheduler)
    timesteps = timesteps_from_strength(scheduler, steps, strength, pipe.unet.device)
    predict = noise_predictor(pipe, batch.prompts, batch.scales, negative_prompt, unet)
    small = shrink_mask(mask, pipe.vae_scale_factor, cover).to(pipe.unet.device, pipe.unet.dtype)

    # Random numbers are drawn in the stock pipeline's order.
    source = torch.empty(n, kept, *small.shape[-2:], dtype=pipe.unet.dtype, device=pipe.unet.device)
    if channels == kept or strength < 1:
        source = _encode_sampled(pipe, batch.pictures, batch.generators)
    noise = _noise(source, batch.generators)
    if strength < 1:
        latents = scheduler.add_noise(source, noise, timesteps[:1].repeat(n))
    else:
        latents = noise * scheduler.init_noise_sigma

    if channels == kept:
        _noise(source, batch.generators)  # the stock pipeline draws as many to encode the masked picture, unused here

        def keep(index: int, latents: Tensor) -> Tensor:
            last = index == len(timesteps) - 1
            known = source if last else scheduler.add_noise(source, noise, timesteps[index + 1 : index + 2])
            return (1 - small) * known + small * latents

        yield from denoise(scheduler, predict, latents, timesteps, batch.generators, keep)
    else:
        masked = _encode_sampled(pipe, batch.pictures * (mask < 0.5), batch.generators)
        yield from denoise(
            scheduler, lambda noisy, t: predict(noisy, t, small, masked), latents, timesteps, batch.generators
        )


def ddim_of(pipe: StableDiffusionPipeline) -> DDIMScheduler:
    """DDIM (arXiv 2010.02502) with the pipeline's noise schedule and Stable Diffusion's settings."""
    from diffusers import DDIMScheduler

    config = pipe.scheduler.config
    names = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")
    given = {name: config[name] for name in names if name in config}
    return DDIMScheduler(**given, clip_sample=False, set_alpha_to_one=False, steps_offset=1, timestep_spacing="leading")


def ddim_step(latents: Tensor, eps: Tensor, alpha_bar: Tensor, alpha_bar_to: Tensor) -> tuple[Tensor, Tensor]:
    """Take latents from `alpha_bar` to `alpha_bar_to`, either way, by the noise eps (DDIM, equation 12, sigma = 0).

    Returns the latents at `alpha_bar_to`, and the predicted x0.
    """
    x0 = predicted_x0(latents, eps, alpha_bar)
    return alpha_bar_to.sqrt() * x0 + (1 - alpha_bar_to).sqrt() * eps, x0


def renoise(latents: Tensor, noise: Tensor, alpha_bar: Tensor, alpha_bar_to: Tensor) -> Tensor:
    """Add noise to latents at `alpha_bar`, up to `alpha_bar_to` < `alpha_bar`: the forward process between the two."""
    kept = alpha_bar_to / alpha_bar
    return kept.sqrt() * latents + (1 - kept).sqrt() * noise


@torch.no_grad()
def repaint(
    pipe: StableDiffusionPipeline,
    pictures: Tensor,
    masks: Any,
    prompts: str | Sequence[str],
    seeds: int | Sequence[int] = 0,
    *,
    steps: int,
    resample: int,
    guidance_scale: float | Sequence[float],
    negative_prompt: str = "",
    cover: Literal["nearest", "any"] = "nearest",
) -> Iterator[Step]:
    """Inpaint with resampling (RePaint, arXiv 2201.09865, algorithm 1, jumps of one step; DDIM in place of DDPM).

    Each step is taken `resample` times. Before it is repeated, the latents are noised back to the level where it began,
    so that the inside and the outside of the mask adapt to each other. This costs steps * resample U-Net passes.

    Raises:
        ValueError: for unusable masks or sizes, resample < 1, or a U-Net that was trained to inpaint.
    """
    batch = _batch(pipe, pictures, prompts, seeds, guidance_scale)
    mask = batch.masks(masks)
    if resample < 1:
        raise ValueError(f"resample={resample} takes no step at all; 1 is plain blending, 4 goes back three times")
    if (channels := pipe.unet.config.in_channels) != (kept := pipe.vae.config.latent_channels):
        raise ValueError(
            f"RePaint needs a U-Net that takes latents alone, {kept} channels; this one takes {channels}: use inpaint"
        )
    scheduler, device = ddim_of(pipe), pipe.unet.device
    scheduler.set_timesteps(steps, device=device)
    alpha_bars = _levels(scheduler)
    predict = noise_predictor(pipe, batch.prompts, batch.scales, negative_prompt)
    small = shrink_mask(mask, pipe.vae_scale_factor, cover).to(device, pipe.unet.dtype)
    source = _encode_sampled(pipe, batch.pictures, batch.generators)
    latents, index = _noise(source, batch.generators), 0
    for i, t in enumerate(scheduler.timesteps):
        alpha_bar, below = alpha_bars[i], alpha_bars[i + 1]
        for again in range(resample):
            noisy = latents
            eps = noise_in(scheduler, predict(noisy, t), noisy, alpha_bar)
            drawn, x0 = ddim_step(noisy, eps, alpha_bar, below)
            last = i == steps - 1
            noise = _noise(source, batch.generators)
            known = source if last else below.sqrt() * source + (1 - below).sqrt() * noise
            latents = (1 - small) * known + small * drawn
            yield Step(index, float(t), noisy, x0, latents)
            index += 1
            if again < resample - 1:
                latents = renoise(latents, _noise(source, batch.generators), below, alpha_bar)


def _levels(scheduler: Any) -> Tensor:
    """alpha_bar at each of a DDIM scheduler's timesteps, then the one after the last step: (steps + 1,)."""
    alphas_cumprod = scheduler.alphas_cumprod.to(scheduler.timesteps.device)
    last = scheduler.final_alpha_cumprod.to(alphas_cumprod.device).view(1)
    return torch.cat([alphas_cumprod[scheduler.timesteps], last])


# ---- Outpainting -----------------------------------------------------------------------------------------------------

Side = Literal["left", "right", "up", "down"]


def outpaint(
    pipe: StableDiffusionPipeline,
    picture: Tensor,
    prompt: str,
    seed: int = 0,
    *,
    by: int,
    side: Side = "right",
    steps: int,
    guidance_scale: float,
    resample: int = 1,
    scheduler: Any = None,
) -> Tensor:
    """A picture (3, H, W) with `by` more pixels at one side; the picture itself stays exactly as it was.

    The model sees a window of the size that it draws: `by` new pixels, and the nearest pixels of the picture. With
    `resample` above 1 it takes `repaint`'s DDIM; else `scheduler`, the pipeline's own when None.

    Raises:
        ValueError: for an unknown side, a picture whose size does not fit the model's, or a `by` that is not a multiple
            of the VAE's factor or leaves no room for a part of the picture.
    """
    size, factor = picture_size(pipe), pipe.vae_scale_factor
    if side not in ("left", "right", "up", "down"):
        raise ValueError(f"side={side!r} is none; use left, right, up or down")
    if by % factor or not 0 < by < size:
        raise ValueError(f"by={by} will not do: use a multiple of {factor} from {factor} to {size - factor}")
    turned = picture.transpose(1, 2) if side in ("up", "down") else picture
    if turned.shape[1] != size or turned.shape[2] < size - by:
        raise ValueError(
            f"the picture has {picture.shape[2]} x {picture.shape[1]} pixels; to grow {side} by {by} it needs "
            f"{size} across, and at least {size - by} along"
        )
    before = side in ("left", "up")
    known = turned[:, :, : size - by] if before else turned[:, :, by - size :]
    # The encoder also sees the part to be drawn: repeated pixels disturb it less than black ones.
    blank = known[:, :, :1] if before else known[:, :, -1:]
    parts = [blank.expand(-1, -1, by), known] if before else [known, blank.expand(-1, -1, by)]
    window = torch.cat(parts, 2)
    mask = torch.zeros(size, size)
    mask[:, : by if before else None] = 1
    if not before:
        mask[:, : size - by] = 0
    if side in ("up", "down"):
        window, mask = window.transpose(1, 2), mask.T
    settings = {"steps": steps, "guidance_scale": guidance_scale}
    if resample > 1:
        *_, last = repaint(pipe, window, mask, prompt, seed, resample=resample, **settings)
    else:
        *_, last = inpaint(pipe, window, mask, prompt, seed, scheduler=scheduler, **settings)
    drawn = decode(pipe, last.latents)[0]
    drawn = drawn.transpose(1, 2) if side in ("up", "down") else drawn
    parts = [drawn[:, :, :by], turned] if before else [turned, drawn[:, :, -by:]]
    grown = torch.cat(parts, 2)
    return grown.transpose(1, 2) if side in ("up", "down") else grown


def panorama(
    pipe: StableDiffusionPipeline, picture: Tensor, prompts: Sequence[str], seed: int = 0, **options: Any
) -> Iterator[Tensor]:
    """Outpaint once for each prompt, yielding each larger picture (3, H, W); the k-th is drawn with seed + k.

    `options` go to `outpaint`.
    """
    for k, prompt in enumerate(prompts):
        picture = outpaint(pipe, picture, prompt, seed + k, **options)
        yield picture


# ---- Inversion -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def invert(
    pipe: StableDiffusionPipeline,
    latents: Tensor,
    prompts: str | Sequence[str],
    *,
    steps: int,
    guidance_scale: float = 1.0,
    rounds: int = 1,
) -> Iterator[Step]:
    """Find the noise from which DDIM would draw these latents (N, C, h, w): its steps backwards, yielding each.

    DDIM goes from x_t to x_s with the noise predicted in x_t. Backwards x_t is unknown, so the noise predicted in x_s
    replaces it (DDIM, arXiv 2010.02502, section 4.3; diffusers' DDIMInverseScheduler). Each further round predicts the
    noise in the x_t just found, a fixed-point iteration (AIDI, arXiv 2309.04907), and costs one more pass.
    """
    prompts, scales = for_each({"prompts": prompts, "guidance scales": guidance_scale}, len(latents))
    scheduler = ddim_of(pipe)
    scheduler.set_timesteps(steps, device=pipe.unet.device)
    levels = _levels(scheduler).flip(0)
    predict = noise_predictor(pipe, prompts, scales)
    latents = latents.to(pipe.unet.device, pipe.unet.dtype)
    for i, t in enumerate(scheduler.timesteps.flip(0)):
        below, alpha_bar, found = levels[i], levels[i + 1], latents
        for again in range(rounds):
            eps = noise_in(scheduler, predict(found, t), found, alpha_bar if again else below)
            found, x0 = ddim_step(latents, eps, below, alpha_bar)
        yield Step(i, float(t), latents, x0, found)
        latents = found


def regenerate(
    pipe: StableDiffusionPipeline,
    noise: Tensor,
    prompts: str | Sequence[str],
    *,
    steps: int,
    guidance_scale: float | Sequence[float],
) -> Iterator[Step]:
    """DDIM from inverted noise (N, C, h, w): with the prompts of the inversion it nearly returns the pictures."""
    return sample(pipe, prompts, steps=steps, guidance_scale=guidance_scale, scheduler=ddim_of(pipe), noise=noise)


# ---- Pictures to edit, and what to ask for ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """One edit of a held-out render: another thing in place of the one that is there.

    Attributes:
        picture: (3, S, S) in [-1, 1].
        scene: what the picture shows, with one thing.
        mask: (1, S, S), 1 at the thing and a little around it.
        prompt: asks for another thing in the same place and at the same time.
    """

    picture: Tensor
    scene: Scene
    mask: Tensor
    prompt: str

    @property
    def caption(self) -> str:
        return caption(self.scene)


def tasks(pipe: StableDiffusionPipeline, n: int, grow: int = 6, seed: int = 0) -> list[Task]:
    """`n` edits (1 to 64) of held-out renders with one thing, the same for every pipeline of the same picture size.

    The mask is where the judge sees a thing, grown by `grow` pixels of 128 to cover its outline; shadows reach further.
    Raises ValueError for another `n`.
    """
    from companion.tabletop.samples import held_out

    renders, scenes = held_out()
    single = [i for i, scene in enumerate(scenes) if len(scene.things) == 1]
    if not 1 <= n <= min(64, len(single)):
        raise ValueError(f"n={n} is outside 1 to {min(64, len(single))}; so many held-out renders show one thing")
    chosen, rng = single[:n], np.random.default_rng(seed)
    pictures = pictures_to_tensor(renders[chosen])
    masks = thing_masks(pictures, grow)
    size = picture_size(pipe)
    if not can_be_judged(pipe):
        pictures = F.interpolate(pictures, size=(size, size), mode="bicubic", antialias=True).clamp(-1, 1)
        masks = F.interpolate(masks, size=(size, size), mode="nearest")
    made = []
    for picture, mask, scene in zip(pictures, masks, (scenes[i] for i in chosen), strict=True):
        made.append(Task(picture, scene, mask, caption(_other(scene, rng))))
    return made


def _other(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with a thing of another kind and another finish, in a pair that training has seen."""
    thing = scene.things[0]
    pairs = [(k, f) for k in KINDS for f in FINISHES if k != thing.kind and f != thing.finish]
    pairs = [pair for pair in pairs if pair not in WITHHELD]
    kind, finish = pairs[int(rng.integers(len(pairs)))]
    return replace(scene, things=(replace(thing, kind=kind, finish=finish, pose=()),))


def change_outside(pictures: Tensor, sources: Tensor, masks: Tensor) -> tuple[int, float]:
    """The largest and the mean change, in grey levels of 255, of pictures (N, 3, H, W) outside masks (N, 1, H, W)."""
    a, b = (((x.clamp(-1, 1) + 1) * 127.5).round() for x in (pictures, sources))
    change = (a - b).abs()[(masks < 0.5).expand_as(a)]
    return int(change.max()), float(change.mean())


def panorama_joints(strip: Tensor, size: int, by: int) -> tuple[float, float]:
    """Mean step between columns of a panorama (3, H, W) grown to the right, in grey levels: at joints, everywhere."""
    steps = (strip[:, :, 1:] - strip[:, :, :-1]).abs().mean((0, 1)) * 127.5
    return float(steps[size - 1 :: by].mean()), float(steps.mean())


def paired(name_a: str, a: Tensor, name_b: str, b: Tensor, unit: str) -> str:
    """A sentence that says whether `a` or `b`, both (N,) and measured on the same N pictures, is higher on average.

    If the mean difference is within its error, half the interval of `intervals.paired_difference`, it claims nothing.
    """
    mean, low, _ = paired_difference(a, b)
    error = mean - low
    found = f"({mean:+.2f} {unit}, 95 %: ± {error:.2f})"
    if abs(mean) <= error:
        return f"{name_a} and {name_b} do not differ measurably {found}"
    return f"{name_a} is {'higher' if mean > 0 else 'lower'} than {name_b} {found}"
