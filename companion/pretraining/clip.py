"""The miniature's CLIP: a stock CLIPModel, two towers trained contrastively on captions and pictures.

The negatives include captions with one thing changed (finishes swapped, the relation reversed, another kind), so that
a bag of words is not enough to tell captions apart. The pipeline's text encoder starts from its text tower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig

from companion.tabletop.caption import caption
from companion.tabletop.scene import FINISHES, KINDS, PLACES, TIMES, Scene
from companion.tabletop.tokenizer import LENGTH, save_tokenizer
from companion.training import Progress, train_averaged

TEXT_WIDTH = 192
IMAGE_SIZE = 64
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def make_clip(tokenizer: CLIPTokenizer, seed: int = 0) -> CLIPModel:
    """An untrained CLIP, from text (B, <= 32) and pictures (B, 3, 64, 64) in [-1, 1] to a shared space of 128."""
    torch.manual_seed(seed)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        projection_dim=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        hidden_act="quick_gelu",
    )
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        projection_dim=128,
        num_hidden_layers=5,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=8,
        hidden_act="quick_gelu",
    )
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=128))


def near_miss(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with one thing changed that a bag of words would hardly notice."""
    things = scene.things
    if len(things) == 2 and rng.random() < 0.6:
        a, b = things
        if rng.random() < 0.5 and scene.relation:
            return replace(scene, things=(b, a)) if a.kind != b.kind or a.finish != b.finish else scene
        return replace(scene, things=(replace(a, finish=b.finish), replace(b, finish=a.finish)))
    how = rng.random()
    if how < 0.35:
        i = int(rng.integers(len(things)))
        other = str(rng.choice([f for f in FINISHES if f != things[i].finish]))
        return replace(scene, things=tuple(replace(t, finish=other) if j == i else t for j, t in enumerate(things)))
    if how < 0.7:
        i = int(rng.integers(len(things)))
        other = str(rng.choice([k for k in KINDS if k != things[i].kind]))
        return replace(scene, things=tuple(replace(t, kind=other) if j == i else t for j, t in enumerate(things)))
    if how < 0.85:
        return replace(scene, place=str(rng.choice([p for p in PLACES if p != scene.place])))
    return replace(scene, time=str(rng.choice([t for t in TIMES if t != scene.time])))


def trained_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer, written into `folder` first if it is not there."""
    if not (folder / "tokenizer" / "vocab.json").exists():
        save_tokenizer(folder / "tokenizer")
    return CLIPTokenizer.from_pretrained(folder / "tokenizer")


def text_tower(towers: CLIPModel) -> CLIPTextModel:
    """CLIP's text tower as the pipeline's CLIPTextModel."""
    config = towers.config.text_config
    assert isinstance(config, CLIPTextConfig)
    model = CLIPTextModel(config)
    model.load_state_dict(towers.text_model.state_dict())
    return model


def tokenize(tokenizer: CLIPTokenizer, texts: list[str], length: int | None = LENGTH) -> Tensor:
    """Token ids (B, length), padded with the end token; `length` None pads to the longest."""
    padding = "longest" if length is None else "max_length"
    return tokenizer(texts, padding=padding, max_length=LENGTH, truncation=True, return_tensors="pt").input_ids


def clip_loss(pictures: Tensor, scenes: list[Scene], tokenizer: CLIPTokenizer, batch: int = 64) -> Callable:
    """InfoNCE both ways over a batch; near misses of captions are extra negatives that pictures must turn down."""

    def loss(clip: CLIPModel, generator: torch.Generator, step: int) -> Tensor:
        index = torch.randint(len(scenes), (batch,), generator=generator)
        rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        chosen = [scenes[i] for i in index.tolist()]
        texts = [caption(s, rng, omit=0.08) for s in chosen] + [
            caption(near_miss(s, rng), rng, omit=0.0) for s in chosen[: batch // 2]
        ]
        ids = tokenize(tokenizer, texts, None)
        out = clip(input_ids=ids, pixel_values=pictures[index].permute(0, 3, 1, 2).float() / 127.5 - 1)
        scale = clip.logit_scale.exp().clamp(max=100).to(out.image_embeds.device)
        logits = scale * F.normalize(out.image_embeds, dim=-1) @ F.normalize(out.text_embeds, dim=-1).T
        label = torch.arange(batch)
        return (F.cross_entropy(logits, label) + F.cross_entropy(logits[:, :batch].T, label)) / 2

    return loss


def halved(pictures) -> Tensor:
    """uint8 pictures (N, 128, 128, 3) averaged down to (N, 64, 64, 3)."""
    x = torch.as_tensor(pictures)
    return torch.cat(
        [F.avg_pool2d(p.permute(0, 3, 1, 2).float(), 2).round().byte().permute(0, 2, 3, 1) for p in x.split(500)]
    )


def train_clip(
    pictures: Tensor,
    scenes: list[Scene],
    tokenizer: CLIPTokenizer,
    steps: int,
    *,
    lr: float = 1e-3,
    batch: int = 64,
    seed: int = 0,
    **options: Any,
) -> Iterator[tuple[Progress, CLIPModel]]:
    """Train CLIP on uint8 pictures (N, 64, 64, 3); yields progress and the moving average. `options` are those
    of `training.train`.
    """
    clip = make_clip(tokenizer, seed)
    optimizer = torch.optim.AdamW(clip.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.02)
    loss = clip_loss(pictures, scenes, tokenizer, batch)
    return train_averaged(clip, loss, optimizer, steps, ema_decay=0.998, seed=seed, **options)


@torch.no_grad()
def retrieval(
    clip: CLIPModel, pictures: Tensor, scenes: list[Scene], tokenizer: CLIPTokenizer, seed: int = 0
) -> dict[str, float]:
    """Held-out retrieval: the shares of pictures that find their caption among all, and prefer it to its near miss."""
    rng = np.random.default_rng(seed)
    images, texts, misses = [], [], []
    for i in range(0, len(scenes), 100):
        some = scenes[i : i + 100]
        x = pictures[i : i + 100].permute(0, 3, 1, 2).float() / 127.5 - 1
        right, wrong = ([caption(s) for s in some], [caption(near_miss(s, rng)) for s in some])
        out = clip(input_ids=tokenize(tokenizer, right + wrong), pixel_values=x)
        t = F.normalize(out.text_embeds, dim=-1)
        images.append(F.normalize(out.image_embeds, dim=-1))
        texts.append(t[: len(some)])
        misses.append(t[len(some) :])
    image, text, miss = torch.cat(images), torch.cat(texts), torch.cat(misses)
    own = (image * text).sum(-1)
    top = (image @ text.T).argmax(-1) == torch.arange(len(scenes))
    differs = (text - miss).abs().amax(-1) > 1e-6
    return {
        "clip_top1": top.float().mean().item(),
        "clip_near_miss": (own > (image * miss).sum(-1))[differs].float().mean().item(),
    }
