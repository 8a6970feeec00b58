"""The exercises of notebook 05: how often a photograph is seen, DreamBooth's loss, diversity, and when to stop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from companion.exercises.machinery import Answer, Wrong, register, returned, same, tensors

NOTEBOOK = "05_dreambooth"


def _test_times_seen(times_seen: Callable[[int, int, int, int], float]) -> str:
    cases = [(100, 1, 1, 5, 20.0), (100, 2, 1, 5, 40.0), (400, 1, 1, 20, 20.0), (100, 1, 4, 20, 20.0)]
    for steps, batch, accumulate, photographs, wanted in cases:
        found = returned(times_seen(steps, batch, accumulate, photographs))
        said = f"times_seen({steps}, {batch}, {accumulate}, {photographs})"
        if abs(found - wanted) < 1e-9:
            continue
        if abs(found * photographs - wanted) < 1e-9 or abs(found - wanted * photographs) < 1e-9:
            raise Wrong(f"{said} should be {wanted:g}: all pictures that are taken are shared by {photographs}")
        if batch > 1 and abs(found - wanted / batch) < 1e-9:
            raise Wrong(f"{said} should be {wanted:g}: a step takes {batch} photographs, not one")
        if accumulate > 1 and abs(found - wanted / accumulate) < 1e-9:
            raise Wrong(f"{said} should be {wanted:g}: each step adds up the gradients of {accumulate} batches")
        raise Wrong(f"{said} should be {wanted:g}, and gave {found!r}")
    return "the pictures that all steps take together, shared by the photographs."


@register(NOTEBOOK, _test_times_seen)
def times_seen(steps, batch, accumulate, photographs):
    """How often a training sees each photograph: `steps` steps, each with `accumulate` batches of `batch`."""
    return steps * batch * accumulate / photographs


def _test_dreambooth_loss(dreambooth_loss: Answer) -> str:
    import torch

    guesses, noise = tensors((6, 4, 8, 8), (6, 4, 8, 8))
    guesses[3:] *= 2  # so that the two halves have different errors
    first, second = ((guesses - noise) ** 2).flatten(1).mean(1).chunk(2)
    for weight in (1.0, 0.25, 0.0):
        wanted = first.mean() + weight * second.mean()
        found = torch.as_tensor(returned(dreambooth_loss(guesses.clone(), noise.clone(), weight)))
        if same(found, wanted):
            continue
        if found.ndim:
            raise Wrong(f"it gave {tuple(found.shape)} numbers; a loss is one number: take the mean of each half")
        if same(found, wanted / 2):
            raise Wrong("it is half of that: the mean over all pictures counts each half by a half; take two means")
        if same(found, weight * first.mean() + second.mean()):
            raise Wrong("the weight is on the wrong half: the first half of the batch is the subject's")
        if same(found, weight * (first.mean() + second.mean())):
            raise Wrong("the weight is on both halves; it is for the class alone")
        if same(found, first.mean() + second.mean()):
            raise Wrong("the weight has no effect; with weight 0 only the subject's error should count")
        raise Wrong("mean squared error of the first half, plus weight times that of the second half")
    return "the subject's error, plus the class's times its weight."


@register(NOTEBOOK, _test_dreambooth_loss)
def dreambooth_loss(noise_pred, noise, weight):
    """DreamBooth's loss of a batch (2B, C, h, w): the first half shows the subject, the second half the class."""
    subject, of_class = ((noise_pred - noise) ** 2).chunk(2)
    return subject.mean() + weight * of_class.mean()


def _test_diversity(diversity: Answer) -> str:
    import torch

    (f,) = tensors((5, 7))
    unit = f / f.norm(dim=1, keepdim=True)
    cosines = unit @ unit.T
    n = len(f)
    wanted = 1 - (cosines.sum() - n) / (n * (n - 1))
    found = torch.as_tensor(returned(diversity(f.clone())))
    if same(found, 1 - cosines.mean()):
        raise Wrong("each picture is compared with itself as well, and is of course alike: leave those pairs out")
    if same(found, (cosines.sum() - n) / (n * (n - 1))):
        raise Wrong("that is how alike they are; diversity is 1 minus that")
    if not same(found, wanted):
        raise Wrong("bring each row to length 1, take the cosines of all pairs of different rows, and 1 minus the mean")
    twice = torch.as_tensor(diversity(f[:1].repeat(3, 1)))
    if not same(twice, 0.0):
        raise Wrong("three times the same picture should give 0")
    return "0 when all are the same; and no picture was compared with itself."


@register(NOTEBOOK, _test_diversity)
def diversity(features):
    """DIV: one minus the mean cosine of all pairs of different rows of `features` (N, D), for N of at least 2."""
    unit = features / features.norm(dim=1, keepdim=True)
    n = len(features)
    return 1 - ((unit @ unit.T).sum() - n) / (n * (n - 1))


def _test_stop_at(stop_at: Callable[[Any, Any, float], Any]) -> str:
    steps = [0, 50, 100, 200, 400]
    likeness = dict(zip(steps, (0.1, 0.4, 0.6, 0.7, 0.65), strict=True))
    cases = [
        ((0.95, 0.95, 0.92, 0.91, 0.60), 0.05, 200),
        ((0.95, 0.94, 0.91, 0.80, 0.60), 0.05, 100),
        ((0.95, 0.70, 0.92, 0.80, 0.60), 0.05, 100),
        ((0.95, 0.50, 0.50, 0.50, 0.50), 0.05, 0),
    ]
    for kept, most, wanted in cases:
        kept = dict(zip(steps, kept, strict=True))
        found = returned(stop_at(dict(likeness), kept, most))
        if found == wanted:
            continue
        said = f"likeness {likeness} and kept {kept} should give {wanted}, and gave {found!r}"
        if found == max(steps):
            raise Wrong(f"{said}: the last step is not the best, and it has forgotten the most")
        if isinstance(found, int) and found in kept and kept[0] - kept[found] > most:
            raise Wrong(f"{said}: after {found} steps, {kept[0] - kept[found]:.2f} of the other prompts are lost")
        raise Wrong(f"{said}: of the steps that lose at most {most}, the one with the highest likeness")
    return "the most like the subject, among those that have not forgotten too much."


@register(NOTEBOOK, _test_stop_at)
def stop_at(likeness, kept, most):
    """The step at which to stop: the highest likeness where `kept` is at most `most` below that of step 0.

    `likeness` and `kept` are dictionaries with the same steps, 0 among them.
    """
    good = [step for step in kept if kept[0] - kept[step] <= most + 1e-9]
    return max(good, key=lambda step: likeness[step])
