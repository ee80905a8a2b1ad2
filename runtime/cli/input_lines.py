"""What a user types: lines with their editing, the paths in them, and Ctrl-C meanwhile."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import InputError
from ..process.standard_streams import StandardInputError

_PROMPT = "> "


def line_reader(as_json: bool) -> Callable[[], str | None]:
    """A function that returns the next line, None at the end: with line editing if both ends are a terminal."""
    if isinstance(sys.stdin, io.TextIOWrapper):  # bytes that are not text are refused by name later
        sys.stdin.reconfigure(errors="surrogateescape")
    at_terminal = sys.stdin.isatty()
    if at_terminal and sys.stdout.isatty() and not as_json:
        # input() edits lines and keeps a history if this is loaded; Windows has its own line editing
        with suppress(ImportError):
            import readline  # noqa: F401

        def edited() -> str | None:
            try:
                return input(_PROMPT)
            except EOFError:
                print()
                return None

        return edited

    def plain() -> str | None:
        if at_terminal:
            print(_PROMPT, end="", file=sys.stderr, flush=True)
        try:
            line = sys.stdin.readline()
        except OSError as error:
            raise StandardInputError(f"standard input: {error.strerror or error}; it cannot be read") from error
        return line.rstrip("\r\n") if line else None

    return plain


@contextmanager
def ctrl_c(stop: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C calls ``stop`` in this block; only possible on the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda number, frame: stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler if before is None else before)


def typed_path(argument: str) -> Path:
    """The path after a command; ``~`` and quotes, as drag and drop adds them, are understood."""
    if len(argument) > 1 and argument[0] == argument[-1] and argument[0] in "'\"":
        argument = argument[1:-1]
    if "\0" in argument:
        raise InputError(f"{argument!r}: a file name has no NUL character")
    return Path(os.path.expanduser(argument))
