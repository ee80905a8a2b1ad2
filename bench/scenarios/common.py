"""Shared by the scenarios: conversations filled with noise, sampling, prompts, and checks of options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ...runtime.bundle.bundle import Bundle
from ...runtime.engines.protocol import EngineSequence
from ...runtime.errors import InputError
from ...runtime.sampling import AudioSampling, TextSampling
from ...runtime.vocabulary import Modality, Vocabulary
from ..harness.blocks import Block, Samples
from ..harness.protocol import Derived
from ..report.statistics import Summary

#: Frames before each block that do not count: whatever was measured in between, including a reading of the bandwidth,
#: has used the caches and the cores. One frame touches everything that the next one reads (weights, rows held,
#: scratch), so that the caches hold again what fits; the second one finds it there, like all that follow.
WARM_UP = 2


def fill(sequence: EngineSequence, bundle: Bundle, rows: int) -> None:
    """Fill a sequence with ``rows`` rows of noise, without computing them."""
    model = bundle.manifest.model
    row = np.random.default_rng(0).standard_normal((model.layers, 2, model.kv_heads, 1, model.head_dim), np.float32)
    sequence.restore(np.repeat(row, rows, axis=3))


def sampling_of(
    bundle: Bundle, modality: Modality, guidance: float | None, seed: int = 0, rows: int = 0
) -> AudioSampling | TextSampling:
    """The bundle's own sampling with ``guidance`` (None: its own) and ``seed``, for at least ``rows`` rows."""
    defaults = bundle.manifest.sampling
    options: AudioSampling | TextSampling = defaults.audio if modality == "audio" else defaults.text
    if guidance is not None:
        options = replace(options, guidance=guidance)
    drain = 8  # "fixed" mode ends a sound this many rows before the limit
    return replace(options, seed=seed, max_steps=max(options.max_steps, rows + drain + 1))


def check_rows(name: str, values: Sequence[int], least: int, bundle: Bundle) -> None:
    """Refuse an option that lists no numbers of rows, too small ones, or more rows than the model holds."""
    limit = bundle.manifest.model.max_positions
    if not values or min(values) < least or max(values) > limit:
        given = ",".join(map(str, values)) or "(nothing)"
        raise InputError(
            f"{name} {given}: give whole numbers of rows from {least} to {limit}, the most this model holds"
        )


def random_prompt(vocabulary: Vocabulary, rows: int, seed: int) -> np.ndarray:
    """Text rows int32 [rows, 8] drawn at random."""
    ids = np.random.default_rng(seed).integers(1, vocabulary.text_size, rows)
    return vocabulary.text_rows(ids.tolist())


class TimedSound:
    """A case in which all figures are times for a sound of one length."""

    def __init__(self, block: Block, seconds: float) -> None:
        self._block, self._seconds = block, seconds
        block(1)  # the first call loads the part

    def block(self, count: int) -> Samples:
        return self._block(count)

    def derive(self, figure: str, summary: Summary) -> Derived:
        return Derived(real_time_factor=summary.mean / 1000 / self._seconds)

    def close(self) -> None:
        """Nothing to do: it holds only the sound."""


def check_seconds(values: Sequence[float]) -> None:
    """Refuse an empty list of lengths, and invalid lengths."""
    if not values or not all(0 < value < 1e6 for value in values):
        raise InputError(f"--seconds {','.join(f'{value:g}' for value in values)}: give positive numbers of seconds")
