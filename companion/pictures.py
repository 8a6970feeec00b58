"""Reading pictures: any picture file becomes the model's input by a stated rule, or one sentence says why it cannot.

    fitted = load_picture("holiday.jpg", size=128)
    fitted.picture          # PIL, RGB, 128 x 128
    print(fitted)           # what was done to it, step by step

Nothing happens silently: every change is listed. The size that a file claims is checked before it is decoded, so a
small file that would unpack to a huge picture is refused without unpacking it.
"""

from __future__ import annotations

import difflib
import importlib
import io
import re
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

#: A picture with more pixels is refused: decoded, this many take 0.4 GB.
MAX_PIXELS = 120_000_000
#: A larger file is not read.
MAX_BYTES = 200_000_000
#: A shorter side leaves nothing to draw from.
MIN_SIDE = 8
#: A JPEG is decoded at a half, a quarter or an eighth of its size if its shorter side keeps at least this many pixels.
ENOUGH = 2048
#: The formats that are opened. Pillow's other formats start external programs (EPS) or are rare. HEIF is what phones
#: call HEIC, and is opened where the package pillow-heif is installed.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO", "AVIF", "JPEG2000", "HEIF")
READABLE = "JPEG, PNG, WebP, AVIF, GIF, BMP or TIFF"
RULES = ("crop", "pad", "stretch")
_NO_HEIC = (
    "save it as JPEG (on the phone: share it as 'most compatible'), or run `pip install pillow-heif` and try again"
)
#: How to recognize other files: an offset, the bytes that are there, and what the file is and what to do about it.
OTHERS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"%PDF", "a PDF document; take a screenshot of its page, or export the page as PNG"),
    (0, b"%!PS", "a PostScript file, which is a program; export it as PNG"),
    (0, b"PK\x03\x04", "a ZIP archive (or an office document); unpack it first"),
    (0, b"8BPS", "a Photoshop document; export it as PNG"),
    (0, b"version https://git-lfs", "a pointer of Git LFS and not the picture itself; run: git lfs pull"),
    (8, b"WAVE", "a sound"),
    (4, b"ftyphei", f"a HEIC picture, which phones write; {_NO_HEIC}"),
    (4, b"ftypmif1", f"a HEIC picture, which phones write; {_NO_HEIC}"),
    (4, b"ftyp", "a video; take a screenshot of it"),
    (0, b"\x1aE\xdf\xa3", "a video; take a screenshot of it"),
    (0, b"ID3", "a sound"),
    (0, b"\x1f\x8b", "a gzip archive; unpack it first"),
)


class PictureError(ValueError):
    """The file or object cannot become the model's input; the message says why, and what to do."""


@dataclass(frozen=True)
class Fitted:
    """A picture that is ready for the model, and what was done to it.

    Attributes:
        picture: PIL, RGB, size x size.
        original: PIL, RGB, upright, at its original size (a very large JPEG is decoded smaller).
        steps: what was done, a phrase for each step, in order.
        box: where the original lies in `picture`: left, top, right, bottom in pixels; all of it unless it was padded.
    """

    picture: Image.Image
    original: Image.Image
    steps: tuple[str, ...]
    box: tuple[int, int, int, int]

    def __repr__(self) -> str:
        return "; ".join(self.steps)


def load_picture(
    source: Any, size: int, how: str = "crop", *, background: tuple[int, int, int] = (255, 255, 255)
) -> Fitted:
    """The picture in a file as the model's input: opened (`open_picture`), then fitted (`fit`).

    Args:
        source: a path, bytes, an open binary file, a PIL picture, or an array (see `open_picture`).
        size: width and height in pixels of what the model takes.
        how: "crop" cuts the longer side at both ends; "pad" adds bars; "stretch" changes the proportions.
        background: RGB colour, 0 to 255, of the bars and behind transparent pixels.
    Raises:
        PictureError: for anything that cannot be used; the message is one sentence.
    """
    picture, steps = open_picture(source, background=background)
    fitted = fit(picture, size, how, background=background)
    return Fitted(fitted.picture, picture, (*steps, *fitted.steps), fitted.box)


