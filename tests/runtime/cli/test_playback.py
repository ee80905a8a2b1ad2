"""Sound played or piped while it is made: all of it, in order, and nothing else on standard output."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from support.bundles import with_post_codec
from support.runs import make_run
from support.told import but_cut
from ualm.export.bundle import export_run
from ualm.runtime import EngineError, Model, SoundChunk
from ualm.runtime.cli.playback import Loudspeaker, Player, RawPcm

Command = Callable[..., tuple[int, str, str]]
SAMPLES = 1e-5


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its sounds, unguided, end only by max_steps."""
    folder = tmp_path_factory.mktemp("endless")
    run = make_run(folder / "run", seed=1, lean={"eos": -40.0, "eot": -40.0, "pad": -40.0})
    return export_run(run.folder, folder / "bundle").bundle


@pytest.fixture(scope="module")
def whole(bundle: Path) -> np.ndarray:
    """The result of ``ualm generate rain --max-seconds 0.2 --guidance 1``: 320 frames."""
    with Model.open(bundle, threads=1) as model:
        return model.generate("rain", max_steps=320 + 7, guidance=1.0).samples


class Device:
    """Stands in for the module sounddevice; records its calls."""

    class PortAudioError(Exception):
        pass

    def __init__(self) -> None:
        self.opened: dict[str, Any] = {}
        self.calls: list[str] = []
        self.written: list[np.ndarray] = []
        self.dry: list[int] = []
        self.refuses: str | None = None

    def OutputStream(self, **options: Any) -> Any:
        if self.refuses == "open":
            raise self.PortAudioError("Error querying device -1")
        self.opened, self.calls = options, []
        return SimpleNamespace(
            **{name: lambda name=name: self.calls.append(name) for name in ("start", "stop", "abort", "close")},
            write=self._write,
        )

    def _write(self, samples: np.ndarray) -> bool:
        if self.refuses == "write":
            raise self.PortAudioError("Device unavailable")
        assert self.calls == ["start"] and samples.dtype == np.float32 and samples.flags.c_contiguous
        self.written.append(samples.copy())
        return len(self.written) in self.dry


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    fake = Device()
    monkeypatch.setitem(sys.modules, "sounddevice", fake)  # type: ignore[arg-type]
    return fake


@pytest.fixture
def generate(ualm: Command, bundle: Path) -> Command:
    def run(*arguments: object, bundle: Path = bundle) -> Any:
        return ualm("generate", "rain", "-b", bundle, "--threads", 1, "--max-seconds", 0.2, "--guidance", 1, *arguments)

    return run


def chunk(samples: list[float], preroll: float = 0.0) -> SoundChunk:
    return SoundChunk(0, np.array(samples, np.float32), 10, 0, preroll)


# ---- the device ----


def test_generate_play_plays_the_sound(generate: Command, device: Device, whole: np.ndarray) -> None:
    status, out, err = generate("--play", "--profile", "first_sound")
    assert (status, but_cut(err), out.count("\n")) == (0, "", 1) and out.startswith("played: 0.20 s in ")
    assert device.opened == {"samplerate": 16000, "channels": 1, "dtype": "float32"}
    assert device.calls == ["start", "stop", "close"]
    played = np.concatenate(device.written)[:, 0]
    np.testing.assert_allclose(played, whole, rtol=0, atol=SAMPLES * np.abs(whole).max())
    assert len(device.written) > 3


def test_a_sound_can_be_played_and_written_at_once(
    generate: Command, device: Device, whole: np.ndarray, tmp_path: Path
) -> None:
    device.dry = [1, 2, 4]
    status, out, err = generate("--play", "-o", tmp_path / "a.wav", "--json")
    assert (status, but_cut(err)) == (0, "")
    result = json.loads(out)
    assert result["output"] == str(tmp_path / "a.wav") and result["frames"] == 320
    assert result["first_chunk_seconds"] <= result["elapsed_seconds"] and result["preroll_seconds"] >= 0
    samples = soundfile.read(tmp_path / "a.wav", dtype="float32")[0]
    np.testing.assert_array_equal(samples, np.concatenate(device.written)[:, 0])
    np.testing.assert_allclose(samples, whole, rtol=0, atol=SAMPLES * np.abs(whole).max())


