"""The exercises of notebook 00: asking the model for a picture, and drawing the same picture twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from companion.exercises.machinery import Wrong, register

NOTEBOOK = "00_start_here"


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


@register(NOTEBOOK, _test_ask)
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


@register(NOTEBOOK, _test_twice)
def twice(pipe, prompt, seed):
    """Draw the same picture twice: call pipe(prompt, generator=...).images[0] two times, and return both."""
    from companion.models import seeded

    first = pipe(prompt, generator=seeded(seed)).images[0]
    second = pipe(prompt, generator=seeded(seed)).images[0]
    return first, second
