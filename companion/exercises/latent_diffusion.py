"""The exercises of notebook 01: the arithmetic of noise, of guidance by several prompts and of a denoising step."""

from __future__ import annotations

from companion.exercises.machinery import Answer, Wrong, register, returned, same, tensors

NOTEBOOK = "01_latent_diffusion"


def _test_remove_noise(remove_noise: Answer) -> str:
    import torch

    x0, eps = tensors((3, 4, 8, 8), (3, 4, 8, 8))
    alpha_bar = torch.tensor([0.99, 0.5, 0.01]).view(-1, 1, 1, 1)
    noisy = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps
    found = returned(remove_noise(noisy, eps, alpha_bar))
    if same(found, noisy - (1 - alpha_bar).sqrt() * eps):
        raise Wrong("the noise is gone, but the picture is still shrunk: what did add_noise multiply x0 with?")
    if same(found, noisy - eps):
        raise Wrong("it takes away all of eps, but only a part of it was put in: which part?")
    if same(found, (noisy - (1 - alpha_bar) * eps) / alpha_bar):
        raise Wrong("both weights lack their square root: look at add_noise again")
    if not same(found, x0, 1e-3):
        raise Wrong(
            "given the true noise it should give back x0: write down x_t = ... x0 + ... eps and solve it for x0"
        )
    return "given the true noise, it gives back the clean latents, at little noise and at much."


@register(NOTEBOOK, _test_remove_noise)
def remove_noise(noisy, eps, alpha_bar):
    """The clean latents x0 in noisy = add_noise(x0, eps, alpha_bar): the inverse, when the noise eps is known."""
    return (noisy - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5


def _test_compose(compose: Answer) -> str:
    nothing, first, second = tensors((1, 4, 8, 8), (1, 4, 8, 8), (1, 4, 8, 8))
    one = returned(compose(nothing, [first], [4.0]))
    if not same(one, nothing + 4.0 * (first - nothing), 1e-3):
        raise Wrong("with a single prompt it should be ordinary guidance: guide(noise_nothing, noises[0], scales[0])")
    if not same(compose(nothing, [], []), nothing):
        raise Wrong("with no prompt at all it should be noise_nothing")
    both = compose(nothing, [first, second], [4.0, 2.0])
    if same(both, nothing + 4.0 * (first - nothing) + nothing + 2.0 * (second - nothing), 1e-3):
        raise Wrong("noise_nothing is in it twice: start there once, then add a step for each prompt")
    if not same(both, nothing + 4.0 * (first - nothing) + 2.0 * (second - nothing), 1e-3):
        raise Wrong("one prompt is right, two are not: each adds its scale * (its noise - noise_nothing)")
    return "one step from noise_nothing for each prompt, each with its own scale; one prompt is ordinary guidance."


@register(NOTEBOOK, _test_compose)
def compose(noise_nothing, noises, scales):
    """Guidance by several prompts at once: lists of predicted noises and of scales, one of each for each prompt."""
    return noise_nothing + sum(scale * (noise - noise_nothing) for noise, scale in zip(noises, scales, strict=True))


def _test_euler_step(euler_step: Answer) -> str:
    import torch

    x0, eps, other = tensors((2, 4, 8, 8), (2, 4, 8, 8), (2, 4, 8, 8))
    sigma, sigma_next = torch.tensor(2.0), torch.tensor(0.5)
    found = returned(euler_step(x0 + sigma * eps, eps, sigma, sigma_next))
    if same(found, x0 + (2 * sigma - sigma_next) * eps):
        raise Wrong("it adds noise instead of removing it: mind the sign of sigma_next - sigma")
    if same(found, x0) or same(found, x0 + (sigma - sigma * sigma_next) * eps):
        raise Wrong("it goes too far: only the difference of the two noise levels is to be taken away")
    if not same(found, x0 + sigma_next * eps):
        raise Wrong("given the true noise, x0 + sigma * eps must become x0 + sigma_next * eps")
    # For any other noise it must also do what a step of DDIM does in these coordinates.
    x = x0 + sigma * eps
    if not same(euler_step(x, other, sigma, sigma_next), (x - sigma * other) + sigma_next * other):
        raise Wrong("right for the true noise, wrong for another: use only x, eps and the two sigmas")
    return "it goes straight along eps to the next noise level, which is what DDIM does in other coordinates."


@register(NOTEBOOK, _test_euler_step)
def euler_step(x, eps, sigma, sigma_next):
    """One step for x = x0 + sigma * noise, with the predicted noise eps, to the smaller noise level sigma_next."""
    return x + (sigma_next - sigma) * eps


def _test_fewest_steps(fewest_steps: Answer) -> str:
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


@register(NOTEBOOK, _test_fewest_steps)
def fewest_steps(distances, limit):
    """The smallest key of distances such that it and all larger keys have a distance <= limit, or None."""
    best = None
    for steps in sorted(distances, reverse=True):
        if distances[steps] > limit:
            break
        best = steps
    return best
