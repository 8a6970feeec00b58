"""Pictures and their maps."""

from __future__ import annotations

import numpy as np
import pytest

from companion.tabletop import render
from companion.tabletop.camera import TANGENT, project, view
from companion.tabletop.scene import TIMES, Scene, Thing

from .helpers import needs_mitsuba, one


@needs_mitsuba
def test_a_picture_depends_on_its_scene_alone():
    a, b = render.render(one("ball")), render.render(one("ball"))
    assert np.array_equal(a.picture, b.picture) and np.array_equal(a.depth, b.depth)


@needs_mitsuba
def test_depth_and_normals_of_the_ground_and_the_ball_are_exact():
    scene = one("ball")
    r = render.render(scene)
    rotation, origin = view(scene.camera, scene.look_at), np.array(scene.camera)
    size, f = 128, 64 / TANGENT
    y, x = np.mgrid[0:size, 0:size] + 0.5
    rays = np.stack([(x - 64) / f, (64 - y) / f, -np.ones_like(x)], -1) @ rotation
    ground = (r.segments == 1) & (r.depth < render.FAR)
    assert np.allclose(r.depth[ground], (-origin[2] / rays[..., 2])[ground], rtol=1e-3)
    centre, radius = np.array([0, 0, 0.6 * 1.2]), 0.6 * 1.2
    hit = origin + rays * r.depth[..., None] - centre
    ball = r.segments == 2
    assert np.allclose(np.linalg.norm(hit[ball], axis=1), radius, rtol=2e-3)
    assert np.allclose(r.normals[ball], (hit / radius)[ball] @ rotation.T, atol=5e-3)
    assert np.allclose(r.normals[ground], rotation @ [0, 0, 1], atol=1e-4)
    assert (r.normals[r.segments == 0] == 0).all() and (r.depth[r.segments == 0] == render.FAR).all()


@needs_mitsuba
@pytest.mark.parametrize("time", TIMES)
def test_a_sky_has_its_seed_s_clouds_and_no_other_light_below_the_horizon(time):
    a, b, c = (np.array(render._sky(time, seed)) for seed in (4, 4, 8))
    horizon, zenith = render.LIGHT[time][:2]
    rows = render.SKY[0]
    assert a.shape == (2 * rows, render.SKY[1], 3) and np.array_equal(a, b) and not np.array_equal(a, c)
    assert np.allclose(a[rows - 1 :], horizon, atol=1e-6), "clouds touch the horizon, or are below it"
    assert np.allclose(np.median(a[0], 0), zenith, atol=1e-6), "clouds are overhead"
    clear = np.median(a[: rows // 2], 1)  # half of all rows have none
    brighter = (a[: rows // 2].max(-1) > clear.max(-1)[:, None] + 0.02).mean()
    assert (0 < brighter < 0.01) == (time == "night"), "stars are few, and seen at night alone"


@needs_mitsuba
def test_a_red_ball_is_red_and_where_it_was_put():
    scene = one("ball")
    r = render.render(scene)
    red, green, blue = r.picture[r.segments == 2].mean(0)
    assert red > 1.8 * max(green, blue)
    left, top, right, bottom = r.boxes[0]
    centre = project(scene, np.array([0, 0, 0.72]))
    assert left < centre[0] < right and top < centre[1] < bottom


@needs_mitsuba
def test_joints_lie_on_the_robot_and_edges_on_edges():
    r = render.render(one("robot"))
    seen = r.joints[0, r.joints[0, :, 2] > 0]
    assert len(seen) >= 9
    for x, y, _ in seen:
        window = r.segments[max(0, int(y) - 1) : int(y) + 2, max(0, int(x) - 1) : int(x) + 2]
        assert (window == 2).any()
    cube = render.render(one("cube"))
    assert 7 <= len(cube.edges) <= 12  # three faces are seen
    # A visible edge has the cube on one side at least, and normals that turn across it or the outline.
    middle = (cube.edges[:, :2] + cube.edges[:, 2:]) / 2
    near = [cube.segments[int(y) - 2 : int(y) + 3, int(x) - 2 : int(x) + 3] for x, y in middle]
    assert all((w == 2).any() for w in near)


@needs_mitsuba
def test_what_stands_in_front_hides_what_is_behind():
    front = Thing("cube", "red", 0.0, -1.2, 1.2, 0.0)
    behind = Thing("ball", "blue", 0.3, 1.5, 1.0, 0.0)
    both = render.render(Scene((front, behind), "in front of", "sand", "day", seed=1))
    alone = render.render(Scene((behind,), None, "sand", "day", seed=1))
    assert 0 < (both.segments == 3).sum() < (alone.segments == 2).sum()


@needs_mitsuba
@pytest.mark.parametrize("size", [0, 100])
def test_a_size_the_model_cannot_use_is_refused(size):
    with pytest.raises(ValueError, match=f"size={size} is not a positive multiple of 8"):
        render.render(one("ball"), size=size)
