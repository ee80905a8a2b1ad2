"""The device loop against the CPU engine: every row, latent and cached value, bit for bit, from the same logits."""

from __future__ import annotations

import itertools
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from support.cuda.device import cpu_engine, device_engine, spoil_embedding
from support.runs import make_run
from ualm.export.bundle import export_run
from ualm.runtime import AudioSampling, ContextError, EngineError, TextSampling
from ualm.runtime.bundle.bundle import Bundle
from ualm.runtime.engines.device.device import Buffer, Event
from ualm.runtime.engines.device.loop import RING, Outbox
from ualm.runtime.engines.onnxruntime.cuda import OnnxRuntimeCudaEngine
from ualm.runtime.engines.protocol import Engine, EngineSequence, Frames

Pair = tuple[Engine, Engine]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A model whose sounds and texts occasionally end by themselves."""
    folder = tmp_path_factory.mktemp("device")
    run = make_run(folder / "run", lean={"pad": -1.0, "eos": 0.5, "eot": 0.5})
    export_run(run.folder, folder / "bundle")
    return Bundle(folder / "bundle", verify="never")


@pytest.fixture(scope="module")
def engines(bundle: Bundle) -> Iterator[Pair]:
    """The CPU engine, and the device loop."""
    pair = cpu_engine(bundle), device_engine(bundle)
    yield pair
    for engine in pair:
        engine.close()


def options_of(modality: str, **changes: Any) -> AudioSampling | TextSampling:
    kind: Any = AudioSampling if modality == "audio" else TextSampling
    return kind(**({"temperature": 1.0, "top_k": None, "guidance": 3.0, "max_steps": 40} | changes))


def begun(
    engine: Engine, modality: str = "audio", mode: str = "fixed", prompt: int = 12, **changes: Any
) -> EngineSequence:
    sequence = engine.open_sequence()
    vocabulary = engine.bundle.manifest.vocabulary  # type: ignore[attr-defined]
    random = np.random.default_rng(prompt)
    features = random.standard_normal((5, engine.bundle.manifest.model.hidden_size), np.float32)  # type: ignore[attr-defined]
    rows = vocabulary.text_rows(random.integers(1, vocabulary.text_size, prompt).tolist())
    sequence.prefill([rows[:3], features, rows[3:]])
    sequence.begin_segment(modality, options_of(modality, **changes), mode=mode, segment=0)  # type: ignore[arg-type]
    return sequence


def drawn(sequence: EngineSequence, sizes: Iterator[int] | None = None) -> Frames:
    """A segment to its end, in calls of ``sizes`` rows."""
    sizes = itertools.repeat(3) if sizes is None else sizes
    got = []
    while not got or got[-1].end is None:
        got.append(sequence.run_frames(next(sizes)))
    return Frames(
        np.concatenate([each.rows for each in got]), np.concatenate([each.latents for each in got]), got[-1].end
    )


def assert_same(mine: Frames, other: Frames) -> None:
    assert mine.end == other.end and mine.rows.dtype == other.rows.dtype == np.int32
    np.testing.assert_array_equal(mine.rows, other.rows)
    np.testing.assert_array_equal(mine.latents.view(np.int32), other.latents.view(np.int32))


@pytest.mark.parametrize("seed", [0, 1, 2**63])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize(("modality", "mode"), [("audio", "fixed"), ("audio", "reference"), ("text", "fixed")])
def test_rows_latents_logits_and_cache_are_those_of_the_cpu(
    engines: Pair, modality: str, mode: str, guidance: float, seed: int
) -> None:
    pair = [begun(engine, modality, mode, guidance=guidance, seed=seed) for engine in engines]
    first = [sequence.run_frames(1) for sequence in pair]
    assert_same(*first)
    np.testing.assert_array_equal(pair[0].logits, pair[1].logits)
    if first[0].end is None:
        assert_same(*(drawn(sequence) for sequence in pair))
    assert pair[0].length == pair[1].length
    np.testing.assert_array_equal(pair[0].save(), pair[1].save())


def test_the_cases_are_ended_by_stops_and_by_limits(engines: Pair) -> None:
    ends = {drawn(begun(engines[0], modality, seed=seed)).end for modality in ("audio", "text") for seed in range(6)}
    assert ends == {"stop", "limit"}


@pytest.mark.parametrize("sizes", [(1,), (2, 1), (7,), (100,), (1, 9, 30)])
def test_how_many_rows_a_call_asks_for_changes_nothing(engines: Pair, sizes: tuple[int, ...]) -> None:
    for seed in range(3):
        expected = drawn(begun(engines[0], seed=seed))
        assert_same(drawn(begun(engines[1], seed=seed), itertools.cycle(sizes)), expected)


@pytest.mark.parametrize("ahead", [0, 1, 3, RING - 2, 1000])
def test_how_far_frames_are_launched_ahead_changes_nothing(bundle: Bundle, engines: Pair, ahead: int) -> None:
    engine = device_engine(bundle)
    engine.device_model.ahead = ahead
    for modality, seed in itertools.product(("audio", "text"), range(3)):
        assert_same(drawn(begun(engine, modality, seed=seed)), drawn(begun(engines[0], modality, seed=seed)))


def test_frames_behind_a_stop_are_launched_and_leave_no_trace(engines: Pair) -> None:
    """The stop is known only after its frame: whatever was launched after it must not count."""
    sequences = []
    for engine in engines:
        sequence = begun(engine, "text", guidance=2.0, seed=3, max_steps=100)
        first = drawn(sequence, itertools.repeat(5))
        assert first.end == "stop"
        sequence.prefill([first.rows[-1:]])
        sequence.begin_segment("audio", options_of("audio", seed=4), mode="fixed", segment=1)
        sequences.append((first, drawn(sequence), sequence))
    (first, second, mine), (other_first, other_second, other) = sequences
    assert_same(other_first, first)
    assert_same(other_second, second)
    np.testing.assert_array_equal(other.save(), mine.save())


def test_launching_ends_at_the_context_and_the_error_is_the_cpus(bundle: Bundle, engines: Pair) -> None:
    long = next(seed for seed in range(99) if len(drawn(begun(engines[0], prompt=25, seed=seed)).rows) > 15)
    messages = []
    for engine in (cpu_engine(bundle, 40), device_engine(bundle, 40)):
        sequence = begun(engine, prompt=25, seed=long)
        rows = sequence.run_frames(4).rows
        with pytest.raises(ContextError, match="max_context = 40") as error:
            sequence.run_frames(50)
        assert sequence.length == 40
        messages.append((str(error.value), rows.tolist()))
        with pytest.raises(ContextError, match="41 rows"):
            engine.open_sequence().prefill([np.zeros((41, 8), np.int32)])
    assert messages[0] == messages[1]


def test_truncate_fork_save_and_restore_are_those_of_the_cpu(engines: Pair) -> None:
    results = []
    for engine in engines:
        sequence = begun(engine, seed=7)
        sequence.run_frames(9)
        sequence.truncate(11)  # frames are in flight on the device
        with pytest.raises(EngineError, match="no segment is under way"):
            sequence.run_frames(1)
        other = sequence.fork()
        third = engine.open_sequence()
        third.restore(sequence.save())
        frames = []
        for number, each in enumerate((sequence, other, third)):
            assert each.length == 11
            each.begin_segment("audio", options_of("audio", seed=8 + number), mode="fixed", segment=2)
            frames.append(drawn(each))
        results.append((frames, [each.save() for each in (sequence, other, third)]))
    for mine, theirs in zip(*(frames for frames, _ in results), strict=True):
        assert_same(theirs, mine)
    for mine, theirs in zip(*(caches for _, caches in results), strict=True):
        np.testing.assert_array_equal(theirs, mine)


def test_a_fork_goes_its_own_way_and_knows_what_comes_next(engines: Pair) -> None:
    _, engine = engines
    vocabulary = engine.bundle.manifest.vocabulary  # type: ignore[attr-defined]
    sequence = engine.open_sequence()
    sequence.prefill([vocabulary.text_rows([5, 6, 7])])
    other = sequence.fork()
    np.testing.assert_array_equal(other.modality_logits(), sequence.modality_logits())
    before = other.save()
    sequence.prefill([vocabulary.text_rows([8, 9])])
    np.testing.assert_array_equal(other.save(), before)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((1, 2, 2, 3, 8), np.float32), ((2, 2, 2, 3, 8), np.float64), ((3,), None)]
)
def test_what_is_no_cache_of_this_model_is_refused(engines: Pair, shape: tuple[int, ...], dtype: Any) -> None:
    for engine in engines:
        with pytest.raises(EngineError, match="is not a cache of this model"):
            engine.open_sequence().restore(np.zeros(shape, dtype or np.float32))
        with pytest.raises(EngineError, match="truncate: 1 rows, but 0 are held"):
            engine.open_sequence().truncate(1)


def test_logits_that_cannot_be_sampled_are_the_cpus_error_at_the_same_row(bundle: Bundle, tmp_path: Path) -> None:
    """A code whose embedding is NaN: there is no error until it is drawn."""
    folder = Path(shutil.copytree(bundle.folder, tmp_path / "spoilt"))
    vocabulary = bundle.manifest.vocabulary
    row = begun(cpu_engine(bundle), seed=5).run_frames(6).rows[5]
    assert row[0] > vocabulary.audio_base
    spoil_embedding(folder, int(row[0]))
    found = []
    for engine in (cpu_engine(Bundle(folder, verify="never")), device_engine(Bundle(folder, verify="never"))):
        sequence = begun(engine, seed=5)
        rows = sequence.run_frames(2).rows.tolist()
        with pytest.raises(EngineError, match=r"NaN among the candidates of row [2-6], stream 0") as error:
            sequence.run_frames(30)
        found.append((rows, str(error.value), sequence.length))
        sequence.truncate(5)  # and the sequence is usable again
        sequence.begin_segment("text", options_of("text", seed=1), mode="fixed", segment=0)
        found[-1] += (drawn(sequence).rows.tolist(),)
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (0, "the frame sampler stands at row 3 with fault 0, row 3 was launched; report this"),
        (1, "the model's logits cannot be sampled: logits: NaN among the candidates of row 3, stream 5; the model's"),
        (4, "logits: of a head that the segment does not draw from, row 3, stream 5; report this"),
        (99, "the frame sampler stands at row 3 with fault 99, row 3 was launched; report this"),
    ],
)
def test_a_row_that_was_not_drawn_says_why(fault: int, said: str) -> None:
    device: Any = SimpleNamespace(pinned=lambda shape, number: SimpleNamespace(array=np.zeros(shape, number)))
    outbox = Outbox(device, 4)
    outbox.progress.array[0] = 3 | fault << 40 | 5 << 48
    with pytest.raises(EngineError, match=re.escape(said)):
        outbox.read(3, sound=True)


def test_the_latent_of_the_last_good_row_is_told_though_the_frame_behind_it_cannot_be_drawn(
    bundle: Bundle, tmp_path: Path
) -> None:
    rows = drawn(begun(cpu_engine(bundle), seed=5)).rows[:, 0].tolist()
    codes = range(bundle.manifest.vocabulary.audio_base + 3, bundle.manifest.vocabulary.audio_base + 10**6)
    last = next(at for at in range(8, len(rows)) if rows[at] in codes and rows[at] not in rows[:at])
    folder = Path(shutil.copytree(bundle.folder, tmp_path / "spoilt"))
    spoil_embedding(folder, rows[last])
    found: list[list[Frames]] = []
    for engine in (cpu_engine(Bundle(folder, verify="never")), device_engine(Bundle(folder, verify="never"))):
        sequence = begun(engine, seed=5)
        found.append([])
        with pytest.raises(EngineError, match=f"NaN among the candidates of row {last + 1}"):
            while True:
                found[-1].append(sequence.run_frames(1))
    assert len(found[0]) == last + 1 and len(found[0][last].latents) == 1
    for mine, other in zip(*found, strict=True):
        assert_same(mine, other)


def test_a_conversation_takes_over_what_another_left_and_knows_nothing_of_it(bundle: Bundle, engines: Pair) -> None:
    engine = device_engine(bundle)
    first = begun(engine, seed=1)
    first.run_frames(5)  # and more are in flight
    kept = first._work  # type: ignore[attr-defined]
    del first
    second, third = engine.open_sequence(), engine.open_sequence()
    assert second._work is kept and third._work is not kept  # type: ignore[attr-defined]
    np.testing.assert_array_equal(second.modality_logits(), engines[0].open_sequence().modality_logits())
    del second
    for seed in range(3):
        assert_same(drawn(begun(engine, seed=seed)), drawn(begun(engines[0], seed=seed)))
    engine.close()
    del third
    assert not engine.pool.spare


def test_no_broken_number_stays_in_the_cache_behind_what_is_held(bundle: Bundle, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle.folder, tmp_path / "spoilt"))
    spoil_embedding(folder, int(begun(cpu_engine(bundle), seed=5).run_frames(6).rows[3][0]))
    engine = device_engine(Bundle(folder, verify="never"), 64)
    sequence = begun(engine, seed=5)
    with pytest.raises(EngineError, match="NaN"):
        drawn(sequence)

    def broken() -> int:
        found = 0
        for part in itertools.chain(*sequence._work.cache.layers):  # type: ignore[attr-defined]
            values = np.empty(part.nbytes // 4, np.float32)
            engine.device.download(values, part.address)
            found += int(np.isnan(values.reshape(2, -1, 64, 8)[:, :, :40]).sum())
        return found

    assert broken()
    sequence.truncate(7)
    assert not broken() and sequence.length == 7


def test_an_error_of_the_gpu_is_an_engine_error(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = device_engine(bundle)
    sequence = begun(engine, seed=2)

    def fail(self: Event) -> None:
        raise engine.device.cuda.CudaError(
            "CUDA cannot wait for an event: an illegal address (cudaErrorIllegalAddress)"
        )

    monkeypatch.setattr(Event, "wait", fail)
    with pytest.raises(EngineError, match="the GPU failed: CUDA cannot wait for an event: an illegal address"):
        sequence.run_frames(2)


def test_pinned_memory_that_ends_is_an_engine_error(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = device_engine(bundle)
    cuda = engine.device.cuda

    def fail(nbytes: int) -> None:
        raise cuda.CudaError("CUDA cannot allocate pinned memory: out of memory (cudaErrorMemoryAllocation)")

    monkeypatch.setattr(cuda, "malloc_pinned", fail)
    with pytest.raises(EngineError, match="the GPU failed: CUDA cannot allocate pinned memory"):
        engine.open_sequence()


def test_a_part_that_is_loaded_is_found_while_another_is_being_loaded(bundle: Bundle) -> None:
    """Loading may trigger the collection of a finished conversation, which waits for the device's lock."""
    engine = device_engine(bundle)
    loading, collected = threading.Event(), threading.Event()
    sequence = engine.open_sequence()
    rows = engine.vocabulary.text_rows([5, 6, 7])

    def load(role: str) -> object:
        loading.set()
        collected.wait(10)
        with engine.device.lock:  # as the collected object does
            return object()

    engine._load = load  # type: ignore[method-assign]
    loader = threading.Thread(target=engine.session, args=("encoder",))
    reader = threading.Thread(target=sequence.prefill, args=([rows],), daemon=True)
    with engine.device.lock:
        loader.start()
        assert loading.wait(10)
    reader.start()
    reader.join(5)
    found = not reader.is_alive()
    collected.set()
    assert found and sequence.length == 3
    loader.join(10)
    assert not loader.is_alive()


