"""README shows real terminal output: its commands are run in a shell on a terminal, with the model that comes with
ualm."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
#: What differs from run to run.
_TIME = re.compile(r" in \d+\.\d\d s")
#: Wider than any line of the transcript.
_COLUMNS = 200

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32" or shutil.which("bash") is None, reason="a shell on a pseudo-terminal"),
    pytest.mark.skipif(not (ROOT / "runtime" / "tiny").is_dir(), reason="this build brings no model"),
]


def transcript() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    match = re.search(r"```text\n(\$ ualm generate .*?)```", text, re.DOTALL)
    assert match is not None
    return match.group(1).splitlines()


def test_the_commands_show_what_the_page_shows_and_draw_its_picture(tmp_path, monkeypatch):
    from matplotlib.image import imread

    from support.screen import on_terminal, screen

    for variable in ("UALM_BUNDLE", "UALM_ENGINE"):
        monkeypatch.delenv(variable, raising=False)
    lines = transcript()
    script = [f'ualm() {{ "{sys.executable}" -m ualm.runtime.cli.main "$@"; }}', "set -e"]
    for line in lines:
        if line.startswith("$ "):
            script += [f"echo '{line}'", line.removeprefix("$ ")]
    environment = {"XDG_RUNTIME_DIR": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    (tmp_path / "work").mkdir()
    command = ["bash", "-c", "\n".join(script)]
    sent = on_terminal(command, _COLUMNS, cwd=tmp_path / "work", environment=environment)
    shown = [_TIME.sub(" in T s", line) for line in screen(sent, _COLUMNS) if line]
    assert shown == [_TIME.sub(" in T s", line) for line in lines]
    assert [each.name for each in tmp_path.glob("ualm/*")] == ["told.json"]
    kept, drawn = (imread(path)[..., :3] for path in (ROOT / "docs" / "trumpet.png", tmp_path / "work" / "trumpet.png"))
    assert kept.shape == drawn.shape and np.abs(kept - drawn).mean() < 0.01, "docs/trumpet.png: draw it again"
