"""Sweeps of notebooks 05 and 06: subjects taught by several methods, and what each learned, forgot and moved.

    for row in teach_and_measure(pipe, Setting("duck", "LoRA", lr=1e-3), [50, 100, 200]):
        print(row["step"], row["likeness"], row["energy"])

`companion finetunings` stores long sweeps in data/results, a line for each measurement, with a checksum of the weights.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import companion
from companion import diffusion, energy
from companion.dreambooth import (
    RARE_WORD,
    RECIPE,
    WORD,
    WORD_RECIPE,
    Taught,
    class_prompts,
    class_set,
    colour_drift,
    drift,
    feature_likeness,
    likeness,
    shape_likeness,
    share,
    spread,
    subject_prompts,
    teach,
    text_likeness,
    unrelated,
)
from companion.files import read_rows, write_rows, written
from companion.finetuning import (
    TRANSFORMERS,
    Examples,
    Full,
    Lora,
    Method,
    Near,
    Oft,
    Peft,
    TextualInversion,
    Tuned,
    load_learned,
    merged,
    save_learned,
)
from companion.intervals import Compared, compare, decided, mean_interval
from companion.metrics import tensor_to_bytes
from companion.models import find
from companion.sampler_sweeps import weights_sum
from companion.tabletop.measures import clip_pictures, met
from companion.tabletop.subjects import SUBJECTS, Subject
from companion.workers import beside

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

# ---- Settings --------------------------------------------------------------------------------------------------------


def _hra() -> Method:
    from peft import HRAConfig

    return Peft(HRAConfig(r=8, target_modules=list(TRANSFORMERS)))


#: DreamBooth as in its paper: all of the U-Net learns.
DREAMBOOTH = "full"

#: What learns, by name, for the known word that a new one starts from. All but the first two and textual inversion
#: change the same layers. Before any of them a word is learned by textual inversion, the same for all (see `worded`).
METHODS: dict[str, Callable[[str], Method]] = {
    DREAMBOOTH: lambda start: Full(),
    "full, with text encoder": lambda start: Full(text_encoder=True),
    "same layers": lambda start: Near(targets=TRANSFORMERS),
    "same layers, near": lambda start: Near(radius=0.1, targets=TRANSFORMERS),
    "LoRA": lambda start: Lora(rank=8, targets=TRANSFORMERS),
    "OFT": lambda start: Oft(blocks=4, targets=TRANSFORMERS),
    "COFT": lambda start: Oft(blocks=4, eps=0.5, targets=TRANSFORMERS),
    "OFT, re-scaled": lambda start: Oft(blocks=4, rescale=True, targets=TRANSFORMERS),
    "HRA": lambda start: _hra(),
    "textual inversion": lambda start: TextualInversion(WORD, start),
}
#: Where all other methods start: the word alone, as `worded` learns it.
START = "the word"


@dataclass(frozen=True)
class Setting:
    """One training.

    Attributes:
        subject: of `tabletop.subjects.SUBJECTS`.
        method: of `METHODS`, or `START`.
        lr: learning rate.
        seed: of everything random.
        prior: whether the class is a second set of examples.
        others: whether other things are in this set, too.
        scenes: whether the photographs' captions say where and when.
        word, noun: of the prompt, "a <mine> cone"; the subject's own noun when None, none when "". `dreambooth.WORD` is
            learned first; any other, such as `dreambooth.RARE_WORD`, is taken as it is.
        photographs: how many of the five are learned from.
        latest: timesteps are drawn below it.
        decay: the share of the steps over which the learning rate falls to zero, at the end.
        batch: photographs a step, and as many pictures of the class and other things.
        prepared: how the photographs were brought to the model's size, a name of `dreambooth.PREPARED`.
        class_pictures: how many pictures of the class there are.
    """

    subject: str
    method: str
    lr: float
    seed: int = 0
    prior: bool = True
    others: bool = True
    scenes: bool = True
    word: str = WORD
    noun: str | None = None
    photographs: int = 5
    latest: int = 1000
    decay: float = RECIPE["decay"]
    batch: int = 4
    prepared: str = "cropped"
    class_pictures: int = 100


# ---- Measuring -------------------------------------------------------------------------------------------------------

CLASS = 16  # pictures of the class, for PRES and DIV


@dataclass(frozen=True)
class Before:
    """What the pipeline draws before it learns, with the same prompts and seeds as after."""

    unrelated: Tensor
    about_class: Tensor


def drawn_before(pipe: StableDiffusionPipeline, noun: str, **options: Any) -> Before:
    """What a class and other kinds look like before anything is learned; `options` are those of `diffusion.draw`."""
    prompts = unrelated(noun)
    return Before(
        diffusion.draw(pipe, prompts, range(len(prompts)), **options),
        diffusion.draw(pipe, class_prompts(noun, CLASS), range(CLASS), **options),
    )


def learned(
    pipe: StableDiffusionPipeline, subject: Subject, word: str, noun: str, before: Before, **options: Any
) -> dict[str, float]:
    """What a pipeline that learned a subject draws, in numbers.

    Keys: "likeness" of drawings of the subject, in new scenes, to its photographs (the paper's DINO), and its halves,
    "colours" and "shape"; "clip_i" and "clip_t", by the miniature's CLIP; "scene", the share of these drawings in the
    place and at the time of the prompt; "diversity", of drawings of one prompt; "pres" and "div" of the class, which
    should not look like the subject and should differ, and "class_drift", how far its pictures have moved in features;
    "kept", the share of unrelated prompts that are still met, "kept_before" that before, and "lost" what is missing;
    "drift" of the unrelated pictures in features, and "colour_drift".
    """
    photographs, scenes = subject.photographs()[0], subject.tests()[1]
    prompts = subject_prompts(subject, scenes, word, noun)
    drawn = diffusion.draw(pipe, prompts, range(len(prompts)), **options)
    alike = diffusion.draw(pipe, [prompts[0]] * 6, range(100, 106), **options)
    about_class = diffusion.draw(pipe, class_prompts(subject.noun, CLASS), range(CLASS), **options)
    others = unrelated(subject.noun)
    after = diffusion.draw(pipe, others, range(len(others)), **options)
    plain = subject_prompts(subject, scenes, "")
    return {
        "likeness": float(likeness(drawn, photographs).mean()),
        "colours": float(feature_likeness(drawn, photographs).mean()),
        "shape": float(shape_likeness(drawn, photographs).mean()),
        "clip_i": float(feature_likeness(drawn, photographs, clip_pictures).mean()),
        "clip_t": float(text_likeness(drawn, plain).mean()),
        "scene": float(np.mean(met(drawn, plain, ("place", "time")))),
        "diversity": spread(alike),
        "pres": float(likeness(about_class, photographs).mean()),
        "pres_before": float(likeness(before.about_class, photographs).mean()),
        "div": spread(about_class),
        "div_before": spread(before.about_class),
        "class_drift": float(drift(before.about_class, about_class).mean()),
        "kept": float(np.mean(met(after, others))),
        "kept_before": float(np.mean(met(before.unrelated, others))),
        "lost": float(np.mean(met(before.unrelated, others)) - np.mean(met(after, others))),
        "drift": float(drift(before.unrelated, after).mean()),
        "colour_drift": float(colour_drift(before.unrelated, after).mean()),
    }


def moved(before: nn.Module, after: nn.Module, targets: Sequence[str] = TRANSFORMERS) -> dict[str, float]:
    """How far a U-Net's weights have moved, in several senses; `after` is a plain U-Net (see `finetuning.merged`).

    Keys: "energy", the relative change of the hyperspherical energy as the OFT paper logs it (mean over pairs,
    half-space, summed over all weights); over the layers `targets` alone "energy_targets", and "energy_layer", the
    largest change of one of them (in a sum, layers that rise and fall cancel); of these layers also "angle", the
    largest change of an angle between two neurons in radians, "distance", the mean of ||W - W0|| / ||W0||, and "left"
    and "right", how many of the ten strongest singular vectors are intruders, in the mean.
    """
    old, new = energy.weights(before), energy.weights(after)
    ends = tuple(f"{target}.weight" for target in targets)
    chosen = [name for name in old if name.endswith(ends)]
    pairs = [(old[name], new[name]) for name in chosen]
    sides = [energy.intruder_dimensions(a, b) for a, b in pairs]
    away = [float((b.float() - a.float()).norm() / a.float().norm()) for a, b in pairs]
    a, b = (_energies(weights) for weights in (old, new))
    changes = [b[name] / a[name] - 1 for name in chosen]
    return {
        "energy": sum(b.values()) / sum(a.values()) - 1,
        "energy_targets": sum(b[n] for n in chosen) / sum(a[n] for n in chosen) - 1,
        "energy_layer": max(changes, key=abs),
        "angle": max(energy.angle_drift(a, b) for a, b in pairs),
        "distance": float(np.mean(away)),
        "left": float(np.mean([left for left, _ in sides])),
        "right": float(np.mean([right for _, right in sides])),
    }


def _energies(weights: Mapping[str, Tensor]) -> dict[str, float]:
    options = {"mean": True, "half_space": True}
    return energy.energies({name: weight.float() for name, weight in weights.items()}, **options)


def taught(pipe: StableDiffusionPipeline, setting: Setting, training: int, **options: Any) -> Iterator[Taught]:
    """Train as a setting says, for so many steps, yielding after each; `options` are those of `diffusion.draw`. What
    all start from, `START`, is always trained as `dreambooth.WORD_RECIPE` says.
    """
    subject, n = SUBJECTS[setting.subject], setting.class_pictures
    noun = subject.noun if setting.noun is None else setting.noun
    about_set = {name: getattr(setting, name) for name in ("photographs", "prepared", "scenes")}
    if setting.method == START:
        yield from _wording(pipe, setting.subject, noun, setting.seed, **about_set)
        return
    method, known = METHODS[setting.method](subject.like), tuple(options.items())
    prior = _prior(pipe, subject.noun, n, n if setting.others else 0, known) if setting.prior else None
    if setting.word == WORD and not isinstance(method, TextualInversion):
        pipe = worded(pipe, setting.subject, noun, setting.seed, **about_set)
    chosen: dict[str, Any] = (
        RECIPE
        | about_set
        | {name: getattr(setting, name) for name in ("lr", "batch", "latest", "decay", "seed", "word")}
    )
    yield from teach(pipe, subject, method, steps=training, prior=prior, noun=noun, **chosen)


def teach_and_measure(
    pipe: StableDiffusionPipeline, setting: Setting, at: Sequence[int], **options: Any
) -> Iterator[dict[str, Any]]:
    """Train as the setting says, and yield a row of `learned` and `moved` after each of the steps `at`.

    Rows also have the setting, "step", "loss" (the mean since the last row), "seconds" of training so far
    without its first step, in which the sets are made,
    "parameters", how many numbers learn, "floor", "words" and "ceiling" for the likeness (see `ends`), and "way", how
    much of the way from floor to ceiling it has gone. `options` are those of `diffusion.draw`.
    """
    subject, known = SUBJECTS[setting.subject], tuple(options.items())
    noun = subject.noun if setting.noun is None else setting.noun
    before, limits = _before(pipe, subject.noun, known), _ends(pipe, setting.subject, known)
    losses, seconds, begin = [], 0.0, 0.0
    for now in taught(pipe, setting, max(at), **options):
        begin = begin or time.perf_counter()  # what is drawn before the first step takes time, too
        losses.append(now.progress.loss)
        if now.progress.step not in at:
            continue
        seconds += time.perf_counter() - begin
        plain = merged(now.tuned)
        with torch.no_grad():
            found = learned(plain, subject, setting.word, noun, before, **options) | moved(pipe.unet, plain.unet)
        numbers = sum(p.numel() for p in now.tuned.parameters)
        about = {"step": now.progress.step, "loss": float(np.mean(losses)), "seconds": seconds, "parameters": numbers}
        found |= limits | {"way": share(found["likeness"], limits["floor"], limits["ceiling"])}
        yield asdict(setting) | about | {key: float(f"{value:.6g}") for key, value in found.items()}
        losses, begin = [], time.perf_counter()


@lru_cache(4)
def worded(
    pipe: StableDiffusionPipeline, name: str, noun: str | None = None, seed: int = 0, **options: Any
) -> StableDiffusionPipeline:
    """A copy of the pipeline that knows the word `dreambooth.WORD` for a subject, learned by textual inversion; what it
    draws without that word is as it was. `options` are those of `dreambooth.subject_set`.
    """
    *_, last = _wording(pipe, name, noun, seed, **options)
    return merged(last.tuned)


def _wording(pipe: StableDiffusionPipeline, name: str, noun: str | None, seed: int, **options: Any) -> Iterator[Taught]:
    method = TextualInversion(WORD, SUBJECTS[name].like)
    return teach(pipe, SUBJECTS[name], method, noun=noun, word=WORD, seed=seed, **options, **WORD_RECIPE)


@lru_cache(4)
def _before(pipe: StableDiffusionPipeline, noun: str, options: tuple[tuple[str, Any], ...]) -> Before:
    return drawn_before(pipe, noun, **dict(options))


def ends(pipe: StableDiffusionPipeline, subject: Subject, **options: Any) -> dict[str, float]:
    """Between what the likeness of drawings to a subject's photographs lies.

    Keys: "floor", that of drawings of the same scenes with the class noun alone; "words", with the nearest colour too;
    "ceiling", that of real pictures of these scenes. `options` are those of `diffusion.draw`.
    """
    photographs, (tests, scenes) = subject.photographs()[0], subject.tests()
    found = {}
    for name, word in (("floor", ""), ("words", subject.like)):
        prompts = subject_prompts(subject, scenes, word)
        drawn = diffusion.draw(pipe, prompts, range(len(prompts)), **options)
        found[name] = float(likeness(drawn, photographs).mean())
    return found | {"ceiling": float(likeness(tests, photographs).mean())}


@lru_cache(16)
def _ends(pipe: StableDiffusionPipeline, name: str, options: tuple[tuple[str, Any], ...]) -> dict[str, float]:
    return ends(pipe, SUBJECTS[name], **dict(options))


@lru_cache(4)
def _prior(pipe: StableDiffusionPipeline, noun: str, n: int, others: int, options: tuple[tuple[str, Any], ...]) -> Any:
    return class_set(pipe, noun, n, others, **dict(options))


# ---- Plans -----------------------------------------------------------------------------------------------------------


def _half_decades(low: float, n: int = 3) -> tuple[float, ...]:
    return tuple(round(low * 10 ** (i / 2), 6) for i in range(n))


_LOWEST = {"LoRA": 1e-3, "HRA": 1e-3, "textual inversion": 3e-4, "same layers": 3e-4, "same layers, near": 3e-4}
_LOWEST |= dict.fromkeys(("OFT", "COFT", "OFT, re-scaled"), 3e-3)
#: The learning rates that are tried with each method first, two in each decade; `rates_of` goes on where these are few.
RATES = {method: _half_decades(_LOWEST.get(method, 1e-4)) for method in METHODS}
FEW = ("duck", "cactus")  # subjects on which learning rates are chosen; all others are measured with what was chosen
WRONG = "a wrong one"  # stands for another noun than the subject's
SOME = ("rocket", "windmill", "lighthouse", "die", "fire engine")  # on which all of DreamBooth is questioned
COMPARED = ("full", "same layers, near", "LoRA", "OFT", "COFT")  # who is trained far too long
STEPS = (50, 100, 200)
PATIENT = 600  # steps of a training that is not in a hurry
MOST = 6  # rates of one method


def rates(rows: Sequence[Mapping[str, Any]] = ()) -> list[Setting]:
    """Each method at each learning rate, on a few subjects: how its own best one is found."""
    return [Setting(subject, method, lr) for method in METHODS for lr in rates_of(rows, method) for subject in FEW]


def rates_of(rows: Sequence[Mapping[str, Any]], method: str) -> list[float]:
    """The learning rates to try with a method, given what was measured: if the best of them is the smallest or the
    largest, one beyond it, too, up to `MOST`.
    """
    there = _tried(rows, method)
    tried = sorted({*RATES[method], *there})
    if tried == there and len(tried) < MOST and at_the_edge(rows, method):
        lr = best(rows, method)[0]
        tried.append(round(lr * 10 ** (0.5 if lr == tried[-1] else -0.5), 6))
    return sorted(tried)


def at_the_edge(rows: Sequence[Mapping[str, Any]], method: str) -> bool:
    """Whether a method did best at the smallest or largest rate that was tried, so that others may be better yet."""
    tried = _tried(rows, method)
    return best(rows, method)[0] in (tried[0], tried[-1])


def _tried(rows: Sequence[Mapping[str, Any]], method: str) -> list[float]:
    return sorted({row["lr"] for row in rows if row["method"] == method})


def score(row: Mapping[str, Any]) -> float:
    """How good a finetuning is in all three respects: the geometric mean of the likeness gained (from that of the class
    before), the share of scenes that are right, and the share of unrelated prompts that are still met.
    """
    gained = max(row["likeness"] - row["pres_before"], 0.0)
    kept = min(row["kept"] / max(row["kept_before"], 1e-9), 1.0)
    return float((gained * row["scene"] * kept) ** (1 / 3))


def scores(rows: Sequence[Mapping[str, Any]], method: str) -> dict[tuple[float, int], float]:
    """The mean `score` over subjects, of stored rows of `rates`, by learning rate and step.

    Raises ValueError when there are none of this method.
    """
    found: dict[tuple[float, int], list[float]] = {}
    for row in rows:
        if row["method"] == method:
            found.setdefault((row["lr"], row["step"]), []).append(score(row))
    if not found:
        raise ValueError(f"no learning rate of {method!r} was measured yet: companion finetunings rates")
    return {key: float(np.mean(values)) for key, values in found.items()}


def unfinished(rows: Sequence[Mapping[str, Any]], method: str) -> bool:
    """Whether a method did best after the most steps that were tried, so that it may go on to get better."""
    return best(rows, method)[1] == max(row["step"] for row in rows if row["method"] == method)


def best(rows: Sequence[Mapping[str, Any]], method: str) -> tuple[float, int]:
    """The learning rate and the number of steps at which a method did best. Raises ValueError as `scores` does."""
    found = scores(rows, method)
    return max(found, key=lambda key: found[key])


def table(rows: Sequence[Mapping[str, Any]], seeds: int = 3) -> list[Setting]:
    """Every method at its best rate, with several seeds, on all subjects but those on which the rates were chosen."""
    chosen = {method: best(rows, method)[0] for method in METHODS}
    return [Setting(s, m, chosen[m], seed) for seed in range(seeds) for s in untried() for m in METHODS]


def words(rows: Sequence[Mapping[str, Any]], seeds: int = 3) -> list[Setting]:
    """What the methods of `table` start from, for each of its subjects and seeds: the word alone."""
    recipe: dict[str, Any] = {name: WORD_RECIPE[name] for name in ("lr", "batch", "decay")}
    return [
        Setting(s, START, seed=seed, prior=False, others=False, **recipe) for seed in range(seeds) for s in untried()
    ]


def untried() -> list[str]:
    """The subjects that had no part in choosing learning rates."""
    return [subject for subject in SUBJECTS if subject not in FEW]


def _plain(rows: Sequence[Mapping[str, Any]], seeds: int) -> list[Setting]:
    """Our recipe as it is, on all subjects that had no part in choosing its learning rate."""
    lr = best(rows, DREAMBOOTH)[0]
    return [Setting(subject, DREAMBOOTH, lr, seed) for seed in range(seeds) for subject in untried()]


def wrong_noun(subject: str) -> str:
    """A noun that is not the subject's."""
    return "car" if SUBJECTS[subject].noun != "car" else "tree"


def ablations(rows: Sequence[Mapping[str, Any]], seeds: int = 1) -> list[Setting]:
    """DreamBooth's own questions: without the second set, on all subjects; and on `SOME`, with the class alone in it;
    captions without scenes; a wrong noun or none; a rare word that was not learned first, or none; fewer photographs;
    low timesteps only.
    """
    found = []
    for s in _plain(rows, seeds):
        found += [s, replace(s, prior=False)]
        if s.subject in SOME:
            wrong = wrong_noun(s.subject)
            found += [replace(s, others=False), replace(s, scenes=False)]
            found += [replace(s, noun=wrong), replace(s, noun=""), replace(s, word=RARE_WORD), replace(s, word="")]
            found += [replace(s, photographs=n) for n in (1, 3)] + [replace(s, latest=500)]
    return found


#: What guides advise, or warn of: what is changed, and against what it is compared, DreamBooth as it is when {}. Where
#: photographs are smaller than the model's pictures, there is no class beside them, whose pictures have full size.
ADVICE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "JPEG instead of PNG": ({"prepared": "JPEG"}, {}),
    "stretched to a square": ({"prepared": "stretched"}, {}),
    "bars instead of a crop": ({"prepared": "with bars"}, {}),
    "small photographs, enlarged": ({"prepared": "enlarged"}, {}),
    "small photographs as they are": ({"prepared": "small", "prior": False}, {"prior": False}),
    "no reminders at all": ({"prior": False}, {}),
    "21 + 21 reminders instead of 100 + 100": ({"class_pictures": 21}, {}),
}


