"""What the module refuses, with which reasons."""

from __future__ import annotations

import gc
import math
from math import inf
from pathlib import Path

import numpy as np
import pytest

from support.native.harness import Native
from support.native.sampler_model import Options, Tables
from ualm.runtime import _native

TABLES = Tables.random(np.random.default_rng(0), 4, text_size=10)
AUDIO, TEXT = 2 + 8 * 5, 2 + 10
GOOD = {"temperature": 0.8, "top_k": 20, "top_p": 1.0, "guidance": 1.0, "max_steps": 20, "seed": 0, "segment": 0}


@pytest.fixture
def native() -> Native:
    return Native(TABLES)


def logits(columns: int = AUDIO, branches: int = 1) -> np.ndarray:
    return np.zeros((branches, columns), np.float32)


def test_sizes_are_told(native):
    sampler = native.sampler
    assert (sampler.hidden_size, sampler.latent_size) == (5, 3)
    assert (sampler.audio_logits, sampler.text_logits) == (AUDIO, TEXT)
    assert (_native.STOP, _native.LIMIT, _native.LATENT) == (1, 2, 4)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", 1e39),
        ("temperature", 1e-60),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", float("nan")),
        ("guidance", 0.99),
        ("guidance", float("inf")),
        ("guidance", float("nan")),
        ("max_steps", 0),
        ("max_steps", 2**31),
        ("segment", -1),
        ("segment", 2**32),
    ],
)
def test_a_sampling_option_out_of_range_is_named(native, name, value):
    for begin in (lambda **o: native.sampler.begin_audio(mode="fixed", **o), native.sampler.begin_text):
        with pytest.raises(ValueError, match=rf"^{name} = .*: must be"):
            begin(**{**GOOD, name: value})


#: What an option may be outside its limits (all or none of something), and the end of its limits that it may not be.
BESIDE = {"temperature": {0.0}, "top_k": {0, 2**31}}
OPEN = {"top_p": {0.0}}


@pytest.mark.parametrize("name", GOOD)
def test_an_option_may_be_what_its_limits_hold_and_no_more(native, name):
    least, most = _native.SAMPLING_LIMITS[name]
    whole = isinstance(most, int)
    beyond = {least - 1, most + 1} if whole else {math.nextafter(least, -inf), math.nextafter(most, inf)}
    beside, excluded = BESIDE.get(name, set()), OPEN.get(name, set())
    for value in ({least, most} | beside) - excluded:
        native.sampler.begin_text(**{**GOOD, name: value})
    for value in (beyond | excluded) - beside:
        with pytest.raises((ValueError, TypeError)):  # TypeError: a seed that no 64 bits hold
            native.sampler.begin_text(**{**GOOD, name: value})


def test_every_option_has_limits():
    assert _native.SAMPLING_LIMITS.keys() == GOOD.keys()


@pytest.mark.parametrize("seed", [-1, 2**64, 0.5])
def test_a_seed_outside_64_bits_is_refused(native, seed):
    with pytest.raises(TypeError):
        native.sampler.begin_text(**{**GOOD, "seed": seed})


def test_fixed_sound_needs_eight_rows_and_a_known_mode(native):
    with pytest.raises(ValueError, match="max_steps = 7: must be a whole number from 8"):
        native.sampler.begin_audio(mode="fixed", **{**GOOD, "max_steps": 7})
    native.sampler.begin_audio(mode="reference", **{**GOOD, "max_steps": 7})
    with pytest.raises(ValueError, match="mode = 'repaired': must be 'fixed' or 'reference'"):
        native.sampler.begin_audio(mode="repaired", **GOOD)


def test_a_top_k_beyond_every_vocabulary_keeps_all(native):
    native.sampler.begin_text(**{**GOOD, "top_k": 2**40})
    assert native.step(logits(TEXT)) in (0, 1)


