"""Drawing with our own loop equals drawing with the stock pipeline, whatever is asked; on a tiny random pipeline."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.autoencoders.vae import Encoder
from stock import every_scheduler, scheduler_of, variant
from torch import Tensor

import companion
from companion import diffusion
from companion.models import seeded

PROMPT = "ab cd"


@pytest.fixture(scope="module")
def pipe(tiny):
    return companion.load(tiny, device="cpu")


def last_picture(pipe: StableDiffusionPipeline, *args, **kwargs) -> Tensor:
    *_, last = diffusion.sample(pipe, *args, **kwargs)
    return diffusion.decode(pipe, last.latents) / 2 + 0.5


class TestSampling:
    @every_scheduler
    def test_it_draws_the_stock_pipelines_picture(self, pipe, kind, options):
        """Ancestral and SDE schedulers too, which draw more random numbers on the way."""
        pipe = variant(pipe, StableDiffusionPipeline, scheduler_of(kind, options))
        theirs = pipe(PROMPT, num_inference_steps=5, guidance_scale=3.0, generator=seeded(4), output_type="pt").images
        mine = last_picture(pipe, PROMPT, 4, steps=5, guidance_scale=3.0)
        assert float((mine - theirs).abs().max()) < 1e-5
        assert float(theirs.std()) > 0.01  # a flat picture would prove nothing

    def test_without_guidance_and_with_a_negative_prompt(self, pipe):
        options = {"num_inference_steps": 3, "output_type": "pt"}
        plain = pipe(PROMPT, guidance_scale=1.0, generator=seeded(1), **options).images
        negative = pipe(PROMPT, guidance_scale=3.0, negative_prompt="x", generator=seeded(1), **options).images
        assert torch.allclose(last_picture(pipe, PROMPT, 1, steps=3, guidance_scale=1.0), plain, atol=1e-5)
        mine = last_picture(pipe, PROMPT, 1, steps=3, guidance_scale=3.0, negative_prompt="x")
        assert torch.allclose(mine, negative, atol=1e-5)
        assert not torch.allclose(plain, negative, atol=1e-3)

    def test_a_batch_equals_its_pictures_alone(self, pipe):
        prompts, seeds, scales = ["a", "b", "a"], [1, 2, 3], [1.0, 4.0, 8.0]
        together = diffusion.draw(pipe, prompts, seeds, steps=3, guidance_scale=scales, batch=2)
        for i in range(3):
            alone = diffusion.draw(pipe, prompts[i], seeds[i], steps=3, guidance_scale=scales[i])
            assert torch.allclose(together[i], alone[0], atol=1e-4)
        assert together.shape == (3, 3, 32, 32)
        assert len({tuple(picture.flatten()[:50].tolist()) for picture in together}) == 3

    def test_the_pipelines_own_scheduler_is_not_disturbed(self, pipe):
        pipe.scheduler.set_timesteps(7)
        before = pipe.scheduler.timesteps.clone()
        list(diffusion.sample(pipe, PROMPT, steps=3, guidance_scale=2.0))
        assert torch.equal(pipe.scheduler.timesteps, before)

    def test_each_step_is_told(self, pipe):
        steps = list(diffusion.sample(pipe, PROMPT, [1, 2], steps=4, guidance_scale=2.0))
        assert [s.index for s in steps] == [0, 1, 2, 3]
        assert all(a.timestep > b.timestep for a, b in zip(steps, steps[1:], strict=False))
        assert torch.equal(steps[0].noisy, diffusion.starting_noise(pipe, [1, 2]) * pipe.scheduler.init_noise_sigma)
        for a, b in zip(steps, steps[1:], strict=False):
            assert torch.equal(a.latents, b.noisy)  # this scheduler does not scale its input
        assert steps[0].x0.shape == (2, 4, 4, 4)

    @every_scheduler
    def test_the_predicted_x0_is_the_truth_when_the_noise_is(self, pipe, monkeypatch, kind, options):
        """A U-Net that knows x0 and answers with the true noise: every step must report that x0."""
        pipe = variant(pipe, StableDiffusionPipeline, scheduler_of(kind, options))
        alphas = pipe.scheduler.alphas_cumprod
        truth = torch.randn(1, 4, 4, 4, generator=seeded(9))

        def knowing(noisy: Tensor, t: Tensor, states: Tensor):
            # The noise level that the scheduler is at: t itself may be rounded (DPM-Solver) or between two (Euler).
            place = torch.arange(1000.0)
            log_sigma = ((1 - alphas) / alphas).sqrt().log()
            low = int(min(float(t), 998.0))
            sigma = torch.lerp(log_sigma[low], log_sigma[low + 1], float(t) - float(place[low])).exp()
            scaled = noisy * (1 + sigma**2).sqrt()  # as x0 + sigma * noise
            eps = (scaled - truth) / sigma
            return type("Output", (), {"sample": eps})()

        class Knows:
            config, dtype, device = pipe.unet.config, pipe.unet.dtype, pipe.unet.device
            __call__ = staticmethod(knowing)

        unet = Knows()
        monkeypatch.setattr(pipe, "unet", unet, raising=False)
        steps = list(diffusion.sample(pipe, PROMPT, 3, steps=12, guidance_scale=1.0))
        for step in steps:
            # Where the scheduler rounds its timestep, the truth can be missed by a few per cent.
            assert float((step.x0 - truth).abs().max()) < 0.15, step.index
        assert not torch.allclose(steps[0].noisy, truth, atol=0.5)

    @pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
    def test_every_kind_of_prediction_gives_x0(self, pipe, prediction):
        """Also from a scheduler that does not tell which x0 it used."""
        scheduler = scheduler_of(PNDMScheduler, {"prediction_type": prediction})
        scheduler.set_timesteps(4)
        a = scheduler.alphas_cumprod[int(scheduler.timesteps[0])]
        truth, eps = torch.randn(2, 1, 4, 4, 4, generator=seeded(9))
        noisy = a.sqrt() * truth + (1 - a).sqrt() * eps
        output = eps if prediction == "epsilon" else a.sqrt() * eps - (1 - a).sqrt() * truth
        first = next(diffusion.denoise(scheduler, lambda x, t: output, noisy, scheduler.timesteps))
        assert torch.allclose(first.x0, truth, atol=1e-4)

    def test_the_noise_in_latents_of_a_model_that_names_x0(self):
        a, (truth, eps) = torch.tensor(0.3), torch.randn(2, 1, 4, 4, 4, generator=seeded(9))
        scheduler = scheduler_of(DDIMScheduler, {"prediction_type": "sample"})
        found = diffusion.noise_in(scheduler, truth, a.sqrt() * truth + (1 - a).sqrt() * eps, a)
        assert torch.allclose(found, eps, atol=1e-5)

    def test_batches_share_out_the_noise(self, pipe):
        noise = torch.randn(3, 4, 4, 4, generator=seeded(2))
        options = {"steps": 2, "guidance_scale": 2.0, "noise": noise}
        every = diffusion.draw(pipe, [PROMPT] * 3, 0, **options)
        assert torch.allclose(diffusion.draw(pipe, [PROMPT] * 3, 0, batch=2, **options), every, atol=1e-5)

    def test_numbers_that_do_not_fit_are_refused(self, pipe):
        with pytest.raises(ValueError, match="2 prompts for 3 pictures; give one for all, or one for each"):
            list(diffusion.sample(pipe, ["a", "b"], [1, 2, 3], steps=2, guidance_scale=2.0))

    def test_given_noise_is_used(self, pipe):
        noise = diffusion.starting_noise(pipe, [5, 6])
        *_, by_noise = diffusion.sample(pipe, PROMPT, noise=noise, steps=3, guidance_scale=2.0)
        *_, by_seed = diffusion.sample(pipe, PROMPT, [5, 6], steps=3, guidance_scale=2.0)
        assert torch.equal(by_noise.latents, by_seed.latents)


class TestGuidance:
    def test_another_unet_is_asked_instead(self, pipe):
        """Any function of (noisy, t, encoder_hidden_states): here one that halves what the pipeline's own says."""

        def halved(noisy: Tensor, t: Tensor, encoder_hidden_states: Tensor) -> Tensor:
            return pipe.unet(noisy, t, encoder_hidden_states).sample / 2

        noise, t = diffusion.starting_noise(pipe, [1, 2]), torch.tensor(300)
        own = diffusion.noise_predictor(pipe, ["a", "b"], [3.0])(noise, t)
        assert torch.allclose(
            diffusion.noise_predictor(pipe, ["a", "b"], [3.0], unet=halved)(noise, t), own / 2, atol=1e-6
        )
        *_, stock = diffusion.sample(pipe, PROMPT, 3, steps=3, guidance_scale=2.0)
        *_, same = diffusion.sample(pipe, PROMPT, 3, steps=3, guidance_scale=2.0, unet=pipe.unet)
        *_, other = diffusion.sample(pipe, PROMPT, 3, steps=3, guidance_scale=2.0, unet=halved)
        assert torch.equal(stock.latents, same.latents) and not torch.allclose(stock.latents, other.latents, atol=1e-2)

    def test_it_is_the_formula(self, pipe):
        noise, t = diffusion.starting_noise(pipe, [1, 2]), torch.tensor(300)
        nothing, text = (
            pipe.unet(noise, t, diffusion.encode_prompt(pipe, [p]).expand(2, -1, -1)).sample for p in ("x", "ab")
        )
        scales = torch.tensor([2.0, 5.0]).view(-1, 1, 1, 1)
        mine = diffusion.noise_predictor(pipe, ["ab"], [2.0, 5.0], "x")(noise, t)
        assert torch.allclose(mine, nothing + scales * (text - nothing), atol=1e-5)

    def test_parts_of_a_batch_and_times_of_their_own(self, pipe):
        noise, t = diffusion.starting_noise(pipe, range(5)), torch.tensor([10, 200, 300, 500, 900])
        prompts, scales = ["a", "b", "a", "c", "d"], [2.0, 3.0, 1.0, 4.0, 5.0]
        whole = diffusion.noise_predictor(pipe, prompts, scales)(noise, t)
        parts = diffusion.noise_predictor(pipe, prompts, scales, batch=2)(noise, t)
        assert torch.allclose(whole, parts, atol=1e-5)
        for i in range(5):
            alone = diffusion.noise_predictor(pipe, [prompts[i]], [max(scales[i], 1.001)])(noise[i : i + 1], t[i])
            assert torch.allclose(whole[i : i + 1], alone, atol=1e-2 if scales[i] == 1 else 1e-5)

    def test_numbers_that_do_not_fit_are_refused_when_it_is_asked(self, pipe):
        predict = diffusion.noise_predictor(pipe, ["a", "b"], [2.0])
        with pytest.raises(ValueError, match="2 prompts for 3 pictures; give one for all, or one for each"):
            predict(diffusion.starting_noise(pipe, [1, 2, 3]), torch.tensor(5))


