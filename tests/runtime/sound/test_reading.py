"""Sounds from pipes, interrupted recorders and damaged files: read to their end, or refused; never cut silently."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from support.recordings import ffmpeg, flac_total, lag, rf64, wav
from support.sounds import make_sound
from ualm.runtime import InputError, Sound
from ualm.runtime.sound import reading as sound_in

STEPS = np.arange(-500, 500, dtype="<i2") * 30
LIST = b"LIST\x1a\0\0\0INFOISFT\x0e\0\0\0Lavf60.16.100\0"
UNKNOWN = 2**64 - 1


def flac(samples: np.ndarray, rate: int = 16000) -> bytes:
    return encoded(samples, rate, format="FLAC", subtype="PCM_16")


def encoded(samples: np.ndarray, rate: int = 16000, **options: object) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **options)
    return file.getvalue()


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


class Stream(io.RawIOBase):
    """Bytes that can be read once, as from a pipe; without ``data``, endless zeros. ``taken``: how many were read."""

    def __init__(self, data: bytes | None = None) -> None:
        self._data, self.taken = None if data is None else io.BytesIO(data), 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = bytes(size) if self._data is None else self._data.read(min(size, 1000))
        self.taken += len(data)
        return data


# ---- unknown lengths ----


@pytest.mark.parametrize(
    "file",
    [
        wav(STEPS, 0xFFFFFFFF, 0xFFFFFFFF),
        wav(STEPS, 0xFFFFFFFF, 0xFFFFFFFF, before=LIST),
        wav(STEPS, 0x7FFFFFFF, 0x7FFFFFFF),
        wav(STEPS, 0x80000024, 0x80000000),
        wav(STEPS, 0xFFFFFFFF, 0xFFFFFFFF - 36),
        rf64(STEPS, (UNKNOWN, UNKNOWN, UNKNOWN)),
        wav(STEPS, after=LIST),
    ],
    ids=["ffmpeg", "ffmpeg with LIST", "sox", "arecord", "less the header", "rf64", "chunk behind"],
)
@pytest.mark.parametrize("stream", [False, True], ids=["bytes", "stream"])
def test_a_wav_of_unknown_length_is_read_to_its_end_without_a_word(file, stream, caplog):
    sound = Sound.from_file(Stream(file) if stream else file)
    np.testing.assert_array_equal(sound.samples, STEPS / np.float32(32768))
    assert sound.notes == () and not told(caplog)


@pytest.mark.parametrize(
    ("container", "codec", "rate", "options"),
    [
        ("wav", "pcm_s16le", 16000, {}),
        ("wav", "pcm_f32le", 44100, {}),
        ("wav", "pcm_s16le", 16000, {"rf64": "always"}),
        ("w64", "pcm_s16le", 16000, {}),
        ("flac", "flac", 16000, {}),
        ("ogg", "libopus", 48000, {}),
        ("ogg", "flac", 16000, {}),
        ("mp3", "libmp3lame", 16000, {}),
        ("aiff", "pcm_s16be", 16000, {}),
        ("au", "pcm_s16be", 16000, {}),
    ],
    ids=lambda value: str(value),
)
@pytest.mark.parametrize("channels", [1, 2])
def test_what_ffmpeg_writes_into_a_pipe_is_read(container, codec, rate, options, channels):
    samples = make_sound(1.3, rate, channels)
    sound = Sound.from_file(Stream(ffmpeg(samples, container, codec, rate, pipe=True, **options)))
    assert sound.sample_rate == rate
    found = sound.samples.reshape(len(sound.samples), channels).T
    if codec == "libmp3lame":
        # the delay and padding of its encoder remain if the header could not be written: two frames at most
        assert 0 <= found.shape[1] - samples.shape[1] <= 2 * 1152
        found = found[:, lag(found[0], samples[0]) :]
    else:
        assert found.shape == samples.shape
    found = found[:, : samples.shape[1]]
    noise = found - samples[:, : found.shape[1]]
    # 16 bits keep at least 60 dB of these sounds; codecs at 128 kb/s per channel keep 10 dB of their noise and tones
    floor = 10 if codec in ("libopus", "libmp3lame") else 60
    assert 10 * np.log10(np.mean(samples**2) / max(np.mean(noise**2), 1e-12)) > floor


def test_a_flac_from_a_pipe_gives_every_sample():
    samples = make_sound(2.0)[0]
    file = flac(samples)
    np.testing.assert_array_equal(Sound.from_file(flac_total(file, 0)).samples, Sound.from_file(file).samples)


def test_an_mp3_without_a_table_of_contents_is_read_to_its_end(caplog):
    """libsndfile guesses 85,104 samples, from a loud beginning, and stops there."""
    samples = np.concatenate([make_sound(10.0)[0], np.zeros(160000, np.float32)])
    samples[:160000] += 0.3 * np.random.default_rng(0).standard_normal(160000).astype(np.float32)
    file = encoded(samples, format="MP3", bitrate_mode="VARIABLE", compression_level=0.5)
    bare = file[file.find(file[:2], 4) :]
    with soundfile.SoundFile(io.BytesIO(bare)) as guess:
        assert guess.frames < 160000
    assert 0 <= len(Sound.from_file(bare).samples) - 320000 <= 2 * 1152 and not told(caplog)


# ---- wrong lengths ----


@pytest.mark.parametrize(
    ("file", "frames", "note"),
    [
        (wav(STEPS, 0, 0), 1000, "claims no samples.*all 2000 bytes"),
        (wav(STEPS, 36, 0), 1000, "claims no samples"),
        (wav(STEPS, 0, 0, before=LIST), 1000, "claims no samples"),
        (rf64(STEPS, (0, 0, 0)), 1000, "claims no samples"),
        (wav(STEPS, 4036, 4000), 1000, "claims 4000 bytes of samples, but 2000 are there"),
        (wav(STEPS)[:-1], 999, "claims 2000 bytes of samples, but 1999 are there"),
        (rf64(STEPS, (4072, 4000, 2000)), 1000, "claims 4000 bytes of samples, but 2000 are there"),
        (wav(STEPS, data=1000), 500, "1000 bytes after its samples are not a chunk"),
        (flac_total(flac(make_sound(1)[0]), 100), 16000, "claims 100 samples, but 16000 are there"),
        (flac_total(flac(make_sound(1)[0]), 2**36 - 1), 16000, "claims 68719476735 samples, but 16000 are there"),
        (
            encoded(make_sound(1)[0], format="AIFF", subtype="PCM_16")[:-2000],
            15000,
            "another length than it has.*should be",
        ),
    ],
    ids=[
        "0, 0",
        "36, 0",
        "0 with LIST",
        "rf64 0",
        "more",
        "odd",
        "rf64 more",
        "less",
        "flac less",
        "flac more",
        "aiff",
    ],
)
def test_a_wrong_length_is_told_and_all_that_is_there_is_read(tmp_path, caplog, file, frames, note):
    path = tmp_path / "a.wav"
    path.write_bytes(file)
    sound = Sound.from_file(path)
    assert len(sound.samples) == frames
    (message,) = told(caplog)
    assert message == f"{path}: {sound.notes[0]}" and len(sound.notes) == 1
    assert re.search(note, message)


def test_a_wav_that_holds_no_samples_is_still_refused():
    for file in (wav(STEPS[:0]), wav(STEPS[:0], 0, 0), wav(STEPS[:0], after=LIST)):
        with pytest.raises(InputError, match="no samples"):
            Sound.from_file(file)


@pytest.mark.parametrize("kind", ["OGG", "MP3", "FLAC"])
def test_a_compressed_file_that_was_cut_off_is_told_or_refused(caplog, kind):
    samples = np.tile(make_sound(5.0)[0], 8)
    file = encoded(samples, format=kind)
    try:
        sound = Sound.from_file(file[: len(file) * 2 // 3])
    except InputError as error:
        assert "can be read" in str(error)
        return
    assert len(sound.samples) < len(samples) and "cut off" in told(caplog)[0]


# ---- not a sound ----


@pytest.mark.parametrize(
    ("file", "piece"),
    [
        (b"", r"empty \(0 bytes\)"),
        (b"this is text, not sound\n" * 100, "not a sound file"),
        (bytes(100_000), "not a sound file"),
        (b"#EXTM3U\n#EXTINF:1,\n/etc/hostname\n#EXT-X-ENDLIST\n", "not a sound file"),
        (wav(STEPS, rate=1), "a rate of 1 Hz"),
        (wav(STEPS, rate=4_000_000_000), "rate|not a sound file"),
        (wav(STEPS, rate=0), "not a sound file"),
        (wav(STEPS, channels=0), "not a sound file"),
        (encoded(np.array([0.0, np.nan]), format="WAV", subtype="FLOAT"), "nan at index 1"),
        (encoded(np.array([0.0, -np.inf]), format="WAV", subtype="FLOAT"), "-inf at index 1"),
    ],
    ids=["empty", "text", "zeros", "playlist", "1 Hz", "4 GHz", "0 Hz", "0 channels", "nan", "inf"],
)
@pytest.mark.parametrize("form", ["path", "bytes", "file", "stream"])
def test_what_is_no_sound_is_one_clear_error_in_every_form(tmp_path, file, piece, form):
    path = tmp_path / "a.wav"
    path.write_bytes(file)
    sources = {"path": path, "bytes": file, "file": io.BytesIO(file), "stream": Stream(file)}
    with pytest.raises(InputError, match=piece) as caught:
        Sound.from_file(sources[form])
    message = str(caught.value)
    name = {"path": str(path), "bytes": "bytes of a sound"}.get(form, "file object")
    assert message.startswith(f"{name}: ") and "\n" not in message and message.count(name) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_places_that_are_no_files_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for place, piece in ((tmp_path, "not a file"), (tmp_path / "pipe", "standard input"), ("/dev/zero", "not a file")):
        with pytest.raises(InputError, match=piece) as caught:
            Sound.from_file(place)
        assert str(place) in str(caught.value)
    with pytest.raises(InputError, match=r"no such file|not the name of a file"):
        Sound.from_file("a\0b.wav")


@pytest.mark.parametrize(
    "source",
    [None, 3, 1.5, ["a.wav"], np.zeros(3), io.StringIO("text"), object()],
    ids=lambda source: type(source).__name__,
)
def test_what_is_no_source_is_an_input_error(source):
    with pytest.raises(InputError, match=r"path of a sound file|mode \"rb\""):
        Sound.from_file(source)


def test_an_open_file_is_read_from_where_it_stands(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"12345" + wav(STEPS))
    with open(path, "rb") as file:
        file.seek(5)
        assert len(Sound.from_file(file).samples) == 1000
    with open(path) as file, pytest.raises(InputError, match=r"a\.bin: opened as text"):
        Sound.from_file(file)


def test_a_header_that_leads_before_the_beginning_prints_no_exception(monkeypatch, capfd):
    unheard: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda about: unheard.append(about.exc_value))
    aiff = encoded(np.zeros(200), format="AIFF", subtype="PCM_16")
    for at in range(12, 54):
        for wrong in (b"\xff" * 8, b"\xff" * 4, b"\x80\0\0\0"):
            with contextlib.suppress(InputError):
                Sound.from_file(aiff[:at] + wrong + aiff[at + len(wrong) :])
    assert not unheard and "Traceback" not in capfd.readouterr().err


# ---- bounds ----


@pytest.fixture
def few_bytes(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(sound_in, "STREAM_BYTES", 1 << 20)
    yield 1 << 20


def test_a_stream_without_end_is_left_at_the_limit(few_bytes):
    zeros = Stream()
    with pytest.raises(InputError, match=r"file object: exceeds 1048576 bytes, .* give a shorter one, or a file"):
        Sound.from_file(zeros)
    assert zeros.taken <= few_bytes + (1 << 16)


def test_a_microphone_that_never_stops_is_left_when_it_is_longer_than_is_heard():
    class Microphone(Stream):
        def read(self, size: int = -1) -> bytes:
            data = wav(STEPS, 0xFFFFFFFF, 0xFFFFFFFF) if not self.taken else bytes(size)
            self.taken += len(data)
            return data

    microphone = Microphone()
    with pytest.raises(InputError, match=r"longer than the 10 s that are heard"):
        Sound.from_file(microphone, longest=10)
    assert microphone.taken < 11.5 * 32000 + 3 * 65536


def test_a_header_that_claims_too_much_is_refused_before_anything_is_decoded(monkeypatch):
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *arguments, **options: pytest.fail("decoded"))
    for file in (flac_total(flac(make_sound(1)[0]), 2**36 - 1), flac(np.zeros(16000 * 11))):
        with pytest.raises(InputError, match=r"longer than the 10 s that are heard; cut it"):
            Sound.from_file(file, longest=10)


_BOMB = """
import io, resource, sys
import numpy as np, soundfile
from ualm.runtime import InputError, Sound
file = io.BytesIO()
with soundfile.SoundFile(file, "w", 16000, 1, format="FLAC", subtype="PCM_16") as out:
    for _ in range(200):
        out.write(np.zeros(100_000, np.int16))
