"""Time to hear a sound: log-mel features, then the encoder."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np

from ..runtime.bundle import Bundle
from ..runtime.errors import InputError
from ..runtime.hearing import FeatureSpec, Hearing
from ..runtime.sound import Sound
from .blocks import Block, Samples
from .scenario import Case, Derived
from .schema import Setting
from .statistics import Summary
from .subjects import AnySubject, PeerSubject


@dataclass(frozen=True)
class Encode:
    """``seconds`` of noise at the encoder's own rate. Figures: "features", waveform to the encoder's inputs (our own
    code); "encode", inputs to feature rows."""

    seconds: tuple[float, ...] = (10.0,)

    name: ClassVar[str] = "encode"
    units: ClassVar[Mapping[str, str]] = {"features": "ms", "encode": "ms"}
    compared: ClassVar[Sequence[str]] = ("encode",)
    default_repeat: ClassVar[int] = 12

    def settings(self, bundle: Bundle) -> Sequence[Mapping[str, Setting]]:
        check_seconds(self.seconds)
        spec = FeatureSpec.from_json(bundle.manifest.features)
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


class TimedSound:
    """A case whose figures are all times for a sound of one length."""

    def __init__(self, block: Block, seconds: float) -> None:
        self._block, self._seconds = block, seconds
        block(1)  # the first call loads the part

    def block(self, count: int) -> Samples:
        return self._block(count)

    def derive(self, figure: str, summary: Summary) -> Derived:
        return Derived(real_time_factor=summary.mean / 1000 / self._seconds)

    def close(self) -> None:
        """Nothing is held but the sound."""


def check_seconds(values: Sequence[float]) -> None:
    """Refuse an empty list of lengths, and what is no length."""
    if not values or not all(0 < value < 1e6 for value in values):
        raise InputError(f"--seconds {','.join(f'{value:g}' for value in values)}: give positive numbers of seconds")


def _hearing(bundle: Bundle) -> Hearing:
    return Hearing(FeatureSpec.from_json(bundle.manifest.features), bundle.table("encoder.mel_filters"))


def _noise(bundle: Bundle, seconds: float, seed: int) -> Sound:
    rate = FeatureSpec.from_json(bundle.manifest.features).sample_rate
    samples = np.random.default_rng(seed).uniform(-0.5, 0.5, max(round(seconds * rate), 1))
    return Sound(samples.astype(np.float32), rate)
