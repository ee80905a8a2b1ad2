"""What the sequences of all engines share: they count rows, truncate them, and refuse with the same messages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import numpy as np

from .. import _native
from ..bundle import ModelIdentity
from ..errors import EngineError
from ..vocabulary import STREAMS
from .protocol import Frames, check_room
from .timing import Clock


class SequenceBase(ABC):
    """The half of :class:`protocol.EngineSequence` that is the same on every device.

    Branch 0 is conditional, branch 1 the null branch.
    """

    def __init__(self, sizes: ModelIdentity, *, max_context: int, latent_size: int) -> None:
        self._sizes, self._max_context, self._latent_size = sizes, max_context, latent_size
        #: Rows held, and how many of those have their null prefix in the cache.
        self._length = self._null_rows = 0
        self._branches = 1
        #: Whether a segment is in progress.
        self._running = False
        self._clock = Clock()

    @property
    def length(self) -> int:
        return self._length

    @property
    def library_seconds(self) -> float:
        return self._clock.seconds

    def truncate(self, length: int) -> None:
        if not 0 <= length <= self._length:
            raise EngineError(f"truncate: {length} rows, but {self._length} are held")
        self._length, self._null_rows = length, min(self._null_rows, length)
        self._running = False

    def restore(self, cache: np.ndarray) -> None:
        sizes, rows = self._sizes, cache.shape[3] if cache.ndim == 5 else 0
        if cache.shape != (sizes.layers, 2, sizes.kv_heads, rows, sizes.head_dim) or cache.dtype != np.float32:
            raise EngineError(f"restore: {cache.dtype} {list(cache.shape)} is not a cache of this model")
        self.truncate(0)
        check_room(0, rows, self._max_context, most=self._sizes.max_positions)
        self._write_cache(cache)
        self._length = rows

    def run_frames(self, count: int) -> Frames:
        if not self._running:
            raise EngineError("run_frames: no segment is under way")
        rows = np.empty((count, STREAMS), np.int32)
        latents = np.empty((count, self._latent_size), np.float32)
        drawn = complete = 0
        end: Literal["stop", "limit"] | None = None
        while drawn < count and end is None:
            check_room(self._length, 1, self._max_context, most=self._sizes.max_positions)
            flags = self._draw(rows[drawn], latents[complete], wanted=count - drawn)
            drawn += 1
            complete += bool(flags & _native.LATENT)
            end = "stop" if flags & _native.STOP else "limit" if flags & _native.LIMIT else None
        self._running = end is None
        return Frames(rows[:drawn], latents[:complete], end)

    @abstractmethod
    def _draw(self, row: np.ndarray, latent: np.ndarray, *, wanted: int) -> int:
        """Feed the row drawn last, and draw the next into ``row`` int32 [8].

        Counts the row that was fed in ``_length``, even if none can be drawn. ``wanted``: rows requested at once, this
        one included. Returns the sampler's flags: LATENT if a codec frame was completed, in ``latent`` float32
        [latent_size]; STOP; LIMIT.
        """

    @abstractmethod
    def _write_cache(self, cache: np.ndarray) -> None:
        """Write rows from :meth:`protocol.EngineSequence.save`, which have been checked to fit."""