@pytest.mark.parametrize("modality", ["audio", "text"])
def test_no_part_is_loaded_with_the_devices_lock_held(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, modality: str
) -> None:
    engine = device_engine(bundle)
    real, taken = engine._load, {}

    def load(role: str) -> object:
        def take() -> None:
            taken[role] = engine.device.lock.acquire(timeout=1)
            if taken[role]:
                engine.device.lock.release()

        other = threading.Thread(target=take)
        other.start()
        other.join()
        return real(role)

    monkeypatch.setattr(engine, "_load", load)
    begun(engine, modality).run_frames(2)
    assert taken == {f"head.{modality}": True}


class _CapturedBody:
    """A body whose whole step is captured, as TensorRT's is: it copies logits that are on the device."""

    prefill_rows = 64

    def __init__(self, engine: OnnxRuntimeCudaEngine, logits: np.ndarray) -> None:
        self._real, self.device = engine.device_model.body, engine.device
        self.source, self.hidden_size = self.device.uploaded(logits), engine.model.hidden_size
        self.eager: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def open_step(self, cache: Any, modality: str, branches: int) -> _CapturedBody:
        self.embeddings = self.device.allocate(branches * self.hidden_size * 4)
        self.logits = self.device.allocate(self.source.nbytes)
        return self

    def begin(self, held: int) -> None: ...

    def before(self, held: int) -> None: ...

    def bucket(self, held: int) -> int:
        return held // 8

    def enqueue(self, held: int) -> None:
        self.eager.append(held)
        self.device.copy(self.logits.address, self.source.address, self.source.nbytes)


