"""`companion dreambooth` from the command line."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from awkward import pattern
from PIL import Image
from typer.testing import CliRunner

from companion import cli


def call(*words: object):
    return CliRunner().invoke(cli.app, ["dreambooth", *map(str, words)])


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        pattern(i, 400, 300).save(folder / f"{i}.png")
    (folder / "notes.txt").write_text("no picture", encoding="utf-8")
    return folder


def test_prepare_makes_a_set_and_says_what_it_left_out(photos, tmp_path):
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps({"1.png": [0, 0, 200]}), encoding="utf-8")
    out = tmp_path / "set"
    words = ("--model", "tabletop", "--crop", "detail", "--boxes", boxes, "--class-pictures", photos)
    done = call("prepare", photos, "--out", out, *words)
    assert done.exit_code == 0, done.output
    assert "3 pictures of 128 x 128 from photos" in done.output and "notes.txt is text" in done.output
    assert "1.png, 400 x 300, 33% of it" in done.output and "Look at contact_sheet.png" in done.output
    assert np.asarray(Image.open(out / "instance" / "002.jpg")).shape == (128, 128, 3)
    assert (out / "class.zip").is_file() and (out / "report.json").is_file()


def test_prepare_refuses_in_one_sentence(photos, tmp_path):
    for words, sentence in (
        (("--size", 128, "--model", "tabletop"), "give one"),
        (("--model", "tabeltop"), "did you mean 'tabletop'"),
        (("--crop", "middle"), "crop='middle' is no rule: centre, detail"),
        (("--size", 100), "multiple of 8"),
    ):
        refused = call("prepare", photos, "--out", tmp_path / "set", *words)
        assert refused.exit_code == 2 and sentence in refused.output and "Traceback" not in refused.output
    (tmp_path / "set").mkdir()
    refused = call("prepare", photos, "--out", tmp_path / "set")
    assert refused.exit_code == 2 and "is there already, and nothing is overwritten" in refused.output
    assert not list((tmp_path / "set").iterdir())


def test_class_images_go_on_where_they_stopped(tiny, tmp_path):
    out = tmp_path / "class"
    words = ("class-images", "--model", tiny, "--prompt", "a red cube", "--out", out, "--steps", 1, "--count", 3)
    first = call(*words)
    assert first.exit_code == 0 and f"3 pictures in {out}: 000.png to 002.png" in first.output.replace("\n", " ")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "001.png").unlink()
    assert call(*words).exit_code == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    refused = call(*words, "--seed", 5)
    assert refused.exit_code == 2 and "was drawn with seed 0" in refused.output


def test_help_is_readable_at_80_columns_and_loads_nothing_heavy(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for words in ((), ("prepare",), ("class-images",)):
        shown = call(*words, "--help")
        assert shown.exit_code == 0 and "…" not in shown.output
        assert max(map(len, re.sub(r"\x1b[^m]*m", "", shown.output).splitlines())) <= 80
    hidden = "import sys; sys.modules.update(numpy=None, PIL=None, torch=None, diffusers=None)"
    subprocess.run([sys.executable, "-c", f"{hidden}; import companion.dreambooth_command"], check=True)
