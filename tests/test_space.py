"""The Space: what it draws, what it refuses, what is in its folder, and what reaches the hub when it is pushed."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import space_hub
import yaml
from huggingface_hub import HfApi
from PIL import Image
from typer.testing import CliRunner

import companion
from companion import cli
from companion.models import CATALOGUE, find
from companion.space import command
from companion.space.studio import MAX_STEPS, Studio

TOKEN = "hf_LoopbackSecret0123456789"


@pytest.fixture(scope="module")
def studio(tiny) -> Studio:
    return Studio([str(tiny)], device="cpu", steps=4)


@pytest.fixture
def picture() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    return Image.fromarray(noise)


class TestStudio:
    def test_it_draws_what_the_stock_pipeline_draws(self, studio, tiny):
        pipe = companion.load(tiny, device="cpu")
        from companion.models import seeded

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

    def test_it_proposes_what_fits_the_size(self, studio):
        assert (studio.steps, studio.guidance) == (4, find("tabletop").guidance)


# ---- The folder


def test_a_built_space_has_all_it_needs(tiny, tmp_path):
    model = tmp_path / "tiny"
    shutil.copytree(tiny, model)
    (model / "unet" / "graph.onnx").touch()
    out = command.build(tmp_path / "space", str(model))
    assert not list(out.rglob("*.onnx"))
    assert {p.name for p in out.iterdir()} == {"README.md", "app.py", "model", "requirements.txt", "studio.py"}
    _, settings, text = (out / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    settings = yaml.safe_load(settings)
    assert settings["sdk"] == "gradio" and settings["app_file"] == "app.py" and "Duplicate this Space" in text
    pins = dict(re.findall(r"(\S+)==(\S+)", (companion.ROOT / "constraints.txt").read_text(encoding="utf-8")))
    assert settings["sdk_version"] == pins["gradio"]
    lines = (out / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert lines == [f"{name}=={pins[name]}" for name in command.PACKAGES]
    with pytest.raises(ValueError, match="exists already"):
        command.build(out, str(tiny))


def test_what_is_copied_into_the_space_imports_nothing_of_the_course():
    """And its packages are those that the Space installs."""
    imported = set()
    for name in command.FILES:
        source = (Path(command.__file__).parent / name).read_text(encoding="utf-8")
        imported |= set(re.findall(r"^\s*(?:from|import) (\w+)", source, re.MULTILINE))
    installed = {{"pillow": "PIL"}.get(name, name) for name in command.PACKAGES} | {"gradio", "studio"}
    assert imported - set(sys.stdlib_module_names) <= installed
    assert "companion" not in imported


def test_a_model_of_the_hub_is_named_and_not_copied(tmp_path):
    out = command.build(tmp_path / "space", "sd15")
    assert not (out / "model").exists()
    _, settings, _ = (out / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert yaml.safe_load(settings)["models"] == list(CATALOGUE["sd15"].mirrors)
    assert yaml.safe_load(settings)["suggested_hardware"] == "t4-small"
    assert command.settings("sd15")["MODEL"].split(",") == list(CATALOGUE["sd15"].mirrors)
    assert command.settings("you/your-model") == {"MODEL": "you/your-model"}
    assert command.settings("tabletop") == {}
    with pytest.raises(ValueError, match="did you mean 'tabletop'"):
        command.build(tmp_path / "other", "tabeltop")
    assert not (tmp_path / "other").exists()


def test_the_page_has_its_tabs_and_one_queue(tiny, tmp_path, monkeypatch):
    out = command.build(tmp_path / "space", str(tiny))
    monkeypatch.syspath_prepend(str(out))
    for name in ("app", "studio"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    app = importlib.import_module("app")
    assert Path(app.__file__).parent == out
    page = app.page(app.Studio([str(out / "model")], device="cpu", steps=2), "a b")
    config = page.get_config_file()
    assert [c["props"]["label"] for c in config["components"] if c["type"] == "tabitem"] == list(app.TABS)
    functions = [f for f in page.fns.values() if f.api_name]
    assert {f.concurrency_id for f in functions} == {"model"} and {f.concurrency_limit for f in functions} == {1}
    assert {f.api_name for f in functions} >= {"text_to_image", "image_to_image", "inpainting"}
    for name in ("app", "studio"):
        sys.modules.pop(name)


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
        (["build", "new", "--model", "tabeltop"], "did you mean 'tabletop'"),
    ],
)
def test_the_command_refuses_in_one_sentence(hub, words, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call(*words)
    assert done.exit_code == 2 and sentence in done.output and "Traceback" not in done.output
    assert not hub.requests and not list(tmp_path.iterdir())


def test_without_a_token_it_says_so(monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    done = call("push", "me/space")
    assert done.exit_code == 2 and "set HF_TOKEN" in done.output


def test_no_settings_leak_into_the_folder(tiny, tmp_path):
    out = command.build(tmp_path / "space", str(tiny))
    text = "".join(p.read_text(encoding="utf-8") for p in out.glob("*.*"))
    assert "hf_" not in text and json.dumps(str(companion.ROOT)) not in text