def test_frames_that_are_captured_whole_draw_the_cpus_rows(bundle: Bundle) -> None:
    """Draws, stops and ring positions come from device memory: a replayed graph must find the next ones."""
    vocabulary, random = bundle.manifest.vocabulary, np.random.default_rng(0)
    logits = random.standard_normal((2, 2 + 8 * (vocabulary.codebook_size + 1)), np.float32)
    logits[:, :3] -= 5
    engine = device_engine(bundle)
    body = engine.device_model.body = _CapturedBody(engine, logits)  # type: ignore[assignment]
    for seed in range(3):
        found = drawn(begun(engine, seed=seed, max_steps=40))
        cpu = cpu_engine(bundle).open_sequence()._sampler
        cpu.begin_audio(
            mode="fixed", temperature=1.0, top_k=0, top_p=1.0, guidance=3.0, max_steps=40, seed=seed, segment=0
        )
        row, latent = np.empty(8, np.int32), np.empty(bundle.manifest.codec.latent_size, np.float32)
        rows, latents, flags = [], [], 0
        while not flags & 3:
            flags = cpu.step(logits, row, np.empty(bundle.manifest.model.hidden_size, np.float32), latent)
            rows.append(row.copy())
            latents += [latent.copy()] if flags & 4 else []
        np.testing.assert_array_equal(found.rows, rows)
        np.testing.assert_array_equal(found.latents, latents)
    assert len(set(body.eager)) < 30 and len(body.eager) < 40  # out of more than a hundred frames


