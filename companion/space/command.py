"""Build the Space's folder, run it here, push it to Hugging Face with hardware and secrets, or duplicate another Space.

The hub is reached through huggingface_hub, which finds the token in HF_TOKEN or where `hf auth login` stored it.
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

import companion
from companion.models import CATALOGUE, check_folder, find

HERE = Path(__file__).parent
#: Copied unchanged.
FILES = ("app.py", "studio.py")
#: What the Space installs, at the versions that the tests run with.
PACKAGES = ("accelerate", "diffusers", "pillow", "safetensors", "torch", "transformers")
FREE = "cpu-basic"
#: Seconds without a visitor after which a paid Space stops, and stops costing money.
SLEEP = 900


def build(out: Path, model: str = "tabletop", title: str = "Stable Diffusion, three ways") -> Path:
    """Write the Space into `out`, a new or empty folder: page, packages, description, and the model if it is here.

    Args:
        model: a name in the catalogue, a pipeline's folder, or a repository on the hub (owner/name). Models on the hub
            are not copied: the Space downloads them.

    Raises ValueError when `out` is in use, or `model` is none of these.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists already; name a new folder.")
    names, folder = _where(model)
    out.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copy(HERE / name, out / name)
    if folder:
        # The faster runtime's graphs are of no use to a stock pipeline.
        shutil.copytree(folder, out / "model", ignore=shutil.ignore_patterns("*.onnx*"))
    pins = _pins()
    (out / "requirements.txt").write_text("".join(f"{name}=={pins[name]}\n" for name in PACKAGES), encoding="utf-8")
    (out / "README.md").write_text(_description(title, pins["gradio"], names, model), encoding="utf-8")
    return out


def _where(model: str) -> tuple[list[str], Path | None]:
    """The hub repositories of a model, and its folder on this machine; one of the two is empty."""
    if model not in CATALOGUE and re.fullmatch(r"[\w.-]+/[\w.-]+", model) and not Path(model).is_dir():
        return [model], None
    entry = find(model)
    if entry.folder is None:
        return list(entry.mirrors), None
    check_folder(entry.folder, entry.options)
    return [], entry.folder


