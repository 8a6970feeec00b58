"""The machine of notebook 01, taken apart: autoencoder, noise, text, attention, guidance and the sampling loop.

    *steps, last = sample(pipe, "a red ball on grass by day", 7, steps=20, guidance_scale=3.0)
    picture = decode(pipe, last.latents)[0]

Pictures are floats (N, 3, H, W) in [-1, 1], on the CPU. Latents are scaled as the U-Net sees them, on its device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from companion.models import seeded
from companion.tabletop.scene import WITHHELD, Scene

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTokenizer

#: What a notebook says where the judge cannot help.
NOT_JUDGED = "The judge knows the miniature world only, so this is not measured for this model: judge by eye."

# ---- Sizes, pictures, latents ----------------------------------------------------------------------------------------


def picture_size(pipe: StableDiffusionPipeline) -> int:
    """Width and height in pixels of what the pipeline draws."""
    return pipe.unet.config.sample_size * pipe.vae_scale_factor


def can_be_judged(pipe: StableDiffusionPipeline) -> bool:
    """Whether the judge can read its pictures: it knows the miniature world at 128 pixels, and nothing else."""
    return picture_size(pipe) == 128


def renders(pipe: StableDiffusionPipeline, n: int) -> tuple[Tensor, list[Scene]]:
    """`n` held-out renders (n, 3, S, S) and their scenes, enlarged where the pipeline draws larger pictures."""
    from companion.metrics import pictures_to_tensor
    from companion.tabletop.samples import held_out

    pictures, scenes = held_out(n)
    x, size = pictures_to_tensor(pictures), picture_size(pipe)
    if x.shape[-1] != size:
        x = F.interpolate(x, size=(size, size), mode="bicubic", antialias=True).clamp(-1, 1)
    return x, scenes


@torch.no_grad()
def encode(pipe: StableDiffusionPipeline, pictures: Tensor, batch: int = 16) -> Tensor:
    """Latents (N, C, H/f, W/f) of pictures: the middle of the encoder's distribution, times the scaling factor."""
    vae = pipe.vae
    parts = [vae.encode(p.to(vae.device, vae.dtype)).latent_dist.mode() for p in pictures.split(batch)]
    return (torch.cat(parts) * vae.config.scaling_factor).to(pipe.unet.dtype)


@torch.no_grad()
def decode(pipe: StableDiffusionPipeline, latents: Tensor, batch: int = 16) -> Tensor:
    """Pictures (N, 3, H, W) of latents (N, C, H/f, W/f)."""
    vae = pipe.vae
    latents = (latents / vae.config.scaling_factor).to(vae.device, vae.dtype)
    return torch.cat([vae.decode(z).sample.float().cpu().clamp(-1, 1) for z in latents.split(batch)])


def starting_noise(pipe: StableDiffusionPipeline, seeds: int | Sequence[int]) -> Tensor:
    """Standard normal latents (N, C, h, w), one for each seed, drawn on the CPU as the stock pipeline draws them."""
    seeds = [seeds] if isinstance(seeds, int) else list(seeds)
    size = pipe.unet.config.sample_size
    shape = (1, pipe.unet.config.in_channels, size, size)
    noise = [torch.randn(shape, generator=seeded(seed), dtype=pipe.unet.dtype) for seed in seeds]
    return torch.cat(noise).to(pipe.unet.device)


# ---- Text ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def text_states(pipe: StableDiffusionPipeline, prompts: str | Sequence[str]) -> Tensor:
    """The text encoder's hidden states (N, L, D), one prompt at a time, as the stock pipeline computes them."""
    states = []
    for prompt in [prompts] if isinstance(prompts, str) else prompts:
        length = pipe.tokenizer.model_max_length
        inputs = pipe.tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        states.append(pipe.text_encoder(inputs.input_ids.to(pipe.text_encoder.device)).last_hidden_state)
    return torch.cat(states).to(pipe.unet.dtype)


