"""Random numbers with the same bits on every machine and in every numpy."""

from __future__ import annotations

import math

import numpy as np


class Numbers:
    """Whole numbers of PCG64, whose stream numpy guarantees, and arithmetic that rounds once.

    numpy's own normal numbers may change with its version and with the logarithm of the C library.
    """

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        """About normal, float32: the sum of four uniform numbers, with a standard deviation of 1, within 3.5 of 0."""
        parts = self._bits.random_raw(2 * math.prod(shape)).view(np.uint32).reshape(4, -1)
        total = parts.sum(0, dtype=np.int64) - (1 << 33)
        return (total.astype(np.float32) * np.float32(math.sqrt(3) / 2**32)).reshape(shape)

    def uniform(self, shape: tuple[int, ...]) -> np.ndarray:
        """float64 in [0, 1)."""
        return ((self._bits.random_raw(math.prod(shape)) >> np.uint64(11)) * 2.0**-53).reshape(shape)

    def bfloat16(self, shape: tuple[int, ...]) -> np.ndarray:
        """Bits of bfloat16 numbers as uint16, of either sign, from 1/8 up to 2; cheap for large tables."""
        size = math.prod(shape)
        words = self._bits.random_raw(-(-size // 4)).view(np.uint16)[:size]
        words &= np.uint16(0x81FF)
        words |= np.uint16(0x3E00)
        return words.reshape(shape)

    def below(self, limit: int, shape: tuple[int, ...]) -> np.ndarray:
        """int32 in [0, ``limit``)."""
        words = self._bits.random_raw(math.prod(shape)) % np.uint64(limit)
        return words.astype(np.int32).reshape(shape)
