"""Schedules: the noise levels that diffusers visits, falling for any number of steps; bad input is refused."""

from __future__ import annotations

import diffusers
import pytest
import torch
from stock import BETAS, LEVELS

from companion.schedules import SCHEDULES, check_sigmas, schedule


@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [
        ("karras", "EulerDiscreteScheduler", {"use_karras_sigmas": True}),
        ("exponential", "EulerDiscreteScheduler", {"use_exponential_sigmas": True}),
        ("linspace", "EulerDiscreteScheduler", {"timestep_spacing": "linspace"}),
        ("leading", "EulerDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1}),
        ("trailing", "EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
        ("open linspace", "DPMSolverMultistepScheduler", {}),
        ("open linspace", "UniPCMultistepScheduler", {}),
    ],
)
@pytest.mark.parametrize("steps", [1, 7, 20, 60])
def test_the_schedules_are_those_of_diffusers(name, kind, settings, steps):
    scheduler = getattr(diffusers, kind)(**BETAS, **settings)
    if steps == 1 and name in ("karras", "exponential", "linspace"):
        pytest.skip("with one step diffusers begins at the lowest level, where there is nothing to draw")
    scheduler.set_timesteps(steps)
    found = schedule(name, LEVELS, steps)
    assert found.shape == (steps + 1,)
    assert torch.allclose(found, scheduler.sigmas.double(), atol=2e-4, rtol=1e-4)


def test_timesteps_and_sigmas_are_inverse():
    t = torch.tensor([0.0, 0.5, 333.25, 999.0]).double()
    assert torch.allclose(LEVELS.timestep(LEVELS.sigma(t)), t, atol=1e-9)
    assert (LEVELS.lowest, LEVELS.highest) == (pytest.approx(0.0292, abs=1e-4), pytest.approx(14.6146, abs=1e-3))
    assert LEVELS.timestep([1e-9, 99.0]).tolist() == [0, 999]


@pytest.mark.parametrize("steps", [0, -3, 1001, 2.5, True])
def test_numbers_of_steps_that_are_refused(steps):
    with pytest.raises(ValueError, match=r"steps=.* is outside 1 to 1000"):
        schedule("linspace", LEVELS, steps)


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_every_schedule_falls_for_any_number_of_steps(name):
    for steps in (1, 2, 3, 19, 500, 1000):
        sigmas = check_sigmas(schedule(name, LEVELS, steps))
        assert len(sigmas) == steps + 1 and sigmas[-1] == 0


@pytest.mark.parametrize(
    ("sigmas", "words"),
    [
        ([3.0, 1.0, 2.0], r"sigmas\[2\]=2 is not below sigmas\[1\]=1"),
        ([3.0, 3.0, 0.0], r"sigmas\[1\]=3 is not below sigmas\[0\]=3"),
        ([3.0, -1.0], "must be finite and not negative"),
        ([float("nan"), 1.0], "must be finite"),
        ([3.0], "1 noise levels make no step"),
    ],
)
def test_sigmas_that_make_no_schedule(sigmas, words):
    with pytest.raises(ValueError, match=words):
        check_sigmas(torch.tensor(sigmas))


def test_an_unknown_schedule_gets_the_nearest():
    with pytest.raises(ValueError, match="no schedule 'karas'; did you mean 'karras'"):
        schedule("karas", LEVELS, 5)
