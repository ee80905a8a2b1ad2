"""Draws follow softmax(logit/T) over the kept candidates, independently across rows and streams.

All seeds are fixed, so every p-value below is one number that either passes or does not. The threshold is 1e-4: a
correct sampler fails one of the roughly 80 tests here with a probability below 1 %, and an incorrect one misses by many
orders of magnitude (see the last test).
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from support.native.harness import Native, run_native
from support.native.sampler_model import Options, Tables, mixed_logits, probabilities

THRESHOLD = 1e-4
DRAWS = 20_000


def p_value(counts: np.ndarray, expected: np.ndarray) -> float:
    """Chi-square p-value; cells with fewer than 5 expected draws are merged into one."""
    assert counts[expected == 0].sum() == 0, "a candidate outside the kept ones was drawn"
    counts, expected = counts[expected > 0], expected[expected > 0]
    rare = expected < 5
    if rare.any():
        counts = np.append(counts[~rare], counts[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    if len(counts) == 1:
        return 1.0
    return float(stats.chisquare(counts, expected).pvalue)


def text_draws(options: Options, logits: np.ndarray) -> np.ndarray:
    """Counts per column of DRAWS rows from the same logits."""
    tables = Tables.random(np.random.default_rng(0), 1, text_size=logits.shape[1] - 2, hidden=1, latent=1)
    rows, _ = run_native(Native(tables), options, lambda _: logits, rows=DRAWS)
    return np.bincount(rows[:, 0] - tables.text_base + 2, minlength=logits.shape[1])


def frozen_logits(columns: int, branches: int, seed: int) -> np.ndarray:
    logits = (np.random.default_rng(seed).normal(size=(branches, columns)) * 1.2).astype(np.float32)
    logits[0, :2] = -np.inf  # no stop row
    return logits


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("top_p", [1.0, 0.7])
@pytest.mark.parametrize("top_k", [0, 5, 20])
@pytest.mark.parametrize("temperature", [0.5, 0.8, 1.6])
def test_draws_follow_the_exact_distribution(temperature, top_k, top_p, guidance):
    options = Options("text", temperature, top_k, top_p, guidance, max_steps=DRAWS + 1, seed=20)
    logits = frozen_logits(42, 2 if guidance > 1 else 1, seed=1)
    exact = probabilities(options, mixed_logits(options, logits))
    assert p_value(text_draws(options, logits), exact * DRAWS) > THRESHOLD


def test_draws_follow_the_distribution_across_seeds():
    """The same, but each draw is the first row of another seed and segment."""
    tables = Tables.random(np.random.default_rng(0), 1, text_size=30, hidden=1, latent=1)
    native, logits = Native(tables), frozen_logits(32, 1, seed=2)
    counts = np.zeros(32)
    for seed in range(5000):
        options = Options("text", guidance=1, max_steps=1, seed=seed * 0x9E3779B97F4A7C15 % 2**64, segment=seed % 3)
        counts[run_native(native, options, lambda _: logits)[0][0, 0] - tables.text_base + 2] += 1
    assert p_value(counts, probabilities(options, logits[0]) * 5000) > THRESHOLD


@pytest.fixture(scope="module")
def audio_draws() -> tuple[Options, Tables, np.ndarray, np.ndarray]:
    tables = Tables.random(np.random.default_rng(0), 9, text_size=1, hidden=1, latent=1)
    options = Options("reference", temperature=0.9, top_k=6, guidance=3, max_steps=DRAWS + 1, seed=21)
    logits = frozen_logits(len(tables.audio_columns()), 2, seed=3)
    rows, _ = run_native(Native(tables), options, lambda _: logits, rows=DRAWS)
    return options, tables, logits, rows - [tables.pad(n) for n in range(8)]


@pytest.mark.parametrize("stream", range(8))
def test_each_audio_stream_follows_its_distribution(audio_draws, stream):
    options, tables, logits, drawn = audio_draws
    width = tables.codebook_size + 1
    values = mixed_logits(options, logits)[2 + stream * width : 2 + (stream + 1) * width]
    exact = probabilities(options, values)
    assert p_value(np.bincount(drawn[:, stream], minlength=width), exact * DRAWS) > THRESHOLD


def independence(a: np.ndarray, b: np.ndarray) -> float:
    """p-value of a contingency test; offsets drawn too rarely to count are merged."""
    table = stats.contingency.crosstab(a, b).count
    table = _merge_rare(_merge_rare(table).T)
    return float(stats.chi2_contingency(table).pvalue)


def _merge_rare(table: np.ndarray) -> np.ndarray:
    rare = table.sum(1) < 400
    merged = table[rare].sum(0, keepdims=True)
    return np.vstack([table[~rare], merged]) if merged.sum() >= 400 else table[~rare]


@pytest.mark.parametrize("first", range(7))
def test_streams_of_a_row_are_independent(audio_draws, first):
    drawn = audio_draws[3]
    for second in range(first + 1, 8):
        assert independence(drawn[:, first], drawn[:, second]) > THRESHOLD, second


@pytest.mark.parametrize("lag", [1, 2])
@pytest.mark.parametrize("stream", range(8))
def test_successive_rows_are_independent(audio_draws, stream, lag):
    drawn = audio_draws[3][:, stream]
    assert independence(drawn[:-lag], drawn[lag:]) > THRESHOLD


def test_the_statistics_see_a_small_error():
    """A temperature off by 5 % and streams that share one draw in ten both fall far below the threshold."""
    options = Options("text", 0.8, 0, 1.0, 1.0, max_steps=DRAWS + 1, seed=20)
    logits = frozen_logits(42, 1, seed=1)
    counts = text_draws(options, logits)
    wrong = Options("text", 0.84, 0, 1.0, 1.0)
    assert p_value(counts, probabilities(wrong, logits[0]) * DRAWS) < THRESHOLD
    rng = np.random.default_rng(5)
    a, b = rng.integers(0, 6, size=(2, DRAWS))
    assert independence(a, np.where(rng.random(DRAWS) < 0.1, a, b)) < THRESHOLD
