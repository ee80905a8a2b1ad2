"""Time to encode a sound: log-mel features, then the encoder."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np

from ...runtime.audio.features import LogMelFrontend
from ...runtime.bundle.bundle import Bundle
from ...runtime.errors import InputError
from ...runtime.sound.sound import Sound
from ..harness.blocks import Samples
from ..harness.protocol import Case
from ..harness.subjects import AnySubject, PeerSubject
from ..report.schema import Setting
from .common import TimedSound, check_seconds


@dataclass(frozen=True)
class Encode:
    """``seconds`` of noise at the encoder's own rate. Figures: "features", waveform to the encoder's inputs (ualm's own
    code); "encode", inputs to feature rows."""

    seconds: tuple[float, ...] = (10.0,)

    name: ClassVar[str] = "encode"
    units: ClassVar[Mapping[str, str]] = {"features": "ms", "encode": "ms"}
    compared: ClassVar[Sequence[str]] = ("encode",)
    default_repeat: ClassVar[int] = 12

    def settings(self, bundle: Bundle) -> Sequence[Mapping[str, Setting]]:
        check_seconds(self.seconds)
        spec = bundle.manifest.features
        least, most = spec.min_samples / spec.sample_rate, spec.max_samples / spec.sample_rate
        for seconds in self.seconds:
            if not least <= seconds <= most:
                raise InputError(f"--seconds {seconds:g}: this encoder hears sounds from {least:g} to {most:g} s")
        return [{"seconds": seconds} for seconds in self.seconds]

    def open(self, subject: AnySubject, setting: Mapping[str, Setting], *, block: int, seed: int) -> Case:
        if isinstance(subject, PeerSubject):
            raise InputError(f"--versus {subject.about.name}: measures decode and prefill only; name a bundle")
        engine, hearing = subject.engine(), _hearing(subject.bundle)
        seconds = cast(float, setting["seconds"])
        sound = _noise(subject.bundle, seconds, seed)

        def block_of(count: int) -> Samples:
            features, encode = [], []
            for _ in range(count):
                started = time.perf_counter()
                inputs = hearing.prepare(sound).inputs
                between = time.perf_counter()
                engine.encode(inputs)
                encode.append(1000 * (time.perf_counter() - between))
                features.append(1000 * (between - started))
            return {"features": features, "encode": encode}

        return TimedSound(block_of, seconds)


def _hearing(bundle: Bundle) -> LogMelFrontend:
    return LogMelFrontend(bundle.manifest.features, bundle.table("encoder.mel_filters"))


def _noise(bundle: Bundle, seconds: float, seed: int) -> Sound:
    rate = bundle.manifest.features.sample_rate
    samples = np.random.default_rng(seed).uniform(-0.5, 0.5, max(round(seconds * rate), 1))
    return Sound(samples.astype(np.float32), rate)
