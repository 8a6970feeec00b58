"""The painter's own script in a real Chromium, as scribble pad and as mask painter, and what Python has then."""

from __future__ import annotations

import numpy as np
import pytest
from editor_page import EditorPage

from companion.widgets import MaskPainter, ScribblePad

pytestmark = pytest.mark.browser


def widget(kind: type, **options):
    """Of 64 x 64 pixels, with a brush of 8."""
    grey = np.full((64, 64, 3), 120, np.uint8)
    return ScribblePad(size=64, brush=8, **options) if kind is ScribblePad else MaskPainter(grey, brush=8, **options)


both = pytest.mark.parametrize("kind", [ScribblePad, MaskPainter], ids=lambda kind: kind.__name__)


def painted(editor: EditorPage) -> np.ndarray:
    editor.sent()
    return editor.widget.painted()


def colour(editor: EditorPage, x: int, y: int) -> list[int]:
    """What the canvas shows at a pixel."""
    script = "([x, y]) => [...document.querySelector('canvas').getContext('2d').getImageData(x, y, 1, 1).data]"
    return editor.page.evaluate(script, [x, y])


@both
def test_a_stroke_paints_where_the_brush_was(opened, kind):
    editor = opened(widget(kind))
    editor.drag((16, 32), (48, 32))
    mask = painted(editor)
    rows, columns = np.nonzero(mask)
    # A line of 32 pixels with round ends, 8 thick: 32 * 8 + pi * 16 = 306.
    assert abs(int(mask.sum()) - 306) < 30
    assert abs(columns.min() - 12) <= 1 and abs(columns.max() - 51) <= 1 and abs(rows.min() - 28) <= 1
    # Ctrl+Z is for the pad from now on.
    assert editor.page.evaluate("document.activeElement.tagName") == "CANVAS"


def test_a_scribble_is_white_on_black_over_a_faint_picture(opened):
    editor = opened(ScribblePad(picture=np.full((64, 64, 3), 200, np.uint8), brush=8))
    editor.drag((16, 32), (48, 32))
    painted(editor)
    assert editor.widget.array.dtype == np.uint8 and set(np.unique(editor.widget.array)) == {0, 255}
    assert colour(editor, 32, 32) == [255, 255, 255, 255]
    editor.page.wait_for_function("document.querySelector('canvas').getContext('2d').getImageData(5, 5, 1, 1).data[0]")
    assert abs(colour(editor, 5, 5)[0] - 70) <= 2
    assert colour(opened(ScribblePad(size=64)), 5, 5) == [0, 0, 0, 255]


@both
def test_eraser_undo_redo_and_clear(opened, kind):
    editor = opened(widget(kind))
    editor.drag((16, 16), (48, 16))
    one = painted(editor)
    editor.drag((16, 48), (48, 48))
    two = painted(editor)
    editor.page.get_by_label("eraser").check()
    editor.drag((32, 8), (32, 24))
    three = painted(editor)
    assert one.sum() < three.sum() < two.sum() and not three[16, 32] and two[16, 32]
    editor.press("Clear")
    assert not painted(editor).any()
    for before in (three, two, one):
        editor.press("Undo")
        assert np.array_equal(painted(editor), before)
    editor.press("Redo")
    editor.page.keyboard.press("Control+y")
    assert np.array_equal(painted(editor), three)
    editor.page.keyboard.press("Control+z")
    editor.page.keyboard.press("Control+Shift+z")
    assert np.array_equal(painted(editor), three)
    editor.press("Undo")
    editor.drag((8, 32), (9, 32))
    assert editor.page.get_by_role("button", name="Redo").get_attribute("aria-disabled") == "true"


def test_shift_erases(opened):
    editor = opened(widget(ScribblePad))
    editor.drag((16, 16), (48, 16))
    before = painted(editor)
    editor.page.keyboard.down("Shift")
    editor.drag((32, 8), (32, 24))
    editor.page.keyboard.up("Shift")
    after = painted(editor)
    assert before[16, 32] and not after[16, 32] and (after <= before).all()