def advice(rows: Sequence[Mapping[str, Any]], seeds: int = 1) -> list[Setting]:
    """What `ADVICE` changes, on `SOME` subjects. What it is compared with, and what leaving out the class does, is in
    `ablations`.
    """
    changes = [change for change, _ in ADVICE.values() if change != {"prior": False}]
    return [replace(s, **change) for s in _plain(rows, seeds) if s.subject in SOME for change in changes]


def long(rows: Sequence[Mapping[str, Any]]) -> list[Setting]:
    """A few methods far beyond what they need, at a rate that does not fall: who stays stable?"""
    return [Setting(s, method, best(rows, method)[0], decay=0.0) for s in untried()[:5] for method in COMPARED]


def patient(rows: Sequence[Mapping[str, Any]]) -> list[Setting]:
    """LoRA as in `table`, in three times as many steps, over which its rate falls: what does patience bring?"""
    return [Setting(s, "LoRA", best(rows, "LoRA")[0]) for s in untried()]


PLANS: dict[str, tuple[Callable[..., list[Setting]], tuple[int, ...]]] = {
    "rates": (lambda rows: rates(rows), STEPS),
    "table": (table, STEPS),
    "words": (words, (WORD_RECIPE["steps"],)),
    "ablations": (ablations, STEPS[-1:]),
    "advice": (advice, STEPS[-1:]),
    "long": (long, (100, 200, 500, 1000)),
    "patient": (patient, (PATIENT,)),
}


