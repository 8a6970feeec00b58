"""Build the Space's folder, run it here, push it to Hugging Face with hardware and secrets, or duplicate another Space.

The hub is reached through huggingface_hub, which finds the token in HF_TOKEN or where `hf auth login` stored it.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

import companion
from companion.models import (
    CATALOGUE,
    REPOSITORY,
    Model,
    belonging,
    check_device,
    check_folder,
    check_lora,
    check_part,
    controlnets,
    find,
)

HERE = Path(__file__).parent
#: Copied unchanged, from here and from the package.
FILES = ("app.py", "studio.py")
MODULES = (
    "__init__.py",
    "conditions.py",
    "diffusion.py",
    "files.py",
    "metrics.py",
    "models.py",
    "photo_conditions.py",
    "pictures.py",
    "tabletop/__init__.py",
    "tabletop/caption.py",
    "tabletop/judge.py",
    "tabletop/measures.py",
    "tabletop/scene.py",
)
#: What the Space installs, at the versions that the tests run with.
PACKAGES = (
    "accelerate",
    "diffusers",
    "huggingface_hub",
    "numpy",
    "opencv-python-headless",
    "packaging",
    "peft",
    "pillow",
    "pyyaml",
    "safetensors",
    "scipy",
    "torch",
    "transformers",
)
#: Folders of the Space that are all ours: what an earlier push left in them goes when they are pushed again.
OURS = ("companion/*", "model/*", "base/*", "controlnets/*", "data/*")
#: The variables that name the model.
NAMING = ("MODEL", "BASE")
FREE = "cpu-basic"
#: Seconds without a visitor after which a paid Space stops, and stops costing money.
SLEEP = 900
TITLE = "Stable Diffusion, four ways"


def build(
    out: Path,
    model: str = "tabletop",
    title: str = TITLE,
    base: str | None = None,
    nets: Mapping[str, Path] | None = None,
) -> Path:
    """Write the Space into `out`, a new or empty folder: page, packages, description, and the models that are here.

    Args:
        model: a name in the catalogue, the folder of a pipeline or LoRA, or a repository on the hub (owner/name).
            Models on the hub are not copied: the Space downloads them.
        base: of a LoRA, the model that it was trained on, if it does not say so itself.
        nets: folders of ControlNets by condition, besides those that are known for the model.

    Raises ValueError when `out` is in use, or what is named is none of these.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists already; name a new folder.")
    parts = _parts(model, base)
    entry = None if _on_hub(model) else find(model, base=base)
    known = controlnets(entry) if entry else {}
    controls = {name: place for name, place in known.items() if isinstance(place, Path)} | dict(nets or {})
    for folder in controls.values():
        check_part(folder)
    out.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copy(HERE / name, out / name)
    for name in MODULES:
        (out / "companion" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(HERE.parent / name, out / "companion" / name)
    for name, place in parts.items():
        if isinstance(place, Path):
            _copy(place, out / name, belonging(place))
    for condition, folder in controls.items():
        _copy(folder, out / "controlnets" / condition, belonging(folder, single=True))
    if controls and entry and entry.size == CATALOGUE["tabletop"].size:  # the judge reads pictures for them
        judge = companion.DATA / "models" / "judge"
        _copy(judge, out / "data" / "models" / "judge", [p.name for p in judge.iterdir() if p.is_file()])
    pins = _pins()
    (out / "requirements.txt").write_text("".join(f"{name}=={pins[name]}\n" for name in PACKAGES), encoding="utf-8")
    names = [name for place in parts.values() if isinstance(place, str) for name in _repositories(place)]
    (out / "README.md").write_text(_description(title, pins["gradio"], names, model), encoding="utf-8")
    return out


def _copy(folder: Path, to: Path, names: Collection[str]) -> None:
    for name in names:
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, to / name)


def _on_hub(model: str) -> bool:
    """Whether it is named as a repository of the hub, which is not asked."""
    return model not in CATALOGUE and bool(REPOSITORY.fullmatch(model)) and not Path(model).is_dir()


def _parts(model: str, base: str | None) -> dict[str, Path | str]:
    """The model, and a LoRA's base unless the LoRA says it itself: folders to copy, or names that the Space loads by.

    Raises ValueError when there is no such thing, or it is not whole.
    """
    if not _on_hub(model):
        entry = find(model, base=base)
        parts = {"model": entry, "base": entry.base}
        return {name: _place(part) for name, part in parts.items() if part}
    if base is None or _on_hub(base):
        hub: dict[str, Path | str] = {"model": model}
        return hub | ({"base": base} if base else {})
    return {"model": model, "base": _place(find(base))}


def _place(entry: Model) -> Path | str:
    if entry.folder is None:
        return entry.name
    if entry.base is None:
        check_folder(entry.folder, entry.options)
    else:
        check_lora(entry.folder)
    return entry.folder


def _repositories(name: str) -> tuple[str, ...]:
    return CATALOGUE[name].mirrors if name in CATALOGUE else (name,)


