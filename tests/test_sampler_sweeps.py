"""Sweeps: what is measured of each sampler, how it is stored, and the verdicts on the guide's advice."""

from __future__ import annotations

import itertools

import pytest

import companion
from companion import sampler_sweeps as sweeps
from companion import samplers as sm


@pytest.fixture(scope="module")
def pipe(tiny):
    return companion.load(tiny, device="cpu")


def row(name: str, evaluations: int, *own: float, limit: float | None = None) -> sweeps.Row:
    distances = [limit] * len(own) if limit is not None else list(own)
    return sweeps.Row(name, evaluations, evaluations, distances, list(own), distances, [], 0.01)


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
        assert all(r.features == [] for r in rows)  # the judge cannot read pictures of 32 pixels

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
        assert [(r.sampler, r.evaluations) for r in cells] == [("UniPC", 3)]

    def test_the_judge_is_asked_only_about_its_world(self, pipe):
        with pytest.raises(ValueError, match="The judge knows the miniature world only"):
            next(sweeps.appraise(pipe, guidance_scale=2.0))

    def test_a_sweep_is_stored_whole_and_known_by_its_weights(self, tmp_path, monkeypatch):
        path = tmp_path / "samplers.json"
        assert sweeps.stored("sd15", path)[0] is None
        assert "No long sweep is stored" in sweeps.stored("tabletop", path)[1]
        with pytest.raises(FileNotFoundError, match="make it with `companion samplers`"):
            sweeps.Sweep.load(path)
        found = sweeps.Sweep("abc", {"seeds": 1}, [row("Euler", 5, 0.1)], [sweeps.Quality("UniPC", 5, 5, [True], 0.2)])
        found.save(path)
        assert sweeps.Sweep.load(path) == found
        assert "not whole" in sweeps.stored("tabletop", path)[1]
        found.rows = [row(name, 5, 0.1) for name in sm.SAMPLERS]
        found.save(path)
        monkeypatch.setattr(sweeps, "weights_sum", lambda folder: "abc")
        again, note = sweeps.stored("tabletop", path)
        assert again == found and "of these weights" in note
        monkeypatch.setattr(sweeps, "weights_sum", lambda folder: "other")
        assert "OTHER WEIGHTS" in sweeps.stored("tabletop", path)[1]

    def test_a_stopped_sweep_goes_on_and_other_weights_begin_anew(self, pipe, tmp_path, monkeypatch):
        from companion import models

        def judged(pipe, *, done, **settings):
            return (sweeps.Quality(n, 2, 2, [True], 0.1) for n in sweeps.JUDGED[:2] if (n, 2) not in done)

        weights = "abc"
        monkeypatch.setattr(models, "load", lambda name: pipe)
        monkeypatch.setattr(sweeps, "PROMPTS", ("ab", "cd"))
        monkeypatch.setattr(sweeps, "EVALUATIONS", (2,))
        monkeypatch.setattr(sweeps, "weights_sum", lambda folder: weights)
        monkeypatch.setattr(sweeps, "appraise", judged)
        short = sweeps.converge
        monkeypatch.setattr(
            sweeps, "converge", lambda *a, **k: short(*a, **k, evaluations=sweeps.EVALUATIONS, reference=2, long=3)
        )
        path = tmp_path / "samplers.json"
        first = list(itertools.islice(sweeps.sweep(path, seeds=1), 3))
        assert [done for done, _, _ in first] == [1, 2, 3]
        *_, (done, _, found) = sweeps.sweep(path, seeds=1)
        names = [row.sampler for row in found.rows]
        assert done == len(names) + 2 and len(names) == len(set(names))
        assert set(names) == {*sm.SAMPLERS, "Heun Karras"} - {"DPM (first order)"}
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
        names = ("Euler", "Heun", "DPM++ 2M Karras", "UniPC", "Euler a")
        rows = [row(name, n, *own) for name in names for n in (10, 20, 30)]
        found = {claim.statement: claim.verdict for claim in sweeps.claims(rows, [], 0.05)}
        assert found["UniPC: converged at 20 to 30 steps"] == verdict
        opposite = {"holds": "fails", "fails": "holds", "open": "open"}
        assert found["Euler a: does not converge"] == opposite[verdict]
        assert found["DPM++ 2M Karras is fast"] == "open"  # equal to Euler in every picture

    def test_what_no_run_was_about_is_not_measured(self):
        names = ("Euler", "Heun", "DPM++ 2M Karras", "UniPC")
        rows = [row(name, n, 0.1, 0.11) for name in names for n in (6, 12)]
        quality = [sweeps.Quality("DDIM", 20, 20, [True] * 13, 0.5), sweeps.Quality("UniPC", 4, 4, [True] * 13, 0.5)]
        quality.append(sweeps.Quality("DPM++ SDE Karras", 5, 9, [True] * 13, 0.5))
        verdicts = [claim.verdict for claim in sweeps.claims(rows, quality, 0.05)]
        assert verdicts.count(sweeps.NOT_MEASURED) == 6

    def test_claims_of_speed_and_of_quality(self):
        rows = [row(name, n, 0.1, 0.11) for name in ("DPM++ 2M Karras", "UniPC") for n in (20, 30)]
        rows += [row("Euler", 20, 0.3, 0.32), row("Heun", 19, 0.9, 0.91)]
        quality = [
            sweeps.Quality("Euler", 30, 30, [True] * 60 + [False] * 4, 0.5),
            sweeps.Quality("UniPC", 10, 10, [True] * 63 + [False], 0.5),
            sweeps.Quality("DDIM", 15, 15, [True] * 10 + [False] * 54, 2.0),
            sweeps.Quality("DPM++ SDE Karras", 10, 19, [True] * 57 + [False] * 7, 0.6),
        ]
        found = {claim.statement: claim for claim in sweeps.claims(rows, quality, 0.05)}
        assert found["DPM++ 2M Karras is fast"].verdict == "holds"
        assert found["Heun: fewer steps make up for its price"].verdict == "fails"
        assert found["UniPC: high quality in 5 to 10 steps"].verdict == "holds"
        assert found["DDIM: good pictures in 10 to 15 steps"].verdict == "fails"
        assert found["DPM++ SDE Karras: good pictures in 8 to 12 steps"].verdict == "open"
        assert (
            "10 of 64 as asked at 15 steps; 60 by the best" in found["DDIM: good pictures in 10 to 15 steps"].measured
        )
