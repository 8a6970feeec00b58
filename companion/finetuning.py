"""Finetuning: a pipeline learns from sets of examples, by one of several methods.

    tuned = attach(pipe, Lora(rank=4))
    for progress in finetune(tuned, [examples(pipe, photographs, "a photo of sks dog")], steps=500):
        ...
    pictures = draw(tuned.pipe, "a photo of sks dog on the moon", seeds, steps=25, guidance_scale=7.5)

A method says what learns; everything else is shared with the pipeline that it starts from, and stays as it was. Prior
preservation (N. Ruiz et al., "DreamBooth", arXiv 2208.12242) is a second set of examples: its error is added with the
set's weight. All of it works for any Stable Diffusion with a U-Net and one text encoder.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from diffusers import ControlNetModel, DDPMScheduler
from torch import Tensor, nn
from torch.nn import functional as F

from companion import diffusion, energy, oft_vs_lora
from companion.controlnet import EMBEDDER, adapter_of, controlnet_of, hint_of, listening
from companion.metrics import pictures_to_tensor
from companion.models import LORA, seeded
from companion.training import M, Progress, ema_copy, noise_loss, train

if TYPE_CHECKING:
    from accelerate import Accelerator
    from diffusers import StableDiffusionPipeline

#: The layers of attention that adapters change: those of the published LoRA recipes, and of OFT's paper.
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
#: All layers of the U-Net's transformers: attention, what stands before and behind it, and the two that follow it.
TRANSFORMERS = (*ATTENTION, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
#: The layers of attention in the text encoder.
TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
#: Channels of a ControlNet's embedder for Stable Diffusion.
LARGE_EMBEDDER = (16, 32, 96, 256)


# ---- What is learned from --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Examples:
    """A set of pictures to learn from.

    Attributes:
        latents: their scaled latents (N, C, h, w), on the CPU.
        prompts: a prompt for each.
        weight: what the set's mean error counts. Prior preservation is a second set, of weight 1 in the paper.
        controls: control pictures (N, 3, H, W) in [0, 1], for learning to follow them.
    """

    latents: Tensor
    prompts: Sequence[str]
    weight: float = 1.0
    controls: Tensor | None = None

    def __post_init__(self) -> None:
        n = len(self.latents)
        if not n:
            raise ValueError("a set of no pictures; give one at least")
        if len(self.prompts) != n or (self.controls is not None and len(self.controls) != n):
            shown = "" if self.controls is None else f" and {len(self.controls)} control pictures"
            raise ValueError(f"{n} pictures but {len(self.prompts)} prompts{shown}; give one for each")


def examples(
    pipe: StableDiffusionPipeline,
    pictures: Any,
    prompts: str | Sequence[str],
    *,
    weight: float = 1.0,
    controls: Tensor | None = None,
    mirror: bool = False,
) -> Examples:
    """A set of examples of pictures, encoded once by the pipeline's autoencoder.

    Args:
        pictures: of the pipeline's size; any form that `metrics.pictures_to_tensor` takes.
        prompts: one for all, or one for each.
        mirror: add each picture's mirror image. Not where left and right matter, as for text or for "left of".
    Raises:
        ValueError: for pictures of another size, and for numbers that do not fit.
    """
    x = pictures_to_tensor(pictures)
    size = diffusion.picture_size(pipe)
    if x.shape[-2:] != (size, size):
        high, wide = x.shape[-2:]
        needs = f"the pipeline {size} x {size}; crop and resize them first"
        raise ValueError(f"the pictures have {wide} x {high} pixels and {needs}")
    prompts = [prompts] * len(x) if isinstance(prompts, str) else list(prompts)
    if mirror:
        x, prompts = torch.cat([x, x.flip(-1)]), [*prompts, *prompts]
        controls = None if controls is None else torch.cat([controls, controls.flip(-1)])
    return Examples(diffusion.encode(pipe, x).float().cpu(), prompts, weight, controls)


# ---- What learns -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Tuned:
    """A pipeline that learns by a method, beside the one it started from.

    Attributes:
        method: what learns.
        pipe: a stock pipeline with the parts that learn; what does not is shared with the original.
        parts: U-Net, text encoder and, if one is trained, ControlNet or encoder of control pictures, by name. What
            requires a gradient learns.
    """

    method: Method
    pipe: StableDiffusionPipeline
    parts: nn.ModuleDict

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What learns."""
        return [p for p in self.parts.parameters() if p.requires_grad]

    @property
    def net(self) -> Any:
        """The ControlNet, T2I-Adapter or encoder of control pictures that learns, if one does."""
        return self.parts["net"] if "net" in self.parts else None


