"""`companion dreambooth`: photographs to a training set, and pictures of the class.

This layer only reads the command line and prints; `companion.photographs` and `companion.class_images` do the work.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def _about() -> None:
    """Get pictures ready to teach a model your subject (DreamBooth)."""


def _watch(things: Iterable[Any], total: int) -> Iterable[Any]:
    from rich.progress import track

    return track(things, "Reading", total, transient=True)


@app.command("prepare")
def _prepare(
    source: Annotated[Path, typer.Argument(exists=True, help="A folder of photographs, or a zip of them.")],
    out: Annotated[Path, typer.Option(help="A new folder for the set.")],
    size: Annotated[int | None, typer.Option(min=64, max=2048, help="Width and height in pixels; else 512.")] = None,
    model: Annotated[str | None, typer.Option(help="Take the size of this model, such as tabletop.")] = None,
    crop: Annotated[str, typer.Option(help="centre, or detail: where most is to be seen.")] = "centre",
    boxes: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="JSON file of squares: left, top and side, by name."),
    ] = None,
    class_pictures: Annotated[
        Path | None, typer.Option(exists=True, help="Pictures of the class, for a second zip.")
    ] = None,
    keep_alike: Annotated[bool, typer.Option("--keep-alike", help="Keep pictures that are nearly the same.")] = False,
) -> None:
    """Make square pictures of any photographs, a zip for Replicate, a contact sheet and a report.

    Nothing is overwritten, and the originals are only read.
    """
    from companion.models import find
    from companion.photographs import SIZE, prepare

    if size and model:
        raise ValueError(f"--size {size} and --model {model} both say how large the pictures shall be: give one.")
    size = find(model).size if model else size or SIZE
    options: dict[str, Any] = {"crop": crop, "boxes": boxes, "keep_alike": keep_alike}
    made = prepare(source, out, size, class_pictures=class_pictures, watch=_watch, **options)
    typer.echo(f"{made}\n\nIn {out}: {', '.join(sorted(p.name for p in out.iterdir()))}. Look at contact_sheet.png.")


@app.command("class-images")
def _class_images(
    prompt: Annotated[str, typer.Option(help="The class without your subject, such as 'a red cube'.")],
    out: Annotated[Path, typer.Option(help="A folder for the pictures; a run that was stopped goes on in it.")],
    count: Annotated[int, typer.Option(min=1, help="How many there shall be.")] = 200,
    model: Annotated[str, typer.Option(help="A name of the catalogue, or a pipeline's folder.")] = "tabletop",
    seed: Annotated[int, typer.Option(min=0, help="Of the first picture; the next has the next.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="How many are drawn together.")] = 4,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of each; else what suits the model.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="Guidance scale; else what suits it.")] = None,
    given: Annotated[Path | None, typer.Option(exists=True, help="Photographs of the class, which come first.")] = None,
    device: Annotated[str | None, typer.Option(help="Such as cuda or cpu.")] = None,
) -> None:
    """Draw pictures of the class, which keep the model from forgetting it.

    The same command goes on where it was stopped, to the same pictures.
    """
    from rich.progress import track

    from companion.class_images import class_images
    from companion.models import find, load

    known, pipe = find(model), load(model, device=device)
    options: dict[str, Any] = {"steps": steps or known.steps, "batch": batch, "given": given, "watch": _watch}
    options |= {"guidance_scale": known.guidance if guidance is None else guidance}
    drawing = class_images(pipe, prompt, count, out, seed, **options)
    done = [path.name for path in track(drawing, "Class images", count, transient=True)]
    typer.echo(f"{len(done)} pictures in {out}: {done[0]} to {done[-1]}")
