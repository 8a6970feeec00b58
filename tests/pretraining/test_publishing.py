"""From checkpoints to data/models and back."""

from __future__ import annotations

import pytest
import torch
from diffusers import ControlNetModel, T2IAdapter
from safetensors.torch import load_file

from companion import DATA
from companion.controlnet import adapter_of, controlnet_of
from companion.files import damage
from companion.pretraining import publishing
from companion.pretraining.clip import trained_tokenizer
from companion.pretraining.judge import broadened
from companion.pretraining.muon import muon
from companion.pretraining.report import load_tabletop
from companion.pretraining.unet import Conditioned, make_unet, train_unet
from companion.pretraining.vae import make_vae
from companion.tabletop.judge import Judge
from companion.tabletop.samples import held_out
from companion.training import load_weights, read_meta, save_checkpoint, save_start

from .helpers import names_in, same_weights, untrained_text_encoder


def test_half_trained_weights_are_kept_for_another_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(publishing, "NEXT", tmp_path / "models" / "next")
    (tmp_path / "models").mkdir()
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
    judge = broadened(Judge.load(DATA / "models" / "judge"))
    with torch.no_grad():
        judge.stem.weight.mul_(1.5)
    save_checkpoint(folders[0] / "judge.safetensors", judge, judge, muon(judge, 1e-3), {"step": 7, "seconds": 1.0})
    lines = list(publishing.keep(folders[0]))
    assert [line for line in lines if "was not trained here" not in line] == [
        f"{tmp_path / 'models' / 'next' / 'judge.safetensors'} holds judge after 7 steps"
    ]
    assert [p.name for p in (tmp_path / "models" / "next").iterdir()] == ["judge.safetensors"]  # the only one trained
    assert len(load_file(tmp_path / "models" / "next" / "judge.safetensors")) == 1  # only what changed in the judge
    assert damage(tmp_path / "models") == []
    lines = list(publishing.adopt(folders[1]))
    assert len(lines) == 4 and f"{folders[1] / 'judge.safetensors'} holds the kept weights" in lines
    again = load_weights(folders[1] / "judge.safetensors", Judge()).state_dict()
    assert all(torch.equal(again[k], v.half().float()) for k, v in judge.state_dict().items())
    assert read_meta(folders[1] / "judge.safetensors")["step"] == 0
    vae = load_weights(folders[1] / "vae.safetensors", make_vae()).state_dict()  # not kept: the published one
    assert torch.equal(vae["decoder.conv_out.bias"], load_tabletop().vae.state_dict()["decoder.conv_out.bias"])


def test_published_weights_can_be_gone_on_from_and_own_ones_are_kept(tmp_path, monkeypatch):
    mine = make_vae()
    save_start(tmp_path / "vae.safetensors", mine)
    before = (tmp_path / "vae.safetensors").read_bytes()
    monkeypatch.setattr(publishing, "NEXT", tmp_path / "next")  # where nothing was kept
    lines = list(publishing.adopt(tmp_path))
    assert lines[0] == f"{tmp_path / 'vae.safetensors'} is kept"
    assert [line.split(" holds ")[1] for line in lines[1:]] == ["the published weights"] * 3
    assert (tmp_path / "vae.safetensors").read_bytes() == before
    published = load_file(DATA / "models" / "judge" / "model.safetensors")
    judge = load_weights(tmp_path / "judge.safetensors", Judge()).state_dict()
    assert all(
        torch.equal(judge[k], v.float()) for k, v in published.items() if k.startswith(("stem", "down", "blocks"))
    )
    assert {p.stem for p in tmp_path.glob("*.safetensors")} == {"vae", "clip", "judge", "unet16"}
    assert read_meta(tmp_path / "unet16.safetensors")["step"] == 0