@both
def test_a_circle_shows_the_brush(opened, kind):
    editor = opened(widget(kind))
    circle, mouse = editor.page.locator(".editor-brush"), editor.page.mouse
    assert not circle.is_visible()
    mouse.move(*editor.at(20, 40))
    box, (x, y) = circle.bounding_box(), editor.at(20, 40)
    assert abs(box["width"] - 8 * 4.5) < 1 and abs(box["height"] - box["width"]) < 0.5
    assert abs(box["x"] + box["width"] / 2 - x) < 1 and abs(box["y"] + box["height"] / 2 - y) < 1
    editor.page.get_by_label("Brush size").focus()
    editor.page.keyboard.press("ArrowLeft")
    mouse.move(*editor.at(20, 30))
    assert abs(circle.bounding_box()["width"] - 7 * 4.5) < 1
    editor.sent()
    assert editor.widget.brush == 7
    editor.page.get_by_label("eraser").check()
    mouse.move(*editor.at(20, 20))
    assert "editor-brush-erases" in circle.get_attribute("class")
    mouse.move(550, 450)
    assert not circle.is_visible()


@both
def test_keys_paint_and_jupyterlab_gets_none_of_them(opened, kind):
    editor = opened(widget(kind))
    editor.focus("canvas")
    editor.page.evaluate("window.keys = []")
    keyboard, circle = editor.page.keyboard, editor.page.locator(".editor-brush")
    assert circle.is_visible()
    keyboard.press("ArrowUp")
    assert not painted(editor).any()
    keyboard.press(" ")
    for _ in range(10):
        keyboard.press("ArrowRight")
    keyboard.press("Shift+ArrowDown")
    assert editor.sent() == [], "it is sent when the brush is lifted"
    keyboard.press(" ")
    mask = painted(editor)
    assert mask[31, 32] and mask[31, 42] and mask[35, 42] and not mask[20, 32] and not mask[40, 32]
    keyboard.press("ArrowLeft")
    assert np.array_equal(painted(editor), mask)
    keyboard.press("Control+z")
    assert not painted(editor).any()
    assert editor.page.evaluate("window.keys") == []


def test_a_brush_that_is_down_is_lifted_when_the_focus_goes(opened):
    editor = opened(widget(ScribblePad))
    editor.focus("canvas")
    editor.page.keyboard.press(" ")
    editor.page.keyboard.press("Tab")
    assert painted(editor).any() and not editor.page.locator(".editor-brush").is_visible()


def test_a_finger_paints_without_a_circle(opened):
    editor = opened(widget(ScribblePad))
    editor.touch((32, 12), (32, 24), (32, 36), (32, 52))
    mask = painted(editor)
    assert abs(int(mask.sum()) - 370) < 40 and not editor.page.locator(".editor-brush").is_visible()


def test_python_paints_too(opened):
    editor = opened(widget(ScribblePad))
    editor.drag((16, 16), (48, 16))
    editor.page.evaluate(
        "() => model.set('mask', new DataView(Uint8Array.from({ length: 4096 }, (_, i) => 255 * (i < 640)).buffer))"
    )
    assert colour(editor, 5, 5)[0] == 255 and colour(editor, 32, 16)[0] == 0
    editor.drag((40, 40), (40, 40.5))
    mask = painted(editor)
    assert mask[:10].all() and mask[40, 40] and not mask[20].any()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_and_can_be_read(opened, theme):
    ramp = np.linspace(0, 255, 128).astype(np.uint8)
    picture = np.stack(
        [np.tile(ramp, (128, 1)), np.tile(ramp[:, None], (1, 128)), np.full((128, 128), 90, np.uint8)], 2
    )
    editor = opened(ScribblePad(picture=picture, brush=6), theme)
    editor.drag((20, 20), (100, 30), (60, 100))
    editor.screenshot(f"scribble-{theme}")
    assert editor.page.evaluate("document.documentElement.scrollWidth") <= 600
    box = editor.stage.bounding_box()
    assert box["width"] == box["height"] == 288
