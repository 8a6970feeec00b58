"""The tokenizer of the miniature: a stock CLIPTokenizer whose byte-pair vocabulary was made for the grammar.

Every word of the grammar is one token, as common words are in CLIP. So are a few words that captions never use (names
for new subjects, and rare identifiers such as "sks"), whose embeddings training leaves as initialised. Any other word
is spelled letter by letter.
"""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

from companion.files import written
from companion.tabletop.caption import words

LENGTH = 32  # most tokens in a prompt, start and end included
#: Words that no caption uses: identifiers, nouns and styles left free for finetuning.
FREE_WORDS = (
    "sks",
    "zwx",
    "ohwx",
    "xyz",
    "my",
    "this",
    "toy",
    "rocket",
    "duck",
    "snowman",
    "cactus",
    "boat",
    "lamp",
    "teapot",
    "castle",
    "plane",
    "train",
    "cat",
    "dog",
    "bird",
    "fish",
    "person",
    "man",
    "woman",
    "child",
    "animal",
    "figure",
    "object",
    "thing",
    "sculpture",
    "painting",
    "drawing",
    "sketch",
    "photograph",
    "style",
    "in",
    "with",
    "near",
    "under",
    "over",
    "made",
    "small",
    "big",
    "old",
    "new",
    "wooden",
    "plastic",
    "stone",
    "pink",
    "brown",
    "grey",
    "two",
    "three",
    "no",
    "not",
    "very",
    "forest",
    "city",
    "sky",
    "moon",
    "sun",
    "wearing",
    "hat",
    "is",
    "are",
    "pyramid",
    "tower",
    "truck",
)
START, END = "<|startoftext|>", "<|endoftext|>"


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary (token to id) and the merges, in CLIP's format.

    Byte-pair encoding (Sennrich et al., 2016) is trained on the list of words until nothing is left to merge, so each
    word becomes one token. Ties are broken alphabetically: the trainer of `tokenizers` breaks them differently in each
    run.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    spelled = [[*word[:-1], word[-1] + "</w>"] for word in sorted({*words(), *FREE_WORDS})]
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for symbols in spelled for pair in pairwise(symbols)):
        a, b = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append((a, b))
        for symbols in spelled:
            i = 0
            while i < len(symbols) - 1:
                if symbols[i] == a and symbols[i + 1] == b:
                    symbols[i : i + 2] = [a + b]
                i += 1
    tokens = letters + [c + "</w>" for c in letters] + [a + b for a, b in merges] + [START, END]
    return {t: i for i, t in enumerate(dict.fromkeys(tokens))}, merges


def save_tokenizer(folder: Path) -> None:
    """Write the tokenizer's files, so that `CLIPTokenizer.from_pretrained(folder)` reads them."""
    folder = Path(folder)
    vocab, merges = vocabulary()
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    files = {
        "vocab.json": json.dumps(vocab, ensure_ascii=False),
        "merges.txt": "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges),
        "special_tokens_map.json": json.dumps(special, indent=2),
        "tokenizer_config.json": json.dumps(
            {
                **special,
                "tokenizer_class": "CLIPTokenizer",
                "model_max_length": LENGTH,
                "add_prefix_space": False,
                "do_lower_case": True,
            },
            indent=2,
        ),
    }
    for name, text in files.items():
        with written(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
