"""Training, the models' parts and the measures, on small sizes and against closed forms."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn

from companion.metrics import fine_contrast, frechet, psnr
from companion.pretraining.clip import make_clip
from companion.pretraining.command import text_tower, tokenizer
from companion.pretraining.muon import Muon, muon, orthogonalise
from companion.pretraining.report import load_tabletop
from companion.pretraining.unet import SCHEDULE, Conditioned, encode, make_unet, min_snr_weight, redrawn, unet_loss
from companion.pretraining.vae import (
    FEATURE_MATCHING,
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
from companion.tabletop import dataset
from companion.tabletop.caption import parse
from companion.tabletop.judge import FRONT, Judge, Reading, find_joints, judge_loss, targets
from companion.tabletop.samples import held_out
from companion.tabletop.scene import KINDS
from companion.training import ema_copy, learning_rate, train


def fit_line(steps: int, **kwargs) -> tuple[list[float], nn.Module, nn.Module]:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    ema = ema_copy(model)

    def loss(m, generator, step):
        x = torch.randn(16, 3, generator=generator)
        return ((m(x) - x @ torch.tensor([[1.0], [-2.0], [0.5]])) ** 2).mean()

    optimizer = torch.optim.AdamW(model.parameters())
    return [p.loss for p in train(model, loss, optimizer, steps, peak_lr=0.05, ema=ema, **kwargs)], model, ema


def test_training_learns():
    losses, model, _ = fit_line(300)
    assert losses[-1] < 1e-3 < losses[0]
    assert torch.allclose(model.weight, torch.tensor([[1.0, -2.0, 0.5]]), atol=0.05)


def test_training_broken_off_and_resumed_is_the_same_to_the_bit(tmp_path):
    whole, model, ema = fit_line(60, log=tmp_path / "whole.jsonl")
    path = tmp_path / "c.safetensors"
    torch.manual_seed(0)
    for p in train_steps(path):
        if p.step == 23:
            break  # checkpoints are written each `every` seconds: here after each step
    resumed, again, ema_again = fit_line(60, checkpoint=path, every=0.0)
    assert len(resumed) == 37 and resumed == whole[23:]
    assert torch.equal(model.weight, again.weight) and torch.equal(ema.weight, ema_again.weight)


def train_steps(path):
    model = nn.Linear(3, 1)
    ema = ema_copy(model)

    def loss(m, generator, step):
        x = torch.randn(16, 3, generator=generator)
        return ((m(x) - x @ torch.tensor([[1.0], [-2.0], [0.5]])) ** 2).mean()

    return train(
        model, loss, torch.optim.AdamW(model.parameters()), 60, peak_lr=0.05, ema=ema, checkpoint=path, every=0.0
    )


def test_a_loss_that_is_not_finite_is_named_with_its_step():
    model = nn.Linear(1, 1)

    def loss(m, generator, step):
        return m(torch.ones(1, 1)).sum() * (float("nan") if step == 3 else 1.0)

    with pytest.raises(FloatingPointError, match="at step 3; lower peak_lr=0.1"):
        list(train(model, loss, torch.optim.SGD(model.parameters()), 10, peak_lr=0.1))


def test_the_learning_rate_warms_up_stays_and_falls_to_zero():
    lr = [learning_rate(s, 1000, 1.0, warmup=100, decay=0.3) for s in range(1000)]
    assert lr[0] == pytest.approx(0.01) and lr[99:700] == [1.0] * 601
    assert all(a > b for a, b in zip(lr[701:], lr[702:], strict=False)) and lr[-1] < 1e-4


def test_orthogonalise_brings_singular_values_near_one():
    torch.manual_seed(0)
    for shape in ((2, 24, 60), (3, 60, 24), (1, 32, 32)):
        g = torch.randn(shape)
        made = orthogonalise(g)
        s = torch.linalg.svdvals(made)
        assert 0.5 < s.min() and s.max() < 1.3
        # Each on its own, by the paper's steps.
        for one, expected in zip(made, g / g.norm(dim=(1, 2), keepdim=True), strict=True):
            for _ in range(5):
                a = expected @ expected.T
                expected = 3.4445 * expected + (-4.7750 * a + 2.0315 * a @ a) @ expected
            assert torch.allclose(one, expected, atol=1e-4)


def test_muon_steps_matrices_along_the_orthogonal_factor_and_the_rest_as_adamw():
    torch.manual_seed(0)
    w, b = nn.Parameter(torch.randn(8, 16)), nn.Parameter(torch.randn(5))
    w.grad, b.grad = torch.randn(8, 16), torch.randn(5)
    reference = nn.Parameter(b.detach().clone())
    reference.grad = b.grad.clone()
    before = w.detach().clone()
    Muon([w], [b], lr=0.1, ratio=1.0, betas=(0.9, 0.99)).step()
    torch.optim.AdamW([reference], lr=0.1, betas=(0.9, 0.99), weight_decay=0.0).step()
    assert torch.allclose(b, reference, atol=1e-6)
    u, _, vh = torch.linalg.svd(w.grad, full_matrices=False)
    move = (before - w.detach()) / 0.1
    assert torch.nn.functional.cosine_similarity(move.flatten(), (u @ vh).flatten(), dim=0) > 0.97


def test_muon_keeps_first_and_last_layers_and_vectors_for_adamw():
    vae = make_vae()
    optimizer = muon(vae, 1e-3, apart=("conv_in", "conv_out."))
    names = {id(p): n for n, p in vae.named_parameters()}
    hidden = {names[id(p)] for p in optimizer.param_groups[0]["params"]}
    assert "decoder.mid_block.resnets.0.conv1.weight" in hidden and "decoder.conv_out.weight" not in hidden
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(names)


def test_pca_is_the_best_linear_code():
    pictures = torch.as_tensor(held_out(40)[0])
    z = pca(pictures)(pictures_to_tensor(pictures))
    assert z.shape == (40, 4, 16, 16)
    flat = z.permute(1, 0, 2, 3).flatten(1)
    assert torch.allclose(torch.cov(flat), torch.eye(4), atol=0.02)
    # Rebuilt by least squares it leaves as much as the discarded singular values hold.
    p = patches(pictures_to_tensor(pictures)).reshape(-1, 192)
    p = p - p.mean(0)
    code = torch.cat([z.permute(0, 2, 3, 1).reshape(-1, 4)], 1)
    left = p - code @ torch.linalg.lstsq(code, p).solution
    assert float((left**2).sum()) == pytest.approx(float((torch.linalg.svdvals(p)[4:] ** 2).sum()), rel=1e-2)


def test_min_snr_weight_by_hand():
    a = DDPMScheduler(**SCHEDULE).alphas_cumprod
    t = torch.tensor([0, 400, 999])
    snr = a[t] / (1 - a[t])
    assert torch.allclose(min_snr_weight(a, t), torch.minimum(snr, torch.tensor(5.0)) / snr)
    assert min_snr_weight(a, t)[2] == 1


def test_frechet_of_gaussians_is_the_closed_form():
    rng = np.random.default_rng(0)
    n, d = 40_000, 3
    scale = np.array([1.0, 2.0, 0.5])
    a, b = rng.normal(size=(n, d)), rng.normal(size=(n, d)) * scale + [1, 0, 0]
    exact = 1 + ((1 - scale) ** 2).sum()  # |mu|^2 + sum (s_a - s_b)^2 for diagonal covariances
    assert frechet(a, b) == pytest.approx(exact, rel=0.03)
    assert frechet(a, a) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="3 pictures are too few for 3 features; use at least 4"):
        frechet(a[:3], b)


def test_psnr_by_hand():
    a = np.zeros((2, 8, 8, 3), np.uint8)
    b = a.copy()
    b[0] += 51  # a fifth of the range: 10 log10(25) dB
    assert psnr(a, b)[0].item() == pytest.approx(13.979, abs=1e-3) and psnr(a, b)[1] > 100


def reading(kinds, finishes, front="neither", place="grass", time="day") -> Reading:
    return Reading(kinds, finishes, front, place, time, ((0.1, 0.1, 0.2, 0.2),) * len(kinds), 1.0)


@pytest.mark.parametrize(
    ("prompt", "seen", "wrong"),
    [
        ("a red ball on grass by day", reading(("ball",), ("red",)), set()),
        ("a red ball on grass by day", reading(("ball",), ("blue",)), {"finish"}),
        ("a red ball on snow", reading(("ball",), ("red",)), {"place"}),
        ("a ball", reading(("cube",), ("red",)), {"kind"}),
        ("a ball", reading(("ball", "ball"), ("red", "red")), {"count", "kind"}),
        ("a red ball left of a blue cube", reading(("ball", "cube"), ("red", "blue")), set()),
        ("a red ball right of a blue cube", reading(("ball", "cube"), ("red", "blue")), {"relation"}),
        ("a red ball right of a blue cube", reading(("cube", "ball"), ("blue", "red")), set()),
        ("a red ball in front of a blue cube", reading(("cube", "ball"), ("blue", "red"), FRONT[2]), set()),
        ("a red ball behind a blue cube", reading(("cube", "ball"), ("blue", "red"), FRONT[2]), {"relation"}),
        ("a red ball and a blue cube", reading(("cube", "ball"), ("blue", "red"), FRONT[1]), set()),
        ("a red ball and a blue cube", reading(("cube", "ball"), ("red", "blue")), {"finish"}),
    ],
)
def test_what_a_reading_meets_of_a_prompt(prompt, seen, wrong):
    result = seen.meets(parse(prompt))
    assert {k for k, v in result.items() if not v} - {"all"} == wrong
    assert result["all"] == (not wrong)


def flat_maps(n: int, size: int = 128) -> dict[str, np.ndarray]:
    """Maps of `n` renders in which nothing is to be seen, but for boxes that are all different."""
    return {
        "segments": np.full((n, size, size), 2, np.uint8),
        "depth": np.ones((n, size, size), np.float16),
        "normals": np.zeros((n, size, size, 3), np.int8),
        "joints": np.zeros((n, 2, 11, 3), np.float32),
        "boxes": np.arange(n * 8, dtype=np.float32).reshape(n, 2, 4),
    }


def test_the_targets_of_the_judge_go_from_left_to_right():
    scenes = held_out(60)[1]
    size = 128
    columns = flat_maps(60)
    t = targets(columns, scenes)
    for i, s in enumerate(scenes):
        left = min(s.things, key=lambda th: th.x)
        assert t["kind"][i, 0] == KINDS.index(left.kind)
        assert torch.allclose(t["boxes"][i, 0] * size, torch.tensor(columns["boxes"][i, s.things.index(left)]))
        assert (t["segments"][i] == 2 + KINDS.index(s.things[0].kind)).all()
        assert (t["kind"][i, 1] == -100) == (len(s.things) == 1)


def test_the_judge_gives_what_it_says_and_survives_saving(tmp_path):
    torch.manual_seed(0)
    judge = Judge().eval()
    x = torch.rand(3, 3, 128, 128) * 2 - 1
    out = judge(x)
    shapes = {k: tuple(v.shape) for k, v in out.items()}
    assert shapes["segments"] == (3, 12, 64, 64) and shapes["normals"] == (3, 3, 64, 64)
    assert shapes["kind"] == (3, 2, 10) and shapes["features"] == (3, 160)
    judge.save(tmp_path)
    again = Judge.load(tmp_path)(x)
    assert all(torch.allclose(out[k], again[k], atol=0.02) for k in out)
    assert len(judge.read(x)) == 3
    with pytest.raises(FileNotFoundError, match="companion build judge"):
        Judge.load(tmp_path / "nowhere")


def test_joints_are_found_at_the_peaks():
    logits = torch.full((1, 11, 64, 64), -9.0)
    logits[0, 4, 10, 20] = 9
    x, y, p = find_joints(logits)[0, 4].tolist()
    assert (x, y) == (41.0, 21.0) and p > 0.99


def test_bfloat16_gives_nearly_the_gradient_of_single_precision(tmp_path):
    words, (_, scenes) = tokenizer(tmp_path), held_out(8)
    latents = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    gradients = []
    for bfloat16 in (False, True):
        torch.manual_seed(0)
        loss = unet_loss(latents, scenes, words, 8, train_text=False, bfloat16=bfloat16)
        model = Conditioned(make_unet(), text_tower(make_clip(words)))
        loss(model, torch.Generator().manual_seed(1), 0).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.unet.parameters()]))
    assert gradients[1].dtype == torch.float32
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


def test_the_autoencoder_s_bfloat16_gradient_is_nearly_that_of_single_precision():
    pictures, gradients = torch.as_tensor(held_out(8)[0]), []
    for bfloat16 in (False, True):
        vae = make_vae()
        vae_loss(pictures, 0, bfloat16=bfloat16)(vae, torch.Generator().manual_seed(1), 1).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in vae.parameters()]))
    assert gradients[1].dtype == torch.float32
    assert torch.cosine_similarity(*gradients, dim=0) > 0.98


def test_the_judge_s_bfloat16_gradient_is_nearly_that_of_single_precision():
    pictures, scenes = held_out(8)
    target, gradients = targets(flat_maps(8), scenes), []
    for bfloat16 in (False, True):
        torch.manual_seed(0)
        judge = Judge()
        judge_loss(judge, pictures_to_tensor(pictures), target, bfloat16).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in judge.parameters()]))
    assert gradients[1].dtype == torch.float32
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


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


def test_fine_contrast_by_hand():
    board = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2.0 - 1  # a chessboard: its Laplacian is -8 or 8
    pictures = torch.stack([board, torch.zeros(16, 16)])[:, None].expand(-1, 3, -1, -1)
    n = 14 * 14
    assert fine_contrast(pictures) == pytest.approx(64 * n / (n - 1) / 2)


def test_decoder_and_critic_each_follow_their_own_loss():
    pictures = torch.as_tensor(held_out(4)[0])
    torch.manual_seed(0)
    players = Players(make_vae(), Discriminator())

    def gradients(sharpness: float) -> dict[str, torch.Tensor]:
        players.zero_grad(set_to_none=True)
        sharp_loss(pictures, sharpness, rise=1)(players, torch.Generator().manual_seed(1), 1).backward()
        return {k: p.grad.clone() for k, p in players.named_parameters() if p.grad is not None}

    plain, sharp = gradients(0.0), gradients(0.7)
    assert not any(k.startswith("critic") for k in plain)
    # By hand: the same crops and noise, the critic's hinge alone, and the decoder's two parts apart.
    generator = torch.Generator().manual_seed(1)
    x, thing = batch_of(pictures, generator, 1, 8)
    with torch.no_grad():
        z = players.vae.encode(x).latent_dist.mean
    y = players.vae.decode(z + 0.03 * z.std() * torch.randn(z.shape, generator=generator)).sample
    critic, decoder = players.critic, players.vae.decoder
    hinge = (1 - critic(x)[-1]).relu().mean() + (1 + critic(y.detach())[-1]).relu().mean()
    for p, g in zip(critic.parameters(), torch.autograd.grad(hinge, list(critic.parameters())), strict=True):
        name = next(k for k, v in critic.named_parameters() if v is p)
        assert torch.allclose(sharp[f"critic.{name}"], g, rtol=1e-3, atol=1e-7)
    *real, _ = critic(x)
    *made, verdict = critic(y)
    please = (
        FEATURE_MATCHING * sum((a - b.detach()).abs().mean() for a, b in zip(made, real, strict=True)) / 3
        - verdict.mean()
    )
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
    # Every second step decodes them; the others what the encoder gives. The loss shows which.
    torch.manual_seed(0)
    players, z = Players(make_vae(), Discriminator()), torch.randn(6, 4, 16, 16)
    loss = sharp_loss(pictures, 0.0, 16, redrawn=z)
    x, thing, chosen = pairs_of(pictures, z, None, torch.Generator().manual_seed(1), 16)
    expected = squared_error(players.vae.decode(chosen).sample, x, thing)
    assert loss(players, torch.Generator().manual_seed(1), 1).item() == pytest.approx(expected.item(), rel=1e-5)
    plain = sharp_loss(pictures, 0.0, 16)
    assert loss(players, torch.Generator().manual_seed(1), 2).item() == plain(
        players, torch.Generator().manual_seed(1), 2
    ).item()  # fmt: skip


def test_latents_are_redrawn_exactly_by_a_model_that_knows_them(tmp_path):
    words, (_, scenes) = tokenizer(tmp_path), held_out(5)
    x0, alphas, seen = torch.randn(5, 4, 8, 8), DDPMScheduler(**SCHEDULE).alphas_cumprod, []

    class Knowing(nn.Module):
        def forward(self, x, t, states):
            seen.append((t, states, x))
            a = alphas[t].view(-1, 1, 1, 1)
            return SimpleNamespace(sample=(x - a.sqrt() * x0[3 * (len(seen) > 3) :][: len(x)]) / (1 - a).sqrt())

    model = Conditioned(Knowing(), text_tower(make_clip(words)))
    again = torch.cat(list(redrawn(model, x0.half(), scenes, words, batch=3)))
    assert torch.allclose(again, x0, atol=1e-2)
    times = torch.stack([t for t, *_ in seen[:3]])
    assert (times[0] < 200).all() and (times[0] >= 20).all() and (times.diff(dim=0) < 0).all()
    a = alphas[times[0]].view(-1, 1, 1, 1)
    noise = (seen[0][2] - a.sqrt() * x0[:3]) / (1 - a).sqrt()
    assert noise.std().item() == pytest.approx(1, abs=0.1) and noise.mean().item() == pytest.approx(0, abs=0.1)
    assert seen[0][1].shape == (3, 32, 192)


def test_the_report_s_table_says_which_bars_are_reached():
    from companion.pretraining.report import table

    lines = table({"vae_psnr_db": 33.0, "frechet_ratio": 3.0, "clip_top1": 0.5, "load_seconds": 11.0}).splitlines()
    assert lines[2:] == [
        "| VAE: PSNR on 256 held-out renders | 33.00 dB | 34.00 dB ✗ | 32.00 dB ✓ |",
        "| CLIP: picture finds its caption among 256 held-out | 50.0% |  |  |",
        "| ... the first over the second | 3.0 | 3.0 ✓ | 6.0 ✓ |",
        "| Import and load | 11.0 s |  | 10.0 s ✗ |",
    ]


def test_curves_are_those_of_the_logs(tmp_path):
    from companion.pretraining.report import curves

    with pytest.raises(FileNotFoundError, match="has no logs; `companion build publish`"):
        curves(tmp_path)
    for name, rows in {
        "vae": [{"step": 100, "loss": 0.5, "seconds": 60}, {"step": 200, "loss": 0.25, "seconds": 180}],
        "unet16-measured": [
            {"step": 500, "error": 0.05, "error_untold": 0.06},
            {"step": 1000, "error": 0.04, "error_untold": 0.06, "frechet": 0.4, "all": 0.7},
            {"step": 2000, "frechet": 0.3, "all": 0.8},
        ],
    }.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = curves(tmp_path)
    drawn = {k: [line.get_xydata().tolist() for line in figure.axes[0].lines] for k, figure in made.items()}
    assert drawn == {
        "loss": [[[1, 1], [3, 0.5]]],
        "unet16-measured-error": [[[500, 0.05], [1000, 0.04]], [[500, 0.06], [1000, 0.06]]],
        "unet16-measured-frechet": [[[1000, 0.4], [2000, 0.3]]],
        "unet16-measured-prompts": [[[1000, 0.7], [2000, 0.8]]],
    }


def test_captions_help_the_published_model_on_held_out_renders(tmp_path):
    from companion.pretraining.command import held_out_error

    pipe, held = load_tabletop(), held_out(8)
    model = Conditioned(pipe.unet, pipe.text_encoder)
    found = held_out_error(model, pipe.vae, pipe.tokenizer, held, count=8)
    assert 0 < found["error"] < found["error_untold"] < 1
    # The exact noise at the timestep that it is told has no error, and half of it a quarter of the noise's variance.
    x0 = encode(pipe.vae, held[0]).float()
    a = DDPMScheduler(**SCHEDULE).alphas_cumprod

    def knowing(share: float):
        def unet(noisy, t, states):
            at = a[t].view(-1, 1, 1, 1)
            return SimpleNamespace(sample=share * (noisy - at.sqrt() * x0) / (1 - at).sqrt())

        return SimpleNamespace(unet=unet, text_encoder=pipe.text_encoder)

    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    for share, error in ((1.0, 0.0), (0.5, float((noise**2).mean()) / 4)):
        exact = held_out_error(knowing(share), pipe.vae, pipe.tokenizer, held, count=8)
        assert exact == {k: pytest.approx(error, abs=2e-5) for k in found}


def test_a_strip_needs_the_weights_of_its_commits():
    from companion.pretraining.report import strip

    with pytest.raises(ValueError, match="git has no data/models/tabletop of commit 'nowhere'"):
        strip({"first": "nowhere"})


@pytest.fixture(scope="module")
def small_world(tmp_path_factory):
    """A folder of renders made from the held-out pictures the course ships, for training a few steps."""
    folder = tmp_path_factory.mktemp("build")
    (folder / "renders").mkdir()
    pictures, scenes = held_out(32)
    n, size = pictures.shape[:2]
    columns = dict(
        picture=pictures,
        depth=np.full((n, size, size), 7, np.float16),
        normals=np.zeros((n, size, size, 3), np.int8),
        segments=np.ones((n, size, size), np.uint8),
        joints=np.zeros((n, 2, 11, 3), np.float32),
        boxes=np.full((n, 2, 4), 64, np.float32),
        edges=np.zeros((0, 4), np.float32),
        edge_counts=np.zeros(n, int),
        scenes=np.array([json.dumps(s.to_dict()) for s in scenes]),
    )
    for split in ("train", "val"):
        np.savez(dataset.shard_path(folder / "renders", split, 0), **columns)
    return folder


def run_build(folder, *args, kill_after: int | None = None) -> None:
    command = [sys.executable, "-m", "companion.pretraining.command", *args, "--folder", str(folder), "--threads", "1"]
    command += [] if args[0] == "latents" else ["--every", "0"]
    if kill_after is None:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return
    from companion.training import read_meta

    name = f"unet{args[args.index('--size') + 1]}" if args[0] == "unet" else args[0]
    path = folder / f"{name}.safetensors"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not (path.exists() and read_meta(path)["step"] >= kill_after):
        assert process.poll() is None, "the command ended before it could be killed"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_every_training_command_killed_and_resumed_equals_an_unbroken_run(small_world, tmp_path):
    import shutil

    from safetensors.torch import load_file

    from companion.training import read_meta

    count, steps = ("--count", "32"), 12
    commands = [
        ("vae", "--steps", str(steps), "--bfloat16", *count),
        ("clip", "--steps", str(steps), "--batch", "8", *count),
        ("judge", "--steps", str(steps), "--batch", "4", *count),
        ("unet", "--size", "8", "--steps", str(steps), "--batch", "4", *count),
        ("unet", "--size", "16", "--steps", str(steps), "--batch", "2", "--bfloat16", *count),
        ("decoder", "--steps", str(steps), "--sharpness", "0.5", "--mend", *count),
    ]
    folders = [tmp_path / "whole", tmp_path / "broken"]
    for folder in folders:
        shutil.copytree(small_world, folder)
    for command in commands:
        run_build(folders[0], *command)
        run_build(folders[1], *command, kill_after=3)
        name = f"unet{command[2]}" if command[0] == "unet" else command[0]
        stopped = read_meta(folders[1] / f"{name}.safetensors")["step"]
        assert 3 <= stopped < steps
        run_build(folders[1], *command)
        a, b = (load_file(f / f"{name}.safetensors") for f in folders)
        assert a.keys() == b.keys()
        worst = max(float((a[k].float() - b[k].float()).abs().max()) for k in a)
        assert worst == 0, f"{name} differs by {worst} after a kill at step {stopped}"


def test_half_trained_weights_are_kept_for_another_machine(tmp_path, monkeypatch):
    from safetensors.torch import load_file

    from companion import DATA
    from companion.files import damage
    from companion.pretraining import command as build
    from companion.training import load_weights, read_meta, save_checkpoint

    monkeypatch.setattr(build, "NEXT", tmp_path / "models" / "next")
    (tmp_path / "models").mkdir()
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
    judge = Judge.load(DATA / "models" / "judge")
    with torch.no_grad():
        next(judge.parameters()).mul_(1.5)
    save_checkpoint(folders[0] / "judge.safetensors", judge, judge, muon(judge, 1e-3), {"step": 7, "seconds": 1.0})
    build.keep(folders[0])
    assert [p.name for p in (tmp_path / "models" / "next").iterdir()] == ["judge.safetensors"]  # the only one trained
    assert len(load_file(tmp_path / "models" / "next" / "judge.safetensors")) == 1  # nor anything else of the judge
    assert damage(tmp_path / "models") == []
    build.adopt(folders[1])
    again = load_weights(folders[1] / "judge.safetensors", Judge()).state_dict()
    assert all(torch.equal(again[k], v.half().float()) for k, v in judge.state_dict().items())
    assert read_meta(folders[1] / "judge.safetensors")["step"] == 0
    vae = load_weights(folders[1] / "vae.safetensors", make_vae()).state_dict()  # not kept: the published one
    assert torch.equal(vae["decoder.conv_out.bias"], load_tabletop().vae.state_dict()["decoder.conv_out.bias"])


def test_published_weights_can_be_gone_on_from_and_own_ones_are_kept(tmp_path, monkeypatch):
    from safetensors.torch import load_file

    from companion import DATA
    from companion.pretraining import command as build
    from companion.training import load_weights, read_meta, save_start

    mine = make_vae()
    save_start(tmp_path / "vae.safetensors", mine)
    before = (tmp_path / "vae.safetensors").read_bytes()
    monkeypatch.setattr(build, "NEXT", tmp_path / "next")  # where nothing was kept
    build.adopt(tmp_path)
    assert (tmp_path / "vae.safetensors").read_bytes() == before
    published = load_file(DATA / "models" / "judge" / "model.safetensors")
    judge = load_weights(tmp_path / "judge.safetensors", Judge()).state_dict()
    assert all(torch.equal(judge[k], v.float()) for k, v in published.items())
    assert {p.stem for p in tmp_path.glob("*.safetensors")} == {"vae", "clip", "judge", "unet16"}
    assert read_meta(tmp_path / "unet16.safetensors")["step"] == 0
