"""How strong an adapter is: a slider over a rotation of OFT, beside wrong ways to set it, or over the alpha of LoRA."""

from __future__ import annotations

import copy
import html
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
import torch
from PIL import Image
from torch import Tensor

from companion import diffusion, energy, oft_vs_lora
from companion.fast import Fast, faster, varied
from companion.figures import as_pil
from companion.finetuning import check_unmerged, pretrained, with_parts
from companion.models import GUIDANCE, seeded
from companion.widgets.base import MARGIN, PAPER, Panel, side_by_side
from companion.widgets.live_slider import LiveSlider

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

SIDE = 224  # of a picture on the screen, in pixels


@dataclass(frozen=True)
class Way:
    """What one way of setting an adapter's strength makes of the weights that it changes.

    Attributes:
        weights: by their names in the U-Net's state dictionary.
        error: the largest orthogonality error of a layer's blocks (see `energy.orthogonality_error`); None for LoRA.
        energy: the change of the hyperspherical energy, summed over these weights, as a share of what it was.
        moved: ||W - W0|| / ||W0|| over all of these weights.
    """

    weights: Mapping[str, Tensor]
    error: float | None
    energy: float
    moved: float


class AdapterStrength(Panel):
    """The picture at any strength of an adapter in the pipeline's U-Net, which stays as it is.

    For OFT the strength is t: R^t turns every neuron the shortest way from where it was pretrained (0) to where it was
    trained to be (1), backwards (-1) and beyond (2). Beside it are three wrong ways, from `oft_vs_lora.SLIDERS`. For
    LoRA it is alpha, beside the picture without the adapter. A table says what each does to the weights.

    While the slider is on its way, only the right way, or alpha's, is drawn, in few steps; when it is let go, all are.

    Args:
        pipe: its U-Net has an adapter of `oft_vs_lora`, merged or not, or one of LoRA (by PEFT), not merged.
        strength: the first value of the slider: t, or alpha; as trained by default.
        preview: steps of the pictures that are drawn while the slider is on its way; None to wait until it is let go.
        guidance: the guidance scale.
    Attributes:
        result: the pictures (N, 3, H, W) in [-1, 1], one for each of `ways`.
        ways: what was made of the weights, by name. On the slider's way, wrong ones are those of where it was let go.
    Raises:
        ValueError: when the U-Net has no such adapter, or the strength is outside of what the slider has.
    """

    def __init__(
        self,
        pipe: StableDiffusionPipeline,
        prompt: str,
        strength: float | None = None,
        *,
        seed: int = 0,
        steps: int = 20,
        preview: int | None = 5,
        guidance: float = GUIDANCE,
    ) -> None:
        self._oft = bool(oft_vs_lora.adapters(pipe.unet))
        self._alpha = 1.0 if self._oft else _alpha(pipe.unet)
        plain = pretrained(pipe.unet)
        self._pipe, self._plain = pipe, with_parts(pipe, unet=plain)
        self._drawer = faster(self._plain)
        self._steps, self._preview, self._guidance = steps, preview, guidance
        self.ways: dict[str, Way] = {}
        self.result = torch.empty(0)
        first = self._alpha if strength is None else strength
        least, most = -self._alpha, 2 * self._alpha
        if not least <= first <= most:
            name = "t" if self._oft else "alpha"
            raise ValueError(f"{name} = {first:g} is outside [{least:g}, {most:g}], which the slider has")
        names = ["-1", "0, pretrained", "½", "1, trained", "2"]
        shares = [-1.0, 0.0, 0.5, 1.0, 2.0]
        if not self._oft:
            ends = ["", ", without", "", ", trained", ""]
            names = [f"{share * self._alpha:g}{end}" for share, end in zip(shares, ends, strict=True)]
        marks = [[name, share * self._alpha] for name, share in zip(names, shares, strict=True)]
        self.strength = LiveSlider(
            value=first,
            min=least,
            max=most,
            step=self._alpha / 20,
            label="t" if self._oft else "alpha",
            marks=marks,
        )
        options = self.options()
        self.prompt = widgets.Textarea(prompt, description="prompt", rows=2, **options)
        self.seed = widgets.IntSlider(seed, 0, 99, description="seed", **options)
        self.table: Any = widgets.HTML(layout=widgets.Layout(overflow="auto"))
        super().__init__([self.strength, self.prompt, self.seed, self.table], 2 * SIDE + MARGIN, 380, reader=pipe)
        for control in (self.prompt, self.seed):
            self.watch(control, self.draw)
        for trait in ("value", "held"):
            self.watch(self.strength, self.draw, trait)
        self.attempt(self.draw)

    def draw(self) -> None:
        """Draw with the controls as they stand."""
        quick = self.strength.held
        if quick and not self._preview:
            return
        quick = quick and len(self.result) > 0
        steps = self._preview if quick and self._preview else self._steps
        begin = time.perf_counter()
        found = self._turns(only_right=quick) if self._oft else self._scaled()
        live = 0 if self._oft else 1
        fresh = [list(found.values())[live]] if quick else list(found.values())
        weights = {name: torch.stack([way.weights[name] for way in fresh]) for name in fresh[0].weights}
        drawn = self._pictures(weights, len(fresh), steps, quick)
        if quick:
            drawn = torch.cat([self.result[:live], drawn, self.result[live + 1 :]])
        self.result, self.ways = drawn, (self.ways | found if self._oft else found)
        pictures = [as_pil(picture, SIDE) for picture in drawn]
        if quick and self._oft:  # the others are of where the slider was
            faint = [Image.blend(picture, Image.new("RGB", picture.size, PAPER), 0.7) for picture in pictures[1:]]
            pictures[1:] = faint
        titles = list(self.ways)
        sheets = [side_by_side(pictures[i : i + 2], titles[i : i + 2]) for i in range(0, len(pictures), 2)]
        self.table.value = _table(found, titles)
        note = f" in {steps} steps, as a preview" if quick else ""
        self.show(_stacked(sheets), f"drawn in {time.perf_counter() - begin:.1f} s{note}")

    def _pictures(self, weights: Mapping[str, Tensor], n: int, steps: int, quick: bool) -> Tensor:
        """Pictures (N, 3, H, W), the i-th with the i-th of the weights (N, ...)."""
        prompts, seed = [self.prompt.value] * n, self.seed.value
        # A new one, since the pipeline's own may be in the middle of a drawing.
        self._plain.scheduler = (diffusion.steady if quick else diffusion.fresh)(self._pipe.scheduler)
        if isinstance(self._drawer, Fast):
            settings = {"num_inference_steps": steps, "guidance_scale": self._guidance, "output_type": "pt"}
            unet = self._drawer.varied(weights)
            generators = [seeded(seed) for _ in prompts]
            return 2 * self._drawer(prompts, unet=unet, generator=generators, **settings).images - 1
        unet = varied(self._plain.unet, weights)
        return diffusion.draw(self._plain, prompts, seed, steps=steps, guidance_scale=self._guidance, unet=unet)

    @torch.no_grad()
    def _turns(self, only_right: bool = False) -> dict[str, Way]:
        """The right way, which comes first, and the wrong ones, for the adapter as it is by now."""
        # Copies, since reading a constrained adapter brings it back into its ball.
        adapters, t = copy.deepcopy(oft_vs_lora.adapters(self._pipe.unet)), self.strength.value
        if not adapters:
            raise ValueError("the U-Net has no adapter any more: make the panel again")
        found = {}
        for name, slider in list(oft_vs_lora.SLIDERS.items())[: 1 if only_right else None]:
            weights, error = {}, 0.0
            for layer, oft in adapters.items():
                R = oft.R(t, slider)
                weights[f"{layer}.weight"] = oft.turned(self._before(layer), R, t)
                error = max(error, energy.orthogonality_error(R))
            found[name] = self._way(weights, error)
        return found

    @torch.no_grad()
    def _scaled(self) -> dict[str, Way]:
        """The weights without LoRA, and at the alpha of the slider."""
        check_unmerged(self._pipe.unet)  # or the weights that are shared with it would not be the pretrained ones
        part, changes = self.strength.value / self._alpha, {}
        for name, layer, adapter in _loras(self._pipe.unet):
            changes[name] = changes.get(name, 0) + layer.get_delta_weight(adapter)
        if not changes:
            raise ValueError("the U-Net has no adapter any more: make the panel again")
        without = {f"{name}.weight": self._before(name) for name in changes}
        at = {f"{name}.weight": self._before(name) + part * change for name, change in changes.items()}
        return {"without it": self._way(without, None), f"alpha {self.strength.value:g}": self._way(at, None)}

    def _before(self, layer: str) -> Tensor:
        """The pretrained weight of a layer."""
        return self._plain.unet.get_submodule(layer).weight.detach()

    def _way(self, weights: Mapping[str, Tensor], error: float | None) -> Way:
        before = {name: self._before(name.removesuffix(".weight")) for name in weights}
        start, end = (sum(energy.energies(some).values()) for some in (before, weights))
        size, change = (
            torch.stack([(w - z).float().norm() for w, z in pairs]).norm()
            for pairs in (
                [(w, torch.zeros_like(w)) for w in before.values()],
                [(weights[name], w) for name, w in before.items()],
            )
        )
        return Way(weights, error, end / start - 1, float(change / size))


