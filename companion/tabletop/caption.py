"""The grammar of captions: it describes a scene in many ways, and reads every caption back.

`caption(scene)` gives the canonical sentence, "a gold robot left of a blue house on snow at sunset"; with a random
generator it varies words, order and what is left out, so that a model trained on it follows short prompts too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from companion.tabletop.scene import FINISHES, KINDS, PLACES, RELATIONS, TIMES, Scene

#: The first word is the canonical one.
KIND_WORDS = {
    "ball": ("ball", "sphere"),
    "cube": ("cube", "box", "block"),
    "cone": ("cone",),
    "can": ("can", "cylinder", "tin"),
    "tree": ("tree", "pine tree", "fir"),
    "house": ("house", "cottage", "hut"),
    "robot": ("robot", "android"),
    "ring": ("ring", "torus", "hoop"),
    "mushroom": ("mushroom", "toadstool"),
    "car": ("car", "automobile"),
}
FINISH_WORDS = {f: (f,) for f in FINISHES} | {
    "purple": ("purple", "violet"),
    "gold": ("gold", "golden"),
    "steel": ("steel", "chrome", "metal"),
    "glass": ("glass", "crystal"),
}
PLACE_WORDS = {
    "grass": ("on grass", "on the grass", "on a lawn"),
    "sand": ("on sand", "on the sand", "on a beach"),
    "snow": ("on snow", "in the snow"),
    "water": ("on water", "on the water"),
    "brick": ("on brick", "on bricks", "on a brick floor"),
}
TIME_WORDS = {
    "day": ("by day", "in daylight", "during the day"),
    "sunset": ("at sunset", "in the evening", "at dusk"),
    "night": ("at night", "by night", "by moonlight"),
}
RELATION_WORDS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "in front of": ("in front of", "before"),
    "behind": ("behind",),
}
OPPOSITE = {"left of": "right of", "right of": "left of", "in front of": "behind", "behind": "in front of"}
PREFIXES = ("a picture of", "a photo of", "a render of")


@dataclass(frozen=True)
class Wish:
    """What a prompt asks for, None where it does not say. `kinds` and `finishes` list the things in the order named."""

    kinds: tuple[str | None, ...]
    finishes: tuple[str | None, ...]
    relation: str | None
    place: str | None
    time: str | None

    @classmethod
    def of(cls, scene: Scene) -> Wish:
        """All that the canonical caption of a scene says."""
        return cls(
            tuple(t.kind for t in scene.things),
            tuple(t.finish for t in scene.things),
            scene.relation,
            scene.place,
            scene.time,
        )


def caption(scene: Scene, rng: np.random.Generator | None = None, *, omit: float = 0.12, vary: float = 0.35) -> str:
    """A caption of a scene.

    Args:
        rng: None gives the canonical caption; a generator varies it.
        omit: probability in [0, 1] of leaving out the place, the time or a finish.
        vary: probability in [0, 1] of a synonym for the canonical word.
    """

    def word(words: tuple[str, ...]) -> str:
        if rng is None or len(words) == 1 or rng.random() >= vary:
            return words[0]
        return words[1 + int(rng.integers(len(words) - 1))]

    def said() -> bool:
        return rng is None or rng.random() >= omit

    def noun(t) -> str:
        text = word(KIND_WORDS[t.kind])
        text = f"{word(FINISH_WORDS[t.finish])} {text}" if said() else text
        return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"

    things, relation = list(scene.things), scene.relation
    if relation and rng is not None and rng.random() < 0.5:  # the same scene, seen from the other thing
        things, relation = things[::-1], OPPOSITE[relation]
    text = noun(things[0])
    if relation:
        joint = "and" if rng is not None and rng.random() < omit / 2 else word(RELATION_WORDS[relation])
        text = f"{text} {joint} {noun(things[1])}"
    where = word(PLACE_WORDS[scene.place]) if said() else ""
    when = word(TIME_WORDS[scene.time]) if said() else ""
    if rng is not None and rng.random() < 0.15:
        text = f"{PREFIXES[int(rng.integers(len(PREFIXES)))]} {text}"
    if when and rng is not None and rng.random() < 0.15:
        return " ".join(p for p in (when + ",", text, where) if p)
    return " ".join(p for p in (text, where, when) if p)


def _phrases(table: Mapping[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    return sorted(((w, k) for k, words in table.items() for w in words), key=lambda p: -len(p[0]))


def parse(prompt: str) -> Wish:
    """What a prompt of this grammar asks for.

    Raises:
        ValueError: when it names no thing, or more than two; the message lists the kinds.
    """
    text = f" {re.sub(r'[^a-z ]+', ' ', prompt.lower())} "

    def find(table: Mapping[str, tuple[str, ...]]) -> list[tuple[int, str]]:
        found, rest = [], text
        for phrase, key in _phrases(table):
            for m in re.finditer(rf"(?<= ){re.escape(phrase)}(?= )", rest):
                found.append((m.start(), key))
                rest = rest[: m.start()] + "_" * len(phrase) + rest[m.end() :]
        return sorted(found)

    kinds, finishes = find(KIND_WORDS), find(FINISH_WORDS)
    if not 1 <= len(kinds) <= 2:
        raise ValueError(f"{prompt!r} names {len(kinds)} things; name one or two of: {', '.join(KINDS)}")
    by_thing, start = [], 0
    for at, _ in kinds:
        mine = [f for p, f in finishes if start <= p < at]
        by_thing.append(mine[-1] if mine else None)
        start = at
    relations, places, times = find(RELATION_WORDS), find(PLACE_WORDS), find(TIME_WORDS)
    first = {name: (found[0][1] if found else None) for name, found in (("r", relations), ("p", places), ("t", times))}
    if first["p"] is None:  # a bare "snow" is enough
        bare = [p for p in PLACES if f" {p} " in text]
        first["p"] = bare[0] if bare else None
    return Wish(
        tuple(k for _, k in kinds), tuple(by_thing), first["r"] if len(kinds) == 2 else None, first["p"], first["t"]
    )


def words() -> list[str]:
    """Every word that a caption can use."""
    tables = (KIND_WORDS, FINISH_WORDS, PLACE_WORDS, TIME_WORDS, RELATION_WORDS)
    phrases = [w for t in tables for ws in t.values() for w in ws] + [*PREFIXES, "a", "an", "and", "the"]
    return sorted({w for p in phrases for w in p.split()})


__all__ = ["RELATIONS", "TIMES", "Wish", "caption", "parse", "words"]
