"""The fast path: what a stock pipeline draws, in about half the time on a CPU.

    draw = faster(pipe)
    picture = draw("a red ball on grass by day", generator=seeded(0), num_inference_steps=20).images[0]

In every step, plain torch chooses a kernel anew for each of some hundreds of small operations, and reorders every
convolution's weights. OpenVINO compiles the whole network once for each input shape. The graphs (`graph.onnx`) are
stored beside the weights and point into the safetensors file, so the weights are stored only once.

Prompts are encoded once and kept, and the two halves of guidance run side by side, each on half of the cores. The
course teaches with plain torch all the same: hooks, gradients and finetuned weights need it. When the weights of a
network change after it was compiled, `Fast` notices at the next picture, and runs that network with torch from then on.

A U-Net that listens to a ControlNet is as fast:

    heard = Controlled(draw.noise_pred, [Control(draw.controlnet(net), as_controls(picture, 128))])
    picture = draw("a red ball on grass by day", unet=heard, generator=seeded(0)).images[0]
"""

from __future__ import annotations

import copy
import os
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from companion.diffusion import denoise, encode_prompt, noise_predictor

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, ControlNetModel, ModelMixin, StableDiffusionPipeline
    from openvino import AsyncInferQueue, Model

    from companion.diffusion import UNet

WEIGHTS, GRAPH = "diffusion_pytorch_model.safetensors", "graph.onnx"
DRAWER = "_companion_drawer"  # the attribute of a pipeline that keeps what `faster` made
KEPT = 64  # prompts whose text states are kept
SHAPES = 4  # input shapes that each network stays compiled for


def faster(pipe: StableDiffusionPipeline) -> Fast | StableDiffusionPipeline:
    """A `Fast` drawer where that is possible, else the pipeline itself: both draw the same for the same arguments.

    It is possible on a CPU, with openvino installed (the extra `[lab]` has it), for a pipeline that was loaded from a
    folder with graphs and still has that folder's weights: a finetuned one draws with plain torch. All who ask for the
    same pipeline share a drawer, so that its networks are compiled once; a pipeline keeps its own in `DRAWER`.
    """
    kept: Fast | None = vars(pipe).get(DRAWER)
    if kept and kept.pipe is pipe and kept.threads == torch.get_num_threads() and not kept.look():
        return kept
    try:
        fast = Fast(pipe)
    except (ImportError, LookupError):
        return pipe
    setattr(pipe, DRAWER, fast)
    return fast


