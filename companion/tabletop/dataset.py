"""Datasets of renders: built in parallel, resumable, split by seed, and read back as arrays.

A split is a folder of shards, each a compressed .npz of 250 scenes, written whole or not at all. So a killed build
resumes where it stopped, with the same files as an uninterrupted one.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from companion.files import written
from companion.tabletop.scene import Scene
from companion.tabletop.splits import split_scenes

SHARD = 250  # scenes a file


def shard_path(folder: Path, split: str, shard: int) -> Path:
    """The path of shard number `shard` of a split."""
    return Path(folder) / f"{split}-{shard:05d}.npz"


def _build_shard(job: tuple[str, str, int, int]) -> str:
    folder, split, shard, size = job
    path = shard_path(Path(folder), split, shard)
    import drjit

    from companion.tabletop.render import render

    drjit.set_thread_count(1)  # one process per core beats two threads per picture
    scenes = split_scenes(split, shard * size, size)
    renders = []
    for scene in scenes:
        # A pool's workers outlive a killed parent, and would go on rendering unseen.
        if (parent := multiprocessing.parent_process()) is not None and not parent.is_alive():
            raise SystemExit(1)
        renders.append(render(scene))
    edges = [r.edges for r in renders]
    columns = {
        "picture": np.stack([r.picture for r in renders]),
        "depth": np.stack([r.depth for r in renders]).astype(np.float16),
        "normals": np.round(np.stack([r.normals for r in renders]) * 127).astype(np.int8),
        "segments": np.stack([r.segments for r in renders]),
        "joints": np.stack([np.pad(r.joints, ((0, 2 - len(r.joints)), (0, 0), (0, 0))) for r in renders]).astype(
            np.float32
        ),
        "boxes": np.stack([np.pad(r.boxes, ((0, 2 - len(r.boxes)), (0, 0))) for r in renders]).astype(np.float32),
        "edges": np.concatenate(edges) if edges else np.zeros((0, 4), np.float32),
        "edge_counts": np.array([len(e) for e in edges]),
        "scenes": np.array([json.dumps(s.to_dict()) for s in scenes]),
    }
    with written(path) as temporary, temporary.open("wb") as f:
        np.savez_compressed(f, **columns)
    return path.name


def build(folder: Path, split: str, count: int, workers: int | None = None, shard: int = SHARD) -> Iterator[str]:
    """Render the first `count` scenes of a split (see `split_scenes`) into `folder`; yields the name of each shard.

    Existing shards are not rendered again, so a killed build resumes.

    Raises:
        ValueError: for an unknown split, or a count that is too large or not a positive multiple of the shard size.
    """
    if count <= 0 or count % shard:
        raise ValueError(f"count={count} is not a positive multiple of {shard}")
    split_scenes(split, count - 1, 1)  # raises when there is no such split or scene
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [(str(folder), split, i, shard) for i in range(count // shard) if not shard_path(folder, split, i).exists()]
    if not jobs:
        return
    with multiprocessing.get_context("spawn").Pool(workers or os.cpu_count()) as pool:
        yield from pool.imap(_build_shard, jobs)


def shards(folder: Path, split: str) -> list[Path]:
    """The finished shards of a split in seed order, up to the first missing one.

    Raises:
        FileNotFoundError: when there are none; it names the command that makes them.
    """
    paths = []
    while (p := shard_path(Path(folder), split, len(paths))).exists():
        paths.append(p)
    if not paths:
        raise FileNotFoundError(
            f"no renders of {split!r} in {folder}; make them with: companion build renders --split {split}"
        )
    return paths


def read(folder: Path, split: str, columns: tuple[str, ...], count: int | None = None) -> dict[str, np.ndarray]:
    """Columns of a split as arrays; see `_build_shard` for their names. `count` reads only the first scenes."""
    parts: dict[str, list[np.ndarray]] = {c: [] for c in columns}
    have = 0
    for path in shards(folder, split):
        if count is not None and have >= count:
            break
        with np.load(path, allow_pickle=False) as z:
            for c in columns:
                parts[c].append(z[c])
            have += len(z["edge_counts"])
    if count is not None and have < count:
        raise ValueError(
            f"{split!r} has {have} renders in {folder}, {count} were asked for; make more with: companion build renders"
        )
    return {c: np.concatenate(v)[:count] if c != "edges" else np.concatenate(v) for c, v in parts.items()}


def parts(
    folder: Path, split: str, columns: tuple[str, ...], count: int | None = None
) -> Iterator[tuple[dict[str, np.ndarray], list[Scene]]]:
    """The columns and scenes of a split's first `count` renders, a shard at a time; with "edges", the edges of these
    renders alone.
    """
    left = 10**9 if count is None else count
    for path in shards(folder, split):
        if left <= 0:
            return
        with np.load(path, allow_pickle=False) as z:
            counts = z["edge_counts"][:left]
            lengths = {"edges": int(counts.sum())}
            found = {c: z[c][: lengths.get(c, left)] for c in columns}
            seen = [Scene.from_dict(json.loads(s)) for s in z["scenes"][:left]]
        yield found, seen
        left -= len(seen)


def scenes(folder: Path, split: str, count: int | None = None) -> list[Scene]:
    """The scenes of a split's finished renders."""
    return [Scene.from_dict(json.loads(s)) for s in read(folder, split, ("scenes",), count)["scenes"]]
