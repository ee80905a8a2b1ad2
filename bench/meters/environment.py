"""The facts needed to repeat a figure: commit, versions, machine, command."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import shlex
import subprocess
import sys
from pathlib import Path

from ... import runtime
from ...runtime.diagnostics.machine import machine as describe_machine
from ...runtime.diagnostics.machine import versions as runtime_versions
from ...runtime.process.cores import cores
from ..report.schema import Bandwidth, Gpu, Machine, RoundTrip, Run

_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


class OtherProcesses:
    """How much of the processors' time others took since this object was made, which may make a figure not worth
    quoting."""

    def __init__(self, stat: Path = Path("/proc/stat")) -> None:
        self._stat = stat
        self._start = self._now()

    @property
    def percent(self) -> float | None:
        """Share of the time of all processors; None if the system does not say, or no tick has passed."""
        now, start = self._now(), self._start
        if now is None or start is None or now[1] <= start[1]:
            return None
        mine, busy, total = now[2] - start[2], now[0] - start[0], now[1] - start[1]
        return max(0.0, 100 * (busy - mine) / total)

    def _now(self) -> tuple[float, float, float] | None:
        """Seconds of all processors, busy and in total, and of this process and its ended children."""
        try:
            ticks = [int(value) for value in self._stat.read_text().splitlines()[0].split()[1:9]]
            hertz = os.sysconf("SC_CLK_TCK")
        except (AttributeError, OSError, ValueError, IndexError):
            return None
        user, nice, system, idle, waiting, *interrupts = ticks
        busy = (user + nice + system + sum(interrupts)) / hertz
        return busy, busy + (idle + waiting) / hertz, sum(os.times()[:4])


def describe_run(
    *,
    seed: int,
    threads: int,
    bandwidth: Bandwidth,
    load_average: float | None,
    others_percent: float | None,
    peers: tuple[str, ...] = (),
    gpu: Gpu | None = None,
    dry_run: bool = False,
    core_round_trip: RoundTrip | None = None,
) -> Run:
    """The facts of this run. ``peers``: distributions besides the runtime's own whose versions are recorded, such as
    torch."""
    return Run(
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        command=command_line(),
        commit=source_commit(Path(runtime.__file__)),
        seed=seed,
        threads=threads,
        versions=runtime_versions() | {name: _version(name) for name in peers},
        machine=_machine(load_average, gpu),
        bandwidth=bandwidth,
        others_percent=others_percent,
        dry_run=dry_run,
        core_round_trip=core_round_trip,
    )


def command_line() -> str:
    """The command as it was given; a program's path is reduced to its name, a module's to its package."""
    program = [Path(sys.argv[0]).name]
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if program == ["__main__.py"] and spec is not None and spec.parent:
        program = ["python", "-m", spec.parent]
    return shlex.join([*program, *sys.argv[1:]])


def source_commit(module: Path) -> str:
    """``git describe`` of the checkout that ``module`` is tracked in, else the version of the installed package."""
    module = module.resolve()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(module.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        # an environment may lie inside an unrelated repository: the file must be tracked in the repository
        git("ls-files", "--error-unmatch", module.name)
        return git("describe", "--always", "--tags", "--dirty", "--abbrev=12")
    except (OSError, subprocess.SubprocessError):
        return f"ualm {_version('ualm')}"


def current_load() -> float | None:
    """Load average over one minute; None if the system has none."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def _machine(load_average: float | None, gpu: Gpu | None) -> Machine:
    about = describe_machine()
    features = about["cpu_features"]
    return Machine(
        cpu=about["cpu"],
        architecture=about["architecture"],
        cpu_features=() if isinstance(features, str) else tuple(features),
        cores=cores(),
        governor=_first_line(_GOVERNOR),
        memory_bytes=about["memory_bytes"],
        load_average=load_average,
        gpu=gpu,
    )


def _first_line(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
