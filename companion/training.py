"""The training loop for all models here: a generator that can be killed at any moment and resumes from a checkpoint.

    for progress in train(model, loss, optimizer, 1000, checkpoint=path, ema=ema):
        ...

All randomness of a step comes from a generator that is seeded with the step's number, so a run that was killed and
resumed computes the same as an uninterrupted one. Frozen parameters (without `requires_grad`) are neither averaged nor
saved. The same loop runs on one CPU and, under `accelerate launch`, on several processes or GPUs.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from diffusers.training_utils import compute_snr
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from companion.files import written

if TYPE_CHECKING:
    from accelerate import Accelerator

M = TypeVar("M", bound=nn.Module)

# ---- The loss of diffusion -------------------------------------------------------------------------------------------


def noise_loss(
    predict: Callable[[Tensor, Tensor], Tensor],
    scheduler: Any,
    x0: Tensor,
    generator: torch.Generator,
    **options: Any,
) -> Tensor:
    """The mean of `noise_losses` over a batch: what training makes small."""
    return noise_losses(predict, scheduler, x0, generator, **options).mean()


def noise_losses(
    predict: Callable[[Tensor, Tensor], Tensor],
    scheduler: Any,
    x0: Tensor,
    generator: torch.Generator,
    *,
    timesteps: Tensor | None = None,
    min_snr: float | None = None,
    weight: Callable[[Tensor], Tensor] | Tensor | None = None,
) -> Tensor:
    """The mean squared error (N,) of a network's prediction for each of the noised latents (DDPM, arXiv 2006.11239,
    equation 14).

    Noise and timesteps are drawn from the generator on the CPU, noise first, so that they are the same on every device.

    Args:
        predict: (noisy (N, C, h, w), t (N,)) to the network's answer (N, C, h, w).
        scheduler: has the noise schedule, and says whether the network predicts noise, velocity or x0.
        x0: clean, scaled latents (N, C, h, w).
        timesteps: (N,), instead of uniformly random ones.
        min_snr: weigh each picture's error by `min_snr_weight` with this limit (Hang et al., arXiv 2303.09556).
        weight: weights for the squared errors, broadcast to (N, C, h, w), or a function of t that returns them.
    """
    noise = torch.randn(x0.shape, generator=generator).to(x0.device, x0.dtype)
    if timesteps is None:
        timesteps = torch.randint(scheduler.config.num_train_timesteps, (len(x0),), generator=generator)
    t = timesteps.to(x0.device)
    target = {
        "epsilon": lambda: noise,
        "v_prediction": lambda: scheduler.get_velocity(x0, noise, t),
        "sample": lambda: x0,
    }[scheduler.config.prediction_type]()
    error = (predict(scheduler.add_noise(x0, noise, t), t).float() - target.float()) ** 2
    if weight is not None:
        error = error * (weight if isinstance(weight, Tensor) else weight(t))
    error = error.flatten(1).mean(1)
    if min_snr is not None:
        error = error * min_snr_weight(scheduler, t, min_snr)
    return error


def min_snr_weight(scheduler: Any, timesteps: Tensor, at_most: float = 5.0) -> Tensor:
    """Weights of timesteps (N,): min(SNR, at_most), over SNR for noise and SNR + 1 for velocity (arXiv 2303.09556)."""
    snr = compute_snr(scheduler, timesteps)
    by = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}[scheduler.config.prediction_type]
    return snr.clamp(max=at_most) / by


# ---- Moving averages and checkpoints ---------------------------------------------------------------------------------


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """What training changes, by name in the state dictionary: parameters that require a gradient, and buffers."""
    frozen = {name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}
    return {name: value for name, value in model.state_dict().items() if name not in frozen}


def ema_copy(model: M) -> M:
    """A copy of a model, in eval mode, for its exponential moving average; both share the frozen parameters."""
    shared = {id(p): p for p in model.parameters() if not p.requires_grad}
    return copy.deepcopy(model, shared).eval().requires_grad_(False)


@torch.no_grad()
def ema_update(ema: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """ema <- d ema + (1 - d) model; d = min(decay, (1 + step) / (10 + step)), so that the start is soon forgotten."""
    d = min(decay, (1 + step) / (10 + step))
    pairs = [(a, b) for a, b in zip(ema.parameters(), model.parameters(), strict=True) if b.requires_grad]
    averages: list[Tensor] = [a for a, _ in pairs]
    torch._foreach_lerp_(averages, [b.detach() for _, b in pairs], 1 - d)
    for a, b in zip(ema.buffers(), model.buffers(), strict=True):
        a.copy_(b)


def _save(path: Path, tensors: dict[str, Tensor], meta: dict) -> None:
    tensors = {k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}
    with written(path) as temporary:
        save_file(tensors, temporary, metadata={"meta": json.dumps(meta)})


def save_checkpoint(
    path: Path, model: nn.Module, ema: nn.Module | None, optimizer: torch.optim.Optimizer, meta: dict
) -> None:
    """Write the trained state, its EMA, the optimiser's state and `meta` to a safetensors file, whole or not at all."""
    state = trained_state(model)
    tensors = {f"model.{k}": v for k, v in state.items()}
    if ema is not None:
        average = ema.state_dict()
        tensors |= {f"ema.{k}": average[k] for k in state}
    for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        tensors |= {f"optimizer.{i}.{k}": torch.as_tensor(v) for k, v in optimizer.state.get(p, {}).items()}
    _save(path, tensors, meta)