@dataclass(frozen=True)
class Full:
    """All weights of the U-Net learn, and, if wanted, those of the text encoder: DreamBooth as in its paper."""

    text_encoder: bool = False
    lr: ClassVar[float] = 5e-6  # with the text encoder the recipes take 2e-6

    def _attach(self, pipe: StableDiffusionPipeline) -> None:
        _unfreeze(pipe.unet)
        if self.text_encoder:
            _unfreeze(pipe.text_encoder)


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (E. Hu et al., arXiv 2106.09685), by PEFT: W + alpha / rank * B A.

    Attributes:
        alpha: the rank when None, as in the published recipes; PEFT's own default would be 8.
        targets: ends of the names of the U-Net's layers that get an adapter.
        text_encoder: whether the text encoder's attention gets adapters too.
    """

    rank: int = 4
    alpha: float | None = None
    targets: Sequence[str] = ATTENTION
    text_encoder: bool = False
    lr: ClassVar[float] = 1e-4

    def _attach(self, pipe: StableDiffusionPipeline) -> None:
        from peft import LoraConfig

        options: dict[str, Any] = {
            "r": self.rank,
            "lora_alpha": self.alpha or self.rank,
            "init_lora_weights": "gaussian",
        }
        pipe.unet.add_adapter(LoraConfig(target_modules=list(self.targets), **options))
        if self.text_encoder:
            pipe.text_encoder.add_adapter(LoraConfig(target_modules=list(TEXT_ATTENTION), **options))


@dataclass(frozen=True)
class Oft:
    """Orthogonal finetuning (Z. Qiu et al., arXiv 2306.07280): neurons are turned, all of a layer together.

    Attributes:
        blocks, eps, share, rescale: see `oft_vs_lora.Settings`.
        targets: ends of the names of the U-Net's layers that are turned.
    """

    blocks: int = 4
    eps: float | None = None
    share: bool = False
    rescale: bool = False
    targets: Sequence[str] = ATTENTION
    lr: ClassVar[float] = 3e-3  # the paper's 6e-5, in the units of `oft_vs_lora.OFT.q`

    def _attach(self, pipe: StableDiffusionPipeline) -> None:
        oft_vs_lora.apply(pipe.unet, list(self.targets), self.blocks, self.eps, self.share, self.rescale)


@dataclass(frozen=True)
class Near:
    """Some layers' weights learn freely, but no further away than a radius: ||W - W0|| <= radius ||W0||, for each
    layer, in the Frobenius norm. It is OFT's rival that moves as little, and keeps no angles.

    Attributes:
        radius: one for all layers, or one for each, by its name; None for no bound, which is full finetuning of these
            layers.
        targets: ends of the names of the U-Net's layers that learn.
    """

    radius: float | Mapping[str, float] | None = None
    targets: Sequence[str] = ATTENTION
    lr: ClassVar[float] = 5e-6

    def _attach(self, pipe: StableDiffusionPipeline) -> None:
        for name, layer in pipe.unet.named_modules():
            if isinstance(layer, nn.Linear | nn.Conv2d) and f".{name}".endswith(tuple(f".{t}" for t in self.targets)):
                start = layer.weight.detach().float().clone()
                layer.weight = nn.Parameter(start.clone())
                radius = self.radius[name] if isinstance(self.radius, Mapping) else self.radius
                if radius is not None:
                    layer.register_forward_pre_hook(_KeepNear(start, radius * float(start.norm())))


@dataclass(frozen=True, eq=False)
class _KeepNear:
    """A hook that brings a layer's weight back into the ball around where it started: projected gradient descent."""

    start: Tensor
    radius: float

    def __call__(self, layer: Any, args: Any = ()) -> None:
        away = layer.weight.data - self.start.to(layer.weight)
        layer.weight.data.sub_(away * (1 - (self.radius / away.norm()).clamp(max=1)))


@dataclass(frozen=True)
class Peft:
    """Any of PEFT's other adapters, such as HRA or BOFT.

    Attributes:
        config: a configuration of PEFT; its `target_modules` are ends of the names of the U-Net's layers.
    """

    config: Any
    lr: ClassVar[float] = 1e-4

    def _attach(self, pipe: StableDiffusionPipeline) -> None:
        pipe.unet.add_adapter(copy.deepcopy(self.config))


