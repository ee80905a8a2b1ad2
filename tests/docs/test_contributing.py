"""CONTRIBUTING.md names commands that exist, and the fast tier is what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from support import fast_tier

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
with open(ROOT / "pyproject.toml", "rb") as file:
    PROJECT = tomllib.load(file)


def tiers() -> dict[str, str]:
    """Name and command of each tier in the table."""
    return dict(re.findall(r"^\| ([\w ]+) \| `([^`]+)` \|", PAGE, re.MULTILINE))


# ---- tiers ----


def test_the_tiers_are_those_of_pytest_and_of_ci() -> None:
    found = tiers()
    assert list(found) == ["fast", "default", "full", "fuzz", "all that CI does"]
    marks = {mark.partition(":")[0] for mark in PROJECT["tool"]["pytest"]["ini_options"]["markers"]}
    assert {found[mark].split(" -m ")[-1].split()[0] for mark in marks} == marks == {"full", "fuzz"}
    assert found["default"] in CI and found["fuzz"] in CI and found["default"] in (ROOT / "README.md").read_text()


def test_every_file_of_the_fast_tier_exists_once() -> None:
    assert len(set(fast_tier.FILES)) == len(fast_tier.FILES)
    for name in fast_tier.FILES:
        assert (fast_tier.TESTS / name).is_file() and fast_tier.holds(fast_tier.TESTS / name), name
    assert not fast_tier.holds(Path(__file__).with_name("test_examples.py"))


def test_a_tier_that_takes_longer_names_its_slowest_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_tier, "_seconds", fast_tier.Counter({"a.py": 1.0, "slow.py": 70.0}))
    assert fast_tier.over_limit(fast_tier.LIMIT) is None
    assert "slow.py (70 s), a.py (1 s)" in str(fast_tier.over_limit(fast_tier.LIMIT + 1))


def test_the_fast_tier_imports_no_other_file() -> None:
    done = pytest_in_a_process("--fast", "--collect-only", "-q", "tests/runtime", "tests/docs", "tests/parity")
    files = {line.partition("::")[0].removeprefix("tests/") for line in done.stdout.splitlines() if "::" in line}
    assert files == {name for name in fast_tier.FILES if name.startswith(("runtime/", "docs/", "parity/"))}, done.stdout
    for name, parameters in fast_tier.PARAMETERS.items():
        found = [line.partition("[")[2] for line in done.stdout.splitlines() if line.startswith(f"tests/{name}::")]
        assert {part for each in found for part in re.split(r"[\]-]", each)} >= set(parameters)
        assert all(any(parameter in each for parameter in parameters) for each in found), found


@pytest.mark.full
def test_the_fast_tier_keeps_its_minute() -> None:
    command = tiers()["fast"].split()
    assert command[1:3] == ["-m", "pytest"] and f"{fast_tier.LIMIT:.0f} s of one slow core" in PAGE
    began = time.monotonic()
    done = pytest_in_a_process(*command[3:])
    assert done.returncode == 0 and time.monotonic() - began < 2 * fast_tier.LIMIT, done.stdout


def pytest_in_a_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


# ---- tools ----


def test_hooks_run_what_ci_runs_with_the_tools_of_the_environment() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    (repository,) = config["repos"]
    assert repository["repo"] == "local"
    entries = {hook["id"]: hook["entry"] for hook in repository["hooks"]}
    assert list(entries) == ["ruff-check", "ruff-format", "mypy"]
    assert {hook["language"] for hook in repository["hooks"]} == {"system"}  # no separate environment or version
    wanted = {re.split(r"[<>=]", each)[0] for each in PROJECT["project"]["optional-dependencies"]["test"]}
    assert {"ruff", "mypy"} <= wanted
    assert entries["mypy"] == ".ci/types" and os.access(ROOT / ".ci" / "types", os.X_OK)
    for entry in entries.values():
        assert re.search(rf"^{re.escape(entry.removesuffix(' --force-exclude'))}( |$)", CI, re.MULTILINE), entry
    types = (ROOT / ".ci" / "types").read_text(encoding="utf-8").splitlines()
    assert {".venv/bin/mypy", ".venv/bin/mypy examples"} <= set(types)


# ---- what has changed ----


def test_the_changelog_is_of_this_version_and_keeps_its_form() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[([^\]]+)\](?: - \d{4}-\d\d-\d\d)?$", text, re.MULTILINE)
    assert versions and versions[0] == "Unreleased" and text.count("\n## ") == len(versions)
    number = PROJECT["project"]["version"]
    assert number in versions or f"version {number}" in text.partition("## [Unreleased]")[2].partition("\n## ")[0]
    kinds = re.findall(r"^### (.+)$", text, re.MULTILINE)
    assert kinds and set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
