"""Latents that are encoded once, and where in them there are things."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
import torch

from companion.metrics import pictures_to_tensor
from companion.pretraining.clip import halved
from companion.pretraining.latents import cached, cells, encode, encoded_shards, trained_vae
from companion.pretraining.vae import make_vae, train_decoder
from companion.tabletop import dataset
from companion.training import save_start

from .helpers import names_in, same_weights


@pytest.fixture
def folder(small_world, tmp_path):
    """A build folder with an untrained autoencoder."""
    shutil.copytree(small_world, tmp_path / "build")
    save_start(tmp_path / "build" / "vae.safetensors", make_vae())
    return tmp_path / "build"


def test_cells_that_a_thing_touches():
    segments = np.zeros((2, 16, 24), np.uint8)
    segments[0] = 1
    segments[0, 8, 7] = 2  # a single pixel is enough
    segments[1, 3:9, 15:17] = 3
    found = cells(segments)
    assert found.dtype == torch.uint8
    assert found.tolist() == [[[0, 0, 0], [1, 0, 0]], [[0, 1, 1], [0, 1, 1]]]
    assert cells(segments, 4)[0].nonzero().tolist() == [[2, 1]]


def test_encoded_latents_are_scaled_to_variance_one(folder):
    vae, pictures = trained_vae(folder), dataset.read(folder / "renders", "train", ("picture",))["picture"]
    latents = encode(vae, pictures, batch=7)
    assert latents.shape == (32, 4, 16, 16) and latents.dtype == torch.float16
    assert latents.float().std().item() == pytest.approx(1, abs=0.01)
    with torch.no_grad():
        mean = vae.encode(pictures_to_tensor(pictures[:2])).latent_dist.mean
    assert torch.allclose(latents[:2].float(), mean * vae.config.scaling_factor, atol=2e-3)


@pytest.mark.parametrize("size", [8, 16])
def test_cached_latents_are_those_of_the_renders_and_their_things(folder, size):
    seen = dataset.read(folder / "renders", "train", ("picture", "segments"), 20)
    latents, things = cached(folder, size, 20)
    pictures = halved(seen["picture"]) if size == 8 else seen["picture"]
    assert latents.shape == (20, 4, size, size)
    assert torch.allclose(latents.float(), encode(trained_vae(folder), pictures).float(), atol=2e-3)
    assert torch.equal(things, cells(seen["segments"], 128 // size))
    assert things.float().mean() == 1 / 16, "of the made-up renders' cells"


def test_latents_are_encoded_again_when_the_autoencoder_is_newer(folder):
    def born() -> list[int]:
        return [path.stat().st_mtime_ns for path in encoded_shards(folder, 8, 20)]

    first = born()
    assert len(first) == 1 and born() == first, "what is there is left alone"
    later = folder.joinpath("vae.safetensors").stat().st_mtime + 100
    os.utime(folder / "vae.safetensors", (later, later))
    assert born() != first


def test_a_decoder_that_was_trained_further_has_the_encoder_that_it_was_trained_with(folder):
    before = trained_vae(folder)
    pictures = dataset.read(folder / "renders", "train", ("picture",), 4)["picture"]
    run = train_decoder(
        pictures, trained_vae(folder), 2, checkpoint=folder / "decoder.safetensors", sharpness=0.5, batch=2
    )
    *_, (_, ema) = run
    assert not any(".encoder." in name for name in names_in(folder / "decoder.safetensors"))
    after = trained_vae(folder)
    assert same_weights(after.encoder, before.encoder) and after.config.scaling_factor == before.config.scaling_factor
    assert same_weights(after.decoder, ema.decoder) and not same_weights(after.decoder, before.decoder)