def test_a_refused_begin_leaves_the_segment_under_way(native):
    native.begin(Options("text", guidance=1, temperature=0))
    steps = logits(TEXT)
    steps[0, 5] = 1
    native.step(steps)
    with pytest.raises(ValueError):
        native.sampler.begin_text(**{**GOOD, "top_p": 2.0})
    native.step(steps)
    assert native.sampler.row == 2


def test_step_needs_a_segment_that_runs(native):
    with pytest.raises(RuntimeError, match="no segment has begun; call begin_audio or begin_text"):
        native.step(logits())
    native.begin(Options("text", guidance=1, max_steps=1))
    assert native.step(logits(TEXT)) & 3
    with pytest.raises(RuntimeError, match="the segment has ended; call begin_audio or begin_text"):
        native.step(logits(TEXT))
    native.begin(Options("text", guidance=1, max_steps=1))
    assert native.sampler.row == 0
    assert native.step(logits(TEXT)) & 3


def test_guidance_wants_two_branches_and_none_wants_one(native):
    native.begin(Options("fixed", guidance=1.0))
    with pytest.raises(ValueError, match=r"logits: shape is \[2, 42\], must be \[branches = 1, L = 42\]"):
        native.step(logits(branches=2))
    native.begin(Options("fixed", guidance=1.5))
    with pytest.raises(ValueError, match=r"logits: shape is \[1, 42\], must be \[branches = 2, L = 42\]"):
        native.step(logits())
    native.begin(Options("text", guidance=1.0))
    with pytest.raises(ValueError, match=r"must be \[branches = 1, L = 12\]"):
        native.step(logits())


@pytest.mark.parametrize(
    ("position", "array", "error", "message"),
    [
        (0, np.zeros((1, AUDIO)), TypeError, "logits: dtype is float64, must be float32"),
        (0, np.zeros((1, AUDIO), ">f4"), TypeError, "logits: dtype is >f4, must be float32"),
        (0, np.zeros((1, 2 * AUDIO), np.float32)[:, ::2], ValueError, "logits: must be C-contiguous"),
        (0, np.zeros(AUDIO, np.float32), ValueError, "logits: shape is"),
        (0, [[0.0] * AUDIO], TypeError, "incompatible function arguments"),
        (1, np.zeros(8, np.int64), TypeError, "row_out: dtype is int64, must be int32"),
        (1, np.zeros(7, np.int32), ValueError, r"row_out: shape is \[7\], must be \[streams = 8\]"),
        (2, np.zeros(6, np.float32), ValueError, r"embedding_out: shape is \[6\], must be \[H = 5\]"),
        (2, np.zeros((5, 2), np.float32)[:, 0], ValueError, "embedding_out: must be C-contiguous"),
        (3, np.zeros((1, 3), np.float32), ValueError, r"latent_out: shape is \[1, 3\], must be \[D = 3\]"),
        (3, np.frombuffer(bytes(12), np.float32), ValueError, "latent_out: must be writable"),
        (3, np.frombuffer(bytearray(13), np.uint8)[1:].view(np.float32), ValueError, "latent_out: must be .*aligned"),
    ],
)
def test_step_checks_every_array_and_changes_nothing(native, position, array, error, message):
    native.begin(Options("fixed", guidance=1.0))
    arrays = [logits(), native.row, native.embedding, native.latent]
    arrays[position] = array
    with pytest.raises(error, match=message):
        native.sampler.step(*arrays)
    assert native.sampler.row == 0


@pytest.mark.parametrize(
    ("value", "message"), [(np.nan, "NaN among"), (np.inf, r"\+inf among"), (-np.inf, "nothing but -inf among")]
)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_broken_logits_name_row_and_stream_and_can_be_repaired(native, value, message, temperature):
    native.begin(Options("reference", guidance=1.0, temperature=temperature))
    good, bad = logits(), logits()
    good[0, 4:] = np.random.default_rng(1).normal(size=AUDIO - 4)
    good[0, :2] = -np.inf
    bad[:] = good
    bad[0, 2 + 3 * 5 : 2 + 4 * 5] = value
    native.step(good)
    before = native.row.copy()
    with pytest.raises(ValueError, match=f"{message} the candidates of row 1, stream 3") as error:
        native.step(bad)
    assert str(error.value) in [text % (1, 3) for text in _native.FAULTS.values()]
    assert native.sampler.row == 1
    np.testing.assert_array_equal(native.row, before)
    native.step(good)
    assert native.sampler.row == 2