def test_logits_are_refused_where_frames_behind_them_have_run(engines: Pair) -> None:
    sequence = begun(engines[1], seed=2)
    sequence.run_frames(2)
    with pytest.raises(EngineError, match="3 frames are launched ahead"):
        _ = sequence.logits
    with pytest.raises(EngineError, match="no segment has begun"):
        _ = engines[1].open_sequence().logits


def test_sequences_of_several_threads_do_not_mix(engines: Pair) -> None:
    expected = [drawn(begun(engines[0], seed=seed)) for seed in range(4)]
    found: dict[int, Frames] = {}

    def work(seed: int) -> None:
        found[seed] = drawn(begun(engines[1], seed=seed), itertools.repeat(1))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, frames in enumerate(expected):
        assert_same(found[seed], frames)


def test_a_sequence_that_is_opened_while_another_thread_captures_waits(bundle: Bundle, engines: Pair) -> None:
    engine = device_engine(bundle)
    opened: list[EngineSequence] = []
    thread = threading.Thread(target=lambda: opened.append(engine.open_sequence()))
    waited: list[bool] = []

    def enqueue() -> None:
        thread.start()
        thread.join(0.3)
        waited.append(thread.is_alive())

    with engine.device.lock:  # as a thread that launches frames does
        engine.device.capture(enqueue)
    thread.join(30)
    assert waited == [True] and len(opened) == 1
    np.testing.assert_array_equal(opened[0].modality_logits(), engines[0].open_sequence().modality_logits())


