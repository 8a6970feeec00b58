"""Physically based pictures and exact maps of scenes, with Mitsuba 3 (the extra `[build]`; the course does not need
it).

A picture is path traced with a few samples per pixel, then denoised by Intel's Open Image Denoise, guided by albedo
and normals. The maps come from the same geometry: depth, normals and segmentation from one ray per pixel; key points
and straight edges by projection, with visibility tested against the depth.
"""

from __future__ import annotations

import ctypes
import importlib.util
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from companion.tabletop.camera import FOV, SIZE, project, view
from companion.tabletop.scene import PLACES, Scene
from companion.tabletop.shapes import Solid, mesh, solid

FAR = 30.0  # depth given to the sky and whatever lies beyond, in units
GROUND = 300.0  # half side of the ground, in units

REFLECTANCE = {
    "red": (0.68, 0.03, 0.03),
    "green": (0.05, 0.40, 0.07),
    "blue": (0.04, 0.12, 0.66),
    "yellow": (0.88, 0.68, 0.04),
    "purple": (0.30, 0.05, 0.48),
    "orange": (0.90, 0.27, 0.02),
    "white": (0.86, 0.86, 0.86),
    "black": (0.025, 0.025, 0.028),
}
#: time: sky at the horizon, sky at the zenith, light's irradiance, direction the light comes from.
LIGHT = {
    "day": ((0.68, 0.80, 0.95), (0.14, 0.32, 0.78), (1.75, 1.65, 1.5), (-0.55, -0.55, 1.0)),
    "sunset": ((1.00, 0.46, 0.20), (0.26, 0.22, 0.46), (1.95, 1.28, 0.80), (-1.0, -0.50, 0.50)),
    "night": ((0.13, 0.18, 0.36), (0.010, 0.016, 0.08), (0.46, 0.49, 0.62), (0.60, -0.60, 1.0)),
}
#: Radiance of clouds by time.
CLOUD = {"day": (0.98, 0.98, 1.0), "sunset": (0.95, 0.50, 0.42), "night": (0.085, 0.10, 0.17)}
SKY = (180, 720)  # rows and columns of the map of the sky above the horizon: half a degree each
_SEGMENTS = ("sky", "ground")  # then one label a thing


@dataclass
class Render:
    """A picture with its exact maps, float32 unless noted.

    Attributes:
        picture: (H, W, 3) uint8, sRGB.
        depth: (H, W) distance along the view axis in units, `FAR` for the sky.
        normals: (H, W, 3) unit normals in camera space (x right, y up, z towards the camera), 0 for the sky.
        segments: (H, W) uint8: 0 sky, 1 ground, 2 the scene's first thing, 3 its second.
        joints: (things, 11, 3): x and y in pixels and 1 where visible; all 0 for things without joints.
        edges: (E, 4): x0, y0, x1, y1 in pixels, the visible straight edges.
        boxes: (things, 4): left, top, right, bottom in pixels, of the visible part.
    """

    picture: np.ndarray
    depth: np.ndarray
    normals: np.ndarray
    segments: np.ndarray
    joints: np.ndarray
    edges: np.ndarray
    boxes: np.ndarray


@cache
def _mitsuba() -> Any:
    try:
        import mitsuba as mi
    except ImportError:
        raise ImportError("rendering needs Mitsuba: pip install -e '.[build]'") from None
    mi.set_variant("scalar_rgb")
    mi.set_log_level(mi.LogLevel.Error)
    return mi


@cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="tabletop-")


@cache
def _ply(shape: str) -> str:
    """A unit shape as a PLY file (Mitsuba takes placements only for shapes from files)."""
    mi = _mitsuba()
    v, f, n = mesh(shape)
    m = mi.Mesh(shape, vertex_count=len(v), face_count=len(f), has_vertex_normals=n is not None)
    p = mi.traverse(m)
    p["vertex_positions"], p["faces"] = v.astype(np.float32).ravel(), f.astype(np.uint32).ravel()
    if n is not None:
        p["vertex_normals"] = n.astype(np.float32).ravel()
    p.update()
    path = str(Path(_folder().name) / f"{shape}.ply")
    m.write_ply(path)
    return path


