"""The report: what the published models achieve, freshly measured, as JSON, a table, and a sheet to look at."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from companion import DATA, ROOT, diffusion
from companion.fast import Fast
from companion.files import written
from companion.metrics import pictures_to_tensor, tensor_to_bytes
from companion.models import find, load
from companion.tabletop import dataset
from companion.tabletop.caption import Wish, caption
from companion.tabletop.scene import Scene
from companion.tabletop.splits import SPLITS, sample_scene

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from matplotlib.figure import Figure

    from companion.pretraining.examination import Spoilable
    from companion.pretraining.eye import Asked

MODELS = DATA / "models"
#: Conditions whose drawn pictures an eye has looked at, and what they are called in the table.
LOOKED_AT = {"depth": "a depth map", "canny": "Canny edges"}
#: key: (description, number format, goal, the least it must reach, whether more is better)
BARS: dict[str, tuple[str, str, float | None, float | None, bool]] = {
    "vae_psnr_db": ("VAE: PSNR on 256 held-out renders", "{:.2f} dB", 34.0, 32.0, True),
    "vae_psnr_things_db": ("... of things alone", "{:.2f} dB", None, None, True),
    "vae_fine_contrast": ("... fine contrast left, of the renders'", "{:.0%}", None, None, True),
    "judge_min_attribute": ("Judge: its weakest attribute on held-out renders", "{:.1%}", 0.995, 0.99, True),
    "judge_empty": ("... empty scenes read as empty", "{:.1%}", None, None, True),
    "judge_accepts_spoiled": ("... things spoiled on purpose that it accepts", "{:.1%}", None, None, False),
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
    "eye_clear_rebuilt": ("... of rebuilt renders, shown among them", "{:.0%}", None, None, True),
    "shape_error_px": ("Things are bent as renders that were bent by", "{:.2f} px", None, None, False),
    "shape_error_px_before": ("... those of the weights before", "{:.2f} px", None, None, False),
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


def measure(folder: Path, share: float = 1.0, say: Callable[[str], None] = print, before: str = "") -> dict[str, float]:
    """Measure what data/models holds. `folder` has (or gets) the held-out renders; `share` in (0, 1] uses part of the
    pictures; `before` is the commit of earlier weights, whose things' shapes are measured too.
    """
    from transformers import CLIPModel, CLIPTokenizer

    from companion.metrics import fine_contrast, frechet, psnr
    from companion.pretraining import halfway
    from companion.pretraining.clip import halved, retrieval
    from companion.pretraining.examination import Spoilable, examination, examine
    from companion.pretraining.judge import COLUMNS, accuracy
    from companion.pretraining.unet import Conditioned
    from companion.pretraining.vae import rebuild
    from companion.tabletop.judge import Judge
    from companion.tabletop.measures import patch_features, prompt_accuracy
    from companion.tabletop.samples import held_out

    def take(n: int, unit: int = 1) -> int:
        return max(unit, round(n * share / unit) * unit)

    found: dict[str, float] = {}

    def note(**values: float) -> None:
        for k, v in values.items():
            found[k] = round(float(v), 4)
            say(f"{k:24} {found[k]}")

    few = take(500, 250)
    splits = {"val": 500, "test": take(2000, 500), "test-empty": few, "test-swapped": few, "withheld": 250}
    for split, count in splits.items():
        for name in dataset.build(folder / "renders", split, count):
            say(f"drawn {name}")
    pictures, scenes = held_out(take(256))
    pipe = load_tabletop()
    again = rebuild(pipe.vae, pictures)
    segments = dataset.read(folder / "renders", "val", ("segments",), len(pictures))["segments"]
    thing = torch.as_tensor(segments >= 2)[:, None].float()
    note(
        vae_psnr_db=psnr(again, pictures).mean().item(),
        vae_psnr_things_db=psnr(again, pictures, thing).mean().item(),
        vae_fine_contrast=fine_contrast(again) / fine_contrast(pictures),
    )

    judge = Judge.load(MODELS / "judge")
    columns = dataset.read(folder / "renders", "test", COLUMNS, take(1000, 250))
    read = accuracy(judge, columns, dataset.scenes(folder / "renders", "test", take(1000, 250)))
    names = ("count", "front", "place", "time", "kind", "finish")
    note(judge_min_attribute=min(read[k] for k in names), **{f"judge_{k}": v for k, v in read.items()})
    spoilable = Spoilable(folder / "renders", "test", pipe.vae, take(500, 250))
    exam = examine(judge, examination(spoilable))
    note(
        judge_rebuilt_kind=exam.read["rebuilt"],
        judge_empty=exam.read["empty"],
        judge_accepts_spoiled=float(np.mean(list(exam.accepted.values()))),
        **{f"judge_accepts_{way}": v for way, v in exam.accepted.items()},
        **({"judge_calibration": exam.calibration_error} if exam.counts else {}),
    )
    rare = accuracy(
        judge,
        dataset.read(folder / "renders", "withheld", COLUMNS, 250),
        dataset.scenes(folder / "renders", "withheld", 250),
    )
    note(judge_withheld_kind=rare["kind"], judge_withheld_finish=rare["finish"])

    clip = CLIPModel.from_pretrained(MODELS / "clip").eval()
    note(**retrieval(clip, halved(pictures), scenes, CLIPTokenizer.from_pretrained(MODELS / "clip")))

    drawn = {}
    for name, split, things, count in (
        ("one", "test", 1, 500),
        ("two", "test", 2, 500),
        ("withheld", "withheld", 1, 250),
    ):
        asked = prompt_scenes(split, things, take(count))
        drawn[name] = drawn_bytes(pipe, [caption(s) for s in asked])
        got = prompt_accuracy(drawn[name], [Wish.of(s) for s in asked])
        if name == "one":
            note(
                prompt_kind=got["kind"],
                prompt_colour=got["finish"],
                prompt_place=got["place"],
                prompt_time=got["time"],
                prompt_one_all=got["all"],
            )
        elif name == "two":
            pair = prompt_accuracy(
                drawn[name], [Wish(s_.kinds, s_.finishes, s_.relation, None, None) for s_ in map(Wish.of, asked)]
            )
            note(
                prompt_pair=pair["all"],
                prompt_pair_kind=got["kind"],
                prompt_pair_colour=got["finish"],
                prompt_pair_relation=got["relation"],
            )
        else:
            pair = prompt_accuracy(
                drawn[name], [Wish(s_.kinds, s_.finishes, None, None, None) for s_ in map(Wish.of, asked)]
            )
            note(prompt_withheld=pair["all"], prompt_withheld_kind=got["kind"], prompt_withheld_colour=got["finish"])

    both = np.concatenate([drawn["one"], drawn["two"]])
    renders = dataset.read(folder / "renders", "test", ("picture",), take(2000, 500))["picture"]
    note(fine_contrast=fine_contrast(both) / fine_contrast(renders))
    made, real = judge.features(pictures_to_tensor(both)), judge.features(pictures_to_tensor(renders))
    half = len(real) // 2
    if len(made) > made.shape[1]:
        note(
            frechet=frechet(made, real[:half][: len(made)]),
            frechet_halves=frechet(real[half:][: len(made)], real[:half][: len(made)]),
        )
        note(frechet_ratio=found["frechet"] / found["frechet_halves"])
        made, real, other = (patch_features(x[: len(both)]) for x in (both, renders[:half], renders[half:]))
        note(frechet_things_ratio=frechet(made, real) / frechet(other, real))

    if (MODELS / "shape").is_dir():
        bent = shapes(drawn["one"], spoilable)
        note(shape_error_px=bent.pop("all"), shape_scale_error=bent.pop("scale_error"))
        note(**{f"shape_error_px_{kind}": v for kind, v in bent.items()})
        if before:
            with weights_of(before) as old:
                again = drawn_bytes(old, [caption(s) for s in prompt_scenes("test", 1, take(500))])
            note(shape_error_px_before=shapes(again, spoilable)["all"])
    model = Conditioned(pipe.unet, pipe.text_encoder)
    for split, name in (("val", ""), ("train", "_train")):
        if split == "train" and not dataset.shard_path(folder / "renders", split, 0).exists():
            continue
        seen = dataset.read(folder / "renders", split, ("picture", "segments"), 250)
        asked = dataset.scenes(folder / "renders", split, 250)
        errors = halfway.errors(model, pipe.vae, pipe.tokenizer, seen["picture"], asked, seen["segments"])
        note(**{f"{k}{name}": errors[k] for k in ("error_things_50", "error_things_100")})
    note(**controls(pipe, folder, take(96, 5)))
    note(**eye_and_judge(pipe), **eye_and_controls(pipe))

    prompt, settings = "a red ball on grass by day", find("tabletop").settings
    fast = Fast(pipe)
    ways, times = {"picture_seconds": pipe, "fast_picture_seconds": fast}, {}
    if nets := sorted(MODELS.glob("tabletop-controlnet-*")):
        ways["controlled"] = _controlled(fast, nets[0])
    for _ in range(6):  # in turn, so that a machine that slows down slows both; the first is not warm
        for name, way in ways.items():
            t = time.perf_counter()
            way(prompt, **settings)
            times.setdefault(name, []).append(time.perf_counter() - t)
    seconds = {name: float(np.median(all_of_it[1:])) for name, all_of_it in times.items()}
    if "controlled" in seconds:
        note(controlled_picture_ratio=seconds.pop("controlled") / seconds["fast_picture_seconds"])
    note(**seconds, load_seconds=_load_seconds())
    sizes = {p: p.stat().st_size / 1e6 for p in MODELS.rglob("*.safetensors")}
    followers = {p: mb for p, mb in sizes.items() if p.parent.name.startswith("tabletop-")}
    # What `companion build keep` put in data/models/next is not what is published.
    note(weights_mb=sum(mb for p, mb in sizes.items() if p not in followers and p.parent != MODELS / "next"))
    if followers:
        note(follower_mb=max(followers.values()))
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


def sheet(pipe, columns: int = 8) -> Image.Image:
    """The 40 prompts of data/models/prompts.txt, which were chosen before any picture was seen, drawn with seed 0, 1,
    2, ...
    """
    prompts = (MODELS / "prompts.txt").read_text(encoding="utf-8").split("\n")[:40]
    pictures = drawn_bytes(pipe, prompts)
    size, band = pictures.shape[1], 26
    out = Image.new("RGB", (columns * (size + 4) + 4, len(prompts) // columns * (size + band) + 4), "white")
    pen, font = ImageDraw.Draw(out), ImageFont.load_default(size=9)
    for i, (prompt, picture) in enumerate(zip(prompts, pictures, strict=True)):
        x, y = 4 + i % columns * (size + 4), 4 + i // columns * (size + band)
        out.paste(Image.fromarray(picture), (x, y))
        words, lines = prompt.split(), [""]
        for w in words:
            if pen.textlength(f"{lines[-1]} {w}", font=font) > size:
                lines.append("")
            lines[-1] = f"{lines[-1]} {w}".strip()
        pen.multiline_text((x, y + size + 1), "\n".join(lines[:2]), fill="black", font=font, spacing=0)
    return out


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
def weights_of(commit: str) -> Iterator[StableDiffusionPipeline]:
    """The pipeline that a commit published. Raises ValueError when git has no such weights (a full clone has them)."""
    path = "data/models/tabletop"
    packed = subprocess.run(["git", "archive", commit, path], cwd=ROOT, capture_output=True)
    if packed.returncode:
        raise ValueError(f"git has no {path} of commit {commit!r}: {packed.stderr.decode().strip()}")
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as tar:
            tar.extractall(folder, filter="data")
        yield load_tabletop(Path(folder) / path)


STRIP_PROMPTS = (
    "a red ball on grass by day",
    "a gold robot on snow at sunset",
    "a blue house on brick at night",
    "a purple mushroom on sand by day",
    "a steel car on water by day",
    "a green tree left of a yellow cube on grass at sunset",
    "a black cone behind a white ring on sand at night",
)


def strip(stages: dict[str, str]) -> Image.Image:
    """The same seven prompts and seeds, a row for the weights of each commit; `stages` maps names to commits.

    Raises ValueError when git has no such weights (a full clone has them).
    """
    rows = []
    for commit in stages.values():
        with weights_of(commit) as pipe:
            rows.append(np.concatenate(list(drawn_bytes(pipe, list(STRIP_PROMPTS))), 1))
    size, band = rows[0].shape[0], 18
    out = Image.new("RGB", (rows[0].shape[1], len(rows) * (size + band)), "white")
    pen, font = ImageDraw.Draw(out), ImageFont.load_default(size=12)
    for i, (name, row) in enumerate(zip(stages, rows, strict=True)):
        pen.text((4, i * (size + band) + 2), name, fill="black", font=font)
        out.paste(Image.fromarray(row), (0, i * (size + band) + band))
    return out


LOGS = MODELS / "training"


def curves(logs: Path = LOGS) -> dict[str, Figure]:
    """Figures of the last training session by name, from its logs: losses, and what the half-trained U-Net drew.

    Raises FileNotFoundError when there are no logs.
    """
    from companion import figures

    lines = {
        p.stem: [json.loads(line) for line in p.read_text(encoding="utf-8").splitlines()]
        for p in sorted(logs.glob("*.jsonl"))
        if not p.stem.startswith(("controlnet-", "adapter-", "trial-", "early-"))  # notebook 04 shows these
    }
    measured = {name: lines.pop(name) for name in list(lines) if name.endswith("-measured")}
    if not lines:
        raise FileNotFoundError(f"{logs} has no logs; `companion build publish` puts those of a build folder there")
    made = {
        "loss": figures.curves(
            {name: [row["seconds"] / 60 for row in rows] for name, rows in lines.items()},
            {name: [row["loss"] / rows[0]["loss"] for row in rows] for name, rows in lines.items()},
            title="The last sitting: what training did to each loss",
            x_label="minutes of training",
            y_label="loss / its first value",
            caption="Means of a hundred steps each, over the mean of the first hundred.",
        )
    }
    for name, every in measured.items():
        if rows := [row for row in every if "error" in row]:
            made[f"{name}-error"] = figures.curves(
                [row["step"] for row in rows],
                {
                    "with their captions": [row["error"] for row in rows],
                    "with empty captions": [row["error_untold"] for row in rows],
                },
                title="The same U-Net, half-trained: the noise in 64 held-out renders",
                x_label="steps",
                y_label="mean squared error",
                points=True,
                caption="Of the moving average, a mean over several timesteps. The gap is what the words tell it.",
            )
        if rows := [row for row in every if "frechet" in row]:
            steps = [row["step"] for row in rows]
            made[f"{name}-frechet"] = figures.curves(
                steps,
                {"Fréchet distance": [row["frechet"] for row in rows]},
                title="The same U-Net, half-trained: 256 pictures, and 256 held-out renders",
                x_label="steps",
                y_label="Fréchet distance",
                points=True,
                caption="So few pictures lie far from renders even when they are good: see how the distance falls, not "
                "how large it is.",
            )
            made[f"{name}-prompts"] = figures.curves(
                steps,
                {"all of the prompt": [row["all"] for row in rows]},
                title="The same U-Net, half-trained: 256 held-out prompts",
                x_label="steps",
                y_label="share of prompts wholly met",
                points=True,
                caption="The judge's verdict: a step of the curve is one picture in 256.",
            )
    return made


def write(found: dict[str, float], folder: Path, before: str = "") -> None:
    """Write report.json, the table in README.md (between its marks), sheet.png and the curves, in data/models; and
    before.png, the same prompts drawn with the weights of the commit `before`, if it is given.
    """
    path = MODELS / "README.md"
    text = path.read_text(encoding="utf-8")
    start, end = "<!-- report -->", "<!-- /report -->"
    text = text[: text.index(start) + len(start)] + "\n" + table(found) + "\n" + text[text.index(end) :]
    with written(MODELS / "sheet.png") as image:
        sheet(load_tabletop()).save(image, "PNG", optimize=True)
    if before:
        with weights_of(before) as old, written(MODELS / "before.png") as image:
            sheet(old).save(image, "PNG", optimize=True)
    for name, figure in (curves() if LOGS.is_dir() else {}).items():
        with written(LOGS / f"{name}.png") as image:
            figure.savefig(image, format="png")
    for name, data in (("report.json", json.dumps(found, indent=2) + "\n"), ("README.md", text)):
        with written(MODELS / name) as temporary:
            temporary.write_text(data, encoding="utf-8")
