"""The judge: a small network that reads a picture of the miniature world.

It reads how many things there are, their kinds and finishes from left to right, which is in front, the place, the time
and where each thing is, and predicts dense maps (segments, depth, normals, key points). It is trained only on renders,
so it can measure generated pictures without ever having seen one. Some of the renders were spoiled on purpose, and some
show no thing at all, so it can also say that a thing is "unclear", or that there is none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from companion.files import written
from companion.tabletop.caption import OPPOSITE, Wish
from companion.tabletop.scene import FINISHES, JOINTS, KINDS, PLACES, TIMES

SEGMENTS = ("sky", "ground", *KINDS)
#: Which thing is in front, when two are not side by side.
FRONT = ("neither", "left thing", "right thing")
UNCLEAR = "unclear"  # what the judge calls a thing whose shape is that of no kind
COUNTS = (0, 1, 2)
#: Attribute heads and their number of classes; the pairs ("kind", "finish") are read once for each slot, left to right.
GLOBAL = {"count": len(COUNTS), "front": len(FRONT), "place": len(PLACES), "time": len(TIMES)}
SLOT = {"kind": len(KINDS) + 1, "finish": len(FINISHES)}
WIDTHS = (24, 48, 96, 160)
FAR_INVERSE = 1 / 30.0
NEAR_INVERSE = 1 / 1.8  # nothing is nearer than 1.8 units


@dataclass
class Reading:
    """What the judge saw in a picture, things from left to right.

    Attributes:
        kinds, finishes: one entry per thing, if there are any. A kind may be `UNCLEAR`.
        front: "neither", "left thing" or "right thing".
        boxes: for each thing left, top, right, bottom as fractions of the picture.
        confidence: the probability, in [0, 1], that all of these answers are right: the product of theirs.
    """

    kinds: tuple[str, ...]
    finishes: tuple[str, ...]
    front: str
    place: str
    time: str
    boxes: tuple[tuple[float, ...], ...]
    confidence: float

    def meets(self, wish: Wish) -> dict[str, bool]:
        """For each thing the prompt asks for, whether the picture has it.

        Keys: "count", "kind", "finish", "place", "time", "relation" (only those the prompt names), and "all". Two
        things are matched with the prompt's in the order that meets most of it.
        """
        n = len(wish.kinds)
        if len(self.kinds) != n:
            result = {"count": False, "kind": False}
            result |= {"finish": False} if any(wish.finishes) else {}
            result |= {"relation": False} if wish.relation else {}
        else:
            orders = [tuple(range(n))] if n == 1 else [(0, 1), (1, 0)]  # orders[i]: slot of the i-th named thing
            options = []
            for order in orders:
                option = {
                    "count": True,
                    "kind": all(k in (None, self.kinds[s]) for k, s in zip(wish.kinds, order, strict=True)),
                    "finish": all(f in (None, self.finishes[s]) for f, s in zip(wish.finishes, order, strict=True)),
                }
                if wish.relation:
                    option["relation"] = self._relation(order) == wish.relation
                options.append(option)
            result = max(options, key=lambda o: (o["kind"] + o["finish"] + o.get("relation", 0), o["kind"]))
            if not any(wish.finishes):
                del result["finish"]
        for name in ("place", "time"):
            if wanted := getattr(wish, name):
                result[name] = getattr(self, name) == wanted
        return {**result, "all": all(result.values())}

    def _relation(self, order: tuple[int, ...]) -> str:
        """The relation of the thing in slot order[0] to the other."""
        relation = "left of" if self.front == "neither" else "in front of" if self.front == "left thing" else "behind"
        return relation if order[0] == 0 else OPPOSITE[relation]


class Residual(nn.Module):
    """Two 3 x 3 convolutions with group normalisation and a skip connection."""

    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Judge(nn.Module):
    """Reads pictures (B, 3, H, W) in [-1, 1]; H and W are multiples of 16 (128 in training).

    `forward` returns a dictionary: the heads' logits "count" (B, 2), "front" (B, 3), "place" (B, 5), "time" (B, 3),
    "kind" (B, 2, 11), "finish" (B, 2, 11); "boxes" (B, 2, 4) in [0, 1]; maps at half the picture's size: "segments"
    (B, 12, H/2, W/2) logits, "depth" (B, 1, ...) as inverse depth from 0 (far) to 1 (near), "normals" (B, 3, ...),
    "joints" (B, 11, ...) logits; and "features" (B, 160).

    Args:
        counts: the numbers of things that it tells apart.
        kinds: the kinds that it tells apart, in the order of its logits.
    """

    def __init__(self, counts: Sequence[int] = COUNTS, kinds: Sequence[str] = (*KINDS, UNCLEAR)):
        super().__init__()
        self.counts, self.kinds = tuple(counts), tuple(kinds)
        w, sizes = WIDTHS, {**GLOBAL, **SLOT, "count": len(counts), "kind": len(kinds)}
        self.stem = nn.Conv2d(3, w[0], 3, stride=2, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in zip(w[:-1], w[1:], strict=True))
        self.blocks = nn.ModuleList(nn.Sequential(*(Residual(b) for _ in range(2))) for b in w[1:])
        self.norm = nn.GroupNorm(8, w[-1])
        # Queries for the left slot, the right slot and the whole attend to the coarsest map and its positions.
        self.query = nn.Parameter(torch.randn(3, w[-1]) * 0.02)
        self.where = nn.Linear(2, w[-1])
        self.look = nn.MultiheadAttention(w[-1], 4, batch_first=True)
        self.slot = nn.Sequential(nn.LayerNorm(w[-1]), nn.Linear(w[-1], w[-1]), nn.SiLU())
        self.whole_heads = nn.ModuleDict({k: nn.Linear(2 * w[-1], sizes[k]) for k in GLOBAL})
        self.slot_heads = nn.ModuleDict({k: nn.Linear(w[-1], sizes[k]) for k in SLOT})
        # Logits are divided by these before they are read as probabilities (C. Guo et al., "On Calibration of Modern
        # Neural Networks", arXiv 1706.04599), one for each head.
        self.register_buffer("temperatures", torch.ones(len(GLOBAL) + len(SLOT)))
        self.box_head = nn.Linear(w[-1], 4)
        self.up = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(w[:0:-1], w[-2::-1], strict=True))
        self.dense = nn.Sequential(nn.GroupNorm(8, w[0]), nn.SiLU(), nn.Conv2d(w[0], w[0], 3, padding=1), nn.SiLU())
        self.map_heads = nn.Conv2d(w[0], len(SEGMENTS) + 1 + 3 + len(JOINTS), 1)

    def forward(self, x: Tensor, maps: bool = True) -> dict[str, Tensor]:
        levels = [self.stem(x)]
        for down, block in zip(self.down, self.blocks, strict=True):
            levels.append(block(down(F.silu(levels[-1]))))
        top = F.silu(self.norm(levels[-1]))
        b, _, h, w = top.shape
        ys, xs = torch.meshgrid(
            torch.linspace(-1, 1, h, device=x.device), torch.linspace(-1, 1, w, device=x.device), indexing="ij"
        )
        tokens = top.flatten(2).transpose(1, 2) + self.where(torch.stack([xs, ys], -1).reshape(1, -1, 2))
        seen = self.look(self.query.expand(b, -1, -1), tokens, tokens, need_weights=False)[0]
        slots, pooled = self.slot(seen), top.mean((2, 3))
        whole = torch.cat([slots[:, 2], pooled], 1)
        out = {k: head(whole) for k, head in self.whole_heads.items()}
        out |= {k: head(slots[:, :2]) for k, head in self.slot_heads.items()}
        out["boxes"], out["features"] = self.box_head(slots[:, :2]).sigmoid(), pooled
        if maps:
            y = levels[-1]
            for up, level in zip(self.up, levels[-2::-1], strict=True):
                y = F.interpolate(up(y), scale_factor=2, mode="bilinear", align_corners=False) + level
            y = self.map_heads(self.dense(y))
            sizes = (len(SEGMENTS), 1, 3, len(JOINTS))
            out |= dict(zip(("segments", "depth", "normals", "joints"), y.split(sizes, 1), strict=True))
        return out

    @torch.no_grad()
    def read(self, pictures: Tensor, batch: int = 64) -> list[Reading]:
        """Readings of pictures (N, 3, H, W) in [-1, 1]."""
        readings = []
        for i in range(0, len(pictures), batch):
            out = self(pictures[i : i + batch], maps=False)
            p = {k: (out[k] / t).softmax(-1).max(-1) for k, t in zip((*GLOBAL, *SLOT), self.temperatures, strict=True)}
            for j in range(len(out["count"])):
                n = self.counts[int(p["count"].indices[j])]
                sure = [float(p[k].values[j]) for k in GLOBAL if n == 2 or k != "front"]
                sure += [float(v) for k in SLOT for v in p[k].values[j, :n]]
                readings.append(
                    Reading(
                        tuple(self.kinds[k] for k in p["kind"].indices[j, :n].tolist()),
                        tuple(FINISHES[k] for k in p["finish"].indices[j, :n].tolist()),
                        FRONT[int(p["front"].indices[j])] if n == 2 else FRONT[0],
                        PLACES[int(p["place"].indices[j])],
                        TIMES[int(p["time"].indices[j])],
                        tuple(tuple(round(v, 3) for v in box) for box in out["boxes"][j, :n].tolist()),
                        math.prod(sure),
                    )
                )
        return readings

    @torch.no_grad()
    def features(self, pictures: Tensor, batch: int = 64) -> Tensor:
        """Pooled features (N, 160) of pictures (N, 3, H, W) in [-1, 1], for the Fréchet distance."""
        return torch.cat(
            [self(pictures[i : i + batch], maps=False)["features"] for i in range(0, len(pictures), batch)]
        )

    def save(self, folder: Path) -> None:
        """Write fp16 weights and a description into `folder`."""
        with written(Path(folder) / "model.safetensors") as temporary:
            save_file({k: v.half().contiguous() for k, v in self.state_dict().items()}, temporary)
        with written(Path(folder) / "config.json") as temporary:
            about = {"class": f"{__name__}.Judge", "widths": WIDTHS, "counts": self.counts, "kinds": self.kinds}
            temporary.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Judge:
        """The judge saved in `folder`. Raises FileNotFoundError that says how to get it."""
        path = Path(folder) / "model.safetensors"
        if not path.exists():
            raise FileNotFoundError(
                f"no judge in {folder}; restore data/models/judge from the repository, or run: companion build judge"
            )
        about = json.loads(path.with_name("config.json").read_text(encoding="utf-8"))
        # The first judge, which could not say no, had no such lists, and no temperatures.
        judge = cls(about.get("counts", (1, 2)), about.get("kinds", KINDS))
        judge.load_state_dict(judge.state_dict() | {k: v.float() for k, v in load_file(path).items()})
        return judge.eval()


def find_joints(logits: Tensor, full: int = 128) -> Tensor:
    """Peaks of joint maps (B, 11, h, w), as (B, 11, 3): x and y in pixels (`full` a side), and probability."""
    b, n, h, w = logits.shape
    p, at = logits.sigmoid().flatten(2).max(-1)
    return torch.stack([(at % w + 0.5) * full / w, (at // w + 0.5) * full / h, p], -1)
