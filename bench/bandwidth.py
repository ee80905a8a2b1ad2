"""How fast this machine reads memory, measured beside the figures that are held against it."""

from __future__ import annotations

import os

import numpy as np

from ..runtime import _native
from ..runtime.errors import UalmError
from .schema import Bandwidth

#: Bytes read in one pass: many times the last-level cache of any machine we know of.
BUFFER_BYTES = 512 << 20
#: Passes before and after the figures.
PASSES = 6


class BandwidthMeter:
    """Reads a large buffer with the threads that the engine may use; measure before and after what is to be judged.

    The buffer is freed between the two, so that it is not in the way of memory figures.
    """

    def __init__(self, threads: int, *, buffer_bytes: int = BUFFER_BYTES) -> None:
        self._threads, self._bytes = threads, min(buffer_bytes, _quarter_of_memory()) // 64 * 64
        self._rates: list[float] = []

    def measure(self) -> None:
        """A few passes; :class:`UalmError` where the sum of what was read is wrong."""
        words = np.ones(self._bytes // 8, np.uint64)
        for each in range(PASSES + 1):
            total, seconds = _native.read_once(words, self._threads)
            if total != len(words):
                raise UalmError(f"the read of memory gave the sum {total}, {len(words)} is right; nothing is measured")
            if each:  # the first pass meets pages that were just written
                self._rates.append(words.nbytes / max(seconds, 1e-9) / 1e9)

    @property
    def result(self) -> Bandwidth:
        """What all passes so far say."""
        rates = self._rates
        return Bandwidth(self._threads, self._bytes, len(rates), max(rates), float(np.median(rates)))


def _quarter_of_memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
    except (AttributeError, OSError, ValueError):  # not on Windows
        return BUFFER_BYTES
