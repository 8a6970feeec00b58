"""The energy of neurons is that of the definition, whatever the sizes; the measures beside it see what moves."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from companion import oft_vs_lora
from companion.energy import (
    angle_drift,
    energies,
    hyperspherical_energy,
    intruder_dimensions,
    orthogonality_error,
    weights,
)
from companion.models import seeded

FORMS = list(itertools.product((0, 1, 2, 0.5), (False, True), (False, True), (False, True)))


def by_definition(weight: torch.Tensor, s: float, half_space: bool, angular: bool, mean: bool) -> float:
    """Two nested loops, in double precision."""
    w = weight.double().flatten(1)
    w = w[w.any(1)]
    w = torch.cat([w, -w]) if half_space else w
    w = w / w.norm(dim=1, keepdim=True)
    total, n = 0.0, len(w)
    for i in range(n):
        for j in range(n):
            if i != j:
                z = float((w[i] - w[j]).norm())
                z = 2 * math.atan2(z, float((w[i] + w[j]).norm())) if angular else z
                total += -math.log(z) if s == 0 else z**-s
    return total / (n * (n - 1)) if mean else total


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed))


def rotation(d: int) -> torch.Tensor:
    return torch.linalg.qr(random(d, d, seed=5).double())[0]


# ---- Energy ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("s", "half_space", "angular", "mean"), FORMS)
def test_it_is_the_sum_over_all_pairs(s, half_space, angular, mean):
    weight = random(13, 2, 2, 2)
    expected = by_definition(weight, s, half_space, angular, mean)
    for chunk in (1, 5, 13, 500):
        found = hyperspherical_energy(weight, s, half_space, angular, mean=mean, chunk=chunk)
        assert found == pytest.approx(expected, rel=1e-6)
    assert hyperspherical_energy(weight.double(), s, half_space, angular, mean=mean) == pytest.approx(
        expected, rel=1e-12
    )


@pytest.mark.parametrize("angular", [False, True])
@pytest.mark.parametrize("half_space", [False, True])
@pytest.mark.parametrize("s", [0, 1, 2])
def test_neurons_that_nearly_coincide_are_measured_exactly(s, half_space, angular):
    weight = random(9, 6)
    weight[3] = 2 * weight[5] + 1e-5 * weight[0]
    weight[4] = -3 * weight[6] + 1e-4 * weight[1]
    weight[7] = 0
    weight[8] *= 1e-30
    weight[1] *= 1e30
    expected = by_definition(weight, s, half_space, angular, False)
    for chunk in (2, 128):
        assert hyperspherical_energy(weight, s, half_space, angular, chunk=chunk) == pytest.approx(expected, rel=1e-6)


def test_many_near_duplicates_are_split_to_bound_memory():
    """Two and a half million numbers in the differences of 300 neurons: more than one part."""
    weight = torch.ones(300, 64) + 1e-3 * random(300, 64)
    w = weight.double() / weight.double().norm(dim=1, keepdim=True)
    z = torch.pdist(w)
    assert hyperspherical_energy(weight) == pytest.approx(float((2 / z).sum()), rel=1e-6)


@pytest.mark.parametrize("n", [2, 3, 7, 100])
def test_points_evenly_on_a_circle(n):
    """The products and sums of sines have closed forms: -n log n for s = 0, and n (n^2 - 1) / 12 for s = 2."""
    a = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
    weight = torch.stack([a.cos(), a.sin()], 1)
    assert hyperspherical_energy(weight, 0) == pytest.approx(-n * math.log(n), rel=1e-9)
    chords = sum(1 / (2 * math.sin(math.pi * k / n)) for k in range(1, n))
    assert hyperspherical_energy(weight, 1) == pytest.approx(n * chords, rel=1e-9)
    assert hyperspherical_energy(weight, 2) == pytest.approx(n * (n * n - 1) / 12, rel=1e-9)
    arcs = sum(n / (2 * math.pi * min(k, n - k)) for k in range(1, n))
    assert hyperspherical_energy(weight, 1, angular=True) == pytest.approx(n * arcs, rel=1e-9)


@pytest.mark.parametrize("d", [2, 10, 50])
def test_the_corners_of_a_simplex(d):
    """n = d + 1 points with cosines -1 / d; their energy is the least that n points can have."""
    n = d + 1
    corners = torch.eye(n, dtype=torch.float64) - 1 / n
    z = math.sqrt(2 + 2 / d)
    assert hyperspherical_energy(corners, 1) == pytest.approx(n * (n - 1) / z)
    assert hyperspherical_energy(corners, 1, mean=True) == pytest.approx(1 / z)
    assert hyperspherical_energy(corners, 1, angular=True, mean=True) == pytest.approx(1 / math.acos(-1 / d))
    assert hyperspherical_energy(random(n, d)) > n * (n - 1) / z


def test_rotations_lengths_and_order_do_not_matter():
    weight = random(30, 12)
    energy = hyperspherical_energy(weight)
    turned = (weight.double() @ rotation(12)).float()
    assert hyperspherical_energy(turned) == pytest.approx(energy, rel=1e-7)
    assert hyperspherical_energy(weight * torch.rand(30, 1).add(0.1)) == pytest.approx(energy, rel=1e-6)
    assert hyperspherical_energy(weight.flip(0)) == pytest.approx(energy, rel=1e-7)
    signs = torch.where(torch.arange(30) % 2 == 0, 1.0, -1.0)[:, None]
    assert hyperspherical_energy(weight * signs) != pytest.approx(energy, rel=1e-3)
    half = hyperspherical_energy(weight, half_space=True)
    assert hyperspherical_energy(weight * signs, half_space=True) == pytest.approx(half, rel=1e-7)


def test_single_precision_resolves_the_drift_of_finetuning():
    """The paper's figure shows a relative drift of 7e-5; a rotation in single precision moves the energy by less."""
    weight = random(320, 320)  # some CPUs' inverse roots are off by a steady 1.3e-8, others by less
    exact = hyperspherical_energy(weight.double(), mean=True, half_space=True)
    assert hyperspherical_energy(weight, mean=True, half_space=True) == pytest.approx(exact, rel=1e-7)
    turned = (weight.double() @ rotation(320)).float()
    assert hyperspherical_energy(turned, mean=True, half_space=True) == pytest.approx(exact, rel=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_welcome(dtype):
    weight = random(40, 3, 3).to(dtype)
    assert hyperspherical_energy(weight) == pytest.approx(hyperspherical_energy(weight.double()), rel=1e-6)


def test_what_has_no_energy():
    assert hyperspherical_energy(torch.tensor([[1.0, 2.0], [2.0, 4.0]])) == math.inf
    assert hyperspherical_energy(torch.tensor([[1.0, 2.0]]), half_space=True) == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r"shape \(1, 2\) has no two neurons"):
        hyperspherical_energy(torch.tensor([[1.0, 2.0]]))
    with pytest.raises(ValueError, match="has no two neurons"):
        hyperspherical_energy(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="s=-1 lets neurons attract"):
        hyperspherical_energy(random(3, 4), s=-1)


