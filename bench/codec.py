"""Time to turn codec frames into samples, all in one call."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np

from ..runtime.bundle import Bundle
from ..runtime.errors import InputError
from ..runtime.vocabulary import STREAMS
from .blocks import Samples
from .encode import TimedSound, check_seconds
from .scenario import Case
from .schema import Setting
from .subjects import AnySubject, PeerSubject


@dataclass(frozen=True)
class Codec:
    """``seconds`` of random codes, decoded in one call. Figure: "decode"; the codebook sums before it are not timed."""

    seconds: tuple[float, ...] = (5.0,)

    name: ClassVar[str] = "codec"
    units: ClassVar[Mapping[str, str]] = {"decode": "ms"}
    compared: ClassVar[Sequence[str]] = ("decode",)
    default_repeat: ClassVar[int] = 12

    def settings(self, bundle: Bundle) -> Sequence[Mapping[str, Setting]]:
        check_seconds(self.seconds)
        frame = bundle.manifest.codec.hop_length / bundle.manifest.codec.sample_rate
        if min(self.seconds) < frame:
            raise InputError(f"--seconds {min(self.seconds):g}: a frame of this codec is {frame:g} s; give more")
        return [{"seconds": seconds} for seconds in self.seconds]

    def open(self, subject: AnySubject, setting: Mapping[str, Setting], *, block: int, seed: int) -> Case:
        if isinstance(subject, PeerSubject):
            raise InputError(f"--versus {subject.about.name}: measures decode and prefill only; name a bundle")
        codec, engine = subject.bundle.manifest.codec, subject.engine()
        frames = int(cast(float, setting["seconds"]) * codec.sample_rate / codec.hop_length + 1e-6)
        random = np.random.default_rng(seed)
        codes = random.integers(0, subject.bundle.manifest.vocabulary.codebook_size, (frames, STREAMS), np.int16)
        latents = engine.codes_to_latents(codes)

        def block_of(count: int) -> Samples:
            times = []
            for _ in range(count):
                started = time.perf_counter()
                engine.decode_latents(latents)
                times.append(1000 * (time.perf_counter() - started))
            return {"decode": times}

        return TimedSound(block_of, frames * codec.hop_length / codec.sample_rate)
