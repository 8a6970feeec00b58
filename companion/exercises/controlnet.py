"""The exercises of notebook 04: how zeros learn, shares of the way to a ceiling, several controls, edges compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from companion.exercises.machinery import Answer, Wrong, register, returned, same, tensors

NOTEBOOK = "04_controlnet"


def _test_conv_gradients(conv_gradients: Answer) -> str:
    import torch

    weight, x, grad_y = tensors((5, 3), (3, 16), (5, 16))
    for w in (weight, torch.zeros_like(weight)):
        found = returned(conv_gradients(w.clone(), x, grad_y))
        if not isinstance(found, tuple | list) or len(found) != 2:
            raise Wrong("return two things: the gradient of the weight, and the gradient of x")
        of_weight, of_x = found
        wanted = grad_y @ x.T, w.T @ grad_y
        if same(of_weight, wanted[1]) and same(of_x, wanted[0]):
            raise Wrong("the two are exchanged: first the gradient of the weight, then that of x")
        for name, got, right, like in (("weight", of_weight, wanted[0], w), ("x", of_x, wanted[1], x)):
            if got is None or tuple(torch.as_tensor(got).shape) != tuple(like.shape):
                shape = None if got is None else tuple(torch.as_tensor(got).shape)
                raise Wrong(f"the gradient of {name} has the shape of {name}, {tuple(like.shape)}, not {shape}")
            if not same(got, right, 1e-3):
                raise Wrong(f"the gradient of {name} has the right shape and other numbers: which matrix comes first?")
    return "where the weight is zero, x gets no gradient and the weight does."


@register(NOTEBOOK, _test_conv_gradients)
def conv_gradients(weight, x, grad_y):
    """The gradients of weight (O, I) and of x (I, P) for y = weight @ x, when y (O, P) has the gradient grad_y."""
    return grad_y @ x.T, weight.T @ grad_y


def _test_share_of_way(share_of_way: Answer) -> str:
    import numpy as np

    floor, drawn, ceiling = np.array([0.1, 0.3, 0.2]), np.array([0.5, 0.7, 0.9]), np.array([0.9, 0.9, 0.8])
    found = float(returned(share_of_way(floor, drawn, ceiling)))
    wanted = (drawn.mean() - floor.mean()) / (ceiling.mean() - floor.mean())
    if same(found, ((drawn - floor) / (ceiling - floor)).mean()):
        raise Wrong("one picture whose floor is near its ceiling would decide it all: take the means first")
    if same(found, drawn.mean() / ceiling.mean()):
        raise Wrong("it begins at 0; a picture without any control must have gone none of the way")
    if same(found, (drawn.mean() - floor.mean()) / ceiling.mean()):
        raise Wrong("the whole way is not the ceiling, but the distance from the floor to it")
    if not same(found, wanted):
        raise Wrong(f"with means of 0.2, 0.7 and {ceiling.mean():.3f} it should be {wanted:.3f}, and gave {found:.3f}")
    if not same(share_of_way(40 - 30 * floor, 40 - 30 * drawn, 40 - 30 * ceiling), wanted):
        raise Wrong("of an error less is better, and the share must be the same: both differences change their sign")
    worse = (floor.mean() - drawn.mean()) / (ceiling.mean() - drawn.mean())
    if not same(share_of_way(drawn, floor, ceiling), worse):
        raise Wrong("pictures that follow worse than without control have gone a negative share of the way")
    if not same(share_of_way(floor, ceiling + 0.1, ceiling), 1 + 0.1 / (ceiling.mean() - floor.mean())):
        raise Wrong("beyond the ceiling the share is above 1: do not cut it off")
    return "0 without control, 1 where pictures are read like renders, for measures of either direction."


@register(NOTEBOOK, _test_share_of_way)
def share_of_way(floor, drawn, ceiling):
    """How much of the way from the floor's mean to the ceiling's was covered; arrays with a number for each picture."""
    return (drawn.mean() - floor.mean()) / (ceiling.mean() - floor.mean())


def _test_add_up(add_up: Callable[[Any, Any], Any]) -> str:
    a, b, c, d = tensors((2, 4, 8, 8), (2, 8, 4, 4), (2, 4, 8, 8), (2, 8, 4, 4))
    given = [a.clone(), b.clone()], [c.clone(), d.clone()]
    one = returned(add_up([[a.clone(), b.clone()]], [0.5]))
    if len(one) != 2:
        raise Wrong(f"a ControlNet with two levels gave {len(one)} things; return one tensor for each level")
    if same(one[0], a):
        raise Wrong("the scale is not used: a control with scale 0.5 speaks half as loud")
    if not (same(one[0], 0.5 * a) and same(one[1], 0.5 * b)):
        raise Wrong("with a single control it should be its residuals times its scale")
    both = [level.clone() for level in add_up([*given], [1.0, 0.25])]
    if len(both) != 2:
        raise Wrong(f"two controls with two levels gave {len(both)} things: add level by level, don't join the lists")
    if same(both[0], (a + 0.25 * c) / 2) or same(both[0], (a + 0.25 * c) / 1.25):
        raise Wrong("it is their mean: a second control would make the first one quieter; add them up instead")
    if not (same(both[0], a + 0.25 * c) and same(both[1], b + 0.25 * d)):
        raise Wrong("each level is the sum over the controls of scale * residual")
    if not same(add_up([*given], [1.0, 0.25])[0], a + 0.25 * c):
        raise Wrong("a second call gives another result: don't change the tensors that you were given")
    return "level by level, each control times its scale; none makes another quieter."


@register(NOTEBOOK, _test_add_up)
def add_up(residuals, scales):
    """For each level the sum of all controls' residuals: residuals[control][level] times scales[control], as a list."""
    return [
        sum(scale * level for scale, level in zip(scales, levels, strict=True))
        for levels in zip(*residuals, strict=True)
    ]


