"""The panels for ControlNets in JupyterLab: a joint that is moved reaches Python, and all is seen at once."""

from __future__ import annotations

from math import cos, pi, sin

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from companion.widgets.painter import SIDE

pytestmark = [pytest.mark.browser, pytest.mark.slow]

# A whole pipeline is not needed to see that a pose arrives: what is drawn is the control picture itself.
SETUP = """
from types import SimpleNamespace
import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler
from companion import diffusion
from companion.widgets import controlnet
diffusion.picture_size = lambda pipe: 128
def follower(pipe, net):
    def follow(prompt, seed, control, scale, **settings):
        picture = torch.from_numpy(np.atleast_3d(control).copy()).permute(2, 0, 1).expand(3, -1, -1)
        return picture / 127.5 - 1 if scale else torch.zeros(3, 128, 128)
    return follow
controlnet.follower = follower
pipe = SimpleNamespace(scheduler=DPMSolverMultistepScheduler())
""".strip()
POSE = 'panel = controlnet.PoseToPicture(pipe, None, "a steel robot on grass by day")\npanel'
SCRIBBLE = 'pad = controlnet.ScribbleToPicture(pipe, None, "a red ball on sand at sunset", np.eye(128))\npad'
REAL = """
import io
import numpy as np
import companion
from PIL import Image
from companion import diffusion, models
from companion.conditions import CONDITIONS
from companion.widgets import controlnet
pipe = companion.load("tabletop", device="cpu")
pipe.scheduler = diffusion.steady(pipe.scheduler)
nets = [models.load_controlnet(name, "tabletop", device="cpu") for name in ("openpose", "scribble")]
def share(widget, name, asked):
    drawn = np.asarray(Image.open(io.BytesIO(widget.picture.value)).convert("RGB").resize((128, 128)))
    condition = CONDITIONS[name]
    return round(float(condition.compare(asked[None], condition.annotate(drawn[None]))[0]), 2)
""".strip()
FOLLOWS = (
    "if pad.picture.value: print(share(panel, 'openpose', panel.editor.latest), share(pad, 'scribble', pad.control()))"
)
REPORT = "print(*panel.editor.array[4].round().astype(int), panel.scale.value, len(panel.editor.moving))"


def opened(notebook_page, name: str, *sources: str):
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    cells = [new_markdown_cell(f"# {name}"), *map(new_code_cell, sources)]
    page = notebook_page.open(new_notebook(cells=cells, metadata=metadata), name)
    page.run_all()
    return page


@pytest.fixture
def page(notebook_page):
    return opened(notebook_page, "poses", SETUP, POSE, REPORT, SCRIBBLE)


def report(page, index: int = 3) -> list[str]:
    cell = page.page.locator(".jp-Notebook .jp-Cell").nth(index)
    cell.locator(".cm-content").click()
    page.command("notebook:run-cell")
    return page.output(index).inner_text().split()


def drag(page, *places: tuple[float, float]) -> None:
    """Press the mouse at the first place, go through the others, and let it go at the last one."""
    mouse = page.page.mouse
    mouse.move(*places[0])
    mouse.down()
    for place in places[1:]:
        mouse.move(*place, steps=5)
    mouse.up()


def test_a_joint_is_dragged_and_moved_by_keys(page):
    assert report(page) == ["27", "85", "1", "1.0", "0"]
    hand = page.output(2).locator('[data-joint="left_hand"]')
    hand.scroll_into_view_if_needed()
    before, box = page.picture(2), hand.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    drag(page, (x, y), (x + 22.5, y - 22.5))
    after = page.new_picture(2, before)
    cells = len(page.json()["cells"])
    # x would cut the cell, z undo that, and the arrows move to another cell.
    for key in ("x", "z", "ArrowDown", "ArrowDown"):
        page.page.keyboard.press(key)
    page.new_picture(2, after)
    assert page.page.evaluate("document.activeElement.dataset.joint") == "left_hand"
    assert len(page.json()["cells"]) == cells
    # Ten pixels of the picture, as far as the forearm that keeps its length allows, and no joint is on its way.
    x, y, seen, scale, moving = report(page)
    assert (seen, scale, moving) == ("1", "1.0", "0") and int(x) > 27 and 70 < int(y) < 90 and (x, y) != ("27", "85")
    page.page.keyboard.press("Escape")


def test_all_of_a_panel_is_seen_at_once(page):
    """Without scrolling in a window of 1366 x 768, and not distorted in narrow ones."""
    for theme, width, _ in page.at_every_size():
        for index in (2, 4):
            output = page.output(index)
            output.scroll_into_view_if_needed()
            output.evaluate("element => element.scrollIntoView({ block: 'start' })")
            page.page.wait_for_timeout(200)
            page.screenshot(f"panel-{index}-{theme}-{width}")
            boxes = [output.locator(part).first.bounding_box() for part in (".editor-stage", "img")]
            whole = output.bounding_box()
            for box in boxes:
                assert abs(box["width"] - box["height"]) < 1 and box["width"] == min(SIDE, boxes[0]["width"])
                assert box["x"] + box["width"] <= whole["x"] + whole["width"]
            if width < 1366:
                continue
            controls = [*output.locator(".widget-hslider, .widget-text").all(), output.locator(".editor-tools")]
            boxes += [control.bounding_box() for control in controls]
            assert max(box["y"] + box["height"] for box in boxes) - min(box["y"] for box in boxes) < 600
            assert max(box["x"] + box["width"] for box in boxes) < width
            # Beside the picture, not below it.
            assert all(box["x"] > boxes[1]["x"] + 280 for box in boxes[2:-1])


def test_pictures_follow_a_dragged_joint_and_a_drawn_circle(notebook_page):
    """With the course's own networks and the steps of notebook 04: the judge finds the joint in its new place, and
    lines where they were drawn.
    """
    pose = POSE.replace("pipe, None", "pipe, nets[0]").replace('day")', 'day", steps=10)')
    empty = SCRIBBLE.replace("pipe, None", "pipe, nets[1]").replace(
        "np.eye(128)", "np.zeros((128, 128), np.uint8), steps=10"
    )
    page = opened(notebook_page, "follow", REAL, pose, empty, FOLLOWS)
    hand = page.output(2).locator('[data-joint="left_hand"]')
    hand.scroll_into_view_if_needed()
    before, box = page.picture(2), hand.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    drag(page, (x, y), (x + 10, y - 40))
    page.new_picture(2, before)
    page.screenshot("follow-pose")
    assert page.output(2).get_by_role("button", name="Undo").get_attribute("aria-disabled") == "false"

    stage = page.output(3).locator(".editor-stage")
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    middle, radius = (box["x"] + box["width"] * 0.55, box["y"] + box["height"] * 0.55), box["width"] * 0.22
    circle = [(middle[0] + radius * cos(i / 4 * pi), middle[1] + radius * sin(i / 4 * pi)) for i in range(9)]
    before = page.picture(3)  # of one colour: nothing is asked for yet
    drag(page, *circle)
    page.new_picture(3, before)
    page.screenshot("follow-scribble")
    joints, lines = map(float, report(page, 4))
    assert joints > 0.9 and lines > 0.6
