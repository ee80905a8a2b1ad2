"""At a terminal: a live line erases nothing else, help is complete, and no table is wider than the screen."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer.main

from ualm.runtime.cli import main as cli
from ualm.runtime.cli.verbs import bench as cli_bench
from ualm.runtime.terminal.tables import bands, table

Command = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).resolve().parents[3]
RESULTS = ROOT / "bench" / "results"

#: A reasoning run as its verb shows it, slow enough for every live line to be drawn.
REASONING = """
import time
import numpy as np
from types import SimpleNamespace
from ualm.runtime import SoundChunk, StageEnded, StageSound, StageStarted, StageText, Verdict
from ualm.runtime.cli.verbs.reason import _Shown

def shown(event):
    view.event(event)
    time.sleep(0.3)

def ended(stage, sound=None):
    shown(StageEnded(stage, SimpleNamespace(sound=sound, segment=SimpleNamespace(finish_reason="stop"))))

view = _Shown(quiet=False)
shown(StageStarted(0, "caption", "text"))
shown(StageText(0, "a dog barks, "))
shown(StageText(0, "twice"))
ended(0)
shown(StageStarted(1, "sound", "audio"))
shown(StageSound(1, SoundChunk(1, np.zeros(8000, np.float32), 16000, 0, 0.0)))
ended(1, SimpleNamespace(duration=0.5))
shown(StageStarted(2, "review", "text"))
shown(StageText(2, "heard: a dog"))
ended(2)
shown(Verdict(1, True, "heard: a dog"))
view.rest()
"""


@pytest.fixture
def terminal(ualm: Command, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Standard output of the command at a terminal with so many columns."""

    def run(columns: int, *arguments: object) -> str:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        monkeypatch.setenv("COLUMNS", str(columns))
        status, out, err = ualm(*arguments)
        assert (status, err) == (0, "")
        return out

    return run


# ---- live lines ----


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals of POSIX")
@pytest.mark.parametrize(
    ("columns", "environment"),
    [(80, {}), (60, {}), (24, {}), (60, {"NO_COLOR": "1"}), (80, {"TERM": "dumb"})],
    ids=["80", "60", "24", "no colour", "dumb"],
)
def test_the_labels_of_a_reasoning_stay(columns, environment):
    from support.screen import on_terminal, screen

    sent = on_terminal([sys.executable, "-c", REASONING], columns, environment=environment)
    said = ["caption: a dog barks, twice", "sound: 0.50 s", "review: heard: a dog"]
    said.append("verdict 1: the sound agrees with the request")
    shown = [line[start : start + columns].rstrip() for line in said for start in range(0, len(line), columns)]
    assert [line for line in screen(sent, columns) if line] == shown
    if environment.get("TERM") == "dumb":
        assert "\x1b" not in sent and screen(sent, columns)[: len(said)] == said, "no empty lines either"
    else:
        assert "\x1b[2K" in sent and "thinking" in sent and "listening" in sent, "there were live lines"


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals of POSIX")
@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=["plain", "no colour", "dumb"])
def test_the_verb_leaves_at_a_terminal_what_it_writes_into_a_file(environment):
    from support.screen import on_terminal, screen

    columns = 60
    command = [sys.executable, "-m", "ualm.runtime.cli", "reason", "a trumpet plays C5 and E5", "--mode", "reflect"]
    command += ["--threads", "1", "-q"]
    known = {name: value for name, value in os.environ.items() if name != "UALM_BUNDLE"}
    *said, last = subprocess.run(command, text=True, capture_output=True, check=True, env=known).stdout.splitlines()
    # what the model makes of its sound is its own; a repair comes behind a verdict
    assert [line.partition(":")[0] for line in said][:4] == ["caption", "sound", "review", "verdict 1"]
    assert "a trumpet plays C5 and E5" in said[0] and len(said[0]) > 2 * columns
    wrapped = [line[start : start + columns].rstrip() for line in said for start in range(0, len(line), columns)]
    sent = on_terminal(command, columns, environment={"UALM_BUNDLE": "", **environment})
    *shown, end = [line for line in screen(sent, columns) if line]
    assert shown == wrapped
    assert re.sub(r"in [\d.]+ s", "", end) == re.sub(r"in [\d.]+ s", "", last)
    if environment.get("TERM") == "dumb":
        assert "\x1b" not in sent
    else:
        assert "\x1b[2K" in sent and "caption: thinking" in sent and "review: listening" in sent
    if "NO_COLOR" in environment:
        assert not re.search(r"\x1b\[[\d;]*m", sent)


# ---- help ----


