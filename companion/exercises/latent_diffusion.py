"""The exercises of notebook 01: the arithmetic of noise, the loss, guidance by one prompt and by many, and the loop."""

from __future__ import annotations

from companion.exercises.machinery import Answer, Wrong, exercise, register, returned, same, tensors

NOTEBOOK = "01_latent_diffusion"


def _test_add_noise(add_noise: Answer) -> str:
    import torch

    x0, noise = tensors((3, 4, 8, 8), (3, 4, 8, 8))
    alpha_bar = torch.tensor([0.99, 0.5, 0.01]).view(-1, 1, 1, 1)
    found = returned(add_noise(x0, noise, alpha_bar))
    if same(found, alpha_bar * x0 + (1 - alpha_bar) * noise):
        raise Wrong("the two weights lack their square root: alpha_bar ** 0.5 is one of them")
    if same(found, (1 - alpha_bar).sqrt() * x0 + alpha_bar.sqrt() * noise):
        raise Wrong("the weights are exchanged: with alpha_bar near 1 nearly all should be picture")
    if same(found, x0 + (1 - alpha_bar).sqrt() * noise):
        raise Wrong("the picture must shrink, too: what stands before x_0 in the formula?")
    if not same(found, alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise):
        raise Wrong("write the formula of the jump as it stands above: a weight times x0, plus a weight times noise")
    return "the picture shrinks as the noise grows, and the two variances add up to 1."


@register(NOTEBOOK, _test_add_noise)
def add_noise(x0, noise, alpha_bar):
    """Clean latents x0 and standard normal noise, mixed to the noise level that alpha_bar stands for: the jump."""
    return alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * noise


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


def _test_noise_loss(noise_loss: Answer) -> str:
    import torch

    x0, noise, other = tensors((5, 4, 8, 8), (5, 4, 8, 8), (5, 4, 8, 8))
    alphas_cumprod, t = torch.linspace(0.99, 0.01, 1000), torch.tensor([0, 100, 500, 900, 999])
    given, times = [], []

    def predict(noisy, t):
        given.append(noisy)
        times.append(t)
        return other

    def perfect(noisy, t):
        return noise

    found = returned(noise_loss(predict, x0, noise, t, alphas_cumprod))
    if torch.is_tensor(found) and found.ndim:
        raise Wrong(f"it gives {found.numel()} numbers; end it with .mean(), since the loss is one number")
    if not given:
        raise Wrong("it never asked `predict`: call predict(noisy, t)")
    if not torch.is_tensor(times[0]) or not torch.equal(times[0], t):
        raise Wrong("`predict` must be told the timesteps themselves: predict(noisy, t)")
    alpha_bar = alphas_cumprod[t].view(-1, 1, 1, 1)
    if not same(given[0], alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise, 1e-3):
        raise Wrong("`predict` must be given noisy latents: add_noise(x0, noise, alpha_bar), with alpha_bar of each t")
    if not same(noise_loss(perfect, x0, noise, t, alphas_cumprod), torch.tensor(0.0)):
        raise Wrong("a network that names the noise exactly must have the loss 0: compare with `noise`")
    if not same(found, ((other - noise) ** 2).mean(), 1e-3):
        raise Wrong("it should be the mean of the squared difference between the answer and the noise")
    return "it is 0 for a network that names the noise exactly, and the mean squared error for any other."


@register(NOTEBOOK, _test_noise_loss)
def noise_loss(predict, x0, noise, t, alphas_cumprod):
    """The mean squared error of predict(noisy, t) for latents x0 that are mixed with noise, each at its timestep t."""
    alpha_bar = alphas_cumprod[t].view(-1, 1, 1, 1)
    noisy = alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * noise
    return ((predict(noisy, t) - noise) ** 2).mean()


