"""What a finetuning does to the same pictures, from its start to its end."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import traitlets
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

from companion.figures import COLOURS, STYLE, WIDTH, as_pil
from companion.finetuning_run import Folder
from companion.widgets.base import MARGIN, PAPER, jpeg, side_by_side
from companion.widgets.painter import Editor, script

LARGEST = 640  # a step's pictures are shown at most this wide, in pixels
TALLEST = 480  # and at most this tall
SIDE = 236  # of a picture of several, in pixels

Values = Sequence[float] | Mapping[int, float]


class TrainingScrubber(Editor):
    """A slider over the checkpoints of a finetuning: what was drawn at each, above curves of what was measured.

    The browser has all of it, so the slider answers at once, even while the kernel is busy. It has a play button, and
    a button that shows the start while it is pressed; a click on a curve goes to that step.

        TrainingScrubber("duck/")                                    # a folder of `companion train`
        TrainingScrubber({0: before, 100: after}, {"DINO": [0.1, 0.6]})

    Args:
        pictures: for each step the pictures that were drawn, a sheet or a list of pictures; or the folder of a run (a
            path, or a `finetuning_run.Folder`), whose `samples` are taken. A sheet that is a row of squares, as they
            are in a run's folder, is broken into two or more rows, so that the pictures are larger.
        metrics: what was measured, by name: a number for each step with pictures, or numbers by step. By default a
            run's folder has its loss.
        names: what each picture of a step shows, such as its prompt; they are read out, and stand above the pictures.
    Attributes:
        value: which of `steps` is shown: 0, 1, ...; it can be set.
    Raises:
        ValueError: there are no pictures, or numbers do not fit the steps.
        FileNotFoundError: there is no such folder.
    """

    _esm = script("training.js")
    frames = traitlets.List().tag(sync=True)
    steps = traitlets.List().tag(sync=True)
    metrics = traitlets.Dict().tag(sync=True)
    value = traitlets.Int(0).tag(sync=True)
    width = traitlets.Int(1).tag(sync=True)
    height = traitlets.Int(1).tag(sync=True)
    names = traitlets.List().tag(sync=True)

    def __init__(
        self,
        pictures: Mapping[int, Any] | str | Path | Folder,
        metrics: Mapping[str, Values] | None = None,
        names: Sequence[str] = (),
    ) -> None:
        if isinstance(pictures, str | Path):
            pictures = Folder(Path(pictures), {})
        if isinstance(pictures, Folder):
            if metrics is None and (log := pictures.log()):
                metrics = {"loss": {int(line["step"]): line["loss"] for line in log}}
            pictures = dict(_samples(pictures.path))
        if not pictures:
            raise ValueError("there are no pictures to show: give what was drawn at each step, such as {0: sheet}")
        steps = sorted(int(step) for step in pictures)
        self._sheets = [_sheet(pictures[step], names) for step in steps]
        sizes = {sheet.size for sheet in self._sheets}
        if len(sizes) > 1:
            shown = " and ".join(f"{wide} x {high}" for wide, high in sorted(sizes)[:2])
            raise ValueError(f"the steps have sheets of {shown} pixels; give the same pictures for each step")
        width, height = sizes.pop()
        super().__init__(
            frames=[jpeg(sheet) for sheet in self._sheets],
            steps=steps,
            metrics={name: _points(name, values, steps) for name, values in (metrics or {}).items()},
            value=len(steps) - 1,
            width=width,
            height=height,
            names=list(names),
        )

    @traitlets.validate("value")
    def _there(self, proposal: dict[str, Any]) -> int:
        if not 0 <= proposal["value"] < len(self.steps):
            raise traitlets.TraitError(f"value={proposal['value']} is outside [0, {len(self.steps) - 1}]")
        return proposal["value"]

    @property
    def step(self) -> int:
        """The step that is shown; setting it shows the nearest that has pictures."""
        return self.steps[self.value]

    @step.setter
    def step(self, step: int) -> None:
        self.value = int(np.abs(np.array(self.steps) - step).argmin())

    def preview(self) -> Image.Image:
        """The start and the end side by side, above the curves."""
        ends = sorted({0, len(self.steps) - 1})
        images = [self._sheets[i] for i in ends]
        if (wide := sum(image.width for image in images)) > 900:
            images = [as_pil(image, round(image.width * 900 / wide)) for image in images]
        parts = [side_by_side(images, [f"after {self.steps[i]:,} steps" for i in ends])]
        if self.metrics:
            parts.append(self._curves())
        whole = Image.new("RGB", (max(p.width for p in parts), sum(p.height for p in parts) + MARGIN), PAPER)
        whole.paste(parts[0], (0, 0))
        if len(parts) > 1:
            whole.paste(parts[1], (0, parts[0].height + MARGIN))
        return whole

    def _curves(self) -> Image.Image:
        with rc_context(STYLE):
            figure = Figure(figsize=(WIDTH, 1.1 * len(self.metrics) + 0.4), dpi=80, layout="constrained")
            axes = figure.subplots(len(self.metrics), 1, squeeze=False, sharex=True)[:, 0]
            for axis, (name, points) in zip(axes, self.metrics.items(), strict=True):
                xs, ys = zip(*((x, np.nan if y is None else y) for x, y in points), strict=True)
                axis.plot(xs, ys, color=COLOURS[0], marker="o" if len(xs) < 40 else None, markersize=3.5)
                axis.set_ylabel(name, rotation=0, ha="right", va="center")
            axes[-1].set_xlabel("step")
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", facecolor="white")
        return Image.open(buffer).convert("RGB")


def _samples(run: Path) -> Iterator[tuple[int, Image.Image]]:
    """Steps and pictures of a run's folder."""
    if not run.is_dir():
        raise FileNotFoundError(f"There is no folder {run}: give that of a run of `companion train`.")
    for path in sorted((run / "samples").glob("*.png")):
        if path.stem.isdigit():
            with Image.open(path) as image:
                yield int(path.stem), image.convert("RGB")


