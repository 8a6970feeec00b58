"""The catalogue, folders, and fetching from a hub on loopback that misbehaves on demand."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hub import Hub, Repo, files, tiny_pipeline

import companion
from companion import models
from companion.files import damage, write_checksums, written
from companion.models import (
    CATALOGUE,
    DamagedError,
    NoMirrorError,
    NotAPipelineError,
    OfflineError,
    PickleRefusedError,
    UnknownModelError,
    check_folder,
    download,
    find,
    load,
    seeded,
)

UNET = "unet/diffusion_pytorch_model.safetensors"
MODEL = replace(CATALOGUE["sd15"], mirrors=("one/model", "two/model"))


def draw(pipe, seed: int = 0) -> np.ndarray:
    return pipe("a b", num_inference_steps=2, generator=seeded(seed), output_type="np").images


# ---- The catalogue


def test_catalogue_is_usable():
    for name, model in CATALOGUE.items():
        assert model.name == name
        assert model.size % 64 == 0 and model.steps >= 1
        assert name == "tabletop" or len(model.mirrors) >= 2, "one mirror is none"
        assert all(re.fullmatch(r"[\w.-]+/[\w.-]+", mirror) for mirror in model.mirrors)
        assert set(model.settings) == {"num_inference_steps", "guidance_scale"}


@pytest.mark.parametrize(
    ("name", "nearest"), [("tabeltop", "tabletop"), ("SD15", "sd15"), ("sdturbo", "sd-turbo"), ("lmc", "lcm")]
)
def test_unknown_name_says_the_nearest(name, nearest):
    with pytest.raises(UnknownModelError, match=f"did you mean '{nearest}'"):
        load(name)


@pytest.mark.parametrize("name", ["zzzzzz", "./tabletop-mine", Path("nowhere")])
def test_unknown_name_lists_the_catalogue(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownModelError, match="tabletop, sd15") as error:
        load(name)
    assert "did you mean" not in str(error.value)


# ---- Folders


def test_a_folder_loads_as_plain_diffusers_does(tiny):
    from diffusers import StableDiffusionPipeline

    pipe = load(tiny, safety_checker=None)
    plain = StableDiffusionPipeline.from_pretrained(tiny)
    assert type(pipe) is StableDiffusionPipeline
    assert np.array_equal(draw(pipe), draw(plain))
    assert not np.array_equal(draw(pipe, 0), draw(pipe, 1))


def test_loading_is_silent_and_leaves_the_bars_as_they_were(tiny, capfd):
    import huggingface_hub.utils
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    before = transformers_logging.get_verbosity()
    draw(load(tiny))
    assert capfd.readouterr() == ("", "")
    assert transformers_logging.get_verbosity() == before
    assert diffusers_logging.is_progress_bar_enabled() and transformers_logging.is_progress_bar_enabled()
    assert not huggingface_hub.utils.are_progress_bars_disabled()


def test_a_folder_takes_the_settings_of_its_size(tiny, tmp_path):
    assert find(tiny).size == 32
    assert find(str(tiny)).settings == CATALOGUE["tabletop"].settings
    large = tmp_path / "large"
    shutil.copytree(tiny, large)
    config = json.loads((large / "unet/config.json").read_text(encoding="utf-8"))
    (large / "unet/config.json").write_text(json.dumps({**config, "sample_size": 64}), encoding="utf-8")
    assert find(large).size == 512
    assert find(large).settings == CATALOGUE["sd15"].settings
    assert find(large).folder == large


def test_half_precision_files_are_taken_and_computed_in_single_precision(tmp_path):
    import torch

    tiny_pipeline(tmp_path / "half", variant="fp16")
    half = load(tmp_path / "half")
    assert {half.unet.dtype, half.vae.dtype, half.text_encoder.dtype} == {torch.float32}
    # They are preferred to full-precision files, being half the size.
    tiny_pipeline(tmp_path / "both")
    shutil.copytree(tmp_path / "half", tmp_path / "both", dirs_exist_ok=True)
    assert all(".fp16" in name for name in check_folder(tmp_path / "both"))
    # A repository may have them for some of its parts only.
    (tmp_path / "both/vae/diffusion_pytorch_model.fp16.safetensors").unlink()
    mixed = load(tmp_path / "both")
    assert torch.equal(mixed.unet.conv_in.weight, half.unet.conv_in.weight)
    assert np.isfinite(draw(mixed)).all()


def test_dtype_is_what_was_asked_for(tiny):
    import torch

    pipe = load(tiny, dtype=torch.float64)
    assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {torch.float64}


def test_a_part_can_be_given_instead(tiny, tmp_path):
    import torch
    from diffusers import UNet2DConditionModel

    shutil.copytree(tiny, tmp_path / "tiny")
    unet = UNet2DConditionModel.from_pretrained(tiny, subfolder="unet")
    shutil.rmtree(tmp_path / "tiny/unet")
    assert load(tmp_path / "tiny", unet=unet).unet is unet
    assert unet.dtype == torch.float32


@pytest.mark.parametrize(
    "missing",
    [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "unet/config.json",
        UNET,
        "vae/diffusion_pytorch_model.safetensors",
    ],
)
def test_a_folder_that_lacks_a_file_is_told_which(tiny, tmp_path, missing):
    shutil.copytree(tiny, tmp_path / "tiny")
    (tmp_path / "tiny" / missing).unlink()
    with pytest.raises(NotAPipelineError, match=f"lacks {missing}"):
        load(tmp_path / "tiny")


def test_pickle_weights_are_refused(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "tiny")
    (tmp_path / "tiny" / UNET).rename(tmp_path / "tiny/unet/diffusion_pytorch_model.bin")
    with pytest.raises(PickleRefusedError, match=r"unet/diffusion_pytorch_model\.bin is a pickle"):
        load(tmp_path / "tiny")


@pytest.mark.parametrize("left", [4, 100, -1])
def test_a_weight_file_cut_short_is_told(tiny, tmp_path, left):
    shutil.copytree(tiny, tmp_path / "tiny")
    whole = (tmp_path / "tiny" / UNET).read_bytes()
    (tmp_path / "tiny" / UNET).write_bytes(whole[:left])
    with pytest.raises(DamagedError, match="cut short"):
        load(tmp_path / "tiny")


def test_a_changed_byte_is_told_by_the_checksums(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "tiny")
    sums = json.loads(write_checksums(tmp_path).read_text(encoding="utf-8"))
    assert set(sums) == {f"tiny/{name}" for name in files(tiny)}
    assert damage(tmp_path) == []
    load(tmp_path / "tiny")
    weights = tmp_path / "tiny" / UNET
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    assert damage(tmp_path) == [f"tiny/{UNET} is not the file that checksums.json was written for"]
    assert damage(tmp_path, "other/") == []
    with pytest.raises(DamagedError, match=UNET):
        load(tmp_path / "tiny")
    (tmp_path / "tiny/README.md").write_text("notes may change", encoding="utf-8")
    assert write_checksums(tmp_path) and damage(tmp_path) == []


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with written(path) as temporary:
        temporary.write_text("one", encoding="utf-8")
        assert not path.exists()
    assert path.read_text(encoding="utf-8") == "one" and path.stat().st_mode & 0o444 == 0o444
    with pytest.raises(RuntimeError), written(path) as temporary:
        temporary.write_text("half of tw", encoding="utf-8")
        raise RuntimeError
    assert path.read_text(encoding="utf-8") == "one"
    assert list(path.parent.iterdir()) == [path]


def test_the_models_in_the_clone_are_whole():
    folder = companion.DATA / "models"
    if not (folder / "checksums.json").exists():
        pytest.skip("data/models has no checksums.json yet")
    assert damage(folder) == []
    listed = json.loads((folder / "checksums.json").read_text(encoding="utf-8"))
    unlisted = {p.relative_to(folder).as_posix() for p in folder.rglob("*.safetensors")} - set(listed)
    assert not unlisted, "weights that no checksum guards"
    assert not [p for p in folder.rglob("*") if p.suffix in {".bin", ".ckpt", ".pt", ".pth", ".pkl"}]


# ---- The hub


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache, and a client that neither waits nor sleeps for long."""
    import huggingface_hub.constants
    import huggingface_hub.file_download

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    monkeypatch.setattr(
        huggingface_hub.file_download, "time", SimpleNamespace(sleep=lambda seconds: None, time=time.time)
    )
    return tmp_path / "cache"


