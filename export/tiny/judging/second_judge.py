"""A second, independent judge of what was played: librosa's onset and pitch detection, without templates.

:mod:`detect` labelled some of what the tiny model was trained on, and its templates are the training renders. A judge
that shares neither its code nor its templates shows how far it can be trusted. An onset is a peak of SuperFlux strength
(Böck and Widmer 2013), pitch and whether there is one come from probabilistic YIN (Mauch and Dixon 2014). The
thresholds were set on synthetic tones and on renders of two soundfonts, TimGM6mb and the training one; never on a
model's output.

It judges the count, the tempo and the notes. It leaves timbre out: templates made from TimGM6mb identify the instrument
or drum of only 45 of the 74 training renders, which confirms nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ....runtime.errors import ExportError
from ....runtime.process.extras import install_hint
from ....runtime.process.stopping import raise_interrupt
from ..corpus.detect import Heard
from ..corpus.domain import HIT, HOP, MAX_EVENTS, NOTES, SAMPLE_RATE, SLOTS, Clip

#: Onsets: window and hop in samples, mel bands and their range in hertz.
_WINDOW, _STEP, _BANDS, _LOWEST, _HIGHEST = 320, 80, 30, 60.0, 7900.0
#: Anything so many decibels below the loudest is silence.
_RANGE_DB = 40.0
#: SuperFlux: hops between the frames compared, and bands over which the earlier one takes its maximum (vibrato is no
#: onset).
_LAG, _WIDTH = 4, 3
#: A peak of the strength exceeds its mean over 80 ms on each side by this share of the highest peak.
_DELTA = 0.11
#: In hops: the smallest distance between onsets, the range in which a peak is the highest, and half the span of that
#: mean.
_WAIT, _PEAK, _MEAN = 16, 6, 16
#: Silence before and after, in samples, so that the first onset is a rise too.
_FRONT, _BEHIND = 1600, 800
#: No sample above this: silence.
_SILENT = 0.003
#: Pitch is detected at twice the rate: at 16 kHz the period of C6 is 15.3 samples, which YIN, whose periods are whole
#: samples, may mistake for half of 31.
_PITCH_RATE = 2 * SAMPLE_RATE
#: Its window and hop in samples of that rate, the range in hertz (about F#4 to C#6), steps in semitones.
_PITCH_WINDOW, _PITCH_STEP, _DEEPEST, _SHRILLEST, _RESOLUTION = 2048, 320, 370.0, 1120.0, 0.2
#: Seconds: the attack, which pitch detection skips, its margin before the next onset, and how far into an event it
#: looks.
_ATTACK, _GUARD, _LOOK = 0.02, 0.02, 0.2
#: A sound is pitched if half of its windows have a pitch with this probability. Among the renders, notes have 0.5 or
#: more, drums less than 0.04, except the cowbell, whose pitch is below C5.
_VOICED = 0.2
#: Tolerance of a note's pitch, in semitones, and of an onset's time at its tempo, in seconds.
_TUNING, _TIMING = 0.5, 0.05


@dataclass(frozen=True)
class SecondHeard:
    """What the second judge heard.

    ``notes``: MIDI number of the key of each event, None if it is unpitched or on no key. ``onsets``: seconds.
    ``tempo``: a name of ``domain.SLOTS``, "moderate" for one event as in ``domain.Clip``, None if no tempo fits the
    onsets. ``why``: what keeps the events from being a clip of one sound; "" if nothing does.
    """

    notes: tuple[int | None, ...]
    onsets: tuple[float, ...]
    tempo: str | None
    why: str = ""


@dataclass(frozen=True)
class Agreement:
    """Whether two judges heard the same; None if there was nothing to compare."""

    count: bool
    tempo: bool | None
    notes: bool | None

    @property
    def whole(self) -> bool:
        """Whether they agree in everything that both can judge."""
        return self.count and self.tempo is not False and self.notes is not False


class SecondJudge:
    """Judges sounds of the domain: float32 samples [n] at 16 kHz. Needs librosa (the extra ``judge``)."""

    def __init__(self) -> None:
        try:
            import librosa
        except ImportError as error:
            raise_interrupt(error)
            raise ExportError(
                f"the second judge needs librosa ({error}); install it with: {install_hint('judge')}"
            ) from error
        self._librosa = librosa

    def __call__(self, samples: np.ndarray) -> SecondHeard:
        if samples.ndim != 1:
            raise ExportError(f"samples of shape {samples.shape}; give one channel, [n]")
        if np.abs(samples).max(initial=0.0) < _SILENT:
            return SecondHeard((), (), None, "silence")
        onsets = self._onsets(samples)
        pitches = self._pitches(samples, onsets)
        notes = tuple(_key(pitch) for pitch in pitches)
        tempo = _tempo(onsets)
        return SecondHeard(notes, onsets, tempo, _why(onsets, tempo, notes, pitches))

    def _onsets(self, samples: np.ndarray) -> tuple[float, ...]:
        padded = np.concatenate([np.zeros(_FRONT, np.float32), samples, np.zeros(_BEHIND, np.float32)])
        energies = self._librosa.feature.melspectrogram(
            y=padded,
            sr=SAMPLE_RATE,
            n_fft=_WINDOW,
            hop_length=_STEP,
            n_mels=_BANDS,
            fmin=_LOWEST,
            fmax=_HIGHEST,
            center=False,
        )
        levels = self._librosa.power_to_db(energies, ref=np.max, top_db=_RANGE_DB)
        strength = self._librosa.onset.onset_strength(
            S=levels, sr=SAMPLE_RATE, hop_length=_STEP, lag=_LAG, max_size=_WIDTH, center=False
        )
        found = self._librosa.onset.onset_detect(
            onset_envelope=strength,
            sr=SAMPLE_RATE,
            hop_length=_STEP,
            units="samples",
            delta=_DELTA,
            wait=_WAIT,
            pre_max=_PEAK,
            post_max=_PEAK,
            pre_avg=_MEAN,
            post_avg=_MEAN + 1,
        )
        return tuple(max(0.0, (int(at) + _WINDOW // 2 - _FRONT) / SAMPLE_RATE) for at in found)

    def _pitches(self, samples: np.ndarray, onsets: tuple[float, ...]) -> list[float | None]:
        """Fractional MIDI number of each event; None if it is unpitched or too short to judge."""
        finer = self._librosa.resample(samples, orig_sr=SAMPLE_RATE, target_sr=_PITCH_RATE)
        ends = [*(onset - _GUARD for onset in onsets[1:]), len(samples) / SAMPLE_RATE]
        parts = [
            finer[round((start + _ATTACK) * _PITCH_RATE) : round(min(end, start + _LOOK) * _PITCH_RATE)]
            for start, end in zip(onsets, ends, strict=True)
        ]
        long_enough = [number for number, part in enumerate(parts) if len(part) >= _PITCH_WINDOW]
        found: list[float | None] = [None] * len(parts)
        if not long_enough:
            return found
        # as channels of one call, which prepares its model of pitch transitions only once
        shortest = min(len(parts[number]) for number in long_enough)
        hertz, _, probabilities = self._librosa.pyin(
            np.stack([parts[number][:shortest] for number in long_enough]),
            fmin=_DEEPEST,
            fmax=_SHRILLEST,
            sr=_PITCH_RATE,
            frame_length=_PITCH_WINDOW,
            hop_length=_PITCH_STEP,
            resolution=_RESOLUTION,
            fill_na=None,
            center=False,
        )
        for number, tones, sure in zip(long_enough, hertz, probabilities, strict=True):
            if np.median(sure) >= _VOICED:
                found[number] = float(69 + 12 * np.log2(np.median(tones) / 440))
        return found


def agreement(first: Heard, second: SecondHeard) -> Agreement:
    """Whether both judges heard the same count, tempo and notes, even if the first heard no clip."""
    if not first.events:  # silence, or more onsets than a clip has: the first judge stops there
        many = first.why != "silence"
        return Agreement(len(second.onsets) > MAX_EVENTS if many else not second.onsets, None, None)
    if len(first.events) != len(second.onsets):
        return Agreement(False, None, None)
    tempo = None if len(first.events) == 1 else _tempo([event.onset for event in first.events]) == second.tempo
    notes = tuple(None if event.note == HIT else event.note for event in first.events)
    return Agreement(True, tempo, notes == second.notes)


def agrees(clip: Clip | None, second: SecondHeard) -> bool:
    """Whether the second judge heard ``clip``, timbre aside; for None, whether it heard no clip either.

    The second judge accepts events of several instruments as a clip, so False for None is no contradiction then.
    """
    if clip is None:
        return second.why != ""
    notes = tuple(None if note == HIT else note for note in clip.notes)
    return not second.why and notes == second.notes and clip.tempo == second.tempo


def _key(pitch: float | None) -> int | None:
    if pitch is None:
        return None
    key = min(NOTES, key=lambda note: abs(note - pitch))
    return key if abs(key - pitch) <= _TUNING else None


def _tempo(onsets: Sequence[float]) -> str | None:
    gaps = [after - before for before, after in itertools.pairwise(onsets)]
    if not gaps:
        return "moderate" if onsets else None
    fits = (name for name, slot in SLOTS.items() if all(abs(gap - slot * HOP / SAMPLE_RATE) <= _TIMING for gap in gaps))
    return next(fits, None)


def _why(
    onsets: Sequence[float], tempo: str | None, notes: Sequence[int | None], pitches: Sequence[float | None]
) -> str:
    if not 1 <= len(onsets) <= MAX_EVENTS:
        return f"{len(onsets)} onsets"
    if tempo is None:
        gaps = (after - before for before, after in itertools.pairwise(onsets))
        return f"no tempo: {', '.join(f'{gap:.2f} s' for gap in gaps)} between onsets"
    between = (
        note is None and pitch is not None and min(NOTES) < pitch < max(NOTES)
        for note, pitch in zip(notes, pitches, strict=True)
    )
    if any(between):
        return "a note between the keys"
    if 0 < sum(note is None for note in notes) < len(notes):
        return "notes and hits"
    return ""
