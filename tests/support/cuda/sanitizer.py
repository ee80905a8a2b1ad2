"""A stand-in for compute-sanitizer: it runs the command that it is given, and says what it is told to have found."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_SCRIPT = """#!/bin/sh
tool=$2
shift 2
echo "========= COMPUTE-SANITIZER"
{before}
"$@"
status=$?
{after}
exit {status}
"""


def stand_in_for_sanitizer(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    before: str = "",
    summary: str | None = None,
    status: str = "$status",
) -> None:
    """Put it on the path. ``before``, ``summary``: shell commands before and after the program that it watches."""
    if summary is None:
        summary = (
            'test $tool = memcheck && echo "========= ERROR SUMMARY: 0 errors" || '
            'echo "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"'
        )
    folder.mkdir(parents=True)
    program = folder / "compute-sanitizer"
    program.write_text(_SCRIPT.format(before=before, after=summary, status=status))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
