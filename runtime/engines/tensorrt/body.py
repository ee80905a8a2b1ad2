"""The transformer body and the heads as TensorRT engines, for the device loop.

A decode step belongs to one bucket of attention lengths: it attends to the rows held, rounded up, and all that changes
from step to step is a number in device memory, the position, which the engine outputs for the next step. So the step
can be captured together with the sampler, and one graph serves all lengths of its bucket.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...errors import EngineError
from ...vocabulary import Modality
from ..device.cache import CacheShape, DeviceCache
from ..device.device import Buffer, Device
from ..device.protocol import DeviceStep
from . import names as names
from .context import Call, CompiledPart, Scratch
from .rows import RowWriter, open_writer

#: Rows of the smallest bucket.
SMALLEST = 256


def bucket_rows(rows: int, capacity: int) -> int:
    """Rows that a step attends to, to cover ``rows``: 256, 384, 512, 768, 1024, ..., at most a half more than needed.

    Each size costs a graph, and each row read in vain costs its keys and values; powers of two and the sizes half-way
    between them make 13 sizes up to 16384.
    """
    size = SMALLEST
    while size < rows:
        size += size // 2 if size & (size - 1) == 0 else size // 3
    return min(size, capacity)


@dataclass(frozen=True)
class BodyParts:
    """The engines of the loop."""

    backbone: CompiledPart
    heads: Mapping[str, CompiledPart]

    @property
    def scratch_bytes(self) -> int:
        return max(part.scratch_bytes for part in (self.backbone, *self.heads.values()))


class TensorRtBody:
    """See :class:`device.protocol.DeviceBody`."""

    def __init__(
        self,
        device: Device,
        parts: BodyParts,
        shape: CacheShape,
        angles: tuple[np.ndarray, np.ndarray],
        *,
        hidden_size: int,
        columns: Mapping[Modality, int],
    ) -> None:
        """``angles``: cos and sin of every position of the cache, float32 [capacity, head_dim / 2]."""
        self.device, self.parts, self.shape = device, parts, shape
        self.hidden_size, self.columns = hidden_size, columns
        self.prefill_rows = self._limit(names.PREFILL, names.OFFSETS)
        if shape.capacity > self._limit(names.DECODE, names.COLUMNS):
            raise EngineError(f"{parts.backbone.path}: its profiles are shorter than its cache; build it again")
        self.scratch = Scratch(device, device.stream, parts.scratch_bytes, device.lock)
        counted = max(shape.capacity, self.prefill_rows)
        self._counting = device.uploaded(np.arange(counted, dtype=np.int64))
        self._angles = [device.uploaded(table) for table in angles]
        self._position, self._ignored = device.allocate(8), device.allocate(8)
        self._writer = self.open_writer(branches=1, rows=self.prefill_rows)
        self._prefill: Call | None = None
        self._choice: Call | None = None

    def _limit(self, profile: str, name: str) -> int:
        """The largest first dimension that a profile of the body allows for an input."""
        for each in self.parts.backbone.entry.profiles:
            if each.name == profile and name in each.shapes:
                return each.shapes[name][2][0]
        raise EngineError(f"{self.parts.backbone.path}: has no profile {profile!r}; build it again with this ualm")

    def open_cache(self) -> DeviceCache:
        """A cache of zeros: rows not written yet are attended to with weight 0, and 0 x NaN would be NaN."""
        cache = DeviceCache(self.device, self.shape)
        with self.device.lock:
            for halves in cache.layers:
                for memory in halves:
                    self.device.cuda.set_bytes(memory.address, 0, memory.nbytes, self.device.stream.handle)
        return cache

    def open_writer(self, *, branches: int, rows: int) -> RowWriter:
        """The writer that puts the rows of the body's calls into a cache."""
        return open_writer(self.parts.backbone.entry.cache, self.device, self.shape, branches=branches, rows=rows)

    def bound(self, profile: str, *, steady: bool) -> Call:
        """A call of the body with everything bound that is the same for all conversations."""
        call = self.parts.backbone.call(profile, self.scratch, steady=steady)
        for name, table in zip((names.COS, names.SIN), self._angles, strict=True):
            call.input(name, table.address)
        return call

    def bind(
        self,
        call: Call,
        cache: DeviceCache,
        writer: RowWriter,
        *,
        branches: int,
        rows: int,
        looked_at: int,
        embeddings: Buffer,
        hidden: Buffer,
        position: Buffer,
        next_position: Buffer,
    ) -> None:
        """Bind what is specific to a conversation and a shape."""
        shape = self.shape
        call.input("embeddings", embeddings.address, (branches, rows, self.hidden_size))
        call.input(names.OFFSETS, self._counting.address, (rows,))
        call.input(names.COLUMNS, self._counting.address, (looked_at,))
        call.input(names.POSITION, position.address)
        bound = (branches, shape.kv_heads, shape.capacity, shape.head_dim)
        for layer, halves in enumerate(cache.layers):
            for name, buffer in zip(("key", "value"), halves, strict=True):
                call.input(f"past_{name}.{layer}", buffer.address, bound)
        writer.bind(call, cache)
        call.output("hidden", hidden.address)
        call.output(names.NEXT_POSITION, next_position.address)

    def prefill(self, cache: DeviceCache, embeddings: Buffer, rows: int, held: int, hidden: Buffer) -> None:
        if self._prefill is None:
            self._prefill = self.bound(names.PREFILL, steady=False)
        self.device.upload(self._position.address, np.array([held], np.int64))
        self.bind(
            self._prefill,
            cache,
            self._writer,
            branches=1,
            rows=rows,
            looked_at=bucket_rows(held + rows, self.shape.capacity),
            embeddings=embeddings,
            hidden=hidden,
            position=self._position,
            next_position=self._ignored,
        )
        self._prefill()
        self._writer.write(cache, rows, self._position)

    def modality_logits(self, hidden: Buffer, out: Buffer) -> None:
        if self._choice is None:
            self._choice = self.parts.heads["modality"].call(names.HEAD, self.scratch)
        self._choice.input("hidden", hidden.address, (1, self.hidden_size))
        self._choice.output("logits", out.address)
        self._choice()

    def open_step(self, cache: DeviceCache, modality: Modality, branches: int) -> DeviceStep:
        with self.device.lock:  # setting a context to its profile uses the stream
            return TensorRtStep(self, cache, modality, branches)


