"""Each script of examples/ runs as its docstring says, with the model that comes with ualm, and produces what it
shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from support.packaged import PROMPT
from ualm import Model, Sound

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
Script = Callable[..., "subprocess.CompletedProcess[bytes]"]

pytestmark = pytest.mark.skipif(
    not (EXAMPLES.parent / "runtime" / "tiny").is_dir(), reason="this build brings no model"
)


@pytest.fixture(scope="module")
def trumpet() -> Sound:
    with Model.open(threads=1) as model:
        return model.generate(PROMPT, seed=7)


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Runs a script in an empty folder; any status but 0 is a failure."""
    variables = {name: value for name, value in os.environ.items() if name not in ("UALM_BUNDLE", "UALM_ENGINE")}

    def run(name: str, *arguments: object, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, str(EXAMPLES / f"{name}.py"), *map(str, arguments)]
        done = subprocess.run(command, input=given, capture_output=True, cwd=tmp_path, env=variables, timeout=300)
        assert done.returncode == 0, done.stderr.decode()
        return done

    return run


def test_a_stream_is_the_whole_sound(script: Script, trumpet: Sound) -> None:
    done = script("stream_to_player", PROMPT, "--seed", 7)
    heard = np.frombuffer(done.stdout, "<f4")
    assert heard.shape == trumpet.samples.shape
    assert np.abs(heard - trumpet.samples).max() < 1e-5 * np.abs(trumpet.samples).max()
    first, last = done.stderr.decode().splitlines()
    assert first.startswith("16000 Hz, ") and f"{trumpet.duration:.2f} s" in last


def test_a_player_that_goes_ends_the_stream_in_silence() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        command = [sys.executable, str(EXAMPLES / "stream_to_player.py"), PROMPT]
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, timeout=300)
    finally:
        os.close(writer)
    assert done.returncode == 0 and b"Traceback" not in done.stderr and b"Exception" not in done.stderr


def test_a_sound_is_described(script: Script, trumpet: Sound, tmp_path: Path) -> None:
    trumpet.save(tmp_path / "trumpet.wav")
    assert script("describe_sound", "trumpet.wav").stdout.decode() == PROMPT + "\n"
    with pytest.raises(AssertionError, match=r"none\.wav"):
        script("describe_sound", "none.wav")


def test_a_chat_writes_and_plays(script: Script, trumpet: Sound, tmp_path: Path) -> None:
    trumpet.save(tmp_path / "heard.wav")
    lines = b"a trumpet plays C5\n\n/sound none.wav\n/sound heard.wav\n"
    out = script("chat_loop", "--folder", "sounds", given=lines).stdout.decode().splitlines()
    assert len(out) == 3
    (seconds,) = re.findall(r"^\[sounds/turn1_0\.wav: (\d\.\d\d) s\] ", out[0])
    assert f"{Sound.from_file(tmp_path / 'sounds' / 'turn1_0.wav').duration:.2f}" == seconds
    assert "none.wav" in out[1] and re.fullmatch(r".{10,}   \(\d+\.\d s\)", out[2])


def test_a_fork_and_a_saved_session_go_on_equally(script: Script, tmp_path: Path) -> None:
    kept, fork, restored, *ways = script("save_and_fork", "talk.npz").stdout.decode().splitlines()
    assert re.fullmatch(r"talk\.npz: 1 turn, \d+ rows", kept) and (tmp_path / "talk.npz").stat().st_size > 0
    assert (fork, restored) == ("fork: continues identically", "restored: continues identically")
    lengths = [float(each) for way in ways for each in re.findall(r"Sound\((\d\.\d\d) s at", way)]
    assert len(lengths) == len(ways) == 2 and min(lengths) > 0


def test_tasks_of_one_loop_listen_side_by_side(script: Script) -> None:
    captions = ("a trumpet plays C5", "a marimba plays E5 and G5")
    *chunks, first, second = script("embed_asyncio", *captions).stdout.decode().splitlines()
    with Model.open() as model:
        expected = [model.generate(caption, seed=seed).duration for seed, caption in enumerate(captions)]
    assert [first, second] == [
        f"{caption}: {seconds:.2f} s" for caption, seconds in zip(captions, expected, strict=True)
    ]
    for caption, seconds in zip(captions, expected, strict=True):
        heard = [float(line.split()[3]) for line in chunks if line.endswith(repr(caption))]
        assert len(heard) > 1 and heard == sorted(heard) and heard[-1] == round(seconds, 2)


def test_every_script_says_how_it_is_run_and_is_run_here() -> None:
    scripts = {path.stem: path.read_text(encoding="utf-8") for path in EXAMPLES.glob("*.py")}
    tested = set(re.findall(r'script\("(\w+)"', Path(__file__).read_text(encoding="utf-8")))
    assert set(scripts) == tested and len(tested) >= 5
    for name, text in scripts.items():
        assert f"\n    python examples/{name}.py" in text.split('"""')[1], name
