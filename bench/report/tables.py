"""Renders reports as tables for a terminal, and as the same tables in Markdown."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...runtime.errors import InputError
from .formats import Format, write_csv, write_json, write_jsonl
from .schema import Bandwidth, Check, Comparison, Measurement, Report, Run, Setting, Subject, Traffic

#: Wide enough for any table.
_WIDE = 1000

_BANDWIDTHS = {"host": "read bandwidth", "device": "copy bandwidth on the GPU"}
_PERCENTILES = ("p50", "p90", "p95", "p99", "min", "mean", "max")
_TRAFFIC = ("GB/s", "of bandwidth", "of best pass", "near its best")
_MEASURED = ("subject", "figure", "RTF", "outside %", *_TRAFFIC, "times faster", "p")
#: The only column of sentences.
_DETAIL = "detail"
#: Characters between two columns, and at the edges of a table.
_GAP, _EDGES = 3, 2
#: Columns that are kept even if all rows have the same value.
_KEPT = (*_PERCENTILES, *_MEASURED, "stage", "check", "verdict")


@dataclass(frozen=True)
class _Grid:
    """A table before rendering. Columns that are empty in every row are left out."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, title: str, rows: Sequence[Mapping[str, str]]) -> _Grid:
        names = list(dict.fromkeys(name for row in rows for name in row))
        used = [name for name in names if any(row.get(name, "") for row in rows)]
        return cls(title, tuple(used), tuple(tuple(row.get(name, "") for name in used) for row in rows))

    def narrowed(self) -> _Grid:
        """The same table with values common to all rows moved to the title; what is measured stays in the rows."""
        found = {name: {row[at] for row in self.rows} for at, name in enumerate(self.columns)}
        common = [name for name, cells in found.items() if name not in _KEPT and len(cells) == 1]
        kept = [at for at, name in enumerate(self.columns) if name not in common]
        shared = ", ".join(f"{name} {next(iter(found[name]))}" for name in common)
        title = f"{self.title} ({shared})" if shared else self.title
        return self._of_columns(title, kept)

    def bands(self, columns: int | None) -> list[_Grid]:
        """The same table in bands of columns that fit a terminal; each begins with the columns that distinguish the
        rows."""
        if _DETAIL in self.columns:  # it is wrapped instead
            return [self]
        from ...runtime.terminal.tables import bands

        kept = self.columns.index("figure") + 1 if "figure" in self.columns else 1
        widths = [max(map(len, (name, *self.cells(name)))) + _GAP for name in self.columns]
        found = bands(widths, kept, None if columns is None else columns - _EDGES)
        return [self._of_columns(self.title, band) for band in found]

    def cells(self, name: str) -> tuple[str, ...]:
        """A column."""
        return tuple(row[self.columns.index(name)] for row in self.rows)

    def _of_columns(self, title: str, numbers: Sequence[int]) -> _Grid:
        rows = tuple(tuple(row[at] for at in numbers) for row in self.rows)
        return _Grid(title, tuple(self.columns[at] for at in numbers), rows)


def render(reports: Sequence[Report], form: Format, columns: int | None = None) -> str:
    """Reports in a format; ``columns``: width of the terminal for a table, None if there is no limit."""
    if form == "json":
        if len(reports) > 1:
            raise InputError(f"--format json: holds one run, {len(reports)} are given; choose jsonl or csv")
        return write_json(reports[0])
    if form in ("jsonl", "csv"):
        return write_jsonl(reports) if form == "jsonl" else write_csv(reports)
    texts = [to_table(each, columns) if form == "table" else to_markdown(each) for each in reports]
    return "\n".join(texts)


