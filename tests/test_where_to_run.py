"""Costs against published counts and closed forms, the formulas that use them, and notebook 07 with other models."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import companion
from companion import latent_diffusion as ld
from companion import where_to_run as w
from companion.run import run
from companion.where_to_run import (
    GB,
    MACHINES,
    SD15,
    SDXL,
    Cost,
    Machine,
    core_seconds,
    cost,
    decision,
    learning_memory,
    lora_parameters,
    operations,
    peak_bytes,
    rate,
    seconds_per_picture,
)


@pytest.fixture(scope="module")
def pipe(tiny):
    return companion.load(tiny, device="cpu")


@pytest.fixture(scope="module")
def sd15() -> Cost:
    return cost(SD15)


@pytest.fixture(scope="module")
def xl() -> Cost:
    return cost(SDXL)


class TestCounting:
    def test_parameters_are_those_of_the_published_checkpoints(self, sd15, xl):
        assert sd15.parameters == {"text encoder": 123_060_480, "unet": 859_520_964, "vae": 83_653_863}
        assert xl.parameters["unet"] == 2_567_463_684 and xl.parameters["text encoder 2"] == 694_659_840

    def test_a_pipeline_s_shape_has_its_parameters_and_operations(self, pipe):
        counted = cost(w.shape_of(pipe, "tiny"))
        for name, part in (("unet", pipe.unet), ("vae", pipe.vae), ("text encoder", pipe.text_encoder)):
            assert counted.parameters[name] == sum(p.numel() for p in part.parameters())
        tokens = pipe.tokenizer.model_max_length
        assert counted.step == 2 * sum(ld.unet_flops(pipe.unet, 4, tokens=tokens).values())
        assert counted.picture(10) == 10 * counted.step + counted.decoding

    def test_operations_of_a_linear_layer(self):
        with torch.device("meta"):
            assert operations(nn.Linear(30, 50), torch.empty(7, 30)) == 2 * 7 * 30 * 50

    def test_peak_bytes_of_a_chain(self):
        """Two of three layers' results live at once; in training all are kept."""

        class Chain(nn.Module):
            def forward(self, x):
                for _ in range(6):
                    x = torch.sin(x)
                return x

        with torch.device("meta"):
            x = torch.empty(1000, requires_grad=True)
        assert peak_bytes(Chain(), x) == 2 * 4000
        assert peak_bytes(Chain(), x, learning=True) == 6 * 4000

    def test_views_and_changes_in_place_take_no_memory(self):
        class InPlace(nn.Module):
            def forward(self, x):
                return (x * 2).view(-1).add_(1)

        with torch.device("meta"):
            assert peak_bytes(InPlace(), torch.empty(10, 10)) == 400

    def test_fused_attention_stores_no_matrix(self):
        class Attend(nn.Module):
            def forward(self, q):
                return F.scaled_dot_product_attention(q, q, q)

        with torch.device("meta"):
            q = torch.empty(1, 2, 100, 8)
        assert peak_bytes(Attend(), q) == q.numel() * 4
        assert peak_bytes(Attend(), q, fused=False) >= 2 * 100 * 100 * 4

    def test_fused_attention_keeps_for_learning_what_the_way_back_needs(self):
        """Query, key, value and result, and a number in single precision for each row of the matrix."""

        class Attend(nn.Module):
            def forward(self, x):
                q, k, v = x * 2, x[:, :, :30] * 3, x[:, :, :30] * 4
                return F.scaled_dot_product_attention(q, k, v)

        with torch.device("meta"):
            x = torch.empty(1, 2, 100, 8, dtype=torch.float16, requires_grad=True)
        query, shorter, rows = 2 * x.numel(), 2 * 2 * 30 * 8, 4 * 2 * 100
        assert peak_bytes(Attend(), x, learning=True) == 2 * query + 2 * shorter + rows
        assert peak_bytes(Attend(), x) == 2 * query + 2 * shorter, "all of them live while the result is made"

    def test_fused_attention_keeps_as_much_as_torch_s_own(self):
        """The bytes that autograd saves for the way back, counted for torch's fused attention on the CPU."""
        saved = {}

        def keep(tensor):
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        q, k, v = (torch.randn(1, n, 2, 8).transpose(1, 2).requires_grad_() for n in (100, 30, 30))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
        theirs = sum(saved.values())
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            w._fused(q, k, v)
        assert sum(saved.values()) == theirs

    def test_sdxl_s_decoder_works_in_single_precision(self, sd15, xl):
        assert xl.single == xl.parameters["vae"] and sd15.single == 0
        assert xl.weights() == 2 * xl.total + 2 * xl.parameters["vae"] and sd15.weights() == 2 * sd15.total
        assert xl.memory() == xl.weights() + xl.drawing
        assert xl.memory(bytes_each=4) == 4 * xl.total + xl.drawing_single
        vae = nn.Module.to(SDXL.part("vae"), torch.float16)
        with torch.device("meta"):
            latents = torch.empty(1, 4, 128, 128, dtype=torch.float16)
        assert xl.drawing == pytest.approx(2 * peak_bytes(vae.decode, latents), rel=0.01)

    def test_peak_bytes_are_those_that_torch_really_allocates(self, pipe):
        """The same U-Net on the CPU, its allocations as torch's profiler reports them."""
        given = torch.zeros(2, 4, 4, 4), torch.tensor(1), torch.zeros(2, 16, 16)
        with torch.no_grad(), torch.profiler.profile(profile_memory=True) as profile:
            pipe.unet(*given)
        now = peak = 0
        for event in profile.profiler.kineto_results.events():
            if event.name() == "[memory]":
                now += event.nbytes()
                peak = max(peak, now)
        copy = w.shape_of(pipe, "tiny").part("unet")
        predicted = peak_bytes(copy, *(t.to("meta") for t in given), fused=False)
        assert predicted == pytest.approx(peak, rel=0.35), "workspaces of convolutions are not counted"

    def test_memory_grows_with_pixels_and_batch_as_the_formula_says(self, sd15):
        unet = nn.Module.to(SD15.part("unet"), torch.float16)
        args, _ = w._unet_inputs(SD15, 2, 256, torch.float16)
        four, _ = w._unet_inputs(SD15, 8, 256, torch.float16)
        small, large = peak_bytes(unet, *args), peak_bytes(unet, *four)
        assert large / small == pytest.approx(4, rel=0.05)
        weights = 2 * sd15.total
        assert sd15.memory(1024) - weights == pytest.approx(4 * (sd15.memory() - weights))
        assert sd15.memory(512, batch=3) - weights == pytest.approx(3 * (sd15.memory() - weights))
        assert sd15.memory(bytes_each=4) == pytest.approx(2 * sd15.memory())

    def test_a_lora_has_as_many_parameters_as_peft_s(self, pipe):
        from peft import LoraConfig, inject_adapter_in_model

        unet = type(pipe.unet).from_config(pipe.unet.config)
        counted = lora_parameters(unet, 4)
        inject_adapter_in_model(LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]), unet)
        assert counted == sum(p.numel() for name, p in unet.named_parameters() if "lora" in name) > 0