def results(plan: str) -> Path:
    """Where the rows of a plan are stored."""
    return companion.DATA / "results" / f"finetuning_{plan}.jsonl"


def stored(plan: str) -> list[dict[str, Any]]:
    """The rows of a plan that were measured with the weights in data/models; [] when there are none."""
    weights = _weights()
    return [row for row in read_rows(results(plan)) if row["weights"] == weights]


def complete(plan: str) -> list[dict[str, Any]]:
    """The rows of a plan with those seeds of which all settings have been measured; [] when no seed is complete."""
    if plan != "rates" and not complete("rates"):
        return []
    make, at = PLANS[plan]
    rows, settings = stored(plan), make(stored("rates"))
    there = {(*_key(row), row["step"]) for row in rows}
    lacking = {setting.seed for setting in settings for step in at if (*_key(asdict(setting)), step) not in there}
    wanted = {_key(asdict(setting)) for setting in settings if setting.seed not in lacking}
    return [row for row in rows if _key(row) in wanted]


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[field] for field in Setting.__dataclass_fields__)


def _weights() -> str:
    return weights_sum(companion.DATA / "models" / "tabletop")


#: How the pictures that are measured are drawn: in few steps, without the noise of the stochastic sampler.
DRAWING = {"steps": 10}


def prepared(device: str = "cpu") -> tuple[StableDiffusionPipeline, dict[str, Any]]:
    """The miniature for a sweep, and the options of `diffusion.draw` for its pictures."""
    pipe = companion.load(device=device)
    pipe.scheduler = diffusion.steady(pipe.scheduler)
    return pipe, {**DRAWING, "guidance_scale": find("tabletop").guidance}