def to_table(report: Report, columns: int | None = None) -> str:
    """The report as tables for a terminal. One that is wider than ``columns`` continues below with its remaining
    columns, because a figure broken over two lines cannot be read; only details are wrapped. None: no limit."""
    from rich import box  # Markdown does without it
    from rich.console import Console
    from rich.table import Table

    out = io.StringIO()
    width = _WIDE if columns is None else columns
    console = Console(file=out, width=width, force_terminal=False, highlight=False, markup=False, emoji=False)
    for line in _facts(report):
        console.print(line, soft_wrap=columns is None)
    for grid in map(_Grid.narrowed, _grids(report)):
        console.print(grid.title, soft_wrap=columns is None)
        for band in grid.bands(columns):
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
            for name in band.columns:
                cells = band.cells(name)
                right = any(cells) and all(map(_is_number, cells))
                table.add_column(name, justify="right" if right else "left", no_wrap=name != _DETAIL, overflow="fold")
            for row in band.rows:
                table.add_row(*row)
            console.print(table)
    for note in report.notes:
        console.print(f"Note: {note}", soft_wrap=columns is None)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def to_markdown(report: Report) -> str:
    """The report as Markdown tables."""
    parts = ["\n".join(f"- {line}" for line in _facts(report))]
    for grid in _grids(report):
        lines = [grid.columns, tuple("---" for _ in grid.columns), *grid.rows]
        cells = ["| " + " | ".join(cell.replace("|", r"\|") or " " for cell in line) + " |" for line in lines]
        parts.append("\n".join([f"**{grid.title}**", "", *cells]))
    parts += [f"Note: {note}" for note in report.notes]
    return "\n\n".join(parts) + "\n"


def _facts(report: Report) -> list[str]:
    run, machine, bandwidth = report.run, report.run.machine, report.run.bandwidth
    memory = "" if machine.memory_bytes is None else f", {machine.memory_bytes / 2**30:.0f} GiB"
    governor = "" if machine.governor is None else f", governor {machine.governor}"
    load = "" if machine.load_average is None else f", load average {machine.load_average:g} before the run"
    libraries = ("python", "numpy", "onnxruntime", "torch", "transformers")
    others = "" if run.others_percent is None else f", others took {run.others_percent:.1f} % of the cores' time"
    versions = ", ".join(f"{name} {run.versions[name]}" for name in libraries if name in run.versions)
    about = {measured.subject.name: measured.subject for measured in report.measurements}
    threads = f" with {bandwidth.threads} threads" if bandwidth.threads else ""
    return [
        f"{run.created}, commit {run.commit}, seed {run.seed}: {run.command}",
        f"{machine.cpu} ({machine.architecture}), {machine.cores} cores, {run.threads} threads"
        f"{memory}{governor}{load}{others}",
        f"ualm {run.versions.get('ualm', 'unknown')}, {versions}",
        *_gpu(run),
        f"{_BANDWIDTHS[bandwidth.memory]} {bandwidth.best:.1f} GB/s (best of {_readings(bandwidth)} "
        f"{bandwidth.bytes / 2**20:.0f} MiB{threads}, median {bandwidth.median:.1f}{_worst(bandwidth)})",
        *_core_round_trip(run),
        *(_describe(subject) for subject in about.values()),
    ]


def _readings(bandwidth: Bandwidth) -> str:
    """Number of readings; before version 4 of the schema, a pass was a reading."""
    if bandwidth.readings is None:
        return f"{bandwidth.passes} passes over"
    return f"{bandwidth.readings} readings by {bandwidth.kernel}, {bandwidth.passes} passes over"


def _worst(bandwidth: Bandwidth) -> str:
    return "" if bandwidth.worst is None else f", worst {bandwidth.worst:.1f}"


def _core_round_trip(run: Run) -> list[str]:
    found = run.core_round_trip
    if found is None:
        return []
    spread = f"{found.best:.0f} to {found.worst:.0f}, {found.samples} times"
    return [f"between two cores and back {found.median:.0f} ns ({spread})"]


def _gpu(run: Run) -> list[str]:
    if run.dry_run:
        return ["DRY RUN: a rehearsal on the CPU; nothing here is a figure of a GPU"]
    gpu = run.machine.gpu
    if gpu is None:
        return []
    clocks = "".join(f", {name} {value} MHz" for name, value in gpu.clocks_mhz.items())
    driver = "" if gpu.driver is None else f", driver {gpu.driver}"
    cuda = "" if gpu.cuda is None else f", CUDA {gpu.cuda}"
    return [
        f"{gpu.name} (compute capability {gpu.compute_capability}), {gpu.multiprocessors} multiprocessors, "
        f"{gpu.memory_bytes / 2**30:.0f} GiB{driver}{cuda}{clocks}"
    ]


