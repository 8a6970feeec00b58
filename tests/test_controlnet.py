"""A U-Net that listens to ControlNets is the stock pipelines', and begins as if there were none."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    MultiControlNetModel,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
)
from PIL import Image
from stock import scheduler_of, variant

import companion
from companion import diffusion
from companion import img2img_inpainting as edit
from companion.conditions import CONDITIONS
from companion.controlnet import (
    Adapted,
    Asked,
    Control,
    Controlled,
    Fidelity,
    Hinted,
    adapter_of,
    as_controls,
    asked,
    compared,
    controlnet_of,
    drawn_with,
    fidelity,
    followed,
    hint_of,
    kept_prompts,
    listening,
    other_finishes,
    reported,
    stairs,
    training_logs,
    trial_logs,
)
from companion.metrics import pictures_to_tensor, tensor_to_bytes
from companion.models import seeded
from companion.pretraining.unet import make_unet
from companion.tabletop import samples
from companion.tabletop.caption import caption, parse
from companion.tabletop.measures import NOT_JUDGED
from companion.tabletop.scene import WITHHELD

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


def test_what_is_shown_is_embedded_once_for_all_steps(ddim, monkeypatch):
    net = trained(ddim, 1)
    embedder, embedded = net.controlnet_cond_embedding, []
    forward = type(embedder).forward
    monkeypatch.setattr(type(embedder), "forward", lambda self, x: embedded.append(len(x)) or forward(self, x))
    heard = Controlled(ddim.unet, [Control(net, control_of(5))])
    given = torch.randn(2, 4, 4, 4, generator=seeded(0)), torch.tensor(500), diffusion.encode_prompt(ddim, [PROMPT, ""])
    with torch.no_grad():
        first, again = (heard.residuals(*given)[1] for _ in range(2))
        assert embedded == [2] and torch.equal(first, again)
        asked = net(*given, controlnet_cond=control_of(5).expand(2, -1, -1, -1), return_dict=False)[1]
        assert torch.allclose(first, asked, atol=1e-6)
        embedder.conv_in.weight.mul_(10)
        embedded.clear()
        changed = heard.residuals(*given)[1]
    assert embedded == [2] and not torch.allclose(changed, first, atol=1e-5)
    heard.residuals(*given)[1].sum().backward()
    assert embedded == [2, 2] and embedder.conv_in.weight.grad.abs().max() > 0, "where it learns it is asked each time"


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


def test_an_encoded_picture_is_added_after_the_first_convolution(ddim):
    unet, encoder, x = ddim.unet, hint_of(ddim.unet, (16, 16, 32, 32)), torch.randn(2, 4, 4, 4)
    states = diffusion.encode_prompt(ddim, ["a red ball", ""])
    at = torch.tensor(500)
    with torch.no_grad():
        plain = unet(x, at, states).sample
        assert torch.equal(listening(unet, encoder, control_of(1))(x, at, states).sample, plain), "it begins as nothing"
        encoder.conv_out.weight.normal_(std=0.1)
        shift = encoder(control_of(1))
        hinted = Hinted(unet, encoder, control_of(1), 0.5)(x, at, states).sample
        assert torch.equal(unet(x, at, states).sample, plain), "nothing stays behind"
    assert shift.shape == (1, unet.config.block_out_channels[0], 4, 4)
    assert not torch.allclose(hinted, plain, atol=1e-3)
    with pytest.raises(ValueError, match="3 control pictures for 2 latents"):
        Hinted(unet, encoder, control_of(1).expand(3, -1, -1, -1))(x, at, states)


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


@pytest.fixture
def eight(monkeypatch):
    """Eight held-out renders that come with maps; two of them show a robot."""
    pictures, scenes = samples.held_out(8)
    joints = np.zeros((8, 2, 11, 3), np.float32)
    joints[[2, 5], 0] = np.random.default_rng(0).uniform(20, 100, (2, 11, 3))
    columns = {"picture": pictures, "joints": joints}
    monkeypatch.setattr(samples, "columns", lambda n=256: (columns, scenes))
    return columns, scenes


def test_what_is_asked_for_is_what_renders_have(pipe, eight, monkeypatch):
    columns, scenes = eight
    monkeypatch.setattr("companion.controlnet.can_be_judged", lambda pipe: True)
    found = asked(pipe, "canny", 3, skip=1)
    assert np.array_equal(found.maps, CONDITIONS["canny"].annotate(columns["picture"][1:4]))
    assert found.controls.shape == (3, 128, 128, 3) and set(np.unique(found.controls)) == {0, 255}
    assert found.prompts == [caption(scene) for scene in scenes[1:4]] and found.seeds == [0, 1, 2]
    assert found.followed(pictures_to_tensor(columns["picture"][1:4])) == pytest.approx(1)
    posed = asked(pipe, "openpose", 2)
    assert list(posed.scenes) == [scenes[2], scenes[5]], "where no robot is there is nothing to follow"
    assert np.array_equal(posed.maps, columns["joints"][[2, 5], 0])
    chosen = asked(pipe, "canny", 1, where=lambda scene: scene is scenes[4])
    assert list(chosen.scenes) == [scenes[4]]
    with pytest.raises(ValueError, match=r"n=2 is outside 1 to 1; so many held-out renders have a pose"):
        asked(pipe, "openpose", 2, skip=1)
    with pytest.raises(ValueError, match="'mood' is no condition; the eight are canny, softedge"):
        asked(pipe, "mood", 1)


def test_of_larger_pictures_maps_are_found_as_in_photographs(pipe, eight, monkeypatch):
    monkeypatch.setattr("companion.controlnet.annotator", lambda name: lambda pictures: 255 - pictures)
    edges, poses = asked(pipe, "canny", 2), asked(pipe, "openpose", 2)
    assert edges.renders.shape == (2, 3, 32, 32)
    assert np.array_equal(edges.controls, 255 - tensor_to_bytes(edges.renders).numpy()), "what the annotator paints"
    assert edges.followed(edges.renders) == pytest.approx(1)
    assert np.isnan(poses.followed(poses.renders)).all(), "nobody reads a robot's joints there"


def test_other_finishes_are_other_and_were_seen_in_training():
    scenes = samples.held_out(40)[1]
    for scene, prompt in zip(scenes, other_finishes(scenes), strict=True):
        wish, before = parse(prompt), parse(caption(scene))
        assert (wish.kinds, wish.place, wish.time) == (before.kinds, before.place, before.time)
        for kind, finish, old in zip(wish.kinds, wish.finishes, before.finishes, strict=True):
            assert finish != old and (kind, finish) not in WITHHELD


@pytest.mark.parametrize("what", ["img2img", "inpaint"])
def test_image_to_image_and_inpainting_listen_too(ddim, what):
    net, shown = trained(ddim, 1), control_of(3)
    heard = Controlled(ddim.unet, [Control(net, shown, 0.8)])
    source, mask = control_of(5) * 2 - 1, torch.zeros(1, 1, 32, 32)
    mask[..., 8:24, 8:24] = 1
    options = {"steps": 5, "guidance_scale": 3.0, "strength": 0.8}
    same = {"num_inference_steps": 5, "guidance_scale": 3.0, "strength": 0.8, "output_type": "pt"}
    same |= {"control_image": shown, "controlnet_conditioning_scale": 0.8}
    if what == "img2img":
        stock = variant(ddim, StableDiffusionControlNetImg2ImgPipeline, controlnet=net)
        theirs = stock(PROMPT, image=(source + 1) / 2, generator=seeded(4), **same).images
        *_, last = edit.img2img(ddim, source, PROMPT, 4, unet=heard, **options)
        *_, plain = edit.img2img(ddim, source, PROMPT, 4, **options)
    else:
        stock = variant(ddim, StableDiffusionControlNetInpaintPipeline, controlnet=net)
        theirs = stock(PROMPT, image=(source + 1) / 2, mask_image=mask, generator=seeded(4), **same).images
        *_, last = edit.inpaint(ddim, source, mask, PROMPT, 4, unet=heard, **options)
        *_, plain = edit.inpaint(ddim, source, mask, PROMPT, 4, **options)
    mine = diffusion.decode(ddim, last.latents)
    assert torch.allclose((mine + 1) / 2, theirs, atol=1e-4)
    assert not torch.allclose(mine, diffusion.decode(ddim, plain.latents), atol=0.02)


def test_stored_measures_are_told_by_condition(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path))
    (tmp_path / "models" / "training").mkdir(parents=True)
    lines = [{"step": 100, "fidelity": 0.25}, {"step": 200, "fidelity": 0.5}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "models" / "training" / "controlnet-canny-measured.jsonl").write_text(text, encoding="utf-8")
    log = {"step": [100, 200], "fidelity": [0.25, 0.5]}
    assert training_logs() == {"canny": log}
    for name in ("depth-rate 1e-3", "depth-5 %", "seg-5 %"):
        (tmp_path / "models" / "training" / f"trial-{name}-measured.jsonl").write_text(text, encoding="utf-8")
    assert trial_logs("depth") == {"5 %": log, "rate 1e-3": log}
    numbers = {"": 0.9, "_low": 0.8, "_high": 1.0, "_floor": 0.1, "_drawn": 0.5, "_ceiling": 0.6}
    stored = {"vae_psnr": 32.0, "control_prompts": 0.97, **{f"control_depth{end}": v for end, v in numbers.items()}}
    (tmp_path / "models" / "report.json").write_text(json.dumps(stored), encoding="utf-8")
    assert list(reported()) == ["depth"]
    assert kept_prompts() == 0.97
    assert reported()["depth"] == {k.lstrip("_") or "share": v for k, v in numbers.items()}


def test_fidelity_lies_between_no_control_and_the_annotator(ddim, monkeypatch):
    """A picture that is its control is as faithful as the render that the control came from."""
    condition = CONDITIONS["canny"]
    renders = np.random.default_rng(0).integers(0, 255, (3, 4, 4, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    maps, options = condition.annotate(renders), {"steps": 2, "guidance_scale": 2.0, "batch": 2}
    controls, scenes = condition.paint(maps), samples.held_out(3)[1]
    wanted, net = Asked(condition, controls, maps, pictures_to_tensor(renders), scenes), trained(ddim, 1)
    found = fidelity(ddim, net, wanted, **options)
    assert found.ceiling == pytest.approx(1) and found.floor.max() < 0.9
    floor = np.linspace(0.1, 0.3, 6)
    assert Fidelity(floor, floor + 0.3, floor + 0.6).share() == pytest.approx((0.5, 0.5, 0.5))
    assert Fidelity(floor + 40, floor + 25, floor + 10).share()[0] == pytest.approx(0.5), "of an error, less is better"
    with pytest.raises(ValueError, match="five at least"):
        found.share()
    drawn = drawn_with(ddim, net, controls, wanted.prompts, wanted.seeds, **options)
    heard = Controlled(ddim.unet, [Control(net, as_controls(controls[2:], 32))])
    alone = diffusion.draw(ddim, wanted.prompts[2], 2, steps=2, guidance_scale=2.0, unet=heard)
    assert torch.allclose(drawn[2:], alone, atol=1e-5)
    assert found.drawn == pytest.approx(followed(condition, maps, drawn))


@pytest.mark.parametrize(("best", "sign"), [(1.0, 1), (0.0, -1)], ids=["score", "error"])
def test_a_stair_is_flat_first_and_then_steep(best, sign):
    curves = np.array(
        [
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.0, 0.2, 0.6, 0.0, 0.15, 0.0, -0.3],
            [0.8, 0.5, 0.8, 0.0, 0.95, 0.0, 0.4],
            [1.0, 1.0, 1.0, 0.1, 1.0, -1.0, 1.0],
        ]
    )
    gains, stair = stairs(sign * curves, best)
    assert gains.tolist() == [True, True, True, False, True, False, True], "one hardly moves, one moves the wrong way"
    assert stair.tolist() == [True, *[False] * 6], "the last one only climbs back to where it was"


@pytest.mark.parametrize(("name", "more", "less"), [("canny", "better", "worse"), ("depth", "worse", "better")])
def test_a_verdict_knows_which_direction_is_better(name, more, less):
    condition, low = CONDITIONS[name], np.array([0.1, 0.2, 0.3, 0.2, 0.15])
    high = low + np.array([0.3, 0.28, 0.33, 0.3, 0.29])
    assert compared(condition, high, low).endswith(f": follows {more}")
    assert compared(condition, low, high).endswith(f": follows {less}")
    assert f"{condition.unit} +0.300 (95 %: +0.2" in compared(condition, high, low)
    assert compared(condition, low, low[::-1]).endswith(": no difference beyond chance")
    assert compared(condition, low, np.full(5, np.nan)) == NOT_JUDGED
