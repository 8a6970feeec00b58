"""The shapes of the world as parts: meshes, spheres and cylinders with 4 x 4 placements, straight edges and joints.

Pure NumPy, so that key points and edges can be computed (and tested) without a renderer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from companion.tabletop.scene import JOINTS, Thing

# Parts that keep their colour whatever the finish of the thing is: linear RGB reflectance in [0, 1].
TRUNK, ROOF, DOOR, WINDOW = (0.25, 0.13, 0.06), (0.23, 0.10, 0.08), (0.16, 0.08, 0.04), (0.95, 0.80, 0.30)
LIMB, EYE, STEM, DOT = (0.10, 0.10, 0.115), (0.95, 0.90, 0.35), (0.85, 0.78, 0.62), (0.90, 0.88, 0.84)
RIM, VISOR = (0.45, 0.47, 0.50), (0.05, 0.055, 0.065)
TYRE, PANE, LAMP = (0.03, 0.03, 0.03), (0.08, 0.13, 0.20), (0.95, 0.90, 0.60)


def translate(x: float, y: float, z: float) -> np.ndarray:
    """4 x 4 translation."""
    m = np.eye(4)
    m[:3, 3] = x, y, z
    return m


def scale(x: float, y: float | None = None, z: float | None = None) -> np.ndarray:
    """4 x 4 scaling; one number scales all three axes."""
    return np.diag([x, x if y is None else y, x if z is None else z, 1.0])


def rotate(axis: str, degrees: float) -> np.ndarray:
    """4 x 4 rotation about the axis "x", "y" or "z"."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    m = np.eye(4)
    m[i, i], m[i, j], m[j, i], m[j, j] = c, -s, s, c
    return m


@dataclass(frozen=True)
class Part:
    """One primitive: "cube" (half side 1), "sphere" (radius 1), "cone", "frustum", "pyramid", "ring", "dome", or
    "cylinder" (radius 1, z from 0 to 1). An "ellipsoid" is a sphere that may be scaled by another number along each
    axis, which the renderer's own spheres cannot. `colour` is None if the part takes the thing's finish.
    """

    shape: str
    to_world: np.ndarray
    colour: tuple[float, float, float] | None = None


@dataclass
class Solid:
    """A thing ready to be drawn: parts, straight edges (E, 2, 3) and, for robots, joints (11, 3), in world space."""

    parts: list[Part] = field(default_factory=list)
    edges: list[np.ndarray] = field(default_factory=list)
    joints: np.ndarray | None = None

    def add(self, shape: str, m: np.ndarray, colour=None, edges: bool = True) -> None:
        self.parts.append(Part(shape, m, colour))
        if edges and shape in ("cube", "pyramid"):
            self.edges += [np.stack([(m @ [*a, 1])[:3], (m @ [*b, 1])[:3]]) for a, b in unit_edges(shape)]

    def rod(self, a, b, radius: float, colour=None) -> None:
        """A cylinder from point `a` to point `b`."""
        a, b = np.asarray(a, float), np.asarray(b, float)
        z = (b - a) / np.linalg.norm(b - a)
        x = np.cross([0, 1, 0] if abs(z[1]) < 0.9 else [1, 0, 0], z)
        x /= np.linalg.norm(x)
        m = np.eye(4)
        m[:3, 0], m[:3, 1], m[:3, 2], m[:3, 3] = x * radius, np.cross(z, x) * radius, b - a, a
        self.add("cylinder", m, colour)