def _describe(subject: Subject) -> str:
    kinds: dict[str, list[str]] = {}
    for role, precision in subject.precisions.items():
        kinds.setdefault(precision, []).append(role)
    precisions = "; ".join(f"{kind}: {', '.join(roles)}" for kind, roles in kinds.items())
    digest = f", digest {subject.digest[:12]}" if subject.digest else ""
    return f"{subject.name}: {subject.engine}{digest} ({precisions})"


def _grids(report: Report) -> list[_Grid]:
    several = len({measured.subject.name for measured in report.measurements}) > 1
    grids = []
    for scenario in dict.fromkeys(measured.scenario for measured in report.measurements):
        rows = [_measured(each, several) for each in report.measurements if each.scenario == scenario]
        grids.append(_Grid.of(scenario, rows))
    for scenario in dict.fromkeys(compared.scenario for compared in report.comparisons):
        found = [each for each in report.comparisons if each.scenario == scenario]
        title = f"{scenario}: {found[0].subject.name} against {found[0].other.name} ({found[0].test})"
        grids.append(_Grid.of(title, [_compared(each) for each in found]))
    if report.checks:
        grids.append(_Grid.of("checks", [_checked(each) for each in report.checks]))
    return grids


def _checked(check: Check) -> dict[str, str]:
    cells = {"stage": check.stage, "check": check.name, "verdict": check.verdict, _DETAIL: check.detail}
    return cells | {"seconds": f"{check.seconds:.1f}"}


def _measured(measured: Measurement, several: bool) -> dict[str, str]:
    summary, traffic = measured.summary, measured.traffic
    cells = {"subject": measured.subject.name} if several else {}
    cells |= _settings(measured.settings) | {"figure": measured.figure, "unit": measured.unit, "n": str(summary.n)}
    cells |= {name: _number(getattr(summary, name)) for name in _PERCENTILES}
    if measured.real_time_factor is not None:
        cells["RTF"] = _number(measured.real_time_factor)
    if measured.outside_percent is not None:
        cells["outside %"] = f"{measured.outside_percent:.2f}"
    if traffic is not None:
        cells |= {
            "body MB": _number(traffic.body_bytes / 1e6),
            "head MB": _number(traffic.head_bytes / 1e6),
            "KV MB": _number(traffic.kv_bytes / 1e6),
            "GB/s": _number(traffic.gb_per_second),
            ("of bandwidth" if traffic.pairs else "of best pass"): f"{100 * traffic.fraction:.1f} %",
            "near its best": _near_best(traffic),
        }
    return cells


def _near_best(traffic: Traffic) -> str:
    """The share over the pairs near the run's best reading, and the number of those pairs."""
    if traffic.near_best is None:
        return ""
    count = f"{traffic.near_best} of {len(traffic.pairs)}"
    return count if traffic.fraction_near_best is None else f"{100 * traffic.fraction_near_best:.1f} % ({count})"


def _compared(compared: Comparison) -> dict[str, str]:
    interval = "" if compared.low is None or compared.high is None else f"{compared.low:.3f} to {compared.high:.3f}"
    return _settings(compared.settings) | {
        "figure": compared.figure,
        "pairs": str(compared.pairs),
        "times faster": f"{compared.speedup:.3f}",
        "95 % interval": interval,
        "p": f"{compared.p:.2g}",
        "verdict": compared.verdict,
    }


def _settings(settings: Mapping[str, Setting]) -> dict[str, str]:
    return {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in settings.items()}


def _number(value: float) -> str:
    """Four digits, more than the accuracy of a timing, and no exponent for numbers of ordinary size."""
    if value == 0 or abs(value) >= 1000:
        return f"{value:.0f}"
    text = f"{value:.4g}"
    return text if "e" not in text else f"{value:.2e}"


def _is_number(text: Any) -> bool:
    try:
        float(text or "0")
    except ValueError:
        return False
    return True
