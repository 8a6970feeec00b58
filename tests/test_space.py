"""The Space: what it draws, what it refuses, what is in its folder, and what reaches the hub when it is pushed."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import psutil
import pytest
import space_hub
import torch
import yaml
from hub import Repo, files
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

import companion
from companion import cli
from companion.models import CATALOGUE, LORA, find, seeded
from companion.space import command
from companion.space import studio as studio_module
from companion.space.studio import MAX_STEPS, Studio

TOKEN = "hf_LoopbackSecret0123456789"


@pytest.fixture(scope="module")
def studio(tiny) -> Studio:
    return Studio([str(tiny)], device="cpu", steps=4)


@pytest.fixture(scope="module")
def nets(tiny, tmp_path_factory) -> dict[str, Path]:
    """Folders of untrained ControlNets for the tiny pipeline, which change its pictures."""
    from companion.controlnet import controlnet_of

    found, unet = {}, companion.load(tiny, device="cpu").unet
    for i, condition in enumerate(("canny", "depth", "scribble", "seg")):
        net = controlnet_of(unet, (8, 8, 8, 8), open_embedder=True, seed=i)
        for block in (*net.controlnet_down_blocks, net.controlnet_mid_block):
            torch.nn.init.normal_(block.weight, std=0.3, generator=seeded(i))
        found[condition] = tmp_path_factory.mktemp("nets") / condition
        net.save_pretrained(found[condition])
    return found


@pytest.fixture(scope="module")
def following(tiny, nets) -> Studio:
    return Studio([str(tiny)], device="cpu", steps=4, nets=nets)


@pytest.fixture
def picture() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    return Image.fromarray(noise)


class TestStudio:
    def test_it_draws_what_the_stock_pipeline_draws(self, studio, tiny):
        pipe = companion.load(tiny, device="cpu")
        stock = pipe("a b", num_inference_steps=3, guidance_scale=4.0, generator=seeded(5), negative_prompt="").images[
            0
        ]
        drawn, seed = studio.draw("a b", steps=3, guidance=4.0, seed=5)
        assert seed == 5 and drawn.size == (32, 32) and drawn.tobytes() == stock.tobytes()

    def test_a_seed_by_chance_is_told_and_draws_it_again(self, studio):
        first, seed = studio.draw("a", steps=2, seed=-1)
        assert studio.draw("a", steps=2, seed=seed)[0].tobytes() == first.tobytes()
        assert studio.draw("a", steps=2, seed=-1)[1] != seed

    def test_more_strength_leaves_less_of_the_picture(self, studio, picture):
        fitted = np.asarray(studio.fit(picture), float)
        far = [
            np.abs(np.asarray(studio.vary(picture, "a", strength=s, steps=10, seed=1)[0], float) - fitted).mean()
            for s in (0.2, 1.0)
        ]
        assert far[0] != far[1]
        assert studio.vary(picture, "a", strength=0.5, steps=4, seed=1)[0].size == (32, 32)

    def test_inpainting_leaves_everything_else_as_it_is(self, studio, picture):
        mask = Image.new("L", picture.size)
        mask.paste(255, (20, 10, 40, 30))
        drawn, _ = studio.fill(picture, mask, "a", steps=3, seed=1)
        changed = (np.asarray(drawn) != np.asarray(studio.fit(picture))).any(2)
        hole = np.asarray(studio.fit(mask).convert("L")) > 127
        assert changed[hole].mean() > 0.5 and not changed[~hole].any()

    @pytest.mark.parametrize(
        ("call", "sentence"),
        [
            (lambda s, p: s.draw("  "), "There is no prompt"),
            (lambda s, p: s.draw("a" * 301), "301 letters; 300 are the most"),
            (lambda s, p: s.draw("a", steps=MAX_STEPS + 1), "steps=51 is outside 1 to 50"),
            (lambda s, p: s.draw("a", guidance=99), "guidance=99 is outside 1 to 20"),
            (lambda s, p: s.vary(None, "a"), "There is no picture: upload one"),
            (lambda s, p: s.vary(p, "a", strength=1.4), "strength=1.4 is outside 0.05 to 1"),
            (lambda s, p: s.vary(p, "a", strength=0.1, steps=4), "leave none to take"),
            (lambda s, p: s.fill(p, None, "a"), "There is no mask"),
            (lambda s, p: s.fill(p, Image.new("L", p.size), "a"), "Nothing is painted"),
        ],
    )
    def test_what_cannot_be_drawn_is_refused_in_one_sentence(self, studio, picture, call, sentence):
        with pytest.raises(ValueError, match=sentence):
            call(studio, picture)

    def test_many_at_once_draw_what_each_draws_alone(self, studio, picture):
        """Schedulers remember how far they are: without turns, threads would spoil each other's pictures."""
        alone = {seed: studio.draw("a", steps=4, seed=seed)[0].tobytes() for seed in range(4)}
        varied = studio.vary(picture, "a", seed=1, steps=4)[0].tobytes()
        found: dict = {}

        def one(seed: int) -> None:
            found[seed] = studio.draw("a", steps=4, seed=seed)[0].tobytes()

        threads = [threading.Thread(target=one, args=(seed,)) for seed in alone]
        threads.append(threading.Thread(target=lambda: found.update(v=studio.vary(picture, "a", seed=1, steps=4)[0])))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found.pop("v").tobytes() == varied
        assert found == alone

    def test_the_first_model_that_is_there_is_taken(self, tiny, tmp_path):
        assert Studio([str(tmp_path / "none"), str(tiny)], device="cpu").size == 32
        with pytest.raises(OSError, match="No model could be loaded.*none.*Set the Space's MODEL"):
            Studio([str(tmp_path / "none")], device="cpu")

    def test_a_base_is_for_the_loras_of_the_list_alone(self, tiny, tmp_path):
        """A Space that was built with a LoRA and its base may be told to draw with a pipeline instead."""
        assert Studio([str(tmp_path / "none"), str(tiny)], base=str(tiny), device="cpu").size == 32

    def test_a_pipeline_that_cannot_do_all_of_it_is_refused_in_a_sentence(self, tiny):
        from diffusers import LatentConsistencyModelPipeline, LCMScheduler

        parts = companion.load(tiny, device="cpu").components
        parts["scheduler"] = LCMScheduler.from_config(parts["scheduler"].config)
        with pytest.raises(OSError, match="A LatentConsistencyModelPipeline cannot inpaint: take a Stable Diffusion"):
            Studio(LatentConsistencyModelPipeline(**parts, requires_safety_checker=False))

    def test_every_step_is_told(self, studio, picture):
        for draw, all_of_them in (
            (lambda watch: studio.draw("a", steps=3, watch=watch), 3),
            (lambda watch: studio.vary(picture, "a", strength=0.5, steps=4, watch=watch), 2),
        ):
            told: list = []
            draw(lambda done, total, told=told: told.append((done, total)))
            assert told == [(i + 1, all_of_them) for i in range(all_of_them)]

    def test_it_proposes_what_suits_the_model(self, studio, monkeypatch):
        assert (studio.steps, studio.guidance) == (4, find("tabletop").guidance)
        monkeypatch.setattr(studio_module, "load", lambda *given, **more: studio.text)
        turbo = Studio(["sd-turbo"], device="cpu")
        assert (turbo.steps, turbo.guidance) == (1, 1.0), "one step, without guidance"


