"""The eight conditions: maps of renders and of pictures, how they are painted, and how fidelity is measured."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from companion import conditions
from companion.conditions import COLUMNS, CONDITIONS, LABELS, PALETTE
from companion.tabletop.samples import held_out
from companion.tabletop.scene import BONES, JOINTS

SIZE = 64


@pytest.fixture(scope="module")
def renders():
    """Six held-out renders; their maps are made up: a thing, seen from the front, fills the middle of each picture."""
    pictures, scenes = held_out(6)
    n, size = pictures.shape[:2]
    segments = np.ones((n, size, size), np.uint8)
    segments[:, :40] = 0
    segments[:, 48:80, 32:64] = 2
    normals = np.zeros((n, size, size, 3), np.int8)
    normals[segments > 0] = (0, 127, 0)
    normals[segments == 2] = (0, 0, 127)
    joints = np.zeros((n, 2, 11, 3), np.float32)
    joints[0, 1] = [(40 + 2 * i, 50 + i, 1) for i in range(11)]
    columns = {
        "picture": pictures,
        "depth": np.where(segments == 0, 30, np.where(segments == 1, 8, 4)).astype(np.float16),
        "normals": normals,
        "segments": segments,
        "joints": joints,
        "edges": np.array([[32, 48, 64, 48], [32, 48, 32, 80], [64, 48, 64, 80]], np.float32),
        "edge_counts": np.array([2, 0, 1, 0, 0, 0]),
    }
    assert columns.keys() == set(COLUMNS)
    return columns, scenes


def test_they_are_the_eight_of_the_paper():
    assert list(CONDITIONS) == ["canny", "softedge", "mlsd", "depth", "normal", "openpose", "scribble", "seg"]
    assert all(name == condition.name for name, condition in CONDITIONS.items())


@pytest.mark.parametrize("name", CONDITIONS)
def test_exact_and_found_maps_have_one_form_and_a_perfect_picture_is_best(renders, name):
    columns, scenes = renders
    condition = CONDITIONS[name]
    exact, found = condition.exact(columns, scenes), condition.annotate(columns["picture"])
    assert exact.shape == found.shape and exact.dtype == found.dtype
    for maps in (exact, found):
        painted = condition.paint(maps)
        assert painted.shape == columns["picture"].shape and painted.dtype == np.uint8
    perfect, real = condition.compare(exact, exact), condition.compare(exact, found)
    asked = ~np.isnan(perfect)
    assert asked.any() and np.allclose(perfect[asked], condition.best, atol=1e-3)
    assert (np.isnan(real) == ~asked).all()
    worse = real[asked] < condition.best if condition.best else real[asked] > condition.best
    assert (worse | np.isclose(real[asked], condition.best)).all()
    black = condition.compare(exact, np.zeros_like(exact))[asked]
    assert (np.abs(black - condition.best) > 0.1).all(), "a black picture follows nothing"


def square(left: int = 16, top: int = 16, side: int = 32) -> np.ndarray:
    """A white square on black, as a picture."""
    picture = np.zeros((1, SIZE, SIZE, 3), np.uint8)
    picture[:, top : top + side, left : left + side] = 255
    return picture


def test_canny_s_edges_run_around_a_square():
    edges = conditions.canny(square())
    around = np.zeros((SIZE, SIZE), bool)
    around[15:49, 15:49], around[18:46, 18:46] = True, False
    assert 100 < (edges[0] > 0).sum() < 140 and (edges[0] > 0)[~around].sum() == 0


def test_soft_edges_are_whiter_where_the_contrast_is_larger():
    faint = conditions.soft_edges(square() // 8)[0]
    strong = conditions.soft_edges(square())[0]
    assert strong.max() == 255 and 0 < faint.max() < 80
    assert strong[32, 32] == strong[2, 2] == 0


def test_lines_are_drawn_where_they_are_and_found_there_again():
    drawn = conditions.drawn_lines(np.array([[8, 20.5, 50, 20.5]]), SIZE)
    ys, xs = np.nonzero(drawn)
    assert set(ys) == {20} and xs.min() in (7, 8) and xs.max() in (49, 50)
    found = conditions.lines(square())
    expected = conditions.drawn_lines(
        np.array([(16, 16, 48, 16), (48, 16, 48, 48), (48, 48, 16, 48), (16, 48, 16, 16)]), SIZE
    )
    assert conditions.edge_f1(expected[None], found, 2.0)[0] > 0.9
    assert not conditions.lines(np.zeros((1, SIZE, SIZE, 3), np.uint8)).any()


def test_a_scribble_trembles_about_the_outline_and_leaves_the_ground_alone():
    labels = np.full((2, SIZE, SIZE), LABELS.index("ground"), np.uint8)
    labels[:, :10] = LABELS.index("sky")
    labels[:, 20:44, 20:44] = LABELS.index("cube")
    straight, trembling = conditions.outlines(labels, None), conditions.outlines(labels, 3)
    assert not straight[:, :16].any() and not straight[:, 26:38, 26:38].any() and straight[0, 20:44, 20].all()
    assert not np.array_equal(trembling[0], trembling[1]) and not np.array_equal(trembling[0], straight[0])
    assert np.array_equal(trembling, conditions.outlines(labels, 3))
    assert (conditions.edge_f1(straight, trembling, 3.0) > 0.9).all()


def test_inverse_depth_is_white_where_it_is_near():
    found = conditions.inverse_depth(np.array([[[1.0, 1.8, 3.6, 30.0, 99.0]]], np.float16))
    assert found[0, 0].tolist() == [1, pytest.approx(1, abs=1e-3), pytest.approx(0.468, abs=0.01), 0, 0]


def test_segments_are_painted_in_colours_of_their_own(renders):
    columns, scenes = renders
    maps = CONDITIONS["seg"].exact(columns, scenes)
    kind = scenes[0].things[0].kind
    assert maps[0, 0, 0] == 0 and maps[0, 100, 100] == 1 and maps[0, 60, 50] == LABELS.index(kind)
    painted = CONDITIONS["seg"].paint(maps)
    assert tuple(painted[0, 60, 50]) == conditions.legend()[kind]
    assert len({tuple(c) for c in PALETTE.tolist()}) == len(LABELS) == len(PALETTE)
    apart = np.abs(PALETTE[:, None].astype(int) - PALETTE[None]).sum(-1) + 999 * np.eye(len(PALETTE), dtype=int)
    assert apart.min() > 60


def test_the_only_robot_s_skeleton_is_painted_limb_by_limb(renders):
    columns, scenes = renders
    poses = CONDITIONS["openpose"].exact(columns, scenes)
    assert poses[0, 3].tolist() == [46, 53, 1] and not poses[1].any()
    painted = conditions.skeletons(poses)
    assert painted[0].any() and not painted[1].any()
    poses[0, JOINTS.index("head"), 2] = 0  # a limb needs both of its ends
    fewer = conditions.skeletons(poses)[0]
    assert (fewer > 0).sum() < (painted[0] > 0).sum()
    assert len({tuple(c) for c in painted[0].reshape(-1, 3)}) > len(BONES)


def test_edges_may_lie_a_little_beside():
    a = np.zeros((3, SIZE, SIZE), np.uint8)
    a[:, 20] = 255
    b = np.roll(a, 1, 1)
    b[1] = np.roll(a[1], 5, 0)
    b[2] = 0
    assert conditions.edge_f1(a, b).tolist() == [1, 0, 0]
    assert np.isnan(conditions.edge_f1(np.zeros_like(a), a)).all()
    half = a.copy()
    half[:, :, 32:] = 0  # everything that is there is right, but half is missing
    assert conditions.edge_f1(a, half)[0] == pytest.approx(2 * 0.5 / 1.5, abs=0.02)


def test_structural_similarity_is_that_of_its_definition():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 255, (2, 128, 128), np.uint8)
    assert np.allclose(conditions.ms_ssim(a, a), 1)
    # At a single scale, against OpenCV's Gaussian windows and Wang's formula.
    b = np.clip(a.astype(int) + rng.normal(0, 30, a.shape), 0, 255).astype(np.uint8)
    x, y = a[0] / 255, b[0] / 255

    def local(z):
        return cv2.GaussianBlur(z, (11, 11), 1.5)[5:-5, 5:-5]

    mx, my = local(x), local(y)
    vx, vy, both = local(x * x) - mx**2, local(y * y) - my**2, local(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    ssim = (2 * mx * my + c1) * (2 * both + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    assert conditions.ms_ssim(a, b, scales=1)[0] == pytest.approx(ssim.mean(), abs=1e-3)
    worse = np.clip(a.astype(int) + rng.normal(0, 90, a.shape), 0, 255).astype(np.uint8)
    assert (conditions.ms_ssim(a, worse) < conditions.ms_ssim(a, b)).all()


def test_angles_are_measured_on_surfaces_alone():
    up = np.zeros((1, 4, 4, 3), np.float32)
    up[:, :2, :, 1] = 1
    turned = np.zeros_like(up)
    turned[..., 1], turned[..., 2] = np.cos(np.deg2rad(30)), np.sin(np.deg2rad(30))
    assert conditions.angle(up, turned)[0] == pytest.approx(30, abs=1e-3)
    assert conditions.angle(up, np.zeros_like(up))[0] == pytest.approx(90)
    assert np.isnan(conditions.angle(np.zeros_like(up), up))[0]


def test_joints_count_when_they_are_near():
    asked = np.zeros((2, 11, 3), np.float32)
    asked[0] = [(10 * i, 0, 1) for i in range(11)]  # 100 pixels wide
    got = asked.copy()
    got[0, :4, 1] = 11  # too far
    got[0, 4:6, 1] = 9
    got[0, 6, 2] = 0  # not found
    found = conditions.pck(asked, got)
    assert found[0] == pytest.approx(6 / 11) and np.isnan(found[1])


def test_intersection_over_union_is_averaged_over_what_was_asked_for():
    asked = np.zeros((1, 4, 4), np.uint8)
    asked[0, :2] = 3
    got = asked.copy()
    got[0, 1] = 5  # half of the 3 is another thing
    assert conditions.mean_iou(asked, got)[0] == pytest.approx((1 + 0.5) / 2)


def test_maps_that_are_too_small_for_their_scales_are_refused():
    with pytest.raises(ValueError, match="maps of 32 x 32 are too small for 3 scales; ask for fewer"):
        conditions.ms_ssim(np.zeros((1, 32, 32), np.uint8), np.zeros((1, 32, 32), np.uint8))


def test_normals_have_the_colours_of_controlnet_1_1():
    """Red is what faces left, green what faces up, blue what faces the viewer."""
    faces = np.array([[-1, 0, 0], [1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1]], np.float32)
    red, green, blue = CONDITIONS["normal"].paint(faces[None, None])[0, 0].T
    assert red.tolist() == [255, 0, 128, 128, 128]
    assert green.tolist() == [128, 128, 255, 0, 128]
    assert blue.tolist() == [128, 128, 128, 128, 255]
