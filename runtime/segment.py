"""A finished segment, and the builder that turns drawn frames into one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .bundle import Manifest
from .chat import TextCodec
from .engines.base import Engine, Frames
from .generate import Finish, Modality
from .sound import Sound
from .streaming import SoundStream, TextStream


@dataclass(frozen=True, eq=False)
class Segment:
    """One segment of the model's answer.

    ``rows`` int32 [T, 8] holds absolute ids as drawn, the stop row included if one was drawn. A text segment has
    ``text``; an audio segment has ``sound``, which is None only if a sound of "reference" mode stopped before its first
    frame was whole. ``finish`` is "eos" (the turn is over), "eot" (another segment follows) or "max_steps".
    """

    modality: Modality
    rows: np.ndarray
    text: str | None
    sound: Sound | None
    finish: Finish


class SegmentBuilder:
    """Collects the frames of one segment; ``pieces`` says whether sound is decoded as it comes or at the end."""

    def __init__(
        self, modality: Modality, manifest: Manifest, text: TextCodec, engine: Engine, *, pieces: bool
    ) -> None:
        self.modality, self._manifest = modality, manifest
        self._rows: list[np.ndarray] = []
        self._text = TextStream(text)
        self._sound = SoundStream(engine.decode_latents, manifest.codec, pieces=pieces)

    @property
    def rows(self) -> np.ndarray:
        """Rows so far, int32 [T, 8]."""
        return np.concatenate(self._rows)

    def push(self, frames: Frames) -> str | np.ndarray:
        """Add frames; returns the text or the samples (float32 [n]) that became certain."""
        self._rows.append(frames.rows)
        if self.modality == "audio":
            return self._sound.push(frames.latents)
        ids = frames.rows[: len(frames.rows) - (frames.end == "stop"), 0] - self._manifest.vocabulary.text_base
        return self._text.push(ids.tolist())

    def rest(self) -> str | np.ndarray:
        """What was still held back when the last frames had come."""
        return self._sound.finish() if self.modality == "audio" else self._text.finish()

    @property
    def samples_sent(self) -> int:
        """Samples that :meth:`push` and :meth:`rest` have returned."""
        return self._sound.sent

    def segment(self, finish: Finish) -> Segment:
        """The finished segment; call :meth:`rest` first."""
        rows = self.rows
        rows.flags.writeable = False
        if self.modality == "text":
            return Segment("text", rows, self._text.text, None, finish)
        codes = self._manifest.vocabulary.codes(rows if finish == "max_steps" else rows[:-1])
        samples, rate = self._sound.samples, self._manifest.codec.sample_rate
        return Segment("audio", rows, None, Sound(samples, rate, codes) if len(codes) else None, finish)
