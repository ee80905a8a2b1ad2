"""Whole conversations in the device loop: texts and sounds equal the CPU engine's, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from support.cuda.device import both_models, cpu_engine, device_engine
from support.golden import CHECKS
from support.runs import make_run
from support.sounds import make_sound
from ualm.export.bundle import export_run
from ualm.runtime import AudioSampling, EngineError, Model, Segment, Sound, SoundChunk, TextSampling, TurnEnded
from ualm.runtime.bundle import packaged
from ualm.runtime.bundle.bundle import Bundle
from ualm.runtime.diagnostics.golden import check_golden
from ualm.runtime.engines.device.device import Graph
from ualm.runtime.engines.device.loop import Frame
from ualm.runtime.engines.onnxruntime.cuda_body import OnnxRuntimeStep

AUDIO = AudioSampling(temperature=1.0, top_k=None, max_steps=50)
TEXT = TextSampling(temperature=1.0, max_steps=20)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A model that tends to end sounds and to continue with another segment."""
    folder = tmp_path_factory.mktemp("device_model")
    run = make_run(folder / "run", lean={"pad": -2.0, "eos": -1.0, "eot": 1.0, "text": 9.0, "audio": 9.0}, heads=2)
    export_run(run.folder, folder / "bundle")
    return Bundle(folder / "bundle", verify="never")


@pytest.fixture(scope="module")
def models(bundle: Bundle) -> Iterator[tuple[Model, Model]]:
    pair = both_models(bundle, 400)
    yield pair
    for model in pair:
        model.close()


def assert_same(mine: list[Segment], others: list[Segment]) -> None:
    assert [(each.modality, each.finish, each.text) for each in mine] == [
        (each.modality, each.finish, each.text) for each in others
    ]
    for one, other in zip(mine, others, strict=True):
        np.testing.assert_array_equal(one.rows, other.rows)
        if one.sound is not None:
            assert other.sound is not None
            np.testing.assert_array_equal(one.sound.samples.view(np.int32), other.sound.samples.view(np.int32))


@pytest.mark.parametrize("mode", ["fixed", "reference"])
@pytest.mark.parametrize("seed", range(4))
def test_segments_of_both_modalities_are_the_same(models: tuple[Model, Model], mode: str, seed: int) -> None:
    heard = Sound(make_sound(0.3, seed=seed)[0], 16000)
    runs = [
        model.run(
            [("user", heard), ("user", "What is this?")],
            mode=mode,  # type: ignore[arg-type]
            max_segments=3,
            audio=AudioSampling(temperature=1.0, top_k=None, max_steps=50, seed=seed),
            text=TextSampling(temperature=1.0, guidance=1.0 + seed % 2, max_steps=20, seed=seed),
        )
        for model in models
    ]
    assert_same(*runs)


def test_turns_cancel_fork_truncate_and_what_was_saved_go_on_the_same(
    models: tuple[Model, Model], tmp_path: Path
) -> None:
    results = []
    for number, model in enumerate(models):
        session = model.session()
        said = [session.ask("one", modality="audio", audio=AUDIO)]
        turn = session.turn("two", modality="audio", audio=AUDIO)
        for event in turn:
            if isinstance(event, SoundChunk):
                turn.cancel()  # frames are in flight
        assert isinstance(event, TurnEnded) and event.reason == "cancelled"
        said.append(session.ask("three", modality="text", text=TEXT))
        other = session.fork()
        session.truncate(1)
        session.save(tmp_path / f"{number}.npz")
        again = model.restore(tmp_path / f"{number}.npz")
        for each in (session, other, again):
            said.append(each.ask("four", modality="audio", audio=AUDIO, text=TEXT))
        assert_same(said[2], said[4])
        results.append(said)
    for mine, theirs in zip(*results, strict=True):
        assert_same(mine, theirs)


def test_a_session_moves_between_the_engines(models: tuple[Model, Model], tmp_path: Path) -> None:
    cpu, device = models
    session = device.session()
    session.ask("one", modality="text", text=TEXT)
    session.save(tmp_path / "a.npz")
    mine, theirs = (
        each.ask("two", modality="audio", audio=AUDIO) for each in (session, cpu.restore(tmp_path / "a.npz"))
    )
    assert_same(mine, theirs)


def test_a_session_in_which_nothing_was_said_is_saved_and_restored(models: tuple[Model, Model], tmp_path: Path) -> None:
    shapes = [model.session().state.sequence.save().shape for model in models]
    assert shapes[0] == shapes[1] and shapes[0][3] == 0
    said = []
    for number, model in enumerate(models):
        model.session().save(tmp_path / f"{number}.npz")
        for other in models:
            session = other.restore(tmp_path / f"{number}.npz")
            said.append(session.ask("one", modality="audio", audio=AUDIO))
    for each in said[1:]:
        assert_same(said[0], each)


