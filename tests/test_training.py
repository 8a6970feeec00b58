"""The training loop, on a line to fit, and the loss of diffusion."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from processes import free_port, kill_all
from safetensors.torch import load_file
from torch import nn

from companion import ROOT, exercises
from companion.pretraining.report import load_tabletop
from companion.pretraining.unet import SCHEDULE
from companion.training import (
    Progress,
    ema_copy,
    load_checkpoint,
    load_weights,
    lr_factor,
    min_snr_weight,
    noise_loss,
    read_meta,
    save_checkpoint,
    train,
)


def line() -> tuple[nn.Module, nn.Module]:
    """A model that will learn a line, and its moving average."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    return model, ema_copy(model)


def fit_line(model: nn.Module, ema: nn.Module, steps: int, **options) -> Iterator[Progress]:
    def loss(m, generator, step):
        x = torch.randn(16, 3, generator=generator)
        return ((m(x) - x @ torch.tensor([[1.0], [-2.0], [0.5]])) ** 2).mean()

    return train(model, loss, torch.optim.AdamW(model.parameters(), lr=0.05), steps, ema=ema, **options)


def test_training_learns():
    model, ema = line()
    losses = [p.loss for p in fit_line(model, ema, 300)]
    assert losses[-1] < 1e-3 < losses[0]
    assert torch.allclose(model.weight, torch.tensor([[1.0, -2.0, 0.5]]), atol=0.05)


def test_training_broken_off_and_resumed_is_the_same_to_the_bit(tmp_path):
    model, ema = line()
    whole = [p.loss for p in fit_line(model, ema, 60, log=tmp_path / "whole.jsonl")]
    path = tmp_path / "c.safetensors"
    for p in fit_line(*line(), 60, checkpoint=path, every=0.0):
        if p.step == 23:
            break  # checkpoints are written each `every` seconds: here after each step
    again, ema_again = line()
    resumed = [p.loss for p in fit_line(again, ema_again, 60, checkpoint=path, every=0.0)]
    assert len(resumed) == 37 and resumed == whole[23:]
    assert torch.equal(model.weight, again.weight) and torch.equal(ema.weight, ema_again.weight)


def test_a_resumed_run_of_half_precision_keeps_its_scale(tmp_path):
    """Half precision multiplies the loss, so that small gradients do not vanish, by a factor that training finds."""

    def run(steps: int, **options):
        accelerator, (model, ema) = Accelerator(cpu=True), line()
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=3)
        for progress in fit_line(model, ema, 12, accelerator=accelerator, **options):
            if progress.step == steps:
                break
        return accelerator.scaler.get_scale(), model

    whole, expected = run(12)
    assert whole == 4.0 * 2**4
    assert run(7, checkpoint=tmp_path / "run.safetensors", every=0.0)[0] == 4.0 * 2**2
    again, model = run(12, checkpoint=tmp_path / "run.safetensors")
    assert again == whole and torch.equal(model.weight, expected.weight)


def test_whole_numbers_of_an_optimiser_come_back_as_such(tmp_path):
    """bitsandbytes counts its steps in Python's integers, and keeps its moments in bytes."""
    model, _ = line()
    optimizer = torch.optim.AdamW(model.parameters())
    for p in model.parameters():
        optimizer.state[p] = {"step": 5, "state1": torch.arange(3, dtype=torch.uint8), "loss": torch.tensor(0.5)}
    save_checkpoint(tmp_path / "run.safetensors", model, None, optimizer, {"step": 5})
    fresh = torch.optim.AdamW(model.parameters())
    assert load_checkpoint(tmp_path / "run.safetensors", model, None, fresh) == {"step": 5}
    for kept in fresh.state.values():
        assert kept["step"] == 5 and isinstance(kept["step"], int)
        assert torch.equal(kept["state1"], torch.arange(3, dtype=torch.uint8)) and kept["loss"] == torch.tensor(0.5)