def test_a_stage_behind_the_codec_is_played(generate: Command, device: Device, bundle: Path, tmp_path: Path) -> None:
    stereo = with_post_codec(bundle, tmp_path / "bundle", sample_rate=48000, channels=2)
    assert generate("--play", bundle=stereo)[0] == 0
    assert device.opened == {"samplerate": 48000, "channels": 2, "dtype": "float32"}
    assert np.concatenate(device.written).shape == (9600, 2)


def test_playback_waits_for_the_preroll_or_the_end(device: Device) -> None:
    player = Player(10, 1)
    player.write(chunk([1, 2], preroll=0.5))
    player.write(chunk([3, 4], preroll=0.45))
    assert not device.calls
    player.write(chunk([5], preroll=0.5))
    assert device.calls == ["start"] and np.concatenate(device.written)[:, 0].tolist() == [1, 2, 3, 4, 5]
    player.write(chunk([6], preroll=9.0))
    assert len(device.written[-1]) == 1
    player.finish()
    short = Player(10, 1)
    device.calls.clear()
    short.write(chunk([7], preroll=5.0))
    assert not device.calls
    short.finish()
    assert device.calls == ["start", "stop", "close"] and device.written[-1].tolist() == [[7.0]]


def test_underruns_are_counted_from_the_second_write_on(device: Device) -> None:
    device.dry = [1, 3, 4]
    player = Player(10, 1)
    for _ in range(5):
        player.write(chunk([0.5]))
    assert player.report() == {"preroll_seconds": 0.0, "underruns": 2}


@pytest.mark.parametrize("refuses", ["open", "write"])
def test_a_device_that_fails_is_one_line(generate: Command, device: Device, refuses: str) -> None:
    device.refuses = refuses
    status, out, err = generate("--play")
    assert (status, out) == (1, "") and err.startswith("ualm: --play: the audio device") and err.count("\n") == 1
    assert device.calls == ([] if refuses == "open" else ["start", "abort", "close"])


