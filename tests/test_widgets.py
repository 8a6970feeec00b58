"""The Python side of the widgets, on a tiny pipeline with random weights: a control moves, and the picture changes."""

from __future__ import annotations

import asyncio
import base64
import io

import ipywidgets
import numpy as np
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display
from IPython.utils.capture import capture_output
from PIL import Image
from traitlets import TraitError

import companion
from companion import diffusion
from companion.tabletop.caption import parse
from companion.widgets import GuidanceSlider, Panel, Playground, Scrubber, TrainingScrubber, base
from companion.widgets.base import LINE, VIEW, sentence
from companion.widgets.live_slider import preview_steps
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
        panel = Panel([ipywidgets.IntSlider(0, 0, 3)], 64)
        panel.show(Image.new("RGB", (64, 48), "red"), "hello")
        return panel

    def test_it_leaves_a_picture_beside_the_live_view(self):
        panel = self.make()
        data = panel._repr_mimebundle_()
        data = data[0] if isinstance(data, tuple) else data
        kept = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
        assert (
            kept.format == "PNG"
            and kept.height == 48 + 2 * LINE + 2
            and kept.convert("RGB").getpixel((5, 5)) == (255, 0, 0)
        )
        below = np.asarray(kept.convert("L"))[48:]
        lines = below[2 : 2 + LINE], below[2 + LINE :]  # what it said, and that it is still
        assert kept.width > 150 and all((line < 100).any() for line in lines) and below[:, -1].min() == 255
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

    def test_its_controls_are_beside_the_picture_which_keeps_its_proportions(self):
        panel = self.make()
        (row,) = panel.children
        drawn, beside = row.children
        assert drawn.children == (panel.picture, panel.message) and isinstance(beside.children[0], ipywidgets.IntSlider)
        assert row.layout.flex_flow == "row wrap" and "companion-panel" in panel._dom_classes
        assert (drawn.layout.width, drawn.layout.max_width) == ("64px", "100%")
        assert (panel.picture.layout.width, panel.picture.layout.height) == ("100%", "auto")

    def test_or_below_it_and_as_wide(self):
        slider = ipywidgets.IntSlider()
        panel = Panel([slider], 64, beside=0)
        (drawn,) = panel.children[0].children
        assert drawn.children == (panel.picture, slider, panel.message) and drawn.layout.width == "64px"

    def test_it_is_marked_while_it_works(self):
        panel, seen = self.make(), []
        slider = panel.children[0].children[1].children[0]

        def draws():
            seen.append(panel.message.busy)
            if slider.value == 3:
                raise RuntimeError("no")

        panel.watch(slider, draws)
        for value in (2, 3):
            slider.value = value
            assert seen.pop() and not panel.message.busy
        assert "RuntimeError: no" in panel.message.value
        quick = ipywidgets.IntSlider()
        panel.watch(quick, lambda: seen.append(panel.message.busy), quick=True)
        quick.value = 1
        assert seen == [False]

    def test_it_is_marked_before_the_kernel_works(self, monkeypatch):
        """The browser's message is answered by the mark alone; the picture is drawn later."""
        panel, seen = self.make(), []

        async def browser() -> None:
            monkeypatch.setattr(base, "_loop_of_messages", asyncio.get_running_loop)
            panel.soon(lambda: seen.append(panel.message.busy))
            assert panel.message.busy and not seen
            await asyncio.sleep(2 * base.PATIENCE)
            assert seen == [True] and not panel.message.busy

        asyncio.run(browser())

    def test_what_is_cut_from_a_prompt_is_said(self, pipe):
        panel, length = Panel([], 64, reader=pipe), pipe.tokenizer.model_max_length
        panel.prompt = ipywidgets.Text("a " * (length - 2))
        panel.show(Image.new("RGB", (64, 48)), "hello")
        assert panel.message.value == "hello"
        panel.prompt.value += "b c"
        panel.show(Image.new("RGB", (64, 48)), "hello")
        tokens = len(pipe.tokenizer(panel.prompt.value, verbose=False).input_ids) - 2
        said = f"The prompt has {tokens} tokens and the model reads {length - 2}; it does not see “<i>b c</i>”."
        assert panel.message.value == f"hello<br>{said}"
        panel.show(Image.new("RGB", (64, 48)))
        assert panel.message.value == said
        encoded = [diffusion.encode_prompt(pipe, prompt) for prompt in ("a " * (length - 2), panel.prompt.value)]
        assert torch.equal(*encoded), "it is what the encoder does not see"

    def test_every_panel_with_a_prompt_says_so(self, pipe):
        prompt = "a " * pipe.tokenizer.model_max_length
        for panel in (Playground(pipe, prompt, steps=1), GuidanceSlider(pipe, prompt, steps=1, scales=(1, 2))):
            assert "it does not see" in panel.message.value
        panel.slider.value = 1 - panel.slider.value
        assert "it does not see" in panel.message.value

    def test_without_a_kernel_it_tells_which_cell_to_run(self):
        message = self.make().message
        assert "Run this cell again" in message.gone and "jupyter-widgets-disconnected" in str(message._css)

    def test_an_error_becomes_one_sentence_and_the_picture_stays(self):
        panel = self.make()
        before = panel.picture.value
        slider = panel.children[0].children[1].children[0]

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

    @pytest.mark.parametrize("name", ["seed", "steps", "guidance"])
    def test_a_slider_on_its_way_is_followed_in_few_steps(self, pipe, name):
        from companion.figures import as_pil

        playground = Playground(pipe, "ab", seed=1, steps=20, guidance=3.0)
        slider = getattr(playground, name)
        slider.set_trait("held", True)
        slider.value += 2
        settings = {"steps": playground.steps.value // 4, "guidance_scale": playground.guidance.value}
        few = diffusion.draw(pipe, "ab", playground.seed.value, scheduler=diffusion.steady(pipe.scheduler), **settings)
        assert picture(playground).tobytes() == as_pil(as_pil(few[0]), 384).tobytes()
        assert f"for 5 of {playground.steps.value} steps, as a preview" in playground.message.value
        slider.set_trait("held", False)
        whole = Playground(
            pipe, "ab", seed=playground.seed.value, steps=playground.steps.value, guidance=playground.guidance.value
        )
        assert playground.picture.value == whole.picture.value and "preview" not in playground.message.value

    def test_a_preview_takes_a_quarter_of_the_steps(self):
        assert [preview_steps(steps) for steps in (1, 4, 8, 20, 50)] == [1, 4, 4, 5, 12]

    def test_sliders_have_room_for_what_they_begin_with(self, pipe):
        playground = Playground(pipe, "ab", seed=2026, steps=1, guidance=20.0)
        assert (playground.seed.value, playground.guidance.value) == (2026, 20.0)
        with pytest.raises(TraitError, match=r"seed -1 is outside \[0, 2026\]"):
            playground.seed.value = -1

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

    def test_the_chosen_scale_is_drawn_first(self, pipe, monkeypatch):
        slider, drawn, shown = GuidanceSlider(pipe, "ab", steps=1, scales=(2, 3, 4, 1)), [], []
        draw = diffusion.draw
        monkeypatch.setattr(diffusion, "draw", lambda *args, **o: drawn.append(o["guidance_scale"]) or draw(*args, **o))
        slider.picture.observe(lambda change: shown.append(len(drawn)), "value")
        slider.seed.value += 1
        assert drawn == [[1, 3], [2, 4]] and shown == [1] and all(slider.pictures)
        slider.slider.value = 3
        assert slider.picture.value and "guidance 1," in slider.message.value

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
