"""What `diffusion.for_cpu` brings when many pictures are drawn. Run this file to print the ratio.

    python tests/benchmarks/for_cpu.py

Both ways draw the same twenty pictures in turn, so that a machine that slows down slows both.
"""

from __future__ import annotations

import time
from statistics import median

import companion
from companion import diffusion

PROMPT, SEEDS, ROUNDS = "a gold robot left of a blue house on snow at sunset", range(20), 7


def main() -> None:
    plain = companion.load("tabletop", device="cpu")
    ways = {"as loaded": plain, "for the CPU": diffusion.for_cpu(companion.load("tabletop", device="cpu"))}
    times = {name: [] for name in ways}
    for _ in range(ROUNDS + 1):  # the first is not warm
        for name, pipe in ways.items():
            begin = time.perf_counter()
            diffusion.draw(pipe, [PROMPT] * len(SEEDS), list(SEEDS), steps=6, guidance_scale=3.0)
            times[name].append(time.perf_counter() - begin)
    ratios = sorted(a / b for a, b in zip(*(found[1:] for found in times.values()), strict=True))
    for name, found in times.items():
        print(f"{name}: {median(found[1:]):.2f} s for {len(SEEDS)} pictures of 6 steps")
    print(f"as loaded over for the CPU: {median(ratios):.2f} times ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
