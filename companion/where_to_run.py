"""What drawing a picture and training cost (parameters, operations, bytes, seconds), and therefore what fits where.

Costs are counted on torch's "meta" device, where tensors have shapes but no values: a model of any size is counted in
seconds on any machine, and nothing is downloaded. Speeds are measured here where possible, and otherwise taken from a
published benchmark; a formula connects the two, and the notebook shows how far it can be trusted.
"""

from __future__ import annotations

import json
import math
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import companion
from companion.figures import Table

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel

GB = 1e9
#: Bytes per number: in half precision, as used on GPUs, and in single precision, as used on CPUs.
HALF, SINGLE = 2, 4
#: Bytes that CUDA and its libraries take before the first tensor. An assumption: about half a gigabyte.
OVERHEAD = 0.5 * GB
#: The share of a memory that can be used; fragmentation and copies take the rest. Also an assumption.
MARGIN = 0.9


# ---- Models ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Shape:
    """A latent diffusion model without its weights.

    Attributes:
        pixels: side of its pictures.
        parts: for each part, such as "unet", a function that makes it.
        tokens, width: of the text embeddings (tokens, width) that the U-Net is given.
        added: further inputs of the U-Net (SDXL has two), each with its shape for one picture.
        single_vae: whether the VAE works in single precision even where the rest is in half.
    """

    name: str
    pixels: int
    parts: Mapping[str, Callable[[], nn.Module]]
    tokens: int = 77
    width: int = 768
    added: Mapping[str, tuple[int, ...]] | None = None
    single_vae: bool = False

    def part(self, name: str) -> nn.Module:
        """One part on the meta device, in eval mode."""
        with torch.device("meta"):
            return self.parts[name]().eval()


def _sd_vae() -> nn.Module:
    from diffusers import AutoencoderKL

    down, up = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    return AutoencoderKL(
        down_block_types=down, up_block_types=up, block_out_channels=(128, 256, 512, 512), layers_per_block=2
    )


def _clip_text(hidden: int, layers: int, heads: int, projection: int | None = None) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        projection_dim=projection or 512,
    )
    return CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)


