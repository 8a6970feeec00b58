"""The denoising scrubber: every step of a drawing, under one slider."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import ipywidgets as widgets
import numpy as np
from PIL import Image
from torch import Tensor

from companion.figures import as_pil
from companion.widgets.base import MARGIN, Panel, side_by_side

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from companion.diffusion import Step

SIDE = 224


class Scrubber(Panel):
    """A slider over the steps of `companion.diffusion.sample`: latents, what they decode to, and predicted x0.

    All frames are made together with the panel, so the slider answers without delay. The last frame is the result.

    Args:
        pipe: decodes the latents.
        steps: what `sample` yielded (ValueError if empty); only the first picture of a batch is shown.
    """

    def __init__(self, pipe: StableDiffusionPipeline, steps: Sequence[Step]) -> None:
        from companion.diffusion import decode

        if not steps:
            raise ValueError("there are no steps to show: give list(sample(...))")
        noisy = [s.noisy[:1] for s in steps] + [steps[-1].latents[:1]]
        x0 = [s.x0[:1] for s in steps] + [steps[-1].latents[:1]]
        seen = [decode(pipe, part)[0] for part in noisy]
        believed = [decode(pipe, part)[0] for part in x0]
        self._labels = [f"step {s.index} of {len(steps)}, timestep {s.timestep:.0f}" for s in steps]
        self._labels.append(f"after all {len(steps)} steps")
        self.frames = [
            side_by_side(
                [channels(z[0]), as_pil(a, SIDE), as_pil(b, SIDE)],
                ["latents, 4 channels", "latents, decoded", "predicted x0, decoded"],
            )
            for z, a, b in zip(noisy, seen, believed, strict=True)
        ]
        last = len(steps)
        flexible = widgets.Layout(flex="1 1 200px", width="auto")
        self.slider = widgets.IntSlider(last // 2, 0, last, layout=flexible)
        self.play = widgets.Play(value=last // 2, min=0, max=last, interval=300)
        self.link = widgets.jslink((self.play, "value"), (self.slider, "value"))
        row = widgets.HBox([self.play, self.slider], layout=widgets.Layout(width="100%", flex_flow="row wrap"))
        super().__init__([row], 3 * SIDE + 2 * MARGIN, beside=0)
        self.watch(self.slider, self.scrub, quick=True)
        self.scrub()

    def scrub(self) -> None:
        """Show the step that the slider is at."""
        self.show(self.frames[self.slider.value], self._labels[self.slider.value])


def channels(latents: Tensor, side: int = SIDE, limit: float = 3.0) -> Image.Image:
    """The first four channels of latents (C, h, w) as grey squares, from -limit (black) to limit (white)."""
    z = latents.detach().float().cpu().numpy()[:4]
    z = np.concatenate([z, np.zeros((4 - len(z), *z.shape[1:]), z.dtype)])
    grey = ((z / limit).clip(-1, 1) * 127.5 + 127.5).astype(np.uint8)
    tiles = [Image.fromarray(c).resize((side // 2, side // 2), Image.Resampling.NEAREST) for c in grey]
    sheet = Image.new("RGB", (side, side))
    for i, tile in enumerate(tiles):
        sheet.paste(tile.convert("RGB"), ((i % 2) * (side // 2), (i // 2) * (side // 2)))
    return sheet
