"""The control sweep: it learns from the share that it says, goes on where it was stopped, and compares pictures."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel

import companion
from companion import control_sweeps as sweeps
from companion.conditions import CONDITIONS
from companion.control_sweeps import METHODS, Setting
from companion.controlnet import Asked, as_controls
from companion.diffusion import encode
from companion.finetuning import Examples, attach
from companion.metrics import pictures_to_tensor
from companion.tabletop.samples import held_out


@pytest.fixture(scope="module")
def pipe():
    return companion.load(device="cpu")


def row(method="OFT", followed=(0.5, 0.6, 0.7, 0.6, 0.5), **values):
    return asdict(Setting(method, 1e-3)) | {"step": 100, "followed": list(followed)} | values


def test_a_share_is_the_first_part():
    whole = Examples(torch.randn(40, 4, 2, 2), [str(i) for i in range(40)], controls=torch.rand(40, 3, 8, 8))
    few = sweeps.some_of(whole, 0.05)
    assert list(few.prompts) == ["0", "1"] and torch.equal(few.controls, whole.controls[:2])
    assert len(sweeps.some_of(whole, 0.001).latents) == 1 and len(sweeps.some_of(whole, 1).latents) == 40


@pytest.mark.parametrize("method", ["OFT", "ControlNet"])
def test_a_training_is_measured_at_the_steps_that_were_named(pipe, method):
    condition, (pictures, scenes) = CONDITIONS["canny"], held_out(2)
    maps = condition.annotate(pictures)
    held = Asked(condition, condition.paint(maps), maps, pictures_to_tensor(pictures), scenes)
    lessons = Examples(encode(pipe, held.renders), held.prompts, controls=as_controls(list(held.controls), 128))
    sampling = {"steps": 1, "guidance_scale": 1.0}
    rows = list(
        sweeps.train_and_measure(
            pipe,
            Setting(method, 1e-2, rating=True),
            lessons,
            {False: held, True: held},
            {False: [1, 2], True: [2]},
            batch=1,
            sampling=sampling,
        )
    )
    assert [(r["step"], r["rating"]) for r in rows] == [(1, False), (2, False), (2, True)]
    assert all(len(r["followed"]) == 2 for r in rows) and rows[1]["followed"] == rows[2]["followed"]
    assert rows[0]["condition"] == "canny" and (rows[1]["distance"] > 0) == (method == "OFT")
    limits = sweeps.limits(pipe, held, **sampling)
    assert np.mean(limits["ceiling"]) > 0.95 > np.mean(limits["floor"])


def test_a_stopped_sweep_goes_on_with_each_method_at_its_best_rate(monkeypatch, tmp_path):
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path))
    monkeypatch.setattr(sweeps, "weights_sum", lambda folder: "these")
    trained = []

    def run(settings):
        for setting in settings:
            trained.append(setting)
            good = setting.method != "LoRA" or setting.lr == 3e-3
            last = row(followed=[0.8 if good else 0.1] * 5) | asdict(setting)
            both = [last | {"rating": False}, last] if setting.rating else [last]
            yield [row(step=50, followed=[0.9] * 5) | asdict(setting) | {"rating": False}, *both]

    some = sweeps.sweep(run, seeds=1)
    assert [next(some)[:2] for _ in range(4)][-1] == (4, 12 + 13)
    assert len(sweeps.stored()) == 4 * 3 and not sweeps.complete()
    # The trainings of the best rates are those with all of the data, too.
    assert [done for done, *_ in sweeps.sweep(run, seeds=1)] == [*range(5, 13), *range(12 + 8, 26)]
    assert len(trained) == 12 + 6
    assert {s.lr for s in trained if s.method == "LoRA" and not s.rating} == {3e-3}
    assert {s.share for s in trained if not s.rating} == {0.05, 0.5}
    best = sweeps.complete()
    assert {row["lr"] for row in best if row["method"] == "LoRA"} == {3e-3} and not any(row["rating"] for row in best)
    assert {(row["method"], row["share"]) for row in best} == {(m, 1.0) for m in METHODS} | {
        (m, share) for m in ("ControlNet", "LoRA", "OFT") for share in (0.05, 0.5)
    }
    half = [row for row in sweeps.stored() if (row["method"], row["lr"]) != ("LoRA", 1e-2)]
    assert {row["method"] for row in sweeps.at_best(half)} == METHODS.keys() - {"LoRA"}
    with pytest.raises(ValueError, match="no learning rate of 'OFT' was tried yet: companion finetunings control"):
        sweeps.best([], "OFT")
    before = len(trained)
    assert [done for done, *_ in sweeps.sweep(run, seeds=1, name="trials")] == [13, 14, 15]
    assert [s.method for s in trained[before:]] == list(sweeps.TRIALS) and sweeps.complete() == best


def test_methods_are_compared_picture_by_picture():
    lower = [v - 0.1 for v in (0.5, 0.6, 0.7, 0.6, 0.5)]
    rows = [
        row(),
        row(seed=1),
        row("LoRA", lower),
        row("LoRA", [0.0] * 5, step=50),
        row("LoRA", [9.0] * 5, rating=True),
    ]
    assert sweeps.followed(rows, "LoRA") == pytest.approx(lower)
    found = sweeps.compared(rows, "OFT", "LoRA")
    assert found.verdict == "higher" and found.means == pytest.approx((0.58, 0.48)) and found.n == 5
    assert sweeps.compared(rows, "LoRA", "OFT").verdict == "lower"
    assert sweeps.compared(rows, "OFT", "OFT").verdict == "not told apart"
    rows += [row(step=50, followed=[0.3] * 5), row(share=0.05, followed=[0.0] * 5)]
    assert sweeps.compared(rows, "OFT", "LoRA", step=50).means == pytest.approx((0.3, 0.0))
    assert sweeps.compared(rows, "OFT", "LoRA", 0.05, of_rival=1.0).verdict == "lower"
    gone, low, high = sweeps.share_of_the_way(
        np.full(6, 0.6), {"floor": [0.2] * 6, "ceiling": [1.0] * 5 + [float("nan")]}
    )
    assert gone == low == high == pytest.approx(0.5)
    with pytest.raises(ValueError, match="'HRA' was not measured with 50% of the data"):
        sweeps.followed(rows, "HRA", 0.5)
    with pytest.raises(ValueError, match=r"'LoRA' was measured at the learning rates \[.*\]; give the rows of one"):
        sweeps.followed([*rows, row("LoRA", lower, lr=1e-5)], "LoRA")


def test_the_beginnings_of_a_controlnet_are_told_apart_by_rate_and_by_name():
    tried = [row("ControlNet", [0.5] * 5, rating=True), row("ControlNet", [0.2] * 5, rating=True, lr=1e-4)]
    rows = [*tried, row("ControlNet, from normals", [0.6] * 5), row("ControlNet", [0.2] * 5, lr=1e-4)]
    rows += [row("ControlNet", [0.3] * 5), row("ControlNet", [0.5] * 5, seed=1)]
    rows += [row("ControlNet", [0.1] * 5, share=0.5)]
    found = sweeps.beginnings(rows)
    assert list(found) == ["ControlNet", "ControlNet, from normals", "ControlNet, rate 0.0001"]
    assert found["ControlNet"][100] == pytest.approx([0.4] * 5)  # the mean of both seeds
    assert found["ControlNet, rate 0.0001"][100] == pytest.approx([0.2] * 5) and sweeps.beginnings([]) == {}


def test_every_method_is_one_that_follows():
    assert all(hasattr(method, "_attach") for method in (METHODS | sweeps.TRIALS).values())


def test_a_controlnet_may_go_on_from_a_trained_one(pipe):
    method = sweeps.TRIALS["ControlNet, from normals"]
    net, own = attach(pipe, method, 0).net, ControlNetModel.from_pretrained(method.begin, torch_dtype=torch.float32)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), own.parameters(), strict=True))
    assert all(p.requires_grad for p in net.parameters())
