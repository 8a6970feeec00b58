"""What notebook 00 says of the judge and of an eye comes from what was stored."""

from __future__ import annotations

import json

from companion import start_here
from companion.pretraining import eye
from companion.tabletop.scene import KINDS


def test_an_eye_and_the_judge_are_compared_where_an_eye_has_looked(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path))
    (tmp_path / "models").mkdir()
    report = tmp_path / "models" / "report.json"
    report.write_text(json.dumps({"eye_clear": 0.9}), encoding="utf-8")
    assert start_here.eye_and_judge() == {}
    numbers = {f"eye_{kind}": 0.5 for kind in KINDS} | {f"eye_judge_{kind}": 1.0 for kind in KINDS}
    report.write_text(json.dumps(numbers | {"eye_car": 0.75}), encoding="utf-8")
    found = start_here.eye_and_judge()
    assert list(found["an eye"]) == list(KINDS) and found["an eye"]["car"] == 0.75
    assert set(found["the judge"].values()) == {1.0}


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
