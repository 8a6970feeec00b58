"""From checkpoints to data/models and back: what is published, what is kept half-trained, and where training begins."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from diffusers import AutoencoderKL, ControlNetModel, T2IAdapter, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPTextModel

from companion import DATA
from companion.conditions import COLUMNS
from companion.controlnet import adapter_of, controlnet_of
from companion.fast import write_graphs
from companion.files import write_checksums, written
from companion.pretraining import pipeline
from companion.pretraining.clip import make_clip, text_tower, trained_tokenizer
from companion.pretraining.examination import Spoilable, calibrate
from companion.pretraining.judge import broadened
from companion.pretraining.latents import cached, trained_vae
from companion.pretraining.report import LOGS
from companion.pretraining.shape import ShapeError
from companion.pretraining.unet import Conditioned, deepened, make_unet
from companion.pretraining.vae import make_vae
from companion.tabletop import dataset, samples
from companion.tabletop.judge import Judge
from companion.training import load_weights, read_meta, save_start

MODELS = DATA / "models"
NEXT = MODELS / "next"
EXAMINED = 250  # held-out scenes on which the judge is calibrated
Maker = Callable[[], torch.nn.Module]


def parts(folder: Path) -> dict[str, tuple[Path, Maker, Maker]]:
    """The trained parts, by name: (checkpoint, untrained model, published model)."""
    pipe = MODELS / "tabletop"
    makers: dict[str, tuple[Maker, Maker]] = {
        "vae": (make_vae, lambda: AutoencoderKL.from_pretrained(pipe / "vae")),
        "clip": (lambda: make_clip(trained_tokenizer(folder)), lambda: CLIPModel.from_pretrained(MODELS / "clip")),
        "judge": (Judge, lambda: broadened(Judge.load(MODELS / "judge"))),
        "unet16": (
            lambda: Conditioned(make_unet(), text_tower(make_clip(trained_tokenizer(folder)))),
            lambda: Conditioned(
                deepened(UNet2DConditionModel.from_pretrained(pipe / "unet"), make_unet().config.layers_per_block),
                CLIPTextModel.from_pretrained(pipe / "text_encoder"),
            ),
        ),
    }
    return {name: (folder / f"{name}.safetensors", *both) for name, both in makers.items()}


def trained_unet(folder: Path) -> Conditioned:
    """The trained U-Net of the last existing stage, with its text encoder.

    A stage that froze the text encoder did not save it; the earlier stage's is kept beside it.
    """
    last, model = (
        folder / "unet16.safetensors",
        Conditioned(make_unet(), text_tower(make_clip(trained_tokenizer(folder)))),
    )
    words = folder / "text_encoder.safetensors"
    if words.exists():
        model.text_encoder.load_state_dict(load_file(words))
        model.text_encoder.requires_grad_(False)
    return load_weights(last if last.exists() else folder / "unet8.safetensors", model).eval()


def trained_net(folder: Path, name: str, unet: UNet2DConditionModel) -> ControlNetModel | T2IAdapter:
    """What `companion build controlnet` trained: "controlnet-canny", say, or "adapter-canny"."""
    path = folder / f"{name}.safetensors"
    if name.startswith("adapter-"):
        return load_weights(path, adapter_of(unet)).eval()
    with safe_open(path, "pt") as f:
        attention = any(key.startswith("ema.mid_block.attentions.") for key in f.keys())
    return load_weights(path, controlnet_of(unet, attention=attention)).eval()


def save_net(net: ControlNetModel | T2IAdapter, folder: Path) -> None:
    """Write a network with fp16 weights; the old folder is replaced only once the new one is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as t:
        new = Path(t) / folder.name
        net.half().save_pretrained(new, safe_serialization=True)
        net.float()
        if folder.exists():
            shutil.move(folder, Path(t) / "old")
        new.rename(folder)