def sweep(
    pipe: StableDiffusionPipeline, plan: str, workers: int = 1, **options: Any
) -> Iterator[tuple[int, int, Setting]]:
    """Measure what a plan still lacks, and store its rows; yields how many settings are done, of how many, and which.

    It may be stopped at any time, and goes on with the next setting. A setting that another plan has measured at the
    same steps is taken from there. With several workers, processes of one thread each measure settings beside each
    other, on pipelines of their own (see `prepared` and `workers.beside`).
    Raises ValueError for an unknown plan, or one that needs `rates` first.
    """
    if plan not in PLANS:
        raise ValueError(f"{plan!r} is no plan; there are {', '.join(PLANS)}")
    make, at = PLANS[plan]
    while True:  # what was measured may ask for more, as in `rates`
        settings = make(stored("rates"))
        if known := _elsewhere(plan, settings):
            write_rows(results(plan), stored(plan) + known)
        rows = stored(plan)
        there = {_key(row) for row in rows}
        lacking = [setting for setting in settings if _key(asdict(setting)) not in there]
        if not lacking:
            return
        done = len(settings) - len(lacking)
        for setting, found in zip(lacking, _measured(pipe, lacking, at, workers, options), strict=True):
            rows += [row | {"weights": _weights()} for row in found]
            write_rows(results(plan), rows)
            done += 1
            yield done, len(settings), setting


