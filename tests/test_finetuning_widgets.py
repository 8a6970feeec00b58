"""The panels of finetuning without a browser: what Python gives, takes, refuses, draws and keeps."""

from __future__ import annotations

import base64
import copy
import io
import json
import math
import shutil
import warnings
import zipfile

import numpy as np
import pytest
import torch
import traitlets
from awkward import pattern, turned
from PIL import Image

import companion
from companion import diffusion, energy, fast, oft_vs_lora, photographs
from companion.finetuning import Lora, Peft, attach, with_parts
from companion.finetuning_run import Folder
from companion.models import find, seeded
from companion.widgets import AdapterStrength, Cropper, EnergyExplorer, TrainingScrubber
from companion.widgets import crop as crop_module
from companion.widgets.adapters import LiveSlider
from companion.widgets.base import KEPT, VIEW
from companion.widgets.crop import LONGEST
from companion.widgets.energy import force


def kept(widget) -> np.ndarray:
    """The picture that the notebook keeps of a widget, with the text below it."""
    data = widget._repr_mimebundle_()
    data = data[0] if isinstance(data, tuple) else data
    assert data[VIEW]["model_id"] == widget.model_id and data["text/plain"] == f"{type(widget).__name__}()"
    sheet = Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("RGB")
    return np.asarray(sheet).astype(int)


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def apart(a, b) -> float:
    return float(np.abs(np.asarray(a, float) - np.asarray(b, float)).mean())


def smooth(wide: int, high: int) -> Image.Image:
    """A picture that looks the same when it is made smaller."""
    x, y = np.meshgrid(np.linspace(0, 255, wide), np.linspace(0, 255, high))
    return Image.fromarray(np.stack([x, y, 255 - x], 2).astype(np.uint8))


# ---- Cropping --------------------------------------------------------------------------------------------------------


@pytest.fixture
def holiday(tmp_path):
    """A folder with three photographs, one of them turned by its EXIF data and one in a subfolder, and more."""
    folder = tmp_path / "holiday"
    (folder / "more").mkdir(parents=True)
    pattern(0, 96, 64).save(folder / "a.png")
    (folder / "phone.jpg").write_bytes(turned(pattern(9)))
    pattern(2, 64, 96).save(folder / "more" / "c.png")
    (folder / "notes.txt").write_text("no picture at all", encoding="utf-8")
    pattern(3, 12, 12).save(folder / "tiny.png")
    Image.new("RGB", (96, 96), "red").save(folder / "wall.png")
    return folder


