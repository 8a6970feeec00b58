"""What notebook 00 says of the judge and of an eye comes from what was stored."""

from __future__ import annotations

import pytest

from companion import models, start_here
from companion.pretraining import eye
from companion.tabletop.scene import KINDS


def test_an_eye_and_the_judge_are_compared_where_an_eye_has_looked(tmp_path, monkeypatch):
    monkeypatch.setattr(eye, "VERDICTS", tmp_path / "eye_verdicts.json")
    monkeypatch.setattr(models, "reported", lambda: {"eye_clear": 0.9})
    assert start_here.eye_and_judge() == {}
    monkeypatch.setattr(models, "reported", lambda: {f"eye_judge_{kind}": 1.0 for kind in KINDS})
    assert start_here.eye_and_judge() == {}, "no eye has looked"
    prompts, words = eye.load_prompts(), {"car": ("wrong", "doubtful", "clear", "clear")}
    seen, verdicts = dict.fromkeys(KINDS, 0), []
    for i, asked in enumerate(prompts):
        for n, kind in enumerate(asked.kinds):
            verdicts.append(eye.Verdict(i, n, words.get(kind, ("clear",) * 4)[seen[kind] % 4], ""))
            seen[kind] += 1
    eye.save_verdicts(verdicts, {"by": "a test", "controls": {"clear": 3, "doubtful": 1, "wrong": 0}}, eye.VERDICTS)
    clear, told, read = start_here.eye_and_judge().values()
    assert list(clear) == list(KINDS) and clear["car"] == 0.5 and told["car"] == 0.75 and clear["ball"] == 1
    assert set(read.values()) == {1.0} and seen["car"] == 16
    counts = start_here.eye_counts()
    assert counts["drawn"] == {"clear": 152, "doubtful": 4, "wrong": 4} and counts["rebuilt"]["clear"] == 3
    with pytest.raises(FileNotFoundError):
        start_here.eye_counts("depth")
    eye.save_verdicts(verdicts[:2], {"by": "another"}, eye.verdicts_with("depth"))
    counts = start_here.eye_counts("depth")
    assert sum(counts["drawn"].values()) == 2 and counts["rebuilt"] == {"clear": 0, "doubtful": 0, "wrong": 0}
    eye.save_verdicts(verdicts[:2], {"controls": {"doubtful": 7}}, eye.verdicts_with(eye.UNTOUCHED))
    assert [sum(c.values()) for c in start_here.eye_counts("untouched").values()] == [2, 7]
    assert list(start_here.eye_counts("untouched")) == ["untouched", "rebuilt"]


def test_what_an_eye_called_wrong_comes_before_what_it_doubted(tmp_path, monkeypatch):
    monkeypatch.setattr(eye, "VERDICTS", tmp_path / "eye_verdicts.json")
    assert start_here.not_clear(6) == [], "no eye has looked"
    prompts = eye.load_prompts()
    words = {i: ["clear"] * len(prompts[i].kinds) for i in range(len(prompts))}
    words[3], words[100] = ["doubtful"], ["clear", "wrong"]
    verdicts = [eye.Verdict(i, n, word, "") for i, said in words.items() for n, word in enumerate(said)]
    eye.save_verdicts(verdicts, {"by": "a test"}, eye.VERDICTS)
    first, second = start_here.not_clear(6)
    assert first == (prompts[100].prompt, 100, list(zip(prompts[100].kinds, ("clear", "wrong"), strict=True)))
    assert second[1] == 3 and second[2] == [(prompts[3].kinds[0], "doubtful")]
    assert len(start_here.not_clear(1)) == 1
