"""The catalogue of models, and how a pipeline is loaded: by name, from a folder, or from a model hub.

    pipe = load("tabletop")
    picture = pipe("a red ball on grass by day", generator=seeded(0), **find("tabletop").settings).images[0]
    pipe = load("you/your-model")  # a pipeline on the hub, or a LoRA, which is put on its base model

Only safetensors are loaded, never pickle. A model on this machine is used without network access; a model of the hub is
fetched from the first of its mirrors that gives all of it, and every file is checked.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import companion
from companion.files import damage, sha256

if TYPE_CHECKING:
    import torch
    from diffusers import ControlNetModel, DiffusionPipeline, T2IAdapter

#: Seconds that a mirror may take to list its files, and to answer for the first of them. If it falls silent later,
#: huggingface_hub gives up: after six times HF_HUB_DOWNLOAD_TIMEOUT (an environment variable, by default 10 seconds) in
#: the middle of a file, or after a few minutes between two files.
TIMEOUT = 10.0
#: The way out without a model of the hub, for errors.
INSTEAD = "give the path of a pipeline's folder, or use 'tabletop', which is in the clone"
#: The guidance scale for the miniature's pictures; data/models/README.md says how it was found.
GUIDANCE = 3.0
#: The file that a LoRA's folder or repository is known by.
LORA = "pytorch_lora_weights.safetensors"
#: A repository that is gone, which many LoRAs name as their base, and what it held.
GONE = {"runwayml/stable-diffusion-v1-5": "sd15"}
#: Kinds of devices; one of several is named with its number, such as "cuda:1".
DEVICES = ("cpu", "cuda", "mps", "xpu")
#: The form of a repository's name.
REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")


class UnknownModelError(ValueError):
    """The name is neither in the catalogue, nor a folder, nor a repository's; or a LoRA's base is not said."""


class NotAPipelineError(ValueError):
    """The folder or repository lacks files of a diffusers pipeline, or holds a LoRA that does not fit its base."""


class NotALoraError(ValueError):
    """A base is given for what is no LoRA."""


class PickleRefusedError(ValueError):
    """The weights are pickle files, which can run any code when they are loaded."""


class DamagedError(OSError):
    """A file is cut short, unreadable, or not what its checksum says."""


class OfflineError(OSError):
    """The model is not on this machine, and the hub may not be asked."""


class NoMirrorError(OSError):
    """No mirror gave the model."""


@dataclass(frozen=True)
class Model:
    """One model: of the catalogue, in a folder, or in a repository of the hub.

    Attributes:
        size: width and height of a picture, in pixels.
        steps, guidance: the number of steps and the guidance scale that suit it best.
        mirrors: repositories of the hub, in the order they are tried; none for one in the clone or a folder.
        path: its folder, when it was found by path.
        download: the size of the download from a mirror, in GB.
        weights: how much memory its weights take in single precision, in GB; 0 when that is not worth a thought.
        options: given to `from_pretrained` unless the caller overrides them.
        base: of a LoRA, the model that it changes; None for a whole pipeline.
    """

    name: str
    summary: str
    size: int
    steps: int
    guidance: float
    mirrors: tuple[str, ...] = ()
    path: Path | None = None
    download: float = 0.0
    weights: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)
    base: Model | None = None

    @property
    def folder(self) -> Path | None:
        """Its folder on this machine; None for a model of the hub."""
        return self.path if self.path or self.mirrors else companion.DATA / "models" / self.name

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments that suit it best: `pipe(prompt, **settings)`."""
        return {"num_inference_steps": self.steps, "guidance_scale": self.guidance}


# The hub's repositories come and go (that of Stable Diffusion 1.5 was removed in 2024), hence several mirrors for each.
CATALOGUE: dict[str, Model] = {
    model.name: model
    for model in (
        Model(
            "tabletop",
            "the course's own Stable Diffusion in miniature, in the clone",
            size=128,
            steps=20,
            guidance=GUIDANCE,
            # Its world has nothing unsafe in it, and the safety checker is many times its size.
            options={"safety_checker": None, "requires_safety_checker": False},
        ),
        Model(
            "sd15",
            "Stable Diffusion 1.5",
            size=512,
            steps=25,
            guidance=7.5,
            mirrors=(
                "stable-diffusion-v1-5/stable-diffusion-v1-5",
                "benjamin-paine/stable-diffusion-v1-5",
                "genai-archive/stable-diffusion-v1-5",
                "botp/stable-diffusion-v1-5",
            ),
            download=2.7,
            weights=5.5,
        ),
        Model(
            "lcm",
            "a latent consistency model distilled from a Stable Diffusion 1.5: four steps",
            size=768,
            steps=4,
            guidance=8.5,
            mirrors=(
                "SimianLuo/LCM_Dreamshaper_v7",
                "patrickvonplaten/LCM_Dreamshaper_v7",
                "TobDeBer/lcm_dream7",
            ),
            download=5.5,
            weights=5.5,
        ),
        Model(
            "sd-turbo",
            "a Stable Diffusion 2.1 distilled with an adversary: one step, no guidance; mind its licence",
            size=512,
            steps=1,
            guidance=0.0,
            mirrors=("stabilityai/sd-turbo", "thingthatis/sd-turbo"),
            download=2.6,
            weights=5.2,
        ),
    )
}