def word_positions(tokenizer: CLIPTokenizer, prompt: str) -> list[tuple[str, list[int]]]:
    """The words of a prompt as the tokenizer divides it, and where their tokens stand; position 0 is the start."""
    ids = tokenizer(prompt, max_length=tokenizer.model_max_length, truncation=True).input_ids
    words: list[tuple[str, list[int]]] = []
    word, positions = "", []
    for position, token in enumerate(tokenizer.convert_ids_to_tokens(ids)[1:-1], start=1):
        word, positions = word + token, [*positions, position]
        if word.endswith("</w>"):  # CLIP's tokenizer marks where a word ends
            words.append((word.removesuffix("</w>"), positions))
            word, positions = "", []
    return words


def nearest_words(pipe: StableDiffusionPipeline, word: str, n: int = 5) -> list[tuple[str, float]]:
    """The `n` whole words of the vocabulary whose token embeddings point most nearly the same way, with the cosines.

    Raises:
        ValueError: when the word is not one token; the sentence shows the tokens.
    """
    tokenizer, weight = pipe.tokenizer, pipe.text_encoder.get_input_embeddings().weight.detach().float().cpu()
    ids = tokenizer(word, add_special_tokens=False).input_ids
    if len(ids) != 1:
        tokens = ", ".join(tokenizer.convert_ids_to_tokens(ids))
        raise ValueError(f"{word!r} is {len(ids)} tokens ({tokens}); choose a word that is one token")
    cosines = F.cosine_similarity(weight, weight[ids], dim=1)
    found = []
    for index in cosines.argsort(descending=True).tolist():
        name = tokenizer.convert_ids_to_tokens(index)
        if index != ids[0] and name.endswith("</w>") and len(name) > len("x</w>") and name[:-4].isalpha():
            found.append((name.removesuffix("</w>"), float(cosines[index])))
            if len(found) == n:
                break
    return found


# ---- Cross-attention -------------------------------------------------------------------------------------------------


@dataclass
class AttentionRecord:
    """Cross-attention probabilities of each layer, averaged over heads and over the passes that were recorded.

    `layers` maps a layer's name to (B, h, w, L): how much each place of the picture looked at each token; the sum over
    L is 1. With guidance the second half of B belongs to the prompts.
    """

    layers: dict[str, Tensor] = field(default_factory=dict)
    passes: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, probabilities: Tensor) -> None:
        count = self.passes.get(name, 0)
        old = self.layers.get(name, torch.zeros(()))
        self.layers[name] = (old * count + probabilities) / (count + 1)
        self.passes[name] = count + 1

    def tokens(self, index: int = -1, finest: int | None = None) -> Tensor:
        """Maps (L, h, w) for one entry of the batch: the mean over layers, each enlarged to the finest one.

        Layers coarser than a quarter of the finest are left out: their few places say nothing about where.
        """
        if not self.layers:
            raise ValueError("nothing was recorded: run the U-Net inside `with recorded_attention(unet) as record`")
        size = finest or max(p.shape[1] for p in self.layers.values())
        maps = [
            F.interpolate(p[index].permute(2, 0, 1)[None], size=(size, size), mode="bilinear", align_corners=False)[0]
            for p in self.layers.values()
            if p.shape[1] * 4 >= size
        ]
        return torch.stack(maps).mean(0)

    def words(self, tokenizer: CLIPTokenizer, prompt: str, index: int = -1) -> dict[str, Tensor]:
        """A map (h, w) for each word of the prompt, the sum over its tokens; of equal words the first is kept."""
        maps, found = self.tokens(index), {}
        for word, positions in word_positions(tokenizer, prompt):
            found.setdefault(word, maps[positions].sum(0))
        return found


def attention_probabilities(layer: nn.Module, hidden: Tensor, states: Tensor) -> Tensor:
    """What a cross-attention layer of diffusers shares out: softmax(Q K^T / sqrt(d)), (B, heads, places, L).

    hidden: the picture's side (B, places, C); states: the text's (B, L, D).
    """
    query, key = (layer.head_to_batch_dim(x) for x in (layer.to_q(hidden), layer.to_k(states)))
    return layer.get_attention_scores(query, key).unflatten(0, (len(hidden), layer.heads))


