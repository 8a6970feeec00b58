"""Class images: what the model itself draws of the class, so that learning a subject does not overwrite the class.

    for path in class_images(pipe, "a red cube", 20, "class/", steps=20, guidance_scale=3.0):
        print(path)

DreamBooth's prior preservation loss (N. Ruiz et al., arXiv 2208.12242, equation 2) trains on them beside the subject's
pictures. They are PNG files: what JPEG loses, the model would learn as a part of the class. `companion.photographs`
makes the JPEGs that Replicate wants.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from companion.diffusion import draw, picture_size
from companion.files import written
from companion.metrics import tensor_to_bytes
from companion.photographs import Watch, select

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

RECIPE = "recipe"  # the name under which a PNG keeps how it was drawn


def class_images(
    pipe: StableDiffusionPipeline,
    prompt: str,
    count: int,
    folder: str | Path,
    seed: int = 0,
    *,
    steps: int,
    guidance_scale: float,
    negative_prompt: str = "",
    batch: int = 4,
    given: str | Path | None = None,
    watch: Watch | None = None,
) -> Iterator[Path]:
    """Draw the class images that `folder` lacks, and yield the path of each of the `count` pictures, in order.

    Picture i, in 000.png, 001.png and so on, is drawn from seed + i. It may be interrupted anywhere and called again:
    the finished set is the same, byte for byte, as that of an unbroken run. Each file keeps its recipe, so that a set
    is never continued with another prompt, seed or model.

    Args:
        count: how many pictures there shall be in all, at least 1.
        folder: where they are; it is made if it is not there.
        batch: how many are drawn together. A batch that was interrupted is drawn again as a whole, since the last bits
            of a picture may depend on which others are drawn beside it.
        given: a folder or zip of photographs that come first, prepared as `photographs.prepare` does, as 000.jpg and so
            on; only what is missing then is drawn, and keeps the number and seed that it would have had.
        watch: shows the reading of `given`; see `photographs.Watch`.
    Raises:
        ValueError: an argument is impossible, or the folder holds files that do not belong to this set.
    """
    folder = Path(folder)
    for name, value in (("count", count), ("batch", batch)):
        if value < 1:
            raise ValueError(f"{name}={value} is less than 1.")
    if not prompt.strip():
        raise ValueError("The prompt is empty; a class image needs one, such as 'a red cube'.")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, and a folder is wanted.")
    contents = _contents(given, count, picture_size(pipe), watch)
    recipe = {"prompt": prompt, "negative_prompt": negative_prompt, "steps": steps, "guidance_scale": guidance_scale}
    recipe |= {"model": fingerprint(pipe)}
    recipes = [json.dumps(recipe | {"seed": seed + i}, sort_keys=True) for i in range(count)]
    first = len(contents)
    paths = [folder / f"{i:03}.{'jpg' if i < first else 'png'}" for i in range(count)]
    _check(folder, paths, contents, recipes)
    for path, content in zip(paths, contents, strict=False):
        if not path.exists():
            with written(path) as temporary:
                temporary.write_bytes(content)
        yield path
    for start in range(first, count, batch):
        block = range(start, min(start + batch, count))
        missing = [i for i in block if not paths[i].exists()]
        if missing:
            seeds = [seed + i for i in block]
            options: dict[str, Any] = {"negative_prompt": negative_prompt, "batch": batch}
            drawn = draw(pipe, prompt, seeds, steps=steps, guidance_scale=guidance_scale, **options)
            pictures = tensor_to_bytes(drawn).numpy()
        for i in block:
            if i in missing:
                info = PngInfo()
                info.add_itxt(RECIPE, recipes[i])
                with written(paths[i]) as temporary:
                    Image.fromarray(pictures[i - start]).save(temporary, "PNG", pnginfo=info)
            yield paths[i]


def _contents(given: str | Path | None, count: int, size: int, watch: Watch | None) -> list[bytes]:
    """The JPEG files of the given pictures, at most `count`."""
    if given is None:
        return []
    return [p.jpeg for p in select(given, size, keep_alike=True, least=1, watch=watch).kept][:count]


def _check(folder: Path, paths: list[Path], contents: list[bytes], recipes: list[str]) -> None:
    """Raise ValueError if a file in the folder is not one of this set."""
    for path in sorted(folder.glob("*")):
        if path.name.startswith("."):
            continue
        if path not in paths:
            raise ValueError(f"{folder} holds {path.name}, which is none of these {len(paths)} pictures: name another.")
        i = paths.index(path)
        if i < len(contents):
            if path.read_bytes() != contents[i]:
                raise ValueError(f"{path} is not the picture that was given: name another folder.")
        elif (found := _recipe(path)) != recipes[i]:
            raise ValueError(f"{path} {_difference(found, recipes[i])}: name another folder, or draw as before.")


def _recipe(path: Path) -> str:
    """The recipe in a PNG; "" if it has none, or cannot be read."""
    try:
        with Image.open(io.BytesIO(path.read_bytes()), formats=["PNG"]) as picture:
            picture.load()
            return str(picture.info.get(RECIPE, ""))
    except (OSError, SyntaxError, ValueError):
        return ""


def _difference(found: str, wanted: str) -> str:
    """In what a recipe differs from the wanted one, as the end of a sentence."""
    if not found:
        return "was not drawn here, or is damaged"
    before, now = json.loads(found), json.loads(wanted)
    name = next(name for name in now if before.get(name) != now[name])
    return "was drawn by another model" if name == "model" else f"was drawn with {name} {before.get(name)!r}"


@torch.no_grad()
def fingerprint(pipe: StableDiffusionPipeline) -> str:
    """16 hexadecimal digits that change with the scheduler's settings, and with the first 16 numbers of any weight.

    Training moves them all, and reading no more takes milliseconds where the weights have gigabytes.
    """
    settings = {name: value for name, value in pipe.scheduler.config.items() if not name.startswith("_")}
    said = [type(pipe.scheduler).__name__, settings]
    digest = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode())
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        for name, weight in part.state_dict().items():
            digest.update(name.encode())
            digest.update(weight.flatten()[:16].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