class TestUploads:
    """What `companion.pictures` does and says about files holds for all that is given."""

    def test_a_file_is_read_by_the_rules_and_what_was_done_is_said(self, studio, tmp_path):
        turned = Image.new("RGBA", (60, 40), (255, 0, 0, 0))
        exif = turned.getexif()
        exif[0x0112] = 6
        turned.save(tmp_path / "a.png", exif=exif)
        fitted, said = studio.read(str(tmp_path / "a.png"))
        assert fitted.size == (32, 32) and fitted.getpixel((5, 5)) == (255, 255, 255)
        assert (
            said.startswith("PNG, 60 x 40; turned upright") and "laid on white" in said and "shrunk to 32 x 32" in said
        )
        Image.fromarray(np.full((40, 40), 65535, np.uint16)).save(tmp_path / "b.png")
        assert "16 bits to 8" in studio.read(tmp_path / "b.png")[1]
        assert studio.vary(str(tmp_path / "a.png"), "a", steps=4, seed=1)[0].size == (32, 32)

    @pytest.mark.parametrize(
        ("name", "data", "sentence"),
        [
            ("a.pdf", b"%PDF-1.7 words", "'a.pdf' is a PDF document; take a screenshot"),
            ("a.jpg", b"\xff\xd8\xff\xe0" + bytes(50), "'a.jpg'.*(cut short|damaged)"),
            ("a.png", b"", "'a.png' is empty"),
        ],
    )
    def test_what_cannot_be_read_is_told(self, studio, tmp_path, name, data, sentence):
        (tmp_path / name).write_bytes(data)
        for use in (studio.read, lambda path: studio.vary(path, "a", steps=4)):
            with pytest.raises(ValueError, match=sentence):
                use(tmp_path / name)

    def test_an_animation_is_told(self, studio, tmp_path):
        frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
        frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
        with pytest.raises(ValueError, match="is animated, with 2 frames"):
            studio.read(tmp_path / "a.gif")


