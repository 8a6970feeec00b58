"""Photographs to a training set: a folder or zip of anything becomes square pictures of a model's size.

    made = prepare("holiday/", "set/", size=512)
    print(made)                      # what was kept, what was left out and why, what to look at

    set/instance/000.jpg, ...        the pictures, nothing else: what a training script is pointed at
    set/instance.zip                 the same, as Replicate wants them
    set/contact_sheet.png            each original with its crop, beside what became of it
    set/report.json                  everything that was done
    set/class/, set/class.zip        if pictures of the class are given, too

"Instance" and "class" are DreamBooth's words (N. Ruiz et al., arXiv 2208.12242): pictures of your subject, and pictures
of other members of its class, which keep the model from forgetting them. The originals are only read. The set is
written whole or not at all, and the same files give the same bytes, in whatever order a disk lists them.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import json
import os
import re
import stat
import textwrap
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from companion.files import check_free, written, written_folder
from companion.pictures import MAX_BYTES, PictureError, as_jpeg, fit, open_picture, read_file

#: Width and height in pixels of the pictures that Stable Diffusion 1.x learns from.
SIZE = 512
#: With fewer pictures a subject cannot be told from the place that it was photographed in; the paper used 3 to 5.
LEAST = 3
#: With more, time goes into looking at them, rarely into a better likeness.
USUAL = 30
#: A square that would be enlarged more than this many times is left out: three quarters of its rows would be made up.
ENLARGED = 4
#: A picture whose shorter side is less than this share of its longer one gets a warning.
LOST = 1 / 3
#: Pictures whose `dhash` differs in at most this many of 128 bits count as one picture. Copies of the course's
#: photographs that were made smaller or larger, saved again down to quality 10, brightened, or cut by 2 % of their
#: sides at a corner or by 4 % around, differ in at most 13 bits. Of the 32,640 pairs of its held-out renders, where
#: even grounds and horizons are alike, none differs in fewer than 21.
NEAR = 14
#: Kept pictures that differ in at most so many get a warning: one in a hundred of those pairs does.
ALIKE = 32
RULES = ("centre", "detail")
#: More files, or more bytes in a zip, are refused.
MAX_FILES, MAX_UNPACKED = 2000, 2_000_000_000

#: Wraps a loop over things, given their number, to show a progress bar; so do `rich.progress.track` and
#: `figures.progress` with their other arguments filled in.
Watch = Callable[[Iterable[Any], int], Iterable[Any]]
#: Left, top and side, in pixels of the upright original.
Square = tuple[int, int, int]


@dataclass(frozen=True)
class Photograph:
    """One file, and what became of it.

    Attributes:
        name: its path in the folder or zip, with /.
        file: what it is called in the set; "" if it was left out.
        reason: why it was left out, as the end of a sentence that begins with its name; "" if it was kept.
        size: width and height in pixels of the upright original; (0, 0) if it could not be read.
        square: the part of the original that was taken.
        enlarged: how many times larger the square became; below 1 if it was shrunk.
        steps: what was done to it, a phrase for each step.
        hash: see `dhash`.
        sha256, length: of the file's bytes.
        jpeg: its picture in the set.
        thumbnail: the whole original, small.
    """

    name: str
    file: str = ""
    reason: str = ""
    size: tuple[int, int] = (0, 0)
    square: Square = (0, 0, 0)
    enlarged: float = 1.0
    steps: tuple[str, ...] = ()
    hash: int = 0
    sha256: str = ""
    length: int = 0
    jpeg: bytes = field(default=b"", repr=False)
    thumbnail: Image.Image | None = field(default=None, repr=False, compare=False)

    @property
    def share(self) -> float:
        """The share of the original that is in the square."""
        return self.square[2] ** 2 / (self.size[0] * self.size[1])


@dataclass(frozen=True)
class TrainingSet:
    """Pictures that are ready for training; printing it says what was kept, what was left out and why.

    Attributes:
        path: the folder or zip that was written.
        source: the name of the folder or zip that they came from.
        size: their width and height in pixels.
        photographs: one for each file of the source, in the order of their names.
        warnings: what to look at, a sentence each.
        class_set: the pictures of the class, if there are any.
    """

    path: Path
    source: str
    size: int
    crop: str
    photographs: tuple[Photograph, ...]
    warnings: tuple[str, ...] = ()
    class_set: TrainingSet | None = None

    @property
    def kept(self) -> tuple[Photograph, ...]:
        """The pictures of the set, in the order of their numbers."""
        return tuple(p for p in self.photographs if p.file)

    @property
    def left_out(self) -> tuple[Photograph, ...]:
        """The files that are not in the set."""
        return tuple(p for p in self.photographs if not p.file)

    @property
    def count(self) -> int:
        """How many pictures the set holds."""
        return len(self.kept)

    @property
    def enlarged(self) -> tuple[str, ...]:
        """The names of the files that were smaller than the set's pictures."""
        return tuple(p.name for p in self.kept if p.enlarged > 1)

    def __str__(self) -> str:
        lines = [f"{self.count} pictures of {self.size} x {self.size} from {self.source}"]
        lines += _some(f"{p.file}  {p.name}, {p.size[0]} x {p.size[1]}{_fate(p)}" for p in self.kept)
        if self.left_out:
            lines += ["Left out:", *_some(f"{p.name} {p.reason}" for p in self.left_out)]
        if self.warnings:
            lines += ["Look at:", *_some(self.warnings)]
        if self.class_set:
            lines += ["", f"Class: {self.class_set}"]
        return "\n".join(lines)

    def report(self) -> dict[str, Any]:
        """Everything that was done, for a JSON file."""
        kept = [
            {"file": p.file, "name": p.name, "size": p.size, "square": p.square, "enlarged": round(p.enlarged, 3)}
            | {"steps": p.steps, "dhash": f"{p.hash:032x}", "sha256": p.sha256}
            for p in self.kept
        ]
        return {
            "source": self.source,
            "size": self.size,
            "crop": self.crop,
            "kept": kept,
            "left_out": [{"name": p.name, "reason": p.reason} for p in self.left_out],
            "warnings": self.warnings,
        } | ({"class": self.class_set.report()} if self.class_set else {})


