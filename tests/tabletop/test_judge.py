"""What the judge sees in a picture, and how a reading is compared with a prompt."""

from __future__ import annotations

import pytest
import torch

from companion.tabletop.caption import parse
from companion.tabletop.judge import FRONT, UNCLEAR, Judge, Reading, find_joints


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
    assert shapes["kind"] == (3, 2, 11) and shapes["count"] == (3, 3) and shapes["features"] == (3, 160)
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


def test_a_judge_that_can_say_no_says_it():
    judge = Judge().eval()
    with torch.no_grad():
        for head, answer in ((judge.whole_heads["count"], 1), (judge.slot_heads["kind"], judge.kinds.index(UNCLEAR))):
            head.weight.zero_()
            head.bias.copy_(10 * torch.nn.functional.one_hot(torch.tensor(answer), len(head.bias)))
    x = torch.zeros(1, 3, 128, 128)
    (unclear,) = judge.read(x)
    assert unclear.kinds == (UNCLEAR,) and not unclear.meets(parse("a ball"))["kind"]
    judge.whole_heads["count"].bias.data[0] = 99
    (nothing,) = judge.read(x)
    assert nothing.kinds == nothing.finishes == nothing.boxes == () and nothing.front == "neither"
    assert not nothing.meets(parse("a red ball on grass"))["count"]


def test_confidence_is_the_product_of_what_the_temperatures_leave():
    judge, x = Judge().eval(), torch.zeros(1, 3, 128, 128)
    with torch.no_grad():
        out = judge(x, maps=False)
    (reading,) = judge.read(x)
    heads = {"count": 1, "place": 1, "time": 1, "kind": len(reading.kinds), "finish": len(reading.kinds)}
    heads |= {"front": 1} if len(reading.kinds) == 2 else {}
    best = [out[k][0].softmax(-1).view(-1, out[k].shape[-1])[:n] for k, n in heads.items()]
    assert reading.confidence == pytest.approx(float(torch.cat([b.max(-1).values for b in best]).prod()), rel=1e-4)
    judge.temperatures.fill_(100.0)  # everything is equally likely
    assert judge.read(x)[0].confidence < reading.confidence
