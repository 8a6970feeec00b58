"""The commands that make the models, as processes that may be killed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel
from safetensors.torch import load_file
from typer.testing import CliRunner

from companion.pretraining import eye, halfway, report
from companion.pretraining.command import app
from companion.pretraining.latents import trained_vae
from companion.pretraining.publishing import trained_unet
from companion.tabletop.samples import held_out
from companion.training import read_meta


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["unet", "--size", "12"], "size=12 is not a stage; train with --size 8, then with --size 16"),
        (["controlnet", "blur"], "'blur' is no condition; the eight are canny, softedge, mlsd"),
        (["early", "blur"], "'blur' is no condition; the eight are canny, softedge, mlsd"),
        (["strip", "one", "two", "--names", "first"], "1 names for 2 commits; give one for each"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_sentence(words, sentence):
    result = CliRunner().invoke(app, words)
    said = " ".join(result.output.replace("│", " ").split())
    assert result.exit_code == 2 and sentence in said


def run_build(folder: Path, *args: str, kill_after: int | None = None, here: bool = False) -> None:
    """A command of the build in a process of its own, killed after so many steps; or in this one."""
    words = [*args, "--folder", str(folder), "--threads", "1", *([] if args[0] == "latents" else ["--every", "0"])]
    if here:
        threads = torch.get_num_threads()
        try:
            CliRunner().invoke(app, words, catch_exceptions=False)
        finally:
            torch.set_num_threads(threads)
        return
    command = [sys.executable, "-m", "companion.pretraining.command", *words]
    if kill_after is None:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return
    path = folder / f"{name_of(args)}.safetensors"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not (path.exists() and read_meta(path)["step"] >= kill_after):
        assert process.poll() is None, "the command ended before it could be killed"
        time.sleep(0.02)
    process.kill()
    process.wait()


def name_of(command: tuple[str, ...]) -> str:
    """What a command's checkpoint is called."""
    if command[0] in ("controlnet", "early"):
        return f"{command[0]}-{command[1]}"
    return f"unet{command[command.index('--size') + 1]}" if command[0] == "unet" else command[0]


def test_an_eye_s_sheets_and_verdicts(tmp_path, monkeypatch):
    pictures = np.zeros((120, 128, 128, 3), np.uint8)
    monkeypatch.setattr(report, "drawn_bytes", lambda pipe, texts: pictures[: len(texts)])
    monkeypatch.setattr(eye, "VERDICTS", tmp_path / "verdicts.json")
    drawn = CliRunner().invoke(app, ["eye", "--folder", str(tmp_path)])
    assert drawn.exit_code == 0 and len(list((tmp_path / "eye").glob("*.png"))) == 14
    # A viewer who sees cubes everywhere, and nothing else.
    given = tmp_path / "given.txt"
    given.write_text("\n".join(f"{i} cube clear; cube clear" for i in range(160)), encoding="utf-8")
    kept = CliRunner().invoke(app, ["eye", str(given), "--folder", str(tmp_path), "--by", "a test"])
    assert kept.exit_code == 0 and "160 verdicts in" in kept.output.replace("\n", "")
    found = eye.load_verdicts(tmp_path / "verdicts.json")
    assert len(found) == 160 and [v.prompt for v in found] == sorted(v.prompt for v in found)
    prompts = eye.load_prompts()
    assert {prompts[v.prompt].kinds[v.thing] for v in found if v.word == "clear"} == {"cube"}
    scenes = held_out(eye.CONTROLS)[1]
    cubes = sum(t.kind == "cube" for s in scenes for t in s.things)
    controls = eye.load_controls(tmp_path / "verdicts.json")
    assert controls["clear"] == cubes and sum(controls.values()) == sum(len(s.things) for s in scenes)


def test_an_eye_looks_at_pictures_that_follow_a_control(tmp_path, monkeypatch):
    monkeypatch.setattr(eye, "STEERED", 3)
    monkeypatch.setattr(eye, "VERDICTS", tmp_path / "verdicts.json")
    drawn = CliRunner().invoke(app, ["eye", "--control", "depth", "--folder", str(tmp_path)])
    assert drawn.exit_code == 0 and len(list((tmp_path / "eye" / "depth").glob("*.png"))) == 4
    given = tmp_path / "given.txt"
    given.write_text("\n".join(f"{i} tree clear; cube doubtful" for i in range(43)), encoding="utf-8")
    kept = CliRunner().invoke(app, ["eye", str(given), "--control", "depth", "--folder", str(tmp_path)])
    assert kept.exit_code == 0 and not eye.VERDICTS.exists()
    prompts, pictures = report.steered(report.load_tabletop(), "depth")
    found = eye.load_verdicts(eye.verdicts_with("depth"))
    assert len(found) == sum(len(p.kinds) for p in prompts)
    assert {v.picture for v in found} == {eye.fingerprint(x) for x in pictures}
    both = CliRunner().invoke(app, ["eye", "--control", "depth", "--untouched", "--folder", str(tmp_path)])
    assert both.exit_code == 2 and "look at one at a time" in " ".join(both.output.replace("│", " ").split())
    unknown = CliRunner().invoke(app, ["eye", "--control", "smell", "--folder", str(tmp_path)])
    assert unknown.exit_code == 2 and "'smell' is no condition" in unknown.output.replace("\n", "")