class TestLatents:
    def test_encode_and_decode_scale_as_the_pipeline_does(self, pipe):
        pictures = torch.rand(3, 3, 32, 32, generator=seeded(0)) * 2 - 1
        latents = diffusion.encode(pipe, pictures, batch=2)
        with torch.no_grad():
            expected = pipe.vae.encode(pictures).latent_dist.mean * pipe.vae.config.scaling_factor
            decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample.clamp(-1, 1)
        assert torch.allclose(latents, expected, atol=1e-5)
        assert torch.allclose(diffusion.decode(pipe, latents, batch=2), decoded, atol=1e-5)

    def test_the_starting_noise_of_a_seed(self, pipe):
        noise = diffusion.starting_noise(pipe, [3, 4])
        assert torch.equal(noise[1:], torch.randn(1, 4, 4, 4, generator=seeded(4)))
        assert torch.equal(diffusion.starting_noise(pipe, 3), noise[:1])

    def test_sizes_come_from_the_pipeline(self, pipe):
        assert diffusion.picture_size(pipe) == 32

    def test_predicted_x0_undoes_the_forward_process(self):
        x0, eps = torch.randn(2, 1, 4, 4, 4, generator=seeded(0))
        a = torch.tensor(0.3)
        assert torch.allclose(diffusion.predicted_x0(a.sqrt() * x0 + (1 - a).sqrt() * eps, eps, a), x0, atol=1e-5)

    def test_the_states_are_the_pipelines(self, pipe):
        theirs, _ = pipe.encode_prompt(PROMPT, "cpu", 1, False)
        assert torch.equal(diffusion.encode_prompt(pipe, [PROMPT, ""])[:1], theirs)