def kept(cache: Path) -> set[str]:
    """The files that the cache offers, by path in their repository."""
    return {"/".join(p.relative_to(cache).parts[3:]) for p in cache.glob("models--*/snapshots/*/**/*") if p.is_file()}


def weights_asked(hub: Hub) -> list[str]:
    return [path for method, path in hub.requests if method == "GET" and re.search(r"\.(safetensors|bin)$", path)]


def test_fetched_whole_and_then_never_asked_again(hub, cache, tiny):
    extras = {
        "README.md": b"notes",
        "v1-5-pruned.ckpt": b"pickle",
        "whole.safetensors": b"one file",
        "unet/diffusion_pytorch_model.bin": b"pickle",
        "unet/diffusion_pytorch_model.non_ema.safetensors": b"another variant",
        "vae_decoder/model.onnx": b"another format",
    }
    hub.repos["one/model"] = Repo(files(tiny) | extras)
    folder = download(MODEL, endpoint=hub.url, timeout=5)
    assert files(folder) == files(tiny), "all of the pipeline, and nothing else"
    assert np.array_equal(draw(load(folder)), draw(load(tiny)))
    asked = len(hub.requests)
    assert asked > 0
    assert download(MODEL, endpoint=hub.url) == folder
    assert len(hub.requests) == asked


