"""How the tabletop models are made: one restartable command a model, `companion build ...`.

    renders    draw a split of the world                  build/renders/<split>-*.npz
    adopt      start from the kept or published weights   build/*.safetensors, where there are none
    vae        the autoencoder                            build/vae.safetensors
    decoder    its decoder alone, further                 build/decoder.safetensors
    clip       the two towers                             build/clip.safetensors
    judge      the judge                                  build/judge.safetensors
    unet       the noise predictor, 8 x 8 then 16 x 16    build/unet8.safetensors, build/unet16.safetensors
    keep       half-trained parts, for another machine    data/models/next/
    publish    the finished parts                         data/models/, data/tabletop/
    report     the measures of what is published          data/models/report.json, README.md, sheet.png
    strip      what the weights of several commits draw   data/models/strip.png

Checkpoints, logs (JSON lines) and sample sheets stand in build/ (or the folder that COMPANION_BUILD names), which git
ignores.
A command that was killed goes on where it stopped, to the same result as an unbroken one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track

from companion import DATA, ROOT
from companion.files import written
from companion.models import GUIDANCE
from companion.tabletop import dataset
from companion.tabletop.scene import Scene
from companion.tabletop.splits import SPLITS, sample_scene

app = typer.Typer(
    no_args_is_help=True, help="Make the miniature world and its models again.", pretty_exceptions_enable=False
)

MODELS = DATA / "models"
NEXT = MODELS / "next"
Folder = Annotated[Path, typer.Option(help="Where renders, checkpoints and logs stand.", envvar="COMPANION_BUILD")]
BUILD = ROOT / "build"
Steps = Annotated[int, typer.Option(min=1, help="Optimiser steps in all; a finished run goes on when this is raised.")]
Count = Annotated[int, typer.Option(min=1, help="Training renders to use.")]
Threads = Annotated[int, typer.Option(help="CPU threads; 0 leaves it to torch.")]
Bfloat16 = Annotated[bool, typer.Option(help="Faster on CPUs with AVX-512 BF16, slower on others.")]


def _threads(n: int) -> None:
    if n:
        torch.set_num_threads(n)


def _follow(run: Iterable, steps: int, what: str, show=None, every: int = 500) -> object:
    """Run a training generator under a progress bar; `show(step, ema)` is called now and then. Returns the last moving
    average.
    """
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


def grid(pictures: Iterable, columns: int = 8) -> Image.Image:
    """Pictures (floats (N, 3, H, W) in [-1, 1], uint8 arrays, or PIL) as one sheet."""
    tiles = []
    for p in pictures:
        if isinstance(p, torch.Tensor) and p.is_floating_point():
            p = ((p.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        tiles.append(np.asarray(p))
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % columns)
    return Image.fromarray(
        np.concatenate([np.concatenate(tiles[i : i + columns], 1) for i in range(0, len(tiles), columns)])
    )


def tokenizer(folder: Path):
    """The tokenizer, written into `folder` first if it is not there."""
    from transformers import CLIPTokenizer

    from companion.tabletop.tokenizer import save_tokenizer

    if not (folder / "tokenizer" / "vocab.json").exists():
        save_tokenizer(folder / "tokenizer")
    return CLIPTokenizer.from_pretrained(folder / "tokenizer")


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
    from companion.tabletop.render import render

    tiles = []
    for seed in range(first, first + count):
        r = render(sample_scene(seed))
        tiles += [r.picture, *(map_pictures(r) if maps else ())]
    grid(tiles, 6 if maps else 8).save(out)
    typer.echo(f"{count} scenes in {out}")


def map_pictures(r) -> list[np.ndarray]:
    """The maps of a `Render` as five RGB pictures: depth, normals, segments, joints, straight edges."""
    from PIL import ImageDraw

    from companion.tabletop.scene import BONES, JOINTS

    near = np.clip((1 / r.depth - 1 / 30) / (1 / 4.5 - 1 / 30), 0, 1)
    colours = np.array([(70, 130, 180), (90, 90, 90), (230, 120, 50), (60, 180, 110)], np.uint8)
    pose, lines = (Image.new("RGB", r.picture.shape[1::-1]) for _ in range(2))
    for joints in r.joints:
        for a, b in BONES:
            p, q = joints[JOINTS.index(a)], joints[JOINTS.index(b)]
            if p[2] and q[2]:
                ImageDraw.Draw(pose).line([tuple(p[:2]), tuple(q[:2])], fill=(255, 255, 0), width=2)
    for x0, y0, x1, y1 in r.edges.tolist():
        ImageDraw.Draw(lines).line([(x0, y0), (x1, y1)], fill=(255, 255, 255))
    return [
        np.repeat((near * 255).astype(np.uint8)[..., None], 3, -1), ((r.normals + 1) * 127.5).astype(np.uint8),
        colours[r.segments],
        np.asarray(pose), np.asarray(lines),
    ]  # fmt: skip


def _parts(folder: Path) -> dict[str, tuple[Path, Callable[[], torch.nn.Module], Callable[[], torch.nn.Module]]]:
    """The parts that learn: name to (checkpoint, an untrained one, the published one)."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPModel, CLIPTextModel

    from companion.judge import Judge
    from companion.tabletop.clip import make_clip
    from companion.tabletop.unet import Conditioned, make_unet
    from companion.tabletop.vae import make_vae

    pipe = MODELS / "tabletop"
    parts = {
        "vae": (make_vae, lambda: AutoencoderKL.from_pretrained(pipe / "vae")),
        "clip": (lambda: make_clip(tokenizer(folder)), lambda: CLIPModel.from_pretrained(MODELS / "clip")),
        "judge": (Judge, lambda: Judge.load(MODELS / "judge")),
        "unet16": (
            lambda: Conditioned(make_unet(), text_tower(make_clip(tokenizer(folder)))),
            lambda: Conditioned(
                UNet2DConditionModel.from_pretrained(pipe / "unet"),
                CLIPTextModel.from_pretrained(pipe / "text_encoder"),
            ),
        ),
    }
    return {name: (folder / f"{name}.safetensors", *makers) for name, makers in parts.items()}