def _loras(unet: Any) -> Iterator[tuple[str, Any, str]]:
    """The layers of LoRA, by the names that they have in the plain U-Net, with each adapter that changes them now."""
    from peft.tuners.lora import LoraLayer

    for name, layer in unet.named_modules():
        if isinstance(layer, LoraLayer):  # of several adapters, a layer may have some
            yield from ((name, layer, adapter) for adapter in layer.active_adapters if adapter in layer.scaling)


def _alpha(unet: Any) -> float:
    """LoRA's alpha in a U-Net, that of its first layer, or a ValueError when it has no plain LoRA."""
    found = list(_loras(unet))
    if not found:
        kinds = [str(config.peft_type.value) for config in getattr(unet, "peft_config", {}).values()]
        what = f"an adapter of the kind {kinds[0]}" if kinds else "no adapter"
        raise ValueError(
            f"the U-Net has {what}; give it one of OFT, as by oft_vs_lora.load, or one of LoRA, as by load_lora_weights"
        )
    if any(layer.use_dora.get(adapter) for _, layer, adapter in found):
        raise ValueError(
            "the adapter is one of DoRA, which also scales what it starts from; alpha alone does not say how"
        )
    _, layer, adapter = found[0]
    return float(layer.lora_alpha[adapter])


def _stacked(sheets: list[Image.Image]) -> Image.Image:
    """Sheets below each other on white."""
    high = sum(sheet.height for sheet in sheets) + MARGIN * (len(sheets) - 1)
    whole, top = Image.new("RGB", (max(sheet.width for sheet in sheets), high), PAPER), 0
    for sheet in sheets:
        whole.paste(sheet, (0, top))
        top += sheet.height + MARGIN
    return whole


