"""A conversation whose cache is kept: turns, events, cancel, fork, truncate, save and restore.

A turn runs on a thread of its own and hands its events over through a bounded queue: a consumer that is slow makes the
turn wait, and nothing is dropped. A turn counts only when it is whole: one that is cancelled, fails or reaches a limit
is taken back, and the session stands where it stood before.
"""

from __future__ import annotations

import asyncio
import io
import json
import math
import os
import queue
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .chat import CheckedMessage, Content, Message, check_messages, prompt_parts
from .errors import (
    InputError,
    MemoryLimitError,
    SegmentLimitError,
    SessionError,
    TimeLimitError,
    UalmError,
)
from .events import Event, SegmentEnded, SegmentStarted, SoundChunk, TextDelta, TurnEnded
from .files import replacing_file
from .generate import Began, Ended, Finish, Modality, closing_rows, turn
from .sampling import AudioSampling, TextSampling, check_options
from .segment import Segment, SegmentBuilder

if TYPE_CHECKING:
    from .model import Model

#: Events that wait for a slow consumer before the turn itself waits.
QUEUE_EVENTS = 64
#: Seconds between two looks at the cancel flag while the queue is full.
_POLL = 0.05


@dataclass(frozen=True)
class Limits:
    """Limits of each turn of a session; None or infinity: no limit of its own.

    ``memory`` in bytes of cache (the model's ``max_context`` limits it in rows); ``seconds``, ``segments`` a turn.
    """

    memory: int | None = None
    seconds: float = math.inf
    segments: int = 8

    def __post_init__(self) -> None:
        if self.memory is not None and (type(self.memory) is not int or self.memory < 1):
            raise InputError(f"memory_limit = {self.memory!r}: give a number of bytes, or None")
        if isinstance(self.seconds, bool) or not isinstance(self.seconds, (int, float)) or not self.seconds > 0:
            raise InputError(f"time_limit = {self.seconds!r}: give a positive number of seconds")
        if type(self.segments) is not int or self.segments < 1:
            raise InputError(f"max_segments = {self.segments!r}: give a whole number of at least 1")


