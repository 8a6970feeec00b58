"""Sweeps of notebook 02: each sampler at several numbers of model evaluations, and a test of the guide's advice.

    rows = list(converge(pipe, ["Euler", "DPM++ 2M Karras"], *crossed(PROMPTS, 2), guidance_scale=3.0))
    moves = list(double(pipe, ["Euler", "Euler a"], *crossed(PROMPTS, 1), guidance_scale=3.0))
    quality = list(appraise(pipe, ["DDIM"], guidance_scale=3.0))
    claims(rows, quality, small=0.05, moves=moves)

`companion samplers` stores a long sweep in data/results/samplers.json, with a checksum of the weights.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import companion
from companion import diffusion
from companion.files import sha256, written
from companion.intervals import mean_interval, paired_difference, paired_ratio, paired_share_difference
from companion.metrics import frechet, pictures_to_tensor
from companion.samplers import (
    SAMPLERS,
    Denoiser,
    Sampler,
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

    from companion.tabletop.caption import Wish
    from companion.tabletop.scene import Scene

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
SEEDS = 2  # of each prompt
EVALUATIONS = (6, 10, 15, 20, 30)
#: Each stochastic sampler is compared with its own picture after this many evaluations.
LONG = 60
#: The evaluations of runs of which each has twice as many steps as the one before: does the picture settle?
DOUBLED = (16, 32, 64, 128)
#: The guide (stable-diffusion-art.com/samplers) compared all samplers with Euler's picture after this many steps.
GUIDE_STEPS = 40
#: The samplers whose pictures the judge reads; the others are compared by distances alone.
JUDGED = (
    "Euler",
    "Euler a",
    "DDIM",
    "PLMS",
    "DPM++ 2M",
    "DPM++ 2M Karras",
    "DPM++ SDE",
    "DPM++ SDE Karras",
    "UniPC",
    "UniPC Karras",
)
#: The evaluations at which it reads them: so few that pictures fail, and the ends of the guide's ranges.
JUDGED_EVALUATIONS = (2, 3, 5, 8, 10, 15, 24)
#: The sampler and the evaluations whose pictures the others must equal. It is chosen beforehand: the best of many would
#: owe part of its lead to luck.
YARDSTICK = ("DPM++ 2M Karras", 40)
#: Newer samplers whose pictures the judge reads once, with the steps that cost them about a dozen evaluations (four of
#: Restart are thirteen); and the rival that gets as many.
JUDGED_NEWER, RIVAL = {"DDPM": 12, "LCM": 12, "Restart": 4}, (YARDSTICK[0], 12)
#: The guidance that web interfaces set at first, and the samplers whose distances are measured at it and without any.
STRONG, TURNED = 7.5, ("Euler", "DDIM", "PLMS", "DPM++ 2M Karras", "UniPC")
#: Samplers that no menu has, for comparisons in which only one thing differs: DPM++ 2S is DPM2 with the "++".
EXTRA = {
    sampler.name: sampler
    for sampler in (
        replace(
            SAMPLERS[f"DPM++ 2S a{more}"],
            name=f"DPM++ 2S{more}",
            about="x0 at the middle of log sigma (on no menu)",
            stochastic=False,
            options={"eta": 0.0},
        )
        for more in ("", " Karras")
    )
}


@dataclass(frozen=True)
class Row:
    """One sampler with one number of evaluations; the lists have a number for each picture.

    Attributes:
        limit: RMS distance of the latents to the end of the exact path, which is the same for all samplers.
        own: to the sampler's own limit: the exact path where it stops, or its latents after `LONG` if it is stochastic
            (unless `converge` was told to leave that out).
        guide: to Euler's latents after 40 steps, the guide's only reference.
        seconds: for each picture, without decoding it.
        guidance: the guidance scale.
    """

    sampler: str
    steps: int
    evaluations: int
    limit: list[float]
    own: list[float]
    guide: list[float]
    seconds: float
    guidance: float = 3.0


@dataclass(frozen=True)
class Move:
    """How far each picture (RMS of latents) moves when a sampler takes `twice` as many steps.

    No reference is needed: if pictures are on their way to anything, they move less and less.
    """

    sampler: str
    steps: int
    twice: int
    moved: list[float]


@dataclass(frozen=True)
class Quality:
    """The judge's verdict on a sampler at a number of evaluations.

    Attributes:
        met: for each picture, whether it shows all of its prompt.
        frechet: the pictures' shares of the Fréchet distance to renders (see `to_renders`); empty for "hard" prompts,
            of which there are no such renders.
        prompts: "held out", the captions of held-out renders, or "hard" (see `hard_scenes`).
        guidance: the guidance scale.
    """

    sampler: str
    steps: int
    evaluations: int
    met: list[bool]
    frechet: list[float]
    prompts: str = "held out"
    guidance: float = 3.0


def apart(a: Tensor, b: Tensor) -> list[float]:
    """Root-mean-square distances between a and b, both (N, ...): N numbers, rounded to five decimals."""
    return [round(v, 5) for v in ((a - b).flatten(1) ** 2).mean(1).sqrt().tolist()]


def crossed(prompts: Sequence[str], seeds: int) -> tuple[list[str], list[int]]:
    """Every prompt with each of the seeds 0 to `seeds` - 1: the prompts and the seeds, one of each per picture."""
    return [p for p in prompts for _ in range(seeds)], list(range(seeds)) * len(prompts)


def by_prompt(values: Sequence[float], geometric: bool = False) -> np.ndarray:
    """The mean over the pictures of each prompt (of `crossed`, with `SEEDS` seeds), since two pictures of one prompt
    are not independent of each other. Where there is one prompt, the pictures themselves.

    Args:
        geometric: which mean; this one for values whose ratios count.
    """
    found = np.asarray(values, dtype=float)
    if len(found) <= SEEDS:
        return found
    found = found.reshape(-1, SEEDS)
    return np.exp(np.log(np.maximum(found, 1e-9)).mean(1)) if geometric else found.mean(1)


def ratio(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """How many times as large as `b` the values `a` are, of the same pictures, with an interval over prompts (see
    `by_prompt` and `intervals.paired_ratio`)."""
    return paired_ratio(by_prompt(a, geometric=True), by_prompt(b, geometric=True))


def sampler_of(name: str | Sampler) -> Sampler:
    """The sampler of a row, from the catalogue or from `EXTRA`. Raises ValueError for an unknown name."""
    return EXTRA[name] if isinstance(name, str) and name in EXTRA else find_sampler(name)


def cells(names: Sequence[str], evaluations: Sequence[int]) -> list[tuple[str, int]]:
    """Each sampler with the most steps that each number of evaluations allows, once each: pairs (name, steps).

    DPM adaptive takes as many as it wants, whatever it is told, and so has one cell.
    """
    found = {}
    for name in names:
        sampler = sampler_of(name)
        counts = evaluations if sampler.per_step else evaluations[-1:]
        found |= dict.fromkeys((sampler.name, sampler.steps_for(n)) for n in counts)
    return list(found)


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
    long: int | None = LONG,
    done: Sequence[tuple[str, int]] = (),
) -> Iterator[Row]:
    """Draw the same pictures with each sampler and number of evaluations, and measure distances; yields a row for each.

    The pictures share a batch. Prompts are encoded, and the references computed, once for all samplers.

    Args:
        prompts, seeds: one of each for every picture.
        reference: steps of Heun on Karras' levels, about two evaluations each, that stand in for the exact path.
        long: evaluations of the run that stands for a stochastic sampler's own limit; None takes the exact path for it,
            as for the others, and saves these runs.
        done: pairs (sampler, steps) to leave out.
    """
    wanted = [cell for cell in cells(names, evaluations) if cell not in set(done)]
    if not wanted:
        return
    model, seeds = denoiser(pipe, prompts, guidance_scale), list(seeds)
    sigmas = sigmas_for("Heun Karras", model.levels, reference)
    *_, low, last = solve(model, start(pipe, seeds, sigmas), sigmas, "Heun Karras")
    guide = _end(pipe, model, "Euler", GUIDE_STEPS, seeds)[0]
    owns: dict[str, Tensor] = {}
    for name, steps in wanted:
        sampler = sampler_of(name)
        if sampler.stochastic and long and name not in owns:
            owns[name] = _end(pipe, model, name, sampler.steps_for(long), seeds)[0]
        stops = sampler.ends_low or sampler.function in (dpm_fast, dpm_adaptive)
        own = owns.get(name, low.x if stops else last.x)
        begin = time.perf_counter()
        x, spent = _end(pipe, model, name, steps, seeds)
        seconds = (time.perf_counter() - begin) / len(seeds)
        to_limit, to_own, to_guide = (apart(x, other) for other in (last.x, own, guide))
        yield Row(name, steps, spent, to_limit, to_own, to_guide, round(seconds, 4), guidance_scale)


def _end(
    pipe: StableDiffusionPipeline, model: Denoiser, name: str, steps: int, seeds: Sequence[int]
) -> tuple[Tensor, int]:
    """The last latents (N, ...) of a run, and the evaluations that it took."""
    sampler, before = sampler_of(name), model.evaluations
    sigmas = sigmas_for(sampler, model.levels, steps)
    *_, last = solve(model, start(pipe, seeds, sigmas), sigmas, sampler, seeds=seeds)
    return last.x, model.evaluations - before


def double(
    pipe: StableDiffusionPipeline,
    names: Sequence[str],
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    guidance_scale: float,
    evaluations: Sequence[int] = DOUBLED,
    done: Sequence[tuple[str, int]] = (),
) -> Iterator[Move]:
    """Draw the same pictures with twice as many steps, again and again, and measure how far each of them moves.

    `evaluations` are those of the runs of a sampler that evaluates the model once a step. Leaves out the pairs
    (sampler, steps) in `done`, and a sampler of which all are.
    """
    for name in (sampler_of(name).name for name in names):
        steps = [n for _, n in cells([name], evaluations)]
        missing = [n for n in steps[:-1] if (name, n) not in set(done)]
        if not missing:
            continue
        model, before = denoiser(pipe, prompts, guidance_scale), None
        for n, twice in itertools.pairwise(steps):
            if before is None and n < missing[0]:
                continue
            before = _end(pipe, model, name, n, seeds)[0] if before is None else before
            x = _end(pipe, model, name, twice, seeds)[0]
            yield Move(name, n, twice, apart(before, x))
            before = x


#: The set of prompts that each name in `Quality.prompts` stands for.
PROMPT_SETS = ("held out", "hard")


def hard_scenes(n: int) -> list[Scene]:
    """`n` scenes of two things, of which one has a finish that no training picture shows on its kind."""
    from companion.tabletop.splits import SPLITS, sample_scene

    first = SPLITS["withheld"][0]
    return [sample_scene(first + i, 2) for i in range(n)]


def appraise(
    pipe: StableDiffusionPipeline,
    names: Sequence[str] = JUDGED,
    *,
    guidance_scale: float,
    pictures: int = 64,
    evaluations: Sequence[int] = JUDGED_EVALUATIONS,
    prompts: str = "held out",
    done: Sequence[tuple[str, int]] = (),
) -> Iterator[Quality]:
    """Draw the captions of scenes, each from its own seed, and have the judge read the pictures.

    Leaves out the pairs (sampler, steps) in `done`. Raises ValueError for a model whose pictures the judge cannot read,
    for another set of prompts than those in `PROMPT_SETS`, and unless `pictures` is 13 to 128.
    """
    from companion.tabletop.caption import Wish, caption

    if not measures.can_be_judged(pipe):
        raise ValueError(measures.NOT_JUDGED)
    scenes, seeds = _scenes(prompts, pictures), list(range(pictures))
    wishes = [Wish.of(scene) for scene in scenes]
    model = denoiser(pipe, [caption(scene) for scene in scenes], guidance_scale)
    for name, steps in cells(names, evaluations):
        if (name, steps) in set(done):
            continue
        x, spent = _end(pipe, model, name, steps, seeds)
        drawn = diffusion.decode(pipe, x).cpu()
        frechet = to_renders(drawn) if prompts == "held out" else []
        yield Quality(name, steps, spent, _met(drawn, wishes), frechet, prompts, guidance_scale)


def controls(pictures: int = 64) -> list[Quality]:
    """What the judge says of held-out renders as they are, of blurred ones, and when it is asked for another's prompt.

    Of these, only the first may pass: a measure that everything passes measures nothing.
    """
    from companion.tabletop.caption import Wish
    from companion.tabletop.samples import held_out

    renders, scenes = held_out(pictures)
    drawn, wishes = pictures_to_tensor(renders), [Wish.of(scene) for scene in scenes]
    blurred = F.interpolate(F.avg_pool2d(drawn, 16), scale_factor=16, mode="bilinear")
    whole, spoiled = to_renders(drawn), to_renders(blurred)
    return [
        Quality("renders", 0, 0, _met(drawn, wishes), whole),
        Quality("renders, blurred", 0, 0, _met(blurred, wishes), spoiled),
        Quality("renders, asked for another", 0, 0, _met(drawn, [*wishes[1:], wishes[0]]), whole),
    ]


def _scenes(prompts: str, pictures: int) -> list[Scene]:
    from companion.tabletop.samples import held_out

    if prompts not in PROMPT_SETS:
        raise ValueError(f"there are no prompts {prompts!r}; {nearest(prompts, PROMPT_SETS)}")
    if not 13 <= pictures <= 128:
        raise ValueError(f"pictures={pictures} is outside 13 to 128; the other half of the renders is compared with")
    return held_out(pictures)[1] if prompts == "held out" else hard_scenes(pictures)


def _met(pictures: Tensor, wishes: Sequence[Wish]) -> list[bool]:
    return [reading.meets(wish)["all"] for reading, wish in zip(measures.read(pictures), wishes, strict=True)]


def to_renders(pictures: Tensor) -> list[float]:
    """The Fréchet distance of pictures of the first N held-out captions (N, 3, 128, 128) to the other held-out renders:
    N shares, whose mean is the distance, and whose spread gives its interval (`intervals.mean_interval`).

    They are the jackknife's pseudo-values (J. Tukey 1958): N times the distance of all, minus N - 1 times that without
    one. Their mean is free of most of the bias of few pictures, and may therefore be a little below 0. The distance is
    in the first principal components of the judge's 160 features, as many as a quarter of N, 12 at most: with few
    pictures the covariance of more cannot be estimated. Compare only equal numbers of pictures.
    """
    n = len(pictures)
    middle, directions, theirs = _renders_features(n, min(12, n // 4))
    ours = ((measures.picture_features(pictures) - middle) @ directions).numpy()
    whole = frechet(ours, theirs)
    return [round(n * whole - (n - 1) * frechet(np.delete(ours, i, 0), theirs), 4) for i in range(n)]


@lru_cache
def _renders_features(leave_out: int, parts: int) -> tuple[Tensor, Tensor, Tensor]:
    """The mean (160,) and directions (160, parts) of the renders' features, and what they are in these directions."""
    from companion.tabletop.samples import held_out

    features = measures.picture_features(held_out()[0][leave_out:])
    middle = features.mean(0)
    _, _, directions = torch.linalg.svd(features - middle, full_matrices=False)
    return middle, directions[:parts].T, (features - middle) @ directions[:parts].T