def _table(ways: Mapping[str, Way], names: Sequence[str]) -> str:
    """What each way does to the weights, as an HTML table; dots for those of `names` that are not there yet."""
    turns = next(iter(ways.values())).error is not None
    head = [*(["|RᵀR − I|"] if turns else []), "energy, %", "moved, %"]
    left = 'style="text-align:left;padding:1px 4px"'
    right = 'style="text-align:right;padding:1px 4px;white-space:nowrap"'

    def cells(way: Way | None) -> list[str]:
        if way is None:
            return ["…"] * len(head)
        error = [f"{way.error:.1e}"] if way.error is not None else []
        return [*error, _signed(100 * way.energy), f"{100 * way.moved:.2f}"]

    rows = "".join(
        f'<tr><th scope="row" {left}>{html.escape(name)}</th>'
        + "".join(f"<td {right}>{cell}</td>" for cell in cells(ways.get(name)))
        + "</tr>"
        for name in names
    )
    said = "; |RᵀR − I|: its largest entry, 0 for a rotation" if turns else ""
    top = right.replace("nowrap", "normal")
    return (
        '<table style="border-collapse:collapse;font-size:12px;font-variant-numeric:tabular-nums;line-height:1.5">'
        f"<tr><td></td>{''.join(f'<th scope=col {top}>{name}</th>' for name in head)}</tr>{rows}</table>"
        '<div style="font-size:12px;line-height:1.4">Energy: the change of the hyperspherical energy. '
        f"Moved: ‖W − W₀‖ / ‖W₀‖{said}.</div>"
    )


def _signed(percent: float) -> str:
    """A change with its sign, unless it is nothing but rounding; a dash where the energy was infinite before."""
    return "–" if math.isnan(percent) else f"{percent:+.5f}" if abs(percent) >= 5e-6 else "0.00000"
