"""What a reader sees: widgets answer in a real browser, and leave a picture for those who do not run the notebook."""

from __future__ import annotations

import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from notebook_page import unavailable
from structure import gate_parameters, needed_by

from companion.run import NOTEBOOKS, set_parameters

pytestmark = [pytest.mark.browser, pytest.mark.slow]

# Their panels have editors rather than sliders: test_controlnet_panels.py and test_finetuning_lab.py try them.
WITH_EDITORS = ["04_controlnet", "05_dreambooth", "06_oft_vs_lora"]
NAMES = ["00_start_here", "01_latent_diffusion", "02_samplers", "03_img2img_inpainting", "07_where_to_run"]
VIEW = "application/vnd.jupyter.widget-view+json"

WIDGET = """
import io, sys
import ipywidgets as widgets
from PIL import Image
slider = widgets.IntSlider(description="Blue", max=255, step=50, continuous_update=False)
picture = widgets.Image(width=128)
def draw(change=None):
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 80, slider.value)).save(buffer, "PNG")
    picture.value = buffer.getvalue()
slider.observe(draw, "value")
draw()
class Playground(widgets.VBox):
    def _repr_mimebundle_(self, **kwargs):
        import base64
        return super()._repr_mimebundle_(**kwargs) | {"image/png": base64.b64encode(picture.value).decode()}
Playground([slider, picture])
""".strip()


def small_notebook(*sources: str) -> nbformat.NotebookNode:
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    return new_notebook(cells=[new_markdown_cell("# Small"), *map(new_code_cell, sources)], metadata=metadata)


def test_a_slider_draws_a_new_picture(notebook_page):
    """Test the helpers that the other tests rely on, with a notebook of two cells."""
    small = notebook_page.open(small_notebook("import sys; print(sys.executable)", WIDGET), "small")
    small.run_all()
    assert small.output(1).inner_text().strip() == sys.executable
    before = small.picture(2)
    assert small.picture(2) == before
    small.screenshot("small-before")
    small.move_slider(2)
    after = small.new_picture(2, before)
    small.screenshot("small-after")
    small.move_slider(2, "ArrowLeft")
    assert small.new_picture(2, after) == before
    saved = small.saved()
    assert {VIEW, "image/png"} <= set(saved.cells[2].outputs[-1].data)

    # To JupyterLab this is a new notebook: not trusted yet, and without a kernel that knows the widget.
    saved.cells[0].source = "# Small, not run"
    unrun = notebook_page.open(saved, "small-unrun")
    assert unrun.picture(2) == before
    assert unrun.output(2).locator(".widget-slider").count() == 0
    unrun.screenshot("small-unrun")


def test_a_notebook_that_fails_is_noticed(notebook_page):
    with pytest.raises(AssertionError, match="cell 1: ZeroDivisionError: division by zero"):
        notebook_page.open(small_notebook("1 / 0"), "failing").run_all()


def test_a_picture_that_stays_is_noticed(notebook_page):
    still = notebook_page.open(small_notebook(WIDGET.replace('slider.observe(draw, "value")', "")), "still")
    still.run_all()
    before = still.picture(1)
    still.move_slider(1)
    with pytest.raises(AssertionError, match="still shows the same picture"):
        still.new_picture(1, before, timeout=2)


def test_without_a_browser_the_tests_are_skipped_unless_it_is_required(monkeypatch):
    monkeypatch.delenv("COMPANION_REQUIRE_BROWSER", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no Chromium"):
        unavailable("no Chromium")
    monkeypatch.setenv("COMPANION_REQUIRE_BROWSER", "1")
    with pytest.raises(pytest.fail.Exception, match="no Chromium"):
        unavailable("no Chromium")


def committed(name: str) -> tuple[nbformat.NotebookNode, list[int]]:
    """A notebook as committed, and the indices of its cells tagged `widget`."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    widgets = [index for index, cell in enumerate(notebook.cells) if "widget" in cell.metadata.get("tags", [])]
    assert widgets, f"{name} has no cell tagged widget"
    return notebook, widgets


@pytest.mark.parametrize("name", [*NAMES, *WITH_EDITORS])
def test_a_reader_who_does_not_run_it_sees_pictures_of_the_widgets(notebook_page, name):
    notebook, widgets = committed(name)
    page = notebook_page.open(notebook, f"{name}-unrun")
    for index in widgets:
        page.picture(index)
        page.screenshot(f"{name}-{index}-unrun")


@pytest.mark.parametrize("name", NAMES)
def test_the_widgets_of_a_notebook_answer(notebook_page, name):
    """Moving a slider draws a new picture, and the saved file holds one too.

    Uses the gate's budgets, and runs only the cells that widgets need: papermill and nbval run them all.
    """
    notebook, widgets = committed(name)
    set_parameters(notebook, gate_parameters(notebook))
    needed = needed_by(notebook, widgets)
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "code" and index not in needed:
            cell.source = ""
    page = notebook_page.open(notebook, name)
    page.run_all()
    for index in widgets:
        before = page.picture(index)
        page.screenshot(f"{name}-{index}-before")
        page.move_slider(index)
        page.new_picture(index, before)
        page.screenshot(f"{name}-{index}-after")
    cells = page.saved().cells
    for index in widgets:
        assert any({VIEW, "image/png"} <= set(output.get("data", {})) for output in cells[index].outputs)
