"""Training on an accelerator by the same functions: modules that live there, and are called from the CPU.

    train_judge(..., place=place)       # `companion build judge --gpu`

Everything else stays where it is: batches, captions, noise and losses are made on the CPU, by the same generators, so a
run on an accelerator sees what a run on the CPU would see.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from companion.pretraining.unet import Conditioned
from companion.pretraining.vae import Players

#: Modules that are not called as a whole: their parts are placed.
WHOLES = (Conditioned, Players, AutoencoderKL)


def _moved(values: Any, device: torch.device) -> Any:
    return tree_map(lambda v: v.to(device) if isinstance(v, Tensor) else v, values)


def _before(module: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    given = [v for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor)]
    home = next(module.parameters()).device
    # A part of a module that computes there already is left alone.
    module.asked_from = given[0].device if given and given[0].device != home else None
    if module.asked_from is None:
        return args, kwargs
    if home.type == "cuda" and module.rough:
        torch.set_autocast_cache_enabled(False)  # else casts of weights would outlive a step
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        torch.set_autocast_enabled("cuda", True)
    return _moved((args, kwargs), home)


def _after(module: Any, args: tuple, kwargs: dict, answer: Any) -> Any:
    if module.asked_from is None:
        return None
    torch.set_autocast_enabled("cuda", False)
    return _moved(answer, module.asked_from)


def there(call: Callable[..., Any], device: str | torch.device) -> Callable[..., Any]:
    """A function of tensors that computes on `device`, in bfloat16 if that is a GPU, whatever its tensors come from."""

    def answer(*args: Tensor) -> Any:
        with torch.autocast("cuda", torch.bfloat16, enabled=torch.device(device).type == "cuda"):
            return call(*_moved(args, torch.device(device)))

    return answer


def place(model: nn.Module, device: str | torch.device = "cuda", bfloat16: bool = True) -> None:
    """Move a module to `device`, where it is called from the CPU.

    On a GPU it multiplies in bfloat16, with weights and sums in single precision; without `bfloat16`, all in single.

    It still takes tensors from the CPU, and answers where its first tensor came from; gradients follow. Copies of it
    (`training.ema_copy`) do so too.
    """
    if isinstance(model, WHOLES):
        for part in model.children():
            place(part, device, bfloat16)
        return
    model.to(device)
    if not getattr(model, "placed", False) and next(model.parameters(), None) is not None:
        model.placed, model.rough = True, bfloat16  # type: ignore[assignment]
        model.register_forward_pre_hook(_before, with_kwargs=True)
        model.register_forward_hook(_after, with_kwargs=True)
