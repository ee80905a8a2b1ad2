"""The TensorRT engine against the CPU engine, on a stand-in for TensorRT that we wrote (``support/tensorrt/fake.py``):
that its calls fit together and that a captured step advances its own position. TensorRT itself was not run.

Everything is tested for a library that writes the cache in place and for one like TensorRT 10.3, which cannot.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import re
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from support.bundles import changed_manifest
from support.cuda.device import cpu_engine
from support.cuda.shim import load_shim
from support.runs import make_run
from support.sounds import make_sound
from support.tensorrt import fake as fake_tensorrt
from support.tensorrt.fake import ReplayingDevice, fake_build, fake_library
from ualm.export.bundle import export_run
from ualm.export.targets.tensorrt.target import add_engines
from ualm.runtime import AudioSampling, EngineError, TextSampling
from ualm.runtime.audio.features import LogMelFrontend
from ualm.runtime.bundle.bundle import Bundle
from ualm.runtime.bundle.compiled import CacheKind
from ualm.runtime.engines.device.device import Buffer, Grown, Stream
from ualm.runtime.engines.device.facts import CudaFacts, GpuFacts, MemoryNeed
from ualm.runtime.engines.onnxruntime.cpu import OnnxRuntimeEngine
from ualm.runtime.engines.protocol import Engine, EngineSequence, Frames
from ualm.runtime.engines.tensorrt import engine as tensorrt
from ualm.runtime.engines.tensorrt.body import bucket_rows
from ualm.runtime.engines.tensorrt.context import CompiledParts, Scratch
from ualm.runtime.engines.tensorrt.engine import TensorRtEngine, find_engines, refusal
from ualm.runtime.engines.tensorrt.library import Library
from ualm.runtime.sound.sound import Sound

CONTEXT = 640


@pytest.fixture(autouse=True)
def no_misuse() -> Iterator[None]:
    with fake_tensorrt.watched():
        yield


@pytest.fixture(scope="module", params=["in_place", "appended"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder, library = tmp_path_factory.mktemp("tensorrt"), fake_library(request.param)
    run = make_run(folder / "run", lean={"pad": -1.0, "eos": 0.5, "eot": 0.5})
    export_run(run.folder, folder / "bundle")
    add_engines(Bundle(folder / "bundle"), library, (86, 89), max_context=CONTEXT, builder=fake_build)
    return Bundle(folder / "bundle")


def library_of(bundle: Bundle) -> Library:
    """The stand-in with which the engines of a bundle were built."""
    return fake_library(next(each.cache for each in bundle.manifest.engines if each.role == "backbone"))


@pytest.fixture(scope="module")
def engines(
    bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[OnnxRuntimeEngine, TensorRtEngine]]:
    pair = cpu_engine(bundle, CONTEXT), opened(bundle)
    yield pair
    for engine in pair:
        engine.close()


def opened(bundle: Bundle, max_context: int = CONTEXT) -> TensorRtEngine:
    return TensorRtEngine(
        bundle, ReplayingDevice(load_shim(), kind="cpu"), library_of(bundle), sm=89, max_context=max_context
    )


def heard(bundle: Bundle, seconds: float) -> Mapping[str, np.ndarray]:
    """The encoder's inputs for a sound."""
    hearing = LogMelFrontend(bundle.manifest.features, bundle.table("encoder.mel_filters"))
    return hearing.prepare(Sound(make_sound(seconds)[0], 16000)).inputs


def begun(engine: Engine, modality: str, prompt: int, **changes: Any) -> EngineSequence:
    sequence = engine.open_sequence()
    vocabulary = engine.bundle.manifest.vocabulary  # type: ignore[attr-defined]
    random = np.random.default_rng(prompt)
    features = random.standard_normal((5, engine.bundle.manifest.model.hidden_size), np.float32)  # type: ignore[attr-defined]
    rows = vocabulary.text_rows(random.integers(1, vocabulary.text_size, prompt).tolist())
    sequence.prefill([rows[:3], features, rows[3:]])
    kind: Any = AudioSampling if modality == "audio" else TextSampling
    options = {"temperature": 1.0, "top_k": 20, "guidance": 3.0, "max_steps": 60} | changes
    sequence.begin_segment(modality, kind(**options), mode="fixed", segment=0)  # type: ignore[arg-type]
    return sequence


def drawn(sequence: EngineSequence) -> Frames:
    got = []
    while not got or got[-1].end is None:
        got.append(sequence.run_frames(4))
    return Frames(
        np.concatenate([each.rows for each in got]), np.concatenate([each.latents for each in got]), got[-1].end
    )