class TestCropper:
    def test_its_boxes_are_those_that_a_training_set_is_cut_by(self, holiday, tmp_path):
        crop = Cropper(holiday, 64)
        assert list(crop.boxes) == ["a.png", "more/c.png", "phone.jpg"]
        upright, _ = photographs.upright("phone.jpg", (holiday / "phone.jpg").read_bytes())
        assert crop.sizes[2] == list(upright.size) == [640, 480], "not as it lies in the file"
        assert crop.boxes["a.png"] == photographs.centre(pattern(0, 96, 64)) == (16, 0, 64)
        crop.boxes = {"a.png": (10, 20, 40), "phone.jpg": (5, 7, 51)}
        made = photographs.prepare(holiday, tmp_path / "set", 64, boxes=crop.boxes)
        squares = {p.name: p.square for p in made.kept}
        assert squares == crop.boxes == {"a.png": (10, 20, 40), "more/c.png": (0, 16, 64), "phone.jpg": (5, 7, 51)}
        # What it has shown of the model's view is what the set holds.
        crop.current = 2
        assert crop.made_of == [2, 5, 7, 51] and apart(opened(crop.made), opened(made.kept[2].jpeg)) < 3

    def test_what_is_left_out_is_not_in_the_set(self, holiday, tmp_path):
        pattern(5, 96, 64).save(holiday / "b.png")
        crop = Cropper(holiday, 64, leave_out=["b.png"])
        assert crop.left_out == ["b.png"] and "b.png" not in crop.boxes and len(crop.squares) == 4
        made = photographs.prepare(holiday, tmp_path / "set", 64, boxes=crop.boxes, leave_out=crop.left_out)
        assert "b.png" not in [p.name for p in made.kept]
        assert {p.name: p.reason for p in made.left_out}["b.png"] == "was left out by hand"
        crop.left_out = []
        assert "b.png" in crop.boxes

    def test_what_a_set_would_leave_out_is_not_shown(self, holiday):
        crop = Cropper(holiday, 64)
        assert crop.unusable == {
            "notes.txt": "is text; give a JPEG, PNG, WebP, AVIF, GIF, BMP or TIFF picture",
            "tiny.png": "is too small: it has 12 x 12 pixels, and at least 16 are needed for 64",
            "wall.png": "shows one flat colour",
        }
        assert "tiny.png is too small" in crop.unused
        made = photographs.select(holiday, 64)
        assert {p.name for p in made.left_out} == set(crop.unusable)

    def test_pictures_in_any_form(self, holiday, tmp_path):
        array = np.asarray(pattern(0, 96, 64))
        assert list(Cropper([array, pattern(1, 96, 64)], 64).boxes) == ["000", "001"]
        assert list(Cropper({"one": array}, 64).boxes) == ["one"]
        assert list(Cropper([holiday / "a.png", str(holiday / "phone.jpg")], 64).boxes) == ["a.png", "phone.jpg"]
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.write(holiday / "a.png", "in/a.png")
        assert Cropper(tmp_path / "a.zip", 64).boxes == {"in/a.png": (16, 0, 64)}

    def test_rules(self, holiday):
        crop = Cropper(holiday, 64, crop="detail")
        assert crop.boxes["a.png"] == photographs.detail(pattern(0, 96, 64))
        assert crop.rules["centre"][0] == [16, 0, 64] and crop.rules["detail"] == crop.squares == crop.home

    def test_the_browser_gets_small_pictures_and_one_at_a_time(self):
        large = smooth(2400, 1600)
        crop = Cropper([large, smooth(300, 200)], 512)
        shown = opened(crop.picture)
        assert max(shown.size) == LONGEST and crop.sizes[0] == [2400, 1600] and crop.shown == 0
        assert crop.boxes["000"] == (400, 0, 1600) and len(crop.tiles) < 20_000
        crop.set_trait("squares", [[1200, 400, 700], [0, 0, 200]])
        expected = large.resize((512, 512), Image.Resampling.LANCZOS, box=(1200, 400, 1900, 1100))
        assert apart(opened(crop.made), expected) < 3
        crop.set_trait("current", 1)
        assert crop.shown == 1 and opened(crop.picture).size == (300, 200) and crop.made_of == [1, 0, 0, 200]

    @pytest.mark.parametrize(
        ("boxes", "says"),
        [
            ({"a.pgn": (0, 0, 64)}, "There is no photograph 'a.pgn' here; did you mean 'a.png'"),
            ({"tiny.png": (0, 0, 8)}, "There is no photograph 'tiny.png' here, which is too small"),
            ({"a.png": (40, 0, 64)}, r"the box of a.png, 64 x 64 at \(40, 0\), is not inside the photograph, 96 x 64"),
            ({"a.png": (0, 0, 12)}, "the box of a.png, 12 x 12 .* is too small: at least 16 x 16 are needed for 64"),
            ({"a.png": (0, 0)}, "three whole numbers are wanted: left, top and side"),
        ],
    )
    def test_impossible_boxes_are_refused(self, holiday, boxes, says):
        crop = Cropper(holiday, 64)
        before = crop.boxes
        with pytest.raises(ValueError, match=says):
            crop.boxes = boxes
        with pytest.raises(ValueError, match=says):
            Cropper(holiday, 64, boxes=boxes)
        assert crop.boxes == before
        (path := holiday.parent / "boxes.json").write_text(json.dumps({"a.png": [1, 2, 30]}), encoding="utf-8")
        crop.boxes = path
        assert crop.boxes == before | {"a.png": (1, 2, 30)}

    def test_what_the_browser_cannot_mean_is_refused(self, holiday):
        crop = Cropper(holiday, 64)
        with pytest.raises(traitlets.TraitError, match="2 squares for 3 photographs"):
            crop.set_trait("squares", [[0, 0, 64]] * 2)
        with pytest.raises(traitlets.TraitError, match="is not inside"):
            crop.set_trait("squares", [[0, 0, 64], [0, 0, 64], [0, 0, 6400]])
        with pytest.raises(traitlets.TraitError, match="there is no photograph 3; there are 3"):
            crop.current = 3

    def test_sources_that_are_none_are_refused(self, holiday, tmp_path):
        with pytest.raises(FileNotFoundError, match="There is no .*nowhere"):
            Cropper(tmp_path / "nowhere")
        with pytest.raises(ValueError, match=r"no photograph can be used \(000 shows one flat colour\)"):
            Cropper([np.zeros((64, 64, 3), np.uint8)], 64)
        with pytest.raises(ValueError, match="two photographs are called a.png; give a mapping"):
            Cropper([holiday / "a.png", holiday / "a.png"], 64)
        with pytest.raises(ValueError, match="a int is no source; give a folder"):
            Cropper(3)
        with pytest.raises(ValueError, match="crop='middle' is no rule: centre, detail"):
            Cropper(holiday, crop="middle")
        with pytest.raises(ValueError, match="size=100 .* multiple of 8"):
            Cropper(holiday, 100)

    def test_a_file_or_folder_that_has_gone_is_told(self, holiday):
        crop = Cropper(holiday, 64)
        (holiday / "more" / "c.png").unlink()
        crop.current = 1
        assert crop.unused == "more/c.png is not in holiday any more" and crop.shown == 0
        shutil.rmtree(holiday)
        crop.current = 2
        assert crop.unused == "phone.jpg is not in holiday any more" and crop.shown == 0

    def test_a_source_is_looked_through_once(self, holiday, monkeypatch):
        looked = []
        monkeypatch.setattr(crop_module, "files_of", lambda path: looked.append(path) or photographs.files_of(path))
        assert len(Cropper(holiday, 64).boxes) == 3
        assert looked == [holiday] * 2, "for all of them, and for the one that is shown"

    def test_it_leaves_a_picture_of_the_squares(self, holiday):
        crop = Cropper({"ramp": smooth(208, 104)}, 64, boxes={"ramp": (104, 0, 104)})
        sheet, ramp = kept(crop)[20:], np.asarray(smooth(208, 104)).astype(int)
        assert apart(sheet[4:100, 4:100], ramp[4:100, 4:100] * 2 // 5) < 8
        assert apart(sheet[4:100, 108:204], ramp[4:100, 108:204]) < 8
        assert apart(sheet[:128, 216:344], np.asarray(smooth(208, 104).resize((128, 128), box=(104, 0, 208, 104)))) < 12


# ---- Over a training -------------------------------------------------------------------------------------------------


def sheet(colour: str, wide: int = 256, high: int = 128) -> Image.Image:
    return Image.new("RGB", (wide, high), colour)


class TestTrainingScrubber:
    def test_pictures_and_metrics_by_step(self):
        panel = TrainingScrubber(
            {200: [sheet("blue", 128)] * 2, 0: [sheet("red", 128)] * 2},
            {"DINO": [0.25, 0.5], "loss": {10: 0.3, 20: math.nan, 200: 0.1}},
        )
        assert panel.steps == [0, 200] and panel.step == 200
        assert [opened(frame).getpixel((20, 20)) for frame in panel.frames] == [(254, 0, 0), (0, 0, 254)]
        assert panel.metrics == {"DINO": [[0, 0.25], [200, 0.5]], "loss": [[10, 0.3], [20, None], [200, 0.1]]}
        panel.step = 90
        assert (panel.value, panel.step) == (0, 0)

    def test_a_runs_folder(self, tmp_path):
        (tmp_path / "samples").mkdir()
        for step, colour in ((0, "red"), (100, "blue")):
            sheet(colour, 512).save(tmp_path / "samples" / f"{step:06}.png")
        log = [{"step": 10, "loss": 0.5, "lr": 1e-4}, {"step": 100, "loss": 0.25, "lr": 1e-4}]
        (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, log)), encoding="utf-8")
        for panel in (
            TrainingScrubber(tmp_path),
            TrainingScrubber(str(tmp_path)),
            TrainingScrubber(Folder(tmp_path, {})),
        ):
            assert panel.steps == [0, 100] and panel.metrics == {"loss": [[10, 0.5], [100, 0.25]]}
            assert (panel.width, panel.height) == (480, 480), "a row of four is broken into two"
        assert TrainingScrubber(tmp_path, {}).metrics == {}

    def test_what_does_not_fit_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="there are no pictures to show: give what was drawn at each step"):
            TrainingScrubber({})
        with pytest.raises(FileNotFoundError, match="There is no folder .*nowhere: give that of a run"):
            TrainingScrubber(tmp_path / "nowhere")
        with pytest.raises(ValueError, match="there are no pictures to show"):
            TrainingScrubber(tmp_path)
        with pytest.raises(ValueError, match="DINO has 1 numbers for 2 steps; give one for each, or numbers by step"):
            TrainingScrubber({0: sheet("red"), 9: sheet("red")}, {"DINO": [1.0]})
        with pytest.raises(ValueError, match="the steps have sheets of .* pixels; give the same pictures"):
            TrainingScrubber({0: sheet("red"), 9: sheet("red", 384)})
        with pytest.raises(ValueError, match="1 names for 2 pictures; give one for each"):
            TrainingScrubber({0: [sheet("red")] * 2}, names=["one"])
        panel = TrainingScrubber({0: sheet("red"), 9: sheet("red")})
        with pytest.raises(traitlets.TraitError, match=r"value=2 is outside \[0, 1\]"):
            panel.value = 2

    def test_large_pictures_are_reduced(self):
        panel = TrainingScrubber({0: sheet("red", 4000, 1100)})
        assert panel.width == 640 and opened(panel.frames[0]).size == (640, 176)

    def test_it_leaves_the_start_and_the_end_above_the_curves(self):
        pictures = {0: sheet("red", 128), 50: sheet("green", 128), 100: sheet("blue", 128)}
        picture = kept(TrainingScrubber(pictures, {"loss": [1.0, 0.5, 0.25]}))
        assert apart(picture[45, 15], (255, 0, 0)) < 8 and apart(picture[45, 150], (0, 0, 255)) < 8
        assert picture.shape[1] == KEPT and picture.shape[0] > 150
        assert (picture[130:].min(-1) < 200).any(), "curves"


