"""A stage between the codec and the listener: it takes the codec's samples as they come and returns the sound.

A bundle's manifest names the stage (``post_codec``: kind, sample rate, channels, delay, options). To add one, write a
class like :class:`Resampler` and enter it in :data:`STAGES`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import soxr

from ..bundle.bundle import Bundle
from ..bundle.manifest import CodecIdentity, PostCodecIdentity
from ..errors import BundleError, InputError

_QUALITIES = ("QQ", "LQ", "MQ", "HQ", "VHQ")
#: Samples that :meth:`Resampler.describe` tries: soxr works in blocks, and its delay repeats within fewer.
_PROBE = 1 << 14


class PostCodec(Protocol):
    """A stage that processes one sound after the other.

    Its outputs, joined, must not depend on how the samples were split.
    """

    def push(self, samples: np.ndarray, *, last: bool) -> np.ndarray:
        """Add samples of the codec, float32 [n]; returns sound, float32 [m] for one channel, else [m, channels].

        At most the stage's ``delay`` is held back. With ``last`` all of it is returned, and the next call begins a new
        sound.
        """
        ...

    def reset(self) -> None:
        """Forget the current sound."""
        ...


class Resampler:
    """Another sample rate by soxr, the one channel repeated. Option "quality": QQ, LQ, MQ, HQ (default) or VHQ."""

    def __init__(self, codec: CodecIdentity, stage: PostCodecIdentity) -> None:
        self._channels = stage.channels
        options = dict(stage.options)
        quality = options.pop("quality", "HQ")
        if quality not in _QUALITIES or options:
            raise ValueError(f'{dict(stage.options)}; resample takes {{"quality": one of {", ".join(_QUALITIES)}}}')
        self._soxr = soxr.ResampleStream(codec.sample_rate, stage.sample_rate, 1, dtype="float32", quality=quality)

    def push(self, samples: np.ndarray, *, last: bool) -> np.ndarray:
        sound = self._soxr.resample_chunk(np.ascontiguousarray(samples, np.float32), last=last)
        if last:
            self._soxr.clear()
        return sound if self._channels == 1 else np.repeat(sound[:, None], self._channels, axis=1)

    def reset(self) -> None:
        self._soxr.clear()

    @classmethod
    def describe(cls, codec: CodecIdentity, sample_rate: int, channels: int, quality: str = "HQ") -> PostCodecIdentity:
        """The manifest's entry. soxr does not report its delay: it is measured, sample by sample.

        :class:`InputError` where soxr cannot do it.
        """
        try:
            entry = PostCodecIdentity.from_json(
                {"kind": "resample", "sample_rate": sample_rate, "channels": channels, "delay": 0}
                | {"options": {"quality": quality}}
            )
            stage = cls(codec, entry)
        except (ValueError, TypeError, RuntimeError) as error:
            raise InputError(f"resample to {sample_rate} Hz, {channels} channels: {error}") from error
        ratio, given, held = sample_rate / codec.sample_rate, 0, 0.0
        silence = np.zeros(1, np.float32)
        for count in range(1, _PROBE + 1):
            given += len(stage.push(silence, last=False))
            held = max(held, count - given / ratio)
        return dataclasses.replace(entry, delay=math.ceil(held))


#: Stages by the kind that a manifest names.
STAGES: Mapping[str, Any] = {"resample": Resampler}


def open_post_codec(bundle: Bundle) -> PostCodec | None:
    """The bundle's stage after the codec; None where it has none.

    :class:`BundleError` for a kind that this version does not know, and for options that it does not take.
    """
    stage = bundle.manifest.post_codec
    if stage is None:
        return None
    where = f"{bundle.folder}: post_codec"
    if stage.kind not in STAGES:
        raise BundleError(
            f"{where}.kind = {stage.kind!r}: this ualm knows {', '.join(STAGES)}; update ualm, or export the run again"
        )
    try:
        opened: PostCodec = STAGES[stage.kind](bundle.manifest.codec, stage)
    except (ValueError, TypeError, RuntimeError) as error:
        raise BundleError(f"{where}.options: {error}; export the run again") from error
    return opened
