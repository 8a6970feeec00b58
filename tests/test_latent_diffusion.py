"""The machine taken apart equals the stock one: pictures, noise, attention, costs; on a tiny random pipeline."""

from __future__ import annotations

import math

import nbformat
import pytest
import torch
from diffusers import (
    StableDiffusionPipeline,
)
from stock import every_scheduler, scheduler_of, variant
from torch import Tensor

import companion
from companion import latent_diffusion as ld
from companion.models import seeded
from companion.run import run
from companion.tabletop.caption import Wish, parse
from companion.tabletop.scene import WITHHELD
from companion.tabletop.splits import sample_scene

PROMPT = "ab cd"


@pytest.fixture(scope="module")
def pipe(tiny):
    return companion.load(tiny, device="cpu")


def last_picture(pipe: StableDiffusionPipeline, *args, **kwargs) -> Tensor:
    *_, last = ld.sample(pipe, *args, **kwargs)
    return ld.decode(pipe, last.latents) / 2 + 0.5


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
        together = ld.draw(pipe, prompts, seeds, steps=3, guidance_scale=scales, batch=2)
        for i in range(3):
            alone = ld.draw(pipe, prompts[i], seeds[i], steps=3, guidance_scale=scales[i])
            assert torch.allclose(together[i], alone[0], atol=1e-4)
        assert together.shape == (3, 3, 32, 32)
        assert len({tuple(picture.flatten()[:50].tolist()) for picture in together}) == 3

    def test_the_pipelines_own_scheduler_is_not_disturbed(self, pipe):
        pipe.scheduler.set_timesteps(7)
        before = pipe.scheduler.timesteps.clone()
        list(ld.sample(pipe, PROMPT, steps=3, guidance_scale=2.0))
        assert torch.equal(pipe.scheduler.timesteps, before)

    def test_each_step_is_told(self, pipe):
        steps = list(ld.sample(pipe, PROMPT, [1, 2], steps=4, guidance_scale=2.0))
        assert [s.index for s in steps] == [0, 1, 2, 3]
        assert all(a.timestep > b.timestep for a, b in zip(steps, steps[1:], strict=False))
        assert torch.equal(steps[0].noisy, ld.starting_noise(pipe, [1, 2]) * pipe.scheduler.init_noise_sigma)
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
        steps = list(ld.sample(pipe, PROMPT, 3, steps=12, guidance_scale=1.0))
        for step in steps:
            # Where the scheduler rounds its timestep, the truth can be missed by a few per cent.
            assert float((step.x0 - truth).abs().max()) < 0.15, step.index
        assert not torch.allclose(steps[0].noisy, truth, atol=0.5)

    def test_numbers_that_do_not_fit_are_refused(self, pipe):
        with pytest.raises(ValueError, match="2 prompts for 3 pictures; give one for all, or one for each"):
            list(ld.sample(pipe, ["a", "b"], [1, 2, 3], steps=2, guidance_scale=2.0))

    def test_given_noise_is_used(self, pipe):
        noise = ld.starting_noise(pipe, [5, 6])
        *_, by_noise = ld.sample(pipe, PROMPT, noise=noise, steps=3, guidance_scale=2.0)
        *_, by_seed = ld.sample(pipe, PROMPT, [5, 6], steps=3, guidance_scale=2.0)
        assert torch.equal(by_noise.latents, by_seed.latents)


