"""Orthogonal finetuning, OFT (Z. Qiu et al., "Controlling Text-to-Image Diffusion by Orthogonal Finetuning", NeurIPS
2023, arXiv 2306.07280v3): a network learns something new by turning its neurons, all of a layer together.

    parameters = apply(pipe.unet)                        # R = I: nothing has changed yet
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)   # only these train
    ...
    save(pipe.unet, Path("cat.safetensors"))
    merge(pipe.unet)                                     # a plain U-Net again, with turned weights

A layer has n neurons of d numbers each: the columns of the paper's W (d, n), which are the rows of torch's `weight`.
One orthogonal matrix R (d, d) multiplies them all, so their lengths and the angles between them stay as they are, and
with them the hyperspherical energy (see `companion.energy`):

    z = (R W0)^T x        R = (I + Q)(I - Q)^-1        Q = -Q^T

R has r = `blocks` blocks along its diagonal, each b = d / r wide, so d (b - 1) / 2 numbers are learned. The map from Q
to R is Cayley's, computed exactly: the shortened series that is often used instead gives an R that is not orthogonal.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from companion.files import written

#: The layers that the paper adapts, which are also LoRA's: the projections of attention, by their names in diffusers.
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")

# ---- Rotations -------------------------------------------------------------------------------------------------------


def skew(q: Tensor, b: int) -> Tensor:
    """Skew-symmetric matrices (..., b, b) from the entries above their diagonals, row by row: (..., b (b - 1) / 2)."""
    row, column = torch.triu_indices(b, b, 1, device=q.device)
    upper = q.new_zeros(*q.shape[:-1], b, b)
    upper[..., row, column] = q
    return upper - upper.mT


def cayley(Q: Tensor) -> Tensor:
    """Cayley's map, R = (I + Q)(I - Q)^-1: rotations from skew-symmetric matrices (..., b, b).

    An eigenvalue i tan(a / 2) of Q becomes a turn by the angle a in R. So all rotations are reached but those that turn
    something by exactly 180 degrees, and no reflections.
    """
    return _Cayley.apply(Q)


class _Cayley(torch.autograd.Function):
    """R + I is 2 (I - Q)^-1, so dR = (R + I) dQ (R + I) / 2: the gradient needs products alone, and no second solve."""

    @staticmethod
    def forward(ctx: Any, Q: Tensor) -> Tensor:
        I = _identity(Q)  # noqa: E741
        # Both factors are functions of Q, so their order does not matter; I - Q always has an inverse.
        R, _ = torch.linalg.solve_ex(I - Q, I + Q)
        ctx.save_for_backward(R)
        return R

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (dR,), (R,) = grads, ctx.saved_tensors
        H = (R + _identity(R)).mT
        return H @ dR @ H / 2


def _identity(Q: Tensor) -> Tensor:
    return torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device)


def power(Q: Tensor, t: float) -> Tensor:
    """R^t for R = cayley(Q): every turn by an angle a becomes one by t a, which is the shortest way from I to R.

    i Q is Hermitian, so Q = -i V w V^H with real w, and R^t = V diag(exp(-2 i t arctan w)) V^H. This is computed in
    double precision, and has no gradient.
    """
    w, V = torch.linalg.eigh(1j * Q.detach().cpu().double())
    turn = torch.exp(-2j * t * w.atan())
    return ((V * turn[..., None, :]) @ V.mH).real.to(Q)


def cayley_slider(Q: Tensor, t: float) -> Tensor:
    """A wrong slider: cayley(t Q). A rotation, but its turns are 2 arctan(t w) instead of t 2 arctan(w)."""
    return cayley(t * Q)


def line_slider(Q: Tensor, t: float) -> Tensor:
    """A wrong slider: the straight line (1 - t) I + t R. It is no rotation on the way: neurons get shorter."""
    return (1 - t) * _identity(Q) + t * cayley(Q)


def squared_slider(Q: Tensor, t: float) -> Tensor:
    """A wrong slider: I + t t (R - I), as where a program applies the strength twice: -1 is the same as 1."""
    return line_slider(Q, t * t)


#: What programs do when they are asked for a part of a rotation: the right way, and three wrong ones to compare.
SLIDERS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "R to the power t": power,
    "Cayley of t Q": cayley_slider,
    "straight line": line_slider,
    "strength applied twice": squared_slider,
}


#: Five settings of PEFT's OFT under letters, so that a plot can be a riddle: options of its `OFTConfig`.
RIDDLE: dict[str, dict[str, Any]] = {
    "A": {"num_cayley_neumann_terms": 6},
    "B": {},
    "C": {"use_cayley_neumann": False},
    "D": {"num_cayley_neumann_terms": 3},
    "E": {"num_cayley_neumann_terms": 8},
}


# ---- A layer's adapter -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """How an adapter is built.

    Attributes:
        blocks: r, the number of blocks of R, which must divide each layer's d.
        eps: the radius of constrained OFT (COFT): ||R - I|| <= eps, in the Frobenius norm, for each layer. None for no
            constraint. The official code bounds ||Q|| by eps b^2 instead: its 6e-5 at b = 80 is a radius of 0.77 here.
        share: one block, repeated r times.
        rescale: learn each neuron's length too (re-scaled OFT, z = (R W0 D)^T x with a diagonal D).
    """

    blocks: int = 4
    eps: float | None = None
    share: bool = False
    rescale: bool = False


class OFT(nn.Module):
    """What turns one layer's neurons: W0 -> R W0 D, as a parametrisation of its weight (torch.nn.utils.parametrize).

    Of a convolution a neuron is its flattened kernel, d = in_channels k k, in torch's order: all k k taps of the first
    channel, then those of the next. A block is d / r neighbours in this order. So it holds whole channels when r
    divides in_channels.

    Attributes:
        q: (r, N), or (1, N) when shared: sqrt(N) times the N = b (b - 1) / 2 entries above the diagonal of each block
            of Q. An optimiser such as AdamW moves every number by about its learning rate; thanks to this factor a
            block moves by the same ||Q|| whatever its size, and one learning rate serves all (zqiu24/oft, issue 28).
            With N near 3,000, as in Stable Diffusion, the paper's 6e-5 becomes 3e-3.
        s: (n,), D = diag(exp(s)), or None. Like q it begins as zero, so weight decay pulls towards the pretrained W0.
    """

    def __init__(self, weight: Tensor, settings: Settings) -> None:
        super().__init__()
        d = weight[0].numel()
        self.settings, self.b = settings, d // settings.blocks
        at = {"dtype": torch.promote_types(weight.dtype, torch.float32), "device": weight.device}
        n_skew = self.b * (self.b - 1) // 2
        self.q = nn.Parameter(torch.zeros(1 if settings.share else settings.blocks, n_skew, **at))
        self.s = nn.Parameter(torch.zeros(len(weight), **at)) if settings.rescale else None

    def project(self) -> None:
        """Bring q back into COFT's ball, if it has left it: the projection of projected gradient descent.

        An eigenvalue i w of Q gives R - I one of size 2 |w| / sqrt(1 + w^2) <= 2 |w|, so ||Q|| <= eps / 2 is enough.
        """
        if self.settings.eps is not None:
            r, (rows, n_skew) = self.settings.blocks, self.q.shape
            norm = (2 * r / rows / n_skew) ** 0.5 * self.q.data.norm()
            # `.data`, so that a second forward pass before the backward pass, which changes nothing, counts as nothing.
            self.q.data.mul_((self.settings.eps / 2 / norm).clamp(max=1))

    def Q(self) -> Tensor:
        """The skew-symmetric blocks (r, b, b), or (1, b, b) when shared, in single precision at least."""
        self.project()
        q = self.q.to(torch.promote_types(self.q.dtype, torch.float32))
        return skew(q / q.shape[-1] ** 0.5, self.b)

    def R(self, t: float = 1.0, slider: Callable[[Tensor, float], Tensor] = power) -> Tensor:
        """The blocks of R^t, shaped as those of Q; or what a wrong slider (see `SLIDERS`) has in its place."""
        return cayley(self.Q()) if t == 1 else slider(self.Q(), t)

    def forward(self, weight: Tensor, t: float = 1.0) -> Tensor:
        """The turned weight, in the shape and precision of `weight` (n, ...); with t, that of R^t and D^t."""
        with torch.autocast(weight.device.type, enabled=False):  # half precision would not be orthogonal
            return self.turned(weight, self.R(t), t)

    def turned(self, weight: Tensor, R: Tensor, t: float = 1.0) -> Tensor:
        """The weight that the blocks R make of `weight` (n, ...), with lengths of D^t."""
        blocks = weight.to(R.dtype).reshape(len(weight), -1, self.b).transpose(0, 1)
        turned = blocks @ R.mT  # (r, n, b); a row is a neuron, so it is W0 R^T
        turned = turned.transpose(0, 1).reshape(weight.shape)
        if self.s is not None:
            turned = turned * torch.exp(t * self.s.to(R.dtype)).view(-1, *[1] * (weight.ndim - 1))
        return turned.to(weight.dtype)


# ---- A model's adapter -----------------------------------------------------------------------------------------------


def apply(
    model: nn.Module,
    targets: str | Sequence[str] = TARGETS,
    blocks: int = 4,
    eps: float | None = None,
    share: bool = False,
    rescale: bool = False,
) -> list[nn.Parameter]:
    """Give an adapter to the linear layers and convolutions of a model, and return what trains: its parameters alone.

    The model computes the same as before, until they are trained; all its own parameters are frozen. Its state
    dictionary has other names until `merge` or `remove`, so do one of them before `save_pretrained`.

    Args:
        model: for example a U-Net or a text encoder; it is changed in place.
        targets: names of layers, whole or their last parts. A text encoder of CLIP has ("q_proj", "k_proj", "v_proj",
            "out_proj").
        blocks, eps, share, rescale: see `Settings`.
    Raises:
        ValueError: when a target matches no layer, `blocks` does not divide a layer's d or leaves nothing to turn, eps
            is not positive, or the model has an adapter already. The model is then unchanged.
    """
    _refuse_second(model)
    targets = [targets] if isinstance(targets, str) else list(targets)
    layers = _layers(model)
    chosen = {}
    for target in targets:
        found = {name: layer for name, layer in layers.items() if f".{name}".endswith(f".{target}")}
        if not found:
            last = sorted({re.findall(r"[^.]+(?:\.\d+)*$", name)[0] for name in layers if name})
            raise ValueError(
                f"no linear layer or convolution of the model is named {target!r}; the last parts of their names are "
                f"{', '.join(last[:30])}{', ...' if len(last) > 30 else ''}"
            )
        chosen |= found
    if not chosen:
        raise ValueError("no layers were named; give targets such as those in TARGETS")
    chosen = {name: layer for name, layer in layers.items() if name in chosen}
    return _adapt(model, chosen, Settings(blocks, eps, share, rescale))


def _refuse_second(model: nn.Module) -> None:
    if adapters(model):
        raise ValueError("the model has an adapter already; remove(model) takes it away")


def _layers(model: nn.Module) -> dict[str, Any]:
    """The layers that can have an adapter, by name: those whose weight is a parameter of its own."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and not parametrize.is_parametrized(module)
    }


