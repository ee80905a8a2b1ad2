"""The command: ``ualm bench acceptance --out FOLDER [--stage NAME ...]``."""

from __future__ import annotations

if __name__ == "__main__":
    from ualm.runtime.cli import command

    command.run("ualm.bench.acceptance.__main__")

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ...runtime.errors import InputError
from ...runtime.process.cores import cores
from ...runtime.terminal.live import LiveLine
from ..meters.environment import current_load, describe_run
from ..report.schema import Run
from ..report.tables import to_table
from .context import Ground
from .engines import check_engines
from .findings import WHOLE, Findings, gather, keep
from .kernels import check_kernels
from .launch_limits import measure_limits
from .loop import check_loop
from .machine import describe, try_tensorrt_rtx
from .shapes import STAGES as SHAPES

#: Every stage, in the order in which they run; see docs/gpu.md.
STAGES: dict[str, Callable[[Ground], Findings]] = {
    "environment": describe,
    "limits": measure_limits,
    "kernels": check_kernels,
    "tensorrt-rtx": try_tensorrt_rtx,
    "loop": check_loop,
    "engines": check_engines,
    **SHAPES,
}


def run_stages(ground: Ground, names: list[str], *, minutes: float) -> bool:
    """Run stages one after the other, keep each one's result, and print all results in the folder.

    No stage starts after ``minutes``; the remaining ones are named. Returns whether every check of this call passed or
    was skipped.
    """
    began, passed = time.perf_counter(), True
    ground.out.mkdir(parents=True, exist_ok=True)
    ground.work.mkdir(parents=True, exist_ok=True)
    left = list(names)
    while left and time.perf_counter() - began < 60 * minutes:
        name = left.pop(0)
        ground.progress(name)
        found = _run_stage(ground, name)
        passed &= all(check.verdict != "fail" for check in found.checks)
        keep(ground.out, name, found.report(_facts(ground)))
    print(to_table(gather(ground.out, list(STAGES), _facts(ground))), end="")
    print(f"{ground.out / WHOLE}")
    if left:
        print(f"{minutes:g} minutes are over; go on with: --stage {' '.join(left)}")
    return passed


def _run_stage(ground: Ground, name: str) -> Findings:
    """A stage that cannot continue at all becomes one check that says why."""
    whole, found = Findings(name), None
    with whole.checking("the stage as a whole") as details:
        found = STAGES[name](ground)
        details.append(f"{len(found.checks)} checks")
    return whole if found is None else found


def _facts(ground: Ground) -> Run:
    return describe_run(
        seed=ground.seed,
        threads=cores(),
        bandwidth=ground.meter.result,
        load_average=current_load(),
        others_percent=None,
        peers=("onnxruntime-gpu", "tensorrt-rtx", "torch"),
        gpu=ground.gpu,
        dry_run=ground.dry_run,
    )


def main(arguments: Sequence[str] | None = None, program: str = "python -m ualm.bench.acceptance") -> None:
    parser = argparse.ArgumentParser(prog=program, description="Run the checks that need a GPU.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results; a later call adds to it")
    parser.add_argument("--stage", nargs="+", metavar="NAME", choices=STAGES, help=f"of {', '.join(STAGES)}; else all")
    parser.add_argument("--work", type=Path, help="folder for runs and bundles, up to 60 GB; OUT/work by default")
    parser.add_argument("--bundle", type=Path, help="bundle to run the loop on; the model within ualm by default")
    parser.add_argument("--minutes", type=float, default=10.0, help="start no stage after this time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry-run", action="store_true", help="rehearse on the CPU; says nothing about any GPU")
    parser.add_argument("--shim", type=Path, help="for --dry-run: the kernels compiled for the CPU, see docs/gpu.md")
    given = parser.parse_args(arguments)
    line = LiveLine()
    try:
        if given.shim is not None and not given.dry_run:
            raise InputError("--shim: only --dry-run takes kernels that are compiled for the CPU")
        ground = Ground(
            out=given.out,
            work=given.work or given.out / "work",
            seed=given.seed,
            dry_run=given.dry_run,
            shim=given.shim,
            bundle_folder=given.bundle,
            progress=line.show,
        )
        _ = ground.device  # fail now if there is none
        passed = run_stages(ground, given.stage or list(STAGES), minutes=given.minutes)
    finally:
        line.hide()
    if not passed:
        sys.exit("ualm: a check failed")
