from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from support.native import sampler_model
from ualm.runtime._native import testing

ONES = 0xFFFFFFFF

# Known answers published with Random123 (kat_vectors, philox4x32 10).
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter, key, answer):
    assert testing.philox(counter, key) == answer
    assert sampler_model.philox(counter, key) == answer


def test_philox_equals_the_integer_model_on_random_counters():
    words = np.random.default_rng(1).integers(0, 2**32, size=(200, 6)).tolist()
    for a, b, c, d, e, f in words:
        assert testing.philox((a, b, c, d), (e, f)) == sampler_model.philox((a, b, c, d), (e, f))


# Two roundings of a float32 log (each within 1 ulp): at most about 2.4e-7, relative above 1 and absolute below.
GUMBEL_TOLERANCE = 2.4e-7


def test_gumbel_noise_is_accurate_over_all_of_u():
    edges = [0, 255, 256, 0x7FFFFF00, 0x80000000, 0xB504F300, 0xB504F400, 0xFFFFFE00, ONES]
    for bits in edges + np.random.default_rng(2).integers(0, 2**32, size=20_000).tolist():
        want = sampler_model.gumbel_of_bits(bits)
        assert abs(testing.gumbel_of_bits(bits) - want) <= GUMBEL_TOLERANCE * max(1.0, abs(want)), hex(bits)


def test_gumbel_noise_is_finite_at_both_ends():
    # The largest u is 1 - 2^-25, which float32 would round to 1, and the noise would be infinite.
    assert testing.gumbel_of_bits(ONES) == pytest.approx(25 * math.log(2), rel=1e-6)
    assert testing.gumbel_of_bits(0) == pytest.approx(-math.log(25 * math.log(2)), rel=1e-6)


def test_gumbel_noise_is_keyed_by_seed_segment_row_stream_and_id():
    keys = [(0, 0, 0, 0, 2), (1, 0, 0, 0, 2), (2**32, 0, 0, 0, 2), (0, 1, 0, 0, 2), (0, 0, 1, 0, 2), (0, 0, 0, 1, 2)]
    keys += [(0, 0, 0, 0, 3), (2**64 - 1, ONES, 2**31 - 2, 7, 160391)]
    noise = [testing.gumbel(*key) for key in keys]
    assert len(set(noise)) == len(keys)
    for key, value in zip(keys, noise, strict=True):
        want = sampler_model.gumbel(*key)
        assert abs(value - want) <= GUMBEL_TOLERANCE * max(1.0, abs(want))


def test_gumbel_noise_has_the_gumbel_distribution():
    noise = [
        testing.gumbel(7, 0, row, stream, token) for row in range(50) for stream in range(8) for token in range(50)
    ]
    # Fixed seed: the p-value is one number, and 1e-4 only allows for an unlucky one.
    assert stats.kstest(noise, "gumbel_r").pvalue > 1e-4
