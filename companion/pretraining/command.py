"""How the tabletop models are made: one restartable command a model, `companion build ...`.

    renders    draw a split of the world                  build/renders/<split>-*.npz
    adopt      start from the kept or published weights   build/*.safetensors, where there are none
    vae        the autoencoder                            build/vae.safetensors
    decoder    its decoder alone, further                 build/decoder.safetensors
    clip       the two towers                             build/clip.safetensors
    judge      the judge                                  build/judge.safetensors
    shape      what tells how bent things are             build/shape.safetensors
    unet       the noise predictor, 8 x 8 then 16 x 16    build/unet8.safetensors, build/unet16.safetensors
    controlnet one of the eight ControlNets               build/controlnet-<name>.safetensors
    early      what notebook 04 trains for a minute       build/early-<name>/
    keep       half-trained parts, for another machine    data/models/next/
    publish    the finished parts                         data/models/, data/tabletop/
    eye        sheets for an eye to judge, its verdicts   build/eye/, data/results/eye_verdicts.json
    report     the measures of what is published          data/models/report.json, README.md, sheet.png
    strip      what the weights of several commits draw   data/models/strip.png

Checkpoints, logs (JSON lines) and sample sheets are in build/ (or the folder that COMPANION_BUILD names), which git
ignores. A killed command resumes where it stopped, with the same result as an uninterrupted one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track

from companion import ROOT
from companion.files import written
from companion.tabletop import dataset
from companion.tabletop.scene import Scene
from companion.tabletop.splits import SPLITS, sample_scene

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from companion.conditions import Condition

app = typer.Typer(
    no_args_is_help=True, help="Make the miniature world and its models again.", pretty_exceptions_enable=False
)

Folder = Annotated[Path, typer.Option(help="Where renders, checkpoints and logs stand.", envvar="COMPANION_BUILD")]
BUILD = ROOT / "build"
Steps = Annotated[int, typer.Option(min=1, help="Optimiser steps in all; a finished run goes on when this is raised.")]
Count = Annotated[int, typer.Option(min=1, help="Training renders to use.")]
Threads = Annotated[int, typer.Option(help="CPU threads; 0 leaves it to torch.")]
Bfloat16 = Annotated[bool, typer.Option(help="Faster on CPUs with AVX-512 BF16, slower on others.")]


def _seen(gpu: bool) -> bool:
    if gpu and not torch.cuda.is_available():
        raise typer.BadParameter("torch sees no GPU here; train without --gpu, on the CPU")
    return gpu


Gpu = Annotated[bool, typer.Option("--gpu", help="Train on the first GPU.", callback=_seen)]


def _threads(n: int) -> None:
    if n:
        torch.set_num_threads(n)


def _placed(gpu: bool, exact: bool = False) -> Callable[[torch.nn.Module], None] | None:
    """What moves a model to the GPU, if that is asked for; `exact` keeps it in single precision there."""
    from companion.pretraining.gpu import place

    return partial(place, bfloat16=not exact) if gpu else None


def _files(folder: Path, name: str) -> dict[str, Any]:
    """Where a run keeps its checkpoint and its log."""
    return {"checkpoint": folder / f"{name}.safetensors", "log": folder / f"{name}.jsonl"}


def _follow(run: Iterable, steps: int, what: str, show=None, every: int = 500) -> object:
    """Run a training generator with a progress bar and `show(step, ema)` every `every` steps. Returns the last EMA."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    ema = None
    with Progress(*columns) as bar:
        task = bar.add_task(what, total=steps, note="")
        for progress, ema in run:
            bar.update(task, completed=progress.step, note=f"loss {progress.loss:.4f}")
            if show is not None and (progress.step % every == 0 or progress.step == steps):
                bar.console.print(f"{what} {progress.step}: {progress.seconds:.0f} s, {show(progress.step, ema)}")
    return ema


