"""The world: scenes, captions, tokenizer, shapes, maps, data sets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from companion.pretraining.clip import near_miss
from companion.tabletop import dataset
from companion.tabletop.camera import FOV, TANGENT, boxes, frame, project, view
from companion.tabletop.caption import OPPOSITE, Wish, caption, parse, words
from companion.tabletop.scene import (
    FINISHES,
    KINDS,
    PLACES,
    RELATIONS,
    TIMES,
    WITHHELD,
    Scene,
    Thing,
)
from companion.tabletop.shapes import mesh, solid, unit_edges
from companion.tabletop.splits import HIDDEN, SPLITS, sample_scene, split_of
from companion.tabletop.tokenizer import FREE_WORDS, LENGTH, save_tokenizer


def some(split: str, n: int = 300, things: int | None = None) -> list[Scene]:
    first = SPLITS[split][0]
    return [sample_scene(seed, things) for seed in range(first, first + n)]


def test_the_world_is_as_large_as_it_says():
    assert len(KINDS) >= 10 and len(FINISHES) == 11 and len(PLACES) == 5 and len(TIMES) == 3 and len(RELATIONS) == 4
    assert len(WITHHELD) >= 6
    seen = some("train", 3000)
    assert {t.kind for s in seen for t in s.things} == set(KINDS)
    assert {t.finish for s in seen for t in s.things} == set(FINISHES)
    assert {s.relation for s in seen} == {None, *RELATIONS}


def test_a_scene_depends_on_its_seed_alone():
    assert sample_scene(12) == sample_scene(12) != sample_scene(13)
    assert Scene.from_dict(json.loads(json.dumps(sample_scene(12).to_dict()))) == sample_scene(12)


def test_withheld_pairs_are_where_they_belong_and_nowhere_else():
    def held(s):
        return any((t.kind, t.finish) in WITHHELD for t in s.things)

    assert not any(held(s) for split in ("train", "val", "test") for s in some(split, 1000))
    assert all(held(s) for split in ("pairs", "withheld") for s in some(split))


def test_splits_do_not_overlap():
    ranges = sorted((first, first + count) for first, count in SPLITS.values())
    assert all(a[1] <= b[0] for a, b in zip(ranges, ranges[1:], strict=False))
    assert [split_of(first) for first, _ in SPLITS.values()] == list(SPLITS)


@pytest.mark.parametrize("bad", [-1, 5_000_000])
def test_a_seed_outside_the_splits_is_refused(bad):
    with pytest.raises(ValueError, match=f"seed={bad} is outside every split"):
        sample_scene(bad)


def test_relations_are_true_of_the_places():
    for s in some("train", 1000, 2):
        a, b = s.things
        gap_x, gap_y = a.x - b.x, a.y - b.y
        if s.relation in ("left of", "right of"):
            assert (gap_x < 0) == (s.relation == "left of") and abs(gap_y) < 0.65 < abs(gap_x)
        else:
            assert (gap_y < 0) == (s.relation == "in front of") and abs(gap_y) > 1.55


def test_one_thing_fills_the_picture_as_a_photographer_would_have_it():
    found = np.array([boxes(s.camera, s.look_at, s.things)[0] for s in some("train", 400, 1)])
    left, bottom, right, top = found.T
    height, width = top - bottom, right - left
    assert ((height >= 0.445) & (height <= 0.755) | (abs(width - 0.9) < 0.005)).all()
    assert height.std() > 0.06, "the distance hardly varies"
    assert (found > 0.005).all() and (found < 0.995).all(), "a thing is cut off"


def test_two_things_are_whole_and_the_far_one_is_seen():
    for s in some("train", 400, 2):
        found = boxes(s.camera, s.look_at, s.things)
        assert (found > 0.005).all() and (found < 0.995).all(), f"a thing of seed {s.seed} is cut off"
        near, far = sorted(range(2), key=lambda i: s.things[i].y)
        both = min(found[near, 2], found[far, 2]) - max(found[near, 0], found[far, 0])
        if s.relation in ("in front of", "behind"):
            assert both <= HIDDEN * (found[far, 2] - found[far, 0]) + 1e-9


def test_the_sky_is_seen_above_every_scene():
    """Its colour tells the time of day."""
    for s in some("train", 400):
        down = np.rad2deg(np.arcsin(view(s.camera, s.look_at)[2, 2]))
        assert 0.04 < 0.5 - np.tan(np.deg2rad(down)) / TANGENT / 2 < 0.35
        assert s.camera[2] > 0.4


def test_framing_meets_what_is_asked():
    thing = Thing("ball", "red", 0.5, 0.3, 1.0, 0.0)
    camera, look_at = frame((thing,), height=0.5, width=1.0, margin=0.1, shift=0.5, azimuth=10, pitch=12)
    left, bottom, right, top = boxes(camera, look_at, (thing,))[0]
    assert (top - bottom, bottom) == pytest.approx((0.5, 0.1), abs=0.004)
    assert (left + right) / 2 == pytest.approx(0.5 + 0.5 * (1 - right + left) / 2, abs=0.01)
    assert np.allclose(project(Scene((thing,), None, "sand", "day", camera, look_at), np.array(look_at))[:2], 64)
    assert pytest.approx(np.tan(np.deg2rad(FOV / 2))) == TANGENT


def test_the_canonical_caption_says_everything():
    for s in some("train"):
        assert parse(caption(s)) == Wish.of(s)
    s = Scene(
        (Thing("robot", "gold", -1, 0, 1, 0), Thing("house", "blue", 1, 0, 1, 0)), "left of", "snow", "sunset"
    )
    assert caption(s) == "a gold robot left of a blue house on snow at sunset"


def test_varied_captions_never_say_what_is_not_so():
    rng = np.random.default_rng(0)
    for s in some("train", 1500):
        text = caption(s, rng)
        wish = parse(text)
        order = [s.things.index(t) for t in s.things]
        if [t.kind for t in s.things] != list(wish.kinds):
            order = order[::-1]
        elif len(order) == 2 and s.things[0].kind == s.things[1].kind and wish.relation not in (None, s.relation):
            order = order[::-1]
        things = [s.things[i] for i in order]
        assert [t.kind for t in things] == list(wish.kinds), text
        if s.things[0].kind != s.things[-1].kind or len(order) == 1:
            assert all(f in (None, t.finish) for f, t in zip(wish.finishes, things, strict=True)), text
            flipped = OPPOSITE[s.relation] if order == [1, 0] else s.relation
            assert wish.relation in (None, flipped), text
        assert wish.place in (None, s.place) and wish.time in (None, s.time), text


def test_captions_leave_things_out_and_use_synonyms():
    rng = np.random.default_rng(1)
    texts = [caption(s, rng) for s in some("train", 1000, 1)]
    wishes = [parse(t) for t in texts]
    for name in ("place", "time"):
        assert 0.06 < np.mean([getattr(w, name) is None for w in wishes]) < 0.2
    assert any("sphere" in t for t in texts) and any("in daylight" in t for t in texts)


@pytest.mark.parametrize("prompt", ["", "a dog on grass", "a ball and a cube and a cone"])
def test_parse_refuses_what_names_no_thing_or_too_many(prompt):
    with pytest.raises(ValueError, match="name one or two of: ball, cube"):
        parse(prompt)


def test_a_near_miss_says_something_else():
    rng = np.random.default_rng(0)
    scenes = some("train", 500)
    changed = [caption(near_miss(s, rng)) != caption(s) for s in scenes]
    assert np.mean(changed) > 0.9  # two things of one finish, for instance, can be swapped without a change


def test_every_word_is_one_token(tmp_path):
    from transformers import CLIPTokenizer

    save_tokenizer(tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    for word in (*words(), *FREE_WORDS):
        assert len(tokenizer(word).input_ids) == 3, word
    ids = tokenizer("A hippo!").input_ids
    assert len(ids) > 6 and tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == "ahippo!"
    longest = max(
        len(tokenizer(caption(s, np.random.default_rng(i))).input_ids) for i, s in enumerate(some("train", 1000))
    )
    assert longest <= LENGTH


def test_the_vocabulary_is_the_same_in_every_run():
    code = "from companion.tabletop.tokenizer import vocabulary; print(vocabulary())"
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1


def test_unit_edges_of_the_cube_and_the_pyramid():
    assert len(unit_edges("cube")) == 12 and len(unit_edges("pyramid")) == 8
    assert all(np.hypot.reduce(np.subtract(a, b)) == pytest.approx(2) for a, b in unit_edges("cube"))


@pytest.mark.parametrize("shape", ["cone", "cylinder", "dome", "ring", "frustum", "pyramid"])
def test_meshes_are_closed_and_face_outwards(shape):
    v, f, n = mesh(shape)
    a, b, c = v[f[:, 0]], v[f[:, 1]], v[f[:, 2]]
    volume = np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6
    exact = {"cone": np.pi / 3, "cylinder": np.pi, "dome": 2 * np.pi / 3, "ring": 2 * np.pi**2 * 0.36**2,
    "pyramid": 4 / 3,
             "frustum": np.pi * (1 + 0.7 + 0.49) / 3}[shape]  # fmt: skip
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


# Rendering needs the extra [build].
render = pytest.importorskip("companion.tabletop.render", reason="the extra [build] is not installed")
needs_mitsuba = pytest.mark.skipif(
    not all(__import__("importlib.util").util.find_spec(m) for m in ("mitsuba", "oidn")),
    reason="the extra [build] is not installed",
)


def one(kind: str, finish: str = "red", **changes) -> Scene:
    pose = (30, 20, 0.1, -20, 40, 0.1) if kind == "robot" else ()
    return Scene((Thing(kind, finish, 0.0, 0.0, 1.2, 20.0, pose),), None, "grass", "day", seed=5, **changes)


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


def build_command(folder, *extra) -> list[str]:
    return [sys.executable, "-m", "companion.pretraining.command", *extra, "--folder", str(folder)]


@needs_mitsuba
@pytest.mark.slow
def test_renders_killed_and_resumed_equal_an_unbroken_build(tmp_path):
    args = ("renders", "--split", "val", "--count", "12", "--shard", "4", "--workers", "1")
    process = subprocess.Popen(build_command(tmp_path / "a", *args), stdout=subprocess.DEVNULL)
    first = dataset.shard_path(tmp_path / "a" / "renders", "val", 0)
    deadline = time.monotonic() + 300
    while not first.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert workers and not alive, "the workers draw on after their parent was killed"
    assert first.exists() and not dataset.shard_path(tmp_path / "a" / "renders", "val", 2).exists()
    for name in "ab":
        subprocess.run(build_command(tmp_path / name, *args), check=True, stdout=subprocess.DEVNULL)
    columns = ("picture", "depth", "normals", "segments", "joints", "boxes", "edges", "edge_counts", "scenes")
    a, b = (dataset.read(tmp_path / name / "renders", "val", columns) for name in "ab")
    assert len(a["picture"]) == 12
    assert all(np.array_equal(a[c], b[c]) for c in columns)


def test_reading_what_is_not_there_says_how_to_make_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="companion build renders --split train"):
        dataset.read(tmp_path, "train", ("picture",))
    with pytest.raises(ValueError, match="split='dev' is unknown; the splits are train"):
        next(dataset.build(tmp_path, "dev", 250))
    with pytest.raises(ValueError, match="count=7 is not a positive multiple of 250"):
        next(dataset.build(tmp_path, "val", 7))
