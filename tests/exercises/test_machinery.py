"""Looking up, checking, showing and using exercises, whichever they are."""

from __future__ import annotations

import pytest
import torch

from companion import exercises
from companion.exercises import machinery

from .helpers import stub_function


def test_calling_instead_of_giving_the_function():
    assert "without calling it" in exercises.check("compose", 3).text


def test_an_unknown_exercise_is_named():
    with pytest.raises(ValueError, match="no exercise 'composse'; did you mean 'compose'"):
        exercises.solution("composse")
    with pytest.raises(
        ValueError, match="The exercises are: ask, twice, add_noise, remove_noise.*break_even$"
    ):  # as in the course
        exercises.exercise("composse")


def test_the_readers_function_is_used_once_it_is_right(capsys):
    def euler_step(x, eps, sigma, sigma_next):
        return x - eps * (sigma - sigma_next)

    assert exercises.use("euler_step", euler_step) is euler_step
    assert capsys.readouterr().out == "euler_step: yours\n"
    assert exercises.use("euler_step", stub_function("euler_step")) is exercises.exercise("euler_step").solution
    assert "yours is not done yet, so the notebook goes on" in capsys.readouterr().out
    solved = exercises.use("euler_step", lambda x, eps, sigma, sigma_next: x)
    assert solved is exercises.exercise("euler_step").solution
    assert "yours is not right yet, so the notebook goes on" in capsys.readouterr().out


def test_a_verdict_in_words():
    assert repr(exercises.Verdict("wrong", "a < b")) == "wrong: a < b"
    assert "a &lt; b" in exercises.Verdict("wrong", "a < b")._repr_html_()
    assert exercises.solution("euler_step")._repr_markdown_().startswith("```python\ndef euler_step")


def test_numbers_are_the_same_within_a_tolerance_and_in_the_same_shape():
    assert machinery.same([1.0, 2.0], torch.tensor([1.0, 2.00005]))
    assert not machinery.same([1.0, 2.0], [1.0, 2.01])
    assert machinery.same([1.0, 2.0], [1.0, 2.01], tolerance=0.02)
    assert not machinery.same([1.0], 1.0)


def test_tensors_are_the_same_every_time_and_differ_from_each_other():
    first, second = machinery.tensors((2, 3), (2, 3))
    again, _ = machinery.tensors((2, 3), (5,))
    assert torch.equal(first, again) and not torch.equal(first, second)