def test_an_eye_looks_at_renders_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(eye, "STEERED", 3)
    monkeypatch.setattr(eye, "VERDICTS", tmp_path / "verdicts.json")
    drawn = CliRunner().invoke(app, ["eye", "--untouched", "--folder", str(tmp_path)])
    assert drawn.exit_code == 0 and len(list((tmp_path / "eye" / "untouched").glob("*.png"))) == 4
    given = tmp_path / "given.txt"
    given.write_text("\n".join(f"{i} tree clear; cube doubtful" for i in range(43)), encoding="utf-8")
    kept = CliRunner().invoke(app, ["eye", str(given), "--untouched", "--folder", str(tmp_path)])
    assert kept.exit_code == 0 and not eye.VERDICTS.exists()
    renders, scenes = held_out()
    some = slice(eye.CONTROLS, eye.CONTROLS + 3)
    found = eye.load_verdicts(eye.verdicts_with(eye.UNTOUCHED))
    assert {v.picture for v in found} == {eye.fingerprint(x) for x in renders[some]}
    assert len(found) == sum(len(s.things) for s in scenes[some])


@pytest.mark.slow
def test_every_training_command_killed_and_resumed_equals_an_unbroken_run(small_world, tmp_path, monkeypatch):
    # The look at a U-Net when it has ended takes longer than these few steps, and is at few pictures here.
    monkeypatch.setattr(halfway, "sketch", partial(halfway.sketch, prompts=halfway.SKETCH_PROMPTS[:2], steps=2))
    monkeypatch.setattr(halfway, "errors", partial(halfway.errors, timesteps=(500,)))
    count, many, few = ("--count", "32"), 12, 6  # few where a step, or the look that follows it, takes long
    more = ("--no-words", "--bfloat16", "--low", "0.3", "--factor", "3", "--robots", "8")  # its text encoder is frozen
    commands = [
        (few, "vae", "--bfloat16", "--noise", "0.1", *count),
        (many, "clip", "--batch", "8", *count),
        (many, "judge", "--batch", "8", "--few", "16", *count),
        (many, "shape", "--few", "16"),
        (few, "unet", "--size", "8", "--batch", "4", *count),
        (few, "unet", "--size", "16", "--batch", "2", *more, *count),
        (few, "decoder", "--sharpness", "0.5", "--mend", *count),
        (few, "controlnet", "canny", "--batch", "2", "--bfloat16", "--measured", "4", *count),
        (many, "early", "depth", "--batch", "2", "--measured", "4", *count),
    ]
    folders = [tmp_path / "whole", tmp_path / "broken"]
    for folder in folders:
        shutil.copytree(small_world, folder)
    for steps, *words in commands:
        command = (*words, "--steps", str(steps))
        run_build(folders[0], *command, here=True)  # only what is killed needs a process, which takes long to start
        run_build(folders[1], *command, kill_after=2)
        name = name_of(command)
        stopped = read_meta(folders[1] / f"{name}.safetensors")["step"]
        assert 2 <= stopped < steps
        run_build(folders[1], *command, here=True)
        a, b = (load_file(f / f"{name}.safetensors") for f in folders)
        assert a.keys() == b.keys()
        worst = max(float((a[k].float() - b[k].float()).abs().max()) for k in a)
        assert worst == 0, f"{name} differs by {worst} after a kill at step {stopped}"
    net = ControlNetModel.from_pretrained(folders[0] / "early-depth")
    assert net.controlnet_mid_block.weight.abs().max() > 0, "it has learned something"
    # What the last stages left out of their checkpoints is found where they kept it.
    for folder in folders:
        first, last = (load_file(folder / f"unet{size}.safetensors") for size in (8, 16))
        assert not any("text_encoder" in name for name in last)
        unet = trained_unet(folder).state_dict()
        assert all(torch.equal(v, (last if k.startswith("unet.") else first)[f"ema.{k}"]) for k, v in unet.items())
        encoder, decoder = (load_file(folder / f"{name}.safetensors") for name in ("vae", "decoder"))
        for k, v in trained_vae(folder).state_dict().items():
            expected = decoder[f"ema.vae.{k}"] if "decoder." in k or "post_quant" in k else encoder[f"ema.{k}"]
            assert torch.equal(v, expected), k