class TestFormulas:
    def test_learning_with_adam_takes_sixteen_bytes_a_number(self, sd15):
        frozen = sd15.total - sd15.parameters["unet"]
        whole = 16 * sd15.parameters["unet"] + 2 * frozen
        assert learning_memory(sd15, "everything, Adam") == whole + sd15.learning
        assert learning_memory(sd15, "everything, Adam", checkpointing=True) == whole + 0.1 * sd15.learning
        lora = learning_memory(sd15, "a LoRA of rank 4")
        assert lora == 16 * sd15.adapter + 2 * sd15.total + sd15.learning
        single = learning_memory(sd15, "a LoRA of rank 4", bytes_each=4)
        assert single == 16 * sd15.adapter + 4 * sd15.total + 2 * sd15.learning
        with pytest.raises(ValueError, match="method='magic' is unknown; there are everything, Adam"):
            learning_memory(sd15, "magic")

    def test_a_published_speed_is_given_back(self, sd15):
        machine = Machine("x", 16 * GB, {"SD 1.5": 5.0})
        assert rate(machine, sd15) == 5 * sd15.step
        seconds = seconds_per_picture(machine, sd15, sd15, 30)
        assert seconds == pytest.approx(30 / 5 + sd15.decoding / sd15.step / 5)

    def test_another_model_takes_longer_by_its_operations(self, sd15, xl):
        machine = Machine("x", 16 * GB, {"SD 1.5": 5.0})
        ratio = seconds_per_picture(machine, xl, sd15, 30) / seconds_per_picture(machine, sd15, sd15, 30)
        assert ratio == pytest.approx(xl.picture(30) / sd15.picture(30))

    def test_a_thousand_pictures_cost_what_their_hours_cost(self, sd15):
        machine = Machine("x", 16 * GB, {"SD 1.5": 5.0}, dollars=2.0)
        hours = 1000 * seconds_per_picture(machine, sd15, sd15, 30) / 3600
        assert w.dollars_per_thousand(machine, sd15, sd15, 30) == pytest.approx(2.0 * hours)
        assert w.dollars_per_thousand(Machine("y", GB, {"SD 1.5": 5.0}), sd15, sd15, 30) is None

    def test_the_decision_says_what_does_not_fit(self, sd15):
        small = Machine("small", 4 * GB, {"SD 1.5": 1.0})
        tiny = Machine("tiny", 1 * GB, {"SD 1.5": 1.0})
        table = decision([sd15], sd15, ("here", 16 * GB, {"other": 1e11, "another": 1e10}), [small, tiny], steps=10)
        rows = {row[0]: row[1:] for row in table.rows}
        here, fits, not_there = rows["SD 1.5: draw at 512 px"]
        assert here == w.duration(sd15.picture(10) / 1e11) and fits.endswith(" s")
        assert re.fullmatch(rf"{w.NO} \(needs \d\.\d GB; 0\.9 GB may be used\)", not_there)
        assert all(cell.startswith(w.NO) for cell in rows["SD 1.5: teach everything, Adam"][1:])
        assert rows["SD 1.5: teach a LoRA of rank 4"][1] in ("fits", "with checkpointing")

    def test_every_machine_has_a_speed_to_go_by(self):
        assert all("SD 1.5" in machine.steps and machine.memory >= 16 * GB for machine in MACHINES)

    def test_a_small_model_gets_no_time_from_a_large_one_s(self, pipe, sd15):
        """A GPU that is mostly waiting does not get faster with less work."""
        table = decision([cost(w.shape_of(pipe, "tiny"))], sd15, ("here", 16 * GB, {"other": 1e12, "tiny": 1e9}))
        assert table.rows[0][2:] == ["fits"] * len(MACHINES)
        assert table.rows[0][1] == w.duration(cost(w.shape_of(pipe, "tiny")).picture(30) / 1e9), "by its own speed"

    def test_this_machine_has_all_its_cores(self):
        name, memory, speeds = w.this_machine(torch.device("cpu"), {"one": 1e9})
        speed = speeds["one"]
        assert speed % 1e9 == 0 and memory > 1e8 and str(int(speed / 1e9)) in name

    @pytest.mark.parametrize(("n", "words"), [(3.1e6, "3 MB"), (0.42e9, "0.4 GB"), (14.2e9, "14 GB")])
    def test_size(self, n, words):
        assert w.size(n) == words

    @pytest.mark.parametrize(("seconds", "words"), [(0.44, "0.4 s"), (12.3, "12 s"), (600, "10 min")])
    def test_duration(self, seconds, words):
        assert w.duration(seconds) == words


