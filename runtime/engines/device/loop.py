"""The frame loop on a device: frames are launched ahead, and the host reads their results from pinned memory.

The frame sampler's state, the draws, the stop and the next input stay on the device. A frame after a stop or a fault
changes nothing, so the host may launch it before it knows. The results of a frame are complete once its event has
passed: the host waits for that event only, while the later frames continue.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ... import _native
from ...errors import EngineError
from ...vocabulary import STREAMS
from ..timing import Clock
from .device import Device, Event, Graph
from .protocol import DeviceStep

#: Frames in flight after the one that is waited for: enough to hide the host's share of one, few to waste at a stop.
AHEAD = 3
#: Frames that the rings in pinned memory hold: those in flight, the one that is read, and some to spare.
RING = 16


@dataclass(frozen=True)
class Drawn:
    """One row, int32 [8], with its flags (``_native.STOP`` and the others), and the latent [D] that it completed."""

    row: np.ndarray
    flags: int
    latent: np.ndarray | None


class Outbox:
    """Where the sampler puts what it draws: rings in pinned memory, and one word that says how far it is.

    The word is written last. Bits 0 to 31: rows drawn; 32 to 39: flags of the last; 40 to 47: fault; 48 to 55: its
    stream.
    """

    def __init__(self, device: Device, latent_size: int) -> None:
        self.rows = device.pinned((RING, STREAMS), np.int32)
        self.latents = device.pinned((RING, latent_size), np.float32)
        self.progress = device.pinned((1,), np.uint64)

    def read(self, row: int, *, sound: bool) -> Drawn:
        """Row number ``row`` of the segment, whose frame has passed; :class:`EngineError` if it could not be drawn."""
        word = int(self.progress.array[0])
        drawn, flags, fault, stream = word & 0xFFFFFFFF, word >> 32 & 0xFF, word >> 40 & 0xFF, word >> 48 & 0xFF
        if drawn <= row:
            if fault not in _native.FAULTS:
                raise EngineError(
                    f"the frame sampler stands at row {drawn} with fault {fault}, row {row} was launched; report this"
                )
            raise EngineError(f"the model's logits cannot be sampled: {_native.FAULTS[fault] % (drawn, stream)}")
        delay = STREAMS - 1
        if drawn > row + 1 or fault:  # a row followed by another, even a failed one, ended nothing
            flags = _native.LATENT if sound and row >= delay else 0
        latent = self.latents.array[(row - delay) % RING].copy() if flags & _native.LATENT else None
        return Drawn(self.rows.array[row % RING].copy(), flags, latent)


class Frame:
    """A frame: a step followed by the sampler, captured into a graph for each bucket of the step."""

    def __init__(self, device: Device, step: DeviceStep, sample: Callable[[], None]) -> None:
        self._device, self._step, self._sample = device, step, sample
        self._graphs: dict[int, Graph | None] = {}

    def enqueue(self, held: int) -> None:
        """Enqueue the frame that feeds the row at position ``held``."""
        self._step.before(held)
        bucket = self._step.bucket(held)
        if bucket is None:
            self._run(held)
        elif bucket not in self._graphs:
            # an engine may allocate or choose kernels at its first run of a shape, which cannot be captured
            self._run(held)
            self._graphs[bucket] = None
        else:
            graph = self._graphs[bucket]
            if graph is None:
                graph = self._graphs[bucket] = self._device.capture(lambda: self._run(held))
            graph.launch()

    def _run(self, held: int) -> None:
        self._step.enqueue(held)
        self._sample()


class Flight:
    """The frames of one segment: those already returned, and those launched ahead of them.

    ``start``: rows held when the segment began. ``most``: frames that may be launched, given the segment's step limit
    and the room in the cache.
    """

    def __init__(
        self,
        device: Device,
        frame: Frame,
        outbox: Outbox,
        clock: Clock,
        *,
        start: int,
        most: int,
        sound: bool,
        ahead: int,
    ) -> None:
        self._device, self._frame, self._outbox, self._clock = device, frame, outbox, clock
        self._start, self._most, self._sound, self._ahead = start, most, sound, min(ahead, RING - 2)
        self._launched = self._taken = 0
        self._events: list[Event] = [device.event() for _ in range(self._ahead + 1)]

    @property
    def in_flight(self) -> int:
        """Frames that were launched but not returned yet."""
        return self._launched - self._taken

    def take(self, *, wanted: int) -> Drawn:
        """The next row; keeps frames in flight after it. ``wanted``: rows that the caller will take now.

        Before the first row is out, nothing is launched beyond what is wanted: a caller that draws one row and looks at
        the logits finds those of that row.
        """
        ahead = self._ahead if self._taken or wanted > 1 else 0
        self._launch(min(self._taken + 1 + ahead, self._most))
        with self._clock:
            self._events[self._taken % len(self._events)].wait()
        drawn = self._outbox.read(self._taken, sound=self._sound)
        self._taken += 1
        return drawn

    def _launch(self, until: int) -> None:
        while self._launched < until:
            with self._device.lock, self._clock:
                self._frame.enqueue(self._start + self._launched)
                self._events[self._launched % len(self._events)].record()
            self._launched += 1
