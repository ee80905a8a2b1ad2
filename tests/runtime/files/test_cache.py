"""What ualm can make again lies in one folder, and nowhere if there is no home directory."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from ualm.export.targets.tensorrt.target import timing_cache
from ualm.runtime.bundle.bundle import Bundle
from ualm.runtime.cli import once
from ualm.runtime.engines.tensorrt.library import Library
from ualm.runtime.files.cache import cache_folder


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)


def test_the_variable_goes_before_the_home_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache" / "ualm"
    for unset in ("", None):
        monkeypatch.delenv("XDG_CACHE_HOME") if unset is None else monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert cache_folder() == tmp_path / ".cache" / "ualm"


def test_the_variable_needs_no_home_directory(homeless: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "ualm"


def test_without_either_nothing_is_kept_and_nothing_fails(homeless: None, tiny_bundle: Path) -> None:
    assert cache_folder() is None
    Bundle(tiny_bundle)
    assert once.first_in_this_shell() and once.first_in_this_shell()
    assert timing_cache(Library("tensorrt", SimpleNamespace(__version__="10.3.0")), 86) is None