def open_picture(
    source: Any, *, background: tuple[int, int, int] = (255, 255, 255), whole: bool = False
) -> tuple[Image.Image, tuple[str, ...]]:
    """A picture, RGB, upright and at its original size (a very large JPEG is smaller), and what was done to it.

    Arrays (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) may be uint8, uint16, booleans, or floats in [0, 1].

    Args:
        whole: decode a very large JPEG at its original size too.
    Raises:
        PictureError: for anything but a still picture of at least 8 x 8 and at most 120,000,000 pixels.
    """
    if isinstance(source, Image.Image):
        _check_size("the picture", *source.size)
        _decode("the picture", source)  # Pillow opens a file lazily, so that a damaged one fails only here
        return _to_rgb(source, _Steps("the picture", source), background)
    if isinstance(source, np.ndarray) or hasattr(source, "__array_interface__"):
        array = np.asarray(source)
        return _to_rgb(_from_array(array), _Steps("the array"), background)
    name, data = _read(source)
    with warnings.catch_warnings():
        # At its own limit Pillow only warns; ours is checked below, before anything is decoded.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        known = _known()
        try:
            image = Image.open(io.BytesIO(data), formats=[f for f in FORMATS if f in known])
        except UnidentifiedImageError:
            raise PictureError(_what_it_is(name, data)) from None
        except Image.DecompressionBombError as error:
            claimed = int(re.findall(r"\d+", str(error))[0])
            raise PictureError(f"{name} has {claimed:,} pixels, and the limit is {MAX_PIXELS:,}; {_SMALLER}") from None
        except (OSError, SyntaxError, ValueError, EOFError, OverflowError, struct.error) as error:
            raise PictureError(_broken(name, error, data)) from None
        _check_size(name, *image.size)
        _check_still(name, image, data)
        steps = _Steps(name, image)
        if image.format == "JPEG" and not whole:
            part = max(n for n in (1, 2, 4, 8) if n == 1 or min(image.size) >= n * ENOUGH)
            image.draft(None, (image.width // part, image.height // part))
            if image.size != steps.size:
                steps.add(f"decoded at {image.width} x {image.height}, since it is large")
        _decode(name, image, data)
    return _to_rgb(image, steps, background)


def fit(
    picture: Image.Image,
    size: int,
    how: str = "crop",
    *,
    background: tuple[int, int, int] = (255, 255, 255),
    square: tuple[int, int, int] | None = None,
) -> Fitted:
    """Fit an RGB picture of any size into size x size pixels; see `load_picture` for the arguments.

    Args:
        square: left, top and side, in pixels, of the part to take, instead of what the rule `how` says.
    Raises:
        PictureError: for an unknown rule, a size that is not a positive multiple of 8, or a square that is not inside
            the picture.
    """
    if how not in RULES:
        near = difflib.get_close_matches(str(how), RULES, n=1)
        raise PictureError(f"how={how!r} is no rule{f'; did you mean {near[0]!r}' if near else ''}: {', '.join(RULES)}")
    if not isinstance(size, int) or size < 8 or size % 8:
        raise PictureError(f"size={size!r} will not do: the autoencoder wants a multiple of 8, such as 128 or 512")
    wide, high = picture.size
    steps, source = [], (0.0, 0.0, float(wide), float(high))
    inner, box = (size, size), (0, 0, size, size)
    if square is not None:
        left, top, side = square
        if min(left, top) < 0 or side < 1 or left + side > wide or top + side > high:
            raise PictureError(
                f"the square at ({left}, {top}) with sides of {side} is not inside the picture, {wide} x {high}"
            )
        source = (float(left), float(top), float(left + side), float(top + side))
        if side * side < wide * high:
            steps.append(f"cut to {side} x {side} at ({left}, {top}): {1 - side * side / (wide * high):.0%} lost")
    elif wide != high and how == "crop":
        side = min(wide, high)
        left, top = (wide - side) / 2, (high - side) / 2
        source = (left, top, left + side, top + side)
        ends = "left and right" if wide > high else "top and bottom"
        steps.append(f"cropped to its middle, {side} x {side}: {1 - side / max(wide, high):.0%} lost at {ends}")
    elif wide != high and how == "pad":
        inner = max(1, round(size * wide / max(wide, high))), max(1, round(size * high / max(wide, high)))
        left, top = (size - inner[0]) // 2, (size - inner[1]) // 2
        box = (left, top, left + inner[0], top + inner[1])
        steps.append(f"padded with bars at {'top and bottom' if wide > high else 'left and right'}")
    elif wide != high:
        steps.append(
            f"stretched: {max(wide, high) / min(wide, high):.2f} times too {'tall' if wide > high else 'wide'}"
        )
    scale = max(inner) / max(source[2] - source[0], source[3] - source[1])
    if (source[2] - source[0], source[3] - source[1]) != inner:
        note = ", so it is blurred" if scale > 2 else ""
        steps.append(f"{'enlarged' if scale > 1 else 'shrunk'} to {inner[0]} x {inner[1]}{note}")
    resized = picture.resize(inner, Image.Resampling.LANCZOS, box=source)
    if box != (0, 0, size, size):
        canvas = Image.new("RGB", (size, size), background)
        canvas.paste(resized, box[:2])
        resized = canvas
    return Fitted(resized, picture, tuple(steps) or (f"taken as it is, {size} x {size}",), box)


def as_jpeg(picture: Image.Image) -> bytes:
    """An RGB picture as a JPEG, without anything that its file said about itself, such as where it was taken.

    Quality 95 with colours at full resolution is large, but a model should not learn the blocks and fringes of JPEG.
    """
    plain, buffer = picture.copy(), io.BytesIO()
    plain.info.clear()  # Pillow would write a comment that the file had into the JPEG
    plain.save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


# ---- Reading ---------------------------------------------------------------------------------------------------------

_SMALLER = "make it smaller first, or take a screenshot of it"


class _Steps:
    """The name and size of a picture, and what has been done to it so far."""

    def __init__(self, name: str, image: Image.Image | None = None) -> None:
        self.name, self.size = name, image.size if image else None
        form = f"{image.format}, " if image is not None and image.format else ""
        self.done = [f"{form}{image.width} x {image.height}"] if image is not None else []

    def add(self, phrase: str) -> None:
        self.done.append(phrase)


def _known() -> set[str]:
    """The formats that Pillow opens here; pillow-heif adds one to it, if it is installed."""
    Image.init()
    if "HEIF" not in Image.OPEN:
        try:
            importlib.import_module("pillow_heif").register_heif_opener()
        except ImportError:
            pass
    return set(Image.OPEN)


def _decode(name: str, image: Image.Image, data: bytes = b"") -> None:
    try:
        image.load()
    except Image.DecompressionBombError:
        raise PictureError(f"{name} unpacks to more pixels than it said; {_SMALLER}") from None
    # A decoder may raise nearly any exception when it meets bytes that it does not expect.
    except Exception as error:
        raise PictureError(_broken(name, error, data)) from None


def _read(source: Any) -> tuple[str, bytes]:
    """The name and the bytes of a source."""
    if isinstance(source, bytes | bytearray | memoryview):
        name, data = "the data", bytes(source)
    elif hasattr(source, "read"):
        name, data = Path(str(getattr(source, "name", "the file"))).name, source.read()
        if not isinstance(data, bytes):
            raise PictureError(f"{name} was opened as text; open it with mode 'rb'")
    elif isinstance(source, str | Path):
        return read_file(source)
    else:
        raise PictureError(
            f"a {type(source).__name__} is no picture; give a path, bytes, a PIL picture or an array (H, W, 3)"
        )
    if not data:
        raise PictureError(f"{name} is empty: it has 0 bytes")
    return name, data


def read_file(source: str | Path) -> tuple[str, bytes]:
    """The quoted name and the bytes of a file of at most 200 MB, or a PictureError."""
    if str(source).lower().startswith(("http://", "https://", "data:")):
        raise PictureError(f"{str(source)[:60]!r} is an address; save the picture, and give the path of the file")
    path = Path(source).expanduser()
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
        hint = f", such as {inside[0]!r}" if inside else ""
        raise PictureError(f"{path.name!r} is a folder; give a picture in it{hint}")
    try:
        length = path.stat().st_size
        if length > MAX_BYTES:
            raise PictureError(f"{path.name!r} has {length:,} bytes, and the limit is {MAX_BYTES:,}; {_SMALLER}")
        data = path.read_bytes()
    except FileNotFoundError:
        there = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, there, n=1)
        where = f"did you mean {near[0]!r}?" if near else "look at the path, and at upper and lower case"
        raise PictureError(f"there is no file {path.name!r}; {where}") from None
    except OSError as error:
        raise PictureError(f"{path.name!r} cannot be read: {(error.strerror or str(error)).lower()}") from None
    except PictureError:
        raise
    except ValueError:  # a NUL in the path
        raise PictureError(f"{str(source)[:60]!r} is not a path") from None
    if not data:
        raise PictureError(f"{path.name!r} is empty: it has 0 bytes; copy or download it again")
    return repr(path.name), data


def _what_it_is(name: str, data: bytes) -> str:
    """A sentence for data that no decoder knows."""
    start = data[:512].lstrip().lower()
    if data[4:11] == b"ftyphei" and "HEIF" in Image.OPEN:
        return f"{name} begins like a picture, but is cut short or damaged; copy or download it again"
    for offset, mark, what in OTHERS:
        if data[offset : offset + len(mark)] == mark:
            return f"{name} is {what}" + ("; give a picture" if what == "a sound" else "")
    if b"<svg" in start:
        return f"{name} is an SVG drawing, which is a program of strokes; export it as PNG"
    if start.startswith((b"<!doctype html", b"<html")):
        return f"{name} is a web page, perhaps an error page that was saved by the picture's name; download it again"
    if start[:4] in (b"\xff\xd8\xff\xe0", b"\x89png", b"riff", b"gif8") or start[:3] == b"\xff\xd8\xff":
        return f"{name} begins like a picture, but is cut short or damaged; copy or download it again"
    if not any(data[:4096]):
        return f"{name} holds only zeros: its copy was not finished; copy or download it again"
    printable = sum(32 <= b < 127 or b in b"\t\r\n" for b in data[:512])
    what = "text" if printable > 0.95 * len(data[:512]) else "data of no picture format that is known here"
    return f"{name} is {what}; give a {READABLE} picture"


def _broken(name: str, error: Exception, data: bytes) -> str:
    """A sentence for a picture whose decoding failed."""
    text = " ".join(str(error).split()).lower()
    short = data[:4] == b"RIFF" and struct.unpack("<I", data[4:8])[0] + 8 > len(data)  # WebP's decoder does not say
    if short or any(w in text for w in ("truncated", "eof", "not enough", "unexpected end", "incomplete")) or not text:
        return f"{name} is cut short: it ends before the picture does; copy or download it again"
    return f"{name} is damaged and cannot be decoded ({text[:80]}); copy or download it again"


def _check_size(name: str, wide: int, high: int) -> None:
    if wide * high > MAX_PIXELS:
        raise PictureError(
            f"{name} has {wide:,} x {high:,} = {wide * high:,} pixels, and the limit is {MAX_PIXELS:,}; {_SMALLER}"
        )
    if min(wide, high) < MIN_SIDE:
        raise PictureError(
            f"{name} has {wide} x {high} pixels; each side needs at least {MIN_SIDE}, or there is nothing to draw from"
        )


def _check_still(name: str, image: Image.Image, data: bytes) -> None:
    try:
        frames = getattr(image, "n_frames", 1)
    except Exception as error:  # counting the frames reads the whole file
        raise PictureError(_broken(name, error, data)) from None
    if frames == 1 or image.format in ("MPO", "JPEG"):  # phones keep a depth map or a thumbnail as a second picture
        return
    if image.format == "TIFF":
        raise PictureError(f"{name} has {frames} pages; save the one that you mean as a picture of its own")
    if frames > 1:
        raise PictureError(f"{name} is animated, with {frames} frames; save the one that you mean as a still picture")


# ---- Colours and turning ---------------------------------------------------------------------------------------------


def _to_rgb(image: Image.Image, steps: _Steps, background: tuple[int, int, int]) -> tuple[Image.Image, tuple[str, ...]]:
    _check_size(steps.name, *image.size)
    turned = _upright(image)
    if turned is not image:
        steps.add("turned upright, as its EXIF data say")
        image = turned
    profile = image.info.get("icc_profile")
    mode = image.mode
    if mode in ("I;16", "I;16L", "I;16B", "I;16N", "I"):
        image = _from_integers(image, steps)
    elif mode == "F":
        image = _from_array(np.asarray(image), steps.name)
        steps.add("floats in [0, 1] to 8 bits")
    elif mode == "P" and image.info.get("transparency") is None:
        steps.add("palette to RGB")
    elif mode in ("1", "L"):
        steps.add(f"{'black and white' if mode == '1' else 'grey'} to RGB")
    elif mode in ("CMYK", "LAB", "YCbCr", "HSV"):
        steps.add(f"{mode} to RGB")
    if profile and mode in ("RGB", "CMYK"):
        image = _to_srgb(image, profile, steps)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        behind = Image.new("RGBA", image.size, (*background, 255))
        clear = float((np.asarray(image.getchannel("A")) < 255).mean())
        if clear:
            colour = "white" if background == (255, 255, 255) else f"rgb{background}"
            steps.add(f"laid on {colour} where it is transparent ({clear:.0%} of it)")
        image = Image.alpha_composite(behind, image)
    return image.convert("RGB"), tuple(steps.done)


def _upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF data say; the same object if there is nothing to turn, or they cannot be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ImageOps.exif_transpose(image) if image.getexif().get(0x0112, 1) in range(2, 9) else image
        except Exception:  # EXIF data are often damaged, and the picture is good without them
            return image


def _from_integers(image: Image.Image, steps: _Steps) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise PictureError(
            f"{steps.name} has values from {low:,} to {high:,}; what is black and what is white is not said: "
            "scale them to 0 to 255 first"
        )
    if image.mode == "I" and high <= 255:
        steps.add("grey, 32 bits that hold 8, to RGB")
        return Image.fromarray(values.astype(np.uint8))
    steps.add("grey, 16 bits to 8, to RGB")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _to_srgb(image: Image.Image, profile: bytes, steps: _Steps) -> Image.Image:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        name = ImageCms.getProfileDescription(source).strip()
        if "srgb" in name.lower() and image.mode == "RGB":
            return image
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        assert converted is not None  # it is None only when the picture is changed in place
        steps.add(f"colours from {name or 'its profile'} to sRGB")
        return converted
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        steps.add("its colour profile is damaged and was ignored")
        return image


def _from_array(array: np.ndarray, name: str = "the array") -> Image.Image:
    shapes = "(H, W), (H, W, 3) or (H, W, 4)"
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or array.ndim == 3 and array.shape[2] not in (3, 4):
        turn = "; the channels stand first: use array.transpose(1, 2, 0)" if _channels_first(array) else ""
        raise PictureError(f"an array of shape {array.shape} is no picture; it takes {shapes}{turn}")
    if not array.size:
        raise PictureError(f"an array of shape {array.shape} is empty; it takes {shapes}")
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise PictureError(f"{name} holds values that are not finite; replace them, with np.nan_to_num say")
        low, high = float(array.min()), float(array.max())
        if low < 0 or high > 1:
            raise PictureError(f"{name} has floats from {low:.3g} to {high:.3g}; a picture's floats are in [0, 1]")
        array = (array * 255).round().astype(np.uint8)
    elif array.dtype == np.uint16:
        array = ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    elif array.dtype == bool:
        array = array.astype(np.uint8) * 255
    elif array.dtype != np.uint8:
        raise PictureError(f"an array of {array.dtype} is no picture; use uint8 (0 to 255) or floats in [0, 1]")
    return Image.fromarray(np.ascontiguousarray(array))


def _channels_first(array: np.ndarray) -> bool:
    return array.ndim == 3 and array.shape[0] in (1, 3, 4)