# ---- An adapter's strength -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipe(tiny):
    return companion.load(tiny, device="cpu")


def with_oft(pipe, **options):
    """A pipeline with an adapter of OFT that turns by much."""
    made = with_parts(pipe, unet=copy.deepcopy(pipe.unet))
    for i, p in enumerate(oft_vs_lora.apply(made.unet, blocks=2, **options)):
        p.data = torch.randn(p.shape, generator=seeded(i))
    return made


def with_lora(pipe, alpha: float = 4.0):
    tuned = attach(pipe, Lora(rank=2, alpha=alpha), seed=1)
    for i, p in enumerate(tuned.parameters):
        p.data = 0.3 * torch.randn(p.shape, generator=seeded(i))
    return tuned


def state(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def unchanged(model, before) -> bool:
    now = model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in before)


SETTINGS = {"seed": 3, "steps": 2, "guidance": 2.0}


def drawn(pipe, steps: int = 2, prompt: str = "ab", seed: int = 3) -> torch.Tensor:
    return diffusion.draw(pipe, prompt, seed, steps=steps, guidance_scale=2.0)[0]


class TestAdapterStrength:
    @pytest.mark.parametrize("options", [{}, {"rescale": True}, {"share": True}])
    def test_the_right_way_is_merge_and_the_model_stays(self, pipe, options):
        tuned = with_oft(pipe, **options)
        before, panel = state(tuned.unet), AdapterStrength(tuned, "ab", **SETTINGS)
        for t in (1.0, 0.4, -0.6, 2.0, 0.0):
            panel.strength.value = t
            assert panel.message.value.startswith("drawn in") and list(panel.ways) == list(oft_vs_lora.SLIDERS)
            assert unchanged(tuned.unet, before)
            oft_vs_lora.merge(tuned.unet, t)
            expected = drawn(tuned)
            oft_vs_lora.unmerge(tuned.unet)
            assert torch.allclose(panel.result[0], expected, atol=1e-4), t
        assert len(panel.result) == 4 and unchanged(tuned.unet, before)

    def test_the_wrong_ways(self, pipe):
        tuned = with_oft(pipe)
        panel = AdapterStrength(tuned, "ab", 0.5, **SETTINGS)
        name, oft = next(iter(oft_vs_lora.adapters(tuned.unet).items()))
        W0 = tuned.unet.get_submodule(name).parametrizations.weight.original
        for way, slider in oft_vs_lora.SLIDERS.items():
            blocks = torch.block_diag(*slider(oft.Q(), 0.5)).detach()
            assert torch.allclose(panel.ways[way].weights[f"{name}.weight"], W0 @ blocks.T, atol=1e-5), way
        errors = {way: found.error for way, found in panel.ways.items()}
        assert errors["R to the power t"] < 1e-5 and errors["Cayley of t Q"] < 1e-5
        assert errors["straight line"] > 0.1 and errors["strength applied twice"] > 0.1
        assert abs(panel.ways["R to the power t"].energy) < 1e-5 < abs(panel.ways["straight line"].energy)
        before = energy.energies(
            {n: w for n, w in energy.weights(panel._plain.unet).items() if n in panel.ways[way].weights}
        )
        after = energy.energies(panel.ways["straight line"].weights)
        assert panel.ways["straight line"].energy == pytest.approx(sum(after.values()) / sum(before.values()) - 1)
        assert panel.ways["Cayley of t Q"].moved != pytest.approx(panel.ways["R to the power t"].moved, rel=0.01)
        for t, share in ((0.0, 0.0), (1.0, 1.0)):  # at the ends, all ways are one
            panel.strength.value = t
            moved = [found.moved for found in panel.ways.values()]
            assert np.allclose(moved, moved[0], atol=1e-5) and (moved[0] > 0.1) == bool(share)
            assert torch.allclose(panel.result, panel.result[:1].expand(4, -1, -1, -1), atol=1e-3)
        assert "R to the power t" in panel.table.value and ">0.00000<" in panel.table.value

    def test_an_adapter_that_is_merged_or_trains_on(self, pipe):
        tuned = with_oft(pipe)
        oft_vs_lora.merge(tuned.unet, 0.3)
        before, panel = state(tuned.unet), AdapterStrength(tuned, "ab", **SETTINGS)
        assert unchanged(tuned.unet, before)
        first = panel.result[0]
        for oft in oft_vs_lora.adapters(tuned.unet).values():
            oft.q.data.neg_()
        panel.draw()
        assert not torch.allclose(panel.result[0], first, atol=1e-3)
        oft_vs_lora.remove(tuned.unet)
        panel.seed.value = 5
        assert "the U-Net has no adapter any more: make the panel again" in panel.message.value

    def test_a_constrained_adapter_is_not_pulled_back(self, pipe):
        tuned = with_oft(pipe, eps=0.5)
        for p in oft_vs_lora.adapters(tuned.unet).values():
            p.q.data.fill_(3.0)
        before = state(tuned.unet)
        AdapterStrength(tuned, "ab", **SETTINGS)
        assert unchanged(tuned.unet, before)

    def test_lora_by_its_alpha(self, pipe):
        tuned = with_lora(pipe)
        before, panel = state(tuned.pipe.unet), AdapterStrength(tuned.pipe, "ab", **SETTINGS)
        assert (panel.strength.min, panel.strength.value, panel.strength.max) == (-4, 4, 8)
        assert torch.allclose(panel.result[1], drawn(tuned.pipe), atol=1e-4)
        assert torch.allclose(panel.result[0], drawn(pipe), atol=1e-4) and panel.ways["without it"].moved == 0
        panel.strength.value = 6.0
        other = with_lora(pipe, 6.0)
        assert torch.allclose(panel.result[1], drawn(other.pipe), atol=1e-4)
        assert abs(panel.ways["alpha 6"].energy) > 1e-6 and panel.ways["alpha 6"].error is None
        assert unchanged(tuned.pipe.unet, before) and "RᵀR" not in panel.table.value
        assert torch.allclose(drawn(tuned.pipe), panel.result[1], atol=1e-4) is False

    def test_on_its_way_only_the_right_way_is_drawn_and_in_few_steps(self, pipe):
        tuned = with_oft(pipe)
        panel = AdapterStrength(tuned, "ab", preview=1, **SETTINGS)
        before = panel.result
        panel.strength.set_trait("held", True)
        panel.strength.set_trait("value", 0.5)
        assert "in 1 steps, as a preview" in panel.message.value and panel.table.value.count("…") == 9
        oft_vs_lora.merge(tuned.unet, 0.5)
        assert torch.allclose(panel.result[0], drawn(tuned, 1), atol=1e-4)
        assert torch.equal(panel.result[1:], before[1:])
        panel.strength.set_trait("held", False)
        assert torch.allclose(panel.result[0], drawn(tuned), atol=1e-4) and "preview" not in panel.message.value
        assert not torch.allclose(panel.result[3], before[3], atol=1e-3) and "…" not in panel.table.value

    def test_on_its_way_the_picture_without_lora_stays(self, pipe):
        tuned = with_lora(pipe)
        panel = AdapterStrength(tuned.pipe, "ab", preview=1, **SETTINGS)
        without = panel.result[0]
        panel.strength.set_trait("held", True)
        panel.strength.set_trait("value", 6.0)
        assert torch.equal(panel.result[0], without) and list(panel.ways) == ["without it", "alpha 6"]
        assert torch.allclose(panel.result[1], drawn(with_lora(pipe, 6.0).pipe, 1), atol=1e-4)

    def test_every_control_draws_anew(self, pipe):
        tuned = with_oft(pipe)
        panel = AdapterStrength(tuned, "ab", **SETTINGS)
        oft_vs_lora.merge(tuned.unet)
        panel.prompt.value, panel.seed.value = "cd", 7
        assert torch.allclose(panel.result[0], drawn(tuned, prompt="cd", seed=7), atol=1e-4)
        assert Image.open(io.BytesIO(panel.still())).size == (456, 2 * 244 + 8)

    def test_pipes_without_such_an_adapter_are_refused(self, pipe):
        from peft import HRAConfig

        with pytest.raises(ValueError, match="the U-Net has no adapter; give it one of OFT, as by oft_vs_lora.load"):
            AdapterStrength(pipe, "ab")
        hra = attach(pipe, Peft(HRAConfig(r=2, target_modules=["to_q"]))).pipe
        with pytest.raises(ValueError, match="the U-Net has an adapter of the kind HRA; give it one of OFT"):
            AdapterStrength(hra, "ab")
        lora = with_lora(pipe).pipe
        with pytest.raises(ValueError, match=r"alpha = 9 is outside \[-4, 8\], which the slider has"):
            AdapterStrength(lora, "ab", 9)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lora.fuse_lora(components=["unet"])
        with pytest.raises(ValueError, match="the adapter is merged into the weights; undo it first"):
            AdapterStrength(lora, "ab")

    def test_lora_that_is_merged_later_is_not_counted_twice(self, pipe):
        tuned = with_lora(pipe)
        panel = AdapterStrength(tuned.pipe, "ab", **SETTINGS)
        before = panel.result
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tuned.pipe.fuse_lora(components=["unet"])
            panel.strength.value = 2.0
            assert "the adapter is merged into the weights; undo it first" in panel.message.value
            assert panel.result is before
            tuned.pipe.unfuse_lora(components=["unet"])
        panel.strength.value = 4.0
        assert torch.allclose(panel.result, before, atol=1e-3)

    @pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
    def test_two_loras_on_different_layers(self, pipe):
        from peft import LoraConfig

        tuned = with_parts(pipe, unet=copy.deepcopy(pipe.unet))
        options = {"r": 2, "lora_alpha": 4, "init_lora_weights": False}
        for name, target in (("one", "to_q"), ("two", "to_v")):
            tuned.unet.add_adapter(LoraConfig(target_modules=[target], **options), name)
        tuned.unet.set_adapters(["one", "two"])
        panel = AdapterStrength(tuned, "ab", **SETTINGS)
        assert torch.allclose(panel.result[1], drawn(tuned), atol=1e-4)
        assert not torch.allclose(panel.result[0], panel.result[1], atol=1e-2)

    def test_an_energy_that_was_infinite_has_no_change(self, pipe):
        tuned = with_oft(with_parts(pipe, unet=copy.deepcopy(pipe.unet)))
        name = next(iter(oft_vs_lora.adapters(tuned.unet)))
        weight = tuned.unet.get_submodule(name).parametrizations.weight.original.data
        weight[1] = weight[0]
        panel = AdapterStrength(tuned, "ab", **SETTINGS)
        assert math.isnan(panel.ways["R to the power t"].energy) and ">–<" in panel.table.value

    def test_a_slider_refuses_what_it_cannot_show(self):
        slider = LiveSlider(label="t", min=-1.0, max=2.0)
        for value in (2.5, math.nan):
            with pytest.raises(traitlets.TraitError, match=rf"t {value:g} is outside \[-1, 2\]"):
                slider.value = value

    def test_no_random_state_is_left_behind(self, pipe):
        tuned = with_oft(pipe)
        torch.manual_seed(5)
        wanted = torch.rand(3)
        torch.manual_seed(5)
        AdapterStrength(tuned, "ab", **SETTINGS)
        assert torch.equal(torch.rand(3), wanted)


