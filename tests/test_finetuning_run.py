"""A finetuning's folder holds everything to repeat it, and a run that was killed goes on to the same weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionPipeline
from PIL import Image
from processes import forked, free_port, kill_all
from safetensors.torch import load_file

import companion
from companion.diffusion import picture_size
from companion.files import read_rows
from companion.finetuning import Examples, Lora, attach, errors, sets_loss
from companion.finetuning_run import Folder
from companion.models import seeded
from companion.training import read_meta

KILLS = 10
SAMPLING = {"steps": 2, "guidance_scale": 2.0}


@pytest.fixture(scope="module")
def pipe(tiny):
    return companion.load(tiny, device="cpu")


@pytest.fixture(scope="module")
def photos(pipe, tmp_path_factory) -> Path:
    """Four pictures of the tiny pipeline's size, one with a caption of its own."""
    folder, size = tmp_path_factory.mktemp("photos"), picture_size(pipe)
    for i in range(4):
        noise = np.random.default_rng(i).integers(0, 255, (4, 4, 3), np.uint8)
        Image.fromarray(noise).resize((size, size), Image.Resampling.NEAREST).save(folder / f"{i}.png")
    (folder / "2.txt").write_text("a ball of another kind", encoding="utf-8")
    return folder


def a_set(pipe) -> Examples:
    return Examples(torch.randn(3, 4, 4, 4, generator=seeded(1)), ["a ball"] * 3)


def run(folder: Path, pipe, steps: int = 20, measure=None, **settings):
    tuned = attach(pipe, Lora(rank=2), seed=0)
    made = Folder(folder, {"steps": steps, **settings})
    options = {"prompts": ["a ball", "a cube"], "sampling": SAMPLING, "show": 10, "lr": 0.01, "measure": measure}
    return tuned, made, made.run(tuned, [a_set(pipe)], steps, **options)


def test_its_folder_holds_everything(pipe, tmp_path):
    _, made, steps = run(tmp_path / "run", pipe)
    assert [p.step for p in steps] == list(range(1, 21))
    stored = json.loads((made.path / "settings.json").read_text(encoding="utf-8"))
    assert stored["settings"]["steps"] == 20 and stored["versions"]["torch"] == torch.__version__
    assert sorted(p.name for p in (made.path / "samples").iterdir()) == ["000000.png", "000010.png", "000020.png"]
    size = picture_size(pipe)
    with Image.open(made.path / "samples" / "000020.png") as sheet:
        assert sheet.size == (2 * size, size)
    assert [line["step"] for line in made.log()] == [10, 20]
    assert [line["step"] for line in made.metrics()] == [0, 10, 20]
    assert (made.path / "learned" / "pytorch_lora_weights.safetensors").exists()
    page = (made.path / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 4 and "after 10 steps" in page and "diffusers" in page


def test_what_it_measures_says_what_was_learned_and_is_kept(pipe, tmp_path):
    """The errors are those of the same noise each time: learning by heart brings them down, without a jump."""
    tuned, made, steps = run(tmp_path / "run", pipe, 60, lambda pictures: {"brightness": float(pictures.mean())})
    before = errors(tuned, [a_set(pipe)])
    list(steps)
    rows = made.metrics()
    assert [row["step"] for row in rows] == list(range(0, 61, 10))
    assert rows[0]["error"] == pytest.approx(before[0]) and rows[-1]["error"] == pytest.approx(
        errors(tuned, [a_set(pipe)])[0]
    )
    found = [row["error"] for row in rows]
    assert found == sorted(found, reverse=True) and found[-1] < found[0] and "class_error" not in rows[0]
    assert len({row["brightness"] for row in rows}) == len(rows)


def test_errors_are_those_of_the_loss_and_weights_do_not_count(pipe):
    tuned, own = attach(pipe, Lora(rank=2), seed=0), a_set(pipe)
    twice = errors(tuned, [own, Examples(own.latents, own.prompts, weight=7.0)], batch=2, draws=3)
    assert twice[0] == twice[1]
    by_hand = [float(sets_loss(tuned, [own], 2)(tuned.parts, seeded(i), 0).detach()) for i in range(3)]
    assert twice[0] == pytest.approx(sum(by_hand) / 3)


def test_a_folder_of_another_run_is_refused_and_left_alone(pipe, tmp_path):
    list(run(tmp_path / "run", pipe)[2])
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match="holds a run with rank None, and this one has 8"):
        list(run(tmp_path / "run", pipe, rank=8)[2])
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear", encoding="utf-8")
    with pytest.raises(ValueError, match="is not empty, and holds no run"):
        list(run(tmp_path / "mine", pipe)[2])
    # The same settings again: nothing is left to do.
    assert list(run(tmp_path / "run", pipe)[2]) == []


