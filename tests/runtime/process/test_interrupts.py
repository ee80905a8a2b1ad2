"""Ctrl-C while a library is loaded: a module in C may turn it into an ImportError, which must not be taken for a real
one."""

from __future__ import annotations

import ast
import importlib.abc
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

from ualm.runtime import EngineError
from ualm.runtime.cli.verbs import compare as cli_compare
from ualm.runtime.process.native_module import native_problem

Command = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).resolve().parents[3]
SOURCES = sorted(file for room in ("runtime", "export", "bench") for file in (ROOT / room).rglob("*.py"))


class Interrupted(importlib.abc.MetaPathFinder):
    """Finds one module, whose initialisation in C was interrupted by Ctrl-C."""

    def __init__(self, name: str) -> None:
        self._name = name

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self._name:
            return None
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as stop:
            raise ImportError("numpy._core.multiarray failed to import") from stop


def interrupt(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupted(name), *sys.meta_path])


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("ualm.bench.compare", ("compare", "A", "B")),
        ("ualm.runtime._native", ("compare", "A", "B")),
        ("ualm.bench.scenarios.decode", ("bench", "decode", "BUNDLE")),
        ("ualm.export.run.recipe", ("bench", "export", "RUN")),
        ("ualm.export.arguments", ("export", "RUN", "-o", "made")),
    ],
    ids=str,
)
def test_it_is_no_library_that_is_missing(
    ualm: Command, monkeypatch: pytest.MonkeyPatch, module: str, command: tuple[str, ...]
) -> None:
    monkeypatch.delitem(sys.modules, "ualm.bench.scenarios.export", raising=False)
    interrupt(monkeypatch, module)
    assert ualm(*command) == (130, "", "")


def test_nor_a_module_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(monkeypatch, "ualm.runtime._native")
    with pytest.raises(KeyboardInterrupt):
        native_problem()


def test_compare_says_that_the_compiled_module_is_missing(ualm: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise EngineError("ualm's compiled module cannot be loaded")

    monkeypatch.setattr(cli_compare, "check_native", missing)
    assert ualm("compare", "A", "B") == (1, "", "ualm: ualm's compiled module cannot be loaded\n")


def test_whoever_catches_an_import_error_looks_for_one() -> None:
    handlers = [
        (file, node)
        for file in SOURCES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ExceptHandler) and node.type is not None and "ImportError" in ast.unparse(node.type)
    ]
    assert len(handlers) > 15
    lacking = [
        f"{file.relative_to(ROOT)}:{handler.lineno}"
        for file, handler in handlers
        if ast.unparse(handler.body[0]) != f"raise_interrupt({handler.name})"
    ]
    assert not lacking
