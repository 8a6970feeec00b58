"""`companion train`: finetuning outside of a notebook, on your own pictures.

This layer reads the command line; `companion.finetuning` and `companion.finetuning_run` do the work.
"""

from __future__ import annotations

import io
import os
import shlex
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from companion.finetuning import Examples, Method
    from companion.models import Model


class Name(StrEnum):
    """What learns."""

    dreambooth = "dreambooth"
    lora = "lora"
    oft = "oft"
    textual_inversion = "textual-inversion"
    controlnet = "controlnet"
    adapter = "t2i-adapter"


#: Steps that suit Stable Diffusion: those of the papers and of the library's recipes.
STEPS = {
    Name.dreambooth: 400,
    Name.lora: 500,
    Name.oft: 1000,
    Name.textual_inversion: 3000,
    Name.controlnet: 5000,
    Name.adapter: 5000,
}


def train(
    what: Annotated[Name, typer.Argument(help="What learns.")],
    photos: Annotated[Path, typer.Argument(exists=True, help="A folder or zip of pictures.")],
    out: Annotated[Path, typer.Option(help="A folder for the run; called again, it goes on there.")],
    prompt: Annotated[str, typer.Option(help="What they show, such as 'a photo of sks dog'.")] = "",
    model: Annotated[str, typer.Option(help="Of the catalogue, a pipeline's folder, or owner/name.")] = "tabletop",
    class_prompt: Annotated[str, typer.Option(help="The class without your subject: 'a photo of a dog'.")] = "",
    class_pictures: Annotated[Path | None, typer.Option(exists=True, help="Pictures of the class; else drawn.")] = None,
    class_count: Annotated[int, typer.Option(min=1, help="How many are drawn.")] = 200,
    class_weight: Annotated[float, typer.Option(min=0, help="What their error counts.")] = 1.0,
    steps: Annotated[int | None, typer.Option(min=1, help="Of training; else what suits the method.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate; else the method's for Stable Diffusion.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Pictures a step, of each set.")] = 1,
    accumulate: Annotated[int, typer.Option(min=1, help="Steps whose gradients are added up.")] = 1,
    rank: Annotated[int, typer.Option(min=1, help="Of LoRA.")] = 4,
    blocks: Annotated[int, typer.Option(min=1, help="Of OFT's rotations.")] = 4,
    text_encoder: Annotated[bool, typer.Option("--text-encoder", help="Let it learn too (dreambooth, lora).")] = False,
    average: Annotated[
        float | None, typer.Option(min=0, max=1, help="Keep a moving average of the weights: its decay, as 0.999.")
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Also write a whole pipeline, which any diffusers loads.")
    ] = False,
    token: Annotated[str, typer.Option(help="The new word of textual inversion.")] = "<mine>",
    initial: Annotated[str, typer.Option(help="The known word that it starts from.")] = "",
    condition: Annotated[str, typer.Option(help="What a ControlNet follows, such as canny.")] = "",
    maps: Annotated[Path | None, typer.Option(exists=True, help="Control pictures with the pictures' names.")] = None,
    min_snr: Annotated[float | None, typer.Option(help="Limit of weights by signal-to-noise ratio.")] = None,
    eight_bit: Annotated[bool, typer.Option("--eight-bit", help="Adam's state in 8 bits (bitsandbytes).")] = False,
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="Less memory, a third more time.")] = False,
    show: Annotated[list[str] | None, typer.Option(help="A prompt to draw as training goes on; repeat it.")] = None,
    show_every: Annotated[int, typer.Option(min=1, help="Steps between two drawings.")] = 100,
    save_every: Annotated[float, typer.Option(min=0, help="Seconds between two checkpoints.")] = 120.0,
    seed: Annotated[int, typer.Option(help="Of everything that is random.")] = 0,
    device: Annotated[str | None, typer.Option(help="Such as cuda or cpu.")] = None,
) -> None:
    """Teach a model from your pictures: DreamBooth, LoRA, OFT, textual inversion, ControlNet, T2I-Adapter.

    Captions may stand beside the pictures, in cat.txt for cat.jpg; --prompt is for those without. For several GPUs, put
    `accelerate launch -m` and `companion.cli` in the place of `companion`.
    """
    from rich.progress import Progress as Bar

    from companion.files import written_folder
    from companion.finetuning import accelerator_for, attach, merged
    from companion.finetuning_run import Folder
    from companion.models import find, load

    learns_control = what in (Name.controlnet, Name.adapter)
    if learns_control != bool(condition or maps):
        raise ValueError(
            f"train {what} needs --condition or --maps, which say what to follow"
            if learns_control
            else f"--condition and --maps are for a ControlNet; train {what} does not use them"
        )
    if text_encoder and what not in (Name.dreambooth, Name.lora):
        raise ValueError(f"--text-encoder is for dreambooth and lora; train {what} does not use it")
    if merge and learns_control:
        raise ValueError(f"--merge is for what changes the pipeline; train {what} makes a network beside it")
    if not (prompt or learns_control):
        raise ValueError("The pictures need a --prompt, such as --prompt 'a photo of sks dog'")
    if what == Name.textual_inversion and (token not in prompt or not initial):
        raise ValueError(f"textual inversion needs --initial, a known word, and a prompt with {token!r} in it")

    if "LOCAL_RANK" in os.environ:  # each process of `accelerate launch` has a GPU of its own
        import torch
        from accelerate import PartialState

        # Processes find each other on a CPU only if they are told that it is one; else each would train alone.
        state = PartialState(cpu=device == "cpu" or not torch.accelerator.is_available())
        device = device or str(state.device)
    known = find(model)
    if known.base:
        raise ValueError(
            f"{model} is a LoRA: train with the model below it, --model {known.base.path or known.base.name}"
        )
    pipe = load(model, device=device)
    method = _method(what, rank, blocks, text_encoder, token, initial)
    sets = [_pictures(pipe, photos, known.size, prompt, condition, maps)]
    several = accelerator_for(pipe)
    if class_prompt:
        with several.main_process_first():  # one draws, and the others find what it drew
            sets.append(_class(pipe, out, class_prompt, class_pictures, class_count, class_weight, known, seed))
    elif class_pictures:
        raise ValueError("--class-pictures need a --class-prompt, such as 'a photo of a dog'")

    total = steps or STEPS[what]
    training: dict[str, Any] = {"lr": lr or method.lr, "batch": batch, "accumulate": accumulate, "min_snr": min_snr}
    training |= {"drop": 0.5 if learns_control else 0.0, "bits": 8 if eight_bit else 32, "seed": seed}
    training |= {"averaged": average}
    told = {"what": str(what), "model": model, "method": repr(method), "steps": total, "prompt": prompt}
    told |= {"class_prompt": class_prompt, "condition": condition, "show": show or [], "show_every": show_every}
    told |= {"class_weight": class_weight, "checkpointing": checkpointing}
    told |= {"processes": several.num_processes, "precision": several.mixed_precision}
    source = {"photos": str(photos), "class_pictures": str(class_pictures or f"{class_count} drawn")}
    source |= {"maps": str(maps or ""), "command": shlex.join(sys.argv)}
    tuned = attach(pipe, method, seed, checkpointing=checkpointing)
    run = Folder(out, told | training, source).run(
        tuned,
        sets,
        total,
        prompts=show or [prompt] * 4,
        sampling={"steps": known.steps, "guidance_scale": known.guidance},
        show=show_every,
        every=save_every,
        measure=_measure(pipe, sets[0]),
        **training,
    )
    with Bar(disable=_one_of_many()) as bar:
        task = bar.add_task(f"training {what}", total=total)
        for progress in run:
            bar.update(task, completed=progress.step, description=f"training {what}, loss {progress.loss:.3f}")
    several.end_training()
    if _one_of_many():
        return
    if what == Name.lora:
        _card(out / "learned", known, prompt)
    if merge and not (out / "merged").exists():  # else the run was finished before
        with written_folder(out / "merged") as folder:
            merged(tuned).save_pretrained(folder, safe_serialization=True)
    typer.echo(f"What was learned is in {out / 'learned'}; look at {out / 'report.html'}.")


