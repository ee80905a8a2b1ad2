"""The sounds that the tiny model knows: what can be played, when, and the frames that make it up.

Everything is monophonic and every onset lies on the codec's 20 ms grid, so a sound gives the same 320-sample frames
wherever it is played, and the whole domain has a few thousand distinct frames.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

SAMPLE_RATE = 16000
#: Samples of a codec frame.
HOP = 320

#: Melodic instruments and their General MIDI programs (counted from 0).
INSTRUMENTS = {
    "piano": 0,
    "vibraphone": 11,
    "marimba": 12,
    "guitar": 24,
    "trumpet": 56,
    "oboe": 68,
    "clarinet": 71,
    "steel drum": 114,
}
#: Drums and their General MIDI keys.
DRUMS = {
    "kick drum": 36,
    "snare drum": 38,
    "hand clap": 39,
    "rimshot": 37,
    "closed hi-hat": 42,
    "open hi-hat": 46,
    "low tom": 45,
    "crash cymbal": 49,
    "cowbell": 56,
    "tambourine": 54,
}
#: White keys from C5 to C6, as MIDI note numbers.
NOTES = {72: "C5", 74: "D5", 76: "E5", 77: "F5", 79: "G5", 81: "A5", 83: "B5", 84: "C6"}
NOTE_NUMBERS = {name: number for number, name in NOTES.items()}
#: Stands for the note of a drum hit.
HIT = -1
#: Frames from one onset to the next.
SLOTS = {"quick": 8, "moderate": 14, "slow": 22}
#: Frames of the last event, which no other event cuts short.
LAST = 24
#: Silent frames after it: the codec's residual paths delay a sample by up to two frames.
TAIL = 2
MAX_EVENTS = 3
#: Percent of the sequences of two and three notes that training never sees.
HELD_OUT_PERCENT = 15


@dataclass(frozen=True)
class Clip:
    """One to three events of one sound. ``notes``: MIDI numbers, or ``HIT`` for each hit of a drum."""

    sound: str
    notes: tuple[int, ...]
    tempo: str = "moderate"

    def __post_init__(self) -> None:
        if not 1 <= len(self.notes) <= MAX_EVENTS or self.tempo not in SLOTS:
            raise ValueError(f"no such clip: {self.sound!r}, {self.notes!r}, {self.tempo!r}")
        allowed = {HIT} if self.sound in DRUMS else set(NOTES)
        if (self.sound not in INSTRUMENTS and self.sound not in DRUMS) or not set(self.notes) <= allowed:
            raise ValueError(f"no such clip: {self.sound!r}, {self.notes!r}")
        if len(self.notes) == 1 and self.tempo != "moderate":
            raise ValueError(f"a single event has no tempo, but tempo = {self.tempo!r}")

    @property
    def is_drum(self) -> bool:
        return self.sound in DRUMS

    @property
    def direction(self) -> str:
        """The contour of the notes: "rising", "falling", "level" or "turning"; "single" for one event or a drum."""
        pairs = list(zip(self.notes, self.notes[1:], strict=False))
        if self.is_drum or not pairs:
            return "single"
        if all(a < b for a, b in pairs):
            return "rising"
        if all(a > b for a, b in pairs):
            return "falling"
        return "level" if len(set(self.notes)) == 1 else "turning"

    @property
    def frames(self) -> int:
        return SLOTS[self.tempo] * (len(self.notes) - 1) + LAST + TAIL

    @property
    def onsets(self) -> list[float]:
        """Seconds at which each event begins."""
        return [i * SLOTS[self.tempo] * HOP / SAMPLE_RATE for i in range(len(self.notes))]

    @property
    def seconds(self) -> float:
        return self.frames * HOP / SAMPLE_RATE

    def events(self) -> list[tuple[int, int]]:
        """(note, frames) of each event."""
        slot = SLOTS[self.tempo]
        return [(note, slot) for note in self.notes[:-1]] + [(self.notes[-1], LAST)]


def held_out(clip: Clip) -> bool:
    """Whether a sequence (of an instrument, at any tempo) is held out of training, in every task.

    Single notes and drums do not count as sequences: a sound never heard cannot be known.
    """
    if clip.is_drum or len(clip.notes) < 2:
        return False
    return in_share(f"{clip.sound}:{clip.notes}", HELD_OUT_PERCENT)


def in_share(name: str, percent: int) -> bool:
    """Whether an item of this name is among the ``percent`` that are held out: the same on every machine."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:4], "big") % 100 < percent