def _sheet(given: Any, names: Sequence[str]) -> Image.Image:
    """A step's pictures in rows, as large as they are shown."""
    several = isinstance(given, list | tuple) or getattr(given, "ndim", 0) == 4
    if not several:
        sheet = as_pil(given)
        n, rest = divmod(sheet.width, sheet.height)
        if rest or n < 2:
            return _reduced(sheet)
        given = [sheet.crop((i * sheet.height, 0, (i + 1) * sheet.height, sheet.height)) for i in range(n)]
    n = len(given)
    if not n:
        raise ValueError("a step has no pictures; give one at least, or leave the step out")
    if names and len(names) != n:
        raise ValueError(f"{len(names)} names for {n} pictures; give one for each")
    tiles = [as_pil(picture, SIDE) for picture in given]
    across = n if n < 4 else int(np.ceil(np.sqrt(n)))
    titles = [_short(name) for name in names] if names else [""] * n
    rows = [side_by_side(tiles[i : i + across], titles[i : i + across]) for i in range(0, n, across)]
    if not names:
        rows = [row.crop((0, row.height - max(t.height for t in tiles), row.width, row.height)) for row in rows]
    gap = MARGIN if not names else MARGIN // 2
    whole = Image.new("RGB", (rows[0].width, sum(row.height for row in rows) + gap * (len(rows) - 1)), PAPER)
    top = 0
    for row in rows:
        whole.paste(row, (0, top))
        top += row.height + gap
    return _reduced(whole)


def _short(name: str, most: int = 36) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _reduced(sheet: Image.Image) -> Image.Image:
    """A sheet that fits into what is shown."""
    scale = min(1.0, LARGEST / sheet.width, TALLEST / sheet.height)
    return sheet if scale == 1 else as_pil(sheet, max(1, round(sheet.width * scale)))


def _points(name: str, values: Values, steps: Sequence[int]) -> list[list[float | None]]:
    """A metric as [step, value]; None where it is not finite."""
    if isinstance(values, Mapping):
        pairs = sorted((int(step), float(value)) for step, value in values.items())
    else:
        numbers = [float(value) for value in values]
        if len(numbers) != len(steps):
            raise ValueError(
                f"{name} has {len(numbers)} numbers for {len(steps)} steps; give one for each, or numbers by step"
            )
        pairs = list(zip(steps, numbers, strict=True))
    if not pairs:
        raise ValueError(f"{name} has no numbers; leave it out, or give one for each step")
    return [[step, value if np.isfinite(value) else None] for step, value in pairs]
