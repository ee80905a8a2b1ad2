"""A stage after the codec: its output, its delay, and manifests that are refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soxr

from support.bundles import changed_manifest, with_post_codec
from support.runs import Run, make_run
from ualm.export.bundle import export_run
from ualm.runtime import AudioSampling, BundleError, InputError, Model, SegmentEnded, SoundChunk, TextSampling
from ualm.runtime.audio.post_codec import Resampler
from ualm.runtime.bundle.bundle import Bundle
from ualm.runtime.bundle.manifest import CodecIdentity

CODEC = CodecIdentity(16000, 320, 256, 10, 10, 3141)


@pytest.mark.parametrize(("rate", "channels"), [(48000, 2), (44100, 1), (24000, 2), (8000, 1), (16000, 2)])
def test_the_resampler_gives_the_whole_sounds_resampling_and_holds_back_what_it_declares(
    rate: int, channels: int
) -> None:
    declared = Resampler.describe(CODEC, rate, channels)
    stage = Resampler(CODEC, declared)
    random = np.random.default_rng(rate)
    samples = random.standard_normal(30000).astype(np.float32)
    whole = soxr.resample(samples, 16000, rate, quality="HQ")
    for _ in range(2):  # after the last piece a new sound begins
        pieces, given = [], 0
        while given < len(samples):
            end = min(given + int(random.integers(1, 700)), len(samples))
            pieces.append(stage.push(samples[given:end], last=end == len(samples)))
            given = end
            if end < len(samples):
                assert sum(map(len, pieces)) >= (end - declared.delay) * rate / 16000
        found = np.concatenate(pieces)
        assert found.shape == ((len(whole), channels) if channels > 1 else (len(whole),))
        for channel in found.reshape(len(whole), channels).T:
            np.testing.assert_array_equal(channel, whole)


def test_a_sound_dropped_on_the_way_is_not_heard_in_the_next() -> None:
    stage = Resampler(CODEC, Resampler.describe(CODEC, 48000, 1))
    samples = np.random.default_rng(0).standard_normal(2000).astype(np.float32)
    before = stage.push(samples, last=True)
    stage.push(samples[::-1], last=False)
    stage.reset()
    np.testing.assert_array_equal(stage.push(samples, last=True), before)


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Its sounds end only by max_steps."""
    return make_run(tmp_path_factory.mktemp("endless") / "run", lean={"eos": -60.0, "eot": -60.0, "pad": -60.0})


@pytest.fixture(scope="module")
def upsampled(endless: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """Exported with the stage."""
    folder = tmp_path_factory.mktemp("up") / "bundle"
    export_run(endless.folder, folder, post_codec=lambda codec: Resampler.describe(codec, 48000, 2))
    with Model.open(folder, threads=1, max_context=2048) as opened:
        yield opened


def test_sounds_of_a_model_come_through_its_stage(upsampled: Model, endless: Run, tmp_path: Path) -> None:
    options: dict[str, Any] = {"seed": 3, "max_steps": 200, "guidance": 1.0}
    sound = upsampled.generate("rain", **options)
    assert sound.sample_rate == 48000 and sound.samples.shape == (193 * 30, 2)
    with Model.open(export_run(endless.folder, tmp_path / "plain").bundle, threads=1, max_context=512) as plain:
        mono = plain.generate("rain", **options)
    np.testing.assert_array_equal(sound.codes, mono.codes)
    expected = soxr.resample(mono.samples, 16000, 48000, quality="HQ")
    for channel in sound.samples.T:
        np.testing.assert_allclose(channel, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_chunks_of_a_session_join_to_the_segments_sound(upsampled: Model) -> None:
    chunks, result = [], None
    for event in upsampled.session().turn("rain", modality="audio", audio=AudioSampling(guidance=1.0)):
        if isinstance(event, SoundChunk):
            assert event.sample_rate == 48000 and event.samples.shape[1:] == (2,)
            assert event.start == sum(len(chunk.samples) for chunk in chunks)
            chunks.append(event)
        elif isinstance(event, SegmentEnded):
            result = event.result
            break
    assert result is not None and result.sound is not None and len(chunks) > 2
    np.testing.assert_array_equal(np.concatenate([chunk.samples for chunk in chunks]), result.sound.samples)


def test_a_sound_that_came_through_a_stage_can_be_heard_and_said_again(upsampled: Model) -> None:
    sound = upsampled.generate("rain", max_steps=600, guidance=1.0)
    few = TextSampling(max_steps=3)
    assert upsampled.run([("user", sound), ("user", "What is it?")], modality="text", text=few)
    assert upsampled.run([("user", "rain"), ("assistant", sound), ("user", "Again.")], modality="text", text=few)


@pytest.mark.parametrize(
    ("entry", "piece"),
    [
        ({"kind": "enhance"}, r"post_codec.kind = 'enhance': this ualm knows resample; update ualm, or export"),
        ({"options": {"quality": "best"}}, r"post_codec.options: .*'best'.*HQ"),
        ({"options": {"speed": 2}}, r"post_codec.options: .*speed"),
        ({"sample_rate": 0}, r"post_codec.sample_rate = 0"),
        ({"channels": "2"}, r"post_codec.channels = '2'"),
        ({"delay": -1}, r"post_codec.delay = -1"),
        ({"options": None}, r"options = None"),
        ({"gain": 1}, r"gain"),
    ],
)
def test_a_stage_that_cannot_be_made_is_one_clear_error_when_the_model_is_opened(
    tiny_bundle: Path, tmp_path: Path, entry: dict[str, Any], piece: str
) -> None:
    stage = vars(Resampler.describe(Bundle(tiny_bundle, verify="never").manifest.codec, 48000, 2)) | entry
    folder = changed_manifest(tiny_bundle, tmp_path / "bundle", lambda document: document.update(post_codec=stage))
    with pytest.raises(BundleError, match=piece):
        Model.open(folder, threads=1, verify="never")


@pytest.mark.parametrize("values", [(0, 1), (48000, 0), (48000, 1, "best"), ("48000", 1)])
def test_a_stage_that_cannot_be_described_is_refused(values: tuple[Any, ...]) -> None:
    with pytest.raises(InputError, match="resample to"):
        Resampler.describe(CODEC, *values)


def test_a_refused_stage_leaves_no_bundle(tiny_run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        export_run(tiny_run.folder, tmp_path / "bundle", post_codec=lambda codec: Resampler.describe(codec, 0, 1))
    assert not list(tmp_path.iterdir())


def test_the_manifest_keeps_the_stage(tiny_bundle: Path, tmp_path: Path) -> None:
    manifest = Bundle(with_post_codec(tiny_bundle, tmp_path / "b", sample_rate=48000, channels=2)).manifest
    assert manifest.post_codec is not None and manifest.sound_rate == 48000
    assert (manifest.post_codec.channels, manifest.post_codec.delay) == (2, 586)  # soxr HQ, three to one
    assert Bundle(tiny_bundle).manifest.post_codec is None and Bundle(tiny_bundle).manifest.sound_rate == 16000
