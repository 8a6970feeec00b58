"""How much faster a sweep is than a plain loop over pipelines. Run this file to print both.

    python tests/benchmarks/sampler_sweep.py

Both measure how far samplers are from their own limit after a few evaluations of the model. The loop takes a stock
pipeline for each sampler, draws picture by picture, and finds each sampler's limit by many of its own steps. The sweep
draws all pictures as one batch on the fast path, and shares the limit: deterministic samplers solve one equation, so
one long run stands for all of them. What each of the two gains is printed too. (The distances differ a little where a
sampler's many steps do not reach its limit, such as Euler's 60.)
"""

from __future__ import annotations

import time

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

import companion
from companion import diffusion
from companion import samplers as sm
from companion.models import find, seeded
from companion.sampler_sweeps import PROMPTS, crossed, denoiser

#: All of these begin with noise of the first level, as their schedulers in diffusers do.
NAMES, EVALUATIONS, LIMIT, SEEDS = ("Euler", "Heun", "LMS", "LMS Karras"), (6, 10), 60, 2


class Ends(dict):
    """The last latents (N, 4, h, w) by (sampler, evaluations), with the seconds that each took in `seconds`."""

    def __init__(self) -> None:
        self.seconds = {}

    def add(self, key: tuple[str, int], work) -> None:
        begin = time.perf_counter()
        self[key] = work()
        self.seconds[key] = time.perf_counter() - begin


def loop(pipe: StableDiffusionPipeline, prompts: list[str], seeds: list[int], scale: float) -> Ends:
    """What a notebook usually does: a pipeline for each sampler, a call for each picture."""
    ends = Ends()
    for name in NAMES:
        sampler = sm.find_sampler(name)
        parts = {**pipe.components, "scheduler": sampler.stock(pipe.scheduler.config)}
        stock = StableDiffusionPipeline(**parts, requires_safety_checker=False)
        stock.set_progress_bar_config(disable=True)
        for n in (*EVALUATIONS, LIMIT):
            settings = {"num_inference_steps": sampler.steps_for(n), "guidance_scale": scale, "output_type": "latent"}

            def draw(stock=stock, settings=settings) -> Tensor:
                pictures = zip(prompts, seeds, strict=True)
                return torch.cat([stock(p, generator=seeded(s), **settings).images for p, s in pictures])

            ends.add((name, n), draw)
    return ends


def sweep(pipe: StableDiffusionPipeline, prompts: list[str], seeds: list[int], scale: float) -> Ends:
    """The course's way: one batch, on the fast path; text, noise, the first answer and the limit are shared."""
    model, ends = denoiser(pipe, prompts, scale), Ends()

    def draw(name: str, n: int) -> Tensor:
        sigmas = sm.sigmas_for(name, model.levels, sm.find_sampler(name).steps_for(n))
        *_, last = sm.solve(model, diffusion.starting_noise(pipe, seeds) * float(sigmas[0]), sigmas, name)
        return last.x

    ends.add(("Heun Karras", LIMIT), lambda: draw("Heun Karras", LIMIT))
    for name in NAMES:
        for n in EVALUATIONS:
            ends.add((name, n), lambda name=name, n=n: draw(name, n))
        ends[name, LIMIT] = ends["Heun Karras", LIMIT]
    return ends


def rms(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().mean().sqrt())


def main() -> None:
    pipe, scale = companion.load("tabletop", device="cpu"), find("tabletop").guidance
    prompts, seeds = crossed(PROMPTS[:2], SEEDS)
    *_, _ = sm.solve(denoiser(pipe, prompts, scale), torch.randn(4, 4, 16, 16), torch.tensor([9.0, 1.0, 0.0]), "Euler")
    runs = []
    for function in (sweep, loop, sweep):  # the sweep before and after the loop, in case the machine changes
        runs.append(function(pipe, prompts, seeds, scale))
        print(f"{function.__name__:5} {sum(runs[-1].seconds.values()):6.1f} s", flush=True)
    first, slow, second = runs
    few = [(name, n) for name in NAMES for n in EVALUATIONS]

    def ratio(keys: list[tuple[str, int]], fast_keys: list[tuple[str, int]]) -> float:
        fast = sum(run.seconds[key] for run in (first, second) for key in fast_keys) / 2
        return sum(slow.seconds[key] for key in keys) / fast

    threads = torch.get_num_threads()
    print(f"{len(prompts)} pictures, {len(NAMES)} samplers, {EVALUATIONS} evaluations and a limit; {threads} threads")
    print(f"one batch on the fast path:            ratio {ratio(few, few):.1f}")
    print(f"... and one limit for all the samplers: ratio {ratio(list(slow.seconds), list(second.seconds)):.1f}")
    apart = max(rms(second[key], slow[key]) for key in few)
    print(f"their latents differ by {apart:.4f} at most (root mean square)")
    for name in NAMES:
        mine, theirs = (rms(ends[name, EVALUATIONS[-1]], ends[name, LIMIT]) for ends in (second, slow))
        print(f"{name:10} after {EVALUATIONS[-1]} evaluations: {mine:.3f} from its limit; by the loop {theirs:.3f}")


if __name__ == "__main__":
    main()