class TestControlNets:
    def test_it_draws_what_the_stock_pipeline_draws(self, following, tiny, nets, picture):
        from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

        control = following.control("canny", picture)
        drawn, seed = following.follow(control, "canny", "a b", scale=0.7, start=0.1, end=0.8, steps=4, seed=3)
        net = ControlNetModel.from_pretrained(nets["canny"])
        stock = StableDiffusionControlNetPipeline(**companion.load(tiny).components, controlnet=net)
        how = {"num_inference_steps": 4, "guidance_scale": 3.0, "negative_prompt": "", "generator": seeded(3)}
        how |= {"controlnet_conditioning_scale": 0.7, "control_guidance_start": 0.1, "control_guidance_end": 0.8}
        assert seed == 3 and drawn.tobytes() == stock("a b", image=control, **how).images[0].tobytes()
        free = following.draw("a b", steps=4, seed=3)[0]
        assert drawn.tobytes() != free.tobytes()
        assert following.follow(control, "canny", "a b", scale=0, steps=4, seed=3)[0].tobytes() == free.tobytes()

    @pytest.mark.parametrize("condition", ["canny", "scribble"])
    def test_a_map_is_found_as_published_controlnets_learned_it(self, following, picture, condition):
        from companion.photo_conditions import annotator

        fitted = np.array(following.fit(picture))
        found = np.asarray(following.control(condition, picture))
        assert np.array_equal(found, annotator(condition)(fitted[None])[0])

    def test_other_models_get_only_maps_that_need_no_network(self, following, picture):
        assert following.can_find("canny") and following.can_find("scribble") and not following.can_find("depth")
        with pytest.raises(ValueError, match="For depth, .* miniature world only: upload the control picture itself"):
            following.control("depth", picture)
        assert following.control("depth", picture, ready=True).size == (32, 32)

    def test_the_miniature_gets_all_of_them(self, tiny):
        """The judge reads pictures of 128 pixels: the tiny pipeline, with latents of 16."""
        studio = Studio([str(tiny)], device="cpu", nets={name: "" for name in ("depth", "seg", "normal", "openpose")})
        studio.text.unet.register_to_config(sample_size=16)
        studio.size = 128
        picture = Image.effect_noise((128, 128), 60).convert("RGB")
        for condition in studio.conditions:
            assert studio.can_find(condition)
            found = studio.control(condition, picture)
            assert found.size == (128, 128) and found.mode == "RGB"

    def test_a_ready_control_of_labels_keeps_its_colours(self, following):
        labels = np.zeros((90, 60, 3), np.uint8)
        labels[:, 29:] = (255, 80, 0)
        ready = np.asarray(following.control("seg", Image.fromarray(labels), ready=True))
        assert {tuple(colour) for colour in ready.reshape(-1, 3)} == {(0, 0, 0), (255, 80, 0)}
        exact = Image.effect_noise((32, 32), 50).convert("RGB")
        assert following.control("depth", exact, ready=True).tobytes() == exact.tobytes()

    def test_lines_drawn_by_hand_are_white_on_black(self, following):
        lines = Image.new("L", (384, 384))
        lines.paste(255, (100, 190, 300, 202))
        drawn = np.asarray(following.drawn(lines))
        assert drawn.shape == (32, 32, 3) and set(np.unique(drawn)) == {0, 255}
        assert 0 < (drawn[..., 0] > 0).sum() < 40
        with pytest.raises(ValueError, match="Nothing is drawn"):
            following.drawn(Image.new("L", (384, 384)))

    def test_nets_are_loaded_when_they_are_needed_and_kept(self, tiny, nets, picture, monkeypatch):
        loads: list = []
        stock = studio_module.load_controlnet
        monkeypatch.setattr(studio_module, "load_controlnet", lambda *a, **k: loads.append(a) or stock(*a, **k))
        studio = Studio([str(tiny)], device="cpu", nets=nets)
        assert not loads and list(studio.conditions) == list(nets)
        for condition in ("canny", "canny", "scribble", "canny"):
            studio.follow(Image.new("RGB", (32, 32)), condition, "a", steps=1)
        assert [a[0] for a in loads] == [nets["canny"], nets["scribble"]]

    def test_the_miniatures_own_nets_are_found(self, nets, tmp_path, monkeypatch):
        from companion.models import controlnets

        shutil.copytree(nets["canny"], tmp_path / "models" / "tabletop-controlnet-canny")
        monkeypatch.setenv("COMPANION_DATA", str(tmp_path))
        assert list(controlnets("tabletop")) == ["canny"]

    @pytest.mark.parametrize(
        ("call", "sentence"),
        [
            (
                lambda s, p: s.follow(p, "mood", "a"),
                "There is no ControlNet for 'mood' here; there are canny, depth, scribble",
            ),
            (lambda s, p: s.follow(p, "canny", "a", scale=3), "scale=3 is outside 0 to 2"),
            (lambda s, p: s.follow(p, "canny", "a", start=0.6, end=0.5), "starts at 0.6 and ends at 0.5"),
            (lambda s, p: s.follow(None, "canny", "a"), "There is no control picture"),
            (lambda s, p: s.control("canny", None), "There is no picture: upload one"),
        ],
    )
    def test_what_cannot_be_followed_is_refused_in_one_sentence(self, following, picture, call, sentence):
        with pytest.raises(ValueError, match=sentence):
            call(following, picture)

    def test_a_net_that_does_not_fit_or_cannot_be_loaded_is_told(self, tiny, nets, tmp_path, capsys):
        from companion.controlnet import controlnet_of

        unet = companion.load(tiny, device="cpu").unet
        for name, change in (("words", {"cross_attention_dim": 8}), ("widths", {"block_out_channels": (16, 16)})):
            other = type(unet).from_config({**unet.config, **change})
            controlnet_of(other, (8, 8, 8, 8)).save_pretrained(tmp_path / name)
        (tmp_path / "broken").mkdir()
        for name in ("config.json", "diffusion_pytorch_model.safetensors"):
            (tmp_path / "broken" / name).write_bytes((nets["canny"] / name).read_bytes()[:200])
        places = {"canny": tmp_path / "broken", "depth": tmp_path / "words", "seg": tmp_path / "widths"}
        studio = Studio([str(tiny)], device="cpu", nets={**places, "mlsd": tmp_path, "scribble": nets["scribble"]})
        for condition, sentence in {
            "canny": "The ControlNet for Canny edges could not be loaded: .* is cut short",
            "depth": "The ControlNet for depth does not fit this model: take one that was trained for its base",
            "seg": "does not fit this model",
            "mlsd": "could not be loaded: .* lacks config.json",
        }.items():
            with pytest.raises(ValueError, match=sentence):
                studio.follow(Image.new("RGB", (32, 32)), condition, "a")
        studio.load_all()
        assert list(studio.conditions) == ["scribble"], "the others are left out"
        assert "The ControlNet for depth does not fit" in capsys.readouterr().err

    def test_own_nets_come_besides_those_that_are_known(self, studio, nets, monkeypatch):
        from companion.models import CONTROLNETS

        monkeypatch.setattr(studio_module, "load", lambda *given, **more: studio.text)
        found = Studio(["sd15"], device="cpu", nets={"canny": nets["canny"]})
        assert found._nets == CONTROLNETS["sd15"] | {"canny": nets["canny"]}


# ---- Models of one's own ---------------------------------------------------------------------------------------------


