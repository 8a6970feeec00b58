"""How the judge is trained."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from companion.metrics import pictures_to_tensor
from companion.pretraining.distortions import WAYS
from companion.pretraining.judge import (
    COLUMNS,
    HEADS,
    Spoilable,
    accuracy,
    broadened,
    calibrate,
    examination,
    judge_loss,
    targets,
)
from companion.pretraining.vae import make_vae
from companion.tabletop import measures
from companion.tabletop.judge import COUNTS, UNCLEAR, Judge
from companion.tabletop.samples import held_out
from companion.tabletop.scene import KINDS


def flat_maps(n: int, size: int = 128) -> dict[str, np.ndarray]:
    """Maps of `n` renders that show nothing, except for boxes that are all different."""
    return {
        "segments": np.full((n, size, size), 2, np.uint8),
        "depth": np.ones((n, size, size), np.float16),
        "normals": np.zeros((n, size, size, 3), np.int8),
        "joints": np.zeros((n, 2, 11, 3), np.float32),
        "boxes": np.arange(n * 8, dtype=np.float32).reshape(n, 2, 4),
    }


def test_the_targets_of_the_judge_go_from_left_to_right():
    scenes = held_out(60)[1]
    size = 128
    columns = flat_maps(60)
    t = targets(columns, scenes)
    for i, s in enumerate(scenes):
        left = min(s.things, key=lambda th: th.x)
        assert t["kind"][i, 0] == KINDS.index(left.kind)
        assert torch.allclose(t["boxes"][i, 0] * size, torch.tensor(columns["boxes"][i, s.things.index(left)]))
        assert (t["segments"][i] == 2 + KINDS.index(s.things[0].kind)).all()
        assert (t["kind"][i, 1] == -100) == (len(s.things) == 1)


def test_the_judge_s_bfloat16_gradient_is_nearly_that_of_single_precision():
    pictures, scenes = held_out(8)
    target, gradients = targets(flat_maps(8), scenes), []
    for bfloat16 in (False, True):
        torch.manual_seed(0)
        judge = Judge()
        judge_loss(judge, pictures_to_tensor(pictures), target, bfloat16).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in judge.parameters()]))
    assert gradients[1].dtype == torch.float32
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


def test_the_published_judge_reads_held_out_renders():
    pictures, scenes = held_out(50)
    columns = flat_maps(50) | {"picture": pictures}
    assert columns.keys() == set(COLUMNS)
    found = accuracy(measures.judge(), columns, scenes)
    assert min(found[name] for name in ("count", "kind", "finish", "place", "time", "front")) > 0.95


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


def test_a_broadened_judge_answers_as_before():
    old = Judge((1, 2), KINDS)
    new = broadened(old)
    x = torch.rand(2, 3, 128, 128) * 2 - 1
    a, b = old.eval()(x), new(x)
    assert torch.equal(a["kind"], b["kind"][..., : len(KINDS)]) and torch.equal(a["count"], b["count"][:, 1:])
    assert torch.equal(a["segments"], b["segments"])
    assert [r.kinds for r in old.read(x)] == [r.kinds for r in new.read(x)]
