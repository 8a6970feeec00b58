"""The eight conditions of ControlNet: the exact map of a render, the map that an annotator finds in any picture, how a
map is painted for the network, and how faithful a drawn picture is to the map that was asked for.

Maps are arrays with one entry per picture, each in its own form:

    canny, softedge, mlsd, scribble    uint8 (N, H, W), edges are white
    depth                              float32 (N, H, W), inverse depth from 0 (far) to 1 (near)
    normal                             float32 (N, H, W, 3), unit vectors: x right, y up, z towards the viewer
    openpose                           float32 (N, 11, 3): x and y of each joint in pixels, and 1 if it is seen, else 0
    seg                                uint8 (N, H, W), indices of `LABELS`

L. Zhang, A. Rao, M. Agrawala, "Adding Conditional Control to Text-to-Image Diffusion Models" (arXiv 2302.05543) names
the conditions; the colours are those of their annotators, but for the segments, which have the miniature's own.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from companion.metrics import pictures_to_tensor
from companion.tabletop.judge import FAR_INVERSE, NEAR_INVERSE, SEGMENTS, find_joints
from companion.tabletop.measures import judge
from companion.tabletop.scene import BONES, JOINTS, KINDS, Scene

LABELS = SEGMENTS  # sky, ground, and the kinds of things
CANNY = (50, 100)  # thresholds, in grey levels; the usual 100 and 200 lose what stands in the dark
#: The conditions whose `annotate` needs no network, and so finds maps in any picture; that of the others knows the
#: miniature world alone. (For photographs, `companion.photo_conditions` has all eight.)
ANYWHERE = ("canny", "softedge", "mlsd")
SURE = 0.3  # a joint that the judge believes in less than this is not there


@dataclass(frozen=True)
class Condition:
    """One of the eight.

    Attributes:
        name: as in the names of published ControlNets.
        title: what it is called in a sentence.
        asks: what a picture must do to follow it.
        exact: the maps of renders, from their columns (`tabletop.dataset.read` with `COLUMNS`) and scenes.
        annotate: the maps found in pictures, uint8 (N, H, W, 3).
        paint: maps as pictures, uint8 (N, H, W, 3), that a ControlNet looks at.
        compare: how well found maps follow those that were asked for, one number per picture; NaN where nothing was.
        unit: of these numbers.
        best: the number of a perfect picture.
    """

    name: str
    title: str
    asks: str
    exact: Callable[[dict[str, np.ndarray], Sequence[Scene]], np.ndarray]
    annotate: Callable[[np.ndarray], np.ndarray]
    paint: Callable[[np.ndarray], np.ndarray]
    compare: Callable[[np.ndarray, np.ndarray], np.ndarray]
    unit: str
    best: float


#: Columns of renders that exact maps are made from.
COLUMNS = ("picture", "depth", "normals", "segments", "joints", "edges", "edge_counts")


# ---- Edges and lines -------------------------------------------------------------------------------------------------


def _grey(pictures: np.ndarray) -> list[np.ndarray]:
    return [cv2.cvtColor(np.ascontiguousarray(p), cv2.COLOR_RGB2GRAY) for p in pictures]


def canny(pictures: np.ndarray, low: float = CANNY[0], high: float = CANNY[1]) -> np.ndarray:
    """Canny's edges (1986), a pixel wide, of pictures: uint8 (N, H, W)."""
    return np.stack([cv2.Canny(g, low, high) for g in _grey(pictures)])


def soft_edges(pictures: np.ndarray, scales: Sequence[float] = (0.7, 1.4)) -> np.ndarray:
    """Soft edges of pictures, uint8 (N, H, W): the gradient's length, averaged over scales in pixels.

    ControlNet's soft edges come from HED, a network (arXiv 1504.06375). This needs none, and keeps what matters: strong
    edges are whiter than weak ones, and none is thin.
    """
    found = []
    for picture in pictures:
        total = np.zeros(picture.shape[:2], np.float32)
        for scale in scales:
            smooth = cv2.GaussianBlur(picture.astype(np.float32), (0, 0), scale)
            dx, dy = (cv2.Scharr(smooth, cv2.CV_32F, *d) / 16 for d in ((1, 0), (0, 1)))
            total += np.sqrt(dx**2 + dy**2).max(-1) / len(scales)  # of the channel that changes most
        found.append(np.clip(total * 4, 0, 255).astype(np.uint8))
    return np.stack(found)


