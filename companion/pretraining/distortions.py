"""Pictures spoiled on purpose. We trust a measure only once it rejects what an eye rejects, and a judge learns to say
no only if it is shown what is wrong.

Pictures are floats (N, 3, H, W) in [-1, 1]; masks (N, 1, H, W) are 1 on the things to spoil; `empty` are the same
scenes without things, and fill what is taken away with ground and sky. All randomness comes from the generator.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of x (N, C, H, W) by `sigma` pixels; borders are repeated."""
    if sigma <= 0:
        return x
    radius = max(1, round(3 * sigma))
    line = torch.exp(-(torch.arange(-radius, radius + 1.0) ** 2) / (2 * sigma**2))
    line = (line / line.sum()).to(x)
    channels = x.shape[1]
    x = F.pad(x, (radius,) * 4, mode="replicate")
    x = F.conv2d(x, line.view(1, 1, 1, -1).expand(channels, -1, -1, -1), groups=channels)
    return F.conv2d(x, line.view(1, 1, -1, 1).expand(channels, -1, -1, -1), groups=channels)


def around(masks: Tensor, grow: int = 3, sigma: float = 2.0) -> Tensor:
    """Masks grown by `grow` pixels, with soft edges."""
    return blur(F.max_pool2d(masks, 2 * grow + 1, 1, grow), sigma).clamp(0, 1)


def warp(pictures: Tensor, masks: Tensor, amplitude: Tensor, generator: torch.Generator, bumps: int = 4) -> Tensor:
    """Bend the things smoothly: pixels move by `amplitude` (N,) pixels, root mean square over each thing.

    The field smoothly interpolates random arrows on a grid of `bumps` x `bumps` over the picture.
    """
    n, _, high, wide = pictures.shape
    arrows = torch.randn(n, 2, bumps, bumps, generator=generator).to(pictures)
    field = F.interpolate(arrows, size=(high, wide), mode="bicubic", align_corners=True)
    area = masks.sum((2, 3), keepdim=True).clamp(min=1)
    field = field - (field * masks).sum((2, 3), keepdim=True) / area  # moving a thing as a whole does not bend it
    size = ((field**2).sum(1, keepdim=True) * masks).sum((2, 3), keepdim=True) / area
    field = field / size.clamp(min=1e-9).sqrt() * amplitude.view(-1, 1, 1, 1) * around(masks)
    ys, xs = torch.meshgrid(torch.arange(high) + 0.5, torch.arange(wide) + 0.5, indexing="ij")
    at = torch.stack([xs, ys]).to(pictures) + field
    grid = torch.stack([at[:, 0] * 2 / wide - 1, at[:, 1] * 2 / high - 1], -1)
    return F.grid_sample(pictures, grid, mode="bicubic", padding_mode="border", align_corners=False).clamp(-1, 1)


def melt(pictures: Tensor, masks: Tensor, empty: Tensor, sigma: float) -> Tensor:
    """Round corners off, like wax in the sun: silhouettes are smoothed by `sigma` pixels, insides blurred."""
    silhouette = torch.sigmoid((blur(masks, sigma) - 0.5) * 16)
    # The thing's own colours, continued beyond its outline.
    inside = blur(pictures * masks, sigma / 2) / blur(masks, sigma / 2).clamp(min=1e-3)
    return torch.lerp(empty, inside.clamp(-1, 1), silhouette)


def cut(pictures: Tensor, masks: Tensor, empty: Tensor, generator: torch.Generator) -> Tensor:
    """Take half of each thing away, along a line through its middle in a random direction."""
    n, _, high, wide = pictures.shape
    ys, xs = torch.meshgrid(torch.arange(high).to(pictures), torch.arange(wide).to(pictures), indexing="ij")
    area = masks.sum((2, 3)).clamp(min=1)
    middle_x, middle_y = ((masks * v).sum((2, 3)).div(area).view(n, 1, 1, 1) for v in (xs, ys))
    angle = torch.rand(n, 1, 1, 1, generator=generator).to(pictures) * 2 * torch.pi
    side = (xs - middle_x) * angle.cos() + (ys - middle_y) * angle.sin()
    return torch.lerp(pictures, empty, around(masks, 2, 1.0) * (side > 0))


