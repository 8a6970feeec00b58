"""The panels in JupyterLab: all of each is in view, a drag is followed, and a kernel that has gone is told."""

from __future__ import annotations

import re

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from companion.widgets.base import GONE

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SETUP = """
import companion
from companion import diffusion, img2img_inpainting, where_to_run
from companion.schedules import Levels
from companion.widgets import *
from companion.widgets.fit import FitPanel
pipe = companion.load("tabletop", device="cpu")
task = img2img_inpainting.tasks(pipe, 1)[0]
prompt = "a red ball left of a blue house on grass by day"
costs = [where_to_run.cost(shape) for shape in (where_to_run.shape_of(pipe, "yours"), where_to_run.SD15)]
""".strip()
# By name: the code, the width of the picture in pixels, and its proportions.
PANELS = {
    "playground": ("Playground(pipe, prompt, steps=8)", 384, 1),
    "guidance": ("GuidanceSlider(pipe, prompt, steps=2, scales=(1, 2, 4))", 584, 584 / 308),
    "strength": ("StrengthSlider(pipe, task.picture, task.prompt, steps=8)", 584, 584 / 308),
    "samplers": ("SamplerComparison(pipe, prompt, steps=3)", 520, 520 / 276),
    "schedules": ("ScheduleExplorer(Levels.of(pipe.scheduler))", 640, None),
    "inpainter": ("Inpainter(pipe, task.picture, task.prompt, task.mask, steps=2)", 288, 1),
    "comparison": ("Comparison(task.picture, -task.picture)", 384, 1),
    "scrubber": ("Scrubber(pipe, list(diffusion.sample(pipe, prompt, steps=3, guidance_scale=3)))", 688, 688 / 244),
    "fit": ("FitPanel(costs)", 640, None),
}
SLIDERS = ".widget-slider .noUi-target, .live-slider input, .live-slider .live-slider-line"

# A pipeline is not needed to see a slider followed: a preview takes a tenth of a second, and a whole picture two.
SLOW = """
import time
from PIL import Image
from companion.widgets.base import Panel
from companion.widgets.live_slider import LiveSlider

class Slow(Panel):
    def __init__(self):
        self.slider, self.drawn = LiveSlider(label="share"), []
        super().__init__([self.slider], 256)
        for trait in ("value", "held"):
            self.watch(self.slider, self.draw, trait)
        self.attempt(self.draw)

    def draw(self):
        time.sleep(0.1 if self.slider.held else 2)
        self.drawn.append((self.slider.held, self.slider.value))
        if self.slider.value == 1:
            raise ValueError("that is too much")
        self.show(Image.new("RGB", (256, 256), (200, 80, round(255 * self.slider.value))), self.said())

    def said(self):
        return f"{self.slider.value:.2f}" + (", a preview" if self.slider.held else "")

panel = Slow()
panel
""".strip()


def notebook(*sources: str):
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    return new_notebook(cells=[new_markdown_cell("# Panels"), *map(new_code_cell, sources)], metadata=metadata)


def test_all_of_a_panel_is_in_view(notebook_page):
    """Slider and picture at once in a window of 1366 x 768, and no picture distorted or cut in a narrow one."""
    page = notebook_page.open(notebook(SETUP, *(code for code, _, _ in PANELS.values())), "panels")
    page.run_all()
    cells = page.page.locator(".jp-Notebook .jp-Cell")
    for theme, width, height in page.at_every_size():
        for index, (name, (_, natural, proportions)) in enumerate(PANELS.items(), 2):
            output = page.output(index)
            cells.nth(index).evaluate("element => element.scrollIntoView({ block: 'start' })")
            page.page.wait_for_timeout(200)
            page.screenshot(f"{name}-{theme}-{width}")
            picture, whole = output.locator("img").first, output.bounding_box()
            box = picture.bounding_box()
            drawn = picture.evaluate("image => image.naturalWidth / image.naturalHeight")
            assert proportions is None or abs(drawn - proportions) < 0.01, name
            assert abs(box["width"] / box["height"] - drawn) < 0.02, f"{name} is distorted at {width}"
            assert box["x"] + box["width"] <= whole["x"] + whole["width"] + 1, f"{name} is cut at {width}"
            if width < 1366:
                continue
            assert abs(box["width"] - natural) < 1, f"{name} is smaller than it is at {width}"
            slider = output.locator(SLIDERS).first.bounding_box()
            for part in (box, slider):
                assert part["y"] >= 0 and part["y"] + part["height"] < height - 24, f"{name} is out of view"
                assert part["x"] + part["width"] < width
            if name not in ("comparison", "scrubber"):
                assert slider["x"] > box["x"] + box["width"], f"the slider of {name} is not beside its picture"