def _pins() -> dict[str, str]:
    lines = (companion.ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def _description(title: str, gradio: str, names: list[str], model: str) -> str:
    """The README of a Space, whose first lines are the settings."""
    models = "".join(f"  - {name}\n" for name in names)
    return f"""---
title: {json.dumps(title, ensure_ascii=False)}
emoji: 🎨
colorFrom: blue
colorTo: yellow
sdk: gradio
sdk_version: {gradio}
python_version: "3.12"
app_file: app.py
suggested_hardware: {FREE if not names and model == "tabletop" else "t4-small"}
{f"models:{chr(10)}{models}" if names else ""}---

Text to image, image to image, inpainting and ControlNets with one Stable Diffusion. app.py is the page, studio.py
draws, and companion/ is what they need of the course that they come from.

Make it yours: *Duplicate this Space*, and set the variable `MODEL` to your own model (the repository of a pipeline or a
LoRA, or several separated by commas, tried in that order) and the secret `HF_TOKEN` if it is private. app.py lists the
others.
"""


def settings(model: str, base: str | None = None) -> dict[str, str]:
    """The Space's variables for this model."""
    return {name.upper(): place for name, place in _parts(model, base).items() if isinstance(place, str)}


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
    """Make the Space `repo`, set it up, upload the folder, and return its address.

    A second call updates it: files of the model before, and the variables that named it, go; others stay.

    Args:
        hardware: such as "cpu-basic", which costs nothing by the hour, or "t4-small", which does.
        sleep: seconds without a visitor after which paid hardware stops.
    Raises ValueError when the hub does not let the account make a Space.
    """
    api = api or _api()
    with _made(repo):
        url = api.create_repo(repo, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
    # Before the files, whose arrival starts the Space, which reads these.
    for key, value in (secrets or {}).items():
        api.add_space_secret(repo, key, value)
    for key in [key for key in api.get_space_variables(repo) if key in NAMING and key not in (variables or {})]:
        api.delete_space_variable(repo, key)
    for key, value in (variables or {}).items():
        api.add_space_variable(repo, key, value)
    message = "Text to image, image to image, inpainting and ControlNets"
    api.upload_folder(
        repo_id=repo, repo_type="space", folder_path=folder, commit_message=message, delete_patterns=list(OURS)
    )
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
        with _made(repo):
            return str(api.duplicate_repo(source, repo, repo_type="space", **told))
    with _made(repo):
        return str(api.duplicate_space(source, repo, **options))  # huggingface_hub 1


@contextmanager
def _made(repo: str) -> Iterator[None]:
    """Explains the hub's refusal (402 or 403) to make a Space: what it said, and what may be the reason."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        if getattr(error.response, "status_code", None) not in (402, 403):
            raise
        said = (error.server_message or str(error).splitlines()[0]).rstrip(".")
        raise ValueError(
            f"Hugging Face does not let you make {repo} ({said}): your token must be allowed to write there, and a "
            "Space with a machine of its own takes a paid plan (https://huggingface.co/docs/hub/spaces-overview); "
            "`companion space run` needs neither."
        ) from error


def _api() -> Any:
    from huggingface_hub import HfApi, get_token

    if not get_token():
        raise ValueError("There is no token of Hugging Face: set HF_TOKEN, or run `hf auth login`.")
    return HfApi()


# ---- The command -----------------------------------------------------------------------------------------------------

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
Name = Annotated[str, typer.Option("--model", help="tabletop, sd15, a folder, or owner/name of a repository.")]
Base = Annotated[str | None, typer.Option(help="Of a LoRA that does not say so: the model that it was trained on.")]
Nets = Annotated[
    list[str] | None, typer.Option("--controlnet", metavar="CONDITION=FOLDER", help="A ControlNet of your own.")
]


@app.callback()
def _about() -> None:
    """A Gradio Space with txt2img, img2img, inpainting and ControlNets."""


@app.command("build")
def _build(
    out: Annotated[Path, typer.Argument(help="A new folder.")],
    model: Name = "tabletop",
    base: Base = None,
    controlnet: Nets = None,
    title: Annotated[str, typer.Option(help="What stands above it.")] = TITLE,
) -> None:
    """Write the Space's files."""
    build(out, model, title, base, _nets(controlnet))
    size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    typer.echo(f"{out}: {size / 1e6:.1f} MB. Try it with `companion space run --model {model}`.")


@app.command("run")
def _run(
    model: Name = "tabletop",
    base: Base = None,
    controlnet: Nets = None,
    port: Annotated[int, typer.Option(help="Where the page is served.")] = 7860,
    device: Annotated[str | None, typer.Option(help="Such as cuda or cpu; else a GPU if there is one.")] = None,
) -> None:
    """Run it on this machine, exactly as it would be pushed."""
    check_device(device)
    check_port(port)
    import gradio  # noqa: F401  # says which extra is missing, before anything is copied

    with tempfile.TemporaryDirectory(prefix="space-", ignore_cleanup_errors=True) as folder:
        out = build(Path(folder) / "space", model, base=base, nets=_nets(controlnet))
        # The options name the model, not this shell's variables; and PROMPT is that of the command line on Windows.
        others = (*NAMING, "PROMPT") if os.name == "nt" else NAMING
        environment = {name: value for name, value in os.environ.items() if name not in others}
        environment |= settings(model, base) | {"GRADIO_SERVER_PORT": str(port)}
        environment |= {"DEVICE": device} if device else {}
        # Uploads and drawn pictures go with the folder.
        environment.setdefault("GRADIO_TEMP_DIR", str(Path(folder) / "pictures"))
        raise typer.Exit(_until_it_ends([sys.executable, "app.py"], out, environment))


def check_port(port: int) -> None:
    """Raises ValueError when no page can be served at this port, with a sentence that says what to do."""
    if not 1 <= port <= 65535:
        raise ValueError(f"--port {port} is no port: take one from 1024 to 65535, such as 7860.")
    with socket.socket() as probe:
        if os.name == "posix":  # as the server does: a page that has just ended leaves its port waiting
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1", port))
        except PermissionError:
            raise ValueError(f"Port {port} needs the rights of an administrator: take one from 1024 on.") from None
        except OSError:
            other = port + 1 if port < 65535 else port - 1
            raise ValueError(
                f"Port {port} is in use on this machine, perhaps by another Space: end that, or take --port {other}."
            ) from None


def _until_it_ends(command: list[str], folder: Path, environment: Mapping[str, str]) -> int:
    """Run a command in a folder, and return its exit status. When this process is told to end, all of it ends."""

    def end(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    names = ("SIGTERM", "SIGHUP")  # Windows lacks the second
    before = {number: signal.signal(number, end) for name in names if (number := getattr(signal, name, None))}
    child = None
    try:
        child = subprocess.Popen(command, cwd=folder, env=environment)
        return child.wait()
    except KeyboardInterrupt:  # Ctrl+C is how one ends a page
        return 0
    finally:
        before[signal.SIGINT] = signal.getsignal(signal.SIGINT)
        for number in before:  # a second one must not keep this from being done
            signal.signal(number, signal.SIG_IGN)
        if child is not None:
            _end(child)
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(child: subprocess.Popen) -> None:
    """End a process and those that it started: politely, and after some seconds by force."""
    try:
        parent = psutil.Process(child.pid)
        family = [*parent.children(recursive=True), parent]
    except psutil.NoSuchProcess:
        return
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(family, timeout=10)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    child.wait()


@app.command("push")
def _push(
    repo: Annotated[str, typer.Argument(help="owner/name of the Space.")],
    model: Name = "tabletop",
    base: Base = None,
    controlnet: Nets = None,
    source: Annotated[str, typer.Option("--duplicate", help="Copy this Space (owner/name) instead.")] = "",
    hardware: Annotated[str, typer.Option(help="Such as cpu-basic (nothing by the hour), t4-small, l4x1.")] = FREE,
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
    if source and (model != "tabletop" or base or controlnet):
        raise ValueError(
            "--duplicate copies a Space with its model: leave out --model, --base and --controlnet. A Space of the "
            "course takes another one from the hub by --variable MODEL=owner/name."
        )
    given: dict[str, Any] = {"hardware": hardware, "sleep": sleep, "private": not public, "api": _api()}
    given["secrets"] = dict(_secrets(secret or []))
    given["variables"] = ({} if source else settings(model, base)) | dict(_pairs(variable or []))
    if hardware != FREE and not yes:
        typer.confirm(f"{hardware} is paid by the hour while it is awake. Go on?", abort=True)
    if source:
        typer.echo(duplicate(source, repo, **given))
        return
    with tempfile.TemporaryDirectory(prefix="space-", ignore_cleanup_errors=True) as folder:
        typer.echo(push(build(Path(folder) / "space", model, base=base, nets=_nets(controlnet)), repo, **given))


def _pairs(items: list[str]) -> Iterator[tuple[str, str]]:
    for item in items:
        name, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"--variable {item!r} is not NAME=VALUE, such as STEPS=20.")
        if value.startswith("hf_"):
            raise ValueError(f"{name} is a token, and whoever sees the Space reads its variables: use --secret {name}.")
        yield name, value


def _nets(items: list[str] | None) -> dict[str, Path]:
    found = {}
    for item in items or []:
        condition, equals, folder = item.partition("=")
        if not equals or not Path(folder).is_dir():
            raise ValueError(f"--controlnet {item!r} is not CONDITION=FOLDER, such as canny=run/learned.")
        found[condition] = Path(folder)
    return found


def _secrets(names: list[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        if "=" in name:  # the value would stay in the shell's history
            raise ValueError(f"--secret takes a name alone, such as {name.partition('=')[0]}; its value is asked for.")
        value = os.environ.get(name) or (getpass.getpass(f"{name} (it is not shown): ") if sys.stdin.isatty() else "")
        if not value:
            raise ValueError(f"The secret {name} has no value: set it in the environment.")
        yield name, value
