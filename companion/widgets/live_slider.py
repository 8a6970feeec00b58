"""A slider that is heard on its way, so that a panel can follow it with pictures in few steps."""

from __future__ import annotations

from typing import Any

import anywidget
import traitlets

from companion.widgets.painter import STYLE, script


class LiveSlider(anywidget.AnyWidget):
    """A slider whose `held` is true while it is dragged, with buttons for some values.

    Args:
        label: what it sets.
        marks: names of buttons, each with its value.
    """

    _esm, _css = script("live_slider.js"), STYLE
    value = traitlets.Float(0.0).tag(sync=True)
    held = traitlets.Bool(False).tag(sync=True)
    min = traitlets.Float(0.0).tag(sync=True)
    max = traitlets.Float(1.0).tag(sync=True)
    step = traitlets.Float(0.05).tag(sync=True)
    label = traitlets.Unicode().tag(sync=True)
    marks = traitlets.List().tag(sync=True)

    @traitlets.validate("value")
    def _within(self, proposal: dict[str, Any]) -> float:
        value = proposal["value"]
        if not self.min <= value <= self.max:  # also false for what is not a number
            raise traitlets.TraitError(f"{self.label} {value:g} is outside [{self.min:g}, {self.max:g}]")
        return value


class LiveIntSlider(LiveSlider):
    """The same for whole numbers."""

    value = traitlets.Int(0).tag(sync=True)  # pyrefly: ignore[bad-override]
    step = traitlets.Float(1.0).tag(sync=True)


def preview_steps(steps: int) -> int:
    """So many steps has a picture that is drawn on the way to one with `steps`: a quarter, if that is not below 4."""
    return min(steps, max(4, steps // 4))