def test_half_precision_is_fetched_where_there_is_a_choice(hub, cache, tiny, tmp_path):
    tiny_pipeline(tmp_path / "half", variant="fp16")
    hub.repos["one/model"] = Repo(files(tiny) | files(tmp_path / "half"))
    download(MODEL, endpoint=hub.url, timeout=5)
    assert len(weights_asked(hub)) == 3 and all(".fp16." in path for path in weights_asked(hub))


def test_a_part_that_is_not_wanted_is_not_fetched(hub, cache, tiny):
    index = json.loads((tiny / "model_index.json").read_text(encoding="utf-8"))
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    checker = {"safety_checker/config.json": b"{}", "safety_checker/model.safetensors": b"\x02" + 7 * b"\0" + b"{}"}
    hub.repos["one/model"] = Repo({**files(tiny), **checker, "model_index.json": json.dumps(index).encode()})
    folder = download(MODEL, skip={"safety_checker": None}, endpoint=hub.url, timeout=5)
    assert not (folder / "safety_checker").exists()
    assert load(folder, safety_checker=None).safety_checker is None
    # Wanted later, it is fetched then, and nothing else is.
    hub.requests.clear()
    assert download(MODEL, endpoint=hub.url, timeout=5) == folder
    assert weights_asked(hub) == ["/one/model/resolve/main/safety_checker/model.safetensors"]


def test_the_next_mirror_is_tried_when_one_is_gone(hub, cache, tiny):
    hub.repos["two/model"] = Repo(files(tiny))
    folder = download(MODEL, endpoint=hub.url, timeout=5)
    assert "models--two--model" in str(folder)


@pytest.mark.parametrize("where", ["api", "head", "get"])
def test_the_next_mirror_is_tried_when_one_stalls(hub, cache, tiny, where):
    hub.repos["one/model"] = Repo(files(tiny), stalls={where})
    hub.repos["two/model"] = Repo(files(tiny))
    folder = download(MODEL, endpoint=hub.url, timeout=0.3)
    assert "models--two--model" in str(folder)
    assert kept(cache) == set(files(tiny)), "nothing of the first one is kept"
    if where == "head":  # huggingface_hub would ask six times more, for a minute each
        assert [method for method, path in hub.requests if path.startswith("/one/")] == ["HEAD"]


