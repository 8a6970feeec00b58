"""The mask painter in a real browser: strokes by mouse and touch reach Python, and the picture changes only there."""

from __future__ import annotations

import io

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from PIL import Image

from companion.widgets.editing import SIDE

pytestmark = [pytest.mark.browser, pytest.mark.slow]

# A pipeline is not needed to see that a stroke arrives: what is drawn inside the mask is plain green.
SETUP = """
import numpy as np
import torch
from companion.widgets import editing
from companion import img2img_inpainting
ramp = torch.linspace(-1, 1, 64)
source = torch.stack([ramp.expand(64, 64), ramp[:, None].expand(64, 64), torch.zeros(64, 64)])
source = ((source + 1) * 127.5).round() / 127.5 - 1
def inpaint(pipe, pictures, masks, prompts, seeds, **kwargs):
    yield type("Step", (), {"latents": None})()
img2img_inpainting.inpaint = inpaint
green = torch.tensor([-1.0, 1, -1]).view(1, 3, 1, 1).expand(1, 3, 64, 64)
editing.Drawer = lambda pipe: type("Green", (), {"unet": None, "decode": lambda self, latents: green})()
panel = editing.Inpainter(None, source, "a", steps=2)
panel.painter.brush = 8
""".strip()
REPORT = """
from companion.figures import as_array
change = np.abs(as_array(panel.result).astype(int) - as_array(source).astype(int)).max(2) > 0
mask = panel.painter.array
rows, columns = np.nonzero(mask)
box = [columns.min(), columns.max(), rows.min(), rows.max()] if mask.any() else []
print(int(mask.sum()), int(change[~mask].sum()), bool(change[mask].all()), *map(int, box))
""".strip()


@pytest.fixture
def painter(notebook_page):
    sources = [SETUP, "panel", REPORT]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    cells = [new_markdown_cell("# Paint"), *map(new_code_cell, sources)]
    page = notebook_page.open(new_notebook(cells=cells, metadata=metadata), "paint")
    page.run_all()
    return Painter(page)


class Painter:
    """The painter below cell 2 of an open notebook."""

    def __init__(self, page) -> None:
        self.page, self.canvas = page, page.output(2).locator(".mask-painter-canvas")
        self.canvas.scroll_into_view_if_needed()

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where in the window a point of the picture lies, x and y in its 64 pixels."""
        box = self.canvas.bounding_box()
        return box["x"] + x / 64 * box["width"], box["y"] + y / 64 * box["height"]

    def stroke(self, *points: tuple[float, float]) -> bytes:
        """Draw a line through these points with the mouse; returns the new picture of the panel."""
        before, mouse = self.page.picture(2), self.page.page.mouse
        mouse.move(*self.at(*points[0]))
        mouse.down()
        for point in points[1:]:
            mouse.move(*self.at(*point), steps=6)
        mouse.up()
        return self.page.new_picture(2, before)

    def press(self, name: str) -> bytes:
        before = self.page.picture(2)
        self.page.output(2).locator(f".mask-painter-{name}").click()
        return self.page.new_picture(2, before)

    def report(self) -> list[str]:
        """What Python has: pixels painted, pixels changed outside, whether all inside changed, and the mask's box."""
        cell = self.page.page.locator(".jp-Notebook .jp-Cell").nth(3)
        cell.locator(".cm-content").click()
        self.page.command("notebook:run-cell")
        return self.page.output(3).inner_text().split()


def pixels(picture: bytes) -> np.ndarray:
    """The panel's picture: the result, SIDE x SIDE."""
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)


def test_a_stroke_changes_the_picture_there_and_nowhere_else(painter):
    assert painter.report()[0] == "0"
    before = pixels(painter.page.picture(2))
    painter.page.screenshot("paint-before")
    after = pixels(painter.stroke((16, 32), (48, 32)))
    painter.page.screenshot("paint-after")
    painted, outside, inside, *box = painter.report()
    left, right, top, bottom = map(int, box)
    # A line of 32 pixels with round ends, 8 thick: 32 * 8 + pi * 16 = 306.
    assert abs(int(painted) - 306) < 30 and (outside, inside) == ("0", "True")
    assert abs(left - 12) <= 1 and abs(right - 51) <= 1 and abs(top - 28) <= 1 and abs(bottom - 35) <= 1
    change = np.abs(after - before).max(2)
    scale = SIDE / 64
    rows, columns = np.nonzero(change > 40)  # on the screen it is enlarged smoothly, so its edge is soft
    assert abs(columns.min() / scale - left) < 2 and abs(columns.max() / scale - right) < 2
    assert abs(rows.min() / scale - top) < 2 and abs(rows.max() / scale - bottom) < 2


def test_eraser_undo_and_clear(painter):
    one = painter.stroke((16, 16), (48, 16))
    painted = int(painter.report()[0])
    two = painter.stroke((16, 48), (48, 48))
    assert int(painter.report()[0]) > 1.8 * painted and two != one
    assert painter.press("undo") == one
    assert painter.press("redo") == two
    assert painter.press("undo") == one
    painter.page.output(2).locator(".mask-painter-eraser").check()
    painter.stroke((32, 8), (32, 24))
    assert 0.6 * painted < int(painter.report()[0]) < 0.9 * painted
    painter.press("clear")
    assert painter.report()[0] == "0"
    painter.press("undo")
    assert int(painter.report()[0]) > 0


def test_a_finger_paints(painter):
    """Touch, by the browser's own protocol; the page must not scroll meanwhile."""
    session = painter.page.page.context.new_cdp_session(painter.page.page)
    before = painter.page.picture(2)
    top = painter.canvas.bounding_box()["y"]
    points = [painter.at(32, y) for y in (12, 24, 36, 52)]
    for kind, point in zip(("touchStart", "touchMove", "touchMove", "touchMove"), points, strict=True):
        places = [{"x": point[0], "y": point[1]}]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    painter.page.new_picture(2, before)
    assert painter.canvas.bounding_box()["y"] == top
    painted, outside, inside, left, right, *rows = painter.report()
    assert abs(int(painted) - 370) < 40 and (outside, inside) == ("0", "True")
    assert abs(int(left) - 28) <= 1 and abs(int(rows[1]) - 55) <= 1


def test_python_paints_too(painter):
    """A mask that Python sets is seen, and a stroke is added to it."""
    painter.page.saved()
    cell = new_code_cell("panel.painter.array = np.pad(np.ones((16, 16)), ((0, 48), (0, 48)))")
    notebook = nbformat.read(painter.page.path, as_version=4)
    notebook.cells.insert(3, cell)
    page = painter.page.open(notebook, "paint-too")
    page.run_all()
    again = Painter(page)
    again.stroke((40, 40), (40, 40.5))
    result = pixels(page.picture(2))
    scale = SIDE / 64
    for x, y in ((8, 8), (40, 40)):
        assert tuple(result[int(y * scale), int(x * scale)]) == (0, 255, 0)
    assert tuple(result[int(50 * scale), int(8 * scale)]) != (0, 255, 0)
