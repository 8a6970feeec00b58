"""The report: what the published models achieve, freshly measured, as JSON, a table, and a sheet to look at."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from companion import DATA, ROOT, diffusion
from companion.fast import Fast
from companion.files import written
from companion.metrics import pictures_to_tensor, tensor_to_bytes
from companion.models import find, load
from companion.tabletop import dataset
from companion.tabletop.caption import Wish, caption
from companion.tabletop.judge import Judge
from companion.tabletop.samples import held_out
from companion.tabletop.scene import Scene
from companion.tabletop.splits import SPLITS, sample_scene

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from companion.pretraining.examination import Exam, Spoilable
    from companion.pretraining.eye import Asked

MODELS = DATA / "models"
#: Conditions whose drawn pictures an eye has looked at, and what they are called in the table.
LOOKED_AT = {"depth": "a depth map", "canny": "Canny edges"}
#: key: (description, number format, goal, the least it must reach, whether more is better)
BARS: dict[str, tuple[str, str, float | None, float | None, bool]] = {
    "vae_psnr_db": ("VAE: PSNR on 256 held-out renders", "{:.2f} dB", 34.0, 32.0, True),
    "vae_psnr_things_db": ("... of things alone", "{:.2f} dB", 32.0, 31.0, True),
    "vae_fine_contrast": ("... fine contrast left, of the renders'", "{:.0%}", 0.65, 0.55, True),
    "judge_min_attribute": ("Judge: its weakest attribute on held-out renders", "{:.1%}", 0.995, 0.99, True),
    "judge_empty": ("... empty scenes read as empty", "{:.1%}", None, None, True),
    "judge_accepts_spoiled": ("... things spoiled on purpose that it accepts", "{:.1%}", None, None, False),
    "judge_before_accepts_spoiled": ("... and the judge of the weights before", "{:.1%}", None, None, False),
    "judge_accepts_wrong": (
        "... things that an eye calls wrong and it accepts",
        "{:.0%}",
        0.15,
        0.30,
        False,
    ),
    "judge_rejects_clear": ("... things that an eye calls clear and it rejects", "{:.1%}", 0.03, 0.06, False),
    "judge_calibration": ("... distance between its confidence and how often it is right", "{:.1%}", None, None, False),
    "clip_top1": ("CLIP: picture finds its caption among 256 held-out", "{:.1%}", None, None, True),
    "clip_near_miss": ("CLIP: own caption before one that is nearly right", "{:.1%}", None, None, True),
    "prompt_kind": ("One thing: kind", "{:.1%}", 0.98, 0.96, True),
    "prompt_colour": ("One thing: colour or material", "{:.1%}", 0.97, 0.95, True),
    "prompt_place": ("One thing: place", "{:.1%}", 0.99, 0.98, True),
    "prompt_time": ("One thing: time of day", "{:.1%}", 0.99, 0.98, True),
    "prompt_pair": ("Two things: both kinds, both colours and the relation", "{:.1%}", 0.92, 0.80, True),
    "prompt_withheld": ("Pairs never seen in training: kind and colour", "{:.1%}", 0.88, 0.70, True),
    "eye_clear": ("An eye: things that are clear", "{:.0%}", 0.95, 0.88, True),
    "eye_worst_kind": ("... of the kind that is clear least often", "{:.0%}", 0.90, 0.80, True),
    "eye_cube": ("... cubes", "{:.0%}", 0.90, 0.80, True),
    "eye_clear_rebuilt": ("... of rebuilt renders, shown among them", "{:.0%}", None, None, True),
    "eye_clear_untouched": ("... of renders as they are, to another eye", "{:.0%}", None, None, True),
    "eye_clear_untouched_rebuilt": ("... of rebuilt renders, shown among those", "{:.0%}", None, None, True),
    "shape_error_px": ("Things are bent as renders that were bent by", "{:.2f} px", None, None, False),
    "shape_error_px_before": ("... those of the weights before", "{:.2f} px", None, None, False),
    "shape_error_ratio": ("... the first over the second", "{:.0%}", 0.50, 0.70, False),
    "shape_scale_error": ("... the network that says so is wrong by, on renders", "{:.2f} px", None, None, False),
    "error_things_50": ("Error of the predicted noise on things, at t = 50", "{:.3f}", None, None, False),
    "error_things_50_train": ("... on renders that it was trained on", "{:.3f}", None, None, False),
    "error_things_100": ("Error of the predicted noise on things, at t = 100", "{:.3f}", None, None, False),
    "error_things_100_train": ("... on renders that it was trained on", "{:.3f}", None, None, False),
    "frechet": ("Fréchet distance to held-out renders", "{:.3f}", None, None, False),
    "frechet_halves": ("... between two sets of held-out renders", "{:.3f}", None, None, False),
    "frechet_ratio": ("... the first over the second", "{:.1f}", 3.0, 6.0, False),
    "frechet_things_ratio": ("... the same of patches of things", "{:.1f}", None, None, False),
    "fine_contrast": ("Fine contrast of pictures, of that of renders", "{:.0%}", None, None, True),
    **{
        f"control_{name}": (f"ControlNet, {title}: of the way from no control to renders", "{:.0%}", goal, least, True)
        for name, title, goal, least in (
            ("canny", "Canny edges", 0.85, 0.70),
            ("softedge", "soft edges", 0.75, 0.60),
            ("mlsd", "straight lines", 0.75, 0.60),
            ("depth", "depth", 0.85, 0.70),
            ("normal", "normals", 0.85, 0.70),
            ("openpose", "a pose", 0.85, 0.70),
            ("scribble", "a scribble", 0.75, 0.60),
            ("seg", "segments", 0.85, 0.70),
        )
    },
    "control_prompts": ("... prompts met with the worst of them, of those met without", "{:.1%}", 0.95, 0.90, True),
    **{
        key: (what.format(title), "{:.0%}", goal, least, True)
        for name, title in LOOKED_AT.items()
        for key, what, goal, least in (
            (f"eye_{name}_clear", "An eye: things drawn with {} that are clear", 0.95, 0.88),
            (f"eye_{name}_cube", "... cubes", 0.90, 0.80),
        )
    },
    "controlled_picture_ratio": ("... a fast picture with one, in times of one without", "{:.2f}", None, 1.6, False),
    "picture_seconds": ("A warm picture, stock pipeline", "{:.2f} s", None, 1.0, False),
    "fast_picture_seconds": ("A warm picture, `companion.fast`", "{:.2f} s", 0.5, 0.8, False),
    "load_seconds": ("Import and load", "{:.1f} s", None, 10.0, False),
    "weights_mb": ("All weights together, without ControlNets", "{:.1f} MB", 60.0, 60.0, False),
    "all_weights_mb": ("... and with all of them", "{:.1f} MB", 120.0, 120.0, False),
    "follower_mb": ("... the largest ControlNet's", "{:.1f} MB", 8.0, 8.0, False),
}


def prompt_scenes(split: str, things: int, count: int) -> list[Scene]:
    """The first `count` scenes of a held-out split with `things` things each."""
    first = SPLITS[split][0]
    return [sample_scene(seed, things) for seed in range(first, first + count)]


def drawn_bytes(pipe: StableDiffusionPipeline, prompts: list[str], seed: int = 0, **options: Any) -> np.ndarray:
    """Pictures, uint8 (N, 128, 128, 3), of prompts; picture i starts from the noise of seed + i whatever the batch.

    Steps and guidance are the catalogue's, unless `options` say otherwise.
    """
    entry = find("tabletop")
    options = {"steps": entry.steps, "guidance_scale": entry.guidance, **options}
    drawn = diffusion.draw(pipe, prompts, range(seed, seed + len(prompts)), **options)
    return tensor_to_bytes(drawn).numpy()


def load_tabletop(folder: Path = MODELS / "tabletop"):
    """The published pipeline, or that of another folder, on the CPU in single precision."""
    return load(folder, device="cpu")


class Measuring:
    """What data/models holds, measured part by part: each method gives the numbers of one part.

    Args:
        folder: the build folder, which has (or gets) the held-out renders.
        share: of the pictures, in (0, 1].
        before: the commit of earlier weights, which are measured beside today's where a method says so.
    """

    def __init__(self, folder: Path, share: float = 1.0, before: str = ""):
        self.folder, self.share, self.before = folder, share, before

    def take(self, n: int, unit: int = 1) -> int:
        """The share of `n`, in whole units and at least one."""
        return max(unit, round(n * self.share / unit) * unit)

    def missing_renders(self) -> Iterator[str]:
        """Draw the held-out renders that the folder lacks; yields the name of each file."""
        few = self.take(500, 250)
        splits = {"val": 500, "test": self.take(2000, 500), "test-empty": few, "test-swapped": few, "withheld": 250}
        for split, count in splits.items():
            yield from dataset.build(self.folder / "renders", split, count)

    @cached_property
    def pipe(self) -> StableDiffusionPipeline:
        """The published pipeline."""
        return load_tabletop()

    @cached_property
    def read_by(self) -> Judge:
        """The published judge."""
        return Judge.load(MODELS / "judge")

    @cached_property
    def spoilable(self) -> Spoilable:
        """Held-out renders whose things can be spoiled."""
        from companion.pretraining.examination import Spoilable

        return Spoilable(self.folder / "renders", "test", self.pipe.vae, self.take(500, 250))

    @cached_property
    def asked(self) -> dict[str, list[Scene]]:
        """Held-out scenes: with one thing, with two, and of pairs never seen in training."""
        splits = {"one": ("test", 1, 500), "two": ("test", 2, 500), "withheld": ("withheld", 1, 250)}
        return {name: prompt_scenes(split, n, self.take(count)) for name, (split, n, count) in splits.items()}

    @cached_property
    def drawn(self) -> dict[str, np.ndarray]:
        """What the pipeline draws of the scenes in `asked`."""
        return {name: drawn_bytes(self.pipe, [caption(s) for s in scenes]) for name, scenes in self.asked.items()}

    def autoencoder(self) -> dict[str, float]:
        """How well held-out renders come back, and how much of their fine contrast."""
        from companion.metrics import fine_contrast, psnr
        from companion.pretraining.vae import rebuild

        pictures, _ = held_out(self.take(256))
        again = rebuild(self.pipe.vae, pictures)
        segments = dataset.read(self.folder / "renders", "val", ("segments",), len(pictures))["segments"]
        thing = torch.as_tensor(segments >= 2)[:, None].float()
        return {
            "vae_psnr_db": psnr(again, pictures).mean().item(),
            "vae_psnr_things_db": psnr(again, pictures, thing).mean().item(),
            "vae_fine_contrast": fine_contrast(again) / fine_contrast(pictures),
        }

    def judge(self) -> dict[str, float]:
        """What the judge reads, and what it accepts though it should not; the same of the judge before, if asked."""
        from companion.pretraining.examination import examination, examine
        from companion.pretraining.judge import COLUMNS, accuracy

        n, renders = self.take(1000, 250), self.folder / "renders"
        read = accuracy(self.read_by, dataset.read(renders, "test", COLUMNS, n), dataset.scenes(renders, "test", n))
        rare = dataset.read(renders, "withheld", COLUMNS, 250), dataset.scenes(renders, "withheld", 250)
        seldom = accuracy(self.read_by, *rare)
        names = ("count", "front", "place", "time", "kind", "finish")
        found = {"judge_min_attribute": min(read[k] for k in names)} | {f"judge_{k}": v for k, v in read.items()}
        found |= {f"judge_withheld_{k}": seldom[k] for k in ("kind", "finish")}
        sorts = examination(self.spoilable)
        exam = examine(self.read_by, sorts)
        found |= {"judge_rebuilt_kind": exam.read["rebuilt"], "judge_empty": exam.read["empty"]}
        found |= _accepted("judge", exam)
        if exam.counts:
            found["judge_calibration"] = exam.calibration_error
            for i, three in enumerate(zip(exam.confidence, exam.right, exam.counts, strict=True)):
                found |= dict(zip((f"judge_{what}_{i}" for what in RELIABILITY), three, strict=True))
        if self.before:
            with published(self.before, "judge") as old:
                found |= _accepted("judge_before", examine(Judge.load(old), sorts))
        return found

    def clip(self) -> dict[str, float]:
        """Whether CLIP finds to each held-out render its caption."""
        from transformers import CLIPModel, CLIPTokenizer

        from companion.pretraining.clip import halved, retrieval

        (pictures, scenes), model = held_out(self.take(256)), CLIPModel.from_pretrained(MODELS / "clip").eval()
        return retrieval(model, halved(pictures), scenes, CLIPTokenizer.from_pretrained(MODELS / "clip"))

    def prompts(self) -> dict[str, float]:
        """How many held-out prompts are met, as the judge reads them."""
        from companion.tabletop.measures import prompt_accuracy

        wishes = {name: [Wish.of(s) for s in scenes] for name, scenes in self.asked.items()}
        got = {name: prompt_accuracy(self.drawn[name], wishes[name]) for name in wishes}
        shown = {"kind": "kind", "colour": "finish", "place": "place", "time": "time", "one_all": "all"}
        found = {f"prompt_{name}": got["one"][k] for name, k in shown.items()}
        pair = [Wish(w.kinds, w.finishes, w.relation, None, None) for w in wishes["two"]]
        found["prompt_pair"] = prompt_accuracy(self.drawn["two"], pair)["all"]
        shown = {"kind": "kind", "colour": "finish", "relation": "relation"}
        found |= {f"prompt_pair_{name}": got["two"][k] for name, k in shown.items()}
        alone = [Wish(w.kinds, w.finishes, None, None, None) for w in wishes["withheld"]]
        found["prompt_withheld"] = prompt_accuracy(self.drawn["withheld"], alone)["all"]
        return found | {f"prompt_withheld_{n}": got["withheld"][k] for n, k in (("kind", "kind"), ("colour", "finish"))}

    def pictures(self) -> dict[str, float]:
        """How far drawn pictures are from renders: fine contrast and Fréchet distances."""
        from companion.metrics import fine_contrast, frechet
        from companion.tabletop.measures import patch_features

        both = np.concatenate([self.drawn["one"], self.drawn["two"]])
        renders = dataset.read(self.folder / "renders", "test", ("picture",), self.take(2000, 500))["picture"]
        found = {"fine_contrast": fine_contrast(both) / fine_contrast(renders)}
        made, real = (self.read_by.features(pictures_to_tensor(x)) for x in (both, renders))
        half = len(real) // 2
        if len(made) > made.shape[1]:  # of fewer, nobody knows the covariance
            apart = frechet(made, real[:half][: len(made)])
            halves = frechet(real[half:][: len(made)], real[:half][: len(made)])
            found |= {"frechet": apart, "frechet_halves": halves, "frechet_ratio": apart / halves}
            made, real, other = (patch_features(x[: len(both)]) for x in (both, renders[:half], renders[half:]))
            found["frechet_things_ratio"] = frechet(made, real) / frechet(other, real)
        return found

    def shape(self) -> dict[str, float]:
        """How far the shapes of drawn things are from renders, in pixels; of the weights before as well, if asked."""
        if not (MODELS / "shape").is_dir():
            return {}
        bent = shapes(self.drawn["one"], self.spoilable)
        found = {"shape_error_px": bent.pop("all"), "shape_scale_error": bent.pop("scale_error")}
        found |= {f"shape_error_px_{kind}": v for kind, v in bent.items()}
        if self.before:
            with published(self.before, "tabletop") as old:
                again = drawn_bytes(load_tabletop(old), [caption(s) for s in self.asked["one"]])
            found["shape_error_px_before"] = shapes(again, self.spoilable)["all"]
        return found

    def errors(self) -> dict[str, float]:
        """The U-Net's error on cells of things at low noise, on held-out renders and on those that it learned from."""
        from companion.pretraining import halfway
        from companion.pretraining.unet import Conditioned

        found, renders = {}, self.folder / "renders"
        model = Conditioned(self.pipe.unet, self.pipe.text_encoder)
        for split, name in (("val", ""), ("train", "_train")):
            if split == "train" and not dataset.shard_path(renders, split, 0).exists():
                continue
            seen = dataset.read(renders, split, ("picture", "segments"), 250)
            scenes = dataset.scenes(renders, split, 250)
            about = self.pipe.vae, self.pipe.tokenizer, seen["picture"], scenes, seen["segments"]
            wrong = halfway.errors(model, *about)
            found |= {f"{k}{name}": wrong[k] for k in ("error_things_50", "error_things_100")}
        return found

    def control(self) -> dict[str, float]:
        """How faithfully the ControlNets are followed: see `controls`."""
        return controls(self.pipe, self.folder, self.take(96, 5))

    def eye(self) -> dict[str, float]:
        """What an eye said of drawn pictures, without a control and with one."""
        return eye_and_judge(self.pipe) | eye_and_controls(self.pipe)

    def speed(self) -> dict[str, float]:
        """Seconds for a picture, stock and fast, and for loading; what a ControlNet costs, in times of the fast one."""
        prompt, settings = "a red ball on grass by day", find("tabletop").settings
        fast = Fast(self.pipe)
        ways, times = {"picture_seconds": self.pipe, "fast_picture_seconds": fast}, {}
        if nets := sorted(MODELS.glob("tabletop-controlnet-*")):
            ways["controlled"] = _controlled(fast, nets[0])
        for _ in range(6):  # in turn, so that a machine that slows down slows both; the first is not warm
            for name, way in ways.items():
                t = time.perf_counter()
                way(prompt, **settings)
                times.setdefault(name, []).append(time.perf_counter() - t)
        seconds = {name: float(np.median(all_of_it[1:])) for name, all_of_it in times.items()}
        found = {k: v for k, v in seconds.items() if k != "controlled"} | {"load_seconds": _load_seconds()}
        if "controlled" in seconds:
            found["controlled_picture_ratio"] = seconds["controlled"] / seconds["fast_picture_seconds"]
        return found

    def sizes(self) -> dict[str, float]:
        """Megabytes of weights."""
        # What `companion build keep` put in data/models/next is not what is published.
        weights = [p for p in MODELS.rglob("*.safetensors") if p.parent != MODELS / "next"]
        followers = [p for p in weights if p.parent.name.startswith("tabletop-")]
        mb = {p: p.stat().st_size / 1e6 for p in weights}
        found = {"weights_mb": sum(mb[p] for p in weights if p not in followers), "all_weights_mb": sum(mb.values())}
        return found | ({"follower_mb": max(mb[p] for p in followers)} if followers else {})


