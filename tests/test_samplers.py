"""Samplers: equal to diffusers at the same sigmas, to closed forms, and of the order they claim; and their panels."""

from __future__ import annotations

import inspect
import itertools
import math

import diffusers
import nbformat
import pytest
import torch
from stock import BETAS, LEVELS
from torch import Tensor

import companion
from companion import diffusion, figures
from companion import samplers as sm
from companion.mixture import Mixture, slope
from companion.models import seeded
from companion.run import run
from companion.schedules import SCHEDULES, schedule
from companion.tabletop import measures
from companion.widgets import SamplerComparison, ScheduleExplorer

MIXTURE = Mixture()
PROMPT = "ab cd"
GUIDE = (
    "Euler, Euler a, Heun, LMS, LMS Karras, DDIM, PLMS, DPM (first order), DPM2, DPM2 a, DPM2 Karras, DPM2 a Karras, "
    "DPM++ 2S a, DPM++ 2S a Karras, DPM++ 2M, DPM++ 2M Karras, DPM++ SDE, DPM++ SDE Karras, DPM++ 2M SDE, "
    "DPM++ 2M SDE Karras, DPM++ 3M SDE, DPM fast, DPM adaptive, UniPC, DEIS"
).split(", ")


@pytest.fixture(scope="module")
def pipe(tiny):
    return companion.load(tiny, device="cpu")


class Counted:
    """A model that counts its evaluations."""

    def __init__(self, model):
        self.model, self.count = model, 0

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        self.count += 1
        return self.model(x, sigma)


def quantiles(n: int = 201) -> Tensor:
    """Points of the noisiest distribution, spread over all of it."""
    return LEVELS.highest * torch.special.ndtri(torch.linspace(0.01, 0.99, n).double())


def last(model, x: Tensor, sigmas: Tensor, name, **options) -> Tensor:
    *_, step = sm.solve(model, x, sigmas, name, **options)
    return step.x


def fixed_noise(generator: torch.Generator, like: Tensor):
    """A source of noise that draws from one generator, as diffusers does."""
    return lambda s, t: torch.randn(like.shape, generator=generator, dtype=like.dtype)


# ---- Against diffusers -----------------------------------------------------------------------------------------------


class Float32(sm.Independent):
    """The same numbers as diffusers, which draws some of them in single precision."""

    def __call__(self, s: float, t: float) -> Tensor:
        shape = (1, *self._like.shape[1:])
        return torch.cat([torch.randn(shape, generator=g) for g in self._generators]).double()


