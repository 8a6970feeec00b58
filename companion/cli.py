"""The `companion` command: a thin layer over the package. Each command imports what it needs when it is called."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

import companion as package

#: The extra that installs each package; a package not named here is in [lab].
_EXTRAS = {"mitsuba": "build", "drjit": "build", "oidn": "build", "gradio": "space"}
_EXTRAS |= {"replicate": "replicate", "httpx": "replicate"}

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(package.__version__)
        raise typer.Exit


@app.callback()
def companion(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """A Jupyter-first course on latent diffusion."""


@app.command()
def doctor() -> None:
    """Check that this machine is ready for the course, and say how to mend what is not."""
    from companion.doctor import FAIL, checks, report

    found = checks()
    report(found)
    raise typer.Exit(int(any(check.status == FAIL for check in found)))


@app.command()
def run(
    notebooks: Annotated[
        list[str] | None, typer.Argument(help="Numbers or names, such as 1 or latent_diffusion; all when left out.")
    ] = None,
    model: Annotated[str, typer.Option(help="A name of the catalogue, or a pipeline's folder.")] = "tabletop",
    device: Annotated[str | None, typer.Option(help="Such as cuda or cpu; the notebooks choose when left out.")] = None,
    out: Annotated[Path | None, typer.Option(help="A new folder for the report; runs/<time>/ when left out.")] = None,
    timeout: Annotated[int, typer.Option(min=1, help="The longest that a cell may take, in seconds.")] = 600,
    parameter: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", metavar="NAME=VALUE", help="A notebook's parameter.")
    ] = None,
) -> None:
    """Run the course's notebooks without a browser, and write an HTML report with their pictures."""
    with _sentences():
        from companion.doctor import check_room
        from companion.models import check_device, find
        from companion.run import run

        check_device(device)
        path = find(model).path
        check_room(find(model), device)
        model = str(path) if path else model  # a notebook runs in another folder
        code = run(notebooks or None, model, device, out, timeout, _parameters(parameter or []))
    raise typer.Exit(code)


@app.command()
def execute(
    notebooks: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, help="The files to write again.")],
) -> None:
    """Execute notebooks and write them back with their new outputs, as they are committed."""
    with _sentences():
        from companion.run import execute_in_place

        code = execute_in_place(notebooks)
    raise typer.Exit(code)


@app.command()
def samplers(
    seeds: Annotated[int, typer.Option(min=1, help="Pictures of each prompt, for the distances.")] = 2,
    pictures: Annotated[int, typer.Option(min=24, max=128, help="Pictures that the judge reads, of each cell.")] = 64,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; without it the GPU when there is one.")] = None,
) -> None:
    """Measure every sampler with the weights in data/models, into data/results; it may be stopped and goes on."""
    with _sentences():
        from companion.sampler_sweeps import sweep

        for done, total, found in sweep(seeds=seeds, pictures=pictures, device=device):
            cell = (found.quality or found.moves or found.turned or found.rows)[-1]
            typer.echo(f"{done} of {total}: {cell.sampler}, {cell.steps} steps")


@app.command()
def finetunings(
    plan: Annotated[
        str,
        typer.Argument(
            help="What is measured: rates first; then table, words, ablations, advice, long or patient; subjects, "
            "drawn for an eye; control; or trials, of ControlNets."
        ),
    ] = "rates",
    renders: Annotated[Path, typer.Option(help="Folder of training renders, for control.")] = Path("build/renders"),
    count: Annotated[int, typer.Option(min=20, help="Renders that are all of the data, for control.")] = 2000,
    steps: Annotated[int, typer.Option(min=4, help="Of training, for control.")] = 400,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each kind, for control.")] = 1,
    workers: Annotated[int, typer.Option(min=1, help="Settings that are measured beside each other.")] = 1,
    device: Annotated[str, typer.Option(help="Such as cuda.")] = "cpu",
) -> None:
    """Finetune by every method, and store what each learned, forgot and moved; it may be stopped, and goes on."""
    with _sentences():
        from companion.finetuning_sweeps import draw_sheets, prepared, sweep

        if plan in ("control", "trials"):
            from companion.control_sweeps import measure

            options = {"count": count, "training": steps, "seeds": seeds, "workers": workers, "device": device}
            options["plan"] = plan
            for done, total, setting, mean in measure(renders, **options):
                typer.echo(f"{done} of {total}: {setting.method}, {setting.lr:g}, {setting.share:.0%}: {mean:.3f}")
            return
        pipe, settings = prepared(device)
        if plan == "subjects":
            for done, total, subject in draw_sheets(pipe, **settings):
                typer.echo(f"{done} of {total}: {subject}")
            return
        for done, total, setting in sweep(pipe, plan, workers, **settings):
            typer.echo(f"{done} of {total}: {setting.subject}, {setting.method}, {setting.lr:g}, seed {setting.seed}")


