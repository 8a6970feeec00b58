"""The project's own files agree with each other, and importing the package is cheap."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from typer.main import get_command
from typer.testing import CliRunner

import companion
from companion import cli

PROJECT = tomllib.loads((companion.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
README, CONTRIBUTING, CHANGELOG = (
    (companion.ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
)

#: What Colab has installed (August 2026). The course is installed beside it with --no-deps, so the ranges must hold it.
COLAB = {
    "anywidget": "0.9.21",
    "diffusers": "0.39.0",
    "huggingface-hub": "1.27.0",
    "ipywidgets": "7.7.1",
    "numpy": "2.1.3",
    "peft": "0.20.0",
    "torch": "2.11.0+cu128",
    "transformers": "5.15.0",
}


def requirements(*groups: str) -> dict[str, Requirement]:
    """Requirements by name: those of the course itself, or of these extras."""
    lines = [line for group in groups for line in PROJECT["optional-dependencies"][group]]
    found = map(Requirement, lines if groups else PROJECT["dependencies"])
    return {canonicalize_name(r.name): r for r in found if r.name != PROJECT["name"]}


@pytest.mark.parametrize("name", sorted(COLAB))
def test_the_ranges_hold_what_colab_has(name):
    assert requirements()[name].specifier.contains(COLAB[name])


def test_constraints_pin_every_direct_requirement_within_its_range():
    lines = (companion.ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {
        canonicalize_name(r.name): r.specifier for r in map(Requirement, [x for x in lines if x[:1] not in ("", "#")])
    }
    wanted = requirements() | requirements("lab", "build", "space", "replicate", "test")
    assert set(pins) == set(wanted)
    for name, specifier in pins.items():
        (pin,) = specifier
        assert pin.operator == "==" and wanted[name].specifier.contains(pin.version), f"{name}{specifier}"


def test_environment_yml_has_the_ranges_of_pyproject():
    environment = yaml.safe_load((companion.ROOT / "environment.yml").read_text(encoding="utf-8"))
    conda = [line for line in environment["dependencies"] if isinstance(line, str)]
    found = {canonicalize_name(r.name): r.specifier for r in map(Requirement, conda)}
    python, _ = found.pop("python"), found.pop("pip")
    assert python == Requirement(f"python{PROJECT['requires-python']},<3.14").specifier
    for here, there in (("torch", "pytorch-cpu"), ("opencv-python-headless", "opencv")):
        found[here] = found.pop(there)
    assert found == {name: r.specifier for name, r in (requirements() | requirements("lab")).items()}
    assert {"pip": ["-e ."]} in environment["dependencies"], "repo2docker installs the course itself by this line"


def test_pythons_are_the_same_everywhere():
    from companion.doctor import PYTHONS

    (low, high) = PYTHONS
    versions = [f"3.{minor}" for minor in range(low[1], high[1] + 1)]
    classified = re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["classifiers"]))
    assert classified == versions
    assert f"Python {versions[0]} to {versions[-1]}" in README
    assert PROJECT["requires-python"] == f">={versions[0]}"


@pytest.mark.parametrize(
    "module",
    [
        "companion",
        "companion.models",
        "companion.files",
        "companion.doctor",
        "companion.cli",
        "companion.exercises",
        "companion.replicate",
    ],
)
def test_importing_does_not_import_torch(module):
    code = f"import {module}, sys; print(sorted({{'torch', 'diffusers', 'numpy', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_only_notebooks_and_tests_import_the_exercises():
    """The course's own code must not lean on what the reader is asked to write."""
    folder = companion.ROOT / "companion"
    others = [path for path in folder.rglob("*.py") if folder / "exercises" not in path.parents]
    wanted = re.compile(r"companion\.exercises|from (companion|\.+) import .*\bexercises\b")
    assert others and not [path for path in others if wanted.search(path.read_text(encoding="utf-8"))]


def test_load_is_the_models_module_s(monkeypatch):
    from companion import models

    monkeypatch.setattr(models, "load", lambda *args, **kwargs: (args, kwargs))
    assert companion.load("sd15", device="cpu") == (("sd15",), {"device": "cpu"})
    assert companion.load() == (("tabletop",), {})


