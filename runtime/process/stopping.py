"""How Ctrl-C, SIGTERM and SIGHUP end a command: it prints nothing, leaves nothing half-written, and exits with 128 plus
the signal's number, the status that a shell shows for a program that a signal ended.

Until a command has begun its work there is nothing to undo, and the process ends immediately. From then on a signal
unwinds it by an exception, as Python does for Ctrl-C. It is raised wherever the main thread is, and three kinds
of places spoil it: the initialisation of a C module turns it into an ImportError, which is taken for a missing library;
a callback from C drops it; the removal of half-written files would be cut short. In these places a signal waits until
they are left, which is checked a hundred times a second.

What was printed by then is still passed to the reader of standard output, for a second at most.

This module is loaded before anything else and imports next to nothing. Windows has no SIGHUP and no timer that
interrupts: there a thread checks whether a signal may strike.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, FrameType
    from typing import Any, TypeVar

    _Function = TypeVar("_Function", bound=Callable[..., Any])

#: Those of the signals that this system has.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
#: What the timer sends, where there is one.
_ALARM = getattr(signal, "SIGALRM", None)
#: Seconds between two checks whether a waiting signal may strike.
_LOOK = 0.01
#: Seconds that a command has to unwind before the next signal arrives: Ctrl-C pressed twice counts once. The reader of
#: standard output has as long to take what is left.
_PATIENCE = 1.0
#: A module whose functions are called back from C, and a function that must not be cut short.
_CALLED_BACK = "soundfile"
_REMOVES = ("shutil", "rmtree")


class _State:
    """State of the one command that this process runs."""

    number: int | None = None  # the signal that came
    working = False
    struck = -_PATIENCE
    unbroken: set[CodeType] = set()  # noqa: RUF012  # an annotation would import typing


def unbroken(function: _Function) -> _Function:
    """A Python function that no signal cuts short."""
    _State.unbroken.add(function.__code__)
    return function


def begin() -> None:
    """From now on a signal ends the process immediately. Signals that its parent set to be ignored stay ignored."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _strike)
    if _ALARM is not None:
        signal.signal(_ALARM, _strike)
    sys.unraisablehook = _unraisable


def work() -> None:
    """From now on there may be something to undo."""
    _State.working = True


@unbroken
def rest() -> None:
    """The work is done, or was undone. Does not return where a signal was the reason."""
    _State.working = False
    if _State.number is not None:
        _look_again(0)
        _flush()
        _leave()


def forget() -> None:
    """The signal was input to the command, and does not end it."""
    _look_again(0)
    _State.number, _State.struck = None, -_PATIENCE


def caught() -> bool:
    """Whether a signal is ending the command."""
    return _State.number is not None


def raise_interrupt(error: BaseException) -> None:
    """Raise the KeyboardInterrupt behind an error, if there is one: see above for what turns it into errors."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, KeyboardInterrupt):
            raise seen
        seen = seen.__cause__ or seen.__context__


def _strike(number: int, frame: FrameType | None) -> None:
    if number != _ALARM:
        _State.number = number
    if _State.number is None:
        return
    if not _State.working:
        _leave()
    if time.monotonic() < _State.struck + _PATIENCE or _must_wait(frame):
        _look_again(_LOOK)
        return
    _State.struck = time.monotonic()
    raise KeyboardInterrupt if _State.number == signal.SIGINT else SystemExit(128 + _State.number)


def _must_wait(frame: FrameType | None) -> bool:
    while frame is not None:
        code, module = frame.f_code, frame.f_globals.get("__name__")
        if code.co_filename.startswith("<frozen importlib") or module == _CALLED_BACK:
            return True
        if code in _State.unbroken or (module, code.co_name) == _REMOVES:
            return True
        frame = frame.f_back
    return False


def _unraisable(dropped: sys.UnraisableHookArgs, /) -> None:
    """Python's hook for exceptions that cannot propagate: from a destructor, or a callback that is not known here."""
    if _State.number is not None and isinstance(dropped.exc_value, (KeyboardInterrupt, SystemExit)):
        _State.struck = -_PATIENCE
        _look_again(_LOOK)
    else:
        sys.__unraisablehook__(dropped)


def _look_again(seconds: float) -> None:
    """Have :func:`_strike` called after so many seconds; 0: no longer."""
    if _ALARM is not None:
        signal.setitimer(signal.ITIMER_REAL, seconds)
    elif seconds:
        _thread.start_new_thread(_interrupt, (seconds,))


def _interrupt(seconds: float) -> None:
    time.sleep(seconds)
    if _State.number is not None:
        _thread.interrupt_main(signal.Signals(_State.number))


def _flush() -> None:
    """Flush the buffer of standard output. Not within :func:`_strike`: it may have interrupted the buffer's own work,
    which is not reentrant, and a command that is ended before it has begun its work has nothing to print."""
    try:
        _thread.start_new_thread(_leave, (_PATIENCE,))  # a reader that takes nothing does not keep the process alive
        sys.stdout.flush()
    except (AttributeError, OSError, RuntimeError, ValueError):  # no stream, no reader, no thread, closed
        pass


def _leave(seconds: float = 0.0) -> None:
    time.sleep(seconds)
    assert _State.number is not None
    os._exit(128 + _State.number)
