"""The course's exercises: for each one its solution, from which the stub in the notebook is cut, and its check.

def guide(noise_nothing, noise_text, guidance_scale):
    ...
exercises.check("guide", guide)      # says what is right, or what to look at
exercises.solution("guide")          # shows one way to do it
"""

from __future__ import annotations

import ast
import difflib
import html
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class Wrong(Exception):
    """An answer that is not right yet; the message is the hint."""


@dataclass(frozen=True)
class Exercise:
    """One exercise: `notebook` that it stands in, `solution`, and `test`, which raises `Wrong` with a hint."""

    name: str
    notebook: str
    solution: Callable[..., Any]
    test: Callable[[Callable[..., Any]], str]

    @property
    def stub(self) -> str:
        """The solution without its body: what the notebook gives the reader to begin with."""
        source, function = _parsed(self.solution)
        head = source.splitlines()[function.lineno - 1 : function.body[0].end_lineno]
        return "\n".join([*head, f'    raise NotImplementedError("{self.name}")  # your code instead of this line'])


EXERCISES: dict[str, Exercise] = {}


def _parsed(function: Callable[..., Any]) -> tuple[str, ast.FunctionDef]:
    source = textwrap.dedent(inspect.getsource(function))
    return source, ast.parse(source).body[0]


def _exercise(notebook: str, test: Callable[[Callable[..., Any]], str]) -> Callable:
    def register(solution: Callable[..., Any]) -> Callable[..., Any]:
        EXERCISES[solution.__name__] = Exercise(solution.__name__, notebook, solution, test)
        return solution

    return register


def find(name: str) -> Exercise:
    """The exercise of that name. Raises ValueError for an unknown one, with the names that there are."""
    if name not in EXERCISES:
        near = difflib.get_close_matches(name, EXERCISES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"there is no exercise {name!r}; {hint}The exercises are: {', '.join(EXERCISES)}")
    return EXERCISES[name]


@dataclass(frozen=True)
class Verdict:
    """What a check found: `status` is "right", "wrong" or "not done yet". True when it is right."""

    status: str
    text: str

    def __bool__(self) -> bool:
        return self.status == "right"

    def __repr__(self) -> str:
        return f"{self.status}: {self.text}"

    def _repr_html_(self) -> str:
        colour = {"right": "#17713a", "wrong": "#b3261e"}.get(self.status, "#666666")
        return f'<b style="color:{colour}">{self.status}</b>: {html.escape(self.text)}'


def check(name: str, answer: Callable[..., Any]) -> Verdict:
    """Try an answer, and say whether it is right; if it is not, what to look at."""
    exercise = find(name)
    if not callable(answer):
        return Verdict("wrong", f"give the function itself, as in check({name!r}, {name}), without calling it")
    try:
        return Verdict("right", exercise.test(answer))
    except NotImplementedError:
        return Verdict("not done yet", f"write {name} above, run its cell, and then this one again")
    except Wrong as hint:
        return Verdict("wrong", str(hint))
    except Exception as error:
        return Verdict("wrong", f"it stopped with {type(error).__name__}: {error}")


class Source(str):
    """Python source, shown in colour in a notebook."""

    def __repr__(self) -> str:
        return str(self)

    def _repr_markdown_(self) -> str:
        return f"```python\n{self}\n```"


def solution(name: str) -> Source:
    """One way to do it."""
    source, function = _parsed(find(name).solution)
    return Source("\n".join(source.splitlines()[function.lineno - 1 :]))


def stub(name: str) -> str:
    """What stands in the notebook for the reader to fill in."""
    return find(name).stub


def use(name: str, answer: Callable[..., Any]) -> Callable[..., Any]:
    """The reader's function once it is right, and the course's until then, so that the notebook can go on."""
    verdict = check(name, answer)
    print(f"{name}: {'yours' if verdict else 'the course has one, until yours is right'}")
    return answer if verdict else find(name).solution


def _same(found: Any, wanted: Any, tolerance: float = 1e-4) -> bool:
    import torch

    found, wanted = torch.as_tensor(found), torch.as_tensor(wanted)
    return found.shape == wanted.shape and bool(
        torch.allclose(found.float(), wanted.float(), atol=tolerance, rtol=1e-4)
    )


# ---- 00: start here --------------------------------------------------------------------------------------------------


