"""Badges and set-up cells name the repository that they open; a copy of the course must name that of the copy.

`companion badges --repo owner/name` writes it into notebooks, README and CITATION.cff; nothing else in them changes.
"""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from urllib.parse import quote

import companion
from companion.files import written

#: The first code cell of every notebook. `stamp` replaces `OWNER/latent-diffusion-course`.
SETUP = """# In Google Colab this fetches the course; anywhere else it does nothing.
import sys

if "google.colab" in sys.modules:
    !git clone -q --depth 1 https://github.com/OWNER/latent-diffusion-course /content/course
    %pip install -q --no-deps -e /content/course
    %pip uninstall -q -y torchao
    %cd -q /content/course/notebooks
    sys.path.insert(0, "/content/course")"""

_REPO = r"[\w.-]+/[\w.-]+"
# Five groups: the text before owner/name, owner/name, the text after it, the branch or "", and the text after that.
_PLACES = (
    rf"(colab\.research\.google\.com/github/)({_REPO})(/blob/)([\w.-]+)(/)",
    rf"(mybinder\.org/v2/gh/)({_REPO})(/)([\w.-]+)(\?)",
    rf"(git clone -q --depth 1 https://github\.com/)({_REPO})( )()(/content/course)",
    rf"(git clone --depth 1 https://github\.com/)({_REPO})()()(\s)",
    rf"(repository-code: https://github\.com/)({_REPO})()()(\s)",
)


def line(name: str, repo: str = "OWNER/latent-diffusion-course", branch: str = "main") -> str:
    """The badges of a notebook, in markdown."""
    colab = f"https://colab.research.google.com/github/{repo}/blob/{branch}/notebooks/{name}.ipynb"
    binder = f"https://mybinder.org/v2/gh/{repo}/{branch}?labpath={quote(f'notebooks/{name}.ipynb', safe='')}"
    return (
        f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab}) "
        f"[![Open in Binder](https://mybinder.org/badge_logo.svg)]({binder})"
    )


def stamped(text: str, repo: str, branch: str = "main") -> str:
    """The text with this repository and branch in place of those that its badges and set-up cells name."""
    for place in _PLACES:
        text = re.sub(place, lambda m: f"{m[1]}{repo}{m[3]}{branch if m[4] else ''}{m[5]}", text)
    return text


def stamp(repo: str, branch: str = "main", root: Path | None = None) -> list[Path]:
    """Write the repository into the notebooks, the README and CITATION.cff, and return the files that changed.

    Raises ValueError for a repository that is not owner/name, and for a branch that does not fit into an address.
    """
    if not re.fullmatch(_REPO, repo):
        raise ValueError(f"--repo {repo!r} is not owner/name, such as ann/latent-diffusion-course.")
    if not re.fullmatch(r"[\w.-]+", branch):
        raise ValueError(f"--branch {branch!r} does not fit into a badge's address: use letters, digits, . _ and -.")
    root = root or companion.ROOT
    changed = []
    for path in [root / "README.md", root / "CITATION.cff", *sorted((root / "notebooks").glob("*.ipynb"))]:
        if not path.is_file():
            continue
        before = path.read_text(encoding="utf-8")
        after = stamped(before, repo, branch)
        if after != before:
            with written(path) as temporary:
                temporary.write_text(after, encoding="utf-8", newline="\n")
            changed.append(path)
    return changed


def thumbnail(notebook: Path, width: int = 240) -> bytes:
    """A small JPEG of a notebook's first stored widget picture. Raises ValueError when there is none."""
    from PIL import Image

    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []) if "widget" in cell["metadata"].get("tags", []) else ():
            if "image/png" in output.get("data", {}):
                png = base64.b64decode("".join(output["data"]["image/png"]))
                image, buffer = Image.open(io.BytesIO(png)).convert("RGB"), io.BytesIO()
                image = image.resize((width, round(width * image.height / image.width)), Image.Resampling.LANCZOS)
                image.save(buffer, "JPEG", quality=80)
                return buffer.getvalue()
    raise ValueError(f"{notebook.name} shows no widget: execute it with `companion execute`.")


def thumbnails(root: Path | None = None) -> list[Path]:
    """Write a thumbnail of every notebook for the README into notebooks/thumbnails/, and return their paths."""
    folder = (root or companion.ROOT) / "notebooks"
    made = []
    for notebook in sorted(folder.glob("*.ipynb")):
        made.append(folder / "thumbnails" / f"{notebook.stem}.jpg")
        with written(made[-1]) as temporary:
            temporary.write_bytes(thumbnail(notebook))
    return made
