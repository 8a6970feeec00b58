"""What the tests of the notebooks' exercises share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from companion import exercises


def each(mistakes: list[tuple[str, Callable, str]]) -> pytest.MarkDecorator:
    """A test for each mistake: the name of an exercise, a wrong answer, and words from the hint."""
    ids = [f"{name}-{hint}" for name, _, hint in mistakes]
    return pytest.mark.parametrize(("name", "answer", "hint"), mistakes, ids=ids)


def assert_hint(name: str, answer: Callable, hint: str) -> None:
    """Assert a wrong answer whose verdict contains the words."""
    verdict = exercises.check(name, answer)
    assert verdict.status == "wrong" and hint in verdict.text, verdict


def exercises_of(notebook: str) -> set[str]:
    """The names of the exercises that stand in a notebook."""
    return {name for name, exercise in exercises.EXERCISES.items() if exercise.notebook == notebook}


def stub_function(name: str) -> Callable:
    """The function that a reader has before writing anything."""
    namespace: dict = {}
    exec(exercises.stub(name), namespace)
    return namespace[name]
