"""ualm is on no package index: every hint to install an extra gives a command that takes it from here."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import get_args

import pytest

from ualm.runtime.process.extras import Extra, install_hint

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("runtime", "export", "bench", "csrc", "docs", "tests", ".ci", "*.md", "*.toml", "*.txt")
#: Takes a package called ualm from wherever pip looks: ``pip install ualm``, and an extra of it after any option.
_FROM_AN_INDEX = re.compile(r"pip3? install(?: +-\S+)* +[\"'\\]*ualm(?![\w.-])|pip3? install[^\n]*[\"'` ,]ualm\[")
_EXTRAS = re.compile(r"pip3? install[^\n]*?[\"'](?:\.|WHEEL)\[([\w,-]+)\]")


def texts() -> dict[str, str]:
    """The texts of this project for people, by path."""
    files = [
        file
        for room in ROOMS
        for place in ROOT.glob(room)
        for file in ([place] if place.is_file() else place.rglob("*"))
    ]
    kinds = {".py", ".md", ".toml", ".txt", ".cmake", ".cpp", ".cu", ".h", ".cuh", ""}
    return {
        str(file.relative_to(ROOT)): file.read_text(encoding="utf-8")
        for file in files
        if file.is_file() and file.suffix in kinds and file != Path(__file__)
    }


def declared() -> set[str]:
    with open(ROOT / "pyproject.toml", "rb") as file:
        return set(tomllib.load(file)["project"]["optional-dependencies"])


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ('pip install "ualm[plot]"', True),
        ("pip install -q ualm", True),
        (".venv/bin/pip install --upgrade 'ualm[a,b]'", True),
        ('`pip install "."`, for a run `ualm[export]`', True),
        ('pip install ".[plot]"', False),
        ("pip install -q . && .venv/bin/ualm generate", False),
        ("pip install ualm-0.1.0-py3-none-any.whl", False),
        ("build/pip install build/base/*.whl", False),
    ],
)
def test_what_counts_as_a_package_of_an_index(text, taken):
    assert bool(_FROM_AN_INDEX.search(text)) == taken


def test_no_text_takes_ualm_from_an_index():
    found = texts()
    assert len(found) > 200 and {"README.md", "runtime/cli/plot.py", "docs/tensorrt.md", ".ci/run"} <= set(found)
    assert [
        (name, line) for name, text in found.items() for line in text.splitlines() if _FROM_AN_INDEX.search(line)
    ] == []


def test_every_extra_that_is_named_exists():
    named = {extra for text in texts().values() for found in _EXTRAS.findall(text) for extra in found.split(",")}
    assert {"export", "plot", "play", "tensorrt-rtx", "test"} <= named
    assert named | set(get_args(Extra)) <= declared()


def test_the_hint_is_true_for_a_checkout_and_for_a_wheel():
    assert install_hint("plot") == (
        'pip install ".[plot]" in a checkout of ualm, or pip install "WHEEL[plot]" with the file of its wheel'
    )
    assert install_hint("export", "tensorrt-rtx").count("[export,tensorrt-rtx]") == 2
    assert 'pip install "."' in install_hint()