@pytest.fixture
def models_hub(hub, tmp_path, monkeypatch):
    """The models' hub, as the one that huggingface_hub asks, with an empty cache."""
    import huggingface_hub.constants as constants
    from hub import serving

    with serving() as server:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + template)
        yield server


def test_from_training_to_the_space(models_hub, tiny, tmp_path, picture):
    """`companion train lora` -> its learned/ folder on the hub -> companion.load -> what the Space draws with it."""
    models_hub.repos["someone/tiny"] = Repo(files(tiny))
    (tmp_path / "photos").mkdir()
    for i in range(3):
        noise = np.random.default_rng(i).integers(0, 255, (4, 4, 3), np.uint8)
        Image.fromarray(noise).resize((32, 32), Image.Resampling.NEAREST).save(tmp_path / "photos" / f"{i}.png")
    words = [
        "lora",
        str(tmp_path / "photos"),
        "--model",
        "someone/tiny",
        "--prompt",
        "a duck",
        "--out",
        str(tmp_path / "run"),
    ]
    done = CliRunner().invoke(cli.app, ["train", *words, "--steps", "4", "--lr", "0.1", "--show-every", "100"])
    assert done.exit_code == 0, done.output
    learned = tmp_path / "run" / "learned"
    assert {p.name for p in learned.iterdir()} == {LORA, "README.md"}

    models_hub.repos["you/duck"] = Repo(files(learned))
    pipe = companion.load("you/duck")
    drawn = pipe("a duck", num_inference_steps=4, guidance_scale=3.0, generator=seeded(1), negative_prompt="").images[0]
    studio = Studio(["you/duck"], device="cpu", steps=4)
    assert studio.draw("a duck", steps=4, seed=1)[0].tobytes() == drawn.tobytes()
    before = Studio([str(tiny)], device="cpu")
    assert before.draw("a duck", steps=4, seed=1)[0].tobytes() != drawn.tobytes()
    varied = studio.vary(picture, "a duck", steps=4, seed=1)[0]
    assert varied.size == (32, 32) and varied.tobytes() != before.vary(picture, "a duck", steps=4, seed=1)[0].tobytes()
    # The same with its folder on this machine, and a Space that is told the same name.
    assert Studio([str(learned)], device="cpu").draw("a duck", steps=4, seed=1)[0].tobytes() == drawn.tobytes()
    assert command.settings("you/duck") == {"MODEL": "you/duck"}


# ---- The folder


