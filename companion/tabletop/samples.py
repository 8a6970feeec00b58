"""The parts of the dataset that come with the course: 256 held-out renders with their maps, and latents to train on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from companion import DATA
from companion.diffusion import picture_size
from companion.files import written
from companion.metrics import pictures_to_tensor
from companion.tabletop.scene import Scene

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

FOLDER = DATA / "tabletop"
COLUMNS = 16  # pictures a row in the atlas


def held_out(n: int = 256) -> tuple[np.ndarray, list[Scene]]:
    """The first `n` (1 to 256) held-out renders, uint8 (n, 128, 128, 3), and their scenes. No model was trained on
    them.
    """
    if not 1 <= n <= 256:
        raise ValueError(f"n={n} is outside 1 to 256; the course ships 256 held-out renders")
    scenes = [Scene.from_dict(d) for d in json.loads((FOLDER / "held_out.json").read_text(encoding="utf-8"))]
    return _tiles(FOLDER / "held_out.png")[:n].copy(), scenes[:n]


@cache
def _tiles(path: Path) -> np.ndarray:
    """The pictures of an atlas; they take a fifth of a second to unpack, and notebooks ask for them often."""
    with Image.open(path) as atlas:
        a = np.asarray(atlas.convert("RGB"))
    size = a.shape[1] // COLUMNS
    return a.reshape(-1, size, COLUMNS, size, 3).swapaxes(1, 2).reshape(-1, size, size, 3)


def columns(n: int = 256) -> tuple[dict[str, np.ndarray], list[Scene]]:
    """What exact maps of the first `n` held-out renders are made from (`conditions.COLUMNS`), and their scenes."""
    pictures, scenes = held_out(n)
    found = {"picture": pictures, **_maps(FOLDER / "held_out_maps.npz")}
    total = int(found["edge_counts"][:n].sum())  # edges of all renders stand one after the other
    return {name: values[: total if name == "edges" else n] for name, values in found.items()}, scenes


@cache
def _maps(path: Path) -> dict[str, np.ndarray]:
    """They take a second to unpack, and notebooks ask for them often."""
    with np.load(path, allow_pickle=False) as z:
        return {name: z[name] for name in z.files}


def renders(pipe: StableDiffusionPipeline, which: int | Sequence[int]) -> tuple[Tensor, list[Scene]]:
    """Held-out renders (n, 3, S, S), the first n or those of these numbers, and their scenes. They are enlarged where
    the pipeline draws larger pictures.
    """
    n = which if isinstance(which, int) else max(which) + 1
    pictures, scenes = held_out(n)
    numbers = list(range(n) if isinstance(which, int) else which)
    x, size = pictures_to_tensor(pictures[numbers]), picture_size(pipe)
    if x.shape[-1] != size:
        x = F.interpolate(x, size=(size, size), mode="bicubic", antialias=True).clamp(-1, 1)
    return x, [scenes[i] for i in numbers]


def cached_latents() -> tuple[Tensor, list[Scene]]:
    """Scaled latents (N, 4, 8, 8), fp32, of training renders at 64 pixels, and their scenes."""
    latents = load_file(FOLDER / "latents.safetensors")["latents"].float()
    scenes = [Scene.from_dict(d) for d in json.loads((FOLDER / "latents.json").read_text(encoding="utf-8"))]
    return latents, scenes


def _scenes_json(scenes: list[Scene]) -> str:
    lines = [json.dumps(s.to_dict(), separators=(",", ":")) for s in scenes]
    return "[" + ",\n".join(lines) + "]\n"


def save_held_out(pictures: np.ndarray, scenes: list[Scene]) -> None:
    """Write the atlas of held-out renders: uint8 (256, 128, 128, 3) and their scenes."""
    n, size = pictures.shape[:2]
    atlas = (
        pictures.reshape(n // COLUMNS, COLUMNS, size, size, 3)
        .swapaxes(1, 2)
        .reshape(n // COLUMNS * size, COLUMNS * size, 3)
    )
    with written(FOLDER / "held_out.png") as temporary:
        Image.fromarray(atlas).save(temporary, "PNG", optimize=True)
    with written(FOLDER / "held_out.json") as temporary:
        temporary.write_text(_scenes_json(scenes), encoding="utf-8")


def save_columns(columns: Mapping[str, np.ndarray]) -> None:
    """Write what exact maps of the held-out renders are made from; their pictures are in the atlas already."""
    total = int(columns["edge_counts"].sum())
    kept: dict[str, Any] = {name: values for name, values in columns.items() if name != "picture"}
    kept["edges"] = kept["edges"][:total]
    with written(FOLDER / "held_out_maps.npz") as temporary, temporary.open("wb") as f:
        np.savez_compressed(f, **kept)


def save_latents(latents: Tensor, scenes: list[Scene]) -> None:
    """Write cached latents (N, 4, 8, 8) and their scenes."""
    with written(FOLDER / "latents.safetensors") as temporary:
        save_file({"latents": torch.as_tensor(latents).half().contiguous()}, temporary)
    with written(FOLDER / "latents.json") as temporary:
        temporary.write_text(_scenes_json(scenes), encoding="utf-8")
