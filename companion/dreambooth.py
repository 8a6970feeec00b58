"""DreamBooth (N. Ruiz et al., arXiv 2208.12242): teach a model a subject, and measure what it learned and forgot.

    taught = teach(pipe, SUBJECTS["duck"], Full(), steps=200, lr=1e-4)
    *_, last = taught
    pictures = draw(last.tuned.pipe, prompts, seeds, steps=20, guidance_scale=3.0)
    print(likeness(pictures, photographs).mean())

The paper compares embeddings of DINO and CLIP. For the miniature the judge's features of things stand in for DINO's,
and its own CLIP for OpenAI's. Similarities are cosines after each feature was brought to mean 0 and deviation 1 over
held-out renders, so that pictures which have nothing special in common have about 0.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import DDPMScheduler
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from companion import diffusion
from companion.finetuning import Examples, Method, Tuned, attach, examples, finetune
from companion.latent_diffusion import prompt_for
from companion.metrics import pictures_to_tensor, tensor_to_bytes
from companion.models import seeded
from companion.pictures import as_jpeg
from companion.tabletop import measures
from companion.tabletop.caption import KIND_WORDS, PLACE_WORDS, TIME_WORDS
from companion.tabletop.samples import held_out
from companion.tabletop.scene import COLOURS, KINDS, WITHHELD
from companion.training import Progress

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from companion.tabletop.scene import Scene
    from companion.tabletop.subjects import Subject

#: A rare word. "sks", which guides for Stable Diffusion use, is one token here, and no caption ever had it: so its row
#: of the table of embeddings was never trained, and it hardly moves what the text encoder says. The five tokens of this
#: word move more (notebook 05 measures how much the U-Net hears of either).
RARE_WORD = "zwxkq"
#: A word that is learned first, by textual inversion, before any weight moves (pivotal tuning: arXiv 2106.05744 did it
#: with a GAN's code; scripts for LoRA do it with a word). It starts from the nearest word that the model knows, so the
#: U-Net hears it from the first step on.
WORD = "<mine>"
#: How the word is learned: not far. Further on it points at other things that the model knows, cars for a duck and
#: robots for a cactus; and at ten times the rate its numbers become far larger than those of known words, and what it
#: draws falls to pieces.
WORD_RECIPE = {"steps": 50, "lr": 5e-4, "batch": 2, "decay": 0.5}
#: How `finetuning.finetune` teaches the miniature a subject in 200 steps: errors weighed by their noise level (min-SNR,
#: arXiv 2303.09556), so that what stands where counts more than grain, and a rate that falls to zero, so that the last
#: steps do not throw it about.
RECIPE = {"min_snr": 5.0, "decay": 0.7}

# ---- Similarities ----------------------------------------------------------------------------------------------------


@cache
def _scale(features: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each feature over the held-out renders."""
    found = features(held_out()[0])
    return found.mean(0), found.std(0)


def standardised(pictures: Any, features: Callable[..., Tensor] = measures.thing_features) -> Tensor:
    """Features (N, D) of pictures, each with mean 0 and deviation 1 over held-out renders, brought to length 1."""
    mean, deviation = _scale(features)
    return F.normalize((features(pictures_to_tensor(pictures)) - mean) / deviation, dim=-1)


def feature_likeness(
    pictures: Any, references: Any, features: Callable[..., Tensor] = measures.thing_features
) -> Tensor:
    """How much the features of each picture are like those of the references (N,): the mean cosine, from -1 to 1.

    The judge's features of things know colours and surfaces, and hardly any shapes: a yellow ball is as good a yellow
    duck to them as the duck is. With `measures.clip_pictures` it is CLIP-I.
    """
    return (standardised(pictures, features) @ standardised(references, features).T).mean(1)


@cache
def _outlines() -> tuple[Tensor, Tensor]:
    """Mean and deviation of each cell of outlines, over the things of the held-out renders."""
    found = torch.cat(measures.thing_outlines(held_out()[0]))
    return found.mean(0), found.std(0) + 0.05  # cells that hardly differ should not decide


