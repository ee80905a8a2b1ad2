"""How the verbs of ``ualm bench`` load the bench, measure with a live line, and deliver a report.

The bench is imported when a verb runs: the runtime must work without it.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from ....errors import InputError, OutputError, UalmError
from ....files.writing import check_place, replacing_file
from ....process.extras import Extra, install_hint
from ....process.native_module import check_native
from ....process.stopping import raise_interrupt
from ....terminal.live import LiveLine
from ....terminal.report import print_any
from ....terminal.tables import terminal_columns
from ...options import named_or_packaged

_Number = TypeVar("_Number", int, float)


def measure_bundle(
    scenario: Callable[[], Any], request: tuple[Any, ...], form: str | None, output: Path | None, quiet: bool
) -> None:
    """Run a scenario on a bundle: the one that ``request`` begins with, None for the one that comes with ualm."""

    def measure(progress: Callable[[str], None]) -> Any:
        what, (bundle, *others) = scenario(), request
        return bench_module("harness.measure").run_scenario(
            what,
            bench_module("harness.subjects").Request(named_or_packaged(bundle, quiet=quiet), *others, quiet=quiet),
            progress,
        )

    measure_and_deliver(measure, form, output)


def measure_and_deliver(measure: Callable[[Callable[[str], None]], Any], form: str | None, output: Path | None) -> None:
    """Refuse everything that can be refused before anything is measured."""
    chosen = bench_module("report.formats").choose_format(form, output)
    check_writable(output)
    line = LiveLine()
    try:
        report = measure(line.show)
    finally:
        line.hide()
    deliver([report], chosen, output)


def deliver(reports: list[Any], form: str, output: Path | None) -> None:
    """Print in ``form``; with ``output``, write there and print the table."""
    write_rendered(lambda *form: bench_module("report.tables").render(reports, *form), form, output)


def write_rendered(render: Callable[[str, int | None], str], form: str, output: Path | None) -> None:
    """As :func:`deliver`, for ``render`` of a format and the terminal's columns, None for a file."""
    if output is not None:
        text = render(form, None)
        with replacing_file(output) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="")
        form = "table"
    print_any(render(form, terminal_columns()))


def bench_module(module: str, *extras: Extra) -> ModuleType:
    """A module of the bench, which needs ``extras``."""
    check_native()
    try:
        return importlib.import_module(f"ualm.bench.{module}")
    except ImportError as error:
        raise_interrupt(error)
        how = "install it with" if extras else "install ualm again"
        raise UalmError(f"bench cannot be loaded ({error}); {how}: {install_hint(*extras)}") from error


def numbers(option: str, text: str, kind: type[_Number]) -> tuple[_Number, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise InputError(f"{option} {text}: give {what}, separated by commas") from None


def checked_modality(name: str) -> str:
    if name not in ("audio", "text"):
        raise InputError(f"--modality {name}: choose audio or text")
    return name


def check_writable(output: Path | None) -> None:
    if output is None:
        return
    check_place(output)
    try:
        tempfile.TemporaryFile(dir=output.parent).close()
    except OSError as error:
        raise OutputError(
            f"{output}: cannot write here ({error.strerror or error}); choose a writable folder"
        ) from error
