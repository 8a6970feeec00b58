"""The noise predictor of the miniature: a stock UNet2DConditionModel, trained with its text encoder on cached latents.

Most steps see 8 x 8 latents (pictures of 64 pixels), the later ones 16 x 16, as Stable Diffusion went from 256 to 512
pixels. Unlike Stable Diffusion's, the text encoder starts as CLIP's text tower and keeps learning in the first stage
(as in the text-to-image model of the latent diffusion paper): so small a vocabulary is not learned well by contrast
alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from companion.diffusion import UNet
from companion.files import written
from companion.pretraining.clip import TEXT_WIDTH, tokenize
from companion.pretraining.muon import muon
from companion.tabletop.caption import caption
from companion.tabletop.scene import Scene
from companion.training import Progress, load_weights, noise_loss, train_averaged

CONFIG = dict(
    sample_size=16,
    in_channels=4,
    out_channels=4,
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    block_out_channels=(64, 128, 192),
    layers_per_block=1,
    cross_attention_dim=TEXT_WIDTH,
    attention_head_dim=4,  # the number of heads, by an old misnomer of diffusers
    norm_num_groups=16,
)
#: Stable Diffusion's noise schedule.
SCHEDULE = dict(
    num_train_timesteps=1000,
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    prediction_type="epsilon",
)
DROP = 0.1  # share of captions left empty, for classifier-free guidance
MIN_SNR = 5.0
LOW = 350  # timesteps below it count as little noise
FIRST_AND_LAST = ("conv_in", "conv_out.", "embedding")  # layers that Muon leaves to AdamW
CELLS_BELOW = 400  # timesteps at which errors on things may count more


class Conditioned(nn.Module):
    """U-Net and text encoder, trained together."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel):
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder


def make_unet(seed: int = 0, **changes) -> UNet2DConditionModel:
    """An untrained U-Net for latents (B, 4, 16, 16) and text states (B, 32, 192)."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(**{**CONFIG, **changes})


@torch.no_grad()
def deepened(unet: UNet2DConditionModel, layers: int | Sequence[int]) -> UNet2DConditionModel:
    """A U-Net with more layers in its blocks (a number for all levels, or one for each, the finest first) that predicts
    what `unet` predicts.

    The new layers begin as the identity: they add the output of a convolution or a projection that is zero, which
    training changes (T. Chen et al., "Net2Net", ICLR 2016, arXiv 1511.05641).

    Raises:
        ValueError: when a level would have fewer layers than it has.
    """
    deep = UNet2DConditionModel.from_config(unet.config, layers_per_block=layers)
    for name in ("conv_in", "time_embedding", "mid_block", "conv_norm_out", "conv_out"):
        getattr(deep, name).load_state_dict(getattr(unet, name).state_dict())
    for part in ("down_blocks", "up_blocks"):
        for old, new in zip(getattr(unet, part), getattr(deep, part), strict=True):
            _deepen(old, new, last=part == "up_blocks")
    return deep


def _deepen(old: Any, new: Any, last: bool) -> None:
    """Copy a block's layers into a deeper block, whose further layers become the identity.

    last: keep the old block's last layer the last. On the way up it takes the skip connection from before the level's
    first layer, whose width may be another.
    """
    n, m = len(old.resnets), len(new.resnets)
    if m < n:
        raise ValueError(f"a block of {n} layers cannot be deepened to {m}; give it {n} or more")
    kept = {i: i for i in range(n - last)} | ({m - 1: n - 1} if last else {})  # new layer: old layer
    for kind in ("resnets", "attentions"):
        for i, layer in enumerate(getattr(new, kind, ())):
            if i in kept:
                layer.load_state_dict(getattr(old, kind)[kept[i]].state_dict())
                continue
            for p in (layer.proj_out if kind == "attentions" else layer.conv2).parameters():
                p.zero_()
            if (
                getattr(layer, "conv_shortcut", None) is not None
            ):  # on the way up: what comes from below, without the skip
                layer.conv_shortcut.weight.copy_(torch.eye(*layer.conv_shortcut.weight.shape[:2])[..., None, None])
                layer.conv_shortcut.bias.zero_()
    for kind in ("downsamplers", "upsamplers"):
        if getattr(old, kind, None) is not None:
            getattr(new, kind).load_state_dict(getattr(old, kind).state_dict())


def draw_timesteps(batch: int, generator: torch.Generator, low: float = 0.0) -> Tensor:
    """Timesteps (batch,), one in each of `batch` equal parts of their distribution, which makes gradients less noisy.

    A share `low` of them is drawn from 0 to `LOW` only, where fine shapes are decided; the rest from all.
    """
    u = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
    t = torch.where(u < low, u / max(low, 1e-9) * LOW, (u - low) / max(1 - low, 1e-9) * 1000)
    return t.long().clamp(max=999)


def cells_weight(things: Tensor, t: Tensor, factor: float, below: int = CELLS_BELOW) -> Tensor:
    """Weights (B, 1, h, w) of squared errors: `factor` on cells that a thing touches where t < `below`, else 1.

    things: (B, h, w), 1 on those cells.
    """
    near = (t < below).float().view(-1, 1, 1, 1)
    return 1 + (factor - 1) * near * things[:, None].float()


def favouring(scenes: Sequence[Scene], kinds: Sequence[str], times: float = 3.0) -> Tensor:
    """How often each scene is seen (N,): `times` as often as others, when one of its things is of these kinds.

    A few renders that are seen often are learned by heart; more renders help more (see the split "robots").
    """
    return torch.tensor([times if any(t.kind in kinds for t in scene.things) else 1.0 for scene in scenes])


def own_parts(model: Conditioned, index: Tensor) -> tuple[UNet, CLIPTextModel]:
    """The U-Net and the text encoder that a model in training predicts with."""
    return model.unet, model.text_encoder


def unet_loss(
    latents: Tensor,
    scenes: Sequence[Scene],
    tokenizer: CLIPTokenizer,
    batch: int,
    train_text: bool,
    bfloat16: bool = False,
    *,
    parts: Callable[[Any, Tensor], tuple[UNet, CLIPTextModel]] = own_parts,
    drop: float = DROP,
    things: Tensor | None = None,
    low: float = 0.0,
    factor: float = 1.0,
    below: int = CELLS_BELOW,
    min_snr: float = MIN_SNR,
    often: Tensor | None = None,
) -> Callable[[Any, torch.Generator, int], Tensor]:
    """The loss of a step: weighted squared error of the predicted noise, with new captions each time.

    Args:
        parts: from what is trained and the indices (B,) of a batch, the U-Net and the text encoder to predict with.
        drop: share of captions left empty.
        things: (N, h, w), 1 on latent cells that a thing touches, where errors count `factor` times at timesteps below
            `below` (`cells_weight`).
        low: share of the samples that are drawn at low noise levels (`draw_timesteps`).
        min_snr: where the weights by signal-to-noise ratio stop rising (`training.min_snr_weight`).
        often: how often each scene is seen (N,), relative to the others (`favouring`); all alike when None.
    """
    scheduler = DDPMScheduler(**SCHEDULE)
    rough = bfloat16 and not train_text

    def loss(model: Any, generator: torch.Generator, step: int) -> Tensor:
        if often is None:
            index = torch.randint(len(latents), (batch,), generator=generator)
        else:
            index = torch.multinomial(often, batch, replacement=True, generator=generator)
        rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        texts = ["" if rng.random() < drop else caption(scenes[i], rng) for i in index.tolist()]
        # A frozen text encoder needs no more precision than the U-Net that reads it.
        with torch.set_grad_enabled(train_text), torch.autocast("cpu", torch.bfloat16, enabled=rough):
            unet, text_encoder = parts(model, index)
            states = text_encoder(tokenize(tokenizer, texts)).last_hidden_state

        def predict(noisy: Tensor, t: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                return unet(noisy, t, states).sample.to(noisy.device)

        t = draw_timesteps(batch, generator, low)
        weight = None if things is None else cells_weight(things[index], t, factor, below)
        x0 = latents[index].float()
        return noise_loss(predict, scheduler, x0, generator, timesteps=t, min_snr=min_snr, weight=weight)

    return loss


def _keep_frozen(text_encoder: CLIPTextModel, words: Path, *begun: Path | None) -> None:
    """Keep the text encoder of a run that does not train it in the file `words`, since checkpoints leave it out.

    begun: files that the run resumes or starts from; the first that exists counts. If it holds a text encoder (one
    trained until then, or adopted), that one is kept; if it does not, `words` has it already.
    """
    for path in begun:
        if path is not None and path.exists():
            with safe_open(path, "pt") as f:
                found = {k.split(".", 2)[2]: f.get_tensor(k) for k in f.keys() if k.startswith("ema.text_encoder.")}
            text_encoder.load_state_dict(found or load_file(words))
            break
    with written(words) as temporary:
        save_file(text_encoder.state_dict(), temporary)


def plain_attention(text_encoder: CLIPTextModel, *unets: Any) -> None:
    """Unfuse attention. On CPUs torch's fused one is so slow in bfloat16 that it would undo the whole gain."""
    for unet in unets:
        unet.set_attn_processor(AttnProcessor())
    text_encoder.set_attn_implementation("eager")


