"""Is this machine ready for the course? One line for each check, and how to fix each failure.

Run it as `companion doctor`, or as `python -m companion.doctor` where even the packages that this command needs are
missing: a missing package outside the standard library is reported, and does not stop the checks.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import companion
from companion import files, models

if TYPE_CHECKING:
    import torch

OK, WARN, FAIL = "OK", "WARN", "FAIL"
GB = 1e9

#: The oldest and the newest Python that the tests run with or that Colab has.
PYTHONS = ((3, 11), (3, 13))
#: Free memory and disk in GB: below the first value the course does not run, below the second some of it does not.
MEMORY = (1.5, 3.0)
DISK = (0.5, 6.0)
#: With an older torchao installed, peft raises ImportError whenever it injects an adapter.
TORCHAO = "0.16.0"
#: The browser part of ipywidgets, by ipywidgets' major version: its package, and that package's fitting major version.
MANAGER = {"7": ("jupyterlab_widgets", "1"), "8": ("jupyterlab_widgets", "3")}


@dataclass(frozen=True)
class Check:
    """The result of one check. `status` is "OK", "WARN" (a part of the course may not work) or "FAIL"."""

    name: str
    status: str
    detail: str
    fix: str = ""


def checks() -> list[Check]:
    """Check everything that the course needs from this machine, in the order in which to fix it."""
    return [python(), *packages(), torchao(), memory(), disk(), device(), weights(), widgets()]


def report(found: list[Check] | None = None) -> None:
    """Print a line for each check, the fix below it where there is one, and what to do next."""
    found = checks() if found is None else found
    for check in found:
        print(f"[{check.status}]".ljust(7), check.name.ljust(10), check.detail)
        if check.fix:
            print(" " * 18, f"-> {check.fix}")
    failed = [check.name for check in found if check.status == FAIL]
    print(f"To be mended: {', '.join(failed)}." if failed else "Ready: open notebooks/00_start_here.ipynb.")


def python() -> Check:
    """Whether Python's version is one that the course is tested with."""
    version, now = platform.python_version(), sys.version_info[:2]
    (low, high) = PYTHONS
    span = f"{low[0]}.{low[1]} to {high[0]}.{high[1]}"
    if now < low:
        return Check("Python", FAIL, f"{version}; the course needs {span}", f"install Python {high[0]}.{high[1]}")
    if now > high:
        return Check("Python", WARN, f"{version}; the course is tested with {span}")
    return Check("Python", OK, version)


def packages() -> list[Check]:
    """Compare packages with the ranges in pyproject.toml: a line for all in range, and one for each that is not."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return [Check("packages", FAIL, "packaging is not installed", _pip("packaging"))]
    try:
        project = tomllib.loads((companion.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    except FileNotFoundError:
        detail = f"pyproject.toml is not in {companion.ROOT}, so the ranges are not known"
        return [Check("packages", FAIL, detail, "run `pip install -e .` in a clone of the repository")]

    good, bad = [], []
    # A missing package that only runs notebooks is just a warning: Colab and Binder bring their own.
    groups = [(project["dependencies"], FAIL, "")]
    if not in_colab():
        groups.append((project["optional-dependencies"]["lab"], WARN, " (for `companion run` and `make lab`)"))
    for lines, status, why in groups:
        for wanted in map(Requirement, lines):
            version = _version(wanted.name)
            if version is None:
                bad.append(Check(wanted.name, status, f"not installed{why}", _pip(f"{wanted.name}{wanted.specifier}")))
            elif not wanted.specifier.contains(version, prereleases=True):
                detail = f"{version} is outside {wanted.specifier}{why}"
                bad.append(Check(wanted.name, status, detail, _pip(f"{wanted.name}{wanted.specifier}")))
            else:
                good.append(f"{wanted.name} {version}")
    first = [line for line in good if line.split()[0] in {"torch", "diffusers", "transformers"}]
    return [Check("packages", OK, f"{len(good)} in range: {', '.join(sorted(first))}, ..."), *bad]


def torchao() -> Check:
    """Colab installs torchao. The course never uses it, but peft fails when an old one is installed."""
    version = _version("torchao")
    if version is not None and _numbers(version) < _numbers(TORCHAO):
        detail = f"torchao {version} makes peft fail (it wants {TORCHAO} or none)"
        return Check("torchao", FAIL, detail, f"{_python()} -m pip uninstall -y torchao, then restart the kernel")
    return Check("torchao", OK, f"{version}, new enough for peft" if version else "not installed, which is fine")


def free_memory() -> tuple[int, int]:
    """Bytes of memory that are free now, and of all, within a container's limit where there is one. Needs psutil."""
    import psutil

    free, total = psutil.virtual_memory().available, psutil.virtual_memory().total
    limit, used = _container()
    if limit is not None and limit < total:
        return min(free, limit - used), limit
    return free, total


def check_room(model: models.Model, device: str | torch.device | None = None) -> None:
    """Check that a model's weights fit into memory: on a CPU in single precision, on a GPU in half.

    Raises:
        ValueError: when they do not, or for a GPU that torch does not see.
    """
    needed = (model.base or model).weights * 1e9  # a LoRA's own are few
    if not needed:
        return
    import torch

    where, dtype = models.place(device)
    on_gpu, needed = where.type == "cuda", needed * dtype.itemsize / 4
    there = torch.cuda.get_device_properties(where).total_memory if on_gpu else free_memory()[0]
    if needed > there:
        raise ValueError(
            f"{model.name!r} takes {needed / 1e9:.1f} GB for its weights alone, and {where} has {there / 1e9:.1f} GB "
            f"{'in all' if on_gpu else 'free'}; {'use a larger GPU' if on_gpu else 'close other programs, use a GPU'}, "
            "or the course's own model, 'tabletop'. Notebook 07 says where else it runs."
        )