def drawn_lines(lines: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Lines (K, 4), as x0, y0, x1, y1 in pixels, drawn white on black a pixel wide: uint8 (H, W).

    size: of the picture in pixels, its side, or height and width.
    """
    canvas = np.zeros((size, size) if isinstance(size, int) else size, np.uint8)
    for x0, y0, x1, y1 in np.asarray(lines, np.float64).reshape(-1, 4):
        # Pixel centres are at halves here and at whole numbers in OpenCV, which takes 1/16 of a pixel.
        ax, ay, bx, by = (int(round((v - 0.5) * 16)) for v in (x0, y0, x1, y1))
        cv2.line(canvas, (ax, ay), (bx, by), 255, 1, cv2.LINE_8, 4)
    return canvas


def _exact_lines(columns: dict[str, np.ndarray], scenes: Sequence[Scene]) -> np.ndarray:
    size, stops = columns["picture"].shape[1], np.cumsum(columns["edge_counts"])[:-1]
    return np.stack([drawn_lines(lines, size) for lines in np.split(columns["edges"], stops)])


def lines(pictures: np.ndarray, shortest: float = 0.06) -> np.ndarray:
    """Straight lines in pictures, drawn white on black: uint8 (N, H, W).

    OpenCV's line segment detector (R. Grompone von Gioi et al., IPOL 2012) stands in for M-LSD, a network (arXiv
    2106.00186). Lines shorter than `shortest`, as a share of the picture's shorter side, are left out.
    """
    detector, found = cv2.createLineSegmentDetector(), []
    for g in _grey(pictures):
        high, wide = g.shape
        seen = detector.detect(g)[0]
        seen = np.zeros((0, 4)) if seen is None else seen.reshape(-1, 4) + 0.5
        long = np.hypot(seen[:, 2] - seen[:, 0], seen[:, 3] - seen[:, 1]) >= shortest * min(high, wide)
        found.append(drawn_lines(seen[long], (high, wide)))
    return np.stack(found)


def outlines(labels: np.ndarray, seed: int | None = 0, width: int = 2) -> np.ndarray:
    """Outlines of the things in maps of labels (N, H, W), as a hand would draw them: uint8 (N, H, W).

    seed: of the hand's tremble, about a pixel; None for a hand that does not tremble.
    """
    found = []
    for i, label in enumerate(labels):
        canvas, size = np.zeros(label.shape, np.uint8), label.shape[0]
        rng = None if seed is None else np.random.default_rng([seed, i])
        for value in np.unique(label[label >= LABELS.index("ground") + 1]):
            shapes = cv2.findContours((label == value).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)[0]
            for shape in shapes:
                if len(shape) < 0.06 * size:
                    continue
                points = shape[:, 0].astype(np.float32)
                if rng is not None:
                    wave = ndimage.gaussian_filter1d(rng.normal(size=points.shape), 6, axis=0, mode="wrap")
                    points += wave / wave.std() * size / 160
                cv2.polylines(canvas, [np.round(points).astype(np.int32)], True, 255, width)
        found.append(canvas)
    return np.stack(found)


# ---- What the judge sees ---------------------------------------------------------------------------------------------


@torch.no_grad()
def _seen(pictures: np.ndarray, name: str, batch: int = 64) -> Tensor:
    """The judge's map of pictures, at half their size."""
    return torch.cat([judge()(x)[name] for x in pictures_to_tensor(pictures).split(batch)])


def _enlarged(maps: Tensor, size: int) -> Tensor:
    return F.interpolate(maps, size=(size, size), mode="bilinear", align_corners=False)


