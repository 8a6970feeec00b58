"""The pose editor, the scribble pad and their panels without a browser: what Python gives, takes, refuses and draws."""

from __future__ import annotations

import asyncio
import base64
import io
import time

import numpy as np
import pytest
import torch
import traitlets
from PIL import Image

import companion
from companion import diffusion
from companion.conditions import skeletons
from companion.controlnet import Control, Controlled, as_controls, controlnet_of
from companion.models import seeded
from companion.tabletop.scene import BONES, JOINTS
from companion.widgets import PoseEditor, PoseToPicture, ScribblePad, ScribbleToPicture, base
from companion.widgets import controlnet as controlnet_panels
from companion.widgets.base import KEPT, LINE, VIEW
from companion.widgets.controlnet import BLANK, as_pose, parents, poses
from companion.widgets.painter import SIDE

HAND = JOINTS.index("left_hand")


@pytest.fixture(scope="module")
def pipe(tiny):
    return companion.load(tiny, device="cpu")


@pytest.fixture(scope="module")
def net(pipe):
    """A ControlNet that can be heard."""
    net = controlnet_of(pipe.unet, (8, 8, 8, 8), open_embedder=True).eval()
    with torch.no_grad():
        for conv in (*net.controlnet_down_blocks, net.controlnet_mid_block):
            conv.weight.copy_(0.5 * torch.randn(conv.weight.shape, generator=seeded(1)))
    return net


def kept(widget) -> np.ndarray:
    """The picture that the notebook keeps of a widget, with the text below it."""
    data = widget._repr_mimebundle_()
    data = data[0] if isinstance(data, tuple) else data
    assert data[VIEW]["model_id"] == widget.model_id and data["text/plain"] == f"{type(widget).__name__}()"
    sheet = Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("RGB")
    return np.asarray(sheet).astype(int)


class TestPoses:
    def test_they_are_the_robots_joints_in_the_picture(self):
        for name, pose in poses(64).items():
            assert pose.shape == (11, 3) and pose.dtype == np.float32 and pose[:, 2].all(), name
            assert pose[:, :2].min() > 3 and pose[:, :2].max() < 61
            assert np.allclose(pose[:, :2], poses(128)[name][:, :2] / 2)
        up, stand = poses()["arms up"], poses()["stand"]
        head, hands = JOINTS.index("head"), [JOINTS.index("left_hand"), JOINTS.index("right_hand")]
        assert (up[hands, 1] < up[head, 1]).all() and (stand[hands, 1] > stand[head, 1]).all()
        wave = poses()["wave"]
        assert wave[hands[1], 1] < wave[head, 1] < wave[hands[0], 1], "the right hand waves"

    def test_the_skeleton_hangs_on_its_hips(self):
        up = parents()
        assert [i for i, parent in enumerate(up) if parent < 0] == [JOINTS.index("hips")]
        hangs = {JOINTS[i]: JOINTS[parent] for i, parent in enumerate(up) if parent >= 0}
        assert {frozenset(pair) for pair in hangs.items()} == {frozenset(bone) for bone in BONES}
        assert hangs["left_hand"] == "left_elbow" and hangs["left_elbow"] == "left_shoulder"