#: The published ControlNets 1.1 of each model of the hub, by condition (arXiv 2302.05543). None is known elsewhere in
#: the same form: those of version 1.0 want other maps of normals.
CONTROLNETS: dict[str, dict[str, str]] = {
    "sd15": {
        "canny": "lllyasviel/control_v11p_sd15_canny",
        "softedge": "lllyasviel/control_v11p_sd15_softedge",
        "mlsd": "lllyasviel/control_v11p_sd15_mlsd",
        "depth": "lllyasviel/control_v11f1p_sd15_depth",
        "normal": "lllyasviel/control_v11p_sd15_normalbae",
        "openpose": "lllyasviel/control_v11p_sd15_openpose",
        "scribble": "lllyasviel/control_v11p_sd15_scribble",
        "seg": "lllyasviel/control_v11p_sd15_seg",
    }
}
#: Channels of the states of Stable Diffusion 1's text encoder; those of version 2 have 1024.
TEXT_WIDTH = 768


def find(
    name_or_path: str | Path, *, base: str | None = None, timeout: float = TIMEOUT, endpoint: str | None = None
) -> Model:
    """The catalogue's entry of that name, or one for the pipeline or LoRA in that folder or repository of the hub.

    A pipeline takes the steps, guidance and options of "tabletop" if its pictures are no larger, else those of "sd15";
    a LoRA those of its base. Of a pipeline on the hub that is not in the cache, only its description is fetched.

    Args:
        base: of a LoRA, the model that it was trained on, by name, folder or repository. By default the one that its
            README.md (as `base_model`) or adapter_config.json (as `base_model_name_or_path`) names.
        timeout, endpoint: see `download`.
    Raises:
        UnknownModelError: there is no such thing, or a LoRA's base is not said.
        NotALoraError: a base is given for what is none.
        NotAPipelineError, PickleRefusedError, DamagedError: what is there cannot be used.
        OfflineError, NoMirrorError: the repository cannot be asked.
    """
    return _find(name_or_path, base, timeout, endpoint)


def _find(name_or_path: str | Path, base: str | None, timeout: float, endpoint: str | None, above: str = "") -> Model:
    """What `find` gives; `above` is the name of the LoRA whose base it is to be."""
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    if name not in CATALOGUE and path.is_dir():
        path = path.resolve()
        lora = (path / LORA).is_file() and not (path / "model_index.json").is_file()
        found = _described(path.name, f"in {path}", path, lora, base, timeout, endpoint, above)
        return replace(found, path=path, mirrors=())
    if name not in CATALOGUE and isinstance(name_or_path, str) and REPOSITORY.fullmatch(name):
        try:
            folder, lora = _description(name, timeout, endpoint)
        except NoMirrorError as error:
            raise NoMirrorError(f"{error} There is no folder of that name here either.") from None
        return _described(name, f"in the repository {name}", folder, lora, base, timeout, endpoint, above)
    if base is not None:
        raise NotALoraError(f"base={base!r} is for a LoRA, and {name!r} is none.")
    if name in CATALOGUE:
        return CATALOGUE[name]
    if isinstance(name_or_path, Path) or re.search(r"[/\\~.]", name):
        raise UnknownModelError(f"There is no folder {name!r}; the catalogue has {', '.join(CATALOGUE)}.")
    near = difflib.get_close_matches(name.lower(), CATALOGUE, n=1, cutoff=0.5)
    raise UnknownModelError(
        f"There is no model {name!r}{f'; did you mean {near[0]!r}?' if near else '.'} The catalogue has "
        f"{', '.join(CATALOGUE)}; the path of a pipeline's folder works too, and a repository of the hub (owner/name)."
    )


def _described(
    name: str,
    where: str,
    folder: Path,
    lora: bool,
    base: str | None,
    timeout: float,
    endpoint: str | None,
    above: str,
) -> Model:
    """The model, as one of the hub, whose description is in this folder."""
    if not lora:
        size = _picture_size(folder)
        if base is not None:
            raise NotALoraError(f"base={base!r} is for a LoRA, and what is {where} is a pipeline.")
        like = CATALOGUE["tabletop" if size <= CATALOGUE["tabletop"].size else "sd15"]
        return replace(like, name=name, summary=f"the pipeline {where}", size=size, mirrors=(name,), download=0.0)
    if above:  # before its own base is asked for, which may be the one above
        raise NotAPipelineError(f"{name} is itself a LoRA; the base of {above} must be a pipeline.")
    told = base or _base_of(folder)
    if not told:
        raise UnknownModelError(
            f"The LoRA {where} does not say which model it changes: name that one, as base='sd15' or with --base sd15."
        )
    of_catalogue = next((known for known in CATALOGUE.values() if told in known.mirrors), None)
    below = of_catalogue or _find(GONE.get(told, told), None, timeout, endpoint, above=name)
    return replace(below, name=name, summary=f"the LoRA {where}", path=None, mirrors=(name,), download=0.0, base=below)