def chimera(pictures: Tensor, other: Tensor, masks: Tensor, generator: torch.Generator) -> Tensor:
    """Put the upper part of each picture's thing on the lower part of another kind at its place.

    other: the same scenes with things of other kinds; masks: where either of the two is.
    """
    n, _, high, _ = pictures.shape
    ys = torch.arange(high).to(pictures).view(1, 1, -1, 1)
    rows = masks.amax(3, keepdim=True)
    first = torch.where(rows > 0, ys, high).amin(2, keepdim=True)
    last = torch.where(rows > 0, ys, -1).amax(2, keepdim=True)
    share = 0.35 + 0.3 * torch.rand(n, 1, 1, 1, generator=generator).to(pictures)
    seam = first + share * (last - first)
    return torch.lerp(pictures, other, torch.sigmoid(ys - seam))


def patchwork(pictures: Tensor, other: Tensor, generator: torch.Generator, bumps: int = 4) -> Tensor:
    """Mix two pictures of the same scene with things of different kinds, in smooth random patches of each."""
    n, _, high, wide = pictures.shape
    field = torch.randn(n, 1, bumps, bumps, generator=generator).to(pictures)
    field = F.interpolate(field, size=(high, wide), mode="bicubic", align_corners=True)
    middle = field.flatten(1).median(1).values.view(n, 1, 1, 1)
    return torch.lerp(pictures, other, torch.sigmoid((field - middle) * 12))


def ghost(pictures: Tensor, masks: Tensor, amplitude: Tensor, generator: torch.Generator) -> Tensor:
    """Things as if seen in two shapes at once: the mean of a picture and the same one bent by `warp`, which gives them
    two outlines and two of each arm. A model that cannot decide on a shape draws both like that.
    """
    return (pictures + warp(pictures, masks, amplitude, generator)) / 2


def low_pass(pictures: Tensor, masks: Tensor, sigma: float) -> Tensor:
    """Things out of focus: blurred by `sigma` pixels."""
    return torch.lerp(pictures, blur(pictures, sigma), around(masks))


def noisy_latents(
    latents: Tensor, cells: Tensor, level: Tensor, decode: Callable[[Tensor], Tensor], generator: torch.Generator
) -> Tensor:
    """Decode latents (N, C, h, w) with noise of `level` (N,), in standard deviations, on things' cells (N, h, w)."""
    noise = torch.randn(latents.shape, generator=generator).to(latents) * latents.std()
    return decode(latents + level.view(-1, 1, 1, 1) * cells[:, None] * noise)


#: Ways to spoil a thing, and for each the strengths that leave it clear to an eye, and those that do not. Strengths
#: are pixels, or for "noise" standard deviations; None is a way that has only one.
WAYS: dict[str, tuple[tuple[float, float] | None, tuple[float, float] | None]] = {
    "warp": ((0.0, 1.5), (4.0, 8.0)),
    "melt": ((0.0, 1.0), (4.0, 8.0)),
    "blur": ((0.0, 1.5), (3.0, 6.0)),
    "noise": ((0.0, 0.35), (0.8, 1.6)),
    "cut": (None, None),
    "chimera": (None, None),
    "patchwork": (None, None),
    "ghost": ((0.0, 1.5), (6.0, 12.0)),
}


def spoil(
    way: str,
    strength: float,
    scenes: dict[str, Tensor],
    masks: Tensor,
    decode: Callable[[Tensor], Tensor],
    generator: torch.Generator,
) -> Tensor:
    """Pictures (N, 3, H, W) in [-1, 1] whose things in `masks` (N, 1, H, W) were spoiled in one of the `WAYS`.

    Args:
        scenes: "picture", "empty" (without things) and "swapped" (things of other kinds), each (N, 3, H, W);
            "swapped_mask" (N, 1, H, W); "latents" (N, C, h, w) of "picture".
        decode: latents to pictures.
    Raises:
        ValueError: for an unknown way.
    """
    x, empty, other = scenes["picture"], scenes["empty"], scenes["swapped"]
    either = torch.maximum(masks, scenes["swapped_mask"])
    factor = x.shape[-1] // scenes["latents"].shape[-1]
    amount = torch.full((len(x),), strength)
    ways: dict[str, Callable[[], Tensor]] = {
        "warp": lambda: warp(x, masks, amount, generator),
        "melt": lambda: melt(x, masks, empty, strength),
        "blur": lambda: low_pass(x, masks, strength),
        "noise": lambda: noisy_latents(
            scenes["latents"], F.max_pool2d(masks, factor)[:, 0], amount, decode, generator
        ).clamp(-1, 1),
        "cut": lambda: cut(x, masks, empty, generator),
        "chimera": lambda: chimera(x, other, either, generator),
        "patchwork": lambda: patchwork(x, other, generator),
        "ghost": lambda: ghost(x, masks, amount, generator),
    }
    if way not in ways:
        raise ValueError(f"{way!r} is no way to spoil a thing; the ways are {', '.join(WAYS)}")
    return ways[way]()
