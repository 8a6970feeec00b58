"""95 % confidence intervals of shares and means, of their differences, and of ratios; and verdicts when many are asked.

    low, high = share_interval(17, 20)
    difference, low, high = share_difference((17, 20), (9, 20))
    verdicts = decided([compare(a, b), compare(a, c)])

All ends are plain floats. If the interval of a difference contains 0, the data do not show which of the two is larger.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

#: The confidence level for a share: that of 1.96 standard errors, the usual rounding for 95 %.
_SHARE_CONFIDENCE = 2 * stats.norm.cdf(1.96) - 1


def share_interval(successes: int, n: int) -> tuple[float, float]:
    """Both ends, in [0, 1], of the confidence interval of a share, given `successes` of `n`.

    This is Wilson's score interval (JASA 22, 1927), which is good for small n too.

    Raises:
        ValueError: unless 0 <= successes <= n and n > 0.
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"{successes} of {n} is no share; successes must be between 0 and n, and n positive")
    low, high = stats.binomtest(successes, n).proportion_ci(_SHARE_CONFIDENCE, method="wilson")
    return float(low), float(high)


def share_difference(a: tuple[int, int], b: tuple[int, int]) -> tuple[float, float, float]:
    """The share of `a` minus that of `b`, each (successes, n), and both ends of its confidence interval, in [-1, 1].

    The two shares' intervals are combined as in Newcombe, Statistics in Medicine 17, 1998, 873-890, method 10.

    Raises:
        ValueError: for a pair that `share_interval` refuses.
    """
    (low_a, high_a), (low_b, high_b) = share_interval(*a), share_interval(*b)
    p, q = a[0] / a[1], b[0] / b[1]
    return p - q, p - q - math.hypot(p - low_a, high_b - q), p - q + math.hypot(high_a - p, q - low_b)


def paired_share_difference(a: ArrayLike, b: ArrayLike) -> tuple[float, float, float]:
    """The share of True in `a` (N,) minus that in `b` (N,), of the same N pictures, and both ends of its interval.

    What is alike in both says nothing about the difference, so such an interval is narrower than `share_difference`'s.
    Half a count is added to each of the four cells, as in Agresti and Min, Statistics in Medicine 24, 2005, 729-740.
    An entry may also be the share of True among several pictures of one prompt. The interval is then too wide rather
    than too narrow, since such shares vary less than single answers.

    Raises:
        ValueError: for fewer than two pairs, lengths that differ, or entries outside [0, 1].
    """
    x, y = _pairs(a, b, least=2)
    if min(x.min(), y.min()) < 0 or max(x.max(), y.max()) > 1:
        raise ValueError("shares must be between 0 and 1; give one truth, or one share, for each pair")
    n, gained, lost = len(x) + 2, float((x - y).clip(0).sum()) + 0.5, float((y - x).clip(0).sum()) + 0.5
    middle = (gained - lost) / n
    half = 1.96 * math.sqrt(gained + lost - (gained - lost) ** 2 / n) / n
    return float(x.mean() - y.mean()), max(middle - half, -1.0), min(middle + half, 1.0)


def paired_share_p(a: ArrayLike, b: ArrayLike) -> float:
    """How often chance alone would give shares of True in `a` (N,) and `b` (N,), of the same N pictures, that differ as
    much, of either sign: the exact test of Q. McNemar, Psychometrika 12, 1947, 153-157.

    Raises ValueError for lengths that differ, or no pair.
    """
    x, y = _pairs(a, b, least=1)
    gained, lost = int(((x == 1) & (y == 0)).sum()), int(((x == 0) & (y == 1)).sum())
    return float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def mean_interval(values: ArrayLike) -> tuple[float, float, float]:
    """The mean of values (N,) and both ends of its confidence interval by Student's t (infinite for a single value).

    Raises:
        ValueError: when there are no values.
    """
    found = np.asarray(values, dtype=float)
    if (n := len(found)) == 0:
        raise ValueError("no values have no mean; give one at least, and two for an interval that is finite")
    mean = float(np.mean(found))
    # Not scipy's ttest_1samp, which warns when all values are the same: the interval is then a point.
    half = float(stats.t.ppf(0.975, n - 1) * stats.sem(found)) if n > 1 else math.inf
    return mean, mean - half, mean + half


