"""The protocol between the frame loop and an engine, placed high enough that a backend may fuse a whole step.

A sequence holds one conversation's KV cache and sampling state where the engine runs. Hidden states and logits never
cross this interface in the loop: an engine may keep a whole frame (body, head, sampler, next embedding) on its device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from ..errors import ContextError
from ..sampling import AudioSampling, Mode, TextSampling
from ..vocabulary import Modality
from .arithmetic import Arithmetic, Part


def check_room(held: int, new: int, limit: int, *, most: int) -> None:
    """:class:`ContextError` if ``new`` rows do not fit after the ``held`` ones; ``most`` rows are the model's limit."""
    if held + new > limit:
        advice = "; open the model with a larger max_context, or shorten the input"
        if limit >= most:
            advice = ", this model's limit; shorten the input, or begin another conversation"
        raise ContextError(
            f"the conversation needs {held + new} rows ({held} held + {new} new), but max_context = {limit}{advice}"
        )


@dataclass(frozen=True)
class Frames:
    """The output of a few frames of the loop.

    ``rows`` int32 [n, 8]: absolute ids as drawn. ``latents`` float32 [m, latent_size]: the codec frames that were
    completed. ``end``: None while the segment goes on, "stop" when the last row is a stop row (eos or eot in stream 0),
    "limit" when ``max_steps`` rows are drawn.
    """

    rows: np.ndarray
    latents: np.ndarray
    end: Literal["stop", "limit"] | None


class EngineSequence(Protocol):
    """One conversation on an engine."""

    @property
    def length(self) -> int:
        """Rows held in the KV cache."""
        ...

    @property
    def library_seconds(self) -> float:
        """Seconds spent inside the inference library's calls since the sequence was opened; the rest is our code."""
        ...

    def prefill(self, parts: Sequence[np.ndarray]) -> None:
        """Append rows (int32 [n, 8]) and feature rows (float32 [n, H]); :class:`ContextError` if they do not fit."""
        ...

    def modality_logits(self) -> np.ndarray:
        """Logits float32 [5] of ``vocabulary.CHOOSABLE`` after the last prefilled row."""
        ...

    def begin_segment(
        self, modality: Modality, sampling: AudioSampling | TextSampling, *, mode: Mode, segment: int
    ) -> None:
        """Start a segment with its modality row; with guidance, build the null branch for the rows held so far.

        ``segment`` counts the segments of a turn and, with the seed, keys the random draws.
        """
        ...

    def run_frames(self, count: int) -> Frames:
        """Draw up to ``count`` rows of the segment; fewer when it ends. The last row drawn is not in the cache yet."""
        ...

    def truncate(self, length: int) -> None:
        """Forget the rows after the first ``length``; a segment in progress is dropped."""
        ...

    def fork(self) -> EngineSequence:
        """A second sequence with the same rows; from then on the two are independent."""
        ...

    def save(self) -> np.ndarray:
        """The rows held in the cache, float32 [layers, 2, kv_heads, length, head_dim]: keys, then values."""
        ...

    def restore(self, cache: np.ndarray) -> None:
        """Replace the rows held with rows from :meth:`save`."""
        ...

    @property
    def logits(self) -> np.ndarray:
        """Logits of the last step before mixing, float32 [branches, n]: for checking an engine, not for the loop."""
        ...


class CodecStream(Protocol):
    """The codec, decoding one sound after the other, piece by piece; its memory does not grow with a sound."""

    def decode(self, latents: np.ndarray, *, last: bool) -> np.ndarray:
        """The next frames, float32 [n, latent_size] -> the samples that become certain, float32 [m].

        The pieces of a sound joined are what :meth:`Engine.decode_latents` gives for all its frames. ``last``: the
        sound ends with these frames (n may be 0 if it has any), and the next call begins another. The first piece of a
        sound needs ``CodecIdentity.first_frames``, unless it is the last as well, and others at least one.
        """
        ...

    def reset(self) -> None:
        """Forget the current sound."""
        ...


class Engine(Protocol):
    """A loaded bundle, ready to compute."""

    name: str

    @property
    def arithmetic(self) -> Mapping[Part, Arithmetic]:
        """The arithmetic of each part of its bundle; the tolerances of the golden vector follow from it."""
        ...

    @property
    def bytes_per_row(self) -> int:
        """Cache memory that one row of a conversation takes, null branch included."""
        ...

    def open_sequence(self) -> EngineSequence:
        """An empty sequence of at most ``max_context`` rows."""
        ...

    def encode(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Sound features: encoder inputs (see ``features``) -> float32 [n, H]; rows beyond the sound's are padding."""
        ...

    def decode_latents(self, latents: np.ndarray) -> np.ndarray:
        """Codec: latents float32 [T, latent_size] -> samples float32 [T * hop_length]."""
        ...

    def open_codec_stream(self) -> CodecStream:
        """A codec that takes a sound's frames as they arrive."""
        ...

    def codes_to_latents(self, codes: np.ndarray) -> np.ndarray:
        """Codebook sums: codes int16 [T, 8] -> latents float32 [T, latent_size]."""
        ...

    def close(self) -> None:
        """Free what the engine holds; it cannot be used afterwards."""
        ...
