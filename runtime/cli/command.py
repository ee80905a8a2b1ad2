"""The ``ualm`` command as a process: its signals, its standard streams and its exit status.

This is the first module that the command loads. It imports next to nothing, so that signals that arrive while the rest
is loaded find the process prepared. The programs ``python -m ualm...`` start the same way, see :func:`run`.
"""

from __future__ import annotations

import os
import sys

try:
    from ..process import stopping
except KeyboardInterrupt:  # Ctrl-C is handled from the next line on
    os._exit(130)

#: Environment variable that asks for the traceback of an unexpected error.
TRACEBACK = "UALM_TRACEBACK"


def main() -> None:
    """Entry point of ``ualm``."""
    run("ualm.runtime.cli.main")


def run(module: str) -> None:
    """Load ``module``, call its function ``main`` and end the process.

    For a module to call at ``if __name__ == "__main__"``, before it imports anything.
    """
    stopping.begin()
    from ..process import standard_streams

    standard_streams.guard()
    status: str | int | None = 130
    try:  # noqa: SIM105  # leaving a context manager would be one more place for a signal to strike
        status = _done(module)
    except (KeyboardInterrupt, SystemExit):  # a signal that struck after the work, or while a failure was reported
        pass
    stopping.rest()
    sys.exit(standard_streams.settle(status))


def _done(module: str) -> str | int | None:
    """Do the work, and return its status as for ``sys.exit``. A signal that arrives later is left to :func:`run`."""
    from importlib import import_module

    try:
        entry = import_module(module).main
        stopping.work()
        entry()
    except SystemExit as stop:
        return stop.code
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        return None if stopping.caught() else _message(error)
    return 0


def _message(error: Exception) -> str:
    """One line about an error that no verb has turned into one."""
    if os.environ.get(TRACEBACK):
        raise error
    from ..errors import UalmError
    from ..files.reading import first_line
    from ..shown import in_a_line

    if isinstance(error, UalmError):
        return f"ualm: {in_a_line(error)}"
    text = first_line(error) if str(error) else ""
    if isinstance(error, MemoryError):
        return f"ualm: out of memory{text and f' ({text})'}"
    if isinstance(error, OSError) and error.strerror:
        return f"ualm: {error.strerror if error.filename is None else f'{error.filename}: {error.strerror}'}"
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f", {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else ""
    return (
        f"ualm: internal error, please report it: {type(error).__name__}: {text}{where}; "
        f"{TRACEBACK}=1 in the environment shows all"
    )


if __name__ == "__main__":
    main()