def test_on_the_fast_path_it_draws_what_torch_draws():
    """The published model, whose adapted weights become inputs of its compiled network."""
    pytest.importorskip("openvino")
    tuned = companion.load("tabletop", device="cpu")
    for i, p in enumerate(oft_vs_lora.apply(tuned.unet)):
        p.data = torch.randn(p.shape, generator=seeded(i))
    settings = {"steps": 2, "guidance": find("tabletop").settings["guidance_scale"]}
    tuned.scheduler.set_timesteps(7)  # somebody's loop, over several cells
    panel = AdapterStrength(tuned, "a red ball on grass by day", 0.5, **settings)
    assert isinstance(panel._drawer, fast.Fast) and not panel._drawer.look()
    assert len(tuned.scheduler.timesteps) == 7
    weights = {name: torch.stack([way.weights[name] for way in panel.ways.values()]) for name in way_names(panel)}
    unet = fast.varied(panel._plain.unet, weights)
    options = {"steps": 2, "guidance_scale": settings["guidance"], "unet": unet}
    slow = diffusion.draw(panel._plain, [panel.prompt.value] * 4, 0, **options)
    assert torch.allclose(panel.result, slow, atol=2e-3)
    assert (panel.result[0] - panel.result[2]).abs().max() > 0.05, "each with its own weights"


