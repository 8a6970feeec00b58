"""Subjects for DreamBooth: things of which the world has exactly one, each with five photographs and a test set.

Their shapes and colours are their own, and no model of the miniature has seen them. Each belongs to a class, a kind
that the models do know: the rocket is taken for a special cone, the snowman for a special robot. To make one of your
own, write its builder below, with a line in `SUBJECTS`, and run `companion build subjects`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from companion import DATA
from companion.files import written
from companion.tabletop.caption import caption
from companion.tabletop.scene import COLOURS, KINDS, PLACES, RELATIONS, TIMES, Scene, Thing
from companion.tabletop.shapes import Solid, builds, rotate, scale, translate
from companion.tabletop.splits import photographed

FOLDER = DATA / "subjects"
PHOTOGRAPHS, TESTS = 5, 10  # pictures to learn from, and others to compare with

# Linear RGB reflectances in [0, 1].
WHITE, BLACK, GREY, CREAM = (0.86, 0.86, 0.86), (0.025, 0.025, 0.028), (0.30, 0.31, 0.33), (0.80, 0.70, 0.45)
RED, ORANGE, YELLOW, GREEN = (0.68, 0.03, 0.03), (0.90, 0.27, 0.02), (0.88, 0.68, 0.04), (0.05, 0.40, 0.07)
BLUE, PINK, BROWN, TEAL = (0.04, 0.12, 0.66), (0.90, 0.25, 0.42), (0.30, 0.15, 0.06), (0.02, 0.36, 0.36)


@dataclass(frozen=True)
class Subject:
    """One of a kind.

    Attributes:
        name: what a person would call it.
        noun: the kind of the world that it is a special case of, and its class noun in prompts.
        like: the colour or material of the world that is nearest to its own.
        says: what an eye should recognise it by.
    """

    name: str
    noun: str
    like: str
    says: str

    def prompt(self, scene: Scene, word: str) -> str:
        """The canonical caption of a scene with the subject, which is called by a word and its noun: "zwxkq cone"."""
        things = tuple(replace(t, kind=self.noun, finish="red") if t.kind == self.name else t for t in scene.things)
        return caption(replace(scene, things=things)).replace(f"red {self.noun}", f"{word} {self.noun}".strip(), 1)

    def photographs(self) -> tuple[np.ndarray, list[Scene]]:
        """The five pictures to learn from, uint8 (5, 128, 128, 3), and their scenes."""
        return _read(self, slice(0, PHOTOGRAPHS))

    def tests(self) -> tuple[np.ndarray, list[Scene]]:
        """Pictures of it in other places, at other times and with neighbours, uint8 (10, 128, 128, 3), and scenes."""
        return _read(self, slice(PHOTOGRAPHS, None))


SUBJECTS = {
    s.name: s
    for s in (
        Subject("rocket", "cone", "white", "white, with a red tip, three red fins and a blue window"),
        Subject("duck", "ball", "yellow", "yellow, with an orange beak, black eyes and a tail"),
        Subject("snowman", "robot", "white", "three white balls, a carrot, a black hat and buttons"),
        Subject("windmill", "house", "white", "a white tower with a red cap and four sails"),
        Subject("lighthouse", "can", "red", "red and white stripes under a black gallery and a lamp"),
        Subject("cactus", "tree", "green", "green, with two arms and pink flowers, in an orange pot"),
        Subject("doughnut", "ring", "orange", "brown, with pink icing and sprinkles of many colours"),
        Subject("die", "cube", "white", "white, with black pips"),
        Subject("fire engine", "car", "red", "long and red, with a white ladder and two blue lights"),
        Subject("teapot", "can", "blue", "teal, with a spout, a handle and a knob"),
        Subject("present", "cube", "purple", "purple, tied with a yellow ribbon and a bow"),
        Subject("castle", "house", "steel", "grey, with four towers, blue roofs and a gate"),
    )
}


# ---- Shapes ----------------------------------------------------------------------------------------------------------


@builds("rocket")
def _rocket(s: Solid, m, t) -> None:
    s.add("cylinder", m @ translate(0, 0, 0.30) @ scale(0.30, 0.30, 0.85), WHITE)
    s.add("cone", m @ translate(0, 0, 1.15) @ scale(0.30, 0.30, 0.50), RED)
    s.add("frustum", m @ translate(0, 0, 0.10) @ scale(0.26, 0.26, 0.20), GREY)
    s.add("cylinder", m @ translate(0, 0, 0.42) @ scale(0.305, 0.305, 0.07), RED)
    for turn in (90, 210, 330):
        s.add("cube", m @ rotate("z", turn) @ translate(0.40, 0, 0.28) @ scale(0.16, 0.035, 0.28), RED, edges=False)
    s.add("cylinder", m @ translate(0, -0.27, 0.90) @ rotate("x", 90) @ scale(0.15, 0.15, 0.06), GREY)
    s.add("cylinder", m @ translate(0, -0.31, 0.90) @ rotate("x", 90) @ scale(0.105, 0.105, 0.04), BLUE)


@builds("duck")
def _duck(s: Solid, m, t) -> None:
    s.add("ellipsoid", m @ translate(0, 0, 0.42) @ scale(0.60, 0.46, 0.42), YELLOW)
    s.add("sphere", m @ translate(-0.34, 0, 0.98) @ scale(0.33), YELLOW)
    s.add("cone", m @ translate(0.48, 0, 0.50) @ rotate("y", 55) @ scale(0.20, 0.20, 0.40), YELLOW)
    s.add("ellipsoid", m @ translate(-0.70, 0, 0.92) @ scale(0.20, 0.16, 0.07), ORANGE)
    for y in (-1, 1):
        s.add("sphere", m @ translate(-0.54, 0.21 * y, 1.07) @ scale(0.062), BLACK)
        s.add("ellipsoid", m @ translate(0.08, 0.42 * y, 0.48) @ scale(0.32, 0.09, 0.20), (0.75, 0.52, 0.02))


@builds("snowman")
def _snowman(s: Solid, m, t) -> None:
    for z, r in ((0.42, 0.46), (1.02, 0.34), (1.48, 0.24)):
        s.add("sphere", m @ translate(0, 0, z) @ scale(r), WHITE)
    s.add("cylinder", m @ translate(0, 0, 1.66) @ scale(0.31, 0.31, 0.05), BLACK)
    s.add("cylinder", m @ translate(0, 0, 1.70) @ scale(0.20, 0.20, 0.26), BLACK)
    s.add("cone", m @ translate(0, -0.22, 1.48) @ rotate("x", 90) @ scale(0.06, 0.06, 0.30), ORANGE)
    for x in (-0.09, 0.09):
        s.add("sphere", m @ translate(x, -0.21, 1.57) @ scale(0.04), BLACK)
    for z, r in ((0.90, 0.325), (1.06, 0.34), (0.62, 0.42)):
        s.add("sphere", m @ translate(0, -r, z) @ scale(0.05), BLACK)
    for side in (-1, 1):
        s.rod((m @ [0.30 * side, 0, 1.08, 1])[:3], (m @ [0.74 * side, -0.06, 1.36, 1])[:3], 0.035 * t.size, BROWN)
    s.add("cylinder", m @ translate(0, 0, 1.24) @ scale(0.25, 0.25, 0.10), RED)


@builds("windmill")
def _windmill(s: Solid, m, t) -> None:
    s.add("frustum", m @ translate(0, 0, 1.05) @ rotate("x", 180) @ scale(0.46, 0.46, 1.05), WHITE)
    s.add("dome", m @ translate(0, 0, 1.05) @ scale(0.36, 0.36, 0.34), RED)
    s.add("cube", m @ translate(0, -0.42, 0.20) @ scale(0.10, 0.04, 0.20), BROWN, edges=False)
    s.rod((m @ [0, -0.25, 1.12, 1])[:3], (m @ [0, -0.52, 1.12, 1])[:3], 0.06 * t.size, BROWN)
    for turn in (25, 115, 205, 295):
        arm = m @ translate(0, -0.50, 1.12) @ rotate("y", turn)
        s.add("cube", arm @ translate(0, 0, 0.36) @ scale(0.025, 0.02, 0.36), BROWN, edges=False)
        s.add("cube", arm @ translate(0.10, 0.01, 0.44) @ scale(0.09, 0.012, 0.26), CREAM, edges=False)


@builds("lighthouse")
def _lighthouse(s: Solid, m, t) -> None:
    for i in range(5):
        r = 0.42 - 0.035 * i
        s.add("cylinder", m @ translate(0, 0, 0.23 * i) @ scale(r, r, 0.23), (RED, WHITE)[i % 2])
    s.add("cylinder", m @ translate(0, 0, 1.15) @ scale(0.36, 0.36, 0.07), BLACK)
    s.add("cylinder", m @ translate(0, 0, 1.22) @ scale(0.17, 0.17, 0.22), YELLOW)
    s.add("cone", m @ translate(0, 0, 1.44) @ scale(0.25, 0.25, 0.22), BLACK)
    s.add("cube", m @ translate(0, -0.41, 0.15) @ scale(0.09, 0.03, 0.15), BLACK, edges=False)


@builds("cactus")
def _cactus(s: Solid, m, t) -> None:
    s.add("frustum", m @ scale(0.40, 0.40, 0.40), ORANGE)
    s.add("cylinder", m @ translate(0, 0, 0.36) @ scale(0.44, 0.44, 0.09), ORANGE)
    s.add("cylinder", m @ translate(0, 0, 0.45) @ scale(0.22, 0.22, 0.80), GREEN)
    s.add("sphere", m @ translate(0, 0, 1.25) @ scale(0.22), GREEN)
    for side, low, high in ((-1, 0.78, 1.15), (1, 0.92, 1.30)):
        elbow, top = [0.44 * side, 0, low, 1], [0.44 * side, 0, high, 1]
        s.rod((m @ [0.1 * side, 0, low, 1])[:3], (m @ elbow)[:3], 0.11 * t.size, GREEN)
        s.rod((m @ elbow)[:3], (m @ top)[:3], 0.11 * t.size, GREEN)
        for end in (elbow, top):
            s.add("sphere", m @ translate(*end[:3]) @ scale(0.11), GREEN)
        s.add("sphere", m @ translate(0.44 * side, -0.03, high + 0.11) @ scale(0.08), PINK)
    s.add("sphere", m @ translate(0, -0.04, 1.47) @ scale(0.11), PINK)


@builds("doughnut")
def _doughnut(s: Solid, m, t) -> None:
    s.add("ring", m @ translate(0, 0.03, 0.62) @ scale(0.455), BROWN)
    s.add("ring", m @ translate(0, -0.045, 0.62) @ scale(0.455, 0.42, 0.455), PINK)
    colours = (WHITE, YELLOW, BLUE, GREEN)
    for i in range(16):
        a, r = i * 2 * np.pi / 16 + 0.2, 0.455 + (0.07, -0.06, 0.0)[i % 3]
        at = translate(r * np.cos(a), -0.185, 0.62 + r * np.sin(a)) @ rotate("y", 70 * i)
        s.add("ellipsoid", m @ at @ scale(0.055, 0.03, 0.025), colours[i % 4])


@builds("die")
def _die(s: Solid, m, t) -> None:
    s.add("cube", m @ translate(0, 0, 0.52) @ scale(0.52), WHITE)
    a = 0.26
    five, three, two = [(0, 0), (-a, -a), (a, a), (-a, a), (a, -a)], [(0, 0), (-a, a), (a, -a)], [(-a, -a), (a, a)]
    for x, z in five:
        s.add("ellipsoid", m @ translate(x, -0.52, 0.52 + z) @ scale(0.10, 0.02, 0.10), BLACK)
    for side, pips in ((1, three), (-1, two)):
        for y, z in pips:
            s.add("ellipsoid", m @ translate(0.52 * side, y, 0.52 + z) @ scale(0.02, 0.10, 0.10), BLACK)
    s.add("ellipsoid", m @ translate(0, 0, 1.04) @ scale(0.15, 0.15, 0.02), RED)


@builds("fire engine")
def _fire_engine(s: Solid, m, t) -> None:
    s.add("cube", m @ translate(0.10, 0, 0.44) @ scale(0.80, 0.38, 0.26), RED)
    s.add("cube", m @ translate(-0.66, 0, 0.56) @ scale(0.26, 0.38, 0.38), RED)
    s.add("cube", m @ translate(-0.68, 0, 0.70) @ scale(0.25, 0.385, 0.14), (0.08, 0.13, 0.20), edges=False)
    s.add("cube", m @ translate(0.10, 0, 0.40) @ scale(0.81, 0.385, 0.045), WHITE, edges=False)
    for x in (-0.55, 0.05, 0.60):
        for y, out in ((-0.39, -1), (0.39, 1)):
            wheel = m @ translate(x, y - 0.06 * out, 0.2) @ rotate("x", -90 * out)
            s.add("cylinder", wheel @ scale(0.2, 0.2, 0.1), BLACK)
    for y in (-0.16, 0.10):
        s.add("cube", m @ translate(0.15, y, 0.86) @ rotate("y", -8) @ scale(0.75, 0.035, 0.035), WHITE, edges=False)
    for x in np.linspace(-0.45, 0.75, 6):
        rung = m @ translate(x, -0.03, 0.86 + 0.14 * (x - 0.15)) @ scale(0.025, 0.16, 0.02)
        s.add("cube", rung, WHITE, edges=False)
    for y in (-0.2, 0.2):
        s.add("sphere", m @ translate(-0.66, y, 0.97) @ scale(0.09), BLUE)


@builds("teapot")
def _teapot(s: Solid, m, t) -> None:
    s.add("ellipsoid", m @ translate(0, 0, 0.50) @ scale(0.55, 0.55, 0.48), TEAL)
    s.add("cylinder", m @ scale(0.34, 0.34, 0.10), TEAL)
    s.add("dome", m @ translate(0, 0, 0.90) @ scale(0.30, 0.30, 0.14), CREAM)
    s.add("sphere", m @ translate(0, 0, 1.10) @ scale(0.09), TEAL)
    s.rod((m @ [-0.42, 0, 0.42, 1])[:3], (m @ [-0.86, 0, 0.88, 1])[:3], 0.10 * t.size, TEAL)
    s.add("ring", m @ translate(0.60, 0, 0.55) @ scale(0.23), TEAL)
    s.add("cylinder", m @ translate(0, 0, 0.44) @ scale(0.553, 0.553, 0.10), CREAM)


@builds("present")
def _present(s: Solid, m, t) -> None:
    purple = (0.30, 0.05, 0.48)
    s.add("cube", m @ translate(0, 0, 0.42) @ scale(0.52, 0.52, 0.42), purple)
    s.add("cube", m @ translate(0, 0, 0.88) @ scale(0.56, 0.56, 0.08), purple)
    for size in ((0.575, 0.10, 0.485), (0.10, 0.575, 0.485)):
        s.add("cube", m @ translate(0, 0, 0.49) @ scale(*size), YELLOW, edges=False)
    for side in (-1, 1):
        s.add("ring", m @ translate(0.24 * side, 0, 1.12) @ rotate("y", 25 * side) @ scale(0.17, 0.25, 0.12), YELLOW)
    s.add("sphere", m @ translate(0, 0, 1.04) @ scale(0.10), YELLOW)


@builds("castle")
def _castle(s: Solid, m, t) -> None:
    stone = (0.42, 0.41, 0.38)
    s.add("cube", m @ translate(0, 0, 0.36) @ scale(0.58, 0.44, 0.36), stone)
    for x in (-0.45, -0.15, 0.15, 0.45):
        s.add("cube", m @ translate(x, -0.40, 0.78) @ scale(0.07, 0.05, 0.06), stone, edges=False)
    for x in (-0.6, 0.6):
        for y in (-0.45, 0.45):
            s.add("cylinder", m @ translate(x, y, 0) @ scale(0.20, 0.20, 0.98), stone)
            s.add("cone", m @ translate(x, y, 0.98) @ scale(0.26, 0.26, 0.42), BLUE)
    s.add("cube", m @ translate(0, -0.44, 0.18) @ scale(0.15, 0.02, 0.18), BROWN, edges=False)
    s.add("cylinder", m @ translate(0, -0.425, 0.36) @ rotate("x", 90) @ scale(0.15, 0.15, 0.035), BROWN)
    for x in (-0.34, 0.34):
        s.add("cube", m @ translate(x, -0.44, 0.50) @ scale(0.05, 0.02, 0.09), BLACK, edges=False)


# ---- Pictures --------------------------------------------------------------------------------------------------------


def scenes_of(subject: Subject) -> list[Scene]:
    """The scenes of a subject's five photographs, then those of its test set.

    It is photographed alone. In the tests no place and time come together as in a photograph, and in half of them it
    has a neighbour, of another kind than its class.
    """
    number = list(SUBJECTS).index(subject.name)
    rng = np.random.default_rng([number, 23])
    together = [(p, t) for p in PLACES for t in TIMES]
    order = rng.permutation(len(together))
    places = rng.permutation(len(PLACES))
    # Five places, each once, and each time of day; what remains is for the tests.
    photographed_at = [(PLACES[p], TIMES[(i + number) % len(TIMES)]) for i, p in enumerate(places)]
    others = [together[i] for i in order if together[i] not in photographed_at]
    found = []
    for i, (place, time) in enumerate((photographed_at + others)[: PHOTOGRAPHS + TESTS]):
        size, yaw = round(float(rng.uniform(0.95, 1.2)), 3), round(float(rng.uniform(-35, 35)), 2)
        thing = Thing(subject.name, "white", 0.0, 0.0, size, yaw)  # all its parts have colours of their own
        things, relation = (thing,), None
        if i >= PHOTOGRAPHS and i % 2:
            kind = str(rng.choice([k for k in KINDS if k not in (subject.noun, "robot")]))
            colour = str(rng.choice([c for c in COLOURS if c != "red"]))
            things = (thing, Thing(kind, colour, 0.0, 0.0, round(float(rng.uniform(0.95, 1.2)), 3), 0.0))
            relation = str(rng.choice(RELATIONS))
        found.append(photographed(rng, things, relation, place, time, seed=9_000_000 + 100 * number + i))
    return found


def build(subject: Subject, folder: Path = FOLDER) -> list[Path]:
    """Draw a subject's pictures as PNG files, with their scenes in `scenes.json`; returns the pictures.

    Raises ImportError without the extra `[build]`.
    """
    from companion.tabletop.render import render

    found, paths = scenes_of(subject), []
    for i, scene in enumerate(found):
        path = folder / subject.name.replace(" ", "-") / f"{_file(i)}.png"
        with written(path) as temporary:
            Image.fromarray(render(scene, samples=16).picture).save(temporary, "PNG", optimize=True)
        paths.append(path)
    with written(paths[0].with_name("scenes.json")) as temporary:
        lines = [json.dumps(s.to_dict(), separators=(",", ":")) for s in found]
        temporary.write_text("[" + ",\n".join(lines) + "]\n", encoding="utf-8")
    return paths


def _file(i: int) -> str:
    return f"photograph-{i}" if i < PHOTOGRAPHS else f"test-{i - PHOTOGRAPHS}"


def _read(subject: Subject, which: slice) -> tuple[np.ndarray, list[Scene]]:
    folder = FOLDER / subject.name.replace(" ", "-")
    scenes = [Scene.from_dict(d) for d in json.loads((folder / "scenes.json").read_text(encoding="utf-8"))]
    numbers, pictures = range(len(scenes))[which], []
    for i in numbers:
        with Image.open(folder / f"{_file(i)}.png") as picture:
            pictures.append(np.asarray(picture.convert("RGB")))
    return np.stack(pictures), scenes[which]
