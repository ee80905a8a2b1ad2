"""Work in progress that may be abandoned: it is stopped, and waited for, when its ``with`` block ends."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from types import TracebackType
from typing import TypeVar

_Self = TypeVar("_Self", bound="Closing")


class Closing(ABC):
    """A context manager, also for ``async with``: when the block is left, unfinished work is cancelled.

    The exit then waits until the current computation is done (a few rows, the prompt, or the encoding of a sound), so
    that the session can be used and the model closed.
    """

    @abstractmethod
    def cancel(self) -> None:
        """Stop soon; does not wait."""

    @abstractmethod
    def join(self) -> None:
        """Wait until its thread no longer uses the model."""

    def close(self) -> None:
        """Cancel unfinished work, and wait until it has stopped.

        The session can then be used, and the model closed. Leaving a ``with`` block does the same.

        Examples
        --------
        >>> stream = model.stream("a trumpet plays C5", max_seconds=0.1)
        >>> chunk = next(stream)
        >>> stream.close()
        >>> list(stream)
        []
        """
        self.cancel()
        self.join()

    async def aclose(self) -> None:
        """Do what :meth:`close` does without blocking the event loop; leaving an ``async with`` block calls it.

        Examples
        --------
        >>> import asyncio
        >>> stream = model.stream("a trumpet plays C5", max_seconds=0.1)
        >>> chunk = next(stream)
        >>> asyncio.run(stream.aclose())
        >>> list(stream)
        []
        """
        self.cancel()
        await asyncio.to_thread(self.join)

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self: _Self) -> _Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