#: The parts of the report, in the order in which they are measured: methods of `Measuring`.
PARTS = ("autoencoder", "judge", "clip", "prompts", "pictures", "shape", "errors", "control", "eye", "speed", "sizes")
#: What the report stores of each tenth of the judge's confidence: see `examination.Exam`.
RELIABILITY = ("confidence", "right", "count")


def _accepted(name: str, exam: Exam) -> dict[str, float]:
    """The shares of things that were spoiled, and that a judge accepts, over all ways and for each."""
    each = {f"{name}_accepts_{way}": v for way, v in exam.accepted.items()}
    return {f"{name}_accepts_spoiled": float(np.mean(list(exam.accepted.values())))} | each


def measure(
    folder: Path,
    share: float = 1.0,
    say: Callable[[str], None] = print,
    before: str = "",
    only: Sequence[str] = PARTS,
) -> dict[str, float]:
    """Measure what data/models holds: see `Measuring`. `only` names some of the `PARTS`.

    Raises ValueError for a part that is not there.
    """
    if unknown := [part for part in only if part not in PARTS]:
        raise ValueError(f"{unknown[0]!r} is no part of the report; they are {', '.join(PARTS)}")
    measuring, found = Measuring(folder, share, before), {}
    for name in measuring.missing_renders():
        say(f"drawn {name}")
    for part in PARTS:
        for k, v in getattr(measuring, part)().items() if part in only else ():
            found[k] = round(float(v), 4)
            say(f"{k:24} {found[k]}")
    return found


