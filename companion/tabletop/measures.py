"""What the course's judge says about pictures: what is in them, and whether that is what was asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

import companion
from companion.diffusion import picture_size
from companion.metrics import pictures_to_tensor
from companion.models import quiet
from companion.tabletop.caption import Wish, parse
from companion.tabletop.judge import SEGMENTS, Judge, Reading

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPModel, CLIPTokenizer

#: What a notebook says where the judge cannot help.
NOT_JUDGED = "The judge knows the miniature world only, so this is not measured for this model: judge by eye."


@cache
def judge() -> Judge:
    """The judge that the course ships, loaded once."""
    return Judge.load(companion.DATA / "models" / "judge")


def can_be_judged(pipe: StableDiffusionPipeline) -> bool:
    """Whether the judge can read the pipeline's pictures: it only knows the miniature world at 128 pixels."""
    return picture_size(pipe) == 128


def read(pictures: Sequence[Image.Image] | np.ndarray | Tensor) -> list[Reading]:
    """What the judge sees in pictures of 128 pixels (any form that `pictures_to_tensor` takes)."""
    return judge().read(pictures_to_tensor(pictures))


def prompt_accuracy(pictures, prompts: Iterable[str | Wish]) -> dict[str, float]:
    """The share of pictures, in [0, 1], that match their prompts, by attribute (see `Reading.meets`) and in "all".

    Raises:
        ValueError: when a prompt names no thing of the world, or the numbers of pictures and prompts differ.
    """
    wishes = [p if isinstance(p, Wish) else parse(p) for p in prompts]
    if len(wishes) != len(pictures):
        raise ValueError(f"{len(pictures)} pictures but {len(wishes)} prompts; give one prompt for each picture")
    results = [r.meets(w) for r, w in zip(read(pictures), wishes, strict=True)]
    keys = dict.fromkeys(k for r in results for k in r)
    return {k: sum(r[k] for r in results if k in r) / sum(k in r for r in results) for k in keys}


def met(pictures: Tensor, prompts: Sequence[str], what: Sequence[str] = ("kind", "finish")) -> list[bool]:
    """For each picture, whether the judge reads all of `what` (see `Reading.meets`) as the prompt asks."""
    size = pictures.shape[-2:]
    if size != (128, 128):  # it was trained at 128 pixels
        pictures = F.interpolate(pictures, size=(128, 128), mode="bicubic", antialias=True).clamp(-1, 1)
    results = [reading.meets(parse(p)) for reading, p in zip(read(pictures), prompts, strict=True)]
    return [all(result.get(name, True) for name in what) for result in results]


@torch.no_grad()
def thing_masks(pictures: Tensor, grow: int = 6) -> Tensor:
    """Where the judge sees things in pictures (N, 3, 128, 128): floats (N, 1, 128, 128), grown by `grow` pixels."""
    segments = judge()(pictures)["segments"]
    things = (segments.argmax(1, keepdim=True) >= SEGMENTS.index("ground") + 1).float()
    things = F.interpolate(things, size=pictures.shape[-2:], mode="nearest")
    return F.max_pool2d(things, 2 * grow + 1, stride=1, padding=grow) if grow else things


def picture_features(pictures) -> Tensor:
    """The judge's pooled features (N, 160)."""
    return judge().features(pictures_to_tensor(pictures))


@torch.no_grad()
def _patches(pictures, batch: int, block: int) -> Iterator[tuple[Tensor, Tensor]]:
    """For some pictures after others, one block of the judge's features (B, C, h, w), and the share (B, h, w) of each
    patch that it sees on things."""
    found: list[Tensor] = []
    hook = judge().blocks[block].register_forward_hook(lambda _, __, out: found.append(out))
    try:
        for x in pictures_to_tensor(pictures).split(batch):
            segments = judge()(x)["segments"].argmax(1, keepdim=True)
            features = found.pop()
            on_things = (segments > SEGMENTS.index("ground")).float()
            high, wide = features.shape[-2:]
            yield features, F.adaptive_avg_pool2d(on_things, (high, wide))[:, 0]
    finally:
        hook.remove()


