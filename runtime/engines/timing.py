"""The time that an engine spends inside its library."""

from __future__ import annotations

import time


class Clock:
    """Adds up the seconds of its ``with`` blocks."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since = 0.0

    def __enter__(self) -> None:
        self._since = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.seconds += time.perf_counter() - self._since