def test_a_loss_that_is_not_finite_is_named_with_its_step():
    model = nn.Linear(1, 1)

    def loss(m, generator, step):
        return m(torch.ones(1, 1)).sum() * (float("nan") if step == 3 else 1.0)

    with pytest.raises(FloatingPointError, match="at step 3; lower the learning rate, which is 0.1"):
        list(train(model, loss, torch.optim.SGD(model.parameters(), lr=0.1), 10))


def test_the_learning_rate_warms_up_stays_and_falls_to_zero():
    factors = [lr_factor(s, 1000, warmup=100, decay=0.3) for s in range(1000)]
    assert factors[0] == pytest.approx(0.01) and factors[99:700] == [1.0] * 601
    assert all(a > b for a, b in zip(factors[701:], factors[702:], strict=False)) and factors[-1] < 1e-4


def test_each_group_keeps_its_own_learning_rate():
    model, seen = nn.Linear(3, 1), []
    groups = [{"params": [model.weight], "lr": 0.1}, {"params": [model.bias], "lr": 0.001}]
    optimizer = torch.optim.SGD(groups)
    for p in train(model, lambda m, generator, step: m(torch.ones(1, 3)).square().sum(), optimizer, 20, warmup=10):
        seen.append((p.lr, *(group["lr"] for group in optimizer.param_groups)))
    factors = [lr_factor(s, 20, warmup=10) for s in range(20)]
    assert seen == [pytest.approx((0.1 * f, 0.1 * f, 0.001 * f)) for f in factors]


def test_min_snr_weight_by_hand():
    scheduler = DDPMScheduler()
    t = torch.tensor([0, 400, 999])
    snr = scheduler.alphas_cumprod[t] / (1 - scheduler.alphas_cumprod[t])
    assert torch.allclose(min_snr_weight(scheduler, t), torch.minimum(snr, torch.tensor(5.0)) / snr)
    assert min_snr_weight(scheduler, t)[2] == 1
    assert torch.allclose(min_snr_weight(scheduler, t, 1.0), torch.minimum(snr, torch.tensor(1.0)) / snr)


# ---- Several learning rates, accumulation, what is frozen ------------------------------------------------------------


def two_parts(seed: int = 0) -> nn.Sequential:
    """A frozen first layer, wide, and a small second one that trains."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 2))
    model[0].requires_grad_(False)
    return model


def squares(model: nn.Module, generator: torch.Generator, step: int) -> torch.Tensor:
    return (model(torch.randn(4, 300, generator=generator)) ** 2).mean()


def test_groups_keep_their_own_learning_rates():
    model = nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 2))
    groups = [{"params": model[0].parameters(), "lr": 1e-3}, {"params": model[1].parameters(), "lr": 1e-2}]
    optimizer = torch.optim.SGD(groups)
    seen = [[group["lr"] for group in optimizer.param_groups] for _ in train(model, squares, optimizer, 20, warmup=4)]
    for step, rates in enumerate(seen):
        factor = lr_factor(step, 20, 4)
        assert rates == [pytest.approx(1e-3 * factor), pytest.approx(1e-2 * factor)]
    assert seen[5] == [1e-3, 1e-2]


def test_a_resumed_run_keeps_them_too(tmp_path):
    def rates(path, stop=None):
        model = nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 2))
        groups = [{"params": model[0].parameters(), "lr": 1e-3}, {"params": model[1].parameters(), "lr": 1e-2}]
        optimizer, found = torch.optim.AdamW(groups), []
        for progress in train(model, squares, optimizer, 12, warmup=2, checkpoint=path, every=0.0):
            found.append([group["lr"] for group in optimizer.param_groups])
            if progress.step == stop:
                break
        return found

    assert rates(tmp_path / "a", 7) + rates(tmp_path / "a") == rates(tmp_path / "b")


def test_checkpoints_and_averages_hold_what_trains_alone(tmp_path):
    model = two_parts()
    ema, path = ema_copy(model), tmp_path / "c.safetensors"
    assert ema[0].weight is model[0].weight and ema[1].weight is not model[1].weight
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    list(train(model, squares, optimizer, 5, ema=ema, checkpoint=path))
    names = set(load_file(path))
    assert {n for n in names if not n.startswith("optimizer")} == {
        f"{part}.1.{name}" for part in ("model", "ema") for name in ("weight", "bias")
    }
    assert path.stat().st_size < 20_000 < model[0].weight.numel() * 4
    again = load_weights(path, two_parts(seed=0))
    assert torch.equal(again[1].weight, ema[1].weight) and torch.equal(again[0].weight, model[0].weight)
    with pytest.raises(KeyError, match="has no ema weights of 0.bias"):
        load_weights(path, two_parts().requires_grad_(True))
    list(train(model, squares, optimizer, 6, checkpoint=path))  # without an average
    with pytest.raises(KeyError, match="has no ema weights of 1.bias"):
        next(train(model, squares, optimizer, 7, ema=ema, checkpoint=path))


def test_an_adapters_checkpoint_is_small(tmp_path):
    """Rank 4 on every attention of the miniature's U-Net."""
    from peft import LoraConfig

    unet = load_tabletop().unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    trained = [p for p in unet.parameters() if p.requires_grad]
    ema, path = ema_copy(unet), tmp_path / "c.safetensors"
    x, states = torch.randn(1, 4, 8, 8), torch.randn(1, 4, unet.config.cross_attention_dim)

    def loss(model, generator, step):
        return (model(x, 5, states).sample ** 2).mean()

    list(train(unet, loss, torch.optim.AdamW(trained, lr=1e-3), 2, ema=ema, checkpoint=path))
    assert path.stat().st_size < 1_000_000