def by_diffusers(sampler: sm.Sampler, steps: int, z: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The result of diffusers' loop, and the sigmas it used; the model is told each true sigma."""
    scheduler = sampler.stock(BETAS)
    scheduler.set_timesteps(steps)
    extra = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    in_sigmas = float(scheduler.init_noise_sigma) > 2  # or in DDPM's own scale, x / sqrt(1 + sigma^2)
    sigmas = sm.sigmas_for(sampler, LEVELS, steps)
    if not sampler.ends_low:
        own = scheduler.sigmas.double()
        sigmas = torch.stack(sorted(own.unique(), reverse=True))
    x = z * (scheduler.init_noise_sigma if in_sigmas else 1)
    for t in scheduler.timesteps:
        noisy = scheduler.scale_model_input(x, t)
        s = sigma_of(scheduler, t)
        inside = noisy * (1 + s**2) ** 0.5
        x = scheduler.step((inside - MIXTURE(inside, s)) / s, t, x, **extra).prev_sample
    return (x if in_sigmas else x * (1 + float(sigmas[-1]) ** 2) ** 0.5), sigmas


def sigma_of(scheduler, t: Tensor) -> float:
    if not hasattr(scheduler, "sigmas"):
        return float(LEVELS.sigma(float(t)))
    if scheduler.step_index is None:
        scheduler._init_step_index(t)
    index = scheduler.step_index
    if "KDPM2" in type(scheduler).__name__ and not scheduler.state_in_first_order:
        return float(scheduler.sigmas_interpol[index - ("Ancestral" in type(scheduler).__name__)])
    return float(scheduler.sigmas[index])


SHARED = [name for name, s in sm.SAMPLERS.items() if s.scheduler and s.scheduler != "DPMSolverSDEScheduler"]


class TestDiffusers:
    @pytest.mark.parametrize("steps", [6, 20])
    @pytest.mark.parametrize("name", SHARED)
    def test_the_same_numbers_at_the_same_sigmas(self, name, steps, record_property):
        sampler, shape = sm.find_sampler(name), (1, 4, 8, 8)
        single = "sde" in str(sampler.settings.get("algorithm_type"))
        generator = seeded(3)
        z = torch.randn(shape, generator=generator, dtype=torch.float32 if single else torch.float64).double()
        theirs, sigmas = by_diffusers(sampler, steps, z, generator)
        scheduler = sampler.stock(BETAS)
        scheduler.set_timesteps(steps)
        first = float(scheduler.init_noise_sigma)
        x = z * (first if first > 2 else (1 + float(sigmas[0]) ** 2) ** 0.5)
        model = Counted(MIXTURE)
        noise = (Float32 if single else sm.Independent)(torch.zeros_like(x), [3]) if sampler.stochastic else None
        mine = last(model, x, sigmas, sampler, noise=noise)
        difference = float((mine - theirs).abs().max())
        record_property("largest difference", difference)
        print(f"{name}, {steps} steps: {difference:.1e}")
        assert difference < 5e-5  # diffusers keeps sigmas in single precision
        assert model.count == sampler.evaluations(steps)

    def test_the_brownian_one_with_the_same_noise(self, monkeypatch):
        """diffusers' DPMSolverSDEScheduler needs torchsde; given the same noise, it goes the same way."""
        pytest.importorskip("torchsde")
        scheduler = sm.find_sampler("DPM++ SDE Karras").stock(BETAS)
        scheduler.set_timesteps(8)
        x = z = torch.randn(1, 4, 4, 4, generator=seeded(0), dtype=torch.float64) * float(scheduler.init_noise_sigma)
        scheduler.noise_sampler = lambda s, t: torch.full_like(z, 0.3)
        sigmas = torch.stack(sorted(scheduler.sigmas.double().unique(), reverse=True))
        middles = (sigmas[:-2] * sigmas[1:-1]).sqrt()
        levels = [v for pair in zip(sigmas[:-2], middles, strict=True) for v in pair] + [sigmas[-2]]
        for t, s in zip(scheduler.timesteps, map(float, levels), strict=True):
            noisy = scheduler.scale_model_input(x, t) * (1 + s**2) ** 0.5
            x = scheduler.step((noisy - MIXTURE(noisy, s)) / s, t, x).prev_sample
        mine = last(MIXTURE, z, sigmas, "DPM++ SDE Karras", noise=lambda s, t: torch.full_like(z, 0.3))
        assert float((mine - x).abs().max()) < 1e-4

    @pytest.mark.parametrize("name", ["Euler", "Euler a", "DDIM", "DPM++ 2M Karras", "LMS"])
    def test_a_picture_is_the_stock_pipelines(self, pipe, name):
        """Through the U-Net, with text and guidance: the latents of the stock pipeline, its noise included."""
        sampler = sm.find_sampler(name)
        stock = diffusers.StableDiffusionPipeline(
            **{**pipe.components, "scheduler": sampler.stock(pipe.scheduler.config)}, requires_safety_checker=False
        )
        stock.set_progress_bar_config(disable=True)
        theirs = stock(
            PROMPT, num_inference_steps=6, guidance_scale=3.0, generator=seeded(4), output_type="latent"
        ).images
        model = sm.Denoiser(stock, PROMPT, 3.0)
        sigmas = sm.sigmas_for(sampler, model.levels, 6)
        x = sm.start(stock, 4, sigmas)
        if float(stock.scheduler.init_noise_sigma) > 2:
            x = diffusion.starting_noise(stock, 4) * stock.scheduler.init_noise_sigma
        mine = last(model, x, sigmas, sampler, seeds=[4])
        if sampler.ends_low:
            mine = mine / (1 + model.levels.lowest**2) ** 0.5
        scale = float(theirs.abs().max())
        # DPM-Solver rounds Karras' timesteps to integers, which this network notices.
        assert float((mine - theirs).abs().max()) / scale < (0.02 if "Karras" in name else 1e-4)

    def test_the_third_order_sde_of_diffusers_has_a_wrong_sign(self):
        """Its term in D2 should vanish with the step h, and tends to -1; so the catalogue names no scheduler for it."""
        assert not sm.find_sampler("DPM++ 3M SDE").scheduler
        scheduler = diffusers.DPMSolverMultistepScheduler(**BETAS, algorithm_type="sde-dpmsolver++", solver_order=3)
        scheduler.set_timesteps(20)
        scheduler.sigmas = torch.linspace(0, -0.3, 21).exp()  # steps of 0.015 in log sigma
        scheduler._step_index = 2
        zero = torch.zeros(1)
        bend = [torch.ones(1), zero, zero]  # x0's with a second difference of 1: D2 = 1/2, D1 = 1/2 of the newest three
        out = scheduler.multistep_dpm_solver_third_order_update(bend[::-1], sample=zero, noise=zero)
        bare = float(out) * (1 + float(scheduler.sigmas[3]) ** 2) ** 0.5
        # x0 moves by at most its extrapolation (3 x0 - 3 x1 + x2), times what a step of this size lets in.
        assert abs(bare) > 5 * abs(3 * -math.expm1(-2 * 0.015))

    def test_traps_of_diffusers_that_the_notebook_names(self):
        """If one of these fails, diffusers has changed, and the notebook's section on traps must too."""
        config = dict(diffusers.DPMSolverMultistepScheduler(**BETAS, use_karras_sigmas=True).config)
        with pytest.raises(TypeError, match="use_karras_sigmas"):
            diffusers.EulerAncestralDiscreteScheduler(**BETAS, use_karras_sigmas=True)
        silent = diffusers.EulerAncestralDiscreteScheduler.from_config(config)
        plain = diffusers.EulerAncestralDiscreteScheduler(**BETAS)
        silent.set_timesteps(10)
        plain.set_timesteps(10)
        assert torch.equal(silent.sigmas, plain.sigmas)  # silently ignored
        two_m = diffusers.DPMSolverMultistepScheduler(**BETAS)
        two_m.set_timesteps(20)
        assert float(two_m.sigmas[-2]) > 0.2  # the last jump, from 0.226 to 0
        rounded = diffusers.DPMSolverMultistepScheduler(**BETAS, use_karras_sigmas=True)
        rounded.set_timesteps(20)
        exact = LEVELS.timestep(rounded.sigmas[:-1].numpy())
        assert 0.2 < float((rounded.timesteps - exact).abs().max()) <= 0.51


# ---- Closed forms and orders -----------------------------------------------------------------------------------------


class TestClosedForms:
    @pytest.mark.parametrize("name", GUIDE)
    def test_one_gaussian_is_solved(self, name):
        """For data N(m, d^2) every path is m + (x - m) * sqrt((d^2 + t^2) / (d^2 + s^2))."""
        m, d = 0.7, 0.5
        bell = Mixture((1.0,), (m,), (d,))
        sampler = sm.find_sampler(name)
        sigmas = sm.sigmas_for(sampler, LEVELS, 200, "karras" if sampler.karras else None)
        options = {"eta": 0.0} if sampler.stochastic else {}
        options |= {"rtol": 0.001, "atol": 0.001} if name == "DPM adaptive" else {}
        *_, step = sm.solve(bell, x := quantiles(), sigmas, sampler, **options)
        s, t = float(sigmas[0]), step.sigma
        # From the lowest level above 0 the last step goes to x0 itself, not quite where the path ends.
        expected = m + (x - m) * ((d**2 + t**2) / (d**2 + s**2)) ** 0.5
        tolerance = 0.02 if sampler.order == 1 else 0.004
        assert float((step.x - expected).abs().max()) < tolerance

    def test_first_orders_are_one_sampler(self):
        """Euler, DDIM with its published formula, and DPM-Solver-1: three papers, one step."""
        sigmas, x = schedule("leading", LEVELS, 12, LEVELS.lowest), quantiles(31)
        euler = last(MIXTURE, x, sigmas, "Euler")
        assert torch.allclose(last(MIXTURE, x, sigmas, "DPM (first order)"), euler, atol=1e-10)
        a = (1 / (1 + sigmas**2)).tolist()  # DDIM, equation 12, in its own coordinates sqrt(a) * x
        z = x * a[0] ** 0.5
        for now, then, s in zip(a, a[1:], sigmas.tolist(), strict=False):
            eps = (z / now**0.5 - MIXTURE(z / now**0.5, s)) / s
            x0 = (z - (1 - now) ** 0.5 * eps) / now**0.5
            z = then**0.5 * x0 + (1 - then) ** 0.5 * eps
        assert torch.allclose(z / a[-1] ** 0.5, euler, atol=1e-10)

    def test_ddims_noise_is_the_ancestral_noise(self):
        """Equation 16 of DDIM, times sqrt(1 + t^2) for these coordinates."""
        for s, t in ((14.6, 9.0), (2.0, 1.9), (0.5, 0.03)):
            a, b = 1 / (1 + s**2), 1 / (1 + t**2)
            theirs = ((1 - b) / (1 - a) * (1 - a / b)) ** 0.5 * (1 + t**2) ** 0.5
            assert sm.ancestral(s, t, 1.0)[1] == pytest.approx(theirs)
            down, up = sm.ancestral(s, t, 0.4)
            assert math.hypot(down, up) == pytest.approx(t) and up == pytest.approx(0.4 * theirs)


#: The slope of the error over 40, 80 and 160 steps on Karras' levels.
ORDERS = {
    **dict.fromkeys(["Euler", "Euler a", "DDIM", "DPM (first order)"], 1),
    **dict.fromkeys(["Heun", "DPM2", "DPM2 a", "DPM++ 2S a", "DPM++ 2M", "DPM++ SDE", "DPM++ 2M SDE", "DEIS"], 2),
    "UniPC": 3,
    "LMS": 3.5,
}


class TestOrders:
    @pytest.mark.parametrize(("name", "order"), ORDERS.items())
    def test_the_error_falls_with_the_order(self, name, order):
        counts, errors, x = (40, 80, 160), [], quantiles()
        options = {"eta": 0.0} if sm.find_sampler(name).stochastic else {}
        for n in counts:
            sigmas = schedule("karras", LEVELS, n, last=None)
            exact = MIXTURE.exact(x, float(sigmas[0]), float(sigmas[-1]))
            errors.append(float(((last(MIXTURE, x, sigmas, name, **options) - exact) ** 2).mean() ** 0.5))
        found = slope(counts, errors)
        print(f"{name}: slope {found:.2f}, errors {', '.join(f'{e:.1e}' for e in errors)}")
        assert found == pytest.approx(order, abs=0.3 if order < 3 else 0.6)

    @pytest.mark.parametrize("name", ["DPM++ 2M", "UniPC"])
    def test_without_the_lowest_level_the_order_is_lost(self, name):
        """diffusers' grid drops the lowest timestep; its last jump then dominates the whole error."""
        errors, x = {"open linspace": [], "karras": []}, quantiles()
        for grid, found in errors.items():
            for n in (10, 20, 40):
                sigmas = schedule(grid, LEVELS, n)
                exact = MIXTURE.exact(x, float(sigmas[0]), 0.0)
                found.append(float(((last(MIXTURE, x, sigmas, name) - exact) ** 2).mean() ** 0.5))
        assert slope((10, 20, 40), errors["open linspace"]) < 1.4
        assert slope((10, 20), errors["karras"][:2]) > 1.7
        assert errors["karras"][-1] < errors["open linspace"][-1] / 4

    def test_the_adaptive_one_meets_its_tolerance(self):
        """Each step's own error, against the exact path from where it began, stays within what is allowed.

        The rule takes a step with a factor of 0.81 or more: if its estimate is at most 1.9 times what is allowed.
        """
        x, sigmas, asked, errors = quantiles(), schedule("linspace", LEVELS, 20), [], []
        for rtol, atol in ((0.05, 0.0078), (0.005, 0.00078), (0.0005, 0.000078)):
            model, begin, s = Counted(MIXTURE), x, float(sigmas[0])
            for step in sm.solve(model, x, sigmas, "DPM adaptive", rtol=rtol, atol=atol):
                exact = MIXTURE.exact(begin, s, step.sigma)
                allowed = (rtol * exact.abs()).clamp_min(atol)
                assert float(((step.x - exact) / allowed).square().mean().sqrt()) < 1.9
                begin, s = step.x, step.sigma
            assert s == pytest.approx(LEVELS.lowest) and model.count >= 3 * (step.index + 1)
            asked.append(model.count)
            errors.append(float((begin - MIXTURE.exact(x, float(sigmas[0]), s)).abs().mean()))
        assert asked == sorted(asked) and errors[0] > 4 * errors[1] > 16 * errors[2]

    def test_the_fast_one_spends_exactly_its_steps(self):
        for n in range(2, 14):
            model = Counted(MIXTURE)
            last(model, quantiles(5), schedule("linspace", LEVELS, n), "DPM fast")
            assert model.count == n


# ---- Noise -----------------------------------------------------------------------------------------------------------


class TestNoise:
    @pytest.mark.parametrize("name", [n for n, s in sm.SAMPLERS.items() if s.stochastic])
    def test_the_variance_is_kept(self, name):
        """Stochastic samplers draw from the mixture: its mean, its variance and its three shares."""
        x = torch.randn(4, 5000, generator=seeded(1), dtype=torch.float64) * LEVELS.highest
        drawn = last(MIXTURE, x, sm.sigmas_for(name, LEVELS, 60), name, seeds=[1, 2, 3, 4])
        for low, high, share in ((-9, -0.5, 0.5), (-0.5, 1.45, 0.3), (1.45, 9, 0.2)):
            assert float(((drawn > low) & (drawn < high)).double().mean()) == pytest.approx(share, abs=0.03)

    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("Euler", {"churn": 40.0}),
            ("Heun", {"churn": 40.0}),
            ("DPM2", {"churn": 40.0}),
            ("DPM fast", {"eta": 1.0}),
            ("DPM adaptive", {"eta": 1.0}),
        ],
        ids=str,
    )
    def test_with_noise_in_between_others_draw_from_the_mixture_too(self, name, options):
        x = torch.randn(4, 5000, generator=seeded(1), dtype=torch.float64) * LEVELS.highest
        sigmas = schedule("karras", LEVELS, 60)
        drawn, plain = last(MIXTURE, x, sigmas, name, **options), last(MIXTURE, x, sigmas, name)
        for low, high, share in ((-9, -0.5, 0.5), (-0.5, 1.45, 0.3), (1.45, 9, 0.2)):
            assert float(((drawn > low) & (drawn < high)).double().mean()) == pytest.approx(share, abs=0.03)
        assert not torch.allclose(drawn, plain, atol=0.1)

    def test_churn_adds_what_the_paper_says(self):
        added = []
        x = torch.zeros(1, 1, dtype=torch.float64)
        y, higher = sm.churned(x, 2.0, 10, lambda s, t: added.append((s, t)) or torch.ones_like(x), 3.0)
        assert higher == pytest.approx(2.6) and float(y) == pytest.approx((2.6**2 - 2**2) ** 0.5)
        assert added == [(higher, 2.0)]
        assert sm.churned(x, 2.0, 10, sm.silent, 0.0) == (x, 2.0)
        assert sm.churned(x, 2.0, 1, lambda s, t: x, 99.0)[1] == pytest.approx(2 * 2**0.5), "at most 41 %"

    def test_with_eta_1_eulers_step_is_ddpms(self):
        """In DDPM's coordinates, with all 1000 steps or a few: the library's own step, given the same noise."""
        scheduler = diffusers.DDPMScheduler(**BETAS, clip_sample=False, timestep_spacing="linspace")
        scheduler.set_timesteps(10)
        steps = scheduler.timesteps.tolist()
        sigmas = torch.tensor([*(float(LEVELS.sigmas[t]) for t in steps), 0.0], dtype=torch.float64)
        start = torch.randn(1, 200, generator=seeded(0), dtype=torch.float64) * sigmas[0]
        table = [torch.randn(1, 200, generator=seeded(i), dtype=torch.float64) for i in range(1, 11)]
        rows = iter(table)
        ours = last(MIXTURE, start, sigmas, "Euler a", noise=lambda s, t: next(rows))
        x, alphas = start * scheduler.alphas_cumprod[steps[0]].double() ** 0.5, scheduler.alphas_cumprod.double()
        for i, t in enumerate(steps):
            a, before = alphas[t], alphas[steps[i + 1]] if i + 1 < len(steps) else torch.tensor(1.0).double()
            x0 = MIXTURE(x / a**0.5, float(sigmas[i]))
            # The posterior q(x_before | x_t, x0), equations 6 and 7 of the paper, for a step of any length.
            alpha = a / before
            mean = before**0.5 * (1 - alpha) / (1 - a) * x0 + alpha**0.5 * (1 - before) / (1 - a) * x
            deviation = ((1 - before) / (1 - a) * (1 - alpha)) ** 0.5
            x = mean + deviation * table[i] if i + 1 < len(steps) else mean
        assert torch.allclose(ours, x, atol=1e-6)

    def test_ddpm_is_the_librarys(self):
        """Its own scheduler, on its own timesteps, with the same noise: the step's mean and deviation are ours."""
        scheduler = sm.NEWER["DDPM"].stock(BETAS | {"num_train_timesteps": 1000})
        scheduler.set_timesteps(10)
        sigmas = sm.sigmas_for("DDPM", LEVELS, 10)
        alphas = scheduler.alphas_cumprod.double()
        wanted = [((1 - alphas[t]) / alphas[t]) ** 0.5 for t in scheduler.timesteps]
        assert torch.allclose(sigmas[:-1], torch.stack(wanted), rtol=1e-5) and sigmas[-1] == 0
        start = torch.randn(1, 200, generator=seeded(0), dtype=torch.float64) * sigmas[0]
        ours = last(MIXTURE, start, sigmas, "DDPM", noise=fixed_noise(seeded(1), start))
        generator, x = seeded(1), start * alphas[scheduler.timesteps[0]] ** 0.5
        for s, t in zip(sigmas, scheduler.timesteps, strict=False):
            x0 = MIXTURE(x / alphas[t] ** 0.5, float(s))
            noise = (x - alphas[t] ** 0.5 * x0) / (1 - alphas[t]) ** 0.5
            x = scheduler.step(noise, t, x, generator=generator).prev_sample
        assert torch.allclose(ours, x, atol=1e-4)

    def test_lcm_forgets_all_but_x0(self):
        sigmas, start = schedule("karras", LEVELS, 4), torch.randn(3, 5, generator=seeded(0), dtype=torch.float64)
        seen = list(sm.solve(lambda x, s: 0 * x + s, start, sigmas, "LCM", noise=lambda s, t: torch.ones_like(start)))
        assert [float(step.x[0, 0]) for step in seen] == pytest.approx(
            [float(s + t) for s, t in itertools.pairwise(sigmas)]
        ), "x0, which this model says is s, and t times the noise"
        assert torch.equal(seen[-1].x, seen[-1].x0)

    def test_restart_without_its_noise_is_heun(self):
        sigmas, start = schedule("karras", LEVELS, 9), torch.randn(8, 1, generator=seeded(0), dtype=torch.float64) * 14
        heun = last(MIXTURE, start, sigmas, "Heun")
        for options in ({"times": 0}, {"low": 1e-9}):
            assert torch.equal(last(MIXTURE, start, sigmas, "Restart", **options), heun)
        model = Counted(MIXTURE)
        *_, end = steps = list(sm.solve(model, start, sigmas, "Restart", seeds=range(8), times=2))
        there = next(float(s) for s in sigmas if s <= 0.1)
        assert [step.index for step in steps] == list(range(len(steps))) and end.sigma == 0
        assert [step.sigma for step in steps].count(there) == 3, "once, and twice again"
        inner = (len(steps) - 9) // 2
        assert inner == max(3, sum(there < float(s) <= 2.0 for s in sigmas))
        assert model.count == 2 * len(steps) - 1

    @pytest.mark.parametrize(("name", "steps"), [("Restart", 40), ("DDPM", 500)])
    def test_what_they_draw_has_the_distribution(self, name, steps):
        """With the exact denoiser of a normal distribution they end in that distribution, and LCM does not."""
        deviation = 0.5

        def exact(x, s):
            return x * deviation**2 / (deviation**2 + s**2)

        def drawn(name):
            sigmas = sm.sigmas_for(name, LEVELS, steps)
            start = torch.randn(4000, 1, generator=seeded(0), dtype=torch.float64) * (sigmas[0] ** 2 + 0.25) ** 0.5
            noise = fixed_noise(seeded(1), start)
            return float(last(exact, start, sigmas, name, noise=noise).std())

        assert drawn(name) == pytest.approx(deviation, rel=0.06)
        assert drawn("LCM") < 0.8 * deviation

    def test_a_seed_is_a_picture_whatever_the_batch(self):
        x = torch.randn(3, 2, 4, 4, generator=seeded(0), dtype=torch.float64) * 14
        sigmas = schedule("karras", LEVELS, 6)
        for name in ("Euler a", "DPM++ SDE"):
            together = last(MIXTURE, x, sigmas, name, seeds=[7, 8, 9])
            assert torch.equal(last(MIXTURE, x[1:2], sigmas, name, seeds=[8]), together[1:2])
            assert not torch.allclose(last(MIXTURE, x[1:2], sigmas, name, seeds=[9]), together[1:2])

    def test_the_brownian_path_is_one_path(self):
        like = torch.zeros(2, 3000, dtype=torch.float64)
        w = sm.Brownian(like, [1, 2])
        whole, first, second = w(9.0, 1.0), w(9.0, 3.0), w(3.0, 1.0)
        assert torch.allclose(whole, (first + second) / 2**0.5, atol=1e-9)  # 9 to 3 is as far as 3 to 1
        assert torch.equal(sm.Brownian(like[:1], [2])(9.0, 1.0), whole[1:])
        for a, b in ((14.6, 14.5), (9.0, 1.0), (0.0301, 0.03)):
            z = w(a, b)
            assert float(z.mean()) == pytest.approx(0, abs=0.05) and float(z.std()) == pytest.approx(1, abs=0.05)
        assert abs(float((first * second).mean())) < 0.05  # what does not overlap is independent
        with pytest.raises(ValueError, match="there is no path"):
            w(2000.0, 1.0)

    def test_with_one_path_it_converges_and_with_fresh_noise_it_does_not(self):
        """With one path, more steps move a picture less; with fresh noise, just as far."""
        x = torch.randn(1, 4000, generator=seeded(5), dtype=torch.float64) * LEVELS.highest
        moved = {}
        for kind in (sm.Brownian, sm.Independent):
            ends = [
                last(MIXTURE, x, schedule("karras", LEVELS, n), "Euler a", noise=kind(x, [5])) for n in (40, 160, 640)
            ]
            moved[kind] = [float((a - b).abs().mean()) for a, b in zip(ends, ends[1:], strict=False)]
        assert moved[sm.Brownian][1] < 0.7 * moved[sm.Brownian][0]
        assert moved[sm.Independent][1] > 0.9 * moved[sm.Independent][0] > moved[sm.Brownian][0]

    def test_eta_zero_adds_nothing(self):
        x, sigmas = quantiles(31), schedule("karras", LEVELS, 12)
        for name, plain in (("Euler a", "Euler"), ("DPM2 a", "DPM2"), ("DPM++ 2M SDE", "DPM++ 2M")):
            assert torch.equal(last(MIXTURE, x, sigmas, name, eta=0.0), last(MIXTURE, x, sigmas, plain))