def test_a_built_space_has_all_it_needs(tiny, tmp_path):
    model = tmp_path / "tiny"
    shutil.copytree(tiny, model)
    for name in ("unet/graph.onnx", "unet/optimizer.bin", "photographs/me.jpg", ".env"):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).touch()
    out = command.build(tmp_path / "space", str(model), 'Ducks: "mine"')
    assert files(out / "model") == files(tiny), "the model, and nothing else that lies in its folder"
    assert {p.name for p in out.iterdir()} == {
        "README.md",
        "app.py",
        "companion",
        "model",
        "requirements.txt",
        "studio.py",
    }
    _, settings, text = (out / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    settings = yaml.safe_load(settings)
    assert settings["title"] == 'Ducks: "mine"'
    assert settings["sdk"] == "gradio" and settings["app_file"] == "app.py" and "Duplicate this Space" in text
    pins = dict(re.findall(r"(\S+)==(\S+)", (companion.ROOT / "constraints.txt").read_text(encoding="utf-8")))
    assert settings["sdk_version"] == pins["gradio"]
    lines = (out / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert lines == [f"{name}=={pins[name]}" for name in command.PACKAGES]
    with pytest.raises(ValueError, match="exists already"):
        command.build(out, str(tiny))


def test_what_is_copied_into_the_space_imports_what_is_there():
    """At the top of a file: of the course, what is copied along; else, what the Space installs."""
    installed = {
        {"pillow": "PIL", "opencv-python-headless": "cv2", "pyyaml": "yaml"}.get(n, n) for n in command.PACKAGES
    }
    installed |= {"gradio", "studio", "spaces"}
    package = Path(companion.__file__).parent
    copied = {name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in command.MODULES}
    sources = [package / "space" / name for name in command.FILES] + [package / name for name in command.MODULES]
    for source in sources:
        tree = ast.parse(source.read_text(encoding="utf-8"))
        for node in tree.body:  # what is imported in functions is imported when it is needed
            modules = [node.module] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for module in modules:
                room, _, name = module.partition(".")
                if room == "companion":
                    assert not name or name in copied, (source.name, module)
                elif room not in sys.stdlib_module_names:
                    assert room in installed, (source.name, module)


@pytest.mark.slow
def test_the_folder_draws_by_itself(tiny, nets, tmp_path):
    """In a process that finds the course's files only in the Space's folder."""
    out = command.build(tmp_path / "space", str(tiny), nets={"canny": nets["canny"]})
    script = """
import json, sys
from pathlib import Path
from studio import Studio
from PIL import Image
here = Path.cwd()
studio = Studio([str(here / "model")], device="cpu", nets={"canny": here / "controlnets" / "canny"})
picture = Image.new("RGB", (40, 40), "red")
studio.follow(studio.control("canny", picture), "canny", "a", steps=2)
studio.vary(picture, "a", steps=2)
ours = [m.__file__ for n, m in sys.modules.items() if n.split(".")[0] == "companion"]
assert len(ours) > 5 and all(Path(f).is_relative_to(here) for f in ours), ours
"""
    (out / "try.py").write_text(script, encoding="utf-8")
    done = subprocess.run([sys.executable, "try.py"], cwd=out, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


def test_the_miniatures_controlnets_and_the_judge_come_along(nets, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    shutil.copytree(companion.DATA / "models" / "judge", tmp_path / "data" / "models" / "judge")
    shutil.copytree(companion.DATA / "models" / "tabletop", tmp_path / "data" / "models" / "tabletop")
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "data"))
    without = command.build(tmp_path / "without", "tabletop")
    assert not (without / "data").exists() and not (without / "controlnets").exists()
    shutil.copytree(nets["canny"], tmp_path / "data" / "models" / "tabletop-controlnet-canny")
    (tmp_path / "data" / "models" / "tabletop-controlnet-canny" / "optimizer.bin").touch()
    out = command.build(tmp_path / "space", "tabletop")
    assert files(out / "controlnets" / "canny") == files(nets["canny"])
    assert (out / "data" / "models" / "judge" / "model.safetensors").is_file()


def test_a_lora_in_a_folder_brings_its_base_along(tiny, tmp_path):
    (tmp_path / "lora").mkdir()
    save_file({"weights": torch.zeros(1)}, tmp_path / "lora" / LORA)
    kept = files(tmp_path / "lora")
    (tmp_path / "lora" / "checkpoint.pt").touch()
    out = command.build(tmp_path / "space", str(tmp_path / "lora"), base=str(tiny))
    assert files(out / "model") == kept
    assert files(out / "base") == files(tiny)
    assert command.settings(str(tmp_path / "lora"), "sd15") == {"BASE": "sd15"}
    assert command.settings("you/lora", "sd15") == {"MODEL": "you/lora", "BASE": "sd15"}
    assert command.settings("you/lora", "someone/base") == {"MODEL": "you/lora", "BASE": "someone/base"}
    (tmp_path / "lora" / LORA).write_bytes(b"weights")
    with pytest.raises(OSError, match="is cut short"):
        command.build(tmp_path / "other", str(tmp_path / "lora"), base=str(tiny))


def test_a_model_of_the_hub_is_named_and_not_copied(tmp_path):
    out = command.build(tmp_path / "space", "sd15")
    assert not (out / "model").exists()
    _, settings, _ = (out / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert yaml.safe_load(settings)["models"] == list(CATALOGUE["sd15"].mirrors)
    assert yaml.safe_load(settings)["suggested_hardware"] == "t4-small"
    assert command.settings("sd15") == {"MODEL": "sd15"}, "which has several mirrors"
    assert command.settings("you/your-model") == {"MODEL": "you/your-model"}
    assert command.settings("tabletop") == {}
    with pytest.raises(ValueError, match="did you mean 'tabletop'"):
        command.build(tmp_path / "other", "tabeltop")
    assert not (tmp_path / "other").exists()


# ---- The page --------------------------------------------------------------------------------------------------------


@pytest.fixture
def app(monkeypatch):
    """The page's module, with studio.py beside it, as in a Space."""
    monkeypatch.syspath_prepend(str(Path(command.__file__).parent))
    for name in ("app", "studio"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("app")
    for name in ("app", "studio"):
        sys.modules.pop(name, None)


def public(page) -> dict:
    """The functions that programs may call, by name."""
    return {f.api_name: f for f in page.blocks.fns.values() if f.api_name and f.api_visibility == "public"}


def called(page, name: str, *values):
    """What a function of the page gives, at last: generators run to their end."""
    given = page.blocks.fns[public(page)[name]._id].fn(*values)
    return list(given) if hasattr(given, "__next__") else given


def labelled(page, kind: str) -> list:
    return [c["props"].get("label") for c in page.blocks.get_config_file()["components"] if c["type"] == kind]


def test_the_page_has_its_tabs_and_one_queue(app, studio, following):
    page = app.Page(following, ["a b"])
    assert labelled(page, "tabitem") == list(app.TABS)
    functions = public(page)
    assert set(functions) == {"text_to_image", "image_to_image", "inpainting", "controlnet", "control"}
    drawing = [f for f in page.blocks.fns.values() if f.tracks_progress]
    assert len(drawing) == 8 and {f.concurrency_id for f in (*drawing, *functions.values())} == {"model"}
    assert {f.concurrency_limit for f in drawing} == {1}
    information = page.blocks.get_api_info()["named_endpoints"]["/image_to_image"]["parameters"]
    names = ["image", "prompt", "strength", "negative", "steps", "guidance", "seed", "number"]
    assert [p["parameter_name"] for p in information] == names
    # Its conditions are those for which a ControlNet is there.
    (choices,) = [c["props"]["choices"] for c in page.blocks.get_config_file()["components"] if c["type"] == "dropdown"]
    assert [value for _, value in choices] == ["canny", "depth", "scribble", "seg"]


def test_without_a_controlnet_the_tab_says_so(app, studio):
    page = app.Page(studio, ["a b"])
    assert "controlnet" not in public(page)
    texts = [c["props"]["value"] for c in page.blocks.get_config_file()["components"] if c["type"] == "markdown"]
    assert any("There is no ControlNet for this model" in text for text in texts)
    buttons = [c["props"]["value"] for c in page.blocks.get_config_file()["components"] if c["type"] == "button"]
    assert sum(value == "Use it in Inpainting" for value in buttons) == 3 and "Use it in ControlNet" not in buttons


def test_several_pictures_come_one_after_the_other(app, studio):
    page = app.Page(studio, ["a b"])
    galleries = called(page, "text_to_image", "a", "", 2, 3.0, 7, 3, None)
    assert [len(pictures) for pictures, _ in galleries] == [1, 2, 3]
    assert [chosen for _, chosen in galleries] == [0, gr.skip(), gr.skip()], "what is chosen meanwhile stays chosen"
    last = galleries[-1][0]
    assert [caption for _, caption in last] == ["seed 7", "seed 8", "seed 9"]
    for (drawn, _), seed in zip(last, (7, 8, 9), strict=True):
        assert drawn.tobytes() == studio.draw("a", steps=2, seed=seed)[0].tobytes()
    with pytest.raises(gr.Error, match="5 pictures are outside 1 to 4"):
        called(page, "text_to_image", "a", "", 2, 3.0, 7, 5, None)


def test_every_step_is_shown_as_progress(app, studio, monkeypatch):
    shown: list = []
    monkeypatch.setattr(app.gr.Progress, "__call__", lambda self, part, desc=None: shown.append((part, desc)))
    called(app.Page(studio, ["a b"]), "text_to_image", "a", "", 2, 3.0, 0, 2, None)
    assert [part for part, _ in shown] == [0.25, 0.5, 0.75, 1.0]
    assert shown[2][1] == "Step 1 of 2, picture 2 of 2"


def test_the_controlnet_tab_draws_after_what_is_uploaded_or_drawn(app, following, picture, tmp_path):
    page = app.Page(following, ["a b"])
    picture.save(tmp_path / "a.png")
    upload, rest = str(tmp_path / "a.png"), ("a", 1.0, 0.0, 1.0, "", 2, 3.0, 5, 1, None)
    pictures, chosen, control = called(page, "controlnet", "canny", app.FOUND, upload, None, *rest)[-1]
    assert control.tobytes() == following.control("canny", picture).tobytes() and chosen == 0
    assert pictures[0][0].tobytes() == following.follow(control, "canny", "a", steps=2, seed=5)[0].tobytes()
    assert called(page, "control", "canny", app.FOUND, upload, None).tobytes() == control.tobytes()
    ready = called(page, "control", "depth", app.READY, upload, None)
    assert ready.tobytes() == following.control("depth", picture, ready=True).tobytes()
    layer = Image.new("RGBA", (384, 384))
    layer.paste((255, 255, 255, 255), (100, 100, 300, 120))
    pad = {"background": Image.new("RGB", (384, 384)), "layers": [layer], "composite": None}
    drawn = np.asarray(called(page, "control", "scribble", app.DRAWN, None, pad))
    assert set(np.unique(drawn)) == {0, 255} and drawn[:5].max() == 0
    with pytest.raises(gr.Error, match="Nothing is drawn, so there is nothing to follow: draw some lines."):
        called(page, "control", "scribble", app.DRAWN, None, pad | {"layers": []})


def function(page, component, event: str):
    """What is called when something happens to a component."""
    return next(f for f in page.blocks.fns.values() if (component._id, event) in f.targets).fn


def test_an_upload_gets_its_sentence(app, studio, tmp_path):
    page = app.Page(studio, ["a b"])
    (image,) = [b for b in page.blocks.blocks.values() if getattr(b, "label", "") == "Begin with"]
    assert image.preprocess(SimpleNamespace(path="/a/b.png")) == "/a/b.png", "it is the studio that reads the file"
    read = function(page, image, "upload")
    (tmp_path / "<b>.pdf").write_bytes(b"%PDF")
    shown, said = read(str(tmp_path / "<b>.pdf"))
    assert shown is None and said.visible
    assert 'class="error"' in said.value and "&lt;b&gt;.pdf&#x27; is a PDF document" in said.value
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    shown, said = read(str(tmp_path / "a.png"))
    assert shown.size == (32, 32) and "PNG, 60 x 40; cropped to its middle, 40 x 40: 33% lost" in said.value


def test_a_picture_can_be_used_in_every_other_tab(app, following, tmp_path):
    page = app.Page(following, ["a b"])
    for i in range(2):
        Image.new("RGB", (32, 32), (100 * i, 0, 0)).save(tmp_path / f"{i}.png")
    pictures = [(str(tmp_path / f"{i}.png"), f"seed {i}") for i in range(2)]
    assert len(page.gives) == 4
    for gallery, _, buttons in page.gives:
        assert list(buttons) == ["Image to image", "Inpainting", "ControlNet"]
        for name, button in buttons.items():
            more = ["canny"] if name == "ControlNet" else []
            tab, put, *_ = function(page, button, "click")(pictures, 1, *more)
            assert tab.selected == name
            put = put["background"] if name == "Inpainting" else put
            assert put.getpixel((3, 3)) == (100, 0, 0), "the one that is chosen"
            with pytest.raises(gr.Error, match="There is no picture yet: draw one first"):
                function(page, button, "click")(None, 0, *more)
        assert gallery.interactive is False


def test_a_gpu_that_is_lent_is_lent_for_drawing_alone(app, following, monkeypatch):
    """Hugging Face's ZeroGPU: `spaces.GPU` wraps the generator that draws, and nothing is drawn before."""
    calls: list = []

    def lend(duration: int):
        def wrap(task):
            def lent(*values):
                calls.append((values[0], following._turn.locked()))
                yield from task(*values)

            return lent

        return wrap

    monkeypatch.setattr(app, "spaces", SimpleNamespace(GPU=lend))
    monkeypatch.setattr(app, "LENT", True)
    following._following.clear()
    page = app.Page(following, ["a b"])
    assert page.first is None and not calls
    assert list(following._following) == list(following.conditions), "models cannot be made ready later"
    assert len(called(page, "text_to_image", "a", "", 1, 3.0, 7, 2, None)) == 2
    with pytest.raises(gr.Error, match="There is no control picture"):
        called(page, "controlnet", "canny", app.READY, None, None, "a", 1, 0, 1, "", 1, 3, 0, 1, None)
    assert calls == [("draw", False)], "unfit input asks for no GPU"


@pytest.mark.parametrize(
    ("settings", "models", "base"),
    [
        ({}, ["here/model"], "here/base"),
        ({"MODEL": ""}, ["here/model"], "here/base"),
        ({"MODEL": "you/lora, model,"}, ["you/lora", "here/model"], "here/base"),
        ({"MODEL": "you/lora"}, ["you/lora"], None),
        ({"MODEL": "you/lora", "BASE": "sd15"}, ["you/lora"], "sd15"),
    ],
)
def test_the_settings_say_which_model_is_loaded(app, tmp_path, monkeypatch, settings, models, base):
    """The base that was copied along is that of the model that was copied along, not of another one's."""
    (tmp_path / "base").mkdir()
    told: dict = {}
    monkeypatch.setattr(app, "HERE", tmp_path)
    monkeypatch.setattr(app, "Studio", lambda names, **options: told.update(options, models=names) or sys.exit())
    for name in ("MODEL", "BASE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        app.main()
    named = [name.replace(str(tmp_path), "here") for name in (*told["models"], told["base"] or "")]
    assert named == [*models, base or ""]


# ---- Running it here -------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_busy_port_is_told_with_the_way_out():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = call("run", "--port", str(port))
        assert done.exit_code == 2 and f"Port {port} is in use on this machine" in done.output
        assert f"take --port {port + 1}" in done.output and len(done.output.strip().splitlines()) == 1
    command.check_port(port)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--port", "99999"], "--port 99999 is no port: take one from 1024 to 65535"),
        (["--device", "gpu"], "device='gpu' is unknown; known are cpu, cuda"),
        (["--controlnet", "canny"], "--controlnet 'canny' is not CONDITION=FOLDER"),
        (["--model", "tabeltop"], "did you mean 'tabletop'"),
    ],
)
def test_what_cannot_be_run_is_told_in_one_sentence(words, sentence):
    done = call("run", *([] if "--port" in words else ["--port", str(free_port())]), *words)
    assert done.exit_code == 2 and sentence in done.output and len(done.output.strip().splitlines()) == 1


def test_the_page_gets_the_options_and_not_the_shells_names(tiny, monkeypatch):
    monkeypatch.setenv("MODEL", "someone/else")
    monkeypatch.setenv("STEPS", "7")
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    told: dict = {}
    monkeypatch.setattr(command, "_until_it_ends", lambda words, folder, variables: told.update(variables) or 0)
    assert call("run", "--port", str(free_port()), "--model", str(tiny), "--device", "cpu").exit_code == 0
    assert "MODEL" not in told and told["STEPS"] == "7" and told["DEVICE"] == "cpu"
    pictures = Path(told["GRADIO_TEMP_DIR"])
    assert pictures.parent.name.startswith("space-") and not pictures.parent.exists(), "uploads go with the folder"


FAMILY = """
import subprocess, sys, time
from pathlib import Path
from companion.space.command import _until_it_ends
code = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
code += "open('ready', 'w').close(); time.sleep(600)"
sys.exit(_until_it_ends([sys.executable, "-c", code], Path.cwd(), {}))
"""


@pytest.mark.skipif(os.name != "posix", reason="Windows ends processes at once")
def test_when_the_command_is_told_to_end_everything_that_it_started_ends(tmp_path):
    path = os.pathsep.join(filter(None, (str(companion.ROOT), os.environ.get("PYTHONPATH", ""))))
    process = subprocess.Popen([sys.executable, "-c", FAMILY], cwd=tmp_path, env=os.environ | {"PYTHONPATH": path})
    while not (tmp_path / "ready").exists():
        assert process.poll() is None
        time.sleep(0.05)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) == 2
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 128 + signal.SIGTERM
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="Windows ends processes at once")
def test_a_page_that_is_told_to_end_leaves_nothing_behind(tiny, tmp_path):
    port, path = free_port(), os.pathsep.join(filter(None, (str(companion.ROOT), os.environ.get("PYTHONPATH", ""))))
    environment = os.environ | {"PYTHONPATH": path, "TMPDIR": str(tmp_path), "STEPS": "1"}
    words = [sys.executable, "-m", "companion.cli", "space", "run", "--model", str(tiny), "--port", str(port)]
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 500
    while True:
        with suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/config", timeout=5).close()
            break
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.2)
    family = psutil.Process(process.pid).children(recursive=True)
    assert family
    process.terminate()
    assert process.wait(120) == 128 + signal.SIGTERM
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family)
    command.check_port(port)
    assert not list(tmp_path.glob("space-*")), "the folder is gone as well"


