"""The command: ``ualm bench acceptance --out FOLDER [--call 1|2 | --stage NAME ...]``, and ``prepare -o FILE``."""

from __future__ import annotations

if __name__ == "__main__":
    from ualm.runtime.cli import command

    command.run("ualm.bench.acceptance.__main__")

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from ...runtime.errors import InputError
from ..meters.environment import command_line
from ..report.schema import Report
from . import supervise
from .context import Ground
from .findings import WHOLE, check_same_kind, gather, keep
from .stages import CALLS, STAGES, of_call


def run_stages(out: Path, ground: Ground, names: Sequence[str], *, minutes: float) -> bool:
    """Run stages one after the other, keep each one's result in ``out``, and print all results that are there.

    What has not run, or not to its end, after ``minutes`` is named. Returns whether every check of this call passed or
    was skipped.
    """
    check_same_kind(out, STAGES, dry_run=ground.dry_run)
    began, passed, left = time.perf_counter(), True, list(names)
    while left:
        over = 60 * minutes - (time.perf_counter() - began)
        if over <= 0:
            break
        name, limit = left[0], STAGES[left[0]].limit
        _say(f"{name}: {STAGES[name].does}; at most {min(limit, over):.0f} s")
        whose = "its limit" if limit <= over else f"when the {minutes:g} minutes were over"
        done = supervise.run_stage(name, ground, min(limit, over), why=whose)
        passed &= all(check.verdict != "fail" for check in done.report.checks)
        out.mkdir(parents=True, exist_ok=True)
        keep(out, name, replace(done.report, run=replace(done.report.run, command=command_line())))
        _say(_in_short(name, done.report))
        if not done.whole and limit > over:
            break
        del left[0]
    if list(out.glob("stage_*.json")):
        print(_shown(gather(out, STAGES)), end="")
        print(out / WHOLE)
    if left:
        print(f"{minutes:g} minutes are over; go on with: --stage {' '.join(left)}")
    return passed


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _in_short(name: str, report: Report) -> str:
    verdicts = [check.verdict for check in report.checks]
    counts = [f"{verdicts.count(each)} {each}" for each in ("pass", "fail", "skipped") if each in verdicts]
    return f"{name}: {', '.join(counts) or 'nothing was checked'}; {report.notes[-1]}"


def _shown(report: Report) -> str:
    """A table, or the same in Markdown where the library of the tables is not installed."""
    from ..report.tables import to_markdown, to_table

    try:
        return to_table(report)
    except ModuleNotFoundError:
        return to_markdown(report)


def _plan() -> str:
    lines = []
    for call, minutes in (*CALLS.items(), (None, None)):
        lines.append("only if named" if call is None else f"call {call}, {minutes:g} minutes")
        stages = [(name, stage) for name, stage in STAGES.items() if stage.call == call]
        lines += [f"  {name:<13} at most {stage.limit:4.0f} s  {stage.does}" for name, stage in stages]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None, program: str = "python -m ualm.bench.acceptance") -> None:
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["prepare"]:
        _prepare(given[1:], program)
    else:
        _run(given, program)


def _prepare(arguments: Sequence[str], program: str) -> None:
    from .kernels.expected import prepare

    parser = argparse.ArgumentParser(
        prog=f"{program} prepare",
        description="Write what this machine's CPU draws in the trials of the kernels; needs no GPU. The file for seed "
        "0 comes with ualm.",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="file for --expected")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    prepare(given.output, given.seed, _say)
    print(f"{given.output}: {given.output.stat().st_size} bytes")


def _run(arguments: Sequence[str], program: str) -> None:
    parser = argparse.ArgumentParser(
        prog=program,
        description="Run the checks that need a GPU. What the CPU draws is in a file made beforehand: prepare -o FILE.",
        epilog=f"Stages:\n{_plan()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the results; a later call adds to it")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--call", type=int, choices=CALLS, help="the stages of one call and its minutes; else of both")
    which.add_argument("--stage", nargs="+", metavar="NAME", choices=STAGES, help=f"of {', '.join(STAGES)}")
    parser.add_argument("--work", type=Path, help="folder for runs and bundles, which stay there; else a temporary one")
    parser.add_argument("--bundle", type=Path, help="bundle to run the loop on; the model within ualm by default")
    parser.add_argument("--expected", type=Path, help="what the CPU draws, made by prepare; seed 0 comes with ualm")
    parser.add_argument("--minutes", type=float, help="end after this time; else only at the limits of the stages")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry-run", action="store_true", help="rehearse on the CPU; says nothing about any GPU")
    parser.add_argument("--shim", type=Path, help="for --dry-run: the kernels compiled for the CPU, see docs/gpu.md")
    given = parser.parse_args(arguments)
    if given.shim is not None and not given.dry_run:
        raise InputError("--shim: only --dry-run takes kernels that are compiled for the CPU")
    if given.expected is not None and not given.expected.is_file():
        raise InputError(f"--expected {given.expected}: no such file; make it with: {program} prepare -o FILE")
    names = given.stage or of_call(given.call)
    minutes = given.minutes if given.minutes is not None else CALLS.get(given.call, float("inf"))
    with ExitStack() as stack:
        if given.work is None:
            given.work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ualm_acceptance_")))
        else:
            given.work.mkdir(parents=True, exist_ok=True)
        ground = Ground(given.work.resolve(), given.seed, given.dry_run, given.shim, given.bundle, given.expected)
        passed = run_stages(given.out, ground, names, minutes=minutes)
    if not passed:
        sys.exit("ualm: a check failed")
