"""ControlNets and T2I-Adapters: a picture as a condition.

A ControlNet (L. Zhang, A. Rao, M. Agrawala, arXiv 2302.05543) is a copy of the U-Net's encoder that looks at a control
picture, and adds what it finds to the U-Net's skip connections, through convolutions that begin as zero. Here is how a
U-Net listens to one or several of them, written as another U-Net (`Controlled`), and how a new one is made from a U-Net
(`controlnet_of`). A T2I-Adapter (C. Mou et al., arXiv 2302.08453) is the cheaper rival: a small network that looks at
the control picture alone, once for all steps (`Adapted`, `adapter_of`). In the OFT paper a still smaller encoder brings
the picture in, and the U-Net itself learns to follow it (`Hinted`, `hint_of`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import ControlNetModel, T2IAdapter, UNet2DConditionModel
from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding
from torch import Tensor, nn

import companion
from companion import diffusion, models
from companion.conditions import ANYWHERE, CONDITIONS, Condition
from companion.fast import Fast, FastControlNet, faster, without_embedder
from companion.intervals import paired_difference, ratio_of_means
from companion.metrics import tensor_to_bytes
from companion.models import seeded
from companion.photo_conditions import annotator
from companion.tabletop import samples
from companion.tabletop.caption import caption
from companion.tabletop.measures import NOT_JUDGED, can_be_judged
from companion.tabletop.scene import FINISHES, WITHHELD, Scene

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

FREE = ("finish", "place", "time")  # what a prompt says and no control picture does
EMBEDDER = (16, 16, 32, 32)  # channels on the way from a control picture to latents: three halvings, as the autoencoder


@dataclass(frozen=True)
class Control:
    """A ControlNet and what it is shown.

    Attributes:
        net: a ControlNet of the U-Net that is to listen, as it is or compiled (`fast.Fast.controlnet`).
        pictures: control pictures (N, 3, H, W) in [0, 1], one for each picture, or one for all (see `as_controls`).
        scale: what its residuals are multiplied by.
        start, end: the part of the noise schedule, from 0 (pure noise) to 1 (the picture), in which it is heard. The
            stock pipelines count steps instead; evenly spaced steps make it the same to within a step.
    """

    net: ControlNetModel | FastControlNet
    pictures: Tensor
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0


class Controlled:
    """A U-Net that listens to ControlNets: the `unet` of `diffusion.noise_predictor`, `sample` and `draw`.

    Args:
        unet: the U-Net, or a compiled one (`fast.Fast.noise_pred`); its weights are not changed.
        controls: what it listens to. Their residuals are added up.
        guess: the paper's "guess mode", for which prompts may be empty: of the two halves of guidance only the one with
            the text listens, and finer levels listen less. It is for drawing with guidance only.
        timesteps: of the noise schedule, for `start` and `end`.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel | Callable[..., Tensor],
        controls: Sequence[Control],
        guess: bool = False,
        timesteps: int = 1000,
    ) -> None:
        self.unet, self.controls, self.guess, self.timesteps = unet, tuple(controls), guess, timesteps
        self._repeated: dict[tuple[Any, ...], Tensor] = {}  # control pictures as a batch of latents needs them
        self._embedded: dict[tuple[Any, ...], Tensor] = {}  # what came of them

    def __call__(self, noisy: Tensor, t: Tensor, encoder_hidden_states: Tensor) -> Any:
        """The prediction for latents (B, C, h, w): of N pictures, or of both halves of their guidance, B = 2N.

        Raises ValueError when the number of control pictures is neither one nor N, or when "guess" meets no guidance.
        """
        down, mid = self.residuals(noisy, t, encoder_hidden_states)
        return self.unet(
            noisy,
            t,
            encoder_hidden_states,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        )

    def residuals(self, noisy: Tensor, t: Tensor, states: Tensor) -> tuple[list[Tensor] | None, Tensor | None]:
        """What is added to the U-Net's skip connections, finest first, and to its middle; None when none is heard."""
        done = 1 - float(torch.as_tensor(t).flatten()[0]) / self.timesteps
        down, mid = None, None
        for k, control in enumerate(self.controls):
            if not control.start <= done <= control.end:
                continue
            n, b = len(control.pictures), len(noisy)
            if self.guess and (b % 2 or b == n > 1):
                raise ValueError("guess mode needs guidance; draw with a guidance scale above 1")
            half = b // 2 if self.guess else 0  # guidance puts the half without text first
            key = k, b, noisy.dtype, noisy.device
            if key not in self._repeated:
                with torch.inference_mode(False):  # a plain tensor says whether it was changed: see `FastControlNet`
                    self._repeated[key] = _for_latents(control.pictures, b).to(noisy)[half:]
            t_half = t[half:] if torch.is_tensor(t) and t.ndim else t
            net, shown = self._after_embedder(key, control.net, self._repeated[key])
            some, middle = net(
                noisy[half:],
                t_half,
                states[half:],
                controlnet_cond=shown,
                conditioning_scale=control.scale,
                guess_mode=self.guess,
                return_dict=False,
            )
            found = [*some, middle]
            if half:
                found = [torch.cat([torch.zeros_like(r[:1]).expand(half, -1, -1, -1), r]) for r in found]
            down = found[:-1] if down is None else [a + r for a, r in zip(down, found[:-1], strict=True)]
            mid = found[-1] if mid is None else mid + found[-1]
        return down, mid

    def _after_embedder(self, key: tuple[Any, ...], net: Any, pictures: Tensor) -> tuple[Any, Tensor]:
        """The ControlNet without its embedder, and what the embedder makes of the pictures, the same in every step.

        On the tabletop the embedder is about half of the ControlNet's work. Where it is being trained or listened to,
        or is part of a compiled network, which remembers on its own, the ControlNet and the pictures come back as they
        are.
        """
        embedder = getattr(net, "controlnet_cond_embedding", None)
        if embedder is None or torch.is_grad_enabled() or diffusion.has_hooks(net):
            return net, pictures
        key = *key, *((id(p), p._version) for p in embedder.parameters())
        if key not in self._embedded:
            self._embedded[key] = embedder(pictures)
        return without_embedder(net), self._embedded[key]


