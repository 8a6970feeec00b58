"""Metrics of pictures that need no model: PSNR, fine contrast, spread, and the Fréchet distance of given features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from scipy import linalg
from torch import Tensor


def pictures_to_tensor(pictures: Sequence[Image.Image] | np.ndarray | Tensor) -> Tensor:
    """PIL pictures or uint8 (N, H, W, 3) as floats (N, 3, H, W) in [-1, 1]; such floats are returned as they are."""
    if isinstance(pictures, Tensor) and pictures.is_floating_point():
        return pictures
    if not isinstance(pictures, np.ndarray | Tensor):
        pictures = np.stack([np.asarray(p.convert("RGB")) for p in pictures])
    return torch.as_tensor(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def tensor_to_bytes(pictures: Tensor) -> Tensor:
    """Floats (N, 3, H, W) in [-1, 1] as uint8 (N, H, W, 3): `pictures_to_tensor` backwards."""
    return ((pictures.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1)


def frechet(a: Tensor | np.ndarray, b: Tensor | np.ndarray) -> float:
    """Fréchet distance between Gaussians fitted to two sets of features (N, D) (Heusel et al., arXiv 1706.08500):
    |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)).

    Raises:
        ValueError: for fewer than D + 1 pictures, too few to estimate the covariance.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    for x in (a, b):
        if len(x) <= x.shape[1]:
            raise ValueError(f"{len(x)} pictures are too few for {x.shape[1]} features; use at least {x.shape[1] + 1}")
    sa, sb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # S_a S_b has the eigenvalues of the symmetric S_a^(1/2) S_b S_a^(1/2), which are real and not negative.
    root = linalg.sqrtm(sa).real
    cross = np.sqrt(np.clip(linalg.eigvalsh(root @ sb @ root), 0, None)).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(sa) + np.trace(sb) - 2 * cross)


def fine_contrast(pictures) -> float:
    """How much neighbouring pixels differ: the variance of the Laplacian of the grey picture, in [-1, 1], averaged over
    the pictures. It is a measure of focus (Pech-Pacheco et al. 2000, Diatom autofocusing in brightfield microscopy):
    blur makes it small, noise makes it large.
    """
    grey = pictures_to_tensor(pictures).clamp(-1, 1).mean(1)
    inner = grey[:, 1:-1, 1:-1]
    around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    return float((around - 4 * inner).var((1, 2)).mean())


def psnr(a, b, where: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio (N,) in dB of each picture of `a` against `b`, after rounding to 8 bits; at most 148.

    Args:
        where: count only pixels where this mask (N, 1, H, W) or (1, 1, H, W) is 1.
    """
    a, b = (((pictures_to_tensor(x).clamp(-1, 1) + 1) * 127.5).round() for x in (a, b))
    error = (a - b) ** 2
    where = torch.ones_like(error) if where is None else where.expand_as(error)
    mean = (error * where).sum((1, 2, 3)) / where.sum((1, 2, 3))
    return 10 * torch.log10(255**2 / mean.clamp_min(1e-10))


def pixel_spread(pictures: Tensor) -> float:
    """Mean root-mean-square difference over all pairs of pictures (N, 3, H, W), N >= 2: 0 when all are the same."""
    flat = pictures.flatten(1)
    return float(torch.pdist(flat).mean() / flat.shape[1] ** 0.5)