def shapes(pictures: np.ndarray, spoilable: Spoilable) -> dict[str, float]:
    """How far the things of pictures, uint8 (N, 128, 128, 3), are bent, in pixels, by kind and in "all"; in
    "scale_error", by how much the network that says so is wrong about the renders of `spoilable`.
    """
    from companion.pretraining.shape import load_shape_error, of_things, scale
    from companion.tabletop.measures import read

    model = load_shape_error(MODELS / "shape")
    measured, readings = scale(model, spoilable), read(pictures)
    some = [i for i, reading in enumerate(readings) if reading.kinds]
    boxes, kinds = [readings[i].boxes[0] for i in some], [readings[i].kinds[0] for i in some]
    return {
        **of_things(model, pictures_to_tensor(pictures[some]), boxes, kinds, measured),
        "scale_error": measured.error,
    }


def controls(pipe: StableDiffusionPipeline, folder: Path, count: int) -> dict[str, float]:
    """How faithfully each published ControlNet is followed, on `count` held-out renders, and what it costs the prompt.

    For each condition: the share of the way from no control to what its annotator finds in renders, both ends of its
    interval, and the three means; then "control_prompts". Empty when no ControlNet is published.
    """
    from companion.conditions import CONDITIONS
    from companion.controlnet import FREE, Fidelity, drawn_with, followed
    from companion.models import load_controlnet
    from companion.pretraining.controlnet import to_follow
    from companion.tabletop.measures import met

    found, kept = {}, {}
    settings = {"steps": find("tabletop").steps, "guidance_scale": find("tabletop").guidance}
    for name, condition in CONDITIONS.items():
        if not (MODELS / f"tabletop-controlnet-{name}").is_dir():
            continue
        net = load_controlnet(name, device="cpu")
        asked, places, scenes = to_follow(folder / "renders", "test", condition, 2000, count)
        renders = dataset.read(folder / "renders", "test", ("picture",), int(places.max()) + 1)["picture"][places]
        prompts, seeds = [caption(s) for s in scenes], list(range(len(scenes)))
        painted = condition.paint(asked)
        pictures = [drawn_with(pipe, some, painted, prompts, seeds, **settings) for some in (None, net)]
        numbers = [followed(condition, asked, x) for x in (*pictures, pictures_to_tensor(renders))]
        there = ~np.isnan(numbers[2])
        fidelity = Fidelity(*(values[there] for values in numbers))
        share, low, high = fidelity.share()
        found |= {f"control_{name}": share, f"control_{name}_low": low, f"control_{name}_high": high}
        means = zip(("floor", "drawn", "ceiling"), numbers, strict=True)
        found |= {f"control_{name}_{what}": float(np.nanmean(values)) for what, values in means}
        without, with_it = (sum(met(x, prompts, FREE)) for x in pictures)
        kept[name] = with_it / max(without, 1)
    return found | ({"control_prompts": min(kept.values())} if kept else {})


