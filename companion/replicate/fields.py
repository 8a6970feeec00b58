"""The fields of a DreamBooth recipe: their names in Replicate's endpoint of 2022, and in the trainers of today.

In 2022 Replicate had an experimental endpoint, `dreambooth-api-experimental`, and many recipes still use its names.
`translate` puts such a recipe in the words of a trainer, and refuses what that trainer would refuse.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: Words that every text encoder has met too often to take them for a new subject.
COMMON = frozenset(
    "my your his her our their this that these those one some any other another every old new young big small little "
    "large tiny tall short good great best nice cute pretty beautiful happy sad funny real clean dirty fresh modern "
    "black white red green blue yellow purple orange pink brown grey gray gold golden silver wooden metal glass "
    "plastic first last single favourite favorite special unique rare person man woman boy girl baby child friend "
    "dog cat puppy kitten horse bird car bike house toy doll book cup mug shoe bag chair food picture photo".split()
)


@dataclass(frozen=True)
class Field:
    """One field of the 2022 endpoint's `input`.

    Attributes:
        name: what it was called in 2022.
        today: what trainers call it now; the first of these names that a trainer has is used.
        about: what it means, in a few words; notebook 07 shows it.
    """

    name: str
    today: tuple[str, ...]
    about: str


FIELDS = (
    Field(
        "instance_prompt",
        ("instance_prompt", "caption_prefix", "autocaption_prefix"),
        "a sentence that holds the rare word",
    ),
    Field("class_prompt", ("class_prompt",), "the same sentence without it: what must not drift"),
    Field("instance_data", ("instance_data", "input_images"), "a zip of the subject's pictures"),
    Field("class_data", ("class_data",), "a zip of pictures of other members of the class"),
    Field("num_class_images", ("num_class_images",), "how many of those there shall be; the trainer draws the rest"),
    Field("max_train_steps", ("max_train_steps", "steps"), "steps of the optimiser"),
    Field("train_text_encoder", ("train_text_encoder",), "whether the text encoder learns too"),
    Field("scale_lr", ("scale_lr",), "multiply the learning rate by batch, accumulation and GPUs"),
    Field("lr_scheduler", ("lr_scheduler",), "how the learning rate changes over the steps"),
    Field("lr_warmup_steps", ("lr_warmup_steps",), "steps in which it rises from 0"),
)
#: The settings beside `input` in 2022, and where each of them goes today.
BESIDE = {
    "model": "destination",
    "trainer_version": "the version in the request's address",
    "webhook_completed": 'webhook, with webhook_events_filter ["completed"]',
}
#: What trainers call the rare word, where they have a field for it.
RARE_WORD = ("token_string", "trigger_word")

#: The inputs of three trainers, as in their published source, for rehearsals. (A real training asks Replicate.)
TRAINERS: dict[str, dict[str, dict[str, Any]]] = {
    "replicate/dreambooth": {
        "instance_prompt": {"type": "string"},
        "class_prompt": {"type": "string"},
        "instance_data": {"type": "string", "format": "uri"},
        "class_data": {"type": "string", "format": "uri"},
        "num_class_images": {"type": "integer"},
        "max_train_steps": {"type": "integer"},
        "train_text_encoder": {"type": "boolean"},
        "scale_lr": {"type": "boolean"},
        "lr_scheduler": {"type": "string"},
        "lr_warmup_steps": {"type": "integer"},
    },
    "stability-ai/sdxl": {
        "input_images": {"type": "string", "format": "uri"},
        "max_train_steps": {"type": "integer"},
        "lr_scheduler": {"type": "string", "enum": ["constant", "linear"]},
        "lr_warmup_steps": {"type": "integer"},
        "token_string": {"type": "string"},
        "caption_prefix": {"type": "string"},
    },
    "ostris/flux-dev-lora-trainer": {
        "input_images": {"type": "string", "format": "uri"},
        "trigger_word": {"type": "string"},
        "autocaption_prefix": {"type": "string"},
        "steps": {"type": "integer", "minimum": 3, "maximum": 6000},
    },
}


@dataclass(frozen=True)
class Translation:
    """A recipe in a trainer's words.

    Attributes:
        input: the trainer's input.
        names: the trainer's name for each field of the recipe that it has.
        dropped: the fields of the recipe that the trainer does not have.
    """

    input: dict[str, Any]
    names: dict[str, str]
    dropped: tuple[str, ...]


def translate(fields: Mapping[str, Any], schema: Mapping[str, Mapping[str, Any]]) -> Translation:
    """Put a recipe in the words of a trainer.

    Args:
        fields: values by their names of 2022; any other name is taken as the trainer's own.
        schema: the trainer's inputs, which are the `properties` of its OpenAPI description.

    Raises:
        ValueError: for a name that is neither of 2022 nor the trainer's, for a value that the trainer would refuse,
            when the recipe names no `instance_data` or the trainer takes none, and where `rare_word` raises it.
    """
    known = {f.name: f.today for f in FIELDS}
    names: dict[str, str] = {}
    dropped = []
    for name in fields:
        new = next((n for n in known.get(name, (name,)) if n in schema), None)
        if new:
            names[name] = new
        elif name in known:
            dropped.append(name)
        else:
            near = difflib.get_close_matches(name, [*known, *schema], n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"There is no field {name!r}; {hint}This trainer has {', '.join(schema)}.")
    if "instance_data" not in names:
        raise ValueError(f"This trainer takes no zip of pictures; its inputs are {', '.join(schema)}.")
    ready = {new: _converted(old, fields[old], schema[new]) for old, new in names.items()}
    wanted = next((n for n in RARE_WORD if n in schema and n not in ready), None)
    if wanted and {"instance_prompt", "class_prompt"} <= set(fields):
        ready[wanted] = rare_word(fields["instance_prompt"], fields["class_prompt"])
    return Translation(ready, names, tuple(dropped))


def _converted(name: str, value: Any, schema: Mapping[str, Any]) -> Any:
    """The value in the type that the trainer wants; in 2022 truth values were sent as "true" and "false"."""
    kind = schema.get("type")
    if kind == "boolean" and isinstance(value, str):
        if value.lower() not in ("true", "false"):
            raise ValueError(f"{name}={value!r} is neither true nor false.")
        value = value.lower() == "true"
    if kind in ("integer", "number"):
        try:
            value = int(value) if kind == "integer" else float(value)
        except (TypeError, ValueError):
            raise ValueError(f"{name}={value!r} is no number, and the trainer wants one.") from None
        low, high = schema.get("minimum", -float("inf")), schema.get("maximum", float("inf"))
        if not low <= value <= high:
            raise ValueError(f"{name}={value} is outside {low:g} to {high:g}, which the trainer takes.")
    if "enum" in schema and value not in schema["enum"]:
        raise ValueError(f"{name}={value!r} is unknown to the trainer; it takes {', '.join(map(str, schema['enum']))}.")
    return value


def rare_word(instance_prompt: str, class_prompt: str) -> str:
    """The word that will mean the subject: the one that only the first prompt has. Articles do not count.

    Raises ValueError unless there is exactly one such word, and when it is not rare: a word of `COMMON`, one with a
    capital letter, which is a name that means somebody already, or one of less than three letters.
    """
    words, common = re.findall(r"\w+", instance_prompt), set(re.findall(r"\w+", class_prompt))
    rare = list(dict.fromkeys(w for w in words if w not in common | {"a", "an", "the"}))
    if len(rare) != 1:
        found = f"differ by {', '.join(rare)}" if rare else "say the same"
        raise ValueError(
            f"{instance_prompt!r} and {class_prompt!r} {found}; they must differ by the one rare word of the subject, "
            "as 'a photo of an oscvtr doctor' and 'a photo of a doctor' do."
        )
    if (word := rare[0]).lower() in COMMON or word != word.lower() or len(word) < 3:
        raise ValueError(
            f"{word!r} means something already, and the training would have to work against that; take three or more "
            "small letters that are no word, such as 'oscvtr'."
        )
    return word