def _adapt(
    model: nn.Module,
    layers: Mapping[str, Any],
    settings: Settings,
    tensors: Mapping[str, Tensor] | None = None,
) -> list[nn.Parameter]:
    """Check everything, then register an adapter at each layer, with the values `tensors` if they are given."""
    if settings.eps is not None and not settings.eps > 0:
        raise ValueError(f"eps={settings.eps:g} leaves no rotation; give a positive radius, or None for no constraint")
    found = {}
    for name, layer in layers.items():
        d, r = layer.weight[0].numel(), settings.blocks
        if r < 1 or d % r or d == r:
            able = [k for k in range(1, d // 2 + 1) if d % k == 0]
            raise ValueError(
                f"blocks={r} cannot share out the {d} inputs of a neuron of {name}; "
                f"{'choose among ' + ', '.join(map(str, able)) if able else 'leave this layer out'}"
            )
        found[name] = OFT(layer.weight, settings)
    if tensors is not None:
        ours = {f"{name}.{key}": p for name, oft in found.items() for key, p in oft.named_parameters()}
        for name, p in ours.items():
            if name not in tensors or tensors[name].shape != p.shape:
                shape = tuple(tensors[name].shape) if name in tensors else "no numbers"
                raise ValueError(f"for {name} it has {shape} where the model needs {tuple(p.shape)}")
            p.data.copy_(tensors[name])
    model.requires_grad_(False)
    for name, oft in found.items():
        parametrize.register_parametrization(layers[name], "weight", oft)
    return [p for oft in found.values() for p in oft.parameters()]


def adapters(model: nn.Module) -> dict[str, OFT]:
    """The adapters of a model's layers by the layers' names, merged or not; {} when it has none."""
    return {name: oft for name, (_, oft, _) in _adapted(model).items()}


def _adapted(model: nn.Module) -> dict[str, tuple[Any, OFT, nn.Parameter]]:
    """Each adapted layer with its adapter and its pretrained weight W0."""
    found: dict[str, tuple[Any, OFT, nn.Parameter]] = {}
    for name, module in model.named_modules():
        layer: Any = module
        if hasattr(layer, "_unmerged"):
            (oft, W0), now = layer._unmerged, layer.weight
            if (W0.device, W0.dtype) != (now.device, now.dtype):  # the model was moved since it was merged
                W0 = nn.Parameter(W0.to(now), requires_grad=False)
            found[name] = (layer, oft.to(now.device), W0)
        elif parametrize.is_parametrized(layer, "weight") and isinstance(layer.parametrizations.weight[0], OFT):
            found[name] = (layer, layer.parametrizations.weight[0], layer.parametrizations.weight.original)
    return found


def _plain(layer: Any, weight: nn.Parameter) -> None:
    """Make an adapted layer plain again, with this weight."""
    if parametrize.is_parametrized(layer):
        # Not by torch's remove_parametrizations: that empties the layer's class, which copies of the layer share.
        del layer.parametrizations
        layer.__class__ = type(layer).__bases__[0]
    layer.weight = weight
    for name in [name for name in layer._parameters if name != "weight"]:  # in the order of a plain layer
        layer._parameters[name] = layer._parameters.pop(name)


@torch.no_grad()
def merge(model: nn.Module, t: float = 1.0) -> None:
    """Replace the weight of each adapted layer by the turned one: the model is a plain one again, and as fast as one.

    Its state dictionary has the old names, so `save_pretrained` and `from_pretrained` work. The adapter and W0 are kept
    beside the model, not in its state, for `unmerge`, `save`, and merging again with another `t`.

    Args:
        t: how far to turn, from W0 (0) to what was trained (1) and beyond: R^t (see `power`), and D^t.
    Raises:
        ValueError: when the model has no adapter.
    """
    for layer, oft, W0 in _some(model).values():
        # A new parameter: W0 may be shared with other models, as by `training.ema_copy`.
        _plain(layer, nn.Parameter(oft(W0, t), requires_grad=False))
        layer._unmerged = (oft, W0)


def unmerge(model: nn.Module) -> None:
    """Undo `merge`: W0 and the same adapter, which can train on. It does nothing to a model that is not merged.

    Other changes of the merged weights are undone as well. Raises ValueError when the model has no adapter.
    """
    for layer, oft, W0 in _some(model).values():
        if hasattr(layer, "_unmerged"):
            _plain(layer, W0)
            del layer._unmerged
            parametrize.register_parametrization(layer, "weight", oft)


def remove(model: nn.Module) -> None:
    """Take the adapter away, merged or not; the weights are the pretrained ones again, and stay frozen.

    Raises ValueError when the model has no adapter.
    """
    for layer, _, W0 in _some(model).values():
        _plain(layer, W0)
        if hasattr(layer, "_unmerged"):
            del layer._unmerged


def _some(model: nn.Module) -> dict[str, tuple[Any, OFT, nn.Parameter]]:
    found = _adapted(model)
    if not found:
        raise ValueError("the model has no adapter of OFT; give it one by apply or load")
    return found


# ---- Files -----------------------------------------------------------------------------------------------------------


def save(model: nn.Module, path: Path) -> None:
    """Write a model's adapter, merged or not, to a safetensors file: its numbers, and its settings in the metadata.

    Raises ValueError when the model has no adapter.
    """
    found = {name: oft for name, (_, oft, _) in _some(model).items()}
    tensors = {}
    for name, oft in found.items():
        oft.project()
        tensors |= {f"{name}.{key}": p.detach().cpu().contiguous() for key, p in oft.named_parameters()}
    settings = next(iter(found.values())).settings
    with written(Path(path)) as temporary:
        save_file(tensors, temporary, metadata={"oft": json.dumps(asdict(settings))})


def load(model: nn.Module, path: Path) -> list[nn.Parameter]:
    """Give a model the adapter that `save` wrote, and return its parameters, as `apply` does.

    Raises ValueError when the file is not such an adapter, when it does not fit the model, or when the model has an
    adapter already. The model is then unchanged.
    """
    _refuse_second(model)
    try:
        with safe_open(path, "pt") as f:
            settings = Settings(**json.loads((f.metadata() or {})["oft"]))
            tensors = {name: f.get_tensor(name) for name in f.keys()}
    except (SafetensorError, KeyError, ValueError, TypeError):
        raise ValueError(f"{path} is not an adapter of OFT; give a file that save wrote") from None
    wanted = {key.rpartition(".")[0] for key in tensors}
    # In the model's order, which is also that of `apply`: optimisers know parameters by their order.
    layers = {name: layer for name, layer in _layers(model).items() if name in wanted}
    if missing := sorted(wanted - layers.keys()):
        raise ValueError(f"{path} is for another model: this one has no linear layer or convolution {missing[0]}")
    try:
        return _adapt(model, layers, settings, tensors)
    except ValueError as error:
        raise ValueError(f"{path} cannot be loaded: {error}") from None