class Fast:
    """Draws with OpenVINO what `pipe` draws with torch: the same latents to about 1e-5.

    Args:
        pipe: a stock text-to-image pipeline on the CPU. A picture is drawn with the scheduler that it has by then.
        threads: CPU threads; torch's number by default.
    Raises:
        ImportError: openvino is not installed.
        LookupError: the folder lacks graphs, its weights are not the pipeline's, or the pipeline is not on a CPU.
    """

    def __init__(self, pipe: StableDiffusionPipeline, threads: int | None = None) -> None:
        self.pipe = pipe
        self.threads = threads or torch.get_num_threads()
        self._unet = Compiled(stored(pipe.unet), self.threads, side_by_side=2)
        self._listening = Compiled(listening(self._unet.graph), self.threads, side_by_side=2)
        self._decoder = Compiled(stored(pipe.vae), self.threads)
        self._varied: tuple[tuple[str, ...], Compiled] | None = None
        self._nets: weakref.WeakSet[FastControlNet] = weakref.WeakSet()
        self._states: OrderedDict[str, Tensor] = OrderedDict()
        self._seen = {name: _fingerprint(getattr(pipe, name)) for name in ("unet", "vae", "text_encoder")}
        self._changed: set[str] = set()

    def __deepcopy__(self, memo: dict[int, Any]) -> Fast:
        return self  # compiled networks cannot be copied; `faster` makes another for the copied pipeline

    def look(self) -> set[str]:
        """Notice changed weights, and return the parts ("unet", "vae") that now run with torch, since theirs changed.

        Drawing a picture calls this, which takes a few milliseconds. If weights may have changed, call it yourself
        before you call `noise_pred` or `decode` directly.
        """
        for name, before in self._seen.items():
            now = _fingerprint(getattr(self.pipe, name))
            if now != before:
                self._seen[name] = now
                self._changed.add(name)
                self._states.clear()
        for net in list(self._nets):
            net.look()
        return self._changed - {"text_encoder"}

    def controlnet(self, net: ControlNetModel) -> FastControlNet:
        """A ControlNet compiled, with this drawer's threads; `look` looks at its weights too.

        Who asks for the same ControlNet again gets the same compiled one, unless the weights have changed since.
        """
        for kept in list(self._nets):
            if kept.net is net and not kept.look():
                return kept
        compiled = FastControlNet(net, self.threads)
        self._nets.add(compiled)
        return compiled

    def encode_prompt(self, prompt: str) -> Tensor:
        """The text encoder's states (1, L, D) of a prompt; those of the last `KEPT` prompts are remembered."""
        if prompt not in self._states:
            self._states[prompt] = encode_prompt(self.pipe, prompt)
            if len(self._states) > KEPT:
                self._states.popitem(last=False)
        self._states.move_to_end(prompt)
        return self._states[prompt]

    def noise_pred(
        self,
        x: Tensor,
        t: float | Tensor,
        encoder_hidden_states: Tensor,
        down_block_additional_residuals: Sequence[Tensor] | None = None,
        mid_block_additional_residual: Tensor | None = None,
    ) -> Tensor:
        """The U-Net's prediction (B, C, h, w) for latents x (B, C, h, w), timesteps t (one or B) and text (B, L, D).

        The residuals of ControlNets (each of B) are given all or none, by the names that diffusers has for them.
        """
        t = torch.as_tensor(t, dtype=torch.float32).expand(len(x))
        if "unet" in self._changed:
            residuals = {
                "down_block_additional_residuals": down_block_additional_residuals,
                "mid_block_additional_residual": mid_block_additional_residual,
            }
            return self.pipe.unet(x, t, encoder_hidden_states, **residuals).sample
        inputs = {"x": x, "t": t, "states": encoder_hidden_states}
        if down_block_additional_residuals is None or mid_block_additional_residual is None:
            return self._unet(**inputs)[0]
        residuals = (*down_block_additional_residuals, mid_block_additional_residual)
        return self._listening(**inputs, **{f"residual{i}": r for i, r in enumerate(residuals)})[0]

    def varied(self, weights: Mapping[str, Tensor]) -> UNet:
        """The U-Net with other weights for some pictures of a batch (see `varied`), compiled.

        They are inputs of a graph that is compiled when a set of names is first drawn with, and kept for the next.
        """
        names = tuple(weights)
        if self._varied is None or self._varied[0] != names:
            self._varied = names, Compiled(taking(self._unet.graph, names), self.threads, side_by_side=2)
        compiled, n = self._varied[1], len(weights[names[0]])

        def unet(x: Tensor, t: Tensor, encoder_hidden_states: Tensor) -> Tensor:
            if "unet" in self._changed:
                return varied(self.pipe.unet, weights)(x, t, encoder_hidden_states)
            t = torch.as_tensor(t, dtype=torch.float32).expand(len(x))
            which = torch.arange(len(x)) % n
            own = {name: weight[which] for name, weight in weights.items()}
            return compiled(x=x, t=t, states=encoder_hidden_states, **own)[0]

        return unet

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (B, 3, H, W), in about [-1, 1] (not clamped), of latents (B, C, h, w) as the U-Net sees them."""
        z = latents / self.pipe.vae.config.scaling_factor
        return self.pipe.vae.decode(z).sample if "vae" in self._changed else self._decoder(z=z)[0]

    @torch.inference_mode()
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        num_inference_steps: int = 20,
        guidance_scale: float = 7.5,
        negative_prompt: str = "",
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        unet: UNet | None = None,
        scheduler: Any = None,
        output_type: str = "pil",
    ) -> Any:
        """Draw as the stock pipeline does, with the same result, but in 20 steps by default (the stock default is 50).

        Args:
            latents: standard normal noise (B, C, h, w) to start from, instead of the generator's.
            unet: used instead of the compiled U-Net alone (see `diffusion.UNet`).
            scheduler: used instead of the pipeline's.
            output_type: "pil"; "np" (B, H, W, 3) or "pt" (B, 3, H, W), both in [0, 1]; or "latent".
        Returns:
            a StableDiffusionPipelineOutput, whose `images` hold one picture for each prompt.
        """
        from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
        from diffusers.utils.torch_utils import randn_tensor

        self.look()
        pipe = self.pipe
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        side, channels = pipe.unet.config.sample_size, pipe.unet.config.in_channels
        if latents is None:
            latents = randn_tensor((len(prompts), channels, side, side), generator=generator)
        scheduler = scheduler or pipe.scheduler
        scheduler.set_timesteps(num_inference_steps)
        generators = generator if isinstance(generator, list) else [generator] if generator is not None else []
        predict = noise_predictor(
            pipe, prompts, [guidance_scale], negative_prompt, unet or self.noise_pred, encode=self.encode_prompt
        )
        steps = denoise(scheduler, predict, latents * scheduler.init_noise_sigma, scheduler.timesteps, generators)
        *_, last = steps
        x: Any = last.latents
        if output_type == "latent":
            return StableDiffusionPipelineOutput(images=x, nsfw_content_detected=None)
        images: Any = pipe.image_processor.postprocess(self.decode(x), output_type=output_type)
        return StableDiffusionPipelineOutput(images=images, nsfw_content_detected=None)


def varied(unet: nn.Module, weights: Mapping[str, Tensor]) -> UNet:
    """A U-Net with other weights for some pictures of a batch; the network itself is not changed.

    Args:
        weights: by their names in the network's state dictionary, (V, *shape) each. Of a batch, picture i is drawn with
            the weights i % V, in both halves of guidance: draw V pictures at a time, or a multiple.
    """
    n = len(next(iter(weights.values())))

    def predict(x: Tensor, t: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        out = torch.empty_like(x)
        for i in range(min(n, len(x))):
            own = {name: weight[i] for name, weight in weights.items()}
            t_own = t[i::n] if t.ndim else t
            out[i::n] = torch.func.functional_call(unet, own, (x[i::n], t_own, encoder_hidden_states[i::n])).sample
        return out

    return predict


# ---- Graphs ----------------------------------------------------------------------------------------------------------


class FastControlNet:
    """A ControlNet that runs with OpenVINO: called as diffusers' own, it returns the same residuals to about 1e-5.

    It is compiled from the network itself, trained or not, which takes about a second when it is made and another when
    it is called first. What it makes of a control picture is the same in every step, and is computed once a picture.

    Args:
        net: the ControlNet, on the CPU. When its weights change, `look` notices, and it runs with torch from then on.
        threads: CPU threads; torch's number by default.
    Raises:
        ImportError: openvino is not installed.
        LookupError: the ControlNet is not on a CPU, or averages its residuals over the picture.
    """

    def __init__(self, net: ControlNetModel, threads: int | None = None) -> None:
        if net.device.type != "cpu":
            raise LookupError(f"the ControlNet is on {net.device}: the fast path is for a CPU")
        if net.config.global_pool_conditions:
            raise LookupError("the ControlNet averages its residuals over the picture, which the fast path cannot")
        self.net = net
        self._compiled = Compiled(traced(net), threads, side_by_side=2)
        self._seen, self._changed = _fingerprint(net), False
        self._shown, self._embedded = torch.empty(0), torch.empty(0)  # the last control pictures, and what came of them
        self._pictures: Tensor | None = None  # these very tensors, and how often they had been changed in place
        self._version: int | None = None

    def look(self) -> bool:
        """Notice changed weights; returns whether it runs with torch, since they have changed."""
        self._changed = self._changed or _fingerprint(self.net) != self._seen
        return self._changed

    @torch.no_grad()
    def __call__(
        self,
        sample: Tensor,
        timestep: float | Tensor,
        encoder_hidden_states: Tensor,
        controlnet_cond: Tensor,
        conditioning_scale: float = 1.0,
        guess_mode: bool = False,
        return_dict: bool = False,
    ) -> tuple[list[Tensor], Tensor]:
        """The residuals (B, ...) of the U-Net's skip connections, finest first, and that of its middle.

        Arguments as those of `ControlNetModel.forward`: latents (B, C, h, w), timesteps (one or B), text (B, L, D),
        control pictures (B, 3, H, W).
        """
        t = torch.as_tensor(timestep, dtype=torch.float32).expand(len(sample))
        if self._changed:
            down, mid = self.net(
                sample,
                t,
                encoder_hidden_states,
                controlnet_cond,
                conditioning_scale,
                guess_mode=guess_mode,
                return_dict=False,
            )
            return list(down), mid
        states, embedded = encoder_hidden_states, self._embed(controlnet_cond)
        found = self._compiled(x=sample, t=t, states=states, embedded=embedded)
        if guess_mode or conditioning_scale != 1:
            # In "guess mode" residuals are weighted from a tenth for the finest to one, as in diffusers.
            weights = torch.logspace(-1, 0, len(found)) if guess_mode else torch.ones(len(found))
            found = [r * w for r, w in zip(found, conditioning_scale * weights, strict=True)]
        return found[:-1], found[-1]

    def _embed(self, pictures: Tensor) -> Tensor:
        """Control pictures brought down to the latents' size, (B, C, h, w)."""
        # In a loop they are the same tensor. To compare numbers, torch wakes threads, which would then wait, busily.
        version = None if pictures.is_inference() else pictures._version
        if pictures is self._pictures and version is not None and version == self._version:
            return self._embedded
        if not torch.equal(pictures, self._shown):
            distinct, where = torch.unique(pictures, dim=0, return_inverse=True)
            self._shown, self._embedded = pictures.clone(), self.net.controlnet_cond_embedding(distinct)[where]
        self._pictures, self._version = pictures, version
        return self._embedded