def memory() -> Check:
    """Memory that is free now, within a container's limit where there is one."""
    try:
        import psutil  # noqa: F401
    except ImportError:
        return Check("memory", WARN, "not known without psutil", _pip("psutil"))
    free, total = free_memory()
    detail = f"{free / GB:.1f} of {total / GB:.1f} GB free"
    if free < MEMORY[0] * GB:
        return Check("memory", FAIL, f"{detail}; a notebook needs {MEMORY[0]:g} GB", "shut down other kernels")
    if free < MEMORY[1] * GB:
        detail += f"; fine for the tabletop, while real checkpoints need {MEMORY[1]:g} GB"
        return Check("memory", WARN, detail, "shut down other kernels")
    return Check("memory", OK, detail)


def disk() -> Check:
    """Free disk space for the course, and for models from the hub."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    home = next(folder for folder in (home, *home.parents) if folder.is_dir())
    here, cache = shutil.disk_usage(companion.ROOT).free, shutil.disk_usage(home).free
    if here < DISK[0] * GB:
        detail = f"{here / GB:.1f} GB free in {companion.ROOT}; the course needs {DISK[0]:g} GB"
        return Check("disk", FAIL, detail, "make room")
    if cache < DISK[1] * GB:
        detail = f"{cache / GB:.1f} GB free in {home}; a model of the hub takes up to {DISK[1]:g} GB"
        return Check("disk", WARN, detail, "make room, set HF_HOME to another disk, or stay with the tabletop")
    return Check("disk", OK, f"{here / GB:.0f} GB free")


def device() -> Check:
    """The device that torch computes on."""
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library that torch loads is missing
        fix = "install it as pytorch.org/get-started says for this machine"
        return Check("device", FAIL, f"torch does not import: {error}", fix)
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        return Check("device", OK, f"{card.name}, {card.total_memory / GB:.0f} GB")
    threads = f"CPU, {torch.get_num_threads()} threads"
    if shutil.which("nvidia-smi"):
        detail = f"{threads}; this machine seems to have an NVIDIA GPU, which torch {torch.__version__} cannot use"
        return Check("device", WARN, detail, "install the build of torch that pytorch.org names for your CUDA")
    return Check("device", OK, f"{threads}: all the tabletop needs; a real checkpoint wants a GPU")


def weights() -> Check:
    """Whether the models in the clone are complete, and byte for byte what was committed."""
    restore = "git checkout -- data/models"
    try:
        folder = companion.DATA / "models"
        models.check_folder(folder / "tabletop", models.CATALOGUE["tabletop"].options)
        if not (folder / "checksums.json").is_file():
            return Check("weights", WARN, f"{folder} has no checksums.json, so they cannot be checked", restore)
        problems = files.damage(folder)
    except FileNotFoundError as error:
        return Check("weights", FAIL, str(error))
    except (ValueError, OSError) as error:
        return Check("weights", FAIL, str(error), "" if restore in str(error) else restore)
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        return Check("weights", FAIL, f"{problems[0]}{more}", restore)
    return Check("weights", OK, "all there, and what was committed")


def widgets() -> Check:
    """Whether ipywidgets and anywidget are installed, and the part that runs in the browser fits them."""
    ipywidgets, anywidget = _version("ipywidgets"), _version("anywidget")
    if ipywidgets is None or anywidget is None:
        missing = "ipywidgets" if ipywidgets is None else "anywidget"
        return Check("widgets", FAIL, f"{missing} is not installed", _pip(missing))
    detail = f"ipywidgets {ipywidgets}, anywidget {anywidget}"
    if in_colab():
        return Check("widgets", OK, f"{detail}; Colab shows them, and anywidget turns its manager on")
    name, major = MANAGER.get(ipywidgets.split(".")[0], MANAGER["8"])
    manager = _version(name)
    if manager is None and _version("jupyterlab") is None:
        return Check("widgets", WARN, f"{detail}; there is no JupyterLab here to say whether it shows them")
    if manager is None or manager.split(".")[0] != major:
        found = f"{name} is not installed" if manager is None else f"{name} {manager} does not fit"
        return Check("widgets", FAIL, f"{detail}, but {found}", f"{_pip(f'{name}=={major}.*')}, then reload the page")
    return Check("widgets", OK, f"{detail}, {name} {manager}")


def in_colab() -> bool:
    """Whether this runs in Google Colab: in its kernel, or in a process that the kernel started."""
    return "google.colab" in sys.modules or "COLAB_RELEASE_TAG" in os.environ


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _container(root: Path = Path("/sys/fs/cgroup")) -> tuple[int | None, int]:
    """A container's memory limit and the memory it uses, in bytes; (None, 0) when no limit is found."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            return int((root / limit).read_text(encoding="utf-8")), int((root / used).read_text(encoding="utf-8"))
        except (OSError, ValueError):  # not Linux, the other version of control groups, or "max": no limit
            continue
    return None, 0


def _python() -> str:
    return f'"{sys.executable}"' if " " in sys.executable else sys.executable


def _pip(what: str) -> str:
    return f'{_python()} -m pip install "{what}"'


if __name__ == "__main__":
    _found = checks()
    report(_found)
    sys.exit(any(check.status == FAIL for check in _found))