class TestPoseEditor:
    def test_a_pose_goes_in_and_out(self):
        editor, pose = PoseEditor(), poses()["wave"]
        assert np.array_equal(editor.array, poses()["stand"])
        for form in (pose, pose.tolist(), torch.tensor(pose), pose.astype(np.float64)):
            editor.array = poses()["walk"]
            editor.array = form
            assert editor.array.dtype == np.float32 and np.array_equal(editor.array, pose)
        assert editor.home == pose.tolist(), "to which reset goes back"

    def test_a_pose_of_the_annotator_fits(self):
        """What is not seen may lie anywhere; any other third number than 0 means seen."""
        pose = poses()["stand"]
        pose[HAND] = -300, np.nan, 0
        pose[0, 2] = 0.7
        editor = PoseEditor(pose)
        assert editor.array[HAND].tolist() == [0, 64, 0] and editor.array[0, 2] == 1
        assert np.array_equal(skeletons(editor.array[None]), skeletons(pose[None]))

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (lambda pose: pose[:10], r"a pose of shape \(10, 3\); give \(11, 3\): x, y and 1 if seen, of head, neck"),
            (lambda pose: pose[:, :2], r"a pose of shape \(11, 2\)"),
            (
                lambda pose: pose + [100, 0, 0],
                r"head is at \(164, 3\d.*\), outside of a picture of 128 x 128; move it inside",
            ),
            (lambda pose: pose * [1, np.nan, 1], r"head is at \(64, nan\)"),
            (lambda pose: pose * [np.inf, 1, 1], r"head is at \(inf"),
        ],
    )
    def test_what_is_no_pose_is_refused_in_a_sentence(self, change, says):
        editor, wrong = PoseEditor(), change(poses()["stand"])
        with pytest.raises(ValueError, match=says):
            editor.array = wrong
        with pytest.raises(ValueError, match=says):
            PoseEditor(wrong)
        with pytest.raises(ValueError, match=says):
            PoseEditor(presets={"odd": wrong})
        with pytest.raises(traitlets.TraitError, match=says):
            editor.joints = wrong.tolist()
        assert np.array_equal(editor.array, poses()["stand"])

    def test_the_border_belongs_to_the_picture(self):
        pose = poses()["stand"]
        pose[HAND, :2] = 128, 0
        assert as_pose(pose, 128)[HAND].tolist() == [128, 0, 1]

    def test_what_the_browser_sends_is_taken(self):
        editor = PoseEditor()
        moved = poses()["wave"].astype(float).round(2).tolist()
        editor.set_trait("moving", moved)
        assert np.allclose(editor.latest, moved) and np.array_equal(editor.array, poses()["stand"])
        editor.set_trait("joints", moved)
        editor.set_trait("moving", [])
        assert np.allclose(editor.array, moved) and np.array_equal(editor.latest, editor.array)
        assert editor.home == poses()["stand"].tolist()
        with pytest.raises(traitlets.TraitError, match="give"):
            editor.joints = []

    def test_it_knows_the_skeleton_and_its_presets(self):
        editor = PoseEditor(size=64, presets={"mine": poses(64)["walk"]}, keep_lengths=False)
        assert editor.names == list(JOINTS) and editor.parents == parents() and not editor.keep_lengths
        assert [[JOINTS[i] for i in bone] for bone in editor.bones] == [list(bone) for bone in BONES]
        assert np.allclose(editor.presets["mine"], poses(64)["walk"])
        assert list(PoseEditor().presets) == ["stand", "arms up", "wave", "walk"]

    def test_it_leaves_a_picture_of_the_skeleton(self):
        grey = np.full((64, 64, 3), 200, np.uint8)
        pose = poses()["wave"]
        picture = kept(PoseEditor(pose, grey))[:SIDE, :SIDE]
        alone = skeletons(pose[None] * [SIDE / 128, SIDE / 128, 1], SIDE)[0].astype(int)
        line = alone.max(-1) == 255
        assert picture.shape == (SIDE, SIDE, 3) and np.abs(picture - np.maximum(alone, 70))[line].mean() < 12
        assert np.abs(picture[alone.max(-1) == 0] - 70).mean() < 3


class TestScribblePad:
    def lines(self) -> np.ndarray:
        lines = np.zeros((32, 48), np.uint8)
        lines[8, 4:40] = 255
        return lines

    def test_a_scribble_goes_in_and_out(self):
        pad = ScribblePad(self.lines())
        assert pad.array.dtype == np.uint8 and np.array_equal(pad.array, self.lines())
        for form in (self.lines() > 0, self.lines() / 255, torch.tensor(self.lines())[None]):
            pad.array = ~self.lines()
            pad.array = form
            assert np.array_equal(pad.array, self.lines())
        assert ScribblePad().array.shape == (128, 128) and not ScribblePad().array.any()
        assert ScribblePad(picture=np.zeros((32, 48, 3), np.uint8)).array.shape == (32, 48)

    def test_what_the_browser_sends_is_taken(self):
        pad = ScribblePad(size=32)
        drawn = np.zeros((32, 32), np.uint8)
        drawn[4] = 255
        pad.set_trait("mask", memoryview(drawn.tobytes()))
        assert np.array_equal(pad.array, drawn)

    def test_another_size_is_refused(self):
        pad = ScribblePad(size=32)
        says = r"a scribble of shape \(16, 32\) for a picture of 32 x 32; make them equal"
        with pytest.raises(ValueError, match=says):
            pad.array = np.zeros((16, 32))
        with pytest.raises(ValueError, match=r"a scribble of shape \(32, 48\) for a picture of 64 x 64"):
            ScribblePad(self.lines(), np.zeros((64, 64, 3), np.uint8))
        with pytest.raises(traitlets.TraitError, match="a scribble of 7 bytes for 32 x 32 pixels"):
            pad.mask = bytes(7)

    def test_its_brush_is_as_wide_as_the_lines_of_training(self):
        assert (ScribblePad().brush, ScribblePad(size=512).brush, ScribblePad(size=32).brush) == (2, 8, 1)

    def test_it_leaves_a_picture_of_the_lines(self):
        picture = kept(ScribblePad(self.lines(), np.full((32, 48, 3), 200, np.uint8), side=96))[:64, :96]
        assert picture.shape == (64, 96, 3)
        assert picture[16:18, 20:60].min() > 150 and np.abs(picture[30:] - 70).max() < 8