def way_names(panel) -> list[str]:
    return list(next(iter(panel.ways.values())).weights)


# ---- Energy ----------------------------------------------------------------------------------------------------------


class TestEnergyExplorer:
    def test_points_go_in_and_out(self):
        panel = EnergyExplorer(n=5)
        assert panel.array.shape == (5, 2) and np.allclose(np.linalg.norm(panel.array, axis=1), 1)
        for form in ([[2, 0], [0, -3]], np.array([[2, 0], [0, -3]]), torch.tensor([[2.0, 0], [0, -3]])):
            panel.array = np.eye(3)
            panel.array = form
            assert panel.array.tolist() == [[1, 0], [0, -1]] and panel.home == panel.points
        assert EnergyExplorer(dimension=3).array.shape == (8, 3)
        assert np.array_equal(EnergyExplorer(seed=4).array, EnergyExplorer(seed=4).array)
        sent = [[math.cos(0.1), math.sin(0.1)], [-0.6000000000000001, 0.8]]
        panel.set_trait("points", sent)
        assert panel.points == sent, "or the browser would take them for others, and forget what it can undo"

    @pytest.mark.parametrize("dimension", [2, 3])
    @pytest.mark.parametrize("s", [0, 1, 2])
    @pytest.mark.parametrize("half_space", [False, True])
    def test_energy_and_force(self, dimension, s, half_space):
        panel = EnergyExplorer(n=6, dimension=dimension, s=s, half_space=half_space)
        x = torch.tensor(panel.array, requires_grad=True)
        unit = x / x.norm(dim=1, keepdim=True)
        all_points = torch.cat([unit, -unit]) if half_space else unit
        z = torch.cdist(all_points, all_points)[~torch.eye(len(all_points), dtype=torch.bool)]
        total = (-z.log() if s == 0 else z**-s).sum()
        total.backward()
        assert panel.energy == pytest.approx(total.item())
        assert np.allclose(force(panel.array, s, half_space), -x.grad.numpy())

    @pytest.mark.parametrize(
        ("points", "says"),
        [
            (
                [[1, 0]],
                r"points of shape \(1, 2\); give \(n, 2\) for a circle or \(n, 3\) for a sphere, with n from 2 to 32",
            ),
            (np.ones((33, 2)), r"points of shape \(33, 2\)"),
            (np.ones((4, 5)), r"points of shape \(4, 5\)"),
            ([[1, 0], [0, 0]], r"point 1 is \[0.0, 0.0\], which has no direction"),
            ([[1, 0], [math.nan, 0]], r"point 1 is \[nan, 0.0\]"),
        ],
    )
    def test_what_is_no_direction_is_refused(self, points, says):
        panel = EnergyExplorer()
        with pytest.raises(ValueError, match=says):
            EnergyExplorer(points)
        with pytest.raises(ValueError, match=says):
            panel.array = points
        with pytest.raises(traitlets.TraitError, match=says):
            panel.set_trait("points", np.asarray(points).tolist())

    def test_arguments_are_checked(self):
        with pytest.raises(ValueError, match="dimension=4 cannot be drawn; give 2 for a circle or 3 for a sphere"):
            EnergyExplorer(dimension=4)
        with pytest.raises(ValueError, match="s=3 is not among 0, 1 and 2"):
            EnergyExplorer(s=3)

    def test_it_leaves_a_picture_of_the_points(self):
        panel = EnergyExplorer([[1, 0], [0, 1], [-1, 0], [0, -1]], side=290)  # 100 pixels a radius
        picture = kept(panel)[:338, :290]
        for x, y in panel.array:
            assert apart(picture[round(145 - 100 * y), round(145 + 100 * x)], (0, 114, 178)) < 12
        orange = np.abs(picture - np.array((213, 94, 0))).sum(-1) < 60
        assert not orange.any(), "no force, when points are spread evenly"
        panel.array = [[1, 0], [0.9, 0.1], [-1, 0]]
        assert (np.abs(kept(panel) - np.array((213, 94, 0))).sum(-1) < 60).any()


def test_the_scripts_are_part_of_the_package():
    panels = [EnergyExplorer(), TrainingScrubber({0: sheet("red")}), Cropper([smooth(64, 64)], 64), LiveSlider()]
    for panel in panels:
        script = str(panel._esm) + str(panel._css)
        assert "aria-" in script and "http" not in script.replace("http://www.w3.org/2000/svg", "")
