"""The standard streams of the command, in whatever state it gets them: closed, full, or with a reader that leaves."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any, TextIO

from ..errors import InputError, OutputError


class StandardOutputError(OutputError):
    """Standard output has lost its reader, or the disk behind it is full: there is no point in going on."""


class StandardInputError(InputError):
    """Standard input cannot be read."""


def check_open(why: str) -> None:
    """Refuse a standard input that was closed; ``why`` it is needed ends the message."""
    if sys.stdin is None or sys.stdin.closed:
        raise StandardInputError(f"standard input: is closed; {why}")


def not_printed(error: OSError) -> StandardOutputError:
    """The error of the command when the system refused its output."""
    why = "is closed" if error.errno == errno.EBADF else error.strerror or error
    return StandardOutputError(f"standard output: {why}; the result could not be printed")


def guard() -> None:
    """Make the three descriptors and their file objects usable, once, before any file is opened.

    The next file that is opened gets the lowest free descriptor: if standard error was closed, notices would go into
    that file. A missing descriptor is opened on the null device, standard output for reading, so that a write fails
    with the right error. ``sys.stdin`` is None where it was closed, as in Python. A failed write to standard output is
    a :class:`StandardOutputError`, once; one to standard error is lost, since there is nowhere to report it.
    """
    for descriptor, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, mode)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
            os.set_inheritable(descriptor, True)
    sys.stdout = _text(_Results(1, "w", closefd=False), sys.stdout)
    sys.stderr = _text(_Notices(2, "w", closefd=False), sys.stderr, errors="backslashreplace", line_buffering=True)


def settle(status: str | int | None) -> str | int | None:
    """Flush the streams, and return the exit status for :func:`sys.exit`."""
    try:
        sys.stdout.flush()
    except OutputError as error:
        return status or f"ualm: {error}"
    return status


class _Results(io.FileIO):
    _failed = False

    def write(self, data: Any, /) -> int:
        if self._failed:  # already reported; the rest must not be tried again at every flush until the end
            return len(data)
        try:
            written: int | None = super().write(data)
        except OSError as error:
            self._failed = True
            raise not_printed(error) from error
        if written is None:
            self._failed = True
            raise StandardOutputError("standard output: does not wait for its reader; give one that blocks")
        return written


class _Notices(io.FileIO):
    def write(self, data: Any, /) -> int:
        try:
            written: int | None = super().write(data)
        except OSError:
            return len(data)
        return len(data) if written is None else written


def _text(
    raw: io.FileIO, before: TextIO | None, errors: str | None = None, line_buffering: bool | None = None
) -> TextIO:
    """``raw`` as a text file with the encoding of Python's stream ``before``, which it replaces; None: no stream."""
    if isinstance(before, io.TextIOWrapper):
        errors = errors or before.errors
        line_buffering = before.line_buffering or before.write_through if line_buffering is None else line_buffering
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=getattr(before, "encoding", None) or "utf-8",
        errors=errors,
        newline="\n",
        line_buffering=bool(line_buffering),
    )