def trained(make: Callable[[], Clip]) -> Clip:
    """The first clip from ``make`` that training may see."""
    return drawn_until(lambda clip: not held_out(clip), make)


def drawn_until(wanted: Callable[[Clip], bool], make: Callable[[], Clip]) -> Clip:
    """The first clip from ``make`` that is wanted."""
    while not wanted(clip := make()):
        pass
    return clip


def random_clip(
    rng: random.Random,
    *,
    counts: tuple[float, ...] = (1.0, 1.0, 1.0),
    drums: float = 0.15,
    held: bool = False,
) -> Clip:
    """A clip whose number of events is drawn by weight; ``held``: one of the held-out sequences, otherwise none of
    them."""
    while True:
        count = rng.choices((1, 2, 3), counts)[0]
        tempo = rng.choice(list(SLOTS)) if count > 1 else "moderate"
        if rng.random() < drums:
            clip = Clip(rng.choice(list(DRUMS)), (HIT,) * count, tempo)
        else:
            notes = tuple(rng.choice(list(NOTES)) for _ in range(count))
            clip = Clip(rng.choice(list(INSTRUMENTS)), notes, tempo)
        if clip.is_drum or count == 1 or held_out(clip) == held:
            return clip


def sounds() -> list[tuple[str, int]]:
    """Every (sound, note) of the domain, in order; a drum's note is ``HIT``."""
    return [(name, note) for name in INSTRUMENTS for note in NOTES] + [(name, HIT) for name in DRUMS]


class FrameIndex:
    """Numbers of the distinct frames of the domain; frame 0 is silence.

    An event of d frames plays the first d frames of its sound, the last with a 10 ms fade, so that every frame is
    identified by (sound, note, position, whether it is the faded one).
    """

    def __init__(self) -> None:
        #: (sound, note, position, faded) of each frame; None for silence.
        self.labels: list[tuple[str, int, int, bool] | None] = [None]
        for name, note in sounds():
            self.labels += [(name, note, position, False) for position in range(LAST - 1)]
            self.labels += [(name, note, length - 1, True) for length in sorted({*SLOTS.values(), LAST})]
        self._numbers = {label: number for number, label in enumerate(self.labels)}

    def number(self, label: tuple[str, int, int, bool] | None) -> int:
        """The frame of a label."""
        return self._numbers[label]

    def ids(self, clip: Clip) -> np.ndarray:
        """Frame numbers int64 [T] of a clip."""
        found: list[int] = []
        for note, length in clip.events():
            found += [self._numbers[clip.sound, note, i, False] for i in range(length - 1)]
            found.append(self._numbers[clip.sound, note, length - 1, True])
        return np.array(found + [0] * TAIL)


class FrameBank(FrameIndex):
    """The distinct frames themselves, float32 [N, 320]."""

    def __init__(self, rendered: np.ndarray) -> None:
        """``rendered``: float32 [sounds, LAST * HOP] in the order of :func:`sounds`."""
        super().__init__()
        names = sounds()
        if rendered.shape != (len(names), LAST * HOP):
            raise ValueError(f"renders of shape {rendered.shape}, expected {(len(names), LAST * HOP)}")
        fade = (0.5 + 0.5 * np.cos(np.pi * (np.arange(HOP // 2) + 0.5) / (HOP // 2))).astype(np.float32)
        place = {name: index for index, name in enumerate(names)}
        self.frames = np.zeros((len(self.labels), HOP), np.float32)
        for number, label in enumerate(self.labels):
            if label is not None:
                name, note, position, faded = label
                self.frames[number] = rendered[place[name, note], position * HOP : (position + 1) * HOP]
                if faded:
                    self.frames[number, HOP // 2 :] *= fade

    def samples(self, clip: Clip) -> np.ndarray:
        """Samples float32 [T * 320] of a clip, at 16 kHz."""
        return self.frames[self.ids(clip)].reshape(-1)
