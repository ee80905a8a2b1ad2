from __future__ import annotations

import numpy as np
import pytest

from ualm.runtime._native import testing

# Over all float32 inputs the worst cases are 0.83 ulp (log, near 1.4106) and 0.98 ulp (exp, near -5.8729).
MAX_ULP = 1.0


def ulp_error(got: np.ndarray, exact: np.ndarray) -> np.ndarray:
    spacing = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
    return np.abs(got.astype(np.float64) - exact) / spacing


def floats_of_all_sizes(count: int) -> np.ndarray:
    """Positive finite float32 with random bits, including subnormals and all edges of the exponent range."""
    bits = np.random.default_rng(3).integers(1, 0x7F800000, size=count, dtype=np.uint32)
    edges = np.array([1, 2, 0x7FFFFF, 0x800000, 0x7F7FFFFF, 0x3F3504F3, 0x3F3504F4, 0x3FB504F3, 0x3FB504F4], np.uint32)
    return np.concatenate([bits, edges]).view(np.float32)


@pytest.mark.parametrize(
    "values",
    [
        floats_of_all_sizes(200_000),
        np.random.default_rng(4).uniform(0.5, 2, size=200_000).astype(np.float32),
        1 - np.arange(1, 20_000, dtype=np.float32) * np.float32(2**-24),
        np.float32([1.41061473]),
    ],
    ids=["all sizes", "around 1", "just below 1", "worst case"],
)
def test_log_is_within_one_ulp(values):
    assert ulp_error(testing.log_f32(values), np.log(values.astype(np.float64))).max() < MAX_ULP


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(5).uniform(-104, 88.7, size=200_000).astype(np.float32),
        np.random.default_rng(6).uniform(-2, 2, size=200_000).astype(np.float32),
        floats_of_all_sizes(1000)[floats_of_all_sizes(1000) < 1e-6],
        np.float32([-5.87290716, 88.722, -87.4, -103.9]),
    ],
    ids=["all sizes", "around 0", "tiny", "worst case and ends"],
)
def test_exp_is_within_one_ulp(values):
    assert ulp_error(testing.exp_f32(values), np.exp(values.astype(np.float64))).max() < MAX_ULP


def test_special_values():
    inf, nan = np.inf, np.nan
    logs = testing.log_f32(np.float32([0, -0.0, 1, inf, -1, -inf, nan]))
    np.testing.assert_array_equal(logs, np.float32([-inf, -inf, 0, inf, nan, nan, nan]))
    exps = testing.exp_f32(np.float32([0, -0.0, inf, -inf, nan, 88.73, 1e30, -104.5, -1e30]))
    np.testing.assert_array_equal(exps, np.float32([1, 1, inf, 0, nan, inf, inf, 0, 0]))


def test_exp_never_decreases():
    values = np.sort(np.random.default_rng(8).uniform(-20, 0, size=100_000).astype(np.float32))
    steps = np.diff(testing.exp_f32(values))
    # Neighbours may swap by the last bit where the polynomial is reduced anew, never by more.
    assert (steps >= -np.spacing(testing.exp_f32(values[1:]))).all()