def command(*arguments, processes: int = 1) -> subprocess.Popen:
    how = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", f"--master-port={free_port()}"]
    path = os.pathsep.join(filter(None, (str(companion.ROOT), os.environ.get("PYTHONPATH", ""))))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *(how if processes > 1 else ()), "-m", "companion.cli", "train", *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen) -> str:
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return out


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_weights(tiny, photos, tmp_path):
    steps = 40 * KILLS
    common = ("lora", photos, "--model", tiny, "--prompt", "a mine ball", "--class-prompt", "a ball", "--steps", steps)
    common += ("--class-count", 3, "--lr", 0.01, "--show-every", 1000, "--save-every", 0)
    assert "report.html" in finished(command(*common, "--out", tmp_path / "whole"))
    state, rng, killed = tmp_path / "broken" / "run.safetensors", np.random.default_rng(0), []
    drawn = tmp_path / "broken-class"
    while len(killed) < KILLS:
        process = forked("train", *common, "--out", tmp_path / "broken")
        before, aim = killed[-1] if killed else 0, int(rng.integers(0, 25))
        while process.is_alive():  # the first while class pictures are drawn, the others a few steps further on
            if drawn.exists() if not killed else state.exists() and read_meta(state)["step"] >= before + aim:
                time.sleep(rng.uniform(0, 0.02))
                os.kill(process.pid, signal.SIGKILL)
                break
            time.sleep(0.002)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        killed.append(read_meta(state)["step"] if state.exists() else 0)
    assert killed == sorted(killed) and killed[0] == 0 < killed[1] and killed[-1] < steps
    finished(command(*common, "--out", tmp_path / "broken"))
    whole, broken = (
        load_file(tmp_path / name / "learned" / "pytorch_lora_weights.safetensors") for name in ("whole", "broken")
    )
    assert whole.keys() == broken.keys() and all(torch.equal(v, broken[k]) for k, v in whole.items())
    lines = (tmp_path / "broken" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(10, steps + 1, 10))
    whole, broken = (read_rows(tmp_path / name / "metrics.jsonl") for name in ("whole", "broken"))
    assert whole == broken and [row["step"] for row in whole] == [0, steps]
    assert whole[0].keys() == {"step", "error", "class_error"}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_two_processes_that_are_killed_go_on_to_the_same_weights(tiny, pipe, photos, tmp_path):
    """As `accelerate launch` starts them for two GPUs, here on the CPU."""
    common = ("lora", photos, "--model", tiny, "--prompt", "a mine ball", "--class-prompt", "a ball", "--steps", 30)
    common += ("--class-count", 3, "--lr", 0.01, "--show-every", 1000, "--save-every", 0)
    printed = finished(command(*common, "--out", tmp_path / "whole", processes=2))
    assert printed.count("What was learned is in") == 1, "one of them speaks"
    state = tmp_path / "broken" / "run.safetensors"
    process = command(*common, "--out", tmp_path / "broken", processes=2)
    while process.poll() is None and not (state.exists() and read_meta(state)["step"] >= 8):
        time.sleep(0.002)
    kill_all(process)
    assert 8 <= read_meta(state)["step"] < 30
    finished(command(*common, "--out", tmp_path / "broken", processes=2))
    files = [tmp_path / name / "learned" / "pytorch_lora_weights.safetensors" for name in ("whole", "broken")]
    whole, broken = map(load_file, files)
    assert whole.keys() == broken.keys() and all(torch.equal(v, broken[k]) for k, v in whole.items())
    lines = (tmp_path / "broken" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [10, 20, 30], "one of them writes"
    stock = StableDiffusionPipeline.from_pretrained(tiny, safety_checker=None)
    stock.load_lora_weights(files[0].parent, weight_name=files[0].name, local_files_only=True)
    with pytest.raises(AssertionError, match="with processes 2, and this one has 1"):
        finished(command(*common, "--out", tmp_path / "whole"))


@pytest.mark.slow
def test_every_method_runs_from_the_command_line(tiny, photos, tmp_path):
    common = (photos, "--model", tiny, "--steps", 2, "--lr", 0.01)
    words = ("--prompt", "a mine ball", "--show", "a ball")
    runs = {
        "dreambooth": (*words, "--average", "0.5"),
        "oft": (*words, "--merge"),
        "textual-inversion": ("--prompt", "a <mine> ball", "--initial", "a"),
        "controlnet": ("--condition", "canny", "--prompt", "a ball"),
        "t2i-adapter": ("--maps", photos),
    }
    processes = {name: command(name, *common, *extra, "--out", tmp_path / name) for name, extra in runs.items()}
    for process in processes.values():
        assert "What was learned is in" in finished(process)
    StableDiffusionPipeline.from_pretrained(tmp_path / "dreambooth" / "learned", safety_checker=None)
    turned = StableDiffusionPipeline.from_pretrained(tmp_path / "oft" / "merged", safety_checker=None)
    before = StableDiffusionPipeline.from_pretrained(tiny, safety_checker=None)
    a, b = (dict(p.unet.named_parameters()) for p in (turned, before))
    assert a.keys() == b.keys() and any(not torch.equal(a[name], b[name]) for name in a)
    told = json.loads((tmp_path / "dreambooth" / "settings.json").read_text(encoding="utf-8"))
    assert told["settings"]["averaged"] == 0.5 and told["source"]["photos"] == str(photos)
    assert "train dreambooth" in told["source"]["command"]
    row = load_file(tmp_path / "textual-inversion" / "learned" / "learned_embeds.safetensors")
    assert list(row) == ["<mine>"]
    ControlNetModel.from_pretrained(tmp_path / "controlnet" / "learned")
    told = json.loads((tmp_path / "controlnet" / "settings.json").read_text(encoding="utf-8"))["settings"]
    assert told["condition"] == "canny" and told["drop"] == 0.5
    assert len(list((tmp_path / "dreambooth" / "samples").iterdir())) == 2


def test_maps_keep_the_colours_that_stand_for_something(tmp_path):
    from companion.finetuning_command import _maps

    labels = np.zeros((60, 90, 3), np.uint8)
    labels[:, 40:], labels[31:, :70] = (120, 120, 180), (4, 250, 7)
    Image.fromarray(labels).save(tmp_path / "a.png")
    Image.fromarray(labels).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "b.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 60, 3), np.uint8)).save(tmp_path / "c.png")
    (tmp_path / "a.txt").write_text("a caption", encoding="utf-8")
    found = _maps(tmp_path, 32)
    assert list(found) == ["a", "b", "c"] and {picture.size for picture in found.values()} == {(32, 32)}
    for name in ("a", "b"):
        colours = {colour for _, colour in found[name].getcolors()}
        assert colours == {(0, 0, 0), (120, 120, 180), (4, 250, 7)}
    assert found["a"].getpixel((31, 0)) == (120, 120, 180), "the middle square"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("lora",), "The pictures need a --prompt"),
        (("controlnet",), "needs --condition or --maps"),
        (("lora", "--prompt", "a", "--condition", "canny"), "are for a ControlNet; train lora does not use them"),
        (("controlnet", "--condition", "mood"), "--condition 'mood' is unknown; the eight are canny"),
        (("controlnet", "--condition", "depth"), "No mirror gave 'depth'"),
        (("controlnet", "--condition", "seg"), "takes ready control pictures with --maps"),
        (("textual-inversion", "--prompt", "a ball"), "a prompt with '<mine>' in it"),
        (("oft", "--prompt", "a", "--text-encoder"), "is for dreambooth and lora; train oft does not use it"),
        (("t2i-adapter", "--condition", "canny", "--merge"), "train t2i-adapter makes a network beside it"),
    ],
    ids=["prompt", "control", "no control", "condition", "no network", "maps", "token", "encoder", "merge"],
)
def test_what_cannot_be_is_said_in_a_sentence(tiny, photos, tmp_path, arguments, sentence):
    from typer.testing import CliRunner

    from companion.cli import app

    given = [arguments[0], str(photos), *arguments[1:], "--model", str(tiny), "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, ["train", *given])
    assert result.exit_code == 2 and sentence in " ".join(result.output.split())
    assert not (tmp_path / "run").exists()


def test_the_card_of_a_lora_says_its_base_and_is_never_written_over(tmp_path):
    import yaml

    from companion.finetuning_command import _card
    from companion.models import CATALOGUE, find

    _card(tmp_path, CATALOGUE["sd15"], 'a "sks" dog 🐕')
    about = yaml.safe_load((tmp_path / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    assert about["instance_prompt"] == 'a "sks" dog 🐕' and about["base_model"] == CATALOGUE["sd15"].mirrors[0]
    (tmp_path / "pytorch_lora_weights.safetensors").touch()
    assert find(tmp_path).base == CATALOGUE["sd15"]
    (tmp_path / "README.md").write_text("mine", encoding="utf-8")
    _card(tmp_path, CATALOGUE["sd15"], "another")
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "mine"


def test_a_lora_cannot_be_trained_on(photos, tmp_path):
    """What was learned would hold the new layers alone, and name as its base what cannot be one."""
    from typer.testing import CliRunner

    from companion.cli import app

    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "pytorch_lora_weights.safetensors").touch()
    (tmp_path / "lora" / "README.md").write_text("---\nbase_model: sd15\n---\n", encoding="utf-8")
    words = [
        "train",
        "lora",
        str(photos),
        "--model",
        str(tmp_path / "lora"),
        "--prompt",
        "a",
        "--out",
        str(tmp_path / "o"),
    ]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2 and "is a LoRA: train with the model below it, --model sd15" in " ".join(
        done.output.split()
    )
