"""Pictures to examine a judge with, how it is marked, and how its confidence is set right."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from companion.metrics import pictures_to_tensor
from companion.pretraining.distortions import WAYS
from companion.pretraining.examination import Spoilable, calibrate, examination, examine
from companion.pretraining.judge import HEADS
from companion.pretraining.vae import make_vae
from companion.tabletop.judge import COUNTS, UNCLEAR, Judge
from companion.tabletop.scene import KINDS


@pytest.fixture(scope="module")
def spoilable(small_world) -> Spoilable:
    return Spoilable(small_world / "renders", "train", make_vae().eval(), 12)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_spoiled_strongly_is_unclear_and_the_rest_is_as_it_was(spoilable, way):
    index = torch.arange(12)
    before = spoilable.answers(index)
    x, right, some = spoilable.spoiled(index, way, True, torch.Generator().manual_seed(0))
    assert x.shape == (12, 3, 128, 128) and x.abs().max() <= 1 + 1e-6
    there = before["kind"] >= 0
    assert some.any(1).all() and not (some & ~there).any()
    assert (right["kind"][some] == len(KINDS)).all() and Judge().kinds[len(KINDS)] == UNCLEAR
    assert torch.equal(right["kind"][~some], before["kind"][~some])
    assert all(torch.equal(right[k], before[k]) for k in HEADS if k != "kind")
    assert torch.equal(spoilable.target["kind"], before["kind"]), "the renders' own answers stay"
    _, gentle, _ = spoilable.spoiled(index, way, False, torch.Generator().manual_seed(0))
    assert torch.equal(gentle["kind"], before["kind"])


def test_an_empty_scene_has_no_things_to_ask_about(spoilable):
    x, right = spoilable.without_things(torch.arange(4))
    assert torch.equal(x, pictures_to_tensor(spoilable.empty[:4])) and (right["count"] == COUNTS.index(0)).all()
    assert (right["kind"] < 0).all() and (right["finish"] < 0).all() and (right["front"] < 0).all()
    assert torch.equal(right["place"], spoilable.target["place"][:4])


def test_temperatures_make_an_overconfident_judge_modest(spoilable):
    """A judge with random answers knows nothing, so the best temperature is the largest."""
    judge = calibrate(Judge().eval(), spoilable)
    assert (judge.temperatures != 1).any()
    with torch.no_grad():
        judge.slot_heads["kind"].weight.mul_(50)
        judge.slot_heads["kind"].bias.mul_(50)
    assert calibrate(judge, spoilable).temperatures[HEADS.index("kind")] > 3
    sorts = examination(spoilable)
    assert sorts.keys() == {"rendered", "rebuilt", "empty", *WAYS}
    assert (sorts["warp"][1]["kind"][:, 0] == len(KINDS)).all(), "scenes with one thing only, which is unclear"


def test_an_examination_is_marked(spoilable, monkeypatch):
    """By a judge that always says the same: one unclear thing, with a confidence of 0.9."""
    judge, sorts = Judge().eval(), examination(spoilable)
    sizes = {k: v.shape[1:] for k, v in judge(torch.zeros(1, 3, 128, 128), maps=False).items() if k in HEADS}

    def same(judge: Judge, x: torch.Tensor) -> dict[str, torch.Tensor]:
        found = {k: torch.zeros(len(x), *size) for k, size in sizes.items()}
        for k in found:
            found[k][..., {"count": 1, "kind": len(KINDS)}.get(k, 0)] = 99
        others = len(COUNTS) - 1
        found["count"][:, 1] = float(np.log(9 * others))
        return found

    monkeypatch.setattr("companion.pretraining.examination.logits", same)
    exam = examine(judge, sorts)
    assert exam.read == {"rendered": 0, "rebuilt": 0, "empty": 0} and set(exam.accepted.values()) == {0}
    assert exam.confidence == [pytest.approx(0.9, abs=1e-4)] and exam.counts == [sum(len(x) for x, _ in sorts.values())]
    assert exam.calibration_error == pytest.approx(abs(0.9 - exam.right[0]), abs=1e-4)


def test_a_judge_that_cannot_say_no_accepts_everything(spoilable, monkeypatch):
    old, sorts = Judge((1, 2), KINDS).eval(), examination(spoilable)
    was = {len(answers["was"]): answers["was"] for _, answers in sorts.values() if "was" in answers}

    def knowing(judge: Judge, x: torch.Tensor) -> dict[str, torch.Tensor]:
        kind = (
            torch.nn.functional.one_hot(was[len(x)].clamp(min=0), len(KINDS))
            if len(x) in was
            else torch.zeros(len(x), 2, 10)
        )
        return {"count": torch.tensor([[1.0, 0.0]]).expand(len(x), 2), "kind": kind.float()}

    monkeypatch.setattr("companion.pretraining.examination.logits", knowing)
    exam = examine(old, sorts)
    assert set(exam.accepted.values()) == {1.0} and exam.read["empty"] == 0 and exam.counts == []
