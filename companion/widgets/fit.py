"""The fit panel: how much memory models need for pictures of any size, compared with what GPUs have."""

from __future__ import annotations

import io
from collections.abc import Sequence

import ipywidgets as widgets
from PIL import Image

from companion.figures import bars
from companion.where_to_run import GB, MACHINES, OVERHEAD, Cost, Machine, fits, size
from companion.widgets.base import Panel

WIDTH = 640


class FitPanel(Panel):
    """Memory for pictures of the size and number that the sliders set, and which GPUs have enough.

    Args:
        costs: the models, as `companion.where_to_run.cost` counts them.
        machines: the GPUs to compare with.
    """

    def __init__(self, costs: Sequence[Cost], machines: Sequence[Machine] = MACHINES) -> None:
        self._costs, self._machines = list(costs), sorted(machines, key=lambda m: m.memory)
        options = self.options()
        self.pixels = widgets.IntSlider(512, 128, 2048, 128, description="pixels", **options)
        self.batch = widgets.IntSlider(1, 1, 16, description="pictures", **options)
        super().__init__([self.pixels, self.batch], WIDTH)
        for control in (self.pixels, self.batch):
            self.watch(control, self.draw)
        self.attempt(self.draw)

    def draw(self) -> None:
        """Draw with the controls as they stand."""
        pixels, batch = self.pixels.value, self.batch.value
        needed = {cost.name: cost.memory(pixels, batch) + OVERHEAD for cost in self._costs}
        fixed = {cost.name: cost.memory(pixels, 0) + OVERHEAD for cost in self._costs}
        figure = bars(
            {name: {c: n / GB for c, n in sizes.items()} for name, sizes in (("fixed", fixed), ("all", needed))},
            title=f"Memory to draw {batch} picture{'s' * (batch > 1)} of {pixels} x {pixels} at once",
            y_label="GB (log scale)",
            log=True,
            caption="Fixed: the weights and the libraries, whatever the picture. Each line is the memory of a GPU.",
            height=2.6,
        )
        axis = figure.axes[0]
        for memory in sorted({machine.memory for machine in self._machines}):
            axis.axhline(memory / GB, color="#666666", linestyle=":", linewidth=1)
            axis.text(axis.get_xlim()[1], memory / GB, f" {memory / GB:.0f}", va="center", fontsize=8, color="#666666")
        axis.set_ylim(0.1, 400)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=figure.dpi)
        self.show(Image.open(buffer).convert("RGB"), "<br>".join(map(self._said, needed.items())))

    def _said(self, item: tuple[str, float]) -> str:
        name, needed = item
        enough = [machine.name for machine in self._machines if fits(needed, machine.memory)]
        return f"{name}: {size(needed)}, fits into {', '.join(enough) or 'none of these GPUs'}"
