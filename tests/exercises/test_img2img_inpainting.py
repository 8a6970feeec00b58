"""Common mistakes in the exercises of notebook 03, each with words from the hint it must get."""

from __future__ import annotations

from .helpers import assert_hint, each, exercises_of

MISTAKES = [
    ("first_step", lambda n, s: int(n * s), "how many are left out"),
    ("first_step", lambda n, s: n - n * s, "whole number"),
    ("first_step", lambda n, s: n - round(n * s), "takes int(2.9)"),
    ("first_step", lambda n, s: n - int(n * s) + (s < 1), "should be 8, and gave 9"),
    ("cover", lambda m, f: m[::f, ::f], "got lost"),
    ("cover", lambda m, f: m.reshape(4, f, 6, f).mean((1, 3)), "not a share"),
    ("cover", lambda m, f: m, "not (16, 24)"),
    ("cover", lambda m, f: m.reshape(4, f, 6, f).amax((1, 3)) * 0 + 1, "is any of them 1?"),
    ("blend", lambda x, s, e, a, m: m * x + (1 - m) * s, "the same noise level"),
    ("blend", lambda x, s, e, a, m: m * (a**0.5 * s + (1 - a) ** 0.5 * e) + (1 - m) * x, "exchanged"),
    ("blend", lambda x, s, e, a, m: m * x + (1 - m) * (a * s + (1 - a) * e), "square root"),
    ("blend", lambda x, s, e, a, m: x, "inside the mask"),
    ("back_up", lambda x, e, a, b: b**0.5 * x + (1 - b) ** 0.5 * e, "as clean"),
    ("back_up", lambda x, e, a, b: b / a * x + (1 - b / a) * e, "square root"),
    ("back_up", lambda x, e, a, b: x + e, "multiply with what"),
]


@each(MISTAKES)
def test_a_usual_mistake_gets_its_hint(name, answer, hint):
    assert_hint(name, answer, hint)


def test_every_exercise_has_a_usual_mistake():
    assert {name for name, _, _ in MISTAKES} == exercises_of("03_img2img_inpainting")