@dataclass(frozen=True)
class TextualInversion:
    """A new word, and nothing else, learns (R. Gal et al., arXiv 2208.01618): one row of the table of embeddings.

    Attributes:
        token: the new word; prompts use it as any other.
        initial: a known word whose embedding the new one starts from.
    """

    token: str
    initial: str
    lr: ClassVar[float] = 5e-4

    def _attach(self, pipe: StableDiffusionPipeline) -> None:
        known, start = (pipe.tokenizer(w, add_special_tokens=False).input_ids for w in (self.token, self.initial))
        if len(known) == 1 and known[0] != pipe.tokenizer.unk_token_id:
            raise ValueError(f"the tokenizer knows the word {self.token!r} already; choose a new one, such as '<mine>'")
        if len(start) != 1:
            raise ValueError(f"{self.initial!r} is {len(start)} tokens long; start from a word that is one token")
        tokenizer = copy.deepcopy(pipe.tokenizer)
        tokenizer.add_tokens([self.token])
        table = pipe.text_encoder.get_input_embeddings()
        row = table.weight[start].detach().float().clone()
        pipe.text_encoder.set_input_embeddings(WithNewWord(table, row))
        pipe.tokenizer = tokenizer


@dataclass(frozen=True)
class ControlNet:
    """A new ControlNet learns, or a T2I-Adapter; the pipeline stays as it is. The sets of examples need control
    pictures. See `companion.controlnet`, for `attention` and `open_embedder` its `controlnet_of`.

    Attributes:
        begin: folder of a trained ControlNet, of a related condition for example, from which it goes on instead.
    """

    adapter: bool = False
    attention: bool = True
    open_embedder: bool = True
    begin: Path | None = None
    lr: ClassVar[float] = 1e-5

    def _attach(self, pipe: StableDiffusionPipeline) -> nn.Module:
        if self.adapter:
            return adapter_of(pipe.unet, layers=1, factor=pipe.vae_scale_factor)
        if self.begin is not None:
            return ControlNetModel.from_pretrained(self.begin, torch_dtype=torch.float32, use_safetensors=True)
        return controlnet_of(pipe.unet, _embedder(pipe), attention=self.attention, open_embedder=self.open_embedder)


def _embedder(pipe: StableDiffusionPipeline) -> Sequence[int]:
    """Channels of the embedder of control pictures that suits a pipeline's U-Net and its autoencoder."""
    large = pipe.unet.config.block_out_channels[0] >= LARGE_EMBEDDER[-1]
    return (LARGE_EMBEDDER if large else EMBEDDER)[-pipe.vae_scale_factor.bit_length() :]


@dataclass(frozen=True)
class Follow:
    """The U-Net learns to follow control pictures that a small new encoder brings in, as in the OFT paper (arXiv
    2306.07280; see `controlnet.Hinted`). The sets of examples need control pictures.

    Attributes:
        method: how the U-Net learns, such as `Oft()` or `Lora()`; None when the encoder learns alone.
    """

    method: Full | Lora | Oft | Near | Peft | None
    lr: ClassVar[float] = 1e-5

    def _attach(self, pipe: StableDiffusionPipeline) -> nn.Module:
        if self.method is not None:
            self.method._attach(pipe)
        return hint_of(pipe.unet, _embedder(pipe))


Method = Full | Lora | Oft | Near | Peft | TextualInversion | ControlNet | Follow


class WithNewWord(nn.Module):
    """A table of embeddings with one more row, which alone learns.

    Args:
        table: the known words' embeddings.
        row: (1, D), what the new word's starts from. Its index is the number of known words.
    """

    def __init__(self, table: nn.Embedding, row: Tensor) -> None:
        super().__init__()
        self.table, self.row = table, nn.Parameter(row)

    @property
    def weight(self) -> Tensor:
        """All rows (V + 1, D)."""
        return torch.cat([self.table.weight, self.row.to(self.table.weight)])

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


def _unfreeze(module: nn.Module) -> None:
    """Give a module weights of its own, in single precision, that learn."""
    own: dict[int, nn.Parameter] = {}  # parameters that are one stay one
    for part in module.modules():
        for name, p in part.named_parameters(recurse=False):
            own.setdefault(id(p), nn.Parameter(p.detach().float().clone()))
            setattr(part, name, own[id(p)])


