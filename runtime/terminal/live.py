"""Output on standard error that is rewritten while a command works, and removed at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.live import Live
from rich.text import Text

from .report import progress


def _rewritable() -> bool:
    """Whether output on standard error can be erased; a dumb terminal would keep it, or an empty line of it."""
    return progress.is_terminal and not progress.is_dumb_terminal


class LiveLine:
    """One line on standard error that is rewritten, and removed at the end; nothing where that is not possible.

    It owns the terminal's line that the cursor is in: nothing else may be printed there, from either stream.
    """

    def __init__(self) -> None:
        self._live: Live | None = None

    def show(self, text: str) -> None:
        if not _rewritable():
            return
        line = Text(text, no_wrap=True, overflow="ellipsis")
        if self._live is None:
            # standard output stays as it is: what is printed there meanwhile must not land on standard error
            self._live = Live(line, console=progress, transient=True, refresh_per_second=8, redirect_stdout=False)
            self._live.start(refresh=True)
        else:
            self._live.update(line)

    def hide(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def sound_progress(made: float, elapsed: float) -> str:
    """``made`` seconds of sound after ``elapsed`` seconds, for a live line."""
    factor = f", real-time factor {elapsed / made:.2f}" if made else ""
    return f"{made:.1f} s of sound, {elapsed:.1f} s{factor}"


@contextmanager
def live_rows(show: Callable[[int, float], str]) -> Iterator[Callable[[str, int], None]]:
    """A live line while rows come in: ``show(rows, elapsed seconds)`` is its text."""
    line, started = LiveLine(), time.perf_counter()
    try:
        yield lambda modality, rows: line.show(show(rows, time.perf_counter() - started))
    finally:
        line.hide()


@contextmanager
def live_bytes() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each stage of a long job: call with stage, bytes done, bytes in all (0: not known)."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=progress, transient=True, disable=not _rewritable()) as bar:
        tasks: dict[str, TaskID] = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total or None)
            bar.update(tasks[stage], completed=done, total=total or None)

        yield update