@app.command()
def renders(
    split: Annotated[str, typer.Option(help=f"One of {', '.join(SPLITS)}.")] = "train",
    count: Annotated[int, typer.Option(help="How many scenes, from the first of the split.")] = 16000,
    folder: Folder = BUILD,
    workers: Annotated[int, typer.Option(help="Processes; 0 takes one a core.")] = 0,
    shard: Annotated[int, typer.Option(help="Scenes a file.")] = dataset.SHARD,
) -> None:
    """Draw a split of the world: pictures and exact maps."""
    with Progress() as bar:
        task = bar.add_task(f"renders: {split}", total=count)
        bar.advance(
            task, shard * sum(dataset.shard_path(folder / "renders", split, i).exists() for i in range(count // shard))
        )
        for _ in dataset.build(folder / "renders", split, count, workers or None, shard):
            bar.advance(task, shard)


@app.command()
def gallery(
    out: Annotated[Path, typer.Argument(help="The picture file to write.")] = Path("gallery.png"),
    first: Annotated[int, typer.Option(help="First seed.")] = 0,
    count: Annotated[int, typer.Option(min=1)] = 32,
    maps: Annotated[bool, typer.Option(help="Show depth, normals, segments, joints and edges too.")] = False,
) -> None:
    """Draw a sheet of the world, to look at."""
    from companion.pretraining.sheets import grid, map_pictures
    from companion.tabletop.render import render

    tiles = []
    for seed in range(first, first + count):
        r = render(sample_scene(seed))
        tiles += [r.picture, *(map_pictures(r) if maps else ())]
    grid(tiles, 6 if maps else 8).save(out)
    typer.echo(f"{count} scenes in {out}")


@app.command()
def subjects(
    names: Annotated[list[str] | None, typer.Argument(help="Which of them; all when left out.")] = None,
) -> None:
    """Draw the subjects for DreamBooth again: their photographs and test sets."""
    from companion.tabletop.subjects import SUBJECTS, build

    for name in names or SUBJECTS:
        if name not in SUBJECTS:
            raise typer.BadParameter(f"{name!r} is no subject; they are {', '.join(SUBJECTS)}")
    for name in track(names or list(SUBJECTS), "subjects"):
        build(SUBJECTS[name])


@app.command()
def adopt(folder: Folder = BUILD) -> None:
    """Begin with the weights that `keep` kept, or else the published ones: checkpoints at step 0, where the folder has
    none. Nothing is overwritten.
    """
    from companion.pretraining import publishing

    for line in publishing.adopt(folder):
        typer.echo(line)


@app.command()
def keep(folder: Folder = BUILD) -> None:
    """Put the moving averages of half-trained parts where git keeps them, for `adopt` to go on from on another machine:
    in half precision, what differs from the published weights. `publish` removes them.
    """
    from companion.pretraining import publishing

    for line in publishing.keep(folder):
        typer.echo(line)


@app.command()
def vae(
    steps: Steps = 1700,
    count: Count = 5500,
    folder: Folder = BUILD,
    threads: Threads = 0,
    every: float = 120.0,
    batch: int = 8,
    lr: float = 2e-3,
    warm: Annotated[int, typer.Option(help="Steps in which the halves learn apart; 0 after `adopt`.")] = 500,
    bfloat16: Bfloat16 = False,
    equivariance: Annotated[float, typer.Option(help="Weight of the error after shrinking the latents.")] = 0.0,
    noise: Annotated[float, typer.Option(help="Largest noise in the latents while they are decoded.")] = 0.0,
    gpu: Gpu = False,
) -> None:
    """Train the autoencoder."""
    from companion.pretraining.vae import train_vae

    _threads(threads)
    seen = dataset.read(folder / "renders", "train", ("picture", "segments"), count)

    run = train_vae(
        seen["picture"],
        steps,
        **_files(folder, "vae"),
        lr=lr,
        batch=batch,
        warm=warm,
        bfloat16=bfloat16,
        equivariance=equivariance,
        noise=noise,
        segments=seen["segments"],
        every=every,
        place=_placed(gpu, exact=True),
    )
    _follow(run, steps, "vae", _rebuilding(folder, "vae"))


def _rebuilding(folder: Path, name: str):
    """How a half-trained autoencoder rebuilds 64 held-out renders: a sheet, and a line of measures."""
    from companion.metrics import fine_contrast, pictures_to_tensor, psnr
    from companion.pretraining.sheets import grid
    from companion.pretraining.vae import rebuild

    held = {k: v[:64] for k, v in dataset.read(folder / "renders", "val", ("picture", "segments")).items()}
    pictures, thing = held["picture"], torch.as_tensor(held["segments"] >= 2)[:, None].float()

    def show(step: int, ema) -> str:
        again = rebuild(ema, pictures)
        grid([*pictures[:8], *again[:8], *pictures[8:16], *again[8:16]]).save(folder / f"{name}.png")
        share = fine_contrast(again) / fine_contrast(pictures_to_tensor(pictures))
        return (
            f"PSNR {psnr(again, pictures).mean():.2f} dB, things {psnr(again, pictures, thing).mean():.2f} dB, "
            f"{share:.2f} of the fine contrast"
        )

    return show


@app.command()
def decoder(
    steps: Steps = 1500,
    count: Count = 6000,
    folder: Folder = BUILD,
    threads: Threads = 0,
    every: float = 120.0,
    lr: float = 2e-3,
    sharpness: Annotated[
        float, typer.Option(help="Weight of a discriminator that asks for sharp pictures; 0 is none.")
    ] = 0.0,
    mend: Annotated[bool, typer.Option("--mend", help="Show it also latents that the U-Net has redrawn.")] = False,
    bfloat16: Bfloat16 = False,
    gpu: Gpu = False,
) -> None:
    """Train the autoencoder's decoder further; the latents, and the U-Net that was trained on them, stay valid."""
    from companion.pretraining.vae import make_vae, train_decoder
    from companion.training import load_weights

    _threads(threads)
    seen = dataset.read(folder / "renders", "train", ("picture", "segments"), count)
    model = load_weights(folder / "vae.safetensors", make_vae())
    run = train_decoder(
        seen["picture"],
        model,
        steps,
        **_files(folder, "decoder"),
        lr=lr,
        sharpness=sharpness,
        segments=seen["segments"],
        bfloat16=bfloat16,
        every=every,
        place=_placed(gpu, exact=True),
        redrawn=_redrawn(folder, count) if mend else None,
    )
    _follow(run, steps, "decoder", _rebuilding(folder, "decoder"))


def _redrawn(folder: Path, count: int) -> torch.Tensor:
    """Latents of the training renders as the trained U-Net redraws them, in the decoder's units; kept as a file."""
    from companion.pretraining import halfway
    from companion.pretraining.clip import trained_tokenizer
    from companion.pretraining.latents import cached, trained_vae
    from companion.pretraining.publishing import trained_unet

    out = folder / "latents" / f"redrawn-{count}.npy"
    if not out.exists():
        scenes = dataset.scenes(folder / "renders", "train", count)
        start, vae = cached(folder, 16, count)[0], trained_vae(folder)
        pipe, factor = halfway.drawer(trained_unet(folder), vae, trained_tokenizer(folder)), vae.config.scaling_factor
        parts = track(halfway.redrawn(pipe, start, scenes, batch=64), "redrawing", total=-(-len(start) // 64))
        with written(out) as temporary, temporary.open("wb") as f:
            np.save(f, (torch.cat(list(parts)) / factor).half().numpy())
    return torch.from_numpy(np.load(out))


def _validation(folder: Path, n: int) -> tuple[np.ndarray, list[Scene]]:
    """The first `n` renders of the split "val" (or as many as there are) and their scenes."""
    pictures = dataset.read(folder / "renders", "val", ("picture",))["picture"]
    return pictures[:n], dataset.scenes(folder / "renders", "val")[:n]


@app.command()
def clip(
    steps: Steps = 520,
    count: Count = 6000,
    folder: Folder = BUILD,
    threads: Threads = 0,
    every: float = 120.0,
    batch: int = 64,
    gpu: Gpu = False,
) -> None:
    """Train the two towers."""
    from companion.pretraining.clip import halved, retrieval, train_clip, trained_tokenizer

    _threads(threads)
    pictures = halved(dataset.read(folder / "renders", "train", ("picture",), count)["picture"])
    scenes = dataset.scenes(folder / "renders", "train", count)
    held, held_scenes = _validation(folder, 256)
    words = trained_tokenizer(folder)

    def show(step: int, ema) -> str:
        return ", ".join(f"{k} {v:.3f}" for k, v in retrieval(ema, halved(held), held_scenes, words).items())

    run = train_clip(
        pictures,
        scenes,
        words,
        steps,
        **_files(folder, "clip"),
        batch=batch,
        every=every,
        place=_placed(gpu, exact=True),
    )
    _follow(run, steps, "clip", show, 200)


@app.command()
def judge(
    steps: Steps = 1000,
    count: Count = 6500,
    folder: Folder = BUILD,
    threads: Threads = 0,
    every: float = 120.0,
    batch: int = 24,
    bfloat16: Bfloat16 = False,
    few: Annotated[int, typer.Option(help="Scenes to rebuild, empty and spoil; drawn empty and swapped too.")] = 2000,
    gpu: Gpu = False,
) -> None:
    """Train the judge, on training renders, on renders of the withheld pairs, and on spoiled and empty ones."""
    from companion.pretraining.examination import Spoilable
    from companion.pretraining.judge import judge_accuracy, train_judge
    from companion.pretraining.latents import trained_vae

    _threads(threads)
    run = train_judge(
        folder / "renders",
        count,
        steps,
        Spoilable(folder / "renders", "train", trained_vae(folder), few),
        **_files(folder, "judge"),
        batch=batch,
        bfloat16=bfloat16,
        every=every,
        place=_placed(gpu),
    )

    def show(step: int, ema) -> str:
        return ", ".join(f"{k} {v:.3f}" for k, v in judge_accuracy(ema, folder, "val").items())

    _follow(run, steps, "judge", show, 250)


@app.command()
def shape(
    steps: Steps = 1500,
    folder: Folder = BUILD,
    threads: Threads = 0,
    every: float = 120.0,
    few: Annotated[int, typer.Option(help="Scenes whose things are bent.")] = 1500,
    gpu: Gpu = False,
) -> None:
    """Train the network that tells by how many pixels drawn things are bent."""
    from companion.pretraining.examination import Spoilable
    from companion.pretraining.latents import trained_vae
    from companion.pretraining.shape import bent, scale, train_shape

    _threads(threads)
    vae = trained_vae(folder)
    shown = bent(Spoilable(folder / "renders", "train", vae, few))
    held = Spoilable(folder / "renders", "val", vae, min(few, 250))

    def show(step: int, ema) -> str:
        found = scale(ema, held, (0.0, 1.0, 2.0, 4.0))
        return f"bent by 0, 1, 2, 4 it says {', '.join(f'{v:.2f}' for v in found.said)}; error {found.error:.2f} px"

    _follow(
        train_shape(shown, steps, **_files(folder, "shape"), every=every, place=_placed(gpu, exact=True)),
        steps,
        "shape",
        show,
        250,
    )


@app.command()
def latents(count: Count = 6000, folder: Folder = BUILD, threads: Threads = 0) -> None:
    """Encode the training renders once, at 64 and at 128 pixels, with the trained autoencoder."""
    from companion.pretraining.latents import encoded_shards

    _threads(threads)
    for size in (8, 16):
        for _ in track(encoded_shards(folder, size, count), f"latents: {size}", total=-(-count // dataset.SHARD)):
            pass


@app.command()
def unet(
    size: Annotated[int, typer.Option(help="8 (pictures of 64 pixels) first, then 16.")] = 8,
    steps: Steps = 1500,
    count: Count = 6000,
    folder: Folder = BUILD,
    threads: Threads = 0,
    every: float = 120.0,
    batch: int = 48,
    lr: float = 1e-3,
    words: Annotated[bool, typer.Option(help="Let the text encoder learn too.")] = True,
    bfloat16: Bfloat16 = False,
    low: Annotated[float, typer.Option(help="Share of the samples that is drawn at little noise.")] = 0.0,
    factor: Annotated[float, typer.Option(help="How often errors on things count at little noise.")] = 1.0,
    below: Annotated[int, typer.Option(help="Timesteps below which they do.")] = 400,
    min_snr: Annotated[float, typer.Option(help="Signal-to-noise ratio above which errors count less.")] = 5.0,
    often: Annotated[list[str] | None, typer.Option(help="A kind whose renders are seen three times as often.")] = None,
    decay: Annotated[float, typer.Option(help="Share of the steps, at the end, in which the rate falls.")] = 0.3,
    robots: Annotated[int, typer.Option(min=0, help="Renders of the split robots to use as well.")] = 0,
    gpu: Gpu = False,
) -> None:
    """Train the noise predictor: with --size 8, then with --size 16, which goes on from the first."""
    from companion.pretraining import halfway
    from companion.pretraining.clip import make_clip, text_tower, trained_tokenizer
    from companion.pretraining.latents import cached, trained_vae
    from companion.pretraining.sheets import grid
    from companion.pretraining.unet import favouring, train_unet
    from companion.tabletop.scene import KINDS
    from companion.training import load_weights

    if size not in (8, 16):
        raise typer.BadParameter(f"size={size} is not a stage; train with --size 8, then with --size 16")
    if unknown := sorted({*(often or ())} - {*KINDS}):
        raise typer.BadParameter(f"{unknown[0]!r} is no kind of thing; the kinds are {', '.join(KINDS)}")
    _threads(threads)
    text = trained_tokenizer(folder)
    latent, things = cached(folder, size, count)
    seen = dataset.scenes(folder / "renders", "train", count)
    if robots:
        more = cached(folder, size, robots, "robots")
        latent, things = (torch.cat(both) for both in zip((latent, things), more, strict=True))
        seen += dataset.scenes(folder / "renders", "robots", robots)
    encoder = text_tower(load_weights(folder / "clip.safetensors", make_clip(text)))
    name = f"unet{size}"
    begun = (folder / f"{name}.safetensors").exists()  # killed before, or adopted
    start = folder / "unet8.safetensors" if size == 16 and not begun else None
    autoencoder = trained_vae(folder)
    held, own = (_renders(folder, split, 128) for split in ("val", "train"))

    def show(step: int, ema) -> str:
        pipe = halfway.drawer(ema, autoencoder, text)
        sheet = folder / "samples" / f"{name}-{step:06d}.png"
        sheet.parent.mkdir(exist_ok=True)
        grid(halfway.sketch(pipe, size=size)).save(sheet)
        found = halfway.errors(ema, autoencoder, text, *held, size)
        # The gap between training and held-out renders is what has been memorised.
        found |= {
            f"{k}_train": v for k, v in halfway.errors(ema, autoencoder, text, *own, size).items() if "things" in k
        }
        if step % MEASURED == 0:
            found |= halfway.judged(pipe, *_validation(folder, 256), size)
        with (folder / f"{name}-measured.jsonl").open("a", encoding="utf-8") as f:
            f.write(json.dumps({"step": step, **found}) + "\n")
        return ", ".join(f"{k} {v:.4f}" for k, v in found.items() if k.startswith(("error_things", "frechet", "all")))

    run = train_unet(
        latent,
        seen,
        text,
        encoder,
        steps,
        **_files(folder, name),
        start_from=start,
        words=folder / "text_encoder.safetensors",
        things=things,
        batch=batch,
        lr=lr,
        train_text=words,
        bfloat16=bfloat16,
        low=low,
        factor=factor,
        below=below,
        min_snr=min_snr,
        often=favouring(seen, often) if often else None,
        decay=decay,
        every=every,
        place=_placed(gpu),
    )
    _follow(run, steps, name, show, 500)


@app.command()
def controlnet(
    name: Annotated[str, typer.Argument(help="One of the eight conditions, as companion.conditions names them.")],
    steps: Steps = 3000,
    count: Count = 20000,
    folder: Folder = BUILD,
    threads: Threads = 0,
    every: float = 120.0,
    batch: int = 32,
    lr: float = 1e-3,
    bfloat16: Bfloat16 = False,
    attention: Annotated[bool, typer.Option(help="Copy the middle block with its attention.")] = False,
    begin: Annotated[str, typer.Option(help="Start from the trained ControlNet of another condition.")] = "",
    measured: Annotated[int, typer.Option(help="Held-out scenes on which fidelity is measured.")] = 48,
    adapter: Annotated[bool, typer.Option("--adapter", help="Train a T2I-Adapter instead of a ControlNet.")] = False,
    closed: Annotated[bool, typer.Option("--closed", help="Start the embedder's last convolution at zero.")] = False,
    trial: Annotated[
        str, typer.Option(help="Train beside it, under this name, to compare: only its log is published.")
    ] = "",
    gpu: Gpu = False,
) -> None:
    """Train one of the ControlNets for the trained U-Net, which stays as it is."""
    from companion.controlnet import adapter_of, controlnet_of
    from companion.training import load_weights

    condition = _condition(name)
    if begin:
        _condition(begin)
    _threads(threads)
    unet, pipe, train = _to_be_controlled(condition, folder, count)
    what = "adapter" if adapter else "controlnet"
    net = adapter_of(unet) if adapter else controlnet_of(unet, attention=attention, open_embedder=not closed)
    called = f"trial-{name}-{trial}" if trial else f"{what}-{name}"
    if begin and not (folder / f"{called}.safetensors").exists():
        load_weights(folder / f"{what}-{begin}.safetensors", net)
    run = train(net, called, steps, lr=lr, batch=batch, bfloat16=bfloat16, every=every, place=_placed(gpu))
    measure = _following(folder, called, condition, pipe, measured)
    _follow(run, steps, called, lambda *now: f"{measure(*now)} {condition.unit}", 100)


@app.command()
def early(
    name: Annotated[str, typer.Argument(help="The condition.")] = "depth",
    steps: Steps = 1000,
    count: Count = 2000,
    folder: Folder = BUILD,
    threads: Threads = 0,
    every: float = 120.0,
    batch: int = 32,
    lr: float = 3e-3,
    look: Annotated[int, typer.Option(help="Steps between two measurements.")] = 10,
    scenes_measured: Annotated[int, typer.Option("--measured", help="Held-out scenes, for fidelity.")] = 24,
) -> None:
    """Train a ControlNet as all eight were, until it just begins to be followed: notebook 04 goes on from it."""
    from companion.controlnet import controlnet_of
    from companion.pretraining.publishing import save_net

    condition, called = _condition(name), f"early-{name}"
    _threads(threads)
    unet, pipe, train = _to_be_controlled(condition, folder, count)
    net, before = controlnet_of(unet, attention=False), None
    measure = _following(folder, called, condition, pipe, scenes_measured)
    run = train(net, called, steps, lr=lr, batch=batch, every=every)
    for progress, _ in run:
        if progress.step % look:
            continue
        fidelity = measure(progress.step, net)
        typer.echo(f"{called} {progress.step}: {progress.seconds:.0f} s, {fidelity:.4f} {condition.unit}")
        before = before or fidelity
        save_net(net, folder / called)
        if abs(fidelity / before - 1) > 0.15:
            return


def _condition(name: str) -> Condition:
    from companion.conditions import CONDITIONS

    if name not in CONDITIONS:
        raise typer.BadParameter(f"{name!r} is no condition; the eight are {', '.join(CONDITIONS)}")
    return CONDITIONS[name]


def _to_be_controlled(condition: Condition, folder: Path, count: int):
    """The trained U-Net, a pipeline with it, and a function that trains a net which follows a condition beside it."""
    from companion.pretraining import halfway
    from companion.pretraining.clip import trained_tokenizer
    from companion.pretraining.controlnet import to_follow, train_controlnet
    from companion.pretraining.latents import cached, trained_vae
    from companion.pretraining.publishing import trained_unet

    base, words = trained_unet(folder), trained_tokenizer(folder)
    pipe = halfway.drawer(base, trained_vae(folder), words)
    maps, places, scenes = to_follow(folder / "renders", "train", condition, count)
    latent, things = (values[places] for values in cached(folder, 16, count))

    def train(net, called: str, steps: int, **options: Any):
        given: dict[str, Any] = {**options, "loss": {"things": things, "low": 0.3}, **_files(folder, called)}
        return train_controlnet(net, base, condition, maps, latent, scenes, words, steps, **given)

    return base.unet, pipe, train


def _following(folder: Path, called: str, condition: Condition, pipe: StableDiffusionPipeline, measured: int):
    """A function of step and ControlNet that says how well it is followed on held-out scenes, and keeps a sheet of its
    pictures and a line in its log.
    """
    from companion.controlnet import drawn_with, followed
    from companion.models import GUIDANCE
    from companion.pretraining.controlnet import to_follow
    from companion.pretraining.sheets import grid
    from companion.tabletop.caption import caption

    asked, _, scenes = to_follow(folder / "renders", "val", condition, 500, measured)
    painted, prompts, seeds = condition.paint(asked), [caption(s) for s in scenes], list(range(len(scenes)))

    def measure(step: int, net) -> float:
        drawn = drawn_with(pipe, net, painted, prompts, seeds, steps=20, guidance_scale=GUIDANCE).cpu()
        found = {"step": step, "fidelity": round(float(np.nanmean(followed(condition, asked, drawn))), 4)}
        sheet = folder / "samples" / f"{called}-{step:06d}.png"
        sheet.parent.mkdir(exist_ok=True)
        grid([*painted[:16], *drawn[:16]], 16).save(sheet)
        with (folder / f"{called}-measured.jsonl").open("a", encoding="utf-8") as f:
            f.write(json.dumps(found) + "\n")
        return found["fidelity"]

    return measure


MEASURED = 1000  # steps between two sets of pictures that the judge reads: they take a minute or two


def _renders(folder: Path, split: str, n: int) -> tuple[np.ndarray, list[Scene], np.ndarray]:
    """The first `n` renders of a split, their scenes and their segments."""
    found = dataset.read(folder / "renders", split, ("picture", "segments"))
    return found["picture"][:n], dataset.scenes(folder / "renders", split)[:n], found["segments"][:n]


@app.command()
def eye(
    folder: Folder = BUILD,
    verdicts: Annotated[
        Path | None,
        typer.Argument(
            help='A text file with a line a picture, such as "12 cube clear" or "97 ball clear; can wrong".'
        ),
    ] = None,
    by: Annotated[str, typer.Option(help="Who looked, and when.")] = "",
    control: Annotated[
        str, typer.Option(help="Look at 80 held-out scenes drawn with this condition's ControlNet instead.")
    ] = "",
    untouched: Annotated[
        bool, typer.Option("--untouched", help="Look at 80 held-out renders as they are: how strict is the eye?")
    ] = False,
) -> None:
    """Draw the pictures that an eye judges, as sheets without their prompts: 120 that the model draws and, among them,
    40 rebuilt renders as a control. Or keep the eye's verdicts on them.
    """
    from collections import Counter

    from companion.metrics import tensor_to_bytes
    from companion.pretraining import eye, report
    from companion.pretraining.vae import rebuild
    from companion.tabletop.samples import held_out

    if control and untouched:
        raise typer.BadParameter(f"--control {control} and --untouched are two sets of pictures; look at one at a time")
    if control:
        _condition(control)
    pipe, (renders, scenes) = report.load_tabletop(), held_out()
    part = slice(-eye.CONTROLS, None) if control or untouched else slice(eye.CONTROLS)
    if untouched:
        some = slice(eye.CONTROLS, eye.CONTROLS + eye.STEERED)  # others than those that the first reader saw rebuilt
        prompts, drawn, control = eye.of_scenes(scenes[some]), renders[some], eye.UNTOUCHED
    else:
        prompts, drawn = report.steered(pipe, control) if control else report.unsteered(pipe)
    pictures = [*drawn, *tensor_to_bytes(rebuild(pipe.vae, renders[part])).numpy()]
    controls, path = eye.of_scenes(scenes[part]), eye.verdicts_with(control)
    order = eye.order(len(pictures))
    shown = [pictures[i] for i in order]
    if verdicts is not None:
        asked = [(*prompts, *controls)[i] for i in order]
        given = eye.parse_verdicts(verdicts.read_text(encoding="utf-8"), asked, shown)
        given = sorted((replace(v, prompt=order[v.prompt]) for v in given), key=lambda v: (v.prompt, v.thing))
        said = Counter(v.word for v in given if v.prompt >= len(prompts))
        given = [v for v in given if v.prompt < len(prompts)]
        eye.save_verdicts(given, {"by": by, "controls": {word: said[word] for word in eye.WORDS}}, path)
        rebuilt = f"{said['clear']} of the {said.total()} things in rebuilt renders are clear"
        typer.echo(f"{len(given)} verdicts in {path}; {rebuilt}")
        return
    room = folder / "eye" / control
    room.mkdir(parents=True, exist_ok=True)
    for i, sheet in enumerate(eye.sheets(shown)):
        with written(room / f"{i:02d}.png") as image:
            sheet.save(image, "PNG")
    typer.echo(f"{len(shown)} pictures in {room}; look at them, then give your verdicts to this command")


@app.command()
def publish(folder: Folder = BUILD) -> None:
    """Put the finished parts into data/: pipeline, CLIP, judge, held-out renders, cached latents, the logs of their
    training, and the checksums.
    """
    from companion.pretraining import publishing

    for line in publishing.publish(folder):
        typer.echo(line)


@app.command()
def strip(
    stages: Annotated[list[str], typer.Argument(help="Commits whose published weights draw a row each, oldest first.")],
    names: Annotated[str, typer.Option(help="What to call them, with commas between.")] = "",
) -> None:
    """Draw the same prompts with the weights of several commits: what training changed, as data/models/strip.png."""
    from companion.pretraining import report, report_pictures

    called = [name.strip() for name in names.split(",")] if names else stages
    if len(called) != len(stages):
        raise typer.BadParameter(f"{len(called)} names for {len(stages)} commits; give one for each")
    with written(report.MODELS / "strip.png") as image:
        report_pictures.strip(dict(zip(called, stages, strict=True))).save(image, "PNG", optimize=True)


@app.command()
def report(
    folder: Folder = BUILD,
    quick: Annotated[bool, typer.Option(help="A tenth of the pictures, nothing written.")] = False,
    before: Annotated[str, typer.Option(help="The commit of earlier weights, to compare with.")] = "",
    only: Annotated[
        list[str] | None,
        typer.Option(help="Measure this part again, and keep the others as they are stored; may be given again."),
    ] = None,
) -> None:
    """Measure what is published: writes data/models/report.json, the table in README.md and the sheet of 40 prompts."""
    from companion.pretraining.report import PARTS, measure, stored, write

    try:
        found = measure(folder, 0.1 if quick else 1.0, typer.echo, before, only or PARTS)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if not quick:
        write((stored() if only else {}) | found, folder, before)


if __name__ == "__main__":
    app()