def train_unet(
    latents: Tensor,
    scenes: list[Scene],
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    steps: int,
    checkpoint: Path | None = None,
    log: Path | None = None,
    *,
    start_from: Path | None = None,
    words: Path | None = None,
    lr: float = 1e-3,
    batch: int = 48,
    train_text: bool = True,
    bfloat16: bool = False,
    seed: int = 0,
    things: Tensor | None = None,
    low: float = 0.0,
    factor: float = 1.0,
    below: int = CELLS_BELOW,
    min_snr: float = MIN_SNR,
    often: Tensor | None = None,
    config: dict | None = None,
    optimizer: Callable | None = None,
    **options: Any,
) -> Iterator[tuple[Progress, Conditioned]]:
    """Train on scaled latents (N, 4, h, w) of `scenes`; yields progress and the moving average.

    Args:
        start_from: the checkpoint of an earlier stage, whose moving average this one starts from.
        train_text: False freezes the text encoder.
        words: a file for the frozen text encoder, which checkpoints do not hold.
        things, low, factor, below, min_snr, often: what counts more, see `unet_loss`.
        bfloat16: multiply in bfloat16, with weights and sums in single precision: 1.6 times as fast on CPUs with
            AVX-512 BF16, slower on others.
        options: those of `training.train_averaged`.
    """
    model = Conditioned(make_unet(seed, **(config or {})), text_encoder)
    model.text_encoder.requires_grad_(train_text)
    if start_from is not None:
        load_weights(start_from, model)
    if not train_text and words is not None:
        _keep_frozen(model.text_encoder, words, checkpoint, start_from)
    if bfloat16:
        plain_attention(model.text_encoder, model.unet)
    make = optimizer or (lambda m: muon(m, lr, exclude=FIRST_AND_LAST, weight_decay=0.01, bfloat16=bfloat16))
    more: dict[str, Any] = {"things": things, "low": low, "factor": factor, "below": below}
    more |= {"min_snr": min_snr, "often": often}
    loss = unet_loss(latents, scenes, tokenizer, batch, train_text, bfloat16, **more)
    return train_averaged(model, loss, make(model), steps, seed=seed, checkpoint=checkpoint, log=log, **options)