# ---- The denoiser ----------------------------------------------------------------------------------------------------


class TestDenoiser:
    def test_batches_prompts_and_sigmas_together(self, pipe):
        """Pictures of other prompts at other noise levels share a pass, and each is what it is alone."""
        prompts, sigmas = ["ab", "cd", "ab"], torch.tensor([9.0, 2.0, 0.3])
        x = diffusion.starting_noise(pipe, [1, 2, 3]) * sigmas.view(-1, 1, 1, 1)
        together = sm.Denoiser(pipe, prompts, 3.0, batch=2)(x, sigmas)
        for i, prompt in enumerate(prompts):
            alone = sm.Denoiser(pipe, prompt, 3.0)(x[i : i + 1], float(sigmas[i]))
            assert torch.allclose(together[i : i + 1], alone, atol=1e-4)

    def test_it_answers_by_the_weights_that_are_there_now(self, tiny):
        """No earlier answer is remembered, not even for the same question."""
        pipe = companion.load(tiny, device="cpu")
        model, x = sm.Denoiser(pipe, "ab", 3.0), diffusion.starting_noise(pipe, [1, 2])
        before = model(x, 2.0)
        assert torch.equal(model(x, 2.0), before) and model.evaluations == 2
        with torch.no_grad():
            for p in pipe.unet.parameters():
                p.mul_(0.5)
        after = model(x, 2.0)
        assert not torch.allclose(after, before, atol=1e-3)
        assert torch.allclose(after, sm.Denoiser(pipe, "ab", 3.0)(x, 2.0), atol=1e-6)

    def test_every_kind_of_prediction_gives_the_same_x0(self, pipe):
        """A U-Net that answers with the truth, in each of the three forms."""
        truth = torch.randn(1, 4, 4, 4, generator=seeded(9))
        s = torch.tensor(2.5)
        eps = torch.randn(1, 4, 4, 4, generator=seeded(8))
        a = 1 / (1 + s**2)
        answers = {"epsilon": eps, "sample": truth, "v_prediction": a.sqrt() * eps - (1 - a).sqrt() * truth}
        for kind, answer in answers.items():
            model = sm.Denoiser(pipe, "ab", 1.0, unet=lambda *args, answer=answer: answer)
            model._kind = kind
            assert torch.allclose(model(truth + s * eps, float(s)), truth, atol=1e-5), kind

    def test_numbers_that_do_not_fit(self, pipe):
        with pytest.raises(ValueError, match="2 prompts for 3 pictures; give one for all, or one for each"):
            sm.Denoiser(pipe, ["a", "b"], 2.0)(diffusion.starting_noise(pipe, [1, 2, 3]), 1.0)

    def test_pictures_by_a_sampler(self, pipe):
        pictures = sm.pictures_by(pipe, ["ab", "cd"], [1, 2], "UniPC", steps=3, guidance_scale=2.0)
        assert pictures.shape == (2, 3, 32, 32) and float(pictures.abs().max()) <= 1


