"""How far apart the machine's cores are while it is measured.

Threads that share an operator's work hand data over between their cores. Where two cores have a last-level cache in
common that takes some 50 ns there and back, between groups of cores several times as long; and a virtual machine's
cores may be moved from the one to the other at any time.
"""

from __future__ import annotations

import statistics

from ...runtime import _native
from ...runtime.process.cores import cores
from ..report.schema import RoundTrip

#: Turns of a batch, and batches of a sample; of these the least, as an interruption only adds.
TURNS, BATCHES = 200, 5
#: Seconds that no two cores are apart: a thread waited for its turn of a core that others had.
_WAITED = 5e-6


class DistanceMeter:
    """Takes a sample whenever it is asked to: well under a millisecond where both threads have a core of their own."""

    def __init__(self, threads: int) -> None:
        """``threads``: that work together; a single one, or a single core, has no distance."""
        self._one = min(threads, cores()) < 2
        self._samples: list[float] = []

    def measure(self) -> None:
        if not self._one:
            trip = min(_native.core_round_trip(TURNS) for _ in range(BATCHES))
            if trip < _WAITED:
                self._samples.append(1e9 * trip)

    @property
    def result(self) -> RoundTrip | None:
        """All samples so far; None where there are none, because there is one core or others kept the cores."""
        samples = self._samples
        if not samples:
            return None
        return RoundTrip(len(samples), min(samples), statistics.median(samples), max(samples))
