"""A folder of renders to train on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from companion.tabletop import dataset
from companion.tabletop.samples import held_out


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of renders made from the held-out pictures that the course ships, for training a few steps. Copy it, do
    not change it. Its maps are made up: a thing fills the middle of each picture.
    """
    folder = tmp_path_factory.mktemp("build")
    (folder / "renders").mkdir()
    pictures, scenes = held_out(32)
    n, size = pictures.shape[:2]
    segments = np.ones((n, size, size), np.uint8)
    segments[:, 48:80, 32:64] = 2
    columns = dict(
        picture=pictures,
        depth=np.full((n, size, size), 7, np.float16),
        normals=np.zeros((n, size, size, 3), np.int8),
        segments=segments,
        joints=np.zeros((n, 2, 11, 3), np.float32),
        boxes=np.full((n, 2, 4), 64, np.float32),
        edges=np.zeros((0, 4), np.float32),
        edge_counts=np.zeros(n, int),
        scenes=np.array([json.dumps(s.to_dict()) for s in scenes]),
    )
    for split in ("train", "val", "robots", "train-empty", "val-empty", "train-swapped", "val-swapped"):
        np.savez(dataset.shard_path(folder / "renders", split, 0), **columns)
    return folder