def _for_latents(values: Tensor, b: int) -> Tensor:
    """What belongs to control pictures (N, ...), repeated for b latents: of N pictures, or both halves of guidance.

    Raises ValueError when there is neither one for all nor one for each picture.
    """
    n = len(values)
    if n != 1 and b not in (n, 2 * n):
        raise ValueError(f"{n} control pictures for {b} latents; give one for all, or one for each picture")
    return values.repeat(b // n, *[1] * (values.ndim - 1))


class Adapted:
    """A U-Net that adds what a T2I-Adapter found in control pictures (arXiv 2302.08453): another `unet` for `sample`
    and `draw`, like `Controlled`.

    The adapter sees neither noise, nor step, nor text. It is evaluated once, when it is first needed, so a picture
    costs hardly more time than without.

    Args:
        unet: the U-Net; its weights are not changed.
        pictures: control pictures (N, 3, H, W) in [0, 1], one for each picture, or one for all (see `as_controls`).
        scale: what the adapter's features are multiplied by.
    """

    def __init__(self, unet: UNet2DConditionModel, adapter: T2IAdapter, pictures: Tensor, scale: float = 1.0) -> None:
        self.unet, self.adapter, self.pictures, self.scale = unet, adapter, pictures, scale

    @cached_property
    def features(self) -> list[Tensor]:
        """What is added within the U-Net's blocks on the way down, finest first."""
        found = self.adapter(self.pictures.to(next(self.adapter.parameters())))
        return [self.scale * f for f in found]

    def __call__(self, noisy: Tensor, t: Tensor, encoder_hidden_states: Tensor) -> Any:
        """The prediction for latents (B, C, h, w): of N pictures, or of both halves of their guidance, B = 2N.

        Raises ValueError when the number of control pictures is neither one nor N.
        """
        # A new list each time: the U-Net takes its elements out.
        features = [_for_latents(f, len(noisy)).to(noisy) for f in self.features]
        return self.unet(noisy, t, encoder_hidden_states, down_intrablock_additional_residuals=features)


class Hinted:
    """A U-Net that adds an encoded control picture to what its first convolution makes of the latents: another `unet`
    for `sample` and `draw`, like `Controlled`.

    It is how the OFT paper (arXiv 2306.07280) controls a U-Net: the encoder is that of a ControlNet (`hint_of`), and
    the U-Net itself has to learn, by OFT or LoRA, to listen to what was added.

    Args:
        unet: the U-Net; its weights are not changed.
        encoder: from control pictures to the channels of the U-Net's first convolution.
        pictures: control pictures (N, 3, H, W) in [0, 1], one for each picture, or one for all (see `as_controls`).
        scale: what the encoded pictures are multiplied by.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        encoder: ControlNetConditioningEmbedding,
        pictures: Tensor,
        scale: float = 1.0,
    ) -> None:
        self.unet, self.encoder, self.pictures, self.scale = unet, encoder, pictures, scale

    @cached_property
    def hint(self) -> Tensor:
        """What is added (N, C, h, w)."""
        return self.scale * self.encoder(self.pictures.to(next(self.encoder.parameters())))

    def __call__(self, noisy: Tensor, t: Tensor, encoder_hidden_states: Tensor) -> Any:
        """The prediction for latents (B, C, h, w): of N pictures, or of both halves of their guidance, B = 2N.

        Raises ValueError when the number of control pictures is neither one nor N.
        """
        hint = _for_latents(self.hint, len(noisy)).to(noisy)
        hook = self.unet.conv_in.register_forward_hook(lambda layer, args, out: out + hint)
        try:
            return self.unet(noisy, t, encoder_hidden_states)
        finally:
            hook.remove()


def hint_of(
    unet: UNet2DConditionModel, embedder: Sequence[int] = EMBEDDER, *, seed: int = 0
) -> ControlNetConditioningEmbedding:
    """A new encoder of control pictures for `Hinted`, whose result is zero: a ControlNet's embedder on its own.

    embedder: channels of its convolutions; see `controlnet_of`.
    """
    torch.manual_seed(seed)
    return ControlNetConditioningEmbedding(unet.config.block_out_channels[0], block_out_channels=tuple(embedder))


def listening(
    unet: UNet2DConditionModel,
    net: ControlNetModel | T2IAdapter | ControlNetConditioningEmbedding,
    pictures: Tensor,
    scale: float = 1.0,
) -> Controlled | Adapted | Hinted:
    """The U-Net that follows control pictures (N, 3, H, W) through a ControlNet, a T2I-Adapter, or an encoder alone."""
    if isinstance(net, T2IAdapter):
        return Adapted(unet, net, pictures, scale)
    if isinstance(net, ControlNetConditioningEmbedding):
        return Hinted(unet, net, pictures, scale)
    return Controlled(unet, [Control(net, pictures, scale)])


def adapter_of(unet: UNet2DConditionModel, *, layers: int = 1, factor: int = 8, seed: int = 0) -> T2IAdapter:
    """A new T2I-Adapter for a U-Net, whose features are all zero.

    The library's own starts from random features, which spoil the U-Net's pictures until they are unlearned. Here the
    first convolution, the last one of each layer, and all biases begin as zero. The first can learn at once, since
    its result is also passed on beside the layers, and the others follow.

    Args:
        layers: residual layers for each level of the U-Net.
        factor: of the autoencoder, between pixels and latents.
        seed: of the weights that are not zero.
    """
    torch.manual_seed(seed)
    adapter = T2IAdapter(
        channels=list(unet.config.block_out_channels),
        num_res_blocks=layers,
        downscale_factor=factor,
        adapter_type="full_adapter",
    )
    for name, parameter in adapter.named_parameters():
        if "conv_in" in name or "block2" in name or name.endswith("bias"):
            nn.init.zeros_(parameter)
    return adapter


def controlnet_of(
    unet: UNet2DConditionModel,
    embedder: Sequence[int] = EMBEDDER,
    *,
    attention: bool = True,
    open_embedder: bool = False,
    seed: int = 0,
) -> ControlNetModel:
    """A new ControlNet for a U-Net: a copy of its encoder, whose residuals are all zero.

    Args:
        embedder: channels of the convolutions that bring a control picture down to the latents' size; each after the
            first halves it, so there are log2 of the autoencoder's factor more than one.
        attention: copy the middle block with its attention; else without, which makes the network a third smaller.
        open_embedder: start the embedder's last convolution normally instead of at zero. The residuals are zero all
            the same, but the embedder learns from the first step on and not from the second.
        seed: of the embedder.
    """
    torch.manual_seed(seed)
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=tuple(embedder))
    if not attention:
        smaller = ControlNetModel.from_config({**net.config, "mid_block_type": "UNetMidBlock2D"})
        smaller.load_state_dict(net.state_dict(), strict=False)
        net = smaller
    if open_embedder:
        last = net.controlnet_cond_embedding.conv_out
        nn.init.kaiming_normal_(last.weight, nonlinearity="linear")
    return net


def as_controls(pictures: Any, size: int) -> Tensor:
    """Control pictures in any usual form, as a ControlNet takes them: floats (N, 3, size, size) in [0, 1].

    Args:
        pictures: PIL pictures or one of them, or uint8 (N, H, W, 3), (H, W, 3) or (H, W).
        size: side in pixels of what is drawn.
    Raises:
        ValueError: for another size or number of channels. The stock pipelines would quietly draw another size, or
            mix colours that stand for labels.
    """
    many = isinstance(pictures, list | tuple) or (isinstance(pictures, np.ndarray) and pictures.ndim == 4)
    arrays = [np.asarray(p) for p in (pictures if many else [pictures])]
    found = []
    for array in arrays:
        if array.dtype != np.uint8:
            raise ValueError(f"the control has numbers of type {array.dtype}; give a PIL picture or uint8")
        array = np.repeat(array[..., None], 3, -1) if array.ndim == 2 else array
        if array.ndim != 3 or array.shape[-1] != 3:
            raise ValueError(f"the control has the shape {array.shape}; give it three channels, as by .convert('RGB')")
        if array.shape[:2] != (size, size):
            high, wide = array.shape[:2]
            raise ValueError(
                f"the control has {wide} x {high} pixels and the picture {size} x {size}; resize it, with "
                "Image.Resampling.NEAREST where colours are labels"
            )
        found.append(torch.from_numpy(array.copy()).permute(2, 0, 1).float() / 255)
    return torch.stack(found)


def follower(pipe: StableDiffusionPipeline, net: ControlNetModel) -> Callable[..., Tensor]:
    """`follow(prompt, seed, control, scale=1.0, *, steps, guidance_scale, scheduler=None)` draws a picture (3, H, W) in
    [-1, 1].

    It is the picture that `diffusion.draw` draws with this ControlNet, to a grey level, but from compiled networks
    where that is possible (see `fast.faster`). `control` is a control picture as `as_controls` takes it.
    """
    size, drawer = diffusion.picture_size(pipe), faster(pipe)
    compiled = None
    if isinstance(drawer, Fast):
        try:
            compiled = drawer.controlnet(net)
        except LookupError:  # of a kind that is not compiled
            pass

    def follow(
        prompt: str,
        seed: int,
        control: Any,
        scale: float = 1.0,
        *,
        steps: int,
        guidance_scale: float,
        scheduler: Any = None,
    ) -> Tensor:
        shown = as_controls(control, size)
        settings: dict[str, Any] = {"guidance_scale": guidance_scale, "scheduler": scheduler}
        if compiled is None or not isinstance(drawer, Fast):
            heard = Controlled(pipe.unet, [Control(net, shown, scale)])
            return diffusion.draw(pipe, prompt, seed, steps=steps, unet=heard, **settings)[0]
        heard = Controlled(drawer.noise_pred, [Control(compiled, shown, scale)])
        settings |= {"num_inference_steps": steps, "output_type": "pt"}
        return 2 * drawer(prompt, unet=heard, generator=seeded(seed), **settings).images[0] - 1

    return follow


# ---- What is asked for -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Asked:
    """Scenes that pictures shall follow.

    Attributes:
        condition: what is followed.
        controls: control pictures, uint8 (N, S, S, 3).
        maps: what the condition compares, of the same scenes; None where nobody can find such maps in drawn pictures.
        renders: of the scenes (N, 3, S, S), in [-1, 1].
        scenes: what the renders show.
    """

    condition: Condition
    controls: np.ndarray
    maps: np.ndarray | None
    renders: Tensor
    scenes: Sequence[Scene]

    @property
    def prompts(self) -> list[str]:
        """The scenes' captions."""
        return [caption(scene) for scene in self.scenes]

    @property
    def seeds(self) -> list[int]:
        """A seed for each scene."""
        return list(range(len(self.scenes)))

    def followed(self, pictures: Tensor) -> np.ndarray:
        """How well pictures (N, 3, S, S) in [-1, 1] follow: a number for each, NaN where it cannot be said."""
        if self.maps is None:
            return np.full(len(pictures), np.nan)
        return followed(self.condition, self.maps, pictures)


def asked(
    pipe: StableDiffusionPipeline, name: str, n: int, *, skip: int = 0, where: Callable[[Scene], bool] | None = None
) -> Asked:
    """What the first `n` held-out renders ask for, of those with something to follow.

    The maps of the miniature are exact. For a pipeline of larger pictures the renders are enlarged, and the maps are
    found in them as in photographs.

    Args:
        name: of the condition.
        skip: so many are left out first, such as those that something was measured on.
        where: which scenes count; all when None.
    Raises:
        ValueError: for an unknown condition, or when there are not so many.
    """
    if name not in CONDITIONS:
        raise ValueError(f"{name!r} is no condition; the eight are {', '.join(CONDITIONS)}")
    condition, (columns, scenes), exact = CONDITIONS[name], samples.columns(), can_be_judged(pipe)
    maps = condition.exact(columns, scenes)
    there = maps.reshape(len(maps), -1).any(1)
    kept = [i for i in np.flatnonzero(there).tolist() if where is None or where(scenes[i])]
    if not 1 <= n <= len(kept) - skip:
        raise ValueError(f"n={n} is outside 1 to {len(kept) - skip}; so many held-out renders have {condition.title}")
    kept = kept[skip : skip + n]
    renders, chosen = samples.renders(pipe, kept)
    if exact:
        return Asked(condition, condition.paint(maps[kept]), maps[kept], renders, chosen)
    pictures = tensor_to_bytes(renders).numpy()
    found = condition.annotate(pictures) if name in ANYWHERE else None
    return Asked(condition, annotator(name)(pictures), found, renders, chosen)


def other_finishes(scenes: Sequence[Scene]) -> list[str]:
    """Captions of the same scenes with other colours and materials, in pairs with a kind that training has seen."""
    found = []
    for scene in scenes:
        things = []
        for thing in scene.things:
            others = [f for f in FINISHES if f != thing.finish and (thing.kind, f) not in WITHHELD]
            things.append(replace(thing, finish=others[(FINISHES.index(thing.finish) + len(found)) % len(others)]))
        found.append(caption(replace(scene, things=tuple(things))))
    return found


# ---- Fidelity --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fidelity:
    """How well pictures follow what they were asked to, in a condition's unit (see `conditions.Condition.compare`).

    All are arrays (N,), a number for each picture; those of which nothing was asked are left out.

    Attributes:
        floor: without control, from the same prompts and seeds.
        drawn: with control.
        ceiling: what the annotator finds in the renders that the maps came from.
    """

    floor: np.ndarray
    drawn: np.ndarray
    ceiling: np.ndarray

    def share(self) -> tuple[float, float, float]:
        """How much of the way from the floor to the ceiling was gone, and both ends of its confidence interval.

        Above 1, drawn pictures are read better than renders. Raises ValueError for fewer than five pictures.
        """
        return ratio_of_means(self.drawn - self.floor, self.ceiling - self.floor)


def drawn_with(
    pipe: StableDiffusionPipeline,
    net: ControlNetModel | T2IAdapter | ControlNetConditioningEmbedding | None,
    controls: np.ndarray,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    scale: float = 1.0,
    batch: int = 32,
    **options: Any,
) -> Tensor:
    """Pictures (N, 3, H, W) in [-1, 1] that follow control pictures, uint8 (N, H, W, 3); without `net`, that do not.

    `options` are those of `diffusion.draw`: steps, guidance_scale and so on.
    """
    pictures = []
    for i in range(0, len(prompts), batch):
        part = slice(i, i + batch)
        unet = None
        if net is not None:
            shown = as_controls(controls[part], diffusion.picture_size(pipe))
            unet = listening(pipe.unet, net, shown, scale)
        pictures.append(diffusion.draw(pipe, prompts[part], seeds[part], unet=unet, batch=batch, **options))
    return torch.cat(pictures)


def followed(condition: Condition, asked: np.ndarray, pictures: Tensor) -> np.ndarray:
    """How well pictures (N, 3, H, W) in [-1, 1] follow maps: a number for each, NaN where nothing was asked for."""
    return condition.compare(asked, condition.annotate(tensor_to_bytes(pictures).cpu().numpy()))


def stairs(curves: np.ndarray, best: float) -> tuple[np.ndarray, np.ndarray]:
    """Which pictures give in to a control, and which of them all at once.

    Args:
        curves: how well each picture follows, by the strength of the control (S, N), without control first.
        best: 0 if the smaller number is the better one (see `conditions.Condition.best`).
    Returns:
        two truths for each picture (N,): whether it gains more than a quarter of the longest way that any goes; and
        whether it goes less than a tenth of its own way at first, and then more than half between two neighbours.
    """
    way = curves[-1] - curves[0]
    gains = way * (1 if best else -1) > 0.25 * np.abs(way).max()  # who gains little has no stair
    # Who falls back and recovers has gone no way until it is beyond where it was before.
    gone = np.maximum.accumulate(np.maximum((curves - curves[0]) / np.where(way == 0, 1, way), 0))
    parts = np.diff(gone, axis=0)  # of its own way, between two strengths
    largest = parts.argmax(0)
    before = np.where(np.arange(len(parts))[:, None] < largest, parts, 0).sum(0)
    return gains, gains & (parts.max(0) > 0.5) & (largest > 0) & (before < 0.1)


def compared(condition: Condition, a: np.ndarray, b: np.ndarray) -> str:
    """A sentence that says whether pictures with `followed` of `a` follow better than those with `b`, of the same maps
    (N,): the mean difference in the condition's unit, its confidence interval, and a verdict.

    Raises ValueError unless there are as many of both, one at least.
    """
    difference, low, high = paired_difference(a, b)
    if np.isnan(difference):
        return NOT_JUDGED
    ends = sorted((low, high) if condition.best > 0 else (-low, -high))  # of an error, less is better
    word = "follows better" if ends[0] > 0 else "follows worse" if ends[1] < 0 else "no difference beyond chance"
    return f"{condition.unit} {difference:+.3f} (95 %: {low:+.3f} to {high:+.3f}): {word}"


def fidelity(
    pipe: StableDiffusionPipeline, net: ControlNetModel | T2IAdapter, asked: Asked, **options: Any
) -> Fidelity:
    """Draw with and without control, and compare with what the annotator finds in the renders.

    `options` are those of `drawn_with`.
    """
    floor, drawn = (
        asked.followed(drawn_with(pipe, some, asked.controls, asked.prompts, asked.seeds, **options))
        for some in (None, net)
    )
    ceiling = asked.followed(asked.renders)
    there = ~np.isnan(ceiling)
    return Fidelity(floor[there], drawn[there], ceiling[there])


# ---- What was measured when the course was made ----------------------------------------------------------------------


def training_logs() -> dict[str, dict[str, list[float]]]:
    """For each ControlNet that the course ships, "step" and "fidelity" through its training."""
    logs = {name: _log(f"controlnet-{name}") for name in CONDITIONS}
    return {name: log for name, log in logs.items() if log["step"]}


def trial_logs(name: str) -> dict[str, dict[str, list[float]]]:
    """The same for the trials of a condition, by their names: trainings that compared settings."""
    start, end = f"trial-{name}-", "-measured"
    paths = sorted((companion.DATA / "models" / "training").glob(f"{start}*{end}.jsonl"))
    trials = [path.stem.removeprefix(start).removesuffix(end) for path in paths]
    return {trial: _log(f"{start}{trial}") for trial in trials}


def _log(training: str) -> dict[str, list[float]]:
    path = companion.DATA / "models" / "training" / f"{training}-measured.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = [json.loads(line) for line in text.splitlines()]
    return {key: [line[key] for line in lines] for key in ("step", "fidelity")}


def reported() -> dict[str, dict[str, float]]:
    """For each ControlNet that the course ships, what `companion build report` measured: "share" of the way from no
    control to renders, "low" and "high" (its interval's ends), and the means "floor", "drawn" and "ceiling".
    """
    numbers = models.reported()
    keys = {"share": "", **{key: f"_{key}" for key in ("low", "high", "floor", "drawn", "ceiling")}}
    return {
        name: {key: numbers[f"control_{name}{end}"] for key, end in keys.items()}
        for name in CONDITIONS
        if f"control_{name}" in numbers
    }


def kept_prompts() -> float:
    """Of the prompts that are met without a control, the share met with the worst of the ControlNets that the course
    ships, as `companion build report` measured it; NaN when it did not.
    """
    return models.reported().get("control_prompts", float("nan"))
