"""Any folder of pictures becomes a zip of square JPEGs, the same bytes each time, or one sentence says why not."""

from __future__ import annotations

import io
import zipfile

import pytest
from PIL import Image

from companion.replicate.pictures import pack


def test_every_picture_becomes_an_upright_square_jpeg(pictures, tmp_path):
    sideways = Image.new("RGB", (600, 600), "blue")
    sideways.paste("red", (0, 0, 600, 300))  # its upper half
    exif = sideways.getexif()
    exif[0x0112], exif[0x8825] = 3, {1: "N"}  # upside down; where it was taken
    sideways.save(pictures / "9.jpg", exif=exif, comment=b"at home")
    packed = pack(pictures, tmp_path / "a.zip")
    assert (packed.count, packed.enlarged) == (4, ("0.png", "1.png"))
    with zipfile.ZipFile(packed.path) as archive:
        assert archive.namelist() == ["000.jpg", "001.jpg", "002.jpg", "003.jpg"]
        images = [Image.open(io.BytesIO(archive.read(name))) for name in archive.namelist()]
    assert {(i.format, i.size, i.mode) for i in images} == {("JPEG", (512, 512), "RGB")}
    assert not images[3].getexif() and "comment" not in images[3].info
    assert images[3].getpixel((256, 500))[0] > 200 and images[3].getpixel((256, 10))[2] > 200


def test_what_is_see_through_becomes_white(pictures, tmp_path):
    Image.new("RGBA", (512, 512), (0, 0, 0, 0)).save(pictures / "0.png")
    with zipfile.ZipFile(pack(pictures, tmp_path / "a.zip").path) as archive:
        assert Image.open(io.BytesIO(archive.read("000.jpg"))).getpixel((5, 5)) == (255, 255, 255)


def test_the_same_pictures_give_the_same_bytes(pictures, tmp_path):
    first, second = (pack(pictures, tmp_path / f"{i}.zip").path.read_bytes() for i in range(2))
    assert first == second


def test_bad_folders_are_refused_and_leave_no_zip(pictures, tmp_path):
    (pictures / "3.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="3.png cannot be read as a picture.*take it out"):
        pack(pictures, tmp_path / "a.zip")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no picture"):
        pack(tmp_path / "empty", tmp_path / "a.zip")
    (pictures / "3.png").unlink()
    with pytest.raises(ValueError, match="size=100 .* multiple of 8"):
        pack(pictures, tmp_path / "a.zip", size=100)
    assert not (tmp_path / "a.zip").exists()
