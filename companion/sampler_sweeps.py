"""Sweeps of notebook 02: each sampler at several numbers of model evaluations, and a test of the guide's advice.

    rows = list(converge(pipe, ["Euler", "DPM++ 2M Karras"], *crossed(PROMPTS, 2), guidance_scale=3.0))
    quality = list(appraise(pipe, ["DDIM"], guidance_scale=3.0))
    claims(rows, quality, small=0.05)

`companion samplers` stores a long sweep in data/results/samplers.json, with a checksum of the weights.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import companion
from companion import diffusion
from companion.files import sha256, written
from companion.intervals import mean_interval, paired_ratio, share_difference
from companion.metrics import frechet
from companion.samplers import (
    SAMPLERS,
    Denoiser,
    dpm_1,
    dpm_adaptive,
    dpm_fast,
    find_sampler,
    sigmas_for,
    solve,
    start,
)
from companion.schedules import nearest
from companion.tabletop import measures

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

# ---- Drawing and measuring -------------------------------------------------------------------------------------------

#: The prompts of the sweeps: all places and times; one thing, or two beside, in front of and behind each other.
PROMPTS = (
    "a red ball on grass by day",
    "a gold robot left of a blue house on snow at sunset",
    "a green tree on sand at night",
    "a yellow cone in front of a purple house on brick at sunset",
    "a glass cube on water by day",
    "a blue car behind a white mushroom on grass by day",
)
#: The numbers of model evaluations per picture at which samplers are compared.
EVALUATIONS = (6, 10, 15, 20, 30)
#: Each stochastic sampler is compared with its own picture after this many evaluations.
LONG = 60
#: The guide (stable-diffusion-art.com/samplers) compared all samplers with Euler's picture after this many steps.
GUIDE_STEPS = 40
#: The samplers whose pictures the judge reads; the others are compared by distances alone.
JUDGED = (
    "Euler",
    "Euler a",
    "Heun Karras",
    "DDIM",
    "PLMS",
    "LMS Karras",
    "DPM++ 2M Karras",
    "DPM++ SDE Karras",
    "UniPC",
    "UniPC Karras",
)


@dataclass(frozen=True)
class Row:
    """One sampler with one number of evaluations; the lists have a number for each picture.

    Attributes:
        limit: RMS distance of the latents to the end of the exact path, which is the same for all samplers.
        own: to the sampler's own limit: the exact path where it stops, or its latents after `LONG` if it is stochastic.
        guide: to Euler's latents after 40 steps, the guide's only reference.
        features: Euclidean distance to the same end as `limit` in the judge's features; empty without a judge.
        seconds: for each picture, without decoding it.
    """

    sampler: str
    steps: int
    evaluations: int
    limit: list[float]
    own: list[float]
    guide: list[float]
    features: list[float]
    seconds: float


@dataclass(frozen=True)
class Quality:
    """The judge's verdict on a sampler: whether each picture `met` its prompt, and the Fréchet distance to renders."""

    sampler: str
    steps: int
    evaluations: int
    met: list[bool]
    frechet: float


def apart(a: Tensor, b: Tensor) -> list[float]:
    """Root-mean-square distances between a and b, both (N, ...): N numbers, rounded to five decimals."""
    return [round(v, 5) for v in ((a - b).flatten(1) ** 2).mean(1).sqrt().tolist()]


def crossed(prompts: Sequence[str], seeds: int) -> tuple[list[str], list[int]]:
    """Every prompt with each of the seeds 0 to `seeds` - 1: the prompts and the seeds, one of each per picture."""
    return [p for p in prompts for _ in range(seeds)], list(range(seeds)) * len(prompts)


def denoiser(pipe: StableDiffusionPipeline, prompts: str | Sequence[str], guidance_scale: float) -> Denoiser:
    """A `Denoiser` on the fast path where that is available, which pays off over many calls (equal to 1e-5)."""
    try:
        from companion.fast import Fast

        return Denoiser(pipe, prompts, guidance_scale, unet=Fast(pipe).noise_pred)
    except (ImportError, LookupError):
        return Denoiser(pipe, prompts, guidance_scale)


