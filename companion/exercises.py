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


# ---- 02: samplers ----------------------------------------------------------------------------------------------------


def _test_heun_step(heun_step: Callable[..., Any]) -> str:
    def model(x: Any, sigma: float) -> Any:  # the exact denoiser of data N(0, 1): nothing is straight in it
        return x / (1 + sigma**2)

    (x,) = _tensors((2, 4, 8, 8))
    s, t = 3.0, 1.5
    x = x * s
    found = heun_step(model, x, s, t)
    if found is None:
        raise Wrong("it returned nothing; end it with `return ...`")
    d = (x - model(x, s)) / s
    there = x + (t - s) * d
    second = (there - model(there, t)) / t
    if _same(found, there):
        raise Wrong("that is Euler's step still: ask the model again where it ends, and use the mean of both slopes")
    if _same(found, x + (t - s) * second):
        raise Wrong("it uses the slope at the end alone; take the mean of that at the beginning and that at the end")
    if _same(found, there + (t - s) * (d + second) / 2):
        raise Wrong("it steps twice: the step with the mean slope begins at x, not where Euler's ended")
    if not _same(found, x + (t - s) * (d + second) / 2):
        raise Wrong("the second slope is (there - x0 there) / sigma_next; look at which x and which sigma you use")
    return "the mean of both slopes, from where the step began: Heun's method, of second order."


@_exercise("02_samplers", _test_heun_step)
def heun_step(model, x, sigma, sigma_next):
    """Heun's step for x at sigma > sigma_next > 0; model(x, sigma) gives x0."""
    slope = (x - model(x, sigma)) / sigma
    there = x + (sigma_next - sigma) * slope  # Euler's step
    slope_there = (there - model(there, sigma_next)) / sigma_next
    return x + (sigma_next - sigma) * (slope + slope_there) / 2


def _test_ancestral_step(ancestral_step: Callable[..., Any]) -> str:
    x, x0, noise = _tensors((2, 4, 8, 8), (2, 4, 8, 8), (2, 4, 8, 8))
    s, t = 3.0, 1.0
    up = t * (s**2 - t**2) ** 0.5 / s
    answers = {eta: ancestral_step(x, x0, s, t, eta, noise) for eta in (0.0, 0.5, 1.0)}
    if any(found is None for found in answers.values()):
        raise Wrong("it returned nothing; end it with `return ...`")

    def right(eta: float) -> Any:
        down = (t**2 - (eta * up) ** 2) ** 0.5
        return x + (down - s) * (x - x0) / s + eta * up * noise

    if _same(answers[1.0], right(0.0) + up * noise):
        raise Wrong(
            "it goes down to sigma_next and adds noise on top, so it ends too noisy: go lower first, to sigma_down"
        )
    if not _same(answers[0.0], right(0.0)):
        raise Wrong(
            "with eta = 0 no noise may be left, and the step must be Euler's: from sigma to sigma_next along the slope"
        )
    if not _same(answers[1.0], right(1.0)):
        raise Wrong("with eta = 1, sigma_up is sigma_next * sqrt(sigma^2 - sigma_next^2) / sigma")
    if not _same(answers[0.5], right(0.5)):
        raise Wrong(
            "right at both ends of the dial, wrong between: eta multiplies sigma_up, before sigma_down is computed"
        )
    return "eta = 0 is Euler, eta = 1 is Euler a, and between them the noise level always comes out as sigma_next."


@_exercise("02_samplers", _test_ancestral_step)
def ancestral_step(x, x0, sigma, sigma_next, eta, noise):
    """An ancestral step with a dial: eta = 1 adds all of its noise, eta = 0 none, so that it is deterministic."""
    sigma_up = eta * sigma_next * (sigma**2 - sigma_next**2) ** 0.5 / sigma
    sigma_down = (sigma_next**2 - sigma_up**2) ** 0.5
    return x + (sigma_down - sigma) * (x - x0) / sigma + sigma_up * noise


