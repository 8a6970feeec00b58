"""Data sets of renders: built, killed, resumed, and read back."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from companion.tabletop import dataset
from companion.tabletop.samples import held_out

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
    with pytest.raises(ValueError, match="'train' has 1000000 scenes"):
        next(dataset.build(tmp_path, "train", 1_000_250))


@needs_mitsuba
def test_a_changed_split_shows_the_same_places_without_things_or_with_others(tmp_path):
    for split in ("val", "val-empty", "val-swapped"):
        assert list(dataset.build(tmp_path, split, 3, workers=1, shard=3)) == [f"{split}-00000.npz"]
    own, empty, swapped = (
        dataset.read(tmp_path, s, ("segments", "boxes")) for s in ("val", "val-empty", "val-swapped")
    )
    assert (own["segments"] >= 2).any((1, 2)).all() and not (empty["segments"] >= 2).any()
    assert (empty["boxes"] == 0).all()
    sky = own["segments"] == 0
    assert (empty["segments"][sky] == 0).all()
    for before, after in zip(dataset.scenes(tmp_path, "val"), dataset.scenes(tmp_path, "val-swapped"), strict=True):
        assert before.camera == after.camera and before.place == after.place
        assert all(a.kind != b.kind and a.finish == b.finish for a, b in zip(before.things, after.things, strict=True))


def test_renders_are_read_a_shard_at_a_time(tmp_path):
    """Each part has the edges of its own renders, also where it ends in the middle of a shard."""
    seen = held_out(6)[1]
    for shard in range(2):
        part, counts = seen[3 * shard : 3 * shard + 3], [2, 0, 1]
        edges = np.arange(12, dtype=np.float32).reshape(3, 4) + 100 * shard
        told = np.array([json.dumps(s.to_dict()) for s in part])
        path = dataset.shard_path(tmp_path, "val", shard)
        np.savez(path, edges=edges, edge_counts=counts, depth=np.full((3, 2, 2), shard), scenes=told)
    names = ("edges", "edge_counts", "depth")
    (first, a), (second, b) = dataset.parts(tmp_path, "val", names, 4)
    assert [*a, *b] == seen[:4] and first["depth"].shape == (3, 2, 2) and second["depth"].shape == (1, 2, 2)
    assert len(first["edges"]) == 3 and second["edges"].tolist() == [[100, 101, 102, 103], [104, 105, 106, 107]]
    assert second["edge_counts"].tolist() == [2]
    assert sum(len(part) for _, part in dataset.parts(tmp_path, "val", names)) == 6
