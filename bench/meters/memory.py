"""Memory of a process, as Linux counts it, and the cached pages of files."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

#: Seconds between two samples of a :class:`Watcher`.
LOOK = 0.02


@dataclass(frozen=True)
class Memory:
    """Bytes of a process. ``rss``: everything in memory, mapped files included. ``private``: memory not shared with
    another process, including files that only this one maps. ``anonymous``: memory that no file backs."""

    rss: int
    private: int
    anonymous: int


def memory_of(process: int | str = "self") -> Memory | None:
    """Memory of a process; None if the system does not say, or the process has ended."""
    fields = _fields(Path(f"/proc/{process}/smaps_rollup"))
    try:
        private = fields["Private_Clean"] + fields["Private_Dirty"]
        return Memory(fields["Rss"], private, fields["Anonymous"])
    except KeyError:
        return None


def peak_rss() -> int | None:
    """The most memory that this process has ever held, mapped files included (VmHWM); None if the system does not count
    it."""
    return _fields(Path("/proc/self/status")).get("VmHWM")


class Watcher:
    """The most memory that a process held, in bytes, seen every :data:`LOOK` seconds until :meth:`stop`.

    ``peak``: "private" and "anonymous" as in :class:`Memory`, and "rss", the kernel's own count of the most ever; only
    what the system reports. ``share``: the largest share of the time that sampling private memory may take. The system
    walks through all mapped pages for it, and blocks the observed process whenever it wants to map another.
    """

    def __init__(self, process: int, *, share: float = 1.0) -> None:
        self.peak: dict[str, int] = {}
        self._process, self._share, self._over = process, share, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        due = 0.0
        while not self._over.is_set():
            counts = _fields(Path(f"/proc/{self._process}/status"))
            self._keep({"anonymous": counts.get("RssAnon"), "rss": counts.get("VmHWM")})
            started = time.perf_counter()
            if started >= due:
                memory = memory_of(self._process)
                if memory is not None:
                    self._keep({"private": memory.private, "anonymous": memory.anonymous})
                ended = time.perf_counter()
                due = started + (ended - started) / self._share
            self._over.wait(LOOK)

    def _keep(self, seen: Mapping[str, int | None]) -> None:
        for kind, size in seen.items():
            if size:  # a zombie process has none
                self.peak[kind] = max(self.peak.get(kind, 0), size)


def _fields(path: Path) -> dict[str, int]:
    try:
        text = path.read_text()
    except OSError:
        return {}
    return {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}


def can_drop_pages() -> bool:
    """Whether this system allows a cold start to be requested."""
    return hasattr(os, "posix_fadvise")


def drop_pages(paths: Sequence[Path]) -> None:
    """Ask the system to drop the cached pages of files; it keeps those that are in use or not yet written."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def cached_fraction(paths: Sequence[Path]) -> float | None:
    """Share of the pages of files that are in memory; None if the system does not say (mincore)."""
    try:
        mincore = ctypes.CDLL(None, use_errno=True).mincore
    except (AttributeError, OSError, TypeError):
        return None
    held = pages = 0
    for path in paths:
        size = path.stat().st_size
        if not size:
            continue
        with open(path, "rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as mapped:
            view = np.frombuffer(mapped, np.uint8)
            flags = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
            failed = mincore(
                ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(size), ctypes.c_void_p(flags.ctypes.data)
            )
            del view  # the map cannot be closed while a view of it exists
            if failed:
                return None
            held, pages = held + int((flags & 1).sum()), pages + len(flags)
    return held / pages if pages else 0.0
