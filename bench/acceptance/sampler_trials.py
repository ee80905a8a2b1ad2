"""Trials of the sampler: options at every edge, and logits that are hard to order."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ...runtime.vocabulary import STREAMS

#: Rows of a trial: a drain fits in, with room on both sides.
ROWS = 24


@dataclass(frozen=True)
class Shape:
    """Sizes of a trial's vocabulary and tables."""

    codebook: int
    text: int
    hidden: int
    latent: int

    @property
    def audio_base(self) -> int:
        return 256 + self.text

    @property
    def vocabulary(self) -> int:
        return self.audio_base + STREAMS * (self.codebook + 1)

    def columns(self, modality: str) -> int:
        return 2 + (self.text if modality == "text" else STREAMS * (self.codebook + 1))


@dataclass(frozen=True)
class Trial:
    """One trial of the sampler: a modality, sampling options, and the kind of logits."""

    modality: str
    mode: str
    guidance: float
    temperature: float
    top_k: int
    top_p: float
    logits: str = "normal"
    sequences: int = 1

    @property
    def branches(self) -> int:
        return 2 if self.guidance > 1 else 1


def edge_trials(short: bool) -> list[Trial]:
    """Every edge of the sampler's options, and logits that are hard to order; ``short``: a seventh of them."""
    base = Trial("audio", "fixed", 3.0, 0.8, 20, 1.0)
    modalities = [base, replace(base, mode="reference"), replace(base, modality="text"), replace(base, guidance=1.0)]
    options = [
        {"temperature": 0.0},
        *({"top_k": k} for k in (1, 2, 19, 20, 21, 0)),
        *({"top_p": p, "top_k": 0} for p in (1e-9, 0.5, 0.9, 1.0 - 1e-12)),
        {"temperature": 1e-6},
        {"temperature": 50.0, "top_k": 0},
    ]
    logits = ("normal", "ties", "equal", "mostly -inf", "huge", "NaN", "+inf", "all -inf", "stops")
    trials = [replace(each, **changes) for each, changes in itertools.product(modalities, options)]  # type: ignore[arg-type]
    trials += [replace(each, logits=kind) for each, kind in itertools.product(modalities, logits)]
    trials += [replace(each, sequences=count) for each, count in itertools.product(modalities, (3, 64))]
    return [trial for trial in trials if trial.sequences < 64][::7] if short else trials


def true_trials(short: bool) -> list[Trial]:
    """The sizes of UALM with the published sampling options."""
    base = Trial("audio", "fixed", 3.0, 0.8, 20, 1.0)
    trials = [base, replace(base, modality="text"), replace(base, top_k=0, top_p=0.95), replace(base, temperature=0.0)]
    return trials[:2] if short else [*trials, replace(base, sequences=64), replace(base, modality="text", sequences=8)]


def draw_logits(trial: Trial, shape: tuple[int, ...], random: np.random.Generator) -> Iterator[np.ndarray]:
    for row in range(ROWS):
        values = random.standard_normal(shape, np.float32) * np.float32(3)
        kind = trial.logits
        if kind == "ties":
            values = np.round(values)
        elif kind == "equal":
            values[...] = 1.5
        elif kind == "mostly -inf":
            values[random.random(shape) < 0.95] = -np.inf
            values[..., ::5] = np.float32(0.25)
        elif kind == "huge":
            values *= np.float32(1e30)
        elif kind == "stops":
            values[..., :3] += np.float32(2)
        elif row == 9:
            if kind == "NaN":
                values[..., -3] = np.nan
            elif kind == "+inf":
                values[..., -5] = np.inf
            elif kind == "all -inf":
                values[...] = -np.inf
        yield np.ascontiguousarray(values)
