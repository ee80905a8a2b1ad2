"""Codec frames in, sound out, piece by piece: the pieces joined are what decoding the whole sound at once gives."""

from __future__ import annotations

import math
import time

import numpy as np

from ..bundle.bundle import Bundle
from ..engines.protocol import Engine
from ..errors import EngineError, InputError
from ..vocabulary import check_codes
from .pacing import ChunkProfile, Pace, Pacer
from .post_codec import open_post_codec

#: Frames of one codec call at most: its memory grows with them (1 MB each for X-Codec), its speed does not.
CALL_FRAMES = 50


class SoundDecoder:
    """A streaming decoder for one sound after the other; what it holds does not grow with their length.

    A codec's sample depends on later frames as well: while a sound goes on, its last ``CodecIdentity.lookahead``
    samples are not certain, and are held back. All output is exact, up to the rounding of float32 sums.
    """

    def __init__(
        self,
        engine: Engine,
        bundle: Bundle,
        profile: str | ChunkProfile = "balanced",
        pace: Pace | None = None,
    ) -> None:
        """``pace``: how long calls take here, for a listener who plays the output at once; see ``pacing``."""
        self._engine, self._pace = engine, pace
        self._codec, self._vocabulary = bundle.manifest.codec, bundle.manifest.vocabulary
        self._profile = ChunkProfile.named(profile)
        stage = bundle.manifest.post_codec
        self._channels = 1 if stage is None else stage.channels
        #: Seconds that the stage behind the codec holds back.
        self._delay = 0.0 if stage is None else stage.delay / self._codec.sample_rate
        #: Hz of the output.
        self.sample_rate = bundle.manifest.sound_rate
        self._stream = engine.open_codec_stream()
        self._post = open_post_codec(bundle)
        self._forget()

    def __repr__(self) -> str:
        return f"SoundDecoder({self.sample_rate} Hz, {self._profile})"

    def push(self, latents: np.ndarray, *, ends: bool = False) -> np.ndarray:
        """Add frames float32 [m, latent_size]; returns the next piece of sound when one is due.

        Sound is float32 [n], or [n, channels] where a stage behind the codec makes several; often empty, n = 0.
        ``ends``: no frames follow, :meth:`flush` does.
        """
        return self.push_drawn(self._checked(latents), ends=ends)

    def push_drawn(self, frames: np.ndarray, *, ends: bool = False) -> np.ndarray:
        """Like :meth:`push`, for float32 frames of this model, which are known to be valid and are never written to."""
        if len(frames):
            self._waiting.append(frames)
            self._frames += len(frames)
        ready = self._ready()
        due = self._pacer.due_at_end(ready) if ends else self._pacer.due(ready)
        return self._send(self._decode(last=False), ready) if due else self._nothing()

    def frames_to_wait(self) -> int:
        """Frames, at least 1, that can be pushed at once before a piece can be due."""
        return self._pacer.rows_to_wait(self._ready())

    def push_codes(self, codes: np.ndarray) -> np.ndarray:
        """The same for codes, whole numbers [m, 8]; :class:`InputError` where they are not this model's."""
        checked = check_codes(codes, self._vocabulary.codebook_size)
        return self.push(self._engine.codes_to_latents(checked))

    def flush(self) -> np.ndarray:
        """The sound is over: returns the rest of it. The next frames begin another sound."""
        rest = self._send(self._decode(last=True), 0) if self._frames else self._nothing()
        self._forget()
        return rest

    def reset(self) -> None:
        """Drop the sound under way; the next frames begin another."""
        self._stream.reset()
        if self._post is not None:
            self._post.reset()
        self._forget()

    def preroll(self, frames: int) -> float:
        """Seconds of sound to hold before playback begins, if the sound has ``frames``; see :meth:`Pacer.preroll`."""
        return self._pacer.preroll(frames)

    def _ready(self) -> int:
        """Frames that are certain and wait; negative while the codec still lacks some of its look-ahead."""
        certain = self._frames * self._codec.hop_length - self._codec.lookahead - self._samples
        return certain // self._codec.hop_length

    def _checked(self, latents: np.ndarray) -> np.ndarray:
        """A copy: the frames may wait for a while."""
        size = self._codec.latent_size
        array = np.asarray(latents)
        if array.ndim != 2 or array.shape[1] != size or not np.issubdtype(array.dtype, np.floating):
            raise InputError(f"latents: {array.dtype} {list(array.shape)}; floats [frames, {size}] are expected")
        if not np.isfinite(array).all():
            raise InputError("latents: a frame holds NaN or infinity")
        return np.array(array, np.float32)

    def _forget(self) -> None:
        self._waiting: list[np.ndarray] = []
        self._frames = self._samples = 0
        frame_seconds = self._codec.hop_length / self._codec.sample_rate
        lookahead = math.ceil(self._codec.lookahead / self._codec.hop_length)
        self._pacer = Pacer(self._profile, frame_seconds, lookahead, self._pace, delay=self._delay)

    def _nothing(self) -> np.ndarray:
        return np.empty(0 if self._channels == 1 else (0, self._channels), np.float32)

    def _decode(self, *, last: bool) -> list[np.ndarray]:
        """Samples of all frames that wait; at the end of the sound the rest."""
        waiting = self._waiting or [np.empty((0, self._codec.latent_size), np.float32)]
        latents = waiting[0] if len(waiting) == 1 else np.concatenate(waiting)
        self._waiting = []
        # equal parts: the first of a sound must be large enough to give a sample
        size = max(CALL_FRAMES, 2 * self._codec.first_frames)
        parts = [latents] if len(latents) <= size else np.array_split(latents, math.ceil(len(latents) / size))
        pieces = []
        for number, frames in enumerate(parts, start=1):
            ends = last and number == len(parts)
            began = time.perf_counter()
            samples = self._stream.decode(frames, last=ends)
            if not np.isfinite(samples).all():
                raise EngineError(
                    "the codec gave NaN or infinity; its numbers are broken (an overflow, or damaged weights): "
                    "see what ualm doctor says of the bundle"
                )
            self._samples += len(samples)
            pieces.append(samples if self._post is None else self._post.push(samples, last=ends))
            if self._pace is not None and len(samples):
                # by the output: the last call computes the samples that were held back, the first does not yet
                self._pace.codec(math.ceil(len(samples) / self._codec.hop_length), time.perf_counter() - began)
        return pieces

    def _send(self, pieces: list[np.ndarray], frames: int) -> np.ndarray:
        sound = np.concatenate(pieces) if len(pieces) > 1 else pieces[0]
        if len(sound):
            self._pacer.sent(frames, len(sound) / self.sample_rate)
        # read-only: a whole sound may be made of the pieces
        sound.flags.writeable = False
        return sound
