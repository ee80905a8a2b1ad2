"""THIRD_PARTY_NOTICES.md names every dependency, none that is gone, and every file derived from others' work."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[2]
NOTICE = (ROOT / "THIRD_PARTY_NOTICES.md").read_text(encoding="utf-8")
with open(ROOT / "pyproject.toml", "rb") as file:
    PROJECT = tomllib.load(file)


def name_of(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9_.-]+", requirement)
    assert found is not None, requirement
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def wanted() -> dict[str, set[str]]:
    """Name of each dependency -> what needs it: "always", "the build", an extra, or "tests"."""
    found: dict[str, set[str]] = {}
    groups = {"always": PROJECT["project"]["dependencies"], "the build": PROJECT["build-system"]["requires"]}
    for extra, requirements in PROJECT["project"]["optional-dependencies"].items():
        groups["tests" if extra == "test" else f"`{extra}`"] = requirements
    for who, requirements in groups.items():
        for requirement in requirements:
            if name_of(requirement) != "ualm":
                found.setdefault(name_of(requirement), set()).add(who)
    return found


def rows(heading: str) -> list[list[str]]:
    """Cells of the table below a heading."""
    section = NOTICE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_dependency_is_named_once_with_a_licence_and_none_that_is_gone():
    named = rows("Installed by pip")
    assert sorted(name_of(row[0]) for row in named) == sorted(wanted())
    for row in named:
        assert len(row[2]) > 3 and len(row[3]) > 2, row


def test_it_says_who_wants_it():
    for name, by, *_ in rows("Installed by pip"):
        assert wanted()[name_of(name)] <= {each.strip() for each in by.split(",")}, name


def test_what_derives_from_others_is_there():
    places = [place for row in rows("In the repository and in the wheel") for place in re.findall(r"`([^`]+)`", row[1])]
    files = [place for place in places if not place.startswith(("ualm/", "_"))]
    assert len(files) == 4
    for place in files:
        assert (ROOT / place).exists(), place
    binary = {".npz", ".flac", ".wav", ".safetensors", ".sf2", ".sf3", ".bin", ".pt"}
    kept = [
        path.relative_to(ROOT).as_posix()
        for room in ("runtime", "export", "bench", "csrc", "docs", "tests")
        for path in (ROOT / room).rglob("*")
        if path.suffix in binary
    ]
    own = "bench/acceptance/kernels/expected.npz"  # what our sampler draws, from random numbers
    assert [path for path in kept if not path.startswith((own, *files))] == []


def test_it_goes_into_the_wheel_with_the_licence():
    assert PROJECT["project"]["license-files"] == ["LICENSE", "THIRD_PARTY_NOTICES.md"]
