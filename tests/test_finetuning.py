"""Each method changes what it says and nothing else, by the paper's loss, and what it learned loads in the library."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel, DDPMScheduler, StableDiffusionPipeline
from diffusers.training_utils import compute_snr
from peft import HRAConfig
from safetensors import safe_open
from safetensors.torch import load_file

import companion
from companion import diffusion, energy, finetuning, oft_vs_lora
from companion.controlnet import hint_of, listening
from companion.finetuning import (
    ATTENTION,
    ControlNet,
    Examples,
    Follow,
    Full,
    Lora,
    Near,
    Oft,
    Peft,
    TextualInversion,
    Tuned,
    adamw,
    attach,
    examples,
    finetune,
    load_learned,
    merged,
    pretrained,
    save_learned,
    sets_loss,
    unet_weights,
)
from companion.models import seeded

WORD = "<mine>"
METHODS = {
    "full": Full(),
    "full with text": Full(text_encoder=True),
    "lora": Lora(rank=2),
    "lora with text": Lora(rank=2, alpha=6, text_encoder=True),
    "oft": Oft(blocks=2),
    "near": Near(radius=0.05),
    "hra": Peft(HRAConfig(r=2, target_modules=list(ATTENTION))),
    "textual inversion": TextualInversion(WORD, "a"),
    "controlnet": ControlNet(attention=False),
    "adapter": ControlNet(adapter=True),
    "follow by oft": Follow(Oft(blocks=2)),
    "follow by lora": Follow(Lora(rank=2)),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


@pytest.fixture(scope="module")
def pipe(tiny):
    return companion.load(tiny, device="cpu")


def a_set(pipe, seed: int, n: int = 3, prompt: str = "a red ball", method=None, **options) -> Examples:
    unet = pipe.unet.config
    latents = torch.randn(n, 4, unet.sample_size, unet.sample_size, generator=seeded(seed))
    size, prompt = diffusion.picture_size(pipe), f"{WORD} ball" if isinstance(method, TextualInversion) else prompt
    controls = torch.rand(n, 3, size, size, generator=seeded(seed)) if isinstance(method, ControlNet | Follow) else None
    return Examples(latents, [prompt] * n, controls=controls, **options)


def state(pipe) -> dict[str, torch.Tensor]:
    parts = {"unet": pipe.unet, "text": pipe.text_encoder, "vae": pipe.vae}
    return {f"{name}.{k}": v.clone() for name, part in parts.items() for k, v in part.state_dict().items()}


def test_what_stands_beside_the_unet_may_learn_at_a_rate_of_its_own(pipe):
    method = METHODS["follow by lora"]
    tuned, some = attach(pipe, method, seed=4), a_set(pipe, 1, method=method)
    before = [p.detach().clone() for p in tuned.parameters]
    beside = {id(p) for p in tuned.net.parameters()}
    list(finetune(tuned, [some], 2, lr=0.02, net_lr=0.0))
    moved = [not torch.equal(a, b) for a, b in zip(before, tuned.parameters, strict=True)]
    assert any(moved) and not any(m for m, p in zip(moved, tuned.parameters, strict=True) if id(p) in beside)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("min_snr", [None, 5.0])
def test_with_a_set_of_the_class_the_loss_is_dreambooths(pipe, batch, min_snr):
    """E ||eps - eps_theta(x_t, c)||^2 + lambda E' ||eps' - eps_theta(x'_t, c')||^2, written out."""
    subject, kind, lam = a_set(pipe, 1, prompt="a red ball"), a_set(pipe, 2, 5, prompt="a ball"), 0.7
    kind = Examples(kind.latents, kind.prompts, weight=lam)
    tuned = attach(pipe, Full())
    loss = sets_loss(tuned, [subject, kind], batch, min_snr=min_snr)(tuned.parts, seeded(3), 0)

    generator, scheduler = seeded(3), DDPMScheduler.from_config(pipe.scheduler.config)
    chosen = [torch.randint(len(s.latents), (batch,), generator=generator) for s in (subject, kind)]
    torch.rand(2 * batch, generator=generator)  # which prompts are left out: none
    t = torch.randint(1000, (2 * batch,), generator=generator)
    noise = torch.randn(2 * batch, *subject.latents.shape[1:], generator=generator)
    expected = torch.tensor(0.0)
    for i, (examples_, weight) in enumerate(((subject, 1.0), (kind, lam))):
        for j in range(batch):
            at, x0 = i * batch + j, examples_.latents[chosen[i][j]][None]
            noisy = scheduler.add_noise(x0, noise[at : at + 1], t[at : at + 1])
            states = diffusion.encode_prompt(pipe, examples_.prompts[0])
            error = ((pipe.unet(noisy, t[at], states).sample - noise[at]) ** 2).mean()
            if min_snr is not None:
                snr = compute_snr(scheduler, t[at : at + 1])[0]
                error = error * snr.clamp(max=min_snr) / snr
            expected = expected + weight * error / batch
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("drop", [0.0, 0.25, 1.0])
def test_prompts_are_left_out_as_often_as_asked(pipe, monkeypatch, drop):
    tuned, told, encode = attach(pipe, TextualInversion(WORD, "a")), [], pipe.tokenizer.__class__.__call__
    monkeypatch.setattr(
        tuned.pipe.tokenizer.__class__,
        "__call__",
        lambda self, texts, **options: told.extend(texts) or encode(self, texts, **options),
    )
    loss = sets_loss(tuned, [a_set(pipe, 1)], 8, drop=drop)
    for step in range(10):
        loss(tuned.parts, seeded(step), step)
    assert len(told) == 80 and told.count("") == pytest.approx(80 * drop, abs=10 * (0 < drop < 1))


def test_timesteps_are_drawn_where_asked(pipe, monkeypatch):
    seen = []

    def noise_loss(predict, scheduler, x0, generator, *, timesteps, **options):
        seen.extend(timesteps.tolist())
        return torch.zeros(())

    monkeypatch.setattr(finetuning, "noise_loss", noise_loss)
    tuned = attach(pipe, Full())
    loss = sets_loss(tuned, [a_set(pipe, 1)], 8, earliest=400, latest=600)
    for step in range(200):
        loss(tuned.parts, seeded(step), step)
    assert set(seen) <= set(range(400, 600)) and min(seen) < 405 and max(seen) >= 595


def test_a_prompt_is_encoded_once_if_the_text_encoder_does_not_learn(pipe, monkeypatch):
    tuned, told, encode = attach(pipe, Full()), [], diffusion.encode_prompt
    monkeypatch.setattr(diffusion, "encode_prompt", lambda pipe, prompt: told.append(prompt) or encode(pipe, prompt))
    loss = sets_loss(tuned, [a_set(pipe, 1)], 4, drop=0.5)
    for step in range(5):
        loss(tuned.parts, seeded(step), step)
    assert sorted(told) == ["", "a red ball"]


@every_method
def test_it_learns_and_the_pipeline_that_it_came_from_stays(pipe, method):
    before, needs = state(pipe), [p.requires_grad for p in pipe.unet.parameters()]
    tuned = attach(pipe, method)
    some = a_set(pipe, 1, method=method)
    latents, size = some.latents[:1], diffusion.picture_size(pipe)
    states = diffusion.encode_prompt(tuned.pipe, some.prompts[0])

    def answer() -> torch.Tensor:
        unet, shown = tuned.pipe.unet, torch.rand(1, 3, size, size, generator=seeded(0))
        text = diffusion.encode_prompt(tuned.pipe, some.prompts[0])
        heard = companion.controlnet.listening(unet, tuned.net, shown) if tuned.net is not None else unet
        with torch.no_grad():
            return heard(latents, torch.tensor(300), text).sample

    start = answer()
    if isinstance(method, TextualInversion):
        assert torch.equal(states, diffusion.encode_prompt(pipe, "a ball")), "the new word starts as the old one"
    else:
        with torch.no_grad():
            assert torch.allclose(start, pipe.unet(latents, torch.tensor(300), states).sample, atol=1e-6)
    run = list(finetune(tuned, [some], 3, lr=0.01, batch=2))
    assert [p.step for p in run] == [1, 2, 3] and not torch.equal(answer(), start)
    assert all(torch.equal(v, before[k]) for k, v in state(pipe).items())
    assert [p.requires_grad for p in pipe.unet.parameters()] == needs
    learned = sum(p.numel() for p in tuned.parameters)
    whole = sum(p.numel() for p in pipe.unet.parameters())
    assert (learned >= whole) == isinstance(method, Full), "adapters are smaller than what they change"


@every_method
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(pipe, method, tmp_path):
    path, some = tmp_path / "run.safetensors", a_set(pipe, 1, method=method)

    def run(steps: int, **options):
        tuned = attach(pipe, method, seed=4)
        for progress in finetune(tuned, [some], 5, lr=0.01, every=0, **options):
            if progress.step == steps:
                break
        return tuned

    whole = run(5)
    run(2, checkpoint=path)
    broken = run(5, checkpoint=path)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters, broken.parameters, strict=True))
    learned = sum(p.numel() * p.element_size() for p in whole.parameters)
    buffers = sum(b.numel() * b.element_size() for b in whole.parts.buffers())
    assert path.stat().st_size < 3 * learned + buffers + 200_000, "frozen weights are not saved"


@every_method
def test_what_was_learned_loads_in_the_library_and_draws_the_same(pipe, method, tmp_path, tiny):
    tuned, some = attach(pipe, method, seed=4), a_set(pipe, 1, method=method)
    list(finetune(tuned, [some], 3, lr=0.02))
    files = save_learned(tuned, tmp_path)
    assert files and not [f for f in files if f.suffix in (".bin", ".pt", ".ckpt")]
    prompt, options = some.prompts[0], {"steps": 3, "guidance_scale": 3.0}
    if isinstance(method, ControlNet):
        kind = ControlNetModel if not method.adapter else type(tuned.net)
        again = kind.from_pretrained(tmp_path)
        assert all(torch.equal(v, again.state_dict()[k]) for k, v in tuned.net.state_dict().items())
        return
    if isinstance(method, Follow):
        again, hint = StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None), hint_of(pipe.unet)
        hint.load_state_dict(load_file(tmp_path / "hint.safetensors"))
        shown, x = some.controls[:1], some.latents[:1]
        states = diffusion.encode_prompt(pipe, prompt)
        with torch.no_grad():
            mine, theirs = (
                listening(unet, net, shown)(x, torch.tensor(300), states).sample
                for unet, net in ((tuned.pipe.unet, tuned.net), (again.unet, hint))
            )
        assert torch.allclose(mine, theirs, atol=1e-4)
        return
    mine = diffusion.draw(tuned.pipe, prompt, 7, **options)
    assert not torch.allclose(mine, diffusion.draw(pipe, prompt, 7, **options), atol=1e-3)
    plain = companion.load(tiny, device="cpu")
    if isinstance(method, Lora):
        plain.load_lora_weights(tmp_path, weight_name=files[0].name)
    elif isinstance(method, Oft):
        oft_vs_lora.load(plain.unet, files[0])
    elif isinstance(method, TextualInversion):
        plain.load_textual_inversion(tmp_path, weight_name=files[0].name)
    else:
        plain = StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None)
    assert torch.allclose(diffusion.draw(plain, prompt, 7, **options), mine, atol=1e-4)
    whole = merged(tuned)
    assert torch.allclose(diffusion.draw(whole, prompt, 7, **options), mine, atol=1e-4)
    whole.save_pretrained(tmp_path / "whole")
    again = StableDiffusionPipeline.from_pretrained(tmp_path / "whole", safety_checker=None)
    assert torch.allclose(diffusion.draw(again, prompt, 7, **options), mine, atol=1e-4)


@pytest.mark.parametrize("text_encoder", [False, True])
def test_lora_weights_that_were_saved_go_on_where_they_were(pipe, tmp_path, text_encoder):
    method = Lora(rank=2, text_encoder=text_encoder)
    tuned, some = attach(pipe, method, seed=4), a_set(pipe, 1)
    list(finetune(tuned, [some], 3, lr=0.02))
    save_learned(tuned, tmp_path)
    again = attach(pipe, method, seed=5)
    assert not all(torch.equal(a, b) for a, b in zip(tuned.parameters, again.parameters, strict=True))
    load_learned(again, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(tuned.parameters, again.parameters, strict=True))
    assert all(p.requires_grad for p in again.parameters), "it may learn on"


@pytest.mark.parametrize(
    "other, sentence",
    [(Lora(rank=3), "another rank"), (Lora(2, targets=("to_q",)), "other layers"), (Oft(), "not those of Oft")],
)
def test_what_was_saved_is_not_put_into_something_else(pipe, tmp_path, other, sentence):
    save_learned(attach(pipe, Lora(rank=2)), tmp_path)
    tuned = attach(pipe, other)
    before = [p.clone() for p in tuned.parameters]
    with pytest.raises(ValueError, match=sentence):
        load_learned(tuned, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(before, tuned.parameters, strict=True))


@every_method
def test_weights_are_those_of_the_merged_network(pipe, method):
    tuned = attach(pipe, method)
    for i, p in enumerate(tuned.parameters):
        p.data = p.data + 0.1 * torch.randn(p.shape, generator=seeded(i))
    state = {name: value.clone() for name, value in tuned.parts.state_dict().items()}
    found = unet_weights(tuned)
    wanted = energy.weights(merged(tuned).unet)
    assert found.keys() == wanted.keys()
    assert all(torch.allclose(found[name], w, atol=1e-6) for name, w in wanted.items())
    if not isinstance(method, Near):
        assert all(torch.equal(value, state[name]) for name, value in tuned.parts.state_dict().items())


@pytest.mark.parametrize("method", [METHODS["lora"], METHODS["oft"], METHODS["hra"]])
def test_without_its_adapter_a_network_is_what_it_came_from(pipe, method):
    tuned = attach(pipe, method)
    for i, p in enumerate(tuned.parameters):
        p.data = torch.randn(p.shape, generator=seeded(i))
    adapted, plain = {k: v.clone() for k, v in tuned.pipe.unet.state_dict().items()}, pretrained(tuned.pipe.unet)
    first = pipe.unet.state_dict()
    assert plain.state_dict().keys() == first.keys() and not plain.training
    assert all(v.data_ptr() == first[k].data_ptr() for k, v in plain.state_dict().items()), "no second copy in memory"
    assert all(torch.equal(v, adapted[k]) for k, v in tuned.pipe.unet.state_dict().items())
    if isinstance(method, Oft):
        oft_vs_lora.merge(tuned.pipe.unet)
        assert all(torch.equal(v, first[k]) for k, v in pretrained(tuned.pipe.unet).state_dict().items())


def test_a_moving_average_takes_the_place_of_the_last_weights(pipe):
    runs = {}
    for averaged in (None, 0.9):
        tuned = attach(pipe, Lora(rank=2), seed=1)
        list(finetune(tuned, [a_set(pipe, 1)], 6, lr=0.05, averaged=averaged))
        runs[averaged] = torch.cat([p.detach().flatten() for p in tuned.parameters])
    start = torch.cat([p.detach().flatten() for p in attach(pipe, Lora(rank=2), seed=1).parameters])
    assert 0 < (runs[0.9] - start).norm() < (runs[None] - start).norm()


def test_what_stays_near_does(pipe):
    far, near = (attach(pipe, Near(radius)) for radius in (None, 0.01))
    for tuned in (far, near):
        list(finetune(tuned, [a_set(pipe, 1)], 3, lr=0.05))
        diffusion.draw(tuned.pipe, "a ball", 0, steps=1, guidance_scale=1.0)
    before = dict(pipe.unet.named_parameters())

    def moved(tuned) -> dict[str, float]:
        after = dict(tuned.pipe.unet.named_parameters())
        away = {name: float((after[name] - w).detach().norm() / w.detach().norm()) for name, w in before.items()}
        return {name: share for name, share in away.items() if share > 0}

    assert all(name.removesuffix(".weight").endswith(ATTENTION) for name in moved(far))
    assert moved(near).keys() == moved(far).keys() and min(moved(far).values()) > 0.02
    assert max(moved(near).values()) == pytest.approx(0.01, rel=1e-3)
    radii = {name.removesuffix(".weight"): 0.002 * (1 + i % 3) for i, name in enumerate(moved(far))}
    each = attach(pipe, Near(radii))
    list(finetune(each, [a_set(pipe, 1)], 3, lr=0.05))
    diffusion.draw(each.pipe, "a ball", 0, steps=1, guidance_scale=1.0)
    assert {n.removesuffix(".weight"): share for n, share in moved(each).items()} == pytest.approx(radii, rel=1e-3)


@pytest.mark.parametrize("method", [METHODS[name] for name in ("full", "lora", "oft", "textual inversion")])
def test_half_precision_learns_in_single(tiny, method, tmp_path):
    half = companion.load(tiny, device="cpu", dtype=torch.bfloat16)
    tuned = attach(half, method)
    assert all(p.dtype == torch.float32 for p in tuned.parameters)
    assert tuned.pipe.unet.conv_in.weight.dtype == (torch.float32 if isinstance(method, Full) else torch.bfloat16)
    some = [a_set(half, 1, method=method)]
    losses = [p.loss for p in finetune(tuned, some, 3, lr=0.01)]
    assert all(0 < x < 10 for x in losses)
    assert torch.isfinite(diffusion.draw(tuned.pipe, "a ball", 0, steps=2, guidance_scale=2.0)).all()
    assert save_learned(tuned, tmp_path / "learned")
    single = attach(companion.load(tiny, device="cpu"), method)  # in the same process
    assert len(list(finetune(single, some, 2, lr=0.01))) == 2


@pytest.mark.parametrize("method", [METHODS[name] for name in ("full", "lora", "oft")])
def test_less_memory_gives_the_same_weights(tiny, method):
    """Gradient checkpointing computes again what it did not keep."""
    learned = []
    for checkpointing in (False, True):
        tuned = attach(companion.load(tiny, device="cpu"), method, checkpointing=checkpointing)
        assert tuned.pipe.unet.is_gradient_checkpointing == checkpointing
        list(finetune(tuned, [a_set(tuned.pipe, 2)], 3, lr=0.01))
        learned.append(tuned.parameters)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*learned, strict=True))


def test_pictures_become_examples(pipe):
    size = diffusion.picture_size(pipe)
    pictures = torch.rand(3, 3, size, size, generator=seeded(0)) * 2 - 1
    plain, mirrored = (examples(pipe, pictures, "a ball", mirror=m) for m in (False, True))
    assert torch.equal(plain.latents, diffusion.encode(pipe, pictures)) and plain.prompts == ["a ball"] * 3
    assert len(mirrored.latents) == len(mirrored.prompts) == 6
    assert torch.allclose(mirrored.latents[3:], diffusion.encode(pipe, pictures.flip(-1)), atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda pipe: Examples(torch.zeros(0, 4, 4, 4), []), "a set of no pictures"),
        (lambda pipe: Examples(torch.zeros(2, 4, 4, 4), ["a"]), "2 pictures but 1 prompts; give one for each"),
        (lambda pipe: examples(pipe, torch.zeros(1, 3, 24, 32), "a"), "the pictures have 32 x 24 pixels and the pipe"),
        (lambda pipe: attach(pipe, TextualInversion("a", "b")), "knows the word .a. already"),
        (lambda pipe: attach(pipe, TextualInversion(WORD, "ab")), ".ab. is 2 tokens long"),
        (lambda pipe: sets_loss(attach(pipe, ControlNet()), [a_set(pipe, 1)]), "learns from control pictures; give"),
        (
            lambda pipe: sets_loss(attach(pipe, Full()), [a_set(pipe, 1, method=ControlNet())]),
            "nothing here learns from control pictures",
        ),
    ],
    ids=["empty", "prompts", "size", "known word", "two tokens", "no controls", "controls"],
)
def test_what_does_not_fit_is_refused(pipe, wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        wrong(pipe)


def test_eight_bits_need_their_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)  # as if it were not there
    with pytest.raises(ModuleNotFoundError, match="pip install bitsandbytes"):
        adamw([torch.nn.Parameter(torch.zeros(1))], 1e-3, bits=8)


def test_a_run_in_eight_bits_that_was_stopped_equals_an_unbroken_one(pipe, tmp_path):
    """Where bitsandbytes is installed, and works on this machine's CPU."""
    pytest.importorskip("bitsandbytes", minversion="0.48")

    def run(steps: int, checkpoint: Path) -> Tuned:
        tuned = attach(pipe, Full(), 0)
        for progress in finetune(tuned, [a_set(pipe, 0)], 6, lr=1e-3, bits=8, checkpoint=checkpoint, every=0):
            if progress.step == steps:
                break
        return tuned

    start, whole = attach(pipe, Full(), 0), run(6, tmp_path / "whole.safetensors")
    run(3, tmp_path / "broken.safetensors")
    resumed = run(6, tmp_path / "broken.safetensors")
    with safe_open(tmp_path / "whole.safetensors", "pt") as f:
        kinds = {f.get_tensor(k).dtype for k in f.keys() if k.endswith(".state1")}
    assert torch.uint8 in kinds, "nothing was kept in eight bits"
    pairs = zip(start.parameters, whole.parameters, resumed.parameters, strict=True)
    assert all(torch.equal(b, c) and not torch.equal(a, b) for a, b, c in pairs)