def _card(folder: Path, base: Model, prompt: str) -> None:
    """Write what a LoRA is for beside it, as `models.find` and the hub read it, unless there is a README.md already."""
    import json

    from companion.files import written

    if (folder / "README.md").exists():  # the run was finished before, and somebody may have added to it
        return
    # The name that all know. A folder of this machine would mean nothing on another.
    name = "" if base.path else base.mirrors[0] if base.mirrors else base.name
    lines = [
        "library_name: diffusers",
        "tags: [lora, text-to-image]",
        f"instance_prompt: {json.dumps(prompt, ensure_ascii=False)}",
    ]
    lines += [f"base_model: {name}"] if name else []
    with written(folder / "README.md") as temporary:
        text = "\n".join(["---", *lines, "---", "", f"A LoRA for pictures of: {prompt}", ""])
        temporary.write_text(text, encoding="utf-8")


def _measure(pipe: Any, own: Examples) -> Callable[[Any], dict[str, float]] | None:
    """What of drawn pictures can be put in numbers: in the miniature how like those of the set they are, and how
    diverse. Of photographs the course has no judge.
    """
    from companion.diffusion import decode
    from companion.dreambooth import likeness, spread
    from companion.tabletop.measures import can_be_judged

    if own.controls is not None or not can_be_judged(pipe):
        return None
    learned_from = decode(pipe, own.latents.to(pipe.unet.device)).cpu()

    def found(pictures: Any) -> dict[str, float]:
        several = {"diversity": spread(pictures)} if len(pictures) > 1 else {}
        return {"likeness": float(likeness(pictures, learned_from).mean()), **several}

    return found


def _method(what: Name, rank: int, blocks: int, text_encoder: bool, token: str, initial: str) -> Method:
    from companion.finetuning import ControlNet, Full, Lora, Oft, TextualInversion

    return {
        Name.dreambooth: lambda: Full(text_encoder),
        Name.lora: lambda: Lora(rank, text_encoder=text_encoder),
        Name.oft: lambda: Oft(blocks),
        Name.textual_inversion: lambda: TextualInversion(token, initial),
        Name.controlnet: ControlNet,
        Name.adapter: lambda: ControlNet(adapter=True),
    }[what]()


