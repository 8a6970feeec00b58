"""Photographs to a training set: what becomes of each file, safely, the same each time, and whole or not at all."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import re
import stat
import struct
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from awkward import AWKWARD, LINKS, awkward_folder, encoded, pattern, turned
from PIL import Image, ImageEnhance

import companion
from companion import photographs
from companion.photographs import ALIKE, NEAR, check_zip, detail, dhash, differing_bits, pack, prepare, select

PHOTOS = [Image.open(path).convert("RGB") for path in sorted((companion.DATA / "photos").glob("*.jpg"))]


def hashes(folder: Path) -> dict[str, str]:
    """The bytes of every file, by its path."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def folder_of(place: Path, images: dict[str, Image.Image]) -> Path:
    place.mkdir()
    for name, image in images.items():
        image.save(place / name)
    return place


@pytest.fixture
def three(tmp_path) -> Path:
    return folder_of(tmp_path / "three", {f"{i}.png": pattern(i, 96, 64) for i in range(3)})


# ---- What becomes of each file


@pytest.fixture(scope="module")
def awkward(tmp_path_factory) -> tuple[Path, Path, photographs.TrainingSet, dict[str, str]]:
    """The folder of awkward files, the set made from it, and the folder's bytes before."""
    place = tmp_path_factory.mktemp("awkward")
    source = awkward_folder(place / "holiday")
    before = hashes(source)
    return source, place / "set", prepare(source, place / "set"), before


def test_every_file_is_kept_or_left_out_for_a_reason(awkward):
    made = awkward[2]
    expected = AWKWARD | (LINKS if os.name != "nt" else {})
    found = {p.name: p.file or p.reason for p in made.photographs}
    assert list(found) == sorted(expected)
    for name, what in expected.items():
        assert found[name] == f"{what:03}.jpg" if isinstance(what, int) else what in found[name], (name, found[name])
    text = str(made)
    assert text.startswith("12 pictures of 512 x 512 from holiday\n")
    for name in expected:
        assert re.search(rf"^  (\d\d\d\.jpg  )?{re.escape(name)}[, ]", text, re.MULTILINE), name
    assert max(map(len, text.splitlines())) < 80
    assert made.warnings == ("beach/panorama.jpg is long: only 15% of it is in the square",)
    assert "beach/panorama.jpg, 2000 x 300, 15% of it, enlarged 1.7 times" in text


def test_the_originals_are_only_read(awkward):
    source, _, _, before = awkward
    assert hashes(source) == before


def test_the_set_holds_square_jpegs_that_say_nothing_of_themselves(awkward):
    _, out, made, _ = awkward
    assert sorted(p.name for p in out.iterdir()) == ["contact_sheet.png", "instance", "instance.zip", "report.json"]
    names = [f"{i:03}.jpg" for i in range(12)]
    assert sorted(p.name for p in (out / "instance").iterdir()) == names
    with zipfile.ZipFile(out / "instance.zip") as archive:
        assert archive.namelist() == names
        assert all(archive.read(name) == (out / "instance" / name).read_bytes() for name in names)
    for name in names:
        with Image.open(out / "instance" / name) as image:
            assert (image.format, image.size, image.mode) == ("JPEG", (512, 512), "RGB")
            assert not image.getexif() and "comment" not in image.info and "icc_profile" not in image.info


