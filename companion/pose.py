"""People in photographs: a detector of poses that works offline, its 18 key points, OpenPose's painting of them, and
the robot of the miniature world in a person's pose.

The favourite demonstration of ControlNet: a picture of a person -> `Detector` -> `skeletons18` -> a new figure in the
same pose. For the miniature, `pose_to_robot` stands in the middle.

The detector is BlazePose (V. Bazarevsky et al., "BlazePose: On-device Real-time Body Pose tracking", arXiv 2006.10204),
two small networks that Google publishes under Apache 2.0 in the npm package @mediapipe/pose. The first finds people in
the whole picture, the second finds 33 points on each. OpenVINO, which the extra `[lab]` brings, runs their files as
they are; what stands around the networks is written out here. They are made for a picture of one person or a few: in a
crowd only those who stand out are found.

Key points are float32 (18, 3), in the order of `POINTS`: x and y in pixels of the picture, where the first pixel's
centre is at 0.5, and 1 if the point is seen, else 0.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import tarfile
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from http.client import HTTPException
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from scipy.special import expit

from companion.files import sha256, written
from companion.tabletop.camera import frame, project
from companion.tabletop.scene import JOINTS, Scene, Thing
from companion.tabletop.shapes import solid
from companion.tabletop.splits import POSES

#: OpenPose's 18 key points, those of COCO and a neck. Left and right are the person's own.
POINTS = (
    "nose",
    "neck",
    "right_shoulder",
    "right_elbow",
    "right_wrist",
    "left_shoulder",
    "left_elbow",
    "left_wrist",
    "right_hip",
    "right_knee",
    "right_ankle",
    "left_hip",
    "left_knee",
    "left_ankle",
    "right_eye",
    "left_eye",
    "right_ear",
    "left_ear",
)
#: Limbs as pairs of points, in the order in which OpenPose paints them, each in the colour of the same place.
LIMBS = (
    ("neck", "right_shoulder"),
    ("neck", "left_shoulder"),
    ("right_shoulder", "right_elbow"),
    ("right_elbow", "right_wrist"),
    ("left_shoulder", "left_elbow"),
    ("left_elbow", "left_wrist"),
    ("neck", "right_hip"),
    ("right_hip", "right_knee"),
    ("right_knee", "right_ankle"),
    ("neck", "left_hip"),
    ("left_hip", "left_knee"),
    ("left_knee", "left_ankle"),
    ("neck", "nose"),
    ("nose", "right_eye"),
    ("right_eye", "right_ear"),
    ("nose", "left_eye"),
    ("left_eye", "left_ear"),
)
#: OpenPose's 18 hues, from red through green and blue to pink: of the points, and of the limbs, which are darker.
COLOURS = (
    *((255, 85 * i, 0) for i in range(3)),
    *((255 - 85 * i, 255, 0) for i in range(3)),
    *((0, 255, 85 * i) for i in range(3)),
    *((0, 255 - 85 * i, 255) for i in range(3)),
    *((85 * i, 0, 255) for i in range(3)),
    *((255, 0, 255 - 85 * i) for i in range(3)),
)

# ---- Painting --------------------------------------------------------------------------------------------------------


def skeletons18(poses: Sequence[np.ndarray], size: int | tuple[int, int] = 512) -> np.ndarray:
    """Skeletons as OpenPose paints them, for ControlNets of Stable Diffusion: uint8 (N, H, W, 3).

    A limb is an ellipse in 60 % of its colour, a point a disc over it, both 8 pixels wide in a picture of 512.

    Args:
        poses: for each picture the key points (K, 18, 3) of its K people, or (18, 3) of its only one.
        size: the pictures' side in pixels, or their height and width.
    Raises:
        ValueError: for poses of another shape.
    """
    high, wide = (size, size) if isinstance(size, int) else size
    thick, found = max(1, round(4 * min(high, wide) / 512)), []
    for people in poses:
        canvas = np.zeros((high, wide, 3), np.uint8)
        for person in _people(people):
            for (a, b), colour in zip(LIMBS, COLOURS, strict=False):
                ends = person[[POINTS.index(a), POINTS.index(b)]]
                if ends[:, 2].all():
                    _limb(canvas, ends[:, :2] - 0.5, thick, [int(0.6 * v) for v in colour])
            for (x, y, seen), colour in zip(person.tolist(), COLOURS, strict=True):
                if seen:
                    cv2.circle(canvas, (round(x - 0.5), round(y - 0.5)), thick, colour, -1)
        found.append(canvas)
    return np.stack(found)


def _people(poses: np.ndarray) -> np.ndarray:
    """Key points as (K, 18, 3)."""
    people = np.asarray(poses, np.float32)
    if people.shape[-2:] != (len(POINTS), 3) or people.ndim not in (2, 3):
        raise ValueError(
            f"key points of shape {people.shape}; give (18, 3): x, y and 1 if seen, in the order of POINTS"
        )
    return people.reshape(-1, len(POINTS), 3)


def _limb(canvas: np.ndarray, ends: np.ndarray, thick: int, colour: list[int]) -> None:
    (x, y), (dx, dy) = ends.mean(0), ends[1] - ends[0]
    axes = (round(float(np.hypot(dx, dy)) / 2), thick)
    outline = cv2.ellipse2Poly((round(x), round(y)), axes, round(float(np.rad2deg(np.arctan2(dy, dx)))), 0, 360, 1)
    cv2.fillConvexPoly(canvas, np.array(outline), colour)


# ---- The detector ----------------------------------------------------------------------------------------------------

#: The npm package, the integrity that npm publishes for it, and what is taken from it: names there, and SHA-256.
PACKAGE = "@mediapipe/pose/-/pose-0.5.1675469404.tgz"
REGISTRY = "https://registry.npmjs.org"
INTEGRITY = "sha512-DFZsNWTsSphRIZppnUCuunzBiHP2FdJXR9ehc7mMi4KG+oPaOH0Em3d6kr7Py+TSyTXC1doH88KcF28k2sBxsQ=="
FILES = {
    "pose_detection.tflite": (
        "package/pose_solution_packed_assets.data",  # holds this file alone
        "a63c614bef30d35947f13be361820b1e4e3bec9cfeebf4d11216a18373108e85",
    ),
    "pose_landmark_full.tflite": (
        "package/pose_landmark_full.tflite",
        "e9a5c5cb17f736fafd4c2ec1da3b3d331d6edbe8a0d32395855aeb2cdfd64b9f",
    ),
}
DETECTION, LANDMARKS = FILES
CHUNK, MOST = 2**18, 2**26  # bytes that are read at once, and in all, of the package's 41 million
SIDE, LANDMARK_SIDE = 224, 256  # pixels of the two networks' pictures
SURE = 0.5  # of a person, and of a point

#: The 18 key points among BlazePose's 33; the neck, which is not among them, is between the shoulders.
FROM_33 = (0, -1, 12, 14, 16, 11, 13, 15, 24, 26, 28, 23, 25, 27, 5, 2, 8, 7)


def cache() -> Path:
    """The folder that the networks are kept in when no other is named."""
    return Path.home() / ".cache" / "companion" / "pose"


def fetch(
    folder: Path | None = None,
    registry: str | None = None,
    watch: Callable[[Iterable, int], Iterable] = lambda things, total: things,
) -> Path:
    """The folder with the networks' files, which are fetched if they are not there: once, 41 MB, 9 MB of it kept.

    The package is compared with the integrity that npm's registry publishes, and each file with its own checksum.

    Args:
        folder: where they are, or are to be; by default `cache()`.
        registry: npm's, or a mirror; by default what the environment's npm_config_registry names, else npm's own.
        watch: wraps the loop over the chunks of the download, given their number, to show a progress bar.
    Raises:
        OSError: they cannot be fetched, or differ from what was published. Nothing is kept then.
    """
    folder = folder or cache()
    if all((folder / name).is_file() and sha256(folder / name) == known for name, (_, known) in FILES.items()):
        return folder
    registry = registry or os.environ.get("npm_config_registry") or REGISTRY
    address = f"{registry.rstrip('/')}/{PACKAGE}"
    try:
        with urllib.request.urlopen(address, timeout=30) as answer:
            chunks = -(-int(answer.headers.get("Content-Length") or 0) // CHUNK)
            data = b"".join(watch(islice(iter(lambda: answer.read(CHUNK), b""), MOST // CHUNK), chunks))
    except (OSError, HTTPException, ValueError) as error:  # ValueError: for what is no address, or no length
        raise OSError(
            f"The pose detector's networks are not in {folder}, and {address} cannot be fetched ({error}): check the "
            f"network, or put {' and '.join(FILES)} of npm's @mediapipe/pose there."
        ) from error
    if "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode() != INTEGRITY:
        raise OSError(f"What {address} sent ({len(data):,} bytes) is not the package that npm published: try again.")
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for name, (member, known) in FILES.items():
            content = archive.extractfile(member)
            assert content is not None  # the integrity says which package it is
            with written(folder / name) as temporary:
                temporary.write_bytes(content.read())
                assert sha256(temporary) == known
    return folder


class Detector:
    """Finds people and their key points in pictures.

    Args:
        folder: with the networks' files, as `fetch` leaves them; by default `cache()`, where they are fetched to.

    Raises:
        ImportError: openvino is not installed.
        OSError: the files are neither there nor can be fetched.
    """

    def __init__(self, folder: Path | None = None) -> None:
        try:
            import openvino
        except ImportError:
            raise ImportError(
                "the pose detector runs by OpenVINO, which the extra [lab] has: pip install openvino"
            ) from None
        folder = fetch(folder)
        exact = {"INFERENCE_PRECISION_HINT": "f32"}  # some CPUs would compute in bfloat16
        core = openvino.Core()
        self._find, self._read = (core.compile_model(folder / name, "CPU", exact) for name in (DETECTION, LANDMARKS))

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """The key points of all people in a picture, uint8 (H, W, 3), surest first: float32 (K, 18, 3).

        Raises ValueError for another shape or type.
        """
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3:
            raise ValueError(
                f"a picture of shape {picture.shape} and type {picture.dtype}; give uint8 (H, W, 3), as by "
                "np.asarray(picture.convert('RGB'))"
            )
        found = [points for region in self.regions(picture) if (points := self.points(picture, region)) is not None]
        return np.stack([to_18(p, picture.shape) for p in found]) if found else np.zeros((0, 18, 3), np.float32)

    def regions(self, picture: np.ndarray) -> list[Region]:
        """Where people are in a picture, surest first."""
        high, wide = picture.shape[:2]
        whole = Region((wide / 2, high / 2), (0.0, -max(high, wide) / 2))
        raw = self._find(whole.cut(picture, SIDE)[None] * 2 - 1)
        people = strongest(*decoded(raw[0][0], raw[1][0, :, 0]))
        # Of a person's four points, the first is between the hips; the second is on a circle about the whole body.
        return [Region.between(*whole.to_picture(p[4:8].reshape(2, 2) * SIDE, SIDE)) for p in people]

    def points(self, picture: np.ndarray, region: Region) -> np.ndarray | None:
        """BlazePose's points of the person in a region: (39, 4), x and y in pixels, z, and how visible, in [0, 1].

        The first 33 are on the body. None if nobody is there.
        """
        # BlazePose repeats the picture's border here. Beside black, this network invents the limbs that are cut off.
        raw = self._read(region.cut(picture, LANDMARK_SIDE, cv2.BORDER_REPLICATE)[None])
        if raw[1].item() < SURE:
            return None
        points = raw[0].reshape(39, 5)
        points[:, :2] = refined(points[:, :2] / LANDMARK_SIDE, expit(raw[3][0])) * LANDMARK_SIDE
        points[:, :2] = region.to_picture(points[:, :2], LANDMARK_SIDE)
        return np.concatenate([points[:, :3], expit(points[:, 3:4])], 1)


class Region:
    """A square part of a picture, turned so that a person in it stands upright; its borders may be outside.

    Args:
        centre: x and y in pixels.
        up: x and y of the way from the centre to the middle of its upper side, in pixels.
    """

    def __init__(self, centre: Sequence[float] | np.ndarray, up: Sequence[float] | np.ndarray) -> None:
        self.centre, self.up = np.asarray(centre, float), np.asarray(up, float)

    @classmethod
    def between(cls, hips: np.ndarray, top: np.ndarray, margin: float = 1.25) -> Region:
        """The region around a person with these hips whose body is in the circle through `top`."""
        return cls(hips, margin * (np.asarray(top) - hips))

    def to_picture(self, points: np.ndarray, side: int) -> np.ndarray:
        """Points (..., 2) in the region, drawn with `side` pixels, as points of the picture."""
        (ux, uy), right_down = self.up, (np.asarray(points) - side / 2) * 2 / side
        return self.centre + right_down @ np.array([(-uy, ux), (-ux, -uy)])

    def cut(self, picture: np.ndarray, side: int, border: int = cv2.BORDER_CONSTANT) -> np.ndarray:
        """The region drawn with `side` x `side` pixels: float32 in [0, 1].

        border: what lies outside of the picture, in OpenCV's terms; black by default.
        """
        corners = np.array([(0.5, 0.5), (side - 0.5, 0.5), (0.5, side - 0.5)])
        there, smaller = self.to_picture(corners, side), side / (2 * np.hypot(*self.up))
        if smaller < 0.5:  # sampling a few pixels of many would lose what is between them
            high, wide = picture.shape[:2]
            size = max(1, round(wide * smaller)), max(1, round(high * smaller))
            picture, there = cv2.resize(picture, size, interpolation=cv2.INTER_AREA), there * size / (wide, high)
        # OpenCV counts from the centre of the first pixel.
        back = cv2.getAffineTransform((there - 0.5).astype(np.float32), (corners - 0.5).astype(np.float32))
        cut = cv2.warpAffine(np.ascontiguousarray(picture), back, (side, side), borderMode=border)
        return cut.astype(np.float32) / 255


def anchors(side: int = SIDE, grids: Sequence[tuple[int, int]] = ((8, 2), (16, 2), (32, 6))) -> np.ndarray:
    """The places that the first network looks at, (2254, 2), as fractions of the picture: the centres of the cells of
    grids, each with its stride in pixels and how often it has each cell (W. Liu et al., "SSD: Single Shot MultiBox
    Detector", arXiv 1512.02325). Of MediaPipe's five grids the last three have one stride, and are taken together.
    """
    found = []
    for stride, times in grids:
        y, x = np.mgrid[: side // stride, : side // stride]
        found.append(np.repeat((np.stack([x, y], -1).reshape(-1, 2) + 0.5) * stride / side, times, 0))
    return np.concatenate(found)


def decoded(raw: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """People as the first network sees them: (K, 12), and how sure it is of each, (K,), from `SURE` up.

    A person is the left, upper, right and lower side of a box, and x and y of four points, as fractions of the picture;
    the network gives the box's centre and size and the points, in pixels from an anchor.
    """
    sure = expit(logits) >= SURE
    raw, at = raw[sure] / SIDE, anchors()[sure]
    middle, half = raw[:, :2] + at, raw[:, 2:4] / 2
    return np.concatenate([middle - half, middle + half, raw[:, 4:] + np.tile(at, 4)], 1), expit(logits[sure])


def overlap(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of a box (4,) with boxes (K, 4)."""
    both = np.prod(np.clip(np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2]), 0, None), 1)
    one, many = np.prod(box[2:] - box[:2]), np.prod(boxes[:, 2:] - boxes[:, :2], 1)
    return both / np.maximum(one + many - both, 1e-12)


