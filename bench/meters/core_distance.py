"""How far apart the machine's cores are during a measurement.

Threads that share an operator's work pass data between their cores. The round trip takes about 50 ns if two cores share
a last-level cache, and several times as long between groups of cores; and a virtual machine's cores may be moved from
one case to the other at any time.
"""

from __future__ import annotations

import statistics

from ...runtime import _native
from ...runtime.process.cores import cores
from ..report.schema import RoundTrip

#: Round trips of a batch, and batches of a sample, which is their minimum, as an interruption only adds time.
TURNS, BATCHES = 200, 5
#: Seconds longer than any distance between cores: a thread waited for a core that was busy.
_WAITED = 5e-6


class DistanceMeter:
    """Takes a sample on request: well under a millisecond if each thread has its own core."""

    def __init__(self, threads: int) -> None:
        """``threads``: number that work together; a single one, or a single core, has no distance."""
        self._one = min(threads, cores()) < 2
        self._samples: list[float] = []

    def measure(self) -> None:
        if not self._one:
            trip = min(_native.core_round_trip(TURNS) for _ in range(BATCHES))
            if trip < _WAITED:
                self._samples.append(1e9 * trip)

    @property
    def result(self) -> RoundTrip | None:
        """All samples so far; None if there are none, because there is only one core or others kept the cores busy."""
        samples = self._samples
        if not samples:
            return None
        return RoundTrip(len(samples), min(samples), statistics.median(samples), max(samples))
