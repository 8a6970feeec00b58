"""The autoencoder's batches and losses."""

from __future__ import annotations

import pytest
import torch

from companion.metrics import pictures_to_tensor
from companion.pretraining.vae import (
    FEATURE_MATCHING,
    KL_WEIGHT,
    THING,
    Discriminator,
    Players,
    batch_of,
    make_vae,
    pairs_of,
    patches,
    pca,
    pieces,
    sharp_loss,
    squared_error,
    vae_loss,
)
from companion.tabletop.samples import held_out


def test_pca_is_the_best_linear_code():
    pictures = torch.as_tensor(held_out(40)[0])
    z = pca(pictures)(pictures_to_tensor(pictures))
    assert z.shape == (40, 4, 16, 16)
    flat = z.permute(1, 0, 2, 3).flatten(1)
    assert torch.allclose(torch.cov(flat), torch.eye(4), atol=0.02)
    # Its least-squares error is the energy in the discarded singular values.
    p = patches(pictures_to_tensor(pictures)).reshape(-1, 192)
    p = p - p.mean(0)
    code = torch.cat([z.permute(0, 2, 3, 1).reshape(-1, 4)], 1)
    left = p - code @ torch.linalg.lstsq(code, p).solution
    assert float((left**2).sum()) == pytest.approx(float((torch.linalg.svdvals(p)[4:] ** 2).sum()), rel=1e-2)


def test_the_autoencoder_s_bfloat16_gradient_is_nearly_that_of_single_precision():
    pictures, gradients = torch.as_tensor(held_out(8)[0]), []
    for bfloat16 in (False, True):
        vae = make_vae()
        vae_loss(pictures, 0, bfloat16=bfloat16)(vae, torch.Generator().manual_seed(1), 1).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in vae.parameters()]))
    assert gradients[1].dtype == torch.float32
    assert torch.cosine_similarity(*gradients, dim=0) > 0.98


def test_the_error_after_shrinking_is_added_to_the_autoencoder_s_loss():
    pictures, vae = torch.as_tensor(held_out(8)[0]), make_vae()

    def loss(equivariance: float) -> float:
        return vae_loss(pictures, 0, equivariance=equivariance)(vae, torch.Generator().manual_seed(1), 1).item()

    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        x, _ = batch_of(pictures, generator, 1, 8)
        posterior = vae.encode(x).latent_dist
        z = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator)
        scale = (0.5, 0.75)[int(torch.randint(2, (), generator=generator))]
        small_z, small_x = (
            torch.nn.functional.interpolate(v, scale_factor=scale, mode="bicubic", antialias=True) for v in (z, x)
        )
        extra = float(((vae.decode(small_z).sample - small_x) ** 2).mean())
    assert loss(0.5) - loss(0) == pytest.approx(0.5 * extra, rel=1e-4)


def test_crops_show_things_and_say_where_they_are():
    # White squares that are the things, in black pictures: the picture itself says where they are.
    segments = torch.ones(6, 128, 128, dtype=torch.uint8)
    for i in range(6):
        segments[i, 10 + 15 * i : 18 + 15 * i, 100 - 12 * i : 108 - 12 * i] = 2 + i % 2
    pictures = ((segments >= 2) * 255).to(torch.uint8)[..., None].expand(-1, -1, -1, 3)
    x, thing = pieces(pictures, torch.Generator().manual_seed(0), 200, 64, segments)
    assert x.shape == (200, 3, 64, 64) and thing.shape == (200, 1, 64, 64)
    white = (x[:, :1] + 1) / 2
    assert (thing >= white).all() and (thing.max() == 1) and (thing.min() == 0)
    # The outline is a pixel wide: ten pixels across where eight are white, unless the crop ends there.
    whole = (white == 1).sum((1, 2, 3)) == 64
    assert whole.any() and set(thing[whole].sum((1, 2, 3)).tolist()) <= {100.0, 90.0, 81.0}
    blind, nowhere = pieces(pictures, torch.Generator().manual_seed(0), 200, 64)
    assert not nowhere.any()
    shows = [(v > 0).any((1, 2, 3)).float().mean() for v in (white, (blind[:, :1] + 1) / 2)]
    assert shows[0] > 0.85 > 0.75 > shows[1]


def test_errors_on_things_count_more():
    x, thing = torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 4)
    thing[..., :2, :] = 1
    assert squared_error(x + 0.5, x, thing).item() == pytest.approx(0.25 * (THING + 1) / 2)
    assert squared_error(x + 0.5, x, 0 * thing).item() == pytest.approx(0.25)


