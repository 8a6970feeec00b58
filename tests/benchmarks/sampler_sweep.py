"""How much faster a sweep is in one batch than as a plain loop over pipelines: run this file, it prints both.

    python tests/benchmarks/sampler_sweep.py

Both draw the same pictures with the same samplers and numbers of evaluations, and end at the same latents.
"""

from __future__ import annotations

import time

import torch
from diffusers import StableDiffusionPipeline

import companion
from companion import latent_diffusion as ld
from companion import samplers as sm
from companion.models import find, seeded
from companion.sampler_sweeps import PROMPTS, crossed, denoiser

NAMES, STEPS, SEEDS = ("Euler", "LMS"), (3, 6), 2


def loop(pipe: StableDiffusionPipeline, prompts: list[str], seeds: list[int], scale: float) -> dict:
    """What a notebook usually does: a pipeline for each sampler, a call for each picture."""
    ends = {}
    for name in NAMES:
        parts = {**pipe.components, "scheduler": sm.find(name).stock(pipe.scheduler.config)}
        stock = StableDiffusionPipeline(**parts, requires_safety_checker=False)
        stock.set_progress_bar_config(disable=True)
        for steps in STEPS:
            settings = {"num_inference_steps": steps, "guidance_scale": scale, "output_type": "latent"}
            drawn = [stock(p, generator=seeded(s), **settings).images for p, s in zip(prompts, seeds, strict=True)]
            ends[name, steps] = torch.cat(drawn)
    return ends


def batch(pipe: StableDiffusionPipeline, prompts: list[str], seeds: list[int], scale: float) -> dict:
    """The course's sweep: all pictures in one batch, on the fast path; text, noise and the first answer are shared."""
    model, ends = denoiser(pipe, prompts, scale), {}
    for name in NAMES:
        for steps in STEPS:
            sigmas = sm.sigmas_for(name, model.levels, steps)
            x = ld.starting_noise(pipe, seeds) * float(sigmas[0])  # as those two schedulers begin
            *_, last = sm.sample(model, x, sigmas, name)
            ends[name, steps] = last.x
    return ends


def main() -> None:
    pipe, scale = companion.load("tabletop", device="cpu"), find("tabletop").guidance
    prompts, seeds = crossed(PROMPTS[:4], SEEDS)
    batch(pipe, prompts[:2], seeds[:2], scale)  # warm
    timed = {}
    for function in (batch, loop, batch):  # the batch on both sides of the loop, against a machine that changes
        begin = time.perf_counter()
        ends = function(pipe, prompts, seeds, scale)
        timed.setdefault(function, []).append(time.perf_counter() - begin)
        print(f"{function.__name__:6} {timed[function][-1]:6.1f} s", flush=True)
        if function is loop:
            looped = ends
    apart = [float((ends[key] - looped[key]).square().mean().sqrt()) for key in looped]
    evaluations = len(prompts) * sum(STEPS) * len(NAMES)
    (slow,), fast = timed[loop], sum(timed[batch]) / 2
    print(f"{len(prompts)} pictures, {len(NAMES)} samplers, {STEPS} steps, {torch.get_num_threads()} threads")
    print(f"loop over pipelines: {slow:6.1f} s, {1000 * slow / evaluations:5.1f} ms a picture and evaluation")
    print(f"one batch:           {fast:6.1f} s, {1000 * fast / evaluations:5.1f} ms")
    print(f"ratio {slow / fast:.1f}; latents differ by {max(apart):.4f} at most (root mean square)")


if __name__ == "__main__":
    main()
