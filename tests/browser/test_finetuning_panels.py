"""The panels of finetuning in a real Chromium, on bare pages: what is dragged, pressed or typed reaches Python."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from editor_page import EditorPage
from PIL import Image

from companion.photographs import centre, detail
from companion.widgets import Cropper, EnergyExplorer, TrainingScrubber
from companion.widgets.adapters import LiveSlider
from companion.widgets.energy import HALF, force

pytestmark = pytest.mark.browser

SIZES = ((600, 900), (1366, 768), (1920, 1080))
THEMES = ("light", "dark")
K = 4  # pixels of the first photograph for each on the screen


def smooth(wide: int, high: int, blue: int = 90) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, wide), np.linspace(0, 255, high))
    return Image.fromarray(np.stack([x, y, np.full_like(x, blue)], 2).astype(np.uint8))


def pixel(editor: EditorPage, selector: str, x: int, y: int) -> list[int]:
    """The colour of a pixel of a canvas."""
    code = "(canvas, [x, y]) => [...canvas.getContext('2d').getImageData(x, y, 1, 1).data].slice(0, 3)"
    return editor.page.locator(selector).evaluate(code, [x, y])


def no_listener_is_left(editor: EditorPage) -> bool:
    editor.page.evaluate("clean()")
    return editor.page.evaluate("Object.values(model.handlers).flat().length") == 0


def fits(editor: EditorPage) -> bool:
    return editor.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def all_in_view(editor: EditorPage, beside: str) -> None:
    """All of it is seen without scrolling, and the tools stand beside the picture."""
    whole, tools = editor.page.locator("#editor").bounding_box(), editor.page.locator(beside).first.bounding_box()
    stage = editor.stage.bounding_box()
    assert whole["y"] + whole["height"] < 640, "JupyterLab's bars and the prompt take the rest"
    assert tools["x"] > stage["x"] + stage["width"] and tools["y"] < stage["y"] + stage["height"]


# ---- Cropping --------------------------------------------------------------------------------------------------------


def photographs() -> dict[str, Image.Image]:
    return {
        "duck.jpg": smooth(460 * K, 345 * K),
        "long.jpg": smooth(700, 300, 10),
        "tall.jpg": smooth(300, 700, 200),
        "small.png": smooth(200, 200, 250),
    }


def boxes(editor: EditorPage) -> dict:
    editor.sent()
    return editor.widget.boxes


def answered(editor: EditorPage) -> None:
    """Python has answered what the page has sent."""
    editor.sent()
    editor.receive("picture", "shown", "made", "made_of")
    editor.page.wait_for_function("!document.querySelector('.crop-stage').hasAttribute('aria-busy')")


class TestCropper:
    @pytest.fixture
    def editor(self, opened) -> EditorPage:
        editor = opened(Cropper(photographs(), 512), width=1000, height=700)
        editor.page.wait_for_function("document.querySelector('.crop-photo').naturalWidth === 800")
        return editor

    def test_the_square_is_dragged_in_pixels_of_the_original(self, editor):
        assert boxes(editor)["duck.jpg"] == centre(photographs()["duck.jpg"]) == (230, 0, 1380)
        editor.widget.boxes = {"duck.jpg": (400, 200, 800)}
        editor.receive("squares", "home")
        editor.drag((200, 150), (230, 140))
        assert np.allclose(boxes(editor)["duck.jpg"], (400 + 30 * K, 200 - 10 * K, 800), atol=K)
        editor.drag((200, 150), (900, 900))  # as far as the photograph goes
        assert boxes(editor)["duck.jpg"] == (460 * K - 800, 345 * K - 800, 800)

    def test_a_corner_resizes_and_the_other_stays(self, editor):
        editor.widget.boxes = {"duck.jpg": (400, 200, 800)}
        editor.receive("squares", "home")
        editor.drag((300, 250), (250, 200))
        left, top, side = boxes(editor)["duck.jpg"]
        assert (left, top) == (400, 200) and abs(side - 600) <= K
        editor.drag((100, 50), (80, 60))  # the first corner, of which the larger side counts
        left, top, side = boxes(editor)["duck.jpg"]
        assert abs(left - 320) <= K and abs(side - 680) <= 2 * K and abs(left + side - 1000) <= K
        assert abs(top + side - 800) <= K
        editor.drag((250, 200), (0, 0))
        assert boxes(editor)["duck.jpg"][2] == editor.widget.least == 128, "a smaller one would be refused"
        editor.drag((80 + 32, 30 + 32), (900, 900))
        left, top, side = boxes(editor)["duck.jpg"]
        assert top + side == 345 * K, "it grows as far as the photograph goes"

    def test_outside_of_the_square_it_comes_to_the_pointer(self, editor):
        editor.widget.boxes = {"duck.jpg": (0, 0, 400)}
        editor.receive("squares", "home")
        editor.drag((300, 200), (310, 200))
        assert np.allclose(boxes(editor)["duck.jpg"], (310 * K - 200, 200 * K - 200, 400), atol=K)

    def test_a_finger_drags(self, editor):
        editor.widget.boxes = {"duck.jpg": (400, 200, 800)}
        editor.receive("squares", "home")
        editor.touch((200, 150), (210, 160), (220, 170))
        assert np.allclose(boxes(editor)["duck.jpg"], (480, 280, 800), atol=2 * K)

    def test_keys(self, editor):
        editor.widget.boxes = {"duck.jpg": (400, 200, 800)}
        editor.receive("squares", "home")
        editor.focus(".crop-square")
        editor.page.evaluate("window.keys = []")
        keyboard, far = editor.page.keyboard, round(1840 / 128)
        for key in ("ArrowRight", "ArrowRight", "ArrowUp"):
            keyboard.press(key)
        assert boxes(editor)["duck.jpg"] == (400 + 2 * far, 200 - far, 800)
        keyboard.press("Shift+ArrowDown")
        assert boxes(editor)["duck.jpg"] == (400 + 2 * far, 200 - far + 115, 800)
        for key in ("+", "-", "-"):
            keyboard.press(key)
        assert boxes(editor)["duck.jpg"] == (400 + 3 * far, 200 + 115, 800 - 2 * far)
        # A key that is held is one change.
        before = boxes(editor)["duck.jpg"]
        for _ in range(4):
            keyboard.down("ArrowLeft")
        keyboard.up("ArrowLeft")
        assert boxes(editor)["duck.jpg"][0] == before[0] - 4 * far
        keyboard.press("Control+z")
        assert boxes(editor)["duck.jpg"] == before
        assert "800 × 800" not in editor.page.locator(".crop-square").get_attribute("aria-label")
        assert editor.page.locator(".editor-spoken").inner_text()
        # The smallest square stays where it is.
        editor.widget.boxes = {"duck.jpg": (400, 200, 130)}
        editor.receive("squares", "home")
        for _ in range(3):
            keyboard.press("-")
            assert boxes(editor)["duck.jpg"] == (401, 201, 128)
        # The page does not move away from the photograph.
        editor.page.set_viewport_size({"width": 600, "height": 420})
        keyboard.press("PageDown")
        assert editor.sent()[-1]["current"] == 1 and editor.page.evaluate("window.keys") == []
        assert editor.page.evaluate("scrollY") == 0

    def test_one_photograph_after_another(self, editor):
        said = editor.page.locator(".editor-said").first
        assert said.inner_text().startswith("1 of 4: duck.jpg. 1380 × 1380 of 1840 × 1380, at (230, 0); shrunk to 512")
        editor.press("Next")
        assert editor.page.locator(".crop-stage").get_attribute("aria-busy") == "true"
        answered(editor)
        assert "long.jpg" in said.inner_text() and "enlarged 1.7 times" in said.inner_text()
        assert editor.page.locator(".crop-photo").evaluate("image => image.naturalWidth") == 700
        box = editor.stage.bounding_box()
        assert abs(box["width"] / box["height"] - 7 / 3) < 0.02
        editor.press("Next")
        answered(editor)
        box = editor.stage.bounding_box()
        assert abs(box["width"] / box["height"] - 3 / 7) < 0.02
        editor.page.get_by_role("button", name="small.png, 4 of 4").click()
        assert editor.page.locator(".crop-next").get_attribute("aria-disabled") == "true"
        answered(editor)
        assert "and so blurred" in said.inner_text() and editor.widget.current == 3

    def test_a_photograph_that_comes_too_late_is_not_shown(self, editor):
        editor.press("Next")
        editor.sent()
        editor.press("Next")
        editor.receive("picture", "shown")  # of the second, while the third is wanted
        editor.page.wait_for_timeout(100)
        assert not editor.page.locator(".crop-photo").get_attribute("src")
        editor.page.evaluate("model.sent.pop()")
        editor._taken -= 1
        answered(editor)
        assert editor.page.locator(".crop-photo").evaluate("image => image.naturalWidth") == 300

    def test_the_preview_is_what_the_model_will_see(self, editor):
        def shown() -> np.ndarray:
            return np.array([pixel(editor, ".crop-preview", x, y) for x, y in ((4, 4), (500, 4), (4, 500))])

        def expected(left: int, top: int, side: int) -> np.ndarray:
            at = [(left + side * x / 512, top + side * y / 512) for x, y in ((4, 4), (500, 4), (4, 500))]
            return np.array([(255 * x / 1840, 255 * y / 1380, 90) for x, y in at])

        assert editor.page.locator(".crop-preview").evaluate("c => [c.width, c.height]") == [512, 512]
        assert np.abs(shown() - expected(230, 0, 1380)).max() < 4
        editor.drag((200, 150), (230, 150))  # the browser's own, until Python's has come
        assert np.abs(shown() - expected(*boxes(editor)["duck.jpg"])).max() < 6
        answered(editor)  # with what Python has made of it
        editor.page.wait_for_timeout(100)
        assert np.abs(shown() - expected(*boxes(editor)["duck.jpg"])).max() < 4

    def test_rules_leaving_out_undo_and_reset(self, opened):
        busy = photographs()["duck.jpg"]  # at its right end
        noise = np.random.default_rng(0).integers(0, 255, (40, 12, 3), np.uint8)
        busy.paste(Image.fromarray(noise).resize((400, 1380)), (1400, 0))
        editor = opened(Cropper(photographs() | {"duck.jpg": busy}, 512), width=1000, height=700)
        first = boxes(editor)
        editor.drag((200, 150), (230, 150))
        editor.press("Detail")
        assert boxes(editor)["duck.jpg"] == detail(busy) != first["duck.jpg"]
        assert editor.page.locator(".crop-detail").get_attribute("aria-pressed") == "true"
        editor.press("Centre")
        assert boxes(editor) == first
        editor.press("Undo")
        editor.press("Undo")
        assert boxes(editor)["duck.jpg"][0] > first["duck.jpg"][0]
        editor.press("Redo")
        assert boxes(editor)["duck.jpg"] == detail(busy) != first["duck.jpg"]
        editor.page.get_by_label("leave it out").check()
        assert "duck.jpg" not in boxes(editor) and editor.widget.left_out == ["duck.jpg"]
        assert "left out" in editor.page.locator(".crop-thumbnail").first.get_attribute("aria-label")
        editor.press("Next")
        answered(editor)
        assert not editor.page.get_by_label("leave it out").is_checked()
        editor.press("Undo")  # which goes to the photograph that it changes
        assert boxes(editor).keys() == first.keys() and editor.widget.current == 0
        editor.press("Reset all")
        assert boxes(editor) == first
        # A square and what is left out, both at once, and back.
        editor.drag((200, 150), (230, 150))
        editor.page.get_by_label("leave it out").check()
        editor.press("Reset all")
        assert boxes(editor) == first
        editor.press("Undo")
        assert "duck.jpg" not in boxes(editor) and editor.widget.squares[0][0] > first["duck.jpg"][0]

    def test_it_leaves_nothing_behind(self, editor):
        assert no_listener_is_left(editor)

    @pytest.mark.parametrize("theme", THEMES)
    def test_it_fits_and_can_be_read(self, opened, theme):
        for width, height in SIZES:
            more = {f"{i}.png": smooth(400 + 20 * i, 300, 20 * i) for i in range(8)}
            # JupyterLab's bars take about 400 pixels of the width.
            crop = Cropper(photographs() | more, 128, boxes={"duck.jpg": (500, 300, 700)}, leave_out=["2.png"])
            editor = opened(crop, theme, max(600, width - 400), height)
            editor.page.wait_for_function("document.querySelector('.crop-photo').naturalWidth === 800")
            editor.page.wait_for_timeout(100)
            editor.focus(".crop-square")
            editor.screenshot(f"crop-{theme}-{width}")
            assert fits(editor)
            box, preview = editor.stage.bounding_box(), editor.page.locator(".crop-preview").bounding_box()
            assert abs(box["width"] / box["height"] - 4 / 3) < 0.02 and abs(preview["width"] - preview["height"]) < 1
            if width > 600:
                all_in_view(editor, ".crop-side")


# ---- Over a training -------------------------------------------------------------------------------------------------

COLOURS = ["red", "green", "blue", "yellow", "black"]


class TestTrainingScrubber:
    def make(self, n: int = 5, **options) -> TrainingScrubber:
        pictures = {100 * i: [Image.new("RGB", (128, 128), COLOURS[i])] * 4 for i in range(n)}
        loss = {10 * i: 0.5 / (1 + i) for i in range(10 * n - 9)}
        return TrainingScrubber(pictures, {"DINO": [0.1 * i for i in range(n)], "loss": loss}, **options)

    @pytest.fixture
    def editor(self, opened) -> EditorPage:
        editor = opened(self.make(), width=1000, height=700)
        editor.page.wait_for_timeout(100)
        return editor

    def colour(self, editor: EditorPage) -> list[int]:
        return [round(v, -1) for v in pixel(editor, ".editor-stage canvas", 20, 20)]

    def test_keys_show_another_step_at_once(self, editor):
        assert self.colour(editor) == [0, 0, 0] and editor.page.locator("text=after 400 steps").count() == 1
        editor.focus(".training-slider")
        editor.page.keyboard.press("Home")
        assert self.colour(editor) == [250, 0, 0]
        editor.page.keyboard.press("ArrowRight")
        editor.page.keyboard.press("ArrowRight")
        assert self.colour(editor) == [0, 0, 250]
        editor.sent()
        assert editor.widget.value == 2 and editor.widget.step == 200
        text = editor.page.locator(".training-slider").get_attribute("aria-valuetext")
        assert text == "after 200 steps, DINO 0.2, loss 0.0238"
        assert editor.page.locator(".training-value").all_inner_texts() == ["0.2", "0.0238"]
        assert editor.page.evaluate("window.keys") == ["Tab"] * len(editor.page.evaluate("window.keys"))

    def test_playing(self, editor):
        editor.press("Play")
        assert self.colour(editor) == [250, 0, 0], "at the end it begins anew"
        editor.page.wait_for_function("model.get('value') === 2")
        editor.press("Pause")
        editor.page.wait_for_timeout(600)
        assert self.colour(editor) == [0, 0, 250]
        editor.press("Play")
        editor.page.wait_for_function("model.get('value') === 4")
        editor.page.get_by_role("button", name="Play").wait_for()

    def test_the_start_is_shown_while_its_button_is_held(self, editor):
        button = editor.page.get_by_role("button", name="Hold to see the start")
        button.hover()
        editor.page.mouse.down()
        assert self.colour(editor) == [250, 0, 0]
        editor.page.mouse.up()
        assert self.colour(editor) == [0, 0, 0]
        editor.focus(".training-start")
        editor.page.keyboard.down("Space")
        assert self.colour(editor) == [250, 0, 0]
        editor.page.keyboard.up("Space")
        assert self.colour(editor) == [0, 0, 0]
        assert editor.sent() == [], "what is shown for a moment is not another step"

    def test_a_click_on_a_curve_goes_there(self, editor):
        chart = editor.page.locator(".training-chart").nth(1)
        box = chart.bounding_box()
        # The axis goes from 46 to 332 of 340 units; 260 of 400 steps is nearest to 300.
        editor.page.mouse.click(box["x"] + box["width"] * (46 + 286 * 260 / 400) / 340, box["y"] + 20)
        editor.sent()
        assert editor.widget.step == 300
        x = float(chart.locator(".training-now").get_attribute("x1"))
        assert abs(x - (46 + 286 * 300 / 400)) < 0.1

    def test_python_shows_a_step_too(self, editor):
        editor.widget.step = 100
        editor.receive("value")
        assert self.colour(editor) == [0, 130, 0] and editor.page.locator(".training-slider").input_value() == "1"

    def test_one_step_and_no_curves(self, opened):
        editor = opened(TrainingScrubber({0: Image.new("RGB", (128, 128), "red")}))
        editor.page.wait_for_timeout(100)
        assert editor.page.locator(".training-slider").is_disabled() and self.colour(editor) == [250, 0, 0]

    def test_it_leaves_nothing_behind(self, editor):
        editor.press("Play")
        assert no_listener_is_left(editor)
        value = editor.page.evaluate("model.get('value')")
        editor.page.wait_for_timeout(600)
        assert editor.page.evaluate("model.get('value')") == value, "it plays no longer"

    @pytest.mark.parametrize("theme", THEMES)
    def test_it_fits_and_can_be_read(self, opened, theme):
        prompts = ["a photo of sks duck on the moon", "sks duck on grass by day", "two sks ducks", "a red ball"]
        for width, height in SIZES:
            editor = opened(self.make(names=prompts), theme, max(600, width - 400), height)
            editor.page.wait_for_timeout(150)
            editor.focus(".training-slider")
            editor.page.keyboard.press("ArrowLeft")
            editor.screenshot(f"training-{theme}-{width}")
            assert fits(editor)
            box = editor.stage.bounding_box()
            assert abs(box["width"] / box["height"] - editor.widget.width / editor.widget.height) < 0.02
            if width > 600:
                all_in_view(editor, ".training-side")


# ---- An adapter's strength -------------------------------------------------------------------------------------------


def test_a_slider_says_whether_it_is_on_its_way(opened):
    slider = LiveSlider(
        value=1.0, min=-1.0, max=2.0, step=0.05, label="t", marks=[["2", 2.0], ["-1", -1.0], ["0, pretrained", 0.0]]
    )
    editor = opened(slider)
    handle = editor.page.locator("input").bounding_box()
    x, y, mouse = handle["x"] + handle["width"] * 2 / 3, handle["y"] + handle["height"] / 2, editor.page.mouse
    mouse.move(x, y)
    mouse.down()
    mouse.move(x - 40, y, steps=4)
    editor.page.wait_for_timeout(150)
    assert all(state.get("held", True) for state in editor.sent()) and slider.held and slider.value < 1
    # What comes in one go is sent once.
    editor.page.locator("input").evaluate(
        """input => [0.9, 0.8, 0.7].forEach(value => {
            input.value = value;
            input.dispatchEvent(new Event('input'));
        })"""
    )
    editor.page.wait_for_timeout(150)
    assert [state["value"] for state in editor.sent()] == [0.7]
    mouse.move(x - 60, y)
    mouse.up()
    assert editor.sent()[-1]["held"] is False and not slider.held and -1 <= slider.value < 0.9
    # Let go where it was taken: nothing has changed, but it is not on its way any more.
    value, x = slider.value, x - 60
    mouse.move(x, y)
    mouse.down()
    for to in (x + 30, x):
        mouse.move(to, y, steps=4)
        editor.page.wait_for_timeout(150)
        editor.sent()
        assert slider.held
    mouse.up()
    editor.page.wait_for_timeout(150)
    editor.sent()
    assert not slider.held and slider.value == value
    assert editor.page.locator("output").inner_text() == f"{slider.value:.2f}"
    assert editor.page.locator("button").all_inner_texts() == ["2", "-1", "0, pretrained"]
    editor.press("0, pretrained")
    editor.sent()
    assert slider.value == 0 and not slider.held
    editor.focus("input")
    editor.page.keyboard.press("ArrowRight")
    editor.sent()
    assert np.isclose(slider.value, 0.05) and not slider.held
    slider.value = 1.5
    editor.receive("value")
    assert editor.page.locator("input").get_attribute("aria-valuetext") == "1.50" and no_listener_is_left(editor)


# ---- Energy ----------------------------------------------------------------------------------------------------------


def number(editor: EditorPage) -> float:
    return float(editor.page.locator(".energy-number").inner_text())


def said(editor: EditorPage) -> str:
    return editor.page.locator(".editor-said").inner_text()


def finished(editor: EditorPage) -> None:
    """What moves has come to rest, and Python has it."""
    editor.page.locator(".editor-stage[aria-busy='false']").wait_for()
    editor.sent()


def on_screen(x: float, y: float) -> tuple[float, float]:
    """Where a point of the plane lies, from the corner of the drawing and in radii, as `EditorPage.at` takes it."""
    return x + HALF, HALF - y


class TestEnergyExplorer:
    def test_energy_and_force_are_those_of_python(self, opened):
        editor = opened(EnergyExplorer())
        for n, d, s, half in itertools.product((2, 3, 9), (2, 3), (0, 1, 2), (False, True)):
            panel = EnergyExplorer(n=n, dimension=d, s=s, half_space=half, seed=n)
            found = editor.page.evaluate(
                "([points, s, half]) => [module.energy(points, s, half), module.forces(points, s, half)]",
                [panel.points, s, half],
            )
            assert np.isclose(found[0], panel.energy, rtol=1e-12)
            assert np.allclose(found[1], force(panel.array, s, half), rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("dimension", [2, 3])
    def test_the_number_is_that_of_python_whatever_is_changed(self, opened, dimension):
        editor = opened(EnergyExplorer(n=7, dimension=dimension), width=1000, height=700)

        def agrees() -> bool:
            editor.sent()
            return bool(np.isclose(number(editor), editor.widget.energy, rtol=1e-6))

        assert agrees()
        for name in ("0", "2", "1", "Add", "Remove", "Undo"):
            editor.press(name)
            assert agrees(), name
        editor.page.get_by_label("half-space").check()
        assert agrees() and editor.widget.half_space
        editor.widget.array = np.random.default_rng(9).normal(size=(5, dimension))
        editor.receive("points", "home")
        assert agrees() and editor.page.locator(".energy-point").count() == 5

    def test_a_dragged_point_stays_on_the_circle(self, opened):
        panel = EnergyExplorer([[1, 0], [0, 1], [-1, 0]])
        editor = opened(panel)
        before = panel.energy
        editor.drag(on_screen(1, 0), on_screen(1, 0.7), on_screen(0.5, 1.2))
        editor.sent()
        assert np.allclose(np.linalg.norm(panel.array, axis=1), 1) and np.allclose(panel.array[1:], [[0, 1], [-1, 0]])
        assert np.allclose(panel.array[0], np.array([0.5, 1.2]) / 1.3, atol=0.03)
        assert panel.energy > before and said(editor).startswith("point 1 moved, ") and "+" in said(editor)
        assert np.isclose(number(editor), panel.energy, rtol=1e-6)

    def test_a_finger_drags(self, opened):
        panel = EnergyExplorer([[1, 0], [0, 1], [-1, 0]])
        editor = opened(panel)
        editor.touch(on_screen(1.1, 0.1), on_screen(1, -0.5), on_screen(0.1, -0.9))
        editor.sent()
        assert np.allclose(panel.array[0], [0, -1], atol=0.1)

    def test_spreading_reaches_the_least_energy(self, opened):
        for s, half in ((1, False), (0, True)):
            panel = EnergyExplorer(n=6, s=s, half_space=half)
            editor = opened(panel)
            start = panel.energy
            editor.press("Spread")
            finished(editor)
            angles = np.sort(np.arctan2(panel.array[:, 1], panel.array[:, 0]) % (np.pi if half else 2 * np.pi))
            gaps = np.diff([*angles, angles[0] + (np.pi if half else 2 * np.pi)])
            assert np.allclose(gaps, (np.pi if half else 2 * np.pi) / 6, atol=1e-3)
            least = editor.page.locator(".energy-evenly").inner_text().rpartition(" ")[2]
            assert np.isclose(panel.energy, float(least), rtol=1e-6) and panel.energy < start
            assert "steps of gradient descent" in said(editor)
            editor.press("Undo")
            editor.sent()
            assert np.isclose(panel.energy, start)

    def test_points_in_one_place_part(self, opened):
        panel = EnergyExplorer([[1, 0], [1, 0], [0, 1]])
        editor = opened(panel)
        assert editor.page.locator(".energy-number").inner_text() == "∞" and panel.energy == np.inf
        editor.press("Spread")
        finished(editor)
        assert np.isclose(panel.energy, 6 / np.sqrt(3), rtol=1e-6), "a triangle"

    def test_on_a_sphere_four_points_become_a_tetrahedron(self, opened):
        panel = EnergyExplorer(n=4, dimension=3)
        editor = opened(panel)
        editor.press("Spread")
        finished(editor)
        cosines = (panel.array @ panel.array.T)[~np.eye(4, dtype=bool)]
        assert np.allclose(cosines, -1 / 3, atol=1e-3)

    @pytest.mark.parametrize("dimension", [2, 3])
    def test_a_common_rotation_changes_nothing_and_one_point_does(self, opened, dimension):
        panel = EnergyExplorer(n=5, dimension=dimension)
        editor = opened(panel)
        before, start = panel.array, panel.energy
        editor.press("Turn all")
        finished(editor)
        assert np.abs(panel.array - before).max() > 0.3 and np.isclose(panel.energy, start, rtol=1e-9)
        assert np.allclose(panel.array @ panel.array.T, before @ before.T)
        assert said(editor).endswith("unchanged")
        turned = panel.array
        editor.press("Move one")
        finished(editor)
        assert np.allclose(panel.array[1:], turned[1:]) and np.isclose(
            panel.array[0] @ turned[0], np.cos(np.pi * 25 / 180)
        )
        assert not np.isclose(panel.energy, start, rtol=1e-3) and "unchanged" not in said(editor)

    def test_without_motion_all_is_there_at_once(self, opened):
        panel = EnergyExplorer(n=6)
        editor = opened(panel, reduced_motion="reduce")
        editor.press("Spread")
        editor.sent()
        assert np.isclose(
            panel.energy,
            EnergyExplorer(np.stack([np.cos(np.arange(6) * np.pi / 3), np.sin(np.arange(6) * np.pi / 3)], 1)).energy,
            rtol=1e-6,
        )

    def test_spreading_can_be_stopped(self, opened):
        panel = EnergyExplorer(n=12, dimension=3)
        editor = opened(panel)
        start = panel.energy
        editor.press("Spread")
        editor.page.get_by_role("button", name="Stop").click(timeout=5000)
        editor.sent()
        middle = panel.energy
        editor.page.wait_for_timeout(300)
        assert editor.sent() == [] and middle < start and np.isclose(number(editor), middle, rtol=1e-6)

    def test_what_python_sets_ends_the_spreading(self, opened):
        panel = EnergyExplorer(n=12, dimension=3)
        editor = opened(panel)
        editor.press("Spread")
        panel.array = [[1, 0], [0, 1]]
        editor.receive("points", "home")
        finished(editor)
        editor.page.wait_for_timeout(300)
        assert editor.sent() == [] and panel.array.tolist() == [[1, 0], [0, 1]]
        assert editor.page.get_by_role("button", name="Spread").count() == 1

    @pytest.mark.parametrize(
        "points",
        [
            [[1, 0], [1, 0], [0, 1]],  # of infinite energy
            [[np.cos(0.1), np.sin(0.1)], [np.cos(0.1 + np.pi / 3), np.sin(0.1 + np.pi / 3)]],  # 1 apart: log(1) is 0
        ],
    )
    def test_a_rotation_changes_no_energy_that_is_infinite_or_zero(self, opened, points):
        editor = opened(EnergyExplorer(points, s=0), reduced_motion="reduce")
        editor.press("Turn all")
        assert said(editor).endswith("unchanged")

    def test_keys_move_a_point(self, opened):
        panel = EnergyExplorer([[1, 0], [0, 1], [-1, 0]])
        editor = opened(panel)
        editor.focus('[data-point="0"]')
        for key in ("ArrowUp", "ArrowLeft", "Shift+ArrowLeft"):
            editor.page.keyboard.press(key)
        editor.sent()
        angle = np.deg2rad(14)
        assert np.allclose(panel.array[0], [np.cos(angle), np.sin(angle)])
        text = editor.page.locator('[data-point="0"]').get_attribute("aria-valuetext")
        assert text.startswith("at 14 degrees; energy ") and said(editor) == "point 1 at 14 degrees"
        low, value, high = (
            int(editor.page.locator('[data-point="0"]').get_attribute(f"aria-value{key}"))
            for key in ("min", "now", "max")
        )
        assert low <= value == 14 <= high
        editor.page.keyboard.press("Control+z")
        editor.page.keyboard.press("Control+z")  # the point still has the focus, or JupyterLab would get this key
        editor.sent()
        assert np.allclose(panel.array[0], [np.cos(np.deg2rad(2)), np.sin(np.deg2rad(2))])
        assert editor.page.locator('[data-point="0"]:focus').count() == 1
        assert set(editor.page.evaluate("window.keys")) <= {"Tab"}

    def test_a_sphere_is_turned_and_its_points_stay(self, opened):
        panel = EnergyExplorer([[0, 0, 1], [1, 0, 0], [0, 1, 0]])
        editor = opened(panel)
        where = '[data-point="0"]'
        first = editor.page.locator(where).get_attribute("transform")
        editor.drag(on_screen(-0.7, -0.9), on_screen(-0.4, -0.7))
        assert editor.page.locator(where).get_attribute("transform") != first
        assert editor.sent() == [] and np.array_equal(panel.array, [[0, 0, 1], [1, 0, 0], [0, 1, 0]])
        editor.page.keyboard.press("ArrowLeft")  # the sphere itself has the focus
        assert editor.sent() == []
        # A point in front follows the pointer, and stays on the sphere.
        x, y = (float(v) for v in editor.page.locator(where).get_attribute("transform")[10:-1].split())
        editor.drag(on_screen(x, -y), on_screen(0.1, 0.1))
        editor.sent()
        x, y = (float(v) for v in editor.page.locator(where).get_attribute("transform")[10:-1].split())
        assert np.allclose((x, -y), (0.1, 0.1), atol=0.03) and np.allclose(np.linalg.norm(panel.array, axis=1), 1)
        editor.focus(where)
        editor.page.keyboard.press("ArrowRight")
        moved = [float(v) for v in editor.page.locator(where).get_attribute("transform")[10:-1].split()]
        assert moved[0] > x + 0.02 and abs(moved[1] - y) < 0.01

    def test_circle_and_sphere_keep_their_points(self, opened):
        panel = EnergyExplorer(n=4)
        editor = opened(panel)
        before = panel.array
        editor.press("Sphere")
        editor.sent()
        assert panel.array.shape == (4, 3) and np.isclose(number(editor), panel.energy, rtol=1e-6)
        assert editor.page.locator(".energy-sphere").get_attribute("aria-pressed") == "true"
        editor.press("Circle")
        editor.sent()
        assert np.array_equal(panel.array, before)
        editor.press("Add")
        editor.press("Reset")
        editor.sent()
        assert np.array_equal(panel.array, before)

    def test_it_leaves_nothing_behind(self, opened):
        editor = opened(EnergyExplorer())
        editor.press("Spread")
        assert no_listener_is_left(editor)

    @pytest.mark.parametrize("theme", THEMES)
    @pytest.mark.parametrize("dimension", [2, 3])
    def test_it_fits_and_can_be_read(self, opened, theme, dimension):
        for width, height in SIZES:
            panel = EnergyExplorer(n=7, dimension=dimension, half_space=dimension == 2, seed=3)
            editor = opened(panel, theme, max(600, width - 400), height)
            editor.focus('[data-point="1"]')
            editor.page.keyboard.press("ArrowUp")
            editor.screenshot(f"energy-{dimension}-{theme}-{width}")
            box = editor.stage.bounding_box()
            assert fits(editor) and abs(box["width"] - box["height"]) < 1
            if width > 600:
                all_in_view(editor, ".energy-side")