def unsteered(pipe: StableDiffusionPipeline) -> tuple[list[Asked], np.ndarray]:
    """The prompts that an eye judges, and what `pipe` draws for them, uint8 (N, 128, 128, 3)."""
    from companion.pretraining import eye

    prompts = eye.load_prompts()
    return prompts, drawn_bytes(pipe, [asked.prompt for asked in prompts])


def steered(pipe: StableDiffusionPipeline, condition: str) -> tuple[list[Asked], np.ndarray]:
    """Held-out scenes, and what `pipe` draws of them with the ControlNet of a condition, uint8 (N, 128, 128, 3)."""
    from companion.controlnet import asked, drawn_with
    from companion.models import load_controlnet
    from companion.pretraining import eye

    held, entry = asked(pipe, condition, eye.STEERED), find("tabletop")
    settings = {"steps": entry.steps, "guidance_scale": entry.guidance}
    net = load_controlnet(condition, device="cpu")
    drawn = drawn_with(pipe, net, held.controls, held.prompts, held.seeds, **settings)
    return eye.of_scenes(held.scenes), tensor_to_bytes(drawn).numpy()


def judged_by_eye(condition: str, pictures: np.ndarray) -> bool:
    """Whether the stored verdicts are about these pictures. A tenth may differ, since with another number of threads
    single pixels are rounded otherwise.
    """
    from companion.pretraining import eye

    path = eye.verdicts_with(condition)
    known = {v.picture for v in eye.load_verdicts(path)} if path.exists() else set()
    return sum(eye.fingerprint(x) in known for x in pictures) >= 0.9 * len(pictures)


