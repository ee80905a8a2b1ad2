"""The frame loop: prefill, modality, steps, segments.

A turn is any number of segments: one that ends with ``eot`` is followed by another of the same turn, one that ends with
``eos`` closes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np

from ..engines.protocol import EngineSequence, Frames
from ..errors import ModalityError
from ..sampling import AudioSampling, Mode, TextSampling
from ..vocabulary import CHOOSABLE, EOS, ROLES, Modality, Vocabulary

Finish = Literal["eos", "eot", "max_steps"]
#: Called after every few rows with the segment's modality and the rows drawn so far.
OnRows = Callable[[Modality, int], None]

#: Rows drawn between two reports to a caller that only wants to follow the progress.
ROWS_A_CALL = 10


@dataclass(frozen=True)
class Began:
    """The prompt is prefilled and a segment begins."""

    modality: Modality


@dataclass(frozen=True)
class Ended:
    """The current segment is complete."""

    finish: Finish


#: A segment is a Began, any number of Frames, and an Ended.
Step = Began | Frames | Ended


def answer(
    sequence: EngineSequence,
    prompt: Sequence[np.ndarray],
    vocabulary: Vocabulary,
    *,
    modality: Modality | None,
    mode: Mode,
    max_segments: int,
    audio: AudioSampling,
    text: TextSampling,
    rows_a_call: Callable[[], int] = lambda: ROWS_A_CALL,
) -> Iterator[Step]:
    """Answer ``prompt`` (rows and features, see ``prompt.prompt_parts``), segment by segment.

    ``modality`` forces the first segment's only. ``mode`` "reference" repeats the whole prompt before each further
    segment, as the published code does; "fixed" feeds only ``assistant``. ``rows_a_call`` returns how many
    rows to draw before control goes back to the caller. The rows that close the last segment are not in the cache yet:
    see :func:`closing_rows`.
    """
    assistant = vocabulary.special_row(ROLES["assistant"])[None]
    pending: list[np.ndarray] = list(prompt)
    for segment in range(max_segments):
        sequence.prefill([*pending, assistant])
        chosen = modality if segment == 0 and modality is not None else _choose(sequence)
        sequence.begin_segment(chosen, audio if chosen == "audio" else text, mode=mode, segment=segment)
        yield Began(chosen)
        while True:
            frames = sequence.run_frames(rows_a_call())
            yield frames
            if frames.end is not None:
                break
        finish = _finish(frames)
        yield Ended(finish)
        if finish != "eot":
            return
        pending = [closing_rows(frames.rows[-1], finish, vocabulary)]
        if mode == "reference":
            pending += prompt


def closing_rows(last: np.ndarray, finish: Finish, vocabulary: Vocabulary) -> np.ndarray:
    """Rows int32 [n, 8] that the cache still lacks after a segment with the last row ``last`` [8].

    A stop row is written with streams 1 to 7 zeroed. Of a segment that ``max_steps`` cut, the last row is written as it
    is, followed by the eos row that training would have seen ("fixed" mode).
    """
    if finish == "max_steps":
        return np.stack([last, vocabulary.special_row(EOS)])
    return vocabulary.special_row(int(last[0]))[None]


def _finish(frames: Frames) -> Finish:
    if frames.end == "limit":
        return "max_steps"
    return "eos" if frames.rows[-1, 0] == EOS else "eot"


def _choose(sequence: EngineSequence) -> Modality:
    chosen = CHOOSABLE[int(np.argmax(sequence.modality_logits()))]
    if chosen not in ("audio", "text"):
        raise ModalityError(
            f"the model chose to answer with {chosen!r}, which it has no parts for; force modality='audio' or 'text'"
        )
    return cast(Modality, chosen)
