"""Common mistakes in the exercises of notebook 07, each with words from the hint it must get."""

from __future__ import annotations

from .helpers import assert_hint, each, exercises_of

MISTAKES = [
    ("training_bytes", lambda learns, stays: 16 * learns + 4 * stays, "half precision"),
    ("training_bytes", lambda learns, stays: 12 * learns + 2 * stays, "two moments, not one"),
    ("training_bytes", lambda learns, stays: 8 * learns + 2 * stays, "two moments more"),
    ("training_bytes", lambda learns, stays: 18 * learns + 2 * stays, "not both"),
    ("training_bytes", lambda learns, stays: 16 * (learns + stays), "two for each"),
    ("may_repeat", lambda paid, outcome: True, "started before the line broke"),
    ("may_repeat", lambda paid, outcome: not paid, "without a connection nothing was sent"),
    ("may_repeat", lambda paid, outcome: outcome in ("no connection", 429) or not paid, "the question is wrong"),
    (
        "may_repeat",
        lambda paid, outcome: outcome in ("no connection", 429) or not (paid or outcome == 401),
        "the question",
    ),
    ("may_repeat", lambda paid, outcome: outcome == 429 or not paid and outcome != "no connection", "never asked"),
    ("break_even", lambda hour, second, each: 2000 / each, "all three numbers count"),
    ("break_even", lambda hour, second, each: 400, "all three numbers count"),
    ("break_even", lambda hour, second, each: hour / second, "seconds of one picture"),
    ("break_even", lambda hour, second, each: hour / (second * 3600 * each), "3600 has no place"),
    ("break_even", lambda hour, second, each: each, "should be 400"),
]


@each(MISTAKES)
def test_a_usual_mistake_gets_its_hint(name, answer, hint):
    assert_hint(name, answer, hint)


def test_every_exercise_has_a_usual_mistake():
    assert {name for name, _, _ in MISTAKES} == exercises_of("07_where_to_run")
