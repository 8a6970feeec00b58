"""Common mistakes in the exercises of notebook 01, each with words from the hint it must get."""

from __future__ import annotations

import random

from companion import exercises
from companion.sampler_sweeps import settling_point

from .helpers import assert_hint, each, exercises_of


def alphas(alphas_cumprod, t):
    return alphas_cumprod[t].view(-1, 1, 1, 1)


def noised(x0, noise, a):
    return a**0.5 * x0 + (1 - a) ** 0.5 * noise


def one_noise(x0, noise, t, a):
    return noised(x0, noise, alphas(a, t))


def until_clean(predict, x, steps, a):
    for t in range(1 + (steps - 1) * (len(a) // steps), 0, -(len(a) // steps)):
        x = (x - (1 - a[t]) ** 0.5 * predict(x, t)) / a[t] ** 0.5
    return x


def noise_forgotten(predict, x, steps, a):
    for t in range(1 + (steps - 1) * (len(a) // steps), 0, -(len(a) // steps)):
        x = a[max(t - len(a) // steps, 0)] ** 0.5 * x - predict(x, t)
    return x


def first_noise_again(predict, x, steps, a):
    first = None
    for t in range(1 + (steps - 1) * (len(a) // steps), 0, -(len(a) // steps)):
        named, below = predict(x, t), a[max(t - len(a) // steps, 0)]
        first = named if first is None else first
        x = below**0.5 * (x - (1 - a[t]) ** 0.5 * named) / a[t] ** 0.5 + (1 - below) ** 0.5 * first
    return x


MISTAKES = [
    ("add_noise", lambda x, e, a: a * x + (1 - a) * e, "square root"),
    ("add_noise", lambda x, e, a: (1 - a) ** 0.5 * x + a**0.5 * e, "exchanged"),
    ("add_noise", lambda x, e, a: x + (1 - a) ** 0.5 * e, "shrink"),
    ("add_noise", lambda x, e, a: x + e, "formula of the jump"),
    ("noise_loss", lambda p, x, e, t, a: (p(one_noise(x, e, t, a), t) - e) ** 2, "one number"),
    ("noise_loss", lambda p, x, e, t, a: (e**2).mean(), "never asked"),
    ("noise_loss", lambda p, x, e, t, a: ((p(one_noise(x, e, t, a), a[t]) - e) ** 2).mean(), "timesteps themselves"),
    ("noise_loss", lambda p, x, e, t, a: ((p(x, t) - e) ** 2).mean(), "noisy latents"),
    ("noise_loss", lambda p, x, e, t, a: ((p(one_noise(x, e, t, a), t) - x) ** 2).mean(), "the loss 0"),
    ("noise_loss", lambda p, x, e, t, a: (p(one_noise(x, e, t, a), t) - e).abs().mean(), "squared difference"),
    ("guide", lambda n, e, s: e + s * (e - n), "begin at eps_nothing"),
    ("guide", lambda n, e, s: n + s * e, "plain prediction"),
    ("guide", lambda n, e, s: n + s**2 * (e - n), "straight line"),
    ("ddim", lambda p, x, n, a: x, "asked never"),
    ("ddim", until_clean, "x0 itself"),
    ("ddim", noise_forgotten, "first x0 from the noise"),
    ("ddim", first_noise_again, "named at this step"),
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
    ("euler_step", lambda x, e, s, s2: x - 0.75 * s * e, "from 14.6 to 3"),
    ("euler_step", lambda x, e, s, s2: x - s2 * e, "sigma_next"),
    ("fewest_steps", lambda d, limit: min(n for n in d if d[n] <= limit), "by luck"),
    ("fewest_steps", lambda d, limit: max(d), "should give 8"),
    ("fewest_steps", lambda d, limit: None, "should give 8"),
]


@each(MISTAKES)
def test_a_usual_mistake_gets_its_hint(name, answer, hint):
    assert_hint(name, answer, hint)


def test_every_exercise_has_a_usual_mistake():
    assert {name for name, _, _ in MISTAKES} == exercises_of("01_latent_diffusion")


def test_the_sweeps_use_the_rule_of_fewest_steps():
    solution, chance = exercises.exercise("fewest_steps").solution, random.Random(0)
    results = set()
    for _ in range(300):
        steps = chance.sample(range(1, 50), chance.randrange(6))
        distances = {n: float(chance.randrange(5)) for n in steps}  # whole numbers, so that some are equal to the limit
        assert settling_point(distances, 3.0) == solution(distances, 3.0)
        results.add(settling_point(distances, 3.0))
    assert None in results and len(results) > 10
