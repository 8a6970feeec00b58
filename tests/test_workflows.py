"""The workflows of a public copy, and the hooks before a commit, run what this repository has."""

from __future__ import annotations

import itertools
import re
import shlex
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from typer.main import get_command

import companion
from companion import cli

ROOT = companion.ROOT
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
WORKFLOWS = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in FILES}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PYTHONS = re.findall(r"Python :: (3\.\d+)", " ".join(PYPROJECT["project"]["classifiers"]))
MARKERS = [line.partition(":")[0] for line in PYPROJECT["tool"]["pytest"]["ini_options"]["markers"]]
PINS = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))

each_workflow = pytest.mark.parametrize("name", WORKFLOWS)


def steps(workflow: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for job in workflow["jobs"].values():
        yield from job["steps"]


def commands(workflow: dict[str, Any]) -> Iterator[list[str]]:
    for step in steps(workflow):
        for line in step.get("run", "").splitlines():
            yield shlex.split(line)


def marked(words: list[str]) -> str:
    """What a pytest command chooses by its markers; pyproject.toml's choice when it names none."""
    rest = words[words.index("pytest") :]
    return rest[rest.index("-m") + 1] if "-m" in rest else "not colab"


def problems(words: list[str]) -> Iterator[str]:
    """What in a command this repository does not have."""
    if words[0] == "python":
        assert words[1] == "-m", words
        words = words[2:]
    program, *rest = words
    if program == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        yield from (f"make has no {word}" for word in rest if "=" not in word and word not in targets)
    elif program == "companion":
        if rest[0] not in get_command(cli.app).commands:
            yield f"companion has no {rest[0]}"
    elif program == "pip":
        for extra in re.findall(r"\.\[(\w+)\]", " ".join(rest)):
            if extra not in PYPROJECT["project"]["optional-dependencies"]:
                yield f"there is no extra {extra}"
        packages = [word for word in rest[1:] if re.fullmatch(r"[\w-]+", word) and not word.startswith("-")]
        yield from (f"constraints.txt pins no {word}" for word in packages if word not in PINS)
    elif program == "pytest":
        for word in re.findall(r"\w+", marked(words)):
            if word not in (*MARKERS, "and", "or", "not"):
                yield f"there is no marker {word}"
    elif program not in PINS:
        yield f"nothing installs {program}"
    for word in rest:
        if (
            re.fullmatch(r"[\w./-]+\.\w+|(?:tests|companion|notebooks|data)/[\w./-]*", word)
            and not (ROOT / word).exists()
        ):
            yield f"there is no {word}"


@each_workflow
def test_a_workflow_s_commands_are_there(name):
    found = [problem for words in commands(WORKFLOWS[name]) for problem in problems(words)]
    assert list(commands(WORKFLOWS[name])) and found == []


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("make tests", "make has no tests"),
        ("companion sample", "companion has no sample"),
        ("python -m pip install -e '.[tests]'", "there is no extra tests"),
        ("pip install --constraint constraint.txt ruff", "there is no constraint.txt"),
        ("pip install flake8", "constraints.txt pins no flake8"),
        ("pytest -m 'not notebook'", "there is no marker notebook"),
        ("python -m pytest tests/none", "there is no tests/none"),
        ("flake8 .", "nothing installs flake8"),
    ],
)
def test_a_command_that_is_not_there_is_found(command, problem):
    assert list(problems(shlex.split(command))) == [problem]


@each_workflow
def test_pythons_are_those_of_the_classifiers(name):
    for job in WORKFLOWS[name]["jobs"].values():
        assert job.get("strategy", {}).get("matrix", {}).get("python", PYTHONS) == PYTHONS
    for step in steps(WORKFLOWS[name]):
        if "setup-python" in step.get("uses", ""):
            assert step["with"]["python-version"] in (*PYTHONS, "${{ matrix.python }}")


@each_workflow
def test_a_workflow_may_only_read_and_ends(name):
    workflow = WORKFLOWS[name]
    assert workflow["permissions"] == {"contents": "read"} and "concurrency" in workflow
    assert all(0 < job["timeout-minutes"] <= 120 and "permissions" not in job for job in workflow["jobs"].values())
    used = {step["uses"] for step in steps(workflow) if "uses" in step}
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", action) for action in used), "of GitHub's own, at a major version"


def test_only_the_index_that_pytorch_names_is_named():
    text = "".join(path.read_text(encoding="utf-8") for path in FILES)
    assert set(re.findall(r"https?://[^\s\"']+", text)) == {"https://download.pytorch.org/whl/cpu"}


def test_each_test_runs_in_one_job():
    """By its markers: what one job of tests.yml leaves out, unless it is for Colab, is run by another."""
    chosen = [marked(words) for words in commands(WORKFLOWS["tests"]) if "pytest" in words]
    for bits in itertools.product([False, True], repeat=len(MARKERS)):
        has = dict(zip(MARKERS, bits, strict=True))
        runs = [expression for expression in chosen if eval(expression, {}, has)]
        assert len(runs) == (not has["colab"]), (has, runs)


def test_the_matrix_has_every_system():
    assert WORKFLOWS["tests"]["jobs"]["code"]["strategy"]["matrix"]["os"] == [
        f"{name}-latest" for name in ("ubuntu", "macos", "windows")
    ]


def test_the_hooks_run_the_pinned_ruff_and_tests_that_exist():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    revisions = {repo["repo"].rpartition("/")[2]: repo.get("rev") for repo in config["repos"]}
    assert revisions["ruff-pre-commit"] == f"v{PINS['ruff']}"
    (local,) = (repo["hooks"] for repo in config["repos"] if repo["repo"] == "local")
    for hook in local:
        words = shlex.split(hook["entry"])
        assert list(problems(words)) == []
        (file,) = (word for word in words if word.endswith(".py"))
        assert f"def test_{words[words.index('-k') + 1]}" in (ROOT / file).read_text(encoding="utf-8")
