"""How much faster the hyperspherical energy is than the published code. Run this file to print both.

    python tests/benchmarks/energy.py            # the weights of at most 5,120 neurons, two minutes and 4 GB
    python tests/benchmarks/energy.py 10240      # all weights; the published way then takes 15 GB

The weights have the shapes of Stable Diffusion 1.5's U-Net, which has 282 with two or four dimensions, and random
numbers. Each different shape is timed once, one weight at a time, and counts as often as it occurs. What the code of
the OFT paper logs is a sum over the weights: of each the mean over pairs, with s = 1 and the neurons' opposites added.

Where the products of neurons take all the time, as in convolutions, the gain cannot pass about eight: a neuron's
opposite needs no product of its own, and a pair is looked at once. Many neurons of few inputs gain more, 20 times at
(2560, 320), since no matrix of all pairs passes through memory. On two idle cores all weights together were 15 times as
fast, and those of at most 5,120 neurons 8 times.
"""

from __future__ import annotations

import sys
import time
from collections import Counter

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from companion.energy import hyperspherical_energy, weights

#: What differs from the defaults of diffusers in the configuration of Stable Diffusion 1.5.
SD15 = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}


def published(weight: Tensor) -> float:
    """The energy as the paper's code computes it (Zeju1997/oft, oft_utils/mhe.py), written with the same operations:
    all neurons and their opposites at once, the whole matrix of cosines, and a power of each entry.
    """
    neurons = weight.flatten(1).T
    neurons = torch.cat([neurons, -neurons], 1)
    n = neurons.shape[1]
    length = (neurons * neurons).sum(0, keepdim=True).add(1e-4).sqrt()
    cosine = neurons.T @ neurons
    cosine /= length.T @ length
    distance = 2 - 2 * cosine + torch.diag(torch.ones(n))
    energy = torch.pow(distance, -0.5 * torch.ones_like(distance))
    energy -= torch.tril(energy)
    return float(energy.sum() / (n * (n - 1) / 2))


def ours(weight: Tensor) -> float:
    return hyperspherical_energy(weight, half_space=True, mean=True)


def main() -> None:
    most = int(sys.argv[1]) if len(sys.argv) > 1 else 5120
    with torch.device("meta"):
        shapes = Counter(tuple(w.shape) for w in weights(UNet2DConditionModel(**SD15)).values())
    chosen = {shape: times for shape, times in shapes.items() if shape[0] <= most}
    print(f"{sum(shapes.values())} weights of {len(shapes)} shapes; {sum(chosen.values())} have at most {most} neurons")
    ours(torch.randn(64, 64)), published(torch.randn(64, 64))
    seconds, values = Counter(), Counter()
    for i, (shape, times) in enumerate(sorted(chosen.items())):
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(i)) / weight_scale(shape)
        found = {}
        for name, way in (("ours", ours), ("published", published), ("ours", ours)):
            begin = time.perf_counter()
            found[name] = way(weight)
            spent = time.perf_counter() - begin
            seconds[name] += times * (spent / 2 if name == "ours" else spent)
            values[name] += times * (found[name] / 2 if name == "ours" else found[name])
        apart = abs(found["ours"] / found["published"] - 1)
        assert apart < 1e-4, f"{shape}: {found}"
    print(f"published {seconds['published']:.1f} s, ours {seconds['ours']:.1f} s")
    print(
        f"{seconds['published'] / seconds['ours']:.1f} times as fast; the sums differ by "
        f"{abs(values['ours'] / values['published'] - 1):.1e}: {values['published']:.4f}, {values['ours']:.4f}"
    )


def weight_scale(shape: tuple[int, ...]) -> float:
    """Neurons as long as those of a trained weight, about 1."""
    return float(torch.Size(shape[1:]).numel() ** 0.5)


if __name__ == "__main__":
    main()
