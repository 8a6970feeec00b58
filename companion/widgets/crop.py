"""Cropping photographs by hand: a square on each, and what the model will see of it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import traitlets
from PIL import Image, ImageDraw, ImageFont

from companion.photographs import (
    COLUMNS,
    ENLARGED,
    SIZE,
    SQUARE,
    TILE,
    Square,
    as_boxes,
    centre,
    detail,
    files_of,
    is_flat,
    lit,
    upright,
    without_name,
)
from companion.pictures import PictureError, fit, open_picture
from companion.widgets.base import INK, LINE, MARGIN, PAPER, jpeg
from companion.widgets.painter import Editor, script

LONGEST = 800  # the browser gets pictures whose longer side has at most so many pixels
SMALL, PER_ROW = 64, 16  # side of a thumbnail in pixels, and how many of them are in a row of the sheet that is sent
SHOWN = 12  # photographs in the picture that the notebook keeps
RULES = {"centre": centre, "detail": detail}

Reader = Callable[[], Image.Image]


class Cropper(Editor):
    """A square on each of some photographs, to drag and resize: by mouse, pen or touch, or with keys.

        crop = Cropper("holiday/")
        prepare("holiday/", "set/", boxes=crop.boxes, leave_out=crop.left_out)

    The browser shows the photographs one after another, reduced to at most 800 pixels, with what the model will see of
    each. It has buttons for the rules of `companion.photographs`, to leave a photograph out, undo, redo and reset.

    Args:
        source: a folder or zip of photographs; or photographs by name, or a list of them: paths, PIL pictures, or
            arrays (see `pictures.open_picture`). In a list, those without a name are called 000, 001, ...
        size: width and height in pixels of what the model takes, a multiple of 8.
        crop: the rule for the first squares, "centre" or "detail".
        boxes, leave_out: see `boxes` and `left_out`.
    Attributes:
        unusable: why other files of the source cannot be used, by their names: the end of a sentence.
    Raises:
        ValueError: no file of the source is a photograph that is large enough, or an argument cannot be used.
        FileNotFoundError: there is no such source.
    """

    _esm = script("crop.js")
    names = traitlets.List().tag(sync=True)
    sizes = traitlets.List().tag(sync=True)
    squares = traitlets.List().tag(sync=True)
    out = traitlets.List().tag(sync=True)
    rules = traitlets.Dict().tag(sync=True)
    home = traitlets.List().tag(sync=True)
    size = traitlets.Int(SIZE).tag(sync=True)
    least = traitlets.Int(1).tag(sync=True)  # side of the smallest square
    unused = traitlets.Unicode().tag(sync=True)
    tiles = traitlets.CBytes().tag(sync=True)
    tile = traitlets.Int(SMALL).tag(sync=True)
    per_row = traitlets.Int(PER_ROW).tag(sync=True)
    #: The photograph that is wanted, and that of `picture`, which Python sends when it is asked for another.
    current = traitlets.Int(0).tag(sync=True)
    shown = traitlets.Int(-1).tag(sync=True)
    #: What the model will see, as a JPEG, and of which photograph and square.
    made = traitlets.CBytes().tag(sync=True)
    made_of = traitlets.List().tag(sync=True)

    def __init__(
        self,
        source: Any,
        size: int = SIZE,
        *,
        crop: str = "centre",
        boxes: Mapping[str, Sequence[int]] | str | Path | None = None,
        leave_out: Iterable[str] = (),
    ) -> None:
        if crop not in RULES:
            raise ValueError(f"crop={crop!r} is no rule: {', '.join(RULES)}")
        fit(Image.new("RGB", (8, 8)), size)  # an impossible size is refused before anything is read
        self._readers, self.unusable, thumbnails = {}, {}, []
        sizes, rules = [], {name: [] for name in RULES}
        for name, read, again in _sources(source):
            try:
                picture = read()
                _check(picture, size)
            except PictureError as error:
                self.unusable[name] = without_name(name, error)
                continue
            self._readers[name] = again
            sizes.append(list(picture.size))
            for rule, squares in rules.items():
                squares.append(list(RULES[rule](picture)))
            thumbnails.append(_reduced(picture, TILE))
        if not sizes:
            why = "; ".join(f"{name} {reason}" for name, reason in list(self.unusable.items())[:4])
            raise ValueError(f"no photograph can be used{f' ({why})' if why else ''}: give one at least")
        self._thumbnails = thumbnails
        self._original = lru_cache(2)(lambda i: list(self._readers.values())[i]())
        super().__init__(
            names=[_printable(name) for name in self._readers],
            sizes=sizes,
            squares=rules[crop],
            home=rules[crop],
            rules=rules,
            out=[False] * len(sizes),
            size=size,
            least=-(-size // ENLARGED),
            unused=", ".join(f"{_printable(name)} {reason}" for name, reason in self.unusable.items()),
            tiles=jpeg(_tiled(thumbnails)),
        )
        self.boxes = boxes or {}
        self.left_out = leave_out
        self.observe(lambda change: self._update(), ["current", "squares"])
        self._update()

    @property
    def boxes(self) -> dict[str, Square]:
        """Left, top and side of the square of each photograph that is not left out, in pixels of the upright original.

        It can be set, from such a mapping or a JSON file of one: the photographs that it names get these squares.
        """
        kept = zip(self._readers, self.squares, self.out, strict=True)
        return {name: (left, top, side) for name, (left, top, side), out in kept if not out}

    @boxes.setter
    def boxes(self, boxes: Mapping[str, Sequence[int]] | str | Path) -> None:
        squares = [list(square) for square in self.squares]
        for name, box in as_boxes(boxes).items():
            squares[self._index(name)] = list(box)
        self._check_squares(squares)
        self.squares = self.home = squares

    @property
    def left_out(self) -> list[str]:
        """The names of the photographs that are left out; it can be set."""
        return [name for name, out in zip(self._readers, self.out, strict=True) if out]

    @left_out.setter
    def left_out(self, names: Iterable[str]) -> None:
        out = [False] * len(self.out)
        for name in [names] if isinstance(names, str) else names:
            out[self._index(name)] = True
        self.out = out

    def _index(self, name: str) -> int:
        names = list(self._readers)
        if name not in names:
            why = f", which {self.unusable[name]}" if name in self.unusable else ""
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean {close[0]!r}?" if close and not why else "."
            raise ValueError(f"There is no photograph {name!r} here{why}{hint}")
        return names.index(name)

    def _check_squares(self, squares: list[list[int]]) -> None:
        for name, (left, top, side), (wide, high) in zip(self._readers, squares, self.sizes, strict=True):
            box = f"the box of {name}, {side} x {side} at ({left}, {top}),"
            if min(left, top) < 0 or left + side > wide or top + side > high:
                raise ValueError(f"{box} is not inside the photograph, {wide} x {high}")
            if side < self.least:
                raise ValueError(f"{box} is too small: at least {self.least} x {self.least} are needed for {self.size}")

    @traitlets.validate("squares")
    def _of_the_photographs(self, proposal: dict[str, Any]) -> list:
        squares = [[int(value) for value in square] for square in proposal["value"]]
        if len(squares) != len(self.sizes) or any(len(square) != 3 for square in squares):
            raise traitlets.TraitError(f"{len(squares)} squares for {len(self.sizes)} photographs; give one for each")
        try:
            self._check_squares(squares)
        except ValueError as error:
            raise traitlets.TraitError(str(error)) from None
        return squares

    @traitlets.validate("out")
    def _of_each(self, proposal: dict[str, Any]) -> list[bool]:
        if len(proposal["value"]) != len(self.sizes):
            raise traitlets.TraitError(f"{len(proposal['value'])} values for {len(self.sizes)} photographs")
        return [bool(value) for value in proposal["value"]]

    @traitlets.validate("current")
    def _there(self, proposal: dict[str, Any]) -> int:
        if not 0 <= proposal["value"] < len(self.sizes):
            raise traitlets.TraitError(f"there is no photograph {proposal['value']}; there are {len(self.sizes)}")
        return proposal["value"]

    def _update(self) -> None:
        """Send the browser the photograph that it wants, and what the model will see of it."""
        i = self.current
        try:
            picture = self._original(i)
            made = fit(picture, self.size, square=tuple(self.squares[i])).picture
        except PictureError as error:  # the file has changed or gone
            self.unused = f"{self.names[i]} {without_name(self.names[i], error)}"
            return
        with self.hold_sync():
            if self.shown != i:
                self.picture = jpeg(_reduced(picture, LONGEST))
                self.shown = i
            self.made, self.made_of = jpeg(made), [i, *self.squares[i]]

    def preview(self) -> Image.Image:
        """The first photographs with their squares, and beside each what the model will see."""
        font, shown = ImageFont.load_default(13), list(range(min(SHOWN, len(self.sizes))))
        wide = TILE + MARGIN + SQUARE + 2 * MARGIN
        high = LINE + max(SQUARE, *(self._thumbnails[i].height for i in shown)) + 2 * MARGIN
        sheet = Image.new("RGB", (wide * min(COLUMNS, len(shown)), high * -(-len(shown) // COLUMNS)), PAPER)
        pen = ImageDraw.Draw(sheet)
        for i in shown:
            x, y = i % COLUMNS * wide, i // COLUMNS * high
            thumbnail, (wide_, _) = self._thumbnails[i], self.sizes[i]
            square = (self.squares[i][0], self.squares[i][1], self.squares[i][2])
            name = f"{self.names[i]}{', left out' if self.out[i] else ''}"
            pen.text((x, y + 1), name if len(name) < 40 else f"{name[:20]}…{name[-18:]}", INK, font)
            sheet.paste(lit(thumbnail, square, wide_), (x, y + LINE))
            if not self.out[i]:
                left, top, s = (value * thumbnail.width / wide_ for value in square)
                box = (left, top, min(left + s, thumbnail.width), min(top + s, thumbnail.height))
                crop = thumbnail.resize((SQUARE, SQUARE), Image.Resampling.LANCZOS, box=box)
                sheet.paste(crop, (x + TILE + MARGIN, y + LINE))
        return sheet


def _sources(source: Any) -> Iterator[tuple[str, Reader, Reader]]:
    """The name of each photograph, and how to read it now and later: upright, or a PictureError."""
    if isinstance(source, str | Path):
        with files_of(Path(source)) as files:  # looked through once for all, which takes long in a large zip
            for name, data in files:
                yield name, partial(_read, name, data), partial(_from, Path(source), name)
        return
    if isinstance(source, Mapping):
        named = [(str(name), picture) for name, picture in source.items()]
    elif isinstance(source, Sequence):
        named = [(Path(p).name if isinstance(p, str | Path) else f"{i:03}", p) for i, p in enumerate(source)]
    else:
        raise ValueError(
            f"a {type(source).__name__} is no source; give a folder, a zip, a mapping or a list of pictures"
        )
    names = [name for name, _ in named]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"two photographs are called {twice}; give a mapping with a name for each")
    for name, picture in named:
        read = partial(lambda one: open_picture(one, whole=True)[0], picture)
        yield name, read, read


def _read(name: str, data: Callable[[], bytes]) -> Image.Image:
    return upright(name, data())[0]


def _from(source: Path, name: str) -> Image.Image:
    """A photograph of a folder or zip that was looked through before."""
    try:
        with files_of(source) as files:
            found = dict(files)
            return _read(name, found[name])
    except PictureError:
        raise
    except (KeyError, OSError, ValueError):  # the whole source may have gone, or be another
        raise PictureError(f"is not in {source.name} any more") from None


def _check(picture: Image.Image, size: int) -> None:
    """Refuse what `photographs.prepare` would leave out, too."""
    least = -(-size // ENLARGED)
    if min(picture.size) < least:
        wide, high = picture.size
        raise PictureError(f"is too small: it has {wide} x {high} pixels, and at least {least} are needed for {size}")
    if is_flat(picture):
        raise PictureError("shows one flat colour")


def _reduced(picture: Image.Image, longest: int) -> Image.Image:
    """A picture whose longer side has at most so many pixels."""
    small = picture.copy()
    small.info.clear()
    small.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return small


def _tiled(thumbnails: Sequence[Image.Image]) -> Image.Image:
    """All thumbnails on one sheet, each whole and in the middle of a square of SMALL pixels, PER_ROW in a row."""
    rows = -(-len(thumbnails) // PER_ROW)
    sheet = Image.new("RGB", (SMALL * min(PER_ROW, len(thumbnails)), SMALL * rows), (128, 128, 128))
    for i, thumbnail in enumerate(thumbnails):
        small = _reduced(thumbnail, SMALL)
        left, top = SMALL * (i % PER_ROW), SMALL * (i // PER_ROW)
        sheet.paste(small, (left + (SMALL - small.width) // 2, top + (SMALL - small.height) // 2))
    return sheet


def _printable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()
