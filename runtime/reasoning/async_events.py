"""The events of a reasoning for ``async for``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from .results import ReasoningEvent


class AsyncReasoningEvents:
    """Waits for each event on an asyncio worker thread, where an iterator of prompts is asked for the next one, too.

    Dropping it, :meth:`aclose` and cancelling the task cancel the reasoning, as :class:`AsyncEvents` does with a turn.
    """

    def __init__(self, events: Iterator[ReasoningEvent], cancel: Callable[[], None]) -> None:
        """``cancel`` stops what makes the ``events``."""
        self._events, self._cancel = events, cancel
        self._begun = self._over = False

    def __aiter__(self) -> AsyncReasoningEvents:
        return self

    async def __anext__(self) -> ReasoningEvent:
        if self._over:
            raise StopAsyncIteration
        self._begun = True
        try:
            event = await asyncio.to_thread(next, self._events, None)
        except BaseException:
            self._leave()
            raise
        if event is None:
            self._over = True
            raise StopAsyncIteration
        return event

    async def aclose(self) -> None:
        """Cancel the reasoning, unless it is over."""
        self._leave()

    def __del__(self) -> None:
        self._leave()

    def _leave(self) -> None:
        if self._begun and not self._over:
            self._cancel()
        self._over = True
