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
    """A segment begins.

    Attributes
    ----------
    segment : int
        Its number; counts from 0 in the turn, in all events.
    modality : str
        "audio" or "text".

    Examples
    --------
    >>> for event in model.session().turn("a trumpet plays C5", modality="audio", max_seconds=0.1):
    ...     if isinstance(event, SegmentStarted):
    ...         print(event)
    SegmentStarted(segment=0, modality='audio')
    """

    segment: int
    modality: Modality


@dataclass(frozen=True)
class TextDelta:
    """More text. It never changes later: the deltas of a segment joined are its text.

    Attributes
    ----------
    segment : int
        Number of the segment in the turn.
    text : str
        What is added, never empty. An unfinished UTF-8 character is held back, and so is the end of the text while
        clean-up of spaces could change it.

    Examples
    --------
    >>> events = list(model.session().turn("what is a trumpet?", modality="text", max_tokens=5))
    >>> deltas = [event.text for event in events if isinstance(event, TextDelta)]
    >>> "".join(deltas) == events[-2].result.text
    True
    """

    segment: int
    text: str


@dataclass(frozen=True, eq=False)
class SoundChunk:
    """More sound: all that has become certain. The chunks of a segment joined are its sound.

    Attributes
    ----------
    segment : int
        Number of the segment in the turn.
    samples : numpy.ndarray
        float32 [n], or [n, channels] where a stage after the codec makes several; read-only, full scale 1.0 (may be
        passed).
    sample_rate : int
        Hz.
    start : int
        Number of the first sample in the segment's sound.
    preroll : float
        Seconds of sound to hold before playback begins, so that it does not starve: 0 where the engine is faster than
        real time, as measured so far; else enough for the longest sound that ``max_steps`` allows.

    Examples
    --------
    >>> for chunk in model.stream("a trumpet plays C5", profile="throughput", max_seconds=0.1):
    ...     print(chunk)
    SoundChunk(segment=0, 0.10 s at 16000 Hz, start=0)
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
    """A segment is complete.

    Attributes
    ----------
    segment : int
        Number of the segment in the turn.
    result : Segment
        The whole segment.

    Examples
    --------
    >>> for event in model.session().turn("a trumpet plays C5", modality="audio", max_seconds=0.1):
    ...     if isinstance(event, SegmentEnded):
    ...         print(event.result.sound.duration, event.result.finish)
    0.1 max_steps
    """

    segment: int
    result: Segment


@dataclass(frozen=True)
class TurnEnded:
    """The last event of a turn, which counts once this has been read.

    Attributes
    ----------
    reason : str
        "eos" (the model is done), "max_steps" (a segment was cut by its limit) or "cancelled" (the turn is taken back,
        the session is as it was before).
    seconds : mapping of str to float
        Seconds since the iteration began, which starts the turn: "hear" (the messages are rows and features),
        "prefill", "first" (the first rows were drawn) and "total". What was not reached is missing.

    Examples
    --------
    >>> *_, ended = model.session().turn("a trumpet plays C5", modality="audio", max_seconds=0.1)
    >>> ended.reason, sorted(ended.seconds)
    ('max_steps', ['first', 'hear', 'prefill', 'total'])
    """

    reason: Literal["eos", "max_steps", "cancelled"]
    seconds: Mapping[str, float]


Event = SegmentStarted | TextDelta | SoundChunk | SegmentEnded | TurnEnded