def prepare(
    source: str | Path,
    out: str | Path,
    size: int = SIZE,
    *,
    crop: str = "centre",
    boxes: Mapping[str, Sequence[int]] | str | Path | None = None,
    leave_out: Iterable[str] = (),
    keep_alike: bool = False,
    class_pictures: str | Path | None = None,
    watch: Watch | None = None,
) -> TrainingSet:
    """Write a training set (see the top of this module) from a folder or zip of photographs.

    Every file of the source is looked at, in its subfolders too; what cannot be used is left out, and the set says why.

    Args:
        out: a new folder outside the source.
        size: width and height in pixels that the model takes, a multiple of 8.
        crop: "centre" takes the largest square in the middle; "detail" moves it to where the detail is (see `detail`).
        boxes: left, top and side in pixels of the upright original, by the file's name in the source; they override
            `crop` for these files. Or the path of a JSON file that holds such a mapping. The panel `widgets.Cropper`
            makes them by hand.
        leave_out: names of files that are not wanted.
        keep_alike: keep near-duplicates, too.
        class_pictures: a folder or zip with pictures of the class. Theirs is the square in the middle, and they may be
            alike, since a model that draws one prompt again and again draws alike pictures.
        watch: see `Watch`.
    Raises:
        ValueError: fewer than three pictures can be used, or an argument or a zip cannot be; nothing is written.
        FileNotFoundError: there is no such source.
        FileExistsError: `out` is there already.
    """
    out, source = Path(out), Path(source)
    for place in (source, *([Path(class_pictures)] if class_pictures else [])):
        if place.is_dir() and out.resolve().is_relative_to(place.resolve()):
            raise ValueError(f"{out} is inside {place}, whose pictures would be mixed with their copies: name another.")
    check_free(out)  # before a thousand pictures are read
    made = select(source, size, crop=crop, boxes=boxes, leave_out=leave_out, keep_alike=keep_alike, watch=watch)
    if class_pictures:
        others = select(class_pictures, size, keep_alike=True, least=1, watch=watch)
        made = replace(made, class_set=replace(others, path=out / "class"))
    made = replace(made, path=out)
    with written_folder(out) as folder:
        for name, part in (("instance", made), ("class", made.class_set)):
            if part:
                (folder / name).mkdir()
                for p in part.kept:
                    (folder / name / p.file).write_bytes(p.jpeg)
                _write_zip(folder / f"{name}.zip", part.kept)
        contact_sheet(made).save(folder / "contact_sheet.png", "PNG")
        text = json.dumps(made.report(), indent=1, ensure_ascii=False) + "\n"
        (folder / "report.json").write_text(text, encoding="utf-8", newline="\n")
    return made