class TensorRtStep:
    """See :class:`device.protocol.DeviceStep`. Each bucket has its own context: a graph captured from a context is
    valid only as long as that context sees no other shape."""

    def __init__(self, body: TensorRtBody, cache: DeviceCache, modality: Modality, branches: int) -> None:
        device, width = body.device, body.hidden_size
        self._body, self._cache, self._branches = body, cache, branches
        self.embeddings = device.allocate(branches * width * 4)
        self.logits = device.allocate(branches * body.columns[modality] * 4)
        self._hidden = device.allocate(branches * width * 4)
        self._position, self._next = device.allocate(8), device.allocate(8)
        self._writer = body.open_writer(branches=branches, rows=1)
        self._calls: dict[int, Call] = {}
        self._head = body.parts.heads[modality].call(names.HEAD, body.scratch, steady=True)
        self._head.input("hidden", self._hidden.address, (branches, width))
        self._head.output("logits", self.logits.address)

    def begin(self, held: int) -> None:
        self._body.device.upload(self._position.address, np.array([held], np.int64))

    def before(self, held: int) -> None:
        """Everything can be captured."""

    def bucket(self, held: int) -> int | None:
        """Rows attended to; None if the library does not allow capturing this."""
        rows = bucket_rows(held + 1, self._body.shape.capacity)
        call = self._calls.get(rows)
        if call is not None and not (call.can_be_captured and self._head.can_be_captured):
            return None
        return rows

    def enqueue(self, held: int) -> None:
        rows = bucket_rows(held + 1, self._body.shape.capacity)
        call = self._calls.get(rows)
        if call is None:
            call = self._calls[rows] = self._bound(rows)
        call()
        self._writer.write(self._cache, 1, self._position)
        self._body.device.copy(self._position.address, self._next.address, 8)
        self._head()

    def _bound(self, rows: int) -> Call:
        body = self._body
        call = body.bound(names.DECODE, steady=True)
        body.bind(
            call,
            self._cache,
            self._writer,
            branches=self._branches,
            rows=1,
            looked_at=rows,
            embeddings=self.embeddings,
            hidden=self._hidden,
            position=self._position,
            next_position=self._next,
        )
        return call
