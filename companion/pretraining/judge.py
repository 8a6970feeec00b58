"""How the judge is trained on renders, and how well it reads held-out ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from companion.metrics import pictures_to_tensor
from companion.pretraining.distortions import WAYS
from companion.pretraining.muon import muon
from companion.tabletop import dataset
from companion.tabletop.judge import COUNTS, FAR_INVERSE, FRONT, GLOBAL, NEAR_INVERSE, SLOT, Judge, find_joints
from companion.tabletop.scene import FINISHES, KINDS, PLACES, TIMES
from companion.training import Progress, train_averaged

if TYPE_CHECKING:
    from companion.pretraining.examination import Spoilable


def targets(columns: dict, scenes: list) -> dict[str, Tensor]:
    """The judge's targets for renders, from `columns` as `tabletop.dataset.read` gives them, and their scenes; and
    "order" (N, 2): which of its scene's things stands in the left slot, and which in the right.
    """
    t: dict[str, list] = {k: [] for k in (*GLOBAL, *SLOT)}
    order = []
    for s in scenes:
        things = s.left_to_right()
        index = [s.things.index(th) for th in things] + [1] * (2 - len(things))
        order.append(index)
        t["count"].append(COUNTS.index(len(things)))
        front = FRONT.index("neither")
        if s.relation in ("in front of", "behind"):
            nearest = min(things, key=lambda th: th.y)
            front = FRONT.index("left thing" if nearest is things[0] else "right thing")
        t["front"].append(front if len(things) == 2 else -100)
        t["place"].append(PLACES.index(s.place))
        t["time"].append(TIMES.index(s.time))
        missing = [-100] * (2 - len(things))  # ignored by the cross-entropy
        t["kind"].append([KINDS.index(th.kind) for th in things] + missing)
        t["finish"].append([FINISHES.index(th.finish) for th in things] + missing)
    out = {k: torch.tensor(v) for k, v in t.items()}
    out["order"] = torch.tensor(order)
    rows = torch.arange(len(scenes))[:, None]
    out["boxes"] = torch.as_tensor(columns["boxes"])[rows, torch.tensor(order)] / columns["segments"].shape[-1]
    label = torch.tensor(
        [[0, 1] + [2 + KINDS.index(th.kind) for th in s.things] + [0] * (2 - len(s.things)) for s in scenes]
    )
    out["segments"] = (
        label.to(torch.uint8)
        .gather(1, torch.as_tensor(columns["segments"]).flatten(1).long())
        .view(columns["segments"].shape)
    )
    depth = torch.as_tensor(columns["depth"])
    out["depth"], out["normals"] = depth, torch.as_tensor(columns["normals"])
    out["joints"] = torch.as_tensor(columns["joints"])
    return out


def _half(x: Tensor, size: int) -> Tensor:
    """Nearest samples of a map (B, H, W, ...) on a grid of `size`."""
    step = x.shape[1] // size
    return x[:, step // 2 :: step, step // 2 :: step]


def judge_loss(
    judge: Judge, pictures: Tensor, target: dict[str, Tensor], bfloat16: bool = False, mapped: int | None = None
) -> Tensor:
    """Cross-entropies of the attributes plus the errors of the boxes and maps, for pictures (B, 3, H, W) in [-1, 1] and
    `targets` of renders at 128 px.

    mapped: how many of the pictures, from the first, have boxes and maps to learn from; by default all.
    """
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        out = judge(pictures)
    out = {k: v.float() for k, v in out.items()}
    loss = sum(F.cross_entropy(out[k], target[k]) for k in ("place", "time", "count"))
    # Sums over the answers that exist (not means, which are undefined when a batch has none).
    loss = loss + F.cross_entropy(out["front"], target["front"], reduction="sum") / len(pictures)
    for k in SLOT:
        loss = loss + F.cross_entropy(out[k].flatten(0, 1), target[k].flatten(), reduction="sum") / len(pictures)
    out, target = ({k: v[:mapped] for k, v in values.items()} for values in (out, target))
    there = (target["kind"] >= 0)[..., None]
    loss = loss + 4 * ((out["boxes"] - target["boxes"]).abs() * there).mean()
    size = out["segments"].shape[-1]
    loss = loss + F.cross_entropy(out["segments"], _half(target["segments"], size).long())
    inverse = (
        (1 / _half(target["depth"], size).float().clamp_min(1.0) - FAR_INVERSE) / (NEAR_INVERSE - FAR_INVERSE)
    ).clamp(0, 1)
    loss = loss + 4 * (out["depth"][:, 0] - inverse).abs().mean()
    loss = loss + (out["normals"] - _half(target["normals"], size).float().permute(0, 3, 1, 2) / 127).abs().mean()
    return loss + joint_loss(out["joints"], target["joints"])


def joint_loss(logits: Tensor, joints: Tensor, full: int = 128, sigma: float = 1.2) -> Tensor:
    """Binary cross-entropy against Gaussian heat maps of the visible joints (B, 2 things, 11, 3), x and y in pixels of
    `full`.
    """
    size = logits.shape[-1]
    grid = torch.arange(size, device=logits.device) + 0.5
    xy = joints[..., :2] * size / full
    gx = torch.exp(-((grid - xy[..., 0, None]) ** 2) / (2 * sigma**2))
    gy = torch.exp(-((grid - xy[..., 1, None]) ** 2) / (2 * sigma**2))
    heat = (gy[..., :, None] * gx[..., None, :] * joints[..., 2, None, None]).amax(1)
    weight = 1 + 20 * heat
    # The maps are nearly empty: with less weight they learn where a robot is, but not which joint is which.
    return 40 * (F.binary_cross_entropy_with_logits(logits, heat, reduction="none") * weight).mean()


COLUMNS = ("picture", "depth", "normals", "segments", "joints", "boxes")
HEADS = (*GLOBAL, *SLOT)
GENTLE = tuple(way for way, (mild, _) in WAYS.items() if mild)  # ways that can also spoil so little that nobody minds


def train_judge(
    renders: Path,
    count: int,
    steps: int,
    spoilable: Spoilable,
    *,
    lr: float = 1e-3,
    batch: int = 24,
    bfloat16: bool = False,
    seed: int = 0,
    **options: Any,
) -> Iterator[tuple[Progress, Judge]]:
    """Train on `count` renders of "train" and all of "pairs" in the folder `renders`; yields progress and the moving
    average.

    A quarter of each batch are renders, and a quarter are renders that the autoencoder rebuilt. One picture of the rest
    is empty, and the others are spoiled: so much that a thing is "unclear", or so little that it is not.
    """
    splits = [("train", count)] + [("pairs", None)] * dataset.shard_path(renders, "pairs", 0).exists()
    columns = [dataset.read(renders, split, COLUMNS, n) for split, n in splits]
    scenes = [s for split, n in splits for s in dataset.scenes(renders, split, n)]
    pictures = torch.cat([torch.as_tensor(c["picture"]) for c in columns])
    target = targets({k: np.concatenate([c[k] for c in columns]) for k in COLUMNS if k != "picture"}, scenes)
    torch.manual_seed(seed)
    judge = Judge()

    def loss(model: Judge, generator: torch.Generator, step: int) -> Tensor:
        def some(n: int, among: int) -> Tensor:
            return torch.randint(among, (n,), generator=generator)

        quarter, few = batch // 4, len(spoilable)
        plain, again = some(quarter, len(pictures)), some(quarter, few)
        parts = [spoilable.without_things(some(1, few))]
        for n in (quarter, batch - 3 * quarter - 1):
            way = list(WAYS)[int(some(1, len(WAYS)))]
            strong = way not in GENTLE or bool(some(1, 2))
            parts.append(spoilable.spoiled(some(n, few), way, strong, generator)[:2])
        # Renders come first: they, and they rebuilt, have maps.
        rendered = [pictures_to_tensor(v) for v in (pictures[plain], spoilable.rebuilt[again])]
        x = torch.cat([*rendered, *(pictures for pictures, _ in parts)])
        known = {k: torch.cat([v[plain], spoilable.target[k][again]]) for k, v in target.items()}
        every = known | {k: torch.cat([known[k], *(right[k] for _, right in parts)]) for k in HEADS}
        x = x + augment(x, generator)
        return judge_loss(model, x, every, bfloat16, mapped=len(plain) + len(again))

    optimizer = muon(judge, lr, exclude=("stem", "heads", "head.", "query", "where"), weight_decay=0.01)
    return train_averaged(judge, loss, optimizer, steps, ema_decay=0.998, seed=seed, **options)


@torch.no_grad()
def broadened(judge: Judge) -> Judge:
    """The same judge, with answers that it did not know: other counts and "unclear". It does not give them yet."""
    new = Judge()
    state = new.state_dict() | judge.state_dict()
    for name, old, known in (
        ("whole_heads.count", judge.counts, new.counts),
        ("slot_heads.kind", judge.kinds, new.kinds),
    ):
        at = [known.index(answer) for answer in old]
        for part, missing in (("weight", 0.0), ("bias", -5.0)):
            rows = torch.full_like(new.state_dict()[f"{name}.{part}"], missing)
            rows[at] = state[f"{name}.{part}"]
            state[f"{name}.{part}"] = rows
    new.load_state_dict(state)
    return new.eval()


@torch.no_grad()
def logits(judge: Judge, pictures: Tensor, batch: int = 50) -> dict[str, Tensor]:
    """The judge's logits for the attributes of pictures (N, 3, H, W) in [-1, 1]."""
    parts = [judge(x, maps=False) for x in pictures.split(batch)]
    return {k: torch.cat([p[k] for p in parts]) for k in HEADS}


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Slightly blur some pictures (B, 3, H, W) and add noise to some, so that the judge reads shapes and colours, not
    the renderer's grain.
    """
    b = len(x)
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    mix = torch.rand(b, 1, 1, 1, generator=generator) * (torch.rand(b, 1, 1, 1, generator=generator) < 0.5)
    level = 0.06 * torch.rand(b, 1, 1, 1, generator=generator)
    return mix * (blurred - x) + level * torch.randn(x.shape, generator=generator)


@torch.no_grad()
def accuracy(judge: Judge, columns: dict, scenes: list, batch: int = 50) -> dict[str, float]:
    """How well the judge reads renders: the share of right answers, in [0, 1], for attributes ("kind" and "finish" per
    thing, "front" per picture with two things) and maps: "segments" (pixels), "joints" (visible joints found within 5 %
    of the picture's side); and errors "boxes" (mean, as a share of the side) and "depth" (mean relative error of what
    is nearer than 15 units).
    """
    target = targets(columns, scenes)
    right: dict[str, list] = {}

    def note(name: str, values: Tensor) -> None:
        right.setdefault(name, []).append(values.flatten().float())

    for i in range(0, len(scenes), batch):
        x = torch.as_tensor(columns["picture"][i : i + batch]).permute(0, 3, 1, 2).float() / 127.5 - 1
        out, t = judge(x), {k: v[i : i + batch] for k, v in target.items()}
        # Judges may tell other numbers of things apart.
        out["count"] = F.pad(out["count"], (COUNTS.index(judge.counts[0]), 0), value=-torch.inf)
        for k in (*GLOBAL, *SLOT):
            asked = t[k] >= 0
            note(k, (out[k].argmax(-1) == t[k])[asked])
        note("boxes", (out["boxes"] - t["boxes"]).abs()[t["kind"] >= 0])
        size = out["segments"].shape[-1]
        note("segments", out["segments"].argmax(1) == _half(t["segments"], size))
        depth = _half(t["depth"], size).float()
        inverse = out["depth"][:, 0].clamp(0, 1) * (NEAR_INVERSE - FAR_INVERSE) + FAR_INVERSE
        note("depth", ((1 / inverse - depth).abs() / depth)[depth < 15])
        found = find_joints(out["joints"], full=x.shape[-1])
        seen = t["joints"][:, :, :, 2] > 0
        seen[seen.any(-1).all(-1)] = False  # with two robots the maps do not tell whose joint it is
        distance = (found[:, None, :, :2] - t["joints"][..., :2]).norm(dim=-1)
        note("joints", (distance <= 0.05 * x.shape[-1])[seen])
    return {k: float(torch.cat(v).mean()) for k, v in right.items()}


def judge_accuracy(judge: Judge, folder: Path, split: str, count: int | None = None) -> dict[str, float]:
    """`accuracy` on (the first `count`) renders of a split in a build folder."""
    columns = dataset.read(folder / "renders", split, COLUMNS, count)
    return accuracy(judge.eval(), columns, dataset.scenes(folder / "renders", split, count))
