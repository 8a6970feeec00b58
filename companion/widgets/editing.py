"""Panels for editing: a mask painted by mouse or finger, a slider for strength, and one between before and after."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from companion.figures import as_array, as_pil
from companion.models import GUIDANCE
from companion.widgets.base import MARGIN, Panel, png, side_by_side
from companion.widgets.drawer import Drawer
from companion.widgets.live_slider import LiveIntSlider, LiveSlider
from companion.widgets.painter import SIDE, Painter

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

PAINT = (230, 30, 140)  # as in painter.js


class MaskPainter(Painter):
    """A picture to paint a mask on: brush, eraser (or Shift), undo, redo, clear; mouse, pen, touch, or the arrow keys.

    `array` is the mask as booleans (H, W) in the picture's pixels, updated after each stroke. It can also be set, so a
    notebook runs without a mouse. The browser can undo the last 50 strokes.

    Args:
        picture: PIL, uint8 (H, W, 3), or floats (3, H, W) in [-1, 1].
        mask: the initial mask (H, W): booleans, uint8 (128 and up count) or floats (0.5 and up); empty by default.
        brush: its diameter in pixels of the picture; an eighth of the width by default.
        side: width on the screen, in pixels.
    Raises:
        ValueError: for a mask of another size than the picture's.
    """

    def __init__(self, picture: Any, mask: Any = None, brush: int | None = None, side: int = SIDE) -> None:
        self._image = as_pil(picture)
        width, height = self._image.size
        super().__init__(width, height, brush or max(2, width // 8), side, picture=png(self._image))
        if mask is not None:
            self.array = mask

    @classmethod
    def from_array(cls, picture: Any, mask: Any, **options: Any) -> MaskPainter:
        """A painter that starts with a mask (H, W)."""
        return cls(picture, mask, **options)

    @property
    def array(self) -> np.ndarray:
        """The mask, booleans (H, W): True where something new is to be drawn."""
        return self.painted()

    @array.setter
    def array(self, mask: Any) -> None:
        self.paint(mask)

    def preview(self) -> Image.Image:
        """What the browser shows: the picture, with the mask over it."""
        array = np.asarray(self._image).astype(float)
        array[self.array] = 0.45 * array[self.array] + 0.55 * np.array(PAINT)
        return as_pil(array.astype(np.uint8), round(self.width * self.scale))


class Inpainter(Panel):
    """Paint a mask, and something new is drawn inside it; outside, the picture stays as it was, pixel for pixel.

    It redraws after each stroke and each change of the prompt, strength, seed or feather.

    Args:
        pipe: its U-Net has 4 input channels, or 9 if it was trained to inpaint.
        picture: (3, H, W) in [-1, 1]; both sides multiples of 8.
        mask: the initial mask (H, W).
    """

    def __init__(
        self,
        pipe: StableDiffusionPipeline,
        picture: Tensor,
        prompt: str,
        mask: Any = None,
        *,
        seed: int = 0,
        strength: float = 1.0,
        steps: int = 12,
        guidance: float = GUIDANCE,
    ) -> None:
        options = self.options()
        self._pipe, self._source, self._steps, self._guidance = pipe, picture, steps, guidance
        self._drawer = Drawer(pipe)
        self.result = picture
        self.painter = MaskPainter(picture, mask)
        self.strength = widgets.FloatSlider(strength, min=0.1, max=1, step=0.05, description="strength", **options)
        self.prompt = widgets.Text(prompt, description="prompt", **options)
        self.seed = widgets.IntSlider(seed, 0, 99, description="seed", **options)
        self.feather = widgets.IntSlider(0, 0, 8, description="feather", **options)
        controls = [self.seed, self.strength, self.prompt, self.feather]
        super().__init__(controls, SIDE, first={self.painter: SIDE}, reader=pipe)
        self.watch(self.painter, self.draw, "mask")
        for control in controls:
            self.watch(control, self.draw)
        self.attempt(self.draw)

    def draw(self) -> None:
        """Draw inside the mask. `result` is the picture (3, H, W), or the source when nothing is painted."""
        from companion.img2img_inpainting import as_mask, composite, inpaint

        text = "Nothing is painted yet."
        self.result = self._source
        if self.painter.array.any():
            mask = as_mask(self.painter.array, *self._source.shape[-2:])
            *_, last = inpaint(
                self._pipe,
                self._source,
                mask,
                self.prompt.value,
                self.seed.value,
                strength=self.strength.value,
                steps=self._steps,
                guidance_scale=self._guidance,
                unet=self._drawer.unet,
                cover="any",  # thin strokes count; compositing removes what is drawn beyond them
            )
            drawn = self._drawer.decode(last.latents)
            self.result = composite(self._source[None], drawn, mask, self.feather.value)[0]
            outside = ~self.painter.array
            change = np.abs(as_array(self.result).astype(int) - as_array(self._source).astype(int))
            text = f"{self.painter.array.mean():.0%} painted; largest change outside: {change[outside].max(initial=0)}"
        self.show(as_pil(self.result, SIDE), text)

    def still(self) -> bytes:
        pictures = [self.painter.preview(), as_pil(self.result, SIDE)]
        return png(side_by_side(pictures, ["the mask", "drawn anew inside it"]))


class StrengthSlider(Panel):
    """img2img live: the source, and the result at the strength that the slider sets.

    While a slider is on its way, it draws in about a quarter of the steps.

    Args:
        picture: (3, H, W) in [-1, 1]; both sides multiples of 8.
    """

    def __init__(
        self,
        pipe: StableDiffusionPipeline,
        picture: Tensor,
        prompt: str,
        *,
        seed: int = 0,
        strength: float = 0.6,
        steps: int = 20,
        guidance: float = GUIDANCE,
    ) -> None:
        self._pipe, self._source, self._steps, self._guidance = pipe, picture, steps, guidance
        self._drawer = Drawer(pipe)
        self.strength = LiveSlider(label="strength", value=strength)
        self.prompt = widgets.Text(prompt, description="prompt", **self.options())
        self.seed = LiveIntSlider(label="seed", value=seed, max=max(99, seed))
        controls = [self.strength, self.prompt, self.seed]
        super().__init__(controls, 2 * SIDE + MARGIN, reader=pipe)
        for control in controls:
            self.watch(control, self.draw)
        for slider in (self.strength, self.seed):
            self.watch(slider, self.draw, "held")
        self.attempt(self.draw)

    def draw(self) -> None:
        """Draw with the controls as they stand. The result is the source if the strength is too low for one step."""
        from companion.diffusion import steady
        from companion.img2img_inpainting import img2img

        strength, remaining = self.strength.value, int(self._steps * self.strength.value)
        settings: dict[str, Any] = {"strength": strength, "steps": self._steps}
        text = f"strength {strength:.2f}: {remaining} of {self._steps} steps are taken"
        if self.strength.held or self.seed.held:
            taken, steps = few_steps(strength, self._steps)
            if taken < remaining:
                settings = {"strength": taken / steps, "steps": steps, "scheduler": steady(self._pipe.scheduler)}
                text += f", {taken} in this preview"
        self.result = self._source
        if remaining:
            prompt, seed, unet = self.prompt.value, self.seed.value, self._drawer.unet
            *_, last = img2img(
                self._pipe, self._source, prompt, seed, guidance_scale=self._guidance, unet=unet, **settings
            )
            self.result = self._drawer.decode(last.latents)[0]
        pictures = [as_pil(self._source, SIDE), as_pil(self.result, SIDE)]
        self.show(side_by_side(pictures, ["source", f"strength {strength:.2f}"]), text)


def few_steps(strength: float, steps: int) -> tuple[int, int]:
    """(m, n) for a preview: the last m of n steps begin at about this strength, and m is about a quarter of usual.

    With a quarter of all steps, few strengths would be told apart: 5 steps begin at 0.2, 0.4, 0.6, 0.8 or 1.
    """
    remaining, part = int(steps * strength), Fraction(strength).limit_denominator(8)
    if remaining <= 4:
        return remaining, steps
    times = math.ceil(max(3, remaining // 4) / part.numerator)
    return times * part.numerator, times * part.denominator


class Comparison(Panel):
    """Two pictures of equal proportions (else ValueError) in one frame, left and right of a line that can be moved."""

    def __init__(self, before: Any, after: Any, titles: Sequence[str] = ("before", "after"), side: int = 384) -> None:
        self.before, self.after = as_pil(before, side), as_pil(after, side)
        if self.before.size != self.after.size:
            sizes = " and ".join(f"{p.width} x {p.height}" for p in (as_pil(before), as_pil(after)))
            raise ValueError(f"the pictures have {sizes} pixels; only equal proportions can lie on each other")
        self.titles = tuple(titles)
        width, _ = self.before.size
        self.slider = widgets.IntSlider(50, 0, 100, readout=False, layout={"width": "auto"})
        super().__init__([self.slider], width, beside=0)
        self.watch(self.slider, self.draw, quick=True)
        self.draw()

    def draw(self) -> None:
        """Show both, divided where the slider stands."""
        width, height = self.before.size
        line = round(self.slider.value / 100 * width)
        sheet = self.after.copy()
        sheet.paste(self.before.crop((0, 0, line, height)), (0, 0))
        if 0 < line < width:
            ImageDraw.Draw(sheet).line([(line, 0), (line, height)], fill=(255, 255, 255), width=2)
        self.show(sheet, f"{self.titles[0]} left of the line, {self.titles[1]} right of it")
