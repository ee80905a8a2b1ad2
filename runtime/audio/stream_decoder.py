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

    Made by :meth:`Model.decoder`. One thread uses it at a time.

    Parameters
    ----------
    engine : Engine
        What computes the codec.
    bundle : Bundle
        The opened bundle.
    profile : str or ChunkProfile, default "balanced"
        How large the pieces are.
    pace : Pace or None, default None
        How long calls take here, for a listener who plays the output immediately; see ``pacing``. None: pieces follow
        the profile alone.

    Attributes
    ----------
    sample_rate : int
        Hz of the output.

    Raises
    ------
    InputError
        For an unknown profile.

    Notes
    -----
    A codec's sample depends on later frames as well: while a sound goes on, its last ``CodecIdentity.lookahead``
    samples are not certain, and are held back. All output is exact, up to the rounding of float32 sums.

    Examples
    --------
    >>> decoder = model.decoder("first_sound")
    >>> codes = np.zeros((40, 8), np.int16)  # two sounds of 20 frames, 320 samples each
    >>> [sum(map(len, (decoder.push_codes(part), decoder.flush()))) for part in np.split(codes, 2)]
    [6400, 6400]
    """

    def __init__(
        self,
        engine: Engine,
        bundle: Bundle,
        profile: str | ChunkProfile = "balanced",
        pace: Pace | None = None,
    ) -> None:
        self._engine, self._pace = engine, pace
        self._codec, self._vocabulary = bundle.manifest.codec, bundle.manifest.vocabulary
        self._profile = ChunkProfile.named(profile)
        stage = bundle.manifest.post_codec
        self._channels = 1 if stage is None else stage.channels
        #: Seconds that the stage after the codec holds back.
        self._delay = 0.0 if stage is None else stage.delay / self._codec.sample_rate
        #: Hz of the output.
        self.sample_rate = bundle.manifest.sound_rate
        self._stream = engine.open_codec_stream()
        self._post = open_post_codec(bundle)
        self._forget()

    def __repr__(self) -> str:
        return f"SoundDecoder({self.sample_rate} Hz, {self._profile})"

    def push(self, latents: np.ndarray, *, ends: bool = False) -> np.ndarray:
        """Add frames, and get the next piece of sound if one is due.

        Parameters
        ----------
        latents : numpy.ndarray
            Floats [m, latent_size], finite: the codec's input, as codebooks give it.
        ends : bool, default False
            No frames follow; :meth:`flush` does.

        Returns
        -------
        numpy.ndarray
            Sound, float32 [n], or [n, channels] where a stage after the codec makes several; read-only, full scale
            1.0; often empty, n = 0.

        Raises
        ------
        InputError
            For another shape or type, NaN or infinity.
        EngineError
            If the codec gives NaN or infinity.

        Examples
        --------
        >>> decoder = model.decoder()
        >>> latents = np.zeros((3, model.bundle.manifest.codec.latent_size), np.float32)
        >>> len(decoder.push(latents)), len(decoder.flush())
        (0, 960)
        """
        return self.push_drawn(self._checked(latents), ends=ends)

    def push_drawn(self, frames: np.ndarray, *, ends: bool = False) -> np.ndarray:
        """Add frames as :meth:`push` does, without checking or copying them.

        Parameters
        ----------
        frames : numpy.ndarray
            float32 [m, latent_size] of this model, known to be valid, and never written to afterwards.
        ends : bool, default False
            No frames follow; :meth:`flush` does.

        Returns
        -------
        numpy.ndarray
            Sound, as from :meth:`push`.

        Raises
        ------
        EngineError
            If the codec gives NaN or infinity.

        Examples
        --------
        >>> decoder = model.decoder()
        >>> latents = np.zeros((3, model.bundle.manifest.codec.latent_size), np.float32)
        >>> len(decoder.push_drawn(latents, ends=True)), len(decoder.flush())
        (0, 960)
        """
        if len(frames):
            self._waiting.append(frames)
            self._frames += len(frames)
        ready = self._ready()
        due = self._pacer.due_at_end(ready) if ends else self._pacer.due(ready)
        return self._send(self._decode(last=False), ready) if due else self._nothing()

    def frames_to_wait(self) -> int:
        """Count the frames that can be pushed at once before a piece can be due.

        Returns
        -------
        int
            Frames, at least 1.

        Examples
        --------
        >>> model.decoder("first_sound").frames_to_wait()  # one, and the 10 that X-Codec looks ahead
        11
        """
        return self._pacer.rows_to_wait(self._ready())

    def push_codes(self, codes: np.ndarray) -> np.ndarray:
        """Add codes, and get the next piece of sound if one is due.

        Parameters
        ----------
        codes : numpy.ndarray
            Whole numbers [m, 8], 0 to ``codebook_size`` - 1, m at least 1.

        Returns
        -------
        numpy.ndarray
            Sound, as from :meth:`push`.

        Raises
        ------
        InputError
            For codes that are not this model's.
        EngineError
            If the codec gives NaN or infinity.

        Examples
        --------
        >>> decoder = model.decoder("first_sound")
        >>> len(decoder.push_codes(np.zeros((11, 8), np.int16)))  # 11 frames of 320; 3141 samples are held back
        379
        """
        checked = check_codes(codes, self._vocabulary.codebook_size)
        return self.push(self._engine.codes_to_latents(checked))

    def flush(self) -> np.ndarray:
        """End the sound, and get the rest of it; the next frames begin another.

        Returns
        -------
        numpy.ndarray
            Sound, as from :meth:`push`; empty if no frames were added.

        Raises
        ------
        EngineError
            If the codec gives NaN or infinity.

        Examples
        --------
        >>> decoder = model.decoder()
        >>> len(decoder.push_codes(np.zeros((1, 8), np.int16))), len(decoder.flush()), len(decoder.flush())
        (0, 320, 0)
        """
        rest = self._send(self._decode(last=True), 0) if self._frames else self._nothing()
        self._forget()
        return rest

    def reset(self) -> None:
        """Drop the sound under way; the next frames begin another.

        Examples
        --------
        >>> decoder = model.decoder()
        >>> len(decoder.push_codes(np.zeros((1, 8), np.int16)))
        0
        >>> decoder.reset()
        >>> len(decoder.flush())
        0
        """
        self._stream.reset()
        if self._post is not None:
            self._post.reset()
        self._forget()

    def preroll(self, frames: int) -> float:
        """Say how much sound to hold before playback begins, so that it does not starve.

        Parameters
        ----------
        frames : int
            Frames of the whole sound.

        Returns
        -------
        float
            Seconds; 0 where the engine is faster than real time, or no pace is known. :meth:`Pacer.preroll` has the
            formula.

        Examples
        --------
        >>> model.decoder().preroll(500)  # no pace: this one does not play
        0.0
        """
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
