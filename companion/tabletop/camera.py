"""The camera: where it stands, where a point of the world falls in the picture, and how a scene is framed.

Pure NumPy, so that a scene can be drawn from a seed without a renderer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np

from companion.tabletop.scene import Scene, Thing
from companion.tabletop.shapes import mesh, solid

SIZE = 128  # pixels
FOV = 36.0  # degrees, across and down
TANGENT = float(np.tan(np.deg2rad(FOV / 2)))


Point = tuple[float, float, float]
Like = Sequence[float] | np.ndarray


def view(camera: Like, look_at: Like) -> np.ndarray:
    """Rotation (3, 3) from world to camera axes: x right, y up, z backwards."""
    back = np.subtract(camera, look_at).astype(float)
    back /= np.linalg.norm(back)
    right = np.cross([0, 0, 1], back)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(back, right), back])


def project(scene: Scene, points: np.ndarray, size: int = SIZE) -> np.ndarray:
    """World points (..., 3) to (..., 3): x and y in pixels (right and down), and depth along the view axis."""
    x, y, depth = _on_screen(scene.camera, scene.look_at, points)
    return np.stack([size / 2 * (1 + x), size / 2 * (1 - y), depth], -1)


def _on_screen(camera, look_at, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Position right and up from the picture's centre (borders at -1 and 1), and depth."""
    p = (np.asarray(points, float) - np.asarray(camera)) @ view(camera, look_at).T
    depth = -p[..., 2]
    return p[..., 0] / depth / TANGENT, p[..., 1] / depth / TANGENT, depth


@cache
def _unit_points(shape: str) -> np.ndarray:
    """Points (N, 3) on the surface of a unit shape, dense enough for its outline."""
    if shape == "cube":
        return np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)
    if shape == "sphere":
        up, around = np.meshgrid(np.linspace(-1, 1, 13), np.linspace(0, 2 * np.pi, 24, endpoint=False))
        flat = np.sqrt(1 - up**2)
        return np.stack([flat * np.cos(around), flat * np.sin(around), up], -1).reshape(-1, 3)
    return mesh(shape)[0]


@lru_cache(16)  # framing asks for the same things again and again
def outline(thing: Thing) -> np.ndarray:
    """Points (N, 3) on the surface of a thing, in world space; do not change it in place."""
    parts = ((_unit_points(p.shape), p.to_world) for p in solid(thing).parts)
    return np.concatenate([points @ m[:3, :3].T + m[:3, 3] for points, m in parts])


def boxes(camera: Like, look_at: Like, things: Sequence[Thing]) -> np.ndarray:
    """Bounding boxes (N, 4) of things: left, bottom, right, top as fractions of the picture's side from its lower
    left corner. Parts outside the picture or behind the other thing count too.
    """
    found = []
    for thing in things:
        x, y, _ = _on_screen(camera, look_at, outline(thing))
        found.append([x.min(), y.min(), x.max(), y.max()])
    return (np.array(found) + 1) / 2


def frame(
    things: Sequence[Thing], height: float, width: float, margin: float, shift: float, azimuth: float, pitch: float
) -> tuple[Point, Point]:
    """Where the camera stands, and where it looks, so that things fill the picture as asked.

    Args:
        height, width: largest fractions of the picture's side that all things may fill; one of them is reached.
        margin: free space below them, as a fraction.
        shift: their horizontal place, from -1 (left border) through 0 (middle) to 1.
        azimuth: degrees that the camera turns to the right around the things.
        pitch: degrees that it looks down; the horizon is then at height (1 + tan(pitch) / tan(FOV / 2)) / 2.
    Raises:
        ValueError: when no camera position does this.
    """
    a, p = np.deg2rad([azimuth, pitch])
    back = np.array([np.sin(a) * np.cos(p), -np.cos(a) * np.cos(p), np.sin(p)])
    axes = view(back, (0, 0, 0))
    target, distance = np.concatenate([outline(t) for t in things]).mean(0), 9.0
    for _ in range(80):
        # Perspective changes with distance, so an approximate step is repeated until it converges.
        found = boxes(target + distance * back, target, things)
        left, bottom, right, top = found[:, 0].min(), found[:, 1].min(), found[:, 2].max(), found[:, 3].max()
        across = (left + right) / 2 - 0.5 - shift * max(0.0, 1 - (right - left)) / 2
        up, too_large = bottom - margin, max((top - bottom) / height, (right - left) / width)
        if max(abs(across), abs(up), abs(too_large - 1)) < 1e-3:
            break
        target = target + 1.2 * TANGENT * distance * (across * axes[0] + up * axes[1])
        # Both steps are damped: near parts move more than the middle, and grow faster than the distance falls.
        distance *= np.clip(too_large, 0.7, 1.6) ** 0.5
    else:
        raise ValueError(f"no place of the camera shows {things} so: allow them more of the picture")
    camera = target + distance * back
    return _rounded(camera), _rounded(target)


def _rounded(point: np.ndarray) -> Point:
    x, y, z = (round(float(v), 3) for v in point)
    return x, y, z
