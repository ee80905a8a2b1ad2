"""Notices that are shown once per shell: the shells that have seen one are kept in a small file of the user."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from ..errors import UalmError
from ..files.cache import cache_folder
from ..files.writing import replacing_file

#: Shells that are remembered, if it is not visible which have ended.
_MOST = 50
#: A process: its number, and when it started, since numbers are reused.
_Process = list[object]


def first_in_this_shell() -> bool:
    """Whether this is the first call in this shell, which is remembered; True if that is not possible.

    The shell is the process that began the terminal's session, or else the one that started this process.
    """
    shells = _shells()
    with suppress(OSError, UalmError):
        place = _place()
        if place is None:
            return True
        remembered = _remembered(place)
        if any(shell in remembered for shell in shells):
            return False
        place.parent.mkdir(parents=True, exist_ok=True)
        with replacing_file(place) as temporary:
            temporary.write_text(json.dumps([*remembered, *shells][-_MOST:]) + "\n", encoding="utf-8")
    return True


def _place() -> Path | None:
    """The file, in a folder that the system clears after the user's session, if there is one; None without a home."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(runtime) / "ualm" if runtime and Path(runtime).is_dir() else cache_folder()
    return None if folder is None else folder / "told.json"


def _remembered(place: Path) -> list[_Process]:
    """The remembered shells that have not ended; none if the file is missing or damaged, since it is written again."""
    try:
        found = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else []
    except ValueError:
        return []
    pairs = [each for each in found if isinstance(each, list) and len(each) == 2] if isinstance(found, list) else []
    return [each for each in pairs if type(each[0]) is int and _began(each[0]) == each[1]]


def _shells() -> list[_Process]:
    numbers = {os.getppid(), os.getsid(0) if hasattr(os, "getsid") else 0}
    return [[number, began] for number in sorted(numbers) if (began := _began(number)) is not None]


def _began(process: int) -> str | None:
    """When a process started, in the system's own count; "" if that is not available, None if there is none."""
    if not Path("/proc/self/stat").exists():
        return ""
    try:
        status = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return status.rpartition(")")[2].split()[19]  # field 22; the name before it may hold spaces
