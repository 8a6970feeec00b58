"""A test bed with known answers: a mixture of Gaussians, whose best denoiser and exact paths can be computed.

    world = Mixture()
    *_, last = solve(world, x, sigmas, "Heun")
    error = last.x - world.exact(x, float(sigmas[0]), last.sigma)

Notebook 02 tests its samplers on it: how far they are from the exact path, and how fast that error falls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Mixture:
    """A mixture of Gaussians on the line; called as mixture(x, sigma), it is the best possible denoiser D(x, sigma).

    Every number in x is independent of the others, so x may have any shape: (N,), or a batch of pictures.

    Attributes:
        weights: the share of each Gaussian; they are scaled to sum to 1.
        means, deviations: the mean and the standard deviation of each Gaussian.
    """

    weights: tuple[float, ...] = (0.5, 0.3, 0.2)
    means: tuple[float, ...] = (-1.5, 0.5, 1.8)
    deviations: tuple[float, ...] = (0.25, 0.4, 0.15)

    def _parts(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The Gaussians' weights, means and variances (K,), and the z-scores (..., K) of x under each with noise."""
        w, m, d = (torch.tensor(v, dtype=x.dtype, device=x.device) for v in (self.weights, self.means, self.deviations))
        return w / w.sum(), m, d**2, (x[..., None] - m) / (d**2 + sigma**2).sqrt()

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """The mean of x0 given x = x0 + sigma * noise, by Bayes' rule; it has the shape of x.

        Each Gaussian has its own answer, (sigma^2 m + d^2 x) / (d^2 + sigma^2) for mean m and deviation d. The answers
        are averaged with the probability that x came from each of the Gaussians.
        """
        w, m, v, z = self._parts(x, sigma)
        share = (w.log() - (v + sigma**2).log() / 2 - z**2 / 2).softmax(-1)
        return (share * (sigma**2 * m + v * x[..., None]) / (v + sigma**2)).sum(-1)

    def below(self, x: Tensor, sigma: float) -> Tensor:
        """The share of the noisy distribution at level sigma that lies below x, from 0 to 1."""
        w, _, _, z = self._parts(x, sigma)
        return (w * torch.special.ndtr(z)).sum(-1)

    def exact(self, x: Tensor, s: float, t: float) -> Tensor:
        """The point at level t of the exact path (EDM, arXiv 2206.00364, equation 3) that is at x at level s; float64.

        Paths on a line cannot cross, so a point always has the same share of the distribution below it. We find the
        point with that share at level t by bisection.
        """
        share, x = self.below(x.double(), s), x.double()
        high = torch.full_like(x, max(self.means) + 12 * (max(self.deviations) + t))
        low = -high + 2 * min(0.0, min(self.means))
        for _ in range(90):
            middle = (low + high) / 2
            under = self.below(middle, t) < share
            low, high = torch.where(under, middle, low), torch.where(under, high, middle)
        return (low + high) / 2


def slope(steps: Sequence[float], errors: Sequence[float]) -> float:
    """The measured order of convergence p, if errors fall like steps^-p.

    It is minus the slope of the straight line through log(error) over log(steps).
    """
    return -float(np.polyfit(np.log(np.asarray(steps, float)), np.log(np.asarray(errors, float)), 1)[0])
