"""The samplers of notebook 02: every name that web interfaces offer, as a short function in the paper's symbols.

    denoise = Denoiser(pipe, "a red ball on grass by day", guidance_scale=3.0)
    sigmas = sigmas_for("DPM++ 2M Karras", denoise.levels, 20)
    *_, last = solve(denoise, start(pipe, seeds := [7], sigmas), sigmas, "DPM++ 2M Karras", seeds=seeds)

All of them work with x = x0 + sigma * noise, the form of Karras et al. (EDM, arXiv 2206.00364), and get an estimate of
x0 from a denoiser D(x, sigma). They solve dx / dsigma = (x - D(x, sigma)) / sigma, equation 3 of that paper, from a
large sigma down; stochastic samplers add noise on the way. D may be a network, or the formula of a
`companion.mixture.Mixture`. The noise levels that they visit are in `companion.schedules`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from companion.diffusion import UNet, decode, noise_predictor, starting_noise
from companion.models import seeded
from companion.schedules import Levels, check_sigmas, karras, nearest, schedule

if TYPE_CHECKING:
    from diffusers import SchedulerMixin, StableDiffusionPipeline

#: D(x, sigma): an estimate of x0, in the shape of x (N, ...), when the noise in x has standard deviation sigma.
Model = Callable[[Tensor, float], Tensor]
#: Standard normal numbers in the shape of x, for the step from one sigma to a smaller one.
Noise = Callable[[float, float], Tensor]


class SolverStep(NamedTuple):
    """One step of a sampler.

    Attributes:
        index: 0, 1, ...
        sigma: the noise level at the end of the step.
        x: (N, ...), at that level.
        x0: (N, ...), the denoiser's estimate at the start of the step.
    """

    index: int
    sigma: float
    x: Tensor
    x0: Tensor


# ---- Noise for the samplers that add it ------------------------------------------------------------------------------


class Independent:
    """Fresh noise at every call, from one generator per picture, for ancestral samplers.

    Each generator's first numbers are skipped, since the stock pipelines make the starting noise from them.
    """

    def __init__(self, x: Tensor, seeds: Sequence[int]) -> None:
        self._generators = [seeded(seed) for seed in _as_many(seeds, x)]
        self._like = x
        self(0.0, 0.0)

    def __call__(self, s: float, t: float) -> Tensor:
        shape = (1, *self._like.shape[1:])
        return torch.cat([torch.randn(shape, generator=g, dtype=self._like.dtype) for g in self._generators]).to(
            self._like.device
        )


class Brownian:
    """Noise from one Brownian path per picture, over log sigma: a seed gives the same path for every schedule.

    The path is never stored. Its value is found by halving the interval `depth` times, as in the virtual Brownian tree
    (Li et al., arXiv 2001.01328): the midpoint of a bridge is the mean of its ends plus noise, which depends only on
    the seed and the midpoint. Calls raise ValueError unless `low` <= t < s <= `high`.
    """

    def __init__(self, x: Tensor, seeds: Sequence[int], low: float = 1e-3, high: float = 1e3, depth: int = 18) -> None:
        self._seeds, self._like, self._depth = _as_many(seeds, x), x, depth
        self._ends = math.log(low), math.log(high)
        self._generator = torch.Generator("cpu")
        self.at = lru_cache(maxsize=8)(self._at)  # a step starts where the last one ended

    def _normal(self, node: int) -> Tensor:
        shape = (1, *self._like.shape[1:])
        draws = []
        for seed in self._seeds:
            self._generator.manual_seed((seed + 1) * 2 ** (self._depth + 2) + node)
            draws.append(torch.randn(shape, generator=self._generator, dtype=self._like.dtype))
        return torch.cat(draws)

    def _at(self, u: float) -> Tensor:
        low, high = self._ends
        w_low, w_high = torch.zeros(()), (high - low) ** 0.5 * self._normal(0)
        node = 1
        for _ in range(self._depth):
            middle = (low + high) / 2
            w = (w_low + w_high) / 2 + ((high - low) / 4) ** 0.5 * self._normal(node)
            below = u < middle
            node = 2 * node + (not below)
            low, high, w_low, w_high = (low, middle, w_low, w) if below else (middle, high, w, w_high)
        return w_low + (u - low) / (high - low) * (w_high - w_low)

    def __call__(self, s: float, t: float) -> Tensor:
        a, b = math.log(s), math.log(t)
        if not self._ends[0] <= b < a <= self._ends[1]:
            low, high = map(math.exp, self._ends)
            raise ValueError(f"from sigma {s:g} to {t:g} there is no path: it goes from {high:g} down to {low:g}")
        return ((self.at(b) - self.at(a)) / (a - b) ** 0.5).to(self._like.device)


def _as_many(seeds: Sequence[int], x: Tensor) -> list[int]:
    seeds = [int(seed) for seed in seeds]
    if len(seeds) != len(x):
        raise ValueError(f"{len(seeds)} seeds for {len(x)} pictures; give one for each")
    return seeds


def silent(s: float, t: float) -> Tensor:
    """The default source of noise, for samplers that add none. Calling it raises ValueError."""
    raise ValueError("this sampler adds noise: give it a source of noise, such as Independent or Brownian")


# ---- The samplers ----------------------------------------------------------------------------------------------------
#
# In all of them s is the noise level at the start of a step, t the one at its end, h = log(s / t), and x0 the model's
# estimate. (x - x0) / s is the noise that this implies, and the slope of the path.


def _steps(sigmas: Tensor) -> Iterator[tuple[int, tuple[float, float]]]:
    return enumerate(itertools.pairwise(check_sigmas(sigmas)))


def ancestral(s: float, t: float, eta: float) -> tuple[float, float]:
    """The noise level to go down to, and how much noise to add there to reach t: (down, up), down^2 + up^2 = t^2.

    eta = 0 adds none; eta = 1 adds as much as DDPM's step from s to t (its posterior, arXiv 2006.11239, equation 7).
    """
    up = min(t, eta * t * (s**2 - t**2) ** 0.5 / s)
    return max(t**2 - up**2, 0.0) ** 0.5, up


def churned(x: Tensor, s: float, steps: int, noise: Noise, churn: float) -> tuple[Tensor, float]:
    """x with noise added before a step, and the higher noise level that it then has (EDM, algorithm 2, lines 4 to 6).

    churn: the paper's S_churn: how many times over, in all steps together, the noise is renewed. At most 41 % of the
    level are added in one step.
    """
    gamma = min(churn / steps, 2**0.5 - 1)
    if not gamma:
        return x, s
    higher = s * (1 + gamma)
    return x + (higher**2 - s**2) ** 0.5 * noise(higher, s), higher


def euler(
    model: Model, x: Tensor, sigmas: Tensor, noise: Noise = silent, *, eta: float = 0.0, churn: float = 0.0
) -> Iterator[SolverStep]:
    """A straight step along the slope (EDM, arXiv 2206.00364, algorithm 1 without lines 6 to 8); ancestral if eta > 0,
    and from a higher noise level if churn > 0 (see `churned`).

    DDIM (arXiv 2010.02502, equation 12) is the same in other coordinates, including eta. With eta 1 it is the step of
    DDPM (arXiv 2006.11239, algorithm 2), whatever the number of steps.
    """
    for i, (s, t) in _steps(sigmas):
        x, s = churned(x, s, len(sigmas) - 1, noise, churn)
        x0 = model(x, s)
        down, up = ancestral(s, t, eta)
        x = x + (down - s) * (x - x0) / s if down else x0
        if up:
            x = x + up * noise(s, t)
        yield SolverStep(i, t, x, x0)


def heun(model: Model, x: Tensor, sigmas: Tensor, noise: Noise = silent, *, churn: float = 0.0) -> Iterator[SolverStep]:
    """Euler's step, repeated with the mean of the slopes at both of its ends (EDM, algorithm 1, lines 6 to 8; with
    `churn`, algorithm 2).
    """
    for i, (s, t) in _steps(sigmas):
        x, s = churned(x, s, len(sigmas) - 1, noise, churn)
        x0 = model(x, s)
        d = (x - x0) / s
        if t:
            there = x + (t - s) * d
            d = (d + (there - model(there, t)) / t) / 2
        x = x + (t - s) * d
        yield SolverStep(i, t, x, x0)


def lcm(model: Model, x: Tensor, sigmas: Tensor, noise: Noise = silent) -> Iterator[SolverStep]:
    """Go to x0 in each step, and add all the noise of the next level anew: how consistency models draw (arXiv
    2303.01469, algorithm 1; LCM, 2310.04378). They were trained so that x0 is a picture from the first step on; of
    another network x0 is a mean of what is possible, so that normally distributed data come out too near their mean.
    """
    for i, (s, t) in _steps(sigmas):
        x = x0 = model(x, s)
        if t:
            x = x0 + t * noise(s, t)
        yield SolverStep(i, t, x, x0)


def restart(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise = silent,
    *,
    low: float = 0.1,
    high: float = 2.0,
    times: int = 1,
) -> Iterator[SolverStep]:
    """Heun's steps; when noise level `low` is reached, noise is added up to `high`, and that part of the way is gone
    again, `times` over (Restart, arXiv 2306.14878, algorithm 2). The noise forgets errors that were made before.

    The part that is gone again has as many steps as the schedule has there, three at least, on Karras' levels. Its
    levels rise once each time.
    """
    levels = check_sigmas(sigmas)
    at = next((i for i, t in enumerate(levels) if 0 < t <= low and i), None)
    index = itertools.count()

    def part(x: Tensor, part_of: Tensor) -> Iterator[SolverStep]:
        for step in heun(model, x, part_of):
            yield step._replace(index=next(index))

    if at is None or levels[0] <= high:
        yield from part(x, sigmas)
        return
    for step in part(x, sigmas[: at + 1]):
        x = step.x
        yield step
    again = karras(levels[at], high, max(3, sum(levels[at] < s <= high for s in levels)) + 1).to(sigmas)
    for _ in range(times):
        x = x + (high**2 - levels[at] ** 2) ** 0.5 * noise(high, levels[at])
        for step in part(x, again):
            x = step.x
            yield step
    if at + 1 < len(levels):
        yield from part(x, sigmas[at:])


def dpm_2(
    model: Model, x: Tensor, sigmas: Tensor, noise: Noise = silent, *, eta: float = 0.0, churn: float = 0.0
) -> Iterator[SolverStep]:
    """The slope at the midpoint of log sigma, used for the whole step (after DPM-Solver-2, arXiv 2206.00927)."""
    for i, (s, t) in _steps(sigmas):
        x, s = churned(x, s, len(sigmas) - 1, noise, churn)
        x0 = model(x, s)
        d, (down, up) = (x - x0) / s, ancestral(s, t, eta)
        if down:
            m = (s * down) ** 0.5
            middle = x + (m - s) * d
            d = (middle - model(middle, m)) / m
        x = x + (down - s) * d
        if up:
            x = x + up * noise(s, t)
        yield SolverStep(i, t, x, x0)


def adams(
    model: Model, x: Tensor, sigmas: Tensor, noise: Noise = silent, *, order: int = 4, log: bool = False
) -> Iterator[SolverStep]:
    """Integrate the polynomial through the last `order` slopes (Adams and Bashforth, 1883).

    It is in sigma for LMS, and for DEIS (arXiv 2204.13902; diffusers' "logrho") in log sigma, where slopes bend less.
    """
    nodes, weights = np.polynomial.legendre.leggauss(12)  # exact enough for any of these polynomials
    f = np.log if log else np.asarray
    slopes: list[Tensor] = []
    past: list[float] = []
    total = len(sigmas) - 1
    for i, (s, t) in _steps(sigmas):
        x0 = model(x, s)
        k = 1 if log and (t == 0 or (i == total - 1 and total < 15)) else order  # log 0 is undefined
        slopes, past = [(x - x0) / s, *slopes][:order], [s, *past][:order]
        at = (s + t) / 2 + (t - s) / 2 * nodes
        for j, slope in enumerate(slopes[:k]):
            others = [f(past[m]) for m in range(len(past[:k])) if m != j]
            basis = math.prod([(f(at) - o) / (f(past[j]) - o) for o in others], start=np.ones_like(at))
            x = x + float((t - s) / 2 * (weights * basis).sum()) * slope
        yield SolverStep(i, t, x, x0)


def plms(model: Model, x: Tensor, sigmas: Tensor, noise: Noise = silent) -> Iterator[SolverStep]:
    """Adams and Bashforth's coefficients for even steps on the predicted noise (PNDM, arXiv 2202.09778, equation 12).

    The coefficients are for even steps in sigma, but the steps are even in the timestep: a "pseudo" numerical method,
    as the paper calls it. The first step evaluates the model twice, as Heun's does.
    """
    coefficients = ([1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24])
    slopes: list[Tensor] = []
    for i, (s, t) in _steps(sigmas):
        x0 = model(x, s)
        slopes = [(x - x0) / s, *slopes][:4]
        d = sum(c * slope for c, slope in zip(coefficients[len(slopes) - 1], slopes, strict=True))
        if i == 0 and t:
            there = x + (t - s) * d
            d = (d + (there - model(there, t)) / t) / 2
        x = x + (t - s) * d
        yield SolverStep(i, t, x, x0)


def dpmpp_2s(
    model: Model, x: Tensor, sigmas: Tensor, noise: Noise = silent, *, eta: float = 1.0
) -> Iterator[SolverStep]:
    """Use x0 at the midpoint of log sigma for the whole step (DPM-Solver++ 2S, arXiv 2211.01095, algorithm 1)."""
    for i, (s, t) in _steps(sigmas):
        x0 = belief = model(x, s)
        down, up = ancestral(s, t, eta)
        if down:
            m = (s * down) ** 0.5
            belief = model(m / s * x + (1 - m / s) * x0, m)
        x = down / s * x + (1 - down / s) * belief
        if up:
            x = x + up * noise(s, t)
        yield SolverStep(i, t, x, x0)


def dpmpp_sde(
    model: Model, x: Tensor, sigmas: Tensor, noise: Noise = silent, *, eta: float = 1.0
) -> Iterator[SolverStep]:
    """Like 2S, with noise added at the midpoint too: k-diffusion's DPM-Solver++ for the reverse SDE."""
    for i, (s, t) in _steps(sigmas):
        x0 = belief = model(x, s)
        if t:
            m = (s * t) ** 0.5
            down, up = ancestral(s, m, eta)
            middle = down / s * x + (1 - down / s) * x0
            belief = model(middle + up * noise(s, m) if up else middle, m)
        down, up = ancestral(s, t, eta)
        x = down / s * x + (1 - down / s) * belief
        if up:
            x = x + up * noise(s, t)
        yield SolverStep(i, t, x, x0)


def dpmpp_2m(
    model: Model, x: Tensor, sigmas: Tensor, noise: Noise = silent, *, eta: float = 0.0
) -> Iterator[SolverStep]:
    """Extrapolate the line through the last two x0, over log sigma (DPM-Solver++ 2M, arXiv 2211.01095, algorithm 2).

    eta = 1 solves the SDE: SDE-DPM-Solver++(2M), equation 19 with the multistep difference of algorithm 2.
    """
    before, h_before = None, 1.0
    for i, (s, t) in _steps(sigmas):
        x0 = belief = model(x, s)
        if not t:
            x = x0
        else:
            h = math.log(s / t)
            if before is not None:
                belief = x0 + h / (2 * h_before) * (x0 - before)
            x = math.exp(-(1 + eta) * h) * x - math.expm1(-(1 + eta) * h) * belief
            if eta:
                x = x + t * (-math.expm1(-2 * eta * h)) ** 0.5 * noise(s, t)
            before, h_before = x0, h
        yield SolverStep(i, t, x, x0)


def dpmpp_3m(
    model: Model, x: Tensor, sigmas: Tensor, noise: Noise = silent, *, eta: float = 1.0
) -> Iterator[SolverStep]:
    """Like 2M, with the parabola through the last three x0 (after the expansion in DPM-Solver++, arXiv 2211.01095)."""
    past: list[tuple[Tensor, float]] = []  # x0 and the step h that followed it, newest first
    for i, (s, t) in _steps(sigmas):
        x0 = model(x, s)
        if not t:
            x = x0
        else:
            h = math.log(s / t)
            k = (1 + eta) * h
            phi_2 = math.expm1(-k) / k + 1
            phi_3 = phi_2 / k - 0.5
            x = math.exp(-k) * x - math.expm1(-k) * x0
            if len(past) == 1:
                x = x + phi_2 * (x0 - past[0][0]) * h / past[0][1]
            elif past:
                (x1, h1), (x2, h2) = past
                r1, r2 = h1 / h, h2 / h
                a, b = (x0 - x1) / r1, (x1 - x2) / r2
                x = x + phi_2 * (a + (a - b) * r1 / (r1 + r2)) - phi_3 * (a - b) / (r1 + r2)
            if eta:
                x = x + t * (-math.expm1(-2 * eta * h)) ** 0.5 * noise(s, t)
            past = [(x0, h), *past][:2]
        yield SolverStep(i, t, x, x0)


def unipc(model: Model, x: Tensor, sigmas: Tensor, noise: Noise = silent, *, order: int = 2) -> Iterator[SolverStep]:
    """Predict from the last `order` x0; correct the step once the model is known at its end (UniPC, arXiv 2302.04867).

    The corrector costs no evaluation, since it uses the one that the next step starts with. B(h) = e^-h - 1, which
    diffusers calls "bh2".
    """
    past: list[tuple[float, Tensor]] = []  # (sigma, x0), newest first
    begin, p = x, 0
    total = len(sigmas) - 1
    for i, (s, t) in _steps(sigmas):
        x0 = model(x, s)
        if i:
            x = _unipc_step(begin, past[:p], s, [(s, x0)])
        past = [(s, x0), *past][:order]
        p = min(len(past), total - i)  # lower orders for the last steps, as in diffusers
        begin, x = x, _unipc_step(x, past[:p], t, [])
        yield SolverStep(i, t, x, x0)


def _unipc_step(x: Tensor, past: list[tuple[float, Tensor]], t: float, ahead: list[tuple[float, Tensor]]) -> Tensor:
    """UniP (`ahead` empty) or UniC: a step from past[0] to noise level t that uses the differences to the other x0."""
    (s, x0), others = past[0], [*past[1:], *ahead]
    if not t:
        return x0
    h = math.log(s / t)
    r = np.array([math.log(s / sigma) / h for sigma, _ in others])
    b = math.expm1(-h)
    phi, wanted = b / -h - 1, []
    for k in range(1, len(r) + 1):
        wanted.append(phi * math.factorial(k) / b)
        phi = phi / -h - 1 / math.factorial(k + 1)
    # A single coefficient would depend on h: the paper takes 1/2, its limit for small h.
    rho = [0.5] if len(r) == 1 else np.linalg.solve(np.vander(r, increasing=True).T, wanted)
    x = t / s * x - b * x0
    return x - b * sum(float(c) / float(q) * (other - x0) for c, q, (_, other) in zip(rho, r, others, strict=True))


def dpm_solver(model: Model, x: Tensor, s: float, t: float, order: int) -> tuple[list[Tensor], Tensor]:
    """One step by DPM-Solver-1, -2 and -3 (arXiv 2206.00927, equations 3.7, 4.1, 4.2) to `order`, and x0 at its start.

    Each order needs the evaluations of the lower ones and one more, so the lower solutions come for free.
    """
    h = math.log(s / t)
    r1, r2 = (1 / 2 if order == 2 else 1 / 3), 2 / 3
    x0 = model(x, s)
    eps = (x - x0) / s
    solutions = [x - t * math.expm1(h) * eps]
    if order > 1:
        m = s * math.exp(-r1 * h)
        u = x - m * math.expm1(r1 * h) * eps
        change = (u - model(u, m)) / m - eps
        solutions.append(solutions[0] - t / (2 * r1) * math.expm1(h) * change)
    if order > 2:
        m = s * math.exp(-r2 * h)
        u = x - m * math.expm1(r2 * h) * eps - m * r2 / r1 * (math.expm1(r2 * h) / (r2 * h) - 1) * change
        change = (u - model(u, m)) / m - eps
        solutions.append(solutions[0] - t / r2 * (math.expm1(h) / h - 1) * change)
    return solutions, x0


def dpm_1(model: Model, x: Tensor, sigmas: Tensor, noise: Noise = silent) -> Iterator[SolverStep]:
    """DPM-Solver-1 at every step. Written out, it is Euler's step: t * (e^h - 1) = s - t."""
    for i, (s, t) in _steps(sigmas):
        if t:
            (x,), x0 = dpm_solver(model, x, s, t, 1)
        else:
            x = x0 = model(x, s)
        yield SolverStep(i, t, x, x0)


def dpm_fast(
    model: Model, x: Tensor, sigmas: Tensor, noise: Noise = silent, *, eta: float = 0.0
) -> Iterator[SolverStep]:
    """DPM-Solver-fast (arXiv 2206.00927, section 3.4): as many third-order steps as the evaluations allow. With eta,
    each goes below its level, and noise up to it is added, as in the ancestral samplers.

    From the schedule it takes only the highest level, the lowest above 0 and the number of steps n, which becomes the
    number of evaluations. Its own steps are even in log sigma. Raises ValueError for fewer than two levels above 0.
    """
    high, low, n = _ends(sigmas)
    orders = [3] * (n // 3 - 1) + [2, 1] if n % 3 == 0 else [3] * (n // 3) + [n % 3]
    levels = np.exp(np.linspace(math.log(high), math.log(low), len(orders) + 1))
    for i, (order, (s, t)) in enumerate(zip(orders, itertools.pairwise(levels.tolist()), strict=True)):
        down, up = _down(s, t, low, eta)
        solutions, x0 = dpm_solver(model, x, s, down, order)
        x = solutions[-1] + up * noise(s, t) if up else solutions[-1]
        yield SolverStep(i, t, x, x0)


def _down(s: float, t: float, low: float, eta: float) -> tuple[float, float]:
    """As `ancestral`, but never below the lowest level: the solver works with logarithms of levels."""
    down = max(ancestral(s, t, eta)[0], low)
    return down, (t**2 - down**2) ** 0.5 if down < t else 0.0


def dpm_adaptive(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise = silent,
    *,
    order: int = 3,
    rtol: float = 0.05,
    atol: float = 0.0078,
    h: float = 0.05,
    eta: float = 0.0,
    most: int = 10_000,
) -> Iterator[SolverStep]:
    """Steps as long as two neighbouring orders agree (DPM-Solver-12 and -23, arXiv 2206.00927, appendix C).

    The step length follows the error by k-diffusion's rule and defaults. Only the ends of the schedule are used. A
    batch shares one step length, so a picture drawn alone takes other steps than in a batch.

    Args:
        order: 2 or 3.
        rtol, atol: how much the two orders may differ, relative to x and absolute; 0.0078 is one grey level of pixels.
        h: length of the first step, in log sigma.
        eta: as in `dpm_fast`: how much noise is added in each step.
        most: evaluations after which no further step is tried.
    Raises:
        ValueError: for another order, rtol < 0, atol <= 0, or fewer than two noise levels above 0.
        ArithmeticError: when the end is not reached in `most` evaluations.
    """
    if order not in (2, 3) or rtol < 0 or atol <= 0:
        raise ValueError(f"order={order}, rtol={rtol}, atol={atol}: give order 2 or 3, rtol >= 0 and atol > 0")
    high, low, _ = _ends(sigmas)
    s, before, spent, i = high, x, 0, 0
    while s > low * (1 + 1e-5):
        if spent >= most:
            raise ArithmeticError(f"after {spent} evaluations sigma is still {s:g}; allow a larger error than {rtol=}")
        t = max(s * math.exp(-h), low)
        down, up = _down(s, t, low, eta)
        solutions, x0 = dpm_solver(model, x, s, down, order)
        lower, higher = solutions[-2:]
        allowed = torch.maximum(torch.tensor(atol).to(x), rtol * torch.maximum(lower.abs(), before.abs()))
        error = float((((lower - higher) / allowed) ** 2).mean() ** 0.5)
        spent += order
        factor = 1 + math.atan((error + 1e-8) ** (-1 / order) - 1)
        h *= factor
        if factor >= 0.81:
            before, x, s = lower, higher + up * noise(s, t) if up else higher, t
            yield SolverStep(i, t, x, x0)
            i += 1


def _ends(sigmas: Tensor) -> tuple[float, float, int]:
    """The highest level, the lowest above 0 and the number of steps, for samplers that choose their own levels."""
    values = check_sigmas(sigmas)
    positive = [value for value in values if value]
    if len(positive) < 2:
        raise ValueError("it needs two noise levels above 0, to begin and to end at; take 2 steps or more")
    return positive[0], positive[-1], len(values) - 1


# ---- The catalogue ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sampler:
    """One sampler, under its name in the web interfaces.

    Attributes:
        function: called as function(model, x, sigmas, noise, **options); yields `SolverStep`s.
        order: order of convergence: the error falls as h^order with the step h (for stochastic ones, without noise).
        about, paper: what it does, in one line, and where it is from.
        per_step: evaluations of the model per step; 0 when only the run decides how many.
        stochastic: whether it adds noise on the way; `brownian`: whether that comes from one Brownian path.
        levels: the schedule that the name stands for.
        karras: whether Karras' noise levels make sense for it; if not, `why_not` says why.
        ends_low: whether it stops at the lowest noise level of the training instead of at 0.
        scheduler, settings: the diffusers class of the same algorithm ("" if there is none), and its settings.
        options: keyword arguments for the function, such as eta.
    """

    name: str
    function: Callable[..., Iterator[SolverStep]]
    order: int
    about: str
    paper: str
    per_step: int = 1
    stochastic: bool = False
    brownian: bool = False
    levels: str = "linspace"
    karras: bool = True
    why_not: str = ""
    ends_low: bool = False
    scheduler: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def evaluations(self, steps: int) -> int | None:
        """Model evaluations for `steps` steps on its own schedule; None when only the run decides."""
        if not self.per_step:
            return None
        # With two evaluations per step, the last step needs only one: it ends at sigma 0, where there is no slope.
        return 2 * steps - 1 if self.per_step == 2 else steps + (self.function is plms)

    def steps_for(self, evaluations: int) -> int:
        """The most steps that `evaluations` allow, at least 1; `evaluations` itself when only the run decides."""
        return max(1, (evaluations + 1) // 2 if self.per_step == 2 else evaluations - (self.function is plms))

    def stock(self, config: Mapping[str, Any]) -> SchedulerMixin:
        """The diffusers scheduler of the same algorithm, with the betas, prediction type and steps offset of `config`.

        Raises ValueError when diffusers has no such scheduler, or none with Karras' levels where they are needed.
        """
        import diffusers

        if not self.scheduler:
            raise ValueError(f"diffusers has no scheduler that is {self.name}; use companion.samplers.solve for it")
        kind = getattr(diffusers, self.scheduler)
        keys = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")
        keys += ("steps_offset",)  # only "leading" steps use it, but pipelines warn when it is not set
        settings = {key: config[key] for key in keys if key in config} | dict(self.settings)
        if self.levels == "karras":
            import inspect

            if "use_karras_sigmas" not in inspect.signature(kind.__init__).parameters:
                raise ValueError(f"{self.scheduler} of diffusers knows no Karras levels, so it cannot be {self.name}")
            settings["use_karras_sigmas"] = True
        return kind(**settings)


EDM = "Karras et al. 2022, arXiv 2206.00364"
DPM_SOLVER = "Lu et al. 2022, arXiv 2206.00927"
DPM_SOLVER_PP = "Lu et al. 2022, arXiv 2211.01095"
_LIKE_SD = {"set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "leading"}
_OWN_STEPS = "it places its steps itself"


def _with_karras(sampler: Sampler) -> Sampler:
    return replace(sampler, name=f"{sampler.name} Karras", levels="karras")


def _both(*samplers: Sampler) -> list[Sampler]:
    """These samplers, followed by each of them on Karras' noise levels."""
    return [*samplers, *map(_with_karras, samplers)]


#: Every sampler of the guide (stable-diffusion-art.com/samplers), by its name.
SAMPLERS: dict[str, Sampler] = {
    sampler.name: sampler
    for sampler in [
        Sampler("Euler", euler, 1, "straight on along the slope", EDM, scheduler="EulerDiscreteScheduler"),
        Sampler(
            "Euler a",
            euler,
            1,
            "Euler to below the next level, then noise up to it",
            "k-diffusion, after DDPM's chain",
            stochastic=True,
            scheduler="EulerAncestralDiscreteScheduler",
            options={"eta": 1.0},
        ),
        Sampler(
            "Heun", heun, 2, "the mean of the slopes at both ends of a step", EDM, 2, scheduler="HeunDiscreteScheduler"
        ),
        *_both(
            Sampler(
                "LMS",
                adams,
                4,
                "the polynomial through the last four slopes",
                "Adams and Bashforth 1883, in k-diffusion",
                scheduler="LMSDiscreteScheduler",
            )
        ),
        Sampler(
            "DDIM",
            euler,
            1,
            "Euler's step in other coordinates, on every k-th timestep",
            "Song et al. 2020, arXiv 2010.02502",
            levels="leading",
            ends_low=True,
            karras=False,
            why_not="it visits timesteps of the training; with other levels it is Euler, so ask for 'Euler Karras'",
            scheduler="DDIMScheduler",
            settings={"clip_sample": False, **_LIKE_SD},
        ),
        Sampler(
            "PLMS",
            plms,
            4,
            "the last four noises, by the coefficients for even steps",
            "Liu et al. 2022, arXiv 2202.09778",
            levels="leading",
            ends_low=True,
            karras=False,
            why_not="its coefficients hold for even timesteps only; 'LMS Karras' has those for uneven ones",
            scheduler="PNDMScheduler",
            settings={"skip_prk_steps": True, **_LIKE_SD},
        ),
        Sampler("DPM (first order)", dpm_1, 1, "DPM-Solver-1, which is Euler's step written otherwise", DPM_SOLVER),
        *_both(
            Sampler(
                "DPM2",
                dpm_2,
                2,
                "the slope at the middle of log sigma",
                DPM_SOLVER,
                2,
                scheduler="KDPM2DiscreteScheduler",
            ),
            Sampler(
                "DPM2 a",
                dpm_2,
                2,
                "DPM2 to below the next level, then noise",
                DPM_SOLVER,
                2,
                stochastic=True,
                scheduler="KDPM2AncestralDiscreteScheduler",
                options={"eta": 1.0},
            ),
        ),
        *_both(
            Sampler(
                "DPM++ 2S a",
                dpmpp_2s,
                2,
                "x0 at the middle of log sigma, then noise",
                DPM_SOLVER_PP,
                2,
                stochastic=True,
            )
        ),
        *_both(
            Sampler(
                "DPM++ 2M",
                dpmpp_2m,
                2,
                "the line through the last two x0",
                DPM_SOLVER_PP,
                scheduler="DPMSolverMultistepScheduler",
                settings={"algorithm_type": "dpmsolver++", "solver_order": 2},
            )
        ),
        *_both(
            Sampler(
                "DPM++ SDE",
                dpmpp_sde,
                2,
                "2S with noise in both halves, from a Brownian path",
                DPM_SOLVER_PP,
                2,
                stochastic=True,
                brownian=True,
                scheduler="DPMSolverSDEScheduler",
            )
        ),
        *_both(
            Sampler(
                "DPM++ 2M SDE",
                dpmpp_2m,
                2,
                "2M for the SDE: a longer step, and noise",
                DPM_SOLVER_PP,
                stochastic=True,
                brownian=True,
                scheduler="DPMSolverMultistepScheduler",
                options={"eta": 1.0},
                settings={"algorithm_type": "sde-dpmsolver++", "solver_order": 2},
            )
        ),
        # diffusers' third-order SDE step has the sign of one term wrong (tests/test_samplers.py shows it).
        Sampler(
            "DPM++ 3M SDE",
            dpmpp_3m,
            3,
            "the parabola through the last three x0, and noise",
            DPM_SOLVER_PP,
            stochastic=True,
            brownian=True,
        ),
        Sampler(
            "DPM fast",
            dpm_fast,
            3,
            "third-order steps, as many as the evaluations pay for",
            DPM_SOLVER,
            karras=False,
            why_not=_OWN_STEPS,
        ),
        Sampler(
            "DPM adaptive",
            dpm_adaptive,
            3,
            "steps as long as two orders agree",
            DPM_SOLVER,
            0,
            karras=False,
            why_not=_OWN_STEPS,
        ),
        Sampler(
            "UniPC",
            unipc,
            3,
            "2M's prediction, corrected afterwards at no cost",
            "Zhao et al. 2023, arXiv 2302.04867",
            scheduler="UniPCMultistepScheduler",
            settings={"solver_order": 2},
        ),
        Sampler(
            "DEIS",
            adams,
            2,
            "the line through the last two slopes, over log sigma",
            "Zhang and Chen 2022, arXiv 2204.13902",
            scheduler="DEISMultistepScheduler",
            settings={"solver_order": 2},
            options={"order": 2, "log": True},
        ),
    ]
}


#: Samplers of today's menus that the guide does not have. The stored measurements hold only a few of them.
NEWER: dict[str, Sampler] = {
    sampler.name: sampler
    for sampler in [
        Sampler(
            "DDPM",
            euler,
            1,
            "the random step that training undoes, over several timesteps at once",
            "Ho et al. 2020, arXiv 2006.11239",
            stochastic=True,
            levels="leading",
            karras=False,
            why_not="it visits timesteps of the training; with other levels it is Euler a, so ask for that",
            scheduler="DDPMScheduler",
            settings={"clip_sample": False, "steps_offset": 1, "timestep_spacing": "leading"},
            options={"eta": 1.0},
        ),
        Sampler(
            "LCM",
            lcm,
            1,
            "straight to x0, and all the noise of the next level anew",
            "Luo et al. 2023, arXiv 2310.04378",
            stochastic=True,
        ),
        Sampler(
            "Restart",
            restart,
            2,
            "Heun, with one part of the way gone twice, from new noise",
            "Xu et al. 2023, arXiv 2306.14878",
            0,
            stochastic=True,
            levels="karras",
        ),
    ]
}


#: What else stands in the menus of 2026 (ComfyUI, and AUTOMATIC1111 and its successors): the name there, under
#: which name it is here ("" when it is not), what it does, and where it is from.
MENU: tuple[tuple[str, str, str, str], ...] = (
    ("ddpm", "DDPM", "DDPM's own random step, from one timestep to an earlier one", "arXiv 2006.11239"),
    ("lcm", "LCM", "for distilled models: x0, and all the noise anew", "arXiv 2310.04378"),
    ("Restart", "Restart", "Heun; goes up again to a middle noise level, and down once more", "arXiv 2306.14878"),
    ("ddim", "Euler", "Euler's step; in ComfyUI this name just runs Euler", "arXiv 2010.02502"),
    ("uni_pc, uni_pc_bh2", "UniPC", "predicts and corrects; ours is bh2", "arXiv 2302.04867"),
    ("deis", "DEIS", "a polynomial through the last slopes; ours of order 2, ComfyUI's of 3", "arXiv 2204.13902"),
    ("heunpp2", "", "Heun, with a third slope one step further ahead, in a weighted mean", "Carzit's samplers"),
    ("ipndm, ipndm_v", "", "PLMS without its costly start; v for uneven steps", "arXiv 2204.13902"),
    ("res_multistep", "", "a refined exponential integrator of second order that remembers one x0", "arXiv 2308.02157"),
    (
        "gradient_estimation",
        "",
        "Euler's step along the last slope, pushed away from the one before",
        "arXiv 2306.04848",
    ),
    ("er_sde", "", "a family of SDEs between Euler's path and DDPM's, third order", "arXiv 2309.06169"),
    ("sa_solver", "", "LMS's idea for SDEs, with a prediction and a correction", "arXiv 2309.05019"),
    ("seeds_2, seeds_3", "", "exponential steps for SDEs with two or three evaluations", "arXiv 2305.14267"),
    ("..._cfg_pp (CFG++)", "", "guides x0 alone, and takes the noise from the unguided answer", "arXiv 2406.08070"),
)

#: The same for schedules.
SCHEDULE_MENU: tuple[tuple[str, str, str, str], ...] = (
    ("normal", "linspace", "even timesteps, from the last to the first", "k-diffusion"),
    ("sgm_uniform", "open linspace", "the same, without the lowest timestep", "Stability's generative-models"),
    ("simple", "trailing", "every k-th timestep, from the last one down", "arXiv 2305.08891"),
    ("ddim_uniform", "leading", "every k-th timestep, from the first one up", "arXiv 2010.02502"),
    ("karras", "karras", "even in sigma to the power of 1/7", "arXiv 2206.00364"),
    ("exponential", "exponential", "even in log sigma", "k-diffusion"),
    ("beta", "beta", "timesteps, dense at both ends", "arXiv 2407.12173"),
    ("kl_optimal", "", "even in the arc tangent of sigma", "arXiv 2404.14507"),
    ("Align Your Steps", "", "ten levels found by optimisation, a different list for each model", "arXiv 2404.14507"),
    ("linear_quadratic", "", "small even steps first, then ever larger ones; made for video", "Genmo's Mochi"),
)


def find_sampler(name: str | Sampler) -> Sampler:
    """The sampler with this name. "Karras" may be appended to any that can use Karras' noise levels.

    Raises ValueError for an unknown name, with the nearest ones, and when Karras' levels make no sense for it.
    """
    if isinstance(name, Sampler):
        return name
    known = SAMPLERS | NEWER
    if name in known:
        return known[name]
    base, _, tail = name.rpartition(" ")
    if tail == "Karras" and base in known and known[base].levels != "karras":
        _check_karras(known[base])
        return _with_karras(known[base])
    raise ValueError(f"there is no sampler {name!r}; {nearest(name, known)}")


def _check_karras(sampler: Sampler) -> None:
    if not sampler.karras:
        raise ValueError(f"{sampler.name} has no Karras variant: {sampler.why_not}")


def sigmas_for(name: str | Sampler, levels: Levels, steps: int, schedule_name: str | None = None) -> Tensor:
    """The noise levels (steps + 1,) of the sampler's usual schedule, or of the one called `schedule_name`.

    Raises ValueError as `find_sampler` and `schedule` do, and for "karras" with a sampler that cannot use it.
    """
    sampler = find_sampler(name)
    if schedule_name == "karras":
        _check_karras(sampler)
    return schedule(schedule_name or sampler.levels, levels, steps, levels.lowest if sampler.ends_low else 0.0)


@torch.no_grad()
def solve(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    sampler: str | Sampler = "Euler",
    *,
    seeds: Sequence[int] | None = None,
    noise: Noise = silent,
    **options: Any,
) -> Iterator[SolverStep]:
    """Run a sampler from x (N, ...) at noise level sigmas[0] to the last of the levels, yielding each step.

    Args:
        model: D(x, sigma), such as a `Denoiser` or a `companion.mixture.Mixture`.
        x: with noise of level sigmas[0], such as from `start`.
        sigmas: falling noise levels, such as from `sigmas_for`.
        sampler: one of `SAMPLERS` or `NEWER`, or its name.
        seeds: one for each of N, for samplers that add noise; 0, 1, ... by default.
        noise: a source of noise instead of the sampler's usual one: `Independent`, `Brownian` or your own function.
        options: keyword arguments of the sampler's function, such as eta.
    Raises:
        ValueError: for an unknown sampler or option, sigmas that do not fall, or a wrong number of seeds.
        FloatingPointError: when the model's answer holds NaN or infinity; the message says at which step.
    """
    sampler = find_sampler(sampler)
    check_sigmas(sigmas)
    options = {**sampler.options, **options}
    known = sampler.function.__kwdefaults__ or {}
    if unknown := options.keys() - known.keys():
        has = f"it has {', '.join(known)}" if known else "it has none"
        raise ValueError(f"{sampler.name} has no option {', '.join(sorted(unknown))}; {has}")
    noisy = any(options.get(name, known.get(name, 0.0)) for name in ("eta", "churn"))
    if noise is silent and (noisy or (sampler.stochastic and "eta" not in known)):
        kind = Brownian if sampler.brownian else Independent
        noise = kind(x, range(len(x)) if seeds is None else seeds)
    done = 0

    def watched(x: Tensor, sigma: float) -> Tensor:
        x0 = model(x, sigma)
        if not torch.isfinite(x0).all():
            raise FloatingPointError(
                f"the model's answer at step {done} of {sampler.name} (sigma={sigma:.4g}) holds NaN or infinity; "
                "in half precision try float32, otherwise look at the step before"
            )
        return x0

    for step in sampler.function(watched, x, sigmas, noise, **options):
        done += 1
        yield step


# ---- Denoisers -------------------------------------------------------------------------------------------------------


class Denoiser:
    """A stock pipeline as D(x, sigma), with its text and guidance; `evaluations` counts the calls.

    Args:
        prompts: one for all pictures, or one for each.
        guidance_scale: of classifier-free guidance; above 1, the U-Net runs twice per picture, with and without text.
        batch: how many pictures go through the U-Net together.
        unet: used instead of the pipeline's own (see `diffusion.noise_predictor`), such as `fast.Fast.noise_pred`.
    """

    def __init__(
        self,
        pipe: StableDiffusionPipeline,
        prompts: str | Sequence[str],
        guidance_scale: float,
        negative_prompt: str = "",
        batch: int = 32,
        unet: UNet | None = None,
    ) -> None:
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        self.levels, self.evaluations = Levels.of(pipe.scheduler), 0
        self._predict = noise_predictor(pipe, prompts, [guidance_scale], negative_prompt, unet, batch=batch)
        self._kind, self._dtype = pipe.scheduler.config.prediction_type, pipe.unet.dtype

    @torch.no_grad()
    def __call__(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """The estimate of x0 for x (N, C, h, w), in its shape; `sigma` is one number, or one for each picture (N,).

        Raises ValueError when there are neither one nor N prompts.
        """
        self.evaluations += 1
        sigmas = torch.as_tensor(sigma, dtype=torch.float64).cpu().expand(len(x))
        t = self.levels.timestep(sigmas).to(x.device, torch.float32)
        s = sigmas.to(x.device, x.dtype).view(-1, 1, 1, 1)
        # The U-Net was trained on signal and noise with a total variance of 1.
        out = self._predict((x / (s**2 + 1).sqrt()).to(self._dtype), t).to(x.dtype)
        if self._kind == "epsilon":
            return x - s * out
        if self._kind == "v_prediction":  # arXiv 2202.00512, appendix D
            return x / (s**2 + 1) - s / (s**2 + 1).sqrt() * out
        return out  # "sample": the network predicts x0 itself


def start(pipe: StableDiffusionPipeline, seeds: int | Sequence[int], sigmas: Tensor) -> Tensor:
    """The random latents (N, C, h, w) that drawing starts from, at noise level sigmas[0].

    Their standard deviation is sqrt(1 + sigma^2), that of data of variance 1 with such noise, as in DDIM's pipeline.
    """
    first = float(sigmas[0])
    return starting_noise(pipe, seeds).float() * (1 + first**2) ** 0.5


def pictures_by(
    pipe: StableDiffusionPipeline,
    prompts: str | Sequence[str],
    seeds: int | Sequence[int],
    name: str | Sampler,
    *,
    steps: int,
    guidance_scale: float,
    schedule_name: str | None = None,
    **options: Any,
) -> Tensor:
    """Pictures (N, 3, H, W) in [-1, 1], drawn with the sampler `name`.

    Prompts and guidance are as in `Denoiser`, seeds as in `start`, schedules as in `sigmas_for`, options as in `solve`.
    """
    model = Denoiser(pipe, prompts, guidance_scale)
    seeds = [seeds] if isinstance(seeds, int) else list(seeds)
    sigmas = sigmas_for(name, model.levels, steps, schedule_name)
    *_, last = solve(model, start(pipe, seeds, sigmas), sigmas, name, seeds=seeds, **options)
    return decode(pipe, last.x)