def _test_ask(ask: Callable[[], str]) -> str:
    from companion.tabletop.caption import parse

    prompt = ask()
    if not isinstance(prompt, str):
        raise Wrong(f"it gave {prompt!r}; return the prompt, a text in quotation marks")
    try:
        wish = parse(prompt)
    except ValueError as error:
        raise Wrong(str(error)) from None
    if len(wish.kinds) != 2:
        raise Wrong("it names one thing; name two, such as 'a robot behind a house'")
    if not wish.relation:
        raise Wrong("it does not say how the two stand: left of, right of, in front of, or behind")
    if "gold" not in wish.finishes:
        raise Wrong(f"neither thing is gold; the finishes it names are {wish.finishes}")
    if wish.time != "night":
        raise Wrong("it is not night yet: say 'at night' or 'by moonlight'")
    return f"it asks for {prompt!r}. Now see whether the model draws it."


@_exercise("00_start_here", _test_ask)
def ask():
    """A prompt for two things, one of them gold, with how they stand to each other, at night."""
    return "a gold robot left of a blue house on snow at night"


def _test_twice(twice: Callable[[Any, str, int], Any]) -> str:
    import torch

    class Machine:
        """Stands for a pipeline: its picture is made of noise from the generator."""

        def __init__(self) -> None:
            self.calls: list[tuple[str, Any]] = []

        def __call__(self, prompt: str, generator: Any = None, **kwargs: Any) -> Any:
            self.calls.append((prompt, generator))
            return type("Output", (), {"images": [torch.randn(4, generator=generator).tolist()]})()

    machine = Machine()
    answer = twice(machine, "a red ball", 3)
    if len(machine.calls) != 2:
        raise Wrong(f"it called the pipeline {len(machine.calls)} times; call it twice")
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        raise Wrong("return the two pictures, as in `return first, second`")
    first, second = answer
    if any(generator is None for _, generator in machine.calls):
        raise Wrong("a call without a generator starts from noise nobody can repeat; give generator=seeded(seed)")
    if first != second:
        raise Wrong("the two pictures differ: a generator moves on when it is used, so make a new one for each call")
    expected = torch.randn(4, generator=torch.Generator("cpu").manual_seed(3)).tolist()
    if first != expected:
        raise Wrong("the two are equal, but not those of the seed that was given")
    if machine.calls[0][0] != "a red ball":
        raise Wrong(f"the prompt that reached the pipeline is {machine.calls[0][0]!r}; pass on the one that was given")
    return "both calls begin with the same noise, so both draw the same picture."


@_exercise("00_start_here", _test_twice)
def twice(pipe, prompt, seed):
    """Draw the same picture twice: call pipe(prompt, generator=...).images[0] two times, and return both."""
    from companion.models import seeded

    first = pipe(prompt, generator=seeded(seed)).images[0]
    second = pipe(prompt, generator=seeded(seed)).images[0]
    return first, second


# ---- 01: latent diffusion --------------------------------------------------------------------------------------------


def _tensors(*shapes: tuple[int, ...]) -> list[Any]:
    import torch

    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def _test_remove_noise(remove_noise: Callable[..., Any]) -> str:
    import torch

    x0, eps = _tensors((3, 4, 8, 8), (3, 4, 8, 8))
    alpha_bar = torch.tensor([0.99, 0.5, 0.01]).view(-1, 1, 1, 1)
    noisy = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps
    found = remove_noise(noisy, eps, alpha_bar)
    if found is None:
        raise Wrong("it returned nothing; end it with `return ...`")
    if _same(found, noisy - (1 - alpha_bar).sqrt() * eps):
        raise Wrong("the noise is gone, but the picture is still shrunk: what did add_noise multiply x0 with?")
    if _same(found, noisy - eps):
        raise Wrong("it takes away all of eps, but only a part of it was put in: which part?")
    if _same(found, (noisy - (1 - alpha_bar) * eps) / alpha_bar):
        raise Wrong("both weights lack their square root: look at add_noise again")
    if not _same(found, x0, 1e-3):
        raise Wrong(
            "given the true noise it should give back x0: write down x_t = ... x0 + ... eps and solve it for x0"
        )
    return "given the true noise, it gives back the clean latents, at little noise and at much."


