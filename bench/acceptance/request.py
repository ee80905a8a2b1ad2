"""What a stage's process is asked to do, and what it leaves behind: files in a folder that the two processes share."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...runtime.files.writing import replacing_file
from ..report.formats import read_report, write_json
from ..report.schema import Report
from .context import Ground

_REQUEST, _REPORT, _REFUSAL, _AT = "request.json", "report.json", "refusal.txt", "at.txt"


@dataclass(frozen=True)
class Request:
    """One stage; the fields are those of :class:`Ground`, with paths as text."""

    stage: str
    work: str
    seed: int
    dry_run: bool
    shim: str | None
    bundle: str | None
    expected: str | None
    few: bool = False

    @classmethod
    def of(cls, stage: str, ground: Ground, *, few: bool = False) -> Request:
        paths = (ground.shim, ground.bundle_folder, ground.expected)
        shim, bundle, expected = (None if path is None else str(path.resolve()) for path in paths)
        return cls(stage, str(ground.work), ground.seed, ground.dry_run, shim, bundle, expected, few)

    def ground(self, progress: Callable[[str], None]) -> Ground:
        shim, bundle, expected = (
            None if path is None else Path(path) for path in (self.shim, self.bundle, self.expected)
        )
        return Ground(Path(self.work), self.seed, self.dry_run, shim, bundle, expected, self.few, progress)


@dataclass(frozen=True)
class Exchange:
    """The shared folder. What is written appears complete or not at all: its writer may be ended at any time."""

    folder: Path

    def ask(self, request: Request) -> None:
        self._write(_REQUEST, json.dumps(vars(request)))

    def asked(self) -> Request:
        return Request(**json.loads(self._read(_REQUEST) or ""))

    def keep(self, report: Report) -> None:
        """What has been found so far."""
        self._write(_REPORT, write_json(report))

    def kept(self) -> Report | None:
        path = self.folder / _REPORT
        return read_report(path)[0] if path.exists() else None

    def refuse(self, why: str) -> None:
        """No stage at all can run here."""
        self._write(_REFUSAL, why)

    @property
    def refusal(self) -> str | None:
        return self._read(_REFUSAL)

    def arrive(self, at: str) -> None:
        """What is being done now; written often, and only read once this process is gone."""
        (self.folder / _AT).write_text(at, encoding="utf-8")

    @property
    def at(self) -> str | None:
        return self._read(_AT)

    def _write(self, name: str, text: str) -> None:
        with replacing_file(self.folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def _read(self, name: str) -> str | None:
        try:
            return (self.folder / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