def _base_of(folder: Path) -> str:
    """The base model that a LoRA's description names, of the catalogue or the hub; "" when it names none."""
    import huggingface_hub
    import yaml  # it comes with huggingface_hub

    found: list[Any] = []
    try:
        found.append((huggingface_hub.metadata_load(folder / "README.md") or {}).get("base_model"))
    except (OSError, ValueError, yaml.YAMLError):
        pass  # there is none, or a person wrote it
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        found.append(config.get("base_model_name_or_path"))
    except (OSError, ValueError, AttributeError):
        pass
    names = [name[0] if isinstance(name, list) and name else name for name in found]
    # Not a path: it would be one on the machine that trained.
    return next((n for n in names if isinstance(n, str) and (n in CATALOGUE or REPOSITORY.fullmatch(n))), "")


def load(
    name_or_path: str | Path = "tabletop",
    *,
    base: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    timeout: float = TIMEOUT,
    endpoint: str | None = None,
    **options: Any,
) -> DiffusionPipeline:
    """A stock diffusers pipeline, ready to draw.

    Args:
        name_or_path: a name of the catalogue; a folder that `save_pretrained` or `finetuning.save_learned` wrote; or a
            repository of the hub, "owner/name". The latter two may hold a pipeline or a LoRA.
        base: of a LoRA, the model that it was trained on, if it does not say so itself; see `find`.
        device: by default the GPU if torch sees a CUDA one, else the CPU. Name any other, such as "mps".
        dtype: by default torch.float16 on CUDA, else torch.float32; the weights are converted to it.
        timeout: seconds that a mirror of the hub may take to answer.
        endpoint: the hub's address, if not huggingface_hub's default (HF_ENDPOINT).
        options: given to `from_pretrained`. A part that is named here is neither read nor fetched:
            `safety_checker=None` leaves out the safety checker, `unet=...` puts in another U-Net.

    Raises:
        UnknownModelError, NotAPipelineError, PickleRefusedError: the name, folder or repository cannot be used.
        ValueError: the device is unknown, or it is CUDA or MPS, and torch sees no such GPU.
        OfflineError, NoMirrorError: a model of the hub cannot be fetched.
        DamagedError: a file on this machine is damaged.
    """
    check_device(device)
    model = find(name_or_path, base=base, timeout=timeout, endpoint=endpoint)
    options = {**model.options, **options}
    if "safety_checker" in options and options["safety_checker"] is None:
        options.setdefault("requires_safety_checker", False)
    lora = None
    if model.base:  # before the base, which is many times larger
        lora = model.path or download(model, timeout=timeout, endpoint=endpoint)
        check_lora(lora)
    whole = model.base or model
    folder = whole.folder or download(whole, skip=options, timeout=timeout, endpoint=endpoint)
    weights = check_folder(folder, skip=options)
    _check_sums(folder)

    # Imported only now, so that every error that needs no torch is raised at once.
    with quiet():
        import diffusers

        device, stored = _settings(device, dtype, weights)
        pipe = diffusers.DiffusionPipeline.from_pretrained(folder, **stored, **options).to(device)
        if lora is not None:
            _put_on(pipe, lora, f"The LoRA {model.name} does not fit its base, {whole.name}")
    _fit(pipe, device)
    # Small models draw too fast for a progress bar to be of use.
    pipe.set_progress_bar_config(disable=model.size <= CATALOGUE["tabletop"].size, leave=False)
    return pipe


def _put_on(pipe: Any, folder: Path, unfit: str) -> None:
    """Put a folder's LoRA on a pipeline, or raise NotAPipelineError, which begins with `unfit`."""
    if not hasattr(pipe, "load_lora_weights"):
        raise NotAPipelineError(f"{unfit}: a {type(pipe).__name__} takes none.")
    try:
        pipe.load_lora_weights(folder, weight_name=LORA, local_files_only=True)
    except (ValueError, RuntimeError, KeyError) as error:  # layers that are not there, or of other sizes
        reason = str(error).strip().partition("\n")[2].strip().partition("\n")[0] or str(error)
        raise NotAPipelineError(f"{unfit} ({reason.strip().rstrip('.:')[:200]}).") from None
    if not pipe.get_active_adapters():  # none of its layers has a name that is known
        raise NotAPipelineError(f"{unfit}: it changes no layer of it.")