def test_data_is_in_the_clone_or_where_the_environment_says(monkeypatch, tmp_path):
    assert companion.DATA == companion.ROOT / "data"
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path))
    assert companion.DATA == tmp_path
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match="COMPANION_DATA=.*none is not a folder"):
        companion.DATA  # noqa: B018
    monkeypatch.delenv("COMPANION_DATA")
    monkeypatch.setattr(companion, "ROOT", tmp_path)
    with pytest.raises(FileNotFoundError, match="pip install -e .*COMPANION_DATA"):
        companion.DATA  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        companion.nothing  # noqa: B018


def test_readme_and_contributing_name_every_command_and_no_other():
    targets = set(re.findall(r"^(\w+):", (companion.ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"^ +make (\w+)|`make (\w+)", README + CONTRIBUTING, re.MULTILINE))
    assert {a or b for a, b in named} == {"run", "lab", "test", "colab"} <= targets
    commands = set(get_command(cli.app).commands)
    used = set(re.findall(r"(?:^ +|`|bin/)companion (\w+)", README + CONTRIBUTING + CHANGELOG, re.MULTILINE))
    assert used == commands


def test_what_contributing_names_is_there():
    helped = CliRunner().invoke(cli.app, ["build", "--help"]).output
    built = set(re.findall(r"`companion build (\w+)", CONTRIBUTING))
    assert built and not [name for name in built if not re.search(rf"^\W*{name} ", helped, re.MULTILINE)]
    for path in re.findall(r"`((?:data|tests|companion)/[\w./]+)`", CONTRIBUTING):
        assert (companion.ROOT / path).exists(), path


@pytest.mark.parametrize("text", [README, CONTRIBUTING, CHANGELOG], ids=["README", "CONTRIBUTING", "CHANGELOG"])
def test_links_lead_to_what_is_there(text):
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("https://")]
    assert links and not [link for link in links if not (companion.ROOT / link).exists()]


def test_the_changelog_knows_the_version():
    assert companion.__version__ in CHANGELOG
    citation = yaml.safe_load((companion.ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == companion.__version__


def test_readme_lists_the_catalogue():
    from companion.models import CATALOGUE

    rows = dict(re.findall(r"^\| `([\w-]+)` \| ([^|]+) \|", README, re.MULTILINE))
    assert set(rows) == set(CATALOGUE)
    for name, model in CATALOGUE.items():
        assert f"{model.size} px" in rows[name]
        assert not model.mirrors or f"| a model hub, {model.download:g} GB |" in README


def test_ci_runs_the_readme_s_test_commands():
    script = companion.ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    text = script.read_text(encoding="utf-8")
    assert "make test\nexec make colab\n" in text
    assert "COMPANION_REQUIRE_BROWSER=1" in text and "CI=true" in text


def test_every_folder_of_data_has_its_licence_in_the_readme():
    folders = {f"data/{path.name}" for path in (companion.ROOT / "data").iterdir() if path.is_dir()}
    assert set(re.findall(r"^\| `(data/\w+)` \|", README, re.MULTILINE)) == folders


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    ("target", "extra", "last"),
    [
        ("run", "lab", "companion run"),
        ("lab", "lab", "jupyter lab notebooks/00_start_here.ipynb"),
        ("test", "test", "pytest"),
        ("colab", "test", '-m "colab and notebooks" tests/colab'),
    ],
)
def test_make_installs_once(tmp_path, target, extra, last):
    venv = tmp_path / "venv"

    def dry_run() -> list[str]:
        done = subprocess.run(
            ["make", "--no-print-directory", "--dry-run", target, f"VENV={venv}"],
            cwd=companion.ROOT,
            env={k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.splitlines()

    first = dry_run()
    assert any("pip install" in line and f".[{extra}]" in line and "constraints.txt" in line for line in first)
    assert last in first[-1]
    venv.mkdir()
    Path(venv / f"installed-{extra}").touch()
    again = dry_run()
    assert not any("pip" in line for line in again)
    assert last in again[-1]