# ---- Stored sweeps ---------------------------------------------------------------------------------------------------

COMMAND = "companion samplers"
#: The lists of a `Sweep`, and what each of them holds.
PARTS: dict[str, type] = {"rows": Row, "turned": Row, "moves": Move, "quality": Quality}


@dataclass
class Sweep:
    """All measurements of one model, with the weights' checksum and the settings.

    `rows` and `moves` are at the model's own guidance, `turned` at others (see `TURNED`).
    """

    weights: str
    setting: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    turned: list[Row] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    quality: list[Quality] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write it as JSON, one row per line."""
        head = {"command": COMMAND, "weights": self.weights, "setting": self.setting}
        parts = [f'"{key}": {json.dumps(value)}' for key, value in head.items()]
        for key in PARTS:
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
        parts = {key: [kind(**row) for row in data.get(key, [])] for key, kind in PARTS.items()}
        return cls(data["weights"], data["setting"], **parts)


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
    whole = measured.issuperset(SAMPLERS.keys() - {"DPM (first order)"})
    if not (whole and found.turned and found.moves and found.quality):
        return None, f"The stored sweep is not whole (`{COMMAND}` goes on with it): what follows was measured above."
    if found.weights != weights_sum(companion.DATA / "models" / name):
        return (
            found,
            f"NOTE: the stored sweep is of OTHER WEIGHTS than those in data/models; `{COMMAND}` makes it anew.",
        )
    return (
        found,
        f"The stored sweep is of these weights: {len(found.rows)} runs (a sampler with a number of evaluations), "
        f"of {len(found.rows[0].limit)} pictures each.",
    )


def sweep(
    path: Path | None = None, *, seeds: int = SEEDS, pictures: int = 64, device: str | None = None
) -> Iterator[tuple[int, int, Sweep]]:
    """Measure every sampler with the course's model; yields (cells done, cells in all, sweep) once each cell is stored.

    A cell is a sampler and a number of steps. Cells stored with the same weights, settings and device are not redone;
    the rows' seconds are those of the device that the settings name.
    """
    from companion.models import find as find_model
    from companion.models import load

    path = path or results()
    entry = find_model("tabletop")
    # Half precision, which GPUs take by default, would drown small distances.
    pipe = load("tabletop", device=device, dtype=torch.float32)
    setting: dict[str, Any] = {
        "prompts": list(PROMPTS),
        "seeds": seeds,
        "pictures": pictures,
        "guidance_scale": entry.guidance,
    }
    setting["device"] = _device_name(pipe)
    found = Sweep(weights_sum(companion.DATA / "models" / entry.name), setting)
    if path.is_file() and (old := Sweep.load(path)) and (old.weights, old.setting) == (found.weights, setting):
        found = old
    drawn, total = crossed(PROMPTS, seeds), 0
    parts: list[tuple[list, Iterator]] = []

    def add(part: list, work: Callable, names: Sequence[str], evaluations: Sequence[int], *batch, **options) -> None:
        nonlocal total
        mine = [c for c in part if all(getattr(c, k, v) == v for k, v in _kept(options).items())]
        done = [(c.sampler, c.steps) for c in mine]
        total += len(cells(names, evaluations)) - (len(set(names)) if work is double else 0)
        parts.append((part, work(pipe, names, *batch, evaluations=evaluations, done=done, **options)))

    scale: dict[str, Any] = {"guidance_scale": entry.guidance}
    add(found.rows, converge, measured_names(), EVALUATIONS, *drawn, **scale)
    for other in (1.0, STRONG):
        add(found.turned, converge, TURNED, (10, 20), *drawn, guidance_scale=other)
    add(found.moves, double, moved_names(), DOUBLED, *drawn, **scale)
    for kind, guidance, names, evaluations in judged_cells(entry.guidance):
        judged = {"guidance_scale": guidance, "pictures": pictures, "prompts": kind}
        add(found.quality, appraise, names, evaluations, **judged)
    for part, work in parts:
        for cell in work:
            part.append(cell)
            found.save(path)
            yield sum(len(getattr(found, key)) for key in PARTS), total, found


def _kept(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options that a stored cell has, by the names that it has for them."""
    names = {"guidance_scale": "guidance", "prompts": "prompts"}
    return {names[key]: value for key, value in options.items() if key in names}