def save_start(path: Path, model: nn.Module) -> None:
    """Write a checkpoint at step 0 from which a run can start, with the weights as model and as moving average."""
    state = model.state_dict()
    _save(path, {f"{part}.{k}": v for part in ("model", "ema") for k, v in state.items()}, {"step": 0, "seconds": 0.0})


def read_meta(path: Path) -> dict:
    """The figures (step, seconds, ...) in a checkpoint; this works even while a run is replacing it."""
    with safe_open(path, "np") as f:  # "np" opens the file once; "pt" would open it again to map the weights
        return json.loads(f.metadata()["meta"])


def load_weights(path: Path, model: M, which: str = "ema", trained: nn.Module | None = None) -> M:
    """Load the `ema` or the `model` weights of a checkpoint into a model, and return it.

    Frozen parameters may be missing from the checkpoint, and stay as they are. Raises KeyError, which names one, when
    the checkpoint lacks buffers, or parameters that require a gradient in `trained` (by default, in the model itself).
    """
    with safe_open(path, "pt") as f:
        found = {k[len(which) + 1 :]: f.get_tensor(k) for k in f.keys() if k.startswith(f"{which}.")}
    if missing := trained_state(model if trained is None else trained).keys() - found.keys():
        raise KeyError(f"{path} has no {which} weights of {sorted(missing)[0]} ({len(missing)} are missing)")
    model.load_state_dict(model.state_dict() | found)
    return model


def load_checkpoint(path: Path, model: nn.Module, ema: nn.Module | None, optimizer: torch.optim.Optimizer) -> dict:
    """Restore what `save_checkpoint` wrote, and return its `meta`."""
    load_weights(path, model, "model")
    if ema is not None:
        load_weights(path, ema, "ema", trained=model)  # of an average, nothing requires a gradient
    with safe_open(path, "pt") as f:
        for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"]):
            state = {k.split(".", 2)[2]: f.get_tensor(k) for k in f.keys() if k.startswith(f"optimizer.{i}.")}
            if state:
                optimizer.state[p] = {k: _placed(v, p.device) for k, v in state.items()}
        return json.loads(f.metadata()["meta"])


def _placed(value: Tensor, device: torch.device) -> Tensor | int:
    """A value of an optimiser's state as it was: step counters stay on the CPU, where torch's optimisers keep them, and
    bitsandbytes counts in plain integers.
    """
    if value.ndim:
        return value.to(device)
    return value if value.is_floating_point() else int(value)


# ---- The loop --------------------------------------------------------------------------------------------------------


@dataclass
class Progress:
    """The state after `step` of `steps` steps: that step's loss, the first group's learning rate, and the seconds of
    training over all sessions.
    """

    step: int
    steps: int
    loss: float
    lr: float
    seconds: float


def lr_factor(step: int, steps: int, warmup: int = 100, decay: float = 0.3) -> float:
    """The factor in [0, 1] for each group's learning rate: linear warm-up, a plateau, and a fall along half a cosine's
    period to zero over the last fraction `decay` of the steps.
    """
    if step < warmup:
        return (step + 1) / warmup
    start = steps * (1 - decay)
    if step <= start:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - start) / (steps - start)))


