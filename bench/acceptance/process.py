"""A process that is ended at a limit, with all that it has started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

#: Characters that are kept of a process's last words.
_WORDS = 300


@dataclass(frozen=True)
class Ended:
    """How a process ended: its status, or None if it was ended after ``seconds``; and what it printed last."""

    status: int | None
    seconds: float
    words: str


def python(module: str, *arguments: str) -> list[str]:
    """The command of a module of this folder, in a Python that is isolated if this one is."""
    return [sys.executable, *(["-I"] if sys.flags.isolated else []), "-m", f"{__package__}.{module}", *arguments]


def run_process(command: Sequence[str], output: Path, limit: float) -> Ended:
    """Run a command, its standard streams in a file; it is ended at the limit, with all that it has started."""
    began = time.perf_counter()
    with open(output, "wb") as streams:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=streams,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status: int | None = process.wait(timeout=max(limit, 0.0))
        except subprocess.TimeoutExpired:
            status = None
        finally:  # also where this process is being ended
            _end(process)
    return Ended(status, time.perf_counter() - began, _last_words(output))


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it started, which outlive it if it crashed."""
    if os.name == "posix":
        with suppress(ProcessLookupError, PermissionError):  # all are gone
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def _last_words(output: Path) -> str:
    return " ".join(output.read_text(encoding="utf-8", errors="replace").split())[-_WORDS:]