def patch_features(pictures, batch: int = 64) -> Tensor:
    """The judge's features (M, 96) of all patches of 8 x 8 pixels that it sees mostly on things, for Fréchet distances
    of things alone."""
    return torch.cat([f.permute(0, 2, 3, 1)[share > 0.5] for f, share in _patches(pictures, batch, 1)])


def thing_features(pictures, batch: int = 64) -> Tensor:
    """The judge's features (N, 64) of 4 x 4 pixels, averaged over the things it sees in each picture: their colours and
    surfaces, whatever stands behind them. Where it sees no thing, the average is over the whole picture.

    Its later features know the ten kinds, and little else: they tell a snowman from a robot less well.
    """
    means = []
    for features, share in _patches(pictures, batch, 0):
        weight = torch.where(share.sum((1, 2), keepdim=True) > 0.5, share, torch.ones_like(share))[:, None]
        means.append((features * weight).sum((2, 3)) / weight.sum((2, 3)))
    return torch.cat(means)


GRID = 8  # cells across the square around a thing, for its outline


@torch.no_grad()
def thing_outlines(pictures, batch: int = 64, smallest: int = 40) -> list[Tensor]:
    """The outlines of the things that the judge sees in each picture, (K, 64) floats in [0, 1], the largest thing
    first: how much of each cell of an 8 x 8 grid over the square around it the thing fills, wherever it stands and
    however large it is. Things that touch have one outline; less than `smallest` pixels of the judge's maps are none.
    """
    found = []
    for x in pictures_to_tensor(pictures).split(batch):
        on_things = judge()(x)["segments"].argmax(1) > SEGMENTS.index("ground")
        for mask in on_things.numpy():
            labels, n = ndimage.label(mask)
            parts = [labels == k for k in range(1, n + 1)]
            parts = sorted((p for p in parts if p.sum() >= smallest), key=lambda p: -p.sum())
            found.append(torch.stack([_outline(part) for part in parts]) if parts else torch.zeros(0, GRID**2))
    return found


def _outline(mask: np.ndarray) -> Tensor:
    """The shares (64,) of a grid's cells that a mask (H, W) fills; the grid covers the square around it."""
    (top, bottom), (left, right) = ((i.min(), i.max() + 1) for i in np.nonzero(mask))
    side = max(bottom - top, right - left)
    square = np.zeros((side, side), np.float32)
    y, x = (side - (bottom - top)) // 2, (side - (right - left)) // 2
    square[y : y + bottom - top, x : x + right - left] = mask[top:bottom, left:right]
    return F.interpolate(torch.from_numpy(square)[None, None], size=(GRID, GRID), mode="area").flatten()


# ---- CLIP ------------------------------------------------------------------------------------------------------------


@cache
def clip() -> tuple[CLIPModel, CLIPTokenizer]:
    """The miniature's CLIP and its tokenizer, loaded once."""
    from transformers import CLIPModel, CLIPTokenizer

    folder = companion.DATA / "models" / "clip"
    with quiet():
        return CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)


@torch.no_grad()
def clip_pictures(pictures, batch: int = 64) -> Tensor:
    """CLIP's embeddings (N, D) of pictures, of length 1: their cosines are CLIP-I."""
    model = clip()[0]
    vision: Any = model.config.vision_config
    size = vision.image_size
    parts = [
        _embedding(model.get_image_features(F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)))
        for x in pictures_to_tensor(pictures).split(batch)
    ]
    return torch.cat(parts)


@torch.no_grad()
def clip_texts(texts: Sequence[str]) -> Tensor:
    """CLIP's embeddings (N, D) of texts, of length 1: their cosines with those of pictures are CLIP-T."""
    model, tokenizer = clip()
    text: Any = model.config.text_config
    length = text.max_position_embeddings
    options: dict[str, Any] = {"padding": "max_length", "max_length": length, "truncation": True}
    return _embedding(model.get_text_features(**tokenizer(list(texts), return_tensors="pt", **options)))


def _embedding(found: Any) -> Tensor:
    """Of length 1, from a tensor or from the library's output, which differs between its versions."""
    return F.normalize(found if isinstance(found, Tensor) else found.pooler_output, dim=-1)


def diversity(pictures) -> float:
    """Mean distance between the judge's features of all pairs of pictures: 0 when all are the same."""
    f = picture_features(pictures)
    return float(torch.pdist(f).mean())
