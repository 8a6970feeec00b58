"""The test bed: its denoiser and its exact path, against independently known formulas."""

from __future__ import annotations

import pytest
import torch

from companion.mixture import Mixture, slope

MIXTURE = Mixture()
#: The highest noise level of Stable Diffusion.
HIGHEST = 14.6146


def test_the_mixtures_denoiser_is_the_gradient_of_its_logarithm():
    """Tweedie's formula: D(x, s) = x + s^2 d/dx log p(x)."""
    x = torch.linspace(-4, 4, 101, dtype=torch.float64, requires_grad=True)
    for s in (0.05, 0.7, 5.0):
        w, m, d = (torch.tensor(v).double() for v in (MIXTURE.weights, MIXTURE.means, MIXTURE.deviations))
        log_p = torch.logsumexp(w.log() - (d**2 + s**2).log() / 2 - (x[:, None] - m) ** 2 / (2 * (d**2 + s**2)), dim=-1)
        (gradient,) = torch.autograd.grad(log_p.sum(), x)
        assert torch.allclose(MIXTURE(x.detach(), s), (x + s**2 * gradient).detach(), atol=1e-8)


def test_the_exact_path_keeps_the_share_below_and_is_the_paths_limit():
    x = HIGHEST * torch.special.ndtri(torch.linspace(0.01, 0.99, 201).double())
    there = MIXTURE.exact(x, HIGHEST, 0.1)
    assert torch.allclose(MIXTURE.below(there, 0.1), MIXTURE.below(x, HIGHEST), atol=1e-10)
    bell = Mixture((1.0,), (0.7,), (0.5,))
    expected = 0.7 + (x - 0.7) * ((0.25 + 0.01) / (0.25 + HIGHEST**2)) ** 0.5
    assert torch.allclose(bell.exact(x, HIGHEST, 0.1), expected, atol=1e-9)


def test_the_slope_is_the_order_of_convergence():
    assert slope([10, 20, 40], [0.3 / n**2 for n in (10, 20, 40)]) == pytest.approx(2)