def sharing_copy(module: nn.Module) -> Any:
    """A copy of a module in eval mode whose parameters share the original's memory, and require no gradient."""
    memo = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in module.parameters()}
    return copy.deepcopy(module, memo).eval()


def with_parts(pipe: StableDiffusionPipeline, **parts: Any) -> StableDiffusionPipeline:
    """A pipeline of the same class in which some parts are others."""
    other = type(pipe)(**{**pipe.components, **parts}, requires_safety_checker=False)
    other.set_progress_bar_config(**getattr(pipe, "_progress_bar_config", {}))
    return other


def attach(pipe: StableDiffusionPipeline, method: Method, seed: int = 0, *, checkpointing: bool = False) -> Tuned:
    """A pipeline that learns by this method. The given one is not changed, and shares its memory where nothing learns.

    Args:
        seed: of what begins randomly, such as an adapter's first matrix.
        checkpointing: compute the U-Net's activations again on the way back instead of keeping them, which takes a
            third more time and much less memory.
    Raises:
        ValueError: when the method fits nothing of the pipeline.
    """
    torch.manual_seed(seed)
    other = with_parts(pipe, unet=sharing_copy(pipe.unet), text_encoder=sharing_copy(pipe.text_encoder))
    net = method._attach(other)
    parts = {"unet": other.unet, "text_encoder": other.text_encoder} | ({} if net is None else {"net": net})
    tuned = Tuned(method, other, nn.ModuleDict(parts))
    for p in tuned.parameters:
        p.data = p.data.float()  # half-precision weights that learn lose small steps, and cannot be unscaled
    if not tuned.parameters:
        raise ValueError(f"{method} changes no layer of this pipeline; name some of its layers as targets")
    if checkpointing:
        other.unet.enable_gradient_checkpointing()
    return tuned


# ---- The loss --------------------------------------------------------------------------------------------------------


def sets_loss(
    tuned: Tuned,
    sets: Sequence[Examples],
    batch: int = 1,
    *,
    drop: float = 0.0,
    min_snr: float | None = None,
    earliest: int = 0,
    latest: int = 1000,
) -> Callable[[nn.Module, torch.Generator, int], Tensor]:
    """The loss of a step: for each set the mean squared error of the predicted noise over `batch` of its examples,
    times the set's weight, added up.

    With two sets, of the subject and of its class, it is DreamBooth's (arXiv 2208.12242, equation 2):
    E ||eps - eps_theta(x_t, c)||^2 + lambda E' ||eps' - eps_theta(x'_t, c')||^2, lambda being the second's weight.

    Args:
        drop: share of prompts left empty.
        min_snr: weigh errors by noise level (see `training.noise_loss`), in all sets alike. The library's script weighs
            those of the first set only, and with one picture a step by the weight of another picture.
        earliest: timesteps are drawn from it on.
        latest: timesteps are drawn below it.
    """
    pipe, total = tuned.pipe, len(sets)
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    reads = any(p.requires_grad for p in pipe.text_encoder.parameters())
    if tuned.net is not None and any(s.controls is None for s in sets):
        raise ValueError("this method learns from control pictures; give every set its own")
    if tuned.net is None and any(s.controls is not None for s in sets):
        raise ValueError("nothing here learns from control pictures; attach the method ControlNet or Follow for that")

    remembered = lru_cache(512)(lambda prompt: diffusion.encode_prompt(pipe, prompt))

    def states(parts: Any, prompts: list[str]) -> Tensor:
        if not reads:
            return torch.cat([remembered(p) for p in prompts])
        tokenizer = pipe.tokenizer
        length = {"padding": "max_length", "max_length": tokenizer.model_max_length, "truncation": True}
        ids = tokenizer(prompts, **length, return_tensors="pt").input_ids
        return parts["text_encoder"](ids.to(pipe.unet.device)).last_hidden_state

    def loss(parts: Any, generator: torch.Generator, step: int) -> Tensor:
        chosen = [torch.randint(len(s.latents), (batch,), generator=generator) for s in sets]
        x0 = torch.cat([s.latents[i] for s, i in zip(sets, chosen, strict=True)]).to(pipe.unet.device)
        prompts = [s.prompts[j] for s, i in zip(sets, chosen, strict=True) for j in i.tolist()]
        left = torch.rand(len(prompts), generator=generator) < drop
        prompts = ["" if gone else prompt for gone, prompt in zip(left.tolist(), prompts, strict=True)]
        unet, text = parts["unet"], states(parts, prompts)
        if tuned.net is not None:
            shown = torch.cat([s.controls[i] for s, i in zip(sets, chosen, strict=True) if s.controls is not None])
            unet = listening(unet, parts["net"], shown.to(x0.device))
        # The mean is over all sets' examples, so each set's weight counts as often as there are sets.
        weight = total * torch.tensor([s.weight for s in sets]).repeat_interleave(batch)
        return noise_loss(
            lambda noisy, t: unet(noisy, t, text).sample,
            scheduler,
            x0.to(text.dtype) if text.dtype == pipe.unet.dtype else x0,
            generator,
            timesteps=torch.randint(earliest, latest, (len(x0),), generator=generator),
            min_snr=min_snr,
            weight=weight.view(-1, 1, 1, 1).to(x0.device),
        )

    return loss