def _smooth_noise(rng, shape: tuple[int, int], cells: tuple[int, int]) -> np.ndarray:
    """Periodic smooth noise in [0, 1] of a `shape` with `cells` bumps down and across."""
    grid = rng.random(cells)
    (i, u), (j, v) = (_between(n, c) for n, c in zip(shape, cells, strict=True))
    rows = grid[i] * (1 - u)[:, None] + grid[(i + 1) % cells[0]] * u[:, None]
    return rows[:, j] * (1 - v) + rows[:, (j + 1) % cells[1]] * v


def _between(size: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """For each pixel, the cell it lies in and how far across that cell, eased in and out."""
    t = np.arange(size) * cells / size
    f = t % 1
    return t.astype(int), f * f * (3 - 2 * f)


def _sky(time: str, seed: int):
    """A latitude-longitude picture of the sky: a gradient from the horizon up, with this seed's clouds or stars.

    The camera sees the lowest 12 degrees at most. The rest lights the scene and is mirrored in it.
    """
    mi = _mitsuba()
    rng = np.random.default_rng([seed, 11])
    horizon, zenith, cloud = (np.array(c) for c in (*LIGHT[time][:2], CLOUD[time]))
    up = np.linspace(1, 0, SKY[0])[:, None, None]  # from 1 overhead to 0 at the horizon
    colour = np.repeat(horizon * (1 - up**0.55) + zenith * up**0.55, SKY[1], 1)
    if time == "night":
        n = 1500  # about one in 14 square degrees
        colour[rng.integers(0, SKY[0] - 3, n), rng.integers(0, SKY[1], n)] += 0.5 * rng.random((n, 1)) ** 2
    noise = sum(0.5**i * _smooth_noise(rng, SKY, (35 * 2**i, 48 * 2**i)) for i in range(3)) / 1.75
    thick = np.clip((noise - rng.uniform(0.36, 0.80)) / 0.20, 0, 1)[..., None]  # from overcast to clear
    # No clouds right at the horizon, nor overhead, where they would only change the brightness.
    thick = 0.9 * thick * thick * (3 - 2 * thick) * np.clip(np.minimum(up / 0.03, (0.5 - up) / 0.3), 0, 1)
    seen = colour * (1 - thick) + cloud * thick
    below = np.broadcast_to(horizon, seen.shape)
    return mi.Bitmap(np.concatenate([seen, below]).astype(np.float32))


@cache
def _ground_texture(place: str):
    """A tile of the ground, (512, 512, 3) reflectance, covering 8 x 8 units."""
    rng = np.random.default_rng(PLACES.index(place))
    n = 512
    base = {
        "grass": (0.15, 0.36, 0.06),
        "sand": (0.70, 0.53, 0.30),
        "snow": (0.86, 0.88, 0.92),
        "water": (0.03, 0.20, 0.36),
    }
    if place == "brick":
        rows, per = 16, 8  # bricks of 1 x 0.5 units
        y, x = np.mgrid[0:n, 0:n] / n
        row = (y * rows).astype(int)
        u = (x * per + 0.5 * (row % 2)) % per
        tint = rng.random((rows, per))[row, u.astype(int)][..., None]
        colour = np.array((0.40, 0.12, 0.075)) * (1 - tint) + np.array((0.58, 0.22, 0.14)) * tint
        mortar = ((u % 1) < 0.08) | ((y * rows) % 1 < 0.16)
        colour = np.where(mortar[..., None], np.array((0.52, 0.36, 0.28)), colour)
        # Soft edges: a line thinner than a pixel of the picture would flicker, and no autoencoder could keep it.
        return ndimage.gaussian_filter(colour, (2, 2, 0), mode="wrap")
    if place == "sand":  # ripples, bent by noise
        y = np.arange(n)[:, None] / n
        bend = _smooth_noise(rng, (n, n), (4, 4)) * 1.3
        tone = 0.90 + 0.10 * np.sin(2 * np.pi * (y * 14 + bend))
    elif place == "grass":
        tone = 0.62 + 0.45 * _smooth_noise(rng, (n, n), (10, 10)) + 0.30 * _smooth_noise(rng, (n, n), (36, 36))
    elif place == "snow":
        tone = 0.86 + 0.16 * _smooth_noise(rng, (n, n), (6, 6))
    else:
        y = np.arange(n)[:, None] / n
        bend = _smooth_noise(rng, (n, n), (5, 5)) * 2.0
        tone = 0.80 + 0.35 * np.sin(2 * np.pi * (y * 9 + bend)) ** 2
    return np.clip(np.array(base[place]) * tone[..., None], 0, 0.95)


def _rgb(c) -> dict:
    return {"type": "rgb", "value": [float(v) for v in c]}


def _plastic(c) -> dict:
    return {"type": "plastic", "diffuse_reflectance": _rgb(c), "nonlinear": True}


def _material(finish: str) -> dict:
    if finish == "gold":
        return {
            "type": "roughconductor",
            "material": "none",
            "specular_reflectance": _rgb((1.0, 0.68, 0.20)),
            "alpha": 0.14,
        }
    if finish == "steel":
        return {
            "type": "roughconductor",
            "material": "none",
            "specular_reflectance": _rgb((0.62, 0.65, 0.68)),
            "alpha": 0.10,
        }
    if finish == "glass":
        return {"type": "dielectric", "int_ior": 1.45, "specular_transmittance": _rgb((0.80, 0.97, 0.97))}
    return _plastic(REFLECTANCE[finish])


def _ground(mi, place: str) -> dict:
    texture = {
        "type": "bitmap",
        "bitmap": mi.Bitmap(_ground_texture(place).astype(np.float32)),
        "raw": True,
        "to_uv": mi.ScalarTransform4f().scale([GROUND / 4, GROUND / 4, 1]),
    }
    if place == "water":
        return {"type": "roughplastic", "alpha": 0.12, "diffuse_reflectance": texture}
    return {"type": "diffuse", "reflectance": texture}


def _scene_dict(scene: Scene, solids: list[Solid], size: int) -> dict:
    mi = _mitsuba()
    t4 = mi.ScalarTransform4f
    _, _, light, towards = LIGHT[scene.time]
    camera = {
        "type": "perspective",
        "fov": FOV,
        "to_world": t4().look_at(origin=scene.camera, target=scene.look_at, up=[0, 0, 1]),
        "film": {
            "type": "hdrfilm",
            "width": size,
            "height": size,
            "pixel_format": "rgb",
            "rfilter": {"type": "box"},  # the denoiser needs pixels whose noise is independent
        },
    }
    d: dict = {
        "type": "scene",
        "picture": camera | {"sampler": {"type": "multijitter"}},
        "maps": camera | {"sampler": {"type": "multijitter", "jitter": False}},  # through the middle of each pixel
        "sky": {"type": "envmap", "bitmap": _sky(scene.time, scene.seed), "to_world": t4().rotate([1, 0, 0], 90)},
        "sun": {"type": "directional", "direction": [-v for v in towards], "irradiance": _rgb(light)},
        "ground": {"type": "rectangle", "to_world": t4().scale([GROUND, GROUND, 1]), "bsdf": _ground(mi, scene.place)},
    }
    for i, (thing, s) in enumerate(zip(scene.things, solids, strict=True)):
        finish = _material(thing.finish)
        for k, part in enumerate(s.parts):
            entry: dict[str, Any] = {
                "bsdf": finish if part.colour is None else _plastic(part.colour),
                "to_world": t4(part.to_world),
            }
            if part.shape in ("cube", "sphere"):
                entry["type"] = part.shape
            else:
                entry |= {"type": "ply", "filename": _ply(part.shape), "face_normals": part.shape == "pyramid"}
            d[f"thing{i}_{k}"] = entry
    return d


@cache
def _denoiser(size: int):
    """A filter of Open Image Denoise with its four images (H, W, 3), from the package `oidn`.

    The wheel ships TBB but does not find it by itself, so it is loaded first. The filter is kept, since building it
    takes longer than running it.
    """
    spec = importlib.util.find_spec("oidn")
    if spec is None or spec.origin is None:
        raise ImportError("denoising needs Open Image Denoise: pip install -e '.[build]'")
    folder = next(Path(spec.origin).parent.glob("lib.linux*"))
    ctypes.CDLL(str(next(folder.glob("libtbb.so*"))), mode=ctypes.RTLD_GLOBAL)
    lib = ctypes.CDLL(str(next(folder.glob("libOpenImageDenoise.so*"))))
    p, s, z = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
    for name, args, result in (
        ("oidnNewDevice", [ctypes.c_int], p),
        ("oidnSetDevice1i", [p, s, ctypes.c_int], None),
        ("oidnCommitDevice", [p], None),
        ("oidnGetDeviceError", [p, p], ctypes.c_int),
        ("oidnNewFilter", [p, s], p),
        ("oidnSetFilter1b", [p, s, ctypes.c_bool], None),
        ("oidnSetSharedFilterImage", [p, s, p, ctypes.c_int, z, z, z, z, z], None),
        ("oidnCommitFilter", [p], None),
        ("oidnExecuteFilter", [p], None),
    ):
        getattr(lib, name).argtypes, getattr(lib, name).restype = args, result
    device = lib.oidnNewDevice(0)
    lib.oidnSetDevice1i(device, b"numThreads", 1)
    lib.oidnCommitDevice(device)
    images = {name: np.zeros((size, size, 3), np.float32) for name in (b"color", b"albedo", b"normal", b"output")}
    f = lib.oidnNewFilter(device, b"RT")
    for name, data in images.items():
        lib.oidnSetSharedFilterImage(f, name, data.ctypes.data, 3, size, size, 0, 0, 0)
    lib.oidnSetFilter1b(f, b"hdr", True)
    lib.oidnCommitFilter(f)
    return lib, device, f, images


def denoise(colour: np.ndarray, albedo: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Linear (H, H, 3) radiance without its Monte Carlo noise, guided by albedo in [0, 1] and normals."""
    lib, device, f, images = _denoiser(len(colour))
    images[b"color"][:], images[b"albedo"][:], images[b"normal"][:] = colour, albedo, normals
    lib.oidnExecuteFilter(f)
    if lib.oidnGetDeviceError(device, None):
        raise RuntimeError("Open Image Denoise failed; render with more samples and denoised=False")
    return images[b"output"].copy()


def render(scene: Scene, size: int = SIZE, samples: int = 4, denoised: bool = True) -> Render:
    """The picture and the maps of a scene.

    Args:
        size: side in pixels, a multiple of 8.
        samples: paths per pixel; denoised, 4 look like hundreds.
        denoised: pass the picture through Open Image Denoise.
    Raises:
        ImportError: without the extra `[build]`.
    """
    if size < 8 or size % 8:
        raise ValueError(f"size={size} is not a positive multiple of 8; 128 is the model's size")
    mi = _mitsuba()
    solids = [solid(t) for t in scene.things]
    rotation, origin = view(scene.camera, scene.look_at), np.array(scene.camera)

    loaded = mi.load_dict(
        _scene_dict(scene, solids, size), optimize=False
    )  # else shapes are merged, and their names lost
    aovs = mi.load_dict({"type": "aov", "aovs": "p:position,nn:sh_normal,id:shape_index"})
    aov = np.array(mi.render(loaded, sensor=1, integrator=aovs, spp=1, seed=0), np.float32).reshape(size, size, -1)
    position, normal, index = aov[..., -7:-4], aov[..., -4:-1], np.round(aov[..., -1]).astype(int)
    owner = [1 if s.id() == "ground" else 2 + int(s.id().split("_")[0][5:]) for s in loaded.shapes()]
    # The index counts from 1, in the order of the scene's shapes; 0 is the sky.
    hit = index > 0
    segments = np.where(hit, np.array([0, *owner])[index], 0).astype(np.uint8)
    depth = np.where(hit, -((position - origin) @ rotation.T)[..., 2], FAR).clip(0, FAR).astype(np.float32)
    normals = np.where(hit[..., None], normal @ rotation.T, 0).astype(np.float32)

    glass = any(t.finish == "glass" for t in scene.things)
    paths = mi.load_dict({"type": "path", "max_depth": 9 if glass else 4, "rr_depth": 10})
    sampled = {"sensor": 0, "spp": samples, "seed": scene.seed % 2**31}
    linear = np.array(mi.render(loaded, integrator=paths, **sampled), np.float32)
    if denoised:
        # The denoiser keeps edges that it also sees in albedo and normals, sampled at the same points of the pixels.
        guides = mi.load_dict({"type": "aov", "aovs": "albedo:albedo,nn:sh_normal"})
        seen = np.array(mi.render(loaded, integrator=guides, **sampled), np.float32)
        linear = denoise(linear, seen[..., -6:-3].clip(0, 1), seen[..., -3:])
    bitmap = mi.Bitmap(np.ascontiguousarray(linear)).convert(
        mi.Bitmap.PixelFormat.RGB, mi.Struct.Type.UInt8, srgb_gamma=True
    )

    joints = np.zeros((len(solids), 11, 3), np.float32)
    edges, boxes = [], np.zeros((len(solids), 4), np.float32)
    for i, s in enumerate(solids):
        if s.joints is not None:
            p = project(scene, s.joints, size)
            joints[i, :, :2], joints[i, :, 2] = p[:, :2], _visible(p, depth, segments, 2 + i, slack=0.5)
        edges += [e for edge in s.edges for e in _visible_runs(scene, edge, depth, segments, 2 + i)]
        rows, columns = np.nonzero(segments == 2 + i)
        if len(rows):
            boxes[i] = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    edges = np.array(edges, np.float32).reshape(-1, 4)
    return Render(np.array(bitmap), depth, normals, segments, joints, edges, boxes)


def _visible(p: np.ndarray, depth: np.ndarray, segments: np.ndarray, label: int, slack: float) -> np.ndarray:
    """Which projected points (N, 3) of a thing are visible: near one of its pixels, and at most `slack` plus the
    local depth differences deeper than it (depth changes fast on a face seen almost edge-on).
    """
    size = len(depth)
    around = np.stack(
        [
            np.pad(np.where(segments == label, depth, np.nan), 1, constant_values=np.nan)[a : a + size, b : b + size]
            for a in range(3)
            for b in range(3)
        ]
    )
    deepest = 2 * np.fmax.reduce(around) - np.fmin.reduce(around)
    x, y = np.floor(p[:, 0]).astype(int), np.floor(p[:, 1]).astype(int)
    seen = np.zeros(len(p), bool)
    for dx in (-1, 0, 1):
        for dy in (-1, 0, 1):
            u, v = x + dx, y + dy
            inside = (u >= 0) & (u < size) & (v >= 0) & (v < size)
            u, v = u.clip(0, size - 1), v.clip(0, size - 1)
            seen |= inside & (segments[v, u] == label) & (p[:, 2] <= deepest[v, u] + slack)
    return seen


def _visible_runs(scene: Scene, edge: np.ndarray, depth, segments, label: int) -> list[np.ndarray]:
    """The visible stretches of a 3-D edge (2, 3), as x0, y0, x1, y1 in pixels."""
    size = len(depth)
    t = np.linspace(0, 1, 49)[:, None]
    p = project(scene, edge[0] * (1 - t) + edge[1] * t, size)
    seen = _visible(p, depth, segments, label, slack=0.06)
    for i in range(1, len(seen) - 2):  # one or two samples that a pixel's border hides do not break an edge
        if seen[i - 1] and not seen[i]:
            seen[i] = seen[i + 1 : i + 3].any()
    seen = np.concatenate([[False], seen, [False]])
    starts, stops = np.nonzero(~seen[:-1] & seen[1:])[0], np.nonzero(seen[:-1] & ~seen[1:])[0] - 1
    return [
        np.concatenate([p[a, :2], p[b, :2]])
        for a, b in zip(starts, stops, strict=True)
        if np.hypot(*(p[b, :2] - p[a, :2])) >= 3 * size / SIZE
    ]
