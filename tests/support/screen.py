"""What a terminal shows: a pseudo-terminal for a command, and the lines that remain visible."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path

_PIECE = re.compile(r"\x1b\[(\??[\d;]*)([A-Za-z])|([\r\n])|([^\x00-\x1f\x7f])")


def on_terminal(
    command: Sequence[str], columns: int = 80, *, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> str:
    """Everything that a command sends to its own terminal, both streams; it must succeed within ten minutes."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    known = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    known |= {"TERM": "xterm", **(environment or {})}
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd, env=known, start_new_session=True
    ) as process:
        os.close(theirs)
        sent = b""
        try:
            while piece := os.read(ours, 65536):
                sent += piece
        except OSError:  # how Linux reports that the other end is closed
            pass
        finally:
            os.close(ours)
        status = process.wait(600)
    assert status == 0, (status, sent)
    return sent.decode()


def screen(sent: str, columns: int = 80) -> list[str]:
    """The lines that remain visible on a terminal of sufficient height."""
    lines, row, column, at = [""], 0, 0, 0
    while at < len(sent):
        found = _PIECE.match(sent, at)
        assert found is not None, f"not understood: {sent[at : at + 20]!r}"
        at = found.end()
        values, kind, move, letter = found.groups()
        if kind == "A":
            row = max(row - int(values or 1), 0)
        elif kind == "K":
            assert values in ("", "0", "2"), values
            lines[row] = "" if values == "2" else lines[row][:column]
        elif kind is not None:
            assert kind in "mhl", f"not understood: {found.group()!r}"  # colours, and the cursor shown or hidden
        elif move == "\r":
            column = 0
        elif move == "\n":
            row += 1
        else:
            if column == columns:
                row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
            lines[row] = lines[row][:column].ljust(column) + letter + lines[row][column + 1 :]
            column += 1
        lines += [""] * (row + 1 - len(lines))
    return [line.rstrip() for line in lines]
