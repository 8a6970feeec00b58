"""Pictures of what the published models can do: sheets to look at, and curves of their training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from companion.metrics import tensor_to_bytes
from companion.pretraining.report import LOGS, MODELS, drawn_bytes, load_tabletop, published

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from companion.pretraining.examination import Spoilable
    from companion.pretraining.eye import Asked, Verdict

STRIP_PROMPTS = (
    "a red ball on grass by day",
    "a gold robot on snow at sunset",
    "a blue house on brick at night",
    "a purple mushroom on sand by day",
    "a steel car on water by day",
    "a green tree left of a yellow cube on grass at sunset",
    "a black cone behind a white ring on sand at night",
)
#: The colour that an eye's verdict gives to a picture's frame.
FRAMES = {"clear": "#2a9d3f", "doubtful": "#e9a100", "wrong": "#d62828"}


def sheet(pipe, columns: int = 8) -> Image.Image:
    """The 40 prompts of data/models/prompts.txt, which were chosen before any picture was seen, drawn with seed 0, 1,
    2, ...
    """
    prompts = (MODELS / "prompts.txt").read_text(encoding="utf-8").split("\n")[:40]
    pictures = drawn_bytes(pipe, prompts)
    size, band = pictures.shape[1], 26
    out = Image.new("RGB", (columns * (size + 4) + 4, len(prompts) // columns * (size + band) + 4), "white")
    pen, font = ImageDraw.Draw(out), ImageFont.load_default(size=9)
    for i, (prompt, picture) in enumerate(zip(prompts, pictures, strict=True)):
        x, y = 4 + i % columns * (size + 4), 4 + i // columns * (size + band)
        out.paste(Image.fromarray(picture), (x, y))
        words, lines = prompt.split(), [""]
        for w in words:
            if pen.textlength(f"{lines[-1]} {w}", font=font) > size:
                lines.append("")
            lines[-1] = f"{lines[-1]} {w}".strip()
        pen.multiline_text((x, y + size + 1), "\n".join(lines[:2]), fill="black", font=font, spacing=0)
    return out


def strip(stages: dict[str, str]) -> Image.Image:
    """The same seven prompts and seeds, a row for the weights of each commit; `stages` maps names to commits.

    Raises ValueError when git has no such weights (a full clone has them).
    """
    rows = []
    for commit in stages.values():
        with published(commit, "tabletop") as folder:
            rows.append(drawn_bytes(load_tabletop(folder), list(STRIP_PROMPTS)))
    return _labelled(list(zip(stages, rows, strict=True)))


def spoiled_sheet(spoilable: Spoilable, found: dict[str, float], columns: int = 8) -> Image.Image:
    """Things spoiled in every way, a row for each, and how many of them the judge accepts."""
    from companion.pretraining.distortions import WAYS
    from companion.pretraining.examination import examination

    some, rows = examination(spoilable), []
    for way in WAYS:
        judges = {"the judge": f"judge_accepts_{way}", "the judge before": f"judge_before_accepts_{way}"}
        shares = [f"{name} accepts {found[key]:.0%}" for name, key in judges.items() if key in found]
        rows.append((f"{way}: {', '.join(shares)}", tensor_to_bytes(some[way][0][:columns]).numpy()))
    return _labelled(rows)


def eye_sheet(
    prompts: Sequence[Asked], pictures: np.ndarray, verdicts: Sequence[Verdict], columns: int = 12
) -> Image.Image:
    """The pictures that an eye judged, each in a frame that has the colour of its worst verdict."""
    words = list(FRAMES)
    worst = [max((words.index(v.word) for v in verdicts if v.prompt == i), default=0) for i in range(len(prompts))]
    size, edge = pictures.shape[1], 3
    side = size + 2 * edge
    out = Image.new("RGB", (columns * side, -(-len(pictures) // columns) * side), "white")
    for i, (picture, word) in enumerate(zip(pictures, worst, strict=True)):
        x, y = i % columns * side, i // columns * side
        out.paste(FRAMES[words[word]], (x, y, x + side, y + side))
        out.paste(Image.fromarray(picture), (x + edge, y + edge))
    return out


def _labelled(rows: Sequence[tuple[str, np.ndarray]]) -> Image.Image:
    """Rows of pictures, uint8 (H, W, 3), each under a line of text."""
    size, band = rows[0][1][0].shape[0], 18
    out = Image.new("RGB", (max(len(row) for _, row in rows) * size, len(rows) * (size + band)), "white")
    pen, font = ImageDraw.Draw(out), ImageFont.load_default(size=12)
    for i, (name, row) in enumerate(rows):
        pen.text((4, i * (size + band) + 2), name, fill="black", font=font)
        out.paste(Image.fromarray(np.concatenate(list(row), 1)), (0, i * (size + band) + band))
    return out


def reliability(found: dict[str, float]) -> dict[str, Figure]:
    """The judge's confidence against how often it is right, of ten parts of an examination; {} where not measured."""
    from companion import figures

    parts = [i for i in range(10) if f"judge_confidence_{i}" in found]
    if not parts:
        return {}
    confidence, right = ([found[f"judge_{what}_{i}"] for i in parts] for what in ("confidence", "right"))
    figure = figures.curves(
        {"the judge": confidence, "as sure as it is right": [0, 1]},
        {"the judge": right, "as sure as it is right": [0, 1]},
        title="How sure the judge is, and how often all that it says is right",
        x_label="confidence",
        y_label="share of pictures read right",
        points=True,
        caption="Renders, rebuilt ones, empty scenes and things spoiled on purpose, all held out. A point for each "
        "tenth of the confidence.",
    )
    return {"reliability": figure}


