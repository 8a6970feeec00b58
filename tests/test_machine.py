"""The drawing of the machine has every part, lights what it is asked to, and refuses what it does not have."""

from __future__ import annotations

import pytest
from matplotlib.colors import to_hex

from companion.machine import LIT, PARTS, machine


def texts(figure) -> str:
    return " ".join(t.get_text().replace("\n", " ") for t in figure.axes[0].texts)


def lit(figure) -> int:
    return sum(to_hex(patch.get_facecolor()) == LIT for patch in figure.axes[0].patches)


def test_nothing_stands_out_unless_it_is_asked_to():
    assert lit(machine()) == 0 and lit(machine("decoder")) == 1 and lit(machine("decoder", "sampler")) == 2
    assert lit(machine("U-Net")) == 7, "three levels down, three up, and the middle"


@pytest.mark.parametrize("part", PARTS)
def test_every_part_can_be_lit_and_changes_the_drawing(part):
    plain, bright = machine(), machine(part)
    styles = [
        [(to_hex(p.get_edgecolor()), p.get_linewidth()) for p in f.axes[0].patches]
        + [(line.get_color(), line.get_linewidth()) for line in f.axes[0].lines]
        for f in (plain, bright)
    ]
    assert styles[0] != styles[1]


def test_further_parts_are_drawn_without_standing_out():
    assert "ControlNet" not in texts(machine()) and "encoder" not in texts(machine()).replace("text encoder", "")
    more = machine(show=("ControlNet", "encoder", "mask", "adapters"))
    assert lit(more) == 0
    for word in ("ControlNet", "control picture", "a picture of yours", "mask", "adapters"):
        assert word in texts(more)


def test_a_part_that_it_does_not_have_is_refused():
    with pytest.raises(ValueError, match="the machine has no 'engine'; its parts are text encoder, noise, U-Net"):
        machine("engine")