@app.command()
def adopt(folder: Folder = BUILD) -> None:
    """Begin with the weights that `keep` kept, or else the published ones: checkpoints at step 0, where the folder has
    none. Nothing is overwritten.
    """
    from safetensors.torch import load_file

    from companion.training import save_start

    for path, _, published in _parts(folder).values():
        kept = NEXT / path.name
        if path.exists():
            typer.echo(f"{path} is kept")
            continue
        model = published().float()
        if kept.exists():
            model.load_state_dict(model.state_dict() | load_file(kept))
        save_start(path, model)
        typer.echo(f"{path} holds the {'kept' if kept.exists() else 'published'} weights")


@app.command()
def keep(folder: Folder = BUILD) -> None:
    """Put the moving averages of half-trained parts where git keeps them, for `adopt` to go on from on another machine:
    in half precision, what differs from the published weights. `publish` removes them.
    """
    from safetensors.torch import save_file

    from companion.files import write_checksums
    from companion.training import load_weights, read_meta

    NEXT.mkdir(exist_ok=True)
    for name, (path, make, published) in _parts(folder).items():
        # The decoder alone has a checkpoint of its own.
        checkpoints = (path, folder / "decoder.safetensors") if name == "vae" else (path,)
        steps = sum(read_meta(p)["step"] for p in checkpoints if p.exists())
        if not steps:
            typer.echo(f"{name} was not trained here")
            continue
        model = _trained_vae(folder) if name == "vae" else load_weights(path, make())
        now, before = ({k: v.half().contiguous() for k, v in m.state_dict().items()} for m in (model, published()))
        with written(NEXT / path.name) as temporary:
            save_file({k: v for k, v in now.items() if not torch.equal(v, before[k])}, temporary)
        typer.echo(f"{NEXT / path.name} holds {name} after {steps:,} steps")
    write_checksums(NEXT.parent)


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
) -> None:
    """Train the autoencoder."""
    from companion.tabletop.vae import train_vae

    _threads(threads)
    seen = dataset.read(folder / "renders", "train", ("picture", "segments"), count)

    run = train_vae(
        seen["picture"], steps, folder / "vae.safetensors", folder / "vae.jsonl", lr=lr, batch=batch, warm=warm,
        bfloat16=bfloat16, equivariance=equivariance, segments=seen["segments"], every=every,
    )  # fmt: skip
    _follow(run, steps, "vae", _rebuilding(folder, "vae"))