def unit_edges(shape: str) -> list[tuple[tuple, tuple]]:
    """The straight edges of the unit cube [-1, 1]^3 or of the unit pyramid (base [-1, 1]^2 at z = 0, top at z = 1)."""
    if shape == "cube":
        c = [(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]
        return [
            (a, b) for i, a in enumerate(c) for b in c[i + 1 :] if sum(p != q for p, q in zip(a, b, strict=True)) == 1
        ]
    base = [(-1, -1, 0), (1, -1, 0), (1, 1, 0), (-1, 1, 0)]
    return [(base[i], base[(i + 1) % 4]) for i in range(4)] + [(b, (0, 0, 1)) for b in base]


@cache
def mesh(shape: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Vertices (V, 3), triangles (F, 3) and vertex normals (V, 3) or None (flat) of a unit shape."""
    if shape == "pyramid":
        v = np.array([(-1, -1, 0), (1, -1, 0), (1, 1, 0), (-1, 1, 0), (0, 0, 1)], float)
        return v, np.array([(0, 1, 4), (1, 2, 4), (2, 3, 4), (3, 0, 4), (0, 2, 1), (0, 3, 2)]), None
    if shape == "ring":  # torus in the x-z plane, large radius 1, small radius 0.36
        n, m, r = 48, 24, 0.36
        u, w = np.meshgrid(np.arange(n) * 2 * np.pi / n, np.arange(m) * 2 * np.pi / m, indexing="ij")
        normal = np.stack([np.cos(u) * np.cos(w), np.sin(w), np.sin(u) * np.cos(w)], -1).reshape(-1, 3)
        v = np.stack([np.cos(u), 0 * u, np.sin(u)], -1).reshape(-1, 3) + r * normal
        i, j = np.meshgrid(np.arange(n), np.arange(m), indexing="ij")
        a, b = i * m + j, (i + 1) % n * m + j
        c, d = (i + 1) % n * m + (j + 1) % m, i * m + (j + 1) % m
        return (
            v,
            np.concatenate([np.stack([a, c, b], -1).reshape(-1, 3), np.stack([a, d, c], -1).reshape(-1, 3)]),
            normal,
        )
    # Surfaces of revolution about z, from a profile of (radius, height); "smooth" rows share their normals.
    profiles = {
        "cone": [(1, 0), (0, 1)],
        "cylinder": [(1, 0), (1, 1)],
        "frustum": [(0.7, 0), (1, 1)],
        "dome": [(np.cos(t), np.sin(t)) for t in np.linspace(0, np.pi / 2, 9)],
        "ellipsoid": [(np.cos(t), np.sin(t)) for t in np.linspace(-np.pi / 2, np.pi / 2, 17)],
    }
    profile = np.array(profiles[shape], float)
    n = 40
    angle = np.arange(n) * 2 * np.pi / n
    around = np.stack([np.cos(angle), np.sin(angle)], -1)
    v, f, normals = [], [], []

    def row(r: float, z: float, nr: float, nz: float) -> int:
        first = sum(len(x) for x in v)
        v.append(np.concatenate([around * r, np.full((n, 1), z)], 1))
        normals.append(np.concatenate([around * nr, np.full((n, 1), nz)], 1))
        return first

    smooth = shape in ("dome", "ellipsoid")
    for (r0, z0), (r1, z1) in zip(profile[:-1], profile[1:], strict=True):
        side = np.array([z1 - z0, r0 - r1]) / np.hypot(z1 - z0, r0 - r1)
        a = row(r0, z0, *((r0, z0) if smooth else side))
        b = row(r1, z1, *((r1, z1) if smooth else side))
        for i in range(n):
            j = (i + 1) % n
            f += [(a + i, a + j, b + j), (a + i, b + j, b + i)]
    for (r, z), down in ((profile[0], -1), (profile[-1], 1)):  # flat lids
        if r > 1e-6:
            a, c = row(r, z, 0, down), row(0, z, 0, down)
            f += [(a + (i + 1) % n, a + i, c + i) if down < 0 else (a + i, a + (i + 1) % n, c + i) for i in range(n)]
    return np.concatenate(v), np.array(f), np.concatenate(normals)


#: How each kind of thing is built: given a solid, the placement (4, 4) of the thing, and the thing, it adds the parts.
Builder = Callable[[Solid, np.ndarray, Thing], None]
BUILDERS: dict[str, Builder] = {}


def builds(kind: str) -> Callable[[Builder], Builder]:
    """Decorate the builder of a kind of thing."""
    return lambda builder: BUILDERS.setdefault(kind, builder)


def solid(thing: Thing) -> Solid:
    """The parts, edges and joints of a thing, in world space. Raises KeyError for a kind that nobody builds."""
    s = Solid()
    m = translate(thing.x, thing.y, 0) @ rotate("z", thing.yaw) @ scale(thing.size)
    BUILDERS[thing.kind](s, m, thing)
    return s


@builds("ball")
def _ball(s: Solid, m, t) -> None:
    s.add("sphere", m @ translate(0, 0, 0.6) @ scale(0.6))


@builds("cube")
def _cube(s: Solid, m, t) -> None:
    s.add("cube", m @ translate(0, 0, 0.52) @ scale(0.52))


@builds("cone")
def _cone(s: Solid, m, t) -> None:
    s.add("cone", m @ scale(0.64, 0.64, 1.35))


@builds("can")
def _can(s: Solid, m, t) -> None:
    s.add("cylinder", m @ translate(0, 0, 0.02) @ scale(0.45, 0.45, 1.11))
    for z in (0.0, 1.08):  # a tin's rims, so that it cannot be taken for another kind from any side
        s.add("cylinder", m @ translate(0, 0, z) @ scale(0.475, 0.475, 0.07), RIM)


@builds("tree")
def _tree(s: Solid, m, t) -> None:
    s.add("cylinder", m @ scale(0.13, 0.13, 0.5), TRUNK)
    for z, r, h in ((0.38, 0.62, 0.75), (0.78, 0.50, 0.65), (1.13, 0.37, 0.55)):
        s.add("cone", m @ translate(0, 0, z) @ scale(r, r, h))


@builds("house")
def _house(s: Solid, m, t) -> None:
    s.add("cube", m @ translate(0, 0, 0.42) @ scale(0.6, 0.5, 0.42))
    s.add("pyramid", m @ translate(0, 0, 0.84) @ scale(0.72, 0.62, 0.5), ROOF)
    s.add("cube", m @ translate(-0.22, -0.5, 0.25) @ scale(0.12, 0.02, 0.25), DOOR, edges=False)
    s.add("cube", m @ translate(0.24, -0.5, 0.46) @ scale(0.14, 0.02, 0.13), WINDOW, edges=False)


@builds("ring")
def _ring(s: Solid, m, t) -> None:
    s.add("ring", m @ translate(0, 0, 0.62) @ scale(0.455))


@builds("mushroom")
def _mushroom(s: Solid, m, t) -> None:
    s.add("frustum", m @ translate(0, 0, 0.62) @ rotate("x", 180) @ scale(0.26, 0.26, 0.62), STEM)
    s.add("dome", m @ translate(0, 0, 0.55) @ scale(0.66, 0.66, 0.58))
    for azimuth, height in ((-90, 40), (-35, 22), (-145, 22), (-60, 66), (-125, 68), (10, 35), (170, 35), (90, 45)):
        a, h = np.deg2rad(azimuth), np.deg2rad(height)
        p = 0.66 * np.cos(a) * np.cos(h), 0.66 * np.sin(a) * np.cos(h), 0.55 + 0.58 * np.sin(h)
        s.add("sphere", m @ translate(*p) @ scale(0.085), DOT)


@builds("car")
def _car(s: Solid, m, t) -> None:
    s.add("cube", m @ translate(0, 0, 0.36) @ scale(0.85, 0.4, 0.2))
    s.add("cube", m @ translate(-0.08, 0, 0.70) @ scale(0.46, 0.34, 0.16))
    s.add("cube", m @ translate(-0.08, 0, 0.71) @ scale(0.36, 0.345, 0.10), PANE, edges=False)
    s.add("cube", m @ translate(-0.08, 0, 0.71) @ scale(0.465, 0.27, 0.10), PANE, edges=False)
    for x in (-0.5, 0.5):
        for y, out in ((-0.41, -1), (0.41, 1)):
            s.add(
                "cylinder", m @ translate(x, y - 0.06 * out, 0.2) @ rotate("x", -90 * out) @ scale(0.2, 0.2, 0.1), TYRE
            )
            s.add("cylinder", m @ translate(x, y, 0.2) @ rotate("x", -90 * out) @ scale(0.09, 0.09, 0.055), DOT)
    for y in (-0.25, 0.25):
        s.add("sphere", m @ translate(0.85, y, 0.40) @ scale(0.07), LAMP)


@builds("robot")
def _robot(s: Solid, m, t) -> None:
    def place(*p):
        return (m @ [*p, 1.0])[:3]

    s.add("cube", m @ translate(0, 0, 0.80) @ scale(0.31, 0.2, 0.32))
    s.add("cube", m @ translate(0, 0, 1.42) @ scale(0.24, 0.2, 0.21))
    s.add("cylinder", m @ translate(0, 0, 1.1) @ scale(0.09, 0.09, 0.14), LIMB)
    # On a dark visor the eyes can be seen whatever the head's finish.
    s.add("cube", m @ translate(0, -0.2, 1.46) @ scale(0.2, 0.02, 0.09), VISOR, edges=False)
    for x in (-0.1, 0.1):
        s.add("sphere", m @ translate(x, -0.21, 1.46) @ scale(0.066), EYE)
    at = {"head": place(0, 0, 1.42), "neck": place(0, 0, 1.12), "hips": place(0, 0, 0.5)}
    for side, sign, (upper, fore, spread) in (("left", -1, t.pose[:3]), ("right", 1, t.pose[3:])):
        a, b = np.deg2rad(upper), np.deg2rad(upper + fore)
        shoulder = np.array([sign * 0.35, 0, 1.05])
        elbow = shoulder + 0.36 * np.array([sign * np.cos(a), 0, np.sin(a)])
        hand = elbow + 0.34 * np.array([sign * np.cos(b), 0, np.sin(b)])
        foot = np.array([sign * (0.16 + spread), 0, 0.07])
        p = {"shoulder": place(*shoulder), "elbow": place(*elbow), "hand": place(*hand), "foot": place(*foot)}
        at |= {f"{side}_{k}": v for k, v in p.items()}
        s.rod(p["shoulder"], p["elbow"], 0.08 * t.size, LIMB)
        s.rod(p["elbow"], p["hand"], 0.08 * t.size, LIMB)
        s.rod(place(sign * 0.15, 0, 0.5), p["foot"], 0.095 * t.size, LIMB)
        s.add("sphere", m @ translate(*elbow) @ scale(0.085), LIMB)
        s.add("sphere", m @ translate(*hand) @ scale(0.125))
        s.add("cube", m @ translate(foot[0], -0.06, 0.07) @ scale(0.12, 0.18, 0.07), edges=False)
    s.joints = np.stack([at[j] for j in JOINTS])