def _device_name(pipe: StableDiffusionPipeline) -> str:
    """What the seconds of a sweep are measured on."""
    device = pipe.device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads" if device.type == "cpu" else str(device)


def measured_names() -> list[str]:
    """The samplers whose distances a stored sweep has: the catalogue, and what comparisons of equals need."""
    names = [name for name, sampler in SAMPLERS.items() if sampler.function is not dpm_1]  # dpm_1 is Euler
    more = ("Euler Karras", "Heun Karras", "DPM++ 3M SDE Karras", "UniPC Karras", "DEIS Karras")
    return [*names, *more, *EXTRA]


def moved_names() -> list[str]:
    """The samplers whose pictures are drawn with twice as many steps: those with noise, and one without to compare."""
    return ["Euler", *(name for name in measured_names() if sampler_of(name).stochastic)]


def judged_cells(guidance: float) -> list[tuple[str, float, Sequence[str], Sequence[int]]]:
    """What the judge reads in a stored sweep: prompts, guidance, samplers and evaluations."""
    few = tuple(name for name in JUDGED if name not in ("DPM++ 2M", "DPM++ SDE"))
    yardstick, most = YARDSTICK
    found: list[tuple[str, float, Sequence[str], Sequence[int]]] = [
        ("held out", guidance, JUDGED, JUDGED_EVALUATIONS),
        ("held out", guidance, (yardstick, "UniPC"), (20, 30)),
        ("held out", guidance, (yardstick,), (most,)),
        *(("held out", guidance, (name,), (n,)) for name, n in (RIVAL, *JUDGED_NEWER.items())),
    ]
    for kind, scale in (("hard", guidance), ("held out", STRONG)):
        found.append((kind, scale, few, (5, 8, 10, 15)))
        found.append((kind, scale, ("DPM++ SDE Karras",), (24,)))
        found.append((kind, scale, (yardstick,), (most,)))
    return found


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
#: Below this, the movement of pictures when steps double counts as falling: noise of one Brownian path makes it fall to
#: 0.71 or less with every doubling, fresh noise not at all.
FALLS = 0.85
#: Below so many steps pictures may be broken, and move because they mend.
WHOLE = 16