def shape_likeness(pictures: Any, references: Any) -> Tensor:
    """How much outlines are like those of the references' largest things (N,): the mean cosine, from -1 to 1, of how
    they differ from the mean outline. Of several things in a picture the most alike counts; without any it is -1.
    """
    mean, deviation = _outlines()

    def known(outlines: Tensor) -> Tensor:
        return F.normalize((outlines - mean) / deviation, dim=-1)

    wanted = torch.cat([known(o[:1]) for o in measures.thing_outlines(references)])
    nothing = torch.tensor(-1.0)
    found = [known(o) @ wanted.T for o in measures.thing_outlines(pictures)]
    return torch.stack([each.mean(1).max() if len(each) else nothing for each in found])


def likeness(pictures: Any, references: Any) -> Tensor:
    """How much each picture looks like the references (N,), in colours and surfaces and in shape, from -1 to 1: the
    mean of `feature_likeness` and `shape_likeness`.

    With photographs of the subject as references this is the paper's subject fidelity: of its own drawings, the higher
    the better. Of drawings of the class it is the paper's PRES, the lower the better: others of the class should not
    look like the subject.
    """
    return (feature_likeness(pictures, references) + shape_likeness(pictures, references)) / 2


def text_likeness(pictures: Any, prompts: Sequence[str]) -> Tensor:
    """CLIP-T (N,): the cosine of each picture's embedding with its prompt's."""
    if len(pictures) != len(prompts):
        raise ValueError(f"{len(pictures)} pictures but {len(prompts)} prompts; give one for each")
    return (measures.clip_pictures(pictures) * measures.clip_texts(prompts)).sum(1)


def spread(pictures: Any, features: Callable[..., Tensor] = measures.thing_features) -> float:
    """DIV: one minus the mean cosine of all pairs of pictures; 0 when all are the same. Raises ValueError for one."""
    f = standardised(pictures, features)
    n = len(f)
    if n < 2:
        raise ValueError("one picture has no diversity; give two at least")
    return float(1 - ((f @ f.T).sum() - n) / (n * (n - 1)))


def drift(before: Any, after: Any, features: Callable[..., Tensor] = measures.thing_features) -> Tensor:
    """How far each picture has moved (N,): one minus the cosine of what the same prompt and seed drew before and after.

    Raises ValueError when there are not as many of both.
    """
    if len(before) != len(after):
        raise ValueError(f"{len(before)} pictures before and {len(after)} after; draw the same prompts and seeds")
    return 1 - (standardised(before, features) * standardised(after, features)).sum(1)


def colour_drift(before: Any, after: Any) -> Tensor:
    """How far the mean colour of each picture has moved (N,), in CIELAB units: about 2 can just be seen
    (arXiv 2410.14159 finds that finetuning shifts the colours of what it was not about).
    """
    import cv2

    means = []
    for pictures in (before, after):
        # Linear light is averaged, as a blurred photograph would.
        srgb = tensor_to_bytes(pictures_to_tensor(pictures)).numpy().astype(np.float32) / 255
        linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4).mean((1, 2))
        again = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
        means.append(cv2.cvtColor(again[None].astype(np.float32), cv2.COLOR_RGB2LAB)[0])
    return torch.from_numpy(np.linalg.norm(means[0] - means[1], axis=1))


def share(value: float, floor: float, ceiling: float) -> float:
    """How much of the way from floor to ceiling a value has gone: 0 at the floor, 1 at the ceiling."""
    return (value - floor) / (ceiling - floor)


# ---- Photographs, and what is done to them ---------------------------------------------------------------------------


def photographs_for(pipe: StableDiffusionPipeline, subject: Subject) -> Tensor:
    """A subject's five photographs (5, 3, S, S) in [-1, 1], enlarged where the pipeline draws larger pictures."""
    x, size = pictures_to_tensor(subject.photographs()[0]), diffusion.picture_size(pipe)
    return x if x.shape[-1] == size else _resized(x, size, size)


def _resized(x: Tensor, high: int, wide: int) -> Tensor:
    return F.interpolate(x, size=(high, wide), mode="bicubic", antialias=True).clamp(-1, 1)


def _as_jpeg(x: Tensor) -> Tensor:
    saved = [as_jpeg(Image.fromarray(picture)) for picture in tensor_to_bytes(x).numpy()]
    return pictures_to_tensor([Image.open(io.BytesIO(data)) for data in saved])


