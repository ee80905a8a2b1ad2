"""The acceptance run on a machine that has numpy, ualm's compiled modules and a driver, and nothing else of ualm's."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from support.cuda.bare import BLOCKED, make_bare
from support.cuda.shim import load_shim
from ualm.bench.acceptance.findings import WHOLE
from ualm.bench.acceptance.stages import of_call
from ualm.bench.report.formats import read_report


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bare(tmp_path_factory.mktemp("bare") / "venv")


def run(python: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([python, "-I", *map(str, arguments)], capture_output=True, text=True)


def test_nothing_else_can_be_imported_there(bare: Path) -> None:
    tried = f"""
import importlib, ualm.runtime._native, numpy
for name in {BLOCKED!r}:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(name)
"""
    assert run(bare, "-c", tried).returncode == 0


def test_both_calls_are_rehearsed_there(bare: Path, tmp_path: Path) -> None:
    """What needs only ualm passes, and everything else is skipped with what it lacks."""
    out = tmp_path / "out"
    for call in (1, 2):
        done = run(
            bare, "-m", "ualm.bench.acceptance", "--dry-run", "--shim", load_shim().__file__, "--out", out,
            "--call", call,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    assert "| kernels | head, int8 | pass |" in done.stdout and "DRY RUN" in done.stdout
    (report,) = read_report(out / WHOLE)
    found = {stage: {check.verdict for check in report.checks if check.stage == stage} for stage in of_call(None)}
    assert found.pop("limits") == found.pop("kernels") == {"pass"}
    assert set(map(frozenset, found.values())) == {frozenset({"skipped"})}
    reasons = {check.stage: check.detail for check in report.checks}
    assert reasons["loop"] == "needs soxr, which is not installed"
    assert reasons["published"].startswith("torch cannot be loaded (No module named 'torch')")
    assert "compute-sanitizer was not found" in reasons["racecheck"]
    assert report.run.versions["soundfile"] == report.run.versions["torch"] == "not installed"
    assert report.run.versions["numpy"][0].isdigit()


def test_what_the_cpu_draws_is_made_there_too(bare: Path, tmp_path: Path) -> None:
    done = run(bare, "-m", "ualm.bench.acceptance", "prepare", "-o", tmp_path / "none" / "a.npz")
    assert done.returncode == 1 and "does not exist" in done.stderr
    done = run(bare, "-m", "ualm.bench.acceptance", "prepare", "--help")
    assert done.returncode == 0 and "needs no GPU" in " ".join(done.stdout.split())
