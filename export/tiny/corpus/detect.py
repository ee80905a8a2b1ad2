"""Judges what was played from samples alone: onsets, pitch, timbre and tempo. NumPy only; independent of codes.

A judge of the tiny model's gates: it hears decoded sound as a listener would. Timbre is the nearest of 74 stored
log-mel templates (``templates.npz``, made from the MIT soundfont by :func:`make_templates`); pitch comes from the
difference function (YIN, de Cheveigné and Kawahara 2002); an onset is a jump of the log-mel spectrum.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .domain import DRUMS, HIT, HOP, MAX_EVENTS, NOTES, SAMPLE_RATE, SLOTS, Clip, sounds

TEMPLATES = Path(__file__).with_name("templates.npz")
_BANDS = 40
#: Onsets: window and hop in samples, hops over which a jump is measured, smallest gap between two onsets in hops.
_WINDOW, _STEP, _LAG, _GAP = 256, 80, 3, 20
#: A jump counts above this share of the largest one, and above this many decibels on average over the bands.
_SHARE, _LEAST_JUMP = 0.16, 1.8
_FLOOR_DB = -60.0
#: Timbre considers levels down to so far below the loudest band: anything lower is the codec's noise.
_RANGE_DB = 45.0
#: Templates: window and hop in samples, and frames (an event lasts at least 8 codec frames, 160 ms).
_TIMBRE_WINDOW, _TIMBRE_STEP, _TIMBRE_FRAMES = 512, 160, 14
#: A template farther away than this, in decibels on average, is no match: the sound is not in the domain.
FARTHEST = 6.5
#: Tolerance of a note's pitch, in semitones, and of a slot's length, in seconds.
_TUNING, _TIMING = 0.4, 0.03
#: A period twice as long is the true one if it fits so many times better.
_OCTAVE = 0.25


@dataclass(frozen=True)
class Event:
    """One event heard. ``note``: MIDI number of the nearest key, ``HIT`` for drums, None if no key is near."""

    onset: float
    sound: str
    note: int | None
    distance: float


@dataclass(frozen=True)
class Heard:
    """``clip``: what was played, or None if the events form no clip of the domain; ``why`` gives the reason."""

    events: tuple[Event, ...]
    clip: Clip | None
    why: str = ""


class Judge:
    """Judges sounds of the domain: float32 samples at 16 kHz."""

    def __init__(self, templates: np.ndarray | None = None) -> None:
        """``templates``: float32 [74, frames, bands] in the order of ``domain.sounds``; None for the stored ones."""
        if templates is None:
            with np.load(TEMPLATES) as stored:
                templates = stored["levels"].astype(np.float32) / 2  # stored as half decibels
        self._templates = templates

    def __call__(self, samples: np.ndarray) -> Heard:
        starts = onsets(samples)
        if not starts:
            return Heard((), None, "silence")
        if len(starts) > MAX_EVENTS:
            return Heard((), None, f"{len(starts)} onsets")
        ends = [*starts[1:], len(samples) / SAMPLE_RATE]
        events = tuple(self._event(samples, a, b) for a, b in zip(starts, ends, strict=True))
        clip, why = _clip(events)
        return Heard(events, clip, why)

    def _event(self, samples: np.ndarray, start: float, end: float) -> Event:
        first, last = round(start * SAMPLE_RATE), round(end * SAMPLE_RATE)
        levels = timbre(samples[first:last])
        distances = np.abs(self._templates - levels).mean(axis=(1, 2))
        best = int(distances.argmin())
        sound = sounds()[best][0]
        note: int | None = HIT
        if sound not in DRUMS:
            heard = pitch(samples[first + HOP : last - HOP // 2])
            note = None if heard is None else min(NOTES, key=lambda key: abs(key - heard))
            if heard is None or note is None or abs(note - heard) > _TUNING:
                note = None
        return Event(start, sound, note, float(distances[best]))


def _clip(events: tuple[Event, ...]) -> tuple[Clip | None, str]:
    heard = {event.sound for event in events}
    if max(event.distance for event in events) > FARTHEST:
        return None, "no sound of the domain"
    if len(heard) > 1:
        return None, f"several sounds: {', '.join(sorted(heard))}"
    notes = tuple(event.note for event in events)
    if any(note is None for note in notes):
        return None, "a note between the keys"
    gaps = [b.onset - a.onset for a, b in itertools.pairwise(events)]
    fitting = [
        name for name, slot in SLOTS.items() if all(abs(gap - slot * HOP / SAMPLE_RATE) <= _TIMING for gap in gaps)
    ]
    if gaps and not fitting:
        return None, f"no tempo: {', '.join(f'{gap:.2f} s' for gap in gaps)} between onsets"
    return Clip(heard.pop(), tuple(n for n in notes if n is not None), fitting[0] if gaps else "moderate"), ""


def onsets(samples: np.ndarray) -> list[float]:
    """Seconds at which events begin, accurate to about 10 ms."""
    padded = np.concatenate([np.zeros(_WINDOW, np.float32), samples, np.zeros(_WINDOW, np.float32)])
    levels = _levels(padded, _WINDOW, _STEP)
    jump = np.zeros(len(levels))
    for i in range(_LAG + 1, len(levels)):
        before = levels[i - _LAG - 1 : i - _LAG + 1].max(axis=0)
        jump[i] = np.maximum(levels[i] - before, 0).mean()
    least = max(_SHARE * jump.max(initial=0.0), _LEAST_JUMP)
    found: list[float] = []
    i = 0
    while i < len(jump):
        if jump[i] >= least and jump[i] == jump[max(i - _GAP // 2, 0) : i + _GAP // 2].max():
            rise = i
            while rise and jump[rise - 1] > 0.5 * jump[i]:
                rise -= 1
            # the end of the window reaches the onset first
            found.append(max(0.0, (rise * _STEP - _WINDOW // 4) / SAMPLE_RATE))
            i += _GAP
        else:
            i += 1
    return found


def pitch(samples: np.ndarray) -> float | None:
    """Fractional MIDI number of a steady tone between about 400 and 1300 Hz; None if there is none."""
    size, longest = 1024, 48
    found = []
    for start in range(0, max(len(samples) - size - longest, 1), 160):
        part = samples[start : start + size + longest].astype(np.float64)
        if len(part) < size // 2 + longest or np.mean(part**2) < 1e-7:
            continue
        length = len(part) - longest
        difference = np.array([((part[:length] - part[lag : lag + length]) ** 2).sum() for lag in range(longest)])
        mean = np.cumsum(difference[1:]) / np.arange(1, longest)
        normal = np.concatenate([[1.0], difference[1:] / np.maximum(mean, 1e-12)])
        lag = next((i for i in range(12, longest - 1) if normal[i] < 0.2 and normal[i] <= normal[i + 1]), None)
        if lag is None:
            lag = 12 + int(np.argmin(normal[12 : longest - 1]))
            if normal[lag] > 0.5:
                continue
        near = normal[2 * lag - 1 : 2 * lag + 2]
        if 2 * lag + 2 < longest and normal[lag] > 0.08 and near.min() < _OCTAVE * normal[lag]:
            lag = 2 * lag - 1 + int(near.argmin())  # a strong second partial: the true period fits far better
        below, at, above = normal[lag - 1], normal[lag], normal[lag + 1]
        bend = below - 2 * at + above
        exact = lag + (0.5 * (below - above) / bend if abs(bend) > 1e-12 else 0.0)
        found.append(69 + 12 * np.log2(SAMPLE_RATE / exact / 440))
    return float(np.median(found)) if found else None


def timbre(samples: np.ndarray) -> np.ndarray:
    """Log-mel levels of an event's first 150 ms, float32 [frames, bands], in decibels below the loudest."""
    needed = _TIMBRE_WINDOW + (_TIMBRE_FRAMES - 1) * _TIMBRE_STEP
    padded = np.zeros(needed, np.float32)
    # half a window of padding, so that the attack is in the middle of the first frame
    part = samples[: needed - _TIMBRE_WINDOW // 2]
    padded[_TIMBRE_WINDOW // 2 : _TIMBRE_WINDOW // 2 + len(part)] = part
    levels = _levels(padded, _TIMBRE_WINDOW, _TIMBRE_STEP)
    return np.maximum(levels - levels.max(), -_RANGE_DB).astype(np.float32)


def make_templates(rendered: np.ndarray) -> np.ndarray:
    """Templates int8 [sounds, frames, bands], in half decibels, of renders float32 [sounds, samples]."""
    cut = (min(SLOTS.values()) * HOP) - HOP // 2
    return np.stack([np.round(2 * timbre(sound[:cut])) for sound in rendered]).astype(np.int8)


def _levels(samples: np.ndarray, window: int, step: int) -> np.ndarray:
    """Mel levels in decibels, float64 [frames, bands], at least ``_FLOOR_DB``."""
    frames = np.lib.stride_tricks.sliding_window_view(samples, window)[::step]
    spectrum = np.abs(np.fft.rfft(frames * np.hanning(window + 2)[1:-1], axis=1)) ** 2 / window
    return 10 * np.log10(spectrum @ _mel_bands(window).T + 10 ** (_FLOOR_DB / 10))


def _mel_bands(window: int) -> np.ndarray:
    frequencies = np.linspace(0, SAMPLE_RATE / 2, window // 2 + 1)
    top = 2595 * np.log10(1 + 7900 / 700)
    bottom = 2595 * np.log10(1 + 60 / 700)
    edges = 700 * (10 ** (np.linspace(bottom, top, _BANDS + 2) / 2595) - 1)
    rising = (frequencies - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - frequencies) / (edges[2:] - edges[1:-1])[:, None]
    bands = np.clip(np.minimum(rising, falling), 0, None)
    # a narrow band may fall between two bins, and takes the nearest
    for band in np.flatnonzero(bands.sum(1) == 0):
        bands[band, np.abs(frequencies - edges[band + 1]).argmin()] = 1.0
    return bands / bands.sum(1, keepdims=True)
