"""How the judge is trained."""

from __future__ import annotations

import numpy as np
import torch

from companion.metrics import pictures_to_tensor
from companion.pretraining.judge import COLUMNS, accuracy, broadened, judge_loss, targets
from companion.tabletop import measures
from companion.tabletop.judge import Judge
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


def test_a_broadened_judge_answers_as_before():
    old = Judge((1, 2), KINDS)
    new = broadened(old)
    x = torch.rand(2, 3, 128, 128) * 2 - 1
    a, b = old.eval()(x), new(x)
    assert torch.equal(a["kind"], b["kind"][..., : len(KINDS)]) and torch.equal(a["count"], b["count"][:, 1:])
    assert torch.equal(a["segments"], b["segments"])
    assert [r.kinds for r in old.read(x)] == [r.kinds for r in new.read(x)]
