"""Sheets of pictures to look at while the world and its models are made."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from diffusers.utils import make_image_grid
from PIL import Image, ImageDraw

from companion.metrics import tensor_to_bytes
from companion.tabletop.render import FAR, Render
from companion.tabletop.scene import BONES, JOINTS


def grid(pictures: Iterable, columns: int = 8) -> Image.Image:
    """Pictures (floats (N, 3, H, W) in [-1, 1], uint8 arrays, or PIL) as one sheet, white where there are none."""
    tiles = []
    for p in pictures:
        if isinstance(p, torch.Tensor) and p.is_floating_point():
            p = tensor_to_bytes(p[None])[0].numpy()
        tiles.append(p if isinstance(p, Image.Image) else Image.fromarray(np.asarray(p)))
    tiles += [Image.new("RGB", tiles[0].size, "white")] * (-len(tiles) % columns)
    return make_image_grid(tiles, len(tiles) // columns, columns)


def map_pictures(r: Render) -> list[np.ndarray]:
    """The maps of a `Render` as five RGB pictures: depth, normals, segments, joints, straight edges."""
    near = (1 / r.depth - 1 / FAR) / (1 / r.depth.min() - 1 / FAR)
    colours = np.array([(70, 130, 180), (90, 90, 90), (230, 120, 50), (60, 180, 110)], np.uint8)
    pose, lines = (Image.new("RGB", r.picture.shape[1::-1]) for _ in range(2))
    for joints in r.joints:
        for a, b in BONES:
            p, q = joints[JOINTS.index(a)], joints[JOINTS.index(b)]
            if p[2] and q[2]:
                ImageDraw.Draw(pose).line([tuple(p[:2]), tuple(q[:2])], fill=(255, 255, 0), width=2)
    for x0, y0, x1, y1 in r.edges.tolist():
        ImageDraw.Draw(lines).line([(x0, y0), (x1, y1)], fill=(255, 255, 255))
    depth = np.repeat((near * 255).astype(np.uint8)[..., None], 3, -1)
    return [depth, ((r.normals + 1) * 127.5).astype(np.uint8), colours[r.segments], np.asarray(pose), np.asarray(lines)]
