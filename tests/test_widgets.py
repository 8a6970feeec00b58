"""The Python side of the widgets, on a tiny pipeline with random weights: a control moves, and the picture changes."""

from __future__ import annotations

import base64
import io

import ipywidgets
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display
from IPython.utils.capture import capture_output
from PIL import Image

import companion
from companion import diffusion
from companion.tabletop.caption import parse
from companion.widgets import GuidanceSlider, Panel, Playground, Scrubber, TrainingScrubber
from companion.widgets.base import VIEW, sentence
from companion.widgets.playground import describe

PROMPT = "a red ball on grass by day"


@pytest.fixture(scope="module")
def pipe(tiny):
    return companion.load(tiny, device="cpu")


@pytest.fixture(scope="module")
def steps(pipe):
    return list(diffusion.sample(pipe, PROMPT, 1, steps=4, guidance_scale=3.0))


def picture(panel: Panel) -> Image.Image:
    return Image.open(io.BytesIO(panel.picture.value))


class TestPanel:
    def make(self) -> Panel:
        panel = Panel([ipywidgets.IntSlider(0, 0, 3)], 64, 48)
        panel.show(Image.new("RGB", (64, 48), "red"), "hello")
        return panel

    def test_it_leaves_a_picture_beside_the_live_view(self):
        panel = self.make()
        data = panel._repr_mimebundle_()
        data = data[0] if isinstance(data, tuple) else data
        kept = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
        assert kept.format == "PNG" and kept.size == (64, 48) and kept.convert("RGB").getpixel((5, 5)) == (255, 0, 0)
        assert data[VIEW]["model_id"] == panel.model_id
        assert data["text/plain"] == "Panel()"

    @pytest.mark.parametrize("make", [make, lambda self: TrainingScrubber({0: Image.new("RGB", (9, 9))})])
    def test_the_notebook_is_given_both(self, make):
        """As it is displayed: with ipywidgets 7 that passes the bundle by."""
        InteractiveShell.instance()
        try:
            with capture_output() as captured:
                display(make(self))
        finally:
            InteractiveShell.clear_instance()
        assert captured.outputs
        for output in captured.outputs:
            assert {VIEW, "image/png"} <= set(output.data)

    def test_its_size_is_fixed(self):
        layout = self.make().picture.layout
        assert (layout.width, layout.height) == ("64px", "48px")

    def test_an_error_becomes_one_sentence_and_the_picture_stays(self):
        panel = self.make()
        before = panel.picture.value
        slider = panel.children[2]

        def fails():
            raise ValueError("steps=0 is too few:\n give <1> or more")

        panel.watch(slider, fails)
        slider.value = 2
        assert "steps=0 is too few: give &lt;1&gt; or more" in panel.message.value
        assert panel.picture.value == before

    def test_errors_in_words(self):
        assert sentence(ValueError("a b")) == "a b"
        assert sentence(KeyError("x")) == "KeyError: 'x'"
        assert sentence(RuntimeError()) == "RuntimeError"


