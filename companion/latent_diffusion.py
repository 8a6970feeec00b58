"""What notebook 01 looks at inside the model: words and their neighbours, cross-attention, and what a step costs.

Drawing itself is in `companion.diffusion`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from companion.tabletop.scene import WITHHELD

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from diffusers.models.attention_processor import Attention
    from transformers import CLIPTokenizer

# ---- The U-Net's levels ----------------------------------------------------------------------------------------------


def unet_shapes(unet: UNet2DConditionModel, *inputs: Tensor) -> list[tuple[str, str, int]]:
    """What a U-Net's blocks hand on for the inputs (noisy latents, timestep, text): for each block in order its name,
    the shape "channels x height x width" of what leaves it, and how many tensors it keeps for (down) or takes from
    (up) the skips.
    """
    rows: list[tuple[str, str, int]] = []

    def listen(name: str) -> Callable:
        def hook(block: Any, args: tuple, output: Any) -> None:
            hidden, kept = output if isinstance(output, tuple) else (output, ())
            taken = len(getattr(block, "resnets", ())) if name.startswith("up") else 0
            count = 1 if name == "conv_in" else len(kept) or taken
            rows.append((name, " x ".join(map(str, hidden.shape[1:])), count))

        return hook

    blocks = {"conv_in": unet.conv_in, "mid": unet.mid_block, "conv_out": unet.conv_out}
    blocks |= {f"down {i}": block for i, block in enumerate(unet.down_blocks)}
    blocks |= {f"up {i}": block for i, block in enumerate(unet.up_blocks)}
    hooks = [block.register_forward_hook(listen(name)) for name, block in blocks.items()]
    try:
        with torch.no_grad():
            unet(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return rows


# ---- Text ------------------------------------------------------------------------------------------------------------


def word_positions(tokenizer: CLIPTokenizer, prompt: str) -> list[tuple[str, list[int]]]:
    """The words of a prompt as the tokenizer splits it, and the positions of their tokens; 0 is the start token."""
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
    """The `n` whole words of the vocabulary with the highest cosine similarity of token embeddings, with the cosines.

    Raises:
        ValueError: when the word is not one token; the message shows the tokens.
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

    `layers` maps a layer's name to (B, h, w, L): how much each place in the picture attends to each token; the sum over
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
        """Maps (L, h, w) for one entry of the batch: the mean over layers, each resized to `finest` places a side (by
        default those of the finest layer). Layers coarser than a quarter of that are left out: they locate nothing.

        Raises ValueError when nothing was recorded.
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
        """A map (h, w) for each word of the prompt, the sum over its tokens; of a repeated word, the first is used."""
        maps, found = self.tokens(index), {}
        for word, positions in word_positions(tokenizer, prompt):
            found.setdefault(word, maps[positions].sum(0))
        return found


def attention_probabilities(layer: Attention, hidden: Tensor, encoder_hidden_states: Tensor) -> Tensor:
    """Attention probabilities of a diffusers cross-attention layer: softmax(Q K^T / sqrt(d)), (B, heads, places, L).

    hidden: the picture's features (B, places, C); encoder_hidden_states: the text's (B, L, D).
    """
    assert layer.to_k is not None  # None only in layers with added keys alone; Stable Diffusion has none
    query, key = (layer.head_to_batch_dim(x) for x in (layer.to_q(hidden), layer.to_k(encoder_hidden_states)))
    return layer.get_attention_scores(query, key).unflatten(0, (len(hidden), layer.heads))


@contextmanager
def recorded_attention(unet: UNet2DConditionModel) -> Iterator[AttentionRecord]:
    """Record what each cross-attention layer attends to in square pictures, without changing the U-Net's output.

    The stock layers use a fused kernel that never forms the probabilities, so a hook computes them once more.
    """
    record, hooks = AttentionRecord(), []

    def listen(name: str) -> Callable:
        @torch.no_grad()
        def hook(layer: Any, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
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

    A place that the box's edge cuts counts in proportion to its part inside.
    """
    high, wide = heat.shape
    left, top, right, bottom = box

    def cover(low: float, up: float, n: int) -> Tensor:
        starts = torch.arange(n) / n
        return ((starts + 1 / n).clamp(max=up) - starts.clamp(min=low)).clamp(min=0) * n

    return float((heat * cover(top, bottom, high)[:, None] * cover(left, right, wide)).sum() / heat.sum())


# ---- A world of points -----------------------------------------------------------------------------------------------

#: Two classes of points in the plane, each around two middles: so near each other that they overlap.
PLANE = {"blue": ((-1.2, 0.7), (0.5, -0.9)), "orange": ((-0.3, -0.2), (1.2, 0.9))}
PLANE_DEVIATION = 0.45


