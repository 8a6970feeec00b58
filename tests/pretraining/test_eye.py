"""Verdicts by eye: prompts fixed in advance, verdicts tied to pictures, and the judge compared with them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from companion.pretraining import eye
from companion.tabletop.caption import parse
from companion.tabletop.judge import Reading
from companion.tabletop.scene import KINDS, WITHHELD

PROMPTS = [eye.Asked("a red cube on grass", 0, ("cube",)), eye.Asked("a ball left of a can", 1, ("ball", "can"))]
PICTURES = [np.full((8, 8, 3), v, np.uint8) for v in (0, 200)]


def reading(*kinds: str) -> Reading:
    return Reading(kinds, ("red",) * len(kinds), "neither", "grass", "day", ((0, 0, 1, 1),) * len(kinds), 1.0)


def test_the_prompts_were_written_down_and_name_all_kinds_equally_often():
    prompts = eye.load_prompts()
    assert prompts == eye.made_prompts() and len(prompts) == 120
    assert set(Counter(kind for p in prompts for kind in p.kinds).values()) == {16}
    assert [p.seed for p in prompts] == list(range(120)) and len({p.prompt for p in prompts}) > 115
    for p in prompts:
        wish = parse(p.prompt)
        assert wish.kinds == p.kinds and not WITHHELD.intersection(zip(wish.kinds, wish.finishes, strict=True))
    assert set(eye.MARKS) == set(KINDS)


def test_verdicts_are_bound_to_their_pictures(tmp_path):
    text = "0 cube clear  # straight\n\n1 can wrong (a lump; no rim); ball doubtful\n"
    found = eye.parse_verdicts(text, PROMPTS, PICTURES)
    assert [(v.prompt, v.thing, v.word) for v in found] == [(0, 0, "clear"), (1, 0, "doubtful"), (1, 1, "wrong")]
    assert found[0].picture == eye.fingerprint(PICTURES[0]) != found[1].picture
    eye.save_verdicts(found, {"controls": {"clear": 3, "wrong": 1}}, tmp_path / "v.json")
    assert eye.load_verdicts(tmp_path / "v.json") == found
    assert eye.load_controls(tmp_path / "v.json") == {"clear": 3, "wrong": 1}
    eye.save_verdicts(found, {}, tmp_path / "v.json")
    assert eye.load_controls(tmp_path / "v.json") == {}
    assert eye.by_kind(found, PROMPTS) == {"cube": (1, 1), "ball": (0, 1), "can": (0, 1)}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("0 cube good", "'good' in '0 cube good' is no verdict; the words are clear, doubtful, wrong"),
        ("0 clear", "'clear' in '0 clear' is no kind; they are ball, "),
        ("9 cube clear", "'9 cube clear' does not begin with a picture's number, 0 to 1"),
        ("0 cube clear", "1 pictures have no verdict, the first of them number 1"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(text, sentence):
    with pytest.raises(ValueError, match=sentence):
        eye.parse_verdicts(text, PROMPTS, PICTURES)


def test_what_was_asked_for_and_not_seen_is_wrong():
    twice = [eye.Asked("a red can left of a blue can", 0, ("can", "can")), *PROMPTS[1:]]
    said = "0 can clear; tree clear\n1 nothing wrong"
    assert [v.word for v in eye.parse_verdicts(said, twice, PICTURES)] == ["clear", "wrong", "wrong", "wrong"]


def test_the_order_in_which_pictures_are_shown_is_fixed_and_mixed():
    assert eye.order(160) == eye.order(160) and sorted(eye.order(160)) == list(range(160))
    assert eye.order(160)[:120] != list(range(120)) and 20 < sum(i >= 120 for i in eye.order(160)[:120]) < 40


def test_the_judge_is_held_against_the_eye():
    found = eye.parse_verdicts("0 cube wrong\n1 ball clear; can clear", PROMPTS, PICTURES)
    kind = eye.agreement(found, PROMPTS, [reading("cube"), reading("can", "tree")])
    assert kind == {"accepts_wrong": (1, 1), "rejects_clear": (1, 2)}
    strict = eye.agreement(found, PROMPTS, [reading("can"), reading("can", "ball")])
    assert strict == {"accepts_wrong": (0, 1), "rejects_clear": (0, 2)}


def test_the_judge_s_readings_are_counted_by_kind():
    assert eye.by_judge(PROMPTS, [reading("can"), reading("ball", "tree")]) == {
        "cube": (0, 1),
        "ball": (1, 1),
        "can": (0, 1),
    }


def test_sheets_show_every_picture_enlarged_and_its_number_alone():
    made = list(eye.sheets([np.full((16, 16, 3), i, np.uint8) for i in range(14)]))
    assert len(made) == 2 and made[0].size == (4 * 64, 3 * (64 + 28))
    assert made[1].getpixel((32, 28 + 32)) == (12, 12, 12) and made[1].getpixel((200, 60)) == (255, 255, 255)
