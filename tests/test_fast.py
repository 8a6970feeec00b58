"""The fast path draws what the stock pipeline draws, from the same weights, or steps aside."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler

import companion
from companion import DATA, diffusion
from companion.controlnet import Control, Controlled, controlnet_of, follower
from companion.fast import GRAPH, WEIGHTS, Fast, faster, varied
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
    # Guidance multiplies the difference of two nearly equal numbers.
    assert torch.allclose(
        fast(PROMPT, generator=seeded(3), **options).images, stock, atol=1e-3 if guidance > 1 else 1e-4
    )


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


def test_weights_of_its_own_for_each_picture(pipe, fast):
    names = ("conv_in.weight", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight")
    first = {name: pipe.unet.get_parameter(name).detach() for name in names}
    weights = {name: torch.stack([w, w.flip(0)]) for name, w in first.items()}
    x, t = torch.randn(4, 4, 16, 16, generator=seeded(0)), torch.tensor(500)
    states = fast.encode_prompt(PROMPT).expand(4, -1, -1)
    with torch.no_grad():
        stock, plain = varied(pipe.unet, weights)(x, t, states), pipe.unet(x, t, states).sample
    assert torch.allclose(stock[::2], plain[::2], atol=1e-5) and not torch.allclose(stock[1::2], plain[1::2], atol=0.1)
    assert torch.allclose(fast.varied(weights)(x, t, states), stock, atol=1e-4)
    assert all(torch.equal(pipe.unet.get_parameter(name), w) for name, w in first.items())


def heard_net(pipe, seed: int = 0, **options):
    """A ControlNet as loud as a trained one: its residuals are about as large as what they are added to."""
    net = controlnet_of(pipe.unet, open_embedder=True, seed=seed, **options).eval()
    with torch.no_grad():
        for conv in (*net.controlnet_down_blocks, net.controlnet_mid_block):
            conv.weight.copy_(0.02 * torch.randn(conv.weight.shape, generator=seeded(seed)))
    return net


@pytest.fixture(scope="module")
def net(pipe):
    return heard_net(pipe)


def controls(seed: int) -> torch.Tensor:
    return torch.rand(1, 3, 128, 128, generator=seeded(seed))


def close(found, expected) -> bool:
    """Equal to about 1e-5 of the largest number."""
    return all(torch.allclose(a, b, atol=1e-4 * float(b.abs().max())) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("guess", [False, True])
@pytest.mark.parametrize("attention", [False, True])
def test_a_compiled_controlnet_says_the_same(pipe, fast, attention, guess):
    net = heard_net(pipe, attention=attention).train()
    compiled = fast.controlnet(net)
    assert net.training
    for batch, (high, wide), length in ((2, (16, 16), 77), (3, (8, 24), 9)):
        x, states = (torch.randn(batch, *shape, generator=seeded(1)) for shape in ((4, high, wide), (length, 192)))
        pictures = torch.rand(batch, 3, 8 * high, 8 * wide, generator=seeded(2))
        options = {"conditioning_scale": 0.7, "guess_mode": guess, "return_dict": False}
        with torch.no_grad():
            down, mid = net(x, 500, states, pictures, **options)
            stock = pipe.unet(
                x, 500, states, down_block_additional_residuals=down, mid_block_additional_residual=mid
            ).sample
        found, middle = compiled(x, 500, states, pictures, **options)
        assert close([*found, middle], [*down, mid])
        heard = fast.noise_pred(x, 500, states, found, middle)
        assert torch.allclose(heard, stock, atol=1e-3)
        assert not torch.allclose(fast.noise_pred(x, 500, states), stock, atol=0.1), "and it can be heard"


def test_a_controlnet_is_compiled_once_until_its_weights_change(pipe, fast):
    net = heard_net(pipe, attention=False)
    compiled = fast.controlnet(net)
    assert fast.controlnet(net) is compiled
    with torch.no_grad():
        net.controlnet_mid_block.weight.mul_(2)
    assert fast.controlnet(net) is not compiled


def test_a_control_picture_that_changes_in_place_is_seen_anew(pipe, fast):
    net = heard_net(pipe, attention=False)
    with torch.no_grad():
        net.controlnet_cond_embedding.conv_out.weight.mul_(100)
    compiled, pictures = fast.controlnet(net), controls(1).repeat(2, 1, 1, 1)
    x, states = (torch.randn(2, *shape, generator=seeded(1)) for shape in ((4, 16, 16), (9, 192)))
    before, _ = compiled(x, 500, states, pictures)
    assert close(compiled(x, 500, states, pictures)[0], before)
    pictures.mul_(0.3)
    after, _ = compiled(x, 500, states, pictures)
    with torch.no_grad():
        expected, _ = net(x, 500, states, pictures, return_dict=False)
    assert close(after, expected) and not close(after, before)


@pytest.mark.parametrize(("seeds", "settings"), [((0,), {}), ((0, 1), {}), ((0,), {"start": 0.2, "end": 0.6})], ids=str)
def test_pictures_that_follow_are_those_of_torch(pipe, fast, seeds, settings):
    nets = [heard_net(pipe, seed, attention=False) for seed in seeds]
    slow = Controlled(pipe.unet, [Control(n, controls(i), 0.8, **settings) for i, n in enumerate(nets)])
    quick = [Control(fast.controlnet(n), controls(i), 0.8, **settings) for i, n in enumerate(nets)]
    options = {"guidance_scale": 3.0}
    expected = diffusion.draw(pipe, PROMPT, 3, steps=6, unet=slow, **options)
    heard = Controlled(fast.noise_pred, quick)
    drawn = fast(
        PROMPT, num_inference_steps=6, guidance_scale=3.0, generator=seeded(3), unet=heard, output_type="pt"
    ).images
    assert torch.allclose(2 * drawn - 1, expected, atol=2 / 255)
    plain = diffusion.draw(pipe, PROMPT, 3, steps=6, **options)
    assert (plain - expected).abs().max() > 0.1


def test_a_follower_draws_on_the_fast_path_what_torch_draws(pipe, net):
    control = (controls(5)[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    follow = follower(pipe, net)
    drawn = follow(PROMPT, 4, control, 0.6, steps=5, guidance_scale=2.0)
    shown = torch.from_numpy(control).permute(2, 0, 1)[None] / 255
    heard = Controlled(pipe.unet, [Control(net, shown, 0.6)])
    expected = diffusion.draw(pipe, PROMPT, 4, steps=5, guidance_scale=2.0, unet=heard)[0]
    assert drawn.shape == (3, 128, 128) and torch.allclose(drawn, expected, atol=2 / 255)
    with pytest.raises(ValueError, match="resize it"):
        follow(PROMPT, 4, control[:64], steps=5, guidance_scale=2.0)


@pytest.mark.parametrize("how", ["the ControlNet", "its embedder", "the U-Net"])
def test_a_follower_notices_changed_weights(how):
    pipe = companion.load("tabletop")
    net = heard_net(pipe, attention=False)
    control, options = (controls(5)[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8), {"steps": 4}
    follow = follower(pipe, net)
    before = follow(PROMPT, 4, control, **options, guidance_scale=2.0)
    with torch.no_grad():
        if how == "the ControlNet":
            net.controlnet_down_blocks[1].weight.data *= 5
        elif how == "its embedder":
            net.controlnet_cond_embedding.conv_out.weight.data *= 3
        else:
            pipe.unet.conv_out.weight.mul_(0.5)
    after = follow(PROMPT, 4, control, **options, guidance_scale=2.0)
    shown = torch.from_numpy(control).permute(2, 0, 1)[None] / 255
    heard = Controlled(pipe.unet, [Control(net, shown)])
    expected = diffusion.draw(pipe, PROMPT, 4, **options, guidance_scale=2.0, unet=heard)[0]
    assert torch.allclose(after, expected, atol=2 / 255) and not torch.allclose(after, before, atol=0.02)


def test_controlnets_that_are_not_compiled_draw_with_torch(pipe, fast):
    net = heard_net(pipe, attention=False)
    net.register_to_config(global_pool_conditions=True)
    with pytest.raises(LookupError, match="averages its residuals over the picture"):
        fast.controlnet(net)
    control = np.zeros((128, 128), np.uint8)
    drawn = follower(pipe, net)(PROMPT, 4, control, steps=2, guidance_scale=1.0)
    heard = Controlled(pipe.unet, [Control(net, torch.zeros(1, 3, 128, 128))])
    assert torch.equal(drawn, diffusion.draw(pipe, PROMPT, 4, steps=2, guidance_scale=1.0, unet=heard)[0])
    with pytest.raises(LookupError, match="the ControlNet is on meta"):
        fast.controlnet(net.to("meta"))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_samples_come_back_in_their_order(pipe, threads):
    x, t = torch.randn(5, 4, 16, 16, generator=seeded(0)), torch.tensor([0.0, 20.0, 500.0, 900.0, 999.0])
    fast = Fast(pipe, threads)
    states = torch.cat([fast.encode_prompt(p) for p in ("", "a cat", "a red ball", "a gold robot on snow", PROMPT)])
    with torch.no_grad():
        assert torch.allclose(fast.noise_pred(x, t, states), pipe.unet(x, t, states).sample, atol=1e-4)


def test_all_who_ask_for_a_pipeline_share_its_drawer():
    pipe = companion.load("tabletop")
    shared = faster(pipe)
    assert isinstance(shared, Fast) and faster(pipe) is shared
    for beside in (copy.copy(pipe), copy.deepcopy(pipe)):  # which have the first one's attributes
        assert faster(beside) is not shared and faster(beside).pipe is beside
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert faster(pipe).threads == threads + 1
    finally:
        torch.set_num_threads(threads)


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
