"""The tokenizer's vocabulary."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np

from companion.tabletop.caption import caption, words
from companion.tabletop.tokenizer import FREE_WORDS, LENGTH, save_tokenizer

from .helpers import some


def test_every_word_is_one_token(tmp_path):
    from transformers import CLIPTokenizer

    save_tokenizer(tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    for word in (*words(), *FREE_WORDS):
        assert len(tokenizer(word).input_ids) == 3, word
    ids = tokenizer("A hippo!").input_ids
    assert len(ids) > 6 and tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == "ahippo!"
    longest = max(
        len(tokenizer(caption(s, np.random.default_rng(i))).input_ids) for i, s in enumerate(some("train", 1000))
    )
    assert longest <= LENGTH


def test_the_vocabulary_is_the_same_in_every_run():
    code = "from companion.tabletop.tokenizer import vocabulary; print(vocabulary())"
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1
