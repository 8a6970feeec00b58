"""The sweep of notebook 06 about control: a condition learned by OFT, LoRA, a ControlNet and others, from all the data
and from little, and how well each is then followed.

`companion finetunings control` stores it in data/results/control_methods.jsonl, a line for each measurement. It needs
renders that `companion build renders` draws; the course ships too few to learn from 5 % of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import companion
from companion.conditions import CONDITIONS
from companion.controlnet import Asked, as_controls, asked, drawn_with
from companion.files import read_rows, write_rows
from companion.finetuning import (
    ControlNet,
    Examples,
    Follow,
    Lora,
    Method,
    Near,
    Oft,
    attach,
    examples,
    finetune,
    merged,
)
from companion.finetuning_sweeps import moved, prepared
from companion.intervals import Compared, compare, ratio_of_means
from companion.pretraining.controlnet import to_follow
from companion.sampler_sweeps import weights_sum
from companion.tabletop import dataset
from companion.tabletop.caption import caption
from companion.workers import beside

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

#: What learns, by name. All but the first two bring the picture in by the same small encoder, as in the OFT paper.
METHODS: dict[str, Method] = {
    "ControlNet": ControlNet(attention=False),
    "T2I-Adapter": ControlNet(adapter=True),
    "encoder alone": Follow(None),
    "LoRA": Follow(Lora(rank=4)),
    "OFT": Follow(Oft(blocks=4)),
    "COFT": Follow(Oft(blocks=4, eps=0.5)),
    "attention": Follow(Near()),
}
#: Other ways to begin and to build a ControlNet, which are compared with `METHODS`' own at its best rate.
TRIALS: dict[str, Method] = {
    "ControlNet, embedder closed": ControlNet(attention=False, open_embedder=False),
    "ControlNet, whole middle": ControlNet(),
    "ControlNet, from normals": ControlNet(begin=companion.DATA / "models" / "tabletop-controlnet-normal"),
}
ENCODER_RATE = 3e-3  # of the encoder, where the U-Net learns as well
#: The learning rates that are tried with each method: of all that is new, or of what learns in the U-Net. The adapter's
#: is that of the course's own, and the encoder alone learns as it does beside the others.
RATES: dict[str, tuple[float, ...]] = {"ControlNet": (1e-3, 3e-3), "attention": (1e-3, 3e-3)}
RATES |= {"LoRA": (3e-3, 1e-2), "OFT": (1e-2, 3e-2), "COFT": (1e-2, 3e-2)}
RATES |= {"T2I-Adapter": (3e-3,), "encoder alone": (ENCODER_RATE,)}
SHARES = (0.05, 0.5, 1.0)
LITTLE = ("ControlNet", "LoRA", "OFT")  # those that learn from less than all of the data as well
#: What is trained when the rates are known, by the plan's name: shares of the data, and names of methods.
PLANS: dict[str, list[tuple[float, str]]] = {
    "control": [(share, m) for share in SHARES for m in METHODS if share == 1 or m in LITTLE],
    "trials": [(1.0, m) for m in TRIALS],
}
DROP = 0.5  # share of prompts left empty, as for the ControlNets


@dataclass(frozen=True)
class Setting:
    """One training.

    Attributes:
        method: of `METHODS` or `TRIALS`.
        lr: learning rate.
        share: of the examples that it learns from.
        seed: of everything random.
        rating: whether it helps to choose the learning rate, which is done on other scenes.
    """

    method: str
    lr: float
    share: float = 1.0
    seed: int = 0
    rating: bool = False


def some_of(whole: Examples, share: float) -> Examples:
    """The first part of a set, one example at least."""
    n = max(1, round(share * len(whole.latents)))
    controls = None if whole.controls is None else whole.controls[:n]
    return Examples(whole.latents[:n], list(whole.prompts)[:n], whole.weight, controls)


def train_and_measure(
    pipe: StableDiffusionPipeline,
    setting: Setting,
    lessons: Examples,
    held: Mapping[bool, Asked],
    at: Mapping[bool, Sequence[int]],
    *,
    batch: int = 16,
    sampling: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """Train as the setting says, and yield a row after each of the steps `at`.

    Rows have the setting, "condition", "step", "parameters", "followed" (a number for each picture that was asked for),
    and how far the U-Net's weights have moved (`finetuning_sweeps.moved`).

    Args:
        held: held-out scenes that pictures shall follow; those by which rates are chosen (True), and the others.
        at: the steps after which each of them is drawn. A row's "rating" says of which it is.
        sampling: options of `diffusion.draw`: steps and guidance_scale.
    """
    tuned = attach(pipe, (METHODS | TRIALS)[setting.method], setting.seed)
    sets = [some_of(lessons, setting.share)]
    numbers = sum(p.numel() for p in tuned.parameters)
    in_unet = isinstance(tuned.method, Follow) and tuned.method.method is not None
    options: dict[str, Any] = {"lr": setting.lr, "net_lr": ENCODER_RATE if in_unet else None}
    last = max(step for steps in at.values() for step in steps)
    for progress in finetune(tuned, sets, last, batch=batch, drop=DROP, seed=setting.seed, **options):
        wanted = [rating for rating, steps in at.items() if progress.step in steps]
        if not wanted:
            continue
        plain = merged(tuned)
        with torch.no_grad():
            away = {k: round(v, 9) for k, v in moved(pipe.unet, plain.unet).items()}
        for rating in wanted:
            some = held[rating]
            with torch.no_grad():
                drawn = drawn_with(plain, tuned.net, some.controls, some.prompts, some.seeds, **sampling)
            found = [round(float(v), 4) for v in some.followed(drawn)]
            about = {"rating": rating, "condition": some.condition.name, "step": progress.step, "parameters": numbers}
            yield asdict(setting) | about | {"followed": found} | away


def limits(pipe: StableDiffusionPipeline, held: Asked, **sampling: Any) -> dict[str, list[float]]:
    """What the same scenes give without a control ("floor"), and what is found in their renders ("ceiling")."""
    drawn = drawn_with(pipe, None, held.controls, held.prompts, held.seeds, **sampling)
    found = {"floor": held.followed(drawn), "ceiling": held.followed(held.renders)}
    return {name: [round(float(v), 4) for v in values] for name, values in found.items()}


# ---- The plan --------------------------------------------------------------------------------------------------------


def ratings() -> list[Setting]:
    """Each method at each learning rate, once: how its own best one is found. The other scenes are drawn as well, so
    that the best of them is the method's first training with all of the data.
    """
    return [Setting(method, lr, rating=True) for method in METHODS for lr in RATES[method]]


def best(rows: Sequence[Mapping[str, Any]], method: str) -> float:
    """The learning rate at which a method was followed best at its last step. Raises ValueError when none was tried."""
    tried = [row for row in rows if row["rating"] and row["method"] == method]
    if not tried:
        raise ValueError(f"no learning rate of {method!r} was tried yet: companion finetunings control")
    last = max(row["step"] for row in tried)
    return max((r for r in tried if r["step"] == last), key=lambda r: float(np.nanmean(r["followed"])))["lr"]


def plan(rows: Sequence[Mapping[str, Any]], seeds: int, name: str = "control") -> list[Setting]:
    """The trainings of one of `PLANS`, every method at its best learning rate, with several seeds. `TRIALS` have the
    ControlNet's rate.
    """
    rate = {m: best(rows, m if m in METHODS else "ControlNet") for _, m in PLANS[name]}
    return [Setting(m, rate[m], share, seed) for seed in range(seeds) for share, m in PLANS[name]]


def at_best(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows that do not rate, of each method at its best rate, of those methods of which all rates were tried."""
    tried = {m for m in METHODS if {r["lr"] for r in rows if r["rating"] and r["method"] == m} >= set(RATES[m])}
    rate = {m: best(rows, m) for m in tried}
    return [row for row in rows if not row["rating"] and rate.get(row["method"]) == row["lr"]]


