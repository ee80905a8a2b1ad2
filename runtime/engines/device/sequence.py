"""One conversation on a device: the sequence protocol over a body, its cache and the frame loop."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

import numpy as np

from ...errors import EngineError
from ...sampling import AudioSampling, Mode, TextSampling
from ...vocabulary import CHOOSABLE, MODALITIES, STREAMS, Modality
from ..protocol import check_room
from ..sequence import SequenceBase
from .device import translate_errors
from .loop import Drawn, Flight
from .pool import WorkspacePool
from .protocol import DeviceStep

_Method = TypeVar("_Method", bound=Callable[..., Any])


def _translated(method: _Method) -> _Method:
    """See :func:`translate_errors`."""

    @functools.wraps(method)
    def call(self: DeviceSequence, *arguments: Any, **options: Any) -> Any:
        with translate_errors(self._device.cuda):
            return method(self, *arguments, **options)

    return cast(_Method, call)


class DeviceSequence(SequenceBase):
    """See :class:`protocol.EngineSequence`. Branch 0 is conditional, branch 1 the null branch.

    Frames launched ahead write cache rows beyond those that count; the next work on the stream overwrites them.
    """

    def __init__(self, pool: WorkspacePool) -> None:
        model = pool.model
        super().__init__(model.model, max_context=model.max_context, latent_size=len(model.rvq_bias))
        self._pool, self._engine, self._device = pool, model, model.device
        with translate_errors(self._device.cuda):
            self._work = pool.take()
        weakref.finalize(self, pool.give_back, self._work).atexit = False
        self._step: DeviceStep | None = None
        self._columns = 0
        self._flight: Flight | None = None

    @_translated
    def prefill(self, parts: Sequence[np.ndarray]) -> None:
        rows = sum(map(len, parts))
        check_room(self._length, rows, self._engine.max_context, most=self._sizes.max_positions)
        self._running, body = False, self._engine.body
        for pieces in _chunks(parts, body.prefill_rows):
            count = sum(map(len, pieces))
            with self._device.lock:
                self._embed(pieces)
                with self._clock:
                    body.prefill(self._work.cache, self._work.chunk, count, self._length, self._work.hidden)
            self._length += count

    def _embed(self, pieces: list[np.ndarray]) -> None:
        """Embeddings of a chunk's rows and features, one after the other."""
        at, width, work = 0, self._engine.model.hidden_size, self._work
        for piece in pieces:
            target = work.chunk.address + at * width * 4
            if piece.dtype == np.float32:
                self._device.upload(target, piece)
            else:
                ids = self._engine.checked_ids(piece)
                address = work.ids.address + at * STREAMS * 4
                self._device.upload(address, ids)
                work.sampler.embed(address, len(ids), target, copies=1)
            at += len(piece)

    def truncate(self, length: int) -> None:
        super().truncate(length)
        self._work.clear_invalid(length)

    @_translated
    def fork(self) -> DeviceSequence:
        other = DeviceSequence(self._pool)
        with self._device.lock:
            mine, theirs = self._work, other._work
            theirs.cache.copy_rows(mine.cache, self._length)
            self._device.copy(theirs.hidden.address, mine.hidden.address, mine.hidden.nbytes)
        other._length = self._length
        return other

    @_translated
    def save(self) -> np.ndarray:
        with self._device.lock:
            return self._work.cache.save(self._length)

    @_translated
    def _write_cache(self, cache: np.ndarray) -> None:
        with self._device.lock:
            self._work.cache.restore(cache)

    @_translated
    def modality_logits(self) -> np.ndarray:
        with self._device.lock, self._clock:
            self._engine.body.modality_logits(self._work.hidden, self._work.choice)
            return self._read(self._work.choice.address, (len(CHOOSABLE),))

    @_translated
    def begin_segment(
        self, modality: Modality, sampling: AudioSampling | TextSampling, *, mode: Mode, segment: int
    ) -> None:
        device, work, sampler = self._device, self._work, self._work.sampler
        self._branches = 2 if sampling.guidance > 1 else 1
        # without the lock: loading a part takes its own lock, and may run the garbage collector on objects that need
        # ours
        step, frame = work.frame(modality, self._branches)
        with device.lock:
            sampler.begin(modality, sampling, mode=mode, segment=segment)
            if self._branches == 2:
                # a later segment writes its rows after these: they stay valid for the next null branch
                self._engine.fill_null_prefix(work.cache, self._null_rows, self._length)
                self._null_rows = self._length
            device.upload(work.ids.address, self._engine.vocabulary.special_row(MODALITIES[modality])[None])
            sampler.embed(work.ids.address, 1, step.embeddings.address, copies=self._branches)
            step.begin(self._length)
        room = self._engine.max_context - self._length
        self._flight = Flight(
            device,
            frame,
            work.outbox,
            self._clock,
            start=self._length,
            most=min(sampling.max_steps, room),
            sound=modality == "audio",
            ahead=self._engine.ahead,
        )
        self._step, self._columns, self._running = step, self._engine.columns(modality), True

    @_translated
    def _draw(self, row: np.ndarray, latent: np.ndarray, *, wanted: int) -> int:
        assert self._flight is not None  # a segment is in progress
        self._length += 1  # the frame has fed its row, even if none could be drawn
        got = self._take(self._flight, wanted)
        row[:] = got.row
        if got.latent is not None:
            latent[:] = got.latent
        return got.flags

    def _take(self, flight: Flight, wanted: int) -> Drawn:
        try:
            return flight.take(wanted=wanted)
        except EngineError:
            self._work.invalid = True
            raise

    @property
    def logits(self) -> np.ndarray:
        if self._step is None or self._flight is None:
            raise EngineError("logits: no segment has begun")
        if self._flight.in_flight:
            raise EngineError(
                f"logits: {self._flight.in_flight} frames are launched ahead, so those of the last row are gone; draw "
                "one row in a segment's first call, or set the engine's ahead to 0"
            )
        with self._device.lock:
            return self._read(self._step.logits.address, (self._branches, self._columns))

    def _read(self, address: int, shape: tuple[int, ...]) -> np.ndarray:
        values = np.empty(shape, np.float32)
        self._device.download(values, address)
        self._device.synchronize()
        return values


def _chunks(parts: Sequence[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    """Rows of all parts in order, ``size`` at a time, each chunk as the pieces of parts that it is made of."""
    chunk: list[np.ndarray] = []
    room = size
    for part in parts:
        at = 0
        while at < len(part):
            piece = part[at : at + room]
            chunk.append(piece)
            at, room = at + len(piece), room - len(piece)
            if not room:
                yield chunk
                chunk, room = [], size
    if chunk:
        yield chunk
