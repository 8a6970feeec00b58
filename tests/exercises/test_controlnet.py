"""Common mistakes in the exercises of notebook 04, each with words from the hint it must get."""

from __future__ import annotations

import numpy as np

from companion import conditions, exercises

from .helpers import assert_hint, each, exercises_of


def in_place(residuals, scales):
    total = residuals[0]
    for i in range(len(total)):
        total[i].mul_(scales[0])
        for levels, scale in zip(residuals[1:], scales[1:], strict=True):
            total[i].add_(levels[i], alpha=scale)
    return total


def score(recall_only=False, precision_only=False, mean=False, square=False, safe=True, nan=False):
    def edge_score(asked, got, tolerance):
        from scipy.ndimage import distance_transform_cdt, distance_transform_edt

        distance = (lambda x: distance_transform_cdt(x, "chessboard")) if square else distance_transform_edt
        if safe and not (got.any() and asked.any()):
            return 0.0
        there = got.any() and asked.any()
        recall = (distance(~got)[asked] <= tolerance).mean() if there else 0.0
        precision = (distance(~asked)[got] <= tolerance).mean() if there else 0.0
        if recall_only or precision_only:
            return recall if recall_only else precision
        if mean:
            return (precision + recall) / 2
        if nan:  # numpy divides 0 by 0 with a warning, where Python raises ZeroDivisionError
            return np.float64(2 * precision * recall) / np.float64(precision + recall)
        return float(2 * precision * recall) / max(float(precision + recall), 1e-9 if safe else 0)

    return edge_score


MISTAKES = [
    ("conv_gradients", lambda w, x, g: (w.T @ g, g @ x.T), "exchanged"),
    ("conv_gradients", lambda w, x, g: (x @ g.T, w.T @ g), "has the shape of weight, (5, 3), not (3, 5)"),
    ("conv_gradients", lambda w, x, g: (g @ x.T, None), "has the shape of x"),
    ("conv_gradients", lambda w, x, g: (g @ x.T, x), "which matrix comes first"),
    ("conv_gradients", lambda w, x, g: g @ x.T, "return two things"),
    ("share_of_way", lambda f, d, c: ((d - f) / (c - f)).mean(), "take the means first"),
    ("share_of_way", lambda f, d, c: d.mean() / c.mean(), "begins at 0"),
    ("share_of_way", lambda f, d, c: (d.mean() - f.mean()) / c.mean(), "distance from the floor"),
    ("share_of_way", lambda f, d, c: abs(d - f).mean(), "it should be 0.750"),
    (
        "share_of_way",
        lambda f, d, c: (d.mean() - f.mean()) / abs(c.mean() - f.mean()),
        "both differences change their sign",
    ),
    ("share_of_way", lambda f, d, c: abs(d.mean() - f.mean()) / abs(c.mean() - f.mean()), "a negative share"),
    ("share_of_way", lambda f, d, c: np.minimum((d.mean() - f.mean()) / (c.mean() - f.mean()), 1), "do not cut it off"),
    ("share_of_way", lambda f, d, c: np.clip((d.mean() - f.mean()) / (c.mean() - f.mean()), 0, 1), "a negative share"),
    ("add_up", lambda r, s: [sum(levels) for levels in zip(*r, strict=True)], "scale is not used"),
    ("add_up", lambda r, s: [s[i] * x for i in range(len(r)) for x in r[i]], "don't join the lists"),
    ("add_up", lambda r, s: sum(s[i] * r[i][0] for i in range(len(r)))[None], "one tensor for each level"),
    (
        "add_up",
        lambda r, s: [sum(a * x for a, x in zip(s, levels, strict=True)) / len(s) for levels in zip(*r, strict=True)],
        "make the first one quieter",
    ),
    ("add_up", lambda r, s: [s[0] * level for level in r[0]], "sum over the controls"),
    ("add_up", in_place, "don't change the tensors"),
    ("edge_score", lambda a, g, t: 2 * (a & g).sum() / (a.sum() + g.sum()), "not with 1"),
    ("edge_score", score(recall_only=True), "what of precision"),
    ("edge_score", score(precision_only=True), "what of recall"),
    ("edge_score", score(mean=True), "harmonic mean"),
    ("edge_score", score(square=True), "is the distance a circle's"),
    ("edge_score", score(safe=False), "divides by zero"),
    ("edge_score", lambda a, g, t: score()(a, g, t) if g.any() else 1.0, "the score is 0, not 1.0"),
    ("edge_score", lambda a, g, t: score()(a, g, t) if a.any() else 1.0, "asked for the score is 0, not 1.0"),
    ("edge_score", score(nan=True), "is 0, not nan: mind the division"),
]


@each(MISTAKES)
def test_a_usual_mistake_gets_its_hint(name, answer, hint):
    assert_hint(name, answer, hint)


def test_every_exercise_has_a_usual_mistake():
    assert {name for name, _, _ in MISTAKES} == exercises_of("04_controlnet")


def test_the_measures_use_the_score_of_the_exercise():
    solution, rng = exercises.exercise("edge_score").solution, np.random.default_rng(0)
    pairs = [(rng.random((40, 40)) < share, rng.random((40, 40)) < share) for share in (0.01, 0.05, 0.3)]
    for asked, got in pairs:
        maps = (255 * np.stack([asked]).astype(np.uint8), 255 * np.stack([got]).astype(np.uint8))
        for tolerance in (1.5, 2.0, 3.0):
            assert abs(conditions.edge_f1(*maps, tolerance)[0] - solution(asked, got, tolerance)) < 1e-6