class Claim(NamedTuple):
    """One of the guide's statements, what was measured for it, and the verdict: "holds", "fails" or "open".

    The verdict is `NOT_MEASURED` when no run had a sampler or a number of steps that the statement is about.
    """

    statement: str
    measured: str
    verdict: str


def _verdict(low: float, high: float, at: float = 1.0) -> str:
    """Whether a quantity is below `at`, given its confidence interval; "open" when the interval contains `at`."""
    return "holds" if high < at else "fails" if low > at else "open"


def at_worst(verdicts: Sequence[str]) -> str:
    """The verdict on a range: it holds if it holds everywhere, and fails if it fails anywhere."""
    if not verdicts:
        return NOT_MEASURED
    return next((word for word in ("fails", "open") if word in verdicts), "holds")


def claims(
    rows: Sequence[Row],
    quality: Sequence[Quality],
    small: float,
    moves: Sequence[Move] = (),
    turned: Sequence[Row] = (),
) -> list[Claim]:
    """Test each of the guide's statements; `small` is the RMS distance of latents that counts as converged.

    Statements about distances are about `rows`, at their guidance; where `turned` has rows of another, they have a
    verdict there, too. A statement about a range is judged at each number of steps or evaluations in
    it, and gets the worst verdict; where
    two solvers are compared, their schedules are equal. A verdict is "open" when the 95 % confidence interval of the
    deciding quantity, over prompts of `SEEDS` pictures each, allows both answers. Of many verdicts some are chance: see
    `by_chance`.
    """
    found = [*_settled(rows, small), *_movements(moves), *_faster(rows, turned), *_slow(rows)]
    for guidance in sorted({row.guidance for row in turned}):
        mine = [row for row in turned if row.guidance == guidance]
        others = [*_settled(mine, small), *(nearer(*pair) for pair in ((s, mine, a, b) for s, a, b in NEARER))]
        measured = (claim for claim in others if claim.verdict != NOT_MEASURED)
        found += [claim._replace(statement=f"{claim.statement}, guidance {guidance:g}") for claim in measured]
    return [*found, *_quality_claims(quality)] if quality else found


