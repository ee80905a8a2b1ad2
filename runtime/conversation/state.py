"""The state of a session, and who may use it: the only owner of its lock.

A turn boundary is a number of cache rows, so taking a turn back means forgetting the rows after it, which the next use
of the session does first.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ..engines.protocol import EngineSequence
from ..errors import InputError, SessionError
from .resources import Resources
from .transcript import Entry


@dataclass(frozen=True)
class Limits:
    """Limits of each turn of a session; None or infinity: no limit.

    ``memory`` in bytes of cache (the model's ``max_context`` limits it in rows); ``seconds``, ``segments`` a turn.
    Memory and time are checked every few rows; the time that a slow consumer takes counts.
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


class UnderWay(Protocol):
    """A turn as its session sees it."""

    @property
    def begun(self) -> bool: ...

    @property
    def over(self) -> bool: ...

    @property
    def cancelled(self) -> bool: ...

    def cancel(self) -> None: ...

    def join(self) -> None:
        """Wait until its thread no longer uses the cache."""
        ...


class SessionState:
    """The cache of a conversation, where its whole turns end, and the turn that is under way."""

    def __init__(self, resources: Resources, limits: Limits, sequence: EngineSequence | None = None) -> None:
        self.resources, self.limits = resources, limits
        self.sequence = resources.engine.open_sequence() if sequence is None else sequence
        #: Cache rows at the end of each whole turn; the first entry is the state before any.
        self.ends = [0]
        #: What was said in each whole turn; nothing where a saved session did not record it.
        self.transcript: list[tuple[Entry, ...]] = []
        self.closed = False
        #: The turn begun last, until its end is read; a cancelled one may still be stopping.
        self._running: UnderWay | None = None
        #: Guards ``_running`` and the end of a turn; no turn's own thread takes it.
        self._lock = threading.Lock()

    @property
    def turns(self) -> int:
        """Whole turns held."""
        return len(self.ends) - 1

    @property
    def rows(self) -> int:
        """Cache rows held by the whole turns."""
        return self.ends[-1]

    @property
    def running(self) -> UnderWay | None:
        """The turn that is under way, if any."""
        return self._running

    def check_idle(self, what: str) -> None:
        """:class:`SessionError` if a turn is under way or the session is closed."""
        with self._lock:
            self._refuse_if_busy(what)

    def begin(self, turn: UnderWay, start: Callable[[UnderWay | None], None]) -> None:
        """Make ``turn`` the one under way and ``start`` it, given a cancelled turn that may still use the cache.

        ``start`` raises if the turn never ran: then nothing has changed.
        """
        with self._lock:
            if turn.begun:
                raise SessionError("the events of a turn can be read once; begin another turn")
            self._refuse_if_busy("begin a turn")
            before = self._running
            try:
                # registered before it runs: wherever an interrupt arrives, the session knows about the turn
                self._running = turn
                start(before)
            except BaseException:
                if turn.over or not turn.begun:
                    self._running = before
                raise

    def commit(self, turn: UnderWay, rows: int | None, transcript: Callable[[], tuple[Entry, ...]]) -> bool:
        """The end of a turn was read: it counts, with the ``rows`` that the cache holds then. None: it failed.

        False if it was cancelled, or another has begun: the turn is taken back, and how it ended is ignored.
        """
        with self._lock:
            ours = self._running is turn  # a cancelled turn may have been followed by another
            if ours:
                self._running = None
            if turn.cancelled or not ours:
                return False
            if rows is not None:
                self.ends.append(rows)
                self.transcript.append(transcript())
            return True

    def settle(self, what: str) -> EngineSequence:
        """Wait until a cancelled turn has stopped; returns the sequence, without the rows of unfinished turns."""
        with self._lock:
            self._refuse_if_busy(what)
            self._stop()
            self.sequence.truncate(self.rows)
            return self.sequence

    def close(self) -> None:
        """Cancel a turn that is under way, wait until it has stopped, and free the cache."""
        with self._lock:
            if self.closed:
                return
            if self._running is not None:
                self._running.cancel()
            self._stop()
            self.closed = True
            del self.sequence

    def _stop(self) -> None:
        """Wait for a cancelled turn; call it with the lock held."""
        if self._running is not None:
            self._running.join()
            self._running = None

    def _refuse_if_busy(self, what: str) -> None:
        """Call it with the lock held."""
        if self.closed:
            raise SessionError(f"cannot {what}: the session is closed; begin another")
        if self._running is not None and not self._running.cancelled:
            raise SessionError(f"cannot {what} while a turn is under way; read it to its end or cancel it first")
