"""Judging drawn pictures by eye: prompts fixed in advance, sheets to look at, and verdicts tied to the pictures.

Prompts and seeds are written down before any picture is seen, with all kinds equally often. Each thing is enlarged four
times and called "clear", "doubtful" or "wrong" according to `CRITERIA`. A verdict keeps the SHA-256 of its picture, so
it is clear which weights it is about and which it is not.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from companion import DATA
from companion.files import written
from companion.tabletop.caption import caption
from companion.tabletop.judge import Reading
from companion.tabletop.scene import FINISHES, KINDS, PLACES, RELATIONS, TIMES, WITHHELD, Scene, Thing

PROMPTS = DATA / "results" / "eye_prompts.json"
VERDICTS = DATA / "results" / "eye_verdicts.json"
SINGLE, PAIRS = 80, 40  # prompts with one thing, and with two: 16 things of each kind
CONTROLS = 40  # rebuilt renders that are shown among the drawn pictures: what does the eye say of what is right?
STEERED = 80  # held-out scenes that are drawn with a ControlNet, where an eye looks at such pictures
UNTOUCHED = "untouched"  # held-out renders as they are, as many as those drawn with a ControlNet
ENLARGED = 4
WORDS = ("clear", "doubtful", "wrong")
#: What is asked of a thing: only its shape. The judge handles colour, place and time.
CRITERIA = {
    "clear": "Somebody who does not know the prompt names the kind at once, and nothing about its shape is odd: "
    "straight edges are straight, round ones round, parts are whole and where they belong.",
    "doubtful": "The kind can be told, but something is off: a melted corner, a part that is missing or doubled, an "
    "outline that runs into the ground.",
    "wrong": "It shows another kind, a mixture of two, a shapeless lump, or nothing.",
}
#: What tells each kind from all the others.
MARKS = {
    "ball": "a full circle, shaded as a sphere",
    "cube": "flat faces with straight edges, and corners where they meet",
    "cone": "a sharp tip over a round base",
    "can": "a cylinder with a rim at its top and at its bottom",
    "tree": "three cones one on the other, on a trunk",
    "house": "walls, a pointed roof, a door and a window",
    "robot": "a head with two eyes, a body, two arms and two legs",
    "ring": "a hole right through the middle",
    "mushroom": "a cap with dots on a stem",
    "car": "a body with a cabin, and wheels",
}


@dataclass(frozen=True)
class Asked:
    """A prompt, the seed of its picture, and the kinds it names, in the prompt's order."""

    prompt: str
    seed: int
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """The verdict on one thing: the prompt's number, the thing's in it, the word, and its picture's SHA-256."""

    prompt: int
    thing: int
    word: str
    picture: str