def converge(
    pipe: StableDiffusionPipeline,
    names: Sequence[str],
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    guidance_scale: float,
    evaluations: Sequence[int] = EVALUATIONS,
    reference: int = 100,
    long: int = LONG,
    done: Sequence[tuple[str, int]] = (),
) -> Iterator[Row]:
    """Draw the same pictures with each sampler and number of evaluations, and measure distances; yields a row for each.

    The pictures share a batch. Prompts are encoded, and the references computed, once for all samplers.

    Args:
        prompts, seeds: one of each for every picture.
        reference: steps of Heun on Karras' levels, about two evaluations each, that stand in for the exact path.
        done: pairs (sampler, evaluations) to leave out.
    """
    names = [find_sampler(name).name for name in names]
    wanted = [(name, n) for name in names for n in evaluations if (name, n) not in set(done)]
    if not wanted:
        return
    model, seeds = denoiser(pipe, prompts, guidance_scale), list(seeds)
    judged = measures.can_be_judged(pipe)

    def end(name: str, steps: int) -> tuple[Tensor, int, float]:
        begin, before = time.perf_counter(), model.evaluations
        sigmas = sigmas_for(name, model.levels, steps)
        *_, last = solve(model, start(pipe, seeds, sigmas), sigmas, name, seeds=seeds)
        return last.x, model.evaluations - before, (time.perf_counter() - begin) / len(seeds)

    sigmas = sigmas_for("Heun Karras", model.levels, reference)
    *_, low, last = solve(model, start(pipe, seeds, sigmas), sigmas, "Heun Karras")
    guide = end("Euler", GUIDE_STEPS)[0]
    seen = _features(pipe, last.x) if judged else torch.zeros(())
    owns: dict[str, Tensor] = {}
    for name, n in wanted:
        sampler = find_sampler(name)
        if name not in owns:
            stops = sampler.ends_low or sampler.function in (dpm_fast, dpm_adaptive)
            owns[name] = end(name, sampler.steps_for(long))[0] if sampler.stochastic else low.x if stops else last.x
        x, spent, seconds = end(name, sampler.steps_for(n))
        features = [round(v, 4) for v in (_features(pipe, x) - seen).norm(dim=1).tolist()] if judged else []
        yield Row(
            name,
            sampler.steps_for(n),
            spent,
            apart(x, last.x),
            apart(x, owns[name]),
            apart(x, guide),
            features,
            round(seconds, 4),
        )


def _features(pipe: StableDiffusionPipeline, latents: Tensor) -> Tensor:
    return measures.picture_features(diffusion.decode(pipe, latents))


def appraise(
    pipe: StableDiffusionPipeline,
    names: Sequence[str] = JUDGED,
    *,
    guidance_scale: float,
    pictures: int = 64,
    evaluations: Sequence[int] = EVALUATIONS,
    done: Sequence[tuple[str, int]] = (),
) -> Iterator[Quality]:
    """Draw the captions of held-out scenes, each from its own seed, and have the judge read the pictures.

    Leaves out the pairs (sampler, evaluations) in `done`. Raises ValueError for a model whose pictures the judge cannot
    read, and unless `pictures` is 13 to 256.
    """
    from companion.tabletop.caption import Wish, caption
    from companion.tabletop.samples import held_out

    if not measures.can_be_judged(pipe):
        raise ValueError(measures.NOT_JUDGED)
    _, scenes = held_out(pictures)
    seeds = list(range(pictures))
    model = denoiser(pipe, [caption(scene) for scene in scenes], guidance_scale)
    wishes = [Wish.of(scene) for scene in scenes]
    for name, n in ((name, n) for name in names for n in evaluations if (name, n) not in set(done)):
        sampler, before = find_sampler(name), model.evaluations
        sigmas = sigmas_for(name, model.levels, sampler.steps_for(n))
        *_, last = solve(model, start(pipe, seeds, sigmas), sigmas, name, seeds=seeds)
        drawn = diffusion.decode(pipe, last.x)
        met = [reading.meets(wish)["all"] for reading, wish in zip(measures.read(drawn), wishes, strict=True)]
        yield Quality(name, sampler.steps_for(n), model.evaluations - before, met, round(to_renders(drawn), 3))