def _pictures(pipe: Any, photos: Path, size: int, prompt: str, condition: str, maps: Path | None) -> Examples:
    """The set of examples of a folder or zip: its pictures, their captions and, if wanted, control pictures."""
    import numpy as np

    from companion.controlnet import as_controls
    from companion.finetuning import examples
    from companion.photographs import select

    found = select(photos, size, keep_alike=bool(condition or maps), watch=_watch)
    for name, reason in ((p.name, p.reason) for p in found.left_out if not p.name.endswith(".txt")):
        if not _one_of_many():
            typer.echo(f"left out: {name} {reason}", err=True)
    pictures, names = [_opened(p.jpeg) for p in found.kept], [p.name for p in found.kept]
    prompts = [_caption(photos, name, prompt) for name in names]
    controls = None
    if maps is not None:
        shown = _maps(maps, size)
        if missing := [name for name in names if Path(name).stem not in shown]:
            raise ValueError(f"{maps} has no control picture for {missing[0]} ({len(missing)} are missing)")
        controls = as_controls([shown[Path(name).stem] for name in names], size)
    elif condition:
        show = _annotator(pipe, condition)
        shown = [show(np.asarray(p)[None])[0] for p in _watch(pictures, len(pictures), f"finding {condition}")]
        controls = as_controls(shown, size)
    return examples(pipe, pictures, prompts, controls=controls)


def _maps(folder: Path, size: int) -> dict[str, Image.Image]:
    """Control pictures by their name without its ending, cut and resized as the pictures are that they belong to.

    Colours that stand for something must not be mixed: a picture in few colours keeps them.
    """
    import numpy as np
    from PIL import Image

    from companion.photographs import centre, files_of, upright
    from companion.pictures import PictureError

    found = {}
    with files_of(folder) as files:
        for name, read in _watch(files, len(files)):
            try:
                picture, _ = upright(name, read())
            except PictureError:  # a caption, say
                continue
            grey = not np.ptp(np.asarray(picture), axis=2).any()
            labels = not grey and picture.getcolors(256) is not None
            how = Image.Resampling.NEAREST if labels else Image.Resampling.LANCZOS
            left, top, side = centre(picture)
            found[Path(name).stem] = picture.resize((size, size), how, box=(left, top, left + side, top + side))
    return found


def _annotator(pipe: Any, condition: str) -> Callable[[np.ndarray], np.ndarray]:
    """What makes control pictures of pictures, uint8 (N, H, W, 3): of the miniature world, or of photographs."""
    from companion.conditions import CONDITIONS
    from companion.photo_conditions import annotator
    from companion.pose import fetch
    from companion.tabletop.measures import can_be_judged

    if condition not in CONDITIONS:
        raise ValueError(f"--condition {condition!r} is unknown; the eight are {', '.join(CONDITIONS)}")
    if can_be_judged(pipe):
        known = CONDITIONS[condition]
        return lambda pictures: known.paint(known.annotate(pictures))
    try:
        if condition == "openpose":
            fetch(watch=lambda chunks, total: _watch(chunks, total, "fetching the pose detector"))
        return annotator(condition)
    except (ImportError, OSError) as error:
        raise ValueError(f"{error} `companion train` takes ready control pictures with --maps.") from error


def _class(
    pipe: Any, folder: Path, prompt: str, pictures: Path | None, count: int, weight: float, model: Model, seed: int
) -> Examples:
    """The set of the class: given pictures, or ones that the model draws now, which a run that goes on finds again."""
    from companion.class_images import class_images
    from companion.finetuning import examples
    from companion.photographs import select

    if pictures is not None:
        kept = select(pictures, model.size, keep_alike=True, least=1, watch=_watch).kept
        return examples(pipe, [_opened(p.jpeg) for p in kept], prompt, weight=weight)
    place = folder.with_name(f"{folder.name}-class")
    sampling = {"steps": model.steps, "guidance_scale": model.guidance}
    drawing = class_images(pipe, prompt, count, place, seed, **sampling)
    paths = list(_watch(drawing, count, "class images"))
    return examples(pipe, [_opened(path.read_bytes()) for path in paths], prompt, weight=weight)


def _watch(things: Any, total: int, doing: str = "reading") -> Any:
    from rich.progress import track

    return track(things, doing, total, transient=True, disable=_one_of_many())


def _one_of_many() -> bool:
    """Whether this is another than the first of several processes, so that it should print nothing."""
    return os.environ.get("RANK", "0") != "0"


def _opened(data: bytes) -> Image.Image:
    from PIL import Image

    return Image.open(io.BytesIO(data)).convert("RGB")


def _caption(photos: Path, name: str, otherwise: str) -> str:
    """What the text file beside a picture says, or what is said of all."""
    beside = (photos / name).with_suffix(".txt")
    return beside.read_text(encoding="utf-8").strip() if beside.is_file() else otherwise