def pack(
    source: str | Path,
    target: str | Path,
    size: int = SIZE,
    *,
    keep_alike: bool = False,
    watch: Watch | None = None,
) -> TrainingSet:
    """Write only the zip of a training set, with 000.jpg, 001.jpg and so on; arguments and errors as for `prepare`."""
    target = Path(target)
    check_free(target)
    made = replace(select(source, size, keep_alike=keep_alike, watch=watch), path=target)
    with written(target) as temporary:
        _write_zip(temporary, made.kept)
    return made


def check_zip(path: str | Path, least: int = LEAST) -> None:
    """Raise ValueError unless a file is a zip with at least `least` pictures that can be read."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, and a zip is wanted: `companion replicate zip` makes it.")
    readable = 0
    with files_of(path) as files:
        for _, read in files:
            try:
                open_picture(read())
                readable += 1
            except PictureError:
                pass
    if readable < least:
        count = f"{readable or 'no'} readable picture{'s' * (readable != 1)}"
        raise ValueError(
            f"{path} holds {count}, and at least {least} must be in it: `companion replicate zip` makes such a zip."
        )


# ---- Where to crop ---------------------------------------------------------------------------------------------------


def centre(picture: Image.Image) -> Square:
    """The largest square in the middle of a picture, as photographers and DreamBooth's scripts assume it."""
    side = min(picture.size)
    return (picture.width - side) // 2, (picture.height - side) // 2, side


def detail(picture: Image.Image) -> Square:
    """The largest square, moved along the longer side until its middle is the centre of gravity of the detail.

    Detail is the square root of the grey picture's gradient; the root keeps one hard edge from outweighing everything.
    The centre of gravity moves the square less than the most detailed square would, and so errs less, since a hedge or
    a carpet may have more detail than your subject. It rarely gains much, so "centre" is the usual rule.
    """
    left, top, side = centre(picture)
    long = max(picture.size)
    if long == side:
        return left, top, side
    scale = min(1.0, 128 / side)
    small = picture.convert("L").resize(
        (max(2, round(picture.width * scale)), max(2, round(picture.height * scale))), Image.Resampling.BOX
    )
    down, right = np.gradient(np.asarray(small, float))
    strength = np.sqrt(np.hypot(down, right)).sum(0 if picture.width > picture.height else 1)
    if not strength.any():
        return left, top, side
    middle = ((np.arange(len(strength)) + 0.5) * strength).sum() / strength.sum() * long / len(strength)
    start = int(np.clip(round(middle - side / 2), 0, long - side))
    return (start, 0, side) if picture.width > picture.height else (0, start, side)


def as_boxes(boxes: Mapping[str, Sequence[int]] | str | Path | None) -> dict[str, Square]:
    """Boxes by name, from a mapping or a JSON file; ValueError for what is no box of three whole numbers."""
    if isinstance(boxes, str | Path):
        _, data = read_file(boxes)
        try:
            boxes = json.loads(data)
        except ValueError as error:
            raise ValueError(f"{boxes} is no JSON file ({error}).") from None
    if boxes is not None and not isinstance(boxes, Mapping):
        raise ValueError('Boxes are a mapping from names to [left, top, side], such as {"cat.jpg": [40, 0, 300]}.')
    found = {}
    for name, box in (boxes or {}).items():
        numbers = list(box) if isinstance(box, Sequence) and not isinstance(box, str) else []
        if len(numbers) != 3 or not all(isinstance(n, int | np.integer) and not isinstance(n, bool) for n in numbers):
            raise ValueError(f"The box of {name} is {box!r}; three whole numbers are wanted: left, top and side.")
        found[str(name)] = (int(numbers[0]), int(numbers[1]), int(numbers[2]))
    return found


# ---- Duplicates ------------------------------------------------------------------------------------------------------


