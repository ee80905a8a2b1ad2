"""Selectors: short names for values in ``bench/results``, and sums, differences and ratios of them.

``bench/results/README.md`` has the language. A :class:`Value` keeps its unit, so that 2884.9 ms may be quoted as 2.9 s.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from ualm.bench.report.formats import read_report
from ualm.bench.report.schema import Comparison, Measurement, Report
from ualm.bench.report.statistics import Summary
from ualm.runtime.errors import InputError

#: Units, each with what it measures and its size. A page may convert a value to any unit of its kind.
UNITS: Mapping[str, tuple[str, float]] = {
    **dict.fromkeys(("s", "second", "seconds"), ("time", 1.0)),
    **dict.fromkeys(("ms", "milliseconds"), ("time", 1e-3)),
    "ns": ("time", 1e-9),
    **dict.fromkeys(("", "1", "x", "times", "fold", "RTF"), ("ratio", 1.0)),
    **dict.fromkeys(("%", "percent"), ("ratio", 0.01)),
    "GB/s": ("bandwidth", 1e9),
    **dict.fromkeys(("nat", "nats"), ("information", 1.0)),
    "dB": ("level", 1.0),
    "B": ("bytes", 1.0),
    **{f"{prefix}B": ("bytes", 1000.0**power) for power, prefix in enumerate("kMG", 1)},
    **{f"{prefix}iB": ("bytes", 1024.0**power) for power, prefix in enumerate("KMG", 1)},
}
#: Fields that only a comparison has; naming one of these selects among the comparisons.
COMPARED = {field.name for field in fields(Comparison)} - {field.name for field in fields(Measurement)}

#: How many alternatives an error names for a selector.
_SHOWN = 4
_FIGURE = r":(?P<figure>[\w.]+)(?:\[(?P<where>[^\]]*)\])?(?::(?P<value>[\w.]+))?"
_SELECTOR = re.compile(r"(?P<file>[\w.-]+)" + _FIGURE)
_UNSCOPED = re.compile(r"(?<![\w.\]-])" + _FIGURE)
_SCOPE = re.compile(r"(?P<file>[\w.-]+)(?:\[(?P<where>[^\]]*)\])?")
_OPERATIONS: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class SelectorError(ValueError):
    """A marker that names nothing, or more than one value; the message says what exists."""


@dataclass(frozen=True)
class Value:
    """``number`` in ``unit``."""

    number: float
    unit: str

    @property
    def kind(self) -> str:
        return UNITS[self.unit][0] if self.unit in UNITS else self.unit

    def to(self, unit: str) -> float:
        """The number converted to another unit of the same kind."""
        if unit == self.unit:
            return self.number
        if unit not in UNITS or self.kind != UNITS[unit][0]:
            raise SelectorError(f"it is a value in {self.unit!r}, and the page has {unit!r}")
        return self.number * (UNITS[self.unit][1] / UNITS[unit][1])

    def __add__(self, other: Value) -> Value:
        return Value(self.number + other.to(self.unit), self.unit)

    def __sub__(self, other: Value) -> Value:
        return Value(self.number - other.to(self.unit), self.unit)

    def __mul__(self, other: Value) -> Value:
        if self.kind == "ratio":
            return Value(self.to("") * other.number, other.unit)
        return Value(self.number * other.to(""), self.unit)

    def __truediv__(self, other: Value) -> Value:
        if other.kind == "ratio":
            return Value(self.number / other.to(""), self.unit)
        return Value(self.number / other.to(self.unit), "")


def evaluate(expression: str, folder: Path) -> Value:
    """The value of a marker's expression over the files of ``folder``; raises :class:`SelectorError` if it has none."""
    found: list[Value] = []

    def name(match: re.Match[str]) -> str:
        found.append(_select(match, folder))
        return f"v{len(found) - 1}"

    plain = _SELECTOR.sub(name, expression)
    if not found:
        raise SelectorError("it names no value as FILE:FIGURE[WHERE]:STATISTIC")
    try:
        return _compute(ast.parse(plain.strip(), mode="eval").body, found)
    except SyntaxError:
        raise SelectorError("it is not a selector, nor sums and ratios of selectors") from None


