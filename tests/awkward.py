"""Pictures for tests: distinct ones, and a folder of everything that people's folders of photographs hold."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance


def pattern(seed: int, width: int = 640, height: int = 480) -> Image.Image:
    """Soft coloured blots: two seeds differ in about half of the bits of a difference hash, as two photographs do."""
    blots = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(blots).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def animation() -> bytes:
    frames = [pattern(seed, 200, 200) for seed in (90, 91, 92)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=50)


def turned(image: Image.Image) -> bytes:
    """A JPEG that lies on its side, and says so in its EXIF data, as phones write it."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a phone"
    return encoded(image.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=95, comment=b"at home")


def awkward_folder(folder: Path) -> Path:
    """Thirty files, of which twelve can be used; `AWKWARD` says what becomes of each."""
    photo = encoded(pattern(0, 900, 600), "JPEG", quality=95)
    clear = pattern(6, 600, 600).convert("RGBA")
    clear.paste((0, 0, 0, 0), (0, 0, 300, 600))
    deep = np.asarray(pattern(5, 600, 500).convert("L")).astype(np.uint16) * 257
    contents = {
        "a.jpg": photo,
        "a-copy.jpg": photo,
        "a-small.jpg": encoded(pattern(0, 450, 300), "JPEG", quality=50),
        "a-brighter.webp": encoded(ImageEnhance.Brightness(pattern(0, 800, 533)).enhance(1.1), "WEBP"),
        "a-cropped.png": encoded(pattern(0, 900, 600).crop((9, 6, 891, 594)), "PNG"),
        "phone.jpg": turned(pattern(1)),
        "print.jpg": encoded(pattern(2).convert("CMYK"), "JPEG"),
        "drawing.bmp": encoded(pattern(3), "BMP"),
        "scan.tiff": encoded(pattern(4), "TIFF"),
        "deep.png": encoded(Image.fromarray(deep), "PNG"),
        "clear.png": encoded(clear, "PNG"),
        "still.gif": encoded(pattern(7).quantize(64), "GIF"),
        "moving.gif": animation(),
        "beach/IMG_1.JPG": encoded(pattern(8, 400, 700), "JPEG"),
        "beach/deeper/één кот 猫.png": encoded(pattern(9), "PNG"),
        "beach/panorama.jpg": encoded(pattern(10, 2000, 300), "JPEG"),
        "square.png": encoded(pattern(11, 512, 512), "PNG"),
        "tiny.png": encoded(pattern(12, 90, 120), "PNG"),
        "dot.png": encoded(Image.new("RGB", (1, 1)), "PNG"),
        "white.png": encoded(Image.new("RGB", (600, 600), "white"), "PNG"),
        "cut.jpg": photo[: len(photo) // 2],
        "empty.jpg": b"",
        "zeros.jpg": bytes(3000),
        "text.jpg": b"Remember the milk.\n" * 20,
        "notes.txt": b"Holiday, day one.\n" * 20,
        "paper.pdf": b"%PDF-1.7\n%...",
        "phone.heic": b"\0\0\0\x18ftypheic" + bytes(60),
        "clip.mp4": b"\0\0\0\x18ftypmp42" + bytes(60),
        "album.zip": b"PK\x03\x04" + bytes(60),
        ".hidden.jpg": encoded(pattern(13), "JPEG"),
    }
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / ".cache").mkdir()
    (folder / ".cache" / "thumbnail.jpg").write_bytes(encoded(pattern(14), "JPEG"))
    if os.name != "nt":  # where making links needs a permission
        (folder / "round").symlink_to(folder, target_is_directory=True)
        (folder / "gone.jpg").symlink_to(folder / "nothing.jpg")
        (folder / "z-linked.jpg").symlink_to(folder / "square.png")
    return folder


#: What becomes of each file: its number in the set, or words of the reason for leaving it out.
AWKWARD: dict[str, int | str] = {
    ".cache": "is hidden",
    ".hidden.jpg": "is hidden",
    "a-brighter.webp": "is nearly the same as a.jpg, which is larger",
    "a-copy.jpg": "is the same file as a.jpg",
    "a-cropped.png": "is nearly the same as a.jpg, which is larger",
    "a-small.jpg": "is nearly the same as a.jpg, which is larger",
    "a.jpg": 0,
    "album.zip": "is a ZIP archive",
    "beach/IMG_1.JPG": 1,
    "beach/deeper/één кот 猫.png": 2,
    "beach/panorama.jpg": 3,
    "clear.png": 4,
    "clip.mp4": "is a video",
    "cut.jpg": "is cut short",
    "deep.png": 5,
    "dot.png": "has 1 x 1 pixels",
    "drawing.bmp": 6,
    "empty.jpg": "is empty",
    "moving.gif": "is animated, with 3 frames",
    "notes.txt": "is text",
    "paper.pdf": "is a PDF document",
    "phone.heic": "is a HEIC picture",
    "phone.jpg": 7,
    "print.jpg": 8,
    "scan.tiff": 9,
    "square.png": 10,
    "still.gif": 11,
    "text.jpg": "is text",
    "tiny.png": "is too small: its square has 90 x 90 pixels, and at least 128 are needed for 512",
    "white.png": "shows one flat colour",
    "zeros.jpg": "holds only zeros",
}
#: The links, where a system lets the test make them.
LINKS: dict[str, int | str] = {
    "gone.jpg": "is a link to nothing",
    "z-linked.jpg": "is the same file as square.png",
    "round": "is a link to a folder",
}