def test_accumulated_gradients_are_those_of_the_mean():
    """Two halves of a batch, one after the other, move the weights as the whole does."""
    x = torch.randn(8, 300, generator=torch.Generator().manual_seed(1))

    def moved(parts: int) -> torch.Tensor:
        model, at = two_parts(), iter(x.chunk(parts))

        def loss(model, generator, step):
            return (model(next(at)) ** 2).mean()

        list(train(model, loss, torch.optim.SGD(model[1].parameters(), lr=0.1), 1, accumulate=parts, warmup=0, decay=0))
        return model[1].weight

    assert torch.allclose(moved(1), moved(2), atol=1e-6)


def test_it_leaves_the_model_in_eval_mode_however_it_ends():
    model = two_parts()
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    run = train(model, squares, optimizer, 5)
    next(run)
    assert model.training
    run.close()
    assert not model.training
    list(train(model, squares, optimizer, 5))
    assert not model.training


SCRIPT = """
import os
import sys
from pathlib import Path
import torch
from accelerate import Accelerator
from torch import nn
from companion.training import ema_copy, train

path, steps, accumulate = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
accelerator = Accelerator(cpu=True)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2))
model[0].requires_grad_(False)

def loss(model, generator, step):
    return ((model(torch.randn(3, 6, generator=generator)) - 1) ** 2).mean()

run = train(model, loss, torch.optim.AdamW(model[1].parameters(), lr=1e-2), steps, accumulate=accumulate, warmup=2,
            ema=ema_copy(model), checkpoint=path, log=path.with_suffix(".jsonl"), every=0.0, accelerator=accelerator)
for progress in run:
    # In one piece, since two processes write to one pipe.
    os.write(1, f"{accelerator.process_index} {progress.step} {progress.loss.hex()}\\n".encode())
weights = accelerator.gather(model[1].weight.detach().flatten())
assert torch.equal(*weights.chunk(2)) if accelerator.num_processes == 2 else True
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()  # else its threads may end the process with an error
"""


