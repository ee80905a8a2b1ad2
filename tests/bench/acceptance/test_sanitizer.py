"""The kernels under a stand-in for compute-sanitizer: what it finds is told, and what it cannot do is no fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.cuda.sanitizer import stand_in_for_sanitizer
from ualm.bench.acceptance.context import Ground
from ualm.bench.acceptance.findings import Findings
from ualm.bench.acceptance.kernels import sanitizer


def verdict(ground: Ground, tool: str = "memcheck", **named: float) -> tuple[str, str]:
    sanitizer.check_under(tool, ground, found := Findings(tool), **named)
    (check,) = found.checks
    assert check.name == f"kernels under {tool}"
    return check.verdict, check.detail


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_the_kernels_run_under_it(ground: Ground, tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_for_sanitizer(tmp_path / "bin", monkeypatch)
    assert verdict(ground, tool) == ("pass", "nothing found; 18 checks of the kernels hold")
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


@pytest.mark.parametrize(
    ("named", "verdict_", "said"),
    [
        (
            {
                "before": 'echo "========= Invalid __global__ read of size 4 bytes"',
                "summary": 'echo "========= ERROR SUMMARY: 2 errors"',
            },
            "fail",
            "2 found: Invalid __global__ read of size 4 bytes; ERROR SUMMARY: 2 errors",
        ),
        (
            {"summary": 'echo "========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)"'},
            "fail",
            "1 found: ",
        ),
        (
            {"before": 'echo "Error: No supported GPU devices"; exit 1'},
            "skipped",
            "compute-sanitizer gave no summary, status 1: ========= COMPUTE-SANITIZER Error: No supported GPU devices",
        ),
        ({"before": "set -- false"}, "fail", "the kernels ended with status 1"),
        ({"before": "set -- true"}, "fail", "the kernels ended with status 0"),
    ],
)
def test_what_it_finds_or_refuses_is_told(
    ground: Ground,
    named: dict[str, str],
    verdict_: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quick = {"before": "set -- true"} | named
    stand_in_for_sanitizer(tmp_path / "bin", monkeypatch, **quick)
    found, detail = verdict(ground)
    assert found == verdict_ and detail.startswith(said), detail


def test_bits_that_differ_under_it_are_told(ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of rows that the CPU did not draw: the checks fail that compare with it."""
    stand_in_for_sanitizer(tmp_path / "bin", monkeypatch)
    (tmp_path / "other").write_text("nothing")
    other = Ground(tmp_path, 0, True, ground.shim, None, tmp_path / "other")
    found, detail = verdict(other)
    assert found == "fail" and detail.startswith("rows, embeddings, latents, stops: small: ")


def test_one_that_is_slow_is_no_fault(ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_for_sanitizer(tmp_path / "bin", monkeypatch, before="sleep 60")
    assert verdict(ground, patience=1.0) == ("skipped", "was not through after 1 s, at: the start")


def test_without_it_the_stage_says_where_to_get_it(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sanitizer.shutil, "which", lambda name, path: None)
    assert verdict(ground)[0] == "skipped"


def test_it_is_also_found_in_cudas_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "cuda" / "bin"
    place.mkdir(parents=True)
    (place / "compute-sanitizer").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    assert sanitizer._find() == str(place / "compute-sanitizer")