# ---- The catalogue, and bad input ------------------------------------------------------------------------------------


class TestCatalogue:
    def test_it_has_every_name_of_the_guide(self):
        assert list(sm.SAMPLERS) == GUIDE
        assert not sm.NEWER.keys() & sm.SAMPLERS.keys()
        assert all(sm.find_sampler(name) is sampler for name, sampler in sm.NEWER.items())

    def test_the_menus_names_are_here_where_it_says_so(self):
        assert all(sm.find_sampler(here) for _, here, _, _ in sm.MENU if here)
        assert {here for _, here, _, _ in sm.MENU} >= sm.NEWER.keys()
        assert {here for _, here, _, _ in sm.SCHEDULE_MENU if here} == SCHEDULES.keys()
        # By ComfyUI's rules, as whole timesteps.
        n, total = 20, 1000
        rules = {
            "linspace": torch.linspace(999, 0, n),
            "open linspace": torch.linspace(999, 0, n + 1)[:-1].round(),
            "trailing": torch.tensor([total - 1 - int(i * total / n) for i in range(n)]),
            "leading": torch.tensor([1 + i * (total // n) for i in range(n)][::-1]),
        }
        for name, timesteps in rules.items():
            assert torch.allclose(schedule(name, LEVELS, n, None), LEVELS.sigma(timesteps), rtol=1e-5), name

    @pytest.mark.parametrize("name", GUIDE)
    def test_each_yields_its_steps_and_costs_what_it_says(self, name):
        sampler, n = sm.find_sampler(name), 7
        sigmas = sm.sigmas_for(name, LEVELS, n)
        model = Counted(MIXTURE)
        steps = list(sm.solve(model, quantiles(8)[:, None], sigmas, name))
        assert [step.index for step in steps] == list(range(len(steps)))
        levels = [step.sigma for step in steps]
        assert levels == sorted(levels, reverse=True) and levels[-1] < 0.03
        assert all(step.x.shape == step.x0.shape == (8, 1) for step in steps)
        if sampler.per_step:
            assert model.count == sampler.evaluations(n)
            assert sampler.evaluations(sampler.steps_for(model.count)) == model.count
        if sampler.function not in (sm.dpm_fast, sm.dpm_adaptive):
            assert levels == pytest.approx(sigmas[1:].tolist())
        assert sampler.about and sampler.paper and (sampler.karras or sampler.why_not)

    def test_karras_may_be_appended_where_it_makes_sense(self):
        heun = sm.find_sampler("Heun Karras")
        assert heun.levels == "karras" and heun.function is sm.heun
        for name in ("DDIM Karras", "PLMS Karras", "DPM fast Karras", "DPM adaptive Karras"):
            with pytest.raises(ValueError, match=f"{name.removesuffix(' Karras')} has no Karras variant: "):
                sm.find_sampler(name)
        with pytest.raises(ValueError, match="DDIM has no Karras variant"):
            sm.sigmas_for("DDIM", LEVELS, 10, "karras")
        with pytest.raises(ValueError, match="EulerAncestralDiscreteScheduler of diffusers knows no Karras levels"):
            sm.find_sampler("Euler a Karras").stock(BETAS)
        with pytest.raises(ValueError, match="diffusers has no scheduler that is DPM fast"):
            sm.find_sampler("DPM fast").stock(BETAS)

    @pytest.mark.parametrize(
        ("name", "hint"), [("euler A", "Euler a"), ("DPM++2M Karras", "DPM[+][+] 2M Karras"), ("unipc", "UniPC")]
    )
    def test_an_unknown_name_gets_the_nearest(self, name, hint):
        with pytest.raises(ValueError, match=f"there is no sampler '.*'; did you mean .*'{hint}'"):
            sm.find_sampler(name)

    def test_names_far_from_all(self):
        with pytest.raises(ValueError, match="there are: Euler, Euler a"):
            sm.find_sampler("qqqqqq")

    def test_sigmas_that_make_no_schedule(self):
        for name in ("Euler", "DPM adaptive"):
            with pytest.raises(ValueError, match=r"sigmas\[2\]=2 is not below sigmas\[1\]=1"):
                list(sm.solve(MIXTURE, quantiles(3), torch.tensor([3.0, 1.0, 2.0]), name))

    def test_nan_is_named_at_its_step(self):
        def model(x: Tensor, sigma: float) -> Tensor:
            return x * float("nan") if sigma < 2 else MIXTURE(x, sigma)

        steps = sm.solve(model, quantiles(3), torch.tensor([9.0, 4.0, 1.5, 0.5, 0.0]), "Euler")
        assert [next(steps).index, next(steps).index] == [0, 1]
        with pytest.raises(FloatingPointError, match=r"at step 2 of Euler \(sigma=1.5\) holds NaN"):
            next(steps)

    def test_options_that_it_does_not_have(self):
        with pytest.raises(ValueError, match="Heun has no option eta; it has churn"):
            list(sm.solve(MIXTURE, quantiles(3), torch.tensor([9.0, 0.0]), "Heun", eta=1.0))
        with pytest.raises(ValueError, match="UniPC has no option eta; it has order"):
            list(sm.solve(MIXTURE, quantiles(3), torch.tensor([9.0, 0.0]), "UniPC", eta=1.0))
        with pytest.raises(ValueError, match="2 seeds for 3 pictures"):
            list(sm.solve(MIXTURE, quantiles(3), torch.tensor([9.0, 1.0, 0.0]), "Euler a", seeds=[1, 2]))
        with pytest.raises(ValueError, match="two noise levels above 0"):
            list(sm.solve(MIXTURE, quantiles(3), torch.tensor([9.0, 0.0]), "DPM fast"))
        with pytest.raises(ArithmeticError, match="after 30 evaluations sigma is still"):
            list(sm.solve(MIXTURE, quantiles(3), torch.tensor([9.0, 1.0]), "DPM adaptive", rtol=0, atol=1e-30, most=30))


# ---- Panels, and the notebook with another model ---------------------------------------------------------------------


class TestPanels:
    def test_the_explorer_draws_what_is_chosen(self):
        panel = ScheduleExplorer(LEVELS)
        seen = {panel.picture.value}
        for control, value in (("steps", 13), ("first", "beta"), ("second", "trailing"), ("logarithmic", False)):
            getattr(panel, control).value = value
            seen.add(panel.picture.value)
        assert len(seen) == 5
        sigmas = schedule("beta", LEVELS, 13, last=None)
        assert f"beta: {int((sigmas < 1).sum())} of 13 levels below 1" in panel.message.value

    def test_the_comparison_draws_what_the_samplers_draw(self, pipe):
        panel = SamplerComparison(pipe, "ab", ("Euler", "UniPC"), seed=3, steps=4, most=6, guidance_scale=2.0)
        alone = {}
        for name in ("Euler", "UniPC"):
            model = sm.Denoiser(pipe, "ab", 2.0)
            sigmas = sm.sigmas_for(name, model.levels, 4)
            alone[name] = last(model, sm.start(pipe, 3, sigmas), sigmas, name, seeds=[3])
        apart = float((alone["Euler"] - alone["UniPC"]).square().mean().sqrt())
        assert f"the latents are {apart:.2f} apart" in panel.message.value
        for control, value in (("steps", 5), ("first", "Euler a"), ("second", "DDIM"), ("prompt", "cd"), ("seed", 4)):
            before = panel.picture.value
            getattr(panel, control).value = value
            assert panel.picture.value != before, control


def test_a_logarithmic_axis_is_marked_where_it_was_measured():
    figure = figures.curves([5, 10, 40], {"a": [3, 2, 1]}, title="T", x_label="x", y_label="y", log_x=True)
    (axis,) = figure.axes
    assert axis.get_xscale() == "log" and [t.get_text() for t in axis.get_xticklabels()] == ["5", "10", "40"]


@pytest.mark.notebooks
@pytest.mark.slow
def test_the_notebook_runs_on_another_checkpoint(tiny, tmp_path, capsys):
    """A checkpoint of Stable Diffusion's shape that the judge cannot read: every size and level comes from it."""
    code = run(only="02_samplers", model=str(tiny), out=tmp_path / "out", parameters={"REFERENCE": 6})
    assert code == 0, capsys.readouterr().out
    notebook = nbformat.read(tmp_path / "out" / "02_samplers.ipynb", as_version=4)
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert measures.NOT_JUDGED in printed and "what follows was measured above" in printed
