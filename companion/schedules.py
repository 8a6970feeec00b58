"""Noise levels and schedules: the levels that a network was trained at, and those that a sampler visits on its way.

    levels = Levels.of(pipe.scheduler)
    sigmas = schedule("karras", levels, 20)  # 21 falling noise levels, of which the last is 0

A noise level sigma is the standard deviation of the noise in x = x0 + sigma * noise, the form of Karras et al. (EDM,
arXiv 2206.00364). A schedule is the list of noise levels that a sampler steps through, and says nothing about how it
computes a step.
"""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import SchedulerMixin


@dataclass(frozen=True)
class Levels:
    """The noise levels that a network was trained at: `sigmas` (T,), float64, rising with the timestep 0 to T - 1."""

    sigmas: Tensor

    @classmethod
    def of(cls, scheduler: SchedulerMixin) -> Levels:
        """The levels of a diffusers scheduler: sigma = sqrt((1 - a) / a), where a is its `alphas_cumprod`."""
        a = scheduler.alphas_cumprod.double().cpu()
        return cls(((1 - a) / a).sqrt())

    @property
    def lowest(self) -> float:
        return float(self.sigmas[0])

    @property
    def highest(self) -> float:
        return float(self.sigmas[-1])

    def sigma(self, timesteps: ArrayLike) -> Tensor:
        """The noise levels at timesteps. Between two whole timesteps, log sigma is interpolated linearly."""
        t = np.asarray(timesteps, dtype=float)
        return torch.as_tensor(np.exp(np.interp(t, np.arange(len(self.sigmas)), self.sigmas.log().numpy())))

    def timestep(self, sigmas: ArrayLike) -> Tensor:
        """The timesteps at noise levels, the inverse of `sigma`. Levels outside the range get its nearest end."""
        u = np.log(np.maximum(np.asarray(sigmas, dtype=float), 1e-12))
        return torch.as_tensor(np.interp(u, self.sigmas.log().numpy(), np.arange(len(self.sigmas), dtype=float)))


def _linspace(levels: Levels, n: int) -> Tensor:
    return levels.sigma(np.linspace(len(levels.sigmas) - 1, 0, n) if n > 1 else [len(levels.sigmas) - 1])


def _open_linspace(levels: Levels, n: int) -> Tensor:
    t = np.linspace(0, len(levels.sigmas) - 1, n + 1)[:0:-1]
    # diffusers rounds to whole timesteps. With as many steps as timesteps some of them would then coincide.
    return levels.sigma(t.round() if n < len(levels.sigmas) else t)


def _leading(levels: Levels, n: int) -> Tensor:
    ratio = len(levels.sigmas) // n
    # Stable Diffusion starts at timestep 1, not 0. With as many steps as timesteps there is no room for that offset.
    return levels.sigma((np.arange(n) * ratio + (ratio > 1))[::-1])


def _trailing(levels: Levels, n: int) -> Tensor:
    total = len(levels.sigmas)
    return levels.sigma(np.round(total - np.arange(n) * total / n) - 1)


def karras(low: float, high: float, n: int, rho: float = 7.0) -> Tensor:
    """`n` levels from `high` to `low`, evenly spaced in sigma^(1/rho) (EDM, arXiv 2206.00364, equation 5)."""
    return (high ** (1 / rho) + torch.linspace(0, 1, n).double() * (low ** (1 / rho) - high ** (1 / rho))) ** rho


def _exponential(levels: Levels, n: int) -> Tensor:
    return torch.linspace(math.log(levels.highest), math.log(levels.lowest), n).double().exp()


def _beta(levels: Levels, n: int) -> Tensor:
    from scipy.stats import beta

    return levels.sigma(beta.ppf(1 - np.linspace(0, 1, n), 0.6, 0.6) * (len(levels.sigmas) - 1))


#: Each function gives `n` falling noise levels. `schedule` appends the one at which the sampler ends.
SCHEDULES: dict[str, Callable[[Levels, int], Tensor]] = {
    "linspace": _linspace,  # evenly spaced timesteps from the last to the first, the default of the web interfaces
    "open linspace": _open_linspace,  # the same without the first timestep: diffusers' DPM-Solver, UniPC and DEIS
    "leading": _leading,  # every k-th timestep from the first on: DDIM and PLMS as Stable Diffusion ships them
    "trailing": _trailing,  # every k-th timestep from the last one down (arXiv 2305.08891)
    "karras": lambda levels, n: karras(levels.lowest, levels.highest, n),
    "exponential": _exponential,  # evenly spaced in log sigma
    "beta": _beta,  # timesteps at the quantiles of a Beta(0.6, 0.6) distribution: dense at both ends (arXiv 2407.12173)
}


def schedule(name: str, levels: Levels, steps: int, last: float | None = 0.0) -> Tensor:
    """The falling noise levels (steps + 1,) that a sampler visits in so many steps.

    Args:
        name: one of `SCHEDULES`.
        levels: the noise levels of the network's training, which bound the schedule.
        steps: 1 to as many as there are levels.
        last: the level at which the sampler ends. With None it is left out, and `steps` levels are returned.
    Raises:
        ValueError: for an unknown schedule, or a number of steps that is not whole or out of range.
    """
    if name not in SCHEDULES:
        raise ValueError(f"there is no schedule {name!r}; {nearest(name, SCHEDULES)}")
    if isinstance(steps, bool) or int(steps) != steps or not 1 <= steps <= len(levels.sigmas):
        raise ValueError(
            f"steps={steps} is outside 1 to {len(levels.sigmas)}, the steps of the training; 20 is usually enough"
        )
    sigmas = SCHEDULES[name](levels, int(steps))
    return sigmas if last is None else torch.cat([sigmas, torch.tensor([last], dtype=sigmas.dtype)])


def check_sigmas(sigmas: Tensor) -> list[float]:
    """Check that noise levels form a schedule, and return them as a list of floats.

    Raises:
        ValueError: unless there are two or more, each is finite, not negative and below the one before it.
    """
    values = torch.as_tensor(sigmas).double().flatten().tolist()
    if len(values) < 2:
        raise ValueError(f"{len(values)} noise levels make no step; give two or more, from noisy to clean")
    for i, (s, t) in enumerate(itertools.pairwise(values)):
        if not (math.isfinite(s) and math.isfinite(t) and t >= 0):
            raise ValueError(f"noise levels must be finite and not negative; sigmas[{i}:{i + 2}] are {s:g} and {t:g}")
        if not t < s:
            raise ValueError(
                f"a schedule must fall at every step, but sigmas[{i + 1}]={t:g} is not below sigmas[{i}]={s:g}; "
                "sort them from noisy to clean, each only once"
            )
    return values


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for an error message about an unknown name: the known names most like it, or all of them."""
    lower = {k.lower(): k for k in known}
    near = [lower[k] for k in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.5)]
    return f"did you mean {' or '.join(repr(n) for n in near)}?" if near else f"there are: {', '.join(lower.values())}"