def dhash(picture: Image.Image) -> int:
    """A difference hash of 128 bits: where a picture of 9 x 9 greys grows brighter to the right, and where downwards.

    Copies of a picture differ in few bits, since enlarging, saving and brightening leave such signs alone. From
    N. Krawetz, "Kind of like that" (hackerfactor.com, 2013), which has the rows only; the columns make it surer.
    """
    grey = np.asarray(picture.convert("L").resize((9, 9), Image.Resampling.LANCZOS), int)
    signs = np.stack([grey[:8, 1:] > grey[:8, :8], grey[1:, :8] > grey[:8, :8]])
    return int.from_bytes(np.packbits(signs).tobytes(), "big")


def differing_bits(a: int, b: int) -> int:
    """In how many bits two hashes differ."""
    return (a ^ b).bit_count()


def _without_duplicates(photographs: list[Photograph], keep_alike: bool) -> list[Photograph]:
    """The photographs with a reason for each that shows what a larger one shows; `keep_alike` spares all but copies.

    The largest come first, and one is kept unless it is nearly the same as one that was kept. So whatever is left out
    has a larger twin in the set, and the order of the files does not matter.
    """
    ranked = sorted(photographs, key=lambda p: (-p.size[0] * p.size[1], -p.length, p.sha256, len(p.name), p.name))
    kept: list[Photograph] = []
    reasons: dict[str, str] = {}
    for p in ranked:
        if p.reason:
            continue
        if same := next((k for k in kept if k.sha256 == p.sha256), None):
            reasons[p.name] = f"is the same file as {same.name}"
            continue
        near = min(kept, key=lambda k: differing_bits(k.hash, p.hash), default=None)
        if near and not keep_alike and (bits := differing_bits(near.hash, p.hash)) <= NEAR:
            which = "larger" if near.size != p.size else "as large"
            reasons[p.name] = f"is nearly the same as {near.name}, which is {which} ({bits} of 128 bits differ)"
            continue
        kept.append(p)
    return [replace(p, reason=reasons.get(p.name, p.reason)) for p in photographs]


# ---- Choosing --------------------------------------------------------------------------------------------------------


def select(
    source: str | Path,
    size: int = SIZE,
    *,
    crop: str = "centre",
    boxes: Mapping[str, Sequence[int]] | str | Path | None = None,
    leave_out: Iterable[str] = (),
    keep_alike: bool = False,
    least: int = LEAST,
    watch: Watch | None = None,
) -> TrainingSet:
    """Look at every file of a folder or zip, and choose: what `prepare` would write, with each picture's `jpeg`.

    Args:
        least: raise ValueError if fewer can be used; other arguments and errors as for `prepare`.
    """
    source = Path(source)
    if crop not in RULES:
        near = difflib.get_close_matches(str(crop), RULES, n=1)
        hint = f"; did you mean {near[0]!r}" if near else ""
        raise ValueError(f"crop={crop!r} is no rule{hint}: {', '.join(RULES)}")
    fit(Image.new("RGB", (8, 8)), size)  # an impossible size is refused before anything is read
    given, unwanted = as_boxes(boxes), [leave_out] if isinstance(leave_out, str) else list(leave_out)
    with files_of(source) as files:
        names = [name for name, _ in files]
        for name, what in [
            *((name, "There is a box for") for name in given),
            *((n, "You leave out") for n in unwanted),
        ]:
            if name not in names:
                close = difflib.get_close_matches(name, names, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else "."
                raise ValueError(f"{what} {name!r}, and no such file in {source}{hint}")
        watched = watch(files, len(files)) if watch else files
        found = [
            Photograph(name, reason="was left out by hand")
            if name in unwanted
            else _examined(name, read, size, crop, given.get(name))
            for name, read in watched
        ]
    found = _without_duplicates(found, keep_alike)
    numbers = iter(range(len(found)))
    found = [p if p.reason else replace(p, file=f"{next(numbers):03}.jpg") for p in found]
    name = source.resolve().name or str(source)
    made = TrainingSet(source, name, size, crop, tuple(replace(p, name=_shown(p.name)) for p in found))
    if made.count < least:
        raise ValueError(_too_few(made, least))
    return replace(made, warnings=tuple(_warnings(made, keep_alike)))


def _examined(name: str, read: Callable[[], bytes], size: int, crop: str, box: Square | None) -> Photograph:
    """Read one file, and cut its square; or say why not."""
    try:
        data = read()
        picture, steps = upright(name, data)
    except PictureError as error:
        if box:
            raise ValueError(f"There is a box for {name}, but it cannot be used: {error}.") from None
        return Photograph(name, reason=without_name(name, error))
    square = box or (centre if crop == "centre" else detail)(picture)
    known = Photograph(
        name, size=picture.size, square=square, enlarged=size / square[2] if square[2] > 0 else 0.0, length=len(data)
    )
    if known.enlarged > ENLARGED:
        large = f"{square[2]} x {square[2]} pixels, and at least {-(-size // ENLARGED)} are needed for {size}"
        if box:
            raise ValueError(f"The box of {name} has {large}.")
        return replace(known, reason=f"is too small: its square has {large}")
    if is_flat(picture):
        return replace(known, reason="shows one flat colour")
    try:
        fitted = fit(picture, size, square=square)
    except PictureError as error:
        raise ValueError(f"The box of {name} will not do: {error}.") from None
    thumbnail = picture.copy()
    thumbnail.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)
    thumbnail.info.clear()
    return replace(
        known,
        steps=(*steps, *fitted.steps),
        hash=dhash(picture),
        sha256=hashlib.sha256(data).hexdigest(),
        jpeg=as_jpeg(fitted.picture),
        thumbnail=thumbnail,
    )