@pytest.mark.parametrize("prompt", [9, 240], ids=["one bucket", "into the next bucket"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("modality", ["audio", "text"])
def test_it_draws_what_the_cpu_engine_draws(engines: Any, modality: str, guidance: float, prompt: int) -> None:
    mine, other = (drawn(begun(engine, modality, prompt, guidance=guidance)) for engine in reversed(engines))
    assert mine.end == other.end
    np.testing.assert_array_equal(mine.rows, other.rows)
    np.testing.assert_allclose(mine.latents, other.latents, atol=1e-6)


def test_steps_are_captured_once_a_bucket(bundle: Bundle) -> None:
    engine = opened(bundle)
    assert len(drawn(begun(engine, "text", 240, max_steps=60, seed=3)).rows) > 20
    assert engine.device.captured == 2  # type: ignore[attr-defined]  # 256 rows, then 384
    engine.close()


def test_a_long_prompt_is_read_in_pieces_at_its_own_positions(engines: Any) -> None:
    caches = [engine.open_sequence() for engine in engines]
    vocabulary = engines[0].bundle.manifest.vocabulary
    rows = vocabulary.text_rows(np.random.default_rng(1).integers(1, vocabulary.text_size, 600).tolist())
    for sequence in caches:
        sequence.prefill([rows[:1]])
        sequence.prefill([rows[1:]])
    np.testing.assert_allclose(caches[1].save(), caches[0].save(), atol=2e-5)
    np.testing.assert_allclose(caches[1].modality_logits(), caches[0].modality_logits(), atol=1e-4)


@pytest.mark.parametrize("cache", ["in_place", "appended"])
def test_a_cache_of_half_precision_holds_the_rows_that_were_fed(cache: CacheKind, tmp_path: Path) -> None:
    """Prompts in pieces and steps of both branches, against the CPU engine, which computes in float32: within 4e-2 for
    keys and values up to 7 and logits up to 12 (seen: 1.5e-2 and 1.7e-2, with either kind of cache)."""
    run = make_run(tmp_path / "run", hidden=64, ffn=96)
    export_run(run.folder, tmp_path / "bundle", precision="fp16", accept_quality=True)
    add_engines(Bundle(tmp_path / "bundle"), fake_library(cache), (89,), max_context=CONTEXT, builder=fake_build)
    bundle = Bundle(tmp_path / "bundle", verify="never")
    pair = OnnxRuntimeEngine(bundle, threads=1, max_context=CONTEXT), opened(bundle)
    assert pair[1].device_model.shape.number == "float16"
    saved, logits = [], []
    for engine in pair:
        sequence = begun(engine, "audio", 300, seed=1, temperature=0.0)
        sequence.run_frames(1)
        logits.append(sequence.logits)
        saved.append(sequence.save())
        engine.close()
    assert saved[0].shape[3] == 306 and np.abs(saved[0]).max() < 7
    np.testing.assert_allclose(saved[1], saved[0], atol=4e-2)
    np.testing.assert_allclose(logits[1], logits[0], atol=4e-2)


def test_a_conversation_goes_on_after_a_segment(engines: Any) -> None:
    logits = []
    for engine in engines:
        sequence = begun(engine, "audio", 20, seed=5)
        drawn(sequence)
        sequence.truncate(22)
        sequence.begin_segment("text", TextSampling(temperature=0.0, max_steps=8), mode="fixed", segment=1)
        sequence.run_frames(1)
        logits.append(sequence.logits)
    np.testing.assert_allclose(logits[1], logits[0], atol=1e-4)


def test_sounds_are_heard_as_on_the_cpu(engines: Any, bundle: Bundle) -> None:
    inputs = heard(bundle, 1.0)
    np.testing.assert_allclose(engines[1].encode(inputs), engines[0].encode(inputs), atol=1e-5)


@pytest.mark.parametrize("frames", [1, 20, 70, 150])
def test_a_whole_sound_is_decoded_in_pieces(engines: Any, frames: int) -> None:
    latents = np.random.default_rng(frames).standard_normal((frames, len(engines[0].rvq_bias)), np.float32)
    whole, pieces = (engine.decode_latents(latents) for engine in engines)
    assert pieces.shape == whole.shape
    np.testing.assert_allclose(pieces, whole, atol=1e-5 * np.abs(whole).max())


def test_a_codec_stream_can_be_used_again_and_given_up(engines: Any) -> None:
    latents = np.random.default_rng(0).standard_normal((40, len(engines[0].rvq_bias)), np.float32)
    stream = engines[1].open_codec_stream()
    stream.decode(latents[:25], last=False)
    stream.reset()
    pieces = [stream.decode(latents[:25], last=False), stream.decode(latents[25:26], last=False)]
    pieces.append(stream.decode(latents[26:], last=True))
    np.testing.assert_allclose(np.concatenate(pieces), engines[0].decode_latents(latents), atol=1e-5)


def test_closing_waits_for_both_streams_and_frees_what_no_conversation_holds(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened(bundle)
    body, device = weakref.ref(engine.device_model.body), engine.device
    drawn(begun(engine, "text", 20))
    engine.decode_latents(np.zeros((20, len(engine.rvq_bias)), np.float32))
    gc.collect()
    assert engine.pool.spare
    before, _ = device.memory()
    waited: list[int] = []
    real = Stream.synchronize
    monkeypatch.setattr(Stream, "synchronize", lambda self: (waited.append(self.handle), real(self))[1])
    engine.close()
    gc.collect()
    assert {device.stream.handle, device.codec_stream.handle} <= set(waited)
    assert body() is None and not engine.pool.spare
    assert device.memory()[0] >= before + engine.device_model.shape.nbytes
    for use in (engine.open_sequence, engine.open_codec_stream, lambda: engine.encode({})):
        with pytest.raises(EngineError, match="the model is closed"):
            use()
    engine.close()  # closing again changes nothing


def test_a_conversation_that_outlives_its_engine_is_told_so(bundle: Bundle) -> None:
    engine = opened(bundle)
    sequence = begun(engine, "text", 20)
    engine.close()
    with pytest.raises(EngineError, match="the model is closed"):
        sequence.prefill([engine.bundle.manifest.vocabulary.text_rows([1, 2])])


def test_threads_that_open_their_first_codec_stream_share_one_scratch_memory(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened(bundle)
    made: list[int] = []
    real = Scratch.__init__

    def slow(self: Scratch, *arguments: Any) -> None:
        time.sleep(0.1)  # the other thread also finds it missing, unless it waits
        real(self, *arguments)
        made.append(self.place()[0])

    monkeypatch.setattr(Scratch, "__init__", slow)
    in_threads([engine.open_codec_stream] * 2)
    assert len(made) == 1
    engine.close()


def in_threads(works: list[Callable[[], Any]]) -> list[Any]:
    """The results of all; an error in any is raised."""
    with ThreadPoolExecutor(len(works)) as pool:
        return [each.result() for each in [pool.submit(work) for work in works]]


def test_sounds_that_are_spoken_and_heard_at_once_never_meet_in_the_library(
    engines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs that share scratch memory reach the stream one after the other, and no context serves two threads at
    once."""
    cpu, engine = engines
    monkeypatch.setattr(fake_tensorrt, "linger", 0.003)
    inputs = [heard(engine.bundle, seconds) for seconds in (0.4, 0.9)]
    latents = [np.random.default_rng(n).standard_normal((n, len(cpu.rvq_bias)), np.float32) for n in (40, 55, 70)]

    def spoken(frames: np.ndarray) -> np.ndarray:
        stream = engine.open_codec_stream()
        pieces = np.split(frames, range(20, len(frames), 3))
        return np.concatenate([stream.decode(piece, last=piece is pieces[-1]) for piece in pieces])

    works = [functools.partial(spoken, each) for each in latents]
    works += [functools.partial(engine.encode, each) for each in inputs * 3]
    works += [lambda: drawn(begun(engine, "text", 20, seed=1)).rows for _ in range(2)]
    results = in_threads(works)
    for frames, found in zip(latents, results, strict=False):
        np.testing.assert_allclose(found, cpu.decode_latents(frames), atol=1e-5)
    for each, found in zip(inputs * 3, results[3:], strict=False):
        np.testing.assert_allclose(found, cpu.encode(each), atol=1e-5)
    np.testing.assert_array_equal(results[-1], results[-2])


def test_contexts_that_two_threads_make_share_what_was_compiled(tmp_path: Path) -> None:
    """TensorRT-RTX keeps compiled kernels in one cache: with two caches, one would be lost at the end."""
    library, made = fake_library(), []

    def create() -> Any:
        time.sleep(0.05)  # the other thread also finds none, unless it waits
        made.append(SimpleNamespace(serialize=lambda: b"kernels"))
        return made[-1]

    given: list[Any] = []
    config = SimpleNamespace(
        create_runtime_cache=create,
        set_runtime_cache=given.append,
        set_execution_context_allocation_strategy=lambda strategy: None,
        dynamic_shapes_kernel_specialization_strategy=None,
    )
    library.module.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER=1, NONE=0)
    engine = SimpleNamespace(
        create_runtime_config=lambda: config, create_execution_context=lambda runtime_config: runtime_config
    )
    parts = CompiledParts(library, tmp_path / "kernels")
    in_threads([functools.partial(parts.context, engine, steady=True)] * 2)
    assert len(made) == 1 and given == made * 2
    parts.save_cache()
    assert (tmp_path / "kernels").read_bytes() == b"kernels"


@pytest.mark.parametrize("shared", ["scratch", "context"])
def test_the_stand_in_notices_two_threads_in_one_place(bundle: Bundle, shared: str) -> None:
    """The other tests rely on it."""
    engine = opened(bundle)
    streams = [engine.open_codec_stream() for _ in range(2)]
    voices: list[Any] = [stream._voice for stream in streams]  # type: ignore[attr-defined]
    if shared == "context":
        voices[1].calls = voices[0].calls
    else:
        for call in voices[0].calls.values():
            call._scratch.lock = contextlib.nullcontext()
    latents = np.zeros((20, len(engine.rvq_bias)), np.float32)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(AssertionError, match="used by two threads at once"):
        patch.setattr(fake_tensorrt, "linger", 0.05)
        in_threads([functools.partial(stream.decode, latents, last=True) for stream in streams])
    assert fake_tensorrt.misuse
    fake_tensorrt.misuse.clear()


def test_memory_of_the_device_is_kept_from_sound_to_sound(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Allocating and freeing wait for all work on the device: a sound needs neither once an equally large one has been
    encoded, and as many have been decoded at the same time."""
    engine = opened(bundle)
    inputs = [heard(bundle, seconds) for seconds in (1.5, 0.3, 0.8, 1.1, 0.5)]
    latents = np.zeros((70, len(engine.rvq_bias)), np.float32)
    calls: list[str] = []
    real = Buffer.__init__

    def counted(self: Buffer, cuda: Any, nbytes: int) -> None:
        calls.append(f"{nbytes} bytes")
        weakref.finalize(self, calls.append, f"freed {nbytes}")
        real(self, cuda, nbytes)

    monkeypatch.setattr(Buffer, "__init__", counted)
    engine.encode(inputs[0])
    two = [engine.open_codec_stream() for _ in range(2)]
    del two
    assert calls and not [call for call in calls if call.startswith("freed")]
    calls.clear()
    for each in inputs * 3:
        engine.encode(each)
        engine.decode_latents(latents)
        pair = [engine.open_codec_stream() for _ in range(2)]
        assert len(pair[0].decode(latents[:25], last=False)) > 0  # abandoned in the middle, and reused by the next
        del pair
    assert not calls
    engine.close()


def test_a_sound_does_not_begin_with_what_another_left(engines: Any) -> None:
    latents = np.random.default_rng(0).standard_normal((40, len(engines[0].rvq_bias)), np.float32)
    given_up = engines[1].open_codec_stream()
    given_up.decode(-latents[:25], last=False)
    del given_up
    np.testing.assert_allclose(engines[1].decode_latents(latents), engines[0].decode_latents(latents), atol=1e-5)


def test_memory_that_grows_doubles() -> None:
    device = ReplayingDevice(load_shim(), kind="cpu")
    grown, sizes = Grown(device), []
    for nbytes in range(0, 5000, 7):
        buffer = grown.of(nbytes)
        assert buffer.nbytes >= nbytes
        sizes.append((buffer.address, buffer.nbytes))
    assert len(set(sizes)) <= 14 and grown.of(3) is buffer


def test_a_bucket_is_at_most_half_larger_than_what_is_held() -> None:
    sizes = [bucket_rows(rows, 16384) for rows in range(1, 16385)]
    assert sorted(set(sizes)) == [256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384]
    assert all(size >= rows and (size <= 256 or 2 * size <= 3 * rows) for rows, size in enumerate(sizes, 1))
    assert bucket_rows(300, 320) == 320


def test_more_context_than_was_compiled_for_is_refused(bundle: Bundle) -> None:
    with pytest.raises(EngineError, match=r"hold 640 rows, and max_context = 641 .* --max-context 641"):
        opened(bundle, 641)


FACTS = CudaFacts(None, (80, 86, 89), None, 13000, 13000, "580.65", (GpuFacts("Card", 89, 1 << 34, 1 << 34),))


def test_it_can_run_where_everything_fits(bundle: Bundle) -> None:
    library = library_of(bundle)
    assert refusal(library, FACTS, bundle) is None and refusal(library, FACTS, None) is None


def test_memory_that_does_not_suffice_is_told_before_anything_is_loaded(bundle: Bundle, tmp_path: Path) -> None:
    """And the suggested fix works."""
    library = library_of(bundle)

    def refused(of: Bundle, free: int) -> str | None:
        return refusal(library, replace(FACTS, gpus=(replace(FACTS.gpus[0], free=free),)), of)

    fits, lacks = 1 << 34, 1 << 20
    assert refused(bundle, fits) is None
    assert "no precision of this model fits" in str(refused(bundle, lacks))
    while fits - lacks > 1:
        free = (fits + lacks) // 2
        fits, lacks = (free, lacks) if refused(bundle, free) is None else (fits, free)
    said = str(refused(bundle, lacks))
    assert re.search(
        r"Card has 0\.\d GiB free of 16\.0 GiB, and this bundle needs 0\.\d GiB .* 640 rows .*weights", said
    )
    found = re.search(r"build the engines for (512) rows or fewer: ualm export .* --max-context \1 -o ", said)
    assert found, said
    folder = changed_manifest(bundle.folder, tmp_path / "fewer", lambda document: None)
    fewer = Bundle(folder, verify="never")
    add_engines(fewer, library, (86, 89), max_context=int(found[1]), builder=fake_build)
    assert refused(Bundle(folder, verify="never"), lacks) is None


def test_scores_count_where_they_lie_in_memory(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fused attention has no scores; in primitives a prompt's scores are float32, with their exponentials, and
    narrowed."""
    needs: list[MemoryNeed] = []
    monkeypatch.setattr(tensorrt, "memory_problem", lambda need, *about, **said: needs.append(need))
    library, model = library_of(bundle), bundle.manifest.model
    assert refusal(library, FACTS, bundle) is None
    cache = 2 * 2 * model.layers * model.kv_heads * model.head_dim * 4
    tables = 6 * 4 * (model.head_dim // 2) + 2 * 8 + 2 * 4
    scores = {"in_place": 512 * 4, "appended": 128 * (4 + 10 * model.heads)}
    assert needs[0].row - cache - tables == scores[library.cache]


def changed(bundle: Bundle, folder: Path, **changes: Any) -> Bundle:
    def change(document: dict[str, Any]) -> None:
        document["engines"] = [{**entry, **changes} for entry in document["engines"]]

    return Bundle(changed_manifest(bundle.folder, folder / "changed", change), verify="never")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"library_version": "98.0"}, r"was built by version 98\.0, and 99\.1 is installed; build .*ualm export .*"),
        ({"sms": [86, 120]}, r"was built for sm86, sm120, and the GPU here is sm89; build .*--engine tensorrt.* -o"),
        ({"onnx_sha256": "0"}, r"was built from another graph than the bundle's backbone"),
        ({"weights_sha256": "0"}, r"was built from other weights than the bundle's"),
        ({"engine": "another"}, r"the bundle has no tensorrt(-rtx)? engine of backbone; build them"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_stale_engine_is_refused_with_the_reason_and_the_mend(
    bundle: Bundle, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    stale = changed(bundle, tmp_path, **changes)
    library = library_of(bundle)
    assert refusal(library, FACTS, stale) is not None
    with pytest.raises(EngineError, match=reason) as refused:
        find_engines(stale, library, 89)
    # the command replaces the existing engines, so it also names their GPUs
    served = {"sms": "sm86,sm89,sm120", "engine": "sm89"}.get(next(iter(changes)), "sm86,sm89")
    assert (f" --target {served} -o" in str(refused.value)) == library.compiles_for_others
    with pytest.raises(EngineError, match=reason):
        opened(stale)


def test_a_damaged_engine_is_refused_in_the_librarys_words(bundle: Bundle, tmp_path: Path) -> None:
    folder = changed_manifest(bundle.folder, tmp_path / "damaged", lambda document: None)
    name = next(entry.file for entry in bundle.manifest.engines if entry.role == "backbone")
    (folder / name).unlink()
    (folder / name).write_bytes(b"x" * bundle.manifest.files[name].size)
    with pytest.raises(EngineError, match=r"cannot load it \(the plan is damaged\); build it again"):
        opened(Bundle(folder, verify="never"))