def test_a_model_s_energies_are_those_of_its_weights_as_used():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.GroupNorm(2, 6), nn.Sequential(nn.Linear(8, 5), nn.Conv2d(4, 4, 1)))
    nn.init.zeros_(model[2][1].weight)  # as a new ControlNet's
    found = energies(model, half_space=True, mean=True)
    assert found == {
        "0.weight": hyperspherical_energy(model[0].weight, half_space=True, mean=True),
        "2.0.weight": hyperspherical_energy(model[2][0].weight, half_space=True, mean=True),
    }
    assert energies({"a": model[0].weight}) == {"a": hyperspherical_energy(model[0].weight)}
    before = {name: w.clone() for name, w in weights(model).items()}
    (q, s) = oft_vs_lora.apply(model, "2.0", rescale=True)
    q.data.normal_(generator=seeded(0), std=3)
    s.data.normal_(generator=seeded(0))
    after = weights(model)
    assert list(after) == list(before) and not torch.allclose(after["2.0.weight"], before["2.0.weight"], atol=0.1)
    again = energies(model, half_space=True, mean=True)
    assert again == pytest.approx(found, rel=1e-6)
    oft_vs_lora.merge(model)
    assert list(weights(model)) == list(before)


# ---- What else moves -------------------------------------------------------------------------------------------------


def test_the_drift_of_angles_is_the_largest():
    weight = torch.eye(3, 5)
    turned = weight.clone()
    turned[2] = torch.tensor([0.0, math.sin(0.1), math.cos(0.1), 0.0, 0.0])
    for chunk in (1, 128):
        assert angle_drift(weight, turned, chunk=chunk) == pytest.approx(0.1)
        assert angle_drift(weight, weight * 7, chunk=chunk) == 0
    big = random(300, 20)
    assert angle_drift(big.double(), big.double() @ rotation(20)) < 1e-7
    cosine = [torch.corrcoef(torch.cat([w, -w], 1)).clamp(-1, 1).acos() for w in (big, big + 0.1)]
    assert angle_drift(big, big + 0.1) == pytest.approx(float((cosine[0] - cosine[1]).abs().max()), abs=1e-3)
    with pytest.raises(ValueError, match=r"shapes \(300, 20\) and \(3, 5\) cannot be compared"):
        angle_drift(big, weight)


def test_the_error_of_orthogonality_is_the_largest_entry():
    R = rotation(6)
    assert orthogonality_error(R) < 1e-14
    assert orthogonality_error(torch.stack([R, 1.1 * R])) == pytest.approx(0.21)


def test_intruders_are_counted_on_both_sides():
    """LoRA's new directions are new on both sides; a rotation's are on the right alone, by construction."""
    W0 = random(60, 40).double()
    assert intruder_dimensions(W0, W0) == (0, 0)
    assert intruder_dimensions(W0, W0 @ rotation(40).T) == (0, 10)
    assert intruder_dimensions(W0, rotation(60) @ W0) == (10, 0)
    u, v = random(60, 1, seed=1).double(), random(40, 1, seed=2).double()
    loud = W0 + u @ v.T / (u.norm() * v.norm()) * 1e4
    assert intruder_dimensions(W0, loud, k=1) == (1, 1)
    assert intruder_dimensions(W0, loud, k=1, eps=0.01) == (0, 0), "below every cosine, nothing counts as new"
    kernels = random(8, 3, 2, 2)
    assert intruder_dimensions(kernels, kernels, k=3) == (0, 0)
    with pytest.raises(ValueError, match="cannot be compared"):
        intruder_dimensions(W0, W0.T)
