"""Your pictures as trainers want them: JPEGs, square, all of one size, together in a zip.

`companion.pictures` opens and crops them; it is imported when it is needed, so that the command's help stays quick.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from companion.files import written

if TYPE_CHECKING:
    from PIL import Image

#: Width and height in pixels of the pictures that Stable Diffusion 1.x learns from, and that its img2img starts from.
SIZE = 512
#: The suffixes of the files that are taken as pictures.
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")


@dataclass(frozen=True)
class Packed:
    """A zip of training pictures.

    Attributes:
        path: where the zip is.
        count: how many pictures it holds.
        enlarged: the names of the files that were smaller than the pictures in the zip.
    """

    path: Path
    count: int
    enlarged: tuple[str, ...] = ()


def square_jpeg(picture: Image.Image, size: int = SIZE) -> bytes:
    """The middle of an RGB picture as a JPEG of `size` x `size` pixels, without the file's metadata.

    Raises `companion.pictures.PictureError` for a size that is not a multiple of 8.
    """
    from companion.pictures import fit

    square, buffer = fit(picture, size).picture, io.BytesIO()
    square.info.clear()  # Pillow would write a comment that the file had into the JPEG
    square.save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def pack(folder: Path, target: Path, size: int = SIZE) -> Packed:
    """Zip the pictures of a folder as JPEGs of `size` x `size` pixels, named 000.jpg, 001.jpg and so on.

    The same pictures always give the same bytes. Raises ValueError when the folder holds no picture, when one of them
    cannot be read, and for a size that is not a multiple of 8; then no zip is written.
    """
    from companion.pictures import PictureError, open_picture

    folder = Path(folder)
    found = sorted(p for p in folder.glob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not found:
        raise ValueError(f"{folder} holds no picture; a folder with some of these is needed: {', '.join(SUFFIXES)}.")
    enlarged = []
    with written(Path(target)) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for number, path in enumerate(found):
            try:
                picture, _ = open_picture(path)
            except PictureError as error:
                raise ValueError(
                    f"{path.name} cannot be read as a picture ({error}): take it out of the folder."
                ) from None
            if min(picture.size) < size:
                enlarged.append(path.name)
            # A fixed date, so that the zip's bytes depend on the pictures alone.
            archive.writestr(zipfile.ZipInfo(f"{number:03}.jpg", (1980, 1, 1, 0, 0, 0)), square_jpeg(picture, size))
    return Packed(Path(target), len(found), tuple(enlarged))
