from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from support import fast_tier
from support.runs import Run, make_run
from ualm.export.bundle import export_run
from ualm.runtime.bundle import packaged
from ualm.runtime.cli import main as cli

torch.set_num_threads(1)
# a shell ignores interrupts in what it starts in the background, and the programs that tests start would inherit it
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# the same examples in every run, so that a test fails because of a change and not by chance
# (--hypothesis-profile=default looks for new ones)
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="only the fast tier, see CONTRIBUTING.md")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Files of other tiers are not even imported: some load large libraries."""
    return True if config.getoption("fast") and not fast_tier.holds(collection_path) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("fast"):
        fast_tier.deselect(items, config)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.getoption("fast") and not session.config.option.collectonly:
        fast_tier.finish(session)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    fast_tier.count(report)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A tiny random training run; read-only, copy it before changing anything."""
    return make_run(tmp_path_factory.mktemp("tiny") / "run")


@pytest.fixture(scope="session")
def tiny_bundle(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of ``tiny_run``; read-only, copy it before changing anything."""
    return export_run(tiny_run.folder, tmp_path_factory.mktemp("bundle") / "tiny").bundle


@pytest.fixture
def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command as on a new machine: nothing verified before, no bundle of the user, none within ualm."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for variable in ("UALM_BUNDLE", "UALM_ENGINE", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(packaged, "PACKAGED", tmp_path / "no bundle within ualm")


@pytest.fixture
def ualm(
    clean_environment: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs the command in this process; returns exit status, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ualm", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return (int(stop.value.code or 0), *capsys.readouterr())

    return run