class TestMeasuring:
    def test_core_seconds_are_this_core_s(self):
        a = torch.randn(200, 200)
        once = core_seconds(lambda: [a @ a for _ in range(20)], repeats=2)
        assert 0 < once < 5
        threads = torch.get_num_threads()
        core_seconds(lambda: None)
        assert torch.get_num_threads() == threads

    def test_a_measured_step_comes_with_its_operations(self, pipe):
        seconds, counted = w.measured_step(pipe.unet, 16, 16, 4)
        assert seconds > 0 and counted == 2 * sum(ld.unet_flops(pipe.unet, 4, tokens=16).values())

    def test_a_narrower_u_net_has_the_same_shape(self):
        full, narrow = (sum(1 for _ in w.sd15_unet(n).parameters()) for n in (10, 5))
        assert full == narrow
        with pytest.raises(ValueError, match="narrower=3 does not divide"):
            w.sd15_unet(3)

    def test_the_kept_result_is_of_the_model_that_it_names(self, sd15):
        kept = w.kept_step()
        assert kept["parameters"] == sd15.parameters["unet"] and kept["operations"] == sd15.step
        assert kept["command"] == "python -m companion.where_to_run"
        assert kept["seconds"] > 1 and not math.isclose(kept["seconds"], kept["narrower_seconds"])


class TestPanel:
    def test_every_slider_draws_anew(self, sd15):
        from companion.widgets.fit import FitPanel

        panel = FitPanel([sd15])
        for control, value in ((panel.pixels, 2048), (panel.batch, 16)):
            before = panel.picture.value
            control.value = value
            assert panel.picture.value != before
        assert "SD 1.5:" in panel.message.value and "fits" in panel.message.value


@pytest.mark.notebooks
@pytest.mark.slow
def test_the_notebook_runs_with_another_model(tiny, tmp_path, capsys):
    parameters = {"MODEL": str(tiny), "NARROWER": [10], "STEPS": 2}
    assert run("07", out=tmp_path / "out", timeout=300, parameters=parameters) == 0, capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "07_where_to_run.ipynb").read_text(encoding="utf-8"))["nbformat"] == 4
