"""The tables of notebook 00: the map of the course, a prompt compared with what the judge reads, and the judge compared
with an eye.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import companion
from companion.figures import Table

if TYPE_CHECKING:
    from PIL import Image

#: The notebooks of the course, in order, and what each is about.
COURSE = (
    ("00_start_here", "a first picture, the playground, and how everything is switched and measured"),
    ("01_latent_diffusion", "the whole machine taken apart and put together: latents, noise, text, guidance, the loop"),
    ("02_samplers", "Euler, DDIM, DPM++ and their kin: who is fast, who converges, and why"),
    ("03_img2img_inpainting", "starting from a picture instead of noise: variations, and holes that are filled"),
    ("04_controlnet", "a second input: edges, depth, poses and five more say where things go"),
    ("05_dreambooth", "teaching the model one subject from five pictures, and what that costs"),
    ("06_oft_vs_lora", "finetuning that turns neurons against finetuning that adds to them"),
    ("07_where_to_run", "GPUs, Colab, hosted training and serving: the recipes and the bills"),
    ("08_beyond_images", "the same machine on sound and on other data"),
)


def course_map(folder: Path | None = None) -> Table:
    """The nine notebooks, with a link to each that is in `folder`, by default notebooks/."""
    folder = folder or companion.ROOT / "notebooks"
    there = {name: (folder / f"{name}.ipynb").is_file() for name, _ in COURSE}
    rows = [(name, about, "here" if there[name] else "planned") for name, about in COURSE]
    links = {name: f"{name}.ipynb" for name, found in there.items() if found}
    return Table(("notebook", "what it is about", "now"), rows, links)


def asked_and_read(prompt: str, picture: Image.Image | Any) -> Table:
    """What a prompt asks for beside what the judge reads in a picture of 128 x 128 pixels, attribute by attribute.

    Raises ValueError for a prompt that does not name one or two things of the miniature world.
    """
    from companion.tabletop.caption import parse
    from companion.tabletop.measures import read

    wish, reading = parse(prompt), read([picture])[0]
    met = reading.meets(wish)

    def said(values: tuple[str | None, ...]) -> str:
        return ", ".join(value or "any" for value in values)

    asked = {"count": str(len(wish.kinds)), "kind": said(wish.kinds), "finish": said(wish.finishes)}
    asked |= {"place": wish.place, "time": wish.time, "relation": wish.relation}
    seen = {"count": str(len(reading.kinds)), "kind": said(reading.kinds), "finish": said(reading.finishes)}
    seen |= {"place": reading.place, "time": reading.time, "relation": _standing(reading.front, len(reading.kinds))}
    rows = [(name, asked[name], seen[name], "yes" if met[name] else "no") for name in asked if name in met]
    return Table(("", "asked for", "the judge reads (left to right)", "as asked"), rows)


def _standing(front: str, count: int) -> str:
    if count < 2:
        return "only one thing"
    return "side by side" if front == "neither" else f"the {front} in front"


def eye_and_judge() -> dict[str, dict[str, float]]:
    """Of the things in 120 pictures that the shipped model drew, the share of each kind that a reader called clear, the
    share whose kind the reader could tell (clear or doubtful), and the share that the judge reads as asked for; {} when
    none has looked. `companion build report` measured what the judge reads.
    """
    from companion.models import reported
    from companion.pretraining import eye
    from companion.tabletop.scene import KINDS

    numbers = reported()
    if f"eye_judge_{KINDS[0]}" not in numbers or not eye.VERDICTS.exists():
        return {}
    prompts, said = eye.load_prompts(), {kind: list[str]() for kind in KINDS}
    for verdict in eye.load_verdicts(eye.VERDICTS):
        said[prompts[verdict.prompt].kinds[verdict.thing]].append(verdict.word)
    return {
        "clear to the eye": {kind: words.count("clear") / len(words) for kind, words in said.items()},
        "the eye can tell the kind": {kind: 1 - words.count("wrong") / len(words) for kind, words in said.items()},
        "the judge reads the kind": {kind: numbers[f"eye_judge_{kind}"] for kind in KINDS},
    }


def eye_counts(control: str = "") -> dict[str, dict[str, int]]:
    """How many things the eye called clear, doubtful and wrong, under "drawn", and in renders that only went through
    the autoencoder, under "rebuilt". With the name of a condition, things that were drawn with its ControlNet, and with
    "untouched", things in renders as they are, under that name; another reader looked at each of these. Raises
    FileNotFoundError when no eye has looked.
    """
    from companion.pretraining import eye

    path = eye.verdicts_with(control)
    shown, rebuilt = Counter(verdict.word for verdict in eye.load_verdicts(path)), eye.load_controls(path)
    what = control if control == eye.UNTOUCHED else "drawn"
    found = {what: shown, "rebuilt": rebuilt}
    return {name: {word: counts.get(word, 0) for word in eye.WORDS} for name, counts in found.items()}


def not_clear(n: int) -> list[tuple[str, int, list[tuple[str, str]]]]:
    """Prompts and seeds of at most `n` pictures with something that the eye called wrong, or else doubtful; with each,
    the kinds of its things and the word for them.
    """
    from companion.pretraining import eye

    prompts, said = eye.load_prompts(), dict[int, list[tuple[str, str]]]()
    for verdict in eye.load_verdicts(eye.VERDICTS) if eye.VERDICTS.exists() else ():
        said.setdefault(verdict.prompt, []).append((prompts[verdict.prompt].kinds[verdict.thing], verdict.word))
    found = [i for bad in ("wrong", "doubtful") for i, words in said.items() if any(word == bad for _, word in words)]
    return [(prompts[i].prompt, prompts[i].seed, said[i]) for i in dict.fromkeys(found)][:n]