def by_chance(verdicts: Sequence[Claim]) -> float:
    """How many verdicts chance could make wrong at most, if each claim rested on one end of one 95 % interval: one in
    forty of those that were tested. All of these are among the verdicts that hold or fail. A claim about a range that
    fails may do so at any of its points, so for these it is more.
    """
    return 0.025 * sum(claim.verdict != NOT_MEASURED for claim in verdicts)


def _settled(rows: Sequence[Row], small: float) -> Iterator[Claim]:
    """Is every mean distance from 20 to 30 steps small?"""
    for name in ("DPM++ 2M Karras", "UniPC"):
        measured = _between(rows, name, 20, 30)
        found = [(row.steps, *mean_interval(by_prompt(row.own))) for row in measured]
        text = ", ".join(f"{mean:.3f} ({low:.3f} to {high:.3f}) at {n}" for n, mean, low, high in found)
        verdict = at_worst([_verdict(low, high, small) for _, _, low, high in found])
        yield Claim(f"{name}: converged at 20 to 30 steps", f"{text}; small is {small:.3f}" if text else "", verdict)


def _movements(moves: Sequence[Move]) -> Iterator[Claim]:
    """Do the pictures of samplers with noise keep moving, however many steps are taken?"""
    for name in dict.fromkeys(move.sampler for move in moves):
        own = sorted((move for move in moves if move.sampler == name), key=lambda move: move.steps)
        told = ", ".join(f"{np.mean(move.moved):.3f} ({move.steps} to {move.twice})" for move in own)
        whole = [move for move in own if move.steps >= WHOLE]
        quiet = "" if sampler_of(name).stochastic else ", which adds no noise"
        statement = f"{name}{quiet}: keeps moving"
        if len(whole) < 2:
            yield Claim(statement, f"moved by {told}", NOT_MEASURED)
            continue
        doublings = math.log2(whole[-1].steps / whole[0].steps)
        r, low, high = (v ** (1 / doublings) for v in ratio(whole[-1].moved, whole[0].moved))
        text = f"moved by {told}: times {r:.2f} ({low:.2f} to {high:.2f}) with each doubling from {whole[0].steps} on"
        # The claim is that the movement does not fall.
        yield Claim(statement, text, _verdict(-high, -low, -FALLS))


