"""What the judge sees in a picture, and how a reading is compared with a prompt."""

from __future__ import annotations

import pytest
import torch

from companion.tabletop.caption import parse
from companion.tabletop.judge import FRONT, Judge, Reading, find_joints


def reading(kinds, finishes, front="neither", place="grass", time="day") -> Reading:
    return Reading(kinds, finishes, front, place, time, ((0.1, 0.1, 0.2, 0.2),) * len(kinds), 1.0)


@pytest.mark.parametrize(
    ("prompt", "seen", "wrong"),
    [
        ("a red ball on grass by day", reading(("ball",), ("red",)), set()),
        ("a red ball on grass by day", reading(("ball",), ("blue",)), {"finish"}),
        ("a red ball on snow", reading(("ball",), ("red",)), {"place"}),
        ("a ball", reading(("cube",), ("red",)), {"kind"}),
        ("a ball", reading(("ball", "ball"), ("red", "red")), {"count", "kind"}),
        ("a red ball left of a blue cube", reading(("ball", "cube"), ("red", "blue")), set()),
        ("a red ball right of a blue cube", reading(("ball", "cube"), ("red", "blue")), {"relation"}),
        ("a red ball right of a blue cube", reading(("cube", "ball"), ("blue", "red")), set()),
        ("a red ball in front of a blue cube", reading(("cube", "ball"), ("blue", "red"), FRONT[2]), set()),
        ("a red ball behind a blue cube", reading(("cube", "ball"), ("blue", "red"), FRONT[2]), {"relation"}),
        ("a red ball and a blue cube", reading(("cube", "ball"), ("blue", "red"), FRONT[1]), set()),
        ("a red ball and a blue cube", reading(("cube", "ball"), ("red", "blue")), {"finish"}),
    ],
)
def test_what_a_reading_meets_of_a_prompt(prompt, seen, wrong):
    result = seen.meets(parse(prompt))
    assert {k for k, v in result.items() if not v} - {"all"} == wrong
    assert result["all"] == (not wrong)


def test_the_judge_gives_what_it_says_and_survives_saving(tmp_path):
    torch.manual_seed(0)
    judge = Judge().eval()
    x = torch.rand(3, 3, 128, 128) * 2 - 1
    out = judge(x)
    shapes = {k: tuple(v.shape) for k, v in out.items()}
    assert shapes["segments"] == (3, 12, 64, 64) and shapes["normals"] == (3, 3, 64, 64)
    assert shapes["kind"] == (3, 2, 10) and shapes["features"] == (3, 160)
    judge.save(tmp_path)
    again = Judge.load(tmp_path)(x)
    assert all(torch.allclose(out[k], again[k], atol=0.02) for k in out)
    assert len(judge.read(x)) == 3
    with pytest.raises(FileNotFoundError, match="companion build judge"):
        Judge.load(tmp_path / "nowhere")


def test_joints_are_found_at_the_peaks():
    logits = torch.full((1, 11, 64, 64), -9.0)
    logits[0, 4, 10, 20] = 9
    x, y, p = find_joints(logits)[0, 4].tolist()
    assert (x, y) == (41.0, 21.0) and p > 0.99
