"""Measures that need no model, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from companion.metrics import fine_contrast, frechet, psnr


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


def test_fine_contrast_by_hand():
    board = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2.0 - 1  # a chessboard: its Laplacian is -8 or 8
    pictures = torch.stack([board, torch.zeros(16, 16)])[:, None].expand(-1, 3, -1, -1)
    n = 14 * 14
    assert fine_contrast(pictures) == pytest.approx(64 * n / (n - 1) / 2)
