"""Common mistakes in the exercises of notebook 02, each with words from the hint it must get."""

from __future__ import annotations

from .helpers import assert_hint, each, exercises_of

MISTAKES = [
    (
        "heun_step",
        lambda m, x, s, t: x + (t - s) * (x - m(x, s)) / s,
        "Euler's step still",
    ),
    ("heun_step", lambda m, x, s, t: x, "which sigma"),
    (
        "ancestral_step",
        lambda x, x0, s, t, eta, n: x + (t - s) * (x - x0) / s + eta * t * (s**2 - t**2) ** 0.5 / s * n,
        "too noisy",
    ),
    ("ancestral_step", lambda x, x0, s, t, eta, n: x0 + t * n, "must be Euler's"),
    ("enough_steps", lambda d, limit, share: min(d), "should give 10"),
    (
        "enough_steps",
        lambda d, limit, share: min(n for n in d if sum(v <= limit for v in d[n]) >= share * len(d[n])),
        "by luck",
    ),
]


@each(MISTAKES)
def test_a_usual_mistake_gets_its_hint(name, answer, hint):
    assert_hint(name, answer, hint)


def test_every_exercise_has_a_usual_mistake():
    assert {name for name, _, _ in MISTAKES} == exercises_of("02_samplers")