class TestText:
    def test_the_states_are_the_pipelines(self, pipe):
        theirs, _ = pipe.encode_prompt(PROMPT, "cpu", 1, False)
        assert torch.equal(ld.text_states(pipe, [PROMPT, ""])[:1], theirs)

    def test_words_and_where_their_tokens_stand(self, pipe):
        """The tiny vocabulary has letters only, so "ab" is two tokens."""
        assert ld.word_positions(pipe.tokenizer, "ab c abc") == [("ab", [1, 2]), ("c", [3]), ("abc", [4, 5, 6])]

    def test_the_nearest_words_are_the_largest_cosines(self, pipe, monkeypatch):
        tokenizer = pipe.tokenizer
        names = {0: "red</w>", 1: "blue</w>", 2: "crimson</w>", 3: "re", 4: "x</w>", 5: "a1</w>"}
        weight = torch.tensor([[1.0, 0], [0, 1], [2, 0.2], [1, 0], [1, 0], [1, 0]])

        class Tokenizer:
            def __call__(self, word, add_special_tokens):
                ids = [i for i, name in names.items() if name == f"{word}</w>"]
                return type("Ids", (), {"input_ids": ids or [0, 1]})()

            def convert_ids_to_tokens(self, ids):
                return names[ids] if isinstance(ids, int) else [names[i] for i in ids]

        monkeypatch.setattr(pipe, "tokenizer", Tokenizer(), raising=False)
        monkeypatch.setattr(pipe.text_encoder, "get_input_embeddings", lambda: torch.nn.Embedding(6, 2, _weight=weight))
        found = ld.nearest_words(pipe, "red", 2)
        assert [word for word, _ in found] == ["crimson", "blue"]  # pieces, single letters and itself are left out
        assert found[0][1] == pytest.approx(2 / math.hypot(2, 0.2), abs=1e-5) and found[1][1] == pytest.approx(0.0)
        with pytest.raises(ValueError, match="'maroon' is 2 tokens"):
            ld.nearest_words(pipe, "maroon")
        monkeypatch.setattr(pipe, "tokenizer", tokenizer, raising=False)


class TestAttention:
    @pytest.fixture
    def passed(self, pipe):
        """(record, output with the record, output without), a batch of two."""
        noise, states = ld.starting_noise(pipe, [1, 2]), ld.text_states(pipe, ["ab c", "d"])
        with torch.no_grad():
            plain = pipe.unet(noise, 300, states).sample
            with ld.recorded_attention(pipe.unet) as record:
                recorded = pipe.unet(noise, 300, states).sample
        return record, recorded, plain

    def test_recording_changes_nothing(self, pipe, passed):
        record, recorded, plain = passed
        assert torch.equal(recorded, plain)
        assert not any(module._forward_hooks for module in pipe.unet.modules())

    def test_the_probabilities_are_those_the_layers_used(self, pipe):
        """probabilities @ values, through the output projection, is what the stock layer gives."""
        layers = [layer for name, layer in pipe.unet.named_modules() if name.endswith("attn2")]
        assert layers and any(layer.heads > 1 for layer in layers)
        states = ld.text_states(pipe, ["ab c", "d"])
        for layer in layers:
            hidden = torch.randn(2, 16, layer.to_q.in_features, generator=seeded(0))
            with torch.no_grad():
                p = ld.attention_probabilities(layer, hidden, states)
                values = layer.to_v(states).unflatten(2, (layer.heads, -1)).transpose(1, 2)
                rebuilt = layer.to_out[0]((p @ values).transpose(1, 2).flatten(2)) / layer.rescale_output_factor
                stock = layer(hidden, encoder_hidden_states=states)
            assert torch.allclose(rebuilt, stock, atol=1e-5)
            assert float(p.std()) > 0

    def test_every_place_shares_out_one(self, passed):
        record, _, _ = passed
        assert record.layers
        for probabilities in record.layers.values():
            assert probabilities.shape[0] == 2 and probabilities.shape[-1] == 16
            assert torch.allclose(probabilities.sum(-1), torch.ones(()), atol=1e-5)
        assert torch.allclose(record.tokens(0).sum(0), torch.ones(()), atol=1e-5)

    def test_it_averages_over_passes(self, pipe):
        states = ld.text_states(pipe, "ab c")
        records = []
        for times in ([100], [900], [100, 900]):
            with torch.no_grad(), ld.recorded_attention(pipe.unet) as record:
                for t in times:
                    pipe.unet(ld.starting_noise(pipe, t), t, states)
            records.append(record)
        for name, both in records[2].layers.items():
            assert torch.allclose(both, (records[0].layers[name] + records[1].layers[name]) / 2, atol=1e-6)

    def test_a_words_map_is_the_sum_over_its_tokens(self, pipe, passed):
        record, _, _ = passed
        maps = record.words(pipe.tokenizer, "ab c", index=0)
        assert list(maps) == ["ab", "c"]
        assert torch.allclose(maps["ab"], record.tokens(0)[[1, 2]].sum(0))

    def test_an_empty_record_says_so(self):
        with pytest.raises(ValueError, match="nothing was recorded"):
            ld.AttentionRecord().tokens()

    def test_the_share_in_a_box(self):
        heat = torch.zeros(4, 4)
        heat[1, 1] = heat[3, 3] = 2.0
        assert ld.share_inside(heat, (0, 0, 0.5, 0.5)) == pytest.approx(0.5)
        assert ld.share_inside(heat, (0, 0, 1, 1)) == pytest.approx(1.0)
        assert ld.share_inside(heat, (0.25, 0.25, 0.375, 0.5)) == pytest.approx(0.25)  # half of one place
        assert ld.share_inside(torch.ones(16, 16), (0.1, 0.2, 0.6, 0.9)) == pytest.approx(0.5 * 0.7)