def eye_and_controls(pipe: StableDiffusionPipeline) -> dict[str, float]:
    """What an eye said of pictures drawn with a ControlNet, for each condition where one has judged them."""
    from companion.pretraining import eye

    found = {}
    for name in LOOKED_AT:
        if not eye.verdicts_with(name).exists():
            continue
        prompts, pictures = steered(pipe, name)
        if not judged_by_eye(name, pictures):
            continue
        verdicts = eye.load_verdicts(eye.verdicts_with(name))
        clear, n = eye.by_kind(verdicts, prompts)["cube"]
        share = sum(v.word == "clear" for v in verdicts) / len(verdicts)
        found |= {f"eye_{name}_clear": share, f"eye_{name}_cube": clear / n}
    return found


def eye_and_judge(pipe: StableDiffusionPipeline) -> dict[str, float]:
    """What an eye said of the pictures that `pipe` draws, and how the judge compares. Empty where no eye has judged
    them.
    """
    from companion.pretraining import eye
    from companion.tabletop.measures import read

    prompts, pictures = unsteered(pipe)
    if not judged_by_eye("", pictures):
        return {}
    verdicts = eye.load_verdicts(eye.verdicts_with())
    kinds = {kind: clear / n for kind, (clear, n) in eye.by_kind(verdicts, prompts).items()}
    clear = sum(v.word == "clear" for v in verdicts) / len(verdicts)
    readings = read(pictures)
    found = {f"eye_{kind}": share for kind, share in kinds.items()}
    found |= {"eye_clear": clear, "eye_worst_kind": min(kinds.values())}
    if controls := eye.load_controls(eye.verdicts_with()):
        found["eye_clear_rebuilt"] = controls["clear"] / sum(controls.values())
    if (path := eye.verdicts_with(eye.UNTOUCHED)).exists():
        words, controls = [v.word for v in eye.load_verdicts(path)], eye.load_controls(path)
        found["eye_clear_untouched"] = words.count("clear") / len(words)
        found["eye_clear_untouched_rebuilt"] = controls["clear"] / sum(controls.values())
    found |= {f"eye_judge_{kind}": right / n for kind, (right, n) in eye.by_judge(prompts, readings).items()}
    compared = eye.agreement(verdicts, prompts, readings)
    return found | {f"judge_{name}": k / n for name, (k, n) in compared.items() if n}


