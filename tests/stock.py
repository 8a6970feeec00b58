"""Stock schedulers and pipelines of diffusers, which the course's loops must match."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    UniPCMultistepScheduler,
)

from companion.schedules import Levels

#: Stable Diffusion's betas, and the noise levels that they make.
BETAS = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LEVELS = Levels.of(DDPMScheduler(**BETAS))

every_scheduler = pytest.mark.parametrize(
    ("kind", "options"),
    [
        (DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False}),
        (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
        (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
        (UniPCMultistepScheduler, {}),
        (EulerDiscreteScheduler, {}),
        (EulerAncestralDiscreteScheduler, {}),
        (HeunDiscreteScheduler, {}),
        (KDPM2DiscreteScheduler, {}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)


def scheduler_of(kind: type, options: dict[str, Any]) -> Any:
    """A scheduler with Stable Diffusion's betas."""
    return kind(**BETAS, **{"steps_offset": 1, **options})


def variant(pipe: Any, stock: type, scheduler: Any = None, **parts: Any) -> Any:
    """The same parts in a stock pipeline of this class; `scheduler` and `parts` replace some."""
    scheduler = scheduler or pipe.scheduler
    parts = {**pipe.components, "scheduler": type(scheduler).from_config(scheduler.config), **parts}
    parts = {name: part for name, part in parts.items() if name in inspect.signature(stock).parameters}
    other = stock(**parts, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    return other
