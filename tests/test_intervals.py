"""The intervals are those of the textbooks, of equations that their ends must solve, and of sums done by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from companion import intervals
from companion.intervals import (
    mean_interval,
    paired_difference,
    paired_ratio,
    paired_share_difference,
    paired_share_p,
    ratio_of_means,
    share_difference,
    share_interval,
)


def test_a_mean_is_told_with_half_of_its_interval():
    assert intervals.plus_minus([1.0, 2.0, 3.0]) == "2.00 ± 2.48"  # t(2, .975) = 4.303, times 1 / sqrt(3)
    assert intervals.plus_minus([1.0, 2.0, 3.0], digits=3) == "2.000 ± 2.484"


class TestShares:
    def test_wilson_by_the_textbook(self):
        low, high = share_interval(81, 263)  # Newcombe (1998), his first example
        assert (low, high) == (pytest.approx(0.2553, abs=1e-4), pytest.approx(0.3662, abs=1e-4))
        assert share_interval(0, 20) == (0.0, pytest.approx(0.1611, abs=1e-4))
        assert share_interval(20, 20)[1] == 1.0

    @pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 7), (3, 7), (7, 7), (19, 20), (1000, 3000)])
    def test_at_wilsons_ends_the_share_is_1_96_standard_errors_away(self, k, n):
        for end in share_interval(k, n):
            assert (k / n - end) ** 2 == pytest.approx(1.96**2 * end * (1 - end) / n, abs=1e-12)

    def test_newcombe_by_the_textbook(self):
        d, low, high = share_difference((56, 70), (48, 80))  # Newcombe (1998), method 10, contrast (a)
        assert d == pytest.approx(0.2)
        assert (low, high) == (pytest.approx(0.0524, abs=1e-4), pytest.approx(0.3339, abs=1e-4))

    @pytest.mark.parametrize(("gain", "loss"), [(0.05, 0.02), (0.2, 0.2), (0.3, 0.05), (0.01, 0.01)])
    def test_of_the_same_pictures_it_covers_the_truth_in_19_of_20(self, gain, loss):
        """Exactly, over all counts of pictures that one met alone."""
        n, covered = 64, 0.0
        for gained in range(n + 1):
            for lost in range(n + 1 - gained):
                a = [True] * gained + [False] * (n - gained)
                b = [False] * gained + [True] * lost + [False] * (n - gained - lost)
                _, low, high = paired_share_difference(a, b)
                chance = stats.multinomial.pmf([gained, lost, n - gained - lost], n, [gain, loss, 1 - gain - loss])
                covered += chance * (low <= gain - loss <= high)
        assert covered > 0.945

    def test_what_both_met_narrows_it(self):
        a, b = [True] * 50 + [False] * 14, [True] * 47 + [False] * 17
        d, low, high = paired_share_difference(a, b)
        _, wide_low, wide_high = share_difference((50, 64), (47, 64))
        assert d == pytest.approx(3 / 64) and wide_low < low < d < high < wide_high
        assert paired_share_difference(b, a) == (pytest.approx(-d), pytest.approx(-high), pytest.approx(-low))
        assert paired_share_difference(a, a)[1] < 0 < paired_share_difference(a, a)[2]
        with pytest.raises(ValueError, match="2 and 3 values cannot be compared in pairs"):
            paired_share_difference([True] * 2, [True] * 3)

    def test_shares_of_several_pictures_count_as_such(self):
        """Twice 2 of 4 lost is one lost, as if the pictures were others."""
        some, all_met = [0.5, 0.5] + [1.0] * 8, [1.0] * 10
        assert paired_share_difference(some, all_met) == paired_share_difference([0.0] + [1.0] * 9, all_met)
        with pytest.raises(ValueError, match="between 0 and 1"):
            paired_share_difference([0.5, 3], [0, 1])

    def test_mcnemars_test_counts_what_one_alone_has_met(self):
        a, b = [True] * 7 + [False] + [True] * 2, [False] * 7 + [True] + [True] * 2
        assert paired_share_p(a, b) == paired_share_p(b, a) == pytest.approx(2 * 9 / 2**8)
        assert paired_share_p([True] * 5, [False] * 5) == pytest.approx(2 / 2**5)
        assert paired_share_p([True, False], [True, False]) == 1

    def test_turned_round_it_is_the_same_interval(self):
        d, low, high = share_difference((3, 10), (8, 10))
        assert share_difference((8, 10), (3, 10)) == (pytest.approx(-d), pytest.approx(-high), pytest.approx(-low))

    @pytest.mark.parametrize("share", [(-1, 3), (4, 3), (0, 0)])
    def test_what_is_no_share_is_refused(self, share):
        with pytest.raises(ValueError, match="is no share"):
            share_interval(*share)
        with pytest.raises(ValueError, match="is no share"):
            share_difference((1, 2), share)


class TestMeans:
    def test_a_mean_of_few_values_is_known_less_well(self):
        half = 12.706205 / 2  # Student's t for one degree of freedom, times the standard error of 1 and 2
        assert mean_interval([1.0, 2.0]) == pytest.approx((1.5, 1.5 - half, 1.5 + half))
        assert mean_interval([3.0]) == (3.0, -math.inf, math.inf)

    def test_equal_values_have_no_error(self):
        assert mean_interval([2.0, 2.0, 2.0]) == (2.0, 2.0, 2.0)

    def test_no_values_are_refused(self):
        with pytest.raises(ValueError, match="no values have no mean"):
            mean_interval([])


class TestPairs:
    def test_a_difference_is_the_mean_of_the_pairs_own(self):
        a, b = [11.0, 102.0], [10.0, 100.0]
        assert paired_difference(a, b) == mean_interval([1.0, 2.0])
        assert paired_difference(torch.tensor(a), torch.tensor(b)) == mean_interval([1.0, 2.0])
        assert paired_difference([3.0], [1.0]) == (2.0, -math.inf, math.inf)

    def test_a_ratio_by_hand(self):
        assert paired_ratio([2.0, 4.0], [1.0, 2.0]) == pytest.approx((2.0, 2.0, 2.0))
        middle, low, high = paired_ratio([1.0, 4.0, 2.0], [1.0, 1.0, 1.0])
        assert middle == pytest.approx(2.0)
        half = 4.302653 * math.log(2) / 3**0.5  # Student's t for 2 degrees of freedom; the logs are 0, 1, 2 times log 2
        assert (low, high) == (pytest.approx(2 * math.exp(-half)), pytest.approx(2 * math.exp(half)))

    def test_a_ratio_of_means_and_its_spread(self):
        rng = np.random.default_rng(0)
        b = rng.normal(2.0, 0.2, 400)
        a = 0.5 * b + rng.normal(0, 0.1, 400)
        middle, low, high = ratio_of_means(a, b)
        assert middle == pytest.approx(a.mean() / b.mean()) and low < middle < high
        # By the delta method: the noise of `a` that `b` does not share, over the mean of `b`.
        half = 1.96 * 0.1 / 20 / 2.0
        assert (high - low) / 2 == pytest.approx(half, rel=0.15)
        assert ratio_of_means(a, b) == (middle, low, high)
        assert ratio_of_means([1.0] * 5, [2.0] * 5) == (0.5, 0.5, 0.5)

    def test_what_does_not_pair_is_refused(self):
        with pytest.raises(ValueError, match="4 and 4 values cannot be compared in pairs; .* five at least"):
            ratio_of_means([1.0] * 4, [1.0] * 4)
        with pytest.raises(ValueError, match="1 and 1 values cannot be compared in pairs; .* two at least"):
            paired_ratio([1.0], [1.0])
        with pytest.raises(ValueError, match="1 and 2 values cannot be compared in pairs; .* one at least"):
            paired_difference([1.0], [1.0, 2.0])


def test_the_rank_correlation_sees_order_alone():
    a = [1, 2, 3, 4, 5, 6, 7, 8]
    r, p = intervals.rank_correlation(a, np.exp(a))
    assert r == pytest.approx(1) and p < 0.001
    other = [3, 1, 4, 1, 5, 9, 2, 6]
    r, p = intervals.rank_correlation(a, other)
    reference = stats.spearmanr(a, other)
    assert r == pytest.approx(reference.statistic) and p == pytest.approx(reference.pvalue, abs=0.03)
    assert intervals.rank_correlation(a[:5], [1, 2, 3, 5, 4])[1] == pytest.approx(10 / 120)  # all orders, counted
    with pytest.raises(ValueError, match="five at least"):
        intervals.rank_correlation([1, 2], [1, 2])
    with pytest.raises(ValueError, match="all the same"):
        intervals.rank_correlation(a, [1] * 8)


def test_an_interval_gets_the_word_that_it_deserves():
    said = [intervals.word(*ends, "more", "less") for ends in ((0.1, 2), (-2, -0.1), (-1, 1), (0, 1))]
    assert said == ["more", "less", "not told apart from", "not told apart from"]
    assert intervals.word(1.1, 2, "more", "less", "equal", at=1) == "more"
    assert intervals.word(0.5, 2, "more", "less", "equal", at=1) == "equal"


def test_a_comparison_has_the_p_value_of_the_paired_t_test():
    a, b = [0.4, 0.5, 0.7, 0.6, 0.9], [0.3, 0.4, 0.4, 0.5, 0.6]
    assert str(intervals.compare([0.0, 0.001], [0.001, 0.002])) == "+0.00 (+0.00 to +0.00)", "nothing has no sign"
    found = intervals.compare(a, b)
    assert found.p == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert (found.difference, found.low, found.high) == paired_difference(a, b) and found.n == 5
    assert found.means == pytest.approx((0.62, 0.44)) and found.verdict == "higher"
    assert str(found) == f"+0.18 ({found.low:+.2f} to {found.high:+.2f})"
    assert f"{found:.1f}" == f"+0.2 ({found.low:+.1f} to {found.high:+.1f})"
    assert found.within(found.high + 0.01) and not found.within(found.high - 0.01)
    same, above = intervals.compare(a, a), intervals.compare(np.array(a) + 1.0, a)
    assert (same.p, same.verdict) == (1.0, "not told apart") and above.p < 1e-12 and above.verdict == "higher"
    with pytest.raises(ValueError, match="two at least"):
        intervals.compare([1.0], [1.0])


def test_of_many_questions_fewer_are_decided():
    assert intervals.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # Holm's own steps, by hand
    assert intervals.holm([0.9, 0.8]) == [1.0, 1.0] and intervals.holm([]) == []
    strong = intervals.compare([1.0, 1.1, 0.9, 1.0, 1.2], [0.0] * 5)
    weak = intervals.compare([-0.5, -1.0, 0.1, -0.6, -0.7], [0.0] * 5)
    assert weak.verdict == "lower" and 0.025 < weak.p < 0.05
    assert intervals.decided([strong, weak]) == ["higher", "lower"]
    assert intervals.decided([strong, weak, weak]) == ["higher", "not told apart", "not told apart"]


def test_rank_correlation_in_rows_looks_within_each_row_only():
    one = np.arange(8.0)
    r, p = intervals.rank_correlation_in_rows([one, one + 100], [one**3, one - 100])
    assert r == pytest.approx(1) and p < 0.001
    # Between the rows they go against each other; within them nothing goes with anything.
    other = [3, 1, 4, 1, 5, 9, 2, 6]
    r, p = intervals.rank_correlation_in_rows([one, one + 100, [0] * 8], [other, np.array(other) - 100, one])
    assert r == pytest.approx(stats.spearmanr(one, other).statistic)
    assert p == pytest.approx(stats.spearmanr(one, other).pvalue, abs=0.03)  # two equal rows tell no more than one
    with pytest.raises(ValueError, match="five columns"):
        intervals.rank_correlation_in_rows([[1, 2]], [[1, 2]])
    with pytest.raises(ValueError, match="all the same"):
        intervals.rank_correlation_in_rows([[1] * 5], [range(5)])


def test_the_ratio_of_two_ratios_of_means():
    rng = np.random.default_rng(1)
    b, d = rng.normal(2.0, 0.2, (2, 200))
    a, c = 0.5 * b + rng.normal(0, 0.1, 200), 0.25 * d
    middle, low, high = intervals.ratio_of_ratios((a, b), (c, d))
    assert middle == pytest.approx(a.mean() / b.mean() / 0.25) and low < 2 < high
    _, wanted_low, wanted_high = ratio_of_means(a, b)  # the second ratio is the same in every resample
    assert (low, high) == pytest.approx((wanted_low / 0.25, wanted_high / 0.25), rel=1e-6)
    with pytest.raises(ValueError, match="five at least"):
        intervals.ratio_of_ratios((a, b), (c[:9], d[:9]))