class TestCosts:
    def test_attention_is_counted_by_the_closed_form(self, pipe):
        """Self-attention of n places with width d costs 2 products of n * n * d multiplications with additions."""
        size, unet = 8, pipe.unet
        layers = {name: m for name, m in unet.named_modules() if name.endswith("attn1")}
        down = {name: 2 ** int(name.split(".")[1]) for name in layers if name.startswith("down_blocks")}
        assert down
        counted = ld.unet_flops(unet, size)["self-attention"]
        expected = 0
        seen: dict[str, int] = {}
        hooks = [
            m.register_forward_hook(lambda m, args, out, name=name: seen.update({name: args[0].shape[1]}))
            for name, m in layers.items()
        ]
        with torch.no_grad():
            unet(
                torch.randn(1, unet.config.in_channels, size, size),
                1,
                torch.randn(1, 16, unet.config.cross_attention_dim),
            )
        for hook in hooks:
            hook.remove()
        for name, n in seen.items():
            expected += 2 * 2 * n * n * layers[name].to_q.out_features
        assert counted == expected

    def test_doubling_the_size(self, pipe):
        small, large = ld.unet_flops(pipe.unet, 8), ld.unet_flops(pipe.unet, 16)
        assert large["convolutions"] == 4 * small["convolutions"]
        assert large["self-attention"] == 16 * small["self-attention"]
        assert large["cross-attention"] == 4 * small["cross-attention"]

    def test_cross_attention_grows_with_the_text(self, pipe):
        assert (
            ld.unet_flops(pipe.unet, 8, tokens=64)["cross-attention"]
            == 2 * ld.unet_flops(pipe.unet, 8, tokens=32)["cross-attention"]
        )

    def test_pixels_have_three_channels(self, pipe):
        assert ld.unet_flops(pipe.unet, 8, channels=3)["convolutions"] < ld.unet_flops(pipe.unet, 8)["convolutions"]


