"""Data sets of renders: built, killed, resumed, and read back."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from companion.tabletop import dataset

from .helpers import needs_mitsuba


def build_command(folder, *extra) -> list[str]:
    return [sys.executable, "-m", "companion.pretraining.command", *extra, "--folder", str(folder)]


@needs_mitsuba
@pytest.mark.slow
def test_renders_killed_and_resumed_equal_an_unbroken_build(tmp_path):
    args = ("renders", "--split", "val", "--count", "12", "--shard", "4", "--workers", "1")
    process = subprocess.Popen(build_command(tmp_path / "a", *args), stdout=subprocess.DEVNULL)
    first = dataset.shard_path(tmp_path / "a" / "renders", "val", 0)
    deadline = time.monotonic() + 300
    while not first.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert workers and not alive, "the workers draw on after their parent was killed"
    assert first.exists() and not dataset.shard_path(tmp_path / "a" / "renders", "val", 2).exists()
    for name in "ab":
        subprocess.run(build_command(tmp_path / name, *args), check=True, stdout=subprocess.DEVNULL)
    columns = ("picture", "depth", "normals", "segments", "joints", "boxes", "edges", "edge_counts", "scenes")
    a, b = (dataset.read(tmp_path / name / "renders", "val", columns) for name in "ab")
    assert len(a["picture"]) == 12
    assert all(np.array_equal(a[c], b[c]) for c in columns)


def test_reading_what_is_not_there_says_how_to_make_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="companion build renders --split train"):
        dataset.read(tmp_path, "train", ("picture",))
    with pytest.raises(ValueError, match="split='dev' is unknown; the splits are train"):
        next(dataset.build(tmp_path, "dev", 250))
    with pytest.raises(ValueError, match="count=7 is not a positive multiple of 250"):
        next(dataset.build(tmp_path, "val", 7))
