"""What the Space draws with: one pipeline used three ways, and the limits that let a room full of people share it.

Nothing here depends on the page or the course: this file is copied into the Space unchanged.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from PIL import Image, ImageOps

#: The most steps, and characters in a prompt, that a visitor may ask for.
MAX_STEPS, MAX_WORDS = 50, 300
SEEDS = 2**31
#: The default guidance scale, and the one proposed for a small model.
GUIDANCE = 3.0


class Studio:
    """Draws from text, from a picture, and into a hole in a picture, with one Stable Diffusion of any family.

    The three pipelines share their parts, so that the model is in memory only once. They take turns, since a scheduler
    keeps state while it draws.

    Args:
        models: folders or repositories on the hub, tried in this order (OSError if none loads); or a loaded pipeline.
        token: for a private repository.
        device: by default the GPU if CUDA has one, or else the CPU.
        steps, guidance: the values to propose; by default they depend on the model's picture size.
    """

    def __init__(
        self,
        models: list[str] | tuple[str, ...] | Any,
        token: str | None = None,
        device: str | None = None,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> None:
        import torch

        with _quiet():
            from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting

            if isinstance(models, list | tuple):
                self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
                dtype = torch.float16 if self.device == "cuda" else torch.float32
                self.text = _load(models, dtype, token).to(self.device)
            else:
                self.text, self.device, dtype = models, models.device.type, models.dtype
            self.text.set_progress_bar_config(disable=True)
            # from_pipe would otherwise guess the precision, and convert the shared parts to it.
            self.image = AutoPipelineForImage2Image.from_pipe(self.text, **_precision(dtype))
            self.hole = AutoPipelineForInpainting.from_pipe(self.text, **_precision(dtype))
        for pipe in (self.image, self.hole):
            pipe.set_progress_bar_config(disable=True)
        if self.device == "cuda":
            self.text.vae.enable_slicing()
        self.size = self.text.unet.config.sample_size * self.text.vae_scale_factor
        small = self.size < 512
        self.steps = steps or (20 if small else 30)
        self.guidance = guidance or (GUIDANCE if small else 7.5)
        self._turn = threading.Lock()

    def draw(
        self, prompt: str, negative: str = "", steps: int = 20, guidance: float = GUIDANCE, seed: int = -1
    ) -> tuple[Image.Image, int]:
        """A picture from text, and its seed (-1: a random one). Raises ValueError, like the others, for unfit input."""
        return self._run(self.text, prompt, negative, steps, guidance, seed)

    def vary(
        self,
        image: Image.Image | None,
        prompt: str,
        strength: float = 0.6,
        negative: str = "",
        steps: int = 20,
        guidance: float = GUIDANCE,
        seed: int = -1,
    ) -> tuple[Image.Image, int]:
        """A picture drawn from another one, and its seed. Strength, 0.05 to 1, is how much changes; 1 keeps nothing."""
        given = {"image": self.fit(image), "strength": _strength(strength, steps)}
        return self._run(self.image, prompt, negative, steps, guidance, seed, **given)

    def fill(
        self,
        image: Image.Image | None,
        mask: Image.Image | None,
        prompt: str,
        strength: float = 1.0,
        negative: str = "",
        steps: int = 20,
        guidance: float = GUIDANCE,
        seed: int = -1,
    ) -> tuple[Image.Image, int]:
        """The picture, cropped by `fit`, redrawn where the mask is white and unchanged elsewhere; and its seed."""
        kept = self.fit(image)
        hole = self.fit(mask, what="mask").convert("L").point(lambda value: 255 * (value > 127))
        if hole.getextrema() == (0, 0):
            raise ValueError("Nothing is painted, so there is nothing to fill: paint over a part of the picture.")
        given = {"image": kept, "mask_image": hole, "strength": _strength(strength, steps)}
        given |= {"height": self.size, "width": self.size}
        drawn, seed = self._run(self.hole, prompt, negative, steps, guidance, seed, **given)
        # The decoder changes every pixel a little, so the pixels outside the hole are put back.
        return Image.composite(drawn, kept, hole), seed

    def fit(self, image: Image.Image | None, what: str = "picture") -> Image.Image:
        """The middle square of a picture, resized for the model. Raises ValueError when there is no picture."""
        if image is None:
            raise ValueError(f"There is no {what}: upload one.")
        return ImageOps.fit(image.convert("RGB"), (self.size, self.size), Image.Resampling.LANCZOS)

    def _run(
        self, pipe: Any, prompt: str, negative: str, steps: int, guidance: float, seed: int, **given: Any
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
        with self._turn, torch.inference_mode():
            picture = pipe(
                prompt,
                negative_prompt=(negative or "")[:MAX_WORDS],
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=torch.Generator("cpu").manual_seed(seed),
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


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the warnings about packages we do not need that come from importing every pipeline."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _precision(dtype: Any) -> dict[str, Any]:
    import diffusers

    new = tuple(map(int, diffusers.__version__.split(".")[:2])) >= (0, 40)  # the older name is torch_dtype
    return {"dtype" if new else "torch_dtype": dtype}


def _load(models: Sequence[str], dtype: Any, token: str | None) -> Any:
    """The first of these models that can be loaded. Raises OSError when none can, with the reason for each."""
    from diffusers import AutoPipelineForText2Image

    reasons = []
    for model in models:
        # A repository may have its weights only in half precision, or only in full precision.
        for variant in ("fp16", None):
            try:
                return AutoPipelineForText2Image.from_pretrained(
                    model, use_safetensors=True, variant=variant, token=token, **_precision(dtype)
                )
            except (OSError, ValueError) as error:
                reason = str(error).partition("\n")[0]
        reasons.append(f"{model} ({reason})")
    raise OSError(f"No model could be loaded: {'; '.join(reasons) or 'none is named'}. Set the Space's MODEL.")