def curves(logs: Path = LOGS) -> dict[str, Figure]:
    """Figures of the last training session by name, from its logs: losses, and what the half-trained U-Net drew.

    Raises FileNotFoundError when there are no logs.
    """
    from companion import figures

    lines = {
        p.stem: [json.loads(line) for line in p.read_text(encoding="utf-8").splitlines()]
        for p in sorted(logs.glob("*.jsonl"))
        if not p.stem.startswith(("controlnet-", "adapter-", "trial-", "early-"))  # notebook 04 shows these
    }
    measured = {name: lines.pop(name) for name in list(lines) if name.endswith("-measured")}
    if not lines:
        raise FileNotFoundError(f"{logs} has no logs; `companion build publish` puts those of a build folder there")
    made = {
        "loss": figures.curves(
            {name: [row["seconds"] / 60 for row in rows] for name, rows in lines.items()},
            {name: [row["loss"] / rows[0]["loss"] for row in rows] for name, rows in lines.items()},
            title="The last sitting: what training did to each loss",
            x_label="minutes of training",
            y_label="loss / its first value",
            caption="Means of a hundred steps each, over the mean of the first hundred.",
        )
    }
    for name, every in measured.items():
        if rows := [row for row in every if "error" in row]:
            made[f"{name}-error"] = figures.curves(
                [row["step"] for row in rows],
                {
                    "with their captions": [row["error"] for row in rows],
                    "with empty captions": [row["error_untold"] for row in rows],
                },
                title="The same U-Net, half-trained: the noise in 64 held-out renders",
                x_label="steps",
                y_label="mean squared error",
                points=True,
                caption="Of the moving average, a mean over several timesteps. The gap is what the words tell it.",
            )
        if rows := [row for row in every if "frechet" in row]:
            steps = [row["step"] for row in rows]
            made[f"{name}-frechet"] = figures.curves(
                steps,
                {"Fréchet distance": [row["frechet"] for row in rows]},
                title="The same U-Net, half-trained: 256 pictures, and 256 held-out renders",
                x_label="steps",
                y_label="Fréchet distance",
                points=True,
                caption="So few pictures lie far from renders even when they are good: see how the distance falls, not "
                "how large it is.",
            )
            made[f"{name}-prompts"] = figures.curves(
                steps,
                {"all of the prompt": [row["all"] for row in rows]},
                title="The same U-Net, half-trained: 256 held-out prompts",
                x_label="steps",
                y_label="share of prompts wholly met",
                points=True,
                caption="The judge's verdict: a step of the curve is one picture in 256.",
            )
    return made
