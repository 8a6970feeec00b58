"""Common mistakes in the exercises of notebook 06, each with words from the hint it must get."""

from __future__ import annotations

import torch

from companion import exercises
from companion.oft_vs_lora import cayley, cayley_slider, line_slider, power

from .helpers import assert_hint, each, exercises_of


def distances(neurons):
    return (neurons[:, None] - neurons[None]).norm(dim=2)


def others(neurons, of=distances):
    return of(neurons)[~torch.eye(len(neurons), dtype=torch.bool)]


def root_before_mask(n):
    """The energy of points on the sphere, whose gradient is not a number."""
    return (1 / (n[:, None] - n[None]).square().sum(2).sqrt()[~torch.eye(len(n), dtype=torch.bool)]).sum()


def one(Q):
    return torch.eye(len(Q))


MISTAKES = [
    ("length_and_cosine", lambda w, x: w @ x, "return two numbers"),
    ("length_and_cosine", lambda w, x: (w.norm(), w @ x / w.norm() / x.norm()), "product of both lengths"),
    ("length_and_cosine", lambda w, x: ((w @ w) * (x @ x), 0), "squared lengths"),
    ("length_and_cosine", lambda w, x: (w.norm() + x.norm(), 0), "torch has w.norm()"),
    ("length_and_cosine", lambda w, x: (w.norm() * x.norm(), w @ x), "still the inner product"),
    ("length_and_cosine", lambda w, x: (w.norm() * x.norm(), (w @ x / w.norm() / x.norm()).acos()), "the angle itself"),
    ("length_and_cosine", lambda w, x: (w.norm() * x.norm(), 0.5), "divided by"),
    ("energy_of", lambda n: (1 / distances(n)).sum(), "leave out the pairs i = j"),
    ("energy_of", lambda n: (1 / others(n)).sum() / 2, "counts twice"),
    ("energy_of", lambda n: (1 / others(n)).mean(), "the mean over pairs"),
    ("energy_of", lambda n: others(n).sum(), "sum 1 / distance"),
    ("energy_of", lambda n: (1 / others(n)).sum(), "normalise each row"),
    ("energy_of", lambda n: exercises.exercise("energy_of").solution(n).item(), "return it as a tensor"),
    ("energy_of", lambda n: root_before_mask(n / n.norm(dim=1, keepdim=True)), "its slope is not a number"),
    ("cayley_map", lambda Q: cayley(-Q), "backwards"),
    ("cayley_map", lambda Q: one(Q) + Q, "only the beginning"),
    ("cayley_map", lambda Q: (one(Q) + Q) / (one(Q) - Q), "entry by entry"),
    ("cayley_map", lambda Q: torch.matrix_exp(Q), "torch.eye(len(Q))"),
    ("oft_numbers", lambda d, r: d * (d // r), "a skew-symmetric one has fewer"),
    ("oft_numbers", lambda d, r: d * (d // r + 1) // 2, "does not count"),
    ("oft_numbers", lambda d, r: (d // r) * (d // r - 1) // 2, "that is one block"),
    ("oft_numbers", lambda d, r: d, "count the entries above the diagonal"),
    ("oft_numbers", lambda d, r: d * (d / r - 1) / 2, "a whole number"),
    ("part_of_a_turn", lambda Q, t: power(Q, t) + 0j, "end with .real"),
    ("part_of_a_turn", cayley_slider, "half of Q is not half of the angle"),
    ("part_of_a_turn", line_slider, "neurons get shorter"),
    ("part_of_a_turn", lambda Q, t: torch.matrix_exp(t * Q), "two halves should make the whole turn"),
    ("part_of_a_turn", lambda Q, t: power(Q, abs(t)), "t = -0.3 is not"),
]


@each(MISTAKES)
def test_a_usual_mistake_gets_its_hint(name, answer, hint):
    assert_hint(name, answer, hint)


def test_every_exercise_has_a_usual_mistake():
    assert {name for name, _, _ in MISTAKES} == exercises_of("06_oft_vs_lora")