def _test_edge_score(edge_score: Answer) -> str:
    import numpy as np

    from companion.conditions import edge_f1

    asked, got, empty = (np.zeros((32, 32), bool) for _ in range(3))
    asked[8, 4:24] = True
    got[10, 4:24] = True  # two pixels off
    got[20:24, 20] = True  # four that nobody asked for

    def right(a: Any, b: Any, tolerance: float) -> float:
        return float(edge_f1(255 * a[None].astype(np.uint8), 255 * b[None].astype(np.uint8), tolerance)[0])

    try:
        found = float(returned(edge_score(asked.copy(), got.copy(), 2.0)))
        with np.errstate(invalid="ignore"):  # 0 / 0, of which the hint below speaks
            strict = float(edge_score(asked.copy(), got.copy(), 1.0))
            nothing = edge_score(asked.copy(), empty.copy(), 2.0)
            unasked = edge_score(empty.copy(), got.copy(), 2.0)
    except ZeroDivisionError:
        raise Wrong("it divides by zero where no edge is near another: the score is 0 then") from None
    if same(found, 0.0) or same(found, strict):
        raise Wrong("edges two pixels away count with a tolerance of 2, and not with 1")
    if same(found, 1.0):
        raise Wrong("it does not see the four pixels that nobody asked for: that was recall; what of precision?")
    if same(found, 20 / 24):
        raise Wrong("it does not see whether all that was asked for is there: that was precision; what of recall?")
    if same(found, (1 + 20 / 24) / 2):
        raise Wrong("take the harmonic mean, 2 p r / (p + r): it is small as soon as one of the two is")
    if not same(found, right(asked, got, 2.0), 1e-3):
        raise Wrong(f"it should be {right(asked, got, 2.0):.3f}, and gave {found:.3f}")
    if not same(strict, 0.0):
        raise Wrong(f"where no edge is near another the score is 0, not {strict}: mind the division by p + r = 0")
    if not same(nothing, 0.0):
        raise Wrong(f"where no edge was found the score is 0, not {nothing}")
    if not same(unasked, 0.0):
        raise Wrong(f"where no edge was asked for the score is 0, not {unasked}")
    a, b = (np.random.default_rng(i).random((48, 48)) < 0.02 for i in (0, 1))
    for tolerance in (1.5, 3.0):
        if not same(edge_score(a, b, tolerance), right(a, b, tolerance), 1e-3):
            raise Wrong(f"on scattered points and a tolerance of {tolerance:g} it differs: is the distance a circle's?")
    return "the harmonic mean of precision and recall, where what is near enough counts."


@register(NOTEBOOK, _test_edge_score)
def edge_score(asked, got, tolerance):
    """F1 of edges, booleans (H, W), that count when one of the other map is at most `tolerance` pixels away; else 0."""
    import numpy as np
    from scipy.ndimage import distance_transform_edt as distance

    if not asked.any() or not got.any():
        return 0.0
    recall = (np.asarray(distance(~got))[asked] <= tolerance).mean()
    precision = (np.asarray(distance(~asked))[got] <= tolerance).mean()
    return 2 * precision * recall / max(precision + recall, 1e-9)
