"""Signals at any moment between the first import and the last write: only the exit status reports which."""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import pytest

import ualm
import ualm.runtime
from support.fuzzing import MOST_SECONDS, busy_seconds, run_cases
from support.sounds import make_sound, write_sound
from support.told import but_cut
from ualm.runtime.bundle.bundle import Bundle
from ualm.runtime.sound.sound import Sound

pytestmark = [
    pytest.mark.fuzz,
    pytest.mark.skipif(sys.platform != "linux", reason="signals of Linux"),
]

#: Environment variable that gives the harness's processes paths and the durations of commands.
FACTS = "UALM_FUZZ_SIGNALS"
NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Where our own code is; a script written by pip is not.
ROOMS = tuple(str(Path(room.__file__ or "").parent) for room in (ualm, ualm.runtime))
#: The command as installed by pip.
INSTALLED = Path(sysconfig.get_path("scripts")) / "ualm"
#: Program, arguments and lines of standard input.
COMMANDS: dict[str, tuple[str, list[str], str]] = {
    "generate": ("cli", ["generate", "rain", "-o", "new.wav", "-b", "BUNDLE", "--max-seconds", "0.3", "-q"], ""),
    "pipe": ("installed", ["generate", "rain", "-o", "-", "-b", "BUNDLE", "--max-seconds", "0.3", "-q"], ""),
    "ask": ("cli", ["ask", "SOUND", "What?", "-b", "BUNDLE", "--max-tokens", "20", "-q"], ""),
    "chat": (
        "cli",
        ["chat", "-b", "BUNDLE", "--json", "--modality", "audio", "--max-seconds", "0.2"],
        "rain\n/save new.wav\n/store kept.npz\n",
    ),
    "plan": ("cli", ["bench", "plan", "BUNDLE", "--device", "thor", "--format", "json", "-o", "new.json"], ""),
    "doctor": ("installed", ["doctor", "BUNDLE", "--json"], ""),
    "export": ("export", ["RUN", "-o", "new"], ""),
}
#: Exports take much longer than the others, mostly in imports.
WEIGHTS = {"export": 1}


@functools.cache
def facts() -> dict[str, Any]:
    return json.loads(os.environ[FACTS])


def heed_signals() -> None:
    for number in NUMBERS:
        signal.signal(number, signal.SIG_DFL)


def start(name: str, folder: Path, places: dict[str, str]) -> subprocess.Popen[str]:
    program, arguments, lines = COMMANDS[name]
    modules = {"cli": "ualm.runtime.cli.main", "export": "ualm.export"}
    command = [str(INSTALLED)] if program == "installed" else [sys.executable, "-m", modules[program]]
    (folder / "lines").write_text(lines)
    environment = {**os.environ, "XDG_CACHE_HOME": places["CACHE"], "OMP_NUM_THREADS": "1"}
    with open(folder / "lines") as stdin:
        return subprocess.Popen(
            [*command, *(places.get(word, word) for word in arguments)],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env=environment,
            text=True,
            errors="replace",
            # a shell that starts the tests in the background, or nohup, makes them ignore some signals, which children
            # inherit
            preexec_fn=heed_signals,
        )


def a_signal(rng: random.Random, folder: Path) -> str:
    """One command, one or two signals, and the outcome."""
    name = rng.choices(list(COMMANDS), [WEIGHTS.get(name, 3) for name in COMMANDS])[0]
    number = rng.choice(NUMBERS)
    process = start(name, folder, facts()["places"])
    began = time.monotonic()
    if rng.random() < 0.25 and name in ("generate", "export", "plan"):
        while process.poll() is None and not hidden(folder) and time.monotonic() < began + 60:
            time.sleep(0.0005)  # until something is being written
    else:
        time.sleep(rng.random() * facts()["seconds"][name] * 1.05)
    process.send_signal(number)
    if rng.random() < 0.2:
        time.sleep(rng.random() * 0.05)
        process.send_signal(number)
    sent, busy = time.monotonic(), busy_seconds()
    out, err = process.communicate(timeout=60)
    took = busy_seconds() - busy
    said = f"ualm {name} after {sent - began:.3f} s, {number.name}: status {process.returncode}, {err[-3000:]!r}"
    assert took < MOST_SECONDS, f"{said}: {took:.1f} s of a processor's time"
    left_over = left(folder)
    assert left_over is None, f"{said}: {left_over}"
    if process.returncode == 0:
        assert "Traceback" not in err and "Exception" not in err, said
        return "done before"
    if "Traceback" in err or "Fatal" in err:  # in what Python does before it reads the first line of ours
        # frames of ours, that is: the finder of an editable install is one of Python's, and quotes every path of ours
        assert number == signal.SIGINT and not any(f'File "{room}' in err for room in ROOMS), said
        return "before ualm"
    if name == "chat" and number == signal.SIGINT and process.returncode == 1:
        # Ctrl-C stops an answer, and the chat goes on: the line behind it has no sound to save, and nothing else fails
        events = [json.loads(line) for line in out.splitlines()]
        assert [each["reason"] for each in events if each["type"] == "turn_ended"] == ["cancelled"], said
        errors = [each["message"] for each in events if each["type"] == "error"]
        assert errors == ["/save: no sound has been made yet"], said
        return "stopped an answer"
    assert process.returncode in (128 + number, -number), said
    if process.returncode < 0:  # it had finished, and Python has removed the handlers
        err = "".join(line for line in err.splitlines(keepends=True) if not line.startswith("standard output: "))
    assert but_cut(err) == "", said
    return "ended" if process.returncode > 0 else "killed"  # by the system, before Python or after it


def hidden(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.startswith(".")]


def left(folder: Path) -> str | None:
    """Hidden or half-written files."""
    if found := hidden(folder):
        return f"{found[0].name} is left"
    for path in folder.iterdir():
        if path.name == "new":
            Bundle(path, verify="always")
        elif path.suffix == ".wav":
            Sound.from_file(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.name not in ("lines", "kept.npz"):
            return f"{path.name} is left"
    return None


def test_signals(tiny_bundle: Path, tiny_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = {"BUNDLE": str(tiny_bundle), "RUN": str(tiny_run.folder), "CACHE": str(tmp_path / "cache")}
    places["SOUND"] = str(write_sound(tmp_path / "heard.wav", make_sound(0.5), 16000))
    seconds: dict[str, float] = {}
    for name in COMMANDS:
        (tmp_path / name).mkdir()
        began = time.monotonic()
        _, err = start(name, tmp_path / name, places).communicate(timeout=120)
        seconds[name] = time.monotonic() - began
        assert but_cut(err) == "" or name == "pipe", err
        assert left(tmp_path / name) is None
    monkeypatch.setenv(FACTS, json.dumps({"places": places, "seconds": seconds}))
    counted = run_cases(a_signal, 100, 1)
    assert counted["ended"] > counted.total() / 3, counted