class TestPlayground:
    def test_every_control_draws_anew(self, pipe):
        playground = Playground(pipe, "ab", seed=1, steps=2, guidance=3.0)
        for control, value in (("seed", 5), ("steps", 3), ("guidance", 9.0), ("prompt", "cd")):
            before = playground.picture.value
            getattr(playground, control).value = value
            assert playground.picture.value != before, control
            assert " s" in playground.message.value
        playground.seed.value, playground.steps.value = 1, 2
        playground.guidance.value, playground.prompt.value = 3.0, "ab"
        assert playground.picture.value == Playground(pipe, "ab", seed=1, steps=2, guidance=3.0).picture.value

    def test_it_draws_what_the_pipeline_draws(self, pipe):
        from companion.figures import as_pil
        from companion.models import seeded

        drawn = pipe("ab", num_inference_steps=2, guidance_scale=3.0, generator=seeded(1)).images[0]
        playground = Playground(pipe, "ab", seed=1, steps=2, guidance=3.0)
        assert picture(playground).tobytes() == as_pil(drawn, 384).tobytes()

    def test_sliders_wait_until_they_are_let_go(self, pipe):
        playground = Playground(pipe, "ab", steps=1)
        assert not any(
            control.continuous_update
            for control in (playground.prompt, playground.seed, playground.steps, playground.guidance)
        )

    def test_a_failing_pipeline_is_told(self, pipe, monkeypatch):
        playground = Playground(pipe, "ab", steps=1)
        before = playground.picture.value
        monkeypatch.setattr(pipe, "encode_prompt", lambda *a, **k: 1 / 0)
        playground.seed.value += 1
        assert "ZeroDivisionError: division by zero" in playground.message.value
        assert playground.picture.value == before

    def test_the_judge_speaks_only_of_its_own_world(self, pipe, monkeypatch):
        from companion.tabletop import measures
        from companion.tabletop.judge import Reading

        assert "judge" not in Playground(pipe, PROMPT, steps=1).message.value  # these pictures have 32 pixels
        reading = Reading(("ball",), ("red",), "neither", "grass", "night", ((0, 0, 1, 1),), 0.9)
        monkeypatch.setattr(measures, "read", lambda pictures: [reading])
        playground = Playground(pipe, PROMPT, steps=1)
        playground._judged = True
        playground.seed.value += 1
        assert "a red ball, on grass, at night" in playground.message.value
        assert "✓ kind ✓ finish ✓ place ✗ time" in playground.message.value
        playground.prompt.value = "a dog"
        assert "cannot compare" in playground.message.value
        playground.surprise()
        assert parse(playground.prompt.value).place  # a whole scene of the world

    def test_words(self):
        assert describe(parse("an orange house behind a can on snow at night")) == (
            "an orange house behind a can, on snow, at night"
        )


class TestScrubber:
    def test_each_step_has_its_frame(self, pipe, steps):
        scrubber = Scrubber(pipe, steps)
        seen = []
        for value in range(len(steps) + 1):
            scrubber.slider.value = value
            seen.append(scrubber.picture.value)
        assert len(set(seen)) == len(steps) + 1
        assert "after all 4 steps" in scrubber.message.value

    def test_it_begins_in_the_middle_and_the_player_spans_all(self, pipe, steps):
        scrubber = Scrubber(pipe, steps)
        assert scrubber.slider.value == 2 and scrubber.slider.max == scrubber.play.max == 4

    def test_the_last_frame_is_the_result(self, pipe, steps):
        from companion.figures import as_pil

        scrubber = Scrubber(pipe, steps)
        result = as_pil(diffusion.decode(pipe, steps[-1].latents)[0], 224)
        sheet = scrubber.frames[-1]
        assert (
            sheet.crop((sheet.width - 224, sheet.height - 224, sheet.width, sheet.height)).tobytes() == result.tobytes()
        )

    def test_nothing_to_show_is_refused(self, pipe):
        with pytest.raises(ValueError, match=r"give list\(sample"):
            Scrubber(pipe, [])


class TestGuidanceSlider:
    def test_the_slider_chooses_and_the_prompt_draws_anew(self, pipe):
        slider = GuidanceSlider(pipe, "ab", seed=1, steps=2, scales=(1, 4, 9))
        assert slider.slider.value == 1 and "guidance 4" in slider.message.value
        before = slider.picture.value
        slider.slider.value = 2
        assert slider.picture.value != before and "guidance 9" in slider.message.value
        before = slider.picture.value
        slider.prompt.value = "cd"
        assert slider.picture.value != before
        before = slider.picture.value
        slider.seed.value += 1
        assert slider.picture.value != before

    def test_each_picture_is_the_one_drawn_alone(self, pipe):
        from companion.figures import as_array, as_pil
        from companion.widgets.guidance import SIDE

        slider = GuidanceSlider(pipe, "ab", seed=1, steps=2, scales=(1, 4))
        alone = diffusion.draw(pipe, "ab", 1, steps=2, guidance_scale=4.0)[0]
        difference = as_array(slider.pictures[1]).astype(int) - as_array(as_pil(alone, SIDE)).astype(int)
        assert abs(difference).max() <= 1
        assert slider.plain.tobytes() == slider.pictures[0].tobytes()

    def test_one_scale_is_no_slider(self, pipe):
        with pytest.raises(ValueError, match="two or more"):
            GuidanceSlider(pipe, "ab", scales=(4,))


def test_no_random_state_is_left_behind(pipe, steps):
    """Widgets draw from seeds alone: the reader's own random numbers do not move."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    Playground(pipe, "ab", steps=1)
    GuidanceSlider(pipe, "ab", steps=1, scales=(1, 2))
    Scrubber(pipe, steps)
    assert torch.equal(torch.rand(3), expected)
