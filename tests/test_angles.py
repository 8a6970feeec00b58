"""The toy autoencoder: its answers are what the formulas say, and it learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from companion.angles import Autoencoder, answers, patches, scale, train_autoencoder
from companion.models import seeded


def test_answers_are_those_of_each_neuron_to_each_patch():
    torch.manual_seed(0)
    conv, x = nn.Conv2d(3, 5, 4, 2, 1, bias=False).double(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    x[1, :, :4, :4] = 0
    inner, lengths, cosines = answers(conv, x)
    cut = F.unfold(x, 4, padding=1, stride=2)  # (2, 48, 16): a patch in each column
    neurons = conv.weight.detach().flatten(1)
    expected = torch.einsum("nd,bdp->bnp", neurons, cut).view(inner.shape)
    assert torch.allclose(inner, expected)
    sizes = (neurons.norm(dim=1)[None, :, None] * cut.norm(dim=1)[:, None]).view(inner.shape)
    assert torch.allclose(lengths, sizes) and torch.allclose(lengths * cosines, inner)
    assert cosines.abs().max() < 1 and not cosines[1, :, 0, 0].any(), "a patch of zeros has no direction"
    turned = nn.functional.conv2d(3 * x, conv.weight, None, 2, 1)
    assert torch.allclose(answers(conv, 3 * x)[2], cosines) and torch.allclose(turned, 3 * inner)


@pytest.mark.parametrize("options", [{"bias": True}, {"bias": False, "groups": 2}])
def test_answers_that_are_no_inner_products_are_refused(options):
    with pytest.raises(ValueError, match="not inner products with whole patches"):
        answers(nn.Conv2d(4, 4, 3, **options), torch.zeros(1, 4, 8, 8))


def test_the_scale_is_that_of_least_squares():
    features, noise = torch.randn(1000, generator=seeded(0)), torch.randn(1000, generator=seeded(1))
    wanted = 2.5 * features + 0.1 * noise
    best = scale(features, wanted)
    assert best == pytest.approx(float(torch.linalg.lstsq(features[:, None], wanted[:, None]).solution), rel=1e-5)
    assert best == pytest.approx(2.5, abs=0.02)


def test_it_learns_and_is_the_same_each_time():
    pictures = torch.randn(8, 3, 1, 1, generator=seeded(0)).tanh().expand(8, 3, 16, 16).contiguous()
    runs = [[t.loss for t in train_autoencoder(pictures, 40, batch=4)] for _ in range(2)]
    assert runs[0] == runs[1] and np.mean(runs[0][-5:]) < 0.3 * np.mean(runs[0][:5])
    *_, last = train_autoencoder(pictures, 3, batch=4)
    model = last.model
    assert isinstance(model, Autoencoder) and last.step == 3 and model(pictures).shape == pictures.shape
    inner, lengths, cosines = answers(model.bottleneck, model.encoder(pictures))
    assert torch.allclose(model.decoder(lengths * cosines), model(pictures), atol=1e-5)


def test_patches_are_of_the_photographs():
    light, dark = np.full((40, 60, 3), 255, np.uint8), np.zeros((30, 30, 3), np.uint8)
    found = patches([light, dark], 16, 20)
    assert found.shape == (20, 3, 16, 16) and {float(p.mean()) for p in found} == {-1.0, 1.0}
    again, other = patches([light, dark], 16, 20), patches([light, dark], 16, 20, seed=1)
    assert torch.equal(found, again) and not torch.equal(found, other)
