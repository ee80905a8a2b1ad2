"""How many cores this process may use: no more threads than that are started, whoever asks for them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError

#: Where Linux tells which control group a process is in, and what each group may use.
_OWN_GROUPS, _GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def cores() -> int:
    """Cores that this process may run on, or as many as its share of the processors' time fills, if those are fewer
    (a container's limit)."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shares = (math.ceil(share) for share in _shares(_OWN_GROUPS, _GROUPS))
    return max(1, min([allowed, *shares]))


def library_threads() -> int:
    """Threads for ONNX Runtime where nobody gave a number: 0, its own choice, a thread on each physical core, unless
    this process may use fewer than there are; then :func:`cores`, for the library knows no container's limit."""
    return 0 if cores() == os.cpu_count() else cores()


#: How the options of a command give a number of threads, and how none: for :func:`check_threads`.
BY_OPTION = ("--threads", "leave it out for all cores")


def check_threads(threads: object, name: str = "threads =", default: str = "None for all cores") -> None:
    """:class:`InputError` for a number of threads that is none, or above :func:`cores`; None stands for a default.

    ``name``, ``default``: how the caller's user gives a number, and how none.
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
    """Cores' worth of time that each control group around this process has; none where there is no limit."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):  # no Linux
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        second = number == "0" and not controllers
        if not second and "cpu" not in controllers.split(","):
            continue
        parts = Path(path).parts[1:]
        root = groups if second else groups / controllers
        # a limit of any group above counts too; in a container the path may be the host's, and the root alone is ours
        for depth in range(len(parts) + 1):
            share = _share(root.joinpath(*parts[:depth]), second)
            if share is not None:
                yield share


def _share(folder: Path, second: bool) -> float | None:
    """The limit of one group, of the second version of control groups or of the first."""
    names = ("cpu.max",) if second else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    try:
        quota, period = " ".join((folder / name).read_text(encoding="utf-8") for name in names).split()
        return int(quota) / int(period) if int(quota) > 0 else None  # -1: no limit
    except (OSError, ValueError, ZeroDivisionError):  # "max": no limit
        return None