def test_the_codec_in_pieces_is_the_cpus(bundle: Bundle) -> None:
    engines = cpu_engine(bundle), device_engine(bundle)
    codes = np.random.default_rng(0).integers(0, bundle.manifest.vocabulary.codebook_size, (70, 8)).astype(np.int16)
    latents = engines[0].codes_to_latents(codes)
    first = bundle.manifest.codec.first_frames
    streams = [engine.open_codec_stream() for engine in engines]
    for _ in range(2):  # one sound after the other
        pieces = np.split(latents, [first, first + 1, first + 8])
        for piece in pieces:
            mine, theirs = (stream.decode(piece, last=piece is pieces[-1]) for stream in streams)
            np.testing.assert_array_equal(mine, theirs)
    streams[1].decode(latents[:first], last=False)
    streams[1].reset()
    np.testing.assert_array_equal(streams[1].decode(latents, last=True), streams[0].decode(latents, last=True))


def test_the_golden_vector_passes_with_and_without_our_heads(bundle: Bundle) -> None:
    for fused in (False, True):
        checks = check_golden(bundle, device_engine(bundle, 64, fused_heads=fused))
        assert [check.name for check in checks] == CHECKS
        assert all(check.passed for check in checks), checks


def test_our_heads_agree_with_onnx_runtimes_and_are_launched_as_graphs(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches: list[int] = []
    real = Graph.launch
    monkeypatch.setattr(Graph, "launch", lambda self: (launches.append(1), real(self))[1])
    results = []
    for fused in (False, True):
        launches.clear()
        engine = device_engine(bundle, 400, fused_heads=fused)
        engine.device_model.ahead = 0
        model = Model(bundle, engine, 400)
        results.append(
            model.run(
                [("user", "hum")], modality="audio", max_segments=1, audio=AudioSampling(temperature=0.0, max_steps=40)
            )
        )
        # the first frame runs uncaptured, the second is captured
        assert len(launches) == (len(results[-1][0].rows) - 1 if fused else 0)
    np.testing.assert_array_equal(results[0][0].rows, results[1][0].rows)


class _Step:
    """A step that counts: buckets of four rows, all of which can be captured."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def before(self, held: int) -> None:
        self.calls.append(("before", held))

    def bucket(self, held: int) -> int:
        return held // 4

    def enqueue(self, held: int) -> None:
        self.calls.append(("enqueue", held))


def test_a_bucket_runs_plainly_once_is_captured_once_and_played_from_then_on(bundle: Bundle) -> None:
    device, step, samples = device_engine(bundle).device, _Step(), []
    word = device.uploaded(np.zeros(1, np.int32))

    def sample() -> None:
        samples.append(len(step.calls))
        device.cuda.set_bytes(word.address, len(samples), 4, device.stream.handle)

    frame = Frame(device, step, sample)  # type: ignore[arg-type]
    for held in range(9):
        frame.enqueue(held)
    assert [held for name, held in step.calls if name == "before"] == list(range(9))
    assert [held for name, held in step.calls if name == "enqueue"] == [0, 1, 4, 5, 8]
    assert len(samples) == 5
    frame.enqueue(2)  # back in the first bucket: its graph is replayed, with the arguments captured then
    held = np.empty(1, np.int32)
    device.download(held, word.address)
    device.synchronize()
    assert held[0] == 0x02020202


def test_the_model_that_comes_along_runs_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its body computes in float16, which is also its cache's type; its heads are int8 blocks."""
    bundle = Bundle(packaged.PACKAGED, verify="never")
    engine = device_engine(bundle, 128, fused_heads=True)
    assert engine.device_model.shape.number == "float16"
    assert engine.bytes_per_row == cpu_engine(bundle, 128).bytes_per_row // 2
    steps: list[OnnxRuntimeStep] = []
    real = OnnxRuntimeStep.__init__
    monkeypatch.setattr(
        OnnxRuntimeStep, "__init__", lambda self, *arguments: (steps.append(self), real(self, *arguments))[1]
    )
    model = Model(bundle, engine, 128)
    segment = model.run(
        [("user", "a trumpet plays C5")], modality="audio", max_segments=1, audio=AudioSampling(max_steps=12)
    )[0]
    assert segment.sound is not None and np.abs(segment.sound.samples).max() > 0
    assert [step.bucket(5) for step in steps] == [0]


def test_a_closed_engine_opens_nothing(bundle: Bundle) -> None:
    engine = device_engine(bundle)
    engine.close()
    for use in (engine.open_sequence, engine.open_codec_stream):
        with pytest.raises(EngineError, match="the model is closed"):
            use()