def made_prompts(seed: int = 20) -> list[Asked]:
    """The prompts stored in `PROMPTS`: all kinds are named equally often, in pairs seen in training."""
    rng = np.random.default_rng(seed)
    n = SINGLE + 2 * PAIRS
    kinds = [str(k) for k in rng.permutation(np.repeat(KINDS, n // len(KINDS)))]
    finishes = [FINISHES[i % len(FINISHES)] for i in rng.permutation(n)]
    found, at = [], 0
    for number in range(SINGLE + PAIRS):
        count = 1 if number < SINGLE else 2
        things = []
        for kind, finish in zip(kinds[at : at + count], finishes[at : at + count], strict=True):
            while (kind, finish) in WITHHELD:
                finish = str(rng.choice(FINISHES))
            things.append(Thing(kind, finish, 0.0, 0.0, 1.0, 0.0))
        relation = str(rng.choice(RELATIONS)) if count == 2 else None
        scene = Scene(tuple(things), relation, str(rng.choice(PLACES)), str(rng.choice(TIMES)))
        found.append(Asked(caption(scene), number, tuple(t.kind for t in things)))
        at += count
    return found


def of_scenes(scenes: Sequence[Scene]) -> list[Asked]:
    """What pictures of scenes are asked for; picture i is drawn from seed i."""
    return [Asked(caption(s), i, tuple(t.kind for t in s.things)) for i, s in enumerate(scenes)]


def verdicts_with(condition: str = "") -> Path:
    """Where the verdicts on pictures that follow a condition are stored; without one, on those that follow none."""
    return VERDICTS.with_stem(f"{VERDICTS.stem}_{condition}") if condition else VERDICTS


def save_prompts(prompts: Sequence[Asked], path: Path = PROMPTS) -> None:
    """Write one prompt per line."""
    lines = ",\n".join(json.dumps(asdict(p)) for p in prompts)
    with written(path) as temporary:
        temporary.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def load_prompts(path: Path = PROMPTS) -> list[Asked]:
    """The stored prompts."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return [Asked(d["prompt"], d["seed"], tuple(d["kinds"])) for d in found]


def fingerprint(picture: np.ndarray) -> str:
    """The SHA-256 of a picture's pixels, uint8 (H, W, 3)."""
    return hashlib.sha256(np.ascontiguousarray(picture).tobytes()).hexdigest()


def sheets(pictures: Sequence[np.ndarray], rows: int = 3, columns: int = 4) -> Iterator[Image.Image]:
    """Sheets of enlarged pictures, uint8 (H, W, 3), with only their numbers: the viewer must not know the prompts."""
    side, band = pictures[0].shape[0] * ENLARGED, 28
    font = ImageFont.load_default(size=20)
    for first in range(0, len(pictures), rows * columns):
        sheet = Image.new("RGB", (columns * side, rows * (side + band)), "white")
        pen = ImageDraw.Draw(sheet)
        for i, picture in enumerate(pictures[first : first + rows * columns]):
            x, y = i % columns * side, i // columns * (side + band)
            sheet.paste(Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS), (x, y + band))
            pen.text((x + 6, y + 2), str(first + i), fill="black", font=font)
        yield sheet


def order(n: int, seed: int = 21) -> list[int]:
    """The order in which `n` pictures are shown, so that nobody can tell the controls from the drawn ones."""
    return [int(i) for i in np.random.default_rng(seed).permutation(n)]


def parse_verdicts(text: str, prompts: Sequence[Asked], pictures: Sequence[np.ndarray]) -> list[Verdict]:
    """Verdicts from lines that name what was seen: "12 cube clear", or "97 ball clear; robot doubtful (a third leg)".

    A viewer does not know the prompt. So the kinds are matched with it here, and what was asked for and not named is
    wrong.

    Raises:
        ValueError: for an unknown word or kind, a number that no picture has, or pictures left out.
    """
    found: dict[int, list[str]] = {}
    for line in filter(None, (line.split("#")[0].strip() for line in text.splitlines())):
        number, _, said = re.sub(r"\([^)]*\)", "", line).partition(" ")
        if not number.isdigit() or int(number) >= len(prompts):
            raise ValueError(f"{line!r} does not begin with a picture's number, 0 to {len(prompts) - 1}")
        seen: dict[str, list[str]] = {}
        for kind, word in (_named(part, line) for part in said.split(";")):
            seen.setdefault(kind, []).append(word)
        found[int(number)] = [seen[kind].pop(0) if seen.get(kind) else "wrong" for kind in prompts[int(number)].kinds]
    if missing := set(range(len(prompts))) - found.keys():
        raise ValueError(f"{len(missing)} pictures have no verdict, the first of them number {min(missing)}")
    return [Verdict(n, i, w, fingerprint(pictures[n])) for n in sorted(found) for i, w in enumerate(found[n])]


def _named(part: str, line: str) -> tuple[str, str]:
    kind, _, word = part.strip().partition(" ")
    if kind not in (*KINDS, "nothing"):
        raise ValueError(f"{kind!r} in {line!r} is no kind; they are {', '.join(KINDS)}, or nothing")
    if word.strip() not in WORDS:
        raise ValueError(f"{word.strip()!r} in {line!r} is no verdict; the words are {', '.join(WORDS)}")
    return kind, word.strip()


def save_verdicts(verdicts: Sequence[Verdict], about: dict[str, Any], path: Path = VERDICTS) -> None:
    """Write verdicts, one a line, with `about` (who looked and when, what was said of the controls) and the criteria
    beside them.
    """
    lines = ",\n".join(json.dumps(asdict(v)) for v in verdicts)
    head = json.dumps({**about, "criteria": CRITERIA, "marks": MARKS}, indent=1)[:-2]
    with written(path) as temporary:
        temporary.write_text(f'{head},\n "verdicts": [\n{lines}\n ]\n}}\n', encoding="utf-8")


def load_verdicts(path: Path = VERDICTS) -> list[Verdict]:
    """The stored verdicts. Raises FileNotFoundError when there are none."""
    return [Verdict(**d) for d in json.loads(path.read_text(encoding="utf-8"))["verdicts"]]


def load_controls(path: Path = VERDICTS) -> dict[str, int]:
    """How many things of rebuilt renders the eye called "clear", "doubtful" and "wrong"; {} when none were shown."""
    return json.loads(path.read_text(encoding="utf-8")).get("controls", {})


def by_kind(verdicts: Sequence[Verdict], prompts: Sequence[Asked]) -> dict[str, tuple[int, int]]:
    """For each kind, how many of its things are clear, and how many there are."""
    found: dict[str, tuple[int, int]] = {}
    for v in verdicts:
        kind = prompts[v.prompt].kinds[v.thing]
        clear, n = found.get(kind, (0, 0))
        found[kind] = clear + (v.word == "clear"), n + 1
    return found


def by_judge(prompts: Sequence[Asked], readings: Sequence[Reading]) -> dict[str, tuple[int, int]]:
    """For each kind, how many of its things the judge reads as asked for, one reading per prompt, and how many there
    are.
    """
    found: dict[str, tuple[int, int]] = {}
    for asked, reading in zip(prompts, readings, strict=True):
        for kind in asked.kinds:
            right, n = found.get(kind, (0, 0))
            found[kind] = right + _reads(reading, kind, asked), n + 1
    return found


def _reads(reading: Reading, kind: str, asked: Asked) -> bool:
    """Whether the judge reads a kind as often as the prompt names it."""
    return reading.kinds.count(kind) >= asked.kinds.count(kind)


def agreement(
    verdicts: Sequence[Verdict], prompts: Sequence[Asked], readings: Sequence[Reading]
) -> dict[str, tuple[int, int]]:
    """How the judge's readings, one per prompt, compare with the eye's verdicts: (how many, of how many).

    "accepts_wrong": of the things that the eye calls wrong, those whose kind the judge reads as asked for.
    "rejects_clear": of those that it calls clear, those whose kind the judge reads otherwise.
    """
    counts = {"accepts_wrong": [0, 0], "rejects_clear": [0, 0]}
    for v in verdicts:
        asked = prompts[v.prompt]
        read = _reads(readings[v.prompt], asked.kinds[v.thing], asked)
        if v.word == "wrong":
            counts["accepts_wrong"][0] += read
            counts["accepts_wrong"][1] += 1
        elif v.word == "clear":
            counts["rejects_clear"][0] += not read
            counts["rejects_clear"][1] += 1
    return {name: (k, n) for name, (k, n) in counts.items()}