def test_a_body_cut_short_is_not_kept(hub, cache, tiny):
    hub.repos["one/model"] = Repo(files(tiny), short={UNET})
    hub.repos["two/model"] = Repo(files(tiny))
    folder = download(MODEL, endpoint=hub.url, timeout=5)
    assert "models--two--model" in str(folder)
    assert files(folder) == files(tiny)
    assert not list((cache / "models--one--model").glob(f"snapshots/*/{UNET}"))


@pytest.mark.parametrize("size", ["shorter", "same"])
@pytest.mark.parametrize("name", [UNET, "unet/config.json"])
def test_a_file_that_is_not_what_was_listed_is_not_kept(hub, cache, tiny, name, size):
    body = files(tiny)[name]
    wrong = body[: len(body) // 2] if size == "shorter" else body[:-1] + b"\x7f"
    hub.repos["one/model"] = Repo(files(tiny), lies={name: wrong})
    with pytest.raises(NoMirrorError, match=re.escape(name)):
        download(replace(MODEL, mirrors=("one/model",)), endpoint=hub.url, timeout=5)
    assert name not in kept(cache) and "model_index.json" not in kept(cache)
    assert wrong not in files(cache).values()
    hub.repos["two/model"] = Repo(files(tiny))
    assert files(download(MODEL, endpoint=hub.url, timeout=5)) == files(tiny)
    # A repaired mirror is used again.
    shutil.rmtree(cache / "models--two--model")
    del hub.repos["two/model"]
    hub.repos["one/model"].lies.clear()
    assert files(download(MODEL, endpoint=hub.url, timeout=5)) == files(tiny)


def test_a_repository_of_pickles_is_refused_before_they_are_fetched(hub, cache, tiny):
    pickles = {name.replace(".safetensors", ".bin"): body for name, body in files(tiny).items()}
    hub.repos["one/model"] = Repo(pickles)
    with pytest.raises(NoMirrorError, match="is a pickle file"):
        download(MODEL, endpoint=hub.url, timeout=5)
    assert weights_asked(hub) == []


def test_no_mirror_says_why_for_each_and_what_to_do(hub, cache, tiny):
    model = replace(MODEL, mirrors=("gone/model", "slow/model", "other/model"))
    hub.repos["slow/model"] = Repo(files(tiny), stalls={"api"})
    hub.repos["other/model"] = Repo({"README.md": b"a model card"})
    with pytest.raises(NoMirrorError) as error:
        download(model, endpoint=hub.url, timeout=0.3)
    message = str(error.value)
    assert "gone/model (no such repository" in message
    assert "slow/model (no answer in 0.3 seconds)" in message
    assert "other/model (it lacks model_index.json)" in message
    assert "tabletop" in message and "\n" not in message


def test_no_network_is_told_at_once(cache):
    with pytest.raises(NoMirrorError, match=r"one/model \(no connection\); two/model \(no connection\)"):
        download(MODEL, endpoint="http://127.0.0.1:9", timeout=5)


def test_offline_the_hub_is_not_asked(hub, cache, tiny, monkeypatch):
    import huggingface_hub

    hub.repos["one/model"] = Repo(files(tiny))
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: True)
    with pytest.raises(OfflineError, match="HF_HUB_OFFLINE is set"):
        download(MODEL, endpoint=hub.url, timeout=5)
    assert hub.requests == []


def test_an_unfinished_download_is_finished(hub, cache, tiny):
    hub.repos["one/model"] = Repo(files(tiny))
    folder = download(MODEL, endpoint=hub.url, timeout=5)
    (folder / UNET).unlink()
    hub.requests.clear()
    assert download(MODEL, endpoint=hub.url, timeout=5) == folder
    assert files(folder) == files(tiny) and hub.requests


