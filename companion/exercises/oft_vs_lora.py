"""The exercises of notebook 06: length and angle, energy, Cayley's map, counting what learns, and a part of a turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from companion.exercises.machinery import Answer, Wrong, register, returned, same, tensors

NOTEBOOK = "06_oft_vs_lora"


def _test_length_and_cosine(length_and_cosine: Answer) -> str:
    import torch

    w, x = tensors((6,), (6,))
    found = returned(length_and_cosine(w, x))
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise Wrong("return two numbers: the product of both lengths, and the cosine of the angle")
    length, cosine = found
    wanted = w.norm() * x.norm()
    if same(length, w.norm()) or same(length, x.norm()):
        raise Wrong("the first number has to be the product of both lengths, ||w|| ||x||")
    if same(length, wanted**2):
        raise Wrong("these are squared lengths: take the square root of each sum of squares")
    if not same(length, wanted):
        raise Wrong("the first number is ||w|| ||x||; torch has w.norm()")
    if same(cosine, w @ x):
        raise Wrong("the second number is still the inner product; divide it by both lengths")
    if same(cosine, torch.acos(w @ x / wanted)):
        raise Wrong("this is the angle itself; return its cosine")
    if not same(cosine, w @ x / wanted):
        raise Wrong("the second number is w . x divided by ||w|| ||x||")
    return "their product is the inner product again, so nothing was lost."


@register(NOTEBOOK, _test_length_and_cosine)
def length_and_cosine(w, x):
    """For vectors (d,): ||w|| ||x||, and the cosine of the angle between w and x. Their product is w . x."""
    length = w.norm() * x.norm()
    return length, (w @ x) / length


def _test_energy_of(energy_of: Answer) -> str:
    import torch

    from companion.energy import hyperspherical_energy

    square = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    wanted = hyperspherical_energy(square)
    found = float(returned(energy_of(square)))
    if found == float("inf") or found != found:
        raise Wrong("a neuron has distance 0 from itself: leave out the pairs i = j")
    if abs(found - wanted / 2) < 1e-3:
        raise Wrong("each pair counts twice in the paper's sum, as (i, j) and as (j, i)")
    if abs(found - wanted / 12) < 1e-3:
        raise Wrong("this is the mean over pairs; the exercise asks for the sum")
    if abs(found - wanted) > 1e-3:
        raise Wrong(f"four neurons on a square have energy {wanted:.3f}, and yours is {found:.3f}: sum 1 / distance")
    (neurons,) = tensors((9, 5))
    found, wanted = float(energy_of(neurons)), hyperspherical_energy(neurons)
    if abs(found / wanted - 1) > 1e-3:
        raise Wrong("it is right on a circle of radius 1, but neurons have any length: normalise each row first")
    points = neurons.clone().requires_grad_()
    value = energy_of(points)
    if not (torch.is_tensor(value) and value.requires_grad):
        raise Wrong("the number is right; return it as a tensor, so that points can go down its slope")
    (slope,) = torch.autograd.grad(value, points)
    if not slope.isfinite().all():
        raise Wrong("its slope is not a number: a root has none at 0, so leave out the pairs i = j before the root")
    return "small when neurons share out the directions, large when they crowd."


@register(NOTEBOOK, _test_energy_of)
def energy_of(neurons):
    """The sum of 1 / ||w_i - w_j|| over all i != j, of neurons (n, d) that were brought to length 1."""
    import torch

    unit = neurons / neurons.norm(dim=1, keepdim=True)
    distance = (unit[:, None] - unit[None]).norm(dim=2)
    others = ~torch.eye(len(unit), dtype=torch.bool)
    return (1 / distance[others]).sum()


def _test_cayley_map(cayley_map: Callable[[Any], Any]) -> str:
    import torch

    from companion.oft_vs_lora import cayley, skew

    (q,) = tensors((10,))
    Q = skew(q, 5) / 3
    one = torch.eye(5)
    found = returned(cayley_map(Q.clone()))
    if same(found, cayley(-Q)):
        raise Wrong("it is a rotation, but backwards: the paper has (I + Q)(I - Q)^-1")
    if same(found, one + 2 * Q) or same(found, one + Q):
        raise Wrong("this is only the beginning of the series; take the inverse of I - Q")
    if same(found, (one + Q) / (one - Q)):
        raise Wrong("A / B divides entry by entry; multiply with torch.linalg.inv(I - Q) instead")
    if not same(found, cayley(Q)):
        raise Wrong("R = (I + Q)(I - Q)^-1, where I is torch.eye(len(Q)) and the product is @")
    return "R^T R = I, whatever Q is, as long as Q^T = -Q."


@register(NOTEBOOK, _test_cayley_map)
def cayley_map(Q):
    """The rotation (d, d) that Cayley's map makes of a skew-symmetric matrix Q (d, d)."""
    import torch

    identity = torch.eye(len(Q))
    return (identity + Q) @ torch.linalg.inv(identity - Q)


