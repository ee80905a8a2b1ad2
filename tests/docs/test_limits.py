"""The tables of docs/limits.md name existing constants with their values, and leave none out."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "limits.md").read_text(encoding="utf-8")
_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_NUMBER = re.compile(r"(\d[\d,]*)(?:\^(\d+))?( - 1)?(?: ([KMG]iB))?")


def listed() -> list[tuple[list[str], str, str]]:
    """For each row that names constants: their full names, the cell with their values, and the whole row."""
    found = []
    for line in PAGE.splitlines():
        full = re.findall(r"`((?:runtime|export)(?:\.\w+)+\.[A-Z_]+|[A-Z][A-Z_]{3,})`", line)
        if not line.startswith("|") or not any("." in name for name in full):
            continue
        names, module = [], ""
        for name in full:
            module = name.rpartition(".")[0] or module
            names.append(name if "." in name else f"{module}.{name}")
        found.append((names, line.split("|")[2], line))
    return found


def numbers(text: str) -> list[int]:
    """``256 KiB``, ``10,000`` and ``2^31 - 1`` as numbers."""
    found = []
    for digits, power, less, unit in _NUMBER.findall(text):
        value = int(digits.replace(",", ""))
        found.append((value ** int(power or 1) - bool(less)) * _UNITS.get(unit, 1))
    return found


def values(name: str) -> list[int]:
    """The limits in a constant; several numbers for a mapping."""
    module, _, constant = name.rpartition(".")
    value = getattr(importlib.import_module(f"ualm.{module}"), constant)
    return list(value.values()) if isinstance(value, dict) else [value]


def test_every_constant_has_the_value_that_is_written() -> None:
    rows = listed()
    assert len(rows) > 20
    for names, cell, row in rows:
        assert sorted(numbers(cell)) == sorted(value for name in names for value in values(name)), row


def test_no_limit_on_a_file_is_left_out() -> None:
    known = {name for names, _, _ in listed() for name in names}
    found = set()
    for file in (*(ROOT / "runtime").rglob("*.py"), *(ROOT / "export").rglob("*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.Assign):
                continue
            for target in ast.walk(node.targets[0]):
                if isinstance(target, ast.Name) and target.id.startswith("MOST_"):
                    found.add(f"{'.'.join(file.relative_to(ROOT).with_suffix('').parts)}.{target.id}")
    assert len(found) > 25
    assert found - ELSEWHERE <= known


#: Limits that do not concern input from outside.
ELSEWHERE = {"export.targets.tensorrt.parts.MOST_FRAMES"}
