"""Points on a circle or a sphere that repel each other, and their hyperspherical energy."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import traitlets
from PIL import Image, ImageDraw, ImageFont

from companion.energy import hyperspherical_energy
from companion.widgets.base import INK, PAPER
from companion.widgets.painter import Editor, script

SIDE = 380  # of the drawing on the screen, in pixels
MOST = 32  # points
HALF = 1.45  # of the drawing's width, in radii of the circle
DIRECTION, OPPOSITE, ARROW, RIM = (0, 114, 178), (255, 255, 255), (213, 94, 0), (150, 150, 150)


class EnergyExplorer(Editor):
    """Points on a circle or a sphere, to drag: their hyperspherical energy, and the force on each as an arrow.

    The energy is that of `companion.energy.hyperspherical_energy`, computed in the browser as a point moves. Buttons
    let the points spread (gradient descent on the energy), turn all of them together, which changes nothing, or move
    one of them, which does. The force on a point is minus the gradient of the energy along the circle or sphere.

    Args:
        points: (n, 2) on the circle or (n, 3) on the sphere, from 2 to 32 of them; their lengths do not matter. By
            default `n` random ones.
        n, dimension, seed: of the random points; dimension 2 for the circle, 3 for the sphere.
        s: how fast the repulsion falls with the distance: 0 (logarithmic), 1 or 2.
        half_space: count the opposite of each point, too.
        side: width on the screen, in pixels.
    Raises:
        ValueError: for points of another shape, without a direction, or too many or too few.
    """

    _esm = script("energy_explorer.js")
    points = traitlets.List().tag(sync=True)
    home = traitlets.List().tag(sync=True)
    s = traitlets.Enum([0, 1, 2], 1).tag(sync=True)
    half_space = traitlets.Bool(False).tag(sync=True)
    most = traitlets.Int(MOST).tag(sync=True)
    side = traitlets.Int(SIDE).tag(sync=True)

    def __init__(
        self,
        points: Any = None,
        *,
        n: int = 8,
        dimension: int = 2,
        s: int = 1,
        half_space: bool = False,
        seed: int = 0,
        side: int = SIDE,
    ) -> None:
        if points is None:
            if dimension not in (2, 3):
                raise ValueError(f"dimension={dimension} cannot be drawn; give 2 for a circle or 3 for a sphere")
            points = np.random.default_rng(seed).normal(size=(n, dimension))
        if s not in (0, 1, 2):
            raise ValueError(f"s={s} is not among 0, 1 and 2")
        first = as_points(points).tolist()
        super().__init__(points=first, home=first, s=int(s), half_space=half_space, side=side, scale=side / (2 * HALF))

    @traitlets.validate("points")
    def _directions(self, proposal: dict[str, Any]) -> list:
        try:
            return as_points(proposal["value"]).tolist()
        except ValueError as error:
            raise traitlets.TraitError(str(error)) from None

    @property
    def array(self) -> np.ndarray:
        """The points (n, 2) or (n, 3), of length 1; they can be set, and the drawing becomes a circle or a sphere."""
        return np.array(self.points)

    @array.setter
    def array(self, points: Any) -> None:
        self.points = self.home = as_points(points).tolist()

    @property
    def energy(self) -> float:
        """The hyperspherical energy of the points, for `s` and `half_space` as they are."""
        return hyperspherical_energy(torch.tensor(self.array), self.s, self.half_space)

    def preview(self) -> Image.Image:
        k = 2  # drawn larger, so that edges are smooth
        side, unit = k * self.side, k * self.scale
        sheet = Image.new("RGB", (side, side + 48 * k), PAPER)
        pen, middle = ImageDraw.Draw(sheet), np.array([side / 2, side / 2])

        def disc(at: np.ndarray, radius: float, **colours: Any) -> None:
            pen.ellipse([*(at - radius), *(at + radius)], width=2 * k, **colours)

        points, forces = self.array, force(self.array, self.s, self.half_space)
        front = points[:, 2] >= 0 if points.shape[1] == 3 else np.ones(len(points), bool)
        flip = np.array([1, -1])
        disc(middle, unit, outline=RIM)
        for i in np.argsort(front):
            at, strength = middle + unit * flip * points[i, :2], float(np.linalg.norm(forces[i]))
            if self.half_space:
                disc(middle - unit * flip * points[i, :2], 4 * k, fill=OPPOSITE, outline=DIRECTION)
            if np.isfinite(strength) and strength > 0:
                way = unit * _length(strength, len(points)) * flip * forces[i, :2] / strength
                _arrow(pen, at, at + way, k)
            disc(at, 7 * k, fill=DIRECTION if front[i] else tuple((c + 255) // 2 for c in DIRECTION), outline=PAPER)
        text = f"energy {self.energy:.4f}, s = {self.s}{', half-space' if self.half_space else ''}"
        pen.text((8 * k, side + 4 * k), text, INK, ImageFont.load_default(15 * k))
        where = "circle" if points.shape[1] == 2 else "sphere"
        note = f"{len(points)} points on a {where}, and their forces"
        pen.text((8 * k, side + 26 * k), note, INK, ImageFont.load_default(12 * k))
        return sheet.resize((self.side, self.side + 48), Image.Resampling.LANCZOS)


def as_points(points: Any) -> np.ndarray:
    """Directions (n, 2) or (n, 3) in any usual form, as float64 of length 1; ValueError where that cannot be."""
    array = np.array(points.detach().cpu() if hasattr(points, "detach") else points, np.float64)
    if array.ndim != 2 or array.shape[1] not in (2, 3) or not 2 <= len(array) <= MOST:
        raise ValueError(
            f"points of shape {array.shape}; give (n, 2) for a circle or (n, 3) for a sphere, with n from 2 to {MOST}"
        )
    length = np.linalg.norm(array, axis=1, keepdims=True)
    if not (np.isfinite(length).all() and (length > 1e-12).all()):
        bad = int(np.argmin(np.isfinite(length[:, 0]) & (length[:, 0] > 1e-12)))
        raise ValueError(f"point {bad} is {array[bad].tolist()}, which has no direction")
    # What has a length of 1 stays as it is, to the last bit: the browser would take other bits for other points.
    return np.where(np.abs(length - 1) < 1e-9, array, array / length)


def force(points: np.ndarray, s: float, half_space: bool = False) -> np.ndarray:
    """Minus the gradient of the hyperspherical energy of points (n, d) on a sphere, along it: (n, d)."""
    found = np.zeros_like(points)
    for sign in (1, -1)[: 1 + half_space]:
        apart = points[:, None] - sign * points[None]
        z = np.linalg.norm(apart, axis=-1)
        np.fill_diagonal(z, np.inf)  # of a point with itself there is no force, nor along the sphere with its opposite
        with np.errstate(divide="ignore", invalid="ignore"):
            found += (apart * (z ** (-s - 2))[..., None]).sum(1)
    found *= (4 if half_space else 2) * (s or 1)
    return found - (found * points).sum(1, keepdims=True) * points


def _length(strength: float, n: int) -> float:
    """The length of a force's arrow, in radii: in proportion for weak forces, and never more than 0.45."""
    return 0.45 * strength / (strength + 2 * n)


def _arrow(pen: ImageDraw.ImageDraw, start: np.ndarray, end: np.ndarray, k: int) -> None:
    way = end - start
    far = float(np.linalg.norm(way))
    if far < 2 * k:
        return
    pen.line([*start, *end], ARROW, 2 * k)
    along, head = way / far, min(7.0 * k, far)
    across = np.array([-along[1], along[0]])
    for side in (1, -1):
        pen.line([*end, *(end - head * along + side * 0.5 * head * across)], ARROW, 2 * k)