#: Statements about two samplers: the first is nearer to where it goes than the second at equal evaluations.
NEARER = (
    ("DPM++ 2M is faster than Euler, even timesteps", "DPM++ 2M", "Euler"),
    ("DPM++ 2M is faster than Euler, Karras' levels", "DPM++ 2M Karras", "Euler Karras"),
    ("DPM++ 2M is faster on Karras' levels", "DPM++ 2M Karras", "DPM++ 2M"),
    ("Heun: fewer steps make up for its price, even timesteps", "Heun", "Euler"),
    ("Heun: fewer steps make up for its price, Karras' levels", "Heun Karras", "Euler Karras"),
    ("DPM2 is worth its price beside DPM, even timesteps", "DPM2", "Euler"),
    ("DPM2 is worth its price beside DPM, Karras' levels", "DPM2 Karras", "Euler Karras"),
    ("The ++ improves DPM2, even timesteps", "DPM++ 2S", "DPM2"),
    ("The ++ improves DPM2, Karras' levels", "DPM++ 2S Karras", "DPM2 Karras"),
    ("DPM++ 2M improves on DPM2, even timesteps", "DPM++ 2M", "DPM2"),
    ("DPM++ 2M improves on DPM2, Karras' levels", "DPM++ 2M Karras", "DPM2 Karras"),
    ("Karras' levels bring Euler nearer", "Euler Karras", "Euler"),
    ("Karras' levels bring Heun nearer", "Heun Karras", "Heun"),
    ("Karras' levels bring LMS nearer", "LMS Karras", "LMS"),
    ("Karras' levels bring UniPC nearer", "UniPC Karras", "UniPC"),
    ("DDIM is outdated: DPM++ 2M Karras is nearer", "DPM++ 2M Karras", "DDIM"),
    ("PLMS is outdated: DPM++ 2M Karras is nearer", "DPM++ 2M Karras", "PLMS"),
)


def _faster(rows: Sequence[Row], turned: Sequence[Row]) -> Iterator[Claim]:
    for statement, a, b in NEARER:
        yield nearer(statement, rows, a, b)
    for guidance in sorted({row.guidance for row in (*rows, *turned)}):
        mine = [row for row in (*rows, *turned) if row.guidance == guidance]
        yield nearer(f"PLMS is faster than DDIM, guidance {guidance:g}", mine, "PLMS", "DDIM")
    for more in ("", " Karras"):
        on = "Karras' levels" if more else "even timesteps"
        statement = f"DPM2 is more accurate than DPM step for step, {on}"
        yield _ratios(statement, rows, f"DPM2{more}", f"Euler{more}", "steps")


