"""The contract of every engine, with the same cases: the CPU's, the device loop on the host shim, and TensorRT's on a
stand-in.

A new engine is one more entry of ``ENGINES``; its own features are tested in its own folder.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pytest

from support.cuda.device import cpu_engine, device_engine
from support.cuda.shim import load_shim
from support.runs import make_run
from support.sounds import make_sound
from support.tensorrt import fake as fake_tensorrt
from support.tensorrt.fake import ReplayingDevice, fake_build, fake_library
from ualm.export.bundle import export_run
from ualm.export.targets.tensorrt.target import add_engines
from ualm.runtime import AudioSampling, ContextError, EngineError, TextSampling
from ualm.runtime.audio.features import LogMelFrontend
from ualm.runtime.bundle.bundle import Bundle
from ualm.runtime.engines import registry
from ualm.runtime.engines.arithmetic import Part
from ualm.runtime.engines.protocol import Engine, EngineSequence, Frames, check_room
from ualm.runtime.engines.tensorrt.engine import TensorRtEngine
from ualm.runtime.sound.sound import Sound
from ualm.runtime.vocabulary import CHOOSABLE, STREAMS, Modality

CONTEXT = 384
#: Share of a sound's peak: what docs/limits.md promises for a sound decoded in pieces.
SAMPLES = 1e-5


def tensorrt(bundle: Bundle, max_context: int) -> TensorRtEngine:
    library = fake_library(next(each.cache for each in bundle.manifest.engines if each.role == "backbone"))
    return TensorRtEngine(bundle, ReplayingDevice(load_shim(), kind="cpu"), library, sm=89, max_context=max_context)


#: Name -> how TensorRT's engines of its bundle write the cache, and the module that opens it.
ENGINES: dict[str, tuple[str | None, Callable[[Bundle, int], Any]]] = {
    "onnxruntime": (None, cpu_engine),
    "device loop": (None, device_engine),
    "tensorrt, cache in place": ("in_place", tensorrt),
    "tensorrt, cache appended": ("appended", tensorrt),
}

#: Engine of the registry -> the entry of :data:`ENGINES` that stands for it.
STANDS_FOR = {
    "onnxruntime": "onnxruntime",
    "onnxruntime-cuda": "device loop",
    "tensorrt": "tensorrt, cache appended",
    "tensorrt-rtx": "tensorrt, cache in place",
}


@dataclass(frozen=True)
class Subject:
    """An engine, how to open another, and the engine that it is compared with, on the same weights."""

    bundle: Bundle
    engine: Engine
    open: Callable[[int], Engine]
    slow: Engine


@pytest.fixture(scope="module", params=list(ENGINES))
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    cache, opened = ENGINES[request.param]
    folder = tmp_path_factory.mktemp("contract")
    run = make_run(folder / "run", lean={"pad": -1.0, "eos": 0.5, "eot": 0.5})
    export_run(run.folder, folder / "bundle")
    with fake_tensorrt.watched():
        if cache is not None:
            library: Any = fake_library(cache)
            add_engines(Bundle(folder / "bundle"), library, (89,), max_context=CONTEXT, builder=fake_build)
        bundle = Bundle(folder / "bundle")
        engine, slow = opened(bundle, CONTEXT), cpu_engine(bundle, CONTEXT)
        yield Subject(bundle, engine, lambda rows: opened(bundle, rows), slow)
        engine.close()
        slow.close()


def prompt(subject: Subject, rows: int = 12) -> list[np.ndarray]:
    """Ids, features of a sound, and ids."""
    vocabulary, random = subject.bundle.manifest.vocabulary, np.random.default_rng(rows)
    ids = vocabulary.text_rows(random.integers(1, vocabulary.text_size, rows).tolist())
    features = random.standard_normal((5, subject.bundle.manifest.model.hidden_size), np.float32)
    return [ids[:3], features, ids[3:]]


def options(modality: Modality, **changes: Any) -> AudioSampling | TextSampling:
    kind: Any = AudioSampling if modality == "audio" else TextSampling
    return kind(**({"temperature": 1.0, "top_k": 20, "guidance": 3.0, "max_steps": 40} | changes))


def begun(
    subject: Subject, engine: Engine, modality: Modality = "audio", rows: int = 12, **changes: Any
) -> EngineSequence:
    sequence = engine.open_sequence()
    sequence.prefill(prompt(subject, rows))
    sequence.begin_segment(modality, options(modality, **changes), mode="fixed", segment=0)
    return sequence


def drawn(sequence: EngineSequence, *sizes: int) -> Frames:
    """Runs a segment to its end, in calls of so many rows."""
    got: list[Frames] = []
    for size in itertools.cycle(sizes or (3,)):
        got.append(sequence.run_frames(size))
        assert len(got[-1].rows) <= size and (got[-1].end is not None or len(got[-1].rows) == size)
        if got[-1].end is not None:
            break
    rows, latents = (np.concatenate([getattr(each, name) for each in got]) for name in ("rows", "latents"))
    return Frames(rows, latents, got[-1].end)


def assert_same(mine: Frames, other: Frames) -> None:
    assert mine.end == other.end
    np.testing.assert_array_equal(mine.rows, other.rows)
    np.testing.assert_allclose(mine.latents, other.latents, atol=1e-6)


def test_it_says_what_it_is(subject: Subject) -> None:
    assert isinstance(subject.engine.name, str) and subject.engine.bytes_per_row > 0
    assert set(subject.engine.arithmetic) == set(get_args(Part))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("modality", ["audio", "text"])
def test_rows_are_those_of_the_slow_engine(subject: Subject, modality: Modality, guidance: float) -> None:
    ends = set()
    for seed in range(4):
        mine, other = (
            drawn(begun(subject, engine, modality, guidance=guidance, seed=seed))
            for engine in (subject.engine, subject.slow)
        )
        assert_same(mine, other)
        assert mine.rows.dtype == np.int32 and mine.rows.shape[1] == STREAMS
        whole = len(mine.rows) - (mine.end == "stop") - (STREAMS - 1)
        assert len(mine.latents) == (max(whole, 0) if modality == "audio" else 0)
        ends.add(mine.end)
    assert ends


def test_how_many_rows_a_call_asks_for_changes_nothing(subject: Subject) -> None:
    expected = drawn(begun(subject, subject.engine, seed=5))
    for sizes in ((1,), (2, 1), (100,), (1, 9, 30)):
        assert_same(drawn(begun(subject, subject.engine, seed=5), *sizes), expected)


def test_the_choice_of_a_modality_is_that_of_the_slow_engine(subject: Subject) -> None:
    found = []
    for engine in (subject.engine, subject.slow):
        sequence = engine.open_sequence()
        sequence.prefill(prompt(subject))
        found.append(sequence.modality_logits())
    assert found[0].shape == (len(CHOOSABLE),) and found[0].dtype == np.float32
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_length_counts_rows_and_seconds_grow(subject: Subject) -> None:
    sequence = subject.engine.open_sequence()
    assert sequence.length == 0
    sequence.prefill(prompt(subject))
    assert sequence.length == 17 and sequence.library_seconds > 0
    sequence.begin_segment("audio", options("audio"), mode="fixed", segment=0)
    assert sequence.length == 17, "the modality row is fed with the first frame"
    sequence.run_frames(3)
    assert sequence.length == 20, "the row drawn last is not in the cache yet"


def test_a_segment_must_be_under_way(subject: Subject) -> None:
    sequence = subject.engine.open_sequence()
    with pytest.raises(EngineError, match="no segment is under way"):
        sequence.run_frames(1)
    with pytest.raises(EngineError, match="no segment has begun"):
        _ = sequence.logits
    sequence = begun(subject, subject.engine, max_steps=9)
    drawn(sequence)
    with pytest.raises(EngineError, match="no segment is under way"):
        sequence.run_frames(1)


def test_logits_are_those_of_the_last_step_for_each_branch(subject: Subject) -> None:
    vocabulary = subject.bundle.manifest.vocabulary
    for modality, guidance in itertools.product(("audio", "text"), (1.0, 3.0)):
        found = []
        for engine in (subject.engine, subject.slow):
            sequence = begun(subject, engine, modality, guidance=guidance, seed=1)
            sequence.run_frames(1)
            found.append(sequence.logits)
        assert found[0].shape == (1 + (guidance > 1), vocabulary.head_columns(modality))
        np.testing.assert_allclose(found[0], found[1], rtol=1e-3, atol=1e-4)


def test_a_context_that_is_full_is_the_same_error(subject: Subject) -> None:
    with pytest.raises(ContextError, match=rf"{CONTEXT + 1} rows.*max_context = {CONTEXT}"):
        subject.engine.open_sequence().prefill([np.zeros((CONTEXT + 1, STREAMS), np.int32)])
    sequence = begun(subject, subject.engine, rows=CONTEXT - 8, max_steps=100, top_k=1)
    with pytest.raises(ContextError, match=f"max_context = {CONTEXT}"):
        while sequence.run_frames(2).end is None:
            pass
    assert sequence.length == CONTEXT


def test_truncate_takes_back_whatever_came_behind(subject: Subject) -> None:
    sequence = begun(subject, subject.engine, seed=7)
    sequence.run_frames(9)
    sequence.truncate(11)
    assert sequence.length == 11
    with pytest.raises(EngineError, match="no segment is under way"):
        sequence.run_frames(1)
    for wrong in (-1, 12):
        with pytest.raises(EngineError, match=f"truncate: {wrong} rows, but 11 are held"):
            sequence.truncate(wrong)
    sequence.begin_segment("audio", options("audio", seed=8), mode="fixed", segment=0)
    fresh = subject.engine.open_sequence()
    first, features, last = prompt(subject)
    fresh.prefill([first, features, last[:3]])
    fresh.begin_segment("audio", options("audio", seed=8), mode="fixed", segment=0)
    assert_same(drawn(sequence), drawn(fresh))


def test_a_fork_goes_its_own_way(subject: Subject) -> None:
    sequence = subject.engine.open_sequence()
    sequence.prefill(prompt(subject))
    other = sequence.fork()
    assert other.length == sequence.length
    np.testing.assert_array_equal(other.modality_logits(), sequence.modality_logits())
    held = other.save()
    sequence.prefill([subject.bundle.manifest.vocabulary.text_rows([8, 9])])
    np.testing.assert_array_equal(other.save(), held)
    results = []
    for each in (other, begun(subject, subject.slow, seed=3)):
        each.truncate(17)
        each.begin_segment("audio", options("audio", seed=3), mode="fixed", segment=0)
        results.append(drawn(each))
    assert_same(*results)


def test_what_is_saved_is_restored_by_every_engine(subject: Subject) -> None:
    model, sequence = subject.bundle.manifest.model, begun(subject, subject.engine, seed=2)
    sequence.run_frames(4)
    saved = sequence.save()
    assert saved.dtype == np.float32
    assert saved.shape == (model.layers, 2, model.kv_heads, sequence.length, model.head_dim)
    results = []
    for engine in (subject.engine, subject.slow):
        other = engine.open_sequence()
        other.restore(saved)
        np.testing.assert_array_equal(other.save(), saved)
        other.begin_segment("text", options("text", seed=4), mode="fixed", segment=1)
        results.append(drawn(other))
    assert_same(*results)


def test_what_is_no_cache_of_the_model_is_refused(subject: Subject) -> None:
    model = subject.bundle.manifest.model
    shape = (model.layers, 2, model.kv_heads, 3, model.head_dim)
    sequence = subject.engine.open_sequence()
    wrong = [np.zeros(shape, np.float64), np.zeros((1, *shape[1:]), np.float32), np.zeros(3, np.float32)]
    for cache in wrong:
        with pytest.raises(EngineError, match="is not a cache of this model"):
            sequence.restore(cache)
    with pytest.raises(ContextError, match=f"max_context = {CONTEXT}"):
        sequence.restore(np.zeros((*shape[:3], CONTEXT + 1, shape[4]), np.float32))


def test_codes_become_the_latents_that_frames_have(subject: Subject) -> None:
    vocabulary = subject.bundle.manifest.vocabulary
    frames = drawn(begun(subject, subject.engine, seed=1))
    rows = frames.rows[: len(frames.rows) - (frames.end == "stop")]
    latents = subject.engine.codes_to_latents(vocabulary.codes(rows))
    np.testing.assert_array_equal(latents[: len(frames.latents)], frames.latents)


def test_a_sound_in_pieces_is_the_sound_at_once(subject: Subject) -> None:
    codec, random = subject.bundle.manifest.codec, np.random.default_rng(0)
    codes = random.integers(0, subject.bundle.manifest.vocabulary.codebook_size, (60, STREAMS)).astype(np.int16)
    latents = subject.engine.codes_to_latents(codes)
    whole = subject.engine.decode_latents(latents)
    assert whole.shape == (60 * codec.hop_length,) and whole.dtype == np.float32
    stream = subject.engine.open_codec_stream()
    for _ in range(2):  # nothing of a sound remains for the next
        pieces = [stream.decode(latents[: codec.first_frames], last=False)]
        pieces += [stream.decode(latents[at : at + 7], last=False) for at in range(codec.first_frames, 60, 7)]
        pieces.append(stream.decode(latents[:0], last=True))
        np.testing.assert_allclose(np.concatenate(pieces), whole, rtol=0, atol=SAMPLES * np.abs(whole).max())
    stream.decode(latents[: codec.first_frames], last=False)
    stream.reset()
    np.testing.assert_allclose(stream.decode(latents, last=True), whole, rtol=0, atol=SAMPLES * np.abs(whole).max())


def test_a_sound_is_heard_as_the_slow_engine_hears_it(subject: Subject) -> None:
    spec = subject.bundle.manifest.features
    frontend = LogMelFrontend(spec, subject.bundle.table("encoder.mel_filters"))
    heard = frontend.prepare(Sound(make_sound(0.7)[0], 16000))
    mine, other = (engine.encode(heard.inputs)[: heard.rows] for engine in (subject.engine, subject.slow))
    assert mine.shape == (heard.rows, subject.bundle.manifest.model.hidden_size) and mine.dtype == np.float32
    np.testing.assert_allclose(mine, other, rtol=1e-3, atol=1e-4)


def test_nothing_works_once_it_is_closed(subject: Subject) -> None:
    engine = subject.open(CONTEXT)
    sequence = begun(subject, engine)
    sequence.run_frames(2)
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.open_sequence()


def test_every_engine_is_held_to_the_contract() -> None:
    assert set(STANDS_FOR) == set(registry.ENGINES) and set(STANDS_FOR.values()) == set(ENGINES)


def test_advice_about_rows_names_a_larger_context_only_where_there_is_one() -> None:
    with pytest.raises(ContextError, match="open the model with a larger max_context"):
        check_room(1, 10, 5, most=20)
    with pytest.raises(ContextError, match="max_context = 5, this model's limit; shorten the input"):
        check_room(1, 10, 5, most=5)
    check_room(0, 5, 5, most=5)