SCRIPT = """
import dataclasses, sys
from companion import models
model = dataclasses.replace(models.CATALOGUE["sd15"], mirrors=("gone/model", "one/model"))
models.CATALOGUE["sd15"] = model
if sys.argv[1] == "download":
    models.download(model, timeout=5)
else:
    try:
        pipe = models.load("sd15")
    except OSError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    import numpy as np
    picture = pipe("a b", num_inference_steps=2, generator=models.seeded(0), output_type="np").images
    np.save(sys.argv[1], picture)
"""


def test_by_name_as_a_user_does(hub, tiny, tmp_path):
    """In processes of their own, with the environment that a user sets: fetched online, then loaded offline."""
    hub.repos["one/model"] = Repo(files(tiny))

    def run(home: str, what: str, **more: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-c", SCRIPT, what],
            env={**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / home), **more},
            capture_output=True,
            text=True,
            timeout=300,
        )

    online = run("home", "download", HF_HUB_DISABLE_PROGRESS_BARS="1")
    assert online.returncode == 0, online.stderr
    assert ("GET", "/api/models/gone/model") in hub.requests

    hub.requests.clear()
    offline = run("home", str(tmp_path / "picture.npy"), HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    assert np.array_equal(np.load(tmp_path / "picture.npy"), draw(load(tiny)))

    nothing = run("empty", "nothing", HF_HUB_OFFLINE="1")
    assert nothing.returncode == 1 and nothing.stderr.startswith("OfflineError: 'sd15' is not on this machine")
    assert hub.requests == []


# ---- GPUs


@pytest.mark.parametrize(("device", "kind"), [("cuda:1", "CUDA"), ("mps", "MPS")])
def test_a_gpu_that_is_not_there(tiny, monkeypatch, device, kind):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"device='{device}', but torch .* sees no {kind} GPU"):
        load(tiny, device=device)


def test_memory_settings_are_for_gpus_only(tiny, monkeypatch):
    import torch

    pipe = load(tiny)
    assert not pipe.vae.use_slicing and not pipe.vae.use_tiling
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=15e9))
    models._fit(pipe, torch.device("cuda"))
    assert pipe.vae.use_slicing and pipe.vae.use_tiling
    assert pipe.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


# ---- ControlNets -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def net(tiny, tmp_path_factory):
    """The folder of a ControlNet for the tiny pipeline."""
    from companion.controlnet import controlnet_of

    folder = tmp_path_factory.mktemp("nets") / "edges"
    controlnet_of(load(tiny).unet, (8, 8, 8, 8)).save_pretrained(folder)
    return folder


def test_a_controlnet_loads_from_its_folder(net):
    loaded = models.load_controlnet(net)
    assert type(loaded).__name__ == "ControlNetModel" and not loaded.training
    assert all(p.dtype == torch.float32 for p in loaded.parameters())