def drag(page, index: int, seconds: float) -> None:
    """Drag the slider below this cell from its left to its middle, in so many seconds, and hold it there."""
    slider = page.output(index).locator(".live-slider input")
    slider.scroll_into_view_if_needed()
    box, mouse = slider.bounding_box(), page.page.mouse
    left, middle = box["x"] + 8, box["y"] + box["height"] / 2
    mouse.move(left, middle)
    mouse.down()
    for step in range(20):
        mouse.move(left + (box["width"] / 2 - 8) * (step + 1) / 20, middle)
        page.page.wait_for_timeout(1000 * seconds / 20)


def report(page, index: int) -> str:
    page.page.locator(".jp-Notebook .jp-Cell").nth(index).locator(".cm-content").click()
    page.command("notebook:run-cell")
    return page.output(index).inner_text()


def test_a_drag_is_followed_by_previews_and_ends_with_the_whole_picture(notebook_page):
    page = notebook_page.open(notebook(SLOW, "print(panel.drawn[1:])"), "drag")
    page.run_all()
    before = page.picture(1)
    drag(page, 1, 2)
    on_its_way = page.new_picture(1, before)
    assert on_its_way != before
    page.page.mouse.up()
    # Not the picture that follows from the one that is being drawn: between previews nothing is marked as busy.
    page.page.locator(".companion-said").filter(has_text=re.compile(r"^\s*0\.50\s*$")).wait_for()
    drawn = eval(report(page, 2))
    previews = [value for held, value in drawn if held]
    assert 5 <= len(previews) <= 20 and previews == sorted(previews), drawn
    assert drawn[-1] == (False, 0.5) and [held for held, _ in drawn].count(False) == 1, drawn


def test_it_is_marked_while_it_draws_and_after_an_error_no_more(notebook_page):
    page = notebook_page.open(notebook(SLOW), "mark")
    page.run_all()
    output = page.output(1)
    mark, said = output.locator(".companion-mark"), output.locator(".companion-said")
    assert not mark.is_visible() and said.inner_text() == "0.00"
    slider = output.locator(".live-slider input")
    slider.focus()
    for key, text in (("ArrowRight", "0.05"), ("End", "that is too much")):
        before = page.picture(1)
        slider.press(key)
        mark.wait_for(state="visible", timeout=1900)  # a picture takes two seconds
        page.page.wait_for_timeout(450)
        assert mark.is_visible() and page.picture(1) == before
        assert float(output.locator("img").evaluate("image => getComputedStyle(image).opacity")) < 0.6
        page.screenshot(f"mark-{key}")
        mark.wait_for(state="hidden")
        assert text in said.inner_text()
        page.page.wait_for_timeout(200)
        assert float(output.locator("img").evaluate("image => getComputedStyle(image).opacity")) == 1
    assert page.picture(1) == before, "after the error"


def test_after_a_restart_it_tells_which_cell_to_run(notebook_page):
    page = notebook_page.open(notebook(SLOW), "restart")
    page.run_all()
    before, gone = page.picture(1), page.output(1).locator(".companion-gone")
    assert gone.count() == 1 and not gone.is_visible()
    page.page.evaluate("jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
    gone.wait_for(state="visible", timeout=30_000)
    assert gone.inner_text() == GONE and page.picture(1) == before
    page.screenshot("restarted")
    page.page.wait_for_function("jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle'")
    page.run_all()
    assert not page.output(1).locator(".companion-gone").is_visible()
    page.saved()
