"""What a stage found, and how it is stored: one bench result per stage, and all of them in one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ...runtime.errors import InputError, UalmError
from ...runtime.files.reading import first_line
from ...runtime.files.writing import replacing_file
from ...runtime.process.stopping import raise_interrupt
from ..report.formats import read_report, write_json
from ..report.schema import Check, Comparison, Measurement, Report, Run

#: The file that holds all stages.
WHOLE = "gpu_acceptance.json"
_STAGE = "stage_{}.json"


class Skip(Exception):
    """Raised by a stage or check that does not apply here; the message says why."""


@dataclass
class Findings:
    """What the stage ``stage`` has found so far."""

    stage: str
    checks: list[Check] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    #: Called with the name of a check that begins, and with None when it has ended.
    watch: Callable[[str | None], None] = lambda name: None

    def check(self, name: str, found: Callable[[], str]) -> None:
        """Add a check: ``found`` returns what it found, or raises :class:`AssertionError` or an error of ualm."""
        with self.checking(name) as say:
            say.append(found())

    @contextmanager
    def checking(self, name: str) -> Iterator[list[str]]:
        """A check as a ``with`` block; its findings go into the list. A failure is recorded, and the stage
        continues."""
        began, details, verdict = time.perf_counter(), list[str](), "pass"
        self.watch(name)
        try:
            yield details
        except Skip as reason:
            verdict, details = "skipped", [str(reason)]
        except ModuleNotFoundError as error:
            raise_interrupt(error)
            verdict, details = _missing(error)
        except (AssertionError, UalmError, ImportError, MemoryError, OSError, RuntimeError, ValueError) as error:
            raise_interrupt(error)
            verdict, details = "fail", [first_line(error)]
        self.checks.append(Check(self.stage, name, verdict, "; ".join(details), time.perf_counter() - began))
        self.watch(None)

    def take(self, report: Report) -> None:
        """Add what a scenario measured."""
        self.measurements += report.measurements
        self.comparisons += report.comparisons
        self.notes += [note for note in report.notes if note not in self.notes]

    def report(self, run: Run) -> Report:
        return Report(
            run, tuple(self.measurements), tuple(self.comparisons), tuple(self.notes), checks=tuple(self.checks)
        )


def _missing(error: ModuleNotFoundError) -> tuple[str, list[str]]:
    """A library that is not installed is no fault; a module of ualm that is not there is one."""
    name = error.name or ""
    if not name or name.split(".")[0] == "ualm":
        return "fail", [first_line(error)]
    return "skipped", [f"needs {name}, which is not installed"]


def keep(folder: Path, name: str, report: Report) -> Path:
    """Write a stage's report, complete or not at all."""
    path = folder / _STAGE.format(name)
    with replacing_file(path) as temporary:
        temporary.write_text(write_json(report), encoding="utf-8", newline="")
    return path


def check_same_kind(folder: Path, names: Iterable[str], *, dry_run: bool) -> None:
    """:class:`InputError` if the folder holds stages of a rehearsal and this run is none, or the other way round."""
    for name in names:
        path = folder / _STAGE.format(name)
        if path.exists() and read_report(path)[0].run.dry_run != dry_run:
            made = "on a GPU" if dry_run else "by a dry run"
            raise InputError(f"{path}: was made {made}, this run was not; give another --out")


def gather(folder: Path, order: Iterable[str]) -> Report:
    """All stages in ``folder``, in one report with the facts of the one that ran last."""
    found, newest = Findings(""), list[Run]()
    for name in order:
        path = folder / _STAGE.format(name)
        if not path.exists():
            continue
        report = read_report(path)[0]
        newest = sorted([*newest, report.run], key=lambda run: run.created)[-1:]
        found.take(report)
        found.checks += report.checks
    if not newest:
        raise InputError(f"{folder}: holds no stage of an acceptance run")
    whole = found.report(newest[0])
    with replacing_file(folder / WHOLE) as temporary:
        temporary.write_text(write_json(whole), encoding="utf-8", newline="")
    return whole
