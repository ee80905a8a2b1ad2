"""The recorded facts about where and how a figure was made."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import ualm.runtime
from ualm.bench.meters.environment import OtherProcesses, command_line, current_load, describe_run, source_commit
from ualm.bench.report.schema import Bandwidth
from ualm.runtime.process.cores import cores

BANDWIDTH = Bandwidth(1, 64, 1, 1.0, 1.0)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "nobody")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "nobody@example.com")
    (tmp_path / "__init__.py").write_text("")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "__init__.py")
    git(tmp_path, "commit", "-q", "-m", "first")
    git(tmp_path, "tag", "-m", "a tag", "v1")
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_commit_is_that_of_the_checkout_and_says_when_it_was_changed(repository):
    module = repository / "__init__.py"
    assert source_commit(module) == "v1"
    module.write_text("changed")
    assert source_commit(module) == "v1-dirty"
    git(repository, "commit", "-q", "-a", "-m", "second")
    assert source_commit(module) == f"v1-1-g{git(repository, 'rev-parse', 'HEAD')[:12]}"


def test_a_package_inside_somebody_elses_repository_is_known_by_its_version(repository):
    package = repository / "site-packages" / "ualm"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    assert source_commit(package / "__init__.py") == f"ualm {ualm.runtime.__version__}"


def test_without_git_the_version_is_told(repository, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert source_commit(repository / "__init__.py") == f"ualm {ualm.runtime.__version__}"


def test_a_package_that_is_run_is_named_as_python_names_it(monkeypatch):
    spec = types.SimpleNamespace(name="ualm.bench.acceptance.__main__", parent="ualm.bench.acceptance")
    monkeypatch.setattr(sys, "argv", ["/somewhere/gpu_acceptance/__main__.py", "--out", "a b"])
    monkeypatch.setitem(sys.modules, "__main__", types.SimpleNamespace(__spec__=spec))
    assert command_line() == "python -m ualm.bench.acceptance --out 'a b'"


def test_a_run_tells_what_is_needed_to_repeat_it(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/ualm", "bench", "decode", "a bundle"])
    run = describe_run(
        seed=3,
        threads=1,
        bandwidth=BANDWIDTH,
        load_average=0.5,
        others_percent=None,
        peers=("torch", "no-such-package"),
    )
    assert run.command == command_line() == "ualm bench decode 'a bundle'"
    assert (run.seed, run.threads, run.machine.load_average) == (3, 1, 0.5)
    assert {"ualm", "python", "numpy", "onnxruntime", "torch"} <= set(run.versions)
    assert run.versions["no-such-package"] == "not installed"
    assert run.created.endswith("+00:00") and run.commit
    assert run.machine.cores == cores() <= len(os.sched_getaffinity(0))
    assert run.machine.memory_bytes and run.machine.cpu


def test_a_system_without_load_average_has_none(monkeypatch):
    monkeypatch.delattr(os, "getloadavg")
    assert current_load() is None


def test_time_that_others_take_is_told_and_ones_own_is_not(tmp_path, monkeypatch):
    hertz = os.sysconf("SC_CLK_TCK")
    mine = [0.0]
    monkeypatch.setattr(os, "times", lambda: (mine[0], 0.0, 0.0, 0.0, 0.0))

    def write(user, system, idle, stolen):
        ticks = [int(hertz * value) for value in (user, 0, system, idle, 0, 0, 0, stolen, 0, 0)]
        (tmp_path / "stat").write_text(f"cpu  {' '.join(map(str, ticks))}\ncpu0 ...\n")

    write(100, 10, 1000, 0)
    others = OtherProcesses(tmp_path / "stat")
    assert others.percent is None  # no time has passed
    write(108, 10, 1012, 0)
    mine[0] = 8.0
    assert others.percent == 0
    write(110, 11, 1016, 3)  # of 30 s in all, 14 were busy, 8 of them with this process
    assert others.percent == pytest.approx(100 * 6 / 30)


def test_a_system_that_does_not_count_time_says_nothing(tmp_path):
    assert OtherProcesses(tmp_path / "none").percent is None
