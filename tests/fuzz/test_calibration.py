"""Mutated calibration files: refused in one line that names them, or held within the limits of a set."""

from __future__ import annotations

import functools
import io
import random
from pathlib import Path

import numpy as np
import pytest
import soundfile

from support.fuzzing import run_cases
from support.mutations import changed_bytes
from ualm.export.quality.calibration_set import MOST_EXAMPLES, MOST_SOUND_BYTES, CalibrationSet
from ualm.runtime import Sound

pytestmark = pytest.mark.fuzz

CASES, SEED = 300, 15


@functools.cache
def zeros(channels: int) -> bytes:
    """20 million frames, which compress to almost nothing: 640 MB as floats for 8 channels, 80 MB for one."""
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", 16000, channels, format="FLAC", subtype="PCM_16") as out:
        for _ in range(20):
            out.write(np.zeros((1_000_000, channels), np.int16))
    return file.getvalue()


@functools.cache
def noise(container: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, 0.1 * np.random.default_rng(0).standard_normal((4000, 2)), 16000, format=container)
    return file.getvalue()


def a_file(rng: random.Random, folder: Path, number: int) -> None:
    what = rng.random()
    if what < 0.1:
        (folder / f"{number}.flac").write_bytes(zeros(rng.choice([1, 2, 8])))
    elif what < 0.6:
        container = rng.choice(["WAV", "FLAC", "OGG", "AIFF"])
        content = noise(container)
        content = changed_bytes(rng, content) if rng.random() < 0.3 else content
        (folder / f"{number}.{container.lower()}").write_bytes(content)
    else:
        content = b"rain\nthunder\n" * rng.choice([1, 100, 3000, 500_000])
        content = changed_bytes(rng, content) if rng.random() < 0.3 else content
        (folder / f"{number}.txt").write_bytes(content)


def a_changed_set(rng: random.Random, folder: Path) -> str:
    (folder / "set").mkdir()
    for number in range(rng.choice([1, 1, 2, 8])):
        a_file(rng, folder / "set", number)
    found = CalibrationSet.read(folder / "set")
    sounds = [content for messages in found.conversations for _, content in messages if isinstance(content, Sound)]
    assert 0 < len(found.conversations) <= MOST_EXAMPLES
    assert sum(sound.samples.nbytes for sound in sounds) <= MOST_SOUND_BYTES
    return "read"


def test_a_changed_set_is_refused_in_a_line_or_held_within_limits() -> None:
    counted = run_cases(a_changed_set, CASES, SEED)
    assert min(counted["refused"], counted["read"]) > 0.1 * CASES
