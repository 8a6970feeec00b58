"""How much longer a picture takes when the U-Net listens to a ControlNet. Run this file to print a table.

    python tests/benchmarks/controlled_picture.py

All ways are warm and timed in turn, so that a machine that slows down slows all of them; each ratio is the median of
the rounds' ratios, each to the plain picture of its own round, on the same path. The ControlNet is new, of the kind
that the course trains: what it has learned does not change how long it takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from diffusers import ControlNetModel

import companion
from companion import diffusion
from companion.controlnet import Control, Controlled, controlnet_of
from companion.diffusion import UNet
from companion.fast import Fast
from companion.models import find, seeded

PROMPT, ROUNDS = "a gold robot left of a blue house on snow at sunset", 9


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def main() -> None:
    pipe, settings = companion.load("tabletop", device="cpu"), find("tabletop").settings
    options = {"steps": settings["num_inference_steps"], "guidance_scale": settings["guidance_scale"]}
    fast, size = Fast(pipe), diffusion.picture_size(pipe)
    picture = torch.rand(1, 3, size, size, generator=seeded(0))
    net, larger = (controlnet_of(pipe.unet, attention=attention).eval() for attention in (False, True))
    made = seconds(lambda: fast.controlnet(net))

    def by_torch(unet: UNet | None = None) -> Callable[[], object]:
        return lambda: diffusion.draw(pipe, PROMPT, 0, unet=unet, **options)

    def by_fast(*nets: ControlNetModel) -> Callable[[], object]:
        heard = Controlled(fast.noise_pred, [Control(fast.controlnet(n), picture) for n in nets]) if nets else None
        return lambda: fast(PROMPT, generator=seeded(0), unet=heard, **settings)

    ways = {
        "torch": by_torch(),
        "torch, controlled": by_torch(Controlled(pipe.unet, [Control(net, picture)])),
        "fast": by_fast(),
        "fast, controlled": by_fast(net),
        "fast, controlled with attention": by_fast(larger),
    }
    first = {name: seconds(work) for name, work in ways.items()}
    rounds = [{name: seconds(work) for name, work in ways.items()} for _ in range(ROUNDS)]
    for name in ways:
        found = [times[name] for times in rounds]
        ratio = median(times[name] / times[name.split(",")[0]] for times in rounds)
        print(f"{name}: {median(found):.2f} s (best {min(found):.2f} s, first {first[name]:.2f} s), ratio {ratio:.2f}")
    print(f"compiling a ControlNet: {made:.2f} s, before its first picture")


if __name__ == "__main__":
    main()