def strongest(people: np.ndarray, scores: np.ndarray, share: float = 0.3) -> list[np.ndarray]:
    """One person for each heap of boxes that overlap by more than `share`: their mean, weighted by scores."""
    found, order = [], np.argsort(-scores, kind="stable")
    while len(order):
        same = overlap(people[order[0], :4], people[order, :4]) > share
        same[0] = True  # also a box without a size
        found.append(np.average(people[order[same]], 0, scores[order[same]]))
        order = order[~same]
    return found


def refined(points: np.ndarray, heat: np.ndarray, reach: int = 3) -> np.ndarray:
    """Points (K, 2), as fractions, moved to the centre of mass of what their maps (h, w, K) show near them.

    A point stays where its map is not sure.
    """
    high, wide = heat.shape[:2]
    found = points.copy()
    for k, (x, y) in enumerate(points):
        column, row = int(np.floor(x * wide)), int(np.floor(y * high))
        if 0 <= column < wide and 0 <= row < high:
            left, top = max(0, column - reach), max(0, row - reach)
            near = heat[top : row + reach + 1, left : column + reach + 1, k]
            if near.max() >= SURE:
                ys, xs = np.indices(near.shape)
                found[k] = ((xs + left) * near).sum() / wide, ((ys + top) * near).sum() / high
                found[k] /= near.sum()
    return found


