"""Mutated sound files: read, with a note of anything odd, or refused in one line.

In any form (a path with any suffix, bytes, a file object, a pipe), with or without a longest sound: a file of a few
kilobytes never takes much memory or time.
"""

from __future__ import annotations

import functools
import io
import random
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from support.fuzzing import run_cases
from support.mutations import ODD_NUMBERS, changed_bytes
from support.recordings import ffmpeg, flac_total, rf64, wav
from ualm.runtime import Sound
from ualm.runtime.sound.sound import to_mono

pytestmark = pytest.mark.fuzz

CASES, SEED = 3000, 15
WRITTEN = (
    ("WAV", "PCM_16"),
    ("WAV", "FLOAT"),
    ("WAV", "PCM_24"),
    ("WAV", "ULAW"),
    ("WAV", "IMA_ADPCM"),
    ("WAVEX", "PCM_16"),
    ("W64", "PCM_16"),
    ("RF64", "PCM_16"),
    ("FLAC", "PCM_16"),
    ("FLAC", "PCM_24"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
    ("AIFF", "PCM_16"),
    ("AIFF", "FLOAT"),
    ("AU", "PCM_16"),
    ("CAF", "PCM_16"),
    ("CAF", "ALAC_16"),
    ("VOC", "PCM_16"),
    ("NIST", "PCM_16"),
)
FFMPEG = (("ipod", "aac"), ("mp4", "aac"), ("webm", "libopus"), ("matroska", "flac"), ("3gp", "aac"), ("mp3", "mp3"))
SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".aiff", ".raw", ".m4a", ".webm", ".txt", "")


@functools.cache
def originals() -> tuple[bytes, ...]:
    """A third of a second in every format, mono or stereo, and zeros that compress to almost nothing."""
    rng = np.random.default_rng(0)
    made = []
    for index, (container, subtype) in enumerate(WRITTEN):
        channels = 1 + index % 2
        time = np.arange(5000)[:, None] / 16000
        samples = 0.3 * np.sin(2 * np.pi * 440 * time) + 0.01 * rng.standard_normal((5000, channels))
        file = io.BytesIO()
        soundfile.write(file, samples, 16000, format=container, subtype=subtype)
        made.append(file.getvalue())
    tone = 0.3 * np.sin(np.arange(12000) / 9)[None]
    made += [ffmpeg(tone, container, codec, 48000) for container, codec in FFMPEG]
    made += [
        ffmpeg(tone, container, codec, 48000, pipe=True)
        for container, codec in (("webm", "libopus"), ("wav", "pcm_s16le"))
    ]
    zeros = io.BytesIO()
    soundfile.write(zeros, np.zeros((2_000_000, 2), np.int16), 16000, format="FLAC")
    return (*made, zeros.getvalue())


def header(rng: random.Random) -> bytes:
    """A handmade header, any of whose numbers may be odd, before some noise."""
    steps = np.frombuffer(rng.randbytes(2 * rng.randrange(2000)), "<i2")

    def odd(usual: int, bits: int) -> int:
        return rng.choice([usual, usual, rng.choice(ODD_NUMBERS), rng.randrange(1 << bits)]) % (1 << bits)

    what = rng.randrange(4)
    if what == 0:
        return wav(steps, odd(36, 32), odd(steps.nbytes, 32), rate=odd(16000, 32), channels=odd(1, 12))
    if what == 1:
        return rf64(steps, (odd(36, 64), odd(steps.nbytes, 64), odd(len(steps), 64)))
    if what == 2:
        flac = originals()[rng.choice([8, 9, len(originals()) - 1])]
        return flac_total(flac, odd(5000, 36))
    floats = np.frombuffer(rng.randbytes(4000), "<f4")  # NaN and infinity among them
    about = struct.pack("<HHIIHH", 3, odd(1, 8), odd(16000, 32), odd(64000, 32), odd(4, 16), odd(32, 8))
    body = b"WAVEfmt \x10\0\0\0" + about + b"data" + struct.pack("<I", odd(floats.nbytes, 32)) + floats.tobytes()
    return b"RIFF" + struct.pack("<I", odd(len(body), 32)) + body


class Pipe(io.RawIOBase):
    """Bytes that can be read once, in pieces."""

    def __init__(self, data: bytes, piece: int) -> None:
        self._data, self._piece = io.BytesIO(data), piece

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._data.read(self._piece if size < 0 else min(size, self._piece))


def a_changed_sound(rng: random.Random, folder: Path) -> str:
    what = rng.random()
    if what < 0.2:
        content = header(rng)
    elif what < 0.25:
        content = rng.randbytes(rng.choice([1, 10, 100, 5000]))
    elif what < 0.3:
        one, other = rng.sample(originals(), 2)
        content = one[: rng.randrange(len(one))] + other[rng.randrange(len(other)) :]
    else:
        content = rng.choice(originals())
        content = changed_bytes(rng, content) if rng.random() < 0.95 else content
    longest = rng.choice([None, 0.1, 10.0, 300.0])
    form = rng.randrange(4)
    if form == 0:
        path = folder / f"sound{rng.choice(SUFFIXES)}"
        path.write_bytes(content)
        sound = Sound.from_file(path, longest=longest)
    else:
        source = [content, io.BytesIO(content), Pipe(content, rng.choice([1000, 65536]))][form - 1]
        sound = Sound.from_file(source, longest=longest)
    assert sound.samples.size and np.isfinite(sound.samples).all()
    assert longest is None or len(sound.samples) <= longest * sound.sample_rate + 1
    assert all("\n" not in note for note in sound.notes)
    if longest is not None and sound.duration < longest:
        assert np.isfinite(to_mono(sound, 16000)).all()
    return "read, with a note" if sound.notes else "read"


def test_a_changed_sound_is_read_or_refused_in_a_line() -> None:
    counted = run_cases(a_changed_sound, CASES, SEED)
    assert min(counted["refused"], counted["read"], counted["read, with a note"]) > 0.02 * CASES


def the_largest_sound(rng: random.Random, folder: Path) -> str:
    """300 s at 48 kHz in 8 channels of 8 bits, in a sparse file of which only the header takes disk space."""
    size = 300 * 48000 * 8
    about = struct.pack("<HHIIHH", 1, 8, 48000, 48000 * 8, 8, 8)
    head = b"RIFF" + struct.pack("<I", size + 36) + b"WAVEfmt \x10\0\0\0" + about + b"data" + struct.pack("<I", size)
    with open(folder / "large.wav", "wb") as file:
        file.write(head)
        file.truncate(len(head) + size)
    return f"{Sound.from_file(folder / 'large.wav', longest=300).duration:g} s"


def test_the_largest_sound_that_is_taken_stays_below_the_limit_of_memory() -> None:
    assert run_cases(the_largest_sound, 1, SEED) == {"300 s": 1}
