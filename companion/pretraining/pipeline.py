"""Putting the trained parts together as a stock StableDiffusionPipeline folder."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from companion.pretraining.unet import SCHEDULE


def scheduler() -> DPMSolverMultistepScheduler:
    """The sampler in the folder: DPM++ 2M SDE Karras on Stable Diffusion's noise schedule.

    The noise that it adds lets later steps mend shapes that a small network got wrong. `diffusion.steady` is the same
    without it, for few steps.
    """
    return DPMSolverMultistepScheduler(
        **SCHEDULE, use_karras_sigmas=True, algorithm_type="sde-dpmsolver++", solver_order=2, steps_offset=1
    )


def pipeline(
    vae: AutoencoderKL, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, unet: UNet2DConditionModel
) -> StableDiffusionPipeline:
    """A stock pipeline of the four parts, without a safety checker (the world holds nothing to check)."""
    parts: dict[str, Any] = {"vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer, "unet": unet}
    nothing: Any = None
    return StableDiffusionPipeline(
        **parts,
        scheduler=scheduler(),
        safety_checker=nothing,
        feature_extractor=nothing,
        requires_safety_checker=False,
    )


def save(pipe: StableDiffusionPipeline, folder: Path) -> None:
    """Write the pipeline with fp16 weights in safetensors; the old folder is replaced only once the new one is
    whole.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".tabletop-") as t:
        new = Path(t) / folder.name
        components: dict[str, Any] = pipe.components
        half = StableDiffusionPipeline(**components, requires_safety_checker=False)
        half.to(dtype=torch.float16).save_pretrained(new, safe_serialization=True)
        pipe.to(dtype=torch.float32)
        # The weights are stored as fp16 and used as fp32 (a CPU has no fast fp16): without this line transformers
        # loads them as fp16.
        config = new / "text_encoder" / "config.json"
        text = json.loads(config.read_text(encoding="utf-8"))
        config.write_text(
            json.dumps({**text, "dtype": "float32", "torch_dtype": "float32"}, indent=2) + "\n", encoding="utf-8"
        )
        if folder.exists():
            shutil.move(folder, Path(t) / "old")
        new.rename(folder)


def save_clip(clip: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write CLIP, its tokenizer and its image preprocessing (64 pixels, [-1, 1]) in the format of the stock classes."""
    from companion.pretraining.clip import IMAGE_SIZE, MEAN, STD

    clip.half().save_pretrained(folder, safe_serialization=True)
    clip.float()
    tokenizer.save_pretrained(folder)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    prepared = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": size,
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
        "resample": 4,
        "do_convert_rgb": True,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(prepared, indent=2) + "\n", encoding="utf-8")
    config = folder / "config.json"
    about = json.loads(config.read_text(encoding="utf-8")) | {"dtype": "float32"}
    config.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
