"""How many cores this process may use: no more threads than that are started, whatever is asked for."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError

#: Where Linux lists the control groups that a process is in, and what each group may use.
_OWN_GROUPS, _GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def cores() -> int:
    """Cores that this process may run on, or as many as its share of CPU time amounts to, if that is fewer (a
    container's limit)."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shares = (math.ceil(share) for share in _shares(_OWN_GROUPS, _GROUPS))
    return max(1, min([allowed, *shares]))


def library_threads() -> int:
    """Threads for ONNX Runtime where the caller gave no number: 0, its own choice of a thread on each physical core,
    unless this process may use fewer cores; then :func:`cores`, since the library ignores a container's limit."""
    return 0 if cores() == os.cpu_count() else cores()


#: How the options of a command set a number of threads, and how they leave it out: for :func:`check_threads`.
BY_OPTION = ("--threads", "leave it out for all cores")


def check_threads(threads: object, name: str = "threads =", default: str = "None for all cores") -> None:
    """:class:`InputError` for an invalid number of threads, or one above :func:`cores`; None stands for a default.

    ``name``, ``default``: how the user sets a number, and how to leave it out.
    """
    if threads is None:
        return
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise InputError(f"{name} {threads!r}: give a whole number of at least 1, or {default}")
    if threads > (most := cores()):
        raise InputError(
            f"{name} {threads}: this process may use {most} core{'s' * (most != 1)}, and more threads than cores "
            f"only wait for each other; give at most {most}, or {default}"
        )


def _shares(own: Path, groups: Path) -> Iterator[float]:
    """CPU time, in cores, of each control group that contains this process; nothing where there is no limit."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):  # not Linux
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        second = number == "0" and not controllers
        if not second and "cpu" not in controllers.split(","):
            continue
        parts = Path(path).parts[1:]
        root = groups if second else groups / controllers
        # limits of parent groups count too; in a container the path may be the host's, and only the root is visible
        for depth in range(len(parts) + 1):
            share = _share(root.joinpath(*parts[:depth]), second)
            if share is not None:
                yield share


def _share(folder: Path, second: bool) -> float | None:
    """The limit of one group, of version 2 of control groups (``second``) or version 1."""
    names = ("cpu.max",) if second else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    try:
        quota, period = " ".join((folder / name).read_text(encoding="utf-8") for name in names).split()
        return int(quota) / int(period) if int(quota) > 0 else None  # -1: no limit
    except (OSError, ValueError, ZeroDivisionError):  # "max": no limit
        return None