def test_the_published_controlnets_are_fetched_as_a_model_is(hub, cache, tiny, net, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    extras = {"README.md": b"notes", "diffusion_pytorch_model.bin": b"pickle", "images/out.png": b"picture"}
    repo = models.CONTROLNETS["sd15"]["depth"]
    hub.repos[repo] = Repo(files(net) | extras)
    one = models.Model("depth", "", 512, 0, 0.0, (repo,))
    folder = download(one, single=True, endpoint=hub.url, timeout=5)
    assert files(folder) == files(net), "its weights and its configuration, and nothing else"
    hub.requests.clear()
    assert download(one, single=True, endpoint=hub.url) == folder and not hub.requests
    loaded = models.load_controlnet("depth", "sd15")  # it is in the cache, so no hub is asked
    assert sum(p.numel() for p in loaded.parameters()) > 0 and not hub.requests


def test_all_eight_conditions_have_a_published_controlnet():
    from companion.conditions import CONDITIONS

    assert list(models.CONTROLNETS["sd15"]) == list(CONDITIONS)


def test_a_controlnet_of_pickles_is_refused(net, tmp_path, hub, cache):
    shutil.copytree(net, tmp_path / "net")
    (tmp_path / "net" / "diffusion_pytorch_model.safetensors").rename(tmp_path / "net" / "diffusion_pytorch_model.bin")
    with pytest.raises(models.PickleRefusedError, match="only safetensors are loaded"):
        models.load_controlnet(tmp_path / "net")
    hub.repos["one/net"] = Repo(files(tmp_path / "net"))
    with pytest.raises(models.NoMirrorError, match="pickle"):
        download(models.Model("n", "", 512, 0, 0.0, ("one/net",)), single=True, endpoint=hub.url, timeout=5)
    assert not weights_asked(hub)


@pytest.mark.parametrize(
    ("condition", "model", "sentence"),
    [
        ("mood", "sd15", "No ControlNet 'mood' is known for sd15; these are: canny, softedge, mlsd, depth, normal"),
        ("mood", "tabletop", "No ControlNet 'mood' is known for tabletop; "),
        ("canny", "lcm", "No ControlNet 'canny' is known for lcm; none is"),
    ],
)
def test_an_unknown_controlnet_is_told(condition, model, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        models.load_controlnet(condition, model)


def test_a_controlnet_that_is_not_whole_is_told_what_it_lacks(tmp_path):
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(models.NotAPipelineError, match="lacks diffusion_pytorch_model.safetensors"):
        models.load_controlnet(tmp_path)


def test_a_controlnet_of_ones_own_comes_from_the_hub(hub, cache, net):
    hub.repos["you/edges"] = Repo(files(net))
    loaded = models.load_controlnet("you/edges", endpoint=hub.url, timeout=5)
    assert type(loaded).__name__ == "ControlNetModel"


def test_the_miniatures_controlnets_are_those_in_the_data_folder(net, tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path))
    assert models.controlnets() == {}
    for condition in ("depth", "canny"):
        shutil.copytree(net, tmp_path / "models" / f"tabletop-controlnet-{condition}")
    assert list(models.controlnets()) == ["canny", "depth"]
    assert type(models.load_controlnet("canny")).__name__ == "ControlNetModel"


def test_an_adapter_loads_as_a_controlnet_does(tmp_path, monkeypatch):
    from companion.controlnet import adapter_of
    from companion.pretraining.unet import make_unet

    monkeypatch.setenv("COMPANION_DATA", str(tmp_path))
    adapter_of(make_unet()).half().save_pretrained(tmp_path / "models" / "tabletop-adapter-depth")
    assert list(models.adapters()) == ["depth"] and models.controlnets() == {}
    loaded = models.load_adapter("depth")
    assert type(loaded).__name__ == "T2IAdapter" and not loaded.training
    with pytest.raises(ValueError, match="No T2I-Adapter 'canny' is known for tabletop; these are: depth"):
        models.load_adapter("canny")
    with pytest.raises(ValueError, match="No T2I-Adapter 'canny' is known for sd15; none is"):
        models.load_adapter("canny", "sd15")


def test_no_controlnet_is_known_for_a_model_unlike_any_other(tiny):
    assert models.controlnets(tiny) == {}
    with pytest.raises(ValueError, match="No ControlNet 'canny' is known for tiny; none is"):
        models.load_controlnet("canny", tiny)


def test_the_published_controlnets_are_not_offered_for_another_text_encoder(tiny, tmp_path):
    """Stable Diffusion 2.1 draws as large as 1.5 does, but its layers take other words."""
    for width, names in ((768, list(models.CONTROLNETS["sd15"])), (1024, [])):
        shutil.copytree(tiny, tmp_path / str(width))
        target = tmp_path / str(width) / "unet" / "config.json"
        config = json.loads(target.read_text(encoding="utf-8"))
        target.write_text(json.dumps({**config, "sample_size": 64, "cross_attention_dim": width}), encoding="utf-8")
        assert find(tmp_path / str(width)).size == 512
        assert list(models.controlnets(tmp_path / str(width))) == names


# ---- Repositories by name, and LoRAs ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lora(tiny, tmp_path_factory) -> Path:
    """The folder of a LoRA for the tiny pipeline that changes its pictures, without a word about its base."""
    from companion.finetuning import Lora, attach, save_learned

    tuned = attach(load(tiny, device="cpu"), Lora(rank=2, text_encoder=True))
    for p in tuned.parameters:
        p.data = 0.3 * torch.randn(p.shape, generator=seeded(p.numel()))
    folder = tmp_path_factory.mktemp("lora") / "learned"
    save_learned(tuned, folder)
    return folder


CARD = b"---\nlicense: mit\nbase_model: someone/tiny\n---\nwords\n"


def test_a_pipeline_on_the_hub_is_found_by_its_description_and_loaded_whole(hub, cache, tiny):
    hub.repos["you/model"] = Repo(files(tiny) | {"README.md": b"words", "x.ckpt": b"pickle"})
    found = find("you/model", endpoint=hub.url, timeout=5)
    assert (found.size, found.name, found.mirrors, found.base) == (32, "you/model", ("you/model",), None)
    assert found.settings == CATALOGUE["tabletop"].settings and not weights_asked(hub)
    pipe = load("you/model", endpoint=hub.url, timeout=5)
    assert np.array_equal(draw(pipe), draw(load(tiny)))
    hub.requests.clear()
    assert np.array_equal(draw(load("you/model", endpoint=hub.url)), draw(pipe)) and not hub.requests


@pytest.mark.parametrize(
    "about",
    [
        {"README.md": CARD},
        {"README.md": CARD.replace(b"base_model: ", b"base_model:\n- ")},
        {"adapter_config.json": b'{"base_model_name_or_path": "someone/tiny"}'},
    ],
    ids=["readme", "list", "adapter_config"],
)
def test_a_lora_on_the_hub_brings_its_base_along(hub, cache, tiny, lora, about):
    hub.repos["someone/tiny"] = Repo(files(tiny))
    hub.repos["you/lora"] = Repo(files(lora) | about | {"samples/1.png": b"picture", "optimizer.bin": b"pickle"})
    found = find("you/lora", endpoint=hub.url, timeout=5)
    assert found.base.name == "someone/tiny" and found.size == 32
    pipe = load("you/lora", endpoint=hub.url, timeout=5)
    by_hand = load(tiny)
    by_hand.load_lora_weights(lora, weight_name=models.LORA)
    assert np.array_equal(draw(pipe), draw(by_hand))
    assert not np.array_equal(draw(pipe), draw(load(tiny)))
    assert set(kept(cache)) == set(files(tiny)) | {models.LORA, *about}, "all of both, and nothing else"
    hub.requests.clear()
    load("you/lora", endpoint=hub.url)
    assert not hub.requests, "both are in the cache"


def test_a_lora_in_a_folder_is_put_on_the_base_that_is_named(tiny, lora):
    with pytest.raises(UnknownModelError, match="does not say which model it changes: name that one"):
        load(lora)
    pipe = load(lora, base=str(tiny))
    assert not np.array_equal(draw(pipe), draw(load(tiny)))
    assert all(getattr(part, "peft_config", None) for part in (pipe.unet, pipe.text_encoder)), "both halves of it"
    found = find(lora, base=str(tiny))
    assert found.path == lora and found.base.path == tiny.resolve() and found.size == 32


@pytest.mark.parametrize("name", ["runwayml/stable-diffusion-v1-5", CATALOGUE["sd15"].mirrors[2], "sd15"])
def test_a_base_that_is_in_the_catalogue_is_taken_from_there(lora, tmp_path, name):
    shutil.copytree(lora, tmp_path / "lora")
    (tmp_path / "lora" / "README.md").write_text(f"---\nbase_model: {name}\n---\n", encoding="utf-8")
    assert find(tmp_path / "lora").base == CATALOGUE["sd15"]


def test_a_path_in_a_readme_is_no_base(lora, tiny, tmp_path):
    shutil.copytree(lora, tmp_path / "lora")
    (tmp_path / "lora" / "README.md").write_text(f"---\nbase_model: {tiny}\n---\n", encoding="utf-8")
    with pytest.raises(UnknownModelError, match="does not say"):
        find(tmp_path / "lora")


def test_a_lora_that_does_not_fit_is_told_in_a_sentence(lora, tiny, tmp_path):
    from safetensors.torch import load_file, save_file

    weights = load_file(lora / models.LORA)
    for name, changed in (
        ("sizes", {k: torch.cat([v, v], 1) if "lora_A" in k else v for k, v in weights.items()}),
        ("names", {f"transformer.{k.partition('.')[2]}": v for k, v in weights.items()}),
    ):
        (tmp_path / name).mkdir()
        save_file({k: v.contiguous() for k, v in changed.items()}, tmp_path / name / models.LORA)
        with pytest.raises(NotAPipelineError, match=f"The LoRA {name} does not fit its base, {tiny.name}") as error:
            load(tmp_path / name, base=str(tiny))
        assert "\n" not in str(error.value)


def test_a_base_is_for_loras_only(tiny, hub, cache):
    for name in ("tabletop", tiny):
        with pytest.raises(ValueError, match="base='sd15' is for a LoRA"):
            find(name, base="sd15")
    hub.repos["one/lora"] = Repo({models.LORA: b"", "README.md": b"---\nbase_model: two/lora\n---\n"})
    hub.repos["two/lora"] = Repo({models.LORA: b"", "README.md": CARD})
    hub.repos["someone/tiny"] = Repo(files(tiny))
    with pytest.raises(NotAPipelineError, match="two/lora is itself a LoRA"):
        find("one/lora", endpoint=hub.url, timeout=5)


@pytest.mark.parametrize("base", ["one/lora", "two/lora"])
def test_loras_that_name_each_other_end_in_a_sentence(hub, cache, base):
    """So does one that names itself, as a card may that was copied from an example."""
    hub.repos["one/lora"] = Repo({models.LORA: b"", "README.md": f"---\nbase_model: {base}\n---\n".encode()})
    hub.repos["two/lora"] = Repo({models.LORA: b"", "README.md": b"---\nbase_model: one/lora\n---\n"})
    with pytest.raises(NotAPipelineError, match=f"{base} is itself a LoRA; the base of one/lora must be a pipeline"):
        find("one/lora", endpoint=hub.url, timeout=5)


def test_a_repository_that_cannot_be_used_is_told_why(hub, cache, tiny, lora):
    hub.repos["a/pickle"] = Repo({"pytorch_lora_weights.bin": b"pickle", "README.md": CARD})
    hub.repos["a/dataset"] = Repo({"README.md": b"words", "train.csv": b"1"})
    hub.repos["a/lie"] = Repo(files(lora) | {"README.md": CARD}, lies={models.LORA: b"else"})
    hub.repos["a/gate"] = Repo(files(tiny), gated=True)
    for name, error, sentence in (
        ("a/pickle", PickleRefusedError, "a/pickle cannot be used: pytorch_lora_weights.bin is a pickle file"),
        ("a/dataset", NotAPipelineError, "it has neither model_index.json, as a pipeline has, nor"),
        ("a/lie", NoMirrorError, f"{models.LORA} is cut short"),
        ("a/gate", NoMirrorError, "a/gate .its page asks for your consent first.*needs HF_TOKEN"),
        ("no/such", NoMirrorError, "no such repository, or a private one.*needs HF_TOKEN.*no folder of that name"),
    ):
        with pytest.raises(error, match=sentence) as raised:
            load(name, endpoint=hub.url, timeout=5)
        assert "\n" not in str(raised.value)
    assert models.LORA not in kept(cache)


def test_offline_a_repository_that_is_not_here_is_told(hub, cache, tiny, monkeypatch):
    import huggingface_hub

    hub.repos["you/model"] = Repo(files(tiny))
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: True)
    with pytest.raises(OfflineError, match="'you/model' is not on this machine and HF_HUB_OFFLINE is set"):
        load("you/model", endpoint=hub.url)
    assert not hub.requests


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "tpu"])
def test_an_unknown_device_is_told_before_anything_is_looked_for(device):
    with pytest.raises(ValueError, match=f"device='{device}' is unknown; known are cpu, cuda"):
        load("nowhere", device=device)