def _elsewhere(plan: str, settings: Sequence[Setting]) -> list[dict[str, Any]]:
    """The rows of other plans with settings that a plan wants and lacks, trained as long, at its steps."""
    at = PLANS[plan][1]
    wanted = {_key(asdict(setting)) for setting in settings} - {_key(row) for row in stored(plan)}
    alike = [other for other, (_, steps) in PLANS.items() if max(steps) == max(at) and set(at) <= set(steps)]
    rows = [row for other in alike for row in stored(other) if _key(row) in wanted and row["step"] in at]
    return list({(*_key(row), row["step"]): row for row in rows}.values())


def _measured(
    pipe: StableDiffusionPipeline, settings: Sequence[Setting], at: Sequence[int], workers: int, options: dict[str, Any]
) -> Iterator[list[dict[str, Any]]]:
    if workers == 1:
        return map(_rows_of(pipe, at, options), settings)
    return beside(partial(_measurer, str(pipe.device), tuple(at), options), settings, workers)


def _rows_of(
    pipe: StableDiffusionPipeline, at: Sequence[int], options: dict[str, Any]
) -> Callable[[Setting], list[dict[str, Any]]]:
    return lambda setting: list(teach_and_measure(pipe, setting, at, **options))


def _measurer(device: str, *rest: Any) -> Callable[[Setting], list[dict[str, Any]]]:
    return _rows_of(prepared(device)[0], *rest)


