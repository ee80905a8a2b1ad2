"""Frames decoded piece by piece give the same sound as decoding them at once, for any pieces and profile."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from support.bundles import with_post_codec
from ualm.runtime import ChunkProfile, EngineError, InputError, Model, SoundDecoder
from ualm.runtime.audio.pacing import PROFILES, Pace
from ualm.runtime.audio.stream_decoder import CALL_FRAMES

#: Of the peak; see tests/export/parts/test_codec_stream.py.
SAMPLES = 1e-5


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Iterator[Model]:
    with Model.open(tiny_bundle, threads=1, max_context=256, verify="never") as opened:
        yield opened


def codes_of(frames: int) -> np.ndarray:
    return np.random.default_rng(frames).integers(0, 16, (frames, 8)).astype(np.int16)


def latents_of(model: Model, frames: int) -> np.ndarray:
    return model.resources.engine.codes_to_latents(codes_of(frames))


def assert_offline(found: np.ndarray, model: Model, frames: int) -> None:
    assert found.dtype == np.float32 and found.shape == (frames * model.bundle.manifest.codec.hop_length,)
    if frames:
        expected = model.resources.engine.decode_latents(latents_of(model, frames))
        np.testing.assert_allclose(found, expected, rtol=0, atol=SAMPLES * np.abs(expected).max())


@settings(max_examples=40, deadline=None)
@given(
    pushes=st.lists(st.integers(0, 40), max_size=12),
    profile=st.one_of(
        st.sampled_from(sorted(PROFILES)),
        st.builds(ChunkProfile, st.integers(1, 9), st.floats(1, 3), st.integers(9, 60)),
    ),
    paced=st.booleans(),
)
@example(pushes=[1] * 150, profile="first_sound", paced=False)
@example(pushes=[600], profile="throughput", paced=True)
@example(pushes=[3], profile="balanced", paced=False)
@example(pushes=[2 * CALL_FRAMES + 1], profile="balanced", paced=False)
def test_pieces_of_sound_join_to_the_offline_decode(
    model: Model, pushes: list[int], profile: str | ChunkProfile, paced: bool
) -> None:
    frames = sum(pushes)
    decoder = SoundDecoder(model.resources.engine, model.bundle, profile, Pace() if paced else None)
    latents, first = latents_of(model, frames), 0
    found = []
    for push in pushes:
        found.append(decoder.push(latents[first : first + push]))
        first += push
    found.append(decoder.flush())
    assert_offline(np.concatenate(found), model, frames)


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_without_a_pace_pieces_follow_the_profile(model: Model, profile: str) -> None:
    codec, wanted = model.bundle.manifest.codec, PROFILES[profile]
    decoder, sizes = model.decoder(profile), []
    for frame in latents_of(model, 300):
        sizes.append(len(decoder.push(frame[None])))
    pieces = [size for size in sizes if size]
    held = -codec.lookahead % codec.hop_length  # samples of an incomplete frame come with the first
    assert pieces[0] == wanted.first * codec.hop_length + held
    target = wanted.first
    for piece in pieces[1:]:
        target = min(math.ceil(target * wanted.growth), wanted.most)
        assert piece == target * codec.hop_length
    assert pieces[-1] == wanted.most * codec.hop_length


def test_the_first_piece_comes_as_soon_as_a_frame_is_certain(model: Model) -> None:
    codec, decoder = model.bundle.manifest.codec, model.decoder("first_sound")
    latents = latents_of(model, 60)
    pushed = 0
    while not len(piece := decoder.push(latents[pushed : pushed + 1])):
        pushed += 1
    certain = (pushed + 1) * codec.hop_length - codec.lookahead
    assert len(piece) == certain and codec.hop_length <= certain < 2 * codec.hop_length


def test_codes_and_their_latents_give_the_same_sound(model: Model) -> None:
    decoder, codes = model.decoder(), codes_of(90)
    pieces = [decoder.push_codes(codes[:40]), decoder.push_codes(codes[40:]), decoder.flush()]
    assert_offline(np.concatenate(pieces), model, 90)
    sound = model.decode(codes)
    np.testing.assert_allclose(
        np.concatenate(pieces), sound.samples, rtol=0, atol=SAMPLES * np.abs(sound.samples).max()
    )


def test_after_flush_and_after_reset_a_new_sound_begins(model: Model) -> None:
    decoder, latents = model.decoder("first_sound"), latents_of(model, 70)

    def whole() -> np.ndarray:
        return np.concatenate([*[decoder.push(part) for part in np.split(latents, 7)], decoder.flush()])

    first = whole()
    np.testing.assert_array_equal(whole(), first)
    decoder.push(latents[5:])
    decoder.reset()
    np.testing.assert_array_equal(whole(), first)
    decoder.reset()
    assert decoder.flush().shape == (0,)
    np.testing.assert_array_equal(whole(), first)


def test_what_is_held_does_not_grow_with_the_sound(model: Model) -> None:
    decoder, frames = model.decoder("throughput"), latents_of(model, 10)
    states = decoder._stream._states  # type: ignore[attr-defined]
    before = {name: array.shape for name, array in states.items()}
    sizes = []
    for _ in range(200):
        decoder.push(frames)
        sizes.append(sum(len(waiting) for waiting in decoder._waiting))
        assert {name for name, value in vars(decoder).items() if isinstance(value, (list, dict, np.ndarray))} == {
            "_waiting"
        }
    assert max(sizes) < PROFILES["throughput"].most + 10 + model.bundle.manifest.codec.first_frames
    held = decoder._stream._states  # type: ignore[attr-defined]
    assert {name: array.shape for name, array in held.items()} == before


def test_a_consumer_cannot_change_the_sound_and_a_maker_not_the_frames(model: Model) -> None:
    decoder, latents = model.decoder(), latents_of(model, 60)
    piece = decoder.push(latents)
    assert len(piece) and not piece.flags.writeable
    late = latents_of(model, 3)
    decoder.push(late)
    late[:] = np.nan
    assert np.isfinite(decoder.flush()).all()


@pytest.mark.parametrize(
    ("latents", "piece"),
    [
        (np.zeros((3, 11), np.float32), r"float32 \[3, 11\]; .* \[frames, 12\]"),
        (np.zeros(12, np.float32), r"float32 \[12\]"),
        (np.zeros((3, 12), np.int16), r"int16 \[3, 12\]"),
        (np.full((3, 12), np.nan, np.float32), "NaN or infinity"),
    ],
)
def test_latents_that_are_none_are_refused_and_the_sound_goes_on(model: Model, latents: np.ndarray, piece: str) -> None:
    decoder, good = model.decoder(), latents_of(model, 50)
    pieces = [decoder.push(good[:30])]
    with pytest.raises(InputError, match=piece):
        decoder.push(latents)
    pieces += [decoder.push(good[30:]), decoder.flush()]
    assert_offline(np.concatenate(pieces), model, 50)


def test_codes_that_are_none_are_refused(model: Model) -> None:
    with pytest.raises(InputError, match="16"):
        model.decoder().push_codes(np.full((3, 8), 16))


def test_the_codec_is_loaded_or_refused_when_a_stream_is_opened(tiny_bundle: Path) -> None:
    """Not when the first frames have arrived, which a listener waits for. Nothing writes to the initial state that all
    streams share."""
    model = Model.open(tiny_bundle, threads=1, max_context=64)
    engine: Any = model.resources.engine
    decoder = SoundDecoder(engine, model.bundle)
    latents = np.random.default_rng(0).normal(size=(30, model.bundle.manifest.codec.latent_size)).astype(np.float32)
    sound = np.concatenate([decoder.push(latents), decoder.flush()])
    engine.unload("codec")
    again = SoundDecoder(engine, model.bundle)
    assert "codec.stream" in engine._sessions
    np.testing.assert_array_equal(np.concatenate([again.push(latents), again.flush()]), sound)
    assert not any(state.any() or state.flags.writeable for state in engine.codec_silence.values())
    model.close()
    with pytest.raises(EngineError, match="the model is closed"):
        SoundDecoder(engine, model.bundle)


def test_an_unknown_profile_is_refused(model: Model) -> None:
    with pytest.raises(InputError, match=r"profile = 'fast': choose first_sound, balanced, throughput, or give a"):
        model.decoder("fast")
    with pytest.raises(InputError, match="profile = 'fast'"):
        model.session().turn("Hi.", profile="fast")


@settings(max_examples=15, deadline=None)
@given(pushes=st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_with_a_stage_behind_the_codec_pieces_join_to_its_sound(upsampled: Model, pushes: list[int]) -> None:
    decoder, codes, first = upsampled.decoder("first_sound"), codes_of(sum(pushes)), 0
    pieces = []
    for push in pushes:
        pieces.append(decoder.push_codes(codes[first : first + push]))
        first += push
    pieces.append(decoder.flush())
    whole = upsampled.decode(codes)
    assert whole.sample_rate == decoder.sample_rate == 48000 and whole.samples.shape == (len(codes) * 30, 2)
    found = np.concatenate(pieces)
    np.testing.assert_allclose(found, whole.samples, rtol=0, atol=SAMPLES * np.abs(whole.samples).max())
    np.testing.assert_array_equal(found[:, 0], found[:, 1])


@pytest.fixture(scope="module")
def upsampled(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """The tiny model with a resampler after its codec: 16 kHz mono to 48 kHz stereo."""
    bundle = with_post_codec(tiny_bundle, tmp_path_factory.mktemp("up") / "bundle", sample_rate=48000, channels=2)
    with Model.open(bundle, threads=1, max_context=256, verify="never") as opened:
        yield opened
