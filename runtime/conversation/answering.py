"""An answer, piece by piece: rows are drawn, and the text or sound that they make certain is passed on.

The same pipeline serves a call that waits for the whole answer and a turn that streams it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..audio.pacing import PROFILES, ChunkProfile
from ..engines.protocol import EngineSequence
from ..sampling import AudioSampling, Mode, TextSampling
from ..vocabulary import Modality
from .loop import ROWS_A_CALL, Began, Ended, Finish, answer
from .resources import Resources
from .segment import Segment, SegmentBuilder


@dataclass(frozen=True)
class AnswerOptions:
    """How an answer is drawn and cut into pieces.

    ``modality`` forces the first segment's. ``live``: its sounds are played while they are made, so pieces follow the
    clock; else they follow ``profile`` only, and equal calls give equal bits.
    """

    modality: Modality | None
    audio: AudioSampling
    text: TextSampling
    mode: Mode = "fixed"
    max_segments: int = 8
    profile: ChunkProfile = PROFILES["throughput"]
    live: bool = False

    def seed(self, modality: Modality) -> int:
        """The seed of a segment of a modality."""
        return self.audio.seed if modality == "audio" else self.text.seed


@dataclass(frozen=True)
class SegmentBegan:
    """The prompt is prefilled, and segment ``index`` begins."""

    index: int
    builder: SegmentBuilder


@dataclass(frozen=True)
class Piece:
    """``rows`` were drawn (0 after the last), and ``content`` became certain: text, or sound float32 [n] or
    [n, channels]. It may be empty."""

    index: int
    builder: SegmentBuilder
    rows: int
    content: str | np.ndarray


@dataclass(frozen=True)
class SegmentDone:
    """A segment is complete."""

    index: int
    segment: Segment
    finish: Finish


#: A segment is a SegmentBegan, any number of Pieces, and a SegmentDone.
AnswerStep = SegmentBegan | Piece | SegmentDone


def answer_segments(
    sequence: EngineSequence,
    prompt: Sequence[np.ndarray],
    resources: Resources,
    options: AnswerOptions,
    rows_a_call: Callable[[SegmentBuilder], int] = lambda builder: ROWS_A_CALL,
) -> Iterator[AnswerStep]:
    """Answer ``prompt`` (rows and features) on ``sequence``, which alone draws rows.

    ``rows_a_call`` returns how many rows to draw before control goes back to the caller. The rows that close the last
    segment are not in the cache yet: see :func:`closing_rows`.
    """
    builder: SegmentBuilder | None = None

    def wanted() -> int:
        assert builder is not None  # rows are drawn for a segment that has begun
        return rows_a_call(builder)

    steps = answer(
        sequence,
        prompt,
        resources.vocabulary,
        modality=options.modality,
        mode=options.mode,
        max_segments=options.max_segments,
        audio=options.audio,
        text=options.text,
        rows_a_call=wanted,
    )
    index, began = 0, time.perf_counter()
    for step in steps:
        took = time.perf_counter() - began
        if isinstance(step, Began):
            seed = options.seed(step.modality)
            builder = resources.builder(step.modality, options.profile, seed, live=options.live)
            yield SegmentBegan(index, builder)
        else:
            assert builder is not None
            if isinstance(step, Ended):
                yield Piece(index, builder, 0, builder.rest())
                yield SegmentDone(index, builder.segment(step.finish), step.finish)
                index += 1
            else:
                if builder.modality == "audio":
                    resources.pace.row(took / len(step.rows))
                yield Piece(index, builder, len(step.rows), builder.push(step))
        began = time.perf_counter()  # excludes the time that a slow consumer took