def _controlled(fast: Fast, folder: Path) -> Callable[..., Any]:
    """The fast path, listening to a ControlNet that is shown a black picture."""
    from companion.controlnet import Control, Controlled
    from companion.models import load_controlnet

    size = diffusion.picture_size(fast.pipe)
    net = fast.controlnet(load_controlnet(folder, device="cpu"))
    unet = Controlled(fast.noise_pred, [Control(net, torch.zeros(1, 3, size, size))])
    return lambda prompt, **settings: fast(prompt, unet=unet, **settings)


def _load_seconds() -> float:
    """Seconds that a new Python takes to import diffusers and load the pipeline."""
    code = f"from diffusers import StableDiffusionPipeline as P; P.from_pretrained({str(MODELS / 'tabletop')!r})"
    t = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return time.perf_counter() - t


def table(found: dict[str, float]) -> str:
    """The measures as a Markdown table, each with its goal and the least it must reach, marked ✗ where missed."""
    rows = ["| measure | value | goal | at least |", "|---|---|---|---|"]
    for key, (what, shown, goal, least, more) in BARS.items():
        if key not in found:
            continue
        value = found[key]
        marks = []
        for bar in (goal, least):
            reached = bar is not None and (value >= bar if more else value <= bar)
            marks.append("" if bar is None else f"{shown.format(bar)} {'✓' if reached else '✗'}")
        rows.append(f"| {what} | {shown.format(value)} | {' | '.join(marks)} |")
    return "\n".join(rows)


