"""Common mistakes in the exercises of notebook 00, each with words from the hint it must get."""

from __future__ import annotations

from companion.models import seeded

from .helpers import assert_hint, each, exercises_of

MISTAKES = [
    ("ask", lambda: 7, "return the prompt"),
    ("ask", lambda: "a dog", "name one or two of"),
    ("ask", lambda: "a gold ball at night", "one thing"),
    ("ask", lambda: "a gold ball and a red cube at night", "how the two stand"),
    ("ask", lambda: "a red ball behind a blue cube at night", "neither thing is gold"),
    ("ask", lambda: "a gold ball behind a blue cube at sunset", "not night"),
    ("twice", lambda pipe, prompt, seed: pipe(prompt).images[0], "call it twice"),
    ("twice", lambda pipe, prompt, seed: [pipe(prompt).images[0] for _ in range(2)], "without a generator"),
    (
        "twice",
        lambda pipe, prompt, seed: (lambda g: [pipe(prompt, generator=g).images[0] for _ in range(2)])(seeded(seed)),
        "moves on",
    ),
    (
        "twice",
        lambda pipe, prompt, seed: [pipe(prompt, generator=seeded(0)).images[0] for _ in range(2)],
        "not those of the seed",
    ),
    (
        "twice",
        lambda pipe, prompt, seed: [pipe("x", generator=seeded(seed)).images[0] for _ in range(2)],
        "pass on the one",
    ),
]


@each(MISTAKES)
def test_a_usual_mistake_gets_its_hint(name, answer, hint):
    assert_hint(name, answer, hint)


def test_every_exercise_has_a_usual_mistake():
    assert {name for name, _, _ in MISTAKES} == exercises_of("00_start_here")