def _test_oft_numbers(oft_numbers: Callable[[int, int], int]) -> str:
    for d, blocks, wanted in [(4, 1, 6), (4, 2, 2), (320, 4, 12640), (128, 8, 960)]:
        found = returned(oft_numbers(d, blocks))
        b = d // blocks
        said = f"oft_numbers({d}, {blocks})"
        if found == d * b:
            raise Wrong(f"{said} gave {found}: those are all entries of the blocks; a skew-symmetric one has fewer")
        if found == d * (b + 1) // 2:
            raise Wrong(f"{said} gave {found}: the diagonal of a skew-symmetric matrix is 0, so it does not count")
        if found == b * (b - 1) // 2 and blocks > 1:
            raise Wrong(f"{said} gave {found}: that is one block, and there are {blocks}")
        if found != wanted:
            raise Wrong(f"{said} should be {wanted}, and gave {found}: count the entries above the diagonal")
        if not isinstance(found, int):
            raise Wrong(f"{said} gave {found!r}; make it a whole number, with // instead of /")
    return "d (d / r - 1) / 2, so more blocks mean fewer numbers."


@register(NOTEBOOK, _test_oft_numbers)
def oft_numbers(d, blocks):
    """How many numbers a layer's rotation learns: `blocks` skew-symmetric blocks on the diagonal of (d, d)."""
    b = d // blocks
    return blocks * (b * (b - 1) // 2)


def _test_part_of_a_turn(part_of_a_turn: Callable[[Any, float], Any]) -> str:
    import torch

    from companion.oft_vs_lora import cayley_slider, line_slider, power, skew

    (q,) = tensors((10,))
    Q, t = skew(q, 5) / 2, 0.5
    found = torch.as_tensor(returned(part_of_a_turn(Q.clone(), t)))
    if found.is_complex():
        raise Wrong("the result is real up to rounding, but still of a complex type; end with .real")
    if same(found, cayley_slider(Q, t)):
        raise Wrong("this is Cayley's map of t Q: a rotation, but half of Q is not half of the angle")
    if same(found, line_slider(Q, t)):
        raise Wrong("this is the straight line from I to R, on which neurons get shorter")
    if not same(found @ found, power(Q, 1.0), 1e-3):
        raise Wrong("two halves should make the whole turn: part_of_a_turn(Q, 0.5) @ part_of_a_turn(Q, 0.5) = R")
    if not same(part_of_a_turn(Q, -0.3), power(Q, -0.3), 1e-3):
        raise Wrong("half a turn is right, but t = -0.3 is not: every angle a has to become t a")
    return "every plane turns by t times its angle, and two halves make the whole."


@register(NOTEBOOK, _test_part_of_a_turn)
def part_of_a_turn(Q, t):
    """R^t for R = (I + Q)(I - Q)^-1 and a skew-symmetric Q (d, d): each turn by an angle a becomes one by t a."""
    import torch

    w, V = torch.linalg.eigh(1j * Q)  # Q = -i V diag(w) V^H, and R turns the plane of w by 2 arctan(w)
    turn = torch.exp(-2j * t * torch.atan(w))
    return ((V * turn) @ V.mH).real
