"""Panels for ControlNets: a skeleton to drag, a pad to scribble on, and the pictures that follow them."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
import numpy as np
import traitlets
from PIL import Image
from torch import Tensor

from companion import diffusion
from companion.conditions import skeletons
from companion.controlnet import follower
from companion.figures import as_pil
from companion.models import GUIDANCE
from companion.pose import robot_joints
from companion.tabletop.scene import BONES, JOINTS
from companion.widgets.base import Panel, png, side_by_side
from companion.widgets.painter import SIDE, Editor, Painter, script

if TYPE_CHECKING:
    from diffusers import ControlNetModel, StableDiffusionPipeline

FAINT = 0.35  # how much is seen of a picture to trace; as in the scripts
BLANK = (128, 128, 128)

#: Poses of the robot by name (see `tabletop.scene.Thing`); all are within what training pictures show.
ANGLES = {
    "stand": (-65.0, 15.0, 0.03, -65.0, 15.0, 0.03),
    "arms up": (65.0, 10.0, 0.05, 65.0, 10.0, 0.05),
    "wave": (-65.0, 15.0, 0.04, 20.0, 70.0, 0.04),
    "walk": (-30.0, -45.0, 0.2, -20.0, 55.0, 0.08),
}


def poses(size: int = 128) -> dict[str, np.ndarray]:
    """The robot in some poses by name, seen from in front, all its joints in sight: float32 (11, 3) each.

    They are in pixels of a picture of `size` x `size`.
    """
    return {name: robot_joints(angles, size) for name, angles in ANGLES.items()}


def parents(root: str = "hips") -> list[int]:
    """For each of `JOINTS` the one that it hangs on, when the skeleton is held at `root`; -1 for the root."""
    found, edge = {root: -1}, [root]
    for name in edge:
        for bone in BONES:
            if name in bone:
                other = bone[1 - bone.index(name)]
                if other not in found:
                    found[other] = JOINTS.index(name)
                    edge.append(other)
    return [found[name] for name in JOINTS]


def as_pose(pose: Any, size: int) -> np.ndarray:
    """Joints in any usual form as float32 (11, 3): x and y in pixels, and 1 if seen, else 0.

    What is not seen may be anywhere, or nowhere; it is put into the picture.

    Raises:
        ValueError: for another shape, or a joint that is to be seen outside of a picture of `size` x `size`.
    """
    array = np.array(pose.detach().cpu() if hasattr(pose, "detach") else pose, np.float32)
    if array.shape != (len(JOINTS), 3):
        raise ValueError(
            f"a pose of shape {array.shape}; give ({len(JOINTS)}, 3): x, y and 1 if seen, of {', '.join(JOINTS)}"
        )
    array[:, 2] = np.nan_to_num(array[:, 2]) > 0
    for name, (x, y, seen) in zip(JOINTS, array.tolist(), strict=True):
        if seen and not (0 <= x <= size and 0 <= y <= size):  # also false for what is not a number
            raise ValueError(
                f"{name} is at ({x:g}, {y:g}), outside of a picture of {size} x {size}; move it inside, or give it a 0 "
                "as its third number, so that it is not seen"
            )
    array[:, :2] = np.nan_to_num(array[:, :2], nan=size / 2, posinf=size, neginf=0).clip(0, size)
    return array


class PoseEditor(Editor):
    """A skeleton whose joints are dragged: by mouse, pen or touch, or with Tab and the arrow keys.

    `array` is the pose, updated when a joint is let go; `moving` is the one on the way there, several times a second.
    The browser has undo and redo, mirror, reset, and buttons for poses.

    Args:
        pose: (11, 3), as in the condition "openpose": x and y of each joint in pixels, and 1 if it is seen, else 0.
            Standing by default.
        picture: faint behind the skeleton; PIL, uint8 (H, W, 3), or floats (3, H, W) in [-1, 1].
        size: side in pixels of the picture that the pose is for.
        presets: poses by name, a button for each; those of `poses` by default.
        keep_lengths: limbs turn, and keep their lengths; a box in the browser, too.
        side: width on the screen, in pixels.
    Raises:
        ValueError: for poses of another shape, or with a joint outside of the picture (see `as_pose`).
    """

    _esm = script("pose_editor.js")
    size = traitlets.Int(128).tag(sync=True)
    joints = traitlets.List().tag(sync=True)
    moving = traitlets.List().tag(sync=True)
    home = traitlets.List().tag(sync=True)
    presets = traitlets.Dict().tag(sync=True)
    keep_lengths = traitlets.Bool(True).tag(sync=True)
    names = traitlets.List(list(JOINTS)).tag(sync=True)
    bones = traitlets.List([[JOINTS.index(a), JOINTS.index(b)] for a, b in BONES]).tag(sync=True)
    parents = traitlets.List(parents()).tag(sync=True)

    def __init__(
        self,
        pose: Any = None,
        picture: Any = None,
        *,
        size: int = 128,
        presets: Mapping[str, Any] | None = None,
        keep_lengths: bool = True,
        side: int = SIDE,
    ) -> None:
        named = {name: as_pose(p, size).tolist() for name, p in (poses(size) if presets is None else presets).items()}
        first = as_pose(poses(size)["stand"] if pose is None else pose, size).tolist()
        self._image = None if picture is None else as_pil(picture)
        super().__init__(
            size=size,
            scale=side / size,
            presets=named,
            joints=first,
            home=first,
            keep_lengths=keep_lengths,
            picture=png(self._image) if self._image else b"",
        )

    @traitlets.validate("joints", "moving")
    def _a_pose(self, proposal: dict[str, Any]) -> list:
        value = proposal["value"]
        if not value and proposal["trait"].name == "moving":
            return value
        try:
            return as_pose(value, self.size).tolist()
        except ValueError as error:
            raise traitlets.TraitError(str(error)) from None

    @property
    def array(self) -> np.ndarray:
        """The pose, float32 (11, 3)."""
        return np.array(self.joints, np.float32)

    @array.setter
    def array(self, pose: Any) -> None:
        self.home = self.joints = as_pose(pose, self.size).tolist()

    @property
    def latest(self) -> np.ndarray:
        """The pose, float32 (11, 3), as it is now, also while a joint is on its way."""
        return np.array(self.moving or self.joints, np.float32)

    def preview(self) -> Image.Image:
        side = round(self.size * self.scale)
        pose = self.array * [side / self.size, side / self.size, 1]
        return _over(self._image, skeletons(pose[None], side)[0])


class ScribblePad(Painter):
    """A black pad to draw white lines on: brush, eraser (or Shift), undo, redo, clear; mouse, pen, touch, or keys.

    `array` is the scribble, uint8 (H, W), white (255) on black (0), updated after each stroke; it can also be set.

    Args:
        lines: the first scribble (H, W): booleans, uint8 (128 and up count) or floats (0.5 and up); empty by default.
        picture: faint below the lines, to trace; PIL, uint8 (H, W, 3), or floats (3, H, W) in [-1, 1].
        size: side in pixels, where neither `lines` nor a picture tells.
        brush: its diameter in these pixels; a 64th of the width by default, as scribbles for training have.
        side: width on the screen, in pixels.
    Raises:
        ValueError: for lines of another size than the picture's.
    """

    def __init__(
        self, lines: Any = None, picture: Any = None, *, size: int = 128, brush: int | None = None, side: int = SIDE
    ) -> None:
        self._image = None if picture is None else as_pil(picture)
        width, height = self._image.size if self._image else (size, size)
        if lines is not None and self._image is None:
            height, width = np.shape(lines)[-2:]
        traits = {"mode": "scribble", "picture": png(self._image) if self._image else b""}
        super().__init__(width, height, brush or max(1, width // 64), side, **traits)
        if lines is not None:
            self.array = lines

    @property
    def array(self) -> np.ndarray:
        """The scribble, uint8 (H, W): 255 where a line is, else 0."""
        return self.painted().astype(np.uint8) * 255

    @array.setter
    def array(self, lines: Any) -> None:
        self.paint(lines)

    def preview(self) -> Image.Image:
        side = round(self.width * self.scale), round(self.height * self.scale)
        lines = Image.fromarray(self.array).resize(side, Image.Resampling.BILINEAR)
        return _over(self._image, np.repeat(np.asarray(lines)[..., None], 3, -1))


def _over(picture: Image.Image | None, drawn: np.ndarray) -> Image.Image:
    """What is drawn on black, (H, W, 3), over a faint picture."""
    if picture is None:
        return as_pil(drawn)
    faint = FAINT * np.asarray(picture.convert("RGB").resize(drawn.shape[1::-1], Image.Resampling.LANCZOS))
    return as_pil(np.maximum(drawn, faint.astype(np.uint8)))


# ---- Panels ----------------------------------------------------------------------------------------------------------


class Following(Panel):
    """An editor, the picture that follows what is made in it, and the controls, side by side.

    It draws when the editor or a control changes; what changes while it draws is drawn next, but only its latest state.

    Attributes:
        editor: what the picture follows.
        result: the picture (3, H, W) in [-1, 1]; None while there is nothing to follow.
    """

    name, nothing = "control", "There is nothing to follow yet."
    editor: Any

    def __init__(
        self,
        pipe: StableDiffusionPipeline,
        net: ControlNetModel,
        prompt: str,
        *,
        seed: int = 0,
        scale: float = 1.0,
        steps: int = 20,
        guidance: float = GUIDANCE,
    ) -> None:
        options = self.options()
        self._follow, self._steps, self._guidance = follower(pipe, net), steps, guidance
        self._scheduler = pipe.scheduler
        self.result: Tensor | None = None
        self.prompt = widgets.Text(prompt, description="prompt", **options)
        self.seed = widgets.IntSlider(seed, 0, 99, description="seed", **options)
        self.scale = widgets.FloatSlider(scale, min=0, max=2, step=0.05, description="scale", **options)
        controls = [self.prompt, self.seed, self.scale]
        super().__init__(controls, SIDE, first={self.editor: SIDE}, reader=pipe)
        for control in controls:
            self.watch(control, self.draw)
        self.attempt(self.draw)
        if not self.control().any():  # compiled now, so that the first line or joint need not wait for it
            white = np.full_like(self.control(), 255)
            self.attempt(lambda: self._follow(prompt, seed, white, scale, steps=1, guidance_scale=guidance))

    def control(self) -> np.ndarray:
        """The control picture: uint8 (H, W, 3) or (H, W); all black when there is nothing to follow."""
        raise NotImplementedError

    def steps(self) -> int:
        """How many steps the next picture takes."""
        return self._steps

    def draw(self) -> None:
        """Draw with the controls as they stand."""
        control, steps = self.control(), self.steps()
        if not control.any():
            self.result = None
            self.show(Image.new("RGB", (SIDE, SIDE), BLANK), self.nothing)
            return
        begin = time.perf_counter()
        settings = {"steps": steps, "guidance_scale": self._guidance}
        if steps != self._steps:  # a preview has too few for a sampler that adds noise
            settings["scheduler"] = diffusion.steady(self._scheduler)
        self.result = self._follow(self.prompt.value, self.seed.value, control, self.scale.value, **settings)
        quick = "" if steps == self._steps else f" in {steps} steps, as a preview"
        self.show(as_pil(self.result, SIDE), f"drawn in {time.perf_counter() - begin:.1f} s{quick}")

    def still(self) -> bytes:
        drawn = Image.open(io.BytesIO(super().still())) if self.picture.value else Image.new("RGB", (SIDE, SIDE), BLANK)
        return png(side_by_side([self.editor.preview(), drawn.convert("RGB")], [self.name, "drawn"]))


class PoseToPicture(Following):
    """Drag a skeleton's joints, and the robot that is drawn follows.

    Args:
        net: a ControlNet for the condition "openpose".
        pose: the first one, (11, 3); see `PoseEditor`.
        preview: steps of the pictures that are drawn while a joint is on its way; None to wait until it is let go.
        options: `seed`, `scale` (what the ControlNet's residuals are multiplied by, 0 to 2), `steps`, `guidance`.
    """

    name, nothing = "the pose", "No joint is seen: show one, with H or a double click, or choose a pose."

    def __init__(
        self,
        pipe: StableDiffusionPipeline,
        net: ControlNetModel,
        prompt: str,
        pose: Any = None,
        picture: Any = None,
        *,
        preview: int | None = 6,
        **options: Any,
    ) -> None:
        self.editor = PoseEditor(pose, picture, size=diffusion.picture_size(pipe))
        self._preview = preview
        super().__init__(pipe, net, prompt, **options)
        self.watch(self.editor, self.draw, "joints")
        if preview:
            self.watch(self.editor, self.draw, "moving")

    def control(self) -> np.ndarray:
        return skeletons(self.editor.latest[None], self.editor.size)[0]

    def steps(self) -> int:
        return self._preview if self._preview and self.editor.moving else self._steps


class ScribbleToPicture(Following):
    """Scribble white lines on black, and a picture with these outlines is drawn.

    Args:
        net: a ControlNet for the condition "scribble".
        lines: the first scribble (H, W); see `ScribblePad`.
        picture: to trace.
        options: `seed`, `scale` (what the ControlNet's residuals are multiplied by, 0 to 2), `steps`, `guidance`.
    """

    name, nothing = "the scribble", "Nothing is drawn on the pad yet: draw a line with the mouse or a finger."

    def __init__(
        self,
        pipe: StableDiffusionPipeline,
        net: ControlNetModel,
        prompt: str,
        lines: Any = None,
        picture: Any = None,
        **options: Any,
    ) -> None:
        self.editor = ScribblePad(lines, picture, size=diffusion.picture_size(pipe))
        super().__init__(pipe, net, prompt, **options)
        self.watch(self.editor, self.draw, "mask")

    def control(self) -> np.ndarray:
        return self.editor.array
