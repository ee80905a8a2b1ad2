"""How fast this machine reads memory, measured beside the figures that are compared with it."""

from __future__ import annotations

import os
import statistics
from abc import ABC, abstractmethod

import numpy as np

from ...runtime import _native
from ...runtime.errors import UalmError
from ..report.schema import Bandwidth

#: Bytes read in one pass: many times the last-level cache of any machine known to us.
BUFFER_BYTES = 512 << 20
#: Seconds of a reading, which takes as many passes as fit: short compared with how long memory speed stays constant,
#: and long enough not to be dominated by one interruption of a thread.
READING_SECONDS = 0.04
#: Readings of a :meth:`Meter.measure`.
READINGS = 3
#: Rounds in which all kernels take turns before one is chosen.
ROUNDS = 7


class Meter(ABC):
    """Takes readings of a bandwidth and keeps all of them."""

    def __init__(self, reading_seconds: float) -> None:
        self._reading_seconds = reading_seconds
        self._rates: list[float] = []
        self._passes = 0

    def measure(self) -> None:
        """A few readings, for figures that are not compared with the bandwidth block by block; no memory is held
        afterwards."""
        for _ in range(READINGS):
            self.read()
        self.release()

    def read(self) -> float:
        """One reading in GB/s. Its memory stays allocated."""
        done = moved = 0
        seconds = 0.0
        while seconds < self._reading_seconds:
            size, took = self._pass()
            done, moved, seconds = done + 1, moved + size, seconds + max(took, 1e-9)
        self._passes += done
        self._rates.append(moved / seconds / 1e9)
        return self._rates[-1]

    @abstractmethod
    def release(self) -> None:
        """Free the memory of :meth:`read`."""

    @property
    @abstractmethod
    def result(self) -> Bandwidth:
        """Summary of all readings so far."""

    @abstractmethod
    def _pass(self) -> tuple[int, float]:
        """Bytes moved by a pass, and its seconds."""

    def _summary(self, threads: int, size: int, memory: str, kernel: str) -> Bandwidth:
        rates = self._rates
        best, median, worst = max(rates), statistics.median(rates), min(rates)
        return Bandwidth(threads, size, self._passes, best, median, memory, kernel, len(rates), worst)


class BandwidthMeter(Meter):
    """Reads a large buffer with the threads that the engine may use, with the fastest kernel of this CPU.

    The kernel is chosen before the first reading. The buffer is kept from a reading until :meth:`release`, because
    writing its pages again takes several times as long as reading them.
    """

    def __init__(
        self, threads: int, *, buffer_bytes: int = BUFFER_BYTES, reading_seconds: float = READING_SECONDS
    ) -> None:
        super().__init__(reading_seconds)
        self._threads, self._bytes = threads, min(buffer_bytes, _quarter_of_memory()) // 64 * 64
        self._words: np.ndarray | None = None
        self._kernel = ""

    def read(self) -> float:
        """As for every meter; raises :class:`UalmError` if the sum of the values read is wrong."""
        self._kernel = self._kernel or self._fastest()
        return super().read()

    def release(self) -> None:
        self._words = None

    @property
    def result(self) -> Bandwidth:
        return self._summary(self._threads, self._bytes, "host", self._kernel)

    def _fastest(self) -> str:
        """The kernel whose passes are the fastest in turn with the others, because the memory may change meanwhile."""
        kernels = _native.READ_KERNELS
        shares: dict[str, list[float]] = {kernel: [] for kernel in kernels}
        for at in range(ROUNDS):
            order = kernels if at % 2 == 0 else kernels[::-1]
            seconds = {kernel: self._time(kernel) for kernel in order}
            for kernel, took in seconds.items():
                shares[kernel].append(min(seconds.values()) / took)
        return max(kernels, key=lambda kernel: statistics.median(shares[kernel]))

    def _pass(self) -> tuple[int, float]:
        return self._bytes, self._time(self._kernel)

    def _time(self, kernel: str) -> float:
        """Seconds of one pass."""
        if self._words is None:
            self._words = np.ones(self._bytes // 8, np.uint64)
            self._time(kernel)  # the first pass touches pages that were just written
        total, seconds = _native.read_once(self._words, self._threads, kernel)
        if total != len(self._words):
            raise UalmError(
                f"the read of memory ({kernel}) gave the sum {total}, {len(self._words)} is right; nothing is measured"
            )
        return max(seconds, 1e-9)


def _quarter_of_memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
    except (AttributeError, OSError, ValueError):  # not on Windows
        return BUFFER_BYTES