class Compiled:
    """A function of named tensors, from a graph.

    The first input of a shape compiles it for one sample of that shape, which takes about a second. The samples of a
    batch run separately: on a CPU that is as fast as a batch, and a fifth faster than a graph for any shape.

    Args:
        graph: an OpenVINO model for any shape, as from `stored`.
        threads: CPU threads in all; torch's number by default.
        side_by_side: how many samples run at a time, sharing the threads equally.
    """

    def __init__(self, graph: Model, threads: int | None = None, side_by_side: int = 1) -> None:
        threads = threads or torch.get_num_threads()
        self.graph = graph
        self._options = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": min(side_by_side, threads),
            "INFERENCE_PRECISION_HINT": "f32",  # some CPUs would use bfloat16, and draw different pictures
            "ENABLE_CPU_PINNING": False,  # two notebooks at once would be pinned to the same cores
        }
        self._queues: OrderedDict[tuple, AsyncInferQueue] = OrderedDict()

    def _queue(self, shapes: dict[str, tuple[int, ...]]) -> AsyncInferQueue:
        """The compiled network for one sample of these shapes."""
        import openvino

        key = tuple(shapes.items())
        if key not in self._queues:
            graph = self.graph.clone()
            graph.reshape({name: [1, *shape] for name, shape in key})
            self._queues[key] = openvino.AsyncInferQueue(openvino.compile_model(graph, "CPU", self._options))
            if len(self._queues) > SHAPES:
                self._queues.popitem(last=False)
        self._queues.move_to_end(key)
        return self._queues[key]

    def __call__(self, **inputs: Tensor) -> list[Tensor]:
        """The network's outputs (B, ...) for inputs (B, ...), each given by its name in the graph."""
        queue = self._queue({name: tuple(v.shape[1:]) for name, v in inputs.items()})
        samples = [dict(zip(inputs, values, strict=True)) for values in zip(*inputs.values(), strict=True)]
        out: list[list[Tensor]] = [[]] * len(samples)

        def keep(request, i: int) -> None:
            out[i] = [torch.from_numpy(tensor.data.copy()) for tensor in request.output_tensors]

        queue.set_callback(keep)
        for i, sample in enumerate(samples):
            queue.start_async({name: v[None].numpy() for name, v in sample.items()}, i)
        queue.wait_all()
        return [torch.cat(parts) for parts in zip(*out, strict=True)]


