"""One turn of a session, as its consumer sees it: the ways to read its events, and to stop it.

Its worker computes and queues events; the consumer's iteration receives them and, with the last one, commits the turn.
A slow consumer makes the turn wait, and nothing is dropped.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..audio.pacing import ChunkProfile
from ..errors import UalmError
from ..sampling import AudioSampling, TextSampling, check_options
from ..vocabulary import Modality
from .answering import AnswerOptions
from .closing import Closing
from .events import Event, SegmentEnded, TurnEnded
from .prompt import CheckedMessage, Content, Message
from .resources import check_modality
from .segment import Segment
from .state import SessionState, UnderWay
from .transcript import turn_entries
from .worker import Outcome, Worker


class Turn(Closing):
    """One turn of a session: iterate over it (``for`` or ``async for``) for its events, once.

    Made by :meth:`Session.turn`. The events come in this order: :class:`SegmentStarted`, any number of
    :class:`TextDelta` or :class:`SoundChunk`, :class:`SegmentEnded`; the next segment; :class:`TurnEnded`. Leaving the
    loop early cancels the turn.

    Parameters
    ----------
    state : SessionState
        The session's state.
    given : sequence of messages
        ``messages`` as the caller wrote them.
    messages : list of checked messages
        What is said.
    options : AnswerOptions
        How the answer is drawn and cut into pieces.

    Raises
    ------
    SessionError
        In the iteration: if the events were read before, another turn is under way, or the session is closed.
    ContextError
        In the iteration: where the rows do not fit into ``max_context``.
    LimitError
        In the iteration: where the turn reaches a limit of the session.
    ModalityError
        In the iteration: where the model chooses a modality that it has no parts for.
    EngineError
        In the iteration: where the engine fails, or the model is closed.

    Notes
    -----
    A thread of its own computes, at most 64 events ahead of the consumer; then the turn waits, and nothing is dropped.

    :meth:`cancel` may be called from any thread at any time, and from a signal handler. Neither that nor leaving a loop
    waits: the session's next use does, until the current computation is done (a few rows, the prompt, or the encoding
    of a sound). Leaving a ``with`` block of the turn cancels what is left of it, and waits.

    Examples
    --------
    >>> session = model.session()
    >>> for event in session.turn("a trumpet plays C5", modality="audio", max_seconds=0.1):
    ...     if isinstance(event, SoundChunk):
    ...         print(event.samples.dtype, event.samples.shape)
    float32 (1600,)
    """

    def __init__(
        self, state: SessionState, given: Sequence[Message], messages: list[CheckedMessage], options: AnswerOptions
    ) -> None:
        self._state, self._given = state, given
        self._worker = Worker(state, messages, options)
        self._reader: object = None

    def cancel(self) -> None:
        """Stop soon (within a few frames) and take the turn back; the next event is TurnEnded("cancelled").

        Does nothing if the turn's end has been delivered already. Any thread may call it, and a signal handler; it does
        not wait.

        Examples
        --------
        >>> turn = model.session().turn("a trumpet plays C5", modality="audio")
        >>> for event in turn:
        ...     turn.cancel()
        >>> event.reason
        'cancelled'
        """
        self._worker.cancelled = True

    @property
    def cancelled(self) -> bool:
        """Whether :meth:`cancel` was called, or the iteration was left early."""
        return self._worker.cancelled

    @property
    def begun(self) -> bool:
        """Whether the iteration has begun, and with it the work."""
        return self._worker.begun

    @property
    def over(self) -> bool:
        """Whether the work is done: nothing of the turn uses the cache any more."""
        return self._worker.over

    @property
    def seeds(self) -> Mapping[Modality, int]:
        """The seeds of a sound and a text of this turn, by modality, also where the seed was drawn."""
        options = self._worker.options
        return {"audio": options.audio.seed, "text": options.text.seed}

    def __repr__(self) -> str:
        state = "not begun" if not self.begun else "over" if self.over else "under way"
        return f"Turn({len(self._worker.messages)} messages, {'cancelled, ' if self.cancelled else ''}{state})"

    def segments(self) -> list[Segment]:
        """Run to the end, and return the segments.

        The sound is not played meanwhile: its pieces follow the profile, not the clock, so that equal turns give equal
        bits.

        Returns
        -------
        list of Segment
            The segments of the answer, in order; none of a cancelled turn.

        Raises
        ------
        SessionError
            If the events were read before, another turn is under way, or the session is closed.
        ContextError
            Where the rows do not fit into ``max_context``.
        LimitError
            Where the turn reaches a limit of the session.
        ModalityError
            Where the model chooses a modality that it has no parts for.
        EngineError
            Where the engine fails, or the model is closed.

        Examples
        --------
        >>> turn = model.session().turn("a trumpet plays C5", modality="audio", max_seconds=0.1)
        >>> [segment.modality for segment in turn.segments()]
        ['audio']
        """
        found: list[Segment] = []
        for event in self._events(live=False):
            if isinstance(event, SegmentEnded):
                found.append(event.result)
            elif isinstance(event, TurnEnded) and event.reason == "cancelled":
                return []
        return found

    def __iter__(self) -> Iterator[Event]:
        return self._events()

    def _events(self, *, live: bool = True) -> Iterator[Event]:
        """``live``: False if the sounds are not played meanwhile, whatever the options say."""
        reader = object()
        try:
            # inside the block: an interrupt may come as soon as the turn is under way
            self._start(reader, live=live)
            while True:
                event = self._received(self._worker.get())
                if event is not None:
                    yield event
                if isinstance(event, TurnEnded):
                    return
        finally:
            # do not wait here: the garbage collector may close a generator on a thread that the turn waits for
            if self._reader is reader:
                self.cancel()

    def __aiter__(self) -> AsyncEvents:
        return AsyncEvents(self)

    def join(self) -> None:
        """Wait until the turn's thread no longer uses the cache.

        Examples
        --------
        >>> turn = model.session().turn("a trumpet plays C5", modality="audio")
        >>> event = next(iter(turn))  # the iterator is dropped, which cancels the turn
        >>> turn.join()
        >>> turn.over
        True
        """
        self._worker.join()

    def _start(self, reader: object, wake: Callable[[], object] | None = None, *, live: bool = True) -> None:
        """Start the work for ``reader``; ``wake`` is called from the turn's thread after each event. ``live``: see
        :meth:`_events`."""

        def start(before: UnderWay | None) -> None:
            self._reader = reader
            try:
                self._worker.start(before, wake, live=live)
            except BaseException:
                if self.over:
                    self._reader = None
                raise

        self._state.begin(self, start)

    def _received(self, item: Event | Outcome) -> Event | None:
        """The event to deliver; None for one that was waiting when the turn was cancelled."""
        if not isinstance(item, Outcome):
            return None if self.cancelled else item
        worker, failed = self._worker, isinstance(item.end, BaseException)
        entries = lambda: turn_entries(self._given, worker.segments)  # noqa: E731
        if not self._state.commit(self, None if failed else item.rows, entries):
            return TurnEnded("cancelled", worker.seconds)
        if not isinstance(item.end, BaseException):
            return TurnEnded(item.end, worker.seconds)
        raise self._explained(item.end)

    def _explained(self, error: BaseException) -> BaseException:
        """A copy of the error whose message also says what the session keeps."""
        if not isinstance(error, UalmError):
            return error
        state = self._state
        kept = f"the turn is taken back; the session keeps its {state.turns} whole turns ({state.rows} rows)"
        explained = type(error)(f"{error}; {kept}")
        explained.__cause__ = error
        explained.segments = list(self._worker.segments)
        return explained


def open_turn(
    state: SessionState,
    messages: Content | Sequence[Message],
    *,
    modality: Modality | None,
    audio: AudioSampling | None,
    text: TextSampling | None,
    profile: str | ChunkProfile,
    max_seconds: float | None = None,
    max_tokens: int | None = None,
    live: bool = True,
) -> Turn:
    """See :meth:`Session.turn`. ``live``: its sounds are played while they are made."""
    state.check_idle("begin a turn")
    resources = state.resources
    given: Sequence[Any] = messages if isinstance(messages, (list, tuple)) else [_message(messages)]
    audio, text = resources.sampling(audio, text, max_seconds, max_tokens)
    check_options("fixed", audio, text)
    check_modality(modality)
    given = resources.read(given)
    checked = resources.checked(given)
    options = AnswerOptions(
        modality, audio, text, max_segments=state.limits.segments, profile=ChunkProfile.named(profile), live=live
    )
    return Turn(state, tuple(given), checked, options)


def _message(content: object) -> object:
    """The one message that was given: as it is if it is a mapping, else as the user's content."""
    return content if isinstance(content, Mapping) else ("user", content)


class AsyncEvents:
    """The events of a turn for ``async for``; dropping it, :meth:`aclose` and cancelling the task cancel the turn.

    Not an async generator: leaving a loop would close it only when the event loop gets to it.
    """

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._token = object()  # identifies the reader to the turn: a reference to this object would keep it alive
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
                    event = self._turn._received(self._turn._worker.get_nowait())
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
