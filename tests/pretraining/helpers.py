"""What the tests of training the miniature's models share."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CLIPTextModel, CLIPTokenizer

from companion.pretraining.clip import make_clip, text_tower


def untrained_text_encoder(words: CLIPTokenizer, seed: int = 0) -> CLIPTextModel:
    """The text tower of an untrained CLIP."""
    return text_tower(make_clip(words, seed))


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    """Whether two models have the same weights, to the bit."""
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def names_in(checkpoint: Path) -> set[str]:
    """The names of the tensors of a safetensors file."""
    from safetensors import safe_open

    with safe_open(checkpoint, "pt") as f:
        return set(f.keys())