def test_a_conversation_that_grows_seldom_allocates(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks grow with the rows held; allocating and freeing would wait for the frames of other conversations."""
    engine = device_engine(bundle)
    rows = bundle.manifest.vocabulary.text_rows([1 + each % 20 for each in range(200)])
    sequence, other = engine.open_sequence(), engine.open_sequence()
    made: list[int] = []
    real = Buffer.__init__

    def noted(self: Buffer, cuda: Any, nbytes: int) -> None:
        made.append(nbytes)
        real(self, cuda, nbytes)

    monkeypatch.setattr(Buffer, "__init__", noted)
    for piece in np.split(rows, 20):
        sequence.prefill([piece])
    assert 1 <= len(made) <= 6  # 10 x 10 to 10 x 200 numbers, by doubling
    made.clear()
    for piece in np.split(rows, 20):
        other.prefill([piece])
    assert not made
    engine.close()


def test_a_prompt_longer_than_one_call_takes_is_cut_where_the_cpu_cuts_it(bundle: Bundle) -> None:
    pair = [engine.open_sequence() for engine in (cpu_engine(bundle, 600), device_engine(bundle, 600))]
    rows = bundle.manifest.vocabulary.text_rows([1 + i % 50 for i in range(530)])
    for sequence in pair:
        sequence.prefill([rows[:100], rows[100:]])
    np.testing.assert_array_equal(pair[0].save(), pair[1].save())
    np.testing.assert_array_equal(pair[0].modality_logits(), pair[1].modality_logits())