def test_decoder_and_discriminator_each_follow_their_own_loss():
    pictures = torch.as_tensor(held_out(4)[0])
    torch.manual_seed(0)
    players = Players(make_vae(), Discriminator())

    def gradients(sharpness: float) -> dict[str, torch.Tensor]:
        players.zero_grad(set_to_none=True)
        sharp_loss(pictures, sharpness, rise=1)(players, torch.Generator().manual_seed(1), 1).backward()
        return {k: p.grad.clone() for k, p in players.named_parameters() if p.grad is not None}

    plain, sharp = gradients(0.0), gradients(0.7)
    assert not any(k.startswith("discriminator") for k in plain)
    # By hand: the same crops and noise, the discriminator's hinge alone, and the decoder's two parts apart.
    generator = torch.Generator().manual_seed(1)
    x, thing = batch_of(pictures, generator, 1, 8)
    with torch.no_grad():
        z = players.vae.encode(x).latent_dist.mean
    y = players.vae.decode(z + 0.03 * z.std() * torch.randn(z.shape, generator=generator)).sample
    discriminator, decoder = players.discriminator, players.vae.decoder
    hinge = (1 - discriminator(x)[-1]).relu().mean() + (1 + discriminator(y.detach())[-1]).relu().mean()
    names, weights = zip(*discriminator.named_parameters(), strict=True)
    for name, g in zip(names, torch.autograd.grad(hinge, weights), strict=True):
        assert torch.allclose(sharp[f"discriminator.{name}"], g, rtol=1e-3, atol=1e-7)
    *real, _ = discriminator(x)
    *made, verdict = discriminator(y)
    alike = sum((a - b.detach()).abs().mean() for a, b in zip(made, real, strict=True)) / 3
    please = FEATURE_MATCHING * alike - verdict.mean()
    slopes = [torch.autograd.grad(v, y, retain_graph=True)[0] for v in (((y - x) ** 2).mean(), please)]
    towards = slopes[0] + 0.7 * slopes[0].norm() / slopes[1].norm() * slopes[1]
    weight = decoder.conv_out.weight
    (expected,) = torch.autograd.grad(y, weight, towards)
    assert torch.allclose(sharp["vae.decoder.conv_out.weight"], expected, rtol=1e-3, atol=1e-6)


def test_the_decoder_is_given_the_latents_of_its_very_pictures():
    pictures = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(6, 128, 128, 3) * 40
    latents = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 4, 16, 16)
    segments = (torch.arange(6) % 3).view(6, 1, 1).expand(6, 128, 128)
    x, thing, z = pairs_of(pictures, latents, segments, torch.Generator().manual_seed(0), 16)
    assert len(x) == 4  # as many pixels as 16 pieces of 64
    which = z[:, 0, 0, 0]
    assert len(which.unique()) > 1
    assert torch.allclose(x[:, 0, 0, 0], which * 40 / 127.5 - 1)
    assert torch.equal(thing[:, 0, 0, 0], (which % 3 == 2).float())
    # Every second step decodes them, the others the encoder's latents. The loss shows which.
    torch.manual_seed(0)
    players, z = Players(make_vae(), Discriminator()), torch.randn(6, 4, 16, 16)
    loss = sharp_loss(pictures, 0.0, 16, redrawn=z)
    x, thing, chosen = pairs_of(pictures, z, None, torch.Generator().manual_seed(1), 16)
    expected = squared_error(players.vae.decode(chosen).sample, x, thing)
    assert loss(players, torch.Generator().manual_seed(1), 1).item() == pytest.approx(expected.item(), rel=1e-5)
    plain = sharp_loss(pictures, 0.0, 16)
    second, alone = (v(players, torch.Generator().manual_seed(1), 2).item() for v in (loss, plain))
    assert second == alone


def test_noise_disturbs_what_is_decoded_by_at_most_its_level(monkeypatch):
    pictures, vae = torch.as_tensor(held_out(8)[0]), make_vae()
    decoded, decode = [], vae.decode
    monkeypatch.setattr(vae, "decode", lambda z: decoded.append(z) or decode(z))
    with torch.no_grad():
        plain, noisy = (
            vae_loss(pictures, 0, noise=level)(vae, torch.Generator().manual_seed(1), 1).item() for level in (0.0, 0.3)
        )
        # By hand: the same crops and the same draw of the posterior, then a level for each picture, then the noise.
        generator = torch.Generator().manual_seed(1)
        x, thing = batch_of(pictures, generator, 1, 8)
        posterior = vae.encode(x).latent_dist
        z = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator)
        level = 0.3 * torch.rand(8, 1, 1, 1, generator=generator)
        expected = z + level * z.std() * torch.randn(z.shape, generator=generator)
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        losses = [squared_error(decode(v).sample, x, thing) + KL_WEIGHT * kl for v in (z, expected)]
    assert torch.allclose(decoded[0], z, atol=1e-5) and torch.allclose(decoded[1], expected, atol=1e-5)
    assert [plain, noisy] == [pytest.approx(v.item(), rel=1e-4) for v in losses]
    added = (decoded[1] - decoded[0]).flatten(1).std(1) / z.std()
    assert torch.allclose(added, level.flatten(), rtol=0.2) and (added < 0.3 * 1.2).all() and added.std() > 0.03