def expected(pipe, net, control, prompt, seed, scale, steps=2) -> torch.Tensor:
    heard = Controlled(pipe.unet, [Control(net, as_controls(control, 32), scale)])
    return diffusion.draw(pipe, prompt, seed, steps=steps, guidance_scale=2.0, unet=heard)[0]


def shown(panel) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(panel.picture.value)))


SETTINGS = {"seed": 3, "scale": 0.8, "steps": 2, "guidance": 2.0}


class TestPoseToPicture:
    def make(self, pipe, net, **options) -> PoseToPicture:
        return PoseToPicture(pipe, net, "ab", **SETTINGS, **options)

    def test_it_is_what_draw_draws_with_the_skeleton(self, pipe, net):
        panel = self.make(pipe, net)
        skeleton = skeletons(poses(32)["stand"][None], 32)[0]
        assert torch.equal(panel.result, expected(pipe, net, skeleton, "ab", 3, 0.8))
        assert panel.message.value.startswith("drawn in")
        before = panel.result
        panel.editor.array = poses(32)["walk"]
        skeleton = skeletons(poses(32)["walk"][None], 32)[0]
        assert torch.equal(panel.result, expected(pipe, net, skeleton, "ab", 3, 0.8))
        assert not torch.equal(panel.result, before)

    def test_a_new_controlnet_changes_nothing_yet(self, pipe):
        panel = self.make(pipe, controlnet_of(pipe.unet, (8, 8, 8, 8)))
        plain = diffusion.draw(pipe, "ab", 3, steps=2, guidance_scale=2.0)[0]
        assert torch.allclose(panel.result, plain, atol=1e-5)

    def test_every_control_draws_anew(self, pipe, net):
        panel = self.make(pipe, net)
        skeleton = skeletons(poses(32)["stand"][None], 32)[0]
        panel.seed.value, panel.scale.value, panel.prompt.value = 5, 1.5, "cd"
        assert torch.equal(panel.result, expected(pipe, net, skeleton, "cd", 5, 1.5))
        assert (panel.scale.min, panel.scale.max) == (0, 2)

    def test_a_joint_on_its_way_is_drawn_in_few_steps(self, pipe, net):
        panel = self.make(pipe, net, preview=1)
        pose = poses(32)["wave"]
        panel.editor.set_trait("moving", pose.tolist())
        skeleton = skeletons(pose[None], 32)[0]
        assert torch.equal(panel.result, expected(pipe, net, skeleton, "ab", 3, 0.8, steps=1))
        assert "in 1 steps, as a preview" in panel.message.value
        panel.editor.set_trait("joints", pose.tolist())
        panel.editor.set_trait("moving", [])
        assert torch.equal(panel.result, expected(pipe, net, skeleton, "ab", 3, 0.8))

    def test_without_previews_it_waits(self, pipe, net):
        panel = self.make(pipe, net, preview=None)
        before = panel.result
        panel.editor.set_trait("moving", poses(32)["wave"].tolist())
        assert panel.result is before

    def test_a_pose_without_joints_is_told_and_not_drawn(self, pipe, net, monkeypatch):
        panel = self.make(pipe, net)
        monkeypatch.setattr(panel, "_follow", lambda *args, **kwargs: pytest.fail("it draws"))
        panel.editor.array = poses(32)["stand"] * [1, 1, 0]
        assert panel.message.value.startswith("No joint is seen") and panel.result is None
        assert (shown(panel) == BLANK).all()

    def test_an_error_becomes_one_sentence(self, pipe, net, monkeypatch):
        panel = self.make(pipe, net)
        before = panel.picture.value

        def fails(*args, **kwargs):
            raise ValueError("the tokenizer\n is <gone>")

        monkeypatch.setattr(panel, "_follow", fails)
        panel.prompt.value = "ef"
        assert "the tokenizer is &lt;gone&gt;" in panel.message.value and panel.picture.value == before

    def test_it_says_that_it_draws(self, pipe, net, monkeypatch):
        panel, said = self.make(pipe, net), []
        panel.message.observe(lambda change: said.append(change["new"]), ["busy", "value"])
        panel.message.value = ""
        panel.seed.value = 8
        assert said[:2] == ["", True] and said[2].startswith("drawn in") and said[3:] == [False]
        script = str(panel.message._esm)
        assert '"role", "status"' in script and "aria-busy" in script

    def test_its_static_picture_shows_pose_and_result(self, pipe, net):
        panel = self.make(pipe, net)
        sheet = np.asarray(Image.open(io.BytesIO(panel.still())))
        assert np.array_equal(sheet[LINE:, :SIDE], np.asarray(panel.editor.preview()))
        assert np.array_equal(sheet[LINE:, -SIDE:], shown(panel)) and shown(panel).shape == (SIDE, SIDE, 3)
        lines = 3  # the prompt, what it says, and that it is a still picture
        assert kept(panel).shape == (round((SIDE + LINE) * KEPT / (2 * SIDE + 8)) + lines * LINE + 2, KEPT, 3)