def nearer(statement: str, rows: Sequence[Row], a: str, b: str) -> Claim:
    """Whether sampler `a` is nearer to where it goes than `b`, at each number of evaluations from 10 on (9 for two that
    ask twice a step)."""
    return _ratios(statement, rows, a, b, "evaluations")


def _paired(rows: Sequence[Any], a: str, b: str, what: str = "evaluations") -> list[tuple[Any, Any]]:
    """Rows of two samplers with as many steps, or as many evaluations but one (two a step end at an odd number)."""
    mine, slack = [row for row in rows if row.sampler == a], int(what == "evaluations")
    pairs = []
    for other in sorted((row for row in rows if row.sampler == b), key=lambda row: row.evaluations):
        off = {abs(getattr(row, what) - getattr(other, what)): row for row in mine}
        if off and min(off) <= slack:
            pairs.append((off[min(off)], other))
    return pairs


def _ratios(statement: str, rows: Sequence[Row], a: str, b: str, what: str) -> Claim:
    pairs = [(x, y) for x, y in _paired(rows, a, b, what) if getattr(y, what) >= 9]
    found = [(getattr(y, what), *ratio(x.own, y.own)) for x, y in pairs]
    if not found:
        return Claim(statement, "", NOT_MEASURED)
    text = ", ".join(f"{r:.2f} ({low:.2f} to {high:.2f}) at {n}" for n, r, low, high in found)
    words = [_verdict(low, high) for _, _, low, high in found]
    if len(set(words)) > 1:  # a range has one verdict, its worst; where it is another, is told
        where = {w: [n for (n, *_), v in zip(found, words, strict=True) if v == w] for w in dict.fromkeys(words)}
        text += "".join(f"; {word} at {', '.join(map(str, at))}" for word, at in where.items())
    return Claim(statement, f"times {b}'s distance, by {what}: {text}", at_worst(words))


def _slow(rows: Sequence[Row]) -> Iterator[Claim]:
    """Claims that need no interval: they count evaluations. The seconds are told beside them."""
    plain = {row.steps: row for row in rows if row.sampler == "Euler"}
    adaptive = [row for row in rows if row.sampler == "DPM adaptive"]
    statement = "DPM adaptive is slow: more evaluations than 30 steps of Euler"
    if adaptive:
        text = f"{adaptive[-1].evaluations} evaluations, {adaptive[-1].seconds:.2f} s a picture"
        text += f"; Euler {plain[30].seconds:.2f} s for 30" if 30 in plain else ""
        yield Claim(statement, text, "holds" if adaptive[-1].evaluations > 30 else "fails")
    else:
        yield Claim(statement, "", NOT_MEASURED)
    for name in ("DPM++ SDE", "DPM++ SDE Karras"):
        statement = f"{name} is slow: a step costs more than Euler's"
        if not (own := [row for row in rows if row.sampler == name and row.steps in plain]):
            yield Claim(statement, "", NOT_MEASURED)
            continue
        costs = [f"{row.evaluations / row.steps:.1f} evaluations a step at {row.steps}" for row in own]
        times = [row.seconds / plain[row.steps].seconds for row in own if plain[row.steps].seconds]
        text = ", ".join(costs) + (f"; {np.median(times):.1f} times Euler's seconds" if times else "")
        yield Claim(statement, text, "holds" if all(row.evaluations > row.steps for row in own) else "fails")


#: Statements about quality: the sampler, and the numbers of steps that they are about.
GOOD = (
    ("DPM++ 2M Karras: decent quality in 20 to 30 steps", "DPM++ 2M Karras", 20, 30),
    ("UniPC: decent quality in 20 to 30 steps", "UniPC", 20, 30),
    ("UniPC: high quality in 5 to 10 steps", "UniPC", 5, 10),
    ("UniPC Karras: high quality in 5 to 10 steps", "UniPC Karras", 5, 10),
    ("DPM++ SDE Karras: good pictures in 8 to 12 steps", "DPM++ SDE Karras", 8, 12),
    ("DDIM: good pictures in 10 to 15 steps", "DDIM", 10, 15),
)
#: Pairs of which the first is said to give the better pictures at equal evaluations.
BETTER = (
    ("Karras' levels improve DPM++ 2M", "DPM++ 2M Karras", "DPM++ 2M"),
    ("Karras' levels improve DPM++ SDE", "DPM++ SDE Karras", "DPM++ SDE"),
    ("Karras' levels improve UniPC", "UniPC Karras", "UniPC"),
    ("PLMS draws better than DDIM", "PLMS", "DDIM"),
)
#: "Not much worse" is a share of pictures as asked, or a Fréchet distance, that is at most so much worse: equality
#: cannot be shown, but this can.
MARGIN = 0.1