def to_18(points: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """BlazePose's points (33 or more, 4) as the 18 key points: float32 (18, 3).

    A point is seen if it is visible and in the picture, whose height and width are `shape`.
    """
    found = points[list(FROM_33)][:, [0, 1, 3]]
    shoulders = found[[POINTS.index("right_shoulder"), POINTS.index("left_shoulder")]]
    found[POINTS.index("neck")] = *shoulders[:, :2].mean(0), shoulders[:, 2].min()
    inside = ((found[:, :2] >= 0) & (found[:, :2] < [shape[1], shape[0]])).all(1)
    found[:, 2] = (found[:, 2] >= SURE) & inside
    return found.astype(np.float32)


# ---- The robot -------------------------------------------------------------------------------------------------------

REST = (-65.0, 15.0, 0.03)  # of an arm that hangs, and a leg that stands


def robot(person: np.ndarray) -> tuple[float, ...]:
    """The pose of the miniature's robot (see `tabletop.scene.Thing`) that is most like a person's, (18, 3).

    Arms keep their angles to the trunk, legs their spread. The robot's left is the one in the picture, whichever way
    the person faces. Angles that training pictures never show are brought to the nearest that they do
    (`tabletop.splits.POSES`), and a limb that is not seen hangs or stands.

    Raises:
        ValueError: for another shape, or when no shoulder is seen.
    """
    at, up, right = _trunk(person)
    angles: list[float] = []
    for side, outwards in zip(_sides(at, right), (-right, right), strict=True):
        upper, fore, spread = REST
        shoulder, elbow, wrist, hip, knee, ankle = (
            at.get(f"{side}_{name}") for name in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
        )
        if shoulder is not None and elbow is not None:
            arm = elbow - shoulder
            upper = _nearest(float(np.rad2deg(np.arctan2(arm @ up, arm @ outwards))), POSES[0])
            if wrist is not None:  # its direction is kept also where the upper arm's could not be
                arm = wrist - elbow
                fore = _nearest(float(np.rad2deg(np.arctan2(arm @ up, arm @ outwards))) - upper, POSES[1])
        if hip is not None and (foot := ankle if ankle is not None else knee) is not None:
            # The robot's legs begin 0.15 from its middle and end 0.16 + spread from it, 0.43 lower.
            leg = foot - hip
            spread = _within(0.43 * float(leg @ outwards) / max(float(leg @ -up), 1e-6) - 0.01, POSES[2])
        angles += [upper, fore, spread]
    return tuple(angles)


def robot_joints(pose: Sequence[float], size: int = 128) -> np.ndarray:
    """The joints of the robot in a pose, seen from in front, all in sight: float32 (11, 3), in the order of `JOINTS`.

    They are joints of the robot itself, as the miniature's camera sees them, in pixels of a picture of `size` x `size`.
    """
    thing = Thing("robot", "steel", 0.0, 0.0, 1.1, 0.0, tuple(pose))
    scene = Scene((thing,), None, "grass", "day", *frame([thing], 0.7, 0.8, 0.12, 0.0, 0.0, 12.0))
    in_space = solid(thing).joints
    assert in_space is not None  # a robot has joints
    joints = project(scene, in_space, size)
    return np.concatenate([joints[:, :2], np.ones((len(JOINTS), 1))], 1).astype(np.float32)


def pose_to_robot(person: np.ndarray, size: int = 128) -> np.ndarray:
    """A person's pose, (18, 3), as the skeleton of the miniature's robot: float32 (11, 3), as in the condition
    "openpose" of `companion.conditions`.

    The robot has its own proportions and stands in the middle of a picture of `size` x `size`, so it does not matter
    where the person was, and how large. Joints that were not seen on the person have 0 as their third number: the
    ControlNet is free there. Set it to 1 to ask for the pose at rest.

    Raises:
        ValueError: for another shape, or when no shoulder is seen.
    """
    at, _, right = _trunk(person)
    found, (left, other) = robot_joints(robot(person), size), _sides(at, right)
    seen = {"head": any(name in at for name in ("nose", "right_eye", "left_eye", "right_ear", "left_ear"))}
    seen |= {"neck": "neck" in at, "hips": "left_hip" in at or "right_hip" in at}
    for name, side in (("left", left), ("right", other)):
        seen[f"{name}_shoulder"] = f"{side}_shoulder" in at
        seen[f"{name}_elbow"] = seen[f"{name}_shoulder"] and f"{side}_elbow" in at
        seen[f"{name}_hand"] = seen[f"{name}_elbow"] and f"{side}_wrist" in at
        seen[f"{name}_foot"] = f"{side}_hip" in at and (f"{side}_ankle" in at or f"{side}_knee" in at)
    found[:, 2] = [seen[name] for name in JOINTS]
    return found


def _trunk(person: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """A person's points that are seen, by name, and the ways up along the trunk and to the right of it."""
    points = _people(person)
    if len(points) != 1:
        raise ValueError(f"{len(points)} people; give one, such as people[0]")
    at = {name: p[:2].astype(float) for name, p in zip(POINTS, points[0], strict=True) if p[2]}
    if "left_shoulder" not in at and "right_shoulder" not in at:
        raise ValueError("no shoulder is seen; a pose needs at least one")
    up = np.array([0.0, -1.0])  # without hips, as in a portrait, the person is taken to be upright
    if {"neck", "left_hip", "right_hip"} <= at.keys():
        trunk = at["neck"] - (at["left_hip"] + at["right_hip"]) / 2
        up = trunk / np.linalg.norm(trunk) if trunk.any() else up
    return at, up, np.array([-up[1], up[0]])


def _sides(at: dict[str, np.ndarray], right: np.ndarray) -> tuple[str, str]:
    """Which of the person's sides is on the left, and which on the right: of the trunk as it is seen."""
    where = {side: at[name] @ right for side in ("right", "left") if (name := f"{side}_shoulder") in at}
    back = len(where) == 2 and where["left"] < where["right"]
    return ("left", "right") if back else ("right", "left")  # who faces the camera has the right side on the left


def _nearest(degrees: float, limits: tuple[float, float]) -> float:
    """The angle within limits that is nearest to another, whichever way around."""
    middle = sum(limits) / 2
    return _within((degrees - middle + 180) % 360 - 180 + middle, limits)


def _within(value: float, limits: tuple[float, float]) -> float:
    return min(max(value, limits[0]), limits[1])
