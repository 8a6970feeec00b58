"""The course's figures, all in one style: a title, units on the axes, and a caption below that says what to see.

Each plotting function returns a matplotlib figure, which a notebook shows when it is the last value of a cell. Nothing
here uses pyplot, so no figure is shown twice or kept in memory.
"""

from __future__ import annotations

import base64
import html
import io
import textwrap
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.textpath import TextPath
from numpy.typing import ArrayLike
from PIL import Image, ImageColor

T = TypeVar("T")

#: Colours that readers with any colour vision can tell apart, also in print (Okabe and Ito, 2008).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555")
INK, FAINT = "#222222", "#666666"
STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#999999",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9,
    "font.size": 9,
    "grid.color": "#e4e4e4",
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "text.color": INK,
    "xtick.color": INK,
    "xtick.labelsize": 8.5,
    "ytick.color": INK,
    "ytick.labelsize": 8.5,
}
_BYTES = np.array([1, 256, 65536], np.uint32)  # of red, green and blue in a colour that is written as one number
DPI = 96  # an inch as browsers count it: letters of 9 points are as large as those of 9 points in the page
#: How pictures are stored: at their own size or larger, where colours at a quarter of the places (4:2:0) do.
JPEG = {"quality": 45, "subsampling": 2, "optimize": True, "progressive": True}
WIDTH = 8.0  # inches
#: The widest grid of pictures: what JupyterLab has room for on a screen of 1,366 pixels, its file browser open.
WIDEST = 9.6
GAP = 0.085  # inches between pictures
#: Colours for a map that is laid over a picture: transparent at 0, orange, then yellow at 1.
HEAT = LinearSegmentedColormap.from_list("heat", [(1, 0.2, 0.1, 0), (1, 0.45, 0.1, 0.55), (1, 0.95, 0.3, 0.9)])

#: A picture: PIL, uint8 (H, W, 3), or floats (3, H, W) in [-1, 1].
Picture = Any


class _Figure(Figure):
    """A figure that shows itself in a notebook, whether or not pyplot is used there.

    Lines and bars are stored as PNG with 64 colours, and pictures as JPEG, which takes a quarter of the space: a
    notebook of thirty figures must stay small.
    """

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        canvas = FigureCanvasAgg(self)
        canvas.draw()  # `savefig` would lay the figure out twice
        image, buffer = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"), io.BytesIO()
        if any(axis.images for axis in self.axes):
            kind = "jpeg"
            image.save(buffer, "JPEG", **JPEG)
        else:
            kind = "png"
            _reduced(image).save(buffer, "PNG", optimize=True)
        return {f"image/{kind}": base64.b64encode(buffer.getvalue()).decode(), "text/plain": repr(self)}


def _reduced(image: Image.Image, colours: int = 64) -> Image.Image:
    """An image in so few colours, those of lines, ink and paper among them: a single point must keep its own."""
    own = np.array([ImageColor.getrgb(colour) for colour in (*COLOURS, INK, "#ffffff")])
    found = np.array(image.quantize(colours - len(own)).getpalette()).reshape(-1, 3)[: colours - len(own)]
    palette = np.concatenate([own, found])
    # A colour as one number: whole numbers are sorted many times as quickly as rows of three.
    there, where = np.unique(np.asarray(image).astype(np.uint32) @ _BYTES, return_inverse=True)
    colours_there = there[:, None] // _BYTES % 256
    nearest = ((colours_there[:, None].astype(int) - palette) ** 2).sum(2).argmin(1)  # Pillow's own is not exact
    reduced = Image.fromarray(nearest[where].astype(np.uint8).reshape(image.height, image.width))
    reduced.putpalette(palette.astype(np.uint8).tobytes())
    return reduced


def _sheet(width: float, height: float, title: str, caption: str, layout: Any = None) -> tuple[_Figure, float]:
    """A figure for something of so many inches between its title and its caption, and how far up that begins."""
    lines = textwrap.wrap(caption, int(width * 12))
    titles = textwrap.wrap(title, int(width * 11))
    above, below = 0.12 * bool(title) + 0.18 * len(titles), 0.23 * len(lines)
    tall = above + height + below
    figure = _Figure(figsize=(width, tall), dpi=DPI, layout=layout, facecolor="white")
    # A layout engine moves them only where no height is given.
    top, bottom = ({}, {}) if layout else ({"y": 1 - 0.04 / tall}, {"y": 0.04 / tall})
    if title:
        figure.suptitle("\n".join(titles), x=0.01, ha="left", va="top", fontsize=10.5, fontweight="bold", **top)
    if caption:
        figure.supxlabel("\n".join(lines), x=0.01, ha="left", va="bottom", fontsize=10.5, color=INK, **bottom)
    return figure, below