def labels(pictures: np.ndarray) -> np.ndarray:
    """What the judge takes each pixel for: uint8 (N, H, W), indices of `LABELS`."""
    # Probabilities are enlarged, not labels: half-way between two labels there may be a third.
    return _enlarged(_seen(pictures, "segments"), pictures.shape[1]).argmax(1).byte().numpy()


def depth(pictures: np.ndarray) -> np.ndarray:
    """The judge's inverse depth of pictures: float32 (N, H, W), from 0 (far) to 1 (near)."""
    return _enlarged(_seen(pictures, "depth"), pictures.shape[1])[:, 0].clamp(0, 1).numpy()


def inverse_depth(distance: np.ndarray) -> np.ndarray:
    """Distances in units as inverse depth, from 0 at 30 units and beyond to 1 at the nearest, 1.8 units."""
    inverse = 1 / np.maximum(distance.astype(np.float32), 1e-3)
    return np.clip((inverse - FAR_INVERSE) / (NEAR_INVERSE - FAR_INVERSE), 0, 1)


def normals(pictures: np.ndarray) -> np.ndarray:
    """The judge's surface normals of pictures: unit vectors (N, H, W, 3), and 0 in the sky."""
    found = _enlarged(_seen(pictures, "normals"), pictures.shape[1]).permute(0, 2, 3, 1).numpy()
    long = np.linalg.norm(found, axis=-1, keepdims=True)
    return np.where(long > 0.3, found / np.maximum(long, 1e-6), 0)


def joints(pictures: np.ndarray) -> np.ndarray:
    """The joints of the robot that the judge sees best in pictures: float32 (N, 11, 3)."""
    found = find_joints(_seen(pictures, "joints"), pictures.shape[1]).numpy()
    found[..., 2] = found[..., 2] >= SURE
    return found


def _exact_joints(columns: dict[str, np.ndarray], scenes: Sequence[Scene]) -> np.ndarray:
    """The joints of the only robot, or of the one with most joints in sight."""
    seen = columns["joints"]
    return seen[np.arange(len(seen)), seen[..., 2].sum(-1).argmax(1)].astype(np.float32)


def _exact_labels(columns: dict[str, np.ndarray], scenes: Sequence[Scene]) -> np.ndarray:
    own = np.zeros((len(scenes), 4), np.uint8)
    own[:, 1] = LABELS.index("ground")
    for i, scene in enumerate(scenes):
        own[i, 2 : 2 + len(scene.things)] = [LABELS.index(t.kind) for t in scene.things]
    return own[np.arange(len(scenes))[:, None, None], columns["segments"]]


# ---- Painting --------------------------------------------------------------------------------------------------------


def _white_on_black(maps: np.ndarray) -> np.ndarray:
    return np.repeat(maps[..., None], 3, -1)


#: Colours of the segments, in the order of `LABELS`: far apart, so that a network can tell them.
PALETTE = np.array(
    [(135, 206, 235), (105, 105, 105)]
    + [[round(255 * v) for v in colorsys.hsv_to_rgb(i / len(KINDS), 1 - 0.4 * (i % 2), 1)] for i in range(len(KINDS))],
    np.uint8,
)


def legend() -> dict[str, tuple[int, int, int]]:
    """The colour of each label of a segmentation map."""
    return {name: (int(r), int(g), int(b)) for name, (r, g, b) in zip(LABELS, PALETTE, strict=True)}