def _rebuilding(folder: Path, name: str):
    """What a half-trained autoencoder makes of 64 held-out renders: a sheet, and a line of measures."""
    from companion.metrics import fine_contrast, psnr
    from companion.tabletop.vae import rebuild, to_tensor

    held = {k: v[:64] for k, v in dataset.read(folder / "renders", "val", ("picture", "segments")).items()}
    pictures, thing = held["picture"], torch.as_tensor(held["segments"] >= 2)[:, None].float()

    def show(step: int, ema) -> str:
        again = rebuild(ema, pictures)
        grid([*pictures[:8], *again[:8], *pictures[8:16], *again[8:16]]).save(folder / f"{name}.png")
        share = fine_contrast(again) / fine_contrast(to_tensor(pictures))
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
    sharpness: Annotated[float, typer.Option(help="Weight of a critic that asks for sharp pictures; 0 is none.")] = 0.0,
    mend: Annotated[bool, typer.Option("--mend", help="Show it also latents that the U-Net has redrawn.")] = False,
    bfloat16: Bfloat16 = False,
) -> None:
    """Train the autoencoder's decoder further; the latents, and the U-Net that was trained on them, stay valid."""
    from companion.tabletop.vae import make_vae, train_decoder
    from companion.training import load_weights

    _threads(threads)
    seen = dataset.read(folder / "renders", "train", ("picture", "segments"), count)
    model = load_weights(folder / "vae.safetensors", make_vae())
    run = train_decoder(
        seen["picture"], model, steps, folder / "decoder.safetensors", folder / "decoder.jsonl", lr=lr,
        sharpness=sharpness, segments=seen["segments"], bfloat16=bfloat16, every=every,
        redrawn=_redrawn(folder, count) if mend else None,
    )  # fmt: skip
    _follow(run, steps, "decoder", _rebuilding(folder, "decoder"))


