"""The fast path draws what the stock pipeline draws, from the same weights, or steps aside."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler

import companion
from companion import DATA
from companion.fast import GRAPH, WEIGHTS, Fast, faster
from companion.models import find, seeded

pytest.importorskip("openvino")
PROMPT = "a gold robot left of a blue house on snow at sunset"
SETTINGS = find("tabletop").settings | {"num_inference_steps": 6}


@pytest.fixture(scope="module")
def pipe():
    return companion.load("tabletop")


@pytest.fixture(scope="module")
def fast(pipe):
    return Fast(pipe)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_latents_are_the_stock_pipeline_s(pipe, fast, guidance):
    options = SETTINGS | {"guidance_scale": guidance, "output_type": "latent"}
    stock = pipe(PROMPT, generator=seeded(3), **options).images
    assert torch.allclose(fast(PROMPT, generator=seeded(3), **options).images, stock, atol=1e-4)


def test_pictures_are_the_stock_pipeline_s(pipe, fast):
    prompts, noise = [PROMPT, "a red ball on grass by day"], [seeded(0), seeded(1)]
    stock = pipe(prompts, generator=noise, negative_prompt=["water"] * 2, **SETTINGS).images
    ours = fast(prompts, generator=[seeded(0), seeded(1)], negative_prompt="water", **SETTINGS).images
    for a, b in zip(stock, ours, strict=True):
        assert np.abs(np.asarray(a).astype(int) - np.asarray(b)).max() <= 1


def test_it_takes_the_pipeline_s_sampler_as_it_is_now(fast):
    scheduler = fast.pipe.scheduler
    try:
        fast.pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(scheduler.config)
        options = SETTINGS | {"output_type": "latent"}
        stock = fast.pipe(PROMPT, generator=seeded(3), **options).images
        ancestral = fast(PROMPT, generator=seeded(3), **options).images
    finally:
        fast.pipe.scheduler = scheduler
    # Guidance amplifies rounding: the stock pipeline differs by as much as 1e-4 between one thread and two.
    assert torch.allclose(ancestral, stock, atol=1e-3)
    assert not torch.allclose(fast(PROMPT, generator=seeded(3), **options).images, stock, atol=0.1)


def test_large_batches_and_other_sizes(pipe, fast):
    x = torch.randn(70, 4, 16, 16, generator=seeded(0))
    states = fast.encode_prompt(PROMPT).expand(70, -1, -1)
    assert torch.allclose(fast.noise_pred(x, 500, states)[-1:], fast.noise_pred(x[-1:], 500, states[:1]), atol=1e-4)
    z = torch.randn(1, 4, 8, 24, generator=seeded(1))
    with torch.no_grad():
        stock = pipe.unet(z, 20, fast.encode_prompt(PROMPT)).sample
        assert torch.allclose(fast.noise_pred(z, 20, fast.encode_prompt(PROMPT)), stock, atol=1e-4)
        decoded = pipe.vae.decode(z / pipe.vae.config.scaling_factor).sample
    assert torch.allclose(fast.decode(z), decoded, atol=1e-3)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_samples_come_back_in_their_order(pipe, threads):
    x, t = torch.randn(5, 4, 16, 16, generator=seeded(0)), torch.tensor([0.0, 20.0, 500.0, 900.0, 999.0])
    fast = Fast(pipe, threads)
    states = torch.cat([fast.encode_prompt(p) for p in ("", "a cat", "a red ball", "a gold robot on snow", PROMPT)])
    with torch.no_grad():
        assert torch.allclose(fast.noise_pred(x, t, states), pipe.unet(x, t, states).sample, atol=1e-4)


def test_changed_weights_draw_with_torch():
    pipe = companion.load("tabletop")
    assert isinstance(faster(pipe), Fast)
    with torch.no_grad():
        pipe.unet.conv_out.bias += 0.01
    assert faster(pipe) is pipe
    with pytest.raises(LookupError, match="no longer those of"):
        Fast(pipe)


@pytest.mark.parametrize(
    "how", ["in place", "turned round in place", "through data", "another U-Net", "the decoder", "the text encoder"]
)
def test_weights_that_change_afterwards_are_noticed(how):
    """Also those that torch does not count as changed: adapters are merged through `.data`."""
    pipe = companion.load("tabletop")
    fast = Fast(pipe)
    options = SETTINGS | {"output_type": "pt"}
    before = fast(PROMPT, generator=seeded(3), **options).images
    with torch.no_grad():
        if how == "in place":
            pipe.unet.conv_out.weight.mul_(0.5)
        elif how == "turned round in place":  # which keeps every norm
            pipe.unet.conv_out.weight.neg_()
        elif how == "through data":
            pipe.unet.conv_out.weight.data *= 0.5
        elif how == "another U-Net":
            pipe.unet = type(pipe.unet).from_config(pipe.unet.config)
        elif how == "the decoder":
            pipe.vae.decoder.conv_out.bias += 0.3
        else:
            pipe.text_encoder.get_input_embeddings().weight.data.mul_(0.5)
    after = fast(PROMPT, generator=seeded(3), **options).images
    stock = pipe(PROMPT, generator=seeded(3), **options).images
    assert torch.allclose(after, stock, atol=1e-3) and not torch.allclose(after, before, atol=0.01)


def test_a_folder_without_graphs_draws_with_torch(tmp_path, pipe):
    pipe.save_pretrained(tmp_path)
    again = companion.load(tmp_path)
    assert faster(again) is again
    with pytest.raises(LookupError, match=f"no {GRAPH}; `companion build publish`"):
        Fast(again)


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_graphs_hold_no_weights_of_their_own_and_no_paths(part):
    folder = DATA / "models" / "tabletop" / part
    graph = (folder / GRAPH).read_bytes()
    assert len(graph) < 0.03 * (folder / WEIGHTS).stat().st_size
    assert str(companion.ROOT).encode() not in graph and b"site-packages" not in graph


@pytest.mark.slow
def test_graphs_are_made_by_their_command(tmp_path, fast):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    import shutil

    from companion.fast import write_graphs

    source = DATA / "models" / "tabletop"
    shutil.copytree(source, tmp_path / "tabletop", ignore=shutil.ignore_patterns("*.onnx"))
    assert len(list(write_graphs(tmp_path / "tabletop"))) == 2
    for part in ("unet", "vae"):
        onnx.checker.check_model(str(tmp_path / "tabletop" / part / GRAPH))
    options = SETTINGS | {"output_type": "latent"}
    again = Fast(companion.load(tmp_path / "tabletop"))
    stock = fast(PROMPT, generator=seeded(5), **options).images
    assert torch.allclose(again(PROMPT, generator=seeded(5), **options).images, stock, atol=1e-4)
