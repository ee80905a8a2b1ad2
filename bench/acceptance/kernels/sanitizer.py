"""The stages ``memcheck`` and ``racecheck``: the kernels under compute-sanitizer, a program of the CUDA toolkit."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ..findings import Findings, Skip
from ..process import python, run_process
from ..request import Exchange, Request

if TYPE_CHECKING:
    from ..context import Ground

_PROGRAM = "compute-sanitizer"
#: Seconds that the kernels may take under it: below the limit of the stage, so that being slow is no fault.
PATIENCE = 52.0
#: The line that the program ends with, whatever it has found.
_SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) ")
#: Lines of a finding that are shown.
_SHOWN = 4


def check_under(tool: str, ground: Ground, found: Findings, *, patience: float = PATIENCE) -> None:
    """The stage of one tool: it must find nothing, and the kernels must still compute the CPU's bits."""
    with found.checking(f"kernels under {tool}") as details:
        program = _find()
        if program is None:
            raise Skip(f"{_PROGRAM} was not found; it comes with the CUDA toolkit: put it on PATH or set CUDA_HOME")
        details.append(_run(program, tool, ground, patience))


def _find() -> str | None:
    homes = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    folders = [home / sub for home in (*homes, Path("/usr/local/cuda")) for sub in ("bin", "compute-sanitizer")]
    return shutil.which(_PROGRAM, path=os.pathsep.join([os.environ.get("PATH", ""), *map(str, folders)]))


def _run(program: str, tool: str, ground: Ground, patience: float) -> str:
    with tempfile.TemporaryDirectory(prefix="ualm_sanitizer_", dir=ground.work) as name:
        folder = Path(name)
        exchange, output = Exchange(folder), folder / "output.txt"
        exchange.ask(Request.of("kernels", ground, few=True))
        ended = run_process([program, "--tool", tool, *python("child", name)], output, patience)
        report, at = exchange.kept(), exchange.at
        lines = output.read_text(encoding="utf-8", errors="replace").splitlines()
    summaries = [match for line in lines if (match := _SUMMARY.search(line))]
    if ended.status is None:
        raise Skip(f"was not through after {ended.seconds:.0f} s, at: {at or 'the start'}")
    if not summaries:
        raise Skip(f"{_PROGRAM} gave no summary, status {ended.status}: {ended.words or 'it printed nothing'}")
    count = max(int(match.group(1)) for match in summaries)
    first = [line.strip("= ").strip() for line in lines if line.startswith("=========")][1 : 1 + _SHOWN]
    assert count == 0, f"{count} found: {'; '.join(first)}"
    assert report is not None and ended.status == 0, f"the kernels ended with status {ended.status}: {ended.words}"
    wrong = [f"{check.name}: {check.detail}" for check in report.checks if check.verdict != "pass"]
    assert report.checks and not wrong, "; ".join(wrong) or "no kernel ran"
    return f"nothing found; {len(report.checks)} checks of the kernels hold"
