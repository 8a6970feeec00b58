"""Muon: momentum whose matrices are orthogonalised before each step; here it trains convolutions twice as fast as Adam.

K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024),
https://kellerjordan.github.io/posts/muon/. `torch.optim.Muon` takes matrices only; this one flattens convolutions to
(out, in x height x width) and gives everything that is not a hidden matrix (vectors, embeddings, first and last layers)
to AdamW, in one optimiser.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def orthogonalise(g: Tensor, steps: int = 5, bfloat16: bool = False) -> Tensor:
    """The nearest semi-orthogonal matrices to g (B, m, n), roughly: singular values between about 0.7 and 1.2 after 5
    Newton-Schulz steps with the coefficients of the paper, X <- a X + (b S + c S^2) X where S = X X^T.

    bfloat16: compute in it, as the paper does, where that is safe.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g / (g.norm(dim=(1, 2), keepdim=True) + 1e-7)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    m, n = x.shape[1:]
    if n < 2 * m:
        x = x.bfloat16() if bfloat16 else x
        for _ in range(steps):
            s = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(s, s, s, beta=b, alpha=c), x, beta=a)
    # All steps at once: X_k = P_k X, where P_k is a polynomial of the small matrix X X^T. Twice as fast on wide ones.
    # X X^T squares their condition, for which bfloat16 is too coarse: singular values of 100 came out instead of 1.
    else:
        gram = x @ x.mT
        p = torch.eye(m, dtype=x.dtype, device=x.device).expand_as(gram)
        for i in range(steps):
            s = p @ gram @ p if i else gram
            p = torch.baddbmm(p, torch.baddbmm(s, s, s, beta=b, alpha=c), p, beta=a)
        x = p @ x
    return (x.mT if tall else x).to(g.dtype)


class Muon(torch.optim.Optimizer):
    """Muon for hidden matrices and convolutions, AdamW for the rest.

    Args:
        hidden: parameters with two or more dimensions, stepped by lr x `ratio` x max(1, rows / columns)^0.5 along the
            orthogonalised momentum.
        rest: all others, stepped by AdamW with `lr`.
        lr: AdamW's learning rate; the schedule scales both.
        bfloat16: orthogonalise in bfloat16, as the paper does: faster on CPUs with AVX-512 BF16, slower on others.
    """

    def __init__(
        self,
        hidden: Iterable[nn.Parameter],
        rest: Iterable[nn.Parameter],
        lr: float,
        ratio: float = 10.0,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        bfloat16: bool = False,
    ):
        groups = [{"params": list(hidden), "muon": True}, {"params": list(rest), "muon": False}]
        super().__init__(groups, dict(lr=lr, ratio=ratio, momentum=momentum, betas=betas, weight_decay=weight_decay))
        self.bfloat16 = bfloat16

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            lr = group["lr"]
            if group["weight_decay"]:
                torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
            if group["muon"]:
                alike: dict[tuple[int, int], list] = {}  # by shape: one batched product costs less than many
                for p in params:
                    state = self.state[p]
                    if not state:
                        state["momentum"] = torch.zeros_like(p)
                    state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                    g = p.grad.lerp(state["momentum"], group["momentum"]).flatten(1)  # Nesterov
                    alike.setdefault(tuple(g.shape), []).append((p, g))
                for (rows, columns), some in alike.items():
                    scale = lr * group["ratio"] * max(1.0, rows / columns) ** 0.5
                    found = orthogonalise(torch.stack([g for _, g in some]), bfloat16=self.bfloat16)
                    for (p, _), o in zip(some, found, strict=True):
                        p.sub_(o.view_as(p), alpha=scale)
                continue
            if not params:
                continue
            b1, b2 = group["betas"]
            for p in params:
                if not self.state[p]:
                    self.state[p] |= {
                        "step": torch.tensor(0.0),
                        "first": torch.zeros_like(p),
                        "second": torch.zeros_like(p),
                    }
                self.state[p]["step"] += 1
            # All at once: on a GPU, many small calls take longer than what they compute.
            grads = [p.grad for p in params]
            firsts, seconds = ([self.state[p][name] for p in params] for name in ("first", "second"))
            torch._foreach_lerp_(firsts, grads, 1 - b1)
            torch._foreach_lerp_(seconds, torch._foreach_mul(grads, grads), 1 - b2)
            times = [self.state[p]["step"].item() for p in params]
            denominators = torch._foreach_div(seconds, [1 - b2**t for t in times])
            torch._foreach_sqrt_(denominators)
            torch._foreach_add_(denominators, 1e-8)
            torch._foreach_addcdiv_(params, firsts, denominators, [-lr / (1 - b1**t) for t in times])


def muon(model: nn.Module, lr: float, exclude: tuple[str, ...] = (), **kwargs) -> Muon:
    """A Muon optimiser of a model; parameters whose name contains a word of `exclude` (embeddings, first and last
    layers) go to AdamW.
    """
    hidden, rest = [], []
    for name, p in model.named_parameters():
        if p.requires_grad:
            (
                hidden
                if p.ndim >= 2 and min(p.shape[0], p[0].numel()) >= 8 and not any(a in name for a in exclude)
                else rest
            ).append(p)
    return Muon(hidden, rest, lr, **kwargs)