def adopt(folder: Path) -> Iterator[str]:
    """Start from the weights that `keep` kept, or the published ones: checkpoints at step 0, where the folder has none.
    Nothing is overwritten. Yields a line per part.
    """
    for path, _, published in parts(folder).values():
        kept = NEXT / path.name
        if path.exists():
            yield f"{path} is kept"
            continue
        model = published().float()
        if kept.exists():
            model.load_state_dict(model.state_dict() | load_file(kept))
        save_start(path, model)
        yield f"{path} holds the {'kept' if kept.exists() else 'published'} weights"


def keep(folder: Path) -> Iterator[str]:
    """Store the moving averages of half-trained parts under git, so that `adopt` can resume on another machine: in
    half precision, only what differs from the published weights. `publish` removes them. Yields a line per part.
    """
    NEXT.mkdir(exist_ok=True)
    for name, (path, make, published) in parts(folder).items():
        # The decoder alone has its own checkpoint.
        checkpoints = (path, folder / "decoder.safetensors") if name == "vae" else (path,)
        steps = sum(read_meta(p)["step"] for p in checkpoints if p.exists())
        if not steps:
            yield f"{name} was not trained here"
            continue
        if name == "vae":
            model = trained_vae(folder)
        else:
            model = trained_unet(folder) if name == "unet16" else load_weights(path, make())
        now, before = ({k: v.half().contiguous() for k, v in m.state_dict().items()} for m in (model, published()))
        with written(NEXT / path.name) as temporary:
            save_file({k: v for k, v in now.items() if k not in before or not _equal(v, before[k])}, temporary)
        yield f"{NEXT / path.name} holds {name} after {steps:,} steps"
    write_checksums(NEXT.parent)


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def publish(folder: Path) -> Iterator[str]:
    """Put the finished parts into data/: pipeline, CLIP, judge, held-out renders, cached latents, the logs of their
    training, and the checksums. Yields a line for what takes long.
    """
    text, vae, model = trained_tokenizer(folder), trained_vae(folder), trained_unet(folder)
    towers = load_weights(folder / "clip.safetensors", make_clip(text)).eval()
    pipeline.save(pipeline.pipeline(vae, model.text_encoder, text, model.unet), MODELS / "tabletop")
    yield from write_graphs(MODELS / "tabletop")
    pipeline.save_clip(towers, text, MODELS / "clip")
    trained_judge = (folder / "judge.safetensors").exists()
    splits = {"val": 500} | ({"val-empty": EXAMINED, "val-swapped": EXAMINED} if trained_judge else {})
    for split, count in splits.items():
        for name in dataset.build(folder / "renders", split, count):
            yield f"drawn {name}"
    if trained_judge:
        judge = load_weights(folder / "judge.safetensors", Judge()).eval()
        calibrate(judge, Spoilable(folder / "renders", "val", vae, EXAMINED)).save(MODELS / "judge")
    if (folder / "shape.safetensors").exists():
        shape = load_weights(folder / "shape.safetensors", ShapeError()).half()
        with written(MODELS / "shape" / "model.safetensors") as temporary:
            save_file(shape.state_dict(), temporary)
    for path in sorted([*folder.glob("controlnet-*.safetensors"), *folder.glob("adapter-*.safetensors")]):
        save_net(trained_net(folder, path.stem, model.unet), MODELS / f"tabletop-{path.stem}")
    for path in sorted(p for p in folder.glob("early-*") if p.is_dir()):
        save_net(ControlNetModel.from_pretrained(path), MODELS / f"tabletop-{path.name}")
    held = dataset.read(folder / "renders", "val", COLUMNS, 256)
    samples.save_held_out(held["picture"], dataset.scenes(folder / "renders", "val", 256))
    samples.save_columns(held)
    few = 1500
    samples.save_latents(cached(folder, 8, few)[0], dataset.scenes(folder / "renders", "train", few))
    for log in sorted(folder.glob("*.jsonl")):
        with written(LOGS / log.name) as temporary:
            temporary.write_bytes(log.read_bytes())
    shutil.rmtree(NEXT, ignore_errors=True)
    write_checksums(MODELS)
    yield f"published to {MODELS}"
