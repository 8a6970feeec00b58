"""The autoencoder of the miniature: a stock AutoencoderKL (factor 8, 4 channels), and how it is trained.

Most steps see 64-pixel pieces (random crops, and whole pictures at half size, since the U-Net starts on those), the
rest whole pictures. Pieces are four times cheaper, and hardly hurt the decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn
from torch.nn import functional as F

from companion.metrics import pictures_to_tensor
from companion.pretraining.muon import muon
from companion.training import Progress, train_averaged

CONFIG = dict(
    in_channels=3,
    out_channels=3,
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=(16, 32, 64, 128),
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=8,
    sample_size=128,
)
THING = 5.0  # weight of a pixel of a thing
KL_WEIGHT = 3e-5  # against a squared error of about 2e-3 on pictures in [-1, 1]
FEATURE_MATCHING = 2.0  # weight of the discriminator's features over its verdict's; Wang et al. (2018) use 10


def make_vae(seed: int = 0, **changes) -> AutoencoderKL:
    """An untrained autoencoder: pictures (B, 3, H, W) in [-1, 1] to latents (B, 4, H/8, W/8)."""
    torch.manual_seed(seed)
    return AutoencoderKL(**{**CONFIG, **changes})


def pieces(
    pictures: Tensor, generator: torch.Generator, batch: int, size: int, segments: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A random batch (B, 3, size, size) in [-1, 1] from uint8 (N, H, W, 3), and where in it there are things.

    They are crops, a quarter of them from pictures at half size, and half are mirrored. With `segments` (N, H, W), in
    which things have labels from 2 on, two crops in three have a thing in or near their middle, and the second result
    (B, 1, size, size) is 1 on things and their outlines, a pixel around; without, it is 0.
    """
    n, h, w, _ = pictures.shape
    index = torch.randint(n, (batch,), generator=generator)
    draw = torch.rand(batch, 6, generator=generator).tolist()
    out = []
    for i, (how, top, left, mirror, focus, which) in zip(index.tolist(), draw, strict=True):
        x = pictures_to_tensor(pictures[i : i + 1])
        thing = torch.zeros(1, 1, h, w)
        if segments is not None:
            thing = F.max_pool2d((segments[i] >= 2).float()[None, None], 3, 1, 1)
        if size < h and how < 0.25:
            x, thing = F.avg_pool2d(x, 2), F.avg_pool2d(thing, 2)
        room_y, room_x = x.shape[2] - size + 1, x.shape[3] - size + 1
        y0, x0 = int(top * room_y), int(left * room_x)
        if focus < 2 / 3 and len(spots := thing[0, 0].nonzero()):
            # A pixel of a thing, anywhere in the middle half of the crop.
            y, x_ = spots[int(which * len(spots))].tolist()
            y0 = min(max(0, int(y - size * (0.25 + 0.5 * top))), room_y - 1)
            x0 = min(max(0, int(x_ - size * (0.25 + 0.5 * left))), room_x - 1)
        both = torch.cat([x, thing], 1)[..., y0 : y0 + size, x0 : x0 + size]
        out.append(both.flip(-1) if mirror < 0.5 else both)
    both = torch.cat(out)
    return both[:, :3], both[:, 3:]


