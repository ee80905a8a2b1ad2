"""The frame loop: prefill, modality, steps, segments.

One turn is any number of segments: a segment that ends with ``eot`` is followed by another of the same turn, one that
ends with ``eos`` closes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np

from .engines.base import Sequence as EngineSequence
from .errors import ModalityError
from .sampling import AudioSampling, Mode, TextSampling
from .vocabulary import CHOOSABLE, EOS, EOT, ROLES, Vocabulary

Modality = Literal["audio", "text"]
Finish = Literal["eos", "eot", "max_steps"]
#: Called after every few rows with the segment's modality and the rows drawn so far.
OnRows = Callable[[Modality, int], None]

#: Rows drawn between two looks at the caller (progress, cancel).
ROWS_A_CALL = 10


@dataclass(frozen=True, eq=False)
class DrawnSegment:
    """A finished segment: rows int32 [T, 8] with the stop row (if one was drawn), codec latents float32 [frames, D]."""

    modality: Modality
    rows: np.ndarray
    latents: np.ndarray
    finish: Finish


def turn(
    sequence: EngineSequence,
    prompt: Sequence[np.ndarray],
    vocabulary: Vocabulary,
    *,
    modality: Modality | None,
    mode: Mode,
    max_segments: int,
    audio: AudioSampling,
    text: TextSampling,
    on_rows: OnRows | None = None,
) -> Iterator[DrawnSegment]:
    """Answer ``prompt`` (rows and features, see ``chat.prompt_parts``), segment by segment.

    ``modality`` forces the first segment's only. ``mode`` "reference" repeats the whole prompt before each further
    segment, as the published code does; "fixed" feeds only ``assistant``.
    """
    assistant = vocabulary.special_row(ROLES["assistant"])[None]
    pending: list[np.ndarray] = list(prompt)
    for segment in range(max_segments):
        sequence.prefill([*pending, assistant])
        chosen = modality if segment == 0 and modality is not None else _choose(sequence)
        sequence.begin_segment(chosen, audio if chosen == "audio" else text, mode=mode, segment=segment)
        drawn = _draw(sequence, chosen, on_rows)
        yield drawn
        if drawn.finish != "eot":
            return
        pending = [_special_only(drawn.rows[-1:])]
        if mode == "reference":
            pending += prompt


def _special_only(row: np.ndarray) -> np.ndarray:
    """A stop row as the cache holds it: streams 1 to 7 zeroed."""
    first = np.zeros_like(row)
    first[:, 0] = row[:, 0]
    return first


def _choose(sequence: EngineSequence) -> Modality:
    chosen = CHOOSABLE[int(np.argmax(sequence.modality_logits()))]
    if chosen not in ("audio", "text"):
        raise ModalityError(
            f"the model chose to answer with {chosen!r}, which it has no parts for; force modality='audio' or 'text'"
        )
    return cast(Modality, chosen)


def _draw(sequence: EngineSequence, modality: Modality, on_rows: OnRows | None) -> DrawnSegment:
    rows, latents, count = [], [], 0
    while True:
        frames = sequence.run_frames(ROWS_A_CALL)
        rows.append(frames.rows)
        latents.append(frames.latents)
        count += len(frames.rows)
        if on_rows is not None:
            on_rows(modality, count)
        if frames.end is not None:
            break
    drawn = np.concatenate(rows)
    finish: Finish = "max_steps"
    if frames.end == "stop":
        finish = "eos" if drawn[-1, 0] == EOS else "eot"
        assert drawn[-1, 0] in (EOS, EOT)
    return DrawnSegment(modality, drawn, np.concatenate(latents), finish)
