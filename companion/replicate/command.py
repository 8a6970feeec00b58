"""`companion replicate`: pack pictures, start a training and follow it, and draw with the result.

This layer only reads the command line and prints; `companion.replicate.service` does the work.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from companion.replicate.fields import translate
from companion.replicate.service import Job, Progress, Service, read_token, rehearsal

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def _about() -> None:
    """Train a DreamBooth on Replicate, and draw with it. The token is read from REPLICATE_API_TOKEN, or asked for."""


@app.command("zip")
def _zip(
    source: Annotated[Path, typer.Argument(exists=True, help="A folder of pictures, or a zip of them.")],
    target: Annotated[Path, typer.Argument(help="The zip to write.")],
    size: Annotated[int, typer.Option(min=64, max=2048, help="Width and height, a multiple of 8 pixels.")] = 512,
    keep_alike: Annotated[bool, typer.Option("--keep-alike", help="Keep pictures that are nearly the same.")] = False,
) -> None:
    """Make a zip of square JPEGs (`companion dreambooth prepare` also shows them, and lets you choose the squares)."""
    from rich.progress import track

    from companion.photographs import pack

    def watch(files: Iterable[Any], total: int) -> Iterable[Any]:
        return track(files, "Reading", total, transient=True)

    packed = pack(source, target, size, keep_alike=keep_alike, watch=watch)
    typer.echo(f"{packed}\n{packed.path}: {packed.path.stat().st_size:,} bytes")


@app.command("train")
def _train(
    trainer: Annotated[str, typer.Option(help="Its owner/name:version, from its page.")],
    destination: Annotated[str, typer.Option(help="owner/name of your model; it is made if it is not there.")],
    instance_data: Annotated[Path, typer.Option(help="Zip of your subject (see `companion replicate zip`).")],
    instance_prompt: Annotated[str, typer.Option(help="Such as 'a photo of an oscvtr doctor'.")],
    class_prompt: Annotated[str, typer.Option(help="The same without the rare word: 'a photo of a doctor'.")],
    class_data: Annotated[Path | None, typer.Option(help="Zip of others of its class.")] = None,
    max_train_steps: Annotated[int, typer.Option(min=1, help="Of training.")] = 1000,
    num_class_images: Annotated[int | None, typer.Option(min=0, help="That the trainer draws.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any other field.")] = None,
    webhook: Annotated[str, typer.Option(help="An https address to call when it is over.")] = "",
    hardware: Annotated[str, typer.Option(help="What a new destination runs on.")] = "gpu-t4",
    again: Annotated[bool, typer.Option("--again", help="Start it although an equal one was started.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before spending money.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show each request, and send none.")] = False,
) -> None:
    """Start a training, once, and follow it to its end."""
    fields: dict[str, Any] = {"instance_prompt": instance_prompt, "class_prompt": class_prompt}
    fields |= {"instance_data": instance_data, "max_train_steps": max_train_steps}
    optional = {"class_data": class_data, "num_class_images": num_class_images}
    fields |= {name: value for name, value in optional.items() if value is not None}
    for item in set_ or []:
        name, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"--set {item!r} is not NAME=VALUE, such as lr_scheduler=linear.")
        fields[name] = value
    job = Job(trainer, destination, fields, webhook, hardware)
    if dry_run:
        for request in rehearsal(job):
            typer.echo(request)
        return
    service = Service(read_token())
    translation = translate(job.fields, service.schema(job.trainer))
    for name in translation.dropped:
        typer.echo(f"{name}: this trainer has no place for it, so it is left out.")
    if not yes:
        typer.confirm(f"Start a training of {destination}? It costs money", abort=True)
    id = service.start(job, again=again)
    typer.echo(f"Training {id}. Ctrl-C only stops watching; `companion replicate cancel {id}` stops the training.")
    _watch(service, id)


@app.command("follow")
def _follow(id: Annotated[str, typer.Argument(help="A training's id.")]) -> None:
    """Watch a training to its end."""
    _watch(Service(read_token()), id)


def _watch(service: Service, id: str) -> None:
    progress = Progress("")
    for progress in service.follow(id):
        if progress.log:
            typer.echo(progress.log.rstrip("\n"))
    typer.echo(f"Training {id} {progress.status}. {progress.error or progress.version}".rstrip())
    raise typer.Exit(int(progress.status != "succeeded"))


@app.command("cancel")
def _cancel(id: Annotated[str, typer.Argument(help="A training's id.")]) -> None:
    """Stop a training."""
    typer.echo(f"Training {id}: {Service(read_token()).cancel(id)}")


@app.command("predict")
def _predict(
    version: Annotated[str, typer.Argument(help="owner/name:version, as the training gave it.")],
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    image: Annotated[Path | None, typer.Option(exists=True, help="A picture to begin with (img2img).")] = None,
    out: Annotated[Path, typer.Option(help="A folder for the pictures.")] = Path("."),
    size: Annotated[int, typer.Option(help="Side to which the picture is cut, in pixels: the model's own size.")] = 512,
) -> None:
    """Draw with a model that was trained."""
    inputs: dict[str, Any] = {"prompt": prompt} | ({"image": image} if image else {})
    for path in Service(read_token()).predict(version, inputs, out, size=size):
        typer.echo(path)