def upright(name: str, data: bytes) -> tuple[Image.Image, tuple[str, ...]]:
    """A file's picture (see `open_picture`), upright and at its original size; a PictureError begins with its name."""
    file = io.BytesIO(data)
    file.name = PurePosixPath(name).name
    return open_picture(file, whole=True)


def without_name(name: str, error: PictureError) -> str:
    """Why a file cannot be used, as the end of a sentence that begins with its name."""
    last = PurePosixPath(name).name
    return str(error).removeprefix(f"{last!r} ").removeprefix(f"{last} ")


def is_flat(picture: Image.Image) -> bool:
    """Whether a picture's 9 x 9 thumbnail has less than four levels of contrast: nothing can be learned from it."""
    colours = np.asarray(picture.resize((9, 9), Image.Resampling.BOX), int).reshape(-1, 3)
    return bool(np.ptp(colours, 0).max() < 4)


def _too_few(made: TrainingSet, least: int) -> str:
    out = [f"{p.name} {p.reason.partition(';')[0].partition(' (')[0]}" for p in made.left_out]
    why = f" ({'; '.join(out[:4])}{f'; and {len(out) - 4} more files' if len(out) > 4 else ''})" if out else ""
    count = f"{made.count or 'no'} picture{'s' * (made.count != 1)}"
    needed = f"DreamBooth needs at least {least}" if least > 1 else "at least one is needed"
    return f"{made.source} holds {count} that can be used{why}, and {needed}."


def _warnings(made: TrainingSet, keep_alike: bool) -> Iterator[str]:
    if made.count > USUAL and not keep_alike:
        yield f"{made.count} pictures are many for one subject, for which 3 to {USUAL} are usual"
    if blurred := [p.name for p in made.kept if p.enlarged > 2]:
        more = f" and {len(blurred) - 5} more" if len(blurred) > 5 else ""
        yield f"enlarged more than twice, and so blurred: {', '.join(blurred[:5])}{more}"
    for p in made.kept:
        if min(p.size) == p.square[2] < LOST * max(p.size):
            yield f"{p.name} is long: only {p.share:.0%} of it is in the square"
    if keep_alike:
        return
    for i, p in enumerate(made.kept):
        near = min(made.kept[:i], key=lambda k: differing_bits(k.hash, p.hash), default=None)
        if near and (bits := differing_bits(near.hash, p.hash)) <= ALIKE:
            yield f"{near.name} and {p.name} look much alike ({bits} of 128 bits differ)"


# ---- Folders and zips ------------------------------------------------------------------------------------------------

_Files = list[tuple[str, Callable[[], bytes]]]