def test_what_to_install_is_told(generate: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    status, out, err = generate("--play")
    assert (status, out) == (1, "") and 'pip install ".[play]"' in err and err.count("\n") == 1


def test_a_system_without_portaudio_is_told_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    with pytest.raises(EngineError, match=r"PortAudio library not found; install PortAudio, .*libportaudio2"):
        Player(16000, 1)


def test_ctrl_c_stops_the_device_at_once(generate: Command, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(samples: np.ndarray) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(device, "_write", interrupt)
    assert generate("--play") == (130, "", "")
    assert device.calls == ["start", "abort", "close"]


# ---- a conversation ----


@pytest.fixture
def chat(ualm: Command, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    def run(*lines: str, options: tuple[object, ...] = ()) -> Any:
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
        options = ("--modality", "audio", "--threads", 1, "--max-seconds", 0.2, "--guidance", 1, *options)
        return ualm("chat", "-b", bundle, *options)

    return run


def test_chat_plays_each_sound_while_it_is_made(chat: Command, device: Device, tmp_path: Path) -> None:
    status, out, _ = chat("rain", f"/save {tmp_path / 'a.wav'}", options=("--play",))
    assert status == 0 and out.startswith("[0.20 s of sound in ") and device.calls == ["start", "stop", "close"]
    np.testing.assert_array_equal(
        soundfile.read(tmp_path / "a.wav", dtype="float32")[0], np.concatenate(device.written)[:, 0]
    )


def test_play_plays_the_last_sound(chat: Command, device: Device, tmp_path: Path) -> None:
    status, _, err = chat("/play", "rain", f"/save {tmp_path / 'a.wav'}", "/play")
    assert status == 1 and "ualm: /play: no sound has been made yet\n" in err and err.endswith("played: 0.20 s\n")
    assert device.opened == {"samplerate": 16000, "channels": 1, "dtype": "float32"}
    assert device.calls == ["start", "stop", "close"] and len(device.written) == 2, "a tenth of a second each"
    np.testing.assert_array_equal(
        soundfile.read(tmp_path / "a.wav", dtype="float32")[0], np.concatenate(device.written)[:, 0]
    )


def test_ctrl_c_stops_what_is_played_and_the_chat_goes_on(
    chat: Command, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(samples: np.ndarray) -> bool:
        device.written.append(samples)
        os.kill(os.getpid(), signal.SIGINT)
        return False

    monkeypatch.setattr(device, "_write", interrupted)
    status, _, err = chat("rain", "/play", "/seed 5")
    assert (status, len(device.written), device.calls) == (0, 1, ["start", "abort", "close"])
    assert err.endswith("stopped\nseed 5\n")
    device.written.clear()
    write = Loudspeaker.write  # immediately, however slow the machine is
    monkeypatch.setattr(Loudspeaker, "write", lambda self, chunk: write(self, replace(chunk, preroll=0.0)))
    status, _, err = chat("rain", "/seed 6", options=("--play", "--max-seconds", 8, "--max-context", 16384))
    assert (status, len(device.written), device.calls) == (0, 1, ["start", "abort", "close"])
    assert err.endswith("stopped; the turn is taken back\nseed 6\n")


def test_a_device_that_does_not_open_ends_a_chat_before_it_begins_and_a_command_alone(
    chat: Command, device: Device
) -> None:
    device.refuses = "open"
    status, out, err = chat("rain", options=("--play",))
    assert (status, out) == (1, "") and err.startswith("ualm: --play: the audio device does not open")
    status, _, err = chat("rain", "/play", "/seed 5")
    assert status == 1 and "ualm: /play: the audio device does not open" in err and err.endswith("seed 5\n")


def test_reason_plays_what_it_makes(ualm: Command, bundle: Path, device: Device, tmp_path: Path) -> None:
    arguments = ("reason", "rain", "-b", bundle, "--threads", 1, "--max-seconds", 0.2, "--guidance", 1)
    status, out, err = ualm(*arguments, "--max-tokens", 4, "--play", "-o", tmp_path / "a.wav", "--json")
    assert (status, err, json.loads(out)["underruns"]) == (0, "", 0) and device.calls == ["start", "stop", "close"]
    np.testing.assert_array_equal(
        soundfile.read(tmp_path / "a.wav", dtype="float32")[0], np.concatenate(device.written)[:, 0]
    )
    assert "\nplayed: 0.20 s in " in ualm(*arguments, "--max-tokens", 4, "--play")[1]
    device.refuses = "open"
    status, out, err = ualm(*arguments, "--play")
    assert (status, out) == (1, "") and err.startswith("ualm: --play: the audio device does not open")


# ---- raw samples ----


@pytest.fixture
def process(bundle: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.CompletedProcess[bytes]]]:
    """``ualm generate rain -o -`` as a separate process."""

    def run(*arguments: str, bundle: Path = bundle) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "ualm.runtime.cli", "generate", "rain", "-o", "-", "-b", str(bundle)]
        return subprocess.run(
            [*command, "--threads", "1", "--max-seconds", "0.2", "--guidance", "1", *arguments],
            capture_output=True,
            timeout=120,
        )

    yield run


def test_standard_output_holds_the_samples_and_nothing_else(process, whole: np.ndarray) -> None:  # type: ignore[no-untyped-def]
    done = process("--json")
    assert done.returncode == 0
    samples = np.frombuffer(done.stdout, "<f4")
    assert len(samples) == len(whole)
    np.testing.assert_allclose(samples, whole, rtol=0, atol=SAMPLES * np.abs(whole).max())
    result = json.loads(done.stderr)
    assert (result["output"], result["format"], result["sample_rate"], result["seconds"]) == ("-", "f32le", 16000, 0.2)
    assert result["cut_samples"] == 0


def test_sixteen_bits_cut_at_full_scale_are_told(process, whole: np.ndarray) -> None:  # type: ignore[no-untyped-def]
    done = process("--pcm16")
    steps = np.frombuffer(done.stdout, "<i2")
    np.testing.assert_allclose(steps, np.clip(whole * 32768, -32768, 32767), rtol=0, atol=0.51 + 32768 * SAMPLES)
    past = int(np.count_nonzero(np.abs(whole) > 1.0001))
    told = but_cut(done.stderr.decode())
    assert told.startswith("standard output: 0.20 s in ") and told.count("\n") == 1
    assert ("samples cut at full scale" in told) == (past > 0)


def test_samples_are_out_before_the_sound_is_whole(bundle: Path) -> None:
    command = [sys.executable, "-m", "ualm.runtime.cli", "generate", "rain", "-o", "-", "-b", str(bundle)]
    with subprocess.Popen([*command, "--max-seconds", "8", "--guidance", "1"], stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert len(running.stdout.read(4 * 400)) == 4 * 400  # of 128,000
        assert running.poll() is None
        running.terminate()


def test_a_reader_that_leaves_ends_it_with_one_line(bundle: Path) -> None:
    command = [sys.executable, "-m", "ualm.runtime.cli", "generate", "rain", "-o", "-", "-b", str(bundle)]
    with subprocess.Popen(
        [*command, "--max-seconds", "8", "--guidance", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=False
    ) as running:
        assert running.stdout is not None and running.stderr is not None
        running.stdout.read(400)
        running.stdout.close()
        told = running.stderr.read().decode()
        assert running.wait(timeout=60) == 1
    assert told == "ualm: standard output: Broken pipe; the samples have no reader\n"


def test_raw_integers_are_cut_and_counted_and_floats_are_not() -> None:
    for pcm16, expected in ((True, np.array([32767, -32768, 16384, 32767], "<i2")), (False, None)):
        file = io.BytesIO()
        raw = RawPcm(file, pcm16=pcm16)
        raw.write(chunk([1.5, -1.0, 0.5]))
        raw.write(chunk([1.0]))
        raw.finish()
        if expected is None:
            expected = np.array([1.5, -1.0, 0.5, 1.0], "<f4")
        assert file.getvalue() == expected.tobytes()
        assert raw.report() == {"format": raw.format, "cut_samples": 2 if pcm16 else 0}


def test_a_pipe_that_takes_little_at_a_time_gets_all() -> None:
    class Narrow(io.BytesIO):
        def write(self, data: Any) -> int:
            return super().write(bytes(data)[:3])

    file = Narrow()
    RawPcm(file, pcm16=False).write(chunk([0.25, -2.0]))
    assert file.getvalue() == np.array([0.25, -2.0], "<f4").tobytes()


# ---- refusals ----


def test_a_sound_needs_somewhere_to_go(generate: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Model, "open", lambda *arguments, **options: pytest.fail("the model was loaded"))
    status, out, err = generate()
    assert (status, out) == (1, "") and "--output: name the file to write" in err and "--play" in err
    status, out, err = generate("--play", "--profile", "fast")
    assert (status, out) == (1, "") and "profile = 'fast': choose first_sound, balanced, throughput" in err


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo terminal")
def test_a_terminal_gets_no_samples(bundle: Path) -> None:
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "ualm.runtime.cli", "generate", "rain", "-o", "-", "-b", str(bundle)]
    done = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, timeout=60)
    os.close(theirs)
    os.close(ours)
    assert done.returncode == 1 and b"standard output is a terminal" in done.stderr