def plane_points(n: int, names: Sequence[str], generator: torch.Generator) -> Tensor:
    """`n` random points (n, 2) of the classes `names` of `PLANE`."""
    middles = torch.tensor([m for name in names for m in PLANE[name]])
    chosen = middles[torch.randint(len(middles), (n,), generator=generator)]
    return chosen + PLANE_DEVIATION * torch.randn(n, 2, generator=generator)


def plane_noise(noisy: Tensor, alpha_bar: Tensor, names: Sequence[str]) -> Tensor:
    """The noise that a perfect network would predict in noisy points (N, 2) of the classes `names` of `PLANE`.

    Noised to `alpha_bar`, points around a middle m have mean sqrt(a) m and variance v = a d^2 + 1 - a. If one comes
    from there, the mean of its noise is sqrt(1 - a) (x - sqrt(a) m) / v. Bayes' rule says how likely that is.
    """
    middles = alpha_bar**0.5 * torch.tensor([m for name in names for m in PLANE[name]])
    variance = alpha_bar * PLANE_DEVIATION**2 + 1 - alpha_bar
    away = noisy[:, None] - middles
    likely = (-(away**2).sum(-1) / (2 * variance)).softmax(1)
    return (1 - alpha_bar) ** 0.5 * (likely[..., None] * away).sum(1) / variance


def plane_class(points: Tensor) -> list[str]:
    """For each point (N, 2), the class of `PLANE` whose middle is nearest."""
    names = [name for name, middles in PLANE.items() for _ in middles]
    middles = torch.tensor([m for group in PLANE.values() for m in group])
    return [names[i] for i in torch.cdist(points, middles).argmin(1).tolist()]


# ---- What a step costs -----------------------------------------------------------------------------------------------


def nearest_by_chance(pipe: StableDiffusionPipeline, rows: int = 200, seed: int = 0) -> float:
    """The cosine of an embedding whose numbers were shuffled, so that it means nothing, with the token nearest to it.

    It is the median over `rows` embeddings; `nearest_words` has to be above it to say anything.
    """
    weight = pipe.text_encoder.get_input_embeddings().weight.detach().float().cpu()
    generator = torch.Generator().manual_seed(seed)
    chosen = weight[torch.randperm(len(weight), generator=generator)[:rows]]
    shuffled = chosen.gather(1, torch.rand(chosen.shape, generator=generator).argsort(1))
    return float((F.normalize(shuffled, dim=1) @ F.normalize(weight, dim=1).T).amax(1).median())


def unet_flops(unet: UNet2DConditionModel, size: int, channels: int | None = None, tokens: int = 32) -> dict[str, int]:
    """Floating-point operations of one pass for a sample (1, channels, size, size) and a text of `tokens`, by kind.

    Nothing is computed: a copy without weights runs on torch's "meta" device, where tensors have only shapes. (On a
    CPU, torch's counter counts fused attention as zero.) A multiplication with its addition counts as two.

    Returns:
        "convolutions", "self-attention" (positions with positions), "cross-attention" (positions with words), "linear
        layers".
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


def comparison(
    name_a: str, a: float, name_b: str, b: float, *, unit: str = "", within: float = 0.0, digits: int = 2
) -> str:
    """A sentence that says which of two numbers is higher, and by how much, unless they differ by at most `within`."""
    unit = f" {unit}" if unit and unit != "%" else unit
    values = f"({a:.{digits}f}{unit} and {b:.{digits}f}{unit})"
    if abs(a - b) <= within or round(abs(a - b), digits) == 0:
        return f"{name_a} and {name_b} do not differ measurably {values}"
    word = "above" if a > b else "below"
    return f"{name_a} is {abs(a - b):.{digits}f}{unit} {word} {name_b} {values}"


def prompt_for(kind: str, finish: str, where: str = "on grass by day") -> str:
    """A prompt for one thing, in the plainest scene."""
    return f"{'an' if finish[0] in 'aeiou' else 'a'} {finish} {kind} {where}"


def matched_pairs() -> list[tuple[tuple[str, str], tuple[str, str]]]:
    """Each withheld (kind, finish) pair with a pair of the same kind that training saw.

    The seen pairs have the same kinds and the same finishes as the withheld ones: only the pairing differs.
    """
    held = sorted(WITHHELD)
    finishes = [finish for _, finish in held]
    for shift in range(1, len(held)):
        seen = [(kind, finishes[(i + shift) % len(held)]) for i, (kind, _) in enumerate(held)]
        if not WITHHELD.intersection(seen):
            return list(zip(held, seen, strict=True))
    raise AssertionError("no shift of the finishes avoids the withheld pairs")