def skeletons(poses: np.ndarray, size: int = 128) -> np.ndarray:
    """Skeletons of joints (N, 11, 3) as OpenPose paints them, a hue for each limb: uint8 (N, size, size, 3)."""
    found = []
    for pose in poses:
        canvas = np.zeros((size, size, 3), np.uint8)
        for i, (a, b) in enumerate(BONES):
            ends = pose[[JOINTS.index(a), JOINTS.index(b)]]
            if ends[:, 2].all():
                colour = [255 * v for v in colorsys.hsv_to_rgb(i / len(BONES), 1, 1)]
                (ax, ay), (bx, by) = ([int(round(v - 0.5)) for v in end[:2].tolist()] for end in ends)
                cv2.line(canvas, (ax, ay), (bx, by), colour, max(1, round(size / 48)), cv2.LINE_AA)
        for i, (x, y, there) in enumerate(pose):
            if there:
                colour = [255 * v for v in colorsys.hsv_to_rgb(i / len(JOINTS), 1, 1)]
                cv2.circle(canvas, (int(round(x - 0.5)), int(round(y - 0.5))), max(1, round(size / 64)), colour, -1)
        found.append(canvas)
    return np.stack(found)


# ---- Fidelity --------------------------------------------------------------------------------------------------------


def edge_f1(asked: np.ndarray, got: np.ndarray, tolerance: float = 1.5) -> np.ndarray:
    """The harmonic mean of precision and recall of edges, uint8 (N, H, W), that may lie `tolerance` pixels away.

    0 where edges were asked for and none are there. NaN where none were asked for.
    """
    scores = []
    for a, g in zip(asked >= 128, got >= 128, strict=True):
        if not a.any():
            scores.append(np.nan)
        elif not g.any():
            scores.append(0.0)
        else:
            to_a, to_g = (
                cv2.distanceTransform((~x).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for x in (a, g)
            )
            recall, precision = (to_g[a] <= tolerance).mean(), (to_a[g] <= tolerance).mean()
            scores.append(2 * precision * recall / max(precision + recall, 1e-9))
    return np.array(scores)


def ms_ssim(asked: np.ndarray, got: np.ndarray, scales: int = 3, sigma: float = 1.5) -> np.ndarray:
    """Structural similarity at several scales (Z. Wang et al. 2003, "Multiscale structural similarity for image quality
    assessment"), of maps, uint8 (N, H, W). Three scales instead of five, since 128 pixels hold no more; their weights
    are the first three of the paper's, made to sum to 1.

    Raises ValueError when the maps are too small for the windows of 11 pixels at the coarsest scale.
    """
    if min(asked.shape[1:]) < 11 * 2 ** (scales - 1):
        high, wide = asked.shape[1:]
        raise ValueError(f"maps of {wide} x {high} are too small for {scales} scales; ask for fewer")
    weights = torch.tensor([0.0448, 0.2856, 0.3001])[:scales]
    weights = weights / weights.sum()
    line = torch.exp(-(torch.arange(-5, 6.0) ** 2) / (2 * sigma**2))
    kernel = (line[:, None] * line)[None, None] / line.sum() ** 2

    def local(x: Tensor) -> Tensor:
        return F.conv2d(x, kernel)

    a, b = (torch.as_tensor(x).float()[:, None] / 255 for x in (asked, got))
    found, (c1, c2) = torch.ones(len(a)), (0.01**2, 0.03**2)
    for i, weight in enumerate(weights):
        ma, mb = local(a), local(b)
        va, vb, both = local(a * a) - ma**2, local(b * b) - mb**2, local(a * b) - ma * mb
        value = (2 * both + c2) / (va + vb + c2)
        if i == scales - 1:  # luminance counts at the coarsest scale only
            value = value * (2 * ma * mb + c1) / (ma**2 + mb**2 + c1)
        found = found * value.mean((1, 2, 3)).clamp(min=0) ** weight
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return found.numpy().astype(np.float64)


def depth_error(asked: np.ndarray, got: np.ndarray) -> np.ndarray:
    """The root mean squared difference of inverse depths (N, H, W), as a share of the whole range."""
    return np.sqrt(((asked - got) ** 2).mean((1, 2)))


def angle(asked: np.ndarray, got: np.ndarray) -> np.ndarray:
    """The mean angle in degrees between normals (N, H, W, 3), where a surface was asked for; 90 where none is there."""
    surface = np.linalg.norm(asked, axis=-1) > 0.5
    degrees = np.rad2deg(np.arccos(np.clip((asked * got).sum(-1), -1, 1)))
    return np.array([d[s].mean() if s.any() else np.nan for d, s in zip(degrees, surface, strict=True)])


def pck(asked: np.ndarray, got: np.ndarray, share: float = 0.1) -> np.ndarray:
    """The share of the asked joints (N, 11, 3) that are found within `share` of the skeleton's larger side, "percentage
    of correct key points" (Y. Yang and D. Ramanan 2013). NaN where no joint was asked for.
    """
    scores = []
    for a, g in zip(asked, got, strict=True):
        there = a[:, 2] > 0
        if not there.any():
            scores.append(np.nan)
            continue
        side = max(np.ptp(a[there, :2], axis=0).max(), 1.0)
        near = np.linalg.norm(a[:, :2] - g[:, :2], axis=1) <= share * side
        scores.append((near & (g[:, 2] > 0))[there].mean())
    return np.array(scores)


def mean_iou(asked: np.ndarray, got: np.ndarray) -> np.ndarray:
    """Intersection over union of labels (N, H, W), averaged over the labels that were asked for in each picture."""
    scores = []
    for a, g in zip(asked, got, strict=True):
        scores.append(np.mean([((a == v) & (g == v)).sum() / ((a == v) | (g == v)).sum() for v in np.unique(a)]))
    return np.array(scores)


def _of_pictures(annotate: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict[str, np.ndarray], Any], np.ndarray]:
    return lambda columns, scenes: annotate(columns["picture"])


