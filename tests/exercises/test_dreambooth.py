"""Common mistakes in the exercises of notebook 05, each with words from the hint it must get."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from companion import dreambooth, exercises

from .helpers import assert_hint, each, exercises_of


def _mean(x):
    return x.square().mean()


MISTAKES = [
    ("times_seen", lambda s, b, a, n: s * b * a, "shared by 5"),
    ("times_seen", lambda s, b, a, n: s / n, "takes 2 photographs"),
    ("times_seen", lambda s, b, a, n: s * b / n, "gradients of 4 batches"),
    ("times_seen", lambda s, b, a, n: s, "shared by 5"),
    ("times_seen", lambda s, b, a, n: 0, "should be 20, and gave 0"),
    ("dreambooth_loss", lambda p, e, w: _mean(p - e), "take two means"),
    ("dreambooth_loss", lambda p, e, w: w * _mean((p - e)[:3]) + _mean((p - e)[3:]), "wrong half"),
    ("dreambooth_loss", lambda p, e, w: w * (_mean((p - e)[:3]) + _mean((p - e)[3:])), "on both halves"),
    ("dreambooth_loss", lambda p, e, w: _mean((p - e)[:3]) + _mean((p - e)[3:]), "no effect"),
    ("dreambooth_loss", lambda p, e, w: (p - e).square()[:3] + w * (p - e).square()[3:], "one number"),
    ("dreambooth_loss", lambda p, e, w: (p - e).abs().mean(), "mean squared error"),
    ("diversity", lambda f: 1 - torch.corrcoef(f).mean(), "bring each row to length 1"),
    ("diversity", lambda f: 1 - torch.cosine_similarity(f[:, None], f[None], dim=-1).mean(), "compared with itself"),
    ("diversity", lambda f: 1 - exercises.exercise("diversity").solution(f), "1 minus that"),
    ("stop_at", lambda likeness, kept, most: max(kept), "the last step"),
    ("stop_at", lambda likeness, kept, most: max(kept, key=lambda s: likeness[s]), "are lost"),
    ("stop_at", lambda likeness, kept, most: min(kept), "the highest likeness"),
]


@each(MISTAKES)
def test_a_usual_mistake_gets_its_hint(name, answer, hint):
    assert_hint(name, answer, hint)


def test_every_exercise_has_a_usual_mistake():
    assert {name for name, _, _ in MISTAKES} == exercises_of("05_dreambooth")


def test_diversity_is_what_the_companion_measures(monkeypatch):
    x = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(dreambooth, "standardised", lambda pictures, features: F.normalize(pictures, dim=-1))
    assert dreambooth.spread(x) == pytest.approx(float(exercises.exercise("diversity").solution(x)), abs=1e-5)
