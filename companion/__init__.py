"""A Jupyter-first course on latent diffusion, with its own Stable Diffusion in miniature.

`companion.load("tabletop")` gives a stock diffusers pipeline. Importing this package is instant: torch is imported when
something needs it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    DATA: Path

__version__ = "0.1.0"

#: The folder that holds companion/, notebooks/ and data/.
ROOT = Path(__file__).resolve().parent.parent


def load(name_or_path: str | Path = "tabletop", **options: Any) -> DiffusionPipeline:
    """A diffusers pipeline by name ("tabletop", "sd15") or from a folder: see `companion.models.load`."""
    from companion.models import load

    return load(name_or_path, **options)


def _data() -> Path:
    """The folder of models, pictures and results: COMPANION_DATA when that is set, else data/ in the source tree."""
    named = os.environ.get("COMPANION_DATA")
    if named:
        folder = Path(named).expanduser().resolve()
        if not folder.is_dir():
            raise FileNotFoundError(f"COMPANION_DATA={named} is not a folder: name the course's data/, or unset it.")
        return folder
    if not (ROOT / "pyproject.toml").is_file():
        raise FileNotFoundError(
            f"The course's data/ folder is not beside the package in {ROOT}: "
            "run `pip install -e .` in a clone of the repository, or set COMPANION_DATA to its data/ folder."
        )
    return ROOT / "data"


def __getattr__(name: str) -> Any:
    # DATA is looked up when asked for, so that importing works, and `companion doctor` runs, where data/ is missing.
    if name == "DATA":
        return _data()
    raise AttributeError(f"module 'companion' has no attribute {name!r}")