def results() -> Path:
    """Where the rows are stored."""
    return companion.DATA / "results" / "control_methods.jsonl"


def stored() -> list[dict[str, Any]]:
    """The rows that were measured with the weights in data/models; [] when there are none."""
    weights = weights_sum(companion.DATA / "models" / "tabletop")
    return [row for row in read_rows(results()) if row["weights"] == weights]


def complete() -> list[Mapping[str, Any]]:
    """The stored rows of each method at its best rate, when all of the plan was measured with one seed; else []."""
    rows = at_best(stored())
    if {row["method"] for row in rows} < METHODS.keys():
        return []
    there = {(row["method"], row["share"]) for row in rows}
    return rows if there >= {(s.method, s.share) for s in plan(stored(), 1)} else []


def sweep(
    measured: Callable[[Sequence[Setting]], Iterator[list[dict[str, Any]]]], seeds: int = 1, name: str = "control"
) -> Iterator[tuple[int, int, Setting, float]]:
    """Measure what is lacking, first the learning rates, and store the rows; yields how many settings are done, of how
    many, which, and how well it is followed in the mean. It may be stopped, and goes on with the next setting.

    Args:
        measured: trains settings and yields the rows of each, as `train_and_measure` does.
        name: of `PLANS`.
    """
    rows, weights = stored(), weights_sum(companion.DATA / "models" / "tabletop")
    done, total = 0, len(ratings()) + seeds * len(PLANS[name])
    for part in (lambda rows: ratings(), lambda rows: plan(rows, seeds, name)):
        settings = part(rows)
        lacking = [s for s in settings if not any(asdict(s).items() <= row.items() for row in rows)]
        done += len(settings) - len(lacking)
        if not lacking:
            continue
        for setting, found in zip(lacking, measured(lacking), strict=True):
            rows += [row | {"weights": weights} for row in found]
            write_rows(results(), rows)
            done += 1
            yield done, total, setting, float(np.nanmean(found[-1]["followed"]))


