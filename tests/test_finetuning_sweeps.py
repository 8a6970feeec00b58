"""Sweeps over finetunings: what is measured is what it says, and a stopped sweep goes on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image

import companion
from companion import finetuning_sweeps as sweeps
from companion.diffusion import encode_prompt
from companion.dreambooth import RARE_WORD, WORD, likeness
from companion.finetuning import TRANSFORMERS, Examples, Lora, Near, Oft, attach, load_learned, merged
from companion.finetuning_sweeps import METHODS, Setting, best, learned, moved, summary, teach_and_measure
from companion.intervals import compare
from companion.tabletop.subjects import SUBJECTS


@pytest.fixture(scope="module")
def pipe():
    return companion.load(device="cpu")


def test_what_moved_is_told_in_several_senses(pipe):
    unet = pipe.unet
    still = moved(unet, unet)
    assert all(abs(value) < 1e-12 for value in still.values())
    turned, freed = (
        attach(pipe, Oft(blocks=4, targets=TRANSFORMERS)),
        attach(pipe, Near(radius=0.1, targets=TRANSFORMERS)),
    )
    with torch.no_grad():
        for tuned in (turned, freed):
            for i, p in enumerate(tuned.parameters):
                p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
        x = torch.randn(1, 4, 16, 16)
        freed.pipe.unet(x, 5, encoder_hidden_states=torch.zeros(1, 32, unet.config.cross_attention_dim))
    kept, lost = (moved(unet, merged(tuned).unet) for tuned in (turned, freed))
    assert abs(kept["energy_layer"]) < 3e-6 and abs(lost["energy_layer"]) >= abs(lost["energy_targets"])
    assert abs(kept["energy_targets"]) < 1e-6 < 1e-5 < abs(lost["energy_targets"])
    assert kept["angle"] < 1e-3 < 0.05 < lost["angle"]
    assert kept["distance"] > 0.05 and lost["distance"] == pytest.approx(0.1, rel=1e-3)
    assert kept["left"] == 0, "a turn of the inputs keeps the left singular vectors"
    ends = tuple(f"{t}.weight" for t in TRANSFORMERS)
    share = sum(name.endswith(ends) for name in sweeps.energy.weights(unet)) / len(sweeps.energy.weights(unet))
    assert abs(lost["energy"]) < abs(lost["energy_targets"]) and 0.1 < share < 0.9


def test_what_was_learned_is_measured_on_the_subject_its_class_and_the_rest(pipe, monkeypatch):
    """A pipeline whose drawings are photographs of the subject, whatever it is asked for."""
    subject = SUBJECTS["duck"]
    photographs = torch.from_numpy(subject.photographs()[0]).permute(0, 3, 1, 2) / 127.5 - 1
    asked = []

    def draw(pipe, prompts, seeds, **options):
        asked.append(list(prompts))
        return photographs[[i % 5 for i in range(len(prompts))]]

    monkeypatch.setattr(sweeps.diffusion, "draw", draw)
    before = sweeps.drawn_before(pipe, subject.noun)
    found = learned(pipe, subject, WORD, subject.noun, before)
    assert found["likeness"] == pytest.approx(float(likeness(photographs, photographs).mean()), abs=1e-5)
    assert found["likeness"] == pytest.approx(found["pres"], abs=0.1)
    assert found["drift"] == pytest.approx(0, abs=1e-5) and found["colour_drift"] == 0, "the same before and after"
    assert found["kept"] == found["kept_before"] <= 0.1, "a duck is not what the other prompts ask for"
    assert all(f"{WORD} ball" in prompt for prompt in asked[2]) and asked[3] == asked[2][:1] * 6
    assert asked[4] == asked[1] == ["a ball"] * 16
    learned(pipe, subject, WORD, "", before)
    assert asked[6][0] == asked[2][0].replace(f"{WORD} ball", WORD)


def test_a_training_is_measured_at_the_steps_that_were_named(pipe, monkeypatch):
    monkeypatch.setattr(sweeps, "learned", lambda *args, **options: {"likeness": 0.5})
    monkeypatch.setattr(sweeps, "WORD_RECIPE", {"steps": 1, "lr": 1e-3})
    setting = Setting("cactus", "LoRA", 1e-3, seed=3, prior=False, photographs=2, batch=1)
    rows = list(teach_and_measure(pipe, setting, [1, 3], steps=1, guidance_scale=1.0))
    assert [row["step"] for row in rows] == [1, 3] and rows[0]["seconds"] < rows[1]["seconds"]
    assert all(row.items() >= asdict(setting).items() for row in rows)
    assert rows[0]["ceiling"] > rows[0]["floor"], "real pictures of a cactus are more like it than trees are"
    assert rows[0]["likeness"] == 0.5 and rows[1]["distance"] > rows[0]["distance"] > 0
    assert rows[0]["parameters"] == sum(p.numel() for p in attach(pipe, METHODS["LoRA"]("green")).parameters)


def test_a_word_is_learned_first_and_changes_nothing_else(pipe, monkeypatch):
    monkeypatch.setattr(sweeps, "WORD_RECIPE", {"steps": 2, "lr": 1e-2, "batch": 1})
    knows = sweeps.worded(pipe, "cactus", seed=11)
    assert len(pipe.tokenizer(WORD).input_ids) > 3 == len(knows.tokenizer(WORD).input_ids)
    said, start = (encode_prompt(knows, [f"a {w} tree on sand by day"]) for w in (WORD, "green"))
    assert 0 < float((said - start).norm()) < 0.5 * float(start.norm()), "it starts from the nearest colour"
    for prompt in ("a tree", "a green tree on sand by day"):
        assert torch.equal(encode_prompt(knows, [prompt]), encode_prompt(pipe, [prompt]))
    assert all(torch.equal(a, b) for a, b in zip(knows.unet.parameters(), pipe.unet.parameters(), strict=True))


def test_every_method_but_the_word_alone_begins_with_a_word(pipe, monkeypatch):
    asked = []

    def teach(pipe, subject, method, **options):
        asked.append((pipe, type(method).__name__, options))
        return iter(())

    monkeypatch.setattr(sweeps, "teach", teach)
    monkeypatch.setattr(sweeps, "worded", lambda pipe, name, noun, seed, **about: (name, noun, seed, about))
    monkeypatch.setattr(sweeps, "_prior", lambda pipe, noun, n, others, options: (noun, n, others))
    about = {"photographs": 5, "prepared": "cropped", "scenes": True}
    for setting in (
        Setting("duck", "full", 1e-3, seed=2),
        Setting("duck", "full", 1e-3, noun="car", others=False, scenes=False),
        Setting("duck", "full", 1e-3, word=RARE_WORD, prior=False),
        Setting("duck", "textual inversion", 1e-3),
        sweeps.words([], seeds=1)[0],
    ):
        list(sweeps.taught(pipe, setting, 3))
    with_word, wrong_noun, rare, word_alone, start = asked
    assert with_word[0] == ("duck", "ball", 2, about) and with_word[2]["prior"] == ("ball", 100, 100)
    assert wrong_noun[0] == ("duck", "car", 0, about | {"scenes": False}) and wrong_noun[2]["prior"] == ("ball", 100, 0)
    assert rare[0] is pipe and rare[2]["word"] == RARE_WORD and rare[2]["prior"] is None
    assert word_alone[0] is pipe and word_alone[1] == "TextualInversion" and word_alone[2]["word"] == WORD
    noun = SUBJECTS[sweeps.untried()[0]].noun
    assert start[0] is pipe and start[1] == "TextualInversion"
    assert start[2] == {"word": WORD, "noun": noun, "seed": 0} | about | sweeps.WORD_RECIPE


def test_what_all_start_from_is_measured_for_each_subject_and_seed_of_the_table(pipe, monkeypatch):
    """It is the very word that the methods begin with."""
    monkeypatch.setattr(sweeps, "WORD_RECIPE", {"steps": 2, "lr": 1e-2, "batch": 1, "decay": 0.5})
    wanted = sweeps.words([], seeds=2)
    assert {(s.subject, s.seed) for s in wanted} == {(s, seed) for s in sweeps.untried() for seed in (0, 1)}
    assert {(s.method, s.lr, s.batch, s.prior) for s in wanted} == {(sweeps.START, 1e-2, 1, False)}
    *_, last = sweeps.taught(pipe, Setting("cactus", sweeps.START, 1e-2, seed=11, prior=False, batch=1), 2)
    said = [encode_prompt(p, ["a " + WORD]) for p in (merged(last.tuned), sweeps.worded(pipe, "cactus", seed=11))]
    assert torch.equal(*said)


def row(method="LoRA", lr=1e-3, step=100, subject="duck", seed=0, **values):
    about = {"method": method, "lr": lr, "step": step, "subject": subject, "seed": seed}
    return about | {"likeness": 0.5, "pres_before": 0.1, "scene": 1.0, "kept": 0.9, "kept_before": 0.9} | values


def test_a_measure_at_each_rate():
    rows = [row(lr=1e-2, drift=0.3), row(lr=1e-3, drift=0.1), row(lr=1e-3, drift=0.2, subject="cactus")]
    rows += [row(lr=1e-3, drift=9.0, step=50), row(lr=1e-4, drift=9.0, method="OFT")]
    assert list(sweeps.by_rate(rows, "drift", "LoRA", 100).items()) == [(1e-3, pytest.approx(0.15)), (1e-2, 0.3)]


def test_the_best_rate_is_good_at_all_three():
    rows = [
        row(lr=1e-2, likeness=0.9, kept=0.0),  # learned, and forgot everything
        row(lr=1e-4, likeness=0.1),  # learned nothing
        row(lr=1e-3, step=50, likeness=0.3),
        row(lr=1e-3, step=100, likeness=0.5),
        row(lr=1e-3, step=100, subject="cactus", likeness=0.4),
        row(method="OFT", lr=1.0, likeness=1.0),
    ]
    assert best(rows, "LoRA") == (1e-3, 100)
    with pytest.raises(ValueError, match="no learning rate of 'HRA' was measured yet: companion finetunings rates"):
        best(rows, "HRA")


def test_a_method_that_is_best_at_its_last_step_may_be_unfinished():
    rows = [row(step=50, likeness=0.3), row(step=100, likeness=0.5), row("OFT", step=50), row("OFT", likeness=0.2)]
    assert sweeps.unfinished(rows, "LoRA") and not sweeps.unfinished(rows, "OFT")


def test_rates_are_tried_until_the_best_is_between_others():
    assert set(sweeps.RATES) == set(METHODS) and len(sweeps.rates()) == 10 * 3 * 2
    assert sweeps.RATES["full"] == pytest.approx((1e-4, 3.16e-4, 1e-3), rel=1e-3)
    low, middle, high = sweeps.RATES["OFT"]
    others = [row("OFT", lr=lr, likeness=0.2) for lr in sweeps.RATES["OFT"]]
    between = [*others, row("OFT", lr=middle)]
    assert not sweeps.at_the_edge(between, "OFT") and sweeps.rates_of(between, "OFT") == [low, middle, high]
    for lr, beyond in ((low, low / 10**0.5), (high, high * 10**0.5)):
        rows = [*others, row("OFT", lr=lr)]
        assert sweeps.at_the_edge(rows, "OFT")
        assert sweeps.rates_of(rows, "OFT") == pytest.approx(sorted([low, middle, high, beyond]), rel=1e-3)
        assert sweeps.rates_of(rows[:2], "OFT") == [low, middle, high], "first those that are lacking"
    many = [row("LoRA", lr=10.0**-i, likeness=i / 10) for i in range(6)]
    assert sweeps.rates_of([*many, *(row("LoRA", lr=lr, likeness=0) for lr in sweeps.RATES["LoRA"])], "LoRA") == sorted(
        {*sweeps.RATES["LoRA"], *(r["lr"] for r in many)}
    )


def test_workers_measure_what_one_process_measures(pipe):
    """Two settings of one step, each in a process of its own."""
    plain = Setting("duck", "LoRA", 1e-3, prior=False, word=RARE_WORD, batch=1)
    settings = [plain, replace(plain, method="OFT")]
    _, options = sweeps.prepared()
    options["steps"] = 1
    alone, beside = (list(sweeps._measured(pipe, settings, (1,), workers, options)) for workers in (1, 2))
    assert [rows[0]["method"] for rows in beside] == ["LoRA", "OFT"]
    for a, b in zip(alone, beside, strict=True):
        assert a[0]["loss"] == pytest.approx(b[0]["loss"], rel=1e-4) and a[0]["parameters"] == b[0]["parameters"]


def test_subjects_are_what_is_counted_and_not_seeds():
    rows = [row(subject=s, seed=i, likeness=v + 0.1 * i) for s, v in (("duck", 0.2), ("cactus", 0.4)) for i in (0, 1)]
    mean, low, high = summary(rows, "likeness", "LoRA", 100)
    assert mean == pytest.approx(0.35) and high - mean == pytest.approx(mean - low)
    assert high - low > 2, "two subjects say little"


def test_a_course_has_a_value_for_each_step():
    rows = [row("OFT", step=s, seed=i, likeness=s / 1000 + i / 10) for s in (100, 50) for i in (0, 1)] + [row("LoRA")]
    found = sweeps.courses(rows, "OFT", lambda r: r["likeness"])
    assert list(found) == ["duck"] and list(found["duck"]) == [50, 100]
    assert found["duck"] == pytest.approx({50: 0.1, 100: 0.15})
    assert sweeps.courses(rows, "LoRA") == {"duck": {100: pytest.approx(sweeps.score(rows[-1]))}}


def test_methods_are_compared_subject_by_subject_each_at_its_own_steps():
    easy = {"duck": 0.2, "cactus": 0.5, "die": 0.8}
    rows = [
        row("OFT", step=100, subject=s, seed=i, likeness=v + 0.05 + i / 50) for s, v in easy.items() for i in (0, 1)
    ]
    rows += [row("LoRA", step=50, subject=s, seed=i, likeness=v + i / 50) for s, v in easy.items() for i in (0, 1)]
    rows += [row("LoRA", step=100, subject=s, likeness=9.9) for s in easy]
    tried = [row("OFT", step=100), row("LoRA", step=50), row("LoRA", step=100, scene=0.1)]
    found = sweeps.compared(rows, tried, "likeness", "OFT", "LoRA")
    assert found.difference == pytest.approx(0.05) and found.low == pytest.approx(0.05)
    assert found.verdict == "higher" and found.n == 3 and found.means == pytest.approx((0.56, 0.51))
    assert sweeps.compared(rows, tried, "likeness", "LoRA", "OFT").verdict == "lower"
    assert sweeps.compared(rows, tried, "likeness", "OFT", "OFT").verdict == "not told apart"
    assert sweeps.compared(rows, tried, "likeness", "OFT", "LoRA", step=100).verdict == "lower"
    with pytest.raises(ValueError, match="0 subjects were measured by 'OFT' and 'HRA'; two are needed"):
        sweeps.compared(rows, tried, "likeness", "OFT", "HRA", step=100)


def test_patience_changes_the_steps_and_nothing_else():
    rates = sweeps.stored("rates")
    quick = [s for s in sweeps.table(rates, seeds=1) if s.method == "LoRA"]
    assert sweeps.patient(rates) == quick and len(quick) == 10
    _, steps = sweeps.PLANS["patient"]
    assert steps == (3 * max(sweeps.STEPS),)


def test_methods_and_subjects_make_a_grid():
    rows = [
        row(method, step=step, subject=s, left=v, right=2 * v)
        for method, step, s, v in (("OFT", 100, "duck", 1), ("OFT", 100, "die", 2), ("LoRA", 50, "die", 4))
    ]
    with pytest.raises(ValueError, match="OFT, LoRA were not measured on the same subjects"):
        sweeps.by_method(rows, ["left"], {"OFT": 100, "LoRA": 50})
    rows += [row("LoRA", step=50, subject="duck", left=3, right=6), row("LoRA", step=100, subject="duck", left=9)]
    np.testing.assert_allclose(sweeps.by_method(rows, ["left", "right"], {"OFT": 100, "LoRA": 50}), [[3, 6], [9, 12]])


def test_a_course_is_the_mean_of_the_subjects_courses():
    found = {("duck", 50): 0.2, ("duck", 100): 0.4, ("die", 50): 0.4, ("die", 100): 0.8}
    rows = [row(step=step, subject=s, likeness=v) for (s, step), v in found.items()]
    assert sweeps.course(rows, "LoRA", lambda r: r["likeness"]) == pytest.approx({50: 0.3, 100: 0.6})
    assert sweeps.course(rows, "OFT") == {}


def test_gains_are_counted_from_the_word_alone():
    words = [row(sweeps.START, step=50, subject=s, likeness=v) for s, v in (("duck", 0.1), ("die", 0.3))]
    found = {"duck": (0.4, 0.02), "die": (0.5, 0.04), "cactus": (0.9, 0.9)}
    rows = [row("OFT", step=100, subject=s, likeness=v, drift=d) for s, (v, d) in found.items()]
    assert sweeps.gained(rows, words, "likeness", "OFT", 100) == pytest.approx({"duck": 0.3, "die": 0.2})
    np.testing.assert_allclose(sweeps.price(rows, words, "OFT", 100), [[0.02, 0.04], [0.3, 0.2]])
    assert sweeps.price(rows, [], "OFT", 100).shape == (2, 0)


def test_who_is_ahead_depends_on_what_is_better_and_on_the_margin():
    base = np.array([0.1, 0.4, 0.2, 0.5, 0.3])
    near = np.array([1, -1, 2, -2, 1]) * 1e-3
    found = [compare(base + 0.1 + near, base), compare(base + near, base), compare(base + near, base)]
    assert sweeps.sided(found, ["higher", "higher", "lower"], [0.01, 0.01, 0.001]) == ["ahead", "alike", "open"]
    assert sweeps.sided(found[:1], ["lower"], [0.01]) == ["behind"]


@pytest.mark.parametrize(
    ("words", "told", "helps", "does_not"),
    [
        (["ahead", "alike", "alike"], "ahead", "seen", "contradicted"),
        (["ahead", "open", "alike"], "ahead, as far as it is decided", "open", "contradicted"),
        (["ahead", "behind", "open"], "each is ahead in something", "contradicted", "contradicted"),
        (["behind", "alike", "open"], "behind, as far as it is decided", "contradicted", "contradicted"),
        (["alike", "alike", "alike"], "alike", "contradicted", "seen"),
        (["open", "alike", "open"], "open", "open", "open"),
    ],
)
def test_what_several_comparisons_come_to(words, told, helps, does_not):
    assert sweeps.settled(words) == told
    assert (sweeps.predicted(words, True), sweeps.predicted(words, False)) == (helps, does_not)


def test_a_changed_setting_is_compared_subject_by_subject():
    def stored(subject, likeness, step=100, **change):
        about = asdict(replace(Setting(subject, sweeps.DREAMBOOTH, 1e-4), **change))
        return about | {"step": step, "likeness": likeness}

    easy = {"duck": 0.2, "cactus": 0.5, "die": 0.8}
    rows = [stored(s, v) for s, v in easy.items()] + [stored(s, 9.9, step=50) for s in easy]
    rows += [stored(s, v - 0.1, prior=False) for s, v in easy.items()]
    rows += [stored(s, v - 0.1, prior=False, prepared="small") for s, v in easy.items()]
    found = sweeps.changed(rows, "likeness", 100, {"prior": False}, {})
    assert found.difference == pytest.approx(-0.1) and found.verdict == "lower" and found.n == 3
    small = sweeps.changed(rows, "likeness", 100, *sweeps.ADVICE["small photographs as they are"])
    assert small.difference == pytest.approx(0) and small.verdict == "not told apart"
    wrong = [stored(s, v - 0.2, noun=sweeps.wrong_noun(s)) for s, v in easy.items()]
    wrong += [stored("fire engine", 0.9), stored("fire engine", 0.1, noun="tree"), stored("fire engine", 9, noun="car")]
    found = sweeps.changed(rows + wrong, "likeness", 100, {"noun": sweeps.WRONG}, {})
    assert found.n == 4 and found.difference == pytest.approx((3 * -0.2 - 0.8) / 4)
    with pytest.raises(ValueError, match="0 subjects were measured by {'noun': 'car'} and DreamBooth as it is"):
        sweeps.changed(rows, "likeness", 100, {"noun": "car"}, {})


def test_a_row_of_pictures_is_drawn_for_every_subject_and_not_twice(pipe, monkeypatch, tmp_path):
    taught = []
    monkeypatch.setattr(sweeps, "_weights", lambda: "1234")
    monkeypatch.setattr(sweeps, "best", lambda rows, method: (1e-4, 2))
    monkeypatch.setattr(sweeps, "stored", lambda plan: [])
    monkeypatch.setattr(sweeps, "sheet", lambda subject: tmp_path / f"{subject}.jpg")

    def draw(pipe, prompts, seeds, **options):
        return torch.zeros(1 if isinstance(prompts, str) else len(prompts), 3, 128, 128)

    monkeypatch.setattr(sweeps.diffusion, "draw", draw)

    def teach(pipe, setting, training, **options):
        assert setting == Setting(setting.subject, setting.method, 1e-4)
        taught.append((setting.subject, setting.method, training))
        yield type("Taught", (), {"tuned": type("Tuned", (), {"pipe": pipe})})

    monkeypatch.setattr(sweeps, "taught", teach)
    assert [name for _, _, name in sweeps.draw_sheets(pipe)] == list(SUBJECTS)
    ways = [("full", 2), ("LoRA", 2), ("LoRA", sweeps.PATIENT)]
    assert taught == [(name, *way) for name in SUBJECTS for way in ways]
    assert len(list(sweeps.draw_sheets(pipe))) == 12 and len(taught) == 36
    rows = sweeps.sheets()
    assert list(rows) == list(SUBJECTS) and {row.size for row in rows.values()} == {(128 * len(sweeps.SHOWN), 128)}
    with Image.open(sweeps.sheet(sweeps.NEAREST)) as row:
        assert row.size == (128 * 12, 128)
    assert sweeps.recognised() == sweeps.recognised("second") == {}, "no eye has looked"
    said = {"pictures": {s: hashlib.sha256(sweeps.sheet(s).read_bytes()).hexdigest() for s in SUBJECTS}}
    said |= {"recognised": {s: {"full": "yes"} for s in SUBJECTS}}
    eye = sweeps.sheet("eye").with_suffix(".json")
    eye.write_text(json.dumps(said), encoding="utf-8")
    assert sweeps.recognised() == said["recognised"]
    eye.write_text(json.dumps(said | {"pictures": said["pictures"] | {"duck": "0"}}), encoding="utf-8")
    assert sweeps.recognised() == {}, "it has seen another duck"
    eye.write_text(json.dumps(said), encoding="utf-8")
    second = sweeps.sheet("second").with_suffix(".json")
    second.write_text(json.dumps(said), encoding="utf-8")
    assert sweeps.recognised("second") == {}, "it has not seen the nearest words"
    words = hashlib.sha256(sweeps.sheet(sweeps.NEAREST).read_bytes()).hexdigest()
    said["pictures"] |= {sweeps.NEAREST: words}
    second.write_text(json.dumps(said), encoding="utf-8")
    assert sweeps.recognised("second") == said["recognised"] == sweeps.recognised()
    monkeypatch.setattr(sweeps, "_weights", lambda: "others")
    assert sweeps.sheets() == sweeps.recognised() == {}, "they were drawn with other weights"


def test_a_stored_training_is_fetched_for_its_own_settings_and_weights_alone(pipe, monkeypatch, tmp_path):
    monkeypatch.setattr(sweeps.companion, "DATA", tmp_path)
    monkeypatch.setattr(sweeps, "_weights", lambda: "these")
    settings = {"steps": 3, "subject": "duck"}

    def five(n=5, prompt="a sks can", weight=1.0):
        return Examples(torch.zeros(n, 4, 16, 16), [prompt] * n, weight)

    tuned = attach(pipe, Lora(rank=2), seed=1)
    assert not sweeps.fetch(tuned, "with class images", [five()], settings)
    sweeps.keep(tuned, "with class images", [five()], settings)

    def fetched(sets, settings):
        other = attach(pipe, Lora(rank=2), seed=2)
        found = sweeps.fetch(other, "with class images", sets, settings)
        same = [torch.equal(a, b) for a, b in zip(tuned.parameters, other.parameters, strict=True)]
        assert found == all(same)
        return found

    assert fetched([five()], {"subject": "duck", "steps": 3})
    assert not fetched([five()], {"subject": "duck", "steps": 4}) and not fetched([five()], {"subject": "duck"})
    for others in ([five(1)], [five(prompt="a can")], [five(weight=0.3)], [five(), five()]):
        assert not fetched(others, settings)
    monkeypatch.setattr(sweeps, "_weights", lambda: "others")
    assert not fetched([five()], settings), "the weights it began from are others"


@pytest.mark.parametrize("name", ["with class images", "our recipe"])
def test_the_trainings_that_notebook_05_fetches_are_of_these_weights(pipe, name):
    record = json.loads((sweeps.training(name) / "settings.json").read_text(encoding="utf-8"))
    assert record["weights"] == sweeps._weights() and len(record["sets"]) == 2
    tuned = attach(pipe, METHODS["LoRA"]("red"))
    before = [p.clone() for p in tuned.parameters]
    load_learned(tuned, sweeps.training(name))
    assert tuned.method.rank == record["rank"]
    assert not any(torch.equal(a, b) for a, b in zip(before, tuned.parameters, strict=True))


def test_what_an_eye_recognised_is_about_the_pictures_that_are_there():
    said = sweeps.recognised()
    assert list(said) == list(SUBJECTS)
    assert all(list(ways) == list(sweeps.SHOWN[1:]) for ways in said.values())
    assert {word for ways in said.values() for word in ways.values()} == {"yes", "half", "no"}
    second = sweeps.recognised("second")
    assert list(second) == list(SUBJECTS) and all(list(ways) == list(sweeps.SECOND) for ways in second.values())


def test_points_are_given_for_what_an_eye_recognised():
    said = {"duck": {"full": "yes", "LoRA": "half"}, "die": {"full": "no", "LoRA": "half"}}
    assert sweeps.points(said, "full") == [1, 0]
    assert sweeps.points(said, "full", "LoRA") == [0.75, 0.25]


def test_what_was_measured_of_the_pictures_an_eye_saw(monkeypatch):
    tried = [row(step=50, likeness=0.9), row(step=100, likeness=0.1)]
    rows = [row(step=50, seed=seed, likeness=v) for seed, v in ((0, 0.4), (1, 0.8))] + [row(step=100, likeness=0.7)]
    plans = {"rates": tried, "table": rows, "patient": [row(step=sweeps.PATIENT, likeness=0.6)]}
    monkeypatch.setattr(sweeps, "stored", plans.get)
    soon, late = (sweeps.measured(way, "likeness") for way in ("LoRA", "LoRA, 600 steps"))
    assert (soon, late) == ({"duck": 0.4}, {"duck": 0.6}), "one seed of each, whatever else the table has"
    with pytest.raises(ValueError, match="1 subjects were measured by both; two are needed"):
        sweeps.paired(late, soon)


def test_a_stopped_sweep_goes_on_where_it_was(pipe, monkeypatch, tmp_path):
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path))
    (tmp_path / "results").mkdir()
    measured = []

    def measure(pipe, setting, at, **options):
        measured.append(setting)
        yield from (
            {**asdict(setting), **row(setting.method, setting.lr, step, setting.subject, setting.seed)} for step in at
        )

    monkeypatch.setattr(sweeps, "teach_and_measure", measure)
    monkeypatch.setattr(sweeps, "rates", lambda rows: [Setting("duck", m, lr) for m in METHODS for lr in (1e-4, 1e-3)])
    run = sweeps.sweep(pipe, "rates")
    assert [next(run)[:2] for _ in range(3)] == [(1, 20), (2, 20), (3, 20)]
    assert len(sweeps.stored("rates")) == 3 * 3 and sweeps.complete("rates") == sweeps.complete("table") == []
    gone_on = list(sweeps.sweep(pipe, "rates"))
    assert [done for done, _, _ in gone_on] == list(range(4, 21)) and len(measured) == 20
    assert sweeps.complete("rates") == sweeps.stored("rates") and sweeps.complete("table") == []
    run, first = sweeps.sweep(pipe, "table"), 10 * len(METHODS)
    assert next(setting.seed for done, _, setting in run if done == first + 1) == 1, "seed by seed"
    assert {row["seed"] for row in sweeps.stored("table")} == {0, 1}
    assert {row["seed"] for row in sweeps.complete("table")} == {0}
    assert len(list(sweeps.sweep(pipe, "table"))) == 3 * first - first - 1
    plain, *others = sweeps.ablations(sweeps.stored("rates"))[:11]
    changed = [{k: v for k, v in asdict(other).items() if v != asdict(plain)[k]} for other in others]
    assert changed[:3] == [{"prior": False}, {"others": False}, {"scenes": False}]
    assert changed[3:7] == [{"noun": "car"}, {"noun": ""}, {"word": RARE_WORD}, {"word": ""}]
    assert changed[7:] == [{"photographs": 1}, {"photographs": 3}, {"latest": 500}]
    run, before = sweeps.sweep(pipe, "ablations"), len(measured)
    assert next(run)[:2] == (11, 10 * 2 + 5 * 9), "ten were measured for the table"
    next(run)
    assert len(sweeps.stored("ablations")) == 12 and measured[before] == others[0]
    assert {row["step"] for row in sweeps.stored("ablations")} == {sweeps.STEPS[-1]}
    run.close()
    followed = sweeps.advice(sweeps.stored("rates"))
    assert len(followed) == 5 * 6 and followed[0] == replace(plain, prepared="JPEG")
    lines = sweeps.results("rates").read_text(encoding="utf-8").splitlines()
    other = [json.dumps(json.loads(line) | {"weights": "others"}) for line in lines]
    sweeps.results("rates").write_text("\n".join(other), encoding="utf-8")
    assert sweeps.stored("rates") == [], "they were measured with other weights"
    with pytest.raises(
        ValueError, match="'everything' is no plan; there are rates, table, words, ablations, advice, long"
    ):
        next(sweeps.sweep(pipe, "everything"))