class Session:
    """A conversation with a model. Made by :meth:`Model.session`; one turn at a time, each session its own thread's.

    Several sessions of one model may run at once; a session itself must not be used by two threads at once, except for
    :meth:`Turn.cancel`.
    """

    def __init__(self, model: Model, limits: Limits) -> None:
        self._model, self.limits = model, limits
        self._sequence = model._engine.open_sequence()
        #: Cache rows at the end of each whole turn, the first entry before any.
        self._ends = [0]
        self._running: Turn | None = None

    @property
    def turns(self) -> int:
        """Whole turns held."""
        return len(self._ends) - 1

    @property
    def rows(self) -> int:
        """Cache rows held by the whole turns; ``Model.max_context`` is the most."""
        return self._ends[-1]

    def turn(
        self,
        messages: Content | Sequence[Message],
        *,
        modality: Modality | None = None,
        audio: AudioSampling | None = None,
        text: TextSampling | None = None,
    ) -> Turn:
        """Say something; iterate over the returned :class:`Turn` for the answer's events.

        ``messages``: a str, a sound or a path as the user's message, or (role, content) pairs as in :meth:`Model.run`.
        Bad input is refused here; the work starts with the iteration.
        """
        self._refuse_if_busy("begin a turn")
        model = self._model
        pairs = messages if isinstance(messages, (list, tuple)) else [("user", messages)]
        audio = model._audio_defaults if audio is None else audio
        text = model._text_defaults if text is None else text
        check_options("fixed", audio, text)
        model._check_modality(modality)
        return Turn(self, check_messages(pairs, model._text), modality, audio, text)  # type: ignore[arg-type]

    def ask(self, messages: Content | Sequence[Message], **options: object) -> list[Segment]:
        """One whole turn at once: its segments."""
        return self.turn(messages, **options).segments()  # type: ignore[arg-type]

    def truncate(self, turns: int) -> None:
        """Forget all but the first ``turns`` turns."""
        self._refuse_if_busy("truncate")
        if type(turns) is not int or not 0 <= turns <= self.turns:
            raise InputError(f"turns = {turns!r}: give a whole number from 0 to {self.turns}, the turns held")
        del self._ends[turns + 1 :]
        self._sequence.truncate(self.rows)

    def fork(self) -> Session:
        """A second session that holds the same turns; nothing is computed again."""
        self._refuse_if_busy("fork")
        other = Session(self._model, self.limits)
        other._sequence, other._ends = self._sequence.fork(), list(self._ends)
        return other

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the session to a file (a NumPy ``.npz``), for :meth:`Model.restore`."""
        self._refuse_if_busy("save")
        about = {"format": "ualm-session", "version": 1, "model": self._model.identity, "ends": self._ends}
        packed = io.BytesIO()
        np.savez(packed, about=np.frombuffer(json.dumps(about).encode(), np.uint8), cache=self._sequence.save())
        with replacing_file(path) as temporary:
            temporary.write_bytes(packed.getbuffer())

    @classmethod
    def _restore(cls, model: Model, path: str | os.PathLike[str], limits: Limits) -> Session:
        file = Path(path)
        try:
            with np.load(file, allow_pickle=False) as stored:
                about, cache = json.loads(stored["about"].tobytes()), stored["cache"]
            found, ends = about["model"], [int(end) for end in about["ends"]]
            if about["format"] != "ualm-session" or about["version"] != 1 or ends != sorted({0, *ends}):
                raise ValueError("not a session of version 1")
        except FileNotFoundError:
            raise SessionError(f"{file}: no such file; save a session first") from None
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise SessionError(f"{file}: not a saved session ({error}); save it again") from error
        if found != model.identity:
            raise SessionError(f"{file}: was saved with another bundle ({found[:12]}); open that one to restore it")
        session = cls(model, limits)
        session._sequence.restore(cache)
        if session._sequence.length != ends[-1]:
            raise SessionError(f"{file}: holds {session._sequence.length} rows, not {ends[-1]}; save it again")
        session._ends = ends
        return session

    def _refuse_if_busy(self, what: str) -> None:
        if self._running is not None:
            raise SessionError(f"cannot {what} while a turn is under way; read it to its end or cancel it first")


class Turn:
    """One turn of a session: iterate over it (``for`` or ``async for``) for its events, once.

    Leaving the loop early cancels the turn. :meth:`cancel` may be called from any thread at any time.
    """

    def __init__(
        self,
        session: Session,
        messages: list[CheckedMessage],
        modality: Modality | None,
        audio: AudioSampling,
        text: TextSampling,
    ) -> None:
        self._session, self._messages, self._modality = session, messages, modality
        self._audio, self._text = audio, text
        self._queue: queue.Queue[Event | BaseException] = queue.Queue(QUEUE_EVENTS)
        self._cancelled, self._abandoned = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._finished: list[Segment] = []
        self._started = 0.0
        self._seconds: dict[str, float] = {}

    def cancel(self) -> None:
        """Stop soon (within a few frames), take the turn back, and end the events with TurnEnded("cancelled")."""
        self._cancelled.set()

    def segments(self) -> list[Segment]:
        """Run to the end; returns the segments. A cancelled turn has none."""
        found: list[Segment] = []
        for event in self:
            if isinstance(event, SegmentEnded):
                found.append(event.result)
            elif isinstance(event, TurnEnded) and event.reason == "cancelled":
                return []
        return found

    def __iter__(self) -> Iterator[Event]:
        self._start()
        try:
            while True:
                event = self._queue.get()
                if isinstance(event, BaseException):
                    raise event
                yield event
                if isinstance(event, TurnEnded):
                    return
        finally:
            self._stop()

    async def __aiter__(self) -> AsyncIterator[Event]:
        self._start()
        try:
            while True:
                event = await asyncio.to_thread(self._queue.get)
                if isinstance(event, BaseException):
                    raise event
                yield event
                if isinstance(event, TurnEnded):
                    return
        finally:
            await asyncio.to_thread(self._stop)

    def _start(self) -> None:
        if self._thread is not None:
            raise SessionError("the events of a turn can be read once; begin another turn")
        self._session._refuse_if_busy("begin a turn")
        self._session._running = self
        self._started = time.perf_counter()
        self._thread = threading.Thread(target=self._work, name="ualm-turn", daemon=True)
        self._thread.start()

    def _stop(self) -> None:
        """The consumer has gone, or has read everything."""
        self._cancelled.set()
        self._abandoned.set()
        if self._thread is not None:
            self._thread.join()
        self._session._running = None

    def _work(self) -> None:
        session = self._session
        last: Event | BaseException
        try:
            reason = self._run()
            session._ends.append(session._sequence.length)
            last = TurnEnded("eos" if reason == "eos" else "max_steps", self._seconds)
        except _Cancelled:
            session._sequence.truncate(session.rows)
            last = TurnEnded("cancelled", self._seconds)
        except BaseException as error:  # whatever it is, the consumer's thread must learn of it
            session._sequence.truncate(session.rows)
            last = self._explained(error)
        self._clock("total")
        while not self._abandoned.is_set():
            try:
                return self._queue.put(last, timeout=_POLL)
            except queue.Full:
                continue

    def _run(self) -> Finish:
        session, model = self._session, self._session._model
        prompt = prompt_parts(self._messages, model._vocabulary, model._listener.features, first=session.turns == 0)
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
        )
        builder: SegmentBuilder | None = None
        finish: Finish = "eot"
        for step in steps:
            self._check(1)
            index = len(self._finished)
            if isinstance(step, Began):
                self._seconds.setdefault("prefill", time.perf_counter() - self._started)
                builder = model._builder(step.modality, pieces=True)
                self._put(SegmentStarted(index, step.modality))
                continue
            assert builder is not None
            if isinstance(step, Ended):
                self._put_piece(builder, index, builder.rest())
                finish = step.finish
                self._finished.append(builder.segment(finish))
                self._put(SegmentEnded(index, self._finished[-1]))
            else:
                self._seconds.setdefault("first", time.perf_counter() - self._started)
                self._put_piece(builder, index, builder.push(step))
        if finish == "eot":
            raise SegmentLimitError(f"the turn goes on after {session.limits.segments} segments, its max_segments")
        assert builder is not None
        session._sequence.prefill([closing_rows(builder.rows[-1], finish, model._vocabulary)])
        return finish

    def _check(self, new_rows: int) -> None:
        """Stop here if somebody cancelled, or a limit is reached."""
        if self._cancelled.is_set():
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
            rate = self._session._model.bundle.manifest.codec.sample_rate
            self._put(SoundChunk(index, piece, rate, builder.samples_sent - len(piece)))

    def _put(self, event: Event) -> None:
        while True:
            if self._cancelled.is_set():
                raise _Cancelled
            try:
                return self._queue.put(event, timeout=_POLL)
            except queue.Full:
                continue

    def _clock(self, name: str) -> None:
        self._seconds[name] = time.perf_counter() - self._started

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


class _Cancelled(Exception):
    """Somebody asked the turn to stop."""