def measure(
    renders: Path,
    *,
    device: str = "cpu",
    workers: int = 1,
    seeds: int = 1,
    plan: str = "control",
    **options: Any,
) -> Iterator[tuple[int, int, Setting, float]]:
    """The whole sweep, from renders of the split "train" in a folder; yields as `sweep` does.

    Args:
        workers: processes that train beside each other (see `workers.beside`).
        seeds: of each training.
        plan: of `PLANS`.
        options: those of `measurer`.
    """
    make = partial(measurer, renders, device=device, **options)
    if workers > 1:
        return sweep(lambda settings: beside(make, settings, workers), seeds, plan)
    made = cache(make)  # the renders are read once, for rates and methods
    return sweep(lambda settings: map(made(), settings), seeds, plan)


def measurer(
    renders: Path,
    name: str = "canny",
    *,
    count: int = 2000,
    training: int = 400,
    batch: int = 16,
    pictures: int = 40,
    device: str = "cpu",
) -> Callable[[Setting], list[dict[str, Any]]]:
    """A function that trains a setting on the miniature and measures it: its rows (see `train_and_measure`).

    Args:
        name: of the condition.
        count: how many renders are all of the data.
        training: steps of each training.
        pictures: held-out scenes that are drawn, with all of the data also after a quarter and half of the steps;
            learning rates are chosen on as many others.
    """
    pipe, sampling = prepared(device)
    condition = CONDITIONS[name]
    maps, places, scenes = to_follow(renders, "train", condition, count)
    shown = dataset.read(renders, "train", ("picture",), count)["picture"][places]
    controls = as_controls(list(condition.paint(maps)), shown.shape[1])
    lessons = examples(pipe, shown, [caption(s) for s in scenes], controls=controls)
    held = {True: asked(pipe, name, pictures), False: asked(pipe, name, pictures, skip=pictures)}
    ends = {rating: limits(pipe, some, **sampling) for rating, some in held.items()}
    through = sorted({max(1, training // 4), max(1, training // 2), training})

    def run(setting: Setting) -> list[dict[str, Any]]:
        at = {False: through if setting.share == 1 else [training]} | ({True: [training]} if setting.rating else {})
        rows = train_and_measure(pipe, setting, lessons, held, at, batch=batch, sampling=sampling)
        return [row | ends[row["rating"]] for row in rows]

    return run


# ---- Comparing -------------------------------------------------------------------------------------------------------


def followed(rows: Sequence[Mapping[str, Any]], method: str, share: float = 1.0, step: int | None = None) -> np.ndarray:
    """How well each picture follows (N,), the mean over seeds, at a step, the last one by default.

    Raises ValueError when it was not measured, or at several learning rates: `at_best` chooses among them.
    """
    mine = [r for r in rows if not r["rating"] and (r["method"], r["share"]) == (method, share)]
    step = step or max((r["step"] for r in mine), default=0)
    found = [r["followed"] for r in mine if r["step"] == step]
    if not found:
        raise ValueError(f"{method!r} was not measured with {share:.0%} of the data: companion finetunings control")
    if len(rates := {r["lr"] for r in mine}) > 1:
        raise ValueError(
            f"{method!r} was measured at the learning rates {sorted(rates)}; give the rows of one, as `at_best` does"
        )
    return np.mean(found, axis=0)


def beginnings(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, np.ndarray]]:
    """How well each picture follows (N,), by step, in every training of a ControlNet with all of the data: at each
    learning rate, and of each of `TRIALS`; by the training's name. The first is `METHODS`' own at its best rate. Empty
    when none was measured.
    """
    mine = [r for r in rows if r["method"] in ("ControlNet", *TRIALS) and r["share"] == 1 and not r["rating"]]
    if not mine:
        return {}
    rate, found = best(rows, "ControlNet"), {"ControlNet": {}}
    for r in mine:
        name = r["method"] if r["lr"] == rate else f"{r['method']}, rate {r['lr']:g}"
        found.setdefault(name, {}).setdefault(r["step"], []).append(r["followed"])
    return {name: {step: np.mean(each, axis=0) for step, each in sorted(s.items())} for name, s in found.items()}


def share_of_the_way(drawn: np.ndarray, limits: Mapping[str, Sequence[float]]) -> tuple[float, float, float]:
    """How much of the way from no control to renders was gone, and both ends of its interval (see
    `controlnet.Fidelity.share`)."""
    floor, ceiling = (np.asarray(limits[name], float) for name in ("floor", "ceiling"))
    there = ~np.isnan(ceiling)
    return ratio_of_means((drawn - floor)[there], (ceiling - floor)[there])


def compared(
    rows: Sequence[Mapping[str, Any]],
    method: str,
    rival: str,
    share: float = 1.0,
    *,
    of_rival: float | None = None,
    step: int | None = None,
) -> Compared:
    """Compare how well two methods are followed, picture by picture.

    Args:
        share: of the data.
        of_rival: the share that the rival has, if it is another.
        step: after which both are looked at, the last one when None.
    """
    shares = (share, share if of_rival is None else of_rival)
    a, b = (followed(rows, name, part, step) for name, part in zip((method, rival), shares, strict=True))
    there = ~(np.isnan(a) | np.isnan(b))
    return compare(a[there], b[there])