def scoped(expression: str, scope: str | None) -> str:
    """``expression`` with the file and the filters of ``scope``, FILE[WHERE], added to each selector without a file."""
    if scope is None or not (outer := _SCOPE.fullmatch(scope)):
        return expression

    def completed(match: re.Match[str]) -> str:
        where = ";".join(filter(None, (outer["where"], match["where"])))
        return f"{outer['file']}:{match['figure']}" + (f"[{where}]" if where else "") + f":{match['value'] or 'p50'}"

    return _UNSCOPED.sub(completed, expression)


def _compute(node: ast.expr, found: list[Value]) -> Value:
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        result: Value = _OPERATIONS[type(node.op)](_compute(node.left, found), _compute(node.right, found))
        return result
    if isinstance(node, ast.Name) and re.fullmatch(r"v\d+", node.id):
        return found[int(node.id[1:])]
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return Value(float(node.value), "")
    raise SelectorError(f"{ast.unparse(node)} is not a selector, nor a number, + - * /")


@cache
def _read(file: Path) -> Report:
    try:
        (report,) = read_report(file)
    except InputError as error:
        raise SelectorError(str(error)) from error
    return report


def _select(match: re.Match[str], folder: Path) -> Value:
    file, figure, where, value = match["file"], match["figure"], match["where"], match["value"]
    report = _read(folder / f"{file}.json")
    if figure.startswith("run."):
        return _value(report, figure)
    value = value or "p50"
    compared = value.split(".")[0] in COMPARED
    all_of: tuple[Any, ...] = report.comparisons if compared else report.measurements
    filters = [_filter(each) for each in where.split(";")] if where else []
    fitting = [each for each in all_of if each.figure == figure and all(_fits(each, *pair) for pair in filters)]
    if len(fitting) != 1:
        near = fitting or [each for each in all_of if each.figure == figure]
        there = [_describe(each) for each in near[:_SHOWN]] or sorted({each.figure for each in all_of})
        raise SelectorError(f"{len(fitting)} values are {match[0]}; {file}.json has {', '.join(there)}")
    return _value(fitting[0], value)


def _filter(text: str) -> tuple[str, str]:
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals:
        raise SelectorError(f"[{text}] is not NAME=VALUE")
    return name, value


def _facts(record: Any) -> dict[str, str]:
    """The facts that distinguish a record from others."""
    facts = {"scenario": record.scenario, "subject": record.subject.name, "engine": record.subject.engine}
    if isinstance(record, Comparison):
        facts["other"] = record.other.name
    return facts | {
        name: f"{each:g}" if isinstance(each, float) else str(each) for name, each in record.settings.items()
    }


def _fits(record: Any, name: str, value: str) -> bool:
    return _facts(record).get(name) == value


def _describe(record: Any) -> str:
    return f"{record.figure}[{';'.join(f'{name}={value}' for name, value in _facts(record).items())}]"


def _value(record: Any, path: str) -> Value:
    """The number at a path of fields; a statistic needs no ``summary.`` prefix."""
    statistic = isinstance(record, Measurement) and path in {field.name for field in fields(Summary)}
    place = record.summary if statistic else record
    for name in path.split("."):
        if not hasattr(place, name):
            raise SelectorError(f"{path}: {type(place).__name__} has no {name!r}, but {_names(place)}")
        place = getattr(place, name)
    if isinstance(place, bool) or not isinstance(place, (int, float)):
        raise SelectorError(f"{path} is {place!r}, no number")
    return Value(float(place), record.unit if statistic and path != "n" else _unit(path))


def _names(record: Any) -> str:
    return ", ".join(vars(record)) if hasattr(record, "__dict__") else repr(record)


def _unit(path: str) -> str:
    """The unit of a field other than a statistic, by its name."""
    name = path.split(".")[-1]
    if name.endswith("percent"):
        return "%"
    if name.endswith("bytes"):
        return "B"
    if name == "gb_per_second" or re.match(r"run\.bandwidth\.(?!threads|passes)", path):
        return "GB/s"
    if re.match(r"run\.core_round_trip\.(?!samples)", path):
        return "ns"
    return ""