def _redrawn(folder: Path, count: int) -> torch.Tensor:
    """Latents of the training renders as the trained U-Net redraws them, in the decoder's units; kept as a file."""
    from companion.tabletop.unet import redrawn

    out = folder / "latents" / f"redrawn-{count}.npy"
    if not out.exists():
        words, scenes = tokenizer(folder), dataset.scenes(folder / "renders", "train", count)
        start, factor = cached(folder, 16, count), _trained_vae(folder).config.scaling_factor
        run = redrawn(_trained_unet(folder), start, scenes, words, batch=64)
        parts = track(run, "redrawing", total=-(-len(start) // 64))
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
) -> None:
    """Train the two towers."""
    from companion.tabletop.clip import retrieval, small, train_clip

    _threads(threads)
    pictures = small(dataset.read(folder / "renders", "train", ("picture",), count)["picture"])
    scenes = dataset.scenes(folder / "renders", "train", count)
    held, held_scenes = _validation(folder, 256)
    words = tokenizer(folder)

    def show(step: int, ema) -> str:
        return ", ".join(f"{k} {v:.3f}" for k, v in retrieval(ema, small(held), held_scenes, words).items())

    run = train_clip(
        pictures, scenes, words, steps, folder / "clip.safetensors", folder / "clip.jsonl", batch=batch, every=every
    )
    _follow(run, steps, "clip", show, 200)


@app.command()
def judge(
    steps: Steps = 1000,
    count: Count = 6500,
    folder: Folder = BUILD,
    threads: Threads = 0,
    every: float = 120.0,
    batch: int = 20,
    bfloat16: Bfloat16 = False,
) -> None:
    """Train the judge, on training renders and on renders of the withheld pairs."""
    from companion.judge import train_judge

    _threads(threads)
    run = train_judge(
        folder / "renders", count, steps, folder / "judge.safetensors", folder / "judge.jsonl", batch=batch,
        bfloat16=bfloat16, every=every,
    )  # fmt: skip

    def show(step: int, ema) -> str:
        return ", ".join(f"{k} {v:.3f}" for k, v in judge_accuracy(ema, folder, "val").items())

    _follow(run, steps, "judge", show, 250)


def judge_accuracy(model, folder: Path, split: str, count: int | None = None) -> dict[str, float]:
    """How often the judge's answer about (the first `count`) renders of a split is right, by attribute."""
    from companion.judge import accuracy

    columns = dataset.read(
        folder / "renders", split, ("picture", "depth", "normals", "segments", "joints", "boxes"), count
    )
    return accuracy(model.eval(), columns, dataset.scenes(folder / "renders", split, count))


@app.command()
def latents(count: Count = 6000, folder: Folder = BUILD, threads: Threads = 0) -> None:
    """Encode the training renders once, at 64 and at 128 pixels, with the trained autoencoder."""
    _threads(threads)
    model = _trained_vae(folder)
    for size in (8, 16):
        for _ in _encode_missing(model, folder, size, count):
            pass


def _trained_vae(folder: Path):
    """The trained autoencoder, with the factor that gives its latents variance 1."""
    from companion.tabletop.vae import Critic, Players, make_vae, to_tensor
    from companion.training import load_weights

    # A decoder that was trained further has the same encoder, so the same latents.
    last, model = folder / "decoder.safetensors", make_vae()
    if last.exists():
        load_weights(last, Players(model, Critic()))
    else:
        load_weights(folder / "vae.safetensors", model)
    model.eval()
    with np.load(dataset.shards(folder / "renders", "train")[0], allow_pickle=False) as z:
        pictures = z["picture"]
    with torch.no_grad():
        std = model.encode(to_tensor(pictures)).latent_dist.mean.std().item()
    model.register_to_config(scaling_factor=round(1 / std, 5))
    return model


def _encode_missing(model, folder: Path, size: int, count: int) -> Iterator[Path]:
    """Latents of each shard as .npy files beside it, made where they are missing or older than the autoencoder."""
    from companion.tabletop.clip import small
    from companion.tabletop.unet import encode

    born = (folder / "vae.safetensors").stat().st_mtime
    for path in dataset.shards(folder / "renders", "train")[: -(-count // dataset.SHARD)]:
        out = folder / "latents" / f"{path.stem}-{size}.npy"
        if not out.exists() or out.stat().st_mtime < born:
            with np.load(path, allow_pickle=False) as z:
                pictures = z["picture"]
            with written(out) as temporary, temporary.open("wb") as f:
                np.save(f, encode(model, small(pictures) if size == 8 else pictures).numpy())
        yield out


def cached(folder: Path, size: int, count: int) -> torch.Tensor:
    """All latents (count, 4, size, size) of the training renders, encoding what is missing."""
    return torch.from_numpy(
        np.concatenate([np.load(p) for p in _encode_missing(_trained_vae(folder), folder, size, count)])[:count]
    )


def _trained_unet(folder: Path):
    """The trained U-Net of the last stage there is, with its text encoder."""
    from companion.tabletop.clip import make_clip
    from companion.tabletop.unet import Conditioned, make_unet
    from companion.training import load_weights

    last = folder / "unet16.safetensors"
    empty = Conditioned(make_unet(), text_tower(make_clip(tokenizer(folder))))
    return load_weights(last if last.exists() else folder / "unet8.safetensors", empty).eval()


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
) -> None:
    """Train the noise predictor: with --size 8, then with --size 16, which goes on from the first."""
    from companion.tabletop.clip import make_clip
    from companion.tabletop.unet import train_unet
    from companion.training import load_weights

    if size not in (8, 16):
        raise typer.BadParameter(f"size={size} is not a stage; train with --size 8, then with --size 16")
    _threads(threads)
    text = tokenizer(folder)
    latent, scenes = cached(folder, size, count), dataset.scenes(folder / "renders", "train", count)
    towers = make_clip(text)
    load_weights(folder / "clip.safetensors", towers)
    encoder = text_tower(towers)
    name = f"unet{size}"
    begun = (folder / f"{name}.safetensors").exists()  # killed before, or adopted
    start = folder / "unet8.safetensors" if size == 16 and not begun else None
    model_vae = _trained_vae(folder)
    held = _validation(folder, 256)

    def show(step: int, ema) -> str:
        sheet = folder / "samples" / f"{name}-{step:06d}.png"
        sheet.parent.mkdir(exist_ok=True)
        grid(sketch(ema, model_vae, text, size)).save(sheet)
        found = held_out_error(ema, model_vae, text, held, size)
        if step % MEASURED == 0:
            found |= half_way(ema, model_vae, text, held, size)
        with (folder / f"{name}-measured.jsonl").open("a") as f:
            f.write(json.dumps({"step": step, **found}) + "\n")
        return ", ".join(f"{k} {v:.4f}" for k, v in found.items())

    run = train_unet(
        latent, scenes, text, encoder, steps, folder / f"{name}.safetensors", folder / f"{name}.jsonl",
        start_from=start, batch=batch, lr=lr,
        train_text=words, bfloat16=bfloat16, every=every,
    )  # fmt: skip
    _follow(run, steps, name, show, 500)


def text_tower(towers):
    """CLIP's text tower as the pipeline's CLIPTextModel."""
    from transformers import CLIPTextModel

    model = CLIPTextModel(towers.config.text_config)
    model.load_state_dict(towers.text_model.state_dict())
    return model


MEASURED = 1000  # steps between two sets of pictures that the judge reads: they take a minute or two
SKETCH_PROMPTS = (
    "a red ball on grass by day", "a green robot on snow by day", "a blue house on sand at sunset",
    "a yellow cone on brick by day",
    "a purple tree on water at sunset", "a glass cube on grass at night",
    "a red robot left of a blue ball on sand by day",
    "a green tree left of a yellow cube on snow at sunset", "an orange can on brick at night",
    "a blue cone right of a red house on grass by day",
    "a gold ring on sand by day", "a white mushroom behind a red car on grass by day", "a steel ball on water by day",
    "a black car on snow at sunset",
    "a purple cube on sand by day", "a gold robot in front of a green house on grass at sunset",
)  # fmt: skip


@torch.no_grad()
def sketch(
    model, vae, words, size: int, prompts=SKETCH_PROMPTS, steps: int = 20, guidance: float = GUIDANCE, seed: int = 0
) -> torch.Tensor:
    """Pictures (N, 3, 8 size, 8 size) of a half-trained `Conditioned` model, to look at while it learns."""
    from companion.tabletop.clip import tokenize
    from companion.tabletop.pipeline import scheduler

    states = model.text_encoder(tokenize(words, ["" for _ in prompts] + list(prompts))).last_hidden_state
    x = torch.randn(len(prompts), 4, size, size, generator=torch.Generator().manual_seed(seed))
    s = scheduler()
    s.set_timesteps(steps)
    x = x * s.init_noise_sigma
    for t in s.timesteps:
        empty, full = model.unet(s.scale_model_input(torch.cat([x, x]), t), t, states).sample.chunk(2)
        x = s.step(empty + guidance * (full - empty), t, x).prev_sample
    return vae.decode(x / vae.config.scaling_factor).sample


@torch.no_grad()
def held_out_error(
    model, vae, words, held: tuple[np.ndarray, list[Scene]], size: int = 16, count: int = 64
) -> dict[str, float]:
    """Squared error of the predicted noise on held-out renders at four timesteps: with their captions and, as
    "error_untold", with empty ones. The gap is what the words tell the model.
    """
    from diffusers import DDPMScheduler

    from companion.tabletop.caption import caption
    from companion.tabletop.clip import small, tokenize
    from companion.tabletop.unet import SCHEDULE, encode

    renders, scenes = held[0][:count], held[1][:count]
    x0 = encode(vae, small(renders) if size == 8 else renders).float()
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    told, untold = (
        model.text_encoder(tokenize(words, texts)).last_hidden_state
        for texts in ([caption(s) for s in scenes], [""] * len(scenes))
    )
    s, errors = DDPMScheduler(**SCHEDULE), {"error": 0.0, "error_untold": 0.0}
    for t in (torch.tensor([v] * len(x0)) for v in (200, 400, 600, 800)):
        noisy = s.add_noise(x0, noise, t)
        for name, states in zip(errors, (told, untold), strict=True):
            errors[name] += float(((model.unet(noisy, t, states).sample - noise) ** 2).mean()) / 4
    return {k: round(v, 5) for k, v in errors.items()}


def half_way(model, vae, words, held: tuple[np.ndarray, list[Scene]], size: int = 16) -> dict[str, float]:
    """Measures of a half-trained model: Fréchet distance to held-out renders (N, 128, 128, 3), and prompts met.

    So few pictures make the distance large even between renders: it is there to be seen falling. Pictures of 64 pixels
    (size 8) are enlarged for the judge: compare them with each other alone.
    """
    from companion.metrics import frechet, picture_features, prompt_accuracy
    from companion.tabletop.caption import Wish, caption

    renders, scenes = held
    prompts = [caption(s) for s in scenes]
    drawn = torch.cat(
        [sketch(model, vae, words, size, prompts[i : i + 32], seed=i) for i in range(0, len(prompts), 32)]
    )
    if size != 16:
        drawn = torch.nn.functional.interpolate(drawn, size=(128, 128), mode="bicubic", antialias=True)
    met = prompt_accuracy(drawn, [Wish.of(s) for s in scenes])
    return {"frechet": round(frechet(picture_features(drawn), picture_features(renders)), 3)} | {
        k: round(v, 3) for k, v in met.items()
    }


@app.command()
def publish(folder: Folder = BUILD) -> None:
    """Put the finished parts into data/: pipeline, CLIP, judge, held-out renders, cached latents, the logs of their
    training, and the checksums.
    """
    from companion.fast import write_graphs
    from companion.files import write_checksums
    from companion.judge import Judge
    from companion.tabletop import pipeline, samples
    from companion.tabletop.clip import make_clip
    from companion.tabletop.report import LOGS
    from companion.training import load_weights

    text, model_vae, model = tokenizer(folder), _trained_vae(folder), _trained_unet(folder)
    towers = load_weights(folder / "clip.safetensors", make_clip(text)).eval()
    pipeline.save(pipeline.pipeline(model_vae, model.text_encoder, text, model.unet), MODELS / "tabletop")
    write_graphs(MODELS / "tabletop", typer.echo)
    pipeline.save_clip(towers, text, MODELS / "clip")
    if (folder / "judge.safetensors").exists():
        load_weights(folder / "judge.safetensors", Judge()).save(MODELS / "judge")
    for name in dataset.build(folder / "renders", "val", 500):
        typer.echo(f"drawn {name}")
    held = dataset.read(folder / "renders", "val", ("picture",), 256)["picture"]
    samples.save_held_out(held, dataset.scenes(folder / "renders", "val", 256))
    few = 1500
    samples.save_latents(cached(folder, 8, few), dataset.scenes(folder / "renders", "train", few))
    for log in sorted(folder.glob("*.jsonl")):
        with written(LOGS / log.name) as temporary:
            temporary.write_bytes(log.read_bytes())
    shutil.rmtree(NEXT, ignore_errors=True)
    write_checksums(MODELS)
    typer.echo(f"published to {MODELS}")


@app.command()
def strip(
    stages: Annotated[list[str], typer.Argument(help="Commits whose published weights draw a row each, oldest first.")],
    names: Annotated[str, typer.Option(help="What to call them, with commas between.")] = "",
) -> None:
    """Draw the same prompts with the weights of several commits: what training changed, as data/models/strip.png."""
    from companion.tabletop.report import strip as draw

    called = [name.strip() for name in names.split(",")] if names else stages
    if len(called) != len(stages):
        raise typer.BadParameter(f"{len(called)} names for {len(stages)} commits; give one for each")
    with written(MODELS / "strip.png") as image:
        draw(dict(zip(called, stages, strict=True))).save(image, "PNG", optimize=True)


@app.command()
def report(
    folder: Folder = BUILD,
    quick: Annotated[bool, typer.Option(help="A tenth of the pictures, nothing written.")] = False,
) -> None:
    """Measure what is published: writes data/models/report.json, the table in README.md and the sheet of 40 prompts."""
    from companion.tabletop.report import measure, write

    found = measure(folder, 0.1 if quick else 1.0, typer.echo)
    if not quick:
        write(found, folder)


if __name__ == "__main__":
    app()
