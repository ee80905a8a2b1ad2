"""Summaries of repeated measurements, and the verdict on two things measured in turn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

#: No verdict with fewer pairs than this: with 8, the smallest two-sided p of the signed-rank test is 2 / 2^8.
MIN_PAIRS = 8
#: A difference counts if p is below this ...
SIGNIFICANCE = 0.01
#: ... and the median ratio is further from 1 than this: a shared machine cannot resolve less.
SMALLEST_EFFECT = 0.01
#: The test behind a verdict, as it is named in results.
TEST = "Wilcoxon signed-rank, exact, two-sided, on log ratios of paired block medians"

Verdict = Literal["better", "worse", "noise", "too few pairs"]


@dataclass(frozen=True)
class Summary:
    """Summary of ``n`` samples, in their unit. Percentiles are interpolated linearly between order statistics."""

    n: int
    min: float
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True)
class PairedTest:
    """How much faster one subject is than another that was measured in turn with it.

    ``speedup``: median over pairs of (the other's time / its time). ``low``, ``high``: interval that contains the
    median ratio with a probability of at least 95 %, from order statistics; None with fewer than 6 pairs, which are not
    enough for one. ``p``: of the test :data:`TEST` against "no difference".
    """

    ratios: tuple[float, ...]
    speedup: float
    low: float | None
    high: float | None
    p: float
    verdict: Verdict


def summarize(samples: Sequence[float]) -> Summary:
    """The summary of at least one sample."""
    values = np.asarray(samples, np.float64)
    p50, p90, p95, p99 = np.percentile(values, [50, 90, 95, 99]).tolist()
    mean = min(max(float(values.mean()), float(values.min())), float(values.max()))  # rounding may move it out of range
    return Summary(len(values), float(values.min()), mean, p50, p90, p95, p99, float(values.max()))


def compare(mine: Sequence[Sequence[float]], others: Sequence[Sequence[float]]) -> PairedTest:
    """Compare times of two subjects block by block: ``mine[i]`` and ``others[i]`` were measured next to each other."""
    ratios = [float(np.median(other) / np.median(own)) for own, other in zip(mine, others, strict=True)]
    speedup = float(np.median(ratios))
    p = signed_rank_p([math.log(ratio) for ratio in ratios])
    low, high = median_interval(ratios)
    if len(ratios) < MIN_PAIRS:
        verdict: Verdict = "too few pairs"
    elif p >= SIGNIFICANCE or abs(speedup - 1) <= SMALLEST_EFFECT:
        verdict = "noise"
    else:
        verdict = "better" if speedup > 1 else "worse"
    return PairedTest(tuple(ratios), speedup, low, high, p, verdict)


def signed_rank_p(differences: Sequence[float]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test, exact for any number of differences and for ties.

    Zeros are dropped, ties share their mean rank, and every one of the 2^n sign patterns is counted, by a sum over the
    possible rank sums (Wilcoxon 1945; zeros as there).
    """
    values = np.asarray([value for value in differences if value != 0], np.float64)
    if not len(values):
        return 1.0
    _, inverse, counts = np.unique(np.abs(values), return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    twice_ranks = (2 * ends - counts + 1)[inverse]  # twice the mean rank is an integer
    patterns = [1]  # patterns[s]: sign patterns whose positive ranks sum to s / 2
    for rank in twice_ranks.tolist():
        longer = patterns + [0] * rank
        for at, count in enumerate(patterns):
            longer[at + rank] += count
        patterns = longer
    positive = int(twice_ranks[values > 0].sum())
    smaller = min(positive, len(patterns) - 1 - positive)
    return min(1.0, 2 * sum(patterns[: smaller + 1]) / 2 ** len(values))


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float | None, float | None]:
    """Interval between two order statistics that contains the median with at least ``confidence``, for any
    distribution: the number of values below the median is binomial (n, 1/2)."""
    ordered, n = sorted(values), len(values)
    tail, outside = 0, -1
    for below in range(n // 2):
        tail += math.comb(n, below)
        if 2 * tail > (1 - confidence) * 2**n:
            break
        outside = below
    return (None, None) if outside < 0 else (ordered[outside], ordered[n - 1 - outside])