# ---- Comparing -------------------------------------------------------------------------------------------------------


def by_subject(rows: Sequence[Mapping[str, Any]], key: str, method: str, step: int) -> dict[str, float]:
    """A measure for each subject, the mean over its seeds."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if (row["method"], row["step"]) == (method, step):
            found.setdefault(row["subject"], []).append(row[key])
    return {subject: float(np.mean(values)) for subject, values in found.items()}


def by_rate(rows: Sequence[Mapping[str, Any]], key: str, method: str, step: int) -> dict[float, float]:
    """A measure at each learning rate, from the smallest on: the mean over subjects and seeds."""
    found: dict[float, list[float]] = {}
    for row in rows:
        if (row["method"], row["step"]) == (method, step):
            found.setdefault(row["lr"], []).append(row[key])
    return {lr: float(np.mean(values)) for lr, values in sorted(found.items())}


def courses(
    rows: Sequence[Mapping[str, Any]], method: str, value: Callable[[Mapping[str, Any]], float] = score
) -> dict[str, dict[int, float]]:
    """For each subject how a value of rows goes on through training, by step, the mean over seeds; see `score`."""
    found: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        if row["method"] == method:
            found.setdefault(row["subject"], {}).setdefault(row["step"], []).append(value(row))
    return {
        subject: {step: float(np.mean(values)) for step, values in sorted(steps.items())}
        for subject, steps in found.items()
    }


def course(
    rows: Sequence[Mapping[str, Any]], method: str, value: Callable[[Mapping[str, Any]], float] = score
) -> dict[int, float]:
    """How a value of rows goes on through training, by step, the mean over the subjects of `courses`."""
    each = list(courses(rows, method, value).values())
    return {step: float(np.mean([found[step] for found in each])) for step in each[0]} if each else {}


def by_method(rows: Sequence[Mapping[str, Any]], keys: Sequence[str], at: Mapping[str, int]) -> np.ndarray:
    """The sum of some measures, (M, N), for M methods, each at its step in `at`, and N subjects.

    Raises ValueError when not all of the methods were measured on the same subjects.
    """
    found = {(method, key): by_subject(rows, key, method, step) for method, step in at.items() for key in keys}
    subjects = list(next(iter(found.values())))
    if any(values.keys() != set(subjects) for values in found.values()):
        raise ValueError(f"{', '.join(at)} were not measured on the same subjects")
    return np.array([[sum(found[method, key][s] for key in keys) for s in subjects] for method in at])


def summary(rows: Sequence[Mapping[str, Any]], key: str, method: str, step: int) -> tuple[float, float, float]:
    """Mean and confidence interval of a measure over subjects. Seeds of one subject are not independent of each other,
    so subjects are what is counted.
    """
    return mean_interval(list(by_subject(rows, key, method, step).values()))


def compared(
    rows: Sequence[Mapping[str, Any]],
    rate_rows: Sequence[Mapping[str, Any]],
    key: str,
    method: str,
    rival: str,
    step: int | None = None,
) -> Compared:
    """Compare two methods in a measure of the stored table, subject by subject, each at its own best number of steps.

    Args:
        rate_rows: of `rates`, which say at how many steps each method is best.
        step: the same for both, instead.
    Raises:
        ValueError: when fewer than two subjects were measured by both.
    """
    steps = [step or best(rate_rows, name)[1] for name in (method, rival)]
    a, b = (by_subject(rows, key, name, at) for name, at in zip((method, rival), steps, strict=True))
    return paired(a, b, f"{method!r} and {rival!r}")


def gained(
    rows: Sequence[Mapping[str, Any]], words: Sequence[Mapping[str, Any]], key: str, method: str, step: int
) -> dict[str, float]:
    """How much more of a measure each subject has than the word alone, of which `words` are the rows (see `START`)."""
    before = by_subject(words, key, START, WORD_RECIPE["steps"])
    return {s: value - before[s] for s, value in by_subject(rows, key, method, step).items() if s in before}


def price(rows: Sequence[Mapping[str, Any]], words: Sequence[Mapping[str, Any]], method: str, step: int) -> np.ndarray:
    """What likeness cost, (2, N): the drift of each subject, and the likeness gained over that of the word alone."""
    gains, drifts = gained(rows, words, "likeness", method, step), by_subject(rows, "drift", method, step)
    return np.array([[drifts[s], gain] for s, gain in gains.items()]).reshape(-1, 2).T


def sided(found: Sequence[Compared], better: Sequence[str], margins: Sequence[float]) -> list[str]:
    """How the first of two methods stands in each comparison, once corrected for their number (see `decided`).

    Args:
        better: "higher" or "lower" for each, whichever number is the better one.
        margins: differences that would not matter.
    Returns:
        "ahead" or "behind"; "alike", when the interval lies within the margin; or else "open".
    """
    words = []
    for one, seen, good, margin in zip(found, decided(found), better, margins, strict=True):
        tied = "alike" if one.within(margin) else "open"
        words.append({good: "ahead", "not told apart": tied}.get(seen, "behind"))
    return words


def settled(words: Sequence[str]) -> str:
    """What several of the words of `sided` come to, for one pair of methods."""
    ahead = [word for word in ("ahead", "behind") if word in words]
    if len(ahead) == 2:
        return "each is ahead in something"
    if ahead:
        return ahead[0] + (", as far as it is decided" if "open" in words else "")
    return "open" if "open" in words else "alike"


def predicted(words: Sequence[str], helps: bool) -> str:
    """Whether words of `sided` are as predicted: "seen", "contradicted" or "open".

    Args:
        helps: whether the first method was to be ahead in something and behind in nothing, or else level: neither.
    """
    wrong = "behind" in words or set(words) == {"alike"} if helps else bool({"ahead", "behind"} & set(words))
    return "contradicted" if wrong else "open" if "open" in words else "seen"


def paired(a: Mapping[str, float], b: Mapping[str, float], names: str = "both") -> Compared:
    """Compare a measure's values by subject, on the subjects that both have. Raises ValueError for fewer than two."""
    both = [subject for subject in a if subject in b]
    if len(both) < 2:
        raise ValueError(f"{len(both)} subjects were measured by {names}; two are needed at least")
    return compare([a[s] for s in both], [b[s] for s in both])


