"""A U-Net that listens to ControlNets is the stock pipelines', and begins as if there were none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    MultiControlNetModel,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetPipeline,
)
from PIL import Image
from stock import scheduler_of, variant

import companion
from companion import diffusion
from companion.conditions import CONDITIONS
from companion.controlnet import (
    Adapted,
    Control,
    Controlled,
    Fidelity,
    adapter_of,
    as_controls,
    controlnet_of,
    drawn_with,
    fidelity,
    followed,
    listening,
)
from companion.metrics import pictures_to_tensor
from companion.models import seeded
from companion.pretraining.unet import make_unet

PROMPT = "a red ball on grass"


def trained(pipe, seed: int, **options):
    """A ControlNet whose zero convolutions are zero no more."""
    net = controlnet_of(pipe.unet, (8, 8, 8, 8), open_embedder=True, seed=seed, **options)
    generator = seeded(seed)
    with torch.no_grad():
        for conv in (*net.controlnet_down_blocks, net.controlnet_mid_block):
            conv.weight.copy_(0.3 * torch.randn(conv.weight.shape, generator=generator))
    return net.eval()


def control_of(seed: int, size: int = 32) -> torch.Tensor:
    return torch.rand(1, 3, size, size, generator=seeded(seed))


@pytest.fixture(scope="module")
def pipe(tiny):
    return companion.load(tiny, device="cpu")


@pytest.fixture(scope="module")
def ddim(pipe):
    return variant(pipe, type(pipe), scheduler_of(DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False}))


@pytest.mark.parametrize("attention", [True, False])
def test_at_first_nothing_changes_and_yet_it_can_learn(pipe, attention):
    net = controlnet_of(pipe.unet, (8, 8, 8, 8), attention=attention)
    x, states = torch.randn(2, 4, 4, 4, generator=seeded(0)), diffusion.encode_prompt(pipe, PROMPT).expand(2, -1, -1)
    heard = Controlled(pipe.unet, [Control(net, control_of(1))])
    assert torch.equal(heard(x, torch.tensor(500), states).sample, pipe.unet(x, 500, states).sample)
    sizes = [sum(p.numel() for p in controlnet_of(make_unet(), attention=a).parameters()) for a in (True, False)]
    assert 0.6 < sizes[1] / sizes[0] < 0.7, "a third smaller, of the miniature's U-Net"
    assert attention == any("mid_block.attentions" in name for name, _ in net.named_parameters())
    # Every weight that is copied is the U-Net's.
    own = pipe.unet.state_dict()
    same = [torch.equal(v, own[k]) for k, v in net.state_dict().items() if k in own]
    assert len(same) > 20 and all(same)
    heard(x, torch.tensor(500), states).sample.square().sum().backward()
    moved = {name for name, p in net.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert moved and all(name.startswith(("controlnet_down_blocks", "controlnet_mid_block")) for name in moved)


def test_an_open_embedder_starts_the_same_and_shows_the_copy_something(pipe):
    closed, opened = (controlnet_of(pipe.unet, (8, 8, 8, 8), open_embedder=o) for o in (False, True))
    x = control_of(0)
    assert not closed.controlnet_cond_embedding(x).any() and opened.controlnet_cond_embedding(x).abs().mean() > 0.01
    residuals = opened(torch.randn(1, 4, 4, 4), 5, diffusion.encode_prompt(pipe, PROMPT), x, return_dict=False)
    assert not any(r.any() for r in (*residuals[0], residuals[1]))


@pytest.mark.parametrize("options", [{}, {"attention": False}], ids=str)
@pytest.mark.parametrize(
    ("controls", "settings"),
    [
        ([(1, 1.0)], {}),
        ([(1, 0.6)], {}),
        ([(1, 1.0), (2, 0.4)], {}),
        ([(1, 0.8)], {"guess_mode": True}),
    ],
    ids=str,
)
def test_it_draws_what_the_stock_pipeline_draws(ddim, options, controls, settings):
    nets = [trained(ddim, seed, **options) for seed, _ in controls]
    pictures, scales = [control_of(10 + seed) for seed, _ in controls], [scale for _, scale in controls]
    one = len(nets) == 1
    stock = variant(ddim, StableDiffusionControlNetPipeline, controlnet=nets[0] if one else MultiControlNetModel(nets))
    theirs = stock(
        PROMPT,
        image=pictures[0] if one else pictures,
        controlnet_conditioning_scale=scales[0] if one else scales,
        num_inference_steps=4,
        guidance_scale=3.0,
        generator=seeded(4),
        output_type="pt",
        **settings,
    ).images
    heard = Controlled(
        ddim.unet,
        [Control(net, x, scale) for net, x, scale in zip(nets, pictures, scales, strict=True)],
        guess=settings.get("guess_mode", False),
    )
    mine = diffusion.draw(ddim, PROMPT, 4, steps=4, guidance_scale=3.0, unet=heard)
    assert torch.allclose((mine + 1) / 2, theirs, atol=1e-5)
    plain = diffusion.draw(ddim, PROMPT, 4, steps=4, guidance_scale=3.0)
    assert not torch.allclose(mine, plain, atol=0.02)


def test_it_is_heard_in_its_part_of_drawing_alone(ddim):
    net, x = trained(ddim, 1), torch.randn(1, 4, 4, 4, generator=seeded(0))
    heard = Controlled(ddim.unet, [Control(net, control_of(2), start=0.25, end=0.75)])
    states = diffusion.encode_prompt(ddim, PROMPT)
    said = {t: heard.residuals(x, torch.tensor(t), states)[1] is not None for t in (900, 700, 300, 100)}
    assert said == {900: False, 700: True, 300: True, 100: False}
    assert torch.equal(heard(x, torch.tensor(900), states).sample, ddim.unet(x, 900, states).sample)


def test_each_picture_follows_its_own_control(ddim):
    net, controls = trained(ddim, 1), torch.cat([control_of(5), control_of(6)])
    options = {"steps": 3, "guidance_scale": 3.0}
    both = diffusion.draw(ddim, PROMPT, [7, 8], unet=Controlled(ddim.unet, [Control(net, controls)]), **options)
    for i, seed in enumerate((7, 8)):
        alone = Controlled(ddim.unet, [Control(net, controls[i : i + 1])])
        assert torch.allclose(diffusion.draw(ddim, PROMPT, seed, unet=alone, **options), both[i : i + 1], atol=1e-5)
    with pytest.raises(ValueError, match="2 control pictures for 6 latents; give one for all, or one for each picture"):
        Controlled(ddim.unet, [Control(net, controls)])(torch.randn(6, 4, 4, 4), torch.tensor(5), torch.zeros(6, 1, 1))
    with pytest.raises(ValueError, match="guess mode needs guidance"):
        guessing = Controlled(ddim.unet, [Control(net, controls)], guess=True)
        diffusion.draw(ddim, PROMPT, [7, 8], steps=2, guidance_scale=1.0, unet=guessing)


def test_an_adapter_begins_as_nothing_and_every_weight_soon_learns(ddim):
    adapter = adapter_of(ddim.unet, factor=8)
    x, states = torch.randn(2, 4, 4, 4, generator=seeded(0)), diffusion.encode_prompt(ddim, PROMPT).expand(2, -1, -1)
    plain = ddim.unet(x, 500, states).sample

    def error():
        return (Adapted(ddim.unet, adapter, control_of(1))(x, torch.tensor(500), states).sample - 1).square().mean()

    assert torch.equal(Adapted(ddim.unet, adapter, control_of(1))(x, torch.tensor(500), states).sample, plain)
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.01)
    start = [p.detach().clone() for p in adapter.parameters()]
    for _ in range(3):
        optimizer.zero_grad()
        error().backward()
        optimizer.step()
    assert all((p != q).any() for p, q in zip(start, adapter.parameters(), strict=True))


def test_with_an_adapter_it_draws_what_the_stock_pipeline_draws(ddim):
    adapter = adapter_of(ddim.unet, factor=8)
    with torch.no_grad():
        for p in adapter.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=seeded(p.numel())))
    stock = variant(ddim, StableDiffusionAdapterPipeline, adapter=adapter)
    options = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent"}
    theirs = stock(PROMPT, image=control_of(3), adapter_conditioning_scale=0.7, generator=seeded(4), **options).images
    heard = listening(ddim.unet, adapter, control_of(3), 0.7)
    mine = diffusion.draw(ddim, PROMPT, 4, steps=4, guidance_scale=3.0, unet=heard)
    assert torch.allclose(mine, diffusion.decode(ddim, theirs), atol=1e-5)
    assert not torch.allclose(mine, diffusion.draw(ddim, PROMPT, 4, steps=4, guidance_scale=3.0), atol=0.02)
    two = listening(ddim.unet, adapter, torch.cat([control_of(2), control_of(3)]), 0.7)
    both = diffusion.draw(ddim, PROMPT, [9, 4], steps=4, guidance_scale=3.0, unet=two)
    assert torch.allclose(both[1:], mine, atol=1e-5)
    with pytest.raises(ValueError, match="2 control pictures for 3 latents"):
        two(torch.randn(3, 4, 4, 4), torch.tensor(5), torch.zeros(3, 1, 1))


def test_control_pictures_in_any_usual_form():
    array = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    expected = torch.from_numpy(array).permute(2, 0, 1) / 255
    for form in (array, Image.fromarray(array), [Image.fromarray(array)], array[None]):
        assert torch.equal(as_controls(form, 32), expected[None])
    grey = as_controls(Image.fromarray(array[..., 0]), 32)
    assert grey.shape == (1, 3, 32, 32) and torch.equal(grey[:, 0], grey[:, 2])
    assert as_controls([array, array], 32).shape == (2, 3, 32, 32)


@pytest.mark.parametrize(
    ("control", "sentence"),
    [
        (np.zeros((24, 32, 3), np.uint8), "the control has 32 x 24 pixels and the picture 32 x 32; resize it, with"),
        (np.zeros((32, 32, 4), np.uint8), r"the shape \(32, 32, 4\); give it three channels"),
        (np.zeros((32, 32, 3)), "numbers of type float64; give a PIL picture or uint8"),
        (Image.new("RGBA", (32, 32)), "give it three channels, as by .convert"),
    ],
    ids=["size", "channels", "floats", "RGBA"],
)
def test_a_control_that_does_not_fit_is_refused(control, sentence):
    with pytest.raises(ValueError, match=sentence):
        as_controls(control, 32)


def test_fidelity_lies_between_no_control_and_the_annotator(ddim, monkeypatch):
    """A picture that is its control is as faithful as the render that the control came from."""
    condition = CONDITIONS["canny"]
    renders = np.random.default_rng(0).integers(0, 255, (3, 4, 4, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    asked, options = condition.annotate(renders), {"steps": 2, "guidance_scale": 2.0, "batch": 2}
    net = trained(ddim, 1)
    found = fidelity(ddim, net, condition, asked, renders, [PROMPT] * 3, [1, 2, 3], **options)
    assert found.ceiling == pytest.approx(1) and found.floor.max() < 0.9
    floor = np.linspace(0.1, 0.3, 6)
    assert Fidelity(floor, floor + 0.3, floor + 0.6).share() == pytest.approx((0.5, 0.5, 0.5))
    assert Fidelity(floor + 40, floor + 25, floor + 10).share()[0] == pytest.approx(0.5), "of an error, less is better"
    with pytest.raises(ValueError, match="five at least"):
        found.share()
    controls = condition.paint(asked)
    drawn = drawn_with(ddim, net, controls, [PROMPT] * 3, [1, 2, 3], **options)
    heard = Controlled(ddim.unet, [Control(net, as_controls(controls[2:], 32))])
    alone = diffusion.draw(ddim, PROMPT, 3, steps=2, guidance_scale=2.0, unet=heard)
    assert torch.allclose(drawn[2:], alone, atol=1e-5)
    assert found.drawn == pytest.approx(followed(condition, asked, drawn))
    shown = pictures_to_tensor(renders)
    assert followed(condition, asked, shown) == pytest.approx(1)
