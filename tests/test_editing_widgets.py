"""The editor's panels without a browser: a mask painted by Python, a control moved, and what becomes of the picture."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
import traitlets
from PIL import Image

import companion
from companion import diffusion
from companion import img2img_inpainting as edit
from companion.figures import as_array, as_pil
from companion.widgets import Comparison, Inpainter, MaskPainter, Panel, StrengthSlider
from companion.widgets.base import LINE, VIEW
from companion.widgets.editing import SIDE, few_steps


@pytest.fixture(scope="module")
def pipe(tiny):
    return companion.load(tiny, device="cpu")


def scene() -> torch.Tensor:
    """A smooth (3, 32, 32) that 8 bits hold exactly."""
    ramp = torch.linspace(-1, 1, 32)
    x = torch.stack([ramp.expand(32, 32), ramp[:, None].expand(32, 32), torch.zeros(32, 32)])
    return ((x + 1) * 127.5).round() / 127.5 - 1


def square() -> np.ndarray:
    mask = np.zeros((32, 32), bool)
    mask[8:20, 12:28] = True
    return mask


def shown(panel: Panel) -> Image.Image:
    return Image.open(io.BytesIO(panel.picture.value))


class TestMaskPainter:
    def test_a_mask_goes_in_and_out(self):
        painter = MaskPainter.from_array(scene(), square())
        assert painter.array.dtype == bool and np.array_equal(painter.array, square())
        for form in (square().astype(np.uint8) * 255, square().astype(float), torch.tensor(square())[None, None]):
            painter.array = ~square()
            painter.array = form
            assert np.array_equal(painter.array, square())
        assert not MaskPainter(scene()).array.any()

    def test_what_the_browser_sends_is_taken(self):
        """It arrives as a memoryview of one byte a pixel."""
        painter, seen = MaskPainter(scene()), []
        painter.observe(lambda change: seen.append(painter.array.sum()), "mask")
        painter.set_trait("mask", memoryview((square().astype(np.uint8) * 255).tobytes()))
        assert seen == [square().sum()] and isinstance(painter.mask, bytes)

    def test_another_size_is_refused(self):
        painter = MaskPainter(scene())
        with pytest.raises(ValueError, match=r"a mask of shape \(16, 32\) for a picture of 32 x 32; make them equal"):
            painter.array = np.zeros((16, 32))
        with pytest.raises(traitlets.TraitError, match="a mask of 7 bytes for 32 x 32 pixels"):
            painter.mask = bytes(7)

    def test_a_picture_that_is_not_square(self):
        painter = MaskPainter(scene()[:, :16])
        assert (painter.width, painter.height) == (32, 16) and painter.array.shape == (16, 32)

    def test_it_leaves_a_picture_with_the_mask_on_it(self):
        painter = MaskPainter.from_array(scene(), square(), side=64)
        data = painter._repr_mimebundle_()
        assert data[VIEW]["model_id"] == painter.model_id and data["text/plain"] == "MaskPainter()"
        kept = np.asarray(Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("RGB")).astype(int)
        kept = kept[:64, :64]  # without the sentence below it
        plain = np.asarray(as_pil(scene(), 64)).astype(int)
        painted = np.asarray(Image.fromarray(square()).resize((64, 64), Image.Resampling.NEAREST))
        change = np.abs(kept - plain).max(2)
        assert np.median(change[painted]) > 30 and np.median(change[~painted]) < 12

    def test_the_script_is_part_of_the_package(self):
        painter = MaskPainter(scene())
        assert "pointerdown" in str(painter._esm) and "touch-action: none" in str(painter._css)


class TestInpainter:
    def make(self, pipe, **options) -> Inpainter:
        return Inpainter(pipe, scene(), "ab", steps=2, guidance=2.0, seed=1, **options)

    def test_its_controls_stand_beside_painter_and_picture(self, pipe):
        (row,) = self.make(pipe).children
        painter, drawn, controls = row.children
        assert isinstance(painter, MaskPainter) and len(drawn.children) == 2 and len(controls.children) == 4

    def test_it_draws_inside_the_mask_and_nowhere_else(self, pipe):
        panel = self.make(pipe, mask=square())
        result, source = as_array(panel.result).astype(int), as_array(scene()).astype(int)
        assert np.array_equal(result[~square()], source[~square()])
        assert (np.abs(result - source)[square()].max(-1) > 3).mean() > 0.8
        assert "largest change outside: 0" in panel.message.value

    def test_it_is_what_inpaint_draws(self, pipe):
        panel = self.make(pipe, mask=square())
        *_, last = edit.inpaint(pipe, scene(), square(), "ab", 1, steps=2, guidance_scale=2.0, cover="any")
        mask = edit.as_mask(square(), 32, 32)
        assert torch.equal(panel.result, edit.composite(scene()[None], diffusion.decode(pipe, last.latents), mask)[0])

    def test_a_stroke_draws_anew(self, pipe):
        panel = self.make(pipe)
        assert torch.equal(panel.result, scene()) and "Nothing is painted yet" in panel.message.value
        before = panel.picture.value
        panel.painter.array = square()
        assert panel.picture.value != before and not torch.equal(panel.result, scene())
        panel.painter.array = np.zeros((32, 32))
        assert torch.equal(panel.result, scene())

    def test_every_control_draws_anew(self, pipe):
        panel = self.make(pipe, mask=square())
        for control, value in (("seed", 5), ("strength", 0.5), ("prompt", "cd"), ("feather", 4)):
            before = panel.result
            getattr(panel, control).value = value
            assert not torch.equal(panel.result, before), control
            assert np.array_equal(as_array(panel.result)[~square()], as_array(scene())[~square()])

    def test_too_little_strength_is_told(self, pipe):
        panel = self.make(pipe, mask=square())
        panel.strength.value = 0.1
        assert "leaves none to take" in panel.message.value

    def test_its_static_picture_shows_mask_and_result(self, pipe):
        panel = self.make(pipe, mask=square())
        sheet = np.asarray(Image.open(io.BytesIO(panel.still())))
        assert np.array_equal(sheet[LINE:, :SIDE], np.asarray(panel.painter.preview()))
        assert np.array_equal(sheet[LINE:, -SIDE:], np.asarray(as_pil(panel.result, SIDE)))
        assert np.array_equal(np.asarray(shown(panel)), sheet[LINE:, -SIDE:])


class TestStrengthSlider:
    def test_it_is_img2img(self, pipe):
        panel = StrengthSlider(pipe, scene(), "ab", seed=3, strength=0.5, steps=4, guidance=2.0)
        *_, last = edit.img2img(pipe, scene(), "ab", 3, strength=0.5, steps=4, guidance_scale=2.0)
        assert torch.equal(panel.result, diffusion.decode(pipe, last.latents)[0])
        assert "2 of 4 steps are taken" in panel.message.value

    def test_every_control_draws_anew(self, pipe):
        panel = StrengthSlider(pipe, scene(), "ab", steps=4)
        for control, value in (("strength", 0.8), ("prompt", "cd"), ("seed", 9)):
            before = panel.picture.value
            getattr(panel, control).value = value
            assert panel.picture.value != before, control

    @pytest.mark.parametrize("strength", [0.3, 0.5, 0.65, 1.0])
    def test_on_its_way_it_draws_in_few_steps(self, pipe, strength):
        panel = StrengthSlider(pipe, scene(), "ab", seed=3, steps=20, guidance=2.0)
        panel.strength.set_trait("held", True)
        panel.strength.set_trait("value", strength)
        taken, steps = few_steps(strength, 20)
        settings = {"steps": steps, "guidance_scale": 2.0, "scheduler": diffusion.steady(pipe.scheduler)}
        *passed, last = edit.img2img(pipe, scene(), "ab", 3, strength=taken / steps, **settings)
        assert torch.equal(panel.result, diffusion.decode(pipe, last.latents)[0]) and len(passed) + 1 == taken
        assert f"{int(20 * strength)} of 20 steps are taken, {taken} in this preview" in panel.message.value
        panel.strength.set_trait("held", False)
        *_, last = edit.img2img(pipe, scene(), "ab", 3, strength=strength, steps=20, guidance_scale=2.0)
        assert torch.equal(panel.result, diffusion.decode(pipe, last.latents)[0])
        assert "preview" not in panel.message.value

    @pytest.mark.parametrize("steps", [4, 12, 20, 50])
    def test_a_preview_begins_near_the_strength(self, steps):
        found = {}
        for strength in np.arange(21) / 20:
            taken, whole = found[strength] = few_steps(strength, steps)
            if taken < (remaining := int(steps * strength)):
                assert abs(taken / whole - strength) <= 0.051 and int(whole * (taken / whole)) == taken
                assert 3 <= taken <= max(8, steps // 3)
            else:
                assert taken == remaining or remaining < 8
        if steps == 20:
            assert len({m / n for m, n in found.values()}) > 14, "most strengths are told apart"

    def test_without_strength_it_is_the_source(self, pipe):
        panel = StrengthSlider(pipe, scene(), "ab", steps=4)
        panel.strength.value = 0.0
        assert torch.equal(panel.result, scene()) and "0 of 4 steps" in panel.message.value


class TestComparison:
    def test_the_line_divides_the_two(self):
        red, blue = Image.new("RGB", (64, 32), "red"), Image.new("RGB", (64, 32), "blue")
        panel = Comparison(red, blue, ("red", "blue"), side=200)
        for value, line in ((50, 100), (10, 20), (100, 200), (0, 0)):
            panel.slider.value = value
            row = np.asarray(shown(panel).convert("RGB"))[50]
            assert (row[: max(0, line - 2)] == (255, 0, 0)).all() and (row[line + 2 :] == (0, 0, 255)).all()
        assert "red left of the line, blue right of it" in panel.message.value

    def test_pictures_of_other_proportions_are_refused(self):
        with pytest.raises(ValueError, match="the pictures have 64 x 32 and 32 x 32 pixels"):
            Comparison(Image.new("RGB", (64, 32)), Image.new("RGB", (32, 32)))


def test_no_random_state_is_left_behind(pipe):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    StrengthSlider(pipe, scene(), "ab", steps=2)
    Inpainter(pipe, scene(), "ab", square(), steps=2)
    assert torch.equal(torch.rand(3), expected)