def by_setting(rows: Sequence[Mapping[str, Any]], key: str, step: int, change: Mapping[str, Any]) -> dict[str, float]:
    """A measure for each subject in stored rows of `ablations` or `advice`, the mean over seeds.

    Args:
        change: fields of `Setting` that differ from DreamBooth as it is, such as {"prior": False}; {} for none. The
            noun `WRONG` stands for each subject's `wrong_noun`.
    """
    usual = asdict(Setting("", DREAMBOOTH, 0.0))
    wanted: dict[str, Any] = {k: v for k, v in usual.items() if k not in ("subject", "lr", "seed")} | dict(change)

    def fits(row: Mapping[str, Any]) -> bool:
        own = wanted | ({"noun": wrong_noun(row["subject"])} if wanted["noun"] == WRONG else {})
        return all(row[k] == v for k, v in own.items())

    alike = [row for row in rows if fits(row)]
    return by_subject(alike, key, wanted["method"], step)


def changed(
    rows: Sequence[Mapping[str, Any]], key: str, step: int, change: Mapping[str, Any], against: Mapping[str, Any]
) -> Compared:
    """What a change of the setting does to a measure, subject by subject; `change` and `against` as in `by_setting`.

    Raises ValueError when fewer than two subjects were measured both ways.
    """
    a, b = (by_setting(rows, key, step, which) for which in (change, against))
    return paired(a, b, f"{dict(change)} and {dict(against) or 'DreamBooth as it is'}")


# ---- Pictures of every subject ---------------------------------------------------------------------------------------

#: Who taught what is shown: a method, by its name, and its steps, the best of `STEPS` when None.
BY = {DREAMBOOTH: (DREAMBOOTH, None), "LoRA": ("LoRA", None), f"LoRA, {PATIENT} steps": ("LoRA", PATIENT)}
NEAREST, _NOUN = "nearest words", "class noun alone"
#: What stands in a subject's row, from the left.
SHOWN = ("photograph", _NOUN, *(f"{way}{more}" for way in BY for more in ("", ", beside another")))
#: What a second eye saw, the subject alone in one scene: the nearest words are the control that has its colour.
SECOND = (_NOUN, NEAREST, "LoRA", f"LoRA, {PATIENT} steps")


def sheet(subject: str) -> Path:
    """Where a subject's row of pictures is stored."""
    return companion.DATA / "results" / "finetuning_subjects" / f"{subject.replace(' ', '-')}.jpg"


def sheets() -> dict[str, Image.Image]:
    """The rows of pictures (see `SHOWN`) that were drawn with the weights in data/models, by subject."""
    found = {subject: _sheet(subject) for subject in SUBJECTS}
    return {subject: row for subject, row in found.items() if row}


def _sheet(name: str) -> Image.Image | None:
    if sheet(name).exists():
        with Image.open(sheet(name)) as picture:
            if picture.info.get("comment", b"").decode() == _weights():
                return picture.convert("RGB")
    return None


def _store_sheet(name: str, pictures: Sequence[np.ndarray]) -> None:
    with written(sheet(name)) as temporary:
        row = Image.fromarray(np.concatenate(pictures, 1))
        row.save(temporary, "JPEG", quality=85, subsampling=0, comment=_weights())