def launch(script: Path, path: Path, steps: int, accumulate: int, processes: int) -> subprocess.Popen:
    """What `accelerate launch` does for GPUs, for as many processes on the CPU."""
    how = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", f"--master-port={free_port()}"]
    command = [sys.executable, *(how if processes > 1 else ()), str(script), str(path), str(steps), str(accumulate)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **options, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_with_accumulation_it_goes_on_to_the_same_bits(tmp_path, processes):
    """SIGKILL to all processes of a run (two of them talk by gloo); the resumed run ends as an unbroken one does."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    whole = launch(script, tmp_path / "whole.safetensors", 40, 3, processes)
    printed, errors = whole.communicate(timeout=300)
    assert whole.returncode == 0, errors
    broken = launch(script, tmp_path / "broken.safetensors", 40, 3, processes)
    for line in broken.stdout:
        if int(line.split()[1]) >= 11:
            break
    kill_all(broken)
    stopped = read_meta(tmp_path / "broken.safetensors")["step"]
    assert 10 <= stopped < 40
    again = launch(script, tmp_path / "broken.safetensors", 40, 3, processes)
    rest, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    a, b = (load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "broken"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    expected = {line for line in printed.splitlines() if int(line.split()[1]) > stopped}
    assert set(rest.splitlines()) == expected and len(expected) == processes * (40 - stopped)
    if processes == 2:  # each draws batches of its own, and both follow the mean
        losses = {tuple(line.split()) for line in printed.splitlines()}
        assert all(("1", step, loss) in losses for index, step, loss in losses if index == "0")


# ---- The loss of diffusion -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_a_network_that_knows_the_answer_has_no_loss(kind):
    scheduler = DDPMScheduler(**{**SCHEDULE, "prediction_type": kind})
    x0, generator = torch.randn(6, 4, 4, 4), torch.Generator().manual_seed(3)
    a_bar = scheduler.alphas_cumprod

    def answer(noisy, t):
        a = a_bar[t].view(-1, 1, 1, 1)
        eps = (noisy - a.sqrt() * x0) / (1 - a).sqrt()
        return {"epsilon": eps, "v_prediction": a.sqrt() * eps - (1 - a).sqrt() * x0, "sample": x0}[kind]

    assert noise_loss(answer, scheduler, x0, generator).item() == pytest.approx(0, abs=1e-6)
    wrong = noise_loss(
        lambda noisy, t: answer(noisy, t) + 0.5, scheduler, x0, generator, min_snr=5.0, weight=2.0 * torch.ones(1)
    )
    t = torch.randint(1000, (6,), generator=skipped(torch.Generator().manual_seed(3), x0.shape, 6))
    snr = a_bar[t] / (1 - a_bar[t])
    by = {"epsilon": snr, "v_prediction": snr + 1, "sample": 1}[kind]
    assert wrong.item() == pytest.approx(float((2 * 0.25 * snr.clamp(max=5) / by).mean()), rel=1e-4)


def skipped(generator: torch.Generator, shape, n: int) -> torch.Generator:
    """The generator after one call of `noise_loss`, and after the noise of the next."""
    torch.randn(shape, generator=generator)
    torch.randint(1000, (n,), generator=generator)
    torch.randn(shape, generator=generator)
    return generator


def test_it_is_the_loss_that_notebook_01_writes_out():
    """The cell of the notebook, with a right answer to its exercise, gives on a small model what `noise_loss` gives."""
    scheduler = DDPMScheduler(**SCHEDULE)
    cell = next(
        c.source
        for c in nbformat.read(ROOT / "notebooks" / "01_latent_diffusion.ipynb", as_version=4).cells
        if c.cell_type == "code" and "def loss(model, generator, step)" in c.source
    )
    data, n = torch.randn(20, 4, 8, 8, generator=torch.Generator().manual_seed(0)), 20
    scope = {
        "alphas_cumprod": scheduler.alphas_cumprod,
        "data": data,
        "labels": torch.arange(n) % 15,
        "NOTHING": 15,
        "T": 1000,
        "torch": torch,
        "noise_loss": exercises.exercise("noise_loss").solution,
    }
    exec(cell, scope)

    class Model:
        def __call__(self, noisy, t, class_labels):
            self.seen = noisy, t, class_labels
            return SimpleNamespace(sample=noisy * 0.3)

    model = Model()
    theirs = scope["loss"](model, torch.Generator().manual_seed(5), 0)
    generator = torch.Generator().manual_seed(5)
    index = torch.randint(n, (scope["BATCH"],), generator=generator)
    torch.rand(scope["BATCH"], generator=generator)  # which labels are left out
    mine = noise_loss(lambda noisy, t: noisy * 0.3, scheduler, data[index], generator)
    assert mine.item() == pytest.approx(theirs.item(), rel=1e-6)
