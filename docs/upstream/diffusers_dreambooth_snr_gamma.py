"""diffusers: train_dreambooth.py with --snr_gamma and prior preservation weighs the wrong losses. Exits with 0 while
that is so.

    python diffusers_dreambooth_snr_gamma.py path/to/examples/dreambooth/train_dreambooth.py

The script is an example, and not part of the installed package. Given its path, its own lines between "Predict the
noise residual" and the backward pass are run; without one, an excerpt of them from August 2026 (58eb52c).
"""

import re
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

EXCERPT = """
if args.with_prior_preservation:
    model_pred, model_pred_prior = torch.chunk(model_pred, 2, dim=0)
    target, target_prior = torch.chunk(target, 2, dim=0)
    prior_loss = F.mse_loss(model_pred_prior.float(), target_prior.float(), reduction="mean")

if args.snr_gamma is None:
    loss = F.mse_loss(model_pred.float(), target.float(), reduction="mean")
else:
    snr = compute_snr(noise_scheduler, timesteps)
    if noise_scheduler.config.prediction_type == "v_prediction":
        divisor = snr + 1
    else:
        divisor = snr
    mse_loss_weights = (
        torch.stack([snr, args.snr_gamma * torch.ones_like(timesteps)], dim=1).min(dim=1)[0] / divisor
    )
    loss = F.mse_loss(model_pred.float(), target.float(), reduction="none")
    loss = loss.mean(dim=list(range(1, len(loss.shape)))) * mse_loss_weights
    loss = loss.mean()

if args.with_prior_preservation:
    loss = loss + args.prior_loss_weight * prior_loss
"""


def lines_of(script: Path) -> str:
    found = re.search(
        r"\n( +if args\.with_prior_preservation:\n +# Chunk the noise.+?)\n +accelerator\.backward\(loss\)",
        script.read_text(encoding="utf-8"),
        re.DOTALL,
    )
    if found is None:
        raise SystemExit(f"{script} has no loss with prior preservation that this script knows")
    return textwrap.dedent(found[1])


def loss_of(code: str, batch: int) -> tuple[float, float]:
    """The script's loss without the prior's part, and that of the paper: each instance picture with its own weight."""
    generator = torch.Generator().manual_seed(0)
    scheduler = DDPMScheduler()
    # Instance pictures first, then class pictures: almost clean ones, whose weight is nearly 0, beside noisy ones.
    timesteps = torch.tensor([50] * batch + [900] * batch)
    names = {
        "args": SimpleNamespace(with_prior_preservation=True, snr_gamma=5.0, prior_loss_weight=0.0),
        "noise_scheduler": scheduler,
        "timesteps": timesteps,
        "model_pred": torch.randn(2 * batch, 4, 8, 8, generator=generator),
        "target": torch.randn(2 * batch, 4, 8, 8, generator=generator),
        "torch": torch,
        "F": F,
        "compute_snr": compute_snr,
    }
    snr = compute_snr(scheduler, timesteps[:batch])
    error = (names["model_pred"] - names["target"])[:batch].square().mean((1, 2, 3))
    expected = float((error * snr.clamp(max=5.0) / snr).mean())
    exec(code, names)
    return float(names["loss"]), expected


def main(script: str | None = None) -> int:
    code = EXCERPT if script is None else lines_of(Path(script))
    found, expected = loss_of(code, 1)
    print(f"batch 1: the instance loss is {found:.3f}, and should be {expected:.3f}")
    try:
        loss_of(code, 2)
        larger = "no error"
    except RuntimeError as error:
        larger = str(error)
    print(f"batch 2: {larger}")
    return 0 if abs(found / expected - 1) > 0.1 else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
