"""What every exercise shares: how it is registered, looked up, checked and shown, and helpers for the tests of answers.

@register("03_img2img_inpainting", _test_first_step)
def first_step(steps, strength):
    ...  # a docstring, which stands in the stub, and the solution, which does not
"""

from __future__ import annotations

import ast
import difflib
import html
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")
Answer = Callable[..., Any]


class Wrong(Exception):
    """Raised by the test of an exercise when an answer is not right yet; the message is a hint for the reader."""


@dataclass(frozen=True)
class Exercise:
    """One exercise of the course.

    Attributes:
        name: the name of the function that the reader writes.
        notebook: the notebook that the exercise stands in, without ".ipynb".
        solution: a function that solves it. The reader is shown its source, so it must stand on its own.
        test: takes an answer and returns a sentence that says what is right about it, or raises `Wrong` with a hint.
    """

    name: str
    notebook: str
    solution: Answer
    test: Callable[[Answer], str]

    @property
    def stub(self) -> str:
        """The solution without its body, which is what the notebook gives the reader to begin with."""
        source, function = _parsed(self.solution)
        head = source.splitlines()[function.lineno - 1 : function.body[0].end_lineno]
        return "\n".join([*head, f'    raise NotImplementedError("{self.name}")  # your code instead of this line'])


#: All exercises by name. Importing `companion.exercises` fills it.
EXERCISES: dict[str, Exercise] = {}


def register(notebook: str, test: Callable[[Answer], str]) -> Callable[[Answer], Answer]:
    """A decorator that makes a solution an exercise of `notebook`, under the name of the function."""

    def add(solution: Answer) -> Answer:
        EXERCISES[solution.__name__] = Exercise(solution.__name__, notebook, solution, test)
        return solution

    return add


def _parsed(answer: Answer) -> tuple[str, ast.FunctionDef]:
    """The source of a function, and its syntax tree with line numbers in that source."""
    source = textwrap.dedent(inspect.getsource(answer))
    (function,) = (node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef))
    return source, function


def exercise(name: str) -> Exercise:
    """The exercise of that name. Raises ValueError when there is none, with a list of all exercises."""
    if name not in EXERCISES:
        near = difflib.get_close_matches(name, EXERCISES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        names = sorted(EXERCISES, key=lambda known: EXERCISES[known].notebook)
        raise ValueError(f"there is no exercise {name!r}; {hint}The exercises are: {', '.join(names)}")
    return EXERCISES[name]


@dataclass(frozen=True)
class Verdict:
    """What a check found: `status` is "right", "wrong" or "not done yet". It is true when the answer is right."""

    status: str
    text: str

    def __bool__(self) -> bool:
        return self.status == "right"

    def __repr__(self) -> str:
        return f"{self.status}: {self.text}"

    def _repr_html_(self) -> str:
        colour = {"right": "#17713a", "wrong": "#b3261e"}.get(self.status, "#666666")
        return f'<b style="color:{colour}">{self.status}</b>: {html.escape(self.text)}'


def check(name: str, answer: Answer) -> Verdict:
    """Whether an answer is right, and if it is not, a hint.

    An answer that raises an error is wrong, and the verdict names the error. Raises ValueError when there is no
    exercise of that name.
    """
    found = exercise(name)
    if not callable(answer):
        return Verdict("wrong", f"give the function itself, as in check({name!r}, {name}), without calling it")
    try:
        return Verdict("right", found.test(answer))
    except NotImplementedError:
        return Verdict("not done yet", f"write {name} above, run its cell, and then this one again")
    except Wrong as hint:
        return Verdict("wrong", str(hint))
    except Exception as error:
        return Verdict("wrong", f"it stopped with {type(error).__name__}: {error}")


class Source(str):
    """Python source, which a notebook shows in colour."""

    def __repr__(self) -> str:
        return str(self)

    def _repr_markdown_(self) -> str:
        return f"```python\n{self}\n```"


def solution(name: str) -> Source:
    """The source of one function that solves the exercise. Raises ValueError when there is no exercise of that name."""
    source, function = _parsed(exercise(name).solution)
    return Source("\n".join(source.splitlines()[function.lineno - 1 :]))


def stub(name: str) -> str:
    """What the notebook gives the reader to fill in. Raises ValueError when there is no such exercise."""
    return exercise(name).stub


def use(name: str, answer: Answer) -> Answer:
    """The reader's function once it is right, and the course's until then, so that the notebook can go on.

    It prints which of the two it is. Raises ValueError when there is no exercise of that name.
    """
    verdict = check(name, answer)
    lacks = "done" if verdict.status == "not done yet" else "right"
    print(f"{name}: {'yours' if verdict else f'yours is not {lacks} yet, so the notebook goes on with the solution'}")
    return answer if verdict else exercise(name).solution


# ---- Helpers for the tests of answers; torch is imported when one of them runs ---------------------------------------


def returned(found: T | None) -> T:
    """What an answer returned. Raises `Wrong` when that is None, since the function then lacks its `return`."""
    if found is None:
        raise Wrong("it returned nothing; end it with `return ...`")
    return found


def same(found: Any, wanted: Any, tolerance: float = 1e-4) -> bool:
    """Whether two arrays or numbers have the same shape and values, up to `tolerance` plus 1e-4 relative."""
    import torch

    found, wanted = torch.as_tensor(found), torch.as_tensor(wanted)
    return found.shape == wanted.shape and bool(
        torch.allclose(found.float(), wanted.float(), atol=tolerance, rtol=1e-4)
    )


def tensors(*shapes: tuple[int, ...]) -> list[Any]:
    """A tensor of normal random numbers for each shape, the same ones every time."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]
