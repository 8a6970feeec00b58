"""Drawing with latent diffusion: the functions that every notebook builds on.

    *steps, last = sample(pipe, "a red ball on grass by day", 7, steps=20, guidance_scale=3.0)
    picture = decode(pipe, last.latents)[0]

`pipe` is a stock StableDiffusionPipeline; nothing here depends on which world it draws. Pictures are floats
(N, 3, H, W) in [-1, 1], on the CPU. Latents are scaled as the U-Net expects them, and are on its device.

Whatever changes the U-Net's prediction (a ControlNet, an adapter, a compiled graph) is passed as `unet=`: a function of
(noisy, t, encoder_hidden_states). Guidance and the loop stay the same.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, wraps
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from companion.models import seeded

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

#: From (noisy (N, C, h, w), t (scalar or (N,)), encoder_hidden_states (N, L, D)) to the network's prediction
#: (N, C, h, w): a tensor, or an output of diffusers that has it as `sample`.
UNet = Callable[[Tensor, Tensor, Tensor], Any]
Model = TypeVar("Model")
HALVED = 2048  # positions of latents in the smallest batch that is split in two, eight of 16 x 16: see `for_cpu`

# ---- Sizes, pictures, latents ----------------------------------------------------------------------------------------


def picture_size(pipe: StableDiffusionPipeline) -> int:
    """Width and height of the pipeline's pictures, in pixels."""
    return pipe.unet.config.sample_size * pipe.vae_scale_factor


@torch.no_grad()
def encode(pipe: StableDiffusionPipeline, pictures: Tensor, batch: int = 16) -> Tensor:
    """Latents (N, C, H/f, W/f) of pictures (N, 3, H, W): the encoder's mean, times the scaling factor."""
    vae = pipe.vae
    parts = [vae.encode(p.to(vae.device, vae.dtype)).latent_dist.mode() for p in pictures.split(batch)]
    return (torch.cat(parts) * vae.config.scaling_factor).to(pipe.unet.dtype)


@torch.no_grad()
def decode(pipe: StableDiffusionPipeline, latents: Tensor, batch: int = 8) -> Tensor:
    """Pictures (N, 3, H, W), clamped to [-1, 1], of latents (N, C, H/f, W/f).

    In batches of 16 decoding took a quarter longer on two cores: glibc gives blocks above 32 MB back after each layer.
    """
    vae = pipe.vae
    latents = (latents / vae.config.scaling_factor).to(vae.device, vae.dtype)
    return torch.cat([vae.decode(z).sample.float().cpu().clamp(-1, 1) for z in latents.split(batch)])


def for_cpu(model: Model) -> Model:
    """The model itself, prepared to draw many pictures quicker on a CPU: a network, or a pipeline's U-Net and VAE. On a
    GPU it stays as it is.

    Its weights are put into the order that convolutions read faster. Where no gradient is asked for, batches of
    `HALVED` positions or more go through it as two halves side by side, each on half of the threads: the halves never
    wait for each other, while the threads that share one batch do so after each layer. A network with hooks sees whole
    batches still. Pictures are the same to about 1e-4; the network can be trained, copied and saved as before.
    `tests/benchmarks/for_cpu.py` prints how much quicker pictures are drawn.
    """
    pipe: Any = model
    networks: dict[Any, int] = {pipe: HALVED}
    if not isinstance(pipe, nn.Module):
        pixels = pipe.vae_scale_factor**2  # of a position: what an encoder is given
        networks = {pipe.unet: HALVED, pipe.vae.decoder: HALVED, pipe.vae.encoder: HALVED * pixels}
    for network, smallest in networks.items():
        if next(network.parameters()).device.type == "cpu":
            network.to(memory_format=torch.channels_last)
            network.__class__ = _in_halves(type(network), smallest)
    return model


class _InHalves:
    """Marks a network's class that `for_cpu` has made."""


