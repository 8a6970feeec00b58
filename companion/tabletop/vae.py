"""The autoencoder of the miniature: a stock AutoencoderKL (factor 8, 4 channels), and how it is trained.

Most steps see 64-pixel pieces (random crops, and whole pictures at half size, since the U-Net starts on those), the
rest whole pictures: four times cheaper, and a convolutional decoder hardly minds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor
from torch.nn import functional as F

from companion.tabletop.muon import muon
from companion.training import Progress, ema_copy, train

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
KL_WEIGHT = 3e-5  # against a squared error of about 2e-3 on pictures in [-1, 1]


def make_vae(seed: int = 0, **changes) -> AutoencoderKL:
    """An untrained autoencoder: pictures (B, 3, H, W) in [-1, 1] to latents (B, 4, H/8, W/8)."""
    torch.manual_seed(seed)
    return AutoencoderKL(**{**CONFIG, **changes})


def to_tensor(pictures) -> Tensor:
    """uint8 (B, H, W, 3) to float (B, 3, H, W) in [-1, 1]."""
    return torch.as_tensor(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def pieces(pictures: Tensor, generator: torch.Generator, batch: int, size: int) -> Tensor:
    """A random batch (B, 3, size, size) in [-1, 1] from uint8 (N, H, W, 3).

    They are crops, a quarter of them of the halved picture, and half of all mirrored.
    """
    n, h, w, _ = pictures.shape
    index = torch.randint(n, (batch,), generator=generator)
    draw = torch.rand(batch, 4, generator=generator).tolist()
    out = []
    for i, (how, top, left, mirror) in zip(index.tolist(), draw, strict=True):
        x = to_tensor(pictures[i : i + 1])
        if size < h and how < 0.25:
            x = F.avg_pool2d(x, 2)
        y0, x0 = int(top * (x.shape[2] - size + 1)), int(left * (x.shape[3] - size + 1))
        x = x[..., y0 : y0 + size, x0 : x0 + size]
        out.append(x.flip(-1) if mirror < 0.5 else x)
    return torch.cat(out)


def batch_of(
    pictures: Tensor, generator: torch.Generator, step: int, batch: int, size: int = 64, whole_every: int = 6
) -> Tensor:
    """The batch of a step: `batch` pieces of `size` pixels or, each `whole_every`-th step, as many pixels of whole
    pictures.
    """
    if step % whole_every:
        return pieces(pictures, generator, batch, size)
    full = pictures.shape[1]
    return pieces(pictures, generator, max(1, batch * size**2 // full**2), full)


def patches(x: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) as their 8 x 8 patches (B, H/8, W/8, 192)."""
    b, c, h, w = x.shape
    return x.view(b, c, h // 8, 8, w // 8, 8).permute(0, 2, 4, 1, 3, 5).reshape(b, h // 8, w // 8, c * 64)


def pca(pictures: Tensor, components: int = 4, most: int = 2000) -> Callable[[Tensor], Tensor]:
    """The linear encoder to beat: the first principal components of 8 x 8 patches, scaled to variance 1.

    Returns a function from pictures (B, 3, H, W) in [-1, 1] to (B, components, H/8, W/8).
    """
    some = pictures[:: max(1, len(pictures) // most)]
    data = torch.cat([patches(to_tensor(p)).reshape(-1, 192) for p in some.split(100)])
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
) -> Callable:
    """The loss of a step: squared error plus a little KL divergence; each `whole_every`-th step sees whole pictures.

    With `equivariance`, that many times the squared error between a shrunk picture and what the decoder makes of the
    shrunk latents is added. Latents that may be shrunk have less fine grain, which is what a diffusion model finds hard
    to learn (Skorokhodov et al. 2025, arXiv 2502.14831; Kouzelis et al. 2025, arXiv 2502.09509).

    In the first `warm` steps the two halves learn apart: the encoder to give the principal components of patches, the
    decoder to undo them. Learning both at once from nothing is far slower (20 dB against 26 dB after the same time).
    """
    linear = pca(pictures)

    def loss(vae: AutoencoderKL, generator: torch.Generator, step: int) -> Tensor:
        x = batch_of(pictures, generator, step, batch, size, whole_every)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            moments = vae.quant_conv(vae.encoder(x)).float()
        posterior = DiagonalGaussianDistribution(moments)
        noise = torch.randn(posterior.mean.shape, generator=generator)
        if step < warm:
            z = linear(x)
            halves = F.mse_loss(posterior.mean, z) + 0.01 * ((posterior.logvar + 6) ** 2).mean()
            return F.mse_loss(vae.decode(z + 0.05 * noise).sample, x) + halves
        z = posterior.mean + posterior.std * noise
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            y = vae.decode(z).sample.float()
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        value = F.mse_loss(y, x) + KL_WEIGHT * kl
        if equivariance:
            scale = (0.5, 0.75)[int(torch.randint(2, (), generator=generator))]
            z, x = (F.interpolate(v, scale_factor=scale, mode="bicubic", antialias=True) for v in (z, x))
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                y = vae.decode(z).sample.float()
            value = value + equivariance * F.mse_loss(y, x)
        return value

    return loss


def train_vae(
    pictures, steps: int, checkpoint: Path | None = None, log: Path | None = None, *, lr: float = 2e-3, batch: int = 8,
    warm: int = 500,
    bfloat16: bool = False, equivariance: float = 0.0, seed: int = 0, config: dict | None = None, **kwargs,
) -> Iterator[tuple[Progress, AutoencoderKL]]:  # fmt: skip
    """Train the autoencoder on uint8 pictures (N, H, W, 3); yields progress and the moving average.

    Args:
        warm: steps in which the two halves learn apart (see `vae_loss`); 0 for weights that have learned already.
        bfloat16: multiply in bfloat16: 1.4 times as fast on CPUs with AVX-512 BF16, slower on others.
        equivariance: weight of the error after shrinking (see `vae_loss`).
    """
    vae = make_vae(seed, **(config or {}))
    ema = ema_copy(vae)
    optimizer = muon(vae, lr, apart=("conv_in", "conv_out."))
    loss = vae_loss(torch.as_tensor(pictures), warm, batch, bfloat16=bfloat16, equivariance=equivariance)
    for progress in train(
        vae,
        loss,
        optimizer,
        steps,
        peak_lr=lr,
        warmup=50,
        ema=ema,
        ema_decay=0.995,
        seed=seed,
        checkpoint=checkpoint,
        log=log,
        **kwargs,
    ):
        yield progress, ema


def train_decoder(
    pictures, vae: AutoencoderKL, steps: int, checkpoint: Path | None = None, log: Path | None = None, *,
    lr: float = 2e-3,
    batch: int = 8, bfloat16: bool = False, seed: int = 1, **kwargs,
) -> Iterator[tuple[Progress, AutoencoderKL]]:  # fmt: skip
    """Train the decoder of a trained autoencoder further, its encoder frozen: sharper pictures of the same latents.

    So a U-Net trained on these latents stays valid, as it did when Stable Diffusion's decoder was finetuned.
    """
    pictures = torch.as_tensor(pictures)
    vae.requires_grad_(False)
    for part in (vae.decoder, vae.post_quant_conv):
        part.requires_grad_(True)

    def loss(model: AutoencoderKL, generator: torch.Generator, step: int) -> Tensor:
        x = batch_of(pictures, generator, step, batch)
        with torch.no_grad():
            z = model.encode(x).latent_dist.mean
        noise = torch.randn(z.shape, generator=generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            y = model.decode(z + 0.03 * z.std() * noise).sample.float()
        return F.mse_loss(y, x)

    ema = ema_copy(vae)
    optimizer = muon(vae, lr, apart=("conv_in", "conv_out."))
    for progress in train(
        vae, loss, optimizer, steps, peak_lr=lr, warmup=50, decay=0.5, ema=ema, ema_decay=0.998, seed=seed,
        checkpoint=checkpoint,
        log=log, **kwargs,
    ):  # fmt: skip
        yield progress, ema


@torch.no_grad()
def rebuild(vae: AutoencoderKL, pictures, batch: int = 32) -> Tensor:
    """decode(encode(picture)) of uint8 (N, H, W, 3), as floats (N, 3, H, W) about [-1, 1], without sampling noise."""
    parts = torch.as_tensor(pictures).split(batch)
    return torch.cat([vae.decode(vae.encode(to_tensor(p)).latent_dist.mean).sample for p in parts])