@torch.no_grad()
def errors(
    tuned: Tuned,
    sets: Sequence[Examples],
    *,
    batch: int = 4,
    draws: int = 4,
    seed: int = 0,
    accelerator: Accelerator | None = None,
) -> list[float]:
    """For each set the mean squared error of the predicted noise, over `draws` times `batch` of its examples.

    The same seed gives the same examples, timesteps and noises at every call. Chance, which shakes the loss of a single
    step, is then the same before and after, and what is left is what was learned.
    """
    accelerator = accelerator or accelerator_for(tuned.pipe)
    learning, found = tuned.parts.training, []
    tuned.parts.eval()
    for one in sets:
        loss = sets_loss(tuned, [replace(one, weight=1.0)], batch)
        with accelerator.autocast():
            found.append(sum(float(loss(tuned.parts, seeded(seed + i), 0)) for i in range(draws)) / draws)
    tuned.parts.train(learning)
    return found


# ---- The run ---------------------------------------------------------------------------------------------------------


def adamw(parameters: Sequence[Any], lr: float, *, bits: int = 32) -> torch.optim.Optimizer:
    """AdamW with the decay of the library's recipes, for parameters or groups of them; with `bits` 8, its state takes a
    quarter of the memory.

    Raises ModuleNotFoundError when 8 bits are wanted and bitsandbytes is missing.
    """
    if bits == 32:
        return torch.optim.AdamW(parameters, lr, weight_decay=1e-2)
    try:
        from bitsandbytes.optim import AdamW8bit  # pyrefly: ignore[missing-import]
    except ImportError:
        raise ModuleNotFoundError(
            "8-bit Adam needs bitsandbytes: `pip install bitsandbytes`, or leave it out"
        ) from None
    return AdamW8bit(parameters, lr, weight_decay=1e-2)


def finetune(
    tuned: Tuned,
    sets: Sequence[Examples],
    steps: int,
    *,
    lr: float | None = None,
    net_lr: float | None = None,
    batch: int = 1,
    drop: float = 0.0,
    min_snr: float | None = None,
    earliest: int = 0,
    latest: int = 1000,
    warmup: int = 0,
    decay: float = 0.0,
    averaged: float | None = None,
    bits: int = 32,
    accelerator: Accelerator | None = None,
    **options: Any,
) -> Iterator[Progress]:
    """Train what learns in `tuned`, yielding after every step; its pipeline draws with the weights as they then are.

    Args:
        sets: what it learns from; see `sets_loss`, also for `batch`, `drop`, `min_snr`, `earliest` and `latest`.
        lr: the method's own, which suits Stable Diffusion, when None. Small models need more.
        net_lr: that of what stands beside the U-Net (`Tuned.net`), if it is another.
        averaged: decay of a moving average, such as 0.999, which replaces the weights at the end; none when None.
        bits: of Adam's state, 32 or 8.
        accelerator: precision and processes; when None, half precision is chosen for a pipeline that has it.
        options: those of `training.train`, such as `seed`, `accumulate`, `checkpoint` and `log`.
    """
    accelerator = accelerator or accelerator_for(tuned.pipe)
    loss = sets_loss(tuned, sets, batch, drop=drop, min_snr=min_snr, earliest=earliest, latest=latest)
    ema = None if averaged is None else ema_copy(tuned.parts)
    run = train(
        tuned.parts,
        loss,
        adamw(_groups(tuned, net_lr), lr or tuned.method.lr, bits=bits),
        steps,
        warmup=warmup,
        decay=decay,
        ema=ema,
        ema_decay=averaged or 0.0,
        accelerator=accelerator,
        **options,
    )
    yield from run
    if ema is not None:
        tuned.parts.load_state_dict(ema.state_dict())