def test_what_is_in_the_pictures(awkward):
    """The phone's picture is upright, what was clear is white, and 16 bits keep their greys."""
    _, out, made, _ = awkward
    files = {p.name: out / "instance" / p.file for p in made.kept}

    def compare(name: str, original: Image.Image) -> float:
        middle = original.crop(((original.width - 480) // 2, 0, (original.width + 480) // 2, 480)).resize((512, 512))
        found = np.asarray(Image.open(files[name]).convert("RGB"), float)
        return np.abs(found - np.asarray(middle.convert("RGB"), float)).mean()

    assert compare("phone.jpg", pattern(1)) < 4 < compare("phone.jpg", pattern(1).rotate(180))
    assert compare("scan.tiff", pattern(4)) < 4
    assert Image.open(files["clear.png"]).getpixel((60, 300)) == (255, 255, 255)
    grey = np.asarray(pattern(5, 600, 500).convert("L").crop((50, 0, 550, 500)).resize((512, 512)), float)
    assert np.abs(np.asarray(Image.open(files["deep.png"]).convert("L"), float) - grey).mean() < 4


def test_the_report_has_everything(awkward):
    source, out, made, _ = awkward
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert (report["source"], report["size"], report["crop"]) == ("holiday", 512, "centre")
    assert [row["name"] for row in report["kept"]] == [p.name for p in made.kept]
    assert {row["name"]: row["reason"] for row in report["left_out"]} == {p.name: p.reason for p in made.left_out}
    panorama = next(row for row in report["kept"] if row["name"] == "beach/panorama.jpg")
    assert (panorama["size"], panorama["square"], panorama["enlarged"]) == ([2000, 300], [850, 0, 300], 1.707)
    assert panorama["steps"][1] == "cut to 300 x 300 at (850, 0): 85% lost"
    assert panorama["sha256"] == hashlib.sha256((source / "beach" / "panorama.jpg").read_bytes()).hexdigest()
    assert "IMG_1" in json.dumps(report) and str(out.parent) not in json.dumps(report)


def test_the_contact_sheet_shows_each_original_with_its_square_lit(tmp_path):
    bright = [Image.fromarray(128 + np.asarray(pattern(i, 300, 100)) // 2) for i in range(4)]
    source = folder_of(tmp_path / "in", {f"{i}.png": image for i, image in enumerate(bright)})
    prepare(source, tmp_path / "set", 128)
    sheet = np.asarray(Image.open(tmp_path / "set" / "contact_sheet.png").convert("L"), float)
    assert sheet.shape[1] == 3 * (208 + 8 + 128 + 16) + 16  # three in a row, and one below
    tile = sheet[16 + 24 : 16 + 24 + 69, 16 : 16 + 208]
    assert tile[5:-5, 75:133].mean() > 2 * tile[:, :65].mean() and tile[:, :65].max() < 110


def test_the_same_files_give_the_same_bytes_in_any_order(three, tmp_path, monkeypatch):
    (three / "0-copy.jpg").write_bytes(encoded(pattern(0, 96, 64), "JPEG"))
    first = prepare(three, tmp_path / "a", 64)
    walk = os.walk
    monkeypatch.setattr(os, "walk", lambda *a, **k: ((h, f[::-1], n[::-1]) for h, f, n in walk(*a, **k)))
    second = prepare(three, tmp_path / "b", 64)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b") and str(first) == str(second)
    assert [p.name for p in first.left_out] in (["0-copy.jpg"], ["0.png"])


def test_a_folder_and_its_zip_give_the_same_set(three, tmp_path):
    (three / "deep").mkdir()
    pattern(3, 80, 64).save(three / "deep" / "3.png")
    with zipfile.ZipFile(tmp_path / "three.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(three.rglob("*.png")):
            archive.write(path, path.relative_to(three).as_posix())
        archive.writestr("__MACOSX/._0.png", b"what a Mac adds")
        archive.writestr(".DS_Store", b"this, too")
    made = prepare(tmp_path / "three.zip", tmp_path / "a", 64)
    prepare(three, tmp_path / "b", 64)
    assert {p.reason for p in made.left_out} == {"is hidden"} and len(made.left_out) == 2
    assert hashes(tmp_path / "a" / "instance") == hashes(tmp_path / "b" / "instance")


def test_names_that_a_terminal_would_obey_are_shown_harmless(three, tmp_path):
    if os.name == "nt":
        pytest.skip("Windows refuses such names")
    pattern(7, 64, 64).save(three / "a\x1b[2J\nb.png")
    (three / os.fsdecode(b"latin\xe9.png")).write_bytes(encoded(pattern(8, 64, 64), "PNG"))
    made = prepare(three, tmp_path / "set", 64)
    assert "a\\x1b[2J\\nb.png" in str(made) and "latin\\udce9.png" in str(made)
    assert made.count == 5 and json.loads((tmp_path / "set" / "report.json").read_text(encoding="utf-8"))


# ---- Duplicates


def copies(picture: Image.Image) -> dict[str, Image.Image]:
    """What happens to a photograph that is passed on."""
    wide, high = picture.size
    x, y = wide // 50, high // 50
    return {
        "half": picture.resize((wide // 2, high // 2), Image.Resampling.LANCZOS),
        "third": picture.resize((wide // 3, high // 3), Image.Resampling.BILINEAR),
        "double": picture.resize((wide * 2, high * 2), Image.Resampling.BICUBIC),
        "quality 10": Image.open(io.BytesIO(encoded(picture, "JPEG", quality=10))),
        "brighter": ImageEnhance.Brightness(picture).enhance(1.15),
        "duller": ImageEnhance.Contrast(picture).enhance(0.8),
        "grey": picture.convert("L"),
        "2 % off a corner": picture.crop((0, 0, wide - x, high - y)),
        "2 % off the other": picture.crop((x, y, wide, high)),
        "4 % off all around": picture.crop((x, y, wide - x, high - y)),
    }


def test_copies_of_the_courses_photographs_are_found():
    for photo in PHOTOS:
        for what, copy in copies(photo).items():
            assert differing_bits(dhash(photo), dhash(copy.convert("RGB"))) <= NEAR, what


def test_different_pictures_are_not():
    """Renders have the same kinds of things on the same grounds, yet even the nearest of 32,640 pairs keep apart."""
    from companion.tabletop.samples import held_out

    found = np.array([[int(b) for b in f"{dhash(Image.fromarray(r)):0128b}"] for r in held_out()[0]])
    distances = (found[:, None] != found[None]).sum(-1)[np.triu_indices(len(found), 1)]
    assert len(distances) == 32640 and distances.min() == 21 > NEAR
    assert (distances <= ALIKE).mean() < 0.015
    for a, b in itertools.combinations(PHOTOS, 2):
        assert differing_bits(dhash(a), dhash(b)) > ALIKE


def test_a_hash_is_the_signs_of_the_differences():
    ramp = Image.fromarray(np.tile(np.arange(0, 252, 28, dtype=np.uint8), (9, 1)))
    assert dhash(ramp) == (2**64 - 1) << 64  # brighter to the right everywhere, downwards nowhere
    assert dhash(ramp.transpose(Image.Transpose.TRANSPOSE)) == 2**64 - 1
    assert dhash(ramp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)) == 0


def test_whatever_is_left_out_has_a_larger_twin_in_the_set(tmp_path):
    """A chain, each like the next: the largest stays, and so does what is unlike it."""
    big, small = pattern(0, 400, 300), pattern(0, 200, 150)
    images = {"m.png": big, "a.png": small, "z.png": pattern(0, 600, 450), "o.png": pattern(1), "p.png": pattern(2)}
    made = select(folder_of(tmp_path / "in", images), 64)
    assert [p.name for p in made.kept] == ["o.png", "p.png", "z.png"]
    assert all("nearly the same as z.png, which is larger" in p.reason for p in made.left_out)


def test_near_duplicates_may_be_kept_but_not_copies(three):
    pattern(0, 300, 200).save(three / "0-large.png")
    (three / "1-copy.png").write_bytes((three / "1.png").read_bytes())
    assert [p.name for p in select(three, 64).left_out] == ["0.png", "1-copy.png"]
    assert [p.name for p in select(three, 64, keep_alike=True).left_out] == ["1-copy.png"]


def test_pictures_that_are_much_alike_and_many_pictures_get_a_warning(three):
    mixed = Image.blend(pattern(0, 96, 64), pattern(50, 96, 64), 0.3)
    assert NEAR < differing_bits(dhash(mixed), dhash(pattern(0, 96, 64))) <= ALIKE
    mixed.save(three / "3.png")
    bits = differing_bits(dhash(mixed), dhash(pattern(0, 96, 64)))
    assert select(three, 64).warnings == (f"0.png and 3.png look much alike ({bits} of 128 bits differ)",)
    (three / "3.png").unlink()
    for seed in range(100, 130):
        pattern(seed, 64, 64).save(three / f"{seed}.png")
    assert "33 pictures are many for one subject, for which 3 to 30 are usual" in select(three, 64).warnings


def test_what_was_enlarged_much_gets_one_warning(tmp_path):
    source = folder_of(tmp_path / "in", {f"{i}.png": pattern(i, 40, 40) for i in range(6)} | {"z.png": pattern(9)})
    (warning,) = select(source, 128).warnings
    assert warning == "enlarged more than twice, and so blurred: 0.png, 1.png, 2.png, 3.png, 4.png and 1 more"
    assert select(source, 64).warnings == ()


# ---- Squares


def test_detail_finds_what_is_off_the_middle():
    for wide, high in ((300, 100), (100, 300)):
        canvas = Image.new("RGB", (wide, high), "grey")
        assert detail(canvas) == photographs.centre(canvas) == ((100, 0, 100) if wide > high else (0, 100, 100))
        at = (190, 0) if wide > high else (0, 190)
        canvas.paste(pattern(0, 100, 100), at)
        left, top, side = detail(canvas)
        assert side == 100 and abs(left - at[0]) <= 3 and abs(top - at[1]) <= 3
    square = pattern(0, 64, 64)
    assert detail(square) == (0, 0, 64)


def test_boxes_are_honoured(three, tmp_path):
    (three / "phone.jpg").write_bytes(turned(pattern(9)))
    boxes = {"1.png": (10, 20, 40), "phone.jpg": (5, 7, 101)}
    made = select(three, 64, boxes=boxes, crop="detail")
    squares = {p.name: p.square for p in made.kept}
    assert squares["1.png"] == (10, 20, 40) and squares["phone.jpg"] == (5, 7, 101)
    assert squares["0.png"] == detail(pattern(0, 96, 64))
    found = Image.open(io.BytesIO(made.kept[1].jpeg))
    expected = pattern(1, 96, 64).resize((64, 64), Image.Resampling.LANCZOS, box=(10, 20, 50, 60))
    assert np.abs(np.asarray(found, float) - np.asarray(expected, float)).mean() < 2
    (tmp_path / "boxes.json").write_text(json.dumps(boxes), encoding="utf-8")
    assert select(three, 64, boxes=tmp_path / "boxes.json", crop="detail").report() == made.report()


@pytest.mark.parametrize(
    ("boxes", "sentence"),
    [
        ({"1.pgn": (0, 0, 64)}, "There is a box for '1.pgn', and no such file in .*; did you mean '1.png'"),
        (
            {"1.png": (40, 0, 64)},
            r"The box of 1.png will not do: the square at \(40, 0\) with sides of 64 is not",
        ),
        ({"1.png": (-1, 0, 64)}, r"at \(-1, 0\) .* is not inside the picture, 96 x 64"),
        ({"1.png": (0, 0, 0)}, "sides of 0 is not inside"),
        ({"1.png": (0, 0, 12)}, "The box of 1.png has 12 x 12 pixels, and at least 16 are needed for 64"),
        ({"1.png": (0, 0)}, "three whole numbers are wanted: left, top and side"),
        ({"1.png": "012"}, "three whole numbers are wanted"),
        ({"1.png": (0, 0, 60.5)}, "three whole numbers are wanted"),
        ({"bad.png": (0, 0, 64)}, "There is a box for bad.png, but it cannot be used: bad.png is text"),
        ([1, 2], "Boxes are a mapping"),
    ],
)
def test_impossible_boxes_are_refused(three, tmp_path, boxes, sentence):
    (three / "bad.png").write_text("no picture at all", encoding="utf-8")
    with pytest.raises(ValueError, match=sentence):
        prepare(three, tmp_path / "set", 64, boxes=boxes)
    assert not (tmp_path / "set").exists()


def test_what_is_left_out_by_hand_is_not_read(three, tmp_path):
    for name in ("3.png", "4.png"):
        pattern(int(name[0]), 96, 64).save(three / name)
    made = prepare(three, tmp_path / "set", 64, boxes={"3.png": (0, 0, 64)}, leave_out=["3.png"])
    assert [p.name for p in made.kept] == ["0.png", "1.png", "2.png", "4.png"]
    assert [(p.name, p.reason) for p in made.left_out] == [("3.png", "was left out by hand")]
    assert "3.png was left out by hand" in str(made)
    assert prepare(three, tmp_path / "one", 64, leave_out="3.png").count == 4
    with pytest.raises(ValueError, match="You leave out '3.pgn', and no such file in .*; did you mean '3.png'"):
        prepare(three, tmp_path / "other", 64, leave_out=["3.pgn"])
    with pytest.raises(ValueError, match="holds 2 pictures .* was left out by hand.* DreamBooth needs at least 3"):
        prepare(three, tmp_path / "other", 64, leave_out=["0.png", "1.png", "2.png"])


# ---- Refusals


def test_too_few_pictures_are_refused(tmp_path):
    source = folder_of(tmp_path / "in", {"0.png": pattern(0), "1.png": pattern(1), "1b.png": pattern(1, 320, 240)})
    (source / "bad.jpg").write_bytes(b"")
    with pytest.raises(ValueError) as error:
        prepare(source, tmp_path / "deep" / "set")
    assert str(error.value) == (
        "in holds 2 pictures that can be used (1b.png is nearly the same as 1.png, which is larger; "
        "bad.jpg is empty: it has 0 bytes), and DreamBooth needs at least 3."
    )
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="none holds no pictures that can be used, and DreamBooth needs at least 3"):
        pack(tmp_path / "none", tmp_path / "a.zip")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "none"]


def test_arguments_are_checked_before_anything_is_read(three, tmp_path):
    out = tmp_path / "set"
    with pytest.raises(FileNotFoundError, match="There is no .*nowhere"):
        prepare(tmp_path / "nowhere", out)
    with pytest.raises(ValueError, match="crop='centre2' is no rule; did you mean 'centre': centre, detail"):
        prepare(three, out, crop="centre2")
    with pytest.raises(ValueError, match="size=100 .* multiple of 8"):
        prepare(three, out, 100)
    with pytest.raises(ValueError, match="set is inside .*three"):
        prepare(three, three / "deep" / ".." / "set", 64)
    with pytest.raises(ValueError, match="0.png is neither a folder nor a whole zip"):
        prepare(three / "0.png", out)
    assert not out.exists()


def test_nothing_is_overwritten(three, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    for name in ("set", "file"):
        with pytest.raises(FileExistsError, match=f"{name} is there already, and nothing is overwritten: name another"):
            prepare(three, tmp_path / name, 64)
        with pytest.raises(FileExistsError, match="nothing is overwritten"):
            pack(three, tmp_path / name, 64)
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine" and not list((tmp_path / "set").iterdir())


def test_too_many_files_are_refused(three, tmp_path, monkeypatch):
    monkeypatch.setattr(photographs, "MAX_FILES", 2)
    with pytest.raises(ValueError, match="three holds more than 2 files"):
        select(three, 64)
    with pytest.raises(ValueError, match="three.zip holds 3 entries, and the limit is 2"):
        select(zipped(tmp_path / "three.zip", {f"{i}.png": b"x" for i in range(3)}), 64)


# ---- Zips that would do harm


def zipped(path: Path, contents: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return path


def good() -> dict[str, bytes]:
    return {f"{i}.png": encoded(pattern(i, 64, 64), "PNG") for i in range(3)}


def linked(path: Path) -> Path:
    with zipfile.ZipFile(zipped(path, good()), "a") as archive:
        info = zipfile.ZipInfo("link.jpg")
        info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    return path


def encrypted(path: Path) -> Path:
    """The flag that says so, in the entry and in the directory: zipfile writes none itself."""
    data = bytearray(zipped(path, good()).read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.rindex(mark) + offset] |= 1
    path.write_bytes(data)
    return path


def twice(path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(zipped(path, good()), "a") as archive:
            archive.writestr("0.png", b"another")
    return path


def claiming(path: Path, size: int) -> Path:
    """Whose directory says that the last file unpacks to `size` bytes."""
    data = bytearray(zipped(path, good()).read_bytes())
    at = data.rindex(b"PK\x01\x02") + 24
    data[at : at + 4] = struct.pack("<I", size)
    path.write_bytes(data)
    return path


HARMFUL = {
    "holds '../evil.jpg', a path that leads out of it": lambda p: zipped(p, good() | {"../evil.jpg": b"x"}),
    "holds 'a/../../evil.jpg', a path that leads out": lambda p: zipped(p, good() | {"a/../../evil.jpg": b"x"}),
    "holds '../evil.png', a path that": lambda p: zipped(p, good() | {"..\\evil.png": b"x"}),
    "holds '/evil.jpg', an absolute path": lambda p: zipped(p, good() | {"/evil.jpg": b"x"}),
    "holds 'C:/evil.jpg', an absolute path": lambda p: zipped(p, good() | {"C:\\evil.jpg": b"x"}),
    "holds 'link.jpg', a link": linked,
    "holds '2.png', which is encrypted": encrypted,
    "holds two files called '0.png'": twice,
    "holds 'more.zip', an archive in an archive": lambda p: zipped(p, good() | {"more.zip": b"x"}),
    "holds 'more.jpg', an archive in an archive": lambda p: zipped(p, good() | {"more.jpg": b"PK\x03\x04" + bytes(99)}),
    "holds '0.png', compressed by a rare method": lambda p: zipped(p, good(), zipfile.ZIP_BZIP2),
    "which unpacks to 200,000,001 bytes, and the limit is": lambda p: claiming(p, 200_000_001),
    "unpacks to 3,000,0.* bytes, and the limit is 2,000,000,000": lambda p: claiming(p, 3_000_000_000),
}


@pytest.mark.parametrize("sentence", HARMFUL)
def test_a_harmful_zip_is_refused_and_nothing_is_written(tmp_path, sentence):
    place = tmp_path / "a" / "b"
    place.mkdir(parents=True)
    source = HARMFUL[sentence](place / "in.zip")
    with pytest.raises(ValueError, match=f"^in.zip .*{sentence}.*; it is refused: make a zip of the pictures alone.$"):
        prepare(source, place / "set", 64)
    assert [p.name for p in tmp_path.rglob("*")] == ["a", "b", "in.zip"]


def test_a_bomb_is_never_unpacked(tmp_path):
    """An entry that says it has 1,000 bytes, and unpacks to 100 million: reading stops where it said."""
    import tracemalloc

    path = zipped(tmp_path / "in.zip", good() | {"z.png": bytes(100_000_000)})
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = data.rindex(mark) + offset
        data[at : at + 4] = struct.pack("<I", 1000)
    path.write_bytes(data)
    tracemalloc.start()
    made = select(path, 64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000
    (left,) = made.left_out
    assert left.name == "z.png" and left.reason.startswith("is damaged in the zip")


def test_a_picture_that_is_damaged_in_a_zip_is_left_out(tmp_path):
    path = zipped(tmp_path / "in.zip", good() | {"a.png": encoded(pattern(8, 64, 64), "PNG")}, zipfile.ZIP_STORED)
    data = path.read_bytes()
    at = data.index(b"a.png") + 2000
    path.write_bytes(data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :])
    made = select(path, 64)
    assert made.count == 3 and made.left_out[0].reason.startswith("is damaged in the zip")
    path.write_bytes(data[:-30])
    with pytest.raises(ValueError, match="neither a folder nor a whole zip"):
        select(path, 64)


def test_a_zip_is_checked_before_money_is_spent(tmp_path):
    check_zip(zipped(tmp_path / "good.zip", good()))
    few = zipped(tmp_path / "few.zip", {"0.png": good()["0.png"], "1.png": good()["1.png"], "2.png": b"broken"})
    with pytest.raises(ValueError, match="few.zip holds 2 readable pictures, and at least 3 must be in it"):
        check_zip(few)
    check_zip(few, least=1)
    with pytest.raises(ValueError, match="none.zip holds no readable pictures, and at least 1"):
        check_zip(zipped(tmp_path / "none.zip", {}), least=1)
    with pytest.raises(ValueError, match="is a folder, and a zip is wanted"):
        check_zip(tmp_path)


# ---- Whole or not at all


def test_a_kill_in_the_middle_leaves_nothing_half_done(three, tmp_path):
    """The process ends at once, as by a power cut, after some of the files were written."""
    code = (
        "import os, sys; from companion import photographs\n"
        "photographs.contact_sheet = lambda made: os._exit(9)\n"
        "photographs.prepare(sys.argv[1], sys.argv[2], 64)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(three), str(tmp_path / "set")])
    assert killed.returncode == 9 and not (tmp_path / "set").exists()
    assert prepare(three, tmp_path / "set", 64).count == 3


def test_an_error_in_the_middle_leaves_nothing_at_all(three, tmp_path, monkeypatch):
    def interrupted(made):
        assert len(list(tmp_path.rglob("00?.jpg"))) == 3  # much is written already, elsewhere
        raise KeyboardInterrupt

    monkeypatch.setattr(photographs, "contact_sheet", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(three, tmp_path / "set", 64)
    assert [p.name for p in tmp_path.iterdir()] == ["three"]


# ---- The class, and the zip alone


def test_pictures_of_the_class_may_be_alike_and_few(three, tmp_path):
    others = folder_of(tmp_path / "others", {"0.png": pattern(20, 64, 64), "1.png": pattern(20, 72, 72)})
    made = prepare(three, tmp_path / "set", 64, class_pictures=others)
    assert made.class_set is not None and made.class_set.count == 2 and made.class_set.warnings == ()
    assert sorted(p.name for p in (tmp_path / "set" / "class").iterdir()) == ["000.jpg", "001.jpg"]
    with zipfile.ZipFile(tmp_path / "set" / "class.zip") as archive:
        assert archive.namelist() == ["000.jpg", "001.jpg"]
    report = json.loads((tmp_path / "set" / "report.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in report["class"]["kept"]] == ["0.png", "1.png"]
    assert "Class: 2 pictures of 64 x 64 from others" in str(made)


def test_the_zip_alone_is_that_of_the_set(three, tmp_path):
    (three / "note.txt").write_text("for the trainer", encoding="utf-8")
    packed = pack(three, tmp_path / "a.zip", 128)
    prepare(three, tmp_path / "set", 128)
    assert packed.path.read_bytes() == (tmp_path / "set" / "instance.zip").read_bytes()
    assert (packed.count, packed.enlarged) == (3, ("0.png", "1.png", "2.png"))
    assert "note.txt is text" in str(packed)


def test_watching_sees_every_file(three):
    seen = []

    def watch(things, total):
        for thing in things:
            seen.append(total)
            yield thing

    assert select(three, 64, watch=watch).count == 3 and seen == [3, 3, 3]