def _new(
    width: float, height: float, rows: int, columns: int, title: str, caption: str, **kwargs: Any
) -> tuple[Figure, np.ndarray]:
    figure, _ = _sheet(width, height, title, caption, "constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


# ---- Pictures --------------------------------------------------------------------------------------------------------


def as_array(picture: Picture) -> np.ndarray:
    """A picture in any form of `Picture`, as uint8 (H, W, 3).

    Raises ValueError for anything else; the message names the shape and type that it got.
    """
    if isinstance(picture, Image.Image):
        return np.asarray(picture.convert("RGB"))
    if hasattr(picture, "detach"):
        picture = picture.detach().float().cpu().numpy()
    array = np.asarray(picture)
    if array.ndim == 3 and array.shape[0] == 3 and array.dtype.kind == "f":
        return ((array.transpose(1, 2, 0).clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)
    if array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8:
        return array
    raise ValueError(
        f"an array of shape {array.shape} and type {array.dtype} is no picture: "
        "give uint8 (H, W, 3), floats (3, H, W) in [-1, 1], or a PIL picture"
    )


def as_pil(picture: Picture, width: int | None = None) -> Image.Image:
    """A picture in any form as PIL, `width` pixels wide when that is given."""
    image = Image.fromarray(as_array(picture))
    if width is None or width == image.width:
        return image
    # What is enlarged three times or more shows its pixels; everything else is resized smoothly.
    how = Image.Resampling.LANCZOS if width < 3 * image.width else Image.Resampling.NEAREST
    return image.resize((width, round(width * image.height / image.width)), how)


def broken(text: str, width: int = 16) -> str:
    """A prompt in lines of at most `width` letters, to be set beside or above a picture."""
    return "\n".join(textwrap.wrap(text, width))


def _is_map(item: Any) -> bool:
    return getattr(item, "ndim", None) == 2


def grid(
    items: Sequence[Any],
    labels: Sequence[str] | None = None,
    *,
    columns: int | None = None,
    row_names: Sequence[str] | None = None,
    column_names: Sequence[str] | None = None,
    title: str = "",
    caption: str = "",
    size: float | None = None,
    unit: str = "",
    limit: float | None = None,
) -> Figure:
    """Pictures, or maps (H, W) of signed numbers, in a grid that `items` fill row by row.

    Args:
        labels: a line above each item.
        columns: items per row; by default all are in one row.
        row_names, column_names: names at the left and at the top.
        size: inches from an item to the next; by default 1.45, where a picture has its own 128 pixels at least, or what
            fits the page when there are more than six in a row.
        unit: the unit of the maps' numbers, written beside the colour bar; without it no bar is drawn.
        limit: a map's colours go from -limit to limit; by default the largest magnitude in all maps.
    Raises:
        ValueError: when there is nothing to show, or there are not as many labels as items.
    """
    items = list(items)
    if not items:
        raise ValueError("there is no picture to show")
    if labels is not None and len(labels) != len(items):
        raise ValueError(f"{len(labels)} labels for {len(items)} pictures; give one for each")
    columns = min(columns or len(items), len(items))
    rows = -(-len(items) // columns)
    arrays = [_map_array(item) if _is_map(item) else as_array(item) for item in items]
    maps = [a for a in arrays if a.ndim == 2]
    limit = limit or max((float(np.abs(m).max()) for m in maps), default=1.0) or 1.0
    # All is placed here, in inches, in one pair of axes: matplotlib takes longer to make a pair than to draw a picture,
    # and longer still to lay many out.
    left = GAP + max((_wide(name, 8.5) for name in row_names or ()), default=0.0)
    right = 0.7 if unit and maps else 0.0
    pitch = size or min(1.45, (WIDEST - left - right) / columns)
    wide, high = pitch - GAP, (pitch - GAP) * arrays[0].shape[0] / arrays[0].shape[1]
    above, names = _high(labels, 8), _high(column_names, 8.5)
    width, height = max(left + columns * pitch + right, 4.5), names + rows * (above + high + GAP)
    with rc_context(STYLE):
        figure, low = _sheet(width, height, title, caption)
        tall = figure.get_size_inches()[1]
        start = (width - left - columns * pitch - right) / 2 + left
        axis = figure.add_axes((start / width, low / tall, (columns * pitch - GAP) / width, height / tall))
        axis.set(xlim=(0, columns * pitch - GAP), ylim=(height, 0), autoscale_on=False)
        _bare(axis)
        write = partial(axis.annotate, textcoords="offset points", annotation_clip=False)
        for index, array in enumerate(arrays):
            row, column = divmod(index, columns)
            x, y = column * pitch, names + row * (above + high + GAP) + above
            fit = min(wide / array.shape[1], high / array.shape[0])  # others than the first may have another shape
            own_wide, own_high = fit * array.shape[1], fit * array.shape[0]
            corner = x + (wide - own_wide) / 2, y + (high - own_high) / 2
            image = axis.imshow(
                array,
                cmap="RdBu_r",  # of maps
                vmin=-limit,
                vmax=limit,
                interpolation="nearest" if array.ndim == 2 else "antialiased",
                aspect="auto",
                extent=(corner[0], corner[0] + own_wide, corner[1] + own_high, corner[1]),
            )
            if array.ndim == 2:
                shown = image
            else:
                # A white border would vanish on a white page.
                axis.add_patch(Rectangle(corner, own_wide, own_high, fill=False, edgecolor="#cccccc", linewidth=0.5))
            if labels is not None:
                write(labels[index], (x + wide / 2, y), (0, 3), ha="center", va="bottom", fontsize=8)
        for row, name in zip(range(rows), row_names or (), strict=False):
            middle = names + row * (above + high + GAP) + above + high / 2
            write(name, (0, middle), (-4, 0), ha="right", va="center", fontsize=8.5)
        for column, name in zip(range(columns), column_names or (), strict=False):
            write(name, (column * pitch + wide / 2, names), (0, 4), ha="center", va="bottom", fontsize=8.5)
        if unit and maps:
            beside, share = start + columns * pitch, 0.8  # of the height
            bar = (beside / width, (low + (1 - share) / 2 * height) / tall, 0.06 / width, share * height / tall)
            figure.colorbar(shown, cax=figure.add_axes(bar), label=unit)
    return figure


def _high(texts: Sequence[str] | None, points: float) -> float:
    """Inches that the tallest of these texts takes above what it names, in letters of so many points."""
    return 0.07 + max(text.count("\n") + 1 for text in texts) * 1.2 * points / 72 if texts else 0.0


def _wide(text: str, points: float) -> float:
    """Inches that a text takes beside what it names, in letters of so many points."""
    lines = [line for line in text.split("\n") if line.strip()]
    return 0.06 + max((TextPath((0, 0), line, size=points).get_extents().x1 for line in lines), default=0.0) / 72


def _map_array(item: Any) -> np.ndarray:
    return (item.detach().float().cpu().numpy() if hasattr(item, "detach") else np.asarray(item)).astype(float)


def _bare(axis: Axes) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set_visible(False)


def overlays(
    picture: Picture,
    maps: Mapping[str, Any],
    *,
    boxes: Mapping[str, Sequence[float]] | None = None,
    columns: int = 6,
    title: str = "",
    caption: str = "",
) -> Figure:
    """A picture, and beside it the same in grey under each map (H, W) of numbers >= 0, scaled to a maximum of 1.

    `boxes` draws a frame on the map of the same name: left, top, right, bottom as fractions of the picture.
    """
    array = as_array(picture)
    grey = np.repeat(array.mean(2, keepdims=True), 3, 2).astype(np.uint8)  # so that all colour comes from the map
    high, wide = array.shape[:2]
    names = ["", *maps]
    columns = min(columns, len(names))
    rows = -(-len(names) // columns)
    size = min(1.45, WIDEST / columns)
    with rc_context(STYLE):
        figure, axes = _new(size * columns, rows * (size * high / wide + 0.22), rows, columns, title, caption)
        for axis in axes.flat:
            _bare(axis)
            axis.set_visible(False)
        for axis, name in zip(axes.flat, names, strict=False):
            axis.set_visible(True)
            axis.set_title(name or "the picture", fontsize=8.5, pad=3)
            axis.imshow(grey if name else array, interpolation="antialiased", extent=(0, wide, high, 0))
            if name:
                values = _map_array(maps[name])
                values = values / max(values.max(), 1e-12)
                axis.imshow(values, cmap=HEAT, vmin=0, vmax=1, interpolation="bilinear", extent=(0, wide, high, 0))
            if box := (boxes or {}).get(name):
                left, top, right, bottom = box
                corner, sides = (left * wide, top * high), ((right - left) * wide, (bottom - top) * high)
                axis.add_patch(Rectangle(corner, *sides, fill=False, edgecolor=COLOURS[5], linewidth=1.5))
            axis.set_xlim(0, wide)
            axis.set_ylim(high, 0)
    return figure


# ---- Numbers ---------------------------------------------------------------------------------------------------------


def curves(
    x: Sequence[float] | Mapping[str, Sequence[float]],
    lines: Mapping[str, ArrayLike],
    *,
    title: str,
    x_label: str,
    y_label: str,
    caption: str = "",
    log: bool = False,
    log_x: bool = False,
    points: bool = False,
    joined: bool = True,
    errors: Mapping[str, Any] | None = None,
    levels: Mapping[str, float] | None = None,
    order: Sequence[str] | None = None,
    height: float = 2.6,
) -> Figure:
    """Lines over a common axis, or each over its own when `x` is a mapping too.

    Args:
        log: a logarithmic y axis.
        log_x: a logarithmic x axis, with the values of `x` as its ticks, as far as there is room for them.
        points: mark each value.
        joined: draw the lines between the values; without them the figure is a scatter plot.
        errors: for some of the lines, the lower and upper ends (2, N) of each value's confidence interval.
        levels: named horizontal lines to compare with, three at most (more are not drawn).
        order: names whose places give lines their colours and markers, so that these are the same in several figures.
            Lines that it does not name come after it.
    """
    places = [*(order or ()), *(name for name in lines if name not in (order or ()))]
    with rc_context(STYLE):
        figure, axes = _new(WIDTH, height, 1, 1, title, caption)
        axis = axes[0, 0]
        for name, y in lines.items():
            i = places.index(name)
            colour = _colours()[i]
            xs = x[name] if isinstance(x, Mapping) else x
            # Where colours come again, or points stand alone, markers and dashes tell them apart.
            marker = "os^"[i // len(COLOURS) % 3] if joined else "os^Dv*PX"[i % 8]
            marker = marker if points or not joined else None
            line = ("-" if i < len(COLOURS) else "--") if joined else "none"
            axis.plot(xs, y, label=name, color=colour, marker=marker, markersize=4.5 if joined else 6, linestyle=line)
            if errors and name in errors:
                low, high = errors[name]
                axis.fill_between(xs, low, high, color=colour, alpha=0.15, linewidth=0)
        for style, (name, level) in zip(("--", ":", "-."), (levels or {}).items(), strict=False):
            axis.axhline(level, color=FAINT, linestyle=style, linewidth=1.2, label=name)
        if log:
            axis.set_yscale("log")
        if log_x:
            ticks = _apart({float(v) for xs in (x.values() if isinstance(x, Mapping) else [x]) for v in xs})
            axis.set_xscale("log")
            axis.set_xticks(ticks, [f"{float(f'{v:.3g}'):g}" for v in ticks])
            axis.minorticks_off()
        axis.set_xlabel(x_label)
        axis.set_ylabel(y_label)
        if len(lines) + len(levels or {}) > 1:
            axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _apart(values: Collection[float]) -> list[float]:
    """Values in order, without those that would stand too close to the one before on a logarithmic axis."""
    kept: list[float] = []
    least = (max(values) / min(values)) ** 0.08
    for value in sorted(values):
        if not kept or value >= kept[-1] * least:
            kept.append(value)
    return kept


def bars(
    groups: Mapping[str, Mapping[str, float]],
    *,
    title: str,
    y_label: str,
    caption: str = "",
    log: bool = False,
    errors: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
    form: str = "{:.3g}",
    height: float = 2.4,
) -> Figure:
    """Bars side by side: for each series (a colour) a value for each category; `errors` holds the ends of intervals.

    `form` says how a value is written above its bar; with "" none is.
    """
    series, categories = list(groups), list(dict.fromkeys(c for values in groups.values() for c in values))
    width = 0.8 / len(series)
    with rc_context(STYLE | {"axes.grid.axis": "y"}):
        figure, axes = _new(WIDTH, height, 1, 1, title, caption)
        axis = axes[0, 0]
        for i, (colour, name) in enumerate(zip(_colours(), series, strict=False)):
            at = [c + (i - (len(series) - 1) / 2) * width for c in range(len(categories))]
            values = [groups[name].get(c, np.nan) for c in categories]
            drawn = axis.bar(at, values, width * 0.92, label=name, color=colour)
            if errors and name in errors:
                ends = np.array([errors[name].get(c, (v, v)) for c, v in zip(categories, values, strict=True)])
                ends = np.abs(ends.T - np.array(values))
                axis.errorbar(at, values, ends, fmt="none", ecolor=INK, elinewidth=1.1, capsize=3)
            elif form:
                axis.bar_label(drawn, [form.format(v) for v in values], fontsize=8, padding=1.5)
        axis.set_xticks(range(len(categories)), categories)
        axis.margins(y=0.14)
        if log:
            axis.set_yscale("log")
        axis.set_ylabel(y_label)
        if len(series) > 1:
            axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def scatter(
    panels: Mapping[str, Mapping[str, ArrayLike]], *, title: str, caption: str = "", limit: float = 3.0
) -> Figure:
    """Clouds of points (N, 2) in the plane: for each panel, named above it, a cloud for each colour.

    Both axes of all panels go from -limit to limit.
    """
    with rc_context(STYLE):
        side = WIDTH / max(len(panels), 3)
        figure, axes = _new(side * len(panels), side, 1, len(panels), title, caption)
        for axis, (name, clouds) in zip(axes[0], panels.items(), strict=True):
            for colour, (label, points) in zip(_colours(), clouds.items(), strict=False):
                axis.scatter(*np.asarray(points).T, s=5, color=colour, alpha=0.6, linewidths=0, label=label)
            axis.set(title=name, xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
        axes[0, 0].legend(loc="lower left", markerscale=2.5, handletextpad=0.1, borderpad=0)
    return figure


def _colours() -> list[str]:
    return list(COLOURS) * 3


class Table:
    """Rows of text: a table in a notebook, aligned plain text elsewhere. `links` maps a cell's text to an address."""

    def __init__(self, header: Sequence[str], rows: Iterable[Sequence[Any]], links: Mapping[str, str] | None = None):
        self.header, self.links = [str(h) for h in header], dict(links or {})
        self.rows = [[str(cell) for cell in row] for row in rows]
        if any(len(row) != len(self.header) for row in self.rows):
            raise ValueError(f"every row needs {len(self.header)} cells, one for each of {', '.join(self.header)}")

    def __repr__(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        lines = [self.header, ["-" * w for w in widths], *self.rows]
        return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)

    def _repr_html_(self) -> str:
        def cells(row: list[str], tag: str) -> str:
            return "".join(f'<{tag} style="text-align:left">{self._cell(cell)}</{tag}>' for cell in row)

        body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in self.rows)
        return f"<table><thead><tr>{cells(self.header, 'th')}</tr></thead><tbody>{body}</tbody></table>"

    def _cell(self, text: str) -> str:
        escaped = html.escape(text)
        return f'<a href="{html.escape(self.links[text])}">{escaped}</a>' if text in self.links else escaped


# ---- Live output -----------------------------------------------------------------------------------------------------


def in_notebook() -> bool:
    """Whether this runs in a Jupyter kernel."""
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return getattr(get_ipython(), "kernel", None) is not None


class Live:
    """An output below a cell that shows one thing after another. Outside a notebook it shows nothing."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, thing: Any) -> None:
        """Show `thing` in place of what was shown before."""
        if not in_notebook():
            return
        if self._handle is None:
            from IPython.display import display

            self._handle = display(thing, display_id=True)
        else:
            self._handle.update(thing)


class _Bar:
    """A progress bar of plain HTML: tqdm would write to stderr, and a widget would not outlive the kernel."""

    def __init__(self, text: str, done: int, total: int) -> None:
        self.text, self.done, self.total = text, done, total

    def __repr__(self) -> str:
        return f"{self.text} ({self.done} of {self.total})"

    def _repr_html_(self) -> str:
        style = "width:20em;max-width:40%;vertical-align:middle"
        bar = f'<progress value="{self.done}" max="{self.total}" style="{style}"></progress>'
        return f"{bar} {html.escape(self.text)}, {self.done} of {self.total}"


def progress(things: Iterable[T], total: int, label: str, note: Any = None, every: float = 0.5) -> Iterator[T]:
    """Yield `things`, showing a progress bar; at the end it says how many came and in how many seconds.

    Args:
        note: gives the text beside the bar for a thing.
        every: seconds between two updates of the bar.
    """
    live, begin, shown, done = Live(), time.monotonic(), -1e9, 0
    text = label
    for thing in things:
        now = time.monotonic()
        if now - shown >= every:
            text = f"{label}: {note(thing)}" if note else label
            live.show(_Bar(text, done, total))
            shown = now
        yield thing
        done += 1
    live.show(_Bar(f"{label}: {time.monotonic() - begin:.0f} s", done, total))
