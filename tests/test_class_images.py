"""Class images: drawn from seed + i, however often the drawing was interrupted, and never mixed with others."""

from __future__ import annotations

import itertools
import shutil

import numpy as np
import pytest
from awkward import pattern
from PIL import Image

from companion import class_images as module
from companion.class_images import class_images, fingerprint
from companion.diffusion import draw, picture_size
from companion.metrics import tensor_to_bytes
from companion.models import load

SETTINGS = {"steps": 2, "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def pipe(tiny):
    return load(tiny, device="cpu")


@pytest.fixture
def unbroken(pipe, tmp_path):
    return list(class_images(pipe, "a red cube", 5, tmp_path / "unbroken", 7, batch=2, **SETTINGS))


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_picture_i_is_drawn_from_seed_plus_i(pipe, unbroken):
    assert [path.name for path in unbroken] == [f"{i:03}.png" for i in range(5)]
    expected = tensor_to_bytes(draw(pipe, "a red cube", [7, 8, 9, 10, 11], batch=2, **SETTINGS)).numpy()
    for path, picture in zip(unbroken, expected, strict=True):
        assert np.array_equal(np.asarray(Image.open(path)), picture)
    assert expected.shape[1] == picture_size(pipe)


@pytest.mark.parametrize("stops", [(1,), (3,), (1, 2, 4), (0, 0, 5)])
def test_interrupted_and_continued_it_is_the_same_set(pipe, unbroken, tmp_path, stops):
    for stop in stops:
        drawing = class_images(pipe, "a red cube", 5, tmp_path / "set", 7, batch=2, **SETTINGS)
        list(itertools.islice(drawing, stop))
        drawing.close()
    assert len(list(class_images(pipe, "a red cube", 5, tmp_path / "set", 7, batch=2, **SETTINGS))) == 5
    assert contents(tmp_path / "set") == contents(unbroken[0].parent)


def test_only_what_is_missing_is_drawn(pipe, unbroken, monkeypatch):
    before = contents(unbroken[0].parent)
    unbroken[3].unlink()
    drawn = []
    monkeypatch.setattr(module, "draw", lambda *a, **k: drawn.append(a[2]) or draw(*a, **k))
    list(class_images(pipe, "a red cube", 5, unbroken[0].parent, 7, batch=2, **SETTINGS))
    assert drawn == [[9, 10]], "its batch, as it was"
    assert contents(unbroken[0].parent) == before
    list(class_images(pipe, "a red cube", 5, unbroken[0].parent, 7, batch=2, **SETTINGS))
    assert len(drawn) == 1


def test_an_error_while_a_file_is_written_leaves_none(pipe, tmp_path, monkeypatch):
    save, saved = Image.Image.save, []

    def failing(image, target, *a, **k):
        save(image, target, *a, **k)
        saved.append(target)
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", failing)
    with pytest.raises(KeyboardInterrupt):
        list(class_images(pipe, "a red cube", 5, tmp_path / "set", **SETTINGS))
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["000.png"]


def test_given_photographs_come_first(pipe, unbroken, tmp_path):
    (tmp_path / "given").mkdir()
    for i in range(2):
        pattern(0, 40 + i, 30).save(tmp_path / "given" / f"{i}.png")
    (tmp_path / "given" / "notes.txt").write_text("no picture", encoding="utf-8")
    options = {"batch": 3, "given": tmp_path / "given", **SETTINGS}
    found = list(class_images(pipe, "a red cube", 5, tmp_path / "set", 7, **options))
    assert [path.name for path in found] == ["000.jpg", "001.jpg", "002.png", "003.png", "004.png"]
    assert np.asarray(Image.open(found[0])).shape == np.asarray(Image.open(found[2])).shape
    before = contents(tmp_path / "set")
    found[1].unlink()
    assert list(class_images(pipe, "a red cube", 5, tmp_path / "set", 7, **options)) == found
    assert contents(tmp_path / "set") == before
    difference = np.asarray(Image.open(found[2]), int) - np.asarray(Image.open(unbroken[2]), int)
    assert np.abs(difference).max() <= 1, "picture 2 is that of seed 9 with and without them, but for its batch"
    few = list(class_images(pipe, "a red cube", 1, tmp_path / "few", given=tmp_path / "given", **SETTINGS))
    assert [path.name for path in few] == ["000.jpg"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"prompt": "a blue cube"}, "000.png was drawn with prompt 'a red cube': name another folder"),
        ({"seed": 8}, "000.png was drawn with seed 7"),
        ({"steps": 3}, "000.png was drawn with steps 2"),
        ({"guidance_scale": 2.0}, "000.png was drawn with guidance_scale 3.0"),
        ({"negative_prompt": "dark"}, "000.png was drawn with negative_prompt ''"),
        ({"count": 4}, "holds 004.png, which is none of these 4 pictures"),
        ({"count": 0}, "count=0 is less than 1"),
        ({"batch": 0}, "batch=0 is less than 1"),
        ({"prompt": " "}, "The prompt is empty"),
    ],
)
def test_sets_are_not_mixed(pipe, unbroken, change, sentence):
    before = contents(unbroken[0].parent)
    options = {"prompt": "a red cube", "count": 5, "seed": 7, "batch": 2, **SETTINGS} | change
    with pytest.raises(ValueError, match=sentence):
        list(class_images(pipe, folder=unbroken[0].parent, **options))
    assert contents(unbroken[0].parent) == before


def test_other_files_and_other_models_are_refused(pipe, unbroken, tiny, tmp_path):
    folder, options = unbroken[0].parent, {"batch": 2, **SETTINGS}
    other = load(tiny, device="cpu")
    assert fingerprint(other) == fingerprint(pipe)
    other.unet.conv_in.weight.data += 1e-3
    with pytest.raises(ValueError, match="000.png was drawn by another model"):
        list(class_images(other, "a red cube", 5, folder, 7, **options))
    shutil.copy(unbroken[0], tmp_path / "whole.png")
    unbroken[0].write_bytes(unbroken[0].read_bytes()[:-200])
    with pytest.raises(ValueError, match="000.png was not drawn here, or is damaged"):
        list(class_images(pipe, "a red cube", 5, folder, 7, **options))
    shutil.copy(tmp_path / "whole.png", unbroken[0])
    (folder / "cat.jpg").write_bytes(b"mine")
    with pytest.raises(ValueError, match="holds cat.jpg, which is none of these 5 pictures"):
        list(class_images(pipe, "a red cube", 5, folder, 7, **options))
    with pytest.raises(ValueError, match="is a file, and a folder is wanted"):
        list(class_images(pipe, "a red cube", 5, unbroken[1], 7, **options))
