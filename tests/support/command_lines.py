"""Command lines in forks of this process: the real entry point, descriptors and status, without the time for
imports."""

from __future__ import annotations

import io
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from ualm.runtime.cli import command

#: What a standard stream may be, besides a file's bytes to read or a file to capture it in.
CLOSED, FULL, GONE = "closed", "full", "gone"


@dataclass(frozen=True)
class Done:
    """``status`` as a shell shows it; ``out`` and ``err`` are None if they were not captured."""

    status: int
    out: bytes | None
    err: str | None
    bytes_held: int


def run_line(
    arguments: Sequence[bytes],
    folder: Path,
    *,
    stdin: bytes | str = b"",
    stdout: str | None = None,
    stderr: str | None = None,
    variables: Mapping[str, str] | None = None,
    encoding: str = "utf-8",
    limit: float = 60.0,
) -> Done:
    """``ualm ARGUMENTS`` in ``folder``. The fork shares the modules imported here; ``limit``: seconds until it is
    killed.

    ``stdin``: bytes, or :data:`CLOSED`; the others: None (captured), :data:`CLOSED`, :data:`FULL` or :data:`GONE` (a
    pipe without a reader).
    """
    streams = folder.with_name(folder.name + ".streams")
    streams.mkdir()
    (streams / "0").write_bytes(stdin if isinstance(stdin, bytes) else b"")
    kinds = (stdin if isinstance(stdin, str) else None, stdout, stderr)
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        _become(arguments, folder, streams, kinds, dict(variables or {}), encoding)
    while True:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() - began > limit:
            os.kill(child, signal.SIGKILL)
            limit = float("inf")
        time.sleep(0.002)
    out, err = (
        (streams / name).read_bytes() if kind is None else None for name, kind in (("1", stdout), ("2", stderr))
    )
    return Done(
        os.waitstatus_to_exitcode(status),
        out,
        None if err is None else err.decode(errors="backslashreplace"),
        usage.ru_maxrss << 10,
    )


def _become(
    arguments: Sequence[bytes],
    folder: Path,
    streams: Path,
    kinds: tuple[str | None, ...],
    variables: dict[str, str],
    encoding: str,
) -> NoReturn:
    """Act as the command in a new process, as Python starts and ends one."""
    status = 70
    try:
        os.chdir(folder)
        os.environ.update(variables)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for descriptor, kind in enumerate(kinds):
            _place(descriptor, kind, streams / str(descriptor))
        # as Python makes them: None for a closed descriptor
        for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
            if kinds[descriptor] == CLOSED:
                setattr(sys, name, None)
                continue
            raw = os.fdopen(descriptor, "wb" if descriptor else "rb", closefd=False)
            errors = "backslashreplace" if descriptor == 2 else "strict"
            setattr(sys, name, io.TextIOWrapper(raw, encoding=encoding, errors=errors))
        sys.argv = ["ualm", *map(os.fsdecode, arguments)]
        status = _ended()
    finally:
        os._exit(status)


def _place(descriptor: int, kind: str | None, file: Path) -> None:
    if kind == CLOSED:
        os.close(descriptor)
        return
    if kind == GONE:
        reader, opened = os.pipe()
        os.close(reader)
    elif kind == FULL:
        opened = os.open("/dev/full", os.O_WRONLY)
    else:
        opened = os.open(file, os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT)
    if opened != descriptor:  # the lowest free one, if a lower one was closed
        os.dup2(opened, descriptor)
        os.close(opened)


def _ended() -> int:
    """The exit status that the interpreter derives from how the entry point ends."""
    status = 0
    try:
        command.main()
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        status = stop.code & 0xFF if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            traceback.print_exc()
            status = 120
    return status
