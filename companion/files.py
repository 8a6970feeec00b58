"""Files that are written whole or not at all, and checksums that tell whether a file has changed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: Suffixes of the files that a model is loaded from. Only these have checksums: pictures and notes may change freely.
LOADED = (".safetensors", ".json", ".txt", ".onnx")


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Yield a temporary path. What is written there replaces `path` if the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(_usual(0o666))  # mkstemp's files are private
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def written_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`. It becomes `path` if the block ends without an error.

    A process that is killed on the way leaves nothing at `path`. Raises FileExistsError when a file or folder is there
    already: nothing is replaced.
    """
    path = path.absolute()
    check_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        temporary.chmod(_usual(0o777))
        check_free(path)  # another process may have been quicker
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows that `write_rows` stored; [] when there is no such file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Store measurements, whole or not at all, as a line of JSON for each."""
    with written(path) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def check_free(path: Path) -> None:
    """Raise FileExistsError if there is a file, folder or link at `path`."""
    if os.path.lexists(path):
        raise FileExistsError(f"{path} is there already, and nothing is overwritten: name another, or move it away.")


def _usual(mode: int) -> int:
    """The mode that a new file or folder usually gets."""
    umask = os.umask(0)
    os.umask(umask)
    return mode & ~umask


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checksums(folder: Path) -> Path:
    """Write `folder`/checksums.json: the SHA-256 of every file in its subfolders that a model is loaded from."""
    target = folder / "checksums.json"
    found = [p for p in sorted(folder.glob("*/**/*")) if p.suffix in LOADED and p.is_file()]
    with written(target) as temporary:
        sums = {p.relative_to(folder).as_posix(): sha256(p) for p in found}
        temporary.write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")
    return target


def damage(folder: Path, under: str = "") -> list[str]:
    """What is wrong with the files that `folder`/checksums.json lists, a line for each bad file.

    Only files whose path starts with `under` are checked. Raises FileNotFoundError when there is no checksums.json.
    """
    sums: dict[str, str] = json.loads((folder / "checksums.json").read_text(encoding="utf-8"))
    problems = []
    for name, expected in sums.items():
        if not name.startswith(under):
            continue
        if not (folder / name).is_file():
            problems.append(f"{name} is missing")
        elif sha256(folder / name) != expected:
            problems.append(f"{name} is not the file that checksums.json was written for")
    return problems
