"""Renders every sound of the domain once, with fluidsynth and the FluidR3 mono soundfont (MIT)."""

from __future__ import annotations

import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import soxr

from ....runtime.errors import ExportError
from .domain import DRUMS, HIT, HOP, INSTRUMENTS, LAST, SAMPLE_RATE, sounds

SOUNDFONT = Path("/usr/share/sounds/sf3/FluidR3Mono_GM.sf3")
#: Seconds between two renders, until a note is released, and before the first render.
_GAP, _HOLD, _START = 2.0, 1.2, 0.5
_TICKS_A_BEAT = 480
#: At MIDI's default tempo of 120 beats a minute.
_TICKS_A_SECOND = 2 * _TICKS_A_BEAT
_RENDER_RATE = 48000
#: An onset is so many samples (2 ms) into its frame.
_ONSET = 32
_PEAK = 0.5


def render_sounds(soundfont: Path = SOUNDFONT) -> np.ndarray:
    """float32 [sounds, LAST * HOP] at 16 kHz in the order of ``domain.sounds``, each with the same peak."""
    if shutil.which("fluidsynth") is None:
        raise ExportError("fluidsynth is not installed; install it with: apt-get install fluidsynth")
    if not soundfont.is_file():
        raise ExportError(f"{soundfont}: no such file; install it with: apt-get install fluidr3mono-gm-soundfont")
    names = sounds()
    with tempfile.TemporaryDirectory() as folder:
        midi, wav = Path(folder) / "sounds.mid", Path(folder) / "sounds.wav"
        midi.write_bytes(_midi(names))
        # no reverb and no chorus: a sound must not depend on the one before it
        command = ["fluidsynth", "-ni", "-q", "-R", "0", "-C", "0", "-g", "0.6", "-r", str(_RENDER_RATE)]
        command += ["-O", "float", "-T", "wav", "-F", str(wav), str(soundfont), str(midi)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not wav.is_file():
            raise ExportError(f"fluidsynth failed ({done.returncode}): {done.stderr.strip()[-200:]}")
        samples, rate = soundfile.read(wav, dtype="float32", always_2d=True)
    mono = soxr.resample(samples.mean(axis=1), rate, SAMPLE_RATE, quality="VHQ")
    return np.stack([_cut(mono, index, name) for index, name in enumerate(names)])


def _cut(mono: np.ndarray, index: int, name: tuple[str, int]) -> np.ndarray:
    begin = int((_START + index * _GAP - 0.05) * SAMPLE_RATE)
    part = mono[begin : begin + int(_GAP * SAMPLE_RATE)]
    peak = float(np.abs(part).max())
    if peak < 1e-3:
        raise ExportError(f"the soundfont renders {name} as silence; use {SOUNDFONT.name}")
    onset = int(np.argmax(np.abs(part) > 0.003 * peak + 1e-5))
    first = max(onset - _ONSET, 0)
    sound = part[first : first + LAST * HOP]
    return (sound * (_PEAK / np.abs(sound).max())).astype(np.float32)


def _midi(names: list[tuple[str, int]]) -> bytes:
    events: list[tuple[float, bytes]] = []
    for index, (name, note) in enumerate(names):
        at = _START + index * _GAP
        channel, key = (9, DRUMS[name]) if note == HIT else (0, note)
        for silenced in (0, 9):  # all sound off: no tail leaks into the next render
            events.append((at - 0.2, bytes([0xB0 | silenced, 120, 0])))
        if note != HIT:
            events.append((at - 0.15, bytes([0xC0, INSTRUMENTS[name]])))
        events.append((at, bytes([0x90 | channel, key, 100])))
        events.append((at + _HOLD, bytes([0x80 | channel, key, 0])))
    events.append((_START + len(names) * _GAP + 0.5, b"\xff\x2f\x00"))
    track, last = b"", 0
    for at, message in sorted(events, key=lambda event: event[0]):
        tick = round(at * _TICKS_A_SECOND)
        track += _variable_length(tick - last) + message
        last = tick
    header = b"MThd" + struct.pack(">IHHH", 6, 0, 1, _TICKS_A_BEAT)
    return header + b"MTrk" + struct.pack(">I", len(track)) + track


def _variable_length(value: int) -> bytes:
    parts = [value & 127]
    while value := value >> 7:
        parts.append(value & 127 | 128)
    return bytes(reversed(parts))