def _test_enough_steps(enough_steps: Callable[..., Any]) -> str:
    cases = [
        ({5: [9, 9, 9, 9], 10: [1, 1, 1, 9], 20: [1, 1, 1, 1]}, 2.0, 0.75, 10),
        ({5: [9, 9, 9, 9], 10: [1, 1, 1, 9], 20: [1, 1, 1, 1]}, 2.0, 1.0, 20),
        ({20: [1, 1], 5: [1, 1], 10: [1, 9]}, 2.0, 1.0, 20),  # in no order, and 5 came near by luck
        ({5: [0, 0, 0, 7], 10: [1, 1, 1, 7]}, 2.0, 0.9, None),  # the mean of the first is below the limit
        ({5: [2.0, 2.0], 10: [1.0, 1.0]}, 2.0, 1.0, 5),  # equal to the limit is enough
    ]
    for distances, limit, share, wanted in cases:
        found = enough_steps({n: list(values) for n, values in distances.items()}, limit, share)
        if found == wanted:
            continue
        if wanted is None:
            raise Wrong(
                f"with {distances} and a share of {share} none is enough, mean or not; it gave {found!r}, not None"
            )
        if wanted == 20 and found == 5:
            raise Wrong(f"with {distances} 5 steps come near by luck and 10 are off again: larger ones must hold too")
        raise Wrong(
            f"with {distances}, limit {limit} and a share of {share} it should give {wanted}, and gave {found!r}"
        )
    return "it asks how many of the pictures are near enough, and that more steps keep them there."


@_exercise("02_samplers", _test_enough_steps)
def enough_steps(distances, limit, share):
    """The smallest key of distances from which on a `share` of the distances in each list is <= limit, or None."""
    best = None
    for steps in sorted(distances, reverse=True):
        near = [distance <= limit for distance in distances[steps]]
        if sum(near) < share * len(near):
            break
        best = steps
    return best


# ---- 03: img2img and inpainting --------------------------------------------------------------------------------------


def _test_first_step(first_step: Callable[[int, float], int]) -> str:
    cases = [(20, 1.0, 0), (20, 0.6, 8), (20, 0.05, 19), (50, 0.3, 35), (10, 0.29, 8), (20, 0.0, 20)]
    for steps, strength, wanted in cases:
        found = first_step(steps, strength)
        said = f"first_step({steps}, {strength})"
        if found is None:
            raise Wrong("it returned nothing; end it with `return ...`")
        if isinstance(found, float):
            raise Wrong(f"{said} gave {found!r}; it is an index in a list, so make it a whole number with int(...)")
        if found == wanted:
            continue
        if found == steps - wanted:
            raise Wrong(f"{said} gave {found}: that many steps are taken; how many are left out before them?")
        if (steps, strength) == (10, 0.29):
            raise Wrong(f"{said} should be 8: of 2.9 steps, the library takes int(2.9) = 2 and leaves out the other 8")
        raise Wrong(f"{said} should be {wanted}, and gave {found!r}")
    return "int(steps * strength) steps are taken, the last ones of the list."


@_exercise("03_img2img_inpainting", _test_first_step)
def first_step(steps, strength):
    """The index, in a list of `steps` timesteps, from which int(steps * strength) of them are left."""
    return steps - int(steps * strength)


def _test_cover(cover: Callable[[Any, int], Any]) -> str:
    import torch

    mask = torch.zeros(16, 24)
    mask[:, 9] = 1  # a line of one pixel
    mask[0, 0] = 1
    wanted = torch.zeros(4, 6)
    wanted[:, 2] = wanted[0, 0] = 1
    found = cover(mask.clone(), 4)
    if found is None:
        raise Wrong("it returned nothing; end it with `return ...`")
    found = torch.as_tensor(found).float()
    if found.shape != wanted.shape:
        raise Wrong(f"a mask of (16, 24) and a factor of 4 make {tuple(wanted.shape)}, not {tuple(found.shape)}")
    if _same(found, wanted):
        return "a patch is covered as soon as one of its pixels is: no line is too thin."
    if not found[:, 2].any():
        raise Wrong("a line of one pixel got lost: it lies between the pixels that were looked at")
    if ((found > 0) == (wanted > 0)).all():
        raise Wrong("a patch that is touched must be 1 and not a share: take the largest value in it, not the mean")
    raise Wrong("look at each patch of factor x factor pixels: is any of them 1?")


