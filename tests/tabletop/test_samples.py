"""The parts of the dataset that the course ships."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import companion
from companion.tabletop import samples


@pytest.mark.parametrize("n", [0, 257])
def test_more_renders_than_there_are_cannot_be_had(n):
    with pytest.raises(ValueError, match=f"n={n} is outside 1 to 256"):
        samples.held_out(n)


def test_what_is_written_is_read_again(tmp_path, monkeypatch):
    pictures, scenes = samples.held_out(256)
    latents, seen = samples.cached_latents()
    assert latents.shape[1:] == (4, 8, 8) and len(latents) == len(seen)
    monkeypatch.setattr(samples, "FOLDER", tmp_path)
    order = np.arange(256)[::-1]
    samples.save_held_out(pictures[order], [scenes[i] for i in order])
    samples.save_latents(latents[:10], seen[:10])
    again, scenes_again = samples.held_out(3)
    assert np.array_equal(again, pictures[[255, 254, 253]]) and scenes_again == scenes[:-4:-1]
    latents_again, seen_again = samples.cached_latents()
    assert torch.equal(latents_again, latents[:10]) and seen_again == seen[:10]


def test_maps_that_are_written_are_those_of_their_renders(tmp_path, monkeypatch):
    pictures, scenes = samples.held_out(256)
    monkeypatch.setattr(samples, "FOLDER", tmp_path)
    samples.save_held_out(pictures, scenes)
    counts = np.arange(256) % 3
    edges = np.arange(counts.sum() + 7, dtype=np.float32)[:, None].repeat(4, 1)  # and some of renders that are not kept
    segments = np.arange(256, dtype=np.uint8)[:, None, None].repeat(2, 1)
    samples.save_columns({"picture": pictures, "edge_counts": counts, "edges": edges, "segments": segments})
    found, seen = samples.columns(5)
    assert np.array_equal(found["picture"], pictures[:5]) and seen == scenes[:5]
    assert found["edge_counts"].tolist() == [0, 1, 2, 0, 1] and found["edges"][:, 0].tolist() == [0, 1, 2, 3]
    assert found["segments"][:, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert len(samples.columns()[0]["edges"]) == counts.sum()


def test_renders_are_had_by_their_numbers():
    pipe = companion.load("tabletop")
    first, scenes = samples.renders(pipe, 4)
    some, seen = samples.renders(pipe, [3, 1])
    assert torch.equal(some, first[[3, 1]]) and seen == [scenes[3], scenes[1]]
