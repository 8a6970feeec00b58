"""Sweeps: what is measured of each sampler, how it is stored, and the verdicts on the guide's advice."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

import companion
from companion import sampler_sweeps as sweeps
from companion import samplers as sm
from companion.intervals import mean_interval


@pytest.fixture(scope="module")
def pipe(tiny):
    return companion.load(tiny, device="cpu")


def seeds(values) -> list[float]:
    """A value for each prompt, as pictures have them that do not depend on the seed."""
    return [v for v in values for _ in range(sweeps.SEEDS)]


def row(name: str, evaluations: int, *own: float, limit: float | None = None) -> sweeps.Row:
    own = tuple(seeds(own))
    distances = [limit] * len(own) if limit is not None else list(own)
    steps = (evaluations + 1) // 2 if sweeps.sampler_of(name).per_step == 2 else evaluations
    return sweeps.Row(name, steps, evaluations, distances, list(own), distances, 0.01)


def judged(name: str, steps: int, met: int, *frechet: float, of: int = 64, evaluations: int | None = None, **where):
    shares = list(frechet) or [0.5 + 0.01 * (i % 3) for i in range(of)]
    return sweeps.Quality(name, steps, evaluations or steps, [i < met for i in range(of)], shares, **where)


def verdicts(claims: list[sweeps.Claim]) -> dict[str, str]:
    return {claim.statement: claim.verdict for claim in claims}


@pytest.fixture(scope="module")
def rows(pipe):
    names = ["Euler", "DPM++ 2M Karras", "DDIM", "Euler a"]
    settings = {"guidance_scale": 2.0, "evaluations": (4, 16), "reference": 24, "long": 24}
    return list(sweeps.converge(pipe, names, ["ab", "cd"], [1, 2], **settings))


class TestSweeps:
    def test_each_cell_has_its_cost_and_a_distance_for_each_picture(self, rows):
        assert [(r.sampler, r.evaluations) for r in rows] == list(
            itertools.product(["Euler", "DPM++ 2M Karras", "DDIM", "Euler a"], (4, 16))
        )
        assert all(len(part) == 2 for r in rows for part in (r.limit, r.own, r.guide))

    def test_distances_are_to_what_they_say(self, pipe, rows):
        """Euler's own limit is the common one, DDIM's is the path at the lowest level; Euler a's its own long run."""
        by = {(r.sampler, r.evaluations): r for r in rows}
        assert by["Euler", 16].limit == by["Euler", 16].own and by["DDIM", 16].limit != by["DDIM", 16].own
        assert sum(by["Euler", 16].limit) < sum(by["Euler", 4].limit)
        model = sm.Denoiser(pipe, ["ab", "cd"], 2.0)
        ends = {}
        for n in (4, 24):
            sigmas = sm.sigmas_for("Euler a", model.levels, n)
            *_, last = sm.solve(model, sm.start(pipe, [1, 2], sigmas), sigmas, "Euler a", seeds=[1, 2])
            ends[n] = last.x
        assert by["Euler a", 4].own == pytest.approx(sweeps.apart(ends[4], ends[24]), abs=2e-4)

    def test_without_a_long_run_all_are_measured_from_the_common_end(self, pipe, rows):
        settings = {"guidance_scale": 2.0, "evaluations": (4,), "reference": 24, "long": None}
        (short,) = sweeps.converge(pipe, ["Euler a"], ["ab", "cd"], [1, 2], **settings)
        (whole,) = (row for row in rows if (row.sampler, row.evaluations) == ("Euler a", 4))
        assert short.own == short.limit == whole.limit != whole.own

    def test_what_is_done_is_left_out(self, pipe):
        cells = sweeps.converge(
            pipe,
            ["Euler", "UniPC"],
            "ab",
            [1],
            guidance_scale=1.0,
            evaluations=(2, 3),
            reference=2,
            done=[("Euler", 2), ("Euler", 3), ("UniPC", 2)],
        )
        assert [(r.sampler, r.evaluations, r.guidance) for r in cells] == [("UniPC", 3, 1.0)]

    def test_a_number_of_steps_is_drawn_once(self):
        """2 and 3 evaluations are 1 and 2 steps of Heun; DPM adaptive takes no advice."""
        assert sweeps.cells(["Heun", "Euler"], (2, 3, 4)) == [("Heun", s) for s in (1, 2)] + [
            ("Euler", s) for s in (2, 3, 4)
        ]
        assert sweeps.cells(["DPM adaptive"], (6, 30)) == [("DPM adaptive", 30)]

    def test_each_move_is_between_two_runs(self, pipe):
        settings = {"guidance_scale": 2.0, "evaluations": (4, 8, 16)}
        moves = list(sweeps.double(pipe, ["Euler", "DPM2 a"], ["ab"], [1], **settings))
        assert [(m.sampler, m.steps, m.twice) for m in moves] == [
            ("Euler", 4, 8),
            ("Euler", 8, 16),
            ("DPM2 a", 2, 4),
            ("DPM2 a", 4, 8),
        ]
        model = sm.Denoiser(pipe, "ab", 2.0)
        ends = []
        for n in (8, 16):
            sigmas = sm.sigmas_for("Euler", model.levels, n)
            *_, last = sm.solve(model, sm.start(pipe, [1], sigmas), sigmas)
            ends.append(last.x)
        assert moves[1].moved == pytest.approx(sweeps.apart(*ends), abs=1e-4)
        again = list(
            sweeps.double(pipe, ["Euler", "DPM2 a"], ["ab"], [1], done=[("Euler", 4), ("Euler", 8)], **settings)
        )
        assert again == moves[2:]
        rest = list(sweeps.double(pipe, ["Euler"], ["ab"], [1], done=[("Euler", 4)], **settings))
        assert rest == moves[1:2]

    def test_the_extra_samplers_add_no_noise_and_are_known_by_name(self, pipe):
        cells = sweeps.converge(
            pipe, ["DPM++ 2S"], ["ab"], [1], guidance_scale=1.0, evaluations=(5, 47), reference=24, long=3
        )
        few, many = cells
        assert (few.sampler, few.steps, few.evaluations) == ("DPM++ 2S", 3, 5)
        assert many.own < few.own and many.own == many.limit

    def test_hard_prompts_hold_a_pair_that_training_never_saw(self):
        from companion.tabletop.scene import WITHHELD

        scenes = sweeps.hard_scenes(8)
        assert all(len(scene.things) == 2 for scene in scenes)
        assert all(any((t.kind, t.finish) in WITHHELD for t in scene.things) for scene in scenes)
        with pytest.raises(ValueError, match="there are no prompts 'harder'; did you mean 'hard'"):
            sweeps._scenes("harder", 20)
        with pytest.raises(ValueError, match="pictures=12 is outside 13 to 128"):
            sweeps._scenes("hard", 12)

    def test_the_controls_fail_and_the_renders_pass(self):
        renders, blurred, another = sweeps.controls(16)
        assert sum(renders.met) >= 14 and sum(blurred.met) <= 8 and sum(another.met) <= 2
        assert sweeps.paired_difference(blurred.frechet, renders.frechet)[0] > 0.2

    def test_shares_of_the_frechet_distance_average_to_it(self, monkeypatch):
        """On Gaussian features whose distance is known: N(0, 1) and N(0.5, 1) are 0.25 a dimension apart."""
        g = torch.Generator().manual_seed(0)
        theirs, ours = torch.randn(4000, 2, generator=g), torch.randn(400, 2, generator=g) + 0.5
        monkeypatch.setattr(sweeps, "_renders_features", lambda n, parts: (torch.zeros(2), torch.eye(2), theirs))
        monkeypatch.setattr(sweeps.measures, "picture_features", lambda pictures: ours)
        mean, low, high = mean_interval(sweeps.to_renders(torch.zeros(400, 3, 1, 1)))
        assert low < 0.5 < high and mean == pytest.approx(0.5, abs=0.12) and high - low < 0.5

    def test_the_judge_is_asked_only_about_its_world(self, pipe):
        with pytest.raises(ValueError, match="The judge knows the miniature world only"):
            next(sweeps.appraise(pipe, guidance_scale=2.0))

    def test_a_sweep_is_stored_whole_and_known_by_its_weights(self, tmp_path, monkeypatch):
        path = tmp_path / "samplers.json"
        assert sweeps.stored("sd15", path)[0] is None
        assert "No long sweep is stored" in sweeps.stored("tabletop", path)[1]
        with pytest.raises(FileNotFoundError, match="make it with `companion samplers`"):
            sweeps.Sweep.load(path)
        found = sweeps.Sweep("abc", {"seeds": 1}, [row("Euler", 5, 0.1)], quality=[judged("UniPC", 5, 1, of=1)])
        found.save(path)
        assert sweeps.Sweep.load(path) == found
        assert "not whole" in sweeps.stored("tabletop", path)[1]
        found.rows = [row(name, 5, 0.1) for name in sm.SAMPLERS]
        found.save(path)
        assert "not whole" in sweeps.stored("tabletop", path)[1]  # no movements yet
        found.turned, found.moves = [row("Euler", 5, 0.1)], [sweeps.Move("Euler a", 8, 16, [0.1])]
        found.save(path)
        monkeypatch.setattr(sweeps, "weights_sum", lambda folder: "abc")
        again, note = sweeps.stored("tabletop", path)
        assert again == found and "of these weights" in note
        monkeypatch.setattr(sweeps, "weights_sum", lambda folder: "other")
        assert "OTHER WEIGHTS" in sweeps.stored("tabletop", path)[1]

    def test_a_stopped_sweep_goes_on_and_other_weights_begin_anew(self, pipe, tmp_path, monkeypatch):
        from companion import models

        def readings(pipe, names, *, evaluations, done, prompts, guidance_scale, pictures):
            asked.append((prompts, guidance_scale))
            cells = [cell for cell in sweeps.cells(names, evaluations) if cell not in done]
            return (judged(*cell, 1, prompts=prompts, guidance=guidance_scale) for cell in cells)

        weights, asked = "abc", []
        monkeypatch.setattr(models, "load", lambda name, device, dtype: pipe)
        monkeypatch.setattr(sweeps, "PROMPTS", ("ab", "cd"))
        monkeypatch.setattr(sweeps, "EVALUATIONS", (2,))
        monkeypatch.setattr(sweeps, "DOUBLED", (2, 4, 8))
        monkeypatch.setattr(sweeps, "weights_sum", lambda folder: weights)
        monkeypatch.setattr(sweeps, "appraise", readings)
        short = sweeps.converge
        monkeypatch.setattr(sweeps, "converge", lambda *a, **k: short(*a, **k, reference=2, long=3))
        path = tmp_path / "samplers.json"
        first = list(itertools.islice(sweeps.sweep(path, seeds=1), 3))
        assert [done for done, _, _ in first] == [1, 2, 3]
        *_, (done, total, found) = sweeps.sweep(path, seeds=1)
        names = [row.sampler for row in found.rows]
        assert len(names) == len(set(names)) and done == total
        assert set(names) == set(sweeps.measured_names()) >= {*sm.SAMPLERS, "DPM++ 2S"} - {"DPM (first order)"}
        assert {row.guidance for row in found.turned} == {1.0, 7.5}
        assert {move.sampler for move in found.moves} == set(sweeps.moved_names())
        assert set(asked) == {("held out", 3.0), ("hard", 3.0), ("held out", 7.5)}
        assert "CPU" in found.setting["device"]
        assert sweeps.Sweep.load(path) == found and list(sweeps.sweep(path, seeds=1)) == []
        weights = "other"
        assert next(sweeps.sweep(path, seeds=1))[0] == 1

    def test_the_checksum_is_of_all_weights(self, tmp_path):
        for part in ("unet", "vae"):
            (tmp_path / part).mkdir()
            (tmp_path / part / "model.safetensors").write_bytes(part.encode())
        before = sweeps.weights_sum(tmp_path)
        assert before == sweeps.weights_sum(tmp_path)
        (tmp_path / "vae" / "model.safetensors").write_bytes(b"other")
        assert before != sweeps.weights_sum(tmp_path)