def _test_guide(guide: Answer) -> str:
    nothing, text = tensors((1, 4, 8, 8), (1, 4, 8, 8))
    found = returned(guide(nothing, text, 3.0))
    if not same(guide(nothing, text, 0.0), nothing):
        raise Wrong("at scale 0 the text should be forgotten: begin at eps_nothing")
    if not same(guide(nothing, text, 1.0), text):
        raise Wrong("at scale 1 it should be the plain prediction with the text: go exactly from the one to the other")
    if not same(found, nothing + 3.0 * (text - nothing), 1e-3):
        raise Wrong("at scale 3 it should go three times as far as from eps_nothing to eps_text, on a straight line")
    return "0 forgets the text, 1 is the plain prediction, and larger scales go on in the same direction."


@register(NOTEBOOK, _test_guide)
def guide(eps_nothing, eps_text, guidance_scale):
    """The prediction without words, moved towards the one with words guidance_scale times as far as they differ."""
    return eps_nothing + guidance_scale * (eps_text - eps_nothing)


def _test_ddim(ddim: Answer) -> str:
    import torch

    only, start = tensors((1, 4, 8, 8), (1, 4, 8, 8))  # a world that holds one picture: its noise is known exactly
    alphas_cumprod, asked = torch.linspace(0.999, 0.01, 1000), []

    def predict(noisy, t):
        asked.append(int(t))
        return (noisy - alphas_cumprod[t] ** 0.5 * only) / (1 - alphas_cumprod[t]) ** 0.5

    found = returned(ddim(predict, start, 10, alphas_cumprod))
    wanted = list(range(901, 0, -100))
    if asked != wanted:
        said = f"{len(asked)} times, at {', '.join(map(str, asked[:3]))}, ..." if asked else "never"
        raise Wrong(f"with 10 steps it should ask at t = 901, 801, ..., 1; it asked {said}")
    eps = predict(start, wanted[0])  # a straight way: the same noise is named at each step
    if same(found, only, 1e-3):
        raise Wrong("it ends at x0 itself; mix the predicted noise in again, after the last step at alphas_cumprod[0]")
    if not same(found, alphas_cumprod[0] ** 0.5 * only + (1 - alphas_cumprod[0]) ** 0.5 * eps, 1e-3):
        raise Wrong(
            "in a world of one picture it should end there: first x0 from the noise, then x0 and the same "
            "noise mixed again, at the next lower level"
        )
    two = torch.stack([only[0], -only[0]])  # in a world of two pictures each step names another noise

    def torn(noisy, t):
        a = alphas_cumprod[t]
        closeness = -((noisy - a**0.5 * two) ** 2).sum((1, 2, 3)) / (2 * (1 - a))
        return (noisy - a**0.5 * (closeness.softmax(0).view(-1, 1, 1, 1) * two).sum(0)) / (1 - a) ** 0.5

    given = torn, 0.1 * start, 10, alphas_cumprod
    if not same(ddim(*given), exercise("ddim").solution(*given), 1e-3):
        raise Wrong("each step must mix in the noise that `predict` named at this step, not that of another step")
    return "in a world of one picture it finds that picture, and asks once at each timestep."


@register(NOTEBOOK, _test_ddim)
def ddim(predict, latents, steps, alphas_cumprod):
    """DDIM from noise: ask predict(latents, t) at `steps` timesteps, evenly spaced down to 1, and go down from each."""
    stride = len(alphas_cumprod) // steps
    for t in [1 + i * stride for i in reversed(range(steps))]:
        eps = predict(latents, t)
        now, below = alphas_cumprod[t], alphas_cumprod[max(t - stride, 0)]
        x0 = (latents - (1 - now) ** 0.5 * eps) / now**0.5  # believe the network,
        latents = below**0.5 * x0 + (1 - below) ** 0.5 * eps  # but go only one noise level down
    return latents


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
    high, low = torch.tensor(14.6), torch.tensor(3.0)
    if not same(euler_step(x0 + high * eps, eps, high, low), x0 + low * eps):
        raise Wrong("right from sigma 2 to 0.5, wrong from 14.6 to 3: only the difference of the two may be taken away")
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
