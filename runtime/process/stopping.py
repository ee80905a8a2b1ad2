"""What Ctrl-C, SIGTERM and SIGHUP do to a command: it says nothing, leaves nothing half-written, and ends with 128 plus
the signal's number, the status that a shell shows for a program that a signal ended.

Until a command has begun its work there is nothing to take back, and the process ends on the spot. From then on a
signal unwinds it by an exception, as Python does for Ctrl-C. Such an exception is born wherever the main thread is, and
three kinds of places spoil it: the initialisation of a module in C makes an ImportError of it, which is taken for a
library that is missing; a callback from C drops it; what removes half-written files would be cut short. There a signal
waits until they are left, which is looked for a hundred times a second.

What was printed by then is still handed to whoever reads standard output, for a second at most.

This module is loaded before anything else and imports next to nothing. Windows has no SIGHUP and no timer that
interrupts: there a thread looks whether a signal may strike.
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

#: Those of them that this system has.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
#: What the timer sends, where there is one.
_ALARM = getattr(signal, "SIGALRM", None)
#: Seconds between two looks at whether a signal that waits may strike.
_LOOK = 0.01
#: Seconds that a command has for unwinding before the next signal strikes: who presses Ctrl-C twice means it once. As
#: many has the reader of standard output, to take what is left for it.
_PATIENCE = 1.0
#: Modules whose functions C calls back, and what is called that must not be cut short.
_CALLED_BACK = "soundfile"
_REMOVES = ("shutil", "rmtree")


class _State:
    """Of the one command that this process is."""

    number: int | None = None  # the signal that came
    working = False
    struck = -_PATIENCE
    unbroken: set[CodeType] = set()  # noqa: RUF012  # an annotation would import typing


def unbroken(function: _Function) -> _Function:
    """A function of Python that no signal cuts short."""
    _State.unbroken.add(function.__code__)
    return function


def begin() -> None:
    """From now on a signal ends the process at once. One that whoever started it has told it to ignore is ignored."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _strike)
    if _ALARM is not None:
        signal.signal(_ALARM, _strike)
    sys.unraisablehook = _unraisable


def work() -> None:
    """From now on there may be something to take back."""
    _State.working = True


@unbroken
def rest() -> None:
    """The work is done, or was taken back. Does not return where a signal was the reason."""
    _State.working = False
    if _State.number is not None:
        _look_again(0)
        _flush()
        _leave()


def forget() -> None:
    """The signal that came was a word to the command, not its end."""
    _look_again(0)
    _State.number, _State.struck = None, -_PATIENCE


def caught() -> bool:
    """Whether a signal is ending the command."""
    return _State.number is not None


def raise_interrupt(error: BaseException) -> None:
    """Raise the KeyboardInterrupt behind an error, if there is one: see above for who makes errors of it."""
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
    """Python's word of an exception that nobody can receive: of a destructor, or a callback that is not known here."""
    if _State.number is not None and isinstance(dropped.exc_value, (KeyboardInterrupt, SystemExit)):
        _State.struck = -_PATIENCE
        _look_again(_LOOK)
    else:
        sys.__unraisablehook__(dropped)


def _look_again(seconds: float) -> None:
    """Have :func:`_strike` called after so many seconds; 0: no more."""
    if _ALARM is not None:
        signal.setitimer(signal.ITIMER_REAL, seconds)
    elif seconds:
        _thread.start_new_thread(_interrupt, (seconds,))


def _interrupt(seconds: float) -> None:
    time.sleep(seconds)
    if _State.number is not None:
        _thread.interrupt_main(signal.Signals(_State.number))


def _flush() -> None:
    """Hand over what stands in the buffer of standard output. Not within :func:`_strike`: it may have interrupted the
    buffer's own work, which cannot be entered twice, and who ends the command before it has worked wants no word."""
    try:
        _thread.start_new_thread(_leave, (_PATIENCE,))  # a reader that takes nothing does not keep the command
        sys.stdout.flush()
    except (AttributeError, OSError, RuntimeError, ValueError):  # no stream, nobody reads, no thread, closed
        pass


def _leave(seconds: float = 0.0) -> None:
    time.sleep(seconds)
    assert _State.number is not None
    os._exit(128 + _State.number)