def sd15_unet(narrower: int = 1) -> UNet2DConditionModel:
    """A U-Net with the shape of Stable Diffusion 1.5's, its channels divided by `narrower`, with random weights.

    Raises ValueError unless `narrower` is 1, 2, 4, 5 or 10.
    """
    from diffusers import UNet2DConditionModel

    if narrower not in (1, 2, 4, 5, 10):
        raise ValueError(f"narrower={narrower} does not divide 320 channels into groups; use 1, 2, 4, 5 or 10.")
    channels = [c // narrower for c in (320, 640, 1280, 1280)]
    groups = math.gcd(32, channels[0])
    return UNet2DConditionModel(
        sample_size=64, block_out_channels=channels, norm_num_groups=groups, cross_attention_dim=768
    )


def _sdxl_unet() -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


#: Stable Diffusion 1.5 (arXiv 2112.10752 and its published configuration) and SDXL (arXiv 2307.01952). SDXL's VAE has
#: `force_upcast` in its published configuration, so diffusers runs it in single precision.
SD15 = Shape("SD 1.5", 512, {"text encoder": lambda: _clip_text(768, 12, 12), "unet": sd15_unet, "vae": _sd_vae})
SDXL = Shape(
    "SDXL",
    1024,
    {
        "text encoder": lambda: _clip_text(768, 12, 12),
        "text encoder 2": lambda: _clip_text(1280, 32, 20, 1280),
        "unet": _sdxl_unet,
        "vae": _sd_vae,
    },
    width=2048,
    added={"text_embeds": (1280,), "time_ids": (6,)},
    single_vae=True,
)


def shape_of(pipe: StableDiffusionPipeline, name: str) -> Shape:
    """The shape of a loaded pipeline, under the given name."""

    def again(part: Any) -> Callable[[], nn.Module]:
        is_hub = hasattr(part, "from_config")
        return lambda: type(part).from_config(part.config) if is_hub else type(part)(part.config)

    parts = {"text encoder": again(pipe.text_encoder), "unet": again(pipe.unet), "vae": again(pipe.vae)}
    pixels = pipe.unet.config.sample_size * pipe.vae_scale_factor
    return Shape(name, pixels, parts, pipe.tokenizer.model_max_length, pipe.unet.config.cross_attention_dim)


# ---- Counting --------------------------------------------------------------------------------------------------------


class _Live(TorchDispatchMode):
    """Tracks the bytes of live tensors created in this mode: at present (`now`) and at most (`peak`)."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):  # weights and inputs, which existed before
            if isinstance(leaf, Tensor):
                self._seen.add(leaf.untyped_storage()._cdata)
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._see(leaf.untyped_storage())
        return out

    def _see(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._seen:  # a view, or modified in place
            return
        self._seen.add(key)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


class _Fused(torch.autograd.Function):
    """As much memory as fused attention takes; its result has no values.

    Drawing takes the result. Learning also keeps query, key and value, and one number in single precision for each
    row of the attention matrix (FlashAttention, arXiv 2205.14135, appendix B), but never the matrix itself.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError("only memory is counted here, and only on the way forward")


def _fused(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """In place of `F.scaled_dot_product_attention`: see `_Fused`."""
    return cast("Tensor", _Fused.apply(query, key, value))


def operations(module: Callable[..., Any], *args: Any, **kwargs: Any) -> int:
    """Floating-point operations of a call (matrix products, convolutions, attention); a multiply-add counts as two."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*args, **kwargs)
    return counter.get_total_flops()


def peak_bytes(
    module: Callable[..., Any], *args: Any, fused: bool = True, learning: bool = False, **kwargs: Any
) -> int:
    """Peak bytes of activations during one call, counted on the meta device.

    Args:
        fused: whether attention avoids storing its matrix, as torch's does on a GPU.
        learning: whether to keep what the backward pass will need.
    """
    attention = _fused if fused else F.scaled_dot_product_attention
    with torch.set_grad_enabled(learning), patch.object(F, "scaled_dot_product_attention", attention), _Live() as live:
        module(*args, **kwargs)
    return live.peak


def _unet_inputs(shape: Shape, batch: int, pixels: int, dtype: torch.dtype) -> tuple[tuple, dict]:
    with torch.device("meta"):
        latents = torch.empty(batch, 4, pixels // 8, pixels // 8, dtype=dtype)
        states = torch.empty(batch, shape.tokens, shape.width, dtype=dtype)
        added = {name: torch.empty(batch, *size, dtype=dtype) for name, size in (shape.added or {}).items()}
        return (latents, torch.tensor(1), states), {"added_cond_kwargs": added} if added else {}


@dataclass(frozen=True)
class Cost:
    """What a model costs at its own picture size.

    Attributes:
        parameters: number for each part.
        step: operations of the U-Net for one picture and one step, with guidance (two passes).
        decoding: operations of the decoder for one picture.
        drawing: peak bytes of activations while a picture is drawn, in half precision (see `Shape.single_vae`).
        plain: the same, if attention stored its matrices.
        drawing_single: as `drawing`, with everything in single precision.
        single: number of parameters that stay in single precision even where the others are in half.
        learning: bytes of activations that the U-Net keeps to train on one picture, in half precision.
        adapter: parameters of a LoRA of rank 4 on the U-Net's attention.
    """

    name: str
    pixels: int
    parameters: Mapping[str, int]
    step: int
    decoding: int
    drawing: int
    plain: int
    drawing_single: int
    single: int
    learning: int
    adapter: int

    @property
    def total(self) -> int:
        """All parameters."""
        return sum(self.parameters.values())

    def picture(self, steps: int) -> int:
        """Operations of a picture of `steps` steps, without the text encoder's (less than one per cent)."""
        return steps * self.step + self.decoding

    def weights(self, bytes_each: int = HALF) -> int:
        """Bytes of all parameters."""
        return bytes_each * self.total + (SINGLE - bytes_each) * self.single

    def memory(self, pixels: int | None = None, batch: int = 1, bytes_each: int = HALF) -> float:
        """Bytes to draw `batch` pictures of side `pixels`: weights, and activations in proportion to area and batch.

        Args:
            bytes_each: `HALF` or `SINGLE`.
        """
        places = ((pixels or self.pixels) / self.pixels) ** 2
        drawing = self.drawing if bytes_each == HALF else self.drawing_single
        return self.weights(bytes_each) + drawing * places * batch


@cache
def cost(shape: Shape) -> Cost:
    """Count a model on the meta device. It takes some seconds for the large ones."""
    parameters = {name: _count(shape.part(name)) for name in shape.parts}
    half = torch.float16
    # diffusers' own `to` would warn about the precision of weights, which have no values here.
    unet = nn.Module.to(shape.part("unet"), half)
    vae_type = torch.float32 if shape.single_vae else half
    vae = cast("AutoencoderKL", nn.Module.to(shape.part("vae"), vae_type))
    args, kwargs = _unet_inputs(shape, 2, shape.pixels, half)
    one, more = _unet_inputs(shape, 1, shape.pixels, half)
    with torch.device("meta"):
        latents = torch.empty(1, vae.config.latent_channels, shape.pixels // 8, shape.pixels // 8, dtype=vae_type)
    peaks = {
        fused: (peak_bytes(unet, *args, fused=fused, **kwargs), peak_bytes(vae.decode, latents, fused=fused))
        for fused in (True, False)
    }
    unet_peak, vae_peak = peaks[True]
    return Cost(
        shape.name,
        shape.pixels,
        parameters,
        step=operations(unet, *args, **kwargs),
        decoding=operations(vae.decode, latents),
        drawing=max(peaks[True]),
        plain=max(peaks[False]),
        drawing_single=max(2 * unet_peak, vae_peak if shape.single_vae else 2 * vae_peak),
        single=parameters["vae"] if shape.single_vae else 0,
        learning=peak_bytes(unet, *one, learning=True, **more),
        adapter=lora_parameters(unet, 4),
    )


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def lora_parameters(unet: nn.Module, rank: int) -> int:
    """Parameters of a LoRA on the attention's four projections: `rank` x (inputs + outputs) for each."""
    ends = ("to_q", "to_k", "to_v", "to_out.0")
    layers = [m for name, m in unet.named_modules() if name.endswith(ends) and isinstance(m, nn.Linear)]
    return sum(rank * (layer.in_features + layer.out_features) for layer in layers)


#: Bytes per trained parameter. Besides the parameter and its gradient, Adam keeps two moments.
METHODS = {
    "everything, Adam": 16,
    "everything, 8-bit Adam": 4 + 4 + 2,
    "a LoRA of rank 4": 16,
}


def learning_memory(cost: Cost, method: str, checkpointing: bool = False, bytes_each: int = HALF) -> float:
    """Bytes to train the U-Net with a batch of one: those of all parameters (see `METHODS`), and the activations.

    Gradient checkpointing keeps the activations of about the square root of the number of layers (Chen et al., arXiv
    1604.06174); a tenth of the bytes is assumed here. The activations are those of a U-Net that learns as a whole:
    beside an adapter a few of them need not be kept.

    Args:
        bytes_each: of each number that stays as it is, and of the activations: `HALF` or `SINGLE`.
    Raises:
        ValueError: for a method that is not in `METHODS`.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown; there are {', '.join(METHODS)}.")
    learns = METHODS[method]
    learning = cost.adapter if "LoRA" in method else cost.parameters["unet"]
    staying = cost.total - (0 if "LoRA" in method else cost.parameters["unet"])
    activations = cost.learning * bytes_each / HALF * (0.1 if checkpointing else 1.0)
    return learning * learns + staying * bytes_each + activations


# ---- Machines --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """A machine to run on.

    Attributes:
        memory: bytes for the model.
        steps: published steps per second, by model: one picture at a time, half precision, with guidance.
        dollars: per hour on Hugging Face Spaces in the month `PRICED`; None where it was not offered there.
    """

    name: str
    memory: float
    steps: Mapping[str, float]
    dollars: float | None = None


#: The month of the prices in `MACHINES`.
PRICED = "August 2026"
#: Steps per second: the diffusers documentation, "Accelerated PyTorch 2.0 support" (version 0.21), PyTorch 2.0 without
#: compiling, batch 1. Prices: the hub documentation, "Using GPU Spaces" (T4 small, A100 large), in the month `PRICED`.
#: Both may have changed since.
MACHINES = (
    Machine("T4", 16 * GB, {"SD 1.5": 6.9, "SDXL": 1.15}, 0.40),
    Machine("V100", 16 * GB, {"SD 1.5": 18.99}),
    Machine("RTX 3090", 24 * GB, {"SD 1.5": 22.56}),
    Machine("RTX 4090", 24 * GB, {"SD 1.5": 40.5, "SDXL": 6.8}),
    Machine("A100", 80 * GB, {"SD 1.5": 21.66, "SDXL": 8.64}, 2.50),
)


def rate(machine: Machine, cost: Cost) -> float:
    """Operations per second that a machine reached with a model, from its published steps per second."""
    return machine.steps[cost.name] * cost.step


def seconds_per_picture(machine: Machine, cost: Cost, known: Cost, steps: int) -> float:
    """Seconds for a picture: from the published speed of this model, or else from that of the model `known`."""
    if cost.name in machine.steps:
        return cost.picture(steps) / rate(machine, cost)
    return cost.picture(steps) / rate(machine, known)


def dollars_per_thousand(machine: Machine, cost: Cost, known: Cost, steps: int) -> float | None:
    """Dollars for 1,000 pictures drawn one after the other, if the machine is paid only for that time; None without a
    price.
    """
    if machine.dollars is None:
        return None
    return 1000 * seconds_per_picture(machine, cost, known, steps) * machine.dollars / 3600


# ---- Measuring -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def core_seconds(call: Callable[[], Any], repeats: int = 3) -> float:
    """CPU seconds that a call takes on one core, the least of `repeats`; with CUDA, wall-clock seconds instead.

    CPU time does not count the time that other programs take. But they share caches, memory, and often the core itself
    (as its second thread), so on a busy machine it can be twice as long as on a quiet one.
    """
    cuda = torch.cuda.is_available()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    clock = time.perf_counter if cuda else time.thread_time
    try:
        call()  # the first call allocates memory and chooses algorithms
        best = math.inf
        for _ in range(repeats):
            begin = clock()
            call()
            if cuda:
                torch.cuda.synchronize()
            best = min(best, clock() - begin)
        return best
    finally:
        torch.set_num_threads(threads)


def measured_step(
    unet: UNet2DConditionModel, tokens: int, width: int, size: int, batch: int = 2, repeats: int = 3
) -> tuple[float, int]:
    """Seconds of one core for one step of a U-Net on latents (batch, 4, size, size), and its operations."""
    parameter = next(unet.parameters())
    place = {"device": parameter.device, "dtype": parameter.dtype}
    given = torch.zeros(batch, 4, size, size, **place), torch.tensor(1), torch.zeros(batch, tokens, width, **place)
    with torch.device("meta"):
        copy = type(unet).from_config(unet.config)
    counted = operations(copy, *(t.to("meta") for t in given))
    return core_seconds(lambda: unet(*given), repeats), counted


RESULT = "sd15_step.json"


def full_step(repeats: int = 2) -> dict[str, Any]:
    """Measure a step of a U-Net with all of Stable Diffusion 1.5's 860 million parameters, random ones, on the CPU.

    It takes 4 GB of memory and some minutes. `python -m companion.where_to_run` runs it, and stores the result in
    data/results/sd15_step.json. A U-Net with a quarter of the channels is measured too.
    """
    torch.manual_seed(0)
    unet = sd15_unet().eval()
    seconds, counted = measured_step(unet, SD15.tokens, SD15.width, 64, repeats=repeats)
    small = sd15_unet(4).eval()
    small_seconds, small_counted = measured_step(small, SD15.tokens, SD15.width, 64)
    return {
        "command": "python -m companion.where_to_run",
        "what": "one guided step (two passes) at 512 px in single precision, seconds of one core, the best of some",
        "parameters": _count(unet),
        "seconds": round(seconds, 2),
        "operations": counted,
        "narrower": 4,
        "narrower_seconds": round(small_seconds, 3),
        "narrower_operations": small_counted,
        "torch": torch.__version__,
    }


def kept_step() -> dict[str, Any]:
    """The stored result of `full_step`, from data/results/."""
    return json.loads((companion.DATA / "results" / RESULT).read_text(encoding="utf-8"))


# ---- The decision ----------------------------------------------------------------------------------------------------

NO = "does not fit"


def this_machine(device: torch.device, speeds: Mapping[str, float]) -> tuple[str, float, dict[str, float]]:
    """Name, bytes (a GPU's total, else what is free) and operations per second by the model that they were measured
    with; `speeds` are those of the GPU, or of one core.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device), torch.cuda.get_device_properties(device).total_memory, dict(speeds)
    import os

    import psutil

    cores = os.cpu_count() or 1
    speeds = {name: speed * cores for name, speed in speeds.items()}
    return f"this machine, {cores} cores", psutil.virtual_memory().available, speeds


def fits(needed: float, memory: float) -> bool:
    """Whether `needed` bytes fit into `memory` bytes, with the margin `MARGIN`."""
    return needed <= MARGIN * memory


def decision(
    costs: Sequence[Cost],
    known: Cost,
    here: tuple[str, float, Mapping[str, float]],
    machines: Sequence[Machine] = MACHINES,
    steps: int = 30,
) -> Table:
    """What fits where, and how long it takes: a row for each model and each thing to do with it. This machine is taken
    to work in single precision, as a CPU does, and the others in half.

    Args:
        known: the model from whose published speeds those of others are estimated. No time is given on GPUs for a
            model with a tenth of its work or less, for which a GPU would mostly wait.
        here: name, memory and speeds of this machine, see `this_machine`. A model that was measured gets the time of
            its own speed, and the others that of the highest.
        steps: sampling steps for a picture.
    """
    name, memory, speeds = here
    rows = []
    for item in costs:
        speed = speeds.get(item.name, max(speeds.values()))
        answers = [_answer(item.memory(bytes_each=SINGLE), memory, item.picture(steps) / speed)]
        for machine in machines:
            seconds = seconds_per_picture(machine, item, known, steps) if item.step > known.step / 10 else None
            answers.append(_answer(item.memory() + OVERHEAD, machine.memory, seconds))
        rows.append([f"{item.name}: draw at {item.pixels} px", *answers])
        for method in METHODS:
            answers = [_learns(item, method, memory, SINGLE), *(_learns(item, method, m.memory) for m in machines)]
            rows.append([f"{item.name}: teach {method}", *answers])
    return Table(("", name, *(f"{m.name}, {m.memory / GB:.0f} GB" for m in machines)), rows)


def _answer(needed: float, memory: float, seconds: float | None) -> str:
    if not fits(needed, memory):
        return f"{NO} (needs {needed / GB:.1f} GB; {MARGIN * memory / GB:.1f} GB may be used)"
    return "fits" if seconds is None else duration(seconds)


def _learns(cost: Cost, method: str, memory: float, bytes_each: int = HALF) -> str:
    whole, checkpointed = (
        learning_memory(cost, method, checkpointing, bytes_each) + OVERHEAD for checkpointing in (False, True)
    )
    if fits(whole, memory):
        return "fits"
    answer = _answer(checkpointed, memory, None)
    return "with checkpointing" if answer == "fits" else answer


def size(n: float) -> str:
    """Bytes in words: "3 MB", "0.4 GB", "14 GB"."""
    if n < 0.1 * GB:
        return f"{n / 1e6:.0f} MB"
    return f"{n / GB:.0f} GB" if n >= 10 * GB else f"{n / GB:.1f} GB"


def duration(seconds: float) -> str:
    """Seconds in words that are easy to compare: "0.4 s", "12 s", "9 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


if __name__ == "__main__":
    from companion.files import written

    with written(companion.DATA / "results" / RESULT) as _path:
        _path.write_text(json.dumps(full_step(), indent=1) + "\n", encoding="utf-8")