@contextmanager
def published(commit: str, name: str) -> Iterator[Path]:
    """The folder `name` of data/models, as a commit published it. Raises ValueError when git has no such folder (a full
    clone has it).
    """
    path = f"data/models/{name}"
    packed = subprocess.run(["git", "archive", commit, path], cwd=ROOT, capture_output=True)
    if packed.returncode:
        raise ValueError(f"git has no {path} of commit {commit!r}: {packed.stderr.decode().strip()}")
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as tar:
            tar.extractall(folder, filter="data")
        yield Path(folder) / path


LOGS = MODELS / "training"


def stored() -> dict[str, float]:
    """What report.json holds; {} where there is none."""
    path = MODELS / "report.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write(found: dict[str, float], folder: Path, before: str = "") -> None:
    """Write report.json, the table in README.md (between its marks) and the curves, in data/models; and the sheets:
    sheet.png of forty prompts, before.png of the same with the weights of the commit `before`, if it is given, eye.jpg
    of what an eye judged, and spoiled.jpg of what the judge was examined with.
    """
    from companion.pretraining import eye, report_pictures

    if found.get("shape_error_px_before"):
        found = found | {"shape_error_ratio": round(found["shape_error_px"] / found["shape_error_px_before"], 4)}
    path = MODELS / "README.md"
    text = path.read_text(encoding="utf-8")
    start, end = "<!-- report -->", "<!-- /report -->"
    text = text[: text.index(start) + len(start)] + "\n" + table(found) + "\n" + text[text.index(end) :]
    with written(MODELS / "sheet.png") as image:
        report_pictures.sheet(load_tabletop()).save(image, "PNG", optimize=True)
    if before:
        with published(before, "tabletop") as old, written(MODELS / "before.png") as image:
            report_pictures.sheet(load_tabletop(old)).save(image, "PNG", optimize=True)
    prompts, pictures = unsteered(load_tabletop())
    made = {"spoiled": report_pictures.spoiled_sheet(Measuring(folder).spoilable, found)}
    if judged_by_eye("", pictures):
        made["eye"] = report_pictures.eye_sheet(prompts, pictures, eye.load_verdicts(eye.verdicts_with()))
    for name, picture in made.items():
        with written(MODELS / f"{name}.jpg") as image:
            picture.save(image, "JPEG", quality=85, optimize=True)
    drawn = report_pictures.curves(LOGS) if LOGS.is_dir() else {}
    for name, figure in (drawn | report_pictures.reliability(found)).items():
        with written(LOGS / f"{name}.png") as image:
            figure.savefig(image, format="png")
    for name, data in (("report.json", json.dumps(found, indent=2) + "\n"), ("README.md", text)):
        with written(MODELS / name) as temporary:
            temporary.write_text(data, encoding="utf-8")
