"""The exercises of notebook 03: where img2img begins, how a mask is shrunk, and how inpainting blends and goes back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from companion.exercises.machinery import Answer, Wrong, register, returned, same, tensors

NOTEBOOK = "03_img2img_inpainting"


def _test_first_step(first_step: Callable[[int, float], int]) -> str:
    cases = [(20, 1.0, 0), (20, 0.6, 8), (20, 0.05, 19), (50, 0.3, 35), (10, 0.29, 8), (20, 0.0, 20)]
    for steps, strength, wanted in cases:
        found = returned(first_step(steps, strength))
        said = f"first_step({steps}, {strength})"
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


@register(NOTEBOOK, _test_first_step)
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
    found = returned(cover(mask.clone(), 4))
    found = torch.as_tensor(found).float()
    if found.shape != wanted.shape:
        raise Wrong(f"a mask of (16, 24) and a factor of 4 make {tuple(wanted.shape)}, not {tuple(found.shape)}")
    if same(found, wanted):
        return "a patch is covered as soon as one of its pixels is: no line is too thin."
    if not found[:, 2].any():
        raise Wrong("a line of one pixel got lost: it lies between the pixels that were looked at")
    if ((found > 0) == (wanted > 0)).all():
        raise Wrong("a patch that is touched must be 1 and not a share: take the largest value in it, not the mean")
    raise Wrong("look at each patch of factor x factor pixels: is any of them 1?")


@register(NOTEBOOK, _test_cover)
def cover(mask, factor):
    """A mask (H, W) of 0 and 1 as (H/factor, W/factor): 1 where any pixel of the patch is 1."""
    high, wide = mask.shape
    return mask.reshape(high // factor, factor, wide // factor, factor).amax((1, 3))


def _test_blend(blend: Answer) -> str:
    import torch

    drawn, source, noise = tensors((2, 4, 8, 8), (2, 4, 8, 8), (2, 4, 8, 8))
    alpha_bar, mask = torch.tensor(0.3), torch.zeros(1, 1, 8, 8)
    mask[..., 2:6, 2:6] = 1
    known = alpha_bar.sqrt() * source + (1 - alpha_bar).sqrt() * noise
    found = returned(blend(drawn, source, noise, alpha_bar, mask))
    if same(found, mask * known + (1 - mask) * drawn):
        raise Wrong("inside and outside are exchanged: the mask is 1 where something new is drawn")
    if same(found, mask * drawn + (1 - mask) * source):
        raise Wrong("outside it is clean, while inside there is still noise: bring the source to the same noise level")
    if same(found, mask * drawn + (1 - mask) * (alpha_bar * source + (1 - alpha_bar) * noise)):
        raise Wrong("both weights lack their square root: it is add_noise of notebook 01")
    if not same(found, mask * drawn + (1 - mask) * known):
        raise Wrong("inside the mask: drawn; outside: sqrt(alpha_bar) * source + sqrt(1 - alpha_bar) * noise")
    return "inside what is drawn, outside the source under as much noise."


@register(NOTEBOOK, _test_blend)
def blend(drawn, source, noise, alpha_bar, mask):
    """`drawn` where the mask is 1; elsewhere the clean `source` under the noise that latents with alpha_bar have."""
    known = alpha_bar**0.5 * source + (1 - alpha_bar) ** 0.5 * noise
    return mask * drawn + (1 - mask) * known


def _test_back_up(back_up: Answer) -> str:
    import torch

    x0, first, second = tensors((100_000,), (100_000,), (100_000,))
    alpha, alpha_to = torch.tensor(0.8), torch.tensor(0.3)
    there = alpha.sqrt() * x0 + (1 - alpha).sqrt() * first
    found = returned(back_up(there, second, alpha, alpha_to))
    kept = alpha_to / alpha
    if same(found, alpha_to.sqrt() * there + (1 - alpha_to).sqrt() * second):
        raise Wrong("it treats the latents as clean, but some noise is in them already: how much is still missing?")
    if same(found, kept * there + (1 - kept) * second):
        raise Wrong("both weights lack their square root")
    if not same(found, kept.sqrt() * there + (1 - kept).sqrt() * second):
        raise Wrong("sqrt(alpha) * x0 must become sqrt(alpha_to) * x0: multiply with what? The noise fills up the rest")
    return "of x0 the right share is left, and old and new noise together have variance 1 - alpha_to."


@register(NOTEBOOK, _test_back_up)
def back_up(latents, noise, alpha, alpha_to):
    """Latents that have the alpha bar `alpha`, with noise added until they have the smaller `alpha_to`."""
    kept = alpha_to / alpha
    return kept**0.5 * latents + (1 - kept) ** 0.5 * noise