class TestLatents:
    def test_encode_and_decode_scale_as_the_pipeline_does(self, pipe):
        pictures = torch.rand(3, 3, 32, 32, generator=seeded(0)) * 2 - 1
        latents = ld.encode(pipe, pictures, batch=2)
        with torch.no_grad():
            expected = pipe.vae.encode(pictures).latent_dist.mean * pipe.vae.config.scaling_factor
            decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample.clamp(-1, 1)
        assert torch.allclose(latents, expected, atol=1e-5)
        assert torch.allclose(ld.decode(pipe, latents, batch=2), decoded, atol=1e-5)

    def test_the_starting_noise_of_a_seed(self, pipe):
        noise = ld.starting_noise(pipe, [3, 4])
        assert torch.equal(noise[1:], torch.randn(1, 4, 4, 4, generator=seeded(4)))
        assert torch.equal(ld.starting_noise(pipe, 3), noise[:1])

    def test_sizes_come_from_the_pipeline(self, pipe):
        assert ld.picture_size(pipe) == 32
        assert not ld.can_be_judged(pipe)

    def test_predicted_x0_undoes_the_forward_process(self):
        x0, eps = torch.randn(2, 1, 4, 4, 4, generator=seeded(0))
        a = torch.tensor(0.3)
        assert torch.allclose(ld.predicted_x0(a.sqrt() * x0 + (1 - a).sqrt() * eps, eps, a), x0, atol=1e-5)

    def test_renders_are_fitted_to_the_pipeline(self, pipe):
        pictures, scenes = ld.renders(pipe, 3)
        assert pictures.shape == (3, 3, 32, 32) and len(scenes) == 3
        assert float(pictures.abs().max()) <= 1 and float(pictures.std()) > 0.1


class TestComparisons:
    def test_a_comparison_says_which_is_higher(self):
        assert ld.comparison("A", 30.0, "B", 28.5, unit="dB", digits=1) == "A is 1.5 dB above B (30.0 dB and 28.5 dB)"
        assert ld.comparison("A", 1.0, "B", 2.0) == "A is 1.00 below B (1.00 and 2.00)"
        assert ld.comparison("A", 1.0, "B", 1.2, within=0.3) == "A and B do not differ measurably (1.00 and 1.20)"

    def test_spread_in_pixels(self):
        pictures = torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)])
        assert ld.pixel_spread(pictures) == pytest.approx(1.0)
        assert ld.pixel_spread(pictures[[0, 0, 0]]) == 0.0


@pytest.mark.notebooks
@pytest.mark.slow
@pytest.mark.parametrize("name", ["00_start_here", "01_latent_diffusion"])
def test_the_notebook_runs_for_a_model_that_the_judge_cannot_read(name, tmp_path, capsys):
    """Every size comes from the pipeline, and what needs the judge says so: here for a model of 64 pixels."""
    pipe = companion.load("tabletop", device="cpu")
    pipe.unet.register_to_config(sample_size=8)
    pipe.save_pretrained(tmp_path / "model")
    budgets = {} if name.startswith("00") else {"PICTURES": 4, "FEW_STEPS": 2, "TRAIN_STEPS": 24}
    code = run(only=name, model=str(tmp_path / "model"), out=tmp_path / "out", parameters=budgets)
    assert code == 0, capsys.readouterr().out
    notebook = nbformat.read(tmp_path / "out" / f"{name}.ipynb", as_version=4)
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert ld.NOT_JUDGED in printed
    if not budgets:
        return
    assert "It draws pictures of 64 x 64 pixels" in printed and "The judge can read them: False" in printed
    assert printed.count("below one grey level: True") == 2


class TestPairs:
    def test_seen_pairs_differ_in_the_pairing_alone(self):
        pairs = ld.matched_pairs()
        withheld, seen = zip(*pairs, strict=True)
        assert set(withheld) == WITHHELD and not WITHHELD.intersection(seen)
        assert [kind for kind, _ in withheld] == [kind for kind, _ in seen]
        assert sorted(finish for _, finish in withheld) == sorted(finish for _, finish in seen)

    def test_training_scenes_hold_the_seen_pairs_and_no_withheld_one(self):
        shown = {(t.kind, t.finish) for seed in range(3000) for t in sample_scene(seed).things}
        for withheld, seen in ld.matched_pairs():
            assert withheld not in shown and seen in shown

    def test_the_prompt_of_a_pair_is_read_back(self):
        assert ld.prompt_for("house", "orange") == "an orange house on grass by day"
        assert parse(ld.prompt_for("cube", "purple")) == Wish(("cube",), ("purple",), None, "grass", "day")