def to_renders(pictures: Tensor, parts: int = 12) -> float:
    """Fréchet distance of pictures to held-out renders, in the first `parts` principal components of their features.

    With few pictures the covariance of all 160 features cannot be estimated. Compare only equal numbers of pictures.
    """
    middle, directions, theirs = _renders_features(parts)
    return frechet((measures.picture_features(pictures) - middle) @ directions, theirs)


@lru_cache
def _renders_features(parts: int) -> tuple[Tensor, Tensor, Tensor]:
    from companion.tabletop.samples import held_out

    features = measures.picture_features(held_out()[0])
    middle = features.mean(0)
    _, _, directions = torch.linalg.svd(features - middle, full_matrices=False)
    return middle, directions[:parts].T, (features - middle) @ directions[:parts].T


# ---- Stored sweeps ---------------------------------------------------------------------------------------------------

COMMAND = "companion samplers"


@dataclass
class Sweep:
    """All measurements of one model, with the weights' checksum and the settings."""

    weights: str
    setting: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    quality: list[Quality] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write it as JSON, one row per line."""
        head = {"command": COMMAND, "weights": self.weights, "setting": self.setting}
        parts = [f'"{key}": {json.dumps(value)}' for key, value in head.items()]
        for key in ("rows", "quality"):
            lines = ",\n".join(json.dumps(vars(row), ensure_ascii=False) for row in getattr(self, key))
            parts.append(f'"{key}": [\n{lines}\n]')
        with written(path) as temporary:
            temporary.write_text("{" + ",\n".join(parts) + "}\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Sweep:
        """Read what `save` wrote. Raises FileNotFoundError, which names the command that makes it."""
        if not path.is_file():
            raise FileNotFoundError(f"{path.name} is not in {path.parent.name}/; make it with `{COMMAND}`")
        data = json.loads(path.read_text(encoding="utf-8"))
        rows, quality = [Row(**row) for row in data["rows"]], [Quality(**row) for row in data["quality"]]
        return cls(data["weights"], data["setting"], rows, quality)


def results() -> Path:
    """The path of the stored sweep of the course's own model."""
    return companion.DATA / "results" / "samplers.json"


def weights_sum(folder: Path) -> str:
    """A checksum (16 hexadecimal digits) of all weights in a pipeline's folder; a sweep holds only for its weights."""
    sums = [sha256(path) for path in sorted(folder.glob("*/*.safetensors"))]
    return hashlib.sha256("".join(sums).encode()).hexdigest()[:16]


def stored(name: str, path: Path | None = None) -> tuple[Sweep | None, str]:
    """The stored sweep of the course's own model, and a sentence that says whether it is of the present weights.

    The sweep is None for another model, and when it is missing or incomplete.
    """
    path = path or results()
    if name != "tabletop":
        return None, "Stored sweeps are of the course's own model: what follows was measured above."
    if not path.is_file():
        return (
            None,
            f"No long sweep is stored (`{COMMAND}` makes one): what follows was measured above, on few pictures.",
        )
    found = Sweep.load(path)
    measured = {row.sampler for row in found.rows}
    if not measured.issuperset(SAMPLERS.keys() - {"DPM (first order)"}) or not found.quality:
        return None, f"The stored sweep is not whole (`{COMMAND}` goes on with it): what follows was measured above."
    if found.weights != weights_sum(companion.DATA / "models" / name):
        return (
            found,
            f"NOTE: the stored sweep is of OTHER WEIGHTS than those in data/models; `{COMMAND}` makes it anew.",
        )
    return (
        found,
        f"The stored sweep is of these weights: {len(found.rows)} cells of {len(found.rows[0].limit)} pictures.",
    )


