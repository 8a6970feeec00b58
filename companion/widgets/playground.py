"""The playground: a prompt, three sliders, and what the judge reads in the picture."""

from __future__ import annotations

import html
import random
import time
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from companion.diffusion import draw, steady
from companion.fast import Fast, faster
from companion.figures import as_pil
from companion.models import GUIDANCE, seeded
from companion.tabletop.caption import caption, parse
from companion.tabletop.splits import SPLITS, sample_scene
from companion.widgets.base import Panel
from companion.widgets.live_slider import LiveIntSlider, LiveSlider, preview_steps

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from PIL import Image

    from companion.tabletop.caption import Wish
    from companion.tabletop.judge import Reading

SIDE = 384  # pixels on the screen


class Playground(Panel):
    """Redraws the picture when the prompt, the seed, the number of steps or the guidance changes.

    While a slider is on its way, it draws in a quarter of the steps.

    Args:
        pipe: a stock pipeline. If it draws 128 pixels, as the miniature does, the judge reads its pictures.
        prompt, seed, steps, guidance: initial values.
    """

    def __init__(
        self, pipe: StableDiffusionPipeline, prompt: str, seed: int = 0, steps: int = 20, guidance: float = GUIDANCE
    ) -> None:
        self.prompt = widgets.Text(prompt, description="prompt", **self.options())
        self.seed = LiveIntSlider(label="seed", value=seed, max=max(99, seed))
        self.steps = LiveIntSlider(label="steps", value=steps, min=1, max=max(50, steps))
        self.guidance = LiveSlider(label="guidance", value=guidance, min=1, max=max(16, guidance), step=0.5)
        self.another = widgets.Button(description="Another prompt", icon="refresh")
        self._sliders = [self.seed, self.steps, self.guidance]
        self._pipe, self._judged = faster(pipe), pipe.unet.config.sample_size * pipe.vae_scale_factor == 128
        controls = [self.prompt, *self._sliders, *([self.another] if self._judged else [])]
        super().__init__(controls, SIDE, reader=pipe)
        for control in (self.prompt, *self._sliders):
            self.watch(control, self.draw)
        for slider in self._sliders:
            self.watch(slider, self.draw, "held")
        self.another.on_click(lambda button: self.surprise())
        self.attempt(self.draw)

    def surprise(self) -> None:
        """Set the prompt to a random scene of the miniature world, which also draws it."""
        first, count = SPLITS["test"]
        self.prompt.value = caption(sample_scene(first + random.randrange(count)))

    def draw(self) -> None:
        """Draw with the controls as they stand."""
        begin, steps = time.perf_counter(), self.steps.value
        held = any(slider.held for slider in self._sliders)
        few = preview_steps(steps) if held else steps
        picture = self._picture(few, few < steps)
        text = f"{time.perf_counter() - begin:.1f} s"
        if few < steps:
            text += f" for {few} of {steps} steps, as a preview"
        if self._judged:
            text = f"{self._verdict(picture)}<br>{text}"
        self.show(as_pil(picture, SIDE), text)

    def _picture(self, steps: int, quick: bool) -> Image.Image:
        """quick: with too few steps for a sampler that adds noise."""
        drawer, prompt, seed = self._pipe, self.prompt.value, self.seed.value
        settings: dict[str, Any] = {"guidance_scale": self.guidance.value}
        if quick and not isinstance(drawer, Fast):
            return as_pil(draw(drawer, prompt, seed, steps=steps, scheduler=steady(drawer.scheduler), **settings)[0])
        if quick and isinstance(drawer, Fast):
            settings["scheduler"] = steady(drawer.pipe.scheduler)
        return drawer(prompt, num_inference_steps=steps, generator=seeded(seed), **settings).images[0]

    def _verdict(self, picture: Image.Image) -> str:
        from companion.tabletop.measures import read

        reading = read([picture])[0]
        seen = html.escape(describe(reading))
        try:
            wish = parse(self.prompt.value)
        except ValueError:  # a prompt outside the judge's world: it still says what it sees
            return (
                f"The judge reads: {seen}. The prompt does not name one or two things it knows, so it cannot compare."
            )
        met = reading.meets(wish)
        marks = " ".join(f"{'✓' if good else '✗'} {name}" for name, good in met.items() if name != "all")
        return f"The judge reads: {seen}. <b>{marks}</b>"


def describe(reading: Reading | Wish) -> str:
    """A reading or a wish in words: "a red ball, a blue cube, on grass, by day"; unknown parts are left out."""
    things = []
    for finish, kind in zip(reading.finishes, reading.kinds, strict=True):
        text = " ".join(word for word in (finish, kind) if word)
        things.append(f"{'an' if text[0] in 'aeiou' else 'a'} {text}")
    if relation := getattr(reading, "relation", None):
        things = [f" {relation} ".join(things)]
    place = [f"on {reading.place}"] if reading.place else []
    times = {"day": "by day", "sunset": "at sunset", "night": "at night"}
    return ", ".join([*things, *place, *([times[reading.time]] if reading.time else [])])
