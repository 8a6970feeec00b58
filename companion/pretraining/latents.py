"""Latents of the training renders, encoded once, and where in them there are things."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from companion.files import written
from companion.metrics import pictures_to_tensor
from companion.pretraining.clip import halved
from companion.pretraining.vae import Discriminator, Players, freeze_encoder, make_vae
from companion.tabletop import dataset
from companion.training import load_weights


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: np.ndarray | Tensor, batch: int = 50) -> Tensor:
    """Scaled latents (N, 4, H/8, W/8), fp16, of uint8 pictures (N, H, W, 3)."""
    pictures = torch.as_tensor(pictures)
    mean = [vae.encode(pictures_to_tensor(p)).latent_dist.mean for p in pictures.split(batch)]
    return (torch.cat(mean) * vae.config.scaling_factor).half()


def cells(segments: np.ndarray | Tensor, factor: int = 8) -> Tensor:
    """Latent cells that a thing touches, uint8 (N, H/factor, W/factor), from labels (N, H, W); things are 2 and up."""
    things = (torch.as_tensor(segments) >= 2).float()[:, None]
    return F.max_pool2d(things, factor)[:, 0].byte()


def trained_vae(folder: Path) -> AutoencoderKL:
    """The trained autoencoder, with the factor that gives its latents variance 1."""
    # A decoder that was trained further has the same encoder, so the same latents.
    last, model = folder / "decoder.safetensors", load_weights(folder / "vae.safetensors", make_vae())
    if last.exists():
        load_weights(last, Players(freeze_encoder(model), Discriminator()))
    model.eval().requires_grad_(False)
    with np.load(dataset.shards(folder / "renders", "train")[0], allow_pickle=False) as z:
        pictures = z["picture"]
    with torch.no_grad():
        std = model.encode(pictures_to_tensor(pictures)).latent_dist.mean.std().item()
    model.register_to_config(scaling_factor=round(1 / std, 5))
    return model


def encoded_shards(folder: Path, size: int, count: int, split: str = "train") -> Iterator[Path]:
    """Latents of each shard of a split as .npy files beside it, made where they are missing or older than the
    autoencoder; and, as files that end in "-things.npy", the cells that things touch.
    """
    model, born = trained_vae(folder), (folder / "vae.safetensors").stat().st_mtime
    for path in dataset.shards(folder / "renders", split)[: -(-count // dataset.SHARD)]:
        out = folder / "latents" / f"{path.stem}-{size}.npy"
        things = out.with_name(f"{out.stem}-things.npy")
        if not (out.exists() and things.exists()) or out.stat().st_mtime < born:
            with np.load(path, allow_pickle=False) as z:
                pictures, segments = z["picture"], z["segments"]
            _save(things, cells(segments, segments.shape[-1] // size).numpy())
            _save(out, encode(model, halved(pictures) if size == 8 else pictures).numpy())
        yield out


def _save(path: Path, array: np.ndarray) -> None:
    with written(path) as temporary, temporary.open("wb") as f:
        np.save(f, array)


def cached(folder: Path, size: int, count: int, split: str = "train") -> tuple[Tensor, Tensor]:
    """All latents (count, 4, size, size) of a split's renders, encoding what is missing, and their things' cells
    (count, size, size).
    """
    paths = list(encoded_shards(folder, size, count, split))
    things = [p.with_name(f"{p.stem}-things.npy") for p in paths]
    latents, masks = (torch.from_numpy(np.concatenate([np.load(p) for p in some])[:count]) for some in (paths, things))
    return latents, masks
