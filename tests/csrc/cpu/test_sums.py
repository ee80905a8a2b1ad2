"""The sums of table rows: next input embedding and codec latent."""

from __future__ import annotations

import numpy as np
import pytest

from support.native.harness import Native
from support.native.sampler_model import Tables
from ualm.runtime import _native

# Nine float32 terms of size about 1: eight additions, each off by at most half an ulp of a partial sum below 32.
TOLERANCE = 8 * 2.0**-20


@pytest.mark.parametrize("hidden", [1, 7, 111, 989])
def test_embeddings_are_summed_in_stream_order(hidden):
    rng = np.random.default_rng(hidden)
    tables = Tables.random(rng, 6, text_size=20, hidden=hidden)
    rows = rng.integers(0, len(tables.embedding), size=(40, 8)).astype(np.int32)
    rows[::3, 1:] = 0
    rows[5] = 0
    out = np.full((40, hidden), np.nan, np.float32)
    Native(tables).sampler.embed(rows, out)
    in_order = np.zeros_like(out)
    for stream in range(8):
        in_order += tables.embedding[rows[:, stream]]
    np.testing.assert_array_equal(out, in_order)
    np.testing.assert_allclose(out, tables.embedding.astype(np.float64)[rows].sum(1), atol=TOLERANCE, rtol=0)


def test_id_0_adds_nothing_whatever_the_table_holds():
    tables = Tables.random(np.random.default_rng(0), 2, text_size=5)
    tables.embedding[0] = np.nan
    rows = np.array([[256, 0, 0, 0, 0, 0, 0, 0], [0] * 8], np.int32)
    out = np.empty((2, 5), np.float32)
    Native(tables).sampler.embed(rows, out)
    np.testing.assert_array_equal(out, np.stack([tables.embedding[256], np.zeros(5)]))


@pytest.mark.parametrize("dtype", [np.int16, np.int32])
@pytest.mark.parametrize(("codebook_size", "latent"), [(1, 1), (7, 13), (1024, 256)])
def test_latents_are_bias_plus_the_eight_code_vectors(codebook_size, latent, dtype):
    rng = np.random.default_rng(latent)
    table = rng.normal(size=(8, codebook_size, latent)).astype(np.float32)
    bias = rng.normal(size=latent).astype(np.float32)
    codes = rng.integers(0, codebook_size, size=(33, 8)).astype(dtype)
    out = np.full((33, latent), np.nan, np.float32)
    _native.codes_to_latents(codes, table, bias, out)
    in_order = np.broadcast_to(bias, out.shape).copy()
    for stream in range(8):
        in_order += table[stream, codes[:, stream]]
    np.testing.assert_array_equal(out, in_order)
    exact = bias + sum(table[stream, codes[:, stream]].astype(np.float64) for stream in range(8))
    np.testing.assert_allclose(out, exact, atol=TOLERANCE, rtol=0)


def test_no_rows_and_no_frames_are_fine():
    tables = Tables.random(np.random.default_rng(0), 2, text_size=5)
    Native(tables).sampler.embed(np.empty((0, 8), np.int32), np.empty((0, 5), np.float32))
    _native.codes_to_latents(
        np.empty((0, 8), np.int16), tables.rvq_table, tables.rvq_bias, np.empty((0, 3), np.float32)
    )


def test_a_steps_latents_equal_those_of_its_codes():
    """Two ways to the same numbers: frame by frame while drawing, and from the finished codes."""
    tables = Tables.random(np.random.default_rng(4), 30, text_size=5, latent=17)
    native, rng = Native(tables), np.random.default_rng(5)
    native.sampler.begin_audio(
        mode="fixed", temperature=1.0, top_k=0, top_p=1.0, guidance=1.0, max_steps=40, seed=1, segment=0
    )
    rows, latents, flags = [], [], 0
    while not flags & (_native.STOP | _native.LIMIT):
        logits = rng.normal(size=(1, len(tables.audio_columns()))).astype(np.float32)
        logits[0, :3] = -60
        flags = native.step(logits)
        rows.append(native.row.copy())
        if flags & _native.LATENT:
            latents.append(native.latent.copy())
    drawn, frames = np.array(rows), len(rows) - 7
    codes = np.stack([drawn[n : n + frames, n] - tables.pad(n) - 1 for n in range(8)], axis=1)
    assert frames == 33 and (codes == -1).any(), "this test needs a pad drawn inside the sound"
    out = np.empty((frames, 17), np.float32)
    _native.codes_to_latents(np.maximum(codes, 0).astype(np.int32), tables.rvq_table, tables.rvq_bias, out)
    np.testing.assert_array_equal(np.array(latents), out)
