"""Short deterministic sounds for tests: a few partials with a moving envelope over faint noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile


def make_sound(seconds: float, rate: int = 16000, channels: int = 1, seed: int = 0) -> np.ndarray:
    """float32 ``[channels, round(seconds * rate)]``; every channel is different, so that a wrong mix or channel
    shows."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    sound = np.zeros((channels, time.size))
    for channel in range(channels):
        for _ in range(4):
            pitch, wobble, phase = rng.uniform(90, 0.4 * rate), rng.uniform(1, 9), rng.uniform(0, 6.28)
            level = rng.uniform(0.03, 0.15)
            sound[channel] += level * (1.2 + np.sin(wobble * time + phase)) * np.sin(2 * np.pi * pitch * time + phase)
        # an offset, so that a missing zero-mean normalisation shows too
        sound[channel] += 0.02 + 0.01 * rng.standard_normal(time.size)
    return sound.astype(np.float32)


def write_sound(path: Path, samples: np.ndarray, rate: int) -> Path:
    """Write ``[channels, n]`` as a float WAV file, so that reading it gives the same samples back."""
    soundfile.write(path, samples.T, rate, subtype="FLOAT")
    return path
