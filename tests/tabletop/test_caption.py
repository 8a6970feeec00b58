"""The grammar of captions: what they say, and reading them back."""

from __future__ import annotations

import numpy as np
import pytest

from companion.tabletop.caption import OPPOSITE, Wish, caption, parse
from companion.tabletop.scene import Scene, Thing

from .helpers import some


def test_the_canonical_caption_says_everything():
    for s in some("train"):
        assert parse(caption(s)) == Wish.of(s)
    s = Scene((Thing("robot", "gold", -1, 0, 1, 0), Thing("house", "blue", 1, 0, 1, 0)), "left of", "snow", "sunset")
    assert caption(s) == "a gold robot left of a blue house on snow at sunset"


def test_varied_captions_never_say_what_is_not_so():
    rng = np.random.default_rng(0)
    for s in some("train", 1500):
        text = caption(s, rng)
        wish = parse(text)
        order = [s.things.index(t) for t in s.things]
        if [t.kind for t in s.things] != list(wish.kinds):
            order = order[::-1]
        elif len(order) == 2 and s.things[0].kind == s.things[1].kind and wish.relation not in (None, s.relation):
            order = order[::-1]
        things = [s.things[i] for i in order]
        assert [t.kind for t in things] == list(wish.kinds), text
        if s.things[0].kind != s.things[-1].kind or len(order) == 1:
            assert all(f in (None, t.finish) for f, t in zip(wish.finishes, things, strict=True)), text
            flipped = OPPOSITE[s.relation] if order == [1, 0] else s.relation
            assert wish.relation in (None, flipped), text
        assert wish.place in (None, s.place) and wish.time in (None, s.time), text


def test_captions_leave_things_out_and_use_synonyms():
    rng = np.random.default_rng(1)
    texts = [caption(s, rng) for s in some("train", 1000, 1)]
    wishes = [parse(t) for t in texts]
    for name in ("place", "time"):
        assert 0.06 < np.mean([getattr(w, name) is None for w in wishes]) < 0.2
    assert any("sphere" in t for t in texts) and any("in daylight" in t for t in texts)


@pytest.mark.parametrize("prompt", ["", "a dog on grass", "a ball and a cube and a cone"])
def test_parse_refuses_what_names_no_thing_or_too_many(prompt):
    with pytest.raises(ValueError, match="name one or two of: ball, cube"):
        parse(prompt)
