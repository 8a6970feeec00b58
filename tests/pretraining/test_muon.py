"""Muon: momentum whose matrices are orthogonalised."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from companion.pretraining.muon import Muon, muon, orthogonalise
from companion.pretraining.vae import make_vae


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


@pytest.mark.parametrize("shape", [(64, 64), (64, 96), (128, 64), (64, 576), (512, 64)])
@pytest.mark.parametrize("decades", [1, 3, 6])
def test_bfloat16_is_safe_for_gradients_of_any_condition(shape, decades):
    torch.manual_seed(0)
    m, n = shape
    u, v = (torch.linalg.qr(torch.randn(k, min(shape)))[0] for k in shape)
    g = (u * torch.logspace(0, -decades, min(m, n))) @ v.T
    coarse, fine = orthogonalise(g[None], bfloat16=True), orthogonalise(g[None])
    assert coarse.dtype == torch.float32 and torch.linalg.svdvals(coarse[0]).max() < 1.3
    assert torch.nn.functional.cosine_similarity(coarse.flatten(), fine.flatten(), dim=0) > 0.99


def test_muon_keeps_first_and_last_layers_and_vectors_for_adamw():
    vae = make_vae()
    optimizer = muon(vae, 1e-3, exclude=("conv_in", "conv_out."))
    names = {id(p): n for n, p in vae.named_parameters()}
    hidden = {names[id(p)] for p in optimizer.param_groups[0]["params"]}
    assert "decoder.mid_block.resnets.0.conv1.weight" in hidden and "decoder.conv_out.weight" not in hidden
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(names)
