"""Every exercise: its stub is "not done yet", its solution is right, and both stand where they should."""

from __future__ import annotations

import ast
import inspect

import nbformat
import pytest

from companion import exercises
from companion.run import NOTEBOOKS

from .helpers import stub_function

NAMES = list(exercises.EXERCISES)


@pytest.mark.parametrize("name", NAMES)
class TestEveryExercise:
    def test_the_stub_is_not_done_yet(self, name):
        verdict = exercises.check(name, stub_function(name))
        assert verdict.status == "not done yet" and not verdict
        assert name in verdict.text

    def test_the_solution_is_right(self, name):
        verdict = exercises.check(name, exercises.exercise(name).solution)
        assert verdict and verdict.status == "right", verdict

    def test_the_shown_solution_is_right(self, name):
        namespace: dict = {}
        exec(exercises.solution(name), namespace)
        assert exercises.check(name, namespace[name])

    def test_the_stub_does_not_give_it_away(self, name):
        function = ast.parse(exercises.stub(name)).body[0]
        assert [type(statement) for statement in function.body] == [ast.Expr, ast.Raise]
        assert inspect.signature(stub_function(name)) == inspect.signature(exercises.exercise(name).solution)

    def test_nothing_returned_is_wrong(self, name):
        count = len(inspect.signature(exercises.exercise(name).solution).parameters)
        answer = eval(f"lambda {', '.join('abcdef'[:count])}: None")
        verdict = exercises.check(name, answer)
        assert verdict.status == "wrong" and verdict.text

    def test_an_error_is_told(self, name):
        def broken(*args):
            raise KeyError("oops")

        verdict = exercises.check(name, broken)
        assert verdict.status == "wrong" and "KeyError" in verdict.text

    def test_the_notebook_has_the_stub_and_checks_it(self, name):
        exercise = exercises.exercise(name)
        path = NOTEBOOKS / f"{exercise.notebook}.ipynb"
        cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        assert exercise.stub in cells
        assert any(f'exercises.check("{name}", {name})' in cell for cell in cells)
