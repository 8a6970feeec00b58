"""How long a warm picture takes, and the least that its arithmetic needs. Run this file to print a table.

    python tests/benchmarks/picture.py

The floor is the picture's floating-point operations over the rate at which this machine multiplies large matrices,
measured in the same run. All are timed in turn, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

import companion
from companion.fast import Fast
from companion.models import find, seeded

PROMPT, ROUNDS, SIDE = "a gold robot left of a blue house on snow at sunset", 7, 1536


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def main() -> None:
    pipe, settings = companion.load("tabletop", device="cpu"), find("tabletop").settings
    a, b = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    ways = {
        "stock pipeline": lambda: pipe(PROMPT, generator=seeded(0), **settings),
        "companion.fast": lambda: fast(PROMPT, generator=seeded(0), **settings),
        "large matrices": lambda: a @ b,
    }
    fast = Fast(pipe)
    with FlopCounterMode(display=False) as counter:
        ways["stock pipeline"]()
    ways["companion.fast"]()
    times = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, work in ways.items():
            times[name].append(seconds(work))
    rate = 2 * SIDE**3 / min(times.pop("large matrices"))
    floor = counter.get_total_flops() / rate
    flops = counter.get_total_flops()
    print(f"{flops / 1e9:.1f} GFLOP a picture at {rate / 1e9:.0f} GFLOP/s: a floor of {flops / rate:.2f} s")
    for name, found in times.items():
        print(f"{name}: {median(found):.2f} s, {median(found) / floor:.2f} times the floor (best {min(found):.2f} s)")


if __name__ == "__main__":
    main()