@cache
def _in_halves(kind: type[nn.Module], smallest: int) -> type[nn.Module]:
    """The same kind of network, by the same name, which takes batches of so many positions or more in two halves."""
    if issubclass(kind, _InHalves):
        return kind

    @wraps(kind.forward)
    def forward(network: nn.Module, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        n, threads = len(sample), torch.get_num_threads()
        small = n < 2 or n * sample.shape[-2:].numel() < smallest
        whole = small or threads < 2 or sample.device.type != "cpu" or torch.is_grad_enabled()
        if whole or torch.is_autocast_enabled("cpu") or has_hooks(network):
            return kind.forward(network, sample, *args, **kwargs)
        inference = torch.is_inference_mode_enabled()  # each thread has a mode of its own

        def half(part: slice) -> Any:
            with torch.inference_mode(inference), torch.no_grad():
                return kind.forward(network, sample[part], *_part(args, part, n), **_part(kwargs, part, n))

        return _joined(list(_two_threads(threads // 2).map(half, (slice(n // 2), slice(n // 2, n)))))

    own = {"forward": forward, "__module__": kind.__module__, "__doc__": kind.__doc__}  # saved under the kind's name
    return type(kind.__name__, (_InHalves, kind), own)


def has_hooks(network: nn.Module) -> bool:
    """Whether something listens to what happens inside a network."""
    return any(m._forward_hooks or m._forward_pre_hooks for m in network.modules() if m is not network)


def _part(value: Any, part: slice, n: int) -> Any:
    """Of what a network is given: of tensors for each of n samples those of `part`, anything else as it is."""
    if isinstance(value, Tensor):
        return value[part] if value.ndim and len(value) == n else value
    if isinstance(value, dict):
        return {name: _part(one, part, n) for name, one in value.items()}
    return type(value)(_part(one, part, n) for one in value) if isinstance(value, list | tuple) else value


def _joined(parts: Sequence[Any]) -> Any:
    """What a network has returned for the parts of a batch, as it returns it for the whole batch."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    if isinstance(first, dict):
        return type(first)(**{name: _joined([part[name] for part in parts]) for name in first})
    return type(first)(map(_joined, zip(*parts, strict=True))) if isinstance(first, list | tuple) else first


@cache
def _two_threads(threads_each: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(2, "half-of-a-batch", torch.set_num_threads, (threads_each,))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_two_threads.cache_clear)  # threads do not live on in a forked process


@torch.no_grad()
def encode_prompt(pipe: StableDiffusionPipeline, prompts: str | Sequence[str]) -> Tensor:
    """The text encoder's hidden states (N, L, D), one prompt at a time, as the stock pipeline computes them."""
    states = []
    for prompt in [prompts] if isinstance(prompts, str) else prompts:
        length = pipe.tokenizer.model_max_length
        inputs = pipe.tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        states.append(pipe.text_encoder(inputs.input_ids.to(pipe.text_encoder.device)).last_hidden_state)
    return torch.cat(states).to(pipe.unet.dtype)


def starting_noise(pipe: StableDiffusionPipeline, seeds: int | Sequence[int]) -> Tensor:
    """Standard normal latents (N, C, h, w), one for each seed, drawn on the CPU as the stock pipeline draws them."""
    return _starting_noise(pipe, [seeded(seed) for seed in ([seeds] if isinstance(seeds, int) else seeds)])


def _starting_noise(pipe: StableDiffusionPipeline, generators: Sequence[torch.Generator]) -> Tensor:
    unet = pipe.unet
    shape = (1, unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
    return torch.cat([torch.randn(shape, generator=g, dtype=unet.dtype) for g in generators]).to(unet.device)


# ---- Guidance --------------------------------------------------------------------------------------------------------


def for_each(values: Mapping[str, Any], n: int | None = None) -> list[list]:
    """Lists of equal length `n` (that of the longest when None): a value that is given once for all is repeated.

    Raises ValueError when the number of values is neither 1 nor `n`.
    """
    lists = {name: [value] if isinstance(value, str | int | float) else list(value) for name, value in values.items()}
    n = n or max(map(len, lists.values()))
    for name, items in lists.items():
        if len(items) not in (1, n):
            raise ValueError(f"{len(items)} {name} for {n} pictures; give one for all, or one for each")
    return [items * n if len(items) == 1 else items for items in lists.values()]


def noise_predictor(
    pipe: StableDiffusionPipeline,
    prompts: Sequence[str],
    scales: Sequence[float],
    negative_prompt: str = "",
    unet: UNet | None = None,
    *,
    batch: int | None = None,
    encode: Callable[[str], Tensor] | None = None,
) -> Callable[..., Tensor]:
    """`predict(noisy, t)`: what the U-Net predicts, with classifier-free guidance (Ho and Salimans, arXiv 2207.12598).

    It returns eps_nothing + scale * (eps_text - eps_nothing), in the shape of `noisy` (N, C, h, w). If all scales are
    at most 1, the U-Net sees only the prompts and the scales are ignored, as in the stock pipeline. Further channels of
    the U-Net's input, such as those of an inpainting model, follow: `predict(noisy, t, more)`.

    Args:
        prompts, scales: one for each of N pictures, or one for all of them.
        unet: used instead of the pipeline's own; see `UNet`.
        batch: how many pictures go through the U-Net together (both halves of guidance in one call); None for all.
        encode: gives a prompt's hidden states (1, L, D); `encode_prompt` by default.
    Raises:
        ValueError: by `predict`, when the number of prompts or scales is neither one nor N.
    """
    unet = pipe.unet if unet is None else unet
    encode = encode or (lambda prompt: encode_prompt(pipe, prompt))
    distinct = list(dict.fromkeys(prompts))
    encoded = torch.cat([encode(prompt) for prompt in distinct])
    text = encoded[[distinct.index(prompt) for prompt in prompts]]
    guided = any(scale > 1 for scale in scales)
    nothing = encode(negative_prompt) if guided else None
    weight = torch.tensor(scales, dtype=text.dtype, device=text.device).view(-1, 1, 1, 1)

    def ask(noisy: Tensor, t: Tensor, states: Tensor) -> Tensor:
        out = unet(noisy, t, states)
        return out if isinstance(out, Tensor) else out.sample

    def predict_part(noisy: Tensor, t: Tensor, states: Tensor, scale: Tensor) -> Tensor:
        if nothing is None:
            return ask(noisy, t, states)
        both = torch.cat([nothing.expand(len(noisy), -1, -1), states])
        t = torch.cat([t, t]) if t.ndim else t
        eps_nothing, eps_text = ask(torch.cat([noisy, noisy]), t, both).chunk(2)
        return eps_nothing + scale * (eps_text - eps_nothing)

    def predict(noisy: Tensor, t: Tensor, *more: Tensor) -> Tensor:
        n = len(noisy)
        for name, values in (("prompts", text), ("guidance scales", weight)):
            if len(values) not in (1, n):
                raise ValueError(f"{len(values)} {name} for {n} pictures; give one for all, or one for each")
        noisy = torch.cat([noisy, *more], 1) if more else noisy
        states, scale = text.expand(n, -1, -1), weight.expand(n, -1, -1, -1)
        if batch is None or n <= batch:
            return predict_part(noisy, t, states, scale)
        times = t.split(batch) if t.ndim else [t] * -(-n // batch)
        parts = zip(noisy.split(batch), times, states.split(batch), scale.split(batch), strict=True)
        return torch.cat([predict_part(*part) for part in parts])

    return predict


# ---- The loop --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One step of sampling a batch of N.

    Attributes:
        index, timestep: 0, 1, ...; the scheduler's timestep, from 999 (noise) to 0.
        noisy: (N, C, h, w), what the U-Net was given.
        x0: (N, C, h, w), the predicted clean latents, as the scheduler used them.
        latents: (N, C, h, w), after the step; those of the last step are the result.
    """

    index: int
    timestep: float
    noisy: Tensor
    x0: Tensor
    latents: Tensor


def fresh(scheduler: Any) -> Any:
    """A new scheduler with the same settings: a used one remembers its earlier steps."""
    return type(scheduler).from_config(scheduler.config)


def steady(scheduler: Any) -> Any:
    """The same solver, new, without the noise that its stochastic form adds at each step: DPM++ 2M for DPM++ 2M SDE.

    That noise lets later steps mend what earlier ones got wrong, but it takes more steps to be removed again: the
    miniature draws better with it from 12 steps on, and worse below. A scheduler that adds none comes back as it is.
    """
    kind = getattr(scheduler.config, "algorithm_type", "")
    if not kind.startswith("sde-"):
        return fresh(scheduler)
    return type(scheduler).from_config(scheduler.config, algorithm_type=kind.removeprefix("sde-"))


@torch.no_grad()
def denoise(
    scheduler: Any,
    predict: Callable[[Tensor, Tensor], Tensor],
    latents: Tensor,
    timesteps: Tensor,
    generators: Sequence[torch.Generator] = (),
    keep: Callable[[int, Tensor], Tensor] | None = None,
) -> Iterator[Step]:
    """The sampling loop: from latents (N, C, h, w) at the first of `timesteps`, yielding each step.

    Args:
        predict: the U-Net's prediction for (noisy latents, timestep), as from `noise_predictor`.
        generators: one for each picture, for samplers that add noise at each step (ancestral ones).
        keep: given each step's index and latents, returns the latents to continue from.
    """
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    extra = {"generator": list(generators) or None} if takes_generator else {}
    for index, t in enumerate(timesteps):
        noisy = scheduler.scale_model_input(latents, t)
        eps = predict(noisy, t)
        before = latents
        out = scheduler.step(eps, t, latents, **extra)
        latents = keep(index, out.prev_sample) if keep else out.prev_sample
        yield Step(index, float(t), noisy, _believed_x0(scheduler, out, eps, t, before), latents)


def _believed_x0(scheduler: Any, out: Any, output: Tensor, t: Tensor, latents: Tensor) -> Tensor:
    """The predicted clean latents that a scheduler's step used."""
    if getattr(out, "pred_original_sample", None) is not None:
        return out.pred_original_sample
    if getattr(scheduler.config, "algorithm_type", "").endswith("++") and getattr(scheduler, "model_outputs", None):
        return scheduler.model_outputs[-1]  # DPM-Solver++ works with x0 itself
    alpha_bar = scheduler.alphas_cumprod.to(latents.device)[int(t)].to(latents.dtype)
    return predicted_x0(latents, noise_in(scheduler, output, latents, alpha_bar), alpha_bar)


def noise_in(scheduler: Any, output: Tensor, latents: Tensor, alpha_bar: Tensor) -> Tensor:
    """The noise eps in latents at `alpha_bar`, from a U-Net's output: eps itself, v (arXiv 2202.00512), or x0."""
    kind = scheduler.config.prediction_type
    if kind == "v_prediction":
        return alpha_bar.sqrt() * output + (1 - alpha_bar).sqrt() * latents
    return (latents - alpha_bar.sqrt() * output) / (1 - alpha_bar).sqrt() if kind == "sample" else output


def predicted_x0(noisy: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """Solve x_t = sqrt(a) x_0 + sqrt(1 - a) eps for x_0, where a is alpha_bar (DDPM, arXiv 2006.11239, equation 4)."""
    return (noisy - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()


@torch.no_grad()
def sample(
    pipe: StableDiffusionPipeline,
    prompts: str | Sequence[str],
    seeds: int | Sequence[int] = 0,
    *,
    steps: int,
    guidance_scale: float | Sequence[float],
    negative_prompt: str = "",
    scheduler: Any = None,
    noise: Tensor | None = None,
    unet: UNet | None = None,
) -> Iterator[Step]:
    """Draw with classifier-free guidance, yielding each step.

    The last step's latents, decoded, are what the stock pipeline draws with the same prompts and seeds. The pipeline's
    scheduler is not changed.

    Args:
        prompts, seeds: one prompt for all seeds, one seed for all prompts, or as many of both.
        guidance_scale: one for all, or one for each picture; 1 means the prompt alone, without guidance.
        scheduler: its type and settings are used instead of those of the pipeline's scheduler.
        noise: standard normal latents (N, C, h, w) to start from, instead of those of the seeds.
        unet: used instead of the pipeline's own (see `noise_predictor`).
    Raises:
        ValueError: when the numbers of prompts, seeds and guidance scales do not match.
    """
    prompts, seeds, scales = for_each(
        {"prompts": prompts, "seeds": seeds, "guidance scales": guidance_scale}, None if noise is None else len(noise)
    )
    scheduler = fresh(scheduler or pipe.scheduler)
    scheduler.set_timesteps(steps, device=pipe.unet.device)
    generators = [seeded(seed) for seed in seeds]
    noise = _starting_noise(pipe, generators) if noise is None else noise.to(pipe.unet.device, pipe.unet.dtype)
    predict = noise_predictor(pipe, prompts, scales, negative_prompt, unet)
    yield from denoise(scheduler, predict, noise * scheduler.init_noise_sigma, scheduler.timesteps, generators)


def draw(
    pipe: StableDiffusionPipeline,
    prompts: str | Sequence[str],
    seeds: int | Sequence[int],
    *,
    steps: int,
    guidance_scale: float | Sequence[float],
    batch: int = 32,
    noise: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """Pictures (N, 3, H, W) in [-1, 1], in batches; prompts, seeds, noise and `options` as in `sample`."""
    prompts, seeds, scales = for_each({"prompts": prompts, "seeds": seeds, "guidance scales": guidance_scale})
    pictures = []
    for i in range(0, len(prompts), batch):
        part = slice(i, i + batch)
        options["noise"] = None if noise is None else noise[part]
        *_, last = sample(pipe, prompts[part], seeds[part], steps=steps, guidance_scale=scales[part], **options)
        pictures.append(decode(pipe, last.latents))
    return torch.cat(pictures)
