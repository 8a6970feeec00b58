"""The exercises of notebook 02: steps of Heun's and of ancestral samplers, and how many steps are enough."""

from __future__ import annotations

from typing import Any

from companion.exercises.machinery import Answer, Wrong, register, returned, same, tensors

NOTEBOOK = "02_samplers"


def _test_heun_step(heun_step: Answer) -> str:
    def model(x: Any, sigma: float) -> Any:  # exact for data from N(0, 1); its paths are curved
        return x / (1 + sigma**2)

    (x,) = tensors((2, 4, 8, 8))
    s, t = 3.0, 1.5
    x = x * s
    found = returned(heun_step(model, x, s, t))
    d = (x - model(x, s)) / s
    there = x + (t - s) * d
    second = (there - model(there, t)) / t
    if same(found, there):
        raise Wrong("that is Euler's step still: ask the model again where it ends, and use the mean of both slopes")
    if same(found, x + (t - s) * second):
        raise Wrong("it uses the slope at the end alone; take the mean of that at the beginning and that at the end")
    if same(found, there + (t - s) * (d + second) / 2):
        raise Wrong("it steps twice: the step with the mean slope begins at x, not where Euler's ended")
    if not same(found, x + (t - s) * (d + second) / 2):
        raise Wrong("the second slope is (there - x0 there) / sigma_next; look at which x and which sigma you use")
    return "the mean of both slopes, from where the step began: Heun's method, of second order."


@register(NOTEBOOK, _test_heun_step)
def heun_step(model, x, sigma, sigma_next):
    """Heun's step for x at sigma > sigma_next > 0; model(x, sigma) gives x0."""
    slope = (x - model(x, sigma)) / sigma
    there = x + (sigma_next - sigma) * slope  # Euler's step
    slope_there = (there - model(there, sigma_next)) / sigma_next
    return x + (sigma_next - sigma) * (slope + slope_there) / 2


def _test_ancestral_step(ancestral_step: Answer) -> str:
    x, x0, noise = tensors((2, 4, 8, 8), (2, 4, 8, 8), (2, 4, 8, 8))
    s, t = 3.0, 1.0
    up = t * (s**2 - t**2) ** 0.5 / s
    answers = {eta: returned(ancestral_step(x, x0, s, t, eta, noise)) for eta in (0.0, 0.5, 1.0)}

    def right(eta: float) -> Any:
        down = (t**2 - (eta * up) ** 2) ** 0.5
        return x + (down - s) * (x - x0) / s + eta * up * noise

    if same(answers[1.0], right(0.0) + up * noise):
        raise Wrong(
            "it goes down to sigma_next and adds noise on top, so it ends too noisy: go lower first, to sigma_down"
        )
    if not same(answers[0.0], right(0.0)):
        raise Wrong(
            "with eta = 0 no noise may be left, and the step must be Euler's: from sigma to sigma_next along the slope"
        )
    if not same(answers[1.0], right(1.0)):
        raise Wrong("with eta = 1, sigma_up is sigma_next * sqrt(sigma^2 - sigma_next^2) / sigma")
    if not same(answers[0.5], right(0.5)):
        raise Wrong(
            "right at both ends of the dial, wrong between: eta multiplies sigma_up, before sigma_down is computed"
        )
    return "eta = 0 is Euler, eta = 1 is Euler a, and between them the noise level always comes out as sigma_next."


@register(NOTEBOOK, _test_ancestral_step)
def ancestral_step(x, x0, sigma, sigma_next, eta, noise):
    """An ancestral step with a dial: eta = 1 adds all of its noise, eta = 0 none, so that it is deterministic."""
    sigma_up = eta * sigma_next * (sigma**2 - sigma_next**2) ** 0.5 / sigma
    sigma_down = (sigma_next**2 - sigma_up**2) ** 0.5
    return x + (sigma_down - sigma) * (x - x0) / sigma + sigma_up * noise


def _test_enough_steps(enough_steps: Answer) -> str:
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


@register(NOTEBOOK, _test_enough_steps)
def enough_steps(distances, limit, share):
    """The smallest key of distances from which on a `share` of the distances in each list is <= limit, or None."""
    best = None
    for steps in sorted(distances, reverse=True):
        near = [distance <= limit for distance in distances[steps]]
        if sum(near) < share * len(near):
            break
        best = steps
    return best
