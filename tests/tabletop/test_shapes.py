"""The shapes that things are made of."""

from __future__ import annotations

import numpy as np
import pytest

from companion.tabletop.scene import KINDS, Thing
from companion.tabletop.shapes import mesh, solid, unit_edges


def test_unit_edges_of_the_cube_and_the_pyramid():
    assert len(unit_edges("cube")) == 12 and len(unit_edges("pyramid")) == 8
    assert all(np.hypot.reduce(np.subtract(a, b)) == pytest.approx(2) for a, b in unit_edges("cube"))


@pytest.mark.parametrize(
    ("shape", "exact"),
    [
        ("cone", np.pi / 3),
        ("cylinder", np.pi),
        ("dome", 2 * np.pi / 3),
        ("ring", 2 * np.pi**2 * 0.36**2),
        ("frustum", np.pi * (1 + 0.7 + 0.49) / 3),
        ("pyramid", 4 / 3),
    ],
)
def test_meshes_are_closed_and_face_outwards(shape, exact):
    v, f, n = mesh(shape)
    a, b, c = v[f[:, 0]], v[f[:, 1]], v[f[:, 2]]
    volume = np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6
    assert volume == pytest.approx(exact, rel=0.03)
    if n is not None:
        assert np.allclose(np.linalg.norm(n, axis=1), 1, atol=1e-6)


def test_a_thing_stands_on_the_ground_at_its_place():
    for kind in KINDS:
        s = solid(Thing(kind, "red", 0.7, -0.3, 1.1, 20, (10, 20, 0.1) * 2 if kind == "robot" else ()))
        low = min((p.to_world[:3] @ v)[2] for p in s.parts for v in corners(p.shape))
        assert -0.02 < low < 0.05, f"the lowest point of a {kind} is at {low}"
        assert (s.joints is not None) == (kind == "robot")


def corners(shape: str) -> np.ndarray:
    """Points of a unit shape, homogeneous (N, 4), among them its lowest."""
    if shape == "cube":
        v = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)
    elif shape == "sphere":
        v = np.array([(0, 0, -1.0)])
    else:
        v = mesh(shape)[0]
    return np.concatenate([v, np.ones((len(v), 1))], 1)
