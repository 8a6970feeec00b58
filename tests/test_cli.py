"""The `companion` command: what it hands on, its exit codes, and that it is quick."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import typer
from typer.testing import CliRunner

import companion
from companion import cli, doctor
from companion.doctor import FAIL, OK, WARN, Check


def call(*words: str):
    return CliRunner().invoke(cli.app, list(words))


@pytest.fixture
def runner(monkeypatch) -> dict:
    """Replace companion.run by one that only records its arguments, and fails."""
    calls: dict = {}
    module = ModuleType("companion.run")

    def run(*args):
        calls["run"] = args
        return 1

    def execute_in_place(*args):
        calls["execute"] = args
        return 1

    module.run, module.execute_in_place = run, execute_in_place
    monkeypatch.setitem(sys.modules, "companion.run", module)
    return calls


def test_version_and_help():
    assert call("--version").output.strip() == companion.__version__
    assert all(name in call("--help").output for name in ("doctor", "run", "execute", "build"))


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from companion.cli import app; sys.argv = ['companion', '--help']\n"
        "try: app()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'papermill', 'matplotlib', 'numpy', 'huggingface_hub'}\n"
        "print('loaded:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "loaded: []", done.stderr


@pytest.mark.parametrize(("status", "code"), [(OK, 0), (WARN, 0), (FAIL, 1)])
def test_doctor_fails_when_a_check_does(monkeypatch, status, code):
    monkeypatch.setattr(doctor, "checks", lambda: [Check("python", OK, "fine"), Check("thing", status, "so and so")])
    result = call("doctor")
    assert result.exit_code == code
    assert f"[{status}]" in result.output and "so and so" in result.output


def test_run_by_default(runner):
    assert call("run").exit_code == 1, "the code of the run is handed on"
    assert runner["run"] == (None, "tabletop", None, None, 600, {})


def test_run_with_everything(runner, tiny, monkeypatch):
    monkeypatch.chdir(tiny.parent)
    words = ["1", "latent", "--model", "./tiny", "--device", "cuda", "--out", "o", "--timeout", "9"]
    call("run", *words, "-p", "SEED=3", "-p", "PROMPT=a red ball", "--parameter", "FAST=True")
    assert runner["run"] == (
        ["1", "latent"],
        str(tiny),
        "cuda",
        Path("o"),
        9,
        {"SEED": 3, "PROMPT": "a red ball", "FAST": True},
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--model", "tabeltop"], "did you mean 'tabletop'"),
        (["--device", "gpu"], "device='gpu' is unknown; known are"),
        (["-p", "SEED"], "'SEED' is not NAME=VALUE"),
        (["-p", "=3"], "'=3' is not NAME=VALUE"),
    ],
)
def test_run_refuses_in_one_sentence(runner, words, sentence):
    result = call("run", *words)
    assert result.exit_code == 2 and "run" not in runner
    assert sentence in result.output and "Traceback" not in result.output


def test_execute(runner, tmp_path):
    notebook = tmp_path / "one.ipynb"
    notebook.touch()
    assert call("execute", str(notebook)).exit_code == 1
    assert runner["execute"] == ([notebook],)
    assert call("execute", str(tmp_path / "none.ipynb")).exit_code == 2


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "papermill", None)
    monkeypatch.delitem(sys.modules, "companion.run", raising=False)
    result = call("run")
    assert result.exit_code == 2
    assert result.output.strip() == "papermill is not installed: run `pip install -e '.[lab]'` in the clone."


def test_build_hands_everything_on(monkeypatch):
    given = []
    module = ModuleType("companion.pretraining.command")
    module.app = typer.Typer()

    @module.app.command()
    def renders(count: int, split: str = "train") -> None:
        given.append((count, split))

    @module.app.command()
    def fail() -> None:
        raise typer.Exit(3)

    @module.app.command()
    def render() -> None:
        raise ImportError("rendering needs Mitsuba")

    monkeypatch.setitem(sys.modules, "companion.pretraining.command", module)
    assert call("build", "renders", "5", "--split", "test").exit_code == 0
    assert given == [(5, "test")]
    assert call("build", "fail").exit_code == 3
    late = call("build", "render")
    assert (late.exit_code, late.output.strip()) == (2, "rendering needs Mitsuba")
    assert "companion build" in call("build", "--help").output


def test_build_without_the_renderer(monkeypatch):
    class Missing(ModuleType):
        def __getattr__(self, name):
            raise ModuleNotFoundError("No module named 'mitsuba'", name="mitsuba")

    monkeypatch.setitem(sys.modules, "companion.pretraining.command", Missing("companion.pretraining.command"))
    result = call("build", "renders")
    assert result.exit_code == 2
    assert result.output.strip() == "mitsuba is not installed: run `pip install -e '.[build]'` in the clone."


@pytest.mark.parametrize(
    "words",
    ["", "run", "train", "finetunings", "samplers", "build unet", "build controlnet", "space run", "replicate train"],
)
def test_help_is_readable_at_80_columns(monkeypatch, words):
    monkeypatch.setenv("COLUMNS", "80")
    shown = re.sub(r"\x1b[^m]*m", "", call(*words.split(), "--help").output)
    assert len(shown.splitlines()) > 10 and max(map(len, shown.splitlines())) <= 80
    assert not re.search(r"…\s*│", shown), "nothing is cut off"
