"""The CPU engine: the cost of a step, and the equivalence of its two dialects."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from support.runs import make_run
from ualm.export.bundle import export_run
from ualm.runtime import AudioSampling, ContextError
from ualm.runtime.bundle.bundle import Bundle
from ualm.runtime.engines.onnxruntime.cpu import OnnxRuntimeEngine, OnnxRuntimeSequence


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Head size 16, so that both dialects of the KV section exist; wide enough for a cache of noticeable size."""
    folder = tmp_path_factory.mktemp("engine")
    run = make_run(folder / "run", hidden=128, heads=8, kv_heads=8)
    export_run(run.folder, folder / "bundle")
    return Bundle(folder / "bundle", verify="never")


def open_engine(bundle: Bundle, max_context: int, *, grouped: bool) -> OnnxRuntimeEngine:
    engine = OnnxRuntimeEngine(bundle, threads=1, max_context=max_context)
    assert engine.grouped
    engine.body = "backbone.grouped" if grouped else "backbone"
    return engine


def begin(engine: OnnxRuntimeEngine, prompt: int, max_steps: int = 400) -> OnnxRuntimeSequence:
    vocabulary = engine.bundle.manifest.vocabulary
    random = np.random.default_rng(0)
    sequence = engine.open_sequence()
    sequence.prefill([vocabulary.text_rows(random.integers(1, vocabulary.text_size, prompt).tolist())])
    sequence.begin_segment("audio", AudioSampling(temperature=0.0, max_steps=max_steps), mode="fixed", segment=0)
    return sequence


def test_both_dialects_draw_the_same_rows(bundle: Bundle) -> None:
    grouped, standard = (
        begin(open_engine(bundle, 512, grouped=grouped), prompt=300).run_frames(40).rows for grouped in (True, False)
    )
    np.testing.assert_array_equal(grouped, standard)


def test_prefill_in_pieces_equals_prefill_at_once(bundle: Bundle) -> None:
    engine = open_engine(bundle, 512, grouped=True)
    rows = bundle.manifest.vocabulary.text_rows(list(range(1, 101)))
    whole, pieces = engine.open_sequence(), engine.open_sequence()
    whole.prefill([rows])
    for piece in np.split(rows, [1, 8, 9, 60]):
        pieces.prefill([piece])
    np.testing.assert_allclose(pieces.modality_logits(), whole.modality_logits(), rtol=1e-5, atol=1e-5)
    assert whole.length == pieces.length == 100


@pytest.mark.parametrize("grouped", [True, False])
def test_a_step_costs_what_is_held_not_what_is_reserved(bundle: Bundle, grouped: bool) -> None:
    """A copy of the reserved cache would be 268 MB a step here (65536 rows, 2 layers), far more than the whole step."""
    engines = [open_engine(bundle, context, grouped=grouped) for context in (256, 65536)]
    seconds: list[list[float]] = [[], []]
    for _ in range(5):
        for engine, times in zip(engines, seconds, strict=True):
            sequence = begin(engine, prompt=64)
            sequence.run_frames(5)
            started = time.perf_counter()
            sequence.run_frames(40)
            times.append(time.perf_counter() - started)
    small, large = (min(times) for times in seconds)
    assert large < 2 * small


@pytest.mark.parametrize("grouped", [True, False])
def test_a_full_context_is_an_error_that_says_how_much_is_needed(bundle: Bundle, grouped: bool) -> None:
    engine = open_engine(bundle, 40, grouped=grouped)
    with pytest.raises(ContextError, match=r"41 rows.*max_context = 40"):
        engine.open_sequence().prefill([np.zeros((41, 8), np.int32)])
    sequence = begin(engine, prompt=30)
    with pytest.raises(ContextError, match="max_context = 40"):
        sequence.run_frames(20)
    assert sequence.length == 40


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux to report resident memory")
def test_a_cache_takes_memory_for_the_rows_held_only(bundle: Bundle) -> None:
    """128 MB are reserved; two rows touch a page of 4 KiB for each layer, branch, head, key and value (0.25 MB)."""
    engine = open_engine(bundle, 65536, grouped=True)
    begin(engine, prompt=2).run_frames(2)  # one-time allocations of the very first call
    before = resident_bytes()
    sequence = begin(engine, prompt=2)
    sequence.run_frames(2)
    assert resident_bytes() - before < 4 << 20
    assert sequence.length == 4


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
