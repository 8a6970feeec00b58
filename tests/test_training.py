"""The training loop, on a line to fit, and the loss of diffusion."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn

from companion.training import Progress, ema_copy, lr_factor, min_snr_weight, train


def line() -> tuple[nn.Module, nn.Module]:
    """A model that is to learn a line, and its moving average."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    return model, ema_copy(model)


def fit_line(model: nn.Module, ema: nn.Module, steps: int, **options) -> Iterator[Progress]:
    def loss(m, generator, step):
        x = torch.randn(16, 3, generator=generator)
        return ((m(x) - x @ torch.tensor([[1.0], [-2.0], [0.5]])) ** 2).mean()

    return train(model, loss, torch.optim.AdamW(model.parameters(), lr=0.05), steps, ema=ema, **options)


def test_training_learns():
    model, ema = line()
    losses = [p.loss for p in fit_line(model, ema, 300)]
    assert losses[-1] < 1e-3 < losses[0]
    assert torch.allclose(model.weight, torch.tensor([[1.0, -2.0, 0.5]]), atol=0.05)


def test_training_broken_off_and_resumed_is_the_same_to_the_bit(tmp_path):
    model, ema = line()
    whole = [p.loss for p in fit_line(model, ema, 60, log=tmp_path / "whole.jsonl")]
    path = tmp_path / "c.safetensors"
    for p in fit_line(*line(), 60, checkpoint=path, every=0.0):
        if p.step == 23:
            break  # checkpoints are written each `every` seconds: here after each step
    again, ema_again = line()
    resumed = [p.loss for p in fit_line(again, ema_again, 60, checkpoint=path, every=0.0)]
    assert len(resumed) == 37 and resumed == whole[23:]
    assert torch.equal(model.weight, again.weight) and torch.equal(ema.weight, ema_again.weight)


def test_a_loss_that_is_not_finite_is_named_with_its_step():
    model = nn.Linear(1, 1)

    def loss(m, generator, step):
        return m(torch.ones(1, 1)).sum() * (float("nan") if step == 3 else 1.0)

    with pytest.raises(FloatingPointError, match="at step 3; lower the learning rate, which is 0.1"):
        list(train(model, loss, torch.optim.SGD(model.parameters(), lr=0.1), 10))


def test_the_learning_rate_warms_up_stays_and_falls_to_zero():
    factors = [lr_factor(s, 1000, warmup=100, decay=0.3) for s in range(1000)]
    assert factors[0] == pytest.approx(0.01) and factors[99:700] == [1.0] * 601
    assert all(a > b for a, b in zip(factors[701:], factors[702:], strict=False)) and factors[-1] < 1e-4


def test_each_group_keeps_its_own_learning_rate():
    model, seen = nn.Linear(3, 1), []
    groups = [{"params": [model.weight], "lr": 0.1}, {"params": [model.bias], "lr": 0.001}]
    optimizer = torch.optim.SGD(groups)
    for p in train(model, lambda m, generator, step: m(torch.ones(1, 3)).square().sum(), optimizer, 20, warmup=10):
        seen.append((p.lr, *(group["lr"] for group in optimizer.param_groups)))
    factors = [lr_factor(s, 20, warmup=10) for s in range(20)]
    assert seen == [pytest.approx((0.1 * f, 0.1 * f, 0.001 * f)) for f in factors]


def test_min_snr_weight_by_hand():
    scheduler = DDPMScheduler()
    t = torch.tensor([0, 400, 999])
    snr = scheduler.alphas_cumprod[t] / (1 - scheduler.alphas_cumprod[t])
    assert torch.allclose(min_snr_weight(scheduler, t), torch.minimum(snr, torch.tensor(5.0)) / snr)
    assert min_snr_weight(scheduler, t)[2] == 1
    assert torch.allclose(min_snr_weight(scheduler, t, 1.0), torch.minimum(snr, torch.tensor(1.0)) / snr)