# ---- Trainings that notebook 05 fetches ------------------------------------------------------------------------------


def training(name: str) -> Path:
    """The folder of a training that was run beforehand: what was learned, and with which settings."""
    return companion.DATA / "results" / "finetuning_trainings" / name.replace(" ", "-")


def keep(tuned: Tuned, name: str, sets: Sequence[Examples], settings: Mapping[str, Any]) -> None:
    """Store what a LoRA learned, with what `fetch` compares."""
    folder = training(name)
    record = folder / "settings.json"
    record.unlink(missing_ok=True)  # while it is gone, nothing is fetched
    save_learned(tuned, folder)
    with written(record) as temporary:
        temporary.write_text(_record(sets, settings), encoding="utf-8")


def fetch(tuned: Tuned, name: str, sets: Sequence[Examples], settings: Mapping[str, Any]) -> bool:
    """Give `tuned` what a stored training learned.

    Args:
        sets: what it learned from; the numbers of examples, their prompts and weights must be the same.
        settings: all else that matters, as JSON takes it; it must be the same, too.
    Returns:
        False, and nothing is done, where no stored training of this name is the same, or where it began from other
        weights than those in data/models.
    """
    record = training(name) / "settings.json"
    if not record.exists() or record.read_text(encoding="utf-8") != _record(sets, settings):
        return False
    load_learned(tuned, training(name))
    return True


def _record(sets: Sequence[Examples], settings: Mapping[str, Any]) -> str:
    prompts = [hashlib.sha256("\n".join(s.prompts).encode()).hexdigest()[:16] for s in sets]
    about = [
        {"examples": len(s.prompts), "weight": float(s.weight), "prompts": p}
        for s, p in zip(sets, prompts, strict=True)
    ]
    return json.dumps({**settings, "sets": about, "weights": _weights()}, indent=2, sort_keys=True) + "\n"


# ---- An eye's verdicts -----------------------------------------------------------------------------------------------


def recognised(reader: str = "eye") -> dict[str, dict[str, str]]:
    """What an eye that saw pictures without their prompts recognised: for each subject "yes", "half" or "no" by the
    names of ways. Empty where it has not seen exactly the files that are here.

    Args:
        reader: "eye", who saw all of `SHOWN`; or "second", who saw `SECOND`, and for whom a colour alone was "no".
    """
    path = sheet(reader).with_suffix(".json")
    seen = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"pictures": {}, "recognised": {}}
    names = [*SUBJECTS, *([NEAREST] if reader == "second" else [])]
    now = {name: hashlib.sha256(sheet(name).read_bytes()).hexdigest() for name in names if sheet(name).exists()}
    return seen["recognised"] if now == seen["pictures"] and sheets() else {}


def points(said: Mapping[str, Mapping[str, str]], *ways: str) -> list[float]:
    """What each subject of `recognised` earns in the pictures drawn in these ways (see `SHOWN`), the mean over them:
    1 where it is recognised, 0.5 by half.
    """
    worth = {"yes": 1.0, "half": 0.5, "no": 0.0}
    return [float(np.mean([worth[pictures[way]] for way in ways])) for pictures in said.values()]


def measured(way: str, key: str) -> dict[str, float]:
    """A stored measure of each subject, as it was taught in one of the ways `BY`, at the seed of the pictures."""
    method, steps = BY[way]
    if steps:
        return by_subject(stored("patient"), key, method, steps)
    once = [row for row in stored("table") if row["seed"] == 0]
    return by_subject(once, key, method, best(stored("rates"), method)[1])


def draw_sheets(pipe: StableDiffusionPipeline, **options: Any) -> Iterator[tuple[int, int, str]]:
    """Teach every subject by `BY`, with prior preservation, at the rate that `rates` found best, and store a row of
    pictures of each for an eye; yields how many are done, of how many, and which. Rows that are there stay. One more
    row has what the nearest words draw of each subject. `options` are those of `diffusion.draw`. Raises ValueError when
    there are no `rates` yet.
    """
    chosen, there = {method: best(stored("rates"), method) for method, _ in BY.values()}, sheets()
    if _sheet(NEAREST) is None:
        prompts = [subject.prompt(subject.tests()[1][1], subject.like) for subject in SUBJECTS.values()]
        _store_sheet(NEAREST, list(tensor_to_bytes(diffusion.draw(pipe, prompts, 0, **options)).numpy()))
    for done, (name, subject) in enumerate(SUBJECTS.items(), 1):
        if name not in there:
            scenes, (photographs, _) = subject.tests()[1], subject.photographs()
            prompts = [subject.prompt(scenes[i], WORD) for i in (1, 0)]  # every other scene has a neighbour, as 0 has
            drawn = [diffusion.draw(pipe, subject.prompt(scenes[1], ""), 0, **options)]
            for method, steps in BY.values():
                lr, quick = chosen[method]
                *_, last = taught(pipe, Setting(name, method, lr), steps or quick, **options)
                drawn.append(diffusion.draw(last.tuned.pipe, prompts, [0, 1], **options))
            _store_sheet(name, [photographs[0], *tensor_to_bytes(torch.cat(drawn)).numpy()])
        yield done, len(SUBJECTS), name
