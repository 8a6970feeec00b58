"""Picture input: what people have becomes the model's input as stated, or is refused in one sentence."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, PpmImagePlugin

import companion
from companion.pictures import MAX_PIXELS, PictureError, as_jpeg, fit, load_picture, open_picture

PHOTOS = companion.DATA / "photos"


def scene(width: int = 60, height: int = 40) -> Image.Image:
    """Red, green, blue and white quarters: turning, mirroring and cropping all show."""
    array = np.zeros((height, width, 3), np.uint8)
    array[: height // 2, : width // 2] = 250, 0, 0
    array[: height // 2, width // 2 :] = 0, 250, 0
    array[height // 2 :, : width // 2] = 0, 0, 250
    array[height // 2 :, width // 2 :] = 250, 250, 250
    return Image.fromarray(array)


def encoded(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_claiming(width: int, height: int, data: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", data or zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


def bomb() -> bytes:
    """A few kilobytes that claim 2.7 GB and begin to unpack to it."""
    return png_claiming(30_000, 30_000, zlib.compress(bytes(5_000_000)))


def animation(form: str) -> bytes:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "green", "blue")]
    return encoded(frames[0], form, save_all=True, append_images=frames[1:], duration=50)


JPEG, PNG = encoded(scene(), "JPEG", quality=95), encoded(scene(), "PNG")
PHOTO = (PHOTOS / "cat.jpg").read_bytes()

#: Files made on purpose: name, bytes, and words that the sentence must have.
BAD: list[tuple[str, bytes, tuple[str, ...]]] = [
    ("empty.jpg", b"", ("empty", "0 bytes", "copy or download")),
    ("half.jpg", PHOTO[: len(PHOTO) // 2], ("cut short", "download it again")),
    ("header.jpg", PHOTO[:300], ("cut short", "download it again")),
    ("start.jpg", PHOTO[:4], ("cut short", "download it again")),
    ("half.png", PNG[:90], ("cut short", "download it again")),
    ("signature.png", PNG[:8], ("cut short or damaged", "download it again")),
    ("half.webp", encoded(scene(), "WEBP")[:60], ("cut short", "download it again")),
    ("half.gif", encoded(scene().convert("P"), "GIF")[:60], ("cut short", "download it again")),
    ("half.bmp", encoded(scene(), "BMP")[:500], ("cut short", "download it again")),
    ("half.tiff", encoded(scene(), "TIFF")[:200], ("cut short", "download it again")),
    ("flipped.png", PNG[:50] + bytes(b ^ 255 for b in PNG[50:80]) + PNG[80:], ("damaged", "download it again")),
    ("zeros.jpg", bytes(4096), ("only zeros", "not finished")),
    ("noise.jpg", np.random.default_rng(0).bytes(4096), ("no picture format", "JPEG, PNG")),
    ("notes.png", b"Buy bread, and mind the cat.\n" * 9, ("text", "give a JPEG, PNG")),
    ("page.jpg", b"\n<!DOCTYPE html><html><body>404 Not Found</body></html>", ("web page", "error page")),
    ("drawing.png", b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', ("SVG", "export it as PNG")),
    ("paper.jpg", b"%PDF-1.7\n%...", ("PDF", "screenshot")),
    ("figure.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", ("PostScript", "program", "PNG")),
    ("album.jpg", b"PK\x03\x04" + bytes(60), ("ZIP", "unpack")),
    ("layers.png", b"8BPS\0\1" + bytes(60), ("Photoshop", "export")),
    ("phone.jpg", b"\0\0\0\x18ftypheic" + bytes(60), ("HEIC", "save it as JPEG")),
    ("clip.png", b"\0\0\0\x18ftypmp42" + bytes(60), ("video", "screenshot")),
    ("song.jpg", b"RIFF\x24\0\0\0WAVEfmt " + bytes(40), ("sound", "give a picture")),
    ("pointer.jpg", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", ("Git LFS", "git lfs pull")),
    ("animated.gif", animation("GIF"), ("animated", "3 frames", "still")),
    ("animated.webp", animation("WEBP"), ("animated", "3 frames", "still")),
    ("animated.png", animation("PNG"), ("animated", "3 frames", "still")),
    ("scan.tiff", animation("TIFF"), ("3 pages", "save the one")),
    ("bomb.png", bomb(), ("900,000,000 pixels", "smaller")),
    ("huge.png", png_claiming(12_000, 12_000), ("144,000,000", f"{MAX_PIXELS:,}", "smaller")),
    ("thin.png", encoded(Image.new("RGB", (900, 3)), "PNG"), ("900 x 3", "at least 8")),
    ("dot.png", encoded(Image.new("RGB", (1, 1)), "PNG"), ("1 x 1", "at least 8")),
    ("nothing.png", png_claiming(0, 40), ("damaged",)),
    ("heights.tiff", encoded(Image.fromarray(np.full((20, 20), 3000.5, np.float32)), "TIFF"), ("3e+03", "[0, 1]")),
    ("counts.tiff", encoded(Image.fromarray(np.full((20, 20), 70_000, np.int32)), "TIFF"), ("70,000", "scale them")),
]


def refused(source, **options) -> str:
    with pytest.raises(PictureError) as error:
        load_picture(source, 128, **options)
    return str(error.value)


def is_one_sentence(text: str) -> bool:
    return "\n" not in text and 20 < len(text) < 240 and ". " not in text.replace("...", "")


class TestWhatIsRefused:
    def test_there_are_enough_of_them(self):
        assert len({name for name, _, _ in BAD}) == len(BAD) >= 25

    @pytest.mark.parametrize(("name", "data", "words"), BAD, ids=[name for name, _, _ in BAD])
    def test_a_bad_file_gets_its_sentence(self, name, data, words, tmp_path, recwarn):
        (tmp_path / name).write_bytes(data)
        text = refused(tmp_path / name)
        for word in words:
            assert word in text, text
        assert name in text and is_one_sentence(text), text
        assert str(tmp_path) not in text
        assert not recwarn.list

    def test_a_bomb_is_refused_before_it_is_unpacked(self):
        import tracemalloc

        data = bomb()
        assert len(data) < 10_000
        tracemalloc.start()
        refused(data)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2_000_000

    def test_what_is_no_file(self, tmp_path):
        (tmp_path / "holiday.jpg").write_bytes(JPEG)
        assert "did you mean 'holiday.jpg'" in refused(tmp_path / "holyday.jpg")
        assert "is a folder; give a picture in it, such as 'holiday.jpg'" in refused(tmp_path)
        assert "is an address" in refused("https://example.org/cat.jpg")
        assert "upper and lower case" in refused(tmp_path / "nowhere" / "x.jpg")
        assert "is not a path" in refused("a\0b")

    def test_what_is_no_picture_in_memory(self):
        assert "a NoneType is no picture" in refused(None)
        assert "a int is no picture" in refused(7)
        assert "the data is empty" in refused(b"")
        assert "opened as text" in refused(io.StringIO("hello"))
        assert "use array.transpose(1, 2, 0)" in refused(np.zeros((3, 20, 20), np.uint8))
        assert "(20, 20, 7)" in refused(np.zeros((20, 20, 7), np.uint8))
        assert "floats from -1 to 1" in refused(np.linspace(-1, 1, 400).reshape(20, 20))
        assert "not finite" in refused(np.full((20, 20), np.nan))
        assert "an array of int64" in refused(np.zeros((20, 20, 3), np.int64))
        assert "is empty" in refused(np.zeros((0, 20, 3), np.uint8))
        assert "4 x 40" in refused(Image.new("RGB", (4, 40)))

    @pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
    def test_a_damaged_file_that_pillow_opened_lazily(self, form):
        """Image.open reads only a file's beginning; what is missing behind it shows when the pixels are wanted."""
        data = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)), form)
        text = refused(Image.open(io.BytesIO(data[: len(data) // 2])))
        assert text.startswith("the picture is cut short") or text.startswith("the picture is damaged")
        assert "copy or download it again" in text and is_one_sentence(text)

    def test_a_bomb_that_pillow_opened_lazily_is_not_unpacked(self):
        with pytest.warns(Image.DecompressionBombWarning):
            image = Image.open(io.BytesIO(png_claiming(12_000, 12_000)))
        assert "144,000,000" in refused(image)

    def test_rules_and_sizes(self):
        assert "did you mean 'crop'" in refused(JPEG, how="croop")
        with pytest.raises(PictureError, match="size=100 will not do: the autoencoder wants a multiple of 8"):
            load_picture(JPEG, 100)

    def test_a_file_that_is_too_long_is_not_read(self, tmp_path, monkeypatch):
        monkeypatch.setattr("companion.pictures.MAX_BYTES", 100)
        (tmp_path / "long.jpg").write_bytes(JPEG)
        monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("it was read"))
        assert "and the limit is 100" in refused(tmp_path / "long.jpg")

    def test_panels_show_it_without_its_name(self):
        """companion.widgets.base.sentence does so for every ValueError."""
        assert issubclass(PictureError, ValueError)


def corners(image: Image.Image) -> list[str]:
    """The colours of the four corners: upper left, upper right, lower left, lower right."""
    names = {(1, 0, 0): "red", (0, 1, 0): "green", (0, 0, 1): "blue", (1, 1, 1): "white", (0, 0, 0): "black"}
    wide, high = image.size
    points = [(4, 4), (wide - 5, 4), (4, high - 5), (wide - 5, high - 5)]
    return [names.get(tuple(int(v > 128) for v in image.getpixel(point)), "?") for point in points]


UPRIGHT = ["red", "green", "blue", "white"]


class TestWhatIsTaken:
    @pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF", "AVIF", "JPEG2000", "ICO"])
    def test_formats(self, form):
        options = {"sizes": [(60, 40)]} if form == "ICO" else {}
        picture, steps = open_picture(encoded(scene(), form, **options))
        assert picture.mode == "RGB" and picture.size == (60, 40) and corners(picture) == UPRIGHT
        assert "60 x 40" in steps[0]

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_turns_and_mirrors(self, orientation):
        """The file holds the picture turned the other way, as cameras write it."""
        undo = {
            2: Image.Transpose.FLIP_LEFT_RIGHT,
            3: Image.Transpose.ROTATE_180,
            4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE,
            6: Image.Transpose.ROTATE_90,
            7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_270,
        }
        stored = scene().transpose(undo[orientation]) if orientation > 1 else scene()
        exif = Image.Exif()
        exif[0x0112] = orientation
        picture, steps = open_picture(encoded(stored, "JPEG", exif=exif, quality=95))
        assert corners(picture) == UPRIGHT and picture.size == (60, 40)
        assert any("EXIF" in step for step in steps) == (orientation > 1)

    def test_damaged_exif_does_no_harm(self):
        with pytest.warns(UserWarning, match="Corrupt EXIF data"):  # Pillow's
            picture, _ = open_picture(encoded(scene(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"))
        assert picture.size == (60, 40)

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
    def test_what_is_transparent_is_laid_on_the_background(self, mode):
        image = scene().convert("RGBA")
        image.paste((0, 0, 0, 0), (0, 0, 30, 20))
        if mode == "P":
            image = image.quantize(16)
        data = encoded(image.convert(mode), "PNG")
        white, steps = open_picture(data)
        assert white.getpixel((5, 5)) == (255, 255, 255)
        assert any("laid on white where it is transparent (25% of it)" in step for step in steps)
        blue, _ = open_picture(data, background=(0, 0, 200))
        assert blue.getpixel((5, 5)) == (0, 0, 200)

    def test_half_transparent_is_mixed(self):
        picture, _ = open_picture(encoded(Image.new("RGBA", (20, 20), (0, 0, 0, 128)), "PNG"))
        assert abs(picture.getpixel((3, 3))[0] - 127) <= 1

    def test_grey_palette_black_and_white_and_print(self):
        for image, form, word in (
            (scene().convert("L"), "PNG", "grey"),
            (scene().convert("1"), "PNG", "black and white"),
            (scene().quantize(8), "PNG", "palette"),
            (scene().convert("CMYK"), "JPEG", "CMYK"),
        ):
            picture, steps = open_picture(encoded(image, form))
            assert picture.mode == "RGB" and any(word in step for step in steps), (word, steps)

    def test_sixteen_bits_keep_their_greys(self):
        ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (16, 1))
        for form in ("PNG", "TIFF"):
            picture, steps = open_picture(encoded(Image.fromarray(ramp), form))
            found = np.asarray(picture)[0, :, 0].astype(int)
            assert np.abs(found - ramp[0] / 257).max() <= 1, form
            assert any("16 bits to 8" in step for step in steps)

    def test_colours_are_brought_to_srgb(self):
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
        damaged, steps = open_picture(encoded(scene(), "JPEG", icc_profile=profile[:40]))
        assert corners(damaged) == UPRIGHT and any("ignored" in step for step in steps)
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        same, steps = open_picture(encoded(scene(), "PNG", icc_profile=srgb))
        assert np.array_equal(same, scene()) and len(steps) == 1

    def test_arrays(self):
        array = np.asarray(scene())
        for form in (array, array / 255.0, array.astype(np.uint16) * 257):
            picture, _ = open_picture(form)
            assert np.array_equal(picture, array)
        assert open_picture(array[:, :, :1])[0].mode == "RGB"
        assert open_picture(array[:, :, 0] > 128)[0].getpixel((2, 2)) == (255, 255, 255)

    def test_a_large_photograph_is_decoded_smaller(self, monkeypatch):
        monkeypatch.setattr("companion.pictures.ENOUGH", 200)
        picture, steps = open_picture(encoded(scene(1200, 800), "JPEG", quality=90))
        assert steps[1] == "decoded at 300 x 200, since it is large" and corners(picture) == UPRIGHT
        assert len(open_picture(encoded(scene(600, 300), "JPEG"))[1]) == 1

    def test_a_large_photograph_may_be_wanted_whole(self, monkeypatch):
        monkeypatch.setattr("companion.pictures.ENOUGH", 200)
        assert open_picture(encoded(scene(1200, 800), "JPEG"), whole=True)[0].size == (1200, 800)

    def test_heic_is_opened_where_pillow_heif_is_installed(self, monkeypatch):
        """A stand-in for the package, which calls Pillow as the real one does."""
        import sys
        from types import ModuleType

        package = ModuleType("pillow_heif")

        class Heif(PpmImagePlugin.PpmImageFile):
            format = "HEIF"

        def register_heif_opener() -> None:
            monkeypatch.setitem(Image.OPEN, "HEIF", (Heif, lambda start: start.startswith(b"P6")))
            monkeypatch.setattr(Image, "ID", [*Image.ID, "HEIF"])

        package.register_heif_opener = register_heif_opener
        monkeypatch.setitem(sys.modules, "pillow_heif", package)
        monkeypatch.setattr("companion.pictures.FORMATS", ("JPEG", "HEIF"))
        picture, steps = open_picture(encoded(scene(), "PPM"))
        assert corners(picture) == UPRIGHT and steps[0] == "HEIF, 60 x 40"
        assert "cut short or damaged" in refused(b"\0\0\0\x18ftypheic" + bytes(60))

    def test_phones_second_picture_is_left_out(self):
        """An MPO file is a JPEG with another picture behind it, and no animation."""
        data = encoded(scene(), "MPO", save_all=True, append_images=[Image.new("RGB", (60, 40))])
        assert corners(open_picture(data)[0]) == UPRIGHT

    def test_the_same_picture_by_every_way_in(self, tmp_path):
        (tmp_path / "a.png").write_bytes(PNG)
        with (tmp_path / "a.png").open("rb") as file:
            ways = [tmp_path / "a.png", str(tmp_path / "a.png"), PNG, memoryview(PNG), io.BytesIO(PNG), file, scene()]
            found = [np.asarray(load_picture(way, 32).picture) for way in ways]
        assert all(np.array_equal(found[0], other) for other in found)

    @pytest.mark.parametrize("name", ["cat.jpg", "coffee.jpg", "rocket.jpg"])
    def test_the_photographs_of_the_course(self, name):
        fitted = load_picture(PHOTOS / name, 128)
        assert fitted.picture.size == (128, 128) and np.asarray(fitted.picture).std() > 20
        assert f"`{name}`" in (PHOTOS / "README.md").read_text(encoding="utf-8")


class TestTheRules:
    def test_crop_keeps_the_middle(self):
        wide = np.zeros((40, 80, 3), np.uint8)
        wide[:, 20:60] = 200
        fitted = fit(Image.fromarray(wide), 40)
        assert np.array_equal(np.asarray(fitted.picture), np.full((40, 40, 3), 200))
        assert fitted.steps == ("cropped to its middle, 40 x 40: 50% lost at left and right",)
        assert fitted.box == (0, 0, 40, 40)

    def test_pad_keeps_everything(self):
        fitted = fit(scene(80, 40), 40, "pad", background=(9, 9, 9))
        assert fitted.box == (0, 10, 40, 30)
        assert corners(fitted.picture.crop(fitted.box)) == UPRIGHT
        assert fitted.picture.getpixel((20, 2)) == (9, 9, 9) == fitted.picture.getpixel((20, 37))
        assert fitted.steps == ("padded with bars at top and bottom", "shrunk to 40 x 20")

    def test_stretch_says_by_how_much(self):
        fitted = fit(scene(80, 40), 40, "stretch")
        assert corners(fitted.picture) == UPRIGHT and "2.00 times too tall" in fitted.steps[0]

    def test_enlarging_is_told(self):
        assert fit(scene(16, 16), 64).steps == ("enlarged to 64 x 64, so it is blurred",)
        assert fit(scene(40, 40), 40).steps == ("taken as it is, 40 x 40",)

    def test_a_square_of_your_own(self):
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8))
        fitted = fit(picture, 32, square=(40, 5, 32))
        assert np.array_equal(fitted.picture, picture.crop((40, 5, 72, 37)))
        assert fitted.steps == ("cut to 32 x 32 at (40, 5): 74% lost",)
        for square in ((49, 0, 32), (0, 19, 32), (-1, 0, 32), (0, 0, 0)):
            with pytest.raises(PictureError, match="is not inside the picture, 80 x 50"):
                fit(picture, 32, square=square)

    def test_a_jpeg_says_nothing_of_its_file(self):
        exif = Image.Exif()
        exif[0x8825] = {1: "N"}  # where it was taken
        picture, _ = open_picture(encoded(scene(64, 64), "JPEG", exif=exif, comment=b"at home", quality=95))
        found = Image.open(io.BytesIO(as_jpeg(picture)))
        assert not found.getexif() and "comment" not in found.info
        assert np.abs(np.asarray(found, float) - np.asarray(picture, float)).mean() < 3
        assert "comment" in picture.info  # the caller's picture is not changed

    def test_everything_that_was_done_stands_in_one_line(self):
        exif = Image.Exif()
        exif[0x0112] = 6
        fitted = load_picture(encoded(scene().convert("L"), "JPEG", exif=exif), 32)
        assert repr(fitted) == (
            "JPEG, 60 x 40; turned upright, as its EXIF data say; grey to RGB; "
            "cropped to its middle, 40 x 40: 33% lost at top and bottom; shrunk to 32 x 32"
        )
        assert fitted.original.size == (40, 60)