# ---- Pushing


@pytest.fixture
def hub(monkeypatch):
    with space_hub.serving() as hub:
        monkeypatch.setattr(command, "_api", lambda: HfApi(endpoint=hub.url, token=TOKEN))
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        yield hub


def call(*words: str, input: str | None = None):
    return CliRunner().invoke(cli.app, ["space", *words], input=input)


def test_push_sends_the_folder_and_its_settings(hub, tiny, monkeypatch, capfd):
    monkeypatch.setenv("MY_KEY", "shh-the-secret")
    words = ["push", "me/space", "--model", str(tiny), "--secret", "MY_KEY", "--variable", "STEPS=9"]
    done = call(*words, "--hardware", "t4-small", "--yes")
    assert done.exit_code == 0, done.output
    assert done.output.strip().endswith("/spaces/me/space")
    (create,) = hub.sent("/api/repos/create")
    assert (create["type"], create["sdk"]) == ("space", "gradio")
    assert create.get("private", create.get("visibility") == "private") is True
    assert hub.settings == {"secrets": {"MY_KEY": "shh-the-secret"}, "variables": {"STEPS": "9"}}
    assert hub.sent("/api/spaces/me/space/hardware") == [{"flavor": "t4-small", "sleepTimeSeconds": 900}]
    assert hub.files["app.py"] == (Path(command.__file__).parent / "app.py").read_bytes()
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert hub.files[f"model/{weights}"] == (tiny / weights).read_bytes()
    order = [path.rsplit("/", 1)[-1] for _, path, _, _ in hub.requests]
    assert order.index("secrets") < order.index("main") < order.index("hardware"), "settings, files, hardware"
    said = done.output + "".join(capfd.readouterr())
    assert TOKEN not in said and "shh" not in said


