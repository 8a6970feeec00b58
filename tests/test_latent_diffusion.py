"""What notebook 01 looks at inside the machine: words, attention, costs; on a tiny random pipeline."""

from __future__ import annotations

import math

import nbformat
import pytest
import torch

import companion
from companion import latent_diffusion as ld
from companion.diffusion import encode_prompt, starting_noise
from companion.models import seeded
from companion.run import run
from companion.tabletop.caption import Wish, parse
from companion.tabletop.measures import NOT_JUDGED
from companion.tabletop.scene import WITHHELD
from companion.tabletop.splits import sample_scene

PROMPT = "ab cd"


@pytest.fixture(scope="module")
def pipe(tiny):
    return companion.load(tiny, device="cpu")


class TestText:
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

    def test_by_chance_nothing_is_near(self, pipe, monkeypatch):
        def embedded(weight: torch.Tensor) -> None:
            layer = torch.nn.Embedding(*weight.shape, _weight=weight)
            monkeypatch.setattr(pipe.text_encoder, "get_input_embeddings", lambda: layer)

        embedded(torch.ones(6, 4))  # shuffled they are what they were
        assert ld.nearest_by_chance(pipe) == pytest.approx(1.0)
        embedded(torch.randn(50, 1000, generator=torch.Generator().manual_seed(0)))  # in 1000 dimensions: about 0.03
        assert 0.02 < ld.nearest_by_chance(pipe, rows=20) < 0.15


class TestAttention:
    @pytest.fixture
    def passed(self, pipe):
        """(record, output with the record, output without), a batch of two."""
        noise, states = starting_noise(pipe, [1, 2]), encode_prompt(pipe, ["ab c", "d"])
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
        states = encode_prompt(pipe, ["ab c", "d"])
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
        states = encode_prompt(pipe, "ab c")
        records = []
        for times in ([100], [900], [100, 900]):
            with torch.no_grad(), ld.recorded_attention(pipe.unet) as record:
                for t in times:
                    pipe.unet(starting_noise(pipe, t), t, states)
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


class TestLevels:
    def test_the_skips_of_the_way_down_are_those_of_the_way_up(self, pipe):
        noisy = starting_noise(pipe, 0)
        rows = ld.unet_shapes(pipe.unet, noisy, torch.tensor(500), encode_prompt(pipe, "a red ball"))
        kept = {way: sum(n for name, _, n in rows if name.startswith(way)) for way in ("conv_in", "down", "up")}
        assert kept["conv_in"] + kept["down"] == kept["up"] > 0
        assert rows[-1][1] == " x ".join(map(str, noisy.shape[1:]))
        assert not any(m._forward_hooks for m in pipe.unet.modules())


class TestPlane:
    def test_the_predicted_noise_is_the_best_one(self):
        """No other answer has a smaller squared error on average: not one with words for the wrong class, nor a
        larger or smaller one."""
        generator, a = torch.Generator().manual_seed(0), torch.tensor(0.4)
        points = ld.plane_points(4000, ["blue"], generator)
        noise = torch.randn(points.shape, generator=generator)
        noisy = a**0.5 * points + (1 - a) ** 0.5 * noise
        best = ld.plane_noise(noisy, a, ["blue"])
        error = ((best - noise) ** 2).mean()
        for other in (1.05 * best, 0.95 * best, ld.plane_noise(noisy, a, list(ld.PLANE))):
            assert ((other - noise) ** 2).mean() > error

    def test_a_point_belongs_to_the_nearest_middle(self):
        assert ld.plane_class(torch.tensor([ld.PLANE["orange"][1], ld.PLANE["blue"][0]])) == ["orange", "blue"]


class TestComparisons:
    def test_a_comparison_says_which_is_higher(self):
        assert ld.comparison("A", 30.0, "B", 28.5, unit="dB", digits=1) == "A is 1.5 dB above B (30.0 dB and 28.5 dB)"
        assert ld.comparison("A", 1.0, "B", 2.0) == "A is 1.00 below B (1.00 and 2.00)"
        assert ld.comparison("A", 1.0, "B", 1.2, within=0.3) == "A and B do not differ measurably (1.00 and 1.20)"


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
    assert NOT_JUDGED in printed
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
