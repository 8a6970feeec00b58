"""Exercises: every stub is "not done yet", every solution is right, and each usual mistake gets its own hint."""

from __future__ import annotations

import ast
import inspect

import nbformat
import pytest

from companion import exercises
from companion.models import seeded
from companion.run import NOTEBOOKS

NAMES = list(exercises.EXERCISES)


def stub_function(name: str):
    namespace: dict = {}
    exec(exercises.stub(name), namespace)
    return namespace[name]


@pytest.mark.parametrize("name", NAMES)
class TestEveryExercise:
    def test_the_stub_is_not_done_yet(self, name):
        verdict = exercises.check(name, stub_function(name))
        assert verdict.status == "not done yet" and not verdict
        assert name in verdict.text

    def test_the_solution_is_right(self, name):
        verdict = exercises.check(name, exercises.find(name).solution)
        assert verdict and verdict.status == "right", verdict

    def test_the_shown_solution_is_right(self, name):
        namespace: dict = {}
        exec(exercises.solution(name), namespace)
        assert exercises.check(name, namespace[name])

    def test_the_stub_does_not_give_it_away(self, name):
        function = ast.parse(exercises.stub(name)).body[0]
        assert [type(statement) for statement in function.body] == [ast.Expr, ast.Raise]
        assert inspect.signature(stub_function(name)) == inspect.signature(exercises.find(name).solution)

    def test_nothing_returned_is_wrong(self, name):
        count = len(inspect.signature(exercises.find(name).solution).parameters)
        answer = eval(f"lambda {', '.join('abcdef'[:count])}: None")
        verdict = exercises.check(name, answer)
        assert verdict.status == "wrong" and verdict.text

    def test_an_error_is_told(self, name):
        def broken(*args):
            raise KeyError("oops")

        verdict = exercises.check(name, broken)
        assert verdict.status == "wrong" and "KeyError" in verdict.text

    def test_the_notebook_has_the_stub_and_checks_it(self, name):
        exercise = exercises.find(name)
        path = NOTEBOOKS / f"{exercise.notebook}.ipynb"
        cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        assert exercise.stub in cells
        assert any(f'exercises.check("{name}", {name})' in cell for cell in cells)


# (exercise, answer, words of the hint)
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
    ("remove_noise", lambda x, e, a: x - e, "only a part"),
    ("remove_noise", lambda x, e, a: x - (1 - a) ** 0.5 * e, "still shrunk"),
    ("remove_noise", lambda x, e, a: (x - (1 - a) * e) / a, "square root"),
    ("remove_noise", lambda x, e, a: (x + (1 - a) ** 0.5 * e) / a**0.5, "solve it for x0"),
    ("compose", lambda n, noises, scales: n + scales[0] * (noises[0] - n) if noises else n, "two are not"),
    (
        "compose",
        lambda n, noises, scales: sum(n + s * (e - n) for e, s in zip(noises, scales, strict=True)),
        "no prompt",
    ),
    (
        "compose",
        lambda n, noises, scales: sum(n + s * (e - n) for e, s in zip(noises, scales, strict=True)) if noises else n,
        "in it twice",
    ),
    (
        "compose",
        lambda n, noises, scales: n + sum(s * e for e, s in zip(noises, scales, strict=True)),
        "ordinary guidance",
    ),
    ("euler_step", lambda x, e, s, s2: x + (s - s2) * e, "sign"),
    ("euler_step", lambda x, e, s, s2: x - s * e, "too far"),
    ("euler_step", lambda x, e, s, s2: x - s2 * e, "sigma_next"),
    ("fewest_steps", lambda d, limit: min(n for n in d if d[n] <= limit), "by luck"),
    ("fewest_steps", lambda d, limit: max(d), "should give 8"),
    ("fewest_steps", lambda d, limit: None, "should give 8"),
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
    ("training_bytes", lambda learns, stays: 16 * learns + 4 * stays, "half precision"),
    ("training_bytes", lambda learns, stays: 12 * learns + 2 * stays, "two moments, not one"),
    ("training_bytes", lambda learns, stays: 8 * learns + 2 * stays, "two moments more"),
    ("training_bytes", lambda learns, stays: 18 * learns + 2 * stays, "not both"),
    ("training_bytes", lambda learns, stays: 16 * (learns + stays), "two for each"),
    ("may_repeat", lambda paid, outcome: True, "started before the line broke"),
    ("may_repeat", lambda paid, outcome: not paid, "without a connection nothing was sent"),
    ("may_repeat", lambda paid, outcome: outcome in ("no connection", 429) or not paid, "the token is wrong"),
    ("break_even", lambda hour, second, each: hour / second, "seconds of one picture"),
    ("break_even", lambda hour, second, each: hour / (second * 3600 * each), "3600 has no place"),
    ("break_even", lambda hour, second, each: each, "should be 400"),
]


@pytest.mark.parametrize(("name", "answer", "hint"), MISTAKES, ids=[f"{n}-{h}" for n, _, h in MISTAKES])
def test_each_usual_mistake_gets_its_hint(name, answer, hint):
    verdict = exercises.check(name, answer)
    assert verdict.status == "wrong"
    assert hint in verdict.text


def test_no_exercise_is_without_a_mistake():
    assert {name for name, _, _ in MISTAKES} == set(NAMES)


def test_calling_instead_of_giving_the_function():
    assert "without calling it" in exercises.check("compose", 3).text


def test_an_unknown_exercise_is_named():
    with pytest.raises(ValueError, match="no exercise 'composse'; did you mean 'compose'"):
        exercises.solution("composse")


def test_the_readers_function_is_used_once_it_is_right(capsys):
    def euler_step(x, eps, sigma, sigma_next):
        return x - eps * (sigma - sigma_next)

    assert exercises.use("euler_step", euler_step) is euler_step
    assert capsys.readouterr().out == "euler_step: yours\n"
    assert exercises.use("euler_step", stub_function("euler_step")) is exercises.find("euler_step").solution
    assert "until yours is right" in capsys.readouterr().out


def test_a_verdict_in_words():
    assert repr(exercises.Verdict("wrong", "a < b")) == "wrong: a < b"
    assert "a &lt; b" in exercises.Verdict("wrong", "a < b")._repr_html_()
    assert exercises.solution("euler_step")._repr_markdown_().startswith("```python\ndef euler_step")
