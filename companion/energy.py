"""How neurons are spread over directions: hyperspherical energy, and what else says how far a weight has moved.

The energy of a weight is that of charges on a sphere, one where each neuron points: little when the neurons share out
the directions, much when some crowd together (MHE, W. Liu et al., NeurIPS 2018, arXiv 1805.09298). Orthogonal
finetuning is built to keep it (OFT, Z. Qiu et al., arXiv 2306.07280). Other kinds of finetuning move it by so little
that it should never be the only thing that is measured: the other functions here look at the same weights.

Neurons are the rows of torch's `weight` (n, ...), flattened: of a linear layer (out, in), of a convolution
(out, in k k). Half precision is welcome. Nothing is computed in less than single precision; sums are in double.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

#: Where the cosine of two neurons is larger in size, 1 - cosine has lost digits, and distances are computed again.
_NEAR = 0.99

# ---- Energy ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def hyperspherical_energy(
    weight: Tensor,
    s: float = 1.0,
    half_space: bool = False,
    angular: bool = False,
    *,
    mean: bool = False,
    chunk: int | None = None,
) -> float:
    """The hyperspherical energy of a weight's neurons, exactly, over all pairs (arXiv 1805.09298, equation 1).

    It is the sum of f(z) over all i != j, so that each pair counts twice, where z = ||w_i / ||w_i|| - w_j / ||w_j|| ||
    and f(z) = z^-s for s > 0, or log(1 / z) for s = 0. It is infinite when two neurons have the same direction.
    Neurons that are zero have no direction, and are left out.

    Args:
        weight: (n, ...), a neuron in each row.
        s: how fast the repulsion falls with distance; 0, 1 and 2 are usual, and the OFT paper takes 1.
        half_space: add -w for each neuron w, so that opposite neurons count as close too.
        angular: z is the angle between the neurons, in radians, instead of the straight line.
        mean: divide by the number of terms, n (n - 1), or 2n (2n - 1) with `half_space`. The code of the OFT paper
            logs this mean, with `half_space`, summed over the weights of a model.
        chunk: how many neurons are compared with the others at once, a tenth of them by default but at most 256. Memory
            grows with chunk n, not with n n.
    Raises:
        ValueError: when s is negative, or there are no two neurons with a direction.
    """
    if s < 0:
        raise ValueError(f"s={s:g} lets neurons attract each other; give 0, 1, 2, or another number that is positive")
    rows = _neurons(weight)
    n = len(rows) * (2 if half_space else 1)
    if n < 2:
        raise ValueError(f"a weight of shape {tuple(weight.shape)} has no two neurons with a direction to compare")
    at_zero = _summed(rows.new_zeros(1), s, half_space, angular)
    total = 0.0
    for i, cosine in _cosines(rows, chunk):
        pairs = len(cosine) * (2 * cosine.shape[1] - len(cosine) - 1) // 2
        if max(-cosine.min(), cosine.max()) > _NEAR:
            a, b = (cosine.abs() > _NEAR).nonzero(as_tuple=True)
            total += _near_pairs(rows, a + i, b + i, s, angular, half_space)
            cosine[a, b] = 0
            pairs -= len(a)
        # The panel is 0 where there is no pair. That is counted like the others, and taken off again.
        total += _summed(cosine, s, half_space, angular) - (cosine.numel() - pairs) * at_zero
    total *= 2
    if half_space:  # (w, v) as often as (-w, -v); and each neuron with its own opposite
        opposite = math.pi if angular else 2.0
        total = 2 * total + n * (-math.log(opposite) if s == 0 else opposite**-s)
    return total / (n * (n - 1)) if mean else total


def _neurons(weight: Tensor) -> Tensor:
    """The neurons that have a direction (n, d), in single precision at least; no copy where none is needed."""
    rows = weight.detach().flatten(1)
    rows = rows.cpu() if rows.device.type == "mps" else rows  # which has no double precision
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    length = torch.linalg.vector_norm(rows, dim=1)
    if ((length < 1e-15) | (length > 1e15)).any():  # squares may be 0 or infinite; scaling by a power of 2 is exact
        largest = rows.abs().amax(1)
        there = largest > 0
        rows = torch.ldexp(rows[there], -torch.frexp(largest[there])[1][:, None])
    return rows


def _cosines(rows: Tensor, chunk: int | None) -> Iterator[tuple[int, Tensor]]:
    """For neurons i, i + 1, ... the cosines (at most `chunk`, n - i) with each other and all later ones, once a pair;
    the rest is zero.
    """
    scale = 1 / torch.linalg.vector_norm(rows, dim=1)
    # A large chunk multiplies faster, and spends more on pairs that it meets twice.
    chunk = chunk or min(256, max(64, len(rows) // 10))
    for i in range(0, len(rows), chunk):
        cosine = rows[i : i + chunk] @ rows[i:].T
        yield i, cosine.mul_(scale[i : i + chunk, None]).mul_(scale[i:]).triu_(1)


def _near_pairs(rows: Tensor, a: Tensor, b: Tensor, s: float, angular: bool, half_space: bool) -> float:
    """The sum of f(z) for the pairs of neurons `a` and `b`, from their differences in double precision."""
    total, part = 0.0, max(1, 2**20 // rows.shape[1])
    for i, j in zip(a.split(part), b.split(part), strict=True):
        u, v = (neurons / neurons.norm(dim=1, keepdim=True) for neurons in (rows[i].double(), rows[j].double()))
        apart, between = (u - v).norm(dim=1), (u + v).norm(dim=1)  # the second from the opposite
        for z, other in ((apart, between), (between, apart))[: 1 + half_space]:
            z = 2 * torch.atan2(z, other) if angular else z
            total += float((-z.log() if s == 0 else z**-s).sum())
    return total


def _summed(cosine: Tensor, s: float, half_space: bool, angular: bool) -> float:
    """The sum of f(z) over a panel of cosines, which is used up; with the opposites of one side when `half_space`."""
    if half_space and s == 1 and not angular:
        # 1 / sqrt(2 - 2 c) + 1 / sqrt(2 + 2 c) = sqrt(v v + v) with v = 1 / sqrt(1 - c c): half of the work, in place.
        v = cosine.square_().neg_().add_(1).rsqrt_()
        return float(v.addcmul_(v, v).sqrt_().sum(dtype=torch.float64))
    signs = (1, -1) if half_space else (1,)
    return sum(float(_potential(cosine, s, angular, sign).sum(dtype=torch.float64)) for sign in signs)


def _potential(cosine: Tensor, s: float, angular: bool, sign: int = 1) -> Tensor:
    """f(z) of pairs by their cosines; those with the opposites when `sign` is -1."""
    # Of the square of the straight line, 2 - 2 cosine, no root need be taken.
    x, p = ((sign * cosine).acos_(), s) if angular else (cosine.mul(-2 * sign).add_(2), s / 2)
    return x.log_().mul_(-1 if angular else -0.5) if s == 0 else x.pow_(-p)


def weights(model: nn.Module) -> dict[str, Tensor]:
    """The two- and four-dimensional weights of a model's layers by name, as the layers use them: turned, where an
    adapter of `oft_vs_lora` turns them. (Merge those of PEFT first: their layers keep factors apart.)
    """
    found = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim in (2, 4):
            found[f"{name}.weight" if name else "weight"] = weight.detach()
    return found


def energies(model: nn.Module | Mapping[str, Tensor], **options: Any) -> dict[str, float]:
    """The hyperspherical energy of each weight of a model, by name; the whole model's is the sum of them.

    Args:
        model: a model, all of whose `weights` are taken, or weights by name.
        options: those of `hyperspherical_energy`. The OFT paper's figure has `mean=True, half_space=True`.

    Weights that have no two neurons with a direction, such as a new ControlNet's zero convolutions, are left out.
    """
    found = {}
    for name, weight in (weights(model) if isinstance(model, nn.Module) else model).items():
        if int(weight.flatten(1).any(1).sum()) > (0 if options.get("half_space") else 1):
            found[name] = hyperspherical_energy(weight, **options)
    return found


# ---- What else moves -------------------------------------------------------------------------------------------------


@torch.no_grad()
def angle_drift(before: Tensor, after: Tensor, *, chunk: int | None = None) -> float:
    """The largest change of an angle between two neurons, in radians, from one weight (n, ...) to another.

    It is computed in double precision, which resolves about 1e-8. Raises ValueError when the shapes differ.
    """
    _same_shape(before, after)
    both = [weight.detach().cpu().flatten(1).double() for weight in (before, after)]
    there = both[0].any(1) & both[1].any(1)
    units = [rows[there] / rows[there].norm(dim=1, keepdim=True) for rows in both]
    largest = 0.0
    for (_, a), (_, b) in zip(*(_cosines(unit, chunk) for unit in units), strict=True):
        largest = max(largest, float((a.clamp_(-1, 1).acos_() - b.clamp_(-1, 1).acos_()).abs().max()))
    return largest


def orthogonality_error(R: Tensor) -> float:
    """The largest entry of |R^T R - I|, for a matrix or blocks (..., b, b): 0 for a rotation, 1e-6 in single precision.

    The product is computed in double precision, so that it adds no error of its own.
    """
    R = R.detach().cpu().double()
    return float((R.mT @ R - torch.eye(R.shape[-1], dtype=R.dtype)).abs().max())


@torch.no_grad()
def intruder_dimensions(before: Tensor, after: Tensor, k: int = 10, eps: float = 0.5) -> tuple[int, int]:
    """How many of the k strongest singular vectors of a finetuned weight are new, on the left and on the right side.

    A vector is an intruder when its cosine with every singular vector of the pretrained weight is below eps in size
    (R. Shuttleworth et al., arXiv 2410.21228v3). The paper looks at left vectors alone. W0 R^T has exactly the left
    vectors of W0, so orthogonal finetuning would win that count by construction: look at both sides.

    Args:
        before, after: (n, ...), the pretrained and the finetuned weight.
    Raises:
        ValueError: when the shapes differ.
    """
    _same_shape(before, after)
    (U0, _, V0), (U, _, V) = (
        torch.linalg.svd(weight.detach().cpu().flatten(1).double(), full_matrices=False) for weight in (before, after)
    )
    left, right = (U0.T @ U[:, :k]).abs().amax(0), (V0 @ V[:k].T).abs().amax(0)
    return int((left < eps).sum()), int((right < eps).sum())


def _same_shape(before: Tensor, after: Tensor) -> None:
    if before.shape != after.shape:
        raise ValueError(f"weights of shapes {tuple(before.shape)} and {tuple(after.shape)} cannot be compared")
