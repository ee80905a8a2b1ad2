"""A bundle on a device, as all engines there need it: the tables that the loop reads, and the body."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from ...bundle.bundle import Bundle
from ...bundle.manifest import ModelIdentity
from ...errors import EngineError
from ...vocabulary import Modality
from ..tables import rotary_tables
from .cache import CacheShape, DeviceCache
from .device import Device
from .loop import AHEAD, Outbox
from .protocol import DeviceBody
from .sampler import DeviceSampler, SamplerTables, fill_null_prefix


class DeviceModel:
    """State shared by the sequences of an engine. An engine creates one and sets its ``body``."""

    def __init__(self, device: Device, bundle: Bundle, shape: CacheShape, *, max_context: int | None = None) -> None:
        """``shape``: of the cache of one sequence. ``max_context``: rows of it that are used, None for all.

        :class:`EngineError` if the tables do not fit.
        """
        self.device, self.bundle, self.shape = device, bundle, shape
        self.max_context = shape.capacity if max_context is None else max_context
        #: Frames launched ahead of the one that is read; 0 to look at the logits of each.
        self.ahead = AHEAD
        self.model: ModelIdentity = bundle.manifest.model
        self.vocabulary = bundle.manifest.vocabulary
        self.cos, self.sin = rotary_tables(bundle.table("rope.inverse_frequencies"), shape.capacity)
        self.rvq_bias = bundle.table("codec.rvq_bias")
        with self.explained_memory():
            self._tables = SamplerTables(device, bundle)
            self._angles = device.uploaded(self.cos), device.uploaded(self.sin)
            self._null = device.uploaded(bundle.table("null.keys")), device.uploaded(bundle.table("null.values"))
        self._body: DeviceBody | None = None

    @property
    def body(self) -> DeviceBody:
        """The transformer body and its heads; :class:`EngineError` once the engine is closed."""
        if self._body is None:
            raise EngineError("the model is closed; open it again")
        return self._body

    @body.setter
    def body(self, body: DeviceBody) -> None:
        self._body = body

    def release(self) -> None:
        """Free the body."""
        self._body = None

    def open_sampler(self, outbox: Outbox) -> DeviceSampler:
        """The sampler of a sequence, which puts what it draws into ``outbox``."""
        return DeviceSampler(self.device, self._tables, outbox)

    def columns(self, modality: Modality) -> int:
        return self.vocabulary.head_columns(modality)

    def checked_ids(self, rows: np.ndarray) -> np.ndarray:
        """``rows`` as int32; ValueError for an id outside the tables, which on a device would read other memory."""
        if len(rows) and not (rows.min() >= 0 and rows.max() < self._tables.vocabulary):
            raise ValueError(f"rows: ids {rows.min()} .. {rows.max()}, the table has {self._tables.vocabulary}")
        return np.ascontiguousarray(rows, np.int32)

    def fill_null_prefix(self, cache: DeviceCache, first: int, last: int) -> None:
        """Null prefix of positions [first, last): constant keys, rotated to each, and constant values (no prefill)."""
        if first < last:
            fill_null_prefix(self.device, cache, self._null, self._angles, first, last)

    @contextmanager
    def explained_memory(self) -> Iterator[None]:
        """Turn a failed allocation in this block into an :class:`EngineError` that says what a sequence takes."""
        try:
            yield
        except MemoryError as error:
            free, total = self.device.memory()
            raise EngineError(
                f"the GPU has {free / 2**30:.1f} GiB free of {total / 2**30:.1f}, which is not enough: each "
                f"conversation takes {self.shape.nbytes / 2**30:.1f} GiB of cache ({self.shape.capacity} rows of "
                f"{self.shape.bytes_per_row} bytes); close one, or open the model with a smaller max_context"
            ) from error