class TestScribbleToPicture:
    def test_what_fails_before_the_first_line_is_one_sentence(self, pipe, net, monkeypatch):
        def follower(pipe, net):
            def follow(*_, **__):
                raise ValueError("there is no room")

            return follow

        monkeypatch.setattr(controlnet_panels, "follower", follower)
        panel = ScribbleToPicture(pipe, net, "ab", **SETTINGS)
        assert "there is no room" in panel.message.value and panel.result is None

    def test_a_scribble_is_followed_and_an_empty_one_is_not_drawn(self, pipe, net, monkeypatch):
        follow = []
        panel = ScribbleToPicture(pipe, net, "ab", **SETTINGS)
        assert panel.result is None and panel.message.value.startswith("Nothing is drawn on the pad yet")
        assert not panel.message.busy
        assert (shown(panel) == BLANK).all() and np.abs(kept(panel)[60:100, -20:] - BLANK).max() < 8
        lines = np.zeros((32, 32), np.uint8)
        lines[8:10, 4:28] = 255
        panel.editor.array = lines
        assert torch.equal(panel.result, expected(pipe, net, lines, "ab", 3, 0.8))
        monkeypatch.setattr(panel, "_follow", lambda *args, **kwargs: follow.append(args))
        panel.editor.array = np.zeros((32, 32))
        panel.seed.value = 4
        assert panel.result is None and not follow and "Nothing is drawn" in panel.message.value

    def test_the_first_scribble_and_a_picture_to_trace(self, pipe, net):
        lines = np.eye(32, dtype=bool)
        panel = ScribbleToPicture(pipe, net, "ab", lines, np.full((32, 32, 3), 90, np.uint8), **SETTINGS)
        assert torch.equal(panel.result, expected(pipe, net, panel.editor.array, "ab", 3, 0.8))
        assert panel.editor.picture[:4] == b"\x89PNG"