def stored(part: ModelMixin) -> Model:
    """The graph of a pipeline's U-Net or VAE decoder in the folder it was loaded from; its weights are the folder's.

    Raises ImportError and LookupError as `Fast` does.
    """
    import openvino

    if part.device.type != "cpu":
        raise LookupError(f"the pipeline is on {part.device}: the fast path is for a CPU")
    folder = Path(part.config.get("_name_or_path", ""))
    if not (folder / GRAPH).is_file():
        raise LookupError(f"{folder} has no {GRAPH}; `companion build publish` writes it")
    if not _same(part, folder / WEIGHTS):
        raise LookupError(f"the weights are no longer those of {folder}: draw with the pipeline itself")
    return openvino.Core().read_model(os.fspath(folder / GRAPH))


def listening(graph: Model) -> Model:
    """A U-Net's graph with more inputs: the residuals of ControlNets, `residual0` (the finest), ... and the middle's.

    A U-Net's decoder joins what comes from below with one skip connection after the other, the coarsest first, and
    that is where residuals are added: to the skip connections, and to the middle, which is the first from below.
    """
    from openvino import opset13 as ops

    graph = graph.clone()
    joins = [
        op
        for op in graph.get_ordered_ops()
        if op.get_type_name() == "Concat" and op.get_attributes()["axis"] == 1 and op.output(0).partial_shape.rank == 4
    ]
    places = [join.input(1) for join in reversed(joins)] + [joins[0].input(0)]
    for i, place in enumerate(places):
        source = place.get_source_output()
        residual = ops.parameter(source.partial_shape, source.element_type, name=f"residual{i}")
        residual.output(0).tensor.names = {f"residual{i}"}
        place.replace_source_output(ops.add(source, residual).output(0))
        graph.add_parameters([residual])
    graph.validate_nodes_and_infer_types()
    return graph


