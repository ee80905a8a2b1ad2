"""ONNX Runtime sends nothing, writes nothing about the device, and prints nothing about its telemetry."""

from __future__ import annotations

import ast
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ualm.runtime.engines.onnxruntime import library as onnxruntime_library
from ualm.runtime.engines.onnxruntime.library import TELEMETRY

ROOT = Path(__file__).resolve().parents[2]
IMPORTED = "import ualm.runtime.engines.onnxruntime.cpu"


def run(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process without settings of its own; the library is quiet by itself if it detects a CI."""
    kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH") if name in os.environ}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=kept | {"HOME": str(folder)} | environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_nothing_is_written_and_nothing_is_said(tmp_path: Path) -> None:
    """By default, the library writes a device identifier; if it cannot, it says so on standard error."""
    done = run(IMPORTED, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.rglob("*")) == []
    done = run(IMPORTED, tmp_path, XDG_CACHE_HOME=os.devnull)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(("before", "after", "calls"), [(None, "1", 1), ("0", "0", 0), ("1", "1", 0)])
def test_what_the_user_chose_stays(monkeypatch: pytest.MonkeyPatch, before: str | None, after: str, calls: int) -> None:
    called: list[str | None] = []
    library = SimpleNamespace(disable_telemetry_events=lambda: called.append(os.environ.get(TELEMETRY)))
    monkeypatch.setitem(sys.modules, "onnxruntime", library)  # type: ignore[arg-type]
    monkeypatch.setenv(TELEMETRY, "")
    if before is None:
        monkeypatch.delenv(TELEMETRY)
    else:
        monkeypatch.setenv(TELEMETRY, before)
    made = runpy.run_path(str(onnxruntime_library.__file__))
    assert made["ort"] is library and os.environ[TELEMETRY] == after
    assert called == ["1"] * calls


def test_the_library_is_imported_in_one_place() -> None:
    places = set()
    for file in (file for room in ("runtime", "export", "bench") for file in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            if any(name.partition(".")[0] == "onnxruntime" for name in names):
                places.add(file.relative_to(ROOT).as_posix())
    assert places == {"runtime/engines/onnxruntime/library.py"}
