"""Examining a judge with pictures of every sort, also spoiled and empty ones: what it reads, what it accepts though it
should not, and whether it is as sure as it is right.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from companion.metrics import pictures_to_tensor, tensor_to_bytes
from companion.pretraining.distortions import WAYS, spoil
from companion.pretraining.judge import COLUMNS, HEADS, logits, targets
from companion.pretraining.latents import encode
from companion.pretraining.vae import rebuild
from companion.tabletop import dataset
from companion.tabletop.judge import COUNTS, SLOT, UNCLEAR, Judge
from companion.tabletop.scene import KINDS

UNCLEAR_KIND = (*KINDS, UNCLEAR).index(UNCLEAR)
EVERY = ("chimera", "patchwork")  # ways that spoil all things of a picture


class Spoilable:
    """Renders whose things can be spoiled or taken away.

    Args:
        renders: the folder of renders. Taking things away needs the split `split`-empty too, and spoiling also
            `split`-swapped: the same scenes without things, and with things of other kinds.
        vae: rebuilds them (encoded and decoded), and decodes noisy latents.
        count: how many scenes.
    """

    def __init__(self, renders: Path, split: str, vae: AutoencoderKL, count: int):
        columns = dataset.read(renders, split, COLUMNS, count)
        self.target = targets(columns, dataset.scenes(renders, split, count))
        self.segments, self.rendered = (torch.as_tensor(columns[k]) for k in ("segments", "picture"))
        self.vae, self._read = vae, partial(dataset.read, renders, count=count)
        self._split = split

    @cached_property
    def empty(self) -> Tensor:
        """The scenes without their things, uint8 (N, H, W, 3)."""
        return torch.as_tensor(self._read(f"{self._split}-empty", ("picture",))["picture"])

    @cached_property
    def swapped(self) -> tuple[Tensor, Tensor]:
        """The scenes with things of other kinds, uint8 (N, H, W, 3), and where these are (N, 1, H, W)."""
        found = self._read(f"{self._split}-swapped", ("picture", "segments"))
        return torch.as_tensor(found["picture"]), torch.as_tensor(found["segments"] >= 2)[:, None].float()

    @cached_property
    def latents(self) -> Tensor:
        """Scaled latents of the renders."""
        return encode(self.vae, self.rendered)

    @cached_property
    def rebuilt(self) -> Tensor:
        """The renders, encoded and decoded, uint8 (N, H, W, 3)."""
        return tensor_to_bytes(rebuild(self.vae, self.rendered))

    def __len__(self) -> int:
        return len(self.rendered)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) in [-1, 1] of scaled latents (N, C, h, w)."""
        return self.vae.decode(latents / self.vae.config.scaling_factor).sample.clamp(-1, 1)

    def answers(self, index: Tensor) -> dict[str, Tensor]:
        """The attributes of renders."""
        return {k: self.target[k][index].clone() for k in HEADS}

    def without_things(self, index: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Pictures of the empty scenes, and what is right to say of them."""
        right = self.answers(index)
        right["count"][:] = COUNTS.index(0)
        for k in ("front", *SLOT):
            right[k][:] = -100
        return pictures_to_tensor(self.empty[index]), right

    def spoiled(
        self, index: Tensor, way: str, strong: bool, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Pictures with some things spoiled, what is right to say of them, and which slots (N, 2) were spoiled.

        strong: so much that the right answer is "unclear"; else so little that it stays what it was.
        """
        right, n = self.answers(index), len(index)
        there = right["kind"] >= 0
        some = there & (torch.rand(n, 2, generator=generator) < 0.6)
        some = torch.where(some.any(1, keepdim=True) & (way not in EVERY), some, there)
        label = torch.where(some, 2 + self.target["order"][index], -1)  # of the chosen things, in the segments
        segments = self.segments[index]
        mask = (segments[:, None] == label[:, :, None, None]).any(1, keepdim=True).float()
        swapped, other = (part[index] for part in self.swapped)
        drawn = torch.where(
            torch.rand(n, 1, 1, 1, generator=generator) < 0.5, self.rendered[index], self.rebuilt[index]
        )
        scenes = {"picture": drawn, "empty": self.empty[index], "swapped": swapped}
        given = {k: pictures_to_tensor(v) for k, v in scenes.items()}
        given |= {"swapped_mask": other, "latents": self.latents[index].float()}
        between = WAYS[way][strong]
        low, high = between or (0.0, 0.0)
        strength = low + (high - low) * float(torch.rand(1, generator=generator))
        if strong:
            right["kind"][some] = UNCLEAR_KIND
        right["was"] = self.target["kind"][index]
        return spoil(way, strength, given, mask, self.decode, generator), right, some


def examination(spoilable: Spoilable, seed: int = 0) -> dict[str, tuple[Tensor, dict[str, Tensor]]]:
    """Pictures of every sort, and what is right to say of them: "rendered", "rebuilt", "empty", and each of the `WAYS`.

    Spoiled pictures are all spoiled strongly, and only in scenes with one thing, which is then "unclear".
    """
    generator, every = torch.Generator().manual_seed(seed), torch.arange(len(spoilable))
    alone = every[spoilable.target["count"] == COUNTS.index(1)]
    sorts = {
        name: (pictures_to_tensor(getattr(spoilable, name)), spoilable.answers(every))
        for name in ("rendered", "rebuilt")
    }
    sorts["empty"] = spoilable.without_things(every)
    for way in WAYS:
        parts = [spoilable.spoiled(some, way, True, generator)[:2] for some in alone.split(10)]
        sorts[way] = (
            torch.cat([x for x, _ in parts]),
            {k: torch.cat([right[k] for _, right in parts]) for k in (*HEADS, "was")},
        )
    return sorts


@dataclass
class Exam:
    """How a judge did in an `examination`.

    Attributes:
        read: the share of kinds read right in "rendered" and in "rebuilt" pictures, and of "empty" ones read as empty.
        accepted: for each of the `WAYS`, the share of spoiled things that it still reads as the kind that they were.
        confidence, right, counts: of pictures sorted by the judge's confidence into ten equal parts of [0, 1], the mean
            confidence, the share whose every answer is right, and their number.
    """

    read: dict[str, float]
    accepted: dict[str, float]
    confidence: list[float]
    right: list[float]
    counts: list[int]

    @property
    def calibration_error(self) -> float:
        """The mean distance, over all pictures, between confidence and the share of right readings (arXiv 1706.04599,
        equation 3).
        """
        gaps = [n * abs(c - r) for c, r, n in zip(self.confidence, self.right, self.counts, strict=True)]
        return sum(gaps) / sum(self.counts)


def examine(judge: Judge, sorts: dict[str, tuple[Tensor, dict[str, Tensor]]]) -> Exam:
    """Ask a judge about an `examination`."""
    read, accepted, sure, right = {}, {}, [], []
    for name, (x, answers) in sorts.items():
        found = logits(judge, x)
        count = torch.tensor(judge.counts)[found["count"].argmax(-1)]
        if name in WAYS:
            kept = (count == 1) & (found["kind"][:, 0].argmax(-1) == answers["was"][:, 0])
            accepted[name] = float(kept.float().mean())
        elif name == "empty":
            read[name] = float((count == 0).float().mean())
        else:
            there = answers["kind"] >= 0
            read[name] = float((found["kind"].argmax(-1) == answers["kind"])[there].float().mean())
        if judge.counts != COUNTS:
            continue  # its answers have other numbers
        p, all_right = torch.ones(len(x)), torch.ones(len(x), dtype=torch.bool)
        for head, t in zip(HEADS, judge.temperatures, strict=True):
            best = (found[head] / t).softmax(-1).max(-1)
            asked = answers[head] >= 0
            value, same = best.values.where(asked, torch.ones(())), (best.indices == answers[head]) | ~asked
            p *= value.view(len(x), -1).prod(1)
            all_right &= same.view(len(x), -1).all(1)
        sure.append(p)
        right.append(all_right)
    confidence, share, counts = [], [], []
    if sure:
        p, all_right = torch.cat(sure), torch.cat(right).float()
        for part in range(10):
            some = (p * 10).long().clamp(max=9) == part
            if some.any():
                confidence.append(float(p[some].mean()))
                share.append(float(all_right[some].mean()))
                counts.append(int(some.sum()))
    return Exam(read, accepted, confidence, share, counts)


def calibrate(judge: Judge, spoilable: Spoilable) -> Judge:
    """Set the judge's temperatures to those under which the right answers of an `examination` are most likely."""
    sorts = examination(spoilable).values()
    found = logits(judge, torch.cat([x for x, _ in sorts]))
    for i, head in enumerate(HEADS):
        right = torch.cat([answers[head] for _, answers in sorts]).flatten()
        given, known = found[head].flatten(0, -2), right >= 0
        grid = torch.logspace(-0.5, 0.5, 61)  # by a factor of three at most: on heads that make no mistakes, 0 is best
        losses = [F.cross_entropy(given[known] / t, right[known]) for t in grid]
        judge.temperatures[i] = grid[int(torch.stack(losses).argmin())]
    return judge