@_exercise("03_img2img_inpainting", _test_cover)
def cover(mask, factor):
    """A mask (H, W) of 0 and 1 as (H/factor, W/factor): 1 where any pixel of the patch is 1."""
    high, wide = mask.shape
    return mask.reshape(high // factor, factor, wide // factor, factor).amax((1, 3))


def _test_blend(blend: Callable[..., Any]) -> str:
    import torch

    drawn, source, noise = _tensors((2, 4, 8, 8), (2, 4, 8, 8), (2, 4, 8, 8))
    alpha_bar, mask = torch.tensor(0.3), torch.zeros(1, 1, 8, 8)
    mask[..., 2:6, 2:6] = 1
    known = alpha_bar.sqrt() * source + (1 - alpha_bar).sqrt() * noise
    found = blend(drawn, source, noise, alpha_bar, mask)
    if found is None:
        raise Wrong("it returned nothing; end it with `return ...`")
    if _same(found, mask * known + (1 - mask) * drawn):
        raise Wrong("inside and outside are exchanged: the mask is 1 where something new is drawn")
    if _same(found, mask * drawn + (1 - mask) * source):
        raise Wrong("outside it is clean, while inside there is still noise: bring the source to the same noise level")
    if _same(found, mask * drawn + (1 - mask) * (alpha_bar * source + (1 - alpha_bar) * noise)):
        raise Wrong("both weights lack their square root: it is add_noise of notebook 01")
    if not _same(found, mask * drawn + (1 - mask) * known):
        raise Wrong("inside the mask: drawn; outside: sqrt(alpha_bar) * source + sqrt(1 - alpha_bar) * noise")
    return "inside what is drawn, outside the source under as much noise."


@_exercise("03_img2img_inpainting", _test_blend)
def blend(drawn, source, noise, alpha_bar, mask):
    """`drawn` where the mask is 1; elsewhere the clean `source` under the noise that latents with alpha_bar have."""
    known = alpha_bar**0.5 * source + (1 - alpha_bar) ** 0.5 * noise
    return mask * drawn + (1 - mask) * known


def _test_back_up(back_up: Callable[..., Any]) -> str:
    import torch

    x0, first, second = _tensors((100_000,), (100_000,), (100_000,))
    alpha, alpha_to = torch.tensor(0.8), torch.tensor(0.3)
    there = alpha.sqrt() * x0 + (1 - alpha).sqrt() * first
    found = back_up(there, second, alpha, alpha_to)
    if found is None:
        raise Wrong("it returned nothing; end it with `return ...`")
    kept = alpha_to / alpha
    if _same(found, alpha_to.sqrt() * there + (1 - alpha_to).sqrt() * second):
        raise Wrong("it treats the latents as clean, but some noise is in them already: how much is still missing?")
    if _same(found, kept * there + (1 - kept) * second):
        raise Wrong("both weights lack their square root")
    if not _same(found, kept.sqrt() * there + (1 - kept).sqrt() * second):
        raise Wrong("sqrt(alpha) * x0 must become sqrt(alpha_to) * x0: multiply with what? The noise fills up the rest")
    return "of x0 the right share is left, and old and new noise together have variance 1 - alpha_to."


@_exercise("03_img2img_inpainting", _test_back_up)
def back_up(latents, noise, alpha, alpha_to):
    """Latents that have the cumulated alpha `alpha`, with noise added until they have the smaller `alpha_to`."""
    kept = alpha_to / alpha
    return kept**0.5 * latents + (1 - kept) ** 0.5 * noise


# ---- 07: where to run ------------------------------------------------------------------------------------------------


def _test_training_bytes(training_bytes: Callable[..., Any]) -> str:
    learns, stays = 1_000, 10_000
    found = training_bytes(learns, stays)
    if found is None:
        raise Wrong("it returned nothing; end it with `return ...`")
    if training_bytes(0, stays) == 4 * stays:
        raise Wrong("numbers that do not learn can be kept in half precision: two bytes each")
    if training_bytes(0, stays) != 2 * stays:
        raise Wrong(f"with {stays} numbers that stay and none that learns it is {2 * stays} bytes, two for each")
    share = (found - 2 * stays) / learns
    if share == 12:
        raise Wrong("12 bytes for each number that learns: Adam keeps two moments, not one")
    if share == 8:
        raise Wrong("8 bytes for each number that learns: itself and its gradient, but Adam keeps two moments more")
    if share == 18:
        raise Wrong("18 bytes for each number that learns: it is either learning or staying, not both")
    if share != 16:
        raise Wrong(f"{share:g} bytes for each number that learns: it, its gradient and two moments take 4 bytes each")
    return "16 bytes for each number that learns, 2 for each that stays: that is why adapters fit where models do not."


@_exercise("07_where_to_run", _test_training_bytes)
def training_bytes(learns, stays):
    """Bytes for `learns` numbers taught by Adam in single precision, and `stays` numbers at rest in half precision."""
    return 16 * learns + 2 * stays


def _test_may_repeat(may_repeat: Callable[..., Any]) -> str:
    cases = [
        (False, "broken off", True, "asking how far a training is costs nothing, so ask again"),
        (False, 500, True, "a server's own error (500) may be gone next time, and nothing is at stake"),
        (True, "broken off", False, "it may have been started before the line broke: a second one is paid too"),
        (True, 500, False, "after a 500 nobody knows whether the training was started"),
        (True, 503, False, "after a 503 nobody can be sure either: every 5xx leaves it open"),
        (True, "no connection", True, "without a connection nothing was sent, so nothing can have been started"),
        (True, 429, True, "429 means that the request was turned away at the door: nothing was started"),
        (False, 429, True, "429 only asks for patience"),
        (True, 422, False, "422 says that the request is wrong, and it will be as wrong the second time"),
        (False, 401, False, "401 says that the token is wrong, and it will be as wrong the second time"),
    ]
    for paid, outcome, wanted, why in cases:
        found = may_repeat(paid, outcome)
        if found is None:
            raise Wrong("it returned nothing; end it with `return ...`")
        if bool(found) != wanted:
            raise Wrong(f"may_repeat({paid}, {outcome!r}) should be {wanted}: {why}")
    return "free questions may be repeated unless they are wrong; paid ones only when they surely were not begun."


@_exercise("07_where_to_run", _test_may_repeat)
def may_repeat(paid, outcome):
    """Whether a request may be sent again. `outcome` is "no connection", "broken off", or the status it was given."""
    if outcome in ("no connection", 429):
        return True
    if paid:
        return False
    return outcome == "broken off" or outcome >= 500


def _test_break_even(break_even: Callable[..., Any]) -> str:
    found = break_even(0.40, 0.0002, 5.0)
    if found is None:
        raise Wrong("it returned nothing; end it with `return ...`")
    if abs(found - 2000) < 1e-6:
        raise Wrong("those are seconds of work in an hour: divide by the seconds of one picture")
    if abs(found - 0.40 / (0.0002 * 3600 * 5)) < 1e-6:
        raise Wrong("the price is for a second already, so 3600 has no place here")
    if abs(found - 400) > 1e-6:
        raise Wrong(
            f"at $0.40 an hour, $0.0002 a second and 5 s a picture it should be 400, and is {found:g}: "
            "for how many pictures does the one price become the other?"
        )
    return "below so many pictures in an hour, paying by the second is cheaper; above, a GPU of your own is."


@_exercise("07_where_to_run", _test_break_even)
def break_even(dollars_an_hour, dollars_a_second, seconds_each):
    """Pictures an hour at which a GPU rented by the hour costs as much as one paid only for the seconds it works."""
    return dollars_an_hour / (dollars_a_second * seconds_each)