data = file.getvalue()
if sys.argv[1] == "unknown":  # the header says nothing: only decoding can tell
    data = data[:21] + (int.from_bytes(data[21:26], "big") >> 36 << 36).to_bytes(5, "big") + data[26:]
del file
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    Sound.from_file(data, longest=300)
except InputError as error:
    print(len(data), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error)
"""


@pytest.mark.parametrize("length", ["known", "unknown"])
def test_a_small_file_that_unfolds_to_much_takes_no_more_than_what_is_heard(length):
    """20 million zeros in 160 KB: 300 s at 16 kHz are 19 MB of floats, which may be held twice."""
    done = subprocess.run([sys.executable, "-c", _BOMB, length], capture_output=True, text=True, timeout=120)
    size, grown, message = done.stdout.split(" ", 2)
    assert int(size) < 400_000 and "longer than the 300 s that are heard" in message
    assert int(grown) * 1024 < (1 << 20 if length == "known" else 2 * 300 * 16000 * 4 + (8 << 20))


def test_many_channels_are_refused_by_the_bytes_they_take(monkeypatch, tmp_path: Path):
    monkeypatch.setattr("ualm.runtime.sound.limits.DECODED_BYTES", 1 << 20)
    file = encoded(np.zeros((40_000, 8)), 48000, format="WAV")
    for longest in (300, None):
        with pytest.raises(InputError, match="8 channels at 48000 Hz take more than 1 MiB; give one channel"):
            Sound.from_file(file, longest=longest)
    assert Sound.from_file(encoded(np.zeros((30_000, 8)), 48000, format="WAV")).samples.shape == (30_000, 8)
