"""Every file that a comment, a docstring or a page names by its path from the root is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: Where paths are looked for; the tests also name files of others, and some that must not exist.
_ROOMS = ("runtime", "export", "bench", "csrc")
_WRITTEN = {".py", ".pyi", ".h", ".cpp", ".cu", ".md"}
#: A path that begins with a folder of ours, and not within a longer path or an address.
_PATH = re.compile(
    r"(?<![\w./{}$-])(?:runtime|export|bench|csrc|tests|docs|examples)/[\w./-]*\.(?:py|h|cpp|cu|md|json|toml)\b"
)


def named(text: str) -> set[str]:
    return set(_PATH.findall(text))


def texts() -> Iterator[Path]:
    yield from (ROOT / "docs").glob("*.md")
    yield from (path for room in _ROOMS for path in (ROOT / room).rglob("*") if path.suffix in _WRITTEN)


def test_every_path_that_is_named_exists() -> None:
    found = {(text, path) for text in texts() for path in named(text.read_text(encoding="utf-8"))}
    assert len(found) > 20
    assert sorted(f"{text.relative_to(ROOT)}: {path}" for text, path in found if not (ROOT / path).exists()) == []


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("see bench/meters/gpu.py, and (docs/gpu.md).", {"bench/meters/gpu.py", "docs/gpu.md"}),
        ("`csrc/core/layout.h:12`", {"csrc/core/layout.h"}),
        ("https://example.org/docs/operators.md, bench/results/*.json, WORK/export/a.json", set()),
    ],
)
def test_a_path_is_told_from_parts_of_others(text: str, paths: set[str]) -> None:
    assert named(text) == paths
