"""The native sampler equals the slow model, row by row, for random options, ties, -inf and every way to end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.native.harness import Native, assert_same, run_native
from support.native.sampler_model import EOS, EOT, LIMIT, STOP, BadLogits, Options, SlowSampler, Tables

# Codebook sizes below and above the largest top-k, including odd ones.
SIZES = [1, 2, 5, 23, 37]
TABLES = {size: Tables.random(np.random.default_rng(size), size, text_size=3 * size + 1) for size in SIZES}
NATIVE = {size: Native(tables) for size, tables in TABLES.items()}

EVERYTHING = 0
TOP_K = [1, 2, 19, 20, 21, EVERYTHING]


def columns_of(tables: Tables, options: Options) -> int:
    return len(tables.text_columns() if options.kind == "text" else tables.audio_columns())


def random_steps(tables: Tables, options: Options, *, seed: int, ties: bool, holes: bool, ends: dict[int, int]):
    """Logits of each step. ``ends``: at these rows the given column of stream 0 wins; elsewhere eos, eot and pad are
    all unlikely, so that sounds of all lengths occur."""
    rng = np.random.default_rng(seed)
    branches = 2 if options.guidance > 1 else 1
    for row in range(options.max_steps):
        logits = (rng.normal(size=(branches, columns_of(tables, options))) * 3).astype(np.float32)
        if ties:
            logits = np.round(logits)
        if holes:
            hole = rng.random(logits.shape[1]) < 0.4
            hole[[0, 3]] = False
            hole[3 :: tables.codebook_size + 1] = False  # no stream is left with only -inf
            logits[0, hole] = -np.inf
        if row in ends:
            logits[0, ends[row]] = 60
        elif ends:
            logits[0, :3] -= 60
        yield logits


@st.composite
def cases(draw):
    size = draw(st.sampled_from(SIZES))
    kind = draw(st.sampled_from(["fixed", "fixed", "reference", "text"]))
    options = Options(
        kind,
        temperature=draw(st.sampled_from([0.0, 0.05, 0.8, 1.0, 2.5])),
        top_k=draw(st.sampled_from(TOP_K)),
        top_p=draw(st.sampled_from([0.01, 0.5, 0.9, 0.999, 1.0])),
        guidance=draw(st.sampled_from([1.0, 1.1, 3.0])),
        max_steps=draw(st.integers(8, 24)) if kind == "fixed" else draw(st.integers(1, 12)),
        seed=draw(st.integers(0, 2**64 - 1)),
        segment=draw(st.integers(0, 2**32 - 1)),
    )
    ends = draw(st.dictionaries(st.integers(0, 20), st.sampled_from([0, 1, 2]), max_size=3))
    return size, options, {"ties": draw(st.booleans()), "holes": draw(st.booleans()), "ends": ends}


@settings(max_examples=400, deadline=None, derandomize=True)
@given(case=cases(), seed=st.integers(0, 2**32 - 1))
def test_every_output_equals_the_model(case, seed):
    size, options, shape = case
    assert_same(NATIVE[size], TABLES[size], options, random_steps(TABLES[size], options, seed=seed, **shape))


def test_the_model_can_nearly_always_tell():
    """The comparison above ends early if the model is ambiguous; that must be rare, or it would prove little."""
    compared = wanted = 0
    for seed in range(20):
        options = Options("reference", max_steps=50, seed=seed, top_p=0.9)
        steps = list(random_steps(TABLES[37], options, seed=seed, ties=False, holes=False, ends={99: 0}))
        compared += assert_same(NATIVE[37], TABLES[37], options, steps)
        wanted += options.max_steps
    assert compared > 0.95 * wanted


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("top_k", TOP_K)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_ties_go_to_the_lower_id(temperature, top_k, guidance):
    tables, native = TABLES[37], NATIVE[37]
    options = Options("text", temperature=temperature, top_k=top_k, guidance=guidance, max_steps=1)
    branches = 2 if guidance > 1 else 1
    logits = np.zeros((branches, len(tables.text_columns())), np.float32)
    allowed = tables.text_columns()[: 1 if temperature == 0 else top_k or None]
    drawn = set()
    for seed in range(300):
        rows, _ = run_native(native, replace(options, seed=seed), lambda _: logits)
        drawn.add(int(rows[0, 0]))
    assert drawn <= set(allowed)
    if len(allowed) <= 21:  # 300 uniform draws from 21 miss one with probability 1e-5, and the seeds are fixed
        assert drawn == set(allowed)


def greedy_text(columns: dict[int, tuple[float, float]], guidance: float) -> int:
    """The column that greedy drawing takes, given (conditional, null) logits of some columns; the others are -inf."""
    logits = np.zeros((2, len(TABLES[5].text_columns())), np.float32)
    logits[0] = -np.inf
    for column, pair in columns.items():
        logits[:, column] = pair
    options = Options("text", temperature=0, guidance=guidance, max_steps=1)
    return TABLES[5].text_columns().index(int(run_native(NATIVE[5], options, lambda _: logits)[0][0, 0]))


def test_one_minus_guidance_is_rounded_once_from_double():
    g = np.float32(1.1)
    right, in_float32 = np.float32(1 - 1.1), np.float32(1) - g
    between = [c for c in np.linspace(-0.0910, -0.0909, 20_000, dtype=np.float32) if in_float32 < c * g < right]
    assert between, "some conditional logit must distinguish the two roundings"
    assert greedy_text({5: (0, 1), 6: (between[0], 0)}, guidance=1.1) == 5


def test_the_mix_rounds_each_product_before_the_sum():
    """A fused multiply-add would make the later column larger; rounded step by step, the two tie."""
    rng, found = np.random.default_rng(1), 0
    for cond, null in rng.normal(size=(20_000, 2)).astype(np.float32):
        rounded = cond * np.float32(3.7) + null * np.float32(1 - 3.7)
        product, other = float(cond) * float(np.float32(3.7)), float(null) * float(np.float32(1 - 3.7))
        fused = {np.float32(product + float(np.float32(other))), np.float32(float(np.float32(product)) + other)}
        rival = np.float32(rounded / np.float32(3.7))
        if min(fused) > rounded and rival * np.float32(3.7) == rounded:
            assert greedy_text({5: (rival, 0), 6: (cond, null)}, guidance=3.7) == 5
            found += 1
    assert found > 100


@pytest.mark.parametrize(("top_p", "kept"), [(0.25, 2), (0.5, 4), (0.51, 5), (0.875, 7), (1.0, 8)])
def test_top_p_keeps_the_smallest_prefix_that_reaches_it(top_p, kept):
    # Eight equal candidates of probability 1/8: the cumulative sums are exact, and so is the edge.
    tables, native = TABLES[5], NATIVE[5]
    logits = np.full((1, len(tables.text_columns())), -np.inf, np.float32)
    logits[0, 4:12] = 1.5
    drawn = set()
    for seed in range(400):
        options = Options("text", temperature=1.3, top_k=0, top_p=top_p, guidance=1, max_steps=1, seed=seed)
        drawn.add(int(run_native(native, options, lambda _: logits)[0][0, 0]))
    assert drawn == set(tables.text_columns()[4 : 4 + kept])


ENDERS = {"eos": 0, "eot": 1, "pad": 2}


@pytest.mark.parametrize("ender", ENDERS)
@pytest.mark.parametrize("length", range(1, 10))
def test_a_sound_of_t_frames_takes_t_plus_7_rows_and_a_stop_row(length, ender):
    tables, native = TABLES[5], NATIVE[5]
    options = Options("fixed", max_steps=40, seed=length)
    steps = list(random_steps(tables, options, seed=length, ties=False, holes=False, ends={length: ENDERS[ender]}))
    for logits in steps:
        for stream in range(1, 8):
            logits[:, 2 + 6 * stream] = -60 * np.array([1, -1])  # no stream draws its own pad
    eot_better = length % 2
    steps[length + 7][:, :2] = [[0, 1], [0, 0]] if eot_better else [[1, 0], [0, 0]]

    rows, flags = run_native(native, options, lambda row: steps[row])
    assert flags == STOP and len(rows) == length + 8
    pads = [tables.pad(n) for n in range(8)]
    for n in range(8):
        live = (rows[:, n] != pads[n]).nonzero()[0]
        if n == 0:
            live = live[:-1]  # the stop row
        assert live.tolist() == list(range(n, n + length))
    chosen = {"eos": EOS, "eot": EOT, "pad": EOT if eot_better else EOS}[ender]
    assert rows[-1].tolist() == [chosen, *pads[1:]]
    assert_same(native, tables, options, steps)


@pytest.mark.parametrize("max_steps", [8, 9, 10, 11, 12])
@pytest.mark.parametrize("end_row", [None, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("column", [0, 2])
def test_max_steps_reserves_the_drain(max_steps, end_row, column):
    tables, native = TABLES[5], NATIVE[5]
    options = Options("fixed", max_steps=max_steps, seed=3)
    ends = {99: 0} if end_row is None else {end_row: column}
    steps = list(random_steps(tables, options, seed=1, ties=False, holes=False, ends=ends))
    rows, flags = run_native(native, options, lambda row: steps[row])
    if end_row is not None and end_row <= max_steps - 8:
        assert flags == STOP and len(rows) == end_row + 8
    else:
        frames = max_steps - 7  # at row max_steps-7 stream 0 holds its pad regardless of its logits
        assert flags & LIMIT and len(rows) == max_steps
        assert not np.isin(rows, [EOS, EOT]).any()
        assert (rows[frames:, 0] == tables.pad(0)).all() and (rows[:frames, 0] != tables.pad(0)).all()
    assert_same(native, tables, options, steps)


@pytest.mark.parametrize("kind", ["text", "reference"])
@pytest.mark.parametrize("max_steps", [1, 2, 9])
def test_the_step_limit_is_reported_on_the_last_row(kind, max_steps):
    options = Options(kind, max_steps=max_steps)
    steps = list(random_steps(TABLES[5], options, seed=1, ties=False, holes=False, ends={99: 0}))
    assert assert_same(NATIVE[5], TABLES[5], options, steps) == max_steps
    steps[-1][0, 1] = 80  # a stop in the very last row is a stop
    rows, flags = run_native(NATIVE[5], options, lambda row: steps[row])
    assert flags == STOP and rows[-1, 0] == EOT


def test_a_draw_does_not_depend_on_other_candidates_or_streams():
    """Noise belongs to an id: removing losing candidates changes nothing."""
    tables, native = TABLES[37], NATIVE[37]
    options = Options("reference", top_k=0, guidance=1, max_steps=1, seed=11)
    logits = np.random.default_rng(0).normal(size=(1, len(tables.audio_columns()))).astype(np.float32)
    rows, _ = run_native(native, options, lambda _: logits)
    thinned = np.full_like(logits, -np.inf)
    columns = {token: column for column, token in enumerate(tables.audio_columns())}
    for token in rows[0]:
        thinned[0, columns[int(token)]] = logits[0, columns[int(token)]]
    thinned[0, ::3] = np.where(np.isinf(thinned[0, ::3]), logits[0, ::3], thinned[0, ::3])
    np.testing.assert_array_equal(run_native(native, options, lambda _: thinned)[0], rows)


def test_equal_seeds_repeat_and_seed_and_segment_matter():
    tables, native = TABLES[37], NATIVE[37]
    options = Options("reference", max_steps=6, seed=5)
    steps = list(random_steps(tables, options, seed=2, ties=False, holes=False, ends={99: 0}))

    def rows(**changed):
        return run_native(native, replace(options, **changed), lambda row: steps[row])[0]

    np.testing.assert_array_equal(rows(), rows())
    for changed in ({"seed": 6}, {"seed": 5 + 2**32}, {"segment": 1}):
        assert (rows(**changed) != rows()).any(), changed


@pytest.mark.parametrize("temperature", [1e-38, 1e-30, 1e38])
def test_extreme_temperatures_and_logits_still_draw_an_allowed_candidate(temperature):
    tables, native = TABLES[5], NATIVE[5]
    logits = np.full((1, len(tables.text_columns())), -3e38, np.float32)
    logits[0, [4, 5]] = 3e38, 2.9e38
    options = Options("text", temperature=temperature, top_k=2, guidance=1, max_steps=1)
    drawn = {int(run_native(native, replace(options, seed=s), lambda _: logits)[0][0, 0]) for s in range(50)}
    allowed = set(tables.text_columns()[4:6])
    assert drawn == (allowed if temperature > 1 else {tables.text_columns()[4]})


def test_the_largest_public_vocabulary_draws_as_the_model():
    tables = Tables.random(np.random.default_rng(9), 2, text_size=151_936, hidden=1, latent=1)
    native, rng = Native(tables), np.random.default_rng(10)
    for options in (Options("text", max_steps=1), Options("text", max_steps=1, temperature=0, guidance=1)):
        branches = 2 if options.guidance > 1 else 1
        logits = rng.normal(size=(branches, 151_938)).astype(np.float32)
        assert_same(native, tables, options, [logits])


def test_model_and_native_refuse_the_same_logits():
    """NaN, +inf, or nothing but -inf: refused exactly where the stream draws, at any position."""
    tables, native = TABLES[5], NATIVE[5]
    rng = np.random.default_rng(12)
    refused = 0
    for trial in range(200):
        options = Options("fixed", max_steps=12, guidance=1, seed=trial, temperature=[0.0, 0.8][trial % 2])
        steps = list(random_steps(tables, options, seed=trial, ties=False, holes=False, ends={3: trial % 3}))
        row, column = int(rng.integers(0, 11)), int(rng.integers(0, 50))
        if trial % 4 == 3:
            steps[row][0, 2 + 6 * (column % 8) : 8 + 6 * (column % 8)] = -np.inf
        else:
            steps[row][0, column] = [np.nan, np.inf, np.nan][trial % 4]
        model = SlowSampler(tables, options)
        native.begin(options)
        for logits in steps:
            try:
                ids, flags, _, _ = model.step(logits)
            except BadLogits as bad:
                with pytest.raises(ValueError, match=rf"row {bad.row}, stream {bad.stream}\b"):
                    native.step(logits)
                assert native.sampler.row == bad.row
                refused += 1
                break
            assert (native.step(logits), native.row.tolist()) == (flags, ids)
            if flags & (STOP | LIMIT):
                break
    assert 40 < refused < 200  # both outcomes occur