def plus_minus(values: ArrayLike, digits: int = 2) -> str:
    """The mean of `values` (N,) and half of the width of its interval, as in "0.52 ± 0.04"."""
    mean, _, high = mean_interval(values)
    return f"{mean:z.{digits}f} ± {high - mean:.{digits}f}"


def paired_difference(a: ArrayLike, b: ArrayLike) -> tuple[float, float, float]:
    """The mean of `a` minus `b`, both (N,) and measured on the same N things, with its interval as in `mean_interval`.

    Raises:
        ValueError: unless there are as many of both, one at least.
    """
    a, b = _pairs(a, b, 1)
    return mean_interval(a - b)


def paired_ratio(a: ArrayLike, b: ArrayLike) -> tuple[float, float, float]:
    """The geometric mean of `a` / `b`, both (N,) and measured on the same N things, and both ends of its confidence
    interval, from `paired_difference` of the logarithms. Values below 1e-9 count as 1e-9.

    Raises:
        ValueError: unless there are as many of both, two at least.
    """
    a, b = _pairs(a, b, 2)
    middle, low, high = paired_difference(np.log(np.maximum(a, 1e-9)), np.log(np.maximum(b, 1e-9)))
    return math.exp(middle), math.exp(low), math.exp(high)


def ratio_of_means(a: ArrayLike, b: ArrayLike) -> tuple[float, float, float]:
    """The mean of `a` over that of `b`, both (N,) and measured on the same N things, and both ends of its confidence
    interval by the bootstrap's percentiles (B. Efron, Annals of Statistics 7, 1979), always with the same resamples.

    Raises:
        ValueError: unless there are as many of both, five at least.
    """
    return _resampled(lambda a, b, axis=-1: a.mean(axis) / b.mean(axis), _pairs(a, b, 5))


def ratio_of_ratios(
    first: tuple[ArrayLike, ArrayLike], second: tuple[ArrayLike, ArrayLike]
) -> tuple[float, float, float]:
    """One ratio of means over another, (mean a / mean b) / (mean c / mean d) for `first` = (a, b) and `second` =
    (c, d), all (N,) and measured on the same N things, with its confidence interval as in `ratio_of_means`.

    Raises:
        ValueError: unless there are as many of all, five at least.
    """
    (a, b), (c, d) = _pairs(*first, 5), _pairs(*second, 5)
    _pairs(a, c, 5)

    def ratio(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray, axis: int = -1) -> np.ndarray:
        return (a.mean(axis) / b.mean(axis)) / (c.mean(axis) / d.mean(axis))

    return _resampled(ratio, (a, b, c, d))


def _resampled(statistic: Callable[..., np.ndarray], samples: tuple[np.ndarray, ...]) -> tuple[float, float, float]:
    """A statistic of samples that belong together, and both ends of the bootstrap's interval."""
    options = {"paired": True, "vectorized": True, "method": "percentile", "n_resamples": 2000}
    found = stats.bootstrap(samples, statistic, rng=0, **options).confidence_interval
    return float(statistic(*samples)), float(found.low), float(found.high)


def _pairs(a: ArrayLike, b: ArrayLike, least: int) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if not len(a) == len(b) >= least:
        few = {1: "one", 2: "two", 5: "five"}[least]
        raise ValueError(
            f"{len(a)} and {len(b)} values cannot be compared in pairs; give as many of both, {few} at least"
        )
    return a, b


@dataclass(frozen=True)
class Compared:
    """Two things in one measure, taken on the same N subjects or pictures.

    Attributes:
        means: of both.
        difference, low, high: the mean difference of the first from the second, and its confidence interval.
        n: N.
        p: how often chance alone would give a difference as large, of either sign (the paired t-test).

    As text it is the difference with its interval, to two digits, or as a format says: f"{found:.3f}".
    """

    means: tuple[float, float]
    difference: float
    low: float
    high: float
    n: int
    p: float

    def __format__(self, spec: str) -> str:
        spec = "+z" + (spec or ".2f")  # z: 0 has no sign of its own
        return f"{self.difference:{spec}} ({self.low:{spec}} to {self.high:{spec}})"

    def __str__(self) -> str:
        return format(self)

    @property
    def verdict(self) -> str:
        """Whether the first one's numbers are "higher", "lower", or neither for sure, which is "not told apart"."""
        return word(self.low, self.high, "higher", "lower", "not told apart")

    def within(self, margin: float) -> bool:
        """Whether the difference is smaller than a margin for sure, so that the two are as good as equal (two one-sided
        tests: D. Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 15, 1987; here at 2.5 % each).
        """
        return -margin < self.low and self.high < margin