class TestTogether:
    """What the browser sends while a picture is drawn is drawn once."""

    def test_the_latest_state_is_drawn_once(self, pipe, net, monkeypatch):
        panel, drawn = PoseToPicture(pipe, net, "ab", **SETTINGS), []
        monkeypatch.setattr(
            panel, "_follow", lambda prompt, seed, control, scale, **_: drawn.append((prompt, seed)) or panel.result
        )

        async def browser() -> None:
            monkeypatch.setattr(base, "_loop_of_messages", asyncio.get_running_loop)
            for seed in range(10, 20):
                panel.seed.value = seed
                panel.editor.set_trait("moving", (poses(32)["stand"] + [seed / 10, 0, 0]).tolist())
            panel.prompt.value = "cd"
            panel.editor.set_trait("moving", [])
            assert drawn == []
            await asyncio.sleep(2 * base.PATIENCE)
            panel.seed.value = 30
            await asyncio.sleep(2 * base.PATIENCE)

        asyncio.run(browser())
        assert drawn == [("cd", 19), ("cd", 30)]

    def test_what_comes_without_end_does_not_keep_a_picture_waiting(self, pipe, net, monkeypatch):
        panel, drawn = PoseToPicture(pipe, net, "ab", **SETTINGS), []
        monkeypatch.setattr(panel, "_follow", lambda *args, **_: drawn.append(args) or panel.result)

        async def browser() -> None:
            monkeypatch.setattr(base, "_loop_of_messages", asyncio.get_running_loop)
            begin = asyncio.get_running_loop().time()
            while not drawn and asyncio.get_running_loop().time() - begin < 20 * base.PATIENCE:
                panel.editor.set_trait("moving", (poses(32)["stand"] + [len(drawn), 0, 0]).tolist())
                panel.seed.value = (panel.seed.value + 1) % 100
                await asyncio.sleep(base.PAUSE / 10)

        asyncio.run(browser())
        assert len(drawn) == 1

    @pytest.mark.slow
    def test_in_a_kernel(self, tmp_path):
        """Messages of the browser, twenty of which arrive while a picture is drawn; a cell does not wait."""
        from jupyter_client.manager import start_new_kernel

        started, go = tmp_path / "started", tmp_path / "go"
        setup = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(companion.ROOT)!r})
import ipywidgets as widgets
from companion.widgets.base import Panel
started, go = Path({str(started)!r}), Path({str(go)!r})

class Slow(Panel):
    def __init__(self):
        self.one, self.other, self.drawn = widgets.IntSlider(), widgets.IntSlider(), []
        super().__init__([self.one, self.other], 8)
        for control in (self.one, self.other):
            control.observe(lambda change: self.soon(self.draw), "value")

    def draw(self):
        self.drawn.append((self.one.value, self.other.value))
        started.touch()
        while not go.exists():
            time.sleep(0.01)

panel = Slow()
print(panel.one.comm.comm_id, panel.other.comm.comm_id)
"""
        manager, client = start_new_kernel(startup_timeout=120)

        def run(code: str) -> str:
            found = []
            client.execute_interactive(code, timeout=120, output_hook=lambda message: found.append(message["content"]))
            assert not any("ename" in content for content in found), found
            return "".join(content.get("text", "") for content in found).strip()

        def browser_sets(comm_id: str, value: int) -> None:
            data = {"method": "update", "state": {"value": value}, "buffer_paths": []}
            client.shell_channel.send(client.session.msg("comm_msg", {"comm_id": comm_id, "data": data}))

        def wait_for(true) -> None:
            end = time.monotonic() + 60
            while not true():
                assert time.monotonic() < end
                time.sleep(0.05)

        try:
            one, other = run(setup).split()
            browser_sets(one, 1)
            wait_for(started.exists)
            for value in range(2, 12):
                browser_sets(one, value)
                browser_sets(other, 5 * value)
            time.sleep(0.2)  # to arrive
            go.touch()
            wait_for(lambda: run("print(len(panel.drawn))") != "1")
            assert run("print(panel.drawn)") == "[(1, 0), (11, 55)]"
            # A cell finds on its next line what it has set.
            assert run("panel.one.value = 50; print(panel.drawn[-1])") == "(50, 55)"
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)


def test_no_random_state_is_left_behind(pipe, net):
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    PoseToPicture(pipe, net, "ab", **SETTINGS)
    assert torch.equal(torch.rand(3), wanted)


def test_the_scripts_are_part_of_the_package():
    for editor in (PoseEditor(), ScribblePad()):
        assert "pointerdown" in str(editor._esm) and "touch-action: none" in str(editor._css)
        assert "http" not in str(editor._esm).replace("http://www.w3.org/2000/svg", "") + str(editor._css)