def _pins() -> dict[str, str]:
    lines = (companion.ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def _description(title: str, gradio: str, names: list[str], model: str) -> str:
    """The README of a Space, whose first lines are the settings."""
    models = "".join(f"  - {name}\n" for name in names)
    return f"""---
title: {title}
emoji: 🎨
colorFrom: blue
colorTo: yellow
sdk: gradio
sdk_version: {gradio}
python_version: "3.12"
app_file: app.py
suggested_hardware: {FREE if not names and model == "tabletop" else "t4-small"}
{f"models:{chr(10)}{models}" if names else ""}---

Text to image, image to image and inpainting with one Stable Diffusion. app.py is the page, studio.py draws.

Make it yours: *Duplicate this Space*, and set the variable `MODEL` to your own model (a repository, or several
separated by commas, tried in that order) and the secret `HF_TOKEN` if it is private. app.py lists the others.
"""


def settings(model: str) -> dict[str, str]:
    """The Space's variables for this model."""
    names, _ = _where(model)
    return {"MODEL": ",".join(names)} if names else {}


def push(
    folder: Path,
    repo: str,
    *,
    hardware: str = FREE,
    sleep: int = SLEEP,
    private: bool = True,
    secrets: Mapping[str, str] | None = None,
    variables: Mapping[str, str] | None = None,
    api: Any = None,
) -> str:
    """Make the Space `repo`, set it up, upload the folder, and return its address. A second call updates it.

    Args:
        hardware: such as "cpu-basic", which is free, or "t4-small", which is paid by the hour.
        sleep: seconds without a visitor after which paid hardware stops.
    """
    api = api or _api()
    url = api.create_repo(repo, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
    # Before the files, whose arrival starts the Space, which reads these.
    for key, value in (secrets or {}).items():
        api.add_space_secret(repo, key, value)
    for key, value in (variables or {}).items():
        api.add_space_variable(repo, key, value)
    message = "Text to image, image to image and inpainting"
    api.upload_folder(repo_id=repo, repo_type="space", folder_path=folder, commit_message=message)
    if hardware != FREE:
        api.request_space_hardware(repo, hardware, sleep_time=sleep)
    return str(url)


def duplicate(
    source: str,
    repo: str,
    *,
    hardware: str = FREE,
    sleep: int = SLEEP,
    private: bool = True,
    secrets: Mapping[str, str] | None = None,
    variables: Mapping[str, str] | None = None,
    api: Any = None,
) -> str:
    """Copy someone's Space `source` to your `repo`, with your hardware, secrets and variables; returns its address."""
    api = api or _api()
    options: dict[str, Any] = {"private": private}
    listed = {"secrets": secrets, "variables": variables}
    for name, given in listed.items():
        if given:
            options[name] = [{"key": key, "value": value} for key, value in given.items()]
    if hardware != FREE:
        options |= {"hardware": hardware, "sleep_time": sleep}
    if hasattr(api, "duplicate_repo"):
        told = {name if name == "private" else f"space_{name}": value for name, value in options.items()}
        return str(api.duplicate_repo(source, repo, repo_type="space", **told))
    return str(api.duplicate_space(source, repo, **options))  # huggingface_hub 1


def _api() -> Any:
    from huggingface_hub import HfApi, get_token

    if not get_token():
        raise ValueError("There is no token of Hugging Face: set HF_TOKEN, or run `hf auth login`.")
    return HfApi()


# ---- The command -----------------------------------------------------------------------------------------------------

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
Model = Annotated[str, typer.Option(help="tabletop, sd15, a pipeline's folder, or owner/name of a repository.")]


@app.callback()
def _about() -> None:
    """A Gradio Space with txt2img, img2img and inpainting."""


@app.command("build")
def _build(
    out: Annotated[Path, typer.Argument(help="A new folder.")],
    model: Model = "tabletop",
    title: Annotated[str, typer.Option(help="What stands above it.")] = "Stable Diffusion, three ways",
) -> None:
    """Write the Space's files."""
    build(out, model, title)
    size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    typer.echo(f"{out}: {size / 1e6:.1f} MB. Try it with `companion space run --model {model}`.")


@app.command("run")
def _run(
    model: Model = "tabletop",
    port: Annotated[int, typer.Option(help="Where the page is served.")] = 7860,
) -> None:
    """Run it on this machine, exactly as it would be pushed."""
    import gradio  # noqa: F401  # says which extra is missing, before anything is copied

    with tempfile.TemporaryDirectory(prefix="space-", ignore_cleanup_errors=True) as folder:
        out = build(Path(folder) / "space", model)
        environment = os.environ | settings(model) | {"GRADIO_SERVER_PORT": str(port)}
        raise typer.Exit(subprocess.run([sys.executable, "app.py"], cwd=out, env=environment).returncode)


@app.command("push")
def _push(
    repo: Annotated[str, typer.Argument(help="owner/name of the Space.")],
    model: Model = "tabletop",
    source: Annotated[str, typer.Option("--duplicate", help="Copy this Space (owner/name) instead.")] = "",
    hardware: Annotated[str, typer.Option(help="Such as cpu-basic (free), t4-small, l4x1, a10g-small.")] = FREE,
    sleep: Annotated[int, typer.Option(help="Seconds without visitors until paid hardware stops.")] = SLEEP,
    public: Annotated[bool, typer.Option(help="Let everybody see it.")] = False,
    secret: Annotated[
        list[str] | None, typer.Option(help="A secret's name; its value is read from the environment, or asked for.")
    ] = None,
    variable: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="A variable of the Space.")] = None,
    yes: Annotated[bool, typer.Option(help="Do not ask before hardware that costs money.")] = False,
) -> None:
    """Push it to Hugging Face, or duplicate a Space there."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise ValueError(f"{repo!r} is not owner/name, such as you/my-space.")
    given: dict[str, Any] = {"hardware": hardware, "sleep": sleep, "private": not public, "api": _api()}
    given["secrets"] = dict(_secrets(secret or []))
    given["variables"] = ({} if source else settings(model)) | dict(_pairs(variable or []))
    if hardware != FREE and not yes:
        typer.confirm(f"{hardware} is paid by the hour while it is awake. Go on?", abort=True)
    if source:
        typer.echo(duplicate(source, repo, **given))
        return
    with tempfile.TemporaryDirectory(prefix="space-", ignore_cleanup_errors=True) as folder:
        typer.echo(push(build(Path(folder) / "space", model), repo, **given))


def _pairs(items: list[str]) -> Iterator[tuple[str, str]]:
    for item in items:
        name, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"--variable {item!r} is not NAME=VALUE, such as STEPS=20.")
        yield name, value


def _secrets(names: list[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        if "=" in name:  # the value would stay in the shell's history
            raise ValueError(f"--secret takes a name alone, such as {name.partition('=')[0]}; its value is asked for.")
        value = os.environ.get(name) or (getpass.getpass(f"{name} (it is not shown): ") if sys.stdin.isatty() else "")
        if not value:
            raise ValueError(f"The secret {name} has no value: set it in the environment.")
        yield name, value
