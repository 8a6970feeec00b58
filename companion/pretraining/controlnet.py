"""How the miniature's ControlNets are trained (and a T2I-Adapter): on exact maps of renders, while U-Net and text
encoder are frozen.

As in the paper (arXiv 2302.05543, section 3.3) half of the captions are left out, so that the ControlNet has to read
the map. Its loss hardly falls while it learns that; so `companion build controlnet` logs how well pictures follow
their maps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import ControlNetModel, T2IAdapter
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from companion.conditions import COLUMNS, Condition
from companion.controlnet import as_controls, listening
from companion.diffusion import UNet
from companion.pretraining.gpu import there
from companion.pretraining.muon import muon
from companion.pretraining.unet import FIRST_AND_LAST, Conditioned, plain_attention, unet_loss
from companion.tabletop import dataset
from companion.tabletop.scene import Scene
from companion.training import Progress, train_averaged

DROP = 0.5  # share of captions left empty


def to_follow(
    renders: Path, split: str, condition: Condition, among: int, most: int | None = None
) -> tuple[np.ndarray, np.ndarray, list[Scene]]:
    """Exact maps of the first `among` renders of a split, which of the renders they are of (N,), and their scenes.

    A render without anything to follow (no robot, no straight edge) is left out. At most `most` are taken.
    """
    maps, places, scenes, first = [], [], [], 0
    # A shard at a time: with their pictures, the maps of all renders would not fit in memory.
    for columns, some in dataset.parts(renders, split, COLUMNS, among):
        found = condition.exact(columns, some)
        kept = np.flatnonzero(found.reshape(len(found), -1).any(1))
        maps.append(found[kept])
        places.append(first + kept)
        scenes += [some[i] for i in kept]
        first += len(some)
        if most is not None and len(scenes) >= most:
            break
    return np.concatenate(maps)[:most], np.concatenate(places)[:most], scenes[:most]


def train_controlnet(
    net: ControlNetModel | T2IAdapter,
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
    place: Callable[[nn.Module], None] | None = None,
    **options: Any,
) -> Iterator[tuple[Progress, ControlNetModel | T2IAdapter]]:
    """Train a new ControlNet or T2I-Adapter (see `controlnet.controlnet_of`, `adapter_of`); yields progress and its
    moving average.

    Args:
        base: U-Net and text encoder, which are frozen.
        maps: the condition's exact maps of the renders whose scaled latents are `latents` (N, 4, h, w).
        loss: options of `unet.unet_loss`, such as `low`.
        place: moves networks to where they are trained, if that is not the CPU (`pretraining.gpu.place`).
        options: those of `training.train`.
    """
    base.eval().requires_grad_(False)
    if place is not None:
        place(base)
    if bfloat16:
        plain_attention(base.text_encoder, *(m for m in (base.unet, net) if not isinstance(m, T2IAdapter)))

    def parts(net: ControlNetModel | T2IAdapter, index: Tensor) -> tuple[UNet, CLIPTextModel]:
        painted = condition.paint(maps[index.numpy()])
        listener = listening(base.unet, net, as_controls(painted, painted.shape[1]))
        # What the two networks tell each other stays where they are.
        return listener if place is None else there(listener, net.device), base.text_encoder

    settings: dict[str, Any] = {"parts": parts, "drop": DROP, "bfloat16": bfloat16, **(loss or {})}
    step_loss = unet_loss(latents, scenes, tokenizer, batch, train_text=False, **settings)
    exclude = (*FIRST_AND_LAST, "controlnet_down_blocks", "controlnet_mid_block", "cond_embedding.conv_")
    optimizer = muon(net, lr, exclude=exclude, weight_decay=0.01, bfloat16=bfloat16)
    return train_averaged(net, step_loss, optimizer, steps, ema_decay=0.998, seed=seed, place=place, **options)
