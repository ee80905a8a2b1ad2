"""Runs each stage in a process of its own, ends it at its limit, and keeps what it had found by then."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from ...runtime.errors import EngineError
from ..report.schema import Check, Report
from .context import Ground
from .facts import NOT_READ, run_facts
from .process import Ended, python, run_process
from .request import Exchange, Request


@dataclass(frozen=True)
class Done:
    """A stage's report, and whether it ended by itself, right or wrong."""

    report: Report
    whole: bool


def run_stage(name: str, ground: Ground, limit: float, *, why: str = "its limit") -> Done:
    """Run a stage for at most ``limit`` seconds; ``why``: where the limit comes from.

    Raises :class:`EngineError` if no stage can run here at all.
    """
    with tempfile.TemporaryDirectory(prefix="ualm_stage_") as folder:
        exchange = Exchange(Path(folder))
        exchange.ask(Request.of(name, ground))
        ended = run_process(python("child", folder), Path(folder) / "output.txt", limit)
        if (refusal := exchange.refusal) is not None:
            raise EngineError(refusal)
        report, at = exchange.kept(), exchange.at
    if report is None:
        report = Report(run_facts(ground, NOT_READ, None), ())
    checks, notes = list(report.checks), list(report.notes)
    if ended.status != 0:
        checks.append(_cut_short(name, ended, at, why))
    seconds = f"took {ended.seconds:.1f} s" if ended.status is not None else f"was ended after {ended.seconds:.0f} s"
    notes.append(f"stage {name} {seconds}, of at most {limit:.0f}")
    return Done(replace(report, checks=tuple(checks), notes=tuple(notes)), ended.status is not None)


def _cut_short(name: str, ended: Ended, at: str | None, why: str) -> Check:
    where = "" if not at else f", at: {' '.join(at.split())}"
    if ended.status is not None:
        details = f"its process ended with status {ended.status}{where}; {ended.words or 'it printed nothing'}"
        return Check(name, "the stage as a whole", "fail", details, ended.seconds)
    verdict = "fail" if why == "its limit" else "skipped"
    details = f"ended after {ended.seconds:.0f} s, {why}{where}"
    return Check(name, "the stage as a whole", verdict, details, ended.seconds)