def taking(graph: Model, names: Iterable[str]) -> Model:
    """A network's graph in which some of its weights are inputs, by their names in the network's state dictionary."""
    from openvino import Type
    from openvino import opset13 as ops

    graph = graph.clone()
    found = {name: op.output(0) for op in graph.get_ops() for name in op.output(0).get_names()}
    for name in names:
        weight = found[f"model.{name}"]
        shape = list(weight.get_shape())
        given = ops.parameter([-1, *shape], Type.f32, name=name)  # a sample's own: the first side is the batch's
        given.output(0).tensor.names = {name}
        users = list(weight.get_target_inputs())
        own = ops.reshape(given, ops.constant(shape, Type.i64), special_zero=False)
        for user in users:
            user.replace_source_output(own.output(0))
        graph.add_parameters([given])
    graph.validate_nodes_and_infer_types()
    return graph


def traced(net: ControlNetModel) -> Model:
    """A ControlNet's graph, from the network in memory: of `x`, `t`, `states` and `embedded`, its embedder's output.

    Outputs are the residuals, finest first, and last the middle's, all as with a scale of 1.
    """
    # Not by openvino.convert_model: it reports its use to a server, by a process of its own.
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    config, training = net.config, net.training
    x, t = torch.randn(1, config.in_channels, 8, 8), torch.full((1,), 500.0)
    states, embedded = torch.randn(1, 7, config.cross_attention_dim), torch.randn(1, config.block_out_channels[0], 8, 8)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # about Python branches, which are the same for all inputs
        decoder = TorchScriptPythonDecoder(_ControlNet(net), example_input=(x, t, states, embedded))
        frontend = FrontEndManager().load_by_framework("pytorch")
        graph = frontend.convert(frontend.load(decoder))
    net.train(training)
    return graph


def _fingerprint(part: nn.Module) -> tuple[tuple[int, int, float], ...]:
    """Identifies a part's weights: each tensor's identity, its count of in-place changes, and its norm.

    torch does not count changes through `.data`, which is how adapters are merged; the norms show those.
    """
    weights = list(part.parameters())
    with torch.no_grad():
        norms = torch.stack(torch._foreach_norm([w.detach() for w in weights])).tolist()
    return tuple((id(w), 0 if w.is_inference() else w._version, norm) for w, norm in zip(weights, norms, strict=True))


def _same(part: nn.Module, weights: Path) -> bool:
    """Whether a model's weights equal those in the file, in the model's precision."""
    from safetensors.torch import load_file

    stored, now = load_file(weights), part.state_dict()
    return stored.keys() == now.keys() and all(torch.equal(now[k], v.to(now[k].dtype)) for k, v in stored.items())


class _UNet(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t: Tensor, states: Tensor) -> Tensor:
        return self.model(x, t, encoder_hidden_states=states, return_dict=False)[0]


