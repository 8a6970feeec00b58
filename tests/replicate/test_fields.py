"""A recipe of 2022 in the words of each trainer, and what that trainer would refuse."""

from __future__ import annotations

import pytest
from replicate_server import RECIPE

from companion.replicate.fields import BESIDE, FIELDS, TRAINERS, rare_word, translate


def test_the_rare_word_is_what_the_prompts_differ_by():
    assert rare_word(RECIPE["instance_prompt"], RECIPE["class_prompt"]) == "oscvtr"
    with pytest.raises(ValueError, match="say the same"):
        rare_word("a dog", "the dog")
    with pytest.raises(ValueError, match="differ by red, zwx"):
        rare_word("a red zwx dog", "a dog")


@pytest.mark.parametrize("word", ["my", "blue", "Mario", "zx", "Puppy"])
def test_a_word_that_means_something_already_is_refused(word):
    with pytest.raises(ValueError, match=f"'{word}' means something already"):
        rare_word(f"a photo of {word} dog", "a photo of a dog")


def test_every_field_of_2022_has_its_place():
    theirs = "instance_prompt class_prompt instance_data class_data num_class_images max_train_steps train_text_encoder"
    assert {f.name for f in FIELDS} == {*theirs.split(), "scale_lr", "lr_scheduler", "lr_warmup_steps"}
    assert set(BESIDE) == {"model", "trainer_version", "webhook_completed"}


def test_the_recipe_in_the_words_of_each_trainer():
    fields = RECIPE | {"instance_data": "u", "class_data": "v"}
    old = translate(fields, TRAINERS["replicate/dreambooth"])
    assert old.dropped == () and old.input == fields | {"train_text_encoder": True, "scale_lr": True}
    sdxl = translate(fields, TRAINERS["stability-ai/sdxl"])
    assert sdxl.input == {
        "caption_prefix": RECIPE["instance_prompt"],
        "token_string": "oscvtr",
        "input_images": "u",
        "max_train_steps": 2500,
        "lr_scheduler": "linear",
        "lr_warmup_steps": 0,
    }
    assert set(sdxl.dropped) == {"class_prompt", "class_data", "num_class_images", "train_text_encoder", "scale_lr"}
    flux = translate(fields, TRAINERS["ostris/flux-dev-lora-trainer"])
    assert flux.input["steps"] == 2500 and flux.input["trigger_word"] == "oscvtr"


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"max_train_stepz": 3}, "no field 'max_train_stepz'; did you mean 'max_train_steps'"),
        ({"lr_scheduler": "cosine"}, "'cosine' is unknown to the trainer; it takes constant, linear"),
        ({"max_train_steps": "many"}, "is no number"),
    ],
)
def test_what_the_trainer_would_refuse_is_refused_before_it_is_paid(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        translate({"instance_data": "u"} | fields, TRAINERS["stability-ai/sdxl"])


def test_limits_and_truth_values():
    flux = TRAINERS["ostris/flux-dev-lora-trainer"]
    with pytest.raises(ValueError, match="max_train_steps=9000 is outside 3 to 6000"):
        translate({"instance_data": "u", "max_train_steps": 9000}, flux)
    with pytest.raises(ValueError, match="neither true nor false"):
        translate({"instance_data": "u", "scale_lr": "maybe"}, TRAINERS["replicate/dreambooth"])
    with pytest.raises(ValueError, match="takes no zip of pictures"):
        translate({"instance_data": "u"}, {"prompt": {}})
