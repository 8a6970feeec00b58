"""Panels of notebook 02: noise schedules, and two samplers side by side."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import ipywidgets as widgets
import torch
from PIL import Image

from companion import samplers as sm
from companion.figures import as_pil, curves
from companion.models import GUIDANCE
from companion.schedules import SCHEDULES, Levels, schedule
from companion.widgets.base import MARGIN, Panel, side_by_side
from companion.widgets.drawer import Drawer

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from torch import Tensor

SIDE = 256


class ScheduleExplorer(Panel):
    """Noise levels by step for two schedules; controls choose them, the number of steps, and the axis."""

    def __init__(self, levels: Levels, names: Sequence[str] = ("linspace", "karras"), steps: int = 12) -> None:
        self._levels, options = levels, self.options()
        self.steps = widgets.IntSlider(steps, 2, 50, description="steps", **options)
        look = {name: options[name] for name in ("layout", "style")}
        self.first, self.second = (
            widgets.Dropdown(options=list(SCHEDULES), value=value, description=name, **look)
            for name, value in zip(("one", "other"), names, strict=True)
        )
        self.logarithmic = widgets.Checkbox(True, description="logarithmic axis", **look)
        controls = [self.steps, self.first, self.second, self.logarithmic]
        super().__init__(controls, 640)
        for control in controls:
            self.watch(control, self.draw)
        self.attempt(self.draw)

    def draw(self) -> None:
        """Draw the two schedules, and say how many of their levels are below 1."""
        n = self.steps.value
        found = {name: schedule(name, self._levels, n, last=None) for name in (self.first.value, self.second.value)}
        figure = curves(
            range(1, n + 1),
            found,
            points=True,
            log=self.logarithmic.value,
            title=f"Noise level at each of {n} steps",
            x_label="step",
            y_label="sigma",
        )
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=80)
        below = [f"{name}: {int((sigmas < 1).sum())} of {n} levels below 1" for name, sigmas in found.items()]
        self.show(Image.open(buffer).convert("RGB"), "; ".join(below))


class SamplerComparison(Panel):
    """Two samplers side by side, drawn live from the same noise and prompt with the same number of steps.

    The text below gives the RMS distance between their latents, and how far each moves with one step fewer.
    """

    def __init__(
        self,
        pipe: StableDiffusionPipeline,
        prompt: str,
        names: Sequence[str] = ("Euler a", "DPM++ 2M Karras"),
        *,
        seed: int = 0,
        steps: int = 6,
        most: int = 16,
        guidance_scale: float = GUIDANCE,
    ) -> None:
        self._pipe, self._scale, self._drawer = pipe, guidance_scale, Drawer(pipe)
        options = self.options()
        look = {name: options[name] for name in ("layout", "style")}
        self.steps = widgets.IntSlider(steps, 1, most, description="steps", **options)
        self.first, self.second = (
            widgets.Dropdown(options=list(sm.SAMPLERS), value=value, description=name, **look)
            for name, value in zip(("left", "right"), names, strict=True)
        )
        self.prompt = widgets.Text(prompt, description="prompt", **options)
        self.seed = widgets.IntSlider(seed, 0, 99, description="seed", **options)
        self._model = lru_cache(maxsize=1)(self._denoiser)
        self.latents = lru_cache(maxsize=128)(self._latents)  # so that going back shows a picture at once
        controls = [self.steps, self.first, self.second, self.prompt, self.seed]
        super().__init__(controls, 2 * SIDE + MARGIN, reader=pipe)
        for control in controls:
            self.watch(control, self.draw)
        self.attempt(self.draw)

    def _denoiser(self, prompt: str) -> sm.Denoiser:
        return sm.Denoiser(self._pipe, prompt, self._scale, unet=self._drawer.unet)

    def _latents(self, name: str, steps: int, prompt: str, seed: int) -> Tensor:
        model = self._model(prompt)
        sigmas = sm.sigmas_for(name, model.levels, steps)
        *_, last = sm.solve(model, sm.start(self._pipe, seed, sigmas), sigmas, name, seeds=[seed])
        return last.x

    def draw(self) -> None:
        """Draw with both samplers, and compare them."""
        names, rest = [self.first.value, self.second.value], (self.prompt.value, self.seed.value)
        now = [self.latents(name, self.steps.value, *rest) for name in names]
        pictures = [as_pil(picture, SIDE) for picture in self._drawer.decode(torch.cat(now))]
        apart = float((now[0] - now[1]).square().mean().sqrt())
        text = f"the latents are {apart:.2f} apart"
        if self.steps.value > 1:
            before = [self.latents(name, self.steps.value - 1, *rest) for name in names]
            moved = [float((a - b).square().mean().sqrt()) for a, b in zip(now, before, strict=True)]
            text += "; one step fewer would move " + ", ".join(
                f"{name} by {m:.2f}" for name, m in zip(names, moved, strict=True)
            )
        self.show(side_by_side(pictures, [f"{name}, {self.steps.value} steps" for name in names]), text)
