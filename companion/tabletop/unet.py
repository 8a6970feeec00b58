"""The noise predictor of the miniature: a stock UNet2DConditionModel, trained with its text encoder on cached latents.

Most steps see 8 x 8 latents (pictures of 64 pixels), the later ones 16 x 16, as Stable Diffusion went from 256 to 512
pixels. Unlike Stable Diffusion's, the text encoder starts as CLIP's text tower and goes on learning in the first stage
(as in the text-to-image model of the latent diffusion paper): its world of words is too small to be learned well by
contrast alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from companion.tabletop.caption import caption
from companion.tabletop.clip import TEXT_WIDTH, tokenize
from companion.tabletop.muon import muon
from companion.tabletop.scene import Scene
from companion.tabletop.vae import to_tensor
from companion.training import Progress, ema_copy, load_weights, train

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
def encode(vae: AutoencoderKL, pictures, batch: int = 50) -> Tensor:
    """Scaled latents (N, 4, H/8, W/8), fp16, of uint8 pictures (N, H, W, 3)."""
    pictures = torch.as_tensor(pictures)
    mean = [vae.encode(to_tensor(p)).latent_dist.mean for p in pictures.split(batch)]
    return (torch.cat(mean) * vae.config.scaling_factor).half()


def min_snr_weight(alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """min(SNR, 5) / SNR, the weight of Hang et al. (2023, arXiv 2303.09556) for noise prediction."""
    a = alphas_cumprod[timesteps]
    snr = a / (1 - a)
    return snr.clamp(max=MIN_SNR) / snr


def unet_loss(
    latents: Tensor, scenes: list[Scene], tokenizer: CLIPTokenizer, batch: int, train_text: bool, bfloat16: bool = False
) -> Callable:
    """The loss of a step: weighted squared error of the predicted noise, with captions made anew each time."""
    alphas = DDPMScheduler(**SCHEDULE).alphas_cumprod
    rough = bfloat16 and not train_text

    def loss(model: Conditioned, generator: torch.Generator, step: int) -> Tensor:
        index = torch.randint(len(latents), (batch,), generator=generator)
        rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        texts = ["" if rng.random() < DROP else caption(scenes[i], rng) for i in index.tolist()]
        x0 = latents[index].float()
        noise = torch.randn(x0.shape, generator=generator)
        # Stratified timesteps: one in each of `batch` equal parts, which makes the gradient less noisy.
        t = ((torch.arange(batch) + torch.rand(batch, generator=generator)) * (1000 / batch)).long().clamp(max=999)
        a = alphas[t].view(-1, 1, 1, 1)
        # A frozen text encoder may be as rough as what the U-Net makes of its states.
        with torch.set_grad_enabled(train_text), torch.autocast("cpu", torch.bfloat16, enabled=rough):
            states = model.text_encoder(tokenize(tokenizer, texts)).last_hidden_state
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            predicted = model.unet(a.sqrt() * x0 + (1 - a).sqrt() * noise, t, states).sample.float()
        return (min_snr_weight(alphas, t) * ((predicted - noise) ** 2).mean((1, 2, 3))).mean()

    return loss


@torch.no_grad()
def redrawn(
    model: Conditioned, latents: Tensor, scenes: list[Scene], tokenizer: CLIPTokenizer, seed: int = 0,
    noisiest: int = 200, steps: int = 3, batch: int = 64,
) -> Iterator[Tensor]:
    """Scaled latents (N, 4, h, w) with some noise mixed in and taken out again, a batch at a time.

    The scene stays, fine detail is the model's: what a decoder will be given when the model draws. Each picture's noise
    is that of a timestep between `noisiest` / 10 and `noisiest`, taken out in `steps` steps of DDIM.
    """
    alphas, generator = DDPMScheduler(**SCHEDULE).alphas_cumprod, torch.Generator().manual_seed(seed)
    for i, x0 in zip(range(0, len(latents), batch), latents.split(batch), strict=True):
        texts = [caption(scene) for scene in scenes[i : i + batch]]
        states = model.text_encoder(tokenize(tokenizer, texts)).last_hidden_state
        first = torch.randint(noisiest // 10, noisiest, (len(x0),), generator=generator)
        x0, eps = x0.float(), torch.randn(x0.shape, generator=generator)
        for left in range(steps, 0, -1):
            t = first * left // steps
            a = alphas[t].view(-1, 1, 1, 1)
            x = a.sqrt() * x0 + (1 - a).sqrt() * eps
            eps = model.unet(x, t, states).sample
            x0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
        yield x0


def train_unet(
    latents: Tensor, scenes: list[Scene], tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, steps: int,
    checkpoint: Path | None = None,
    log: Path | None = None, *, start_from: Path | None = None, lr: float = 1e-3, batch: int = 48,
    train_text: bool = True, bfloat16: bool = False, seed: int = 0,
    config: dict | None = None, optimizer: Callable | None = None, **kwargs,
) -> Iterator[tuple[Progress, Conditioned]]:  # fmt: skip
    """Train on scaled latents (N, 4, h, w) of `scenes`; yields progress and the moving average.

    Args:
        start_from: the checkpoint of an earlier stage, whose moving average is where this one begins.
        train_text: False freezes the text encoder.
        bfloat16: multiply in bfloat16, weights and sums staying in single precision: 1.6 times as fast on CPUs with
            AVX-512 BF16, slower on others.
    """
    model = Conditioned(make_unet(seed, **(config or {})), text_encoder)
    if start_from is not None:
        load_weights(start_from, model)
    model.text_encoder.requires_grad_(train_text)
    ema = ema_copy(model)
    if bfloat16:  # torch's fused attention is slow in bfloat16 on CPUs, so slow that it would eat all that is won
        model.unet.set_attn_processor(AttnProcessor())
        model.text_encoder.set_attn_implementation("eager")
    make = optimizer or (lambda m: muon(m, lr, apart=("conv_in", "conv_out.", "embedding"), weight_decay=0.01))
    loss = unet_loss(latents, scenes, tokenizer, batch, train_text, bfloat16)
    for progress in train(
        model, loss, make(model), steps, peak_lr=lr, ema=ema, seed=seed, checkpoint=checkpoint, log=log, **kwargs
    ):
        yield progress, ema