# The next five commands pass their options on to applications that import torch, the renderer or a client.
_HANDED_OVER = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command(
    context_settings=_HANDED_OVER,
    help="Make the miniature world and its models again (see `companion build --help`).",
)
def build(context: typer.Context) -> None:
    with _sentences():
        from companion.pretraining.command import app as build_app
    try:
        build_app(context.args, prog_name="companion build")
    except ImportError as error:  # the renderer is imported where it is first needed
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None


@app.command(
    context_settings=_HANDED_OVER,
    help="Make a training set from photographs (see `companion dreambooth --help`).",
)
def dreambooth(context: typer.Context) -> None:
    with _sentences():
        from companion.dreambooth_command import app as dreambooth_app

        dreambooth_app(context.args, prog_name="companion dreambooth")


@app.command(
    context_settings=_HANDED_OVER,
    help="Finetune a model on your own pictures (see `companion train --help`).",
)
def train(context: typer.Context) -> None:
    with _sentences():
        from companion.finetuning_command import train as command

        one = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
        one.command()(command)
        one(context.args, prog_name="companion train")


@app.command(
    context_settings=_HANDED_OVER,
    help="Train on Replicate, and draw with the result (see `companion replicate --help`).",
)
def replicate(context: typer.Context) -> None:
    with _sentences():
        from companion.replicate.command import app as replicate_app

        replicate_app(context.args, prog_name="companion replicate")


@app.command(
    context_settings=_HANDED_OVER,
    help="Build, run and push a Gradio Space (see `companion space --help`).",
)
def space(context: typer.Context) -> None:
    with _sentences():
        from companion.space.command import app as space_app

        space_app(context.args, prog_name="companion space")


@app.command()
def badges(
    repo: Annotated[str, typer.Option(help="owner/name of your copy on GitHub.")] = "",
    branch: Annotated[str, typer.Option(help="Its branch.")] = "main",
    thumbnails: Annotated[bool, typer.Option(help="Make the README's thumbnails of the notebooks again.")] = False,
) -> None:
    """Point the badges and Colab's set-up cells at your own copy of the course."""
    with _sentences():
        from companion import badges

        if not repo and not thumbnails:
            raise ValueError("Name your copy with --repo owner/name, or make pictures with --thumbnails.")
        for path in [*(badges.stamp(repo, branch) if repo else ()), *(badges.thumbnails() if thumbnails else ())]:
            typer.echo(path)


def _parameters(given: list[str]) -> dict[str, Any]:
    """Parse ["SEED=1", "MODEL=sd15"] to {"SEED": 1, "MODEL": "sd15"}: a value that is no Python literal stays text."""
    parameters: dict[str, Any] = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"--parameter {item!r} is not NAME=VALUE, such as SEED=1.")
        try:
            parameters[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            parameters[name] = value
    return parameters


@contextmanager
def _sentences() -> Iterator[None]:
    """Report errors that a user can fix in one sentence, with exit code 2; other errors keep their traceback."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "companion":
            raise
        extra = _EXTRAS.get((error.name or "").split(".")[0], "lab")
        typer.echo(f"{error.name} is not installed: run `pip install -e '.[{extra}]'` in the clone.", err=True)
        raise typer.Exit(2) from None
    except (ValueError, OSError) as error:  # OSError: a disk, a permission, a network, a model that is not here
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None


def main() -> None:
    """Entry point of the `companion` command."""
    app()


if __name__ == "__main__":
    main()
