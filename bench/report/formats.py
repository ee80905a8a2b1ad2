"""Reports as JSON, JSONL and CSV, and back. Every line of JSONL and CSV is self-contained."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from ...runtime.errors import InputError
from .schema import NAME, READ, VERSION, Check, Comparison, Measurement, Report, Run, from_json, to_json

Format = Literal["table", "json", "jsonl", "csv", "markdown"]
#: Suffix of a file's name -> format.
SUFFIXES: dict[str, Format] = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".csv": "csv",
    ".md": "markdown",
    ".txt": "table",
}

_MARK = {"schema": NAME, "version": VERSION}
#: Kinds of lines in JSONL and CSV, with the class of each; a note is a string.
_LINES: dict[str, type] = {"measurement": Measurement, "comparison": Comparison, "check": Check}


def write_json(report: Report) -> str:
    return json.dumps(_MARK | to_json(report), indent=1, allow_nan=False) + "\n"


def write_jsonl(reports: Sequence[Report]) -> str:
    return "".join(json.dumps(line, allow_nan=False) + "\n" for report in reports for line in _lines(report))


def write_csv(reports: Sequence[Report]) -> str:
    """One row per line of JSONL; ``a.b`` is field b of field a, and cells are JSON where plain text is ambiguous."""
    rows = [_flat(line) for report in reports for line in _lines(report)]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def read_report(path: Path) -> list[Report]:
    """The reports in a file that the bench wrote as JSON, JSONL or CSV (by its suffix); :class:`InputError` if none."""
    form = SUFFIXES.get(path.suffix.lower())
    if form not in ("json", "jsonl", "csv"):
        raise InputError(f"{path}: results are read from .json, .jsonl and .csv files")
    try:
        text = path.read_text(encoding="utf-8")
        if form == "json":
            return [_report(json.loads(text))]
        if form == "jsonl":
            return _gathered([json.loads(line) for line in text.splitlines() if line.strip()])
        return _gathered([_deep(row) for row in csv.DictReader(io.StringIO(text))])
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError, csv.Error) as error:  # ValueError: not JSON, not UTF-8, or a wrong field
        raise InputError(f"{path}: not a result of ualm bench ({error}); run the bench again") from error


def _lines(report: Report) -> list[dict[str, Any]]:
    common = {**_MARK, "run": to_json(report.run)}
    kinds: list[tuple[str, Sequence[object]]] = [
        ("measurement", report.measurements),
        ("comparison", report.comparisons),
        ("check", report.checks),
        ("note", report.notes),
    ]
    return [{**common, "kind": kind, kind: to_json(each)} for kind, items in kinds for each in items]


def _report(document: Any) -> Report:
    _check_mark(document)
    return from_json(Report, {name: value for name, value in document.items() if name not in _MARK})


def _check_mark(document: Any) -> None:
    if not isinstance(document, dict) or document.get("schema") != NAME:
        raise ValueError(f"its schema is not {NAME!r}")
    if document.get("version") not in READ:
        known = ", ".join(map(str, READ))
        raise ValueError(f"version {document.get('version')!r} of the schema; this ualm reads versions {known}")


def _gathered(lines: list[Any]) -> list[Report]:
    """Turn lines back into reports: those of one run belong together."""
    runs: dict[str, tuple[Run, dict[str, list[Any]]]] = {}
    for line in lines:
        _check_mark(line)
        kind = line.get("kind")
        if not isinstance(kind, str) or kind not in (*_LINES, "note"):
            raise ValueError(f"kind = {kind!r} is unknown")
        key = json.dumps(line.get("run"), sort_keys=True)
        if key not in runs:
            runs[key] = from_json(Run, line.get("run"), "run"), {name: [] for name in (*_LINES, "note")}
        value = line.get(kind)
        runs[key][1][kind].append(from_json(_LINES[kind], value, kind) if kind in _LINES else str(value))
    if not runs:
        raise ValueError("it holds no lines")
    return [
        Report(run, *(tuple(found[kind]) for kind in ("measurement", "comparison", "note", "check")))
        for run, found in runs.values()
    ]


def _flat(line: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    cells: dict[str, str] = {}
    for name, value in line.items():
        if isinstance(value, Mapping) and value:
            cells |= _flat(value, f"{prefix}{_escaped(name)}.")
        else:
            cells[prefix + _escaped(name)] = _cell(value)
    return cells


def _cell(value: Any) -> str:
    """Plain text unchanged, unless it would be read as JSON; everything else as JSON. An empty cell is an absent
    value."""
    if isinstance(value, str) and value and value.isprintable() and not _is_json(value):
        return value
    return json.dumps(value, allow_nan=False)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _deep(row: Mapping[str | None, Any]) -> dict[str, Any]:
    """Turn a row of CSV back into the line that it was made from."""
    line: dict[str, Any] = {}
    for column, cell in row.items():
        if column is None or cell is None:
            raise ValueError("a row has more or fewer cells than the header")
        if cell == "":
            continue
        *path, name = _names(column)
        place = line
        for step in path:
            place = place.setdefault(step, {})
        place[name] = json.loads(cell) if _is_json(cell) else cell
    return line


def _escaped(name: str) -> str:
    return name.replace(".", r"\.")  # roles of parts have dots in them


def _names(column: str) -> list[str]:
    marker = "\0"
    return [part.replace(marker, ".") for part in column.replace(r"\.", marker).split(".")]


def choose_format(name: str | None, output: Path | None) -> Format:
    """The format that ``--format`` or the name of ``--output`` selects; a table if neither does."""
    known = ("table", "json", "jsonl", "csv", "markdown")
    if name is not None:
        if name not in known:
            raise InputError(f"--format {name}: choose {', '.join(known)}")
        return cast(Format, name)
    if output is None:
        return "table"
    if output.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"--output {output}: its suffix names no format ({', '.join(SUFFIXES)}); give one, or --format"
        )
    return SUFFIXES[output.suffix.lower()]