def sweep(path: Path | None = None, *, seeds: int = 2, pictures: int = 64) -> Iterator[tuple[int, int, Sweep]]:
    """Measure every sampler with the course's model; yields (cells done, cells in all, sweep) once each cell is stored.

    A cell is a sampler and a number of evaluations. Cells stored with the same weights and settings are not redone.
    """
    from companion.models import find as find_model
    from companion.models import load

    path = path or results()
    entry = find_model("tabletop")
    names = [name for name, sampler in SAMPLERS.items() if sampler.function is not dpm_1]  # dpm_1 is Euler
    names.insert(names.index("LMS"), "Heun Karras")
    setting = {"prompts": list(PROMPTS), "seeds": seeds, "pictures": pictures, "guidance_scale": entry.guidance}
    found = Sweep(weights_sum(companion.DATA / "models" / entry.name), setting)
    if path.is_file() and (old := Sweep.load(path)) and (old.weights, old.setting) == (found.weights, setting):
        found = old
    pipe = load("tabletop")
    prompts, repeated = crossed(PROMPTS, seeds)
    # `done` names cells by the evaluations asked for, of which some samplers use one fewer; rows only have the steps.
    asked = {
        (find_sampler(n).name, find_sampler(n).steps_for(e)): (n, e) for n in (*names, *JUDGED) for e in EVALUATIONS
    }
    done = [[asked[row.sampler, row.steps] for row in part] for part in (found.rows, found.quality)]
    total = (len(names) + len(JUDGED)) * len(EVALUATIONS)
    cells = converge(pipe, names, prompts, repeated, guidance_scale=entry.guidance, done=done[0])
    appraised = appraise(pipe, guidance_scale=entry.guidance, pictures=pictures, done=done[1])
    for cell in itertools.chain(cells, appraised):
        if isinstance(cell, Row):
            found.rows.append(cell)
        else:
            found.quality.append(cell)
        found.save(path)
        yield len(found.rows) + len(found.quality), total, found


# ---- What the numbers say --------------------------------------------------------------------------------------------


def pick(rows: Sequence[Any], name: str, evaluations: int) -> Any:
    """The sampler's row nearest to `evaluations`, from those with no more if there are any.

    Raises ValueError when the sampler was not measured.
    """
    own = [row for row in rows if row.sampler == name]
    if not own:
        raise ValueError(f"{name} was not measured; {nearest(name, {row.sampler: 0 for row in rows})}")
    return min(own, key=lambda row: (row.evaluations > evaluations, abs(row.evaluations - evaluations)))


def settling_point(distances: Mapping[int, float], limit: float) -> int | None:
    """The smallest key from which on every distance is at most `limit`; None when the last one is above it."""
    return min(itertools.takewhile(lambda key: distances[key] <= limit, sorted(distances, reverse=True)), default=None)


def good_enough(rows: Sequence[Row], name: str, limit: float) -> int | None:
    """The fewest evaluations from which on a sampler's mean distance to its own limit is at most `limit`, or None."""
    return settling_point({row.evaluations: float(np.mean(row.own)) for row in rows if row.sampler == name}, limit)


NOT_MEASURED = "not measured"


class Claim(NamedTuple):
    """One of the guide's statements, what was measured for it, and the verdict: "holds", "fails" or "open".

    The verdict is `NOT_MEASURED` when no run had a number of steps that the statement is about.
    """

    statement: str
    measured: str
    verdict: str


def _verdict(low: float, high: float, at: float = 1.0) -> str:
    """Whether a quantity is below `at`, given its confidence interval; "open" when the interval contains `at`."""
    return "holds" if high < at else "fails" if low > at else "open"


