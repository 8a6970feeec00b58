"""What a layer says by angle, and what by length: the toy autoencoder of the OFT paper (arXiv 2306.07280, figure 2).

A neuron w answers a patch x by its inner product, w . x = ||w|| ||x|| cos(angle). An autoencoder is trained with plain
inner products. Then the features in its bottleneck are replaced by the lengths alone, ||w|| ||x||, or by the cosines
alone, and the decoder draws from what is left:

    *_, last = train_autoencoder(pictures, steps=300)
    inner, lengths, cosines = answers(last.model.bottleneck, last.model.encoder(held_out))
    drawn = last.model.decoder(scale(cosines, inner) * cosines)

The lengths and the cosines have other sizes than the features that the decoder has learned from, so they are multiplied
by the number that fits them best. The paper's published code takes a fixed 60 for the cosines instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (32, 64, 128)  # channels of the encoder's three convolutions, as in the paper


class Autoencoder(nn.Module):
    """Pictures (N, 3, S, S) in [-1, 1] to features (N, 128, S/8, S/8) and back; S is a multiple of 8.

    `bottleneck` is the last convolution on the way in. It has no bias and no nonlinearity, so its outputs are inner
    products of its neurons with patches.
    """

    def __init__(self, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        a, b, c = widths
        down = {"kernel_size": 4, "stride": 2, "padding": 1}
        self.encoder = nn.Sequential(nn.Conv2d(3, a, **down), nn.ReLU(), nn.Conv2d(a, b, **down), nn.ReLU())
        self.bottleneck = nn.Conv2d(b, c, **down, bias=False)
        first, second = nn.ConvTranspose2d(c, b, **down), nn.ConvTranspose2d(b, a, **down)
        self.decoder = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.ConvTranspose2d(a, 3, **down), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.bottleneck(self.encoder(x)))


def answers(conv: nn.Conv2d, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a convolution without bias answers to x (N, C, H, W), three times (N, D, h, w): inner products, w . x; the
    lengths alone, ||w|| ||x||; and the cosines of the angles between neurons and patches, 0 where a patch is zero.

    Raises ValueError for a convolution with a bias or groups: its outputs are not inner products with whole patches.
    """
    if conv.bias is not None or conv.groups != 1:
        raise ValueError("the convolution has a bias or groups; its outputs are not inner products with whole patches")
    inner = conv(x)
    ones = torch.ones_like(conv.weight[:1])
    patch = F.conv2d(x * x, ones, None, conv.stride, conv.padding, conv.dilation).clamp(min=0).sqrt()
    lengths = conv.weight.flatten(1).norm(dim=1)[None, :, None, None] * patch
    return inner, lengths, torch.where(lengths > 0, inner / lengths.clamp(min=1e-12), 0.0)


def scale(features: Tensor, wanted: Tensor) -> float:
    """The number by which features are multiplied to come nearest to the wanted ones, by least squares."""
    return float((features * wanted).sum() / (features * features).sum())


@dataclass(frozen=True)
class Trained:
    """The autoencoder after a step, and that step's loss."""

    step: int
    loss: float
    model: Autoencoder


def train_autoencoder(
    pictures: Tensor, steps: int, *, batch: int = 32, lr: float = 2e-3, seed: int = 0
) -> Iterator[Trained]:
    """Train on pictures (N, 3, S, S) in [-1, 1] with the mean squared error, yielding after each step."""
    torch.manual_seed(seed)
    model, generator = Autoencoder(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(1, steps + 1):
        x = pictures[torch.randint(len(pictures), (batch,), generator=generator)]
        loss = F.mse_loss(model(x), x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        yield Trained(step, loss.item(), model)


def patches(pictures: Sequence[np.ndarray], size: int, n: int, seed: int = 0) -> Tensor:
    """`n` random square patches of photographs, uint8 (H, W, 3) each: (n, 3, size, size) in [-1, 1].

    A patch is between `size` and the whole shorter side wide, and brought to `size` pixels.
    """
    import cv2

    rng, found = np.random.default_rng(seed), []
    for _ in range(n):
        picture = pictures[int(rng.integers(len(pictures)))]
        side = int(rng.integers(size, min(picture.shape[:2]) + 1))
        top, left = (int(rng.integers(length - side + 1)) for length in picture.shape[:2])
        square = picture[top : top + side, left : left + side]
        found.append(cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA))
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float() / 127.5 - 1
