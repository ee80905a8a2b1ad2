"""Milliseconds per frame: body on the branches of guidance, head, sampler, with a number of rows held."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

from ...runtime.bundle.bundle import Bundle
from ...runtime.engines.protocol import Engine
from ...runtime.errors import InputError
from ...runtime.sampling import AudioSampling, TextSampling
from ...runtime.vocabulary import Modality
from ..harness.blocks import Samples
from ..harness.protocol import Case, Derived
from ..harness.subjects import AnySubject, PeerSubject
from ..meters.traffic import StepBytes, body_role, step_bytes, weight_bytes
from ..report.schema import Setting
from ..report.statistics import Summary
from .common import WARM_UP, check_rows, fill, sampling_of
from .published import TorchDecode

#: Frames of the warm-up, from which the time of one is estimated.
_PACE = 3


@dataclass(frozen=True)
class Decode:
    """``contexts``: rows held when a block begins; each frame of the block adds one. ``batch``: conversations that take
    turns, a frame each, on one thread. ``guidance``: None for the bundle's own."""

    contexts: tuple[int, ...] = (256,)
    batch: int = 1
    modality: Modality = "audio"
    guidance: float | None = None

    name: ClassVar[str] = "decode"
    units: ClassVar[Mapping[str, str]] = {"frame": "ms"}
    compared: ClassVar[Sequence[str]] = ("frame",)
    default_repeat: ClassVar[int] = 96

    def settings(self, bundle: Bundle) -> Sequence[Mapping[str, Setting]]:
        check_rows("--context", self.contexts, 1, bundle)
        if self.batch < 1:
            raise InputError(f"--batch {self.batch}: give a whole number of at least 1")
        for role in (body_role(bundle), f"head.{self.modality}"):
            weight_bytes(bundle, role)  # refuse now, rather than after everything is measured
        common: dict[str, Setting] = {"batch": self.batch, "modality": self.modality}
        common["guidance"] = sampling_of(bundle, self.modality, self.guidance).guidance
        return [{"context": context, **common} for context in self.contexts]

    def open(self, subject: AnySubject, setting: Mapping[str, Setting], *, block: int, seed: int) -> Case:
        context, guidance = cast(int, setting["context"]), cast(float, setting["guidance"])
        if isinstance(subject, PeerSubject):
            if self.batch > 1:
                raise InputError(f"--batch {self.batch}: {subject.about.name} is measured with one conversation only")
            return TorchDecode(subject.reference, context, self.modality, guidance, seed)
        rows = block + WARM_UP
        sampling = sampling_of(subject.bundle, self.modality, guidance, seed, rows)
        engine = subject.engine(max(self.contexts) + rows)
        return _EngineDecode(subject.bundle, engine, context, self.batch, self.modality, sampling, block)


class _EngineDecode:
    """Conversations that hold ``context`` rows of noise: their contents do not affect the time."""

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        context: int,
        batch: int,
        modality: Modality,
        sampling: AudioSampling | TextSampling,
        most: int,
    ) -> None:
        """``most``: largest number of frames in a block."""
        self._bundle, self._context, self._modality, self._sampling = bundle, context, modality, sampling
        self._branches = 2 if sampling.guidance > 1 else 1
        self._forget()
        self._row_bytes = engine.bytes_per_row // 2  # of one branch
        self._sequences = [engine.open_sequence() for _ in range(batch)]
        for sequence in self._sequences:
            fill(sequence, bundle, context)
        self._segment = 0
        self.block(1)  # first calls load the head and touch memory
        self.counted = "frame"
        self.pace = statistics.median(self.block(min(_PACE, most))["frame"]) / 1000 * batch
        self._forget()

    def block(self, count: int) -> Samples:
        self._begin()
        for _ in range(WARM_UP):
            if self._step():
                self._begin()
        times: list[float] = []
        while len(times) < count:
            inside = self._inside()
            started = time.perf_counter()
            ended = self._step()
            elapsed = time.perf_counter() - started
            self._library_seconds += self._inside() - inside
            self._seconds += elapsed
            self._held += sum(sequence.length for sequence in self._sequences)
            self._frames += len(self._sequences)
            times.append(1000 * elapsed / len(self._sequences))
            if ended:
                self._begin()
        return {"frame": times}

    def step_bytes(self) -> StepBytes:
        held = self._held / self._frames
        return step_bytes(self._bundle, self._modality, kv_bytes=held * self._row_bytes * self._branches)

    def derive(self, figure: str, summary: Summary) -> Derived:
        codec = self._bundle.manifest.codec
        return Derived(
            real_time_factor=summary.mean / 1000 * codec.sample_rate / codec.hop_length
            if self._modality == "audio"
            else None,
            outside_percent=100 * (1 - self._library_seconds / self._seconds),
        )

    def close(self) -> None:
        self._sequences.clear()

    def _begin(self) -> None:
        for sequence in self._sequences:
            sequence.truncate(self._context)
            sequence.begin_segment(self._modality, self._sampling, mode="fixed", segment=self._segment)
        self._segment += 1

    def _step(self) -> bool:
        """Run a frame of each conversation; returns whether one of their segments ended."""
        return any([sequence.run_frames(1).end is not None for sequence in self._sequences])

    def _inside(self) -> float:
        return sum(sequence.library_seconds for sequence in self._sequences)

    def _forget(self) -> None:
        self._held = self._frames = 0
        self._seconds = self._library_seconds = 0.0
