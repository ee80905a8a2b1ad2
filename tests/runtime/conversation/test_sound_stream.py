"""``Model.stream``: the sound of ``Model.generate``, delivered while it is made."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from support.runs import make_run
from ualm.export.bundle import export_run
from ualm.runtime import AudioSampling, ChunkProfile, InputError, Model, SoundChunk
from ualm.runtime.audio.pacing import Pacer
from ualm.runtime.engines.onnxruntime.cpu import OnnxRuntimeSequence
from ualm.runtime.engines.protocol import Frames

SAMPLES = 1e-5


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Unguided, the sounds of one end only by max_steps; the other continues with another segment after each."""
    folder, made = tmp_path_factory.mktemp("stream"), {}
    for name, lean in (("endless", {"eos": -40.0, "eot": -40.0, "pad": -40.0}), ("more", {"eos": -40.0, "eot": 4.0})):
        run = make_run(folder / f"{name}-run", seed=1, lean=lean)
        made[name] = export_run(run.folder, folder / name).bundle
    return made


@pytest.fixture(scope="module")
def model(bundles: dict[str, Path]) -> Iterator[Model]:
    with Model.open(bundles["endless"], threads=1, max_context=16384) as opened:
        yield opened


def joined(chunks: list[SoundChunk]) -> np.ndarray:
    for before, after in pairwise(chunks):
        assert after.start == before.start + len(before.samples)
    return np.concatenate([chunk.samples for chunk in chunks])


@pytest.mark.parametrize("profile", ["first_sound", "balanced", "throughput", ChunkProfile(2, 3.0, 11)])
def test_the_chunks_are_the_sound_that_generate_makes(model: Model, profile: str | ChunkProfile) -> None:
    whole = model.generate("rain", seed=5, guidance=1.0, max_steps=237).samples
    chunks = list(model.stream("rain", seed=5, guidance=1.0, max_steps=237, profile=profile))
    assert len(chunks) > 2 and chunks[0].start == 0
    assert all(type(chunk) is SoundChunk and chunk.segment == 0 and chunk.sample_rate == 16000 for chunk in chunks)
    found = joined(chunks)
    assert found.shape == whole.shape == (230 * 10,)
    np.testing.assert_allclose(found, whole, rtol=0, atol=SAMPLES * np.abs(whole).max())


def test_the_first_sound_comes_with_the_row_that_makes_its_first_frame_certain(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """X-Codec's first complete frame, for which 10 more frames must be known: 18 rows."""
    monkeypatch.setattr(Pacer, "_steady", lambda self: None)  # whatever the pace here, no larger piece is needed
    codec = model.bundle.manifest.codec
    turn = model.session().turn(
        "rain", modality="audio", audio=AudioSampling(guidance=1.0, max_steps=60), profile="first_sound"
    )
    rows: list[int] = []
    worker, put = turn._worker, turn._worker._put_piece
    worker._put_piece = lambda piece: (  # type: ignore[method-assign]
        rows.append(len(piece.builder.rows)) if len(piece.content) and not rows else None,
        put(piece),
    )[1]
    first = next(event for event in turn if isinstance(event, SoundChunk))
    assert rows == [1 + math.ceil(codec.lookahead / codec.hop_length) + 7]
    assert codec.hop_length <= len(first.samples) < 2 * codec.hop_length


def test_leaving_the_loop_stops_the_work(model: Model) -> None:
    for _ in model.stream("rain", guidance=1.0, max_steps=16000, profile="first_sound"):
        break
    for thread in threading.enumerate():
        if thread.name == "ualm-turn":
            thread.join(10)
            assert not thread.is_alive()


def test_a_model_may_be_closed_as_soon_as_the_last_chunk_is_read(bundles: dict[str, Path]) -> None:
    for _ in range(3):
        with Model.open(bundles["endless"], threads=1, max_context=512, verify="never") as opened:
            for _ in opened.stream("rain", guidance=1.0, max_steps=40):
                pass
        assert not [thread for thread in threading.enumerate() if thread.name == "ualm-turn" and thread.is_alive()]


def test_a_model_that_would_say_more_is_not_asked_to(bundles: dict[str, Path]) -> None:
    with Model.open(bundles["more"], threads=1, max_context=2048, verify="never") as opened:
        options = {"guidance": 1.0, "seed": 2, "max_steps": 400}
        assert opened.run(
            [("user", "rain")], modality="audio", max_segments=1, audio=AudioSampling(**options)
        )[0].finish == "eot"  # fmt: skip
        whole = opened.generate("rain", **options).samples
        found = joined(list(opened.stream("rain", **options)))
    np.testing.assert_allclose(found, whole, rtol=0, atol=SAMPLES * np.abs(whole).max())


def test_an_engine_slower_than_real_time_tells_how_much_to_hold(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame of this codec lasts 0.6 ms, a row here four times as long."""
    real = OnnxRuntimeSequence.run_frames

    def slow(sequence: OnnxRuntimeSequence, count: int) -> Frames:
        time.sleep(0.0025 * count)
        return real(sequence, count)

    monkeypatch.setattr(OnnxRuntimeSequence, "run_frames", slow)
    with Model.open(bundles["endless"], threads=1, max_context=512, verify="never") as opened:
        first = next(opened.stream("rain", guidance=1.0, max_steps=207))
    longest = 200 * 10 / 16000
    assert 0.7 * longest < first.preroll <= longest


def test_bad_input_is_refused_by_the_call_itself(model: Model) -> None:
    for arguments, options, piece in (
        (("",), {}, "text is empty"),
        (("rain",), {"speed": 2}, "unknown option 'speed'"),
        (("rain",), {"profile": "fast"}, "profile = 'fast'"),
        (("rain",), {"max_steps": 0}, "max_steps = 0"),
    ):
        with pytest.raises(InputError, match=piece):
            model.stream(*arguments, **options)  # type: ignore[arg-type]