@contextmanager
def recorded_attention(unet: UNet2DConditionModel) -> Iterator[AttentionRecord]:
    """Record what each cross-attention layer looks at, while the U-Net computes exactly what it always does.

    The stock layers use a fused kernel that never forms the probabilities, so they are computed once more beside it.
    """
    record, hooks = AttentionRecord(), []

    def listen(name: str) -> Callable:
        @torch.no_grad()
        def hook(layer: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            p = attention_probabilities(layer, hidden, kwargs["encoder_hidden_states"]).mean(1)
            side = math.isqrt(p.shape[1])
            record.add(name, p.view(len(p), side, side, -1).float().cpu())

        return hook

    for name, module in unet.named_modules():
        if name.endswith("attn2"):
            hooks.append(module.register_forward_hook(listen(name), with_kwargs=True))
    try:
        yield record
    finally:
        for hook in hooks:
            hook.remove()


def share_inside(heat: Tensor, box: Sequence[float]) -> float:
    """How much of a map's (h, w) total lies in a box (left, top, right, bottom as fractions), in [0, 1].

    A place on the box's edge counts with the part of it that is inside.
    """
    high, wide = heat.shape
    left, top, right, bottom = box

    def cover(low: float, up: float, n: int) -> Tensor:
        starts = torch.arange(n) / n
        return ((starts + 1 / n).clamp(max=up) - starts.clamp(min=low)).clamp(min=0) * n

    return float((heat * cover(top, bottom, high)[:, None] * cover(left, right, wide)).sum() / heat.sum())


# ---- What a step costs -----------------------------------------------------------------------------------------------


def unet_flops(unet: UNet2DConditionModel, size: int, channels: int | None = None, tokens: int = 32) -> dict[str, int]:
    """Floating-point operations of one pass for a sample (1, channels, size, size) and a text of `tokens`, by kind.

    Nothing is computed: a copy without weights runs on torch's "meta" device, where tensors have only shapes. (On a
    CPU, torch's counter takes fused attention for nothing.) A multiplication with its addition counts as two.

    Returns:
        "convolutions", "self-attention" (tokens with tokens), "cross-attention" (tokens with words), "linear layers".
    """
    config = dict(unet.config)
    if channels is not None:
        config |= {"in_channels": channels, "out_channels": channels}
    with torch.device("meta"):
        copy = type(unet).from_config(config)
        sample = torch.empty(1, config["in_channels"], size, size)
        states = torch.empty(1, tokens, config["cross_attention_dim"])
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            copy(sample, torch.tensor(1), states)
    counts = counter.get_flop_counts()

    def of(module: str, *operations: str) -> int:
        return sum(n for operation, n in counts[module].items() if str(operation).removeprefix("aten.") in operations)

    def attention(end: str) -> int:
        return sum(of(module, "bmm", "baddbmm") for module in counts if module.endswith(end))

    return {
        "convolutions": of("Global", "convolution"),
        "self-attention": attention(".attn1"),
        "cross-attention": attention(".attn2"),
        "linear layers": of("Global", "addmm", "mm"),
    }


# ---- Sampling --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One step of sampling a batch of N.

    Attributes:
        index, timestep: 0, 1, ...; the scheduler's timestep, from about 999 down.
        noisy: (N, C, h, w), what the U-Net was given.
        x0: (N, C, h, w), the clean latents that it believes in, as the scheduler used them.
        latents: (N, C, h, w), after the step; those of the last step are the result.
    """

    index: int
    timestep: float
    noisy: Tensor
    x0: Tensor
    latents: Tensor


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
) -> Iterator[Step]:
    """Draw with classifier-free guidance (Ho and Salimans, arXiv 2207.12598), yielding each step.

    The last step's latents, decoded, are what the stock pipeline draws with the same prompts and seeds; its scheduler
    is left as it was. Guidance 1 asks the U-Net about the prompt alone.

    Args:
        prompts, seeds: one prompt for all seeds, one seed for all prompts, or as many of both.
        guidance_scale: one for all, or one for each picture.
        scheduler: another than the pipeline's own.
        noise: standard normal latents (N, C, h, w) to start from instead of those of the seeds.
    Raises:
        ValueError: when the numbers of prompts, seeds and guidance scales do not fit.
    """
    prompts, seeds, scales = for_each(
        {"prompts": prompts, "seeds": seeds, "guidance scales": guidance_scale}, None if noise is None else len(noise)
    )
    unet = pipe.unet
    scheduler = scheduler or pipe.scheduler
    scheduler = type(scheduler).from_config(scheduler.config)  # a fresh one: schedulers remember earlier steps
    scheduler.set_timesteps(steps, device=unet.device)
    generators = [seeded(seed) for seed in seeds]
    if noise is None:
        size = unet.config.sample_size
        shape = (1, unet.config.in_channels, size, size)
        noise = torch.cat([torch.randn(shape, generator=g, dtype=unet.dtype) for g in generators])
    latents = noise.to(unet.device, unet.dtype) * scheduler.init_noise_sigma
    predict = noise_predictor(pipe, prompts, scales, negative_prompt)
    yield from denoise(scheduler, predict, latents, scheduler.timesteps, generators)


def for_each(values: Mapping[str, Any], n: int | None = None) -> list[list]:
    """Lists of one length `n` (the longest's when it is None), of values that may be given once for all.

    Raises ValueError when a number of values is neither 1 nor `n`.
    """
    lists = {name: [value] if isinstance(value, str | int | float) else list(value) for name, value in values.items()}
    n = n or max(map(len, lists.values()))
    for name, items in lists.items():
        if len(items) not in (1, n):
            raise ValueError(f"{len(items)} {name} for {n} pictures; give one for all, or one for each")
    return [items * n if len(items) == 1 else items for items in lists.values()]


def noise_predictor(
    pipe: StableDiffusionPipeline, prompts: Sequence[str], scales: Sequence[float], negative_prompt: str = ""
) -> Callable[..., Tensor]:
    """`predict(noisy, t)`: the guided noise (N, C, h, w) that the U-Net sees, one prompt and guidance scale for each.

    Further channels of the U-Net's input, such as those of an inpainting model, go behind: `predict(noisy, t, more)`.
    """
    unet, n = pipe.unet, len(prompts)
    distinct = list(dict.fromkeys(prompts))
    states = text_states(pipe, distinct)[[distinct.index(prompt) for prompt in prompts]]
    guided = any(scale > 1 for scale in scales)
    if guided:
        states = torch.cat([text_states(pipe, negative_prompt).expand(n, -1, -1), states])
    weight = torch.tensor(scales, dtype=unet.dtype, device=unet.device).view(-1, 1, 1, 1)

    def predict(noisy: Tensor, t: Tensor, *more: Tensor) -> Tensor:
        noisy = torch.cat([noisy, *more], 1) if more else noisy
        if not guided:
            return unet(noisy, t, states).sample
        eps_nothing, eps_text = unet(torch.cat([noisy, noisy]), t, states).sample.chunk(2)
        return eps_nothing + weight * (eps_text - eps_nothing)

    return predict


@torch.no_grad()
def denoise(
    scheduler: Any,
    predict: Callable[[Tensor, Tensor], Tensor],
    latents: Tensor,
    timesteps: Tensor,
    generators: Sequence[torch.Generator] = (),
    keep: Callable[[int, Tensor], Tensor] | None = None,
) -> Iterator[Step]:
    """The loop: from latents (N, C, h, w) at the first of `timesteps`, yielding each step.

    Args:
        predict: the noise in (noisy latents, timestep), as from `noise_predictor`.
        generators: one for each picture; ancestral samplers add noise at each step.
        keep: changes the latents after each step, given its index.
    """
    extra = {"generator": list(generators)} if _takes_generator(scheduler) else {}
    for index, t in enumerate(timesteps):
        noisy = scheduler.scale_model_input(latents, t)
        eps = predict(noisy, t)
        before = latents
        out = scheduler.step(eps, t, latents, **extra)
        latents = keep(index, out.prev_sample) if keep else out.prev_sample
        yield Step(index, float(t), noisy, _predicted_x0(scheduler, out, eps, t, before), latents)


def _takes_generator(scheduler: Any) -> bool:
    import inspect

    return "generator" in inspect.signature(scheduler.step).parameters


def _predicted_x0(scheduler: Any, out: Any, eps: Tensor, t: Tensor, latents: Tensor) -> Tensor:
    """The clean latents that a scheduler's step went by."""
    if getattr(out, "pred_original_sample", None) is not None:
        return out.pred_original_sample
    if getattr(scheduler.config, "algorithm_type", "").endswith("++") and getattr(scheduler, "model_outputs", None):
        return scheduler.model_outputs[-1]  # DPM-Solver++ works with x0 itself
    alpha_bar = scheduler.alphas_cumprod.to(latents.device)[int(t)].to(latents.dtype)
    return predicted_x0(latents, eps, alpha_bar)


def predicted_x0(noisy: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """Solve x_t = sqrt(a) x_0 + sqrt(1 - a) eps for x_0, a the cumulated alpha (DDPM, arXiv 2006.11239, equation 4)."""
    return (noisy - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()


def draw(
    pipe: StableDiffusionPipeline,
    prompts: str | Sequence[str],
    seeds: int | Sequence[int],
    *,
    steps: int,
    guidance_scale: float | Sequence[float],
    batch: int = 32,
) -> Tensor:
    """Pictures (N, 3, H, W) in [-1, 1], in batches; prompts and seeds as in `sample`."""
    prompts, seeds, scales = for_each({"prompts": prompts, "seeds": seeds, "guidance scales": guidance_scale})
    pictures = []
    for i in range(0, len(prompts), batch):
        part = slice(i, i + batch)
        *_, last = sample(pipe, prompts[part], seeds[part], steps=steps, guidance_scale=scales[part])
        pictures.append(decode(pipe, last.latents))
    return torch.cat(pictures)


def pixel_spread(pictures: Tensor) -> float:
    """Mean distance of all pairs of pictures (N, 3, H, W), root mean square over pixels: 0 when all are the same."""
    flat = pictures.flatten(1)
    return float(torch.pdist(flat).mean() / flat.shape[1] ** 0.5)


# ---- Comparisons -----------------------------------------------------------------------------------------------------


def comparison(
    name_a: str, a: float, name_b: str, b: float, *, unit: str = "", within: float = 0.0, digits: int = 2
) -> str:
    """A sentence that says which of two figures is higher, and by how much, unless they differ by at most `within`."""
    unit = f" {unit}" if unit and unit != "%" else unit
    values = f"({a:.{digits}f}{unit} and {b:.{digits}f}{unit})"
    if abs(a - b) <= within or round(abs(a - b), digits) == 0:
        return f"{name_a} and {name_b} do not differ measurably {values}"
    word = "above" if a > b else "below"
    return f"{name_a} is {abs(a - b):.{digits}f}{unit} {word} {name_b} {values}"


def prompt_for(kind: str, finish: str) -> str:
    """A prompt for one thing in the plainest scene."""
    return f"{'an' if finish[0] in 'aeiou' else 'a'} {finish} {kind} on grass by day"


def matched_pairs() -> list[tuple[tuple[str, str], tuple[str, str]]]:
    """Each withheld (kind, finish) pair with a seen pair of the same kind.

    The seen pairs have the same kinds and the same finishes, only matched otherwise: nothing but the pairing differs.
    """
    held = sorted(WITHHELD)
    finishes = [finish for _, finish in held]
    for shift in range(1, len(held)):
        seen = [(kind, finishes[(i + shift) % len(held)]) for i, (kind, _) in enumerate(held)]
        if not WITHHELD.intersection(seen):
            return list(zip(held, seen, strict=True))
    raise AssertionError("no shift of the finishes avoids the withheld pairs")
