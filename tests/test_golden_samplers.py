"""Our samplers give the numbers of the original ones (k-diffusion), recorded in double precision."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from companion.samplers import find_sampler

GOLDEN = json.loads((Path(__file__).parent / "golden" / "samplers.json").read_text(encoding="utf-8"))
CASES = {f"{case['sampler']}, {case['schedule']}": case for case in GOLDEN["cases"]}


def denoiser() -> Callable[[Tensor, float], Tensor]:
    """E[x0 | x] of a mixture of normals, for each number by itself: exact, so that only the solvers differ."""
    means, weights = torch.tensor([-1, 0.3, 1.2]).double(), torch.tensor([0.2, 0.5, 0.3]).double()
    deviation = 0.15

    def model(x: Tensor, sigma: float) -> Tensor:
        variance = deviation**2 + sigma**2
        log = weights.log() - (x[..., None] - means) ** 2 / (2 * variance)
        belief = (means * sigma**2 + x[..., None] * deviation**2) / variance
        return (log.softmax(-1) * belief).sum(-1)

    return model


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_it_is_the_original_sampler(case):
    sampler, calls = find_sampler(case["sampler"]), []
    model, table = denoiser(), iter(GOLDEN["noise_table"])
    sigmas = torch.tensor(case["sigmas"], dtype=torch.float64)
    x = torch.tensor(GOLDEN["z"], dtype=torch.float64)[None] * sigmas[0]

    def counted(x: Tensor, sigma: float) -> Tensor:
        calls.append(sigma)
        return model(x, sigma)

    def noise(s: float, t: float) -> Tensor:
        return torch.tensor(next(table), dtype=torch.float64)[None]

    *_, last = sampler.function(counted, x, sigmas, noise, **sampler.options)
    expected = torch.tensor(case["result"], dtype=torch.float64)
    # The original takes logarithms of its ends in single precision where it places its own steps.
    loose = sampler.name in ("DPM fast", "DPM adaptive")
    assert torch.allclose(last.x[0], expected, rtol=0, atol=2e-4 if loose else 1e-6)
    assert len(calls) == case["evaluations"]


def test_every_sampler_of_the_original_is_compared():
    assert len(CASES) == 39 and len({case["sampler"] for case in CASES.values()}) == 13
