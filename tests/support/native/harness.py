"""Runs the native sampler beside the slow model, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from support.native.sampler_model import Options, SlowSampler, Tables
from ualm.runtime import _native


class Native:
    """The native sampler with its output arrays."""

    def __init__(self, tables: Tables) -> None:
        self.sampler = _native.FrameSampler(
            codebook_size=tables.codebook_size,
            text_size=tables.text_size,
            audio_base=tables.audio_base,
            text_base=tables.text_base,
            embedding=tables.embedding,
            rvq_table=tables.rvq_table,
            rvq_bias=tables.rvq_bias,
        )
        self.row = np.zeros(8, np.int32)
        self.embedding = np.zeros(tables.embedding.shape[1], np.float32)
        self.latent = np.zeros(tables.rvq_table.shape[2], np.float32)

    def begin(self, options: Options) -> None:
        common = {
            "temperature": options.temperature,
            "top_k": options.top_k,
            "top_p": options.top_p,
            "guidance": options.guidance,
            "max_steps": options.max_steps,
            "seed": options.seed,
            "segment": options.segment,
        }
        if options.kind == "text":
            self.sampler.begin_text(**common)
        else:
            self.sampler.begin_audio(mode=options.kind, **common)

    def step(self, logits: np.ndarray) -> int:
        return self.sampler.step(logits, self.row, self.embedding, self.latent)


MakeLogits = Callable[[int], np.ndarray]


def run_native(native: Native, options: Options, logits: MakeLogits, rows: int | None = None) -> tuple[np.ndarray, int]:
    """Rows [T, 8] of a segment and its last flags; stops after ``rows`` rows if that comes first."""
    native.begin(options)
    drawn: list[np.ndarray] = []
    while True:
        flags = native.step(logits(len(drawn)))
        drawn.append(native.row.copy())
        if flags & (_native.STOP | _native.LIMIT) or len(drawn) == rows:
            return np.array(drawn), flags


def assert_same(native: Native, tables: Tables, options: Options, steps: Iterable[np.ndarray]) -> int:
    """Check that every output of every step equals the model's, bit for bit. Returns the rows compared: it stops early
    if the model cannot distinguish two candidates (see sampler_model)."""
    model = SlowSampler(tables, options)
    native.begin(options)
    for count, logits in enumerate(steps):
        native.latent[:] = np.nan
        ids, flags, embedding, latent = model.step(logits)
        if model.ambiguous:
            return count
        assert native.step(logits) == flags, f"row {count}"
        assert native.row.tolist() == ids, f"row {count}"
        np.testing.assert_array_equal(native.embedding, embedding)
        if latent is None:
            assert np.isnan(native.latent).all(), "latent_out was written without LATENT"
        else:
            np.testing.assert_array_equal(native.latent, latent)
        assert native.sampler.row == count + 1
        if flags & 3:
            return count + 1
    raise AssertionError("the segment did not end within the logits given")