def test_a_second_push_leaves_nothing_of_the_model_before(hub, tiny):
    """Else the Space would go on with that: by its MODEL, or because a base is there, or ControlNets."""
    hub.files = {"base/model_index.json": b"{}", "controlnets/depth/config.json": b"{}", "notes.txt": b"mine"}
    hub.settings["variables"] = {"MODEL": "someone/before", "BASE": "sd15", "STEPS": "9"}
    assert call("push", "me/space", "--model", str(tiny)).exit_code == 0
    assert not [name for name in hub.files if name.startswith(("base/", "controlnets/"))]
    assert hub.files["notes.txt"] == b"mine" and "model/model_index.json" in hub.files
    assert hub.settings["variables"] == {"STEPS": "9"}
    assert call("push", "me/space", "--model", "you/model").exit_code == 0
    assert hub.settings["variables"] == {"STEPS": "9", "MODEL": "you/model"}
    assert not [name for name in hub.files if name.startswith("model/")]


@pytest.mark.parametrize(("status", "error"), [(402, ValueError), (403, ValueError), (500, HfHubHTTPError)])
def test_a_hub_that_makes_no_space_is_explained(status, error, tmp_path):
    response = SimpleNamespace(status_code=status, headers={}, text="", request=None)

    def refuse(*args, **options):
        raise HfHubHTTPError("no", response=response, server_message="A paid plan is required.")

    api = SimpleNamespace(create_repo=refuse, duplicate_repo=refuse)
    words = r"make me/space \(A paid plan is required\): .*spaces-overview" if error is ValueError else "no"
    with pytest.raises(error, match=words):
        command.push(tmp_path, "me/space", api=api)
    with pytest.raises(error, match=words):
        command.duplicate("other/space", "me/space", api=api)


