"""The thread of a turn: it computes, and queues events for the turn's reader."""

from __future__ import annotations

import atexit
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ..errors import MemoryLimitError, SegmentLimitError, TimeLimitError
from ..sound.sound import Sound
from ..vocabulary import STREAMS
from .answering import AnswerOptions, Piece, SegmentBegan, answer_segments
from .events import Event, SegmentEnded, SegmentStarted, SoundChunk, TextDelta
from .loop import Finish, closing_rows
from .prompt import CheckedMessage
from .segment import Segment, SegmentBuilder
from .state import SessionState, UnderWay

#: Events that are queued for a slow consumer before the turn itself waits.
QUEUE_EVENTS = 64
#: Seconds between two checks of the cancel flag and the clock while the queue is full, or another thread encodes a
#: sound.
_POLL = 0.05
#: The most seconds of drawing between two checks of the cancel flag, if a row takes less.
_CALL_SECONDS = 0.02
#: Seconds in which a thread whose start was interrupted begins to run, if it does at all.
_START_SECONDS = 1.0


@dataclass(frozen=True)
class Outcome:
    """How a turn ended, and the rows that the cache holds then."""

    end: Literal["eos", "max_steps"] | BaseException
    rows: int


class Worker:
    """One turn's thread, and the bounded queue that it fills. A slow consumer makes the turn wait."""

    def __init__(self, state: SessionState, messages: Sequence[CheckedMessage], options: AnswerOptions) -> None:
        self._state, self.messages, self._options = state, messages, options
        self.cancelled = False  # a plain flag: a lock could be held by the very thread that a signal interrupts
        #: Completed segments.
        self.segments: list[Segment] = []
        #: Seconds from the start, see :class:`TurnEnded`.
        self.seconds: dict[str, float] = {}
        #: ``_slots`` counts the events that wait; the outcome bypasses it, so it can always be enqueued.
        self._queue: queue.SimpleQueue[Event | Outcome] = queue.SimpleQueue()
        self._slots = threading.Semaphore(QUEUE_EVENTS)
        self._wake: Callable[[], object] | None = None
        self._thread: threading.Thread | None = None
        self._begun, self._done = threading.Event(), threading.Event()
        self._started = 0.0

    # ---- called by the consumer ----

    @property
    def options(self) -> AnswerOptions:
        """How the answer is drawn and cut into pieces."""
        return self._options

    @property
    def begun(self) -> bool:
        """Whether it was started."""
        return self._thread is not None

    @property
    def over(self) -> bool:
        """Whether it no longer uses the cache."""
        return self._done.is_set()

    def start(self, before: UnderWay | None, wake: Callable[[], object] | None, *, live: bool = True) -> None:
        """``before``: a cancelled turn, which may still be using the cache. ``wake`` is called after each event.
        ``live``: False if its sounds are not played while they are made, whatever the options say."""
        self._wake, self._started = wake, time.perf_counter()
        options = self._options if live else replace(self._options, live=False)
        thread = threading.Thread(target=self._work, args=(before, options), name="ualm-turn", daemon=True)
        _under_way.add(self)
        try:
            self._thread = thread
            thread.start()
        except BaseException:
            self.cancelled = True
            if not self._begun.wait(_START_SECONDS):  # it never ran, and nothing may wait for it
                _under_way.discard(self)
                self._done.set()
            raise

    def get(self) -> Event | Outcome:
        """Wait for the next event."""
        return self._taken(self._queue.get())

    def get_nowait(self) -> Event | Outcome:
        """The next event; queue.Empty if there is none."""
        return self._taken(self._queue.get_nowait())

    def join(self) -> None:
        """Wait until the thread no longer uses the cache."""
        if self._thread is not None:
            self._done.wait()

    def _taken(self, item: Event | Outcome) -> Event | Outcome:
        if not isinstance(item, Outcome):
            self._slots.release()
        return item

    # ---- its own thread ----

    def _work(self, before: UnderWay | None, options: AnswerOptions) -> None:
        self._begun.set()
        try:
            if before is not None:
                before.join()
            finish = self._run(options)
            outcome = Outcome("eos" if finish == "eos" else "max_steps", self._state.sequence.length)
        except BaseException as error:  # of any kind: the consumer's thread must learn about it
            outcome = Outcome(error, 0)
        self._clock("total")
        _under_way.discard(self)
        self._done.set()
        self._hand_over(outcome)
        del outcome  # an error refers to this frame: together they would keep the cache alive

    def _run(self, options: AnswerOptions) -> Finish:
        state, resources = self._state, self._state.resources
        sequence = state.sequence
        sequence.truncate(state.rows)
        prompt = resources.prompt(self.messages, self._hear, first=state.turns == 0)
        self._clock("hear")
        self._check(sum(len(part) for part in prompt) + 1)
        finish: Finish = "eot"
        builder: SegmentBuilder | None = None
        for step in answer_segments(sequence, prompt, resources, options, self._rows_a_call):
            self._check(1)
            if isinstance(step, SegmentBegan):
                self._clock("prefill", once=True)
                builder = step.builder
                self._put(SegmentStarted(step.index, builder.modality))
            elif isinstance(step, Piece):
                self._clock("first", once=True)
                self._put_piece(step)
            else:
                finish = step.finish
                self.segments.append(step.segment)
                self._put(SegmentEnded(step.index, step.segment))
        if finish == "eot":
            raise SegmentLimitError(f"the turn did not end within {state.limits.segments} segments, its max_segments")
        assert builder is not None
        closing = closing_rows(builder.rows[-1], finish, resources.vocabulary)
        self._check(len(closing))
        sequence.prefill([closing])
        return finish

    def _rows_a_call(self, builder: SegmentBuilder) -> int:
        """As many rows as can be drawn before output is due, within the time that a cancelling caller may have to wait:
        calls have a cost as well.

        No more than the context and the memory limit have room for: what was drawn before the end is delivered, and no
        cache outgrows its limit.
        """
        limits, resources = self._state.limits, self._state.resources
        if not resources.pace.row_seconds:
            return 1
        rows = min(builder.rows_to_wait(), int(_CALL_SECONDS / resources.pace.row_seconds))
        held = self._state.sequence.length
        rows = min(rows, resources.max_context - held)
        if limits.memory is not None:
            rows = min(rows, limits.memory // resources.engine.bytes_per_row - held)
        return max(rows, 1)

    def _hear(self, sound: Sound) -> np.ndarray:
        return self._state.resources.features.features(sound, lambda: self._check(0))

    def _check(self, new_rows: int) -> None:
        """Stop here if the turn was cancelled, or a limit is reached."""
        if self.cancelled:
            raise _Cancelled
        limits, length = self._state.limits, self._state.sequence.length
        if time.perf_counter() - self._started > limits.seconds:
            raise TimeLimitError(f"the turn took longer than time_limit = {limits.seconds:g} s")
        needed = (length + new_rows) * self._state.resources.engine.bytes_per_row
        if limits.memory is not None and needed > limits.memory:
            raise MemoryLimitError(
                f"the conversation needs {needed} bytes of cache ({length + new_rows} rows), "
                f"but memory_limit = {limits.memory}"
            )

    def _put_piece(self, piece: Piece) -> None:
        content = piece.content
        if not len(content):
            return
        if isinstance(content, str):
            self._put(TextDelta(piece.index, content))
        else:
            rate = self._state.resources.bundle.manifest.sound_rate
            preroll = piece.builder.preroll(self._options.audio.max_steps - STREAMS + 1)
            self._put(SoundChunk(piece.index, content, rate, piece.builder.samples_sent - len(content), preroll))

    def _put(self, event: Event) -> None:
        # first without waiting, since there is nearly always room: a wait with a timeout costs more
        if not self._slots.acquire(blocking=False):
            while not self._slots.acquire(timeout=_POLL):
                self._check(0)
        self._hand_over(event)

    def _hand_over(self, item: Event | Outcome) -> None:
        self._queue.put(item)
        if self._wake is not None:
            with suppress(RuntimeError):  # the consumer's loop is closed: nothing waits
                self._wake()

    def _clock(self, name: str, *, once: bool = False) -> None:
        if not (once and name in self.seconds):
            self.seconds[name] = time.perf_counter() - self._started


class _Cancelled(Exception):
    """The turn was asked to stop."""


#: Turns whose threads are running. Python ends these threads with the process; native code must not be running then.
_under_way: set[Worker] = set()


@atexit.register
def _end_turns() -> None:
    for unfinished in list(_under_way):
        unfinished.cancelled = True
        unfinished.join()