def train_on(folder, size: int, seed: int, train_text: bool) -> Conditioned:
    """One step of a stage, as in `companion build unet`; returns the trained model."""
    words, (_, scenes) = trained_tokenizer(folder), held_out(4)
    path, first = folder / f"unet{size}.safetensors", folder / "unet8.safetensors"
    latents = torch.randn(4, 4, size, size, generator=torch.Generator().manual_seed(seed))
    options = {"start_from": first if size == 16 else None, "words": folder / "text_encoder.safetensors", "batch": 2}
    text_encoder = untrained_text_encoder(words, seed)
    *_, (_, ema) = train_unet(latents, scenes, words, text_encoder, 1, path, train_text=train_text, **options)
    return ema


@pytest.mark.parametrize("second_learns_words", [False, True])
def test_the_trained_unet_has_the_text_encoder_that_it_was_trained_with(tmp_path, second_learns_words):
    first = train_on(tmp_path, 8, 1, train_text=True)
    found = publishing.trained_unet(tmp_path)
    assert same_weights(found, first) and not found.training
    second = train_on(tmp_path, 16, 2, train_text=second_learns_words)
    assert same_weights(second.text_encoder, first.text_encoder) != second_learns_words
    found = publishing.trained_unet(tmp_path)
    assert same_weights(found, second) and not found.training
    assert (tmp_path / "text_encoder.safetensors").exists() != second_learns_words
    holds_words = any(name.startswith("ema.text_encoder.") for name in names_in(tmp_path / "unet16.safetensors"))
    assert holds_words == second_learns_words


@pytest.mark.parametrize("attention", [True, False])
def test_a_trained_controlnet_is_published_as_the_library_loads_it(tmp_path, attention):
    unet = make_unet()
    net = controlnet_of(unet, attention=attention, seed=3)
    with torch.no_grad():
        net.controlnet_mid_block.weight.add_(0.25)
    save_start(tmp_path / "controlnet-canny.safetensors", net)
    found = publishing.trained_net(tmp_path, "controlnet-canny", unet)
    assert same_weights(found, net)
    publishing.save_net(found, tmp_path / "tabletop-controlnet-canny")
    publishing.save_net(found, tmp_path / "tabletop-controlnet-canny")  # again, over the old one
    stock = ControlNetModel.from_pretrained(tmp_path / "tabletop-controlnet-canny")
    assert torch.allclose(stock.controlnet_mid_block.weight, net.controlnet_mid_block.weight, atol=1e-3)
    size = sum(p.stat().st_size for p in (tmp_path / "tabletop-controlnet-canny").iterdir())
    assert size < (8.5e6 if attention else 6e6)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_trained_adapter_is_published_too(tmp_path):
    unet = make_unet()
    adapter = adapter_of(unet)
    with torch.no_grad():
        adapter.adapter.conv_in.weight.add_(0.25)
    save_start(tmp_path / "adapter-depth.safetensors", adapter)
    publishing.save_net(publishing.trained_net(tmp_path, "adapter-depth", unet), tmp_path / "tabletop-adapter-depth")
    stock = T2IAdapter.from_pretrained(tmp_path / "tabletop-adapter-depth")
    assert torch.allclose(stock.adapter.conv_in.weight.float(), adapter.adapter.conv_in.weight, atol=1e-3)
    assert sum(p.stat().st_size for p in (tmp_path / "tabletop-adapter-depth").iterdir()) < 1.5e6


def test_a_frozen_text_encoder_is_kept_for_another_machine_too(tmp_path, monkeypatch):
    monkeypatch.setattr(publishing, "NEXT", tmp_path / "models" / "next")
    (tmp_path / "models").mkdir()
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
    words = trained_tokenizer(folders[0])
    save_start(folders[0] / "unet8.safetensors", Conditioned(make_unet(seed=3), untrained_text_encoder(words, seed=3)))
    trained = train_on(folders[0], 16, 4, train_text=False)
    list(publishing.keep(folders[0]))
    list(publishing.adopt(folders[1]))
    adopted = publishing.trained_unet(folders[1]).state_dict()
    assert all(torch.equal(adopted[k], v.half().float()) for k, v in trained.state_dict().items())
