"""The playground: a prompt, three sliders, and what the judge reads in the picture."""

from __future__ import annotations

import html
import random
import time
from typing import TYPE_CHECKING

import ipywidgets as widgets

from companion.fast import faster
from companion.figures import as_pil
from companion.models import GUIDANCE, seeded
from companion.tabletop.caption import caption, parse
from companion.tabletop.splits import SPLITS, sample_scene
from companion.widgets.base import Panel

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from PIL import Image

    from companion.tabletop.caption import Wish
    from companion.tabletop.judge import Reading

SIDE = 384  # pixels on the screen


class Playground(Panel):
    """Redraws the picture when the prompt, the seed, the number of steps or the guidance changes.

    Args:
        pipe: a stock pipeline. If it draws 128 pixels, as the miniature does, the judge reads its pictures.
        prompt, seed, steps, guidance: initial values.
    """

    def __init__(
        self, pipe: StableDiffusionPipeline, prompt: str, seed: int = 0, steps: int = 20, guidance: float = GUIDANCE
    ) -> None:
        wide = widgets.Layout(width="34em")
        # continuous_update=False: draw when the slider is released, not at each point on the way.
        options = {"continuous_update": False, "layout": wide}
        self.prompt = widgets.Text(prompt, description="prompt", **options)
        self.seed = widgets.IntSlider(seed, 0, 99, description="seed", **options)
        self.steps = widgets.IntSlider(steps, 1, 50, description="steps", **options)
        self.guidance = widgets.FloatSlider(guidance, min=1, max=16, step=0.5, description="guidance", **options)
        self.another = widgets.Button(description="Another prompt", icon="refresh")
        controls = [self.prompt, self.seed, self.steps, self.guidance]
        self._pipe, self._judged = faster(pipe), pipe.unet.config.sample_size * pipe.vae_scale_factor == 128
        super().__init__([*controls, *([self.another] if self._judged else [])], SIDE, SIDE)
        for control in controls:
            self.watch(control, self.draw)
        self.another.on_click(lambda button: self.surprise())
        self.attempt(self.draw)

    def surprise(self) -> None:
        """Set the prompt to a random scene of the miniature world, which also draws it."""
        first, count = SPLITS["test"]
        self.prompt.value = caption(sample_scene(first + random.randrange(count)))

    def draw(self) -> None:
        """Draw with the controls as they stand."""
        begin = time.perf_counter()
        picture = self._pipe(
            self.prompt.value,
            num_inference_steps=self.steps.value,
            guidance_scale=self.guidance.value,
            generator=seeded(self.seed.value),
        ).images[0]
        text = f"{time.perf_counter() - begin:.1f} s"
        if self._judged:
            text = f"{self._verdict(picture)}<br>{text}"
        self.show(as_pil(picture, SIDE), text)

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