def train(
    model: M,
    loss: Callable[[M, torch.Generator, int], Tensor],
    optimizer: torch.optim.Optimizer,
    steps: int,
    *,
    warmup: int = 100,
    decay: float = 0.3,
    accumulate: int = 1,
    ema: M | None = None,
    ema_decay: float = 0.999,
    clip: float = 1.0,
    seed: int = 0,
    checkpoint: Path | None = None,
    every: float = 120.0,
    log: Path | None = None,
    log_every: int = 100,
    accelerator: Accelerator | None = None,
) -> Iterator[Progress]:
    """Train `model`, yielding after every step. It is left in eval mode.

    Args:
        loss: (model, generator, step) to a scalar; all its randomness must come from the generator, which is seeded by
            `seed`, the step and the process.
        optimizer: each of its groups keeps its own learning rate; the schedule multiplies them all (`lr_factor`).
        accumulate: how many times the loss is computed for each step of the optimiser, which uses the mean.
        ema: a copy (`ema_copy`) that becomes the model's moving average, with `ema_decay`.
        clip: largest norm of the gradient.
        checkpoint: a file; if it exists, the run resumes from it. It is rewritten every `every` seconds and at the end.
        log: a file of JSON lines, one per `log_every` steps, with their mean loss. A resumed run removes the lines that
            are later than its checkpoint.
        accelerator: sets the precision and the processes; model and loss must use its device. Each process draws its
            own batches, all use the mean gradient, and the first writes the files.
    Raises:
        FloatingPointError: when the loss is not finite; the message says at which step.
    """
    if accelerator is None:
        from accelerate import Accelerator

        accelerator = Accelerator()
    optimizer = accelerator.prepare(optimizer)
    scaler: Any = accelerator.scaler  # of half precision: by what the loss is multiplied
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    trained = [p for p in model.parameters() if p.requires_grad]
    start, spent = 0, 0.0
    if checkpoint is not None and checkpoint.exists():
        meta = load_checkpoint(checkpoint, model, ema, optimizer)
        start, spent = meta["step"], meta["seconds"]
        if scaler is not None and "scaler" in meta:
            scaler.load_state_dict(meta["scaler"])
    first = accelerator.is_main_process
    if first and log is not None and log.exists():
        kept = [line for line in log.read_text(encoding="utf-8").splitlines() if json.loads(line)["step"] <= start]
        log.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    accelerator.wait_for_everyone()
    model.train()
    began = saved = time.monotonic()
    recent: list[float] = []
    try:
        for step in range(start, steps):
            generator = torch.Generator().manual_seed(
                seed * 1_000_003 + step + accelerator.process_index * 1_000_000_007
            )
            factor = lr_factor(step, steps, warmup, decay)
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
            optimizer.zero_grad(set_to_none=True)
            total = 0.0
            for _ in range(accumulate):
                with accelerator.autocast():
                    value = loss(model, generator, step) / accumulate
                accelerator.backward(value)
                total += value.item()
            if accelerator.num_processes > 1:
                total = float(_mean_over_processes(accelerator, trained, total))
            if not math.isfinite(total):
                raise FloatingPointError(
                    f"the loss is {total} at step {step}; lower the learning rate, which is "
                    f"{optimizer.param_groups[0]['initial_lr']:g}"
                )
            accelerator.clip_grad_norm_(trained, clip)
            optimizer.step()
            if ema is not None:
                ema_update(ema, model, step, ema_decay)
            now = time.monotonic()
            lr = optimizer.param_groups[0]["lr"]
            progress = Progress(step + 1, steps, total, lr, spent + now - began)
            recent.append(total)
            if first and log is not None and (step + 1) % log_every == 0:
                log.parent.mkdir(parents=True, exist_ok=True)
                with log.open("a", encoding="utf-8") as f:
                    f.write(json.dumps({**asdict(progress), "loss": sum(recent) / len(recent)}) + "\n")
                recent.clear()
            if first and checkpoint is not None and (now - saved > every or step + 1 == steps):
                meta = {"step": step + 1, "seconds": progress.seconds}
                if scaler is not None:
                    meta["scaler"] = scaler.state_dict()
                save_checkpoint(checkpoint, model, ema, optimizer, meta)
                saved = now
            yield progress
        accelerator.wait_for_everyone()
    finally:
        model.eval()


def train_averaged(
    model: M,
    loss: Callable[[M, torch.Generator, int], Tensor],
    optimizer: torch.optim.Optimizer,
    steps: int,
    *,
    place: Callable[[nn.Module], None] | None = None,
    **options: Any,
) -> Iterator[tuple[Progress, M]]:
    """`train` with a moving average, which is yielded with the progress; `options` are those of `train`.

    place: moves the model to where it is trained, if that is not the CPU (`pretraining.gpu.place`).
    """
    if place is not None:
        place(model)
    ema = ema_copy(model)
    for progress in train(model, loss, optimizer, steps, ema=ema, **options):
        yield progress, ema


def _mean_over_processes(accelerator: Accelerator, parameters: list[nn.Parameter], loss: float) -> Tensor:
    """Replace each process's gradients by their mean over all, in one all-reduce, and return the mean loss.

    torch's DistributedDataParallel does the same, but only for models called as a whole; a loss may call parts.
    """
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    flat = torch.cat([torch.tensor([loss], device=grads[0].device), *(g.flatten().float() for g in grads)])
    flat = accelerator.reduce(flat, "mean")
    at = 1
    for p, g in zip(parameters, grads, strict=True):
        p.grad = flat[at : at + g.numel()].view_as(g).to(g.dtype)
        at += g.numel()
    return flat[0]
