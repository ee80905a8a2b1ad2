"""Each stage in a process of its own: one that hangs or crashes is named, and what it had found by then is kept."""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

import pytest

from ualm.bench.acceptance import supervise
from ualm.bench.acceptance.child import StageProcess
from ualm.bench.acceptance.context import Ground
from ualm.bench.acceptance.findings import Findings
from ualm.bench.acceptance.process import run_process
from ualm.bench.acceptance.request import Exchange, Request
from ualm.bench.acceptance.stages import STAGES, Stage
from ualm.runtime import EngineError

#: Runs a stage as its process does, after one of its checks passed and another began.
CHILD = """
import os, sys, time
from pathlib import Path
from ualm.bench.acceptance.child import StageProcess
from ualm.bench.acceptance.request import Exchange
from ualm.bench.acceptance.stages import STAGES, Stage

def stage(ground, found):
    found.check("one", lambda: "well")
    with found.checking("two"):
        ground.progress("trial 3 of 9")
        {0}

STAGES["kernels"] = Stage("", stage, 9.0)
StageProcess(Exchange(Path(sys.argv[1]))).run()
"""


def checks_of(ground: Ground, does: str, monkeypatch: pytest.MonkeyPatch, limit: float, **named: str) -> list[tuple]:
    monkeypatch.setattr(supervise, "python", lambda module, folder: [sys.executable, "-c", CHILD.format(does), folder])
    done = supervise.run_stage("kernels", ground, limit, **named)
    assert done.report.run.dry_run and len(done.report.notes) == 1
    return [(check.name, check.verdict, check.detail) for check in done.report.checks]


def test_a_stage_that_hangs_is_ended_and_named(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    found = checks_of(ground, "time.sleep(100)", monkeypatch, 6.0)
    assert found == [
        ("one", "pass", "well"),
        ("the stage as a whole", "fail", "ended after 6 s, its limit, at: two: trial 3 of 9"),
    ]


def test_a_stage_that_the_call_has_no_time_for_is_no_fault(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    found = checks_of(ground, "time.sleep(100)", monkeypatch, 6.0, why="when the 3 minutes were over")
    assert found[1][1:] == ("skipped", "ended after 6 s, when the 3 minutes were over, at: two: trial 3 of 9")


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("os.kill(os.getpid(), 11)", "its process ended with status -11, at: two: trial 3 of 9; it printed nothing"),
        ("print('out of it', flush=True); os._exit(3)", "status 3, at: two: trial 3 of 9; out of it"),
        ("raise KeyError('a mistake of ours')", "status 1, at: two: trial 3 of 9; .*KeyError: 'a mistake of ours'"),
    ],
)
def test_a_stage_that_crashes_is_named(ground: Ground, does: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, whole = checks_of(ground, does, monkeypatch, 60.0)
    assert one[1] == "pass" and whole[:2] == ("the stage as a whole", "fail")
    assert re.search(said, whole[2]), whole[2]


def test_a_stage_that_ends_well_has_its_checks_alone(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks_of(ground, "pass", monkeypatch, 60.0) == [("one", "pass", "well"), ("two", "pass", "")]


def test_what_a_stage_started_ends_with_it(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    grandchild = f"import time, pathlib; time.sleep(1.5); pathlib.Path({str(mark)!r}).touch()"
    starts = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {grandchild!r}]); time.sleep(100)"
    ended = run_process([sys.executable, "-c", starts], tmp_path / "output", 0.7)
    assert ended.status is None and 0.6 < ended.seconds < 5
    time.sleep(1.5)
    assert not mark.exists()


def test_no_stage_runs_where_none_can(ground: Ground, tmp_path: Path) -> None:
    exchange = Exchange(tmp_path)
    exchange.ask(Request.of("limits", Ground(work=tmp_path, seed=0, dry_run=True, shim=tmp_path / "none")))
    StageProcess(exchange).run()
    assert exchange.kept() is None and "no such file; docs/gpu.md says how to build one" in (exchange.refusal or "")
    with pytest.raises(EngineError, match="says how to build one"):
        supervise.run_stage("limits", Ground(work=tmp_path, seed=0, dry_run=True, shim=tmp_path / "none"), 60.0)


def test_what_a_stage_finds_is_kept_check_by_check(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, str | None]] = []
    exchange = Exchange(tmp_path)

    def look(ground: Ground, found: Findings) -> None:
        for name in ("one", "two"):
            with found.checking(name):
                report = exchange.kept()
                assert report is not None
                seen.append((len(report.checks), exchange.at))

    monkeypatch.setitem(STAGES, "limits", Stage("", look, 9.0))
    exchange.ask(Request.of("limits", ground))
    StageProcess(exchange).run()
    assert seen == [(0, "one"), (1, "two")]
    report = exchange.kept()
    assert report is not None and [check.name for check in report.checks] == ["one", "two"]
    assert report.run.bandwidth.readings == 3 and report.run.versions["numpy"]


def test_a_request_travels_whole(tmp_path: Path) -> None:
    ground = Ground(tmp_path, 7, True, tmp_path / "shim", tmp_path / "bundle", tmp_path / "expected")
    exchange = Exchange(tmp_path)
    exchange.ask(Request.of("kernels", ground, few=True))
    asked = exchange.asked()
    assert asked.stage == "kernels"
    made = asked.ground(ground.progress)
    assert made == Ground(tmp_path, 7, True, tmp_path / "shim", tmp_path / "bundle", tmp_path / "expected", True)
    assert made.short and not Ground(tmp_path, 0, False).short and os.path.isabs(asked.work)
