"""What panels draw with: the parts of a pipeline, compiled where that is possible."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from companion import diffusion
from companion.fast import Fast, faster

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from torch import Tensor

    from companion.diffusion import UNet


class Drawer:
    """The U-Net and the decoder of a pipeline, compiled where that is possible (see `fast.faster`)."""

    def __init__(self, pipe: StableDiffusionPipeline) -> None:
        self._pipe, drawer = pipe, faster(pipe)
        self._fast = drawer if isinstance(drawer, Fast) else None

    @property
    def unet(self) -> UNet | None:
        """To be given as `unet=` before each picture; None where the pipeline's own draws."""
        if self._fast is None:
            return None
        self._fast.look()
        return self._fast.noise_pred

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) in [-1, 1] of latents (N, C, h, w), as by `diffusion.decode`."""
        return diffusion.decode(self._pipe, latents) if self._fast is None else self._fast.decode(latents).clamp(-1, 1)
