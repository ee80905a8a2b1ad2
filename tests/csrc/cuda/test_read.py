"""The kernel that measures how fast memory is read: it reads every word once, and none beside them."""

from __future__ import annotations

import numpy as np
import pytest

from support.cuda.pairs import address


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("pairs", [0, 1, 511, 512, 4 * 512, 4 * 3 * 512 + 1, 9973])
def test_the_sum_is_that_of_all_words(cuda, pairs, blocks):
    words = np.random.default_rng(pairs).integers(0, 2**64, 2 * pairs + 4, np.uint64)
    total = np.array([7], np.uint64)
    place = -(-address(words) // 16) * 16
    first = (place - address(words)) // 8
    cuda.read_memory(data=place, bytes=16 * pairs, blocks=blocks, total=address(total), stream=0)
    assert total[0] == np.uint64(7) + words[first : first + 2 * pairs].sum(dtype=np.uint64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": 0}, "data, total: must not be null"),
        ({"total": 0}, "data, total: must not be null"),
        ({"data": 8}, "data: must be aligned to 16 bytes"),
        ({"bytes": 24}, "bytes: must be a multiple of 16"),
        ({"bytes": -16}, "bytes: must be a multiple of 16"),
        ({"blocks": 0}, "blocks: must be 1 to 65535"),
        ({"blocks": 65536}, "blocks: must be 1 to 65535"),
    ],
)
def test_what_cannot_be_read_is_refused(cuda, change, message):
    good = {"data": 16, "bytes": 32, "blocks": 1, "total": 8, "stream": 0}
    with pytest.raises(ValueError, match=message):
        cuda.read_memory(**(good | change))
