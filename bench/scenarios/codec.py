"""Time to decode codec frames to samples: all in one call, and in small pieces as in streaming."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np

from ...runtime.bundle.bundle import Bundle
from ...runtime.errors import InputError
from ...runtime.vocabulary import STREAMS
from ..harness.blocks import Samples
from ..harness.protocol import Case
from ..harness.subjects import AnySubject, PeerSubject
from ..report.schema import Setting
from .common import TimedSound, check_seconds

#: Frames of a piece; a codec that looks further ahead has a larger first piece.
PIECE_FRAMES = 10


@dataclass(frozen=True)
class Codec:
    """``seconds`` of random codes, decoded. Figures: "decode", in one call; "streamed", ten frames after the other.

    The codebook sums before it are not timed.
    """

    seconds: tuple[float, ...] = (5.0,)

    name: ClassVar[str] = "codec"
    units: ClassVar[Mapping[str, str]] = {"decode": "ms", "streamed": "ms"}
    compared: ClassVar[Sequence[str]] = ("decode", "streamed")
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
        pieces = np.split(latents, range(max(PIECE_FRAMES, codec.first_frames), frames, PIECE_FRAMES))
        stream = engine.open_codec_stream()

        def streamed() -> None:
            for number, piece in enumerate(pieces, start=1):
                stream.decode(piece, last=number == len(pieces))

        def block_of(count: int) -> Samples:
            times: dict[str, list[float]] = {"decode": [], "streamed": []}
            for _ in range(count):
                for name, work in (("decode", lambda: engine.decode_latents(latents)), ("streamed", streamed)):
                    started = time.perf_counter()
                    work()
                    times[name].append(1000 * (time.perf_counter() - started))
            return times

        return TimedSound(block_of, frames * codec.hop_length / codec.sample_rate)
