"""What the Space draws with: one pipeline used four ways, and the limits that let a room full of people share it.

Nothing here depends on the page. This file is copied into the Space unchanged, with those of the course that it needs.
"""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import companion
from companion.models import (
    CATALOGUE,
    GUIDANCE,
    Model,
    NotALoraError,
    controlnets,
    find,
    load,
    load_controlnet,
    precision,
    quiet,
)
from companion.pictures import load_picture, open_picture

#: The most steps, characters in a prompt, and pictures at once, that a visitor may ask for.
MAX_STEPS, MAX_WORDS, MAX_PICTURES = 50, 300, 4
SEEDS = 2**31
#: The conditions whose control pictures are white lines on black, which a visitor may draw by hand.
LINES = ("canny", "softedge", "mlsd", "scribble")
#: What a ControlNet has in common with the U-Net that it is for.
SHAPE = ("block_out_channels", "cross_attention_dim", "layers_per_block")

#: Told after each step: how many are done, of how many.
Watch = Callable[[int, int], None]


class Studio:
    """Draws from text, from a picture, into a hole in one, and after a control picture, with one Stable Diffusion.

    The pipelines share their parts, so that the model is in memory only once. They take turns, since a scheduler keeps
    state while it draws. A picture that is given may be a file's path or a PIL picture, of any size, mode and rotation
    (see `companion.pictures`). All methods raise ValueError for input that is unfit, with a sentence for the visitor.

    Args:
        models: names, folders or repositories, as `companion.models.load` takes them, tried in this order (OSError if
            none loads); or a loaded pipeline.
        base: of a LoRA, the model that it was trained on, if it does not say so itself. Pipelines do not use it.
        device: by default the GPU if CUDA has one, or else the CPU.
        steps, guidance: the values to propose; by default those that suit the model best.
        nets: ControlNets by condition, as `companion.models.load_controlnet` takes them, besides those that are known
            for the model.
    """

    def __init__(
        self,
        models: Sequence[str] | Any,
        base: str | None = None,
        device: str | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        nets: Mapping[str, str | Path] | None = None,
    ) -> None:
        known: Model | None = None
        text: Any = models
        if isinstance(models, list | tuple):
            text, known = _load(models, base, device)
        self.text = text
        if not hasattr(self.text, "unet"):
            raise OSError(f"A {type(self.text).__name__} has no U-Net: take a Stable Diffusion.")
        self.device = self.text.device.type
        with quiet():
            from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting

            self.text.set_progress_bar_config(disable=True)
            # from_pipe would otherwise guess the precision, and convert the shared parts to it.
            same = precision(self.text.dtype)
            try:
                self.image = AutoPipelineForImage2Image.from_pipe(self.text, **same)
                self.hole = AutoPipelineForInpainting.from_pipe(self.text, **same)
            except ValueError:  # such as a latent consistency model's
                raise OSError(f"A {type(self.text).__name__} cannot inpaint: take a Stable Diffusion.") from None
        for pipe in (self.image, self.hole):
            pipe.set_progress_bar_config(disable=True)
        self.size = self.text.unet.config.sample_size * self.text.vae_scale_factor
        like = known or CATALOGUE["tabletop" if self.size < 512 else "sd15"]
        self.steps = steps or like.steps
        self.guidance = guidance or max(1.0, like.guidance)  # 1 and less both draw without guidance
        self._nets = _known_nets(known) | dict(nets or {})
        self._following: dict[str, Any] = {}  # the pipelines with a ControlNet, by condition
        self._turn = threading.Lock()

    def draw(
        self,
        prompt: str,
        negative: str = "",
        steps: int = 20,
        guidance: float = GUIDANCE,
        seed: int = -1,
        watch: Watch | None = None,
    ) -> tuple[Image.Image, int]:
        """A picture from text, and its seed (-1: a random one)."""
        return self._run(self.text, prompt, negative, steps, guidance, seed, watch)

    def vary(
        self,
        image: Any,
        prompt: str,
        strength: float = 0.6,
        negative: str = "",
        steps: int = 20,
        guidance: float = GUIDANCE,
        seed: int = -1,
        watch: Watch | None = None,
    ) -> tuple[Image.Image, int]:
        """A picture drawn from another one, and its seed. Strength, 0.05 to 1, is how much changes; 1 keeps nothing."""
        given = {"image": self.fit(image), "strength": _strength(strength, steps)}
        return self._run(self.image, prompt, negative, steps, guidance, seed, watch, **given)

    def fill(
        self,
        image: Any,
        mask: Any,
        prompt: str,
        strength: float = 1.0,
        negative: str = "",
        steps: int = 20,
        guidance: float = GUIDANCE,
        seed: int = -1,
        watch: Watch | None = None,
    ) -> tuple[Image.Image, int]:
        """The picture, cropped by `fit`, redrawn where the mask is white and unchanged elsewhere; and its seed."""
        kept = self.fit(image)
        hole = self.fit(mask, what="mask").convert("L").point(lambda value: 255 * (value > 127))
        if hole.getextrema() == (0, 0):
            raise ValueError("Nothing is painted, so there is nothing to fill: paint over a part of the picture.")
        given = {"image": kept, "mask_image": hole, "strength": _strength(strength, steps)}
        given |= {"height": self.size, "width": self.size}
        drawn, seed = self._run(self.hole, prompt, negative, steps, guidance, seed, watch, **given)
        # The decoder changes every pixel a little, so the pixels outside the hole are put back.
        return Image.composite(drawn, kept, hole), seed

    def fit(self, image: Any, what: str = "picture") -> Image.Image:
        """The middle square of a picture, resized for the model."""
        return self.read(image, what)[0]

    def read(self, image: Any, what: str = "picture", whole: bool = False) -> tuple[Image.Image, str]:
        """The middle square of a picture, resized for the model (or all of it); and what was done for that."""
        if image is None:
            raise ValueError(f"There is no {what}: upload one.")
        fitted = load_picture(image, self.size)
        return fitted.original if whole else fitted.picture, str(fitted)

    # ---- ControlNets

    @property
    def conditions(self) -> dict[str, str]:
        """What each condition is called, of those for which a ControlNet is there."""
        if not self._nets:
            return {}
        from companion.conditions import CONDITIONS

        return {name: CONDITIONS[name].title if name in CONDITIONS else name for name in self._nets}

    def can_find(self, condition: str) -> bool:
        """Whether the condition's map can be found in a picture, instead of being uploaded."""
        from companion.conditions import ANYWHERE, CONDITIONS
        from companion.photo_conditions import BY_FORMULA
        from companion.tabletop.measures import can_be_judged

        if can_be_judged(self.text):
            return condition in (CONDITIONS if _judge_is_here() else ANYWHERE)
        return condition in BY_FORMULA

    def control(self, condition: str, image: Any, ready: bool = False) -> Image.Image:
        """The control picture that is found in a picture; or, when that is `ready`, made from it by resizing alone."""
        title = self._titled(condition)
        if ready:
            return self._ready(condition, image)
        if not self.can_find(condition):
            raise ValueError(
                f"For {title}, a control picture can be found in pictures of the miniature world only: upload the "
                "control picture itself, and say so above it."
            )
        from companion.conditions import CONDITIONS
        from companion.photo_conditions import annotator
        from companion.tabletop.measures import can_be_judged

        picture = np.array(self.fit(image))[None]
        if can_be_judged(self.text):
            return Image.fromarray(CONDITIONS[condition].paint(CONDITIONS[condition].annotate(picture))[0])
        return Image.fromarray(annotator(condition)(picture)[0])  # as the published ControlNets learned them

    def _ready(self, condition: str, image: Any) -> Image.Image:
        if image is None:
            raise ValueError("There is no control picture: upload one.")
        picture, _ = open_picture(image)
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        # Between two colours that stand for labels there is no third.
        how = Image.Resampling.NEAREST if condition == "seg" else Image.Resampling.LANCZOS
        return picture.resize((self.size, self.size), how, (left, top, left + side, top + side))

    def drawn(self, lines: Any) -> Image.Image:
        """The control picture of lines that a hand drew, white on black, of any size."""
        shrunk = self.fit(lines, what="drawing").convert("L").point(lambda value: 255 * (value > 127))
        if shrunk.getextrema() == (0, 0):
            raise ValueError("Nothing is drawn, so there is nothing to follow: draw some lines.")
        return shrunk.convert("RGB")

    def follow(
        self,
        control: Any,
        condition: str,
        prompt: str,
        scale: float = 1.0,
        start: float = 0.0,
        end: float = 1.0,
        negative: str = "",
        steps: int = 20,
        guidance: float = GUIDANCE,
        seed: int = -1,
        watch: Watch | None = None,
    ) -> tuple[Image.Image, int]:
        """A picture that follows a control picture (see `control`), and its seed.

        Args:
            scale: 0 to 2, how much the control counts.
            start, end: the part of the steps, from 0 to 1, in which it is heard.
        """
        given: dict[str, Any] = {"image": self._ready(condition, control)}
        given["controlnet_conditioning_scale"] = float(_within("scale", scale, 0, 2))
        given["control_guidance_start"] = float(_within("start", start, 0, 1))
        given["control_guidance_end"] = float(_within("end", end, 0, 1))
        if start >= end:
            raise ValueError(f"The control starts at {start:g} and ends at {end:g}: let it end after it starts.")
        return self._run(self.following(condition), prompt, negative, steps, guidance, seed, watch, **given)

    def following(self, condition: str) -> Any:
        """The pipeline with a condition's ControlNet, which is loaded when it is first needed, and kept."""
        title = self._titled(condition)
        with self._turn:
            if condition not in self._following:
                try:
                    net = load_controlnet(self._nets[condition], device=self.text.device, dtype=self.text.dtype)
                except (OSError, ValueError) as error:
                    raise ValueError(f"The ControlNet for {title} could not be loaded: {error}") from None
                if _shape(net) != _shape(self.text.unet):
                    raise ValueError(
                        f"The ControlNet for {title} does not fit this model: take one that was trained for its base."
                    )
                with quiet():
                    from diffusers import AutoPipelineForText2Image

                    pipe = AutoPipelineForText2Image.from_pipe(self.text, controlnet=net, **precision(self.text.dtype))
                pipe.set_progress_bar_config(disable=True)
                self._following[condition] = pipe
            return self._following[condition]

    def load_all(self) -> None:
        """Load all ControlNets now. One that cannot be is left out, and the log says why."""
        for condition in list(self._nets):
            try:
                self.following(condition)
            except ValueError as error:
                print(error, file=sys.stderr, flush=True)
                del self._nets[condition]

    def _titled(self, condition: str) -> str:
        if condition not in self.conditions:
            there = f"there are {', '.join(self.conditions)}" if self.conditions else "there is none at all"
            raise ValueError(f"There is no ControlNet for {condition!r} here; {there}.")
        return self.conditions[condition]

    # ---- All of them

    def _run(
        self,
        pipe: Any,
        prompt: str,
        negative: str,
        steps: int,
        guidance: float,
        seed: int,
        watch: Watch | None,
        **given: Any,
    ) -> tuple[Image.Image, int]:
        import torch

        prompt = (prompt or "").strip()
        if not prompt:
            raise ValueError("There is no prompt: say what to draw.")
        if len(prompt) > MAX_WORDS:
            raise ValueError(f"The prompt has {len(prompt)} letters; {MAX_WORDS} are the most.")
        steps = int(_within("steps", steps, 1, MAX_STEPS))
        guidance = _within("guidance", guidance, 1.0, 20.0)
        seed = random.randrange(SEEDS) if seed is None or int(seed) < 0 else int(seed) % SEEDS

        def stepped(drawing: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            if watch is not None:
                watch(index + 1, drawing.num_timesteps)
            return values

        with self._turn, torch.inference_mode():
            picture = pipe(
                prompt,
                negative_prompt=(negative or "")[:MAX_WORDS],
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=torch.Generator("cpu").manual_seed(seed),
                callback_on_step_end=stepped,
                **given,
            ).images[0]
        return picture, seed


def _within(name: str, value: float, low: float, high: float) -> float:
    if value is None or not low <= value <= high:
        raise ValueError(f"{name}={value} is outside {low:g} to {high:g}.")
    return value


def _strength(strength: float, steps: int) -> float:
    """Check that strength and steps are in range and leave at least one step to take; returns the strength."""
    if int(_within("steps", steps, 1, MAX_STEPS) * _within("strength", strength, 0.05, 1.0)) < 1:
        raise ValueError(f"{steps} steps at strength {strength} leave none to take: take more steps.")
    return strength


def _shape(net: Any) -> list[str]:
    return [str(list(v) if isinstance(v, tuple) else v) for v in (net.config[name] for name in SHAPE)]


def _load(models: Sequence[str], base: str | None, device: str | None) -> tuple[Any, Model]:
    """The first of these models that can be loaded. Raises OSError when none can, with the reason for each."""
    reasons = []
    for model in models:
        try:
            try:
                known, own = find(model, base=base), base
            except NotALoraError:
                known, own = find(model), None
            return load(model, base=own, device=device), known
        except (OSError, ValueError) as error:
            reasons.append(f"{model} ({str(error).rstrip('.')})")
    raise OSError(f"No model could be loaded: {'; '.join(reasons) or 'none is named'}. Set the Space's MODEL.")


def _judge_is_here() -> bool:
    try:
        return (companion.DATA / "models" / "judge").is_dir()
    except FileNotFoundError:
        return False


def _known_nets(model: Model | None) -> dict[str, str | Path]:
    """The ControlNets that are known for a model."""
    try:
        return dict(controlnets(model)) if model else {}
    except FileNotFoundError:  # the course's data/ is not here
        return {}