@contextmanager
def files_of(source: Path) -> Iterator[_Files]:
    """Every file of a folder or zip in the order of their names, and how to read each: bytes, or a PictureError."""
    if not source.exists():
        raise FileNotFoundError(f"There is no {source}: name a folder of pictures, or a zip of them.")
    if source.is_dir():
        yield sorted(_in_folder(source), key=lambda file: file[0])
        return
    if not zipfile.is_zipfile(source):
        raise ValueError(f"{source} is neither a folder nor a whole zip: name a folder of pictures, or a zip of them.")
    try:
        with zipfile.ZipFile(source) as archive:
            yield sorted(_in_zip(source, archive), key=lambda file: file[0])
    except zipfile.BadZipFile as error:
        raise ValueError(f"{source} is a damaged zip ({error}): make or download it again.") from None


def _refuse(reason: str) -> bytes:
    raise PictureError(reason)


def _in_folder(folder: Path) -> _Files:
    """The files of a folder and its subfolders. A link to a file is followed; a link to a folder might lead round."""
    files: _Files = []

    def unreadable(error: OSError) -> None:
        place = Path(error.filename).relative_to(folder).as_posix()
        files.append((place, partial(_refuse, f"cannot be read: {(error.strerror or '').lower()}")))

    for here, folders, names in os.walk(folder, onerror=unreadable):
        place = Path(here)
        for name in [*folders, *names]:
            path, reason = place / name, ""
            if name.startswith("."):
                reason = "is hidden"
            elif name in folders:
                reason = "is a link to a folder; such links are not followed" if path.is_symlink() else ""
                if not reason:
                    continue
            elif path.is_symlink() and not path.exists():
                reason = "is a link to nothing"
            elif not path.is_file():
                reason = "is no file, but something like a pipe or a device"
            read = partial(_refuse, reason) if reason else partial(_bytes_of, path)
            files.append((path.relative_to(folder).as_posix(), read))
        folders[:] = [name for name in folders if not name.startswith(".")]
        if len(files) > MAX_FILES:
            raise ValueError(f"{folder} holds more than {MAX_FILES:,} files: name a folder with the pictures alone.")
    return files


def _bytes_of(path: Path) -> bytes:
    return read_file(path)[1]


def _in_zip(source: Path, archive: zipfile.ZipFile) -> _Files:
    """The files of a zip. They are read in memory and never unpacked; what only an attack would hold is refused."""

    def refuse(reason: str) -> ValueError:
        return ValueError(f"{source.name} {reason}; it is refused: make a zip of the pictures alone.")

    entries = archive.infolist()
    if len(entries) > MAX_FILES:
        raise refuse(f"holds {len(entries):,} entries, and the limit is {MAX_FILES:,}")
    if (total := sum(entry.file_size for entry in entries)) > MAX_UNPACKED:
        raise refuse(f"unpacks to {total:,} bytes, and the limit is {MAX_UNPACKED:,}")
    files: _Files = []
    names: set[str] = set()
    for entry in entries:
        name = entry.filename.replace("\\", "/")  # some programs on Windows write these
        said, kind = _shown(name), stat.S_IFMT(entry.external_attr >> 16)
        if name.startswith("/") or re.match("[A-Za-z]:", name):
            raise refuse(f"holds {said!r}, an absolute path")
        if ".." in PurePosixPath(name).parts:
            raise refuse(f"holds {said!r}, a path that leads out of it")
        if kind == stat.S_IFLNK:
            raise refuse(f"holds {said!r}, a link")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise refuse(f"holds {said!r}, which is no file")
        if entry.is_dir() or name.endswith("/"):
            continue
        if entry.flag_bits & 1:
            raise refuse(f"holds {said!r}, which is encrypted")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack without a bound
            raise refuse(f"holds {said!r}, compressed by a rare method")
        if entry.file_size > MAX_BYTES:
            raise refuse(f"holds {said!r}, which unpacks to {entry.file_size:,} bytes, and the limit is {MAX_BYTES:,}")
        if name in names:
            raise refuse(f"holds two files called {said!r}")
        names.add(name)
        if any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts):
            files.append((name, partial(_refuse, "is hidden")))
            continue
        data = partial(_unpacked, archive, entry)
        if name.lower().endswith(".zip") or data(4) == b"PK\x03\x04":
            raise refuse(f"holds {said!r}, an archive in an archive")
        files.append((name, data))
    return files


