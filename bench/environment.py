"""What must be known to repeat a figure: commit, versions, machine, command."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import shlex
import subprocess
import sys
from pathlib import Path

from .. import runtime
from ..runtime.doctor import machine as describe_machine
from ..runtime.doctor import versions as runtime_versions
from .schema import Bandwidth, Machine, Run

_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def describe_run(
    *, seed: int, threads: int, bandwidth: Bandwidth, load_average: float | None, peers: tuple[str, ...] = ()
) -> Run:
    """The facts of this run. ``peers``: distributions beside the runtime's own whose versions count, torch for one."""
    return Run(
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        command=command_line(),
        commit=source_commit(Path(runtime.__file__)),
        seed=seed,
        threads=threads,
        versions=runtime_versions() | {name: _version(name) for name in peers},
        machine=_machine(load_average),
        bandwidth=bandwidth,
    )


def command_line() -> str:
    """The command as it was given; of its own path only the name."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def source_commit(module: Path) -> str:
    """``git describe`` of the checkout that ``module`` is tracked in, else the version of the installed package."""
    module = module.resolve()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(module.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        # an environment may lie inside a repository that is not ours: the file must be one of the repository's own
        git("ls-files", "--error-unmatch", module.name)
        return git("describe", "--always", "--tags", "--dirty", "--abbrev=12")
    except (OSError, subprocess.SubprocessError):
        return f"ualm {_version('ualm')}"


def current_load() -> float | None:
    """Load average of one minute; None where the system has none."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _machine(load_average: float | None) -> Machine:
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
