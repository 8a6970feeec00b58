"""Folders that are written whole or not at all. (test_portability.py has what concerns single files.)"""

from __future__ import annotations

import os

import pytest

from companion.files import written_folder


def test_a_folder_appears_whole(tmp_path):
    out = tmp_path / "deep" / "set"
    with written_folder(out) as folder:
        (folder / "a").write_text("1", encoding="utf-8")
        assert not out.exists() and folder.parent == out.parent
    assert (out / "a").read_text(encoding="utf-8") == "1"
    assert [p.name for p in out.parent.iterdir()] == ["set"]
    if os.name != "nt":
        (tmp_path / "usual").mkdir()
        assert out.stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), written_folder(tmp_path / "set") as folder:
        (folder / "a").write_text("1", encoding="utf-8")
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_what_is_there_stays_even_when_it_came_meanwhile(tmp_path):
    with pytest.raises(FileExistsError, match="nothing is overwritten"), written_folder(tmp_path / "set") as folder:
        (folder / "a").write_text("1", encoding="utf-8")
        (tmp_path / "set").write_text("another's", encoding="utf-8")
    assert (tmp_path / "set").read_text(encoding="utf-8") == "another's"
    with pytest.raises(FileExistsError), written_folder(tmp_path / "set"):
        pytest.fail("it was refused too late")
    assert [p.name for p in tmp_path.iterdir()] == ["set"]
