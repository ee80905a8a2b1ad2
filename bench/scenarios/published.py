"""Measurements of the published algorithm (``peers``): a frame, and a prompt with the null branch after it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ...runtime.sampling import AudioSampling, TextSampling
from ...runtime.vocabulary import EOS, EOT, Modality
from ..harness.blocks import Samples
from ..harness.protocol import Derived
from ..report.statistics import Summary
from .common import WARM_UP, random_prompt

if TYPE_CHECKING:
    from ..peers.published import PublishedAlgorithm
    from ..peers.torch_reference import TorchReference

#: Frames per second of the published codec: 16 kHz in hops of 320 samples.
_FRAMES_A_SECOND = 50


class TorchDecode:
    """A conversation of ``context`` rows that continues frame by frame; a :class:`Case`. ``row``: drawn last, int64
    [8]."""

    def __init__(
        self, reference: PublishedAlgorithm, context: int, modality: Modality, guidance: float, seed: int
    ) -> None:
        self._reference, self._context = reference, context
        kind = AudioSampling if modality == "audio" else TextSampling
        self._modality, self._sampling = modality, kind(guidance=guidance, seed=seed)
        self._random = reference.generator(seed)
        self._begin()
        self.block(1)

    def block(self, count: int) -> Samples:
        times: list[float] = []
        self._begin()
        for _ in range(WARM_UP):
            self._step()
        while len(times) < count:
            started = time.perf_counter()
            self._step()
            times.append(1000 * (time.perf_counter() - started))
            if self.row[0] in (EOS, EOT):
                self._begin()
        return {"frame": times}

    def derive(self, figure: str, summary: Summary) -> Derived:
        return Derived(real_time_factor=summary.mean / 1000 * _FRAMES_A_SECOND if self._modality == "audio" else None)

    def close(self) -> None:
        del self._cache

    def _begin(self) -> None:
        self._cache = self._reference.noise(self._context, 2 if self._sampling.guidance > 1 else 1)
        self.row = self._reference.marker(self._modality)

    def _step(self) -> None:
        self.row = self._reference.frame(self.row, self._cache, self._modality, self._sampling, self._random)


class TorchPrefill:
    """A prompt of ``rows`` rows, then the null branch of a segment; a :class:`Case`."""

    def __init__(self, reference: TorchReference, rows: int, guidance: float, seed: int) -> None:
        self._reference, self._guided = reference, guidance > 1
        self._prompt = random_prompt(reference.vocabulary, rows, seed)
        self.block(1)

    def block(self, count: int) -> Samples:
        prefill, begin = [], []
        for _ in range(count):
            started = time.perf_counter()
            cache, _ = self._reference.prefill([self._prompt])
            self._reference.synchronize()
            between = time.perf_counter()
            prefill.append(1000 * (between - started))
            if self._guided:
                self._reference.with_null_branch(cache)
                self._reference.synchronize()
                begin.append(1000 * (time.perf_counter() - between))
        figures: dict[str, list[float]] = {"prefill": prefill, "row": [each / len(self._prompt) for each in prefill]}
        return figures | ({"begin": begin} if self._guided else {})

    def derive(self, figure: str, summary: Summary) -> Derived:
        return Derived()

    def close(self) -> None:
        """Nothing is kept between prompts."""
