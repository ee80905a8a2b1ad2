"""``ualm ask -`` hears standard input; ``ualm generate -o - --format wav`` writes a WAV into a pipe."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from support.recordings import ffmpeg, wav
from support.sounds import make_sound
from support.told import but_cut
from ualm.runtime import Model, Sound, SoundChunk
from ualm.runtime.cli.playback import StreamedWav

Command = Callable[..., tuple[int, str, str]]


def process(*arguments: object, stdin: Any = subprocess.PIPE, data: bytes | None = None) -> Any:
    command = [sys.executable, "-m", "ualm.runtime.cli", *map(str, arguments)]
    options: dict[str, Any] = {"stdin": stdin} if data is None else {"input": data}
    return subprocess.run(command, capture_output=True, timeout=120, **options)


def ask(bundle: Path, **options: Any) -> Any:
    return process("ask", "-", "What?", "-b", bundle, "--threads", 1, "--max-tokens", 4, **options)


@pytest.mark.parametrize(
    ("container", "codec"), [("wav", "pcm_s16le"), ("w64", "pcm_s16le"), ("flac", "flac"), ("mp3", "libmp3lame")]
)
def test_ask_hears_what_comes_from_a_pipe(tiny_bundle, container, codec):
    data = ffmpeg(make_sound(0.5), container, codec, 16000, pipe=True)
    with Model.open(tiny_bundle, threads=1) as model:
        expected = model.ask(Sound.from_file(data), "What?", max_steps=4)
    done = ask(tiny_bundle, data=data)
    assert (done.returncode, done.stdout.decode(), but_cut(done.stderr.decode())) == (0, expected + "\n", "")


@pytest.mark.parametrize(
    ("data", "piece"),
    [(b"", "standard input: the file is empty (0 bytes)"), (b"text" * 99, "standard input: not a sound")],
)
def test_standard_input_that_holds_no_sound_is_one_line(tiny_bundle, data, piece):
    done = ask(tiny_bundle, data=data)
    assert (done.returncode, done.stdout) == (1, b"")
    assert piece in done.stderr.decode() and done.stderr.count(b"\n") == 1


def test_a_recorder_that_was_stopped_is_heard_and_told_in_one_line(ualm: Command, tiny_bundle, tmp_path):
    path = tmp_path / "stopped.wav"
    path.write_bytes(wav(np.arange(8000), 0, 0))
    command = ("ask", path, "What?", "-b", tiny_bundle, "--threads", "1", "--max-tokens", "4")
    done = process(*command)
    assert done.returncode == 0 and done.stdout
    told = but_cut(done.stderr.decode())
    assert told.startswith(f"{path}: its header claims no samples") and told.count("\n") == 1


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo terminal")
def test_a_terminal_or_nothing_as_standard_input_is_refused_before_the_model_is_loaded(tmp_path):
    ours, theirs = os.openpty()
    done = ask(tmp_path / "none", stdin=theirs)
    os.close(theirs)
    os.close(ours)
    assert done.returncode == 1 and done.stderr == (
        b"ualm: standard input: is a terminal; send a sound into it from a pipe or a file\n"
    )
    command = f"{sys.executable} -m ualm.runtime.cli.main ask - What? -b {tmp_path / 'none'} <&-"
    closed = subprocess.run(["sh", "-c", command], capture_output=True, timeout=60)
    assert closed.returncode == 1 and b"standard input: is closed" in closed.stderr and closed.stderr.count(b"\n") == 1


def test_chat_does_not_hear_the_stream_its_lines_come_from(tiny_bundle):
    done = process("chat", "-b", tiny_bundle, "--threads", 1, data=b"/sound -\n/speech -\n/quit\n")
    assert done.returncode == 1
    assert done.stderr.decode().count("standard input is where your lines come from") == 2


# ---- a WAV into a pipe ----


@pytest.mark.parametrize("pcm16", [False, True])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_streamed_wav_is_read_back_by_us_and_by_libsndfile(pcm16, channels, caplog):
    file = io.BytesIO()
    output = StreamedWav(file, 48000, channels, pcm16=pcm16)
    assert file.getvalue() == b""
    parts = [make_sound(0.1, 48000, channels, seed=seed).T for seed in range(3)]
    parts[1][5] = 1.5
    for part in parts:
        output.write(SoundChunk(0, part[:, 0] if channels == 1 else part, 48000, 0, 0.0))
    output.finish()
    expected = np.concatenate(parts)
    report = output.report()
    assert report == {"format": "wav s16le" if pcm16 else "wav f32le", "cut_samples": channels if pcm16 else 0}
    for found in (soundfile.read(io.BytesIO(file.getvalue()), always_2d=True), None):
        samples = Sound.from_file(file.getvalue()).samples.reshape(-1, channels) if found is None else found[0]
        if pcm16:
            np.testing.assert_allclose(samples, np.clip(expected, -1, 32767 / 32768), atol=0.51 / 32768)
        else:
            np.testing.assert_array_equal(samples, expected)
    assert not caplog.records and soundfile.info(io.BytesIO(file.getvalue())).samplerate == 48000


def test_generate_streams_a_wav_that_ask_hears(tiny_bundle):
    generate = ("generate", "rain", "-o", "-", "-b", tiny_bundle, "--threads", 1, "--max-seconds", 0.2)
    raw, made = process(*generate), process(*generate, "--format", "wav")
    assert made.returncode == 0 and made.stdout[:4] == b"RIFF" and b"standard output" in made.stderr
    samples = soundfile.read(io.BytesIO(made.stdout), dtype="float32")[0]
    np.testing.assert_allclose(samples, np.frombuffer(raw.stdout, "<f4"), atol=1e-5 * np.abs(samples).max())
    np.testing.assert_array_equal(Sound.from_file(made.stdout).samples, samples)
    assert process(*generate, "--format", "raw").stdout == raw.stdout or len(raw.stdout) == 4 * len(samples)


@pytest.mark.parametrize(
    ("arguments", "piece"),
    [
        (["-o", "a.flac", "--format", "wav"], "a.flac: its name says .flac, but the format 'wav'"),
        (["-o", "-", "--format", "mp3"], "standard output takes raw or wav"),
        (["--play", "--format", "wav"], "says how --output is written"),
        (["-o", "a.wav", "--format", "raw"], "a.wav: its name says .wav"),
        (["-o", "a.mp3", "--pcm16"], "a.mp3: subtype 'PCM_16' is not written for .mp3"),
    ],
)
def test_formats_that_contradict_are_refused_before_the_model_is_loaded(
    ualm: Command, monkeypatch, tmp_path, arguments, piece
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Model, "open", lambda *arguments, **options: pytest.fail("the model was loaded"))
    status, out, err = ualm("generate", "rain", *arguments)
    assert (status, out) == (1, "") and piece in err and err.count("\n") == 1


@pytest.mark.parametrize("name", ["a.mp3", "a.ogg", "a.opus"])
def test_generate_and_reason_write_lossy_files(ualm: Command, tiny_bundle, tmp_path, name):
    short = ("-b", tiny_bundle, "--threads", 1, "--max-seconds", 0.3)
    status, _, err = ualm("generate", "rain", "-o", tmp_path / name, *short)
    assert (status, but_cut(err) if "quieter" not in err else "") == (0, "")
    assert soundfile.info(tmp_path / name).samplerate == 16000