def test_free_hardware_is_not_asked_for_and_paid_hardware_is_confirmed(hub, tiny):
    assert call("push", "me/space", "--model", str(tiny)).exit_code == 0
    assert not hub.sent(".*/hardware")
    hub.requests.clear()
    declined = call("push", "me/space", "--model", str(tiny), "--hardware", "a10g-small", input="n\n")
    assert declined.exit_code == 1 and "paid by the hour" in declined.output and not hub.requests


def test_duplicate_copies_with_own_settings(hub):
    words = ["push", "me/mine", "--duplicate", "other/theirs", "--hardware", "t4-small", "--yes"]
    done = call(*words, "--variable", "MODEL=me/model")
    assert done.exit_code == 0, done.output
    (body,) = hub.sent("/api/spaces/other/theirs/duplicate")
    assert body["repository"] == "me/mine" and body["hardware"] == "t4-small" and body["sleepTimeSeconds"] == 900
    assert body["variables"] == [{"key": "MODEL", "value": "me/model"}]
    assert not hub.files


def test_duplicate_with_the_hub_library_of_before():
    class Before:
        def duplicate_space(self, source, repo, **options):
            self.given = source, repo, options
            return "address"

    api = Before()
    told = command.duplicate("a/b", "c/d", hardware="t4-small", secrets={"K": "v"}, api=api)
    listed = [{"key": "K", "value": "v"}]
    options = {"private": True, "secrets": listed, "hardware": "t4-small", "sleep_time": 900}
    assert told == "address" and api.given == ("a/b", "c/d", options)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["push", "space"], "'space' is not owner/name"),
        (["push", "me/space", "--secret", "K=v"], "--secret takes a name alone, such as K"),
        (["push", "me/space", "--secret", "NOT_SET_ANYWHERE"], "has no value"),
        (["push", "me/space", "--variable", "K"], "'K' is not NAME=VALUE"),
        (["push", "me/space", "--variable", f"HF_TOKEN={TOKEN}"], "HF_TOKEN is a token"),
        (["push", "me/space", "--duplicate", "a/b", "--model", "you/model"], "copies a Space with its model"),
        (["build", "new", "--model", "tabeltop"], "did you mean 'tabletop'"),
    ],
)
def test_the_command_refuses_in_one_sentence(hub, words, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call(*words)
    assert done.exit_code == 2 and sentence in done.output and "Traceback" not in done.output
    assert TOKEN not in done.output
    assert not hub.requests and not list(tmp_path.iterdir())


def test_without_a_token_it_says_so(monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    done = call("push", "me/space")
    assert done.exit_code == 2 and "set HF_TOKEN" in done.output


def test_no_settings_leak_into_the_folder(tiny, tmp_path):
    out = command.build(tmp_path / "space", str(tiny))
    text = "".join(p.read_text(encoding="utf-8") for p in out.glob("*.*"))
    assert "hf_" not in text and json.dumps(str(companion.ROOT)) not in text