def controlnets(
    model: str | Path | Model = "tabletop", *, timeout: float = TIMEOUT, endpoint: str | None = None
) -> dict[str, Path | str]:
    """The ControlNets that are known for a model, by condition: folders on this machine, or repositories of the hub.

    Those of a model of the catalogue also suit its LoRAs, and pipelines with pictures of its size; the published ones
    only if their U-Net listens to the text encoder of Stable Diffusion 1.
    """
    return _companions("controlnet", CONTROLNETS, model, timeout, endpoint)


def _text_width(model: Model) -> int:
    """Channels of the text encoder's states that a pipeline's U-Net listens to; 0 when it does not say so."""
    folder = model.folder or _cached(model.name, "model_index.json")  # where `find` put its description
    try:
        config = json.loads(((folder or Path()) / "unet" / "config.json").read_text(encoding="utf-8"))
        return int(config["cross_attention_dim"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def load_controlnet(
    condition: str | Path,
    model: str | Path = "tabletop",
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    timeout: float = TIMEOUT,
    endpoint: str | None = None,
) -> ControlNetModel:
    """A stock ControlNet for a model.

    Args:
        condition: such as "canny" or "depth"; or a ControlNet of your own: a folder that `save_pretrained` wrote, or a
            repository of the hub, "owner/name".
        model: a name of the catalogue, or another model that is like one of those (see `controlnets`).
        device, dtype, timeout, endpoint: as in `load`.

    Raises:
        ValueError: no such ControlNet is known; the message lists those that are.
        NotAPipelineError, PickleRefusedError: the folder cannot be used.
        OfflineError, NoMirrorError: a ControlNet of the hub cannot be fetched.
        DamagedError: a file on this machine is damaged.
    """
    return _load_part("ControlNetModel", "ControlNet", controlnets, condition, model, device, dtype, timeout, endpoint)


def load_adapter(
    condition: str | Path,
    model: str | Path = "tabletop",
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    timeout: float = TIMEOUT,
    endpoint: str | None = None,
) -> T2IAdapter:
    """A stock T2I-Adapter for a model; arguments and errors are those of `load_controlnet`."""
    return _load_part("T2IAdapter", "T2I-Adapter", adapters, condition, model, device, dtype, timeout, endpoint)


def adapters(
    model: str | Path | Model = "tabletop", *, timeout: float = TIMEOUT, endpoint: str | None = None
) -> dict[str, Path | str]:
    """The T2I-Adapters that are known for a model, by condition (see `controlnets`); those of the miniature alone."""
    return _companions("adapter", {}, model, timeout, endpoint)


def _companions(
    what: str,
    published: Mapping[str, Mapping[str, str]],
    model: str | Path | Model,
    timeout: float,
    endpoint: str | None,
) -> dict[str, Path | str]:
    known = model if isinstance(model, Model) else find(model, timeout=timeout, endpoint=endpoint)
    known = known.base or known
    alike = (other.name for other in CATALOGUE.values() if other.size == known.size)
    name = known.name if known.name in CATALOGUE else next(alike, "")
    if name != "tabletop":
        fits = known.name in CATALOGUE or _text_width(known) == TEXT_WIDTH
        return dict(published.get(name, {})) if fits else {}
    start = f"{name}-{what}-"
    return {p.name.removeprefix(start): p for p in sorted((companion.DATA / "models").glob(f"{start}*")) if p.is_dir()}


def _load_part(
    kind: str,
    what: str,
    known_for: Callable[..., dict[str, Path | str]],
    condition: str | Path,
    model: str | Path,
    device: str | torch.device | None,
    dtype: torch.dtype | None,
    timeout: float,
    endpoint: str | None,
) -> Any:
    """A ControlNet or T2I-Adapter, of diffusers' class `kind`, fetched if need be."""
    check_device(device)
    place: Path | str = condition
    if not (isinstance(condition, Path) or Path(condition).is_dir() or REPOSITORY.fullmatch(condition)):
        base = find(model, timeout=timeout, endpoint=endpoint)
        known = known_for(base)
        if condition not in known:
            there = f"these are: {', '.join(known)}" if known else "none is"
            raise ValueError(f"No {what} {condition!r} is known for {base.name}; {there}.")
        place = known[condition]
    if isinstance(place, Path) or Path(place).is_dir():
        folder = Path(place)
        _check_sums(folder)
    else:
        repository = Model(place, "", 0, 0, 0.0, (place,))
        folder = download(repository, single=True, timeout=timeout, endpoint=endpoint)
    weights = check_part(folder)
    with quiet():
        import diffusers

        device, options = _settings(device, dtype, weights)
        part = getattr(diffusers, kind).from_pretrained(folder, **options)
    return part.to(device).eval()


def reported() -> dict[str, float]:
    """What `companion build report` measured of the models in data/models, by name."""
    return json.loads((companion.DATA / "models" / "report.json").read_text(encoding="utf-8"))


def seeded(seed: int) -> torch.Generator:
    """A generator on the CPU, whatever the pipeline's device: the same seed then gives the same noise everywhere."""
    import torch

    return torch.Generator("cpu").manual_seed(seed)


def check_device(device: str | torch.device | None) -> None:
    """Check that a device can be one, without importing torch. Raises ValueError when it cannot."""
    if device is not None and not re.fullmatch(rf"(?:{'|'.join(DEVICES)})(?::\d+)?", str(device)):
        raise ValueError(f"device={str(device)!r} is unknown; known are {', '.join(DEVICES)}, and cuda:1 for a second.")


def _settings(
    device: str | torch.device | None, dtype: torch.dtype | None, weights: Collection[str]
) -> tuple[torch.device, dict[str, Any]]:
    """Where a model goes, and the arguments of `from_pretrained` for weights with these names.

    Raises ValueError for a GPU that torch does not see.
    """
    device, dtype = place(device, dtype)
    return device, {
        **precision(dtype),
        "use_safetensors": True,
        "local_files_only": True,
        "variant": "fp16" if any(".fp16" in name for name in weights) else None,
    }


def place(device: str | torch.device | None, dtype: torch.dtype | None = None) -> tuple[torch.device, torch.dtype]:
    """Where a model goes, and in which precision. Raises ValueError for a GPU that torch does not see."""
    import torch

    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    for kind, there in (("cuda", torch.cuda.is_available), ("mps", torch.backends.mps.is_available)):
        if device.type == kind and not there():
            raise ValueError(f"device='{device}', but torch {torch.__version__} sees no {kind.upper()} GPU; use 'cpu'.")
    if dtype is None:
        # GPUs compute fast in half precision; most CPUs only emulate it.
        dtype = torch.float16 if device.type == "cuda" else torch.float32
    return device, dtype


def precision(dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The precision as an argument of `from_pretrained` and `from_pipe`, by the name that diffusers has for it."""
    import diffusers
    from packaging.version import Version

    return {"dtype" if Version(diffusers.__version__) >= Version("0.40") else "torch_dtype": dtype}


def _fit(pipe: DiffusionPipeline, device: torch.device) -> None:
    """Apply settings for a 16 GB GPU such as the T4; on a CPU they only cost time (plain NCHW is faster there)."""
    if device.type != "cuda":
        return
    import torch

    vae, unet = getattr(pipe, "vae", None), getattr(pipe, "unet", None)
    if vae is not None:
        # Memory use peaks in decoding, where activations have the picture's size. Slicing decodes a batch one by one,
        # with equal results; tiling starts only above the size that the VAE was trained at.
        vae.enable_slicing()
        vae.enable_tiling()
    for module in (vae, unet):
        if module is not None:
            module.to(memory_format=torch.channels_last)  # the layout in which tensor cores convolve
    if torch.cuda.get_device_properties(device).total_memory < 8e9:
        # torch's fused attention never holds the whole matrix, and slicing is slower: only small GPUs need it.
        pipe.enable_attention_slicing()


# ---- Folders ---------------------------------------------------------------------------------------------------------

_WEIGHTS = re.compile(r"(?:model|diffusion_pytorch_model)(?:\.fp16)?(?:-\d{5}-of-\d{5})?\.safetensors")
_PICKLE = re.compile(r".+\.(?:bin|ckpt|pt|pth|pkl)")
_TOKENIZER = ({"tokenizer.json"}, {"vocab.json", "merges.txt"}, {"spiece.model"}, {"vocab.txt"})


def check_folder(folder: Path, skip: Collection[str] = ()) -> list[str]:
    """Check a pipeline's folder without the parts in `skip`; returns its weight files (part/name), fp16 if it has any.

    Raises:
        NotAPipelineError: a file is missing; the message names all missing files.
        PickleRefusedError: a part has only pickle weights.
        DamagedError: a weight file is cut short, or model_index.json cannot be read.
    """
    missing, weights = [], []
    for part, kind in _parts(folder).items():
        if part in skip:
            continue
        names = [p.name for p in (folder / part).glob("*")]
        if kind.endswith("Scheduler"):
            needed = {"scheduler_config.json"}
        elif "Tokenizer" in kind:
            needed = {"tokenizer_config.json"}
            if not any(files <= set(names) for files in _TOKENIZER):
                needed.add("tokenizer.json")
        elif "Processor" in kind or "FeatureExtractor" in kind:
            needed = {"preprocessor_config.json"}
        else:
            needed = {"config.json"}
            found = _weights(part, names)
            weights += found
            if not found:
                needed.add("model.safetensors" if "Text" in kind else "diffusion_pytorch_model.safetensors")
        missing += [f"{part}/{name}" for name in sorted(needed - set(names))]
    if missing:
        raise NotAPipelineError(f"{folder} is not a whole pipeline: it lacks {', '.join(missing)}.{_way_out(folder)}")
    for name in weights:
        _check_length(folder / name)
    return weights


def check_part(folder: Path) -> list[str]:
    """Check the folder of one part of a pipeline, such as a ControlNet; returns its weight files, fp16 if it has any.

    Raises NotAPipelineError, PickleRefusedError and DamagedError as `check_folder` does.
    """
    names = [p.name for p in folder.glob("*")]
    weights = [Path(name).name for name in _weights(folder.name, names)]
    needed = ["config.json"] if "config.json" not in names else []
    needed += [] if weights else ["diffusion_pytorch_model.safetensors"]
    if needed:
        raise NotAPipelineError(f"{folder} is not a whole model: it lacks {' and '.join(needed)}.{_way_out(folder)}")
    for name in weights:
        _check_length(folder / name)
    return weights


def check_lora(folder: Path) -> None:
    """Check the file of a LoRA's folder. Raises NotAPipelineError and DamagedError."""
    if not (folder / LORA).is_file():
        raise NotAPipelineError(f"{folder} lacks {LORA}.")
    _check_length(folder / LORA)


def belonging(folder: Path, *, single: bool = False) -> list[str]:
    """The files of a pipeline's, a LoRA's or, if `single`, a ControlNet's folder that make it, by path in the folder.

    Whatever else lies there, such as checkpoints, pickles, notes or photographs, is left out. Raises NotAPipelineError
    and PickleRefusedError.
    """
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    if single:
        return _wanted_part(folder.name, names)
    return _wanted(names, ()) if "model_index.json" in names else _wanted_lora(names)


def _parts(folder: Path) -> dict[str, str]:
    """The parts that model_index.json names, each with the name of its class."""
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotAPipelineError(
            f"{folder} is not a pipeline's folder: it lacks model_index.json, which `save_pretrained` writes."
            f"{_way_out(folder)}"
        ) from None
    except ValueError as error:
        raise DamagedError(f"{folder / 'model_index.json'} cannot be read: {error}.{_way_out(folder)}") from None
    return {name: value[1] for name, value in index.items() if isinstance(value, list) and len(value) == 2 and value[1]}


def _picture_size(folder: Path) -> int:
    """Width of a pipeline's pictures in pixels: that of the U-Net's latents times the VAE's downsampling factor."""
    _parts(folder)
    try:
        unet = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
        vae = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))
        return int(unet["sample_size"]) * 2 ** (len(vae["block_out_channels"]) - 1)
    except (OSError, ValueError, KeyError, TypeError):
        return CATALOGUE["sd15"].size  # other families store it elsewhere; check_folder names what is missing


def _weights(part: str, names: Collection[str]) -> list[str]:
    """The files to load a part's weights from, as part/name; [] when it has none."""
    found = sorted(name for name in names if _WEIGHTS.fullmatch(name))
    # fp16 files have half the bytes. Their rounding to 11 bits cannot be seen, and computing uses `dtype` anyway.
    found = [name for name in found if ".fp16" in name] or found
    pickled = sorted(name for name in names if _PICKLE.fullmatch(name))
    if pickled and not found:
        raise PickleRefusedError(
            f"{part}/{pickled[0]} is a pickle file, which can run any code when it is loaded; "
            "only safetensors are loaded, so convert it, or take a copy that has them."
        )
    return [f"{part}/{name}" for name in found]


def _check_length(path: Path) -> None:
    """Let safetensors compare a file's length with what its header says; only the header is read."""
    try:
        from safetensors import SafetensorError, safe_open

        with safe_open(path, framework="np"):
            pass
    except ImportError:  # no model can be loaded then; the doctor, which must run all the same, compares checksums
        return
    except SafetensorError:
        raise DamagedError(f"{path} is cut short, or is not a safetensors file.{_way_out(path)}") from None


def _check_sums(folder: Path) -> None:
    """Compare a folder's files with checksums.json in its parent folder, if there is one."""
    if (folder.parent / "checksums.json").is_file() and (problems := damage(folder.parent, f"{folder.name}/")):
        raise DamagedError(f"In {folder.parent}, {'; '.join(problems)}.{_way_out(folder)}")


def _way_out(path: Path) -> str:
    """A sentence on how to restore a file in the clone's data/models; "" for other files."""
    inside = companion.ROOT / "data" / "models" in path.absolute().parents
    return " `git checkout -- data/models` restores it." if inside else ""


# ---- The hub ---------------------------------------------------------------------------------------------------------


def download(
    model: Model,
    *,
    skip: Collection[str] = (),
    single: bool = False,
    timeout: float = TIMEOUT,
    endpoint: str | None = None,
    instead: str = INSTEAD,
) -> Path:
    """The folder of a hub's model in huggingface_hub's cache, fetched from the first mirror that gives all of it.

    A model in the cache needs no network, and stays as it is when the repository changes: `hf cache rm` forgets it. A
    mirror is passed over when it does not answer in time, lacks the model, has only pickle weights, or sends a file
    that differs from its listing; such a file is deleted.

    Args:
        model: a pipeline, or a LoRA, which comes without its base.
        skip: parts that are not wanted, such as {"safety_checker"}.
        single: the repositories hold one part of a pipeline, such as a ControlNet.
        timeout: seconds that a mirror may take to answer; see `TIMEOUT`.
        endpoint: the hub's address, if not huggingface_hub's default (HF_ENDPOINT).
        instead: the way out without it, for errors.

    Raises:
        OfflineError: it is not in the cache, and HF_HUB_OFFLINE is set.
        NoMirrorError: no mirror gave it; the message holds each one's reason.
    """
    form = _form(model, skip, single)
    for repo in model.mirrors:
        if folder := _cached(repo, form.last):
            try:
                form.check(folder)
                return folder
            except (NotAPipelineError, PickleRefusedError, DamagedError):
                pass  # an earlier download that did not end, or one that left parts out
    return _from_mirrors(model.name, model.mirrors, form, timeout, endpoint, instead)


@dataclass(frozen=True)
class _Form:
    """What belongs to a model: the file that is fetched last, a choice of a repository's files, and a check of them."""

    last: str
    wanted: Callable[[str, Collection[str]], list[str]]
    check: Callable[[Path], Any]


def _form(model: Model, skip: Collection[str], single: bool) -> _Form:
    if single:
        return _Form("config.json", _wanted_part, check_part)
    if model.base:
        return _Form(LORA, lambda _, files: _wanted_lora(files), check_lora)
    return _Form("model_index.json", lambda _, files: _wanted(files, skip), lambda folder: check_folder(folder, skip))


def _cached(repo: str, name: str) -> Path | None:
    """The folder of the cache that holds a repository's file, if it is there."""
    import huggingface_hub

    found = huggingface_hub.try_to_load_from_cache(repo, name)
    return Path(found).parent if isinstance(found, str) else None


def _from_mirrors(
    name: str, mirrors: Collection[str], form: _Form, timeout: float, endpoint: str | None, instead: str = INSTEAD
) -> Path:
    """The folder of what the first mirror gave. Raises OfflineError and NoMirrorError."""
    import huggingface_hub
    from huggingface_hub.errors import HTTPError  # of httpx in huggingface_hub 1, of httpx2 in 2

    if huggingface_hub.is_offline_mode():
        raise OfflineError(
            f"{name!r} is not on this machine and HF_HUB_OFFLINE is set, so it cannot be fetched: unset it, {instead}."
        )
    reasons = []
    for repo in mirrors:
        try:
            return _fetch(repo, form, timeout, endpoint)
        except (NotAPipelineError, PickleRefusedError) as error:
            if name in mirrors:  # asked for by its own name: it is there, and cannot be used
                raise type(error)(f"The repository {name} cannot be used: {str(error).rstrip('.')}.") from None
            reasons.append(f"{repo} ({_reason(error, timeout)})")
        except (OSError, HTTPError) as error:
            reasons.append(f"{repo} ({_reason(error, timeout)})")
    if name in mirrors:
        raise NoMirrorError(
            f"The hub did not give {reasons[0]}. Check the name and the network; a repository that is private, or asks "
            "for your consent, needs HF_TOKEN."
        )
    raise NoMirrorError(f"No mirror gave {name!r}: {'; '.join(reasons)}. Check the network and try again, {instead}.")


def _description(repo: str, timeout: float, endpoint: str | None) -> tuple[Path, bool]:
    """The folder of the cache with what a repository says about itself, and whether that is a LoRA."""
    if folder := _cached(repo, "model_index.json"):
        return folder, False
    if folder := _cached(repo, LORA):
        return folder, True
    form = _Form("", lambda _, files: _wanted_description(files), lambda folder: None)
    folder = _from_mirrors(repo, (repo,), form, timeout, endpoint)
    return folder, not (folder / "model_index.json").is_file()


def _wanted_description(files: Collection[str]) -> list[str]:
    """The files of a repository that tell whether it is a pipeline or a LoRA, how large its pictures are, or its base.

    Raises NotAPipelineError and PickleRefusedError when it is neither.
    """
    if "model_index.json" in files:
        return [
            *(f"{part}/config.json" for part in ("unet", "vae") if f"{part}/config.json" in files),
            "model_index.json",
        ]
    return _wanted_lora(files)


def _wanted_lora(files: Collection[str]) -> list[str]:
    """The files of a repository that make a LoRA; the weights are last. Raises as `_wanted_description` does."""
    if LORA in files:
        return [*(name for name in ("README.md", "adapter_config.json") if name in files), LORA]
    pickled = LORA.replace(".safetensors", ".bin")
    if pickled in files:
        raise PickleRefusedError(
            f"{pickled} is a pickle file, which can run any code when it is loaded; only safetensors are loaded"
        )
    raise NotAPipelineError(f"it has neither model_index.json, as a pipeline has, nor {LORA}, as a LoRA has")


def _fetch(repo: str, form: _Form, timeout: float, endpoint: str | None) -> Path:
    """Fetch one mirror's model into the cache; every file is compared with what the mirror listed."""
    import huggingface_hub as hub

    # snapshot_download would be one call, but it may wait forever for the listing, and does not check what it gets.
    listing = hub.HfApi(endpoint=endpoint).model_info(repo, files_metadata=True, timeout=timeout).siblings or []
    listed = {file.rfilename: file for file in listing}
    wanted = form.wanted(repo, listed)
    # If a mirror does not serve its files, huggingface_hub would ask six times, a minute each; this asks once.
    hub.get_hf_file_metadata(hub.hf_hub_url(repo, wanted[-1], endpoint=endpoint), timeout=timeout, endpoint=endpoint)
    for name in wanted:
        path = Path(hub.hf_hub_download(repo, name, endpoint=endpoint, etag_timeout=timeout))
        if problem := _difference(path, listed[name]):
            path.resolve().unlink()  # the cache's copy, and the link to it
            path.unlink(missing_ok=True)
            raise DamagedError(f"{name} {problem}")
    form.check(path.parent)
    return path.parent


def _wanted_part(repo: str, files: Collection[str]) -> list[str]:
    """The files of a repository that make one part of a pipeline, or one model; its config.json is last."""
    weights = [Path(name).name for name in _weights(repo.rpartition("/")[2], [f for f in files if "/" not in f])]
    if not weights or "config.json" not in files:
        raise NotAPipelineError("it lacks config.json or weights")
    processor = [name for name in files if re.fullmatch(r"(?:pre)?processor_config\.json", name)]  # of its pictures
    return [*weights, *processor, "config.json"]


def _wanted(files: Collection[str], skip: Collection[str]) -> list[str]:
    """The files of a repository that make a pipeline; model_index.json is last, so it marks a complete download."""
    if "model_index.json" not in files:
        raise NotAPipelineError("it lacks model_index.json")
    parts: dict[str, list[str]] = {}
    for file in sorted(files):
        part, _, name = file.rpartition("/")
        if part and "/" not in part and part not in skip:
            parts.setdefault(part, []).append(name)
    wanted = []
    for part, names in parts.items():
        if any(name.endswith("config.json") for name in names):
            wanted += [f"{part}/{name}" for name in names if re.fullmatch(r".+\.(?:json|txt|model)", name)]
            wanted += _weights(part, names)
    return [*wanted, "model_index.json"]


def _difference(path: Path, listed: Any) -> str:
    """How a file differs from what the hub listed; "" when it does not."""
    size = path.stat().st_size
    if listed.size is not None and size != listed.size:
        return f"is cut short: {size:,} of {listed.size:,} bytes"
    if listed.lfs is not None:
        same = sha256(path) == listed.lfs.sha256
    else:  # small files are listed with git's hash
        same = hashlib.sha1(b"blob %d\0" % size + path.read_bytes()).hexdigest() == (listed.blob_id or "")
    return "" if same else "is not the file that was listed"


def _reason(error: BaseException, timeout: float) -> str:
    """Why a mirror failed, in a few words."""
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__  # the error itself is about the cache; its cause says why the mirror failed
    response = getattr(error, "response", None)
    if isinstance(error, GatedRepoError):  # which is a RepositoryNotFoundError too
        return "its page asks for your consent first"
    if isinstance(error, RepositoryNotFoundError):
        return "no such repository, or a private one"
    if response is not None:
        return f"answered {response.status_code}"
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return f"no answer in {timeout:g} seconds"
    if "ConnectError" in type(error).__name__:
        return "no connection"
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Turn off progress bars and warnings: without this, importing and loading print a screenful to stderr."""
    import huggingface_hub.utils as hub
    import transformers.utils.logging as transformers_logging

    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    import diffusers.utils.logging as diffusers_logging

    bars = [
        (diffusers_logging.is_progress_bar_enabled(), diffusers_logging.enable_progress_bar),
        (transformers_logging.is_progress_bar_enabled(), transformers_logging.enable_progress_bar),
        (not hub.are_progress_bars_disabled(), hub.enable_progress_bars),
    ]
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        for enabled, enable in bars:
            if enabled:
                enable()