def without_embedder(net: ControlNetModel) -> ControlNetModel:
    """The same ControlNet, with the same weights, to be called with its embedder's output in place of a picture."""
    bare = copy.copy(net)
    bare._modules = {**net._modules, "controlnet_cond_embedding": nn.Identity()}
    return bare


class _ControlNet(nn.Module):
    """A ControlNet without its embedder, whose output is given instead of a control picture."""

    def __init__(self, net: ControlNetModel) -> None:
        super().__init__()
        self.net = without_embedder(net)

    def forward(self, x: Tensor, t: Tensor, states: Tensor, embedded: Tensor) -> tuple[Tensor, ...]:
        down, mid = self.net(x, t, encoder_hidden_states=states, controlnet_cond=embedded, return_dict=False)
        return (*down, mid)


class _Decoder(nn.Module):
    def __init__(self, model: AutoencoderKL) -> None:
        super().__init__()
        self.model = model

    def forward(self, z: Tensor) -> Tensor:
        return self.model.decode(z, return_dict=False)[0]


def write_graphs(folder: Path) -> Iterator[str]:
    """Write the graphs of a pipeline's U-Net and decoder beside the weights they point into, yielding a line for each.

    Raises:
        ImportError: onnx or onnxscript is missing (the extra `[build]`).
        FileNotFoundError: the weights of a network are not in one safetensors file, named `WEIGHTS`.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(folder / "unet").eval()
    vae = AutoencoderKL.from_pretrained(folder / "vae").eval()
    side = unet.config.sample_size
    x = torch.randn(2, unet.config.in_channels, side, side)
    states = torch.randn(2, 7, unet.config.cross_attention_dim)
    batch = torch.export.Dim("batch", max=63)  # torch traces larger batches differently
    any_ = torch.export.Dim.DYNAMIC
    area = {0: batch, 2: any_, 3: any_}
    shapes = {"x": area, "t": {0: batch}, "states": {0: batch, 1: any_}}
    yield _write(_UNet(unet), {"x": x, "t": torch.full((2,), 500.0), "states": states}, shapes, folder / "unet")
    yield _write(_Decoder(vae), {"z": x}, {"z": area}, folder / "vae")


def _write(model: nn.Module, inputs: dict[str, Tensor], shapes: dict, folder: Path) -> str:
    """Export a model, with every weight in the graph replaced by a reference to its place in the safetensors file."""
    import json
    import struct

    import onnx

    from companion.files import written

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        # optimize=False: constant folding would turn weights into new tensors, which are not in the file.
        program = torch.onnx.export(
            model,
            kwargs=inputs,
            dynamo=True,
            input_names=list(inputs),
            dynamic_shapes=shapes,
            optimize=False,
            verbose=False,
        )
    assert program is not None  # only the exporter without dynamo returns None
    proto = program.model_proto
    with (folder / WEIGHTS).open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        places = json.loads(file.read(length))
    kinds = {"F16": onnx.TensorProto.FLOAT16, "F32": onnx.TensorProto.FLOAT}
    stored, casts = [], []
    for weight in proto.graph.initializer:
        place = places[weight.name.removeprefix("model.")]
        begin, end = place["data_offsets"]
        tensor = onnx.TensorProto(
            name=f"{weight.name}.stored",
            data_type=kinds[place["dtype"]],
            dims=place["shape"],
            data_location=onnx.TensorProto.EXTERNAL,
        )
        where = {"location": WEIGHTS, "offset": str(8 + length + begin), "length": str(end - begin)}
        for key, value in where.items():
            tensor.external_data.add(key=key, value=value)
        stored.append(tensor)
        casts.append(onnx.helper.make_node("Cast", [tensor.name], [weight.name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *proto.graph.node]
    for field in ("initializer", "node", "value_info"):
        proto.graph.ClearField(field)
    proto.graph.initializer.extend(stored)
    proto.graph.node.extend(nodes)
    for node in proto.graph.node:  # these fields tell where in torch each came from, with this machine's paths
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    with written(folder / GRAPH) as temporary:
        temporary.write_bytes(proto.SerializeToString(deterministic=True))
    return f"{folder / GRAPH}: {len(nodes)} operations, {(folder / GRAPH).stat().st_size / 1e3:.0f} kB"