def test_a_steady_scheduler_adds_no_noise(pipe):
    plain = scheduler_of(DPMSolverMultistepScheduler, {"use_karras_sigmas": True})
    noisy = scheduler_of(DPMSolverMultistepScheduler, {"use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++"})
    settings = {"steps": 4, "guidance_scale": 2.0}
    one, same, other = (
        diffusion.draw(pipe, "a red ball", 1, scheduler=s, **settings) for s in (plain, diffusion.steady(noisy), noisy)
    )
    assert torch.equal(one, same) and not torch.allclose(one, other, atol=0.05)
    again = diffusion.steady(plain)
    assert again is not plain and again.config == plain.config


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def batches(monkeypatch):
    """The sizes of the batches that a U-Net's own `forward` is given from now on."""
    seen, forward = [], UNet2DConditionModel.forward

    def noted(network, sample, *args, **kwargs):
        seen.append(len(sample))
        return forward(network, sample, *args, **kwargs)

    monkeypatch.setattr(UNet2DConditionModel, "forward", noted)
    return seen


@pytest.mark.usefixtures("two_threads")
class TestForCPU:
    """Prepared for a CPU, a model draws the same, and batches go through it in two halves."""

    N = 13

    @pytest.fixture(autouse=True)
    def from_twelve_on(self, monkeypatch):
        monkeypatch.setattr(diffusion, "HALVED", 12 * 4 * 4)  # the latents here are of 4 x 4 positions

    @pytest.fixture
    def quick(self, tiny):
        return diffusion.for_cpu(companion.load(tiny, device="cpu"))

    def inputs(self, pipe, n: int = N) -> tuple[Tensor, Tensor, Tensor]:
        noise = torch.cat([diffusion.starting_noise(pipe, seed) for seed in range(n)])
        return noise, torch.tensor(500), diffusion.encode_prompt(pipe, PROMPT).expand(n, -1, -1)

    def test_it_is_the_model_itself_with_its_weights_in_another_order(self, tiny, tmp_path):
        plain, quick = companion.load(tiny, device="cpu"), companion.load(tiny, device="cpu")
        assert diffusion.for_cpu(quick) is quick
        for network in (quick.unet, quick.vae.encoder, quick.vae.decoder):
            kernels = [p for p in network.parameters() if p.ndim == 4]
            assert kernels and all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
        quick.save_pretrained(tmp_path)
        kept = companion.load(tmp_path, device="cpu").unet.state_dict()
        assert all(torch.equal(kept[name], tensor) for name, tensor in plain.unet.state_dict().items())

    def test_pictures_are_the_same_and_each_half_is_seen_once(self, pipe, quick, batches):
        settings = {"steps": 2, "guidance_scale": 2.0}
        one = diffusion.draw(pipe, PROMPT, list(range(self.N)), **settings)
        assert batches == [2 * self.N] * 2
        batches.clear()
        same = diffusion.draw(quick, PROMPT, list(range(self.N)), **settings)
        assert sorted(batches) == [self.N] * 4
        assert torch.allclose(one, same, atol=1e-4) and float(one.std()) > 0.01

    def test_times_residuals_and_outputs_are_split_and_joined(self, pipe, quick, batches):
        x, _, states = self.inputs(pipe)
        t = torch.arange(len(x)) * 50
        nets = [ControlNetModel.from_unet(p.unet) for p in (pipe, quick)]
        nets[1].load_state_dict(nets[0].state_dict())
        for block in nets[0].controlnet_down_blocks:
            torch.nn.init.normal_(block.weight, std=0.1)
        nets[1].load_state_dict(nets[0].state_dict())
        diffusion.for_cpu(nets[1])
        pictures = torch.rand(len(x), 3, 32, 32, generator=seeded(1))
        out = []
        with torch.no_grad():
            for p, net in zip((pipe, quick), nets, strict=True):
                down, mid = net(x, t, states, controlnet_cond=pictures, return_dict=False)
                hints = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
                out += [p.unet(x, t, states, **hints).sample, p.unet(x, t, states, return_dict=False)[0]]
        assert batches == [self.N] * 2 + batches[2:] and set(batches[2:]) == {self.N // 2, self.N - self.N // 2}
        assert torch.allclose(out[0], out[2], atol=1e-4) and torch.allclose(out[1], out[3], atol=1e-4)
        assert not torch.allclose(out[0], out[1], atol=1e-3)

    @pytest.mark.parametrize("why", ["gradient", "hook", "small", "one thread"])
    def test_it_is_not_split(self, quick, batches, why):
        n = 11 if why == "small" else self.N
        if why == "hook":
            quick.unet.mid_block.register_forward_hook(lambda *_: None)
        if why == "one thread":
            torch.set_num_threads(1)
        with torch.set_grad_enabled(why == "gradient"):
            loss = quick.unet(*self.inputs(quick, n)).sample.sum()
        assert batches == [n] and loss.requires_grad == (why == "gradient")

    def test_larger_pictures_are_split_sooner_but_never_a_single_one(self, quick, batches):
        with torch.no_grad():
            for n, side in ((3, 8), (2, 8), (1, 16)):
                quick.unet(torch.zeros(n, 4, side, side), 500, diffusion.encode_prompt(quick, PROMPT).expand(n, -1, -1))
        assert sorted(batches[:2]) == [1, 2] and batches[2:] == [2, 1]

    def test_an_encoder_counts_positions_of_latents_too(self, quick, monkeypatch):
        seen, forward = [], Encoder.forward
        monkeypatch.setattr(Encoder, "forward", lambda network, x: seen.append(len(x)) or forward(network, x))
        for n in (11, 12):
            diffusion.encode(quick, torch.zeros(n, 3, 32, 32))
        assert seen == [11, 6, 6]

    def test_on_another_device_it_stays_as_it_is(self, tiny):
        unet = companion.load(tiny, device="cpu").unet.to("meta")
        kind = type(unet)
        assert type(diffusion.for_cpu(unet)) is kind and unet.conv_in.weight.is_contiguous()

    def test_inside_inference_mode_it_stays_there(self, quick, batches):
        with torch.inference_mode():
            assert quick.unet(*self.inputs(quick)).sample.is_inference()
        assert len(batches) == 2

    def test_a_copy_has_its_own_weights(self, quick, batches):
        copied = copy.deepcopy(quick.unet)
        with torch.no_grad():
            copied.conv_out.bias += 1
            before, after = (unet(*self.inputs(quick)).sample for unet in (quick.unet, copied))
        assert len(batches) == 4 and torch.allclose(after, before + 1, atol=1e-5)
