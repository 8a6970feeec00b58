"""Badges and set-up cells: the same in every notebook, stamped in one go, and a no-op outside Colab."""

from __future__ import annotations

import json
import shutil
import sys
from types import ModuleType

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from PIL import Image
from typer.testing import CliRunner

import companion
from companion import badges, cli
from companion.run import NOTEBOOKS

PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
README = (companion.ROOT / "README.md").read_text(encoding="utf-8")


def repo_of(text: str) -> str:
    """The repository that the text's badges name, stamped or not."""
    return text.partition("colab.research.google.com/github/")[2].partition("/blob/")[0]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_notebook_has_the_badges_and_the_set_up_cell(path):
    cells = nbformat.read(path, as_version=4).cells
    repo = repo_of(cells[0].source)
    assert badges.line(path.stem, repo) in cells[0].source
    assert next(cell for cell in cells if cell.cell_type == "code").source == badges.stamped(badges.SETUP, repo)


def test_the_readme_s_badges_open_what_is_there():
    names = [path.stem for path in PATHS]
    for name in names:
        assert f"/blob/main/notebooks/{name}.ipynb" in README


@pytest.fixture
def copy(tmp_path):
    (tmp_path / "notebooks").mkdir()
    for path in PATHS:
        shutil.copy(path, tmp_path / "notebooks" / path.name)
    for name in ("README.md", "CITATION.cff"):
        shutil.copy(companion.ROOT / name, tmp_path / name)
    return tmp_path


def test_stamping_changes_addresses_and_nothing_else(copy):
    changed = badges.stamp("ann/my.course", "trunk", copy)
    assert {path.name for path in changed} == {"README.md", "CITATION.cff", *(path.name for path in PATHS)}
    for path in PATHS:
        text = (copy / "notebooks" / path.name).read_text(encoding="utf-8")
        before, after = json.loads(path.read_text(encoding="utf-8")), json.loads(text)
        assert "OWNER" not in text and "ann/my.course/blob/trunk/notebooks" in text
        assert "git clone -q --depth 1 https://github.com/ann/my.course /content/course" in text
        different = [i for i, (a, b) in enumerate(zip(before["cells"], after["cells"], strict=True)) if a != b]
        assert different == [0, 1]
    assert "OWNER" not in (copy / "README.md").read_text(encoding="utf-8")
    assert badges.stamp("ann/my.course", "trunk", copy) == [], "nothing is left to change"
    badges.stamp("bob/other", root=copy)
    assert "ann/my.course" not in (copy / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("repo", "branch"), [("course", "main"), ("a/b/c", "main"), ("a b/c", "main"), ("a/b", "x/y")])
def test_what_is_no_repository_is_refused_and_nothing_written(copy, repo, branch):
    before = (copy / "README.md").read_bytes()
    with pytest.raises(ValueError, match="--repo|--branch"):
        badges.stamp(repo, branch, copy)
    assert (copy / "README.md").read_bytes() == before


def test_the_command_names_the_files(copy, monkeypatch):
    monkeypatch.setattr(companion, "ROOT", copy)
    done = CliRunner().invoke(cli.app, ["badges", "--repo", "ann/course"])
    assert done.exit_code == 0 and "00_start_here.ipynb" in done.output
    refused = CliRunner().invoke(cli.app, ["badges", "--repo", "course"])
    assert refused.exit_code == 2 and "is not owner/name" in refused.output


class Shell:
    """Stands for IPython: keeps the commands of a cell instead of running them."""

    def __init__(self) -> None:
        self.commands: list[str] = []

    def system(self, line: str) -> None:
        self.commands.append(line)

    def run_line_magic(self, name: str, line: str) -> None:
        self.commands.append(f"%{name} {line}")


def run_setup(monkeypatch, colab: bool) -> list[str]:
    shell = Shell()
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    if colab:
        monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    source = TransformerManager().transform_cell(badges.SETUP)
    exec(source, {"get_ipython": lambda: shell})
    return shell.commands


def test_outside_colab_the_set_up_cell_does_nothing(monkeypatch):
    before = list(sys.path)
    assert run_setup(monkeypatch, colab=False) == []
    assert sys.path == before


def test_in_colab_it_installs_the_course_alone_and_takes_torchao_away(monkeypatch):
    """Without --no-deps pip would change Colab's torch, numpy and ipywidgets under the running kernel."""
    clone, install, torchao, folder = run_setup(monkeypatch, colab=True)
    assert clone.startswith("git clone") and clone.endswith(" /content/course")
    assert install == "%pip install -q --no-deps -e /content/course"
    assert torchao == "%pip uninstall -q -y torchao"
    assert folder == "%cd -q /content/course/notebooks"
    assert sys.path[0] == "/content/course", "an editable install is seen only by the next kernel"


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_notebook_has_a_thumbnail_which_the_readme_shows(path):
    shown = NOTEBOOKS / "thumbnails" / f"{path.stem}.jpg"
    with Image.open(shown) as image:
        assert image.format == "JPEG" and image.width == 240
    assert shown.stat().st_size < 30_000
    assert f"notebooks/thumbnails/{path.stem}.jpg" in README


def test_thumbnails_are_of_the_first_widget(copy):
    made = badges.thumbnails(copy)
    assert [path.stem for path in made] == [path.stem for path in PATHS]
    notebook = json.loads(PATHS[0].read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        cell["outputs"] = []
    bare = copy / "notebooks" / "bare.ipynb"
    bare.write_text(json.dumps(notebook), encoding="utf-8")
    with pytest.raises(ValueError, match="bare.ipynb shows no widget"):
        badges.thumbnail(bare)
