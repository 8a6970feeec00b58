"""The report's table, curves and strip."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

import companion
from companion.conditions import CONDITIONS
from companion.controlnet import controlnet_of
from companion.pretraining import eye, report, report_pictures
from companion.pretraining.publishing import save_net
from companion.pretraining.report import BARS, load_tabletop, table
from companion.pretraining.report_pictures import curves, strip
from companion.tabletop import dataset
from companion.tabletop.samples import held_out


def test_the_report_s_table_says_which_bars_are_reached():
    lines = table({"vae_psnr_db": 33.0, "frechet_ratio": 3.0, "clip_top1": 0.5, "load_seconds": 11.0}).splitlines()
    assert lines[2:] == [
        "| VAE: PSNR on 256 held-out renders | 33.00 dB | 34.00 dB ✗ | 32.00 dB ✓ |",
        "| CLIP: picture finds its caption among 256 held-out | 50.0% |  |  |",
        "| ... the first over the second | 3.0 | 3.0 ✓ | 6.0 ✓ |",
        "| Import and load | 11.0 s |  | 10.0 s ✗ |",
    ]


def test_curves_are_those_of_the_logs(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no logs; `companion build publish`"):
        curves(tmp_path)
    for name, rows in {
        "vae": [{"step": 100, "loss": 0.5, "seconds": 60}, {"step": 200, "loss": 0.25, "seconds": 180}],
        "unet16-measured": [
            {"step": 500, "error": 0.05, "error_untold": 0.06},
            {"step": 1000, "error": 0.04, "error_untold": 0.06, "frechet": 0.4, "all": 0.7},
            {"step": 2000, "frechet": 0.3, "all": 0.8},
        ],
    }.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    made = curves(tmp_path)
    drawn = {k: [line.get_xydata().tolist() for line in figure.axes[0].lines] for k, figure in made.items()}
    assert drawn == {
        "loss": [[[1, 1], [3, 0.5]]],
        "unet16-measured-error": [[[500, 0.05], [1000, 0.04]], [[500, 0.06], [1000, 0.06]]],
        "unet16-measured-frechet": [[[1000, 0.4], [2000, 0.3]]],
        "unet16-measured-prompts": [[[1000, 0.7], [2000, 0.8]]],
    }


def test_an_eye_s_verdicts_count_for_the_pictures_that_it_saw(monkeypatch, tmp_path):
    prompts = eye.load_prompts()
    pictures = np.random.default_rng(0).integers(0, 255, (len(prompts), 128, 128, 3), np.uint8)
    monkeypatch.setattr(report, "drawn_bytes", lambda pipe, texts: pictures[: len(texts)])
    monkeypatch.setattr(eye, "VERDICTS", tmp_path / "verdicts.json")
    assert report.eye_and_judge(None) == {}, "no eye has looked"
    words = {a.kinds: "; ".join(f"{k} {'wrong' if k == 'cube' else 'clear'}" for k in a.kinds) for a in prompts}
    text = "\n".join(f"{i} {words[asked.kinds]}" for i, asked in enumerate(prompts))
    about = {"by": "a test", "controls": {"clear": 3, "doubtful": 1}}
    eye.save_verdicts(eye.parse_verdicts(text, prompts, list(pictures)), about, eye.VERDICTS)
    found = report.eye_and_judge(None)
    assert found["eye_clear"] == pytest.approx(0.9) and found["eye_worst_kind"] == found["eye_cube"] == 0
    assert found["eye_clear_rebuilt"] == 0.75 and "eye_clear_untouched" not in found
    said = [eye.Verdict(i, 0, word, "") for i, word in enumerate(("clear", "clear", "doubtful", "clear", "wrong"))]
    eye.save_verdicts(said, {"controls": {"clear": 1, "doubtful": 3}}, eye.verdicts_with(eye.UNTOUCHED))
    again = report.eye_and_judge(None)
    assert again == found | {"eye_clear_untouched": 0.6, "eye_clear_untouched_rebuilt": 0.25}
    assert found["eye_judge_ball"] < 0.5, "the judge reads no balls in noise"
    assert found["eye_ball"] == 1 and found["judge_accepts_wrong"] < 0.5 < found["judge_rejects_clear"]
    pictures[:12, 0, 0, 0] ^= 1  # rounded otherwise, in a tenth
    assert report.eye_and_judge(None)["eye_clear"] == found["eye_clear"]
    pictures[12, 0, 0, 0] ^= 1  # other weights draw other pictures
    assert report.eye_and_judge(None) == {}


def test_an_eye_s_verdicts_with_a_control_have_lines_of_their_own(monkeypatch, tmp_path):
    asked = [eye.Asked("a cube and a ball", i, ("cube", "ball")) for i in range(4)]
    pictures = np.random.default_rng(0).integers(0, 255, (4, 128, 128, 3), np.uint8)
    monkeypatch.setattr(report, "steered", lambda pipe, condition: (asked, pictures))
    monkeypatch.setattr(eye, "VERDICTS", tmp_path / "verdicts.json")
    assert report.eye_and_controls(None) == {}, "no eye has looked"
    text = "0 cube clear; ball clear\n1 cube doubtful; ball clear\n2 ball clear\n3 cube clear; ball wrong"
    eye.save_verdicts(eye.parse_verdicts(text, asked, list(pictures)), {"by": "a test"}, eye.verdicts_with("depth"))
    found = report.eye_and_controls(None)
    assert found == {"eye_depth_clear": 5 / 8, "eye_depth_cube": 2 / 4}
    assert "An eye: things drawn with a depth map that are clear | 62%" in report.table(found)
    pictures[0, 0, 0, 0] ^= 1  # one in four differs: other weights have drawn them
    assert report.eye_and_controls(None) == {}


def test_a_part_of_the_report_is_measured_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(report.dataset, "build", lambda *_: iter(()))
    found = report.measure(tmp_path, only=["sizes"], say=lambda _: None)
    assert found["weights_mb"] < found["all_weights_mb"] < 120 and len(found) == 3
    with pytest.raises(ValueError, match="'smell' is no part of the report; they are autoencoder, judge"):
        report.measure(tmp_path, only=["smell"])


def test_an_eye_s_sheet_frames_each_picture_with_its_worst_verdict():
    asked = [eye.Asked("a cube and a ball", i, ("cube", "ball")) for i in range(3)]
    words = [("clear", "clear"), ("clear", "doubtful"), ("wrong", "doubtful")]
    verdicts = [eye.Verdict(i, j, w, "") for i, pair in enumerate(words) for j, w in enumerate(pair)]
    a = np.asarray(report_pictures.eye_sheet(asked, np.full((3, 8, 8, 3), 7, np.uint8), verdicts, columns=2))
    assert a.shape == (28, 28, 3) and (a[3:11, 3:11] == 7).all()
    corners = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in (a[0, 0], a[0, 14], a[14, 0])]
    assert corners == [report_pictures.FRAMES[w] for w in ("clear", "doubtful", "wrong")]


def test_the_reliability_that_was_measured_is_drawn():
    found = {f"judge_{what}_{i}": v for i, v in ((2, 0.25), (9, 0.95)) for what in ("confidence", "right")}
    (axes,) = report_pictures.reliability(found)["reliability"].axes
    measured, diagonal = (line.get_xydata().tolist() for line in axes.lines[:2])
    assert measured == [[0.25, 0.25], [0.95, 0.95]] and diagonal == [[0, 0], [1, 1]]
    assert report_pictures.reliability({}) == {}


def test_a_strip_needs_the_weights_of_its_commits():
    with pytest.raises(ValueError, match="git has no data/models/tabletop of commit 'nowhere'"):
        strip({"first": "nowhere"})


#: What is measured only once there are such weights, renders to train on, earlier weights, and an eye's verdicts.
LATER = {"error_things_50_train", "error_things_100_train", "judge_calibration"}
LATER |= {"shape_error_px", "shape_scale_error", "shape_error_px_before", "shape_error_ratio"}
LATER |= {"judge_before_accepts_spoiled", "eye_cube"}
LATER |= {f"eye_{name}_{what}" for name in report.LOOKED_AT for what in ("clear", "cube")}
LATER |= {"eye_clear_untouched", "eye_clear_untouched_rebuilt"}
LATER |= {"eye_clear", "eye_worst_kind", "eye_clear_rebuilt", "judge_accepts_wrong", "judge_rejects_clear"}
LATER |= {f"control_{name}" for name in CONDITIONS} | {"control_prompts", "controlled_picture_ratio"}


@pytest.mark.slow
def test_every_measure_of_the_report_is_taken(tmp_path, monkeypatch):
    """Held-out renders stand in for all splits, and few pictures are drawn: too few for Fréchet distances."""
    pictures, scenes = held_out(20)
    n, size = pictures.shape[:2]
    segments = np.ones((n, size, size), np.uint8)
    segments[:, 48:80, 32:64] = 2
    columns = {
        "picture": pictures,
        "segments": segments,
        "depth": np.full((n, size, size), 7, np.float16),
        "normals": np.zeros((n, size, size, 3), np.int8),
        "joints": np.ones((n, 2, 11, 3), np.float32),
        "boxes": np.full((n, 2, 4), 64, np.float32),
    }
    monkeypatch.setattr(report.dataset, "build", lambda folder, split, count: iter([f"{split} of {count}"]))
    monkeypatch.setattr(
        report.dataset, "read", lambda folder, split, names, count=None: {k: columns[k][:count] for k in names}
    )
    monkeypatch.setattr(report.dataset, "scenes", lambda folder, split, count=None: scenes[:count])
    for name in ("controls", "eye_and_judge", "eye_and_controls"):  # tested by themselves
        monkeypatch.setattr(report, name, lambda *_: {})
    said = []
    found = report.measure(tmp_path, 0.01, said.append)
    few = {"frechet", "frechet_halves", "frechet_ratio", "frechet_things_ratio"}
    missing = BARS.keys() - found.keys()
    assert few <= missing and missing - few <= LATER
    assert said[:3] == ["drawn val of 500", "drawn test of 500", "drawn test-empty of 250"]
    assert found["vae_psnr_db"] > 30 and found["judge_min_attribute"] > 0.9 and found["prompt_kind"] > 0.5
    assert len(table(found).splitlines()) == 2 + len(BARS) - len(missing)


def test_controlnets_are_measured_on_what_they_were_asked_for(small_world, tmp_path, monkeypatch):
    """An untrained ControlNet changes nothing, so it goes none of the way, and costs the prompts nothing."""
    pipe = load_tabletop()
    save_net(controlnet_of(pipe.unet, attention=False), tmp_path / "models" / "tabletop-controlnet-softedge")
    monkeypatch.setattr(report, "MODELS", tmp_path / "models")
    monkeypatch.setattr(companion, "DATA", tmp_path, raising=False)  # where `load_controlnet` looks
    renders = tmp_path / "renders"
    renders.mkdir()
    shutil.copy(dataset.shard_path(small_world / "renders", "val", 0), dataset.shard_path(renders, "test", 0))
    monkeypatch.setattr(report, "find", lambda _: SimpleNamespace(steps=10, guidance=3.0))
    found = report.controls(pipe, tmp_path, 6)
    assert found["control_softedge"] == found["control_softedge_low"] == found["control_softedge_high"] == 0
    assert found["control_softedge_floor"] == found["control_softedge_drawn"] < found["control_softedge_ceiling"] == 1
    assert found["control_prompts"] == 1 and len(found) == 7
    monkeypatch.setattr(report, "MODELS", tmp_path / "none")
    assert report.controls(pipe, tmp_path, 6) == {}
