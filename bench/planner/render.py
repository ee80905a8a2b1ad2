"""A plan as a table, Markdown, JSON, JSONL or CSV. Every line of JSONL and CSV is self-contained."""

from __future__ import annotations

import csv
import io
import json
import textwrap
from typing import Any

from ...runtime.terminal.tables import bands
from ..report.formats import Format
from ..report.schema import to_json
from .plan import Plan, PlanRow

NAME, VERSION = "ualm-plan", 1
_GAP = "  "


def render_plan(plan: Plan, form: Format, columns: int | None = None) -> str:
    """The plan in a format; a table wider than ``columns`` continues below with its remaining columns."""
    if form == "json":
        return json.dumps({"schema": NAME, "version": VERSION, **to_json(plan)}, indent=1, allow_nan=False) + "\n"
    if form == "jsonl":
        return "".join(json.dumps(line, allow_nan=False) + "\n" for line in _lines(plan))
    if form == "csv":
        lines = [{**line, "notes": "; ".join(line["notes"])} for line in _lines(plan)]
        out = io.StringIO()
        writer = csv.DictWriter(out, lines[0] if lines else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        return out.getvalue()
    cells = [_cells(row, plan.frame_rate) for row in plan.rows]
    grid = [list(cells[0]), *(list(row.values()) for row in cells)] if cells else []
    if form == "markdown":
        head, *body = grid or [[""]]
        table = "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *body])
        return "\n\n".join(["\n".join(f"- {line}" for line in _facts(plan)), table, *_notes(plan)]) + "\n"
    facts, notes = _facts(plan), _notes(plan)
    if columns is not None:
        facts, notes = _wrapped(facts, columns), _wrapped(notes, columns)
    return "\n".join([*facts, "", *_table(grid, columns), "", *notes]) + "\n"


def _wrapped(lines: list[str], columns: int) -> list[str]:
    """Wrap sentences to a terminal; a URL is never broken."""
    words = textwrap.TextWrapper(columns, break_on_hyphens=False, break_long_words=False)
    return [line for each in lines for line in words.wrap(each)]


def _table(grid: list[list[str]], columns: int | None) -> list[str]:
    """Lines of the table whose first row is its header; each band of columns begins with the precision and the rows."""
    if not grid:
        return []
    widths = [max(len(row[at]) for row in grid) for at in range(len(grid[0]))]
    found = []
    for band in bands([width + len(_GAP) for width in widths], 2, columns):
        found.append([_GAP.join(row[at].rjust(widths[at]) for at in band) for row in grid])
    return [line for number, lines in enumerate(found) for line in ([""] if number else []) + lines]


def _lines(plan: Plan) -> list[dict[str, Any]]:
    device = {f"device_{name}": value for name, value in to_json(plan.device).items()}
    common = {
        "schema": NAME,
        "version": VERSION,
        "bundle": plan.bundle,
        "digest": plan.digest,
        **device,
        "branches": plan.branches,
        "frame_rate": plan.frame_rate,
        "bound": plan.bound,
    }
    return [{**common, **to_json(row), "notes": list(plan.notes)} for row in plan.rows]


def _facts(plan: Plan) -> list[str]:
    device = plan.device
    guided = "guidance on, two branches" if plan.branches == 2 else "guidance off, one branch"
    memory = "shared with the processor" if device.shared else "of its own"
    return [
        f"{plan.bundle} on {device.name}: {plan.bound}",
        f"{device.title}: {device.bandwidth:g} GB/s, {device.memory_gib:g} GiB {memory}, compute capability "
        f"{device.sm} ({device.source})",
        f"{plan.frame_rate:g} frames are a second of sound; {guided}; digest {plan.digest[:12]}",
    ]


def _notes(plan: Plan) -> list[str]:
    return [f"Note: {note}" for note in plan.notes]


def _cells(row: PlanRow, rate: float) -> dict[str, str]:
    read = row.body_bytes + row.head_bytes + row.kv_bytes + row.codec_bytes
    real_time = "possible" if row.real_time else "no: too slow" if row.real_time_percent > 100 else "no: too large"
    return {
        "precision": f"{row.precision} (this bundle)" if row.own else row.precision,
        "rows held": str(row.context),
        "MB a frame": f"{read / 1e6:.1f}",
        "of it KV": f"{row.kv_bytes / 1e6:.1f}",
        "ms, at least": f"{row.ms:.2f}",
        "frames/s, at most": f"{row.frames_per_second:.0f}",
        f"bandwidth for {rate:g}/s": f"{row.real_time_percent:.1f} %",
        "weights GiB": f"{row.weight_bytes / 2**30:.2f}",
        "KV GiB": f"{row.kv_memory_bytes / 2**30:.2f}",
        "memory GiB": f"{row.memory_bytes / 2**30:.2f}",
        "fits": "yes" if row.fits else "no",
        "real time": real_time,
    }
