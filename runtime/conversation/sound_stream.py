"""One sound while it is made: what ``Model.stream`` returns."""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import SessionError
from ..sound.sound import Sound
from .closing import Closing
from .events import Event, SegmentEnded, SoundChunk, TurnEnded
from .segment import Segment
from .turn import AsyncEvents, Turn


class SoundStream(Closing):
    """The chunks of one sound: iterate once, with ``for``, ``next`` or ``async for``.

    Made by :meth:`Model.stream`; it gives :class:`SoundChunk` events. Work begins with the iteration. It stops with
    :meth:`cancel`, at the end of a ``with`` block, and when the stream is dropped, as by leaving a loop that made it;
    one that is held in a variable can be continued. One thread iterates; any may cancel.

    Parameters
    ----------
    turn : Turn
        The turn that makes the sound, not begun.

    Raises
    ------
    SessionError
        In the iteration: if both ``for`` and ``async for`` read the stream.
    ContextError
        In the iteration: where the rows do not fit into ``max_context``.
    EngineError
        In the iteration: where the engine fails, or the model is closed.

    Examples
    --------
    >>> with model.stream("a trumpet plays C5", seed=7, max_seconds=0.1) as stream:
    ...     sum(len(chunk.samples) for chunk in stream)
    1600

    For ``async for``:

    >>> import asyncio
    >>> async def play() -> int:
    ...     async with model.stream("a trumpet plays C5", seed=7, max_seconds=0.1) as stream:
    ...         return sum([len(chunk.samples) async for chunk in stream])
    >>> asyncio.run(play())
    1600
    """

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._events: Iterator[Event] | None = None
        self._async_events: AsyncEvents | None = None
        self._segment: Segment | None = None
        self._over = False

    @property
    def seed(self) -> int:
        """What the sound is drawn with, also where the seed was drawn."""
        return self._turn.seeds["audio"]

    @property
    def segment(self) -> Segment | None:
        """The segment, once the iteration is over; None before, and if it was cancelled."""
        return self._segment

    @property
    def sound(self) -> Sound | None:
        """The whole sound, equal to all chunks joined, with its ``finish``; None when :attr:`segment` is."""
        return None if self._segment is None else self._segment.sound

    def cancel(self) -> None:
        """Stop soon, from any thread: no further chunk comes, and the iteration ends.

        It does not wait.

        Examples
        --------
        >>> stream = model.stream("a trumpet plays C5", profile="first_sound")
        >>> for chunk in stream:
        ...     stream.cancel()
        >>> stream.sound is None
        True
        """
        self._turn.cancel()

    def __iter__(self) -> SoundStream:
        return self

    def __next__(self) -> SoundChunk:
        if self._over:
            raise StopIteration
        if self._async_events is not None:
            raise SessionError("this stream is read with `async for`; go on with it")
        if self._events is None:
            self._events = iter(self._turn)
        try:
            for event in self._events:
                if isinstance(event, SoundChunk):
                    return event
                if self._ends(event):
                    break
        except BaseException:
            self._over = True
            raise
        self.close()  # the model may be closed now
        raise StopIteration

    def __aiter__(self) -> SoundStream:
        return self

    async def __anext__(self) -> SoundChunk:
        if self._over:
            raise StopAsyncIteration
        if self._events is not None:
            raise SessionError("this stream is read with `for`; go on with it")
        if self._async_events is None:
            self._async_events = self._turn.__aiter__()
        try:
            async for event in self._async_events:
                if isinstance(event, SoundChunk):
                    return event
                if self._ends(event):
                    break
        except BaseException:
            self._over = True
            raise
        await self.aclose()
        raise StopAsyncIteration

    def __repr__(self) -> str:
        state = "over" if self._over else "not begun" if not self._turn.begun else "under way"
        return f"SoundStream({state}, seed {self.seed})"

    def _ends(self, event: Event) -> bool:
        """Whether ``event`` is the last; a model that would go on with another segment is not asked for it."""
        if isinstance(event, SegmentEnded):
            self._segment = event.result
        self._over = isinstance(event, (SegmentEnded, TurnEnded))
        return self._over

    def join(self) -> None:
        """Wait until its thread no longer uses the model.

        Examples
        --------
        >>> stream = model.stream("a trumpet plays C5", profile="first_sound")
        >>> chunk = next(stream)
        >>> stream.cancel()
        >>> stream.join()
        """
        self._turn.join()