def batch_of(
    pictures: Tensor,
    generator: torch.Generator,
    step: int,
    batch: int,
    size: int = 64,
    whole_every: int = 6,
    segments: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The batch of a step and where its things are (see `pieces`): `batch` pieces of `size` pixels or, each
    `whole_every`-th step, as many pixels of whole pictures.
    """
    if step % whole_every:
        return pieces(pictures, generator, batch, size, segments)
    full = pictures.shape[1]
    return pieces(pictures, generator, max(1, batch * size**2 // full**2), full, segments)


def pairs_of(
    pictures: Tensor, latents: Tensor, segments: Tensor | None, generator: torch.Generator, batch: int, size: int = 64
) -> tuple[Tensor, Tensor, Tensor]:
    """Whole pictures, where their things are, and their given latents: as many pixels as `batch` pieces of `size`."""
    index = torch.randint(len(pictures), (max(1, batch * size**2 // pictures.shape[1] ** 2),), generator=generator)
    x = pictures_to_tensor(pictures[index])
    thing = torch.zeros_like(x[:, :1])
    if segments is not None:
        thing = F.max_pool2d((segments[index] >= 2).float()[:, None], 3, 1, 1)
    return x, thing, latents[index].float()


def squared_error(y: Tensor, x: Tensor, thing: Tensor) -> Tensor:
    """Mean squared error in which pixels of things count `THING` times: they are a ninth of all pixels, but what people
    look at. (Gafni et al. 2022, arXiv 2203.13131, do so for faces.)
    """
    return ((1 + (THING - 1) * thing) * (y - x) ** 2).mean()


def patches(x: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) as their 8 x 8 patches (B, H/8, W/8, 192)."""
    b, c, h, w = x.shape
    return x.view(b, c, h // 8, 8, w // 8, 8).permute(0, 2, 4, 1, 3, 5).reshape(b, h // 8, w // 8, c * 64)


def pca(pictures: Tensor, components: int = 4, most: int = 2000) -> Callable[[Tensor], Tensor]:
    """The linear encoder to beat: the first principal components of 8 x 8 patches, scaled to variance 1.

    Returns a function from pictures (B, 3, H, W) in [-1, 1] to (B, components, H/8, W/8).
    """
    some = pictures[:: max(1, len(pictures) // most)]
    data = torch.cat([patches(pictures_to_tensor(p)).reshape(-1, 192) for p in some.split(100)])
    mean = data.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((data - mean).T))
    project = vectors.flip(1)[:, :components] / values.flip(0)[:components].sqrt()
    return lambda x: ((patches(x) - mean) @ project).permute(0, 3, 1, 2)


def vae_loss(
    pictures: Tensor,
    warm: int,
    batch: int = 8,
    size: int = 64,
    whole_every: int = 6,
    bfloat16: bool = False,
    equivariance: float = 0.0,
    segments: Tensor | None = None,
    noise: float = 0.0,
) -> Callable[[AutoencoderKL, torch.Generator, int], Tensor]:
    """The loss of a step: squared error plus a little KL divergence; each `whole_every`-th step sees whole pictures.

    `equivariance` is the weight of an added term: the squared error between a shrunk picture and the decoding of its
    shrunk latents. Latents that can be shrunk have less fine grain, which a diffusion model finds hard to learn
    (Skorokhodov et al. 2025, arXiv 2502.14831; Kouzelis et al. 2025, arXiv 2502.09509).

    `noise` is the most noise, in standard deviations of the latents, added to them before decoding, so that they
    tolerate small errors of the diffusion model (Yang et al. 2025, arXiv 2507.15856).

    In the first `warm` steps the two halves learn separately: the encoder to give the principal components of patches,
    the decoder to invert them. Learning both at once from scratch is far slower (20 dB against 26 dB in the same time).
    """
    linear = pca(pictures)

    def loss(vae: AutoencoderKL, generator: torch.Generator, step: int) -> Tensor:
        x, thing = batch_of(pictures, generator, step, batch, size, whole_every, segments)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            posterior = vae.encode(x).latent_dist
        posterior = DiagonalGaussianDistribution(posterior.parameters.float())
        eps = torch.randn(posterior.mean.shape, generator=generator)
        if step < warm:
            z = linear(x)
            halves = F.mse_loss(posterior.mean, z) + 0.01 * ((posterior.logvar + 6) ** 2).mean()
            return F.mse_loss(vae.decode(z + 0.05 * eps).sample, x) + halves
        z = posterior.mean + posterior.std * eps
        if noise:
            level = noise * torch.rand(len(z), 1, 1, 1, generator=generator)
            z = z + level * z.detach().std() * torch.randn(z.shape, generator=generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            y = vae.decode(z).sample.float()
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        value = squared_error(y, x, thing) + KL_WEIGHT * kl
        if equivariance:
            scale = (0.5, 0.75)[int(torch.randint(2, (), generator=generator))]
            z, x = (F.interpolate(v, scale_factor=scale, mode="bicubic", antialias=True) for v in (z, x))
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                y = vae.decode(z).sample.float()
            value = value + equivariance * F.mse_loss(y, x)
        return value

    return loss


def train_vae(
    pictures,
    steps: int,
    *,
    lr: float = 2e-3,
    batch: int = 8,
    warm: int = 500,
    bfloat16: bool = False,
    equivariance: float = 0.0,
    noise: float = 0.0,
    segments=None,
    seed: int = 0,
    config: dict | None = None,
    **options: Any,
) -> Iterator[tuple[Progress, AutoencoderKL]]:
    """Train the autoencoder on uint8 pictures (N, H, W, 3); yields progress and the moving average.

    Args:
        segments: labels (N, H, W) of the pictures' pixels, so errors on things count more (see `pieces`).
        warm: steps in which the halves learn separately (see `vae_loss`); 0 for weights that are already trained.
        bfloat16: multiply in bfloat16: 1.4 times as fast on CPUs with AVX-512 BF16, slower on others.
        equivariance: weight of the error after shrinking (see `vae_loss`).
        noise: largest noise in the latents that are decoded, in their standard deviations (see `vae_loss`).
    """
    vae = make_vae(seed, **(config or {}))
    optimizer = muon(vae, lr, exclude=("conv_in", "conv_out."))
    segments = None if segments is None else torch.as_tensor(segments)
    loss = vae_loss(
        torch.as_tensor(pictures),
        warm,
        batch,
        bfloat16=bfloat16,
        equivariance=equivariance,
        segments=segments,
        noise=noise,
    )
    return train_averaged(vae, loss, optimizer, steps, warmup=50, ema_decay=0.995, seed=seed, **options)


class Discriminator(nn.Module):
    """Tells renders from decoded pictures, patch by patch (Isola et al. 2017, arXiv 1611.07004): the opponent.

    `forward` takes pictures (B, 3, H, W) and returns a list of features. The last is the verdict (B, 1, H/4, W/4),
    positive for a render; each of its numbers sees about 26 x 26 pixels.
    """

    def __init__(self, widths: tuple[int, ...] = (32, 64, 96)):
        super().__init__()
        self.stages = nn.ModuleList()
        for i, (a, b) in enumerate(zip((3, *widths[:-1]), widths, strict=True)):
            halve = i < 2
            conv = nn.Conv2d(a, b, 4 if halve else 3, 2 if halve else 1, 1)
            self.stages.append(nn.Sequential(conv, nn.LeakyReLU(0.2)))
        self.verdict = nn.Conv2d(widths[-1], 1, 3, padding=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return [*features, self.verdict(x)]


class Players(nn.Module):
    """An autoencoder and its discriminator, trained together."""

    def __init__(self, vae: AutoencoderKL, discriminator: Discriminator):
        super().__init__()
        self.vae, self.discriminator = vae, discriminator


def sharp_loss(
    pictures: Tensor,
    sharpness: float,
    batch: int = 8,
    bfloat16: bool = False,
    rise: int = 200,
    segments: Tensor | None = None,
    redrawn: Tensor | None = None,
) -> Callable[[Players, torch.Generator, int], Tensor]:
    """The loss of a decoder step: squared error, and a discriminator that the decoder should learn to fool.

    Squared error alone asks for the mean of all pictures that a latent may stand for: a blurred one. As in Stable
    Diffusion's autoencoder (Rombach et al. 2022, arXiv 2112.10752, appendix G; Esser et al. 2021, arXiv 2012.09841) a
    patch discriminator with a hinge loss learns too, and the decoder tries to pass for a renderer. Feature matching
    (Wang et al. 2018, arXiv 1711.11585: the decoded picture should give the same inner features of the discriminator
    as the original) replaces a perceptual loss, as no network here was trained on photographs.

    Args:
        sharpness: length of the discriminator's gradient at the picture, relative to that of the plain squared error,
            in which all pixels count alike (after equation 7 of Esser et al.).
        rise: the steps over which that weight grows from 0, while the discriminator still knows little.
        redrawn: latents (N, 4, H/8, W/8) of the whole pictures as a U-Net redrew them, which every second step decodes
            instead of the encoder's own, so the decoder learns to fix the U-Net's errors.
    """

    def loss(model: Players, generator: torch.Generator, step: int) -> Tensor:
        if redrawn is not None and step % 2:
            x, thing, z = pairs_of(pictures, redrawn, segments, generator, batch)
        else:
            x, thing = batch_of(pictures, generator, step, batch, segments=segments)
            with torch.no_grad():
                z = model.vae.encode(x).latent_dist.mean
            z = z + 0.03 * z.std() * torch.randn(z.shape, generator=generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            y = model.vae.decode(z).sample.float()
        error = squared_error(y, x, thing)
        if not sharpness:
            return error
        frozen = {k: v.detach() for k, v in model.discriminator.named_parameters()}
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            *real, said_real = model.discriminator(x)
            said_made = model.discriminator(y.detach())[-1]
            *made, pleased = torch.func.functional_call(model.discriminator, frozen, y)
        hinge = F.relu(1 - said_real.float()).mean() + F.relu(1 + said_made.float()).mean()
        alike = sum(F.l1_loss(a.float(), b.detach().float()) for a, b in zip(made, real, strict=True)) / len(real)
        please = FEATURE_MATCHING * alike - pleased.float().mean()
        (slope,) = torch.autograd.grad(please, y, retain_graph=True)
        length = (2 * (y - x) / y.numel()).detach().norm() / slope.norm().clamp(min=1e-12)
        return error + sharpness * min(1.0, step / rise) * length * please + hinge

    return loss


def freeze_encoder(vae: AutoencoderKL) -> AutoencoderKL:
    """Freeze all but the decoder; returns the autoencoder itself."""
    for name, p in vae.named_parameters():
        p.requires_grad_(name.startswith(("decoder", "post_quant_conv")))
    return vae


def train_decoder(
    pictures,
    vae: AutoencoderKL,
    steps: int,
    *,
    lr: float = 2e-3,
    sharpness: float = 0.0,
    segments=None,
    redrawn: Tensor | None = None,
    batch: int = 8,
    bfloat16: bool = False,
    seed: int = 1,
    **options: Any,
) -> Iterator[tuple[Progress, AutoencoderKL]]:
    """Train the decoder of a trained autoencoder further, with its encoder frozen, for sharper pictures.

    A U-Net trained on its latents stays valid, as it did when Stable Diffusion's decoder was finetuned. With
    `sharpness` a discriminator is trained too; the checkpoint holds both, as `vae.` and `discriminator.`. See
    `sharp_loss`, also for `redrawn`.
    """
    torch.manual_seed(seed)
    model = Players(freeze_encoder(vae), Discriminator())
    segments = None if segments is None else torch.as_tensor(segments)
    loss = sharp_loss(torch.as_tensor(pictures), sharpness, batch, bfloat16, segments=segments, redrawn=redrawn)
    optimizer = muon(model, lr, exclude=("conv_in", "conv_out.", "stages.0", "verdict"))
    run = train_averaged(model, loss, optimizer, steps, warmup=50, decay=0.5, ema_decay=0.998, seed=seed, **options)
    for progress, ema in run:
        yield progress, ema.vae


@torch.no_grad()
def rebuild(vae: AutoencoderKL, pictures, batch: int = 32) -> Tensor:
    """Pictures, uint8 (N, H, W, 3) or floats (N, 3, H, W) in [-1, 1], encoded and decoded without sampling noise.

    Returns floats (N, 3, H, W) in [-1, 1].
    """
    parts = torch.as_tensor(pictures).split(batch)
    found = [vae.decode(vae.encode(pictures_to_tensor(p)).latent_dist.mean).sample for p in parts]
    return torch.cat(found).clamp(-1, 1)
