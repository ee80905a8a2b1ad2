"""Summaries and verdicts: against textbook definitions and scipy, and over many seeds."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from ualm.bench.report.statistics import MIN_PAIRS, SMALLEST_EFFECT, compare, median_interval, signed_rank_p, summarize

TIMES = st.floats(1e-3, 1e6)


@given(st.lists(TIMES, min_size=2, max_size=60))
def test_percentiles_are_those_of_the_inclusive_definition(samples):
    found, expected = summarize(samples), statistics.quantiles(samples, n=100, method="inclusive")
    assert found.n == len(samples) and (found.min, found.max) == (min(samples), max(samples))
    assert found.mean == pytest.approx(statistics.fmean(samples))
    for percent, value in ((50, found.p50), (90, found.p90), (95, found.p95), (99, found.p99)):
        assert value == pytest.approx(expected[percent - 1])
    assert found.min <= found.p50 <= found.p90 <= found.p95 <= found.p99 <= found.max
    assert found.min <= found.mean <= found.max


def test_one_sample_is_all_of_its_percentiles():
    found = summarize([3.5])
    assert {value for name, value in vars(found).items() if name != "n"} == {3.5} and found.n == 1


@pytest.mark.parametrize("n", [1, 5, 8, 12, 25])
def test_the_signed_rank_test_is_scipys_exact_one(n):
    random = np.random.default_rng(n)
    for shift in (0.0, 0.3, 2.0):
        values = random.normal(shift, 1.0, n)
        expected = scipy.stats.wilcoxon(values, alternative="two-sided", method="exact").pvalue
        assert signed_rank_p(values.tolist()) == pytest.approx(expected, rel=1e-12)


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=10))
def test_with_ties_and_zeros_it_counts_every_sign_pattern(values):
    kept = [value for value in values if value]
    if not kept:
        assert signed_rank_p(values) == 1.0
        return
    ranks = scipy.stats.rankdata(np.abs(kept))
    signs = (np.arange(2 ** len(kept))[:, None] >> np.arange(len(kept))) & 1
    sums = signs @ ranks
    found = ranks[np.asarray(kept) > 0].sum()
    smaller = min(found, ranks.sum() - found)
    assert signed_rank_p(values) == pytest.approx(min(1.0, 2 * np.mean(sums <= smaller + 1e-9)))


@pytest.mark.parametrize("n", range(1, 31))
def test_the_interval_of_the_median_is_the_shortest_symmetric_one_that_holds_it_often_enough(n):
    values = [float(value) for value in np.random.default_rng(n).permutation(n)]
    low, high = median_interval(values)
    if low is None:
        assert 2 * scipy.stats.binom.cdf(0, n, 0.5) > 0.05
        return
    below = int(low)  # values are their own ranks
    assert (low, high) == (below, n - 1 - below)
    assert 2 * scipy.stats.binom.cdf(below, n, 0.5) <= 0.05 + 1e-12
    if below + 1 < n // 2:
        assert 2 * scipy.stats.binom.cdf(below + 1, n, 0.5) > 0.05


def blocks(random: np.random.Generator, scale: float, drift: np.ndarray) -> list[list[float]]:
    """Blocks of 8 times with 3 % of noise, now and then a much longer one, around ``scale`` x drift."""
    noise = np.exp(random.normal(0, 0.03, (len(drift), 8))) + (random.random((len(drift), 8)) < 0.05) * 3.0
    return (scale * drift[:, None] * noise).tolist()


def verdicts(shift: float, seeds: range, pairs: int = 12) -> list[str]:
    found = []
    for seed in seeds:
        random = np.random.default_rng(seed)
        drift = 10 * np.exp(np.cumsum(random.normal(0, 0.05, pairs)))  # the machine's, common to both
        found.append(compare(blocks(random, 1.0, drift), blocks(random, 1.0 + shift, drift)).verdict)
    return found


def test_the_same_thing_twice_is_noise():
    found = verdicts(0.0, range(400))
    assert found.count("noise") >= 0.985 * len(found)


@pytest.mark.parametrize(("shift", "verdict"), [(0.05, "better"), (-0.05, "worse")])
def test_five_percent_are_found(shift, verdict):
    found = verdicts(shift, range(200))
    assert found.count(verdict) >= 0.95 * len(found)
    assert set(found) <= {verdict, "noise"}


@given(st.integers(1, MIN_PAIRS - 1), st.floats(0.1, 10))
def test_few_pairs_give_no_verdict_however_large_the_difference(pairs, ratio):
    found = compare([[1.0]] * pairs, [[ratio]] * pairs)
    assert found.verdict == "too few pairs" and found.speedup == pytest.approx(ratio)


def test_a_difference_too_small_to_matter_is_noise_however_certain():
    found = compare([[1.0]] * 12, [[1.0 + SMALLEST_EFFECT / 2]] * 12)
    assert found.p < 0.001 and found.verdict == "noise"


def test_the_speedup_is_the_others_time_over_ones_own():
    found = compare([[1.0, 9.0, 1.0]] * 9, [[2.0, 2.0, 50.0]] * 9)
    assert (found.speedup, found.low, found.high, found.verdict) == (2.0, 2.0, 2.0, "better")
    assert found.ratios == (2.0,) * 9 and found.p == pytest.approx(2 / 2**9)
    other = compare([[2.0]] * 9, [[1.0]] * 9)
    assert other.verdict == "worse" and math.log(other.speedup) == pytest.approx(-math.log(found.speedup))
