"""The frame sampler's kernel draws what the CPU draws: rows, embeddings and latents, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.cuda.pairs import LIMIT, STOP, Kernel, Pair, run_pairs
from support.native.sampler_model import Options, Tables
from ualm.runtime import _native

# Below and above a warp, a block of 128 and what the fast path keeps; including odd ones.
SIZES = [1, 5, 37, 129, 300]
TABLES = {size: Tables.random(np.random.default_rng(size), size, text_size=3 * size + 1) for size in SIZES}
TOP_K = [1, 2, 19, 20, 21, 0]


def random_logits(
    rng: np.random.Generator, options: Options, columns: int, *, ties: bool = False, holes: float = 0.0
) -> np.ndarray:
    branches = 2 if options.guidance > 1 else 1
    logits = (rng.normal(size=(branches, columns)) * 3).astype(np.float32)
    if ties:
        logits = np.round(logits)
    if holes:
        logits[0, rng.random(columns) < holes] = -np.inf
    return logits


def columns_of(tables: Tables, kind: str) -> int:
    return len(tables.text_columns() if kind == "text" else tables.audio_columns())


@st.composite
def batches(draw):
    size = draw(st.sampled_from(SIZES))
    kind = draw(st.sampled_from(["fixed", "fixed", "reference", "text"]))
    guided = draw(st.booleans())
    options = [
        Options(
            kind,
            temperature=draw(st.sampled_from([0.0, 0.05, 0.8, 1.0, 2.5])),
            top_k=draw(st.sampled_from([*TOP_K, 128, 129])),
            top_p=draw(st.sampled_from([1e-9, 0.01, 0.5, 0.9, 0.999999, 1.0])),
            guidance=draw(st.sampled_from([1.1, 3.0])) if guided else 1.0,
            max_steps=draw(st.integers(8, 14)) if kind == "fixed" else draw(st.integers(1, 10)),
            seed=draw(st.integers(0, 2**64 - 1)),
            segment=draw(st.integers(0, 2**32 - 1)),
        )
        for _ in range(draw(st.integers(1, 3)))
    ]
    return size, options, draw(st.booleans()), draw(st.sampled_from([0.0, 0.0, 0.4, 0.97]))


@settings(max_examples=250, deadline=None)
@given(batch=batches(), seed=st.integers(0, 2**32 - 1))
def test_whole_segments_equal_the_cpu(cuda, batch, seed):
    size, options, ties, holes = batch
    rng = np.random.default_rng(seed)
    columns = columns_of(TABLES[size], options[0].kind)
    steps = [
        [random_logits(rng, each, columns, ties=ties, holes=holes) for _ in range(each.max_steps)] for each in options
    ]
    run_pairs(cuda, TABLES[size], options, steps)


@pytest.mark.parametrize("count", [1, 2, 33, 64])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_batch_draws_what_each_sequence_alone_draws(cuda, count, guidance):
    """Sequences of one launch end at different rows, and have their own options."""
    tables, rng = TABLES[5], np.random.default_rng(count)
    options = [
        Options(
            "fixed",
            max_steps=8 + i % 5,
            seed=i,
            segment=i % 3,
            guidance=guidance,
            temperature=[0.8, 0.0, 1.3][i % 3],
            top_k=[2, 0, 20][i % 3],
        )
        for i in range(count)
    ]
    columns = columns_of(tables, "fixed")
    steps = [[random_logits(rng, each, columns) for _ in range(each.max_steps)] for each in options]
    pairs = run_pairs(cuda, tables, options, steps)
    assert len({pair.row for pair in pairs}) > 1 or count == 1


@pytest.mark.parametrize("kind", ["fixed", "reference", "text"])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 1e-300, np.nextafter(1.0, 0.0)])
@pytest.mark.parametrize("top_k", [*TOP_K, 10**6])
def test_true_sizes(cuda, kind, top_k, top_p):
    """A codebook of 1024 (as X-Codec's) and a text head wide enough for the largest block."""
    tables, rng = TRUE_SIZE, np.random.default_rng(top_k)
    options = Options(kind, top_k=top_k, top_p=top_p, max_steps=9 if kind == "fixed" else 2, seed=top_k)
    steps = [random_logits(rng, options, columns_of(tables, kind)) for _ in range(2)]
    kernel = Kernel(cuda, tables, [options])
    pair = Pair(tables, options, kernel, 0)
    for logits in steps if kind != "fixed" else steps[:1]:
        kernel.step([logits])
        pair.check(logits)
    assert pair.row == len(steps if kind != "fixed" else steps[:1])


TRUE_SIZE = Tables.random(np.random.default_rng(0), 1024, text_size=4999, hidden=1536, latent=256)


@pytest.mark.parametrize("value", [0.0, -0.0, 1.5, -3e38])
@pytest.mark.parametrize(
    ("top_k", "top_p"), [(1, 1.0), (20, 1.0), (20, 0.5), (200, 1.0), (300, 0.5), (0, 0.3), (0, 1.0)]
)
def test_when_all_candidates_tie_the_lower_ids_are_kept(cuda, value, top_k, top_p):
    """More ties than the fast path has room for: the cut is among equal logits."""
    tables = TRUE_SIZE
    for seed in range(4):
        options = Options("text", top_k=top_k, top_p=top_p, guidance=1.0, max_steps=1, seed=seed)
        logits = np.full((1, columns_of(tables, "text")), value, np.float32)
        logits[0, ::7] = -0.0 if value == 0 else value  # zeros of both signs are equal
        logits[0, 1000] = value if seed < 3 else value * 0.5
        run_pairs(cuda, tables, [options], [[logits]])


def test_a_late_lucky_candidate_is_not_skipped(cuda):
    """Candidates that must lose need no random number. Here none must: only noise decides between equal logits.

    About every thirtieth winner comes after one of the same thread that beats a bound set too low.
    """
    tables = TRUE_SIZE
    logits = np.zeros((1, columns_of(tables, "text")), np.float32)
    for first in range(0, 192, 64):
        options = [Options("text", top_k=0, guidance=1.0, max_steps=1, seed=first + i) for i in range(64)]
        run_pairs(cuda, tables, options, [[logits]] * 64, beyond=0)


@pytest.mark.parametrize("ties", [19, 20, 127, 128, 129, 255, 256, 257, 290, 300])
@pytest.mark.parametrize(("top_k", "top_p"), [(20, 1.0), (128, 1.0), (129, 1.0), (0, 0.5)])
def test_so_many_candidates_tie_as_the_sorted_list_just_holds(cuda, ties, top_k, top_p):
    tables, rng = TRUE_SIZE, np.random.default_rng(ties)
    logits = np.full((1, columns_of(tables, "text")), -1e30, np.float32)
    for seed in range(3):
        logits[0] = -1e30
        logits[0, rng.permutation(logits.shape[1])[:ties]] = 2.0
        options = Options("text", top_k=top_k, top_p=top_p, guidance=1.0, max_steps=1, seed=seed)
        run_pairs(cuda, tables, [options], [[logits]])


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("kind", ["reference", "text"])
def test_faulty_logits_are_reported_with_row_and_stream_and_stop_the_sequence(cuda, kind, temperature):
    tables, rng = TABLES[37], np.random.default_rng(5)
    columns = columns_of(tables, kind)
    seen = set()
    for trial in range(60):
        options = Options(kind, temperature=temperature, guidance=1.0, max_steps=3, seed=trial, top_k=TOP_K[trial % 6])
        steps = [random_logits(rng, options, columns) for _ in range(3)]
        steps[0][0, 0 if kind == "text" else slice(0, 2)] = -60  # it does not end immediately
        bad = steps[trial % 2]
        # with several invalid numbers, the first of the lowest stream counts
        for column in rng.integers(2, columns, size=3):
            bad[0, column] = rng.choice([np.nan, np.inf, -np.nan])
        if trial % 5 == 0:
            bad[:] = -np.inf
        if trial % 5 == 1 and kind == "reference":
            bad[0, 2 + 38 * 4 : 2 + 38 * 5] = -np.inf
        kernel = Kernel(cuda, tables, [options])
        pair = Pair(tables, options, kernel, 0)
        for logits in steps:
            kernel.step([logits])
            pair.check(logits)
        seen.add(kernel.progress_of(0)[2])
        before = kernel.state.copy()
        kernel.step([steps[2]])
        np.testing.assert_array_equal(kernel.state, before)
        kernel.begin(0, options)  # after a new beginning, it runs
        kernel.step([np.zeros_like(bad)])
        assert kernel.progress_of(0)[0] == 1
    assert seen >= {1, 2, 3}


def test_one_faulty_sequence_leaves_the_others_alone(cuda):
    tables, rng = TABLES[5], np.random.default_rng(0)
    options = [Options("reference", guidance=3.0, max_steps=4, seed=i) for i in range(5)]
    columns = columns_of(tables, "reference")
    steps = [[random_logits(rng, each, columns) for _ in range(4)] for each in options]
    for each in steps:
        for logits in each:
            logits[0, :2] -= 60
    steps[2][1][1, 20] = np.nan
    pairs = run_pairs(cuda, tables, options, steps)
    assert [pair.row for pair in pairs] == [4, 4, 1, 4, 4]


@pytest.mark.parametrize("kind", ["fixed", "text"])
def test_a_bfloat16_embedding_table_gives_the_same_sums(cuda, kind):
    tables = TABLES[37]
    bits = (tables.embedding.view(np.uint32) >> 16).astype(np.uint16)
    narrow = replace(tables, embedding=np.ascontiguousarray(bits))
    options = Options(kind, max_steps=9, guidance=1.0, seed=3)
    rng = np.random.default_rng(1)
    steps = [random_logits(rng, options, columns_of(tables, kind)) for _ in range(9)]
    run_pairs(cuda, narrow, [options], [steps])


def test_a_segment_may_follow_another_in_the_same_state(cuda):
    tables, rng = TABLES[5], np.random.default_rng(9)
    columns = columns_of(tables, "fixed")
    first, second = (Options("fixed", max_steps=9, guidance=1.0, seed=s, segment=s) for s in (0, 1))
    kernel = Kernel(cuda, tables, [first])
    for options in (first, second):
        kernel.begin(0, options)
        assert kernel.progress_of(0) == (0, 0, 0, 0)
        pair = Pair(tables, options, kernel, 0)
        while not pair.over:
            logits = random_logits(rng, options, columns)
            kernel.step([logits])
            pair.check(logits)


def test_logits_of_the_wrong_head_are_a_fault(cuda):
    tables = TABLES[5]
    kernel = Kernel(cuda, tables, [Options("text", guidance=1.0, max_steps=4)])
    kernel.begin(0, Options("fixed", guidance=1.0, max_steps=9))
    kernel.step([np.zeros((1, columns_of(tables, "text")), np.float32)])
    assert kernel.progress_of(0) == (0, 0, 4, 0)
    assert "of a head that the segment does not draw from" in _native.FAULTS[4]


def test_launches_may_be_captured_and_run_ahead_of_the_end(cuda):
    tables, options = TABLES[5], Options("reference", guidance=1.0, max_steps=3, seed=1)
    kernel = Kernel(cuda, tables, [options])
    kernel.logits[:] = 0
    kernel.logits[0, 0, :2] = -60
    stream = cuda.create_stream()
    cuda.begin_capture(stream)
    kernel.sample(stream)
    assert kernel.progress_of(0)[0] == 0
    graph = cuda.end_capture(stream)
    for _ in range(7):
        cuda.launch_graph(graph, stream)
    assert kernel.progress_of(0)[:2] == (3, LIMIT)
    kernel.logits[0, 0, 0] = 60
    kernel.begin(0, options)
    for _ in range(3):
        cuda.launch_graph(graph, stream)
    assert kernel.progress_of(0)[:2] == (1, STOP)
    cuda.destroy_graph(graph)
    cuda.destroy_stream(stream)


@pytest.mark.parametrize("copies", [1, 2])
def test_rows_are_embedded_as_the_cpu_embeds_them(cuda, copies):
    tables, rng = TABLES[37], np.random.default_rng(2)
    kernel = Kernel(cuda, tables, [Options("text")])
    rows = rng.integers(0, len(tables.embedding), size=(13, 8)).astype(np.int32)
    rows[3, 1:] = 0
    out = np.full((13, copies, tables.embedding.shape[1]), np.nan, np.float32)
    cuda.embed_rows(kernel.tables, rows=rows.ctypes.data, count=13, copies=copies, out=out.ctypes.data, stream=0)
    expected = np.empty((13, tables.embedding.shape[1]), np.float32)
    Pair(tables, Options("text"), kernel, 0).native.sampler.embed(rows, expected)
    np.testing.assert_array_equal(out, np.repeat(expected[:, None], copies, axis=1))


@pytest.mark.full
@settings(max_examples=4000, deadline=None)
@given(batch=batches(), seed=st.integers(0, 2**32 - 1))
def test_many_more_whole_segments_equal_the_cpu(cuda, batch, seed):
    test_whole_segments_equal_the_cpu.hypothesis.inner_test(cuda, batch, seed)


@pytest.mark.full
@pytest.mark.parametrize("mode", ["fixed", "reference"])
def test_64_pairs_of_the_true_size_over_whole_segments(cuda, mode):
    rng = np.random.default_rng(64)
    options = [
        Options(mode, max_steps=12, seed=i, top_k=TOP_K[i % 6], top_p=[1.0, 0.9][i % 2], temperature=0.8)
        for i in range(64)
    ]
    columns = columns_of(TRUE_SIZE, mode)
    steps = [[random_logits(rng, each, columns) for _ in range(12)] for each in options]
    run_pairs(cuda, TRUE_SIZE, options, steps)


def test_after_a_drain_the_better_of_eos_and_eot_is_taken_whatever_the_temperature(cuda):
    tables, rng = TABLES[5], np.random.default_rng(3)
    options = [Options("fixed", max_steps=20, guidance=1.0, temperature=2.5, top_k=0, seed=i) for i in range(64)]
    steps = []
    for index, each in enumerate(options):
        rows = [random_logits(rng, each, columns_of(tables, "fixed")) for _ in range(9)]
        rows[1][0, 2] = 60  # stream 0 draws its pad: one frame, its drain, then the stop row
        rows[8][0, :2] = [0.3, 0.0] if index % 2 else [0.0, 0.3]
        steps.append(rows)
    kernel = Kernel(cuda, tables, options)
    pairs = [Pair(tables, each, kernel, i) for i, each in enumerate(options)]
    for row in range(9):
        kernel.step([each[row] for each in steps])
        for pair, each in zip(pairs, steps, strict=True):
            pair.check(each[row])
    assert [kernel.progress_of(i)[:2] for i in range(64)] == [(9, STOP)] * 64
    assert kernel.rows[:, 8 % kernel.capacity, 0].tolist() == [3, 2] * 32