@pytest.mark.parametrize("columns", [60, 80])
@pytest.mark.parametrize("group", ["", "bench"])
def test_the_list_of_verbs_has_whole_sentences(terminal, group, columns):
    out = terminal(columns, *group.split(), "--help")
    assert "..." not in out.replace("COMMAND [ARGS]...", "") and max(map(len, out.splitlines())) <= columns
    told = " ".join(out.split())
    verbs = typer.main.get_command(cli_bench.app if group else cli.app).commands  # type: ignore[attr-defined]
    assert len(verbs) >= 8
    for name, verb in verbs.items():
        first = " ".join(verb.help.split("\n\n")[0].split()).split(". ")[0].rstrip(".")
        assert f" {name} {first}" in told, name


# ---- tables ----


@pytest.mark.parametrize("columns", [60, 80])
def test_inspect_and_doctor_wrap_by_column(terminal, ualm: Command, tiny_bundle, columns):
    for verb, title in (("inspect", str(tiny_bundle)), ("doctor", "versions")):
        out = terminal(columns, verb, *([tiny_bundle] if verb == "inspect" else []))
        lines = out.splitlines()
        assert lines[0] == title
        assert max(map(len, lines[1:])) <= columns, [line for line in lines[1:] if len(line) > columns]
    assert "  tensorrt-rtx      no: " in out  # wrapped text continues in its own column
    wrapped = lines[lines.index(next(line for line in lines if line.startswith("  tensorrt-rtx "))) + 1]
    assert wrapped.startswith(" " * 20) and wrapped.strip()


def test_elsewhere_a_row_is_a_line(ualm: Command, tiny_bundle, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    out = ualm("inspect", tiny_bundle)[1]
    assert any(len(line) > 80 for line in out.splitlines())
    assert table("t", [("a", "long " * 30), ("bcd", 1)]) == "t\n  a    " + ("long " * 30).rstrip() + "\n  bcd  1"


def test_a_table_keeps_every_letter_and_any_width_is_enough(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    rows = [("name", "word " * 12, "x" * 30), ("n", "y"), ("[b]not markup[/b] :dog:", "", "z")]
    for columns in (80, 50, 20, 1):
        monkeypatch.setenv("COLUMNS", str(columns))
        drawn = table("title", rows).splitlines()[1:]
        assert max(map(len, drawn)) <= max(columns, 11)
        letters = sorted("".join("".join(drawn).split()))
        assert letters == sorted("".join("".join(cell for row in rows for cell in row).split()))
    assert table("empty", []) == "empty"


@pytest.mark.parametrize("columns", [60, 80])
@pytest.mark.parametrize("name", ["decode_1.5b_int4_vs_reference_bf16", "load_1.5b_int4", "stream_1.5b_int4"])
def test_kept_results_go_on_below_and_no_figure_is_cut(terminal, ualm: Command, name, columns):
    wide = ualm("bench", "show", RESULTS / f"{name}.json")[1]
    narrow = terminal(columns, "bench", "show", RESULTS / f"{name}.json")
    assert max(map(len, wide.splitlines())) > 100 and max(map(len, narrow.splitlines())) <= columns
    assert set(wide.split()) - {word for word in wide.split() if set(word) == {"─"}} <= set(narrow.split())


@pytest.mark.parametrize("columns", [60, 80])
def test_a_plan_goes_on_below(terminal, ualm: Command, tiny_bundle, columns, tmp_path):
    arguments = ("bench", "plan", tiny_bundle, "--device", "orin-nano")
    wide = ualm(*arguments)[1]
    narrow = terminal(columns, *arguments, "-o", tmp_path / "plan.md").splitlines()
    assert max(len(line) for line in narrow if "http" not in line) <= columns
    assert set(wide.split()) <= set(" ".join(narrow).split())
    heads = [line for line in narrow if line.split()[:3] == ["precision", "rows", "held"]]
    assert len(heads) > 1 and sum("fp32" in line for line in narrow) == len(heads)
    assert any(len(line) > 100 for line in (tmp_path / "plan.md").read_text().splitlines()), "a file is no terminal"


def test_bands_have_every_column_once_and_the_first_ones_always():
    assert bands([5, 5, 5, 5], 1, None) == [[0, 1, 2, 3]]
    assert bands([5, 5, 5, 5], 1, 15) == [[0, 1, 2], [0, 3]]
    assert bands([5, 50, 5, 5], 1, 15) == [[0, 1], [0, 2, 3]]
    assert bands([5, 5], 2, 3) == [[0, 1]] and bands([], 0, 10) == [[]]
