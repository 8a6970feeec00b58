"""The guidance slider: one prompt and one seed at several guidance scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import ipywidgets as widgets

from companion.figures import as_pil
from companion.widgets.base import MARGIN, Panel, side_by_side
from companion.widgets.drawer import Drawer

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from PIL import Image

SIDE = 288


class GuidanceSlider(Panel):
    """The picture at each of several guidance scales, beside the picture without guidance.

    All are drawn together when the prompt or the seed changes. Raises ValueError for fewer than two scales.
    """

    def __init__(
        self,
        pipe: StableDiffusionPipeline,
        prompt: str,
        seed: int = 0,
        steps: int = 12,
        scales: Sequence[float] = (1, 1.5, 2, 3, 4, 6, 8, 12, 16),
    ) -> None:
        if len(scales) < 2:
            raise ValueError(f"{len(scales)} guidance scales leave nothing to slide over; give two or more")
        self._pipe, self._steps, self.scales = pipe, steps, list(scales)
        self._drawer = Drawer(pipe)
        last, options = len(self.scales) - 1, self.options()
        self.slider = widgets.IntSlider(
            last // 2, 0, last, description="guidance", readout=False, **options | {"continuous_update": True}
        )
        self.prompt = widgets.Text(prompt, description="prompt", **options)
        self.seed = widgets.IntSlider(seed, 0, 99, description="seed", **options)
        super().__init__([self.slider, self.prompt, self.seed], 2 * SIDE + MARGIN, reader=pipe)
        self.watch(self.slider, self.choose, quick=True)
        for control in (self.prompt, self.seed):
            self.watch(control, self.draw)
        self.attempt(self.draw)

    def draw(self) -> None:
        """Draw the picture at every scale: the chosen one first, which is shown while the others are drawn."""
        from companion.diffusion import draw, steady

        settings = {"steps": self._steps, "scheduler": steady(self._pipe.scheduler), "unet": self._drawer.unet}
        found: dict[float, Image.Image] = {}
        chosen = self.scales[self.slider.value]
        for scales in ([1.0, chosen], self.scales):
            new = [scale for scale in dict.fromkeys(scales) if scale not in found]
            if new:
                drawn = draw(self._pipe, self.prompt.value, self.seed.value, guidance_scale=new, **settings)
                found |= {scale: as_pil(picture, SIDE) for scale, picture in zip(new, drawn, strict=True)}
            self._show(found[1.0], found[chosen], chosen)
        self.plain, self.pictures = found[1.0], [found[scale] for scale in self.scales]

    def choose(self) -> None:
        """Show the picture at the scale that the slider is at."""
        self._show(self.plain, self.pictures[self.slider.value], self.scales[self.slider.value])

    def _show(self, plain: Image.Image, picture: Image.Image, scale: float) -> None:
        sheet = side_by_side([plain, picture], ["guidance 1 (none)", f"guidance {scale:g}"])
        self.show(sheet, f"guidance {scale:g}, {self._steps} steps")
