"""How bent drawn things are, in pixels: a small network that has learned it from renders bent by known amounts.

The renders are bent smoothly (`distortions.warp`), then rebuilt by the autoencoder, so that its blur is in what the
network learns from as it is in what the U-Net draws. What the network says of drawn things can then be put like this:
"our cubes are as far from cubes as renders bent by 1.8 pixels".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from companion.metrics import pictures_to_tensor
from companion.pretraining.distortions import warp
from companion.pretraining.examination import Spoilable
from companion.pretraining.muon import muon
from companion.pretraining.vae import rebuild
from companion.tabletop.judge import Residual
from companion.tabletop.scene import KINDS
from companion.training import Progress, train_averaged

CROP = 64  # pixels of a side of what the network sees
MOST = 6.0  # pixels; renders are bent by up to this much
UNBENT = 0.2  # share of the renders that are not bent at all


def crops(pictures: Tensor, boxes: Tensor, size: int = CROP, margin: float = 0.15) -> tuple[Tensor, Tensor]:
    """Square cuts (N, 3, size, size) around boxes (N, 4) of pictures (N, 3, H, W), and their sides in pixels (N,).

    boxes: left, top, right, bottom as fractions of the picture; `margin` is left around, as a fraction of the box.
    """
    high = pictures.shape[-1]
    middle = (boxes[:, :2] + boxes[:, 2:]) - 1  # from -1 to 1
    half = (boxes[:, 2:] - boxes[:, :2]).amax(1) * (1 + 2 * margin)
    line = (torch.arange(size, device=pictures.device) + 0.5) / size * 2 - 1
    ys, xs = torch.meshgrid(line, line, indexing="ij")
    grid = middle[:, None, None] + half[:, None, None, None] * torch.stack([xs, ys], -1)
    cut = F.grid_sample(pictures, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return cut, half * high


class ShapeError(nn.Module):
    """Crops (N, 3, 64, 64) of things to how far they are bent, as a share (N,) of the crop's side."""

    def __init__(self, widths: Sequence[int] = (32, 64, 96)):
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in zip((3, *widths[:-1]), widths, strict=True):
            layers += [nn.Conv2d(a, b, 3, stride=2, padding=1), Residual(b), Residual(b)]
        self.body = nn.Sequential(*layers, nn.GroupNorm(8, widths[-1]), nn.SiLU())
        self.head = nn.Linear(2 * widths[-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return F.softplus(self.head(torch.cat([y.mean((2, 3)), y.amax((2, 3))], 1)))[:, 0] / CROP


class Bent(NamedTuple):
    """Crops (N, 3, 64, 64) of bent things, the crops' sides (N,), and by how much each is bent (N,), both in pixels."""

    crops: Tensor
    sides: Tensor
    amplitudes: Tensor


@torch.no_grad()
def bent(spoilable: Spoilable, seed: int = 0, amplitude: float | None = None) -> Bent:
    """One thing of each render, bent by `amplitude` pixels (None: up to `MOST`, at random) and rebuilt."""
    generator, n = torch.Generator().manual_seed(seed), len(spoilable)
    count = (spoilable.target["kind"] >= 0).sum(1)
    slot = (torch.rand(n, generator=generator) * count).long()
    rows = torch.arange(n)
    label = 2 + spoilable.target["order"][rows, slot]
    mask = (spoilable.segments == label[:, None, None])[:, None].float()
    amount = MOST * torch.rand(n, generator=generator) * (torch.rand(n, generator=generator) >= UNBENT)
    amount = amount if amplitude is None else torch.full((n,), amplitude)
    parts = []
    for some in rows.split(50):
        x = warp(pictures_to_tensor(spoilable.rendered[some]), mask[some], amount[some], generator)
        parts.append(crops(rebuild(spoilable.vae, x), box_of(mask[some])))
    cut, side = (torch.cat(p) for p in zip(*parts, strict=True))
    return Bent(cut, side, amount)


def box_of(masks: Tensor) -> Tensor:
    """The boxes (N, 4) around masks (N, 1, H, W), as fractions; the whole picture where a mask is empty."""
    high, wide = masks.shape[-2:]
    boxes = []
    for mask in masks[:, 0] > 0:
        ys, xs = (mask.any(i).nonzero()[:, 0].tolist() or [0, n - 1] for i, n in ((1, high), (0, wide)))
        boxes.append([min(xs) / wide, min(ys) / high, (max(xs) + 1) / wide, (max(ys) + 1) / high])
    return torch.tensor(boxes)


def train_shape(
    shown: Bent,
    steps: int,
    *,
    lr: float = 1e-3,
    batch: int = 64,
    seed: int = 0,
    **options: Any,
) -> Iterator[tuple[Progress, ShapeError]]:
    """Train on bent things; yields progress and the moving average."""
    cut, side, amount = shown
    torch.manual_seed(seed)
    model = ShapeError()

    def loss(model: ShapeError, generator: torch.Generator, step: int) -> Tensor:
        i = torch.randint(len(cut), (batch,), generator=generator)
        x = cut[i].float()
        # Light and colour tell nothing about shape.
        gain = 1 + 0.2 * (torch.rand(batch, 3, 1, 1, generator=generator) - 0.5)
        x = x * gain + 0.02 * torch.randn(x.shape, generator=generator)
        return (model(x) * side[i] - amount[i]).abs().mean()

    optimizer = muon(model, lr, exclude=("body.0.", "head."), weight_decay=0.01)
    return train_averaged(model, loss, optimizer, steps, ema_decay=0.995, seed=seed, **options)


def load_shape_error(folder: Path) -> ShapeError:
    """The network that `companion build publish` put into a folder."""
    weights = load_file(folder / "model.safetensors")
    model = ShapeError()
    model.load_state_dict({k: v.float() for k, v in weights.items()})
    return model.eval()


AMPLITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0)


@dataclass
class Scale:
    """What the network says, on average, of held-out renders bent by known amplitudes: its own test, and its scale.

    Attributes:
        amplitudes, said: pixels, both rising.
        error: its mean absolute error over all of these renders, in pixels.
    """

    amplitudes: tuple[float, ...]
    said: tuple[float, ...]
    error: float

    def pixels(self, said: float) -> float:
        """The amplitude of renders of which the network says the same; the ends of the scale beyond it."""
        return float(np.interp(said, self.said, self.amplitudes))


@torch.no_grad()
def say(model: ShapeError, cut: Tensor, side: Tensor) -> Tensor:
    """What the network says of crops (N, 3, 64, 64) with these sides (N,), in pixels (N,)."""
    return torch.cat([model(x.float()) for x in cut.split(256)]) * side


def scale(model: ShapeError, spoilable: Spoilable, amplitudes: Sequence[float] = AMPLITUDES) -> Scale:
    """The network's scale, measured on renders that it was not trained on."""
    said, errors = [], []
    for i, amplitude in enumerate(amplitudes):
        cut, side, amount = bent(spoilable, i, amplitude)
        found = say(model, cut, side)
        said.append(float(found.mean()))
        errors.append(float((found - amount).abs().mean()))
    rising = np.maximum.accumulate(said)
    return Scale(tuple(amplitudes), tuple(float(v) for v in rising), float(np.mean(errors)))


def of_things(
    model: ShapeError, pictures: Tensor, boxes: Sequence[Sequence[float]], kinds: Sequence[str], measured: Scale
) -> dict[str, float]:
    """How far things are bent, in pixels, by kind and in "all": one in each picture (N, 3, 128, 128), at its box."""
    said = say(model, *crops(pictures, torch.tensor([list(box) for box in boxes])))
    found = {"all": measured.pixels(float(said.mean()))}
    for kind in KINDS:
        if some := [i for i, k in enumerate(kinds) if k == kind]:
            found[kind] = measured.pixels(float(said[some].mean()))
    return found
