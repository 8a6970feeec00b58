"""The panels of finetuning in JupyterLab: photographs come when they are asked for, and all of each is in view."""

from __future__ import annotations

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

pytestmark = [pytest.mark.browser, pytest.mark.slow]

STRENGTH = """
import companion
import torch
from companion import oft_vs_lora, widgets
from companion.models import seeded
pipe = companion.load("tabletop", device="cpu")
for i, p in enumerate(oft_vs_lora.apply(pipe.unet)):
    p.data = torch.randn(p.shape, generator=seeded(i))
panel = widgets.AdapterStrength(pipe, "a red ball on grass by day", steps=3, preview=2)
panel
""".strip()
CROP = """
import numpy as np
from PIL import Image
ramp = np.linspace(0, 255, 1200).astype(np.uint8)
across = np.tile(ramp, (900, 1))
photo = Image.fromarray(np.stack([across, np.full_like(across, 90), across], 2))
crop = widgets.Cropper({"one.jpg": photo, "two.jpg": photo.rotate(90, expand=True)}, 128)
crop
""".strip()
REPORT = "print(round(panel.strength.value, 2), panel.strength.held, crop.current, crop.shown, *crop.boxes['two.jpg'])"


@pytest.fixture(scope="module")
def notebook():
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    cells = [new_markdown_cell("# Finetuning"), *map(new_code_cell, (STRENGTH, CROP, REPORT))]
    return new_notebook(cells=cells, metadata=metadata)


def report(page) -> list[str]:
    page.page.locator(".jp-Notebook .jp-Cell").nth(3).locator(".cm-content").click()
    page.command("notebook:run-cell")
    return page.output(3).inner_text().split()


def test_they_work_and_all_of_each_is_in_view(notebook_page, notebook):
    page = notebook_page.open(notebook, "finetuning")
    page.run_all()
    assert report(page) == ["1.0", "False", "0", "0", "0", "150", "900"]

    # The slider draws, and a click on a value too.
    before = page.picture(1)
    page.output(1).get_by_role("button", name="½", exact=True).click()
    half = page.new_picture(1, before)
    slider = page.output(1).locator(".live-slider input")
    slider.focus()
    slider.press("ArrowRight")
    page.new_picture(1, half)

    # Another photograph comes from the kernel, and so does what the model will see of it.
    crop = page.output(2)
    crop.get_by_role("button", name="Next").click()
    page.page.wait_for_function(
        "image => image.src && image.naturalWidth === 600", arg=crop.locator(".crop-photo").element_handle()
    )
    square = crop.locator(".crop-square")
    square.focus()
    for key in ("ArrowDown", "ArrowDown", "z", "x"):  # z would undo what the notebook's cells were, x cut one
        square.press(key)
    page.page.wait_for_timeout(300)
    assert report(page) == ["0.55", "False", "1", "1", "0", "168", "900"]
    assert len(page.json()["cells"]) == 4

    for theme, width, _ in page.at_every_size():
        for index, shown, tools in ((1, "img", ".live-slider"), (2, ".editor-stage", ".crop-side")):
            output = page.output(index)
            output.evaluate("element => element.scrollIntoView({ block: 'start' })")
            page.page.wait_for_timeout(200)
            page.screenshot(f"lab-{index}-{theme}-{width}")
            picture, beside = (output.locator(part).first.bounding_box() for part in (shown, tools))
            proportions = 456 / 496 if index == 1 else 3 / 4
            assert abs(picture["width"] / picture["height"] - proportions) < 0.01
            if width >= 1366:
                assert beside["x"] > picture["x"] + picture["width"] and output.bounding_box()["height"] < 640