def compare(a: ArrayLike, b: ArrayLike) -> Compared:
    """Compare `a` with `b`, both (N,) and measured on the same N things.

    Raises ValueError unless there are as many of both, two at least.
    """
    a, b = _pairs(a, b, 2)
    difference, low, high = mean_interval(a - b)
    error = stats.sem(a - b)  # not scipy's ttest_rel, which warns when all differences are the same
    p = 2 * stats.t.sf(abs(difference) / error, len(a) - 1) if error > 0 else float(difference == 0)
    return Compared((float(a.mean()), float(b.mean())), difference, low, high, len(a), float(p))


def holm(p: Sequence[float]) -> list[float]:
    """The p-values of several questions asked at once, raised so that any one of them below 0.05 misleads in one of
    twenty such sets of questions at most (S. Holm, Scandinavian Journal of Statistics 6, 1979, 65-70).
    """
    raised, most = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        most = max(most, min(1.0, (len(p) - rank) * p[i]))
        raised[i] = most
    return raised


def decided(found: Sequence[Compared], level: float = 0.05) -> list[str]:
    """The verdict of each comparison when all of them are asked at once (see `holm`): "higher", "lower", or "not told
    apart".
    """
    raised = holm([c.p for c in found])
    return [
        "not told apart" if p >= level else "higher" if c.difference > 0 else "lower"
        for c, p in zip(found, raised, strict=True)
    ]


def rank_correlation(a: ArrayLike, b: ArrayLike) -> tuple[float, float]:
    """Spearman's rank correlation of `a` and `b`, both (N,), and its p-value: the share of shuffled orders of `a` whose
    correlation is as strong, of either sign. All orders are tried up to N = 7, ten thousand random ones beyond.

    Raises:
        ValueError: unless there are as many of both, five at least, or when all values of one are the same.
    """
    a, b = _pairs(a, b, 5)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        raise ValueError("values that are all the same have no ranks to correlate")
    x, y = (stats.zscore(stats.rankdata(values)) for values in (a, b))

    def statistic(x: np.ndarray, axis: int = -1) -> np.ndarray:
        return (x * y).mean(axis=axis)

    found = stats.permutation_test((x,), statistic, permutation_type="pairings", rng=np.random.default_rng(0))
    return float(found.statistic), float(found.pvalue)


def rank_correlation_in_rows(a: ArrayLike, b: ArrayLike) -> tuple[float, float]:
    """The mean over rows of the rank correlation within each row of `a` and `b`, both (M, N), and its p-value.

    For M methods measured on the same N subjects it asks whether a method's subjects with much of `a` have much of `b`,
    whatever the methods are. Columns belong together, so the p-value is the share of ten thousand random orders of the
    columns of `a` that give as strong a mean, of either sign. Rows in which all values of one are equal are left out.

    Raises:
        ValueError: unless the shapes are the same, with five columns at least, or when no row is left.
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.ndim != 2 or a.shape != b.shape or a.shape[1] < 5:
        raise ValueError(f"shapes {a.shape} and {b.shape} cannot be compared by rows; give two alike, of five columns")
    varied = (np.ptp(a, axis=1) > 0) & (np.ptp(b, axis=1) > 0)
    if not varied.any():
        raise ValueError("values that are all the same have no ranks to correlate")
    x, y = (stats.zscore(stats.rankdata(values[varied], axis=1), axis=1) for values in (a, b))
    rng, n = np.random.default_rng(0), a.shape[1]
    orders = np.array([np.arange(n), *(rng.permutation(n) for _ in range(10_000))])
    r = np.einsum("mkn,mn->k", x[:, orders], y) / (len(x) * n)
    return float(r[0]), float((np.abs(r) >= abs(r[0]) - 1e-12).mean())


def word(
    low: float, high: float, above: str, below: str, between: str = "not told apart from", *, at: float = 0.0
) -> str:
    """Which of three words an interval deserves: all of it lies above `at`, all of it below, or `at` is within."""
    return above if low > at else below if high < at else between