def _groups(tuned: Tuned, net_lr: float | None) -> Sequence[Any]:
    """What learns, as an optimiser takes it, with another rate for the net beside the U-Net."""
    if net_lr is None or tuned.net is None:
        return tuned.parameters
    beside = [p for p in tuned.net.parameters() if p.requires_grad]
    own = {id(p) for p in beside}
    return [{"params": [p for p in tuned.parameters if id(p) not in own]}, {"params": beside, "lr": net_lr}]


def accelerator_for(pipe: StableDiffusionPipeline) -> Accelerator:
    """One that multiplies in a pipeline's half precision, if it has one."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    wanted = {torch.float16: "fp16", torch.bfloat16: "bf16"}.get(pipe.dtype, "no")
    # It keeps one state for the whole process, and refuses another precision: that of a notebook's next model.
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != wanted:
        AcceleratorState._reset_state()
    return Accelerator(mixed_precision=wanted)


# ---- Keeping it ------------------------------------------------------------------------------------------------------


def merged(tuned: Tuned) -> StableDiffusionPipeline:
    """A pipeline of stock classes alone, with what was learned in its weights: it can be saved and loaded anywhere."""
    pipe = tuned.pipe
    unet, text_encoder = _merged(pipe.unet), _merged(pipe.text_encoder)
    table = text_encoder.get_input_embeddings()
    if isinstance(table, WithNewWord):
        text_encoder.set_input_embeddings(table.table)
        text_encoder.resize_token_embeddings(len(pipe.tokenizer), mean_resizing=False)
        with torch.no_grad():
            text_encoder.get_input_embeddings().weight[-1] = table.row[0].to(table.table.weight)
    return with_parts(pipe, unet=unet.requires_grad_(False), text_encoder=text_encoder.requires_grad_(False))


@torch.no_grad()
def unet_weights(tuned: Tuned) -> dict[str, Tensor]:
    """The weights of the U-Net's layers by name, as `merged` would have them: for a look after every step, since most
    methods need no copy of the U-Net for it.
    """
    unet = tuned.pipe.unet
    if not getattr(unet, "peft_config", None):
        for layer in unet.modules():
            for hook in layer._forward_pre_hooks.values():
                if isinstance(hook, _KeepNear):
                    hook(layer)
        return energy.weights(unet)
    if not isinstance(tuned.method, Lora):
        return energy.weights(_merged(unet))
    from peft.tuners import lora

    found = {k: w for k, w in energy.weights(unet).items() if not {"base_layer", "lora_A", "lora_B"} & {*k.split(".")}}
    for name, layer in unet.named_modules():
        if isinstance(layer, (lora.Linear, lora.Conv2d)):
            found[f"{name}.weight"] = found[f"{name}.weight"] + layer.get_delta_weight(layer.active_adapters[0])
    return found


def _merged(learned: M) -> M:
    """A copy of a part of a pipeline, with what adapters have learned in its weights."""
    module = copy.deepcopy(learned)
    if getattr(module, "peft_config", None):
        _fuse(module)
    if oft_vs_lora.adapters(module):
        oft_vs_lora.merge(module)
    for layer in module.modules():
        for key, hook in list(layer._forward_pre_hooks.items()):
            if isinstance(hook, _KeepNear):
                hook(layer)
                del layer._forward_pre_hooks[key]
    return module


def pretrained(module: nn.Module) -> Any:
    """A copy without its adapters, of OFT or PEFT: what they change. It shares the weights' memory with the original.

    Raises ValueError as `check_unmerged` does.
    """
    check_unmerged(module)
    other = sharing_copy(module)
    if oft_vs_lora.adapters(other):
        oft_vs_lora.remove(other)
    if getattr(other, "peft_config", None):
        _fuse(other, merge=False)
    return other


def check_unmerged(module: nn.Module) -> None:
    """Raise ValueError when an adapter of PEFT's is merged into a module's weights: the pretrained ones are then gone.

    It is merged in place, so every module that shares the weights' memory has it, too.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    if any(isinstance(layer, BaseTunerLayer) and layer.merged for layer in module.modules()):
        raise ValueError("the adapter is merged into the weights; undo it first, as by unfuse_lora or unmerge_adapter")