def claims(rows: Sequence[Row], quality: Sequence[Quality], small: float) -> list[Claim]:
    """Test each of the guide's picks; `small` is the RMS distance of latents that counts as converged.

    A verdict is "open" when the 95 % confidence interval of the deciding quantity allows both answers. Without
    `quality`, the statements about quality are left out. Raises ValueError when a needed sampler was not measured.
    """
    found = []
    for name in ("DPM++ 2M Karras", "UniPC"):
        statement, measured = f"{name}: converged at 20 to 30 steps", _between(rows, name, 20, 30)
        if not measured:
            found.append(Claim(statement, "", NOT_MEASURED))
            continue
        after = [f"{np.mean(row.own):.3f} after {row.steps}" for row in measured]
        text = f"{', '.join(after)}; small is {small:.3f}"
        found.append(Claim(statement, text, _verdict(*mean_interval(measured[0].own)[1:], small)))
    r, low, high = paired_ratio(pick(rows, "DPM++ 2M Karras", 20).limit, pick(rows, "Euler", 20).limit)
    found.append(
        Claim("DPM++ 2M Karras is fast", f"{r:.2f} of Euler's distance at 20 evaluations", _verdict(low, high))
    )
    r, low, high = paired_ratio(pick(rows, "Heun", 20).limit, pick(rows, "Euler", 20).limit)
    text = f"{r:.2f} of Euler's distance at 20 evaluations, which are half as many steps"
    found.append(Claim("Heun: fewer steps make up for its price", text, _verdict(low, high)))
    names = [n for n in dict.fromkeys(row.sampler for row in rows) if find_sampler(n).stochastic]
    for name in names:
        few, many = pick(rows, name, 10), pick(rows, name, 30)
        r = paired_ratio(many.own, few.own)[0]
        # The claim is that the picture changes with the number of steps.
        moved, *ends = mean_interval(many.own)
        text = (
            f"{moved:.2f} from its picture of {LONG} evaluations after {many.evaluations}, {r:.2f} times as far as "
            f"after {few.evaluations}"
        )
        found.append(Claim(f"{name}: does not converge", text, _verdict(-ends[1], -ends[0], -small)))
    return [*found, *_quality_claims(quality)] if quality else found


def _quality_claims(quality: Sequence[Quality]) -> Iterator[Claim]:
    """The claims about quality: with so few steps, is the sampler about as good as the best one with the most?"""
    most = max(row.evaluations for row in quality)
    best = max((row for row in quality if row.evaluations >= most - 1), key=lambda row: sum(row.met))
    cases = (
        ("UniPC: high quality in 5 to 10 steps", "UniPC", 5, 10),
        ("UniPC on Karras' levels: the same", "UniPC Karras", 5, 10),
        ("DPM++ SDE Karras: good pictures in 8 to 12 steps", "DPM++ SDE Karras", 8, 12),
        ("DDIM: good pictures in 10 to 15 steps", "DDIM", 10, 15),
    )
    for statement, name, few, many in cases:
        if not (measured := _between(quality, name, few, many)):
            yield Claim(statement, "", NOT_MEASURED)
            continue
        row = measured[-1]
        d, low, high = share_difference((sum(row.met), len(row.met)), (sum(best.met), len(best.met)))
        text = (
            f"{sum(row.met)} of {len(row.met)} as asked at {row.steps} steps; {sum(best.met)} by the best with most "
            f"({best.sampler}, {best.evaluations}); Fréchet distance {row.frechet:.2f}, there {best.frechet:.2f}"
        )
        # Tests for a share at most 0.1 lower, since "as good" cannot be shown, but "not much worse" can.
        yield Claim(statement, text, _verdict(-high, -low, 0.1))


def _between(rows: Sequence[Any], name: str, few: int, many: int) -> list[Any]:
    """A sampler's rows with `few` to `many` steps, sorted by steps."""
    return sorted((r for r in rows if r.sampler == name and few <= r.steps <= many), key=lambda row: row.steps)
