"""One turn of a session: its thread, its bounded queue of events, and the ways to read them.

The turn's own thread computes and hands events over; whoever iterates receives them and, with the last, makes the turn
count. A consumer that is slow makes the turn wait, and nothing is dropped.
"""

from __future__ import annotations

import asyncio
import atexit
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from .chat import CheckedMessage, Message, prompt_parts
from .chunks import ChunkProfile
from .closing import Closing
from .errors import MemoryLimitError, SegmentLimitError, SessionError, TimeLimitError, UalmError
from .events import Event, SegmentEnded, SegmentStarted, SoundChunk, TextDelta, TurnEnded
from .generate import Began, Ended, Finish, Modality, closing_rows, turn
from .sampling import AudioSampling, TextSampling
from .segment import Segment, SegmentBuilder
from .sound import Sound
from .transcript import said_in_turn
from .vocabulary import STREAMS

if TYPE_CHECKING:
    from .session import Session

#: Events that wait for a slow consumer before the turn itself waits.
QUEUE_EVENTS = 64
#: Seconds between two looks at the cancel flag and the clock while the queue is full, or a sound is heard elsewhere.
_POLL = 0.05
#: Seconds of drawing between two looks at the caller, at most, where a row takes less.
_CALL_SECONDS = 0.02
#: Seconds in which a thread whose start was interrupted begins to run, if it does at all.
_START_SECONDS = 1.0