def _wide(x: Tensor) -> Tensor:
    """The same in the middle of a picture that is four thirds as wide, as a phone would have taken it."""
    more = x.shape[-1] // 6
    return F.pad(x, (more, more, 0, 0), mode="reflect")


def _with_bars(x: Tensor) -> Tensor:
    size = x.shape[-1]
    high = size * size // _wide(x).shape[-1] // 2 * 2
    bar = (size - high) // 2
    return F.pad(_resized(_wide(x), high, size), (0, 0, bar, size - high - bar), value=1.0)


#: Ways to bring a phone's picture, four thirds as wide as high, to the model's square. "small" has half of its sides.
PREPARED: dict[str, Callable[[Tensor], Tensor]] = {
    "cropped": lambda x: x,
    "JPEG": _as_jpeg,
    "stretched": lambda x: _resized(_wide(x), *x.shape[-2:]),
    "with bars": _with_bars,
    "enlarged": lambda x: _resized(_resized(x, x.shape[-2] // 2, x.shape[-1] // 2), *x.shape[-2:]),
    "small": lambda x: _resized(x, x.shape[-2] // 2, x.shape[-1] // 2),
}


# ---- Teaching --------------------------------------------------------------------------------------------------------


def class_prompts(noun: str, n: int) -> list[str]:
    """Prompts for `n` pictures of a class: the noun alone, as in the paper. Others of the class differ by their seeds.

    Raises ValueError for a noun that the miniature does not know.
    """
    if noun not in KIND_WORDS:
        raise ValueError(f"the miniature knows no {noun!r}; the kinds are {', '.join(KIND_WORDS)}")
    return [f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"] * n


def _where(i: int) -> str:
    """All places at all times in turn, since neither number divides the other."""
    places, times = ([words[0] for words in known.values()] for known in (PLACE_WORDS, TIME_WORDS))
    return f"{places[i % len(places)]} {times[i % len(times)]}"


def class_scenes(noun: str, n: int) -> list[str]:
    """Prompts for `n` pictures of a class in all places and at all times. Raises ValueError as `class_prompts` does."""
    return [f"{prompt} {_where(i)}" for i, prompt in enumerate(class_prompts(noun, n))]


def _other_things(noun: str, test: bool) -> Iterator[tuple[str, str]]:
    """Without end the kinds but one, each time in another of the colours that training has seen: two of them for tests,
    and the rest to remind.
    """
    for turn in itertools.count():
        for i, kind in enumerate(KINDS):
            seen = [colour for colour in COLOURS if (kind, colour) not in WITHHELD]
            of_test = [seen[(i + 3 * j) % len(seen)] for j in range(2)]
            colours = of_test if test else [colour for colour in seen if colour not in of_test]
            if kind != noun:
                yield kind, colours[turn % len(colours)]


def unrelated(noun: str = "") -> list[str]:
    """Prompts for each kind but a class, twice, of which the subject is no part: what they draw should stay as it was.
    No example ever has these kinds in these colours.
    """
    things = itertools.islice(_other_things(noun, test=True), 2 * (len(KINDS) - (noun in KINDS)))
    return [prompt_for(*thing) for thing in things]


def other_scenes(noun: str, n: int) -> list[str]:
    """Prompts for `n` pictures of all other kinds, everywhere and at all times, in colours that `unrelated` spares."""
    things = enumerate(itertools.islice(_other_things(noun, test=False), n))
    # A kind should not always be at the same time, so each turn through the kinds begins elsewhere.
    return [prompt_for(*thing, _where(i + i // len(KINDS))) for i, thing in things]


def class_set(
    pipe: StableDiffusionPipeline,
    noun: str,
    n: int = 100,
    others: int | None = None,
    weight: float = 1.0,
    seed: int = 1000,
    **options: Any,
) -> Examples:
    """The second set of DreamBooth, drawn by the model itself before it learns: `n` pictures of the class, and `others`
    of other things, as many when None. The paper has the class alone.

    `options` are those of `diffusion.draw`: steps, guidance_scale and so on.
    """
    prompts = class_scenes(noun, n) + other_scenes(noun, n if others is None else others)
    n = len(prompts)
    pictures = diffusion.draw(pipe, prompts, [seed + i for i in range(n)], **options)
    return examples(pipe, pictures, prompts, weight=weight)


def subject_prompts(subject: Subject, scenes: Sequence[Scene], word: str, noun: str | None = None) -> list[str]:
    """Captions of scenes with a subject, which is called by a word and a noun, its own when None."""
    noun = subject.noun if noun is None else noun
    prompts = [subject.prompt(scene, "@") for scene in scenes]  # a neighbour may be of the same kind
    return [" ".join(prompt.replace(f"@ {subject.noun}", f"{word} {noun}").split()) for prompt in prompts]


def subject_set(
    pipe: StableDiffusionPipeline,
    subject: Subject,
    word: str = RARE_WORD,
    noun: str | None = None,
    photographs: int = 5,
    prepared: str = "cropped",
    scenes: bool = True,
) -> Examples:
    """The first set: a subject's photographs, with captions such as "a zwxkq cone on grass by day".

    Args:
        word: the word for it; "" for none.
        noun: the class noun, the subject's own when None; another one, or "" for none, to see what that does.
        photographs: how many of the subject's five are taken.
        prepared: how they were brought to the model's size, a name of `PREPARED`.
        scenes: whether captions say where and when, which then is not learned as a part of the subject; otherwise each
            is "a zwxkq cone", as in the paper.
    Raises:
        ValueError: for another number of photographs, or an unknown way.
    """
    if not 1 <= photographs <= 5:
        raise ValueError(f"photographs={photographs} is outside 1 to 5; a subject has five")
    if prepared not in PREPARED:
        raise ValueError(f"prepared={prepared!r} is unknown; the ways are {', '.join(PREPARED)}")
    noun = subject.noun if noun is None else noun
    prompts = subject_prompts(subject, subject.photographs()[1][:photographs], word, noun)
    if not scenes:
        prompts = [" ".join(filter(None, ("a", word, noun)))] * photographs
    pictures = PREPARED[prepared](photographs_for(pipe, subject)[:photographs])
    if pictures.shape[-1] == diffusion.picture_size(pipe):
        return examples(pipe, pictures, prompts)
    return Examples(diffusion.encode(pipe, pictures).float().cpu(), prompts)  # which `examples` refuses


@dataclass(frozen=True)
class Taught:
    """A pipeline that is learning a subject: `tuned.pipe` draws with the weights as they are after `progress.step`."""

    tuned: Tuned
    progress: Progress


def teach(
    pipe: StableDiffusionPipeline,
    subject: Subject,
    method: Method,
    *,
    steps: int,
    prior: Examples | None = None,
    word: str = RARE_WORD,
    noun: str | None = None,
    photographs: int = 5,
    prepared: str = "cropped",
    scenes: bool = True,
    seed: int = 0,
    **options: Any,
) -> Iterator[Taught]:
    """Teach a copy of the pipeline a subject, yielding after each step; the pipeline itself stays as it was.

    Args:
        method: what learns; see `companion.finetuning`.
        prior: the class, from `class_set`; None for naive finetuning.
        word, noun, photographs, prepared, scenes: see `subject_set`.
        options: those of `finetuning.finetune`, such as lr and batch.
    """
    tuned = attach(pipe, method, seed)
    own = subject_set(pipe, subject, word, noun, photographs, prepared, scenes)
    sets = [own, *([prior] if prior is not None else [])]
    for progress in finetune(tuned, sets, steps, seed=seed, **options):
        yield Taught(tuned, progress)


@torch.no_grad()
def errors_at(
    pipe: StableDiffusionPipeline, given: Examples, timesteps: Sequence[int], draws: int = 4, seed: int = 0
) -> Tensor:
    """The mean squared error of the predicted noise at some timesteps (T, N), for each of N examples the mean over
    `draws` noises. The same seed gives the same noises, so that models can be compared, and so can sets.
    """
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    text = diffusion.encode_prompt(pipe, given.prompts)
    x0, found = given.latents.to(text), []
    for t in timesteps:
        alpha_bar, errors = scheduler.alphas_cumprod[t].to(x0), []
        for i in range(draws):
            noise = torch.randn(x0.shape, generator=seeded(seed + i)).to(x0)
            noisy = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise
            eps = diffusion.noise_in(scheduler, pipe.unet(noisy, t, text).sample, noisy, alpha_bar)
            errors.append((eps - noise).float().square().flatten(1).mean(1).cpu())
        found.append(torch.stack(errors).mean(0))
    return torch.stack(found)