def _fuse(module: Any, merge: bool = True) -> None:
    """Remove PEFT's adapters from a module; `merge` adds them into its weights first."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(module.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            if merge:
                layer.merge()
            parent = module.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], layer.get_base_layer())
    del module.peft_config
    module._hf_peft_config_loaded = False


def save_learned(tuned: Tuned, folder: Path) -> list[Path]:
    """Save what was learned, alone, in the form in which others load it; returns the files.

    LoRA: `pytorch_lora_weights.safetensors`, for `pipe.load_lora_weights(folder, weight_name=...)`. OFT:
    `oft.safetensors`, for `oft_vs_lora.load`, since the library cannot load any. Textual inversion:
    `learned_embeds.safetensors`, for `pipe.load_textual_inversion(folder)`. A ControlNet: a folder for
    `ControlNetModel.from_pretrained`. A U-Net that follows: `hint.safetensors`, the encoder, and the `merged` pipeline.
    Full finetuning, and PEFT's other adapters: the whole `merged` pipeline.
    """
    from safetensors.torch import save_file

    from companion.files import written

    folder.mkdir(parents=True, exist_ok=True)
    match tuned.method:
        case Lora():
            target = folder / LORA
            _save_lora(tuned, target)
        case Oft():
            oft_vs_lora.save(tuned.pipe.unet, folder / "oft.safetensors")
        case TextualInversion(token=token):
            target = folder / "learned_embeds.safetensors"
            row = tuned.pipe.text_encoder.get_input_embeddings().row.detach().cpu()
            with written(target) as temporary:
                save_file({token: row.clone()}, temporary)
        case ControlNet():
            tuned.net.save_pretrained(folder, safe_serialization=True)
        case Follow():
            merged(tuned).save_pretrained(folder, safe_serialization=True)
            with written(folder / "hint.safetensors") as temporary:
                save_file({k: v.detach().cpu().contiguous() for k, v in tuned.net.state_dict().items()}, temporary)
        case _:
            merged(tuned).save_pretrained(folder, safe_serialization=True)
    return sorted(p for p in folder.rglob("*") if p.is_file())


def load_learned(tuned: Tuned, folder: Path) -> None:
    """Put LoRA weights that `save_learned` wrote into `tuned`, in place of its own: the same method on the same base.

    Raises ValueError for another method, and where the file has other layers, or another rank, than `tuned`.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    if not isinstance(tuned.method, Lora):
        kind = type(tuned.method).__name__
        raise ValueError(f"only LoRA weights are loaded in this way, not those of {kind}: attach the method Lora")
    source = folder / LORA
    held = load_file(source)
    layers = _adapted(tuned)
    shapes = {
        f"{name}.{key}": value.shape
        for name, module in layers.items()
        for key, value in get_peft_model_state_dict(module).items()
    }
    if {key: value.shape for key, value in held.items()} != shapes:
        raise ValueError(f"{source} has other layers, or another rank, than what learns here: {tuned.method}")
    for name, module in layers.items():
        own = {key.removeprefix(f"{name}."): value for key, value in held.items() if key.startswith(f"{name}.")}
        set_peft_model_state_dict(module, own)


def _adapted(tuned: Tuned) -> dict[str, Any]:
    """The parts of the pipeline in which a LoRA learns, by name."""
    parts = ("unet", "text_encoder") if tuned.method.text_encoder else ("unet",)  # pyrefly: ignore
    return {name: getattr(tuned.pipe, name) for name in parts}


def _save_lora(tuned: Tuned, target: Path) -> None:
    """Write LoRA weights, with their rank and alpha, under the names that the library loads."""
    import shutil
    import tempfile

    from peft import get_peft_model_state_dict

    from companion.files import written

    options: dict[str, Any] = {}
    for name, module in _adapted(tuned).items():
        options[f"{name}_lora_layers"] = get_peft_model_state_dict(module)
        options[f"{name}_lora_adapter_metadata"] = module.peft_config["default"].to_dict()
    with tempfile.TemporaryDirectory() as folder, written(target) as temporary:
        type(tuned.pipe).save_lora_weights(folder, weight_name="lora.safetensors", **options)
        shutil.copyfile(Path(folder) / "lora.safetensors", temporary)