class TestVerdicts:
    def test_the_nearest_cost_not_above(self):
        rows = [row("Heun", n, 0.1) for n in (5, 9, 19, 29)]
        assert [sweeps.pick(rows, "Heun", n).evaluations for n in (20, 19, 4, 99)] == [19, 19, 5, 29]
        with pytest.raises(ValueError, match="Hen was not measured; did you mean 'Heun'"):
            sweeps.pick(rows, "Hen", 5)

    def test_good_enough_stays_good(self):
        rows = [row("Heun", n, d, d) for n, d in ((5, 0.01), (9, 0.5), (19, 0.05), (29, 0.02))]
        assert sweeps.good_enough(rows, "Heun", 0.1) == 19
        assert sweeps.good_enough(rows, "Heun", 0.001) is None

    @pytest.mark.parametrize(
        ("own", "verdict"), [((0.01, 0.011, 0.012), "holds"), ((0.2, 0.21, 0.22), "fails"), ((0.01, 0.1, 0.2), "open")]
    )
    def test_a_claim_can_come_out_every_way(self, own, verdict):
        rows = [row(name, n, *own) for name in ("Euler", "DPM++ 2M", "UniPC") for n in (10, 20, 30)]
        found = verdicts(sweeps.claims(rows, [], 0.05))
        assert found["UniPC: converged at 20 to 30 steps"] == verdict
        assert found["DPM++ 2M is faster than Euler, even timesteps"] == "open"  # equal in every picture

    def test_a_range_is_judged_at_its_worst(self):
        assert sweeps.at_worst(["holds", "open", "holds"]) == "open"
        assert sweeps.at_worst(["open", "fails", "holds"]) == "fails"
        assert sweeps.at_worst(["holds"]) == "holds" and sweeps.at_worst([]) == sweeps.NOT_MEASURED
        near, far = (0.01, 0.011, 0.012), (0.2, 0.21, 0.22)
        rows = [row("UniPC", 20, *far), row("UniPC", 30, *near), row("UniPC", 10, *far)]
        assert verdicts(sweeps.claims(rows, [], 0.05))["UniPC: converged at 20 to 30 steps"] == "fails"
        rows[0] = row("UniPC", 20, *near)  # at 10 it may be as far off as it likes
        assert verdicts(sweeps.claims(rows, [], 0.05))["UniPC: converged at 20 to 30 steps"] == "holds"

    @pytest.mark.parametrize(("factor", "verdict"), [(1.0, "holds"), (0.6, "fails"), (0.85, "open")])
    def test_no_convergence_is_a_trend(self, factor, verdict):
        """How far the pictures move matters less than whether they move less with every doubling of the steps."""
        base = (0.4, 0.5, 0.45, 0.55, 0.5)
        # Broken pictures move a lot as they mend: what happens below 16 steps must not count.
        moves = [sweeps.Move("Euler a", 8, 16, seeds(9 * v for v in base))]
        for k, steps in enumerate((16, 32, 64)):
            noise = [1.02, 0.98, 1.0, 1.01, 0.99][k:] + [1.02, 0.98, 1.0, 1.01, 0.99][:k]
            moved = seeds(v * factor**k * e for v, e in zip(base, noise, strict=True))
            moves.append(sweeps.Move("Euler a", steps, 2 * steps, moved))
        (claim,) = [c for c in sweeps.claims([], [], 0.05, moves) if "keeps moving" in c.statement]
        assert (claim.statement, claim.verdict) == ("Euler a: keeps moving", verdict)
        assert f"times {factor:.2f}" in claim.measured and "from 16 on" in claim.measured
        few = [c for c in sweeps.claims([], [], 0.05, moves[:2]) if c.statement == "Euler a: keeps moving"]
        assert few[0].verdict == sweeps.NOT_MEASURED

    def test_what_no_run_was_about_is_not_measured(self):
        rows = [row(name, n, 0.1, 0.11) for name in ("Euler", "Heun", "UniPC") for n in (6, 12)]
        assert {c.verdict for c in sweeps.claims([], [], 0.05)} == {sweeps.NOT_MEASURED}
        found = verdicts(sweeps.claims(rows, [judged("DDIM", 20, 13, of=13), judged("UniPC", 4, 13, of=13)], 0.05))
        assert found["UniPC: converged at 20 to 30 steps"] == sweeps.NOT_MEASURED
        assert found["DDIM: good pictures in 10 to 15 steps"] == sweeps.NOT_MEASURED
        assert found["DPM2 is worth its price beside DPM, Karras' levels"] == sweeps.NOT_MEASURED
        assert found["Heun: fewer steps make up for its price, even timesteps"] == "open"

    def test_solvers_are_compared_at_equal_cost_and_equal_schedules(self):
        spread = (1.0, 1.1, 0.9)
        rows = [row("Euler", n, *(0.3 * v for v in spread)) for n in (6, 10, 20)]
        # Far behind at 6 evaluations, which nobody speaks of, and ahead from 10 on.
        rows += [row("Heun", n, *(d * v for v in spread)) for n, d in ((5, 9.0), (9, 0.2), (19, 0.1))]
        statement = "Heun: fewer steps make up for its price, even timesteps"
        (claim,) = [c for c in sweeps.claims(rows, [], 0.05) if c.statement == statement]
        assert claim.verdict == "holds"
        assert claim.measured == (
            "times Euler's distance, by evaluations: 0.67 (0.67 to 0.67) at 10, 0.33 (0.33 to 0.33) at 20"
        )
        rows += [
            row("Heun Karras", 19, *(0.1 * v for v in spread)),
            row("Euler Karras", 20, *(0.05 * v for v in spread)),
        ]
        found = verdicts(sweeps.claims(rows, [], 0.05))
        assert found["Heun: fewer steps make up for its price, Karras' levels"] == "fails"
        assert found[statement] == "holds"
        for a, b in [pair[1:] for pair in sweeps.NEARER]:
            one, two = sweeps.sampler_of(a), sweeps.sampler_of(b)
            assert one.levels == two.levels or one.function == two.function or "DDIM" in b or "PLMS" in b

    def test_accuracy_is_compared_step_for_step_too(self):
        rows = [row("Euler", 10, 0.3, 0.33), row("DPM2", 19, 0.1, 0.12), row("DPM2", 9, 0.5, 0.52)]
        found = verdicts(sweeps.claims(rows, [], 0.05))
        assert found["DPM2 is more accurate than DPM step for step, even timesteps"] == "holds"
        assert found["DPM2 is worth its price beside DPM, even timesteps"] == "fails"

    def test_plms_and_ddim_are_compared_at_every_guidance(self):
        rows = [row("PLMS", 10, 0.1, 0.11), row("DDIM", 10, 0.2, 0.21)]
        strong = [
            dataclasses.replace(r, guidance=7.5) for r in (row("PLMS", 10, 0.9, 0.91), row("DDIM", 10, 0.2, 0.21))
        ]
        found = verdicts(sweeps.claims(rows, [], 0.05, turned=strong))
        assert found["PLMS is faster than DDIM, guidance 3"] == "holds"
        assert found["PLMS is faster than DDIM, guidance 7.5"] == "fails"

    def test_distances_have_verdicts_at_another_guidance_where_it_was_measured(self):
        near, far = (0.01, 0.011, 0.012), (0.2, 0.21, 0.22)
        rows = [row("UniPC", 20, *near)]
        strong = [dataclasses.replace(row("UniPC", 20, *far), guidance=7.5)]
        found = verdicts(sweeps.claims(rows, [], 0.05, turned=strong))
        assert found["UniPC: converged at 20 to 30 steps"] == "holds"
        assert found["UniPC: converged at 20 to 30 steps, guidance 7.5"] == "fails"
        assert not any("Heun" in statement for statement in found if "guidance" in statement), "there it was not run"

    def test_where_in_a_range_a_verdict_is_another_is_told(self):
        rows = [row("Euler", n, 0.3, 0.33, 0.27) for n in (10, 20)]
        rows += [row("DPM++ 2M", 10, 0.6, 0.66, 0.54), row("DPM++ 2M", 20, 0.1, 0.11, 0.09)]
        statement = "DPM++ 2M is faster than Euler, even timesteps"
        (claim,) = [c for c in sweeps.claims(rows, [], 0.05) if c.statement == statement]
        assert claim.verdict == "fails" and claim.measured.endswith("; fails at 10; holds at 20")

    def test_quality_is_compared_picture_by_picture(self):
        """The same prompts from the same seeds: what both met or missed says nothing about which is better."""
        quality = [judged("DPM++ 2M Karras", 40, 51), judged("UniPC", 20, 53)]
        assert verdicts(sweeps.claims([], quality, 0.05))["UniPC: decent quality in 20 to 30 steps"] == "holds"
        quality[1] = dataclasses.replace(quality[1], met=quality[1].met[::-1])  # as many, but other pictures
        assert verdicts(sweeps.claims([], quality, 0.05))["UniPC: decent quality in 20 to 30 steps"] == "open"

    def test_what_is_slow_is_counted(self):
        adaptive = dataclasses.replace(row("DPM adaptive", 36, 0.1, 0.1), steps=30, seconds=0.9)
        rows = [adaptive, row("DPM++ SDE", 19, 0.1, 0.1), row("Euler", 10, 0.1, 0.1), row("Euler", 30, 0.1, 0.1)]
        found = {claim.statement: claim for claim in sweeps.claims(rows, [], 0.05)}
        slow = found["DPM adaptive is slow: more evaluations than 30 steps of Euler"]
        assert slow == (slow.statement, "36 evaluations, 0.90 s a picture; Euler 0.01 s for 30", "holds")
        assert found["DPM++ SDE is slow: a step costs more than Euler's"].verdict == "holds"
        assert "1.9 evaluations a step at 10" in found["DPM++ SDE is slow: a step costs more than Euler's"].measured
        rows[0] = dataclasses.replace(adaptive, evaluations=24)
        assert verdicts(sweeps.claims(rows, [], 0.05))[slow.statement] == "fails"

    def test_quality_is_measured_by_a_yardstick_over_the_range(self):
        quality = [
            judged("DPM++ 2M Karras", 40, 62),
            judged("Euler", 40, 64),  # better, but not chosen beforehand
            judged("UniPC", 5, 20),
            judged("UniPC", 10, 63),
            judged("UniPC Karras", 5, 63),
            judged("UniPC Karras", 10, 63),
            judged("DDIM", 15, 10),
            judged("DPM++ SDE Karras", 8, 59, evaluations=15),
        ]
        found = {claim.statement: claim for claim in sweeps.claims([], quality, 0.05)}
        assert found["UniPC: high quality in 5 to 10 steps"].verdict == "fails"  # at 5, though it holds at 10
        assert found["UniPC Karras: high quality in 5 to 10 steps"].verdict == "holds"
        assert found["DDIM: good pictures in 10 to 15 steps"].verdict == "fails"
        assert found["DPM++ SDE Karras: good pictures in 8 to 12 steps"].verdict == "open"
        text = "20 at 5, 63 at 10 steps, of 64; 62 by DPM++ 2M Karras at 40"
        assert found["UniPC: high quality in 5 to 10 steps"].measured == text

    def test_hard_prompts_and_strong_guidance_have_verdicts_of_their_own(self):
        quality = [judged("PLMS", 9, 60, evaluations=10), judged("DDIM", 10, 30)]
        quality += [judged("PLMS", 9, 5, evaluations=10, guidance=7.5), judged("DDIM", 10, 60, guidance=7.5)]
        quality += [judged("DDIM", 10, 60, prompts="hard")]
        found = verdicts(sweeps.claims([], quality, 0.05))
        assert found["PLMS draws better than DDIM [held out, guidance 3]"] == "holds"
        assert found["PLMS draws better than DDIM [held out, guidance 7.5]"] == "fails"
        assert "PLMS draws better than DDIM [hard, guidance 3]" not in found

    def test_the_best_must_beat_everyone_by_both_measures(self):
        low, high = [0.1 + 0.01 * (i % 3) for i in range(64)], [0.4 + 0.01 * (i % 5) for i in range(64)]
        quality = [judged("DPM++ SDE", 8, 60, *low, evaluations=15), judged("Euler", 15, 30, *high)]
        found = verdicts(sweeps.claims([], quality, 0.05))
        assert found["DPM++ SDE: the best in quality, by prompts met"] == "holds"
        assert found["DPM++ SDE: the best in quality, by Fréchet distance"] == "holds"
        quality.append(judged("DDIM", 15, 64, *[0.01 * (i % 4) for i in range(64)]))
        found = {claim.statement: claim for claim in sweeps.claims([], quality, 0.05)}
        best = found["DPM++ SDE: the best in quality, by Fréchet distance"]
        assert best.verdict == "fails" and "behind DDIM at 15" in best.measured
        assert found["DPM++ SDE: the best in quality, by prompts met"].verdict == "open"

    def test_many_verdicts_hold_some_chance(self):
        words = ["holds"] * 8 + ["fails"] * 2 + ["open"] * 10 + [sweeps.NOT_MEASURED] * 9
        assert sweeps.by_chance([sweeps.Claim("a", "", word) for word in words]) == pytest.approx(0.5)

    def test_two_seeds_of_a_prompt_count_once(self):
        """They are near each other, so their spread says little about other prompts."""
        a, b = [0.2, 0.2, 0.4, 0.4, 0.9, 0.9], [0.1] * 6
        assert sweeps.by_prompt([0.1, 0.4, 0.3, 0.3], geometric=True) == pytest.approx([0.2, 0.3])
        assert sweeps.by_prompt([0.1, 0.4, 0.3, 0.3]) == pytest.approx([0.25, 0.3])
        assert sweeps.ratio(a, b) == pytest.approx(sweeps.paired_ratio([2, 4, 9], [1, 1, 1]))
        single = sweeps.paired_ratio([0.2, 0.4], [0.1, 0.1])
        assert sweeps.ratio([0.2, 0.4], [0.1, 0.1]) == pytest.approx(single)