@_exercise("01_latent_diffusion", _test_remove_noise)
def remove_noise(noisy, eps, alpha_bar):
    """The clean latents x0 in noisy = add_noise(x0, eps, alpha_bar): the inverse, when the noise eps is known."""
    return (noisy - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5


def _test_compose(compose: Callable[..., Any]) -> str:
    nothing, first, second = _tensors((1, 4, 8, 8), (1, 4, 8, 8), (1, 4, 8, 8))
    one = compose(nothing, [first], [4.0])
    if one is None:
        raise Wrong("it returned nothing; end it with `return ...`")
    if not _same(one, nothing + 4.0 * (first - nothing), 1e-3):
        raise Wrong("with a single prompt it should be ordinary guidance: guide(noise_nothing, noises[0], scales[0])")
    if not _same(compose(nothing, [], []), nothing):
        raise Wrong("with no prompt at all it should be noise_nothing")
    both = compose(nothing, [first, second], [4.0, 2.0])
    if _same(both, nothing + 4.0 * (first - nothing) + nothing + 2.0 * (second - nothing), 1e-3):
        raise Wrong("noise_nothing is in it twice: start there once, then add a step for each prompt")
    if not _same(both, nothing + 4.0 * (first - nothing) + 2.0 * (second - nothing), 1e-3):
        raise Wrong("one prompt is right, two are not: each adds its scale * (its noise - noise_nothing)")
    return "one step from noise_nothing for each prompt, each with its own scale; one prompt is ordinary guidance."


@_exercise("01_latent_diffusion", _test_compose)
def compose(noise_nothing, noises, scales):
    """Guidance by several prompts at once: lists of predicted noises and of scales, one of each for each prompt."""
    return noise_nothing + sum(scale * (noise - noise_nothing) for noise, scale in zip(noises, scales, strict=True))


def _test_euler_step(euler_step: Callable[..., Any]) -> str:
    import torch

    x0, eps, other = _tensors((2, 4, 8, 8), (2, 4, 8, 8), (2, 4, 8, 8))
    sigma, sigma_next = torch.tensor(2.0), torch.tensor(0.5)
    found = euler_step(x0 + sigma * eps, eps, sigma, sigma_next)
    if found is None:
        raise Wrong("it returned nothing; end it with `return ...`")
    if _same(found, x0 + (2 * sigma - sigma_next) * eps):
        raise Wrong("it adds noise instead of removing it: mind the sign of sigma_next - sigma")
    if _same(found, x0) or _same(found, x0 + (sigma - sigma * sigma_next) * eps):
        raise Wrong("it goes too far: only the difference of the two noise levels is to be taken away")
    if not _same(found, x0 + sigma_next * eps):
        raise Wrong("given the true noise, x0 + sigma * eps must become x0 + sigma_next * eps")
    # With a noise that is not the true one, DDIM in these coordinates must give the same.
    x = x0 + sigma * eps
    if not _same(euler_step(x, other, sigma, sigma_next), (x - sigma * other) + sigma_next * other):
        raise Wrong("right for the true noise, wrong for another: use only x, eps and the two sigmas")
    return "it goes straight along eps to the next noise level, which is what DDIM does in other coordinates."


@_exercise("01_latent_diffusion", _test_euler_step)
def euler_step(x, eps, sigma, sigma_next):
    """One step for x = x0 + sigma * noise, with the predicted noise eps, to the smaller noise level sigma_next."""
    return x + (sigma_next - sigma) * eps


def _test_fewest_steps(fewest_steps: Callable[..., Any]) -> str:
    cases = [
        ({2: 9.0, 4: 5.0, 8: 2.0, 16: 1.0}, 3.0, 8),
        ({2: 9.0, 4: 2.5, 8: 4.0, 16: 2.0, 32: 1.0}, 3.0, 16),  # 4 steps come near by luck
        ({16: 1.0, 2: 9.0, 8: 2.0, 4: 5.0}, 5.0, 4),  # in no order, and a distance equal to the limit
        ({2: 9.0, 4: 8.0}, 3.0, None),
        ({2: 1.0, 4: 0.5}, 3.0, 2),
    ]
    for distances, limit, wanted in cases:
        found = fewest_steps(dict(distances), limit)
        if found == wanted:
            continue
        if wanted == 16 and found == 4:
            raise Wrong(f"with {distances}, 4 steps come near by luck and 8 are off again: larger ones must hold too")
        if wanted is None:
            raise Wrong(f"with {distances} no number of steps keeps to {limit}; return None then, not {found!r}")
        raise Wrong(f"with {distances} and limit {limit} it should give {wanted}, and gave {found!r}")
    return "it takes the smallest number of steps from which on every distance keeps to the limit."


@_exercise("01_latent_diffusion", _test_fewest_steps)
def fewest_steps(distances, limit):
    """The smallest key of distances such that it and all larger keys have a distance <= limit, or None."""
    best = None
    for steps in sorted(distances, reverse=True):
        if distances[steps] > limit:
            break
        best = steps
    return best