def _unpacked(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, most: int | None = None) -> bytes:
    """The bytes of an entry, or the first few; never more than the zip says it has."""
    try:
        with archive.open(entry) as file:
            # Reading with a bound stops at it; `archive.read` would unpack everything first, and compare then.
            return file.read(entry.file_size + 1 if most is None else most)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
        if most is not None:
            return b""  # it fails again when it is read whole
        raise PictureError(f"is damaged in the zip ({error}); make or download it again") from None


def _write_zip(path: Path, kept: Iterable[Photograph]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for p in kept:
            # A fixed date, so that the zip's bytes depend on the pictures alone.
            archive.writestr(zipfile.ZipInfo(p.file, (1980, 1, 1, 0, 0, 0)), p.jpeg)


# ---- Showing ---------------------------------------------------------------------------------------------------------

#: Pixels of an original, and of its square, on the contact sheet; how many pairs a row has, and how many there are.
TILE, SQUARE, COLUMNS, SHEET = 208, 128, 3, 300


def contact_sheet(made: TrainingSet) -> Image.Image:
    """Each original with its square lit, and beside it the picture of the set, with both names; at most 300 of them."""
    import matplotlib

    font = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", 13)
    shown = made.kept[:SHEET]
    wide, gap, columns = TILE + 8 + SQUARE, 16, min(COLUMNS, len(shown))
    thumbnails = [p.thumbnail for p in shown if p.thumbnail]  # every kept picture has one
    rows = [thumbnails[i : i + columns] for i in range(0, len(thumbnails), columns)]
    tops = np.cumsum([gap, *(24 + max(SQUARE + 20, *(t.height for t in row)) + gap for row in rows)]).tolist()
    sheet = Image.new("RGB", (columns * (wide + gap) + gap, tops[-1]), (236, 236, 236))  # so that white is seen
    pen = ImageDraw.Draw(sheet)
    for i, (p, original) in enumerate(zip(shown, thumbnails, strict=True)):
        x, y = gap + i % columns * (wide + gap), tops[i // columns]
        sheet.paste(lit(original, p.square, p.size[0]), (x, y + 24))
        square = Image.open(io.BytesIO(p.jpeg)).resize((SQUARE, SQUARE), Image.Resampling.LANCZOS)
        sheet.paste(square, (x + TILE + 8, y + 24))
        pen.text((x, y), _fitting(f"{p.file}  {p.name}", font, wide), "black", font)
        if p.enlarged > 1.05:
            pen.text((x + TILE + 8, y + 24 + SQUARE + 4), f"enlarged {p.enlarged:.1f} times", (200, 60, 0), font)
    return sheet


def lit(thumbnail: Image.Image, square: Square, width: int) -> Image.Image:
    """A thumbnail of a picture that is `width` pixels wide, dark outside of a square of that picture."""
    left, top, side = (round(value * thumbnail.width / width) for value in square)
    box = (left, top, min(left + side, thumbnail.width), min(top + side, thumbnail.height))
    dark = thumbnail.point(lambda value: value * 2 // 5)
    dark.paste(thumbnail.crop(box), box[:2])
    ImageDraw.Draw(dark).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline=(255, 210, 0), width=2)
    return dark


def _fitting(text: str, font: ImageFont.FreeTypeFont, wide: int) -> str:
    """A text that is shortened in its middle until it is at most so many pixels wide."""
    if font.getlength(text) <= wide:
        return text
    half = next(n for n in range(len(text) // 2, 0, -1) if font.getlength(f"{text[:n]}…{text[-n:]}") <= wide)
    return f"{text[:half]}…{text[-half:]}"


def _fate(p: Photograph) -> str:
    """What happened to a kept picture, in a few words."""
    parts = [f", {p.share:.0%} of it"] if p.share < 0.995 else []
    return "".join([*parts, f", enlarged {p.enlarged:.1f} times" if p.enlarged > 1.05 else ""])


def _some(lines: Iterable[str], most: int = 40) -> list[str]:
    """Lines for a terminal of 80 columns, and how many more there are."""
    lines = list(lines)
    more = [f"and {len(lines) - most} more"] if len(lines) > most else []
    return [
        textwrap.fill(line, 79, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False)
        for line in [*lines[:most], *more]
    ]


def _shown(name: str) -> str:
    """A file's name without what a terminal would obey or cannot print."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in name)
