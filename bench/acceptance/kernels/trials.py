"""Trials of the sampler: options at every edge, and logits that are hard to order."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ....runtime.vocabulary import STREAMS
from .numbers import Numbers

#: Rows of a trial: a drain fits in, with room on both sides.
ROWS = 24
#: The row whose logits are faulty, in the trials of faults.
FAULTY = 9


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


def edge_trials() -> list[Trial]:
    """Every edge of the sampler's options, and logits that are hard to order."""
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
    return trials


def published_trials() -> list[Trial]:
    """The published sampling options, for one sequence and for many."""
    base = Trial("audio", "fixed", 3.0, 0.8, 20, 1.0)
    trials = [base, replace(base, modality="text"), replace(base, top_k=0, top_p=0.95), replace(base, temperature=0.0)]
    return [*trials, replace(base, sequences=64), replace(base, modality="text", sequences=8)]


@dataclass(frozen=True)
class Suite:
    """Trials on tables of one shape. ``few``: the numbers of those that show most, for a run that has little time."""

    name: str
    shape: Shape
    trials: tuple[Trial, ...]
    few: tuple[int, ...]

    def chosen(self, short: bool) -> list[tuple[int, Trial]]:
        """Trials with their numbers: all, or the few."""
        return [(at, trial) for at, trial in enumerate(self.trials) if not short or at in self.few]

    def seed(self, seed: int, at: int) -> int:
        """The seed of trial number ``at``."""
        return seed + at


_EDGES = tuple(edge_trials())
_FEW_EDGES = tuple([at for at, trial in enumerate(_EDGES) if trial.sequences < 64][::7])
#: Every suite by its name. "rehearsal" has a text vocabulary that a CPU can go through in the kernels' host shim.
SUITES = {
    suite.name: suite
    for suite in (
        Suite("small", Shape(16, 41, 24, 12), _EDGES, _FEW_EDGES),
        Suite("rehearsal", Shape(1024, 1000, 1536, 256), tuple(published_trials()), (0, 1)),
        Suite("true sizes", Shape(1024, 151936, 1536, 256), tuple(published_trials()), (0, 1)),
    )
}


def draw_logits(trial: Trial, shape: tuple[int, ...], random: Numbers) -> Iterator[np.ndarray]:
    """Logits float32 of ``shape``, [sequences, branches, columns], for one row after the other."""
    for row in range(ROWS):
        values = random.normal(shape) * np.float32(3)
        kind = trial.logits
        if kind == "ties":
            values = np.round(values)
        elif kind == "equal":
            values[...] = 1.5
        elif kind == "mostly -inf":
            values[random.uniform(shape) < 0.95] = -np.inf
            values[..., ::5] = np.float32(0.25)
        elif kind == "huge":
            values *= np.float32(1e30)
        elif kind == "stops":
            values[..., :3] += np.float32(2)
        elif kind in ("NaN", "+inf", "all -inf") and row < FAULTY:
            values[..., :2] = -1e4  # no stop: the sequence must live to see it
        elif row == FAULTY:
            if kind == "NaN":
                values[..., -3] = np.nan
            elif kind == "+inf":  # of the conditional branch alone: guidance would make NaN of both
                values[..., 0, -5] = np.inf
            elif kind == "all -inf":
                values[..., 0, :] = -np.inf
        yield np.ascontiguousarray(values)
