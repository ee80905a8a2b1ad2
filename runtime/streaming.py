"""What a segment says while it is being drawn: text that will not change any more, and samples of whole frames."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from .bundle import CodecIdentity
from .chat import TextCodec

#: Frames of the first pieces of a sound: the first is small so that it comes early, later ones cost less a frame.
FIRST_FRAMES, MOST_FRAMES = 5, 50
#: Frames decoded in one call at most: the codec needs about 25 MB for a second of sound.
WINDOW_FRAMES = 250
#: What could still become part of a clean-up pattern (" 's", " n't", " ' ", ...): spaces and its first characters, with
#: spaces between them that another pattern may take away. Behind any other end, no pattern can reach back.
_OPEN_END = re.compile(r" +(?:n(?: *')?|'(?: *[vr])?)? *$")


class TextStream:
    """Tokenizer ids in, text out, piece by piece; the pieces together are the text of all ids.

    Held back: an unfinished UTF-8 character, and words that clean-up of spaces could still change.
    """

    def __init__(self, codec: TextCodec) -> None:
        self._codec = codec
        self._ids: list[int] = []
        self._sent = 0

    def push(self, ids: list[int]) -> str:
        """Add ids; returns what became certain, possibly nothing."""
        self._ids += ids
        raw = self._codec.decode_raw(self._ids)
        # an unfinished character decodes to one replacement mark, which the next id may turn into something else
        end = len(raw) - 1 if raw.endswith("\ufffd") else len(raw)
        while opened := _OPEN_END.search(raw, 0, end):
            end = opened.start()
        return self._send(self._codec.clean_up(raw[:end]))

    def finish(self) -> str:
        """The rest, after the last id."""
        return self._send(self.text)

    @property
    def text(self) -> str:
        """Text of all ids so far."""
        return self._codec.decode(self._ids)

    def _send(self, text: str) -> str:
        delta = text[self._sent :]
        self._sent = max(self._sent, len(text))
        return delta


class SoundStream:
    """Codec latents in, samples out, piece by piece; the pieces together are the offline decode.

    A sample depends on ``context_left`` frames before and ``context_right`` frames after its own: a piece is decoded
    with that many frames around it, which are then cut off, so every sample sees exactly what offline decoding sees.
    """

    def __init__(
        self, decode: Callable[[np.ndarray], np.ndarray], codec: CodecIdentity, *, pieces: bool = True
    ) -> None:
        self._decode, self._codec = decode, codec
        self._latents = np.empty((0, codec.latent_size), np.float32)
        self._first = 0  # frame that _latents starts at
        self._done = 0  # frames sent
        self._next = FIRST_FRAMES if pieces else None
        self._samples: list[np.ndarray] = []

    def push(self, latents: np.ndarray) -> np.ndarray:
        """Add frames float32 [m, latent_size]; returns samples float32 [n] that became certain, possibly none."""
        self._latents = np.concatenate([self._latents, latents])
        ready = self._first + len(self._latents) - self._codec.context_right - self._done
        if self._next is None or ready < self._next:
            return np.empty(0, np.float32)
        self._next = min(2 * self._next, MOST_FRAMES)
        return self._send(ready)

    def finish(self) -> np.ndarray:
        """The rest, after the last frame."""
        pieces = []
        while (rest := self._first + len(self._latents) - self._done) > 0:
            pieces.append(self._send(min(rest, WINDOW_FRAMES)))
        return np.concatenate(pieces) if pieces else np.empty(0, np.float32)

    @property
    def sent(self) -> int:
        """Number of samples sent so far."""
        return self._done * self._codec.hop_length

    @property
    def samples(self) -> np.ndarray:
        """All samples sent so far, float32 [n]."""
        return np.concatenate(self._samples) if self._samples else np.empty(0, np.float32)

    def _send(self, frames: int) -> np.ndarray:
        if frames <= 0:
            return np.empty(0, np.float32)
        codec = self._codec
        start = self._done - self._first
        window = self._latents[: start + frames + codec.context_right]
        # a copy, so that the context is not kept; read-only, because the whole sound is made of the pieces
        samples = self._decode(window)[start * codec.hop_length : (start + frames) * codec.hop_length].copy()
        samples.flags.writeable = False
        self._done += frames
        surplus = max(start + frames - codec.context_left, 0)
        self._latents = self._latents[surplus:].copy()
        self._first += surplus
        self._samples.append(samples)
        return samples
