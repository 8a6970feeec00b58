"""One training loop for everything the course trains: a generator, with a moving average and checkpoints that resume
exactly.

    for progress in train(model, loss, optimizer, steps=1000, checkpoint=folder / "vae.safetensors"):
        print(progress.step, progress.loss)

All randomness of a step comes from a generator seeded with the step's number, so a run that was killed and resumed
computes what an unbroken run computes.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from companion.files import written


@dataclass
class Progress:
    """What the loop knows after a step: `loss` is that step's, `seconds` the training time over all sittings."""

    step: int
    steps: int
    loss: float
    lr: float
    seconds: float


def ema_copy(model: nn.Module) -> nn.Module:
    """A frozen copy of a model, to hold its exponential moving average."""
    return copy.deepcopy(model).eval().requires_grad_(False)


@torch.no_grad()
def ema_update(ema: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """ema <- d ema + (1 - d) model, with d = min(decay, (1 + step) / (10 + step)) so that the start is soon
    forgotten.
    """
    d = min(decay, (1 + step) / (10 + step))
    old, new = [p for p in ema.parameters()], [p for p in model.parameters()]
    torch._foreach_lerp_(old, new, 1 - d)
    for a, b in zip(ema.buffers(), model.buffers(), strict=True):
        a.copy_(b)


def learning_rate(step: int, steps: int, peak: float, warmup: int = 100, decay: float = 0.3) -> float:
    """Warm-up, plateau, and a fall along a quarter of a cosine's period to zero over the last `decay` of the steps."""
    if step < warmup:
        return peak * (step + 1) / warmup
    start = steps * (1 - decay)
    if step <= start:
        return peak
    return peak * 0.5 * (1 + math.cos(math.pi * (step - start) / (steps - start)))


def save_checkpoint(
    path: Path, model: nn.Module, ema: nn.Module | None, optimizer: torch.optim.Optimizer, meta: dict
) -> None:
    """Write weights, moving average and optimiser state to one safetensors file, whole or not at all."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    if ema is not None:
        tensors |= {f"ema.{k}": v for k, v in ema.state_dict().items()}
    for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        tensors |= {f"optimizer.{i}.{k}": v for k, v in optimizer.state.get(p, {}).items()}
    tensors = {k: v.detach().clone().contiguous() for k, v in tensors.items()}
    with written(path) as temporary:
        save_file(tensors, temporary, metadata={"meta": json.dumps(meta)})


def save_start(path: Path, model: nn.Module) -> None:
    """Write a checkpoint of step 0 that a run begins from: the weights, as model and as moving average."""
    state = {k: v.detach().clone().contiguous() for k, v in model.state_dict().items()}
    tensors = {f"{part}.{k}": v.clone() for part in ("model", "ema") for k, v in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with written(path) as temporary:
        save_file(tensors, temporary, metadata={"meta": json.dumps({"step": 0, "seconds": 0.0})})


def read_meta(path: Path) -> dict:
    """The figures (step, seconds, ...) kept in a checkpoint."""
    with safe_open(path, "pt") as f:
        return json.loads(f.metadata()["meta"])


def load_weights(path: Path, model: nn.Module, which: str = "ema") -> nn.Module:
    """Load the `ema` or the `model` weights of a checkpoint into a model, and return it."""
    with safe_open(path, "pt") as f:
        model.load_state_dict({k[len(which) + 1 :]: f.get_tensor(k) for k in f.keys() if k.startswith(f"{which}.")})
    return model


def load_checkpoint(path: Path, model: nn.Module, ema: nn.Module | None, optimizer: torch.optim.Optimizer) -> dict:
    """Restore what `save_checkpoint` wrote; returns its figures."""
    load_weights(path, model, "model")
    if ema is not None:
        load_weights(path, ema, "ema")
    with safe_open(path, "pt") as f:
        for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"]):
            state = {k.split(".", 2)[2]: f.get_tensor(k) for k in f.keys() if k.startswith(f"optimizer.{i}.")}
            if state:
                optimizer.state[p] = state
        return json.loads(f.metadata()["meta"])


def train(
    model: nn.Module,
    loss: Callable[[nn.Module, torch.Generator, int], Tensor],
    optimizer: torch.optim.Optimizer,
    steps: int,
    *,
    peak_lr: float,
    warmup: int = 100,
    decay: float = 0.3,
    ema: nn.Module | None = None,
    ema_decay: float = 0.999,
    clip: float = 1.0,
    seed: int = 0,
    checkpoint: Path | None = None,
    every: float = 120.0,
    log: Path | None = None,
) -> Iterator[Progress]:
    """Train `model`, yielding after every step.

    Args:
        loss: (model, generator, step) to a scalar; all its randomness must come from the generator, which is seeded by
            the step.
        ema: a copy (`ema_copy`) that follows the model.
        clip: largest norm of the gradient.
        checkpoint: a file; when it exists the run goes on from it, and it is rewritten each `every` seconds and at the
            end.
        log: a file of JSON lines, one a hundred steps; lines of steps that a kill lost are cut off.
    Raises:
        FloatingPointError: when the loss is not finite, with the step.
    """
    start, spent = 0, 0.0
    if checkpoint is not None and checkpoint.exists():
        meta = load_checkpoint(checkpoint, model, ema, optimizer)
        start, spent = meta["step"], meta["seconds"]
    if log is not None and log.exists():
        kept = [line for line in log.read_text().splitlines() if json.loads(line)["step"] <= start]
        log.write_text("".join(line + "\n" for line in kept))
    model.train()
    began = saved = time.monotonic()
    recent: list[float] = []
    for step in range(start, steps):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        lr = learning_rate(step, steps, peak_lr, warmup, decay)
        for group in optimizer.param_groups:
            group["lr"] = lr
        value = loss(model, generator, step)
        if not torch.isfinite(value):
            raise FloatingPointError(f"the loss is {value.item()} at step {step}; lower peak_lr={peak_lr}")
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        if ema is not None:
            ema_update(ema, model, step, ema_decay)
        now = time.monotonic()
        progress = Progress(step + 1, steps, value.item(), lr, spent + now - began)
        recent.append(progress.loss)
        if log is not None and (step + 1) % 100 == 0:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("a") as f:
                f.write(json.dumps({**asdict(progress), "loss": sum(recent) / len(recent)}) + "\n")
            recent.clear()
        if checkpoint is not None and (now - saved > every or step + 1 == steps):
            save_checkpoint(checkpoint, model, ema, optimizer, {"step": step + 1, "seconds": progress.seconds})
            saved = now
        yield progress