def _quality_claims(quality: Sequence[Quality]) -> Iterator[Claim]:
    sets = list(dict.fromkeys((row.prompts, row.guidance) for row in quality))
    for number, (prompts, guidance) in enumerate(sets):
        mine = [row for row in quality if (row.prompts, row.guidance) == (prompts, guidance)]
        where = f" [{prompts}, guidance {guidance:g}]" if len(sets) > 1 else ""
        for statement, name, few, many in GOOD:
            claim = _good(mine, statement + where, name, few, many)
            if number == 0 or claim.verdict != NOT_MEASURED:
                yield claim
        for statement, a, b in BETTER:
            claim = _better(mine, statement + where, a, b)
            if number == 0 or claim.verdict != NOT_MEASURED:
                yield claim
        for name in ("DPM++ SDE", "DPM++ SDE Karras"):
            for claim in _best(mine, name, where):
                if number == 0 or claim.verdict != NOT_MEASURED:
                    yield claim


def _share(a: Quality, b: Quality) -> tuple[float, float, float]:
    """The share of pictures as asked of `a` minus that of `b`, and both ends of its interval; both have drawn the same
    prompts from the same seeds."""
    return paired_share_difference(a.met, b.met)


def _good(quality: Sequence[Quality], statement: str, name: str, few: int, many: int) -> Claim:
    """At every number of steps, is the share of pictures as asked not much below the yardstick's?"""
    measured = _between(quality, name, few, many)
    best, most = YARDSTICK
    yardsticks = [row for row in quality if row.sampler == best]
    if not measured or not yardsticks:
        return Claim(statement, "", NOT_MEASURED)
    at = max(yardsticks, key=lambda row: row.evaluations)
    text = ", ".join(f"{sum(row.met)} at {row.steps}" for row in measured)
    text = f"{text} steps, of {len(at.met)}; {sum(at.met)} by {best} at {at.evaluations}"
    ends = [_share(row, at)[1:] for row in measured]
    return Claim(statement, text, at_worst([_verdict(-high, -low, MARGIN) for low, high in ends]))


def _better(quality: Sequence[Quality], statement: str, a: str, b: str) -> Claim:
    """Does `a` draw more pictures as asked than `b`, at each number of evaluations from 5 to 15?"""
    pairs = [(x, y) for x, y in _paired(quality, a, b) if 5 <= y.evaluations <= 15]
    if not pairs:
        return Claim(statement, "", NOT_MEASURED)
    text = ", ".join(f"{sum(x.met)} against {sum(y.met)} at {y.evaluations}" for x, y in pairs)
    ends = [_share(x, y)[1:] for x, y in pairs]
    text = f"{text} evaluations, of {len(pairs[0][0].met)}"
    return Claim(statement, text, at_worst([_verdict(-high, -low, 0.0) for low, high in ends]))


def _best(quality: Sequence[Quality], name: str, where: str) -> Iterator[Claim]:
    """Is this sampler better than every other at 15 evaluations and more, by prompts and by Fréchet distance?"""
    others = [other for other in dict.fromkeys(row.sampler for row in quality) if other != name]
    pairs = [pair for other in others for pair in _paired(quality, name, other) if pair[0].evaluations >= 15]
    for what in ("prompts met", "Fréchet distance"):
        statement = f"{name}: the best in quality, by {what}{where}"
        found = [(_share(x, y)[1:], sum(y.met), y) for x, y in pairs]
        if what != "prompts met":
            judged = [(x, y) for x, y in pairs if len(x.frechet) == len(y.frechet) > 1]
            found = [(paired_difference(y.frechet, x.frechet)[1:], np.mean(y.frechet), y) for x, y in judged]
        if not found:
            yield Claim(statement, "", NOT_MEASURED)
            continue
        verdicts = [_verdict(-high, -low, 0.0) for (low, high), _, _ in found]
        told = Counter(verdicts)
        surely = [
            f"{y.sampler} at {y.evaluations}" for v, (_, _, y) in zip(verdicts, found, strict=True) if v == "fails"
        ]
        text = (
            f"better in {told['holds']} of {len(found)} comparisons, worse in {told['fails']}, open in {told['open']}"
        )
        text += f"; behind {', '.join(surely)}" if surely else ""
        yield Claim(statement, text, at_worst(verdicts))


def _between(rows: Sequence[Any], name: str, few: int, many: int) -> list[Any]:
    """A sampler's rows with `few` to `many` steps, sorted by steps."""
    return sorted((r for r in rows if r.sampler == name and few <= r.steps <= many), key=lambda row: row.steps)