class Turn(Closing):
    """One turn of a session: iterate over it (``for`` or ``async for``) for its events, once.

    Leaving the loop early cancels the turn. :meth:`cancel` may be called from any thread at any time, and from a signal
    handler. Neither waits: the session's next use does, until what is being computed is done (a few rows, the prompt,
    or the hearing of a sound). Leaving a ``with`` block of the turn cancels what is left of it, and waits.
    """

    def __init__(
        self,
        session: Session,
        given: Sequence[Message],
        messages: list[CheckedMessage],
        modality: Modality | None,
        audio: AudioSampling,
        text: TextSampling,
        profile: ChunkProfile,
    ) -> None:
        """``given``: ``messages`` as the caller wrote them."""
        self._given, self._session, self._messages, self._modality = given, session, messages, modality
        self._audio, self._text, self._profile = audio, text, profile
        #: Events that wait are counted by ``_slots``, so that the outcome, which needs none, can always be put.
        self._queue: queue.SimpleQueue[Event | _Outcome] = queue.SimpleQueue()
        self._slots = threading.Semaphore(QUEUE_EVENTS)
        self._wake: Callable[[], object] | None = None
        self._played = True
        self._cancelled = False  # a plain flag: a lock could be held by the very thread that a signal interrupts
        self._thread: threading.Thread | None = None
        self._finished: list[Segment] = []
        self._begun, self._done = threading.Event(), threading.Event()
        self._reader: object = None
        self._started = 0.0
        self._seconds: dict[str, float] = {}

    def cancel(self) -> None:
        """Stop soon (within a few frames) and take the turn back; the next event is TurnEnded("cancelled").

        Nothing happens where the turn's end has been handed over already.
        """
        self._cancelled = True

    @property
    def begun(self) -> bool:
        """Whether the iteration has begun, and with it the work."""
        return self._thread is not None

    @property
    def seeds(self) -> Mapping[Modality, int]:
        """What a sound and a text of this turn are drawn with, also where the seed was drawn."""
        return {"audio": self._audio.seed, "text": self._text.seed}

    def __repr__(self) -> str:
        state = "not begun" if not self.begun else "over" if self._done.is_set() else "under way"
        return f"Turn({len(self._messages)} messages, {'cancelled, ' if self._cancelled else ''}{state})"

    def segments(self) -> list[Segment]:
        """Run to the end; returns the segments. A cancelled turn has none.

        Nobody plays the sound meanwhile: its pieces follow the profile, not the clock, so that equal turns give equal
        bits.
        """
        self._played = False
        found: list[Segment] = []
        for event in self:
            if isinstance(event, SegmentEnded):
                found.append(event.result)
            elif isinstance(event, TurnEnded) and event.reason == "cancelled":
                return []
        return found

    def __iter__(self) -> Iterator[Event]:
        reader = object()
        try:
            # inside the block: an interrupt may come as soon as the turn is under way
            self._start(reader)
            while True:
                event = self._received(self._queue.get())
                if event is not None:
                    yield event
                if isinstance(event, TurnEnded):
                    return
        finally:
            # no waiting here: a generator may be closed by the garbage collector, on a thread that the turn waits for
            if self._reader is reader:
                self.cancel()

    def __aiter__(self) -> AsyncEvents:
        return AsyncEvents(self)

    # ---- the consumer's side ----

    def _start(self, reader: object, wake: Callable[[], object] | None = None) -> None:
        """Begin to work for ``reader``; ``wake`` is called from the turn's thread after each event."""
        session = self._session
        with session._lock:
            if self._thread is not None:
                raise SessionError("the events of a turn can be read once; begin another turn")
            session._refuse_if_busy("begin a turn")
            before = session._running
            self._wake, self._started = wake, time.perf_counter()
            self._thread = threading.Thread(target=self._work, args=(before,), name="ualm-turn", daemon=True)
            # registered before it runs: wherever an interrupt strikes, the session knows of the turn
            self._reader, session._running = reader, self
            _under_way.add(self)
            try:
                self._thread.start()
            except BaseException:
                self._cancelled = True
                if not self._begun.wait(_START_SECONDS):  # it never ran, and nobody must wait for it
                    _under_way.discard(self)
                    self._reader, session._running = None, before
                    self._done.set()
                raise

    def _received(self, item: Event | _Outcome) -> Event | None:
        """The event to hand over; None for one that was waiting when the turn was cancelled."""
        if not isinstance(item, _Outcome):
            self._slots.release()
            return None if self._cancelled else item
        session = self._session
        with session._lock:
            still_ours = session._running is self  # a turn that is cancelled may have been followed by another
            if still_ours:
                session._running = None
            if self._cancelled or not still_ours:
                return TurnEnded("cancelled", self._seconds)
            if not isinstance(item.end, BaseException):
                session._ends.append(item.rows)
                session._said.append(said_in_turn(self._given, self._finished))
                return TurnEnded(item.end, self._seconds)
        raise self._explained(item.end)

    def _explained(self, error: BaseException) -> BaseException:
        """The error with what is kept: a new one of its type, since messages are fixed at birth."""
        if not isinstance(error, UalmError):
            return error
        session = self._session
        kept = f"the turn is taken back; the session keeps its {session.turns} whole turns ({session.rows} rows)"
        told = type(error)(f"{error}; {kept}")
        told.__cause__ = error
        told.segments = list(self._finished)
        return told

    def _join(self) -> None:
        """Wait until the turn's thread no longer uses the cache."""
        if self._thread is not None:
            self._done.wait()

    # ---- the turn's own thread ----

    def _work(self, before: Turn | None) -> None:
        """``before``: a cancelled turn, which may still be using the cache."""
        self._begun.set()
        try:
            if before is not None:
                before._join()
            finish = self._run()
            outcome = _Outcome("eos" if finish == "eos" else "max_steps", self._session._sequence.length)
        except BaseException as error:  # whatever it is, the consumer's thread must learn of it
            outcome = _Outcome(error, 0)
        self._clock("total")
        _under_way.discard(self)
        self._done.set()
        self._hand_over(outcome)
        del outcome  # an error refers to this frame: together they would keep the cache alive

    def _run(self) -> Finish:
        session, model = self._session, self._session._model
        session._sequence.truncate(session.rows)
        prompt = prompt_parts(self._messages, model._vocabulary, self._hear, first=session.turns == 0)
        self._clock("hear")
        self._check(sum(len(part) for part in prompt) + 1)
        steps = turn(
            session._sequence,
            prompt,
            model._vocabulary,
            modality=self._modality,
            mode="fixed",
            max_segments=session.limits.segments,
            audio=self._audio,
            text=self._text,
            rows_a_call=lambda: self._rows_a_call(builder),
        )
        builder: SegmentBuilder | None = None
        finish: Finish = "eot"
        began = time.perf_counter()
        for step in steps:
            took = time.perf_counter() - began
            self._check(1)
            index = len(self._finished)
            if isinstance(step, Began):
                self._seconds.setdefault("prefill", time.perf_counter() - self._started)
                pace = model._pace if self._played else None
                builder = model._builder(step.modality, self._profile, pace, self.seeds[step.modality])
                self._put(SegmentStarted(index, step.modality))
                began = time.perf_counter()
                continue
            assert builder is not None
            if isinstance(step, Ended):
                self._put_piece(builder, index, builder.rest())
                finish = step.finish
                self._finished.append(builder.segment(finish))
                self._put(SegmentEnded(index, self._finished[-1]))
            else:
                self._seconds.setdefault("first", time.perf_counter() - self._started)
                if builder.modality == "audio":
                    model._pace.row(took / len(step.rows))
                self._put_piece(builder, index, builder.push(step))
            began = time.perf_counter()  # without the time that a slow consumer took
        if finish == "eot":
            raise SegmentLimitError(f"the turn goes on after {session.limits.segments} segments, its max_segments")
        assert builder is not None
        closing = closing_rows(builder.rows[-1], finish, model._vocabulary)
        self._check(len(closing))
        session._sequence.prefill([closing])
        return finish

    def _rows_a_call(self, builder: SegmentBuilder | None) -> int:
        """As many rows as nobody waits for, in a time that a cancelling caller may: a call costs something as well.

        No more than the context and the memory limit have room for: what was drawn before the end is handed over, and
        no cache outgrows its limit.
        """
        session, model = self._session, self._session._model
        if builder is None or not model._pace.row_seconds:
            return 1
        rows = min(builder.rows_to_wait(), int(_CALL_SECONDS / model._pace.row_seconds))
        held = session._sequence.length
        rows = min(rows, model.max_context - held)
        if session.limits.memory is not None:
            rows = min(rows, session.limits.memory // model._engine.bytes_per_row - held)
        return max(rows, 1)

    def _hear(self, sound: Sound) -> np.ndarray:
        return self._session._model._listener.features(sound, lambda: self._check(0))

    def _check(self, new_rows: int) -> None:
        """Stop here if somebody cancelled, or a limit is reached."""
        if self._cancelled:
            raise _Cancelled
        limits, sequence = self._session.limits, self._session._sequence
        if time.perf_counter() - self._started > limits.seconds:
            raise TimeLimitError(f"the turn took longer than time_limit = {limits.seconds:g} s")
        needed = (sequence.length + new_rows) * self._session._model._engine.bytes_per_row
        if limits.memory is not None and needed > limits.memory:
            raise MemoryLimitError(
                f"the conversation needs {needed} bytes of cache ({sequence.length + new_rows} rows), "
                f"but memory_limit = {limits.memory}"
            )

    def _put_piece(self, builder: SegmentBuilder, index: int, piece: str | np.ndarray) -> None:
        if not len(piece):
            return
        if isinstance(piece, str):
            self._put(TextDelta(index, piece))
        else:
            rate = self._session._model.bundle.manifest.sound_rate
            preroll = builder.preroll(self._audio.max_steps - STREAMS + 1)
            self._put(SoundChunk(index, piece, rate, builder.samples_sent - len(piece), preroll))

    def _put(self, event: Event) -> None:
        # at once where there is room, as nearly always: a wait with a time limit costs more
        if not self._slots.acquire(blocking=False):
            while not self._slots.acquire(timeout=_POLL):
                self._check(0)
        self._hand_over(event)

    def _hand_over(self, item: Event | _Outcome) -> None:
        self._queue.put(item)
        if self._wake is not None:
            with suppress(RuntimeError):  # the consumer's loop is closed: nobody waits
                self._wake()

    def _clock(self, name: str) -> None:
        self._seconds[name] = time.perf_counter() - self._started


class AsyncEvents:
    """The events of a turn for ``async for``; dropping it, :meth:`aclose` and cancelling the task cancel the turn.

    Not an async generator: leaving a loop would close one only when the event loop comes round to it.
    """

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._token = object()  # what the turn knows its reader by: a reference to this object would keep it alive
        self._ready: asyncio.Event | None = None
        self._over = False

    def __aiter__(self) -> AsyncEvents:
        return self

    async def __anext__(self) -> Event:
        if self._over:
            raise StopAsyncIteration
        if self._ready is None:
            loop, ready = asyncio.get_running_loop(), asyncio.Event()
            self._ready = ready
            self._turn._start(self._token, lambda: loop.call_soon_threadsafe(ready.set))
        try:
            while True:
                self._ready.clear()
                try:
                    event = self._turn._received(self._turn._queue.get_nowait())
                except queue.Empty:
                    await self._ready.wait()
                    continue
                if event is not None:
                    self._over = isinstance(event, TurnEnded)
                    return event
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Cancel the turn, unless it is over."""
        self._over = True
        self._leave()

    def __del__(self) -> None:
        self._leave()

    def _leave(self) -> None:
        if self._turn._reader is self._token:
            self._turn.cancel()


@dataclass(frozen=True)
class _Outcome:
    """How a turn ended, and the rows that the cache holds then."""

    end: Literal["eos", "max_steps"] | BaseException
    rows: int


class _Cancelled(Exception):
    """Somebody asked the turn to stop."""


#: Turns whose threads are at work. Python ends these threads with the process; native code must not be running then.
_under_way: set[Turn] = set()


@atexit.register
def _end_turns() -> None:
    for unfinished in list(_under_way):
        unfinished.cancel()
        unfinished._join()