CONDITIONS: dict[str, Condition] = {
    c.name: c
    for c in (
        Condition(
            "canny",
            "Canny edges",
            "an edge wherever there is a line, and nowhere else",
            _of_pictures(canny),
            canny,
            _white_on_black,
            edge_f1,
            "F1",
            1.0,
        ),
        Condition(
            "softedge",
            "soft edges",
            "the same edges, strong where they are white and weak where they are grey",
            _of_pictures(soft_edges),
            soft_edges,
            _white_on_black,
            ms_ssim,
            "MS-SSIM",
            1.0,
        ),
        Condition(
            "mlsd",
            "straight lines",
            "straight edges along the lines; what is round is free",
            _exact_lines,
            lines,
            _white_on_black,
            lambda asked, got: edge_f1(asked, got, 2.0),
            "F1",
            1.0,
        ),
        Condition(
            "depth",
            "depth",
            "near what is white, far what is black",
            lambda columns, scenes: inverse_depth(columns["depth"]),
            depth,
            lambda maps: _white_on_black((maps * 255).round().astype(np.uint8)),
            depth_error,
            "RMSE",
            0.0,
        ),
        Condition(
            "normal",
            "normals",
            "surfaces that face where the colour says",
            lambda columns, scenes: columns["normals"].astype(np.float32) / 127,
            normals,
            # The colours of ControlNet 1.1: red to the left, green up, blue towards the viewer.
            lambda maps: ((maps * np.array([-1, 1, 1]) + 1) * 127.5).round().astype(np.uint8),
            angle,
            "degrees",
            0.0,
        ),
        Condition(
            "openpose",
            "a pose",
            "a robot whose joints are where the skeleton has them",
            _exact_joints,
            joints,
            skeletons,
            pck,
            "PCK@0.1",
            1.0,
        ),
        Condition(
            "scribble",
            "a scribble",
            "things with these outlines, as far as a hand can be trusted",
            lambda columns, scenes: outlines(_exact_labels(columns, scenes)),
            lambda pictures: outlines(labels(pictures), None),
            _white_on_black,
            lambda asked, got: edge_f1(asked, got, 3.0),
            "F1",
            1.0,
        ),
        Condition(
            "seg",
            "segments",
            "at each pixel the kind of thing that the colour stands for",
            _exact_labels,
            labels,
            lambda maps: PALETTE[maps],
            mean_iou,
            "mIoU",
            1.0,
        ),
    )
}
