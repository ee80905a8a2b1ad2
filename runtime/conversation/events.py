"""The events of a turn, in order: SegmentStarted, then TextDelta or SoundChunk, SegmentEnded, ..., TurnEnded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..vocabulary import Modality
from .segment import Segment


@dataclass(frozen=True)
class SegmentStarted:
    """A segment begins; ``segment`` counts from 0 in the turn."""

    segment: int
    modality: Modality


@dataclass(frozen=True)
class TextDelta:
    """More text. It never changes later: the deltas of a segment joined are its text."""

    segment: int
    text: str


@dataclass(frozen=True, eq=False)
class SoundChunk:
    """More sound: ``samples`` float32 [n], or [n, channels], ``sample_rate`` Hz, full scale 1.0 (may be passed).

    The first sample is number ``start`` of the segment's sound; the chunks of a segment joined are its sound.
    ``preroll``: seconds of sound to hold before playback begins, so that it does not starve: 0 where the engine is
    faster than real time, as measured so far; else enough for the longest sound that ``max_steps`` allows.
    """

    segment: int
    samples: np.ndarray
    sample_rate: int
    start: int
    preroll: float

    def __repr__(self) -> str:
        seconds = len(self.samples) / self.sample_rate
        return f"SoundChunk(segment={self.segment}, {seconds:.2f} s at {self.sample_rate} Hz, start={self.start})"


@dataclass(frozen=True, eq=False)
class SegmentEnded:
    """A segment is complete."""

    segment: int
    result: Segment


@dataclass(frozen=True)
class TurnEnded:
    """The last event of a turn.

    ``reason``: "eos" (the model is done), "max_steps" (a segment was cut by its limit) or "cancelled" (the turn is
    taken back, the session is as it was before). ``seconds`` from the turn's start: "hear" (the messages are rows and
    features), "prefill", "first" (the first rows were drawn) and "total".
    """

    reason: Literal["eos", "max_steps", "cancelled"]
    seconds: Mapping[str, float]


Event = SegmentStarted | TextDelta | SoundChunk | SegmentEnded | TurnEnded