def test_logits_that_become_broken_by_mixing_are_refused(native):
    native.begin(Options("reference", guidance=3.0))
    both = logits(branches=2)
    both[:, 7] = -np.inf  # -inf * 3 + -inf * -2 is NaN
    with pytest.raises(ValueError, match="NaN among the candidates of row 0, stream 1"):
        native.step(both)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"codebook_size": 0}, ValueError, "codebook_size = 0: must be"),
        ({"text_size": 0}, ValueError, "text_size = 0: must be"),
        ({"audio_base": 3}, ValueError, "audio_base = 3: must be a whole number from 4"),
        ({"text_base": 2}, ValueError, "text_base = 2: must be"),
        ({"audio_base": 267}, ValueError, "embedding: has 306 rows, but the audio ids are 267 .. 306"),
        ({"text_size": 60}, ValueError, "the text ids are 256 .. 315"),
        ({"text_base": 260}, ValueError, "audio ids 266 .. 305 and text ids 260 .. 269 overlap"),
        ({"codebook_size": 3}, ValueError, r"rvq_table: shape is \[8, 4, 3\], must be \[streams = 8, K = 3, D\]"),
        ({"rvq_bias": np.zeros(4, np.float32)}, ValueError, r"rvq_bias: shape is \[4\], must be \[D = 3\]"),
        ({"embedding": np.zeros((306, 5), np.float16)}, TypeError, "dtype is float16, must be float32, or uint16"),
        ({"embedding": np.zeros((5, 306), np.float32).T}, ValueError, "embedding: must be C-contiguous"),
    ],
)
def test_tables_and_sizes_must_fit_together(changes, error, message):
    with pytest.raises(error, match=message):
        _native.FrameSampler(**{**vars(TABLES), **changes})


def test_ids_and_codes_out_of_range_are_named(native):
    rows, out = np.zeros((3, 8), np.int32), np.full((3, 5), 7, np.float32)
    for bad in (-1, 306):
        rows[2, 4] = bad
        with pytest.raises(ValueError, match=rf"rows\[2, 4\] = {bad}: must be an id from 0 to 305"):
            native.sampler.embed(rows, out)
    assert (out == 7).all()
    codes, out = np.zeros((3, 8), np.int16), np.full((3, 3), 7, np.float32)
    for bad in (-1, 4):
        codes[1, 7] = bad
        with pytest.raises(ValueError, match=rf"codes\[1, 7\] = {bad}: must be a code from 0 to 3"):
            _native.codes_to_latents(codes, TABLES.rvq_table, TABLES.rvq_bias, out)
    assert (out == 7).all()
    with pytest.raises(TypeError, match="codes: dtype is int64, must be int32 or int16"):
        _native.codes_to_latents(codes.astype(np.int64), TABLES.rvq_table, TABLES.rvq_bias, out)


def test_tables_may_be_read_only_maps_and_are_kept_alive(tmp_path: Path):
    path = tmp_path / "embedding.bin"
    TABLES.embedding.tofile(path)

    def sampler_of_map() -> _native.FrameSampler:
        mapped = np.memmap(path, np.float32, "r", shape=TABLES.embedding.shape)
        return _native.FrameSampler(**{**vars(TABLES), "embedding": mapped, "rvq_bias": TABLES.rvq_bias.copy()})

    sampler = sampler_of_map()
    gc.collect()
    out = np.empty((1, 5), np.float32)
    sampler.embed(np.array([[256, 0, 0, 0, 0, 0, 0, 0]], np.int32), out)
    np.testing.assert_array_equal(out[0], TABLES.embedding[256])
