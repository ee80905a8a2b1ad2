"""A finished segment, and the builder that turns drawn frames into one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..audio.pacing import ChunkProfile, Pace
from ..audio.stream_decoder import SoundDecoder
from ..bundle.bundle import Bundle
from ..engines.protocol import Engine, Frames
from ..finish import FinishReason, finish_reason
from ..shown import shortened
from ..sound.sound import Sound
from ..text.stream import TextStream
from ..text.tokenizer import TextCodec
from ..vocabulary import STREAMS, Modality
from .loop import Finish


@dataclass(frozen=True, eq=False)
class Segment:
    """One segment of the model's answer.

    Attributes
    ----------
    modality : str
        "audio" or "text".
    rows : numpy.ndarray
        int32 [T, 8], read-only: absolute ids as drawn, the stop row included if one was drawn.
    text : str or None
        The text of a text segment; None for a sound.
    sound : Sound or None
        The sound of an audio segment, with its ``codes``; None for a text, and for a sound of "reference" mode that
        stopped before its first frame was complete.
    finish : str
        "eos" (the turn is over), "eot" (another segment follows) or "max_steps" (cut by its limit, and the turn is
        over). :attr:`finish_reason` says it in the words of :attr:`Sound.finish`.
    seed : int or None, default None
        What it was drawn with.

    Examples
    --------
    >>> [segment] = model.run([("user", "a trumpet plays C5")], modality="audio", max_seconds=0.1)
    >>> segment.rows.shape, segment.finish, segment.finish_reason  # 5 frames and 7 rows of delay
    ((12, 8), 'max_steps', 'max_seconds')
    """

    modality: Modality
    rows: np.ndarray
    text: str | None
    sound: Sound | None
    finish: Finish
    seed: int | None = None

    @property
    def finish_reason(self) -> FinishReason:
        """How it ended: "stop", or the limit that cut it, "max_seconds" of a sound, "max_tokens" of a text."""
        return finish_reason(self.modality, self.finish)

    def __repr__(self) -> str:
        content = repr(self.sound) if self.text is None else repr(shortened(self.text))
        return f"Segment({self.modality}, {len(self.rows)} rows, finish {self.finish!r}, seed {self.seed}, {content})"


class SegmentBuilder:
    """Collects the frames of one segment, and returns what they make certain in pieces that follow ``profile``."""

    def __init__(
        self,
        modality: Modality,
        bundle: Bundle,
        text: TextCodec,
        engine: Engine,
        profile: ChunkProfile,
        pace: Pace | None,
        seed: int,
    ) -> None:
        """``pace``: for a listener who plays the pieces as they come, see :class:`SoundDecoder`."""
        self._seed = seed
        self.modality, self._vocabulary = modality, bundle.manifest.vocabulary
        self._rows: list[np.ndarray] = []
        self._text = TextStream(text)
        self._pieces: list[np.ndarray] = []
        if modality == "audio":
            self._sound = SoundDecoder(engine, bundle, profile, pace)

    @property
    def rows(self) -> np.ndarray:
        """Rows so far, int32 [T, 8]."""
        return np.concatenate(self._rows)

    def push(self, frames: Frames) -> str | np.ndarray:
        """Add frames; returns text, or sound (float32 [n], or [n, channels]), that became certain."""
        self._rows.append(frames.rows)
        if self.modality == "audio":
            return self._keep(self._sound.push_drawn(frames.latents, ends=frames.end is not None))
        ids = frames.rows[: len(frames.rows) - (frames.end == "stop"), 0] - self._vocabulary.text_base
        return self._text.push(ids.tolist())

    def rows_to_wait(self) -> int:
        """Rows, at least 1, to draw at once before anything can become certain; any token of a text can.

        The first row is drawn alone, since the time that it takes is reported.
        """
        if self.modality == "text" or not self._rows:
            return 1
        delay = max(STREAMS - 1 - sum(map(len, self._rows)), 0)
        return delay + self._sound.frames_to_wait()

    def rest(self) -> str | np.ndarray:
        """What was still held back after the last frames."""
        return self._keep(self._sound.flush()) if self.modality == "audio" else self._text.finish()

    @property
    def samples_sent(self) -> int:
        """Samples that :meth:`push` and :meth:`rest` have returned."""
        return sum(map(len, self._pieces))

    def preroll(self, frames: int) -> float:
        """See :meth:`SoundDecoder.preroll`."""
        return self._sound.preroll(frames)

    def segment(self, finish: Finish) -> Segment:
        """The finished segment; call :meth:`rest` first."""
        rows = self.rows
        rows.flags.writeable = False
        if self.modality == "text":
            return Segment("text", rows, self._text.text, None, finish, self._seed)
        codes = self._vocabulary.codes(rows if finish == "max_steps" else rows[:-1])
        if not len(codes):
            return Segment("audio", rows, None, None, finish, self._seed)
        sound = Sound(
            np.concatenate(self._pieces),
            self._sound.sample_rate,
            codes,
            finish=finish_reason("audio", finish),
            seed=self._seed,
        )
        return Segment("audio", rows, None, sound, finish, self._seed)

    def _keep(self, piece: np.ndarray) -> np.ndarray:
        if len(piece):
            self._pieces.append(piece)
        return piece
