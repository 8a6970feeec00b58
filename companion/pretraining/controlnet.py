"""How the miniature's ControlNets are trained: on exact maps of renders, with U-Net and text encoder frozen.

As in the paper (arXiv 2302.05543, section 3.3) half of the captions are left out, so that the ControlNet has to read
the map. Its loss hardly falls while it learns that; so `companion build controlnet` logs how well pictures follow
their maps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel, DDPMScheduler
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from transformers import CLIPTokenizer

from companion.conditions import Condition
from companion.controlnet import Control, Controlled, as_controls
from companion.pretraining.clip import tokenize
from companion.pretraining.muon import muon
from companion.pretraining.unet import FIRST_AND_LAST, MIN_SNR, SCHEDULE, Conditioned, cells_weight, draw_timesteps
from companion.tabletop.caption import caption
from companion.tabletop.scene import Scene
from companion.training import Progress, noise_loss, train_averaged

DROP = 0.5  # share of captions left empty


def controlnet_loss(
    base: Conditioned,
    condition: Condition,
    maps: np.ndarray,
    latents: Tensor,
    scenes: Sequence[Scene],
    tokenizer: CLIPTokenizer,
    batch: int,
    *,
    bfloat16: bool = False,
    things: Tensor | None = None,
    low: float = 0.0,
    factor: float = 1.0,
    min_snr: float = MIN_SNR,
) -> Callable[[ControlNetModel, torch.Generator, int], Tensor]:
    """The loss of a step of a ControlNet that helps the frozen `base`: that of `pretraining.unet.unet_loss`.

    maps: the condition's exact maps of the renders whose scaled latents are `latents` (N, 4, h, w).
    """
    scheduler = DDPMScheduler(**SCHEDULE)

    def loss(net: ControlNetModel, generator: torch.Generator, step: int) -> Tensor:
        index = torch.randint(len(latents), (batch,), generator=generator)
        rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        texts = ["" if rng.random() < DROP else caption(scenes[i], rng) for i in index.tolist()]
        painted = condition.paint(maps[index.numpy()])
        heard = Controlled(base.unet, [Control(net, as_controls(painted, painted.shape[1]))])
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            with torch.no_grad():
                states = base.text_encoder(tokenize(tokenizer, texts)).last_hidden_state

            def predict(noisy: Tensor, t: Tensor) -> Tensor:
                with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                    return heard(noisy, t, states).sample

        t = draw_timesteps(batch, generator, low)
        weight = None if things is None else cells_weight(things[index], t, factor)
        x0 = latents[index].float()
        return noise_loss(predict, scheduler, x0, generator, timesteps=t, min_snr=min_snr, weight=weight)

    return loss


def train_controlnet(
    net: ControlNetModel,
    base: Conditioned,
    condition: Condition,
    maps: np.ndarray,
    latents: Tensor,
    scenes: Sequence[Scene],
    tokenizer: CLIPTokenizer,
    steps: int,
    *,
    lr: float = 1e-3,
    batch: int = 32,
    bfloat16: bool = False,
    seed: int = 0,
    loss: dict[str, Any] | None = None,
    **options: Any,
) -> Iterator[tuple[Progress, ControlNetModel]]:
    """Train a ControlNet (see `controlnet.controlnet_of`); yields progress and its moving average.

    Args:
        base: U-Net and text encoder, which are frozen.
        loss: options of `controlnet_loss`.
        options: those of `training.train`.
    """
    base.eval().requires_grad_(False)
    if bfloat16:  # torch's fused attention is slow in bfloat16 on CPUs
        for unet in (base.unet, net):
            unet.set_attn_processor(AttnProcessor())
        base.text_encoder.set_attn_implementation("eager")
    made = controlnet_loss(base, condition, maps, latents, scenes, tokenizer, batch, bfloat16=bfloat16, **(loss or {}))
    exclude = (*FIRST_AND_LAST, "controlnet_down_blocks", "controlnet_mid_block", "cond_embedding.conv_")
    optimizer = muon(net, lr, exclude=exclude, weight_decay=0.01, bfloat16=bfloat16)
    return train_averaged(net, made, optimizer, steps, ema_decay=0.998, seed=seed, **options)
