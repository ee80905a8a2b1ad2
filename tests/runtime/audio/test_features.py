from __future__ import annotations

import dataclasses
import json
import tracemalloc

import numpy as np
import pytest
from transformers import WhisperFeatureExtractor

from support.sounds import make_sound
from ualm.runtime.audio import features as hearing
from ualm.runtime.audio.features import MASKED, LogMelFrontend, log_mel, normalized, without_silence
from ualm.runtime.bundle.feature_spec import AF_WHISPER, OMNI, FeatureSpec, feature_rows
from ualm.runtime.errors import BundleError, InputError
from ualm.runtime.sound.sound import Sound, to_mono

MELS = 16
EXTRACTOR = WhisperFeatureExtractor(feature_size=MELS, chunk_length=1)
FILTERS = EXTRACTOR.mel_filters.astype(np.float32)
OMNI_SPEC = FeatureSpec(OMNI, 16000, 400, 160, MELS, 48000, True, window_frames=20)
WHISPER_SPEC = FeatureSpec(AF_WHISPER, 16000, 400, 160, MELS, 16000, False, fixed_frames=100)
#: transformers computes in float32 with its own tolerance of 1e-5; values are between about -1 and 1.5
TOLERANCE = 2e-5


def omni_reference(samples: np.ndarray) -> np.ndarray:
    """Mel frames ``[n_mels, m]`` as UALM requests them from transformers, cut to the frames within its mask."""
    out = EXTRACTOR(
        [samples], truncation=False, return_tensors="np", do_normalize=True, max_length=len(samples),
        return_attention_mask=True, sampling_rate=16000,
    )  # fmt: skip
    return out["input_features"][0, :, : out["attention_mask"].sum()]


def whisper_reference(samples: np.ndarray) -> np.ndarray:
    padded = np.pad(samples, (0, 16000 - len(samples)))
    return EXTRACTOR(padded, sampling_rate=16000, return_tensors="np")["input_features"][0]


def unwindowed(inputs: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate(list(inputs["mel"]), axis=1)


@pytest.mark.parametrize("n", [480, 481, 639, 1600, 3199, 3200, 3201, 12345, 47999])
def test_omni_mel_equals_transformers_normalisation_and_all(n):
    samples = make_sound(n / 16000, seed=n)[0]
    expected = omni_reference(samples)
    mel = log_mel(normalized(samples), OMNI_SPEC, FILTERS)
    assert mel.dtype == np.float32 and mel.shape == expected.shape
    np.testing.assert_allclose(mel, expected, atol=TOLERANCE)


@pytest.mark.parametrize("n", [480, 481, 8001, 15999, 16000])
def test_af_whisper_mel_equals_transformers_over_the_padded_sound(n):
    samples = make_sound(n / 16000, seed=n)[0]
    prepared = LogMelFrontend(WHISPER_SPEC, FILTERS).prepare(Sound(samples, 16000))
    assert list(prepared.inputs) == ["mel"] and prepared.inputs["mel"].shape == (1, MELS, 100)
    np.testing.assert_allclose(prepared.inputs["mel"][0], whisper_reference(samples), atol=TOLERANCE)
    assert prepared.rows == feature_rows(n // 160)


def test_mel_of_sparse_and_extreme_sounds_is_finite_and_equal():
    for samples in (np.zeros(2000, np.float32), np.full(2000, 0.5, np.float32), 1e4 * make_sound(0.125)[0]):
        mel = log_mel(normalized(samples), OMNI_SPEC, FILTERS)
        assert np.isfinite(mel).all()
        # for a constant, normalisation amplifies only rounding, which is not worth comparing
        if samples.std() != 0 or not samples.any():
            np.testing.assert_allclose(mel, omni_reference(samples), atol=TOLERANCE)
    click = np.zeros(2000, np.float32)
    click[777] = 1
    np.testing.assert_allclose(log_mel(normalized(click), OMNI_SPEC, FILTERS), omni_reference(click), atol=TOLERANCE)


@pytest.mark.parametrize(
    "lengths", [range(480, 2200, 37), range(1600, 1760)], ids=["steps of 37", "all residues of the hop"]
)
def test_frames_and_rows_are_counted_as_the_reference_counts_them(lengths):
    heard = LogMelFrontend(OMNI_SPEC, FILTERS)
    for n in lengths:
        samples = make_sound(n / 16000)[0]
        frames = omni_reference(samples).shape[1]
        prepared = heard.prepare(Sound(samples, 16000))
        assert prepared.inputs["frame_mask"].sum() == frames
        after_convolution = (frames - 1) // 2 + 1
        assert (prepared.inputs["attention_bias"] == 0).sum() == after_convolution
        assert prepared.rows == (after_convolution - 2) // 2 + 1


def test_feature_rows_follow_the_published_formula():
    for frames in range(30001):
        assert feature_rows(frames) == ((frames - 1) // 2 + 1 - 2) // 2 + 1
    assert [feature_rows(frames) for frames in (2, 3, 6, 7, 3000)] == [0, 1, 1, 2, 750]


@pytest.mark.parametrize("frames", [3, 19, 20, 21, 40, 57])
def test_windows_hold_the_frames_in_order_and_zeros_behind_them(frames):
    samples = make_sound((160 * frames + 7) / 16000)[0]
    inputs = LogMelFrontend(OMNI_SPEC, FILTERS).prepare(Sound(samples, 16000)).inputs
    windows = -(-frames // 20)
    shapes = {"mel": (windows, MELS, 20), "frame_mask": (windows, 1, 20), "attention_bias": (windows, 1, 1, 10)}
    assert {name: values.shape for name, values in inputs.items()} == shapes
    assert all(values.dtype == np.float32 and values.flags.c_contiguous for values in inputs.values())
    np.testing.assert_allclose(unwindowed(inputs)[:, :frames], omni_reference(samples), atol=TOLERANCE)
    assert not unwindowed(inputs)[:, frames:].any()
    np.testing.assert_array_equal(inputs["frame_mask"].ravel(), np.arange(20 * windows) < frames)
    valid = np.arange(10 * windows) < -(-frames // 2)
    np.testing.assert_array_equal(inputs["attention_bias"].ravel(), np.where(valid, 0, np.float32(MASKED)))


def test_a_masked_score_weighs_nothing_in_float32_and_float16():
    for dtype in (np.float32, np.float16):
        assert np.isfinite(dtype(MASKED) - dtype(1000))
        assert np.exp(dtype(MASKED) + dtype(1000)) == 0


def test_blocks_leave_no_seam(monkeypatch):
    samples = make_sound(0.7)[0]
    whole = log_mel(samples, OMNI_SPEC, FILTERS)
    monkeypatch.setattr(hearing, "_BLOCK", 7)
    # the matrix product may sum in another order
    np.testing.assert_allclose(log_mel(samples, OMNI_SPEC, FILTERS), whole, atol=1e-6)


def test_five_minutes_need_scratch_of_a_block_only():
    samples = make_sound(300)[0]
    tracemalloc.start()
    try:
        log_mel(samples, OMNI_SPEC, FILTERS)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # padded samples and result: 21 MB; a block: about 35 MB; all frames at once would be 300 MB
    assert peak < 80e6


def test_any_rate_and_channel_count_is_heard_as_channel_0_at_the_encoders_rate():
    stereo = make_sound(0.5, rate=44100, channels=2)
    heard = LogMelFrontend(OMNI_SPEC, FILTERS)
    prepared = heard.prepare(Sound(stereo.T, 44100))
    mono = to_mono(Sound(stereo[0], 44100), 16000)
    expected = heard.prepare(Sound(mono, 16000))
    assert prepared.rows == expected.rows
    np.testing.assert_array_equal(prepared.inputs["mel"], expected.inputs["mel"])
    other = heard.prepare(Sound(stereo[::-1].T, 44100))
    assert np.abs(other.inputs["mel"] - expected.inputs["mel"]).max() > 0.01


@pytest.mark.parametrize("spec", [OMNI_SPEC, WHISPER_SPEC], ids=lambda spec: spec.kind)
def test_the_shortest_and_the_longest_sound_are_heard_and_no_others(spec):
    heard = LogMelFrontend(spec, FILTERS)
    longest = spec.max_samples
    assert heard.prepare(Sound(make_sound(1)[0][:480], 16000)).rows == 1
    assert heard.prepare(Sound(make_sound(longest / 16000)[0], 16000)).rows == longest // 640
    with pytest.raises(InputError, match=r"29\.9 ms is too short.*30\.0 ms"):
        heard.prepare(Sound(np.ones(479, np.float32), 16000))
    with pytest.raises(InputError, match=rf"longer than the {longest // 16000} s"):
        heard.prepare(Sound(np.ones(longest + 1, np.float32), 16000))
    # at another rate, the length after resampling counts
    with pytest.raises(InputError, match="too short"):
        heard.prepare(Sound(np.ones(1319, np.float32), 44100))
    assert heard.prepare(Sound(make_sound(1)[0][:1321], 44100)).rows == 1


@pytest.mark.parametrize("spec", [OMNI_SPEC, WHISPER_SPEC], ids=lambda spec: spec.kind)
def test_a_spec_survives_json(spec):
    assert FeatureSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize(
    "spec, change, said",
    [
        (OMNI_SPEC, {"kind": "wav2vec"}, "features.kind.*wav2vec"),
        (OMNI_SPEC, {"n_mels": 0}, "features.n_mels: 0"),
        (OMNI_SPEC, {"hop_length": "160"}, "features.hop_length: '160'"),
        (OMNI_SPEC, {"sample_rate": True}, "features.sample_rate: True"),
        (OMNI_SPEC, {"normalize": 1}, "features.normalize: 1"),
        (OMNI_SPEC, {"n_fft": 401}, "features.n_fft: 401"),
        (OMNI_SPEC, {"window_frames": 21}, "features.window_frames: 21"),
        (OMNI_SPEC, {"window_frames": 0}, "features.window_frames: 0"),
        (OMNI_SPEC, {"fixed_frames": 100}, "features.window_frames, fixed_frames"),
        (OMNI_SPEC, {"max_samples": 300}, "features.max_samples: 300"),
        (WHISPER_SPEC, {"fixed_frames": 99}, "features.fixed_frames: 99"),
        (WHISPER_SPEC, {"window_frames": -2}, "features.window_frames"),
        (WHISPER_SPEC, {"dither": 0.1}, "unknown .*dither"),
    ],
)
def test_a_spec_from_a_damaged_manifest_is_refused_by_field(spec, change, said):
    with pytest.raises(ValueError, match=said):
        FeatureSpec.from_json({**spec.to_json(), **change})


def test_a_spec_that_lacks_a_field_or_is_no_object_is_refused():
    values = OMNI_SPEC.to_json()
    del values["n_fft"]
    with pytest.raises(ValueError, match=r"missing \['n_fft'\]"):
        FeatureSpec.from_json(values)
    with pytest.raises(ValueError, match="not an object"):
        FeatureSpec.from_json([1])


def test_filters_of_another_shape_are_refused():
    with pytest.raises(BundleError, match=r"mel_filters.*\(201, 17\)"):
        LogMelFrontend(dataclasses.replace(OMNI_SPEC, n_mels=17), FILTERS)


CUTTING = dataclasses.replace(OMNI_SPEC, silence_db=50)


def slowly_cut(samples: np.ndarray, decibels: int, step: int, least: int) -> np.ndarray:
    """:func:`without_silence`, one step after the other."""
    powers = []
    for first in range(0, len(samples), step):
        piece = np.zeros(step)
        piece[: len(samples[first : first + step])] = samples[first : first + step]
        powers.append(float(np.mean(piece**2)))
    loud = [power > max(powers) / 10 ** (decibels / 10) for power in powers]
    if not any(loud):
        return samples
    kept = [round(seconds * 16000 / step) for seconds in (0.06, 0.3)]
    first = max(loud.index(True) - kept[0], 0) * step
    last = min((len(loud) - loud[::-1].index(True) + kept[1]) * step, len(samples))
    last = max(last, min(first + least, len(samples)))
    return samples[min(first, last - least) : last]


@pytest.mark.parametrize("before", [0, 1, 319, 320, 16000])
@pytest.mark.parametrize("after", [0, 7, 640, 15999])
def test_silence_at_both_ends_is_cut_in_whole_codec_frames(before: int, after: int) -> None:
    sound = make_sound(0.3)[0]
    hush = 1e-4 * np.random.default_rng(0).standard_normal(before + after).astype(np.float32)
    for ends in (np.zeros(before + after, np.float32), hush):
        samples = np.concatenate([ends[:before], sound, ends[before:]])
        found = without_silence(samples, CUTTING)
        np.testing.assert_array_equal(found, slowly_cut(samples, 50, 320, CUTTING.min_samples))
        assert len(sound) - 640 < len(found) < len(sound) + 640 + (3 + 15) * 320
        heard, alone = (LogMelFrontend(CUTTING, FILTERS).prepare(Sound(each, 16000)) for each in (samples, found))
        assert heard.rows == alone.rows == feature_rows(len(found) // 160)
        for name, values in alone.inputs.items():
            np.testing.assert_array_equal(heard.inputs[name], values)


def test_what_is_silent_all_over_or_short_keeps_what_an_encoder_needs() -> None:
    silent = np.zeros(5000, np.float32)
    assert without_silence(silent, CUTTING) is silent
    click = np.zeros(5000, np.float32)
    for at in (0, 2000, 4999):
        click[:] = 0
        click[at] = 1
        found = without_silence(click, CUTTING)
        assert CUTTING.min_samples <= len(found) < 1000 + (3 + 15) * 320 and found.any()
    samples = np.concatenate([np.zeros(3200, np.float32), make_sound(0.3)[0]])
    assert without_silence(samples, OMNI_SPEC) is samples, "a model without this setting hears the silence"


def test_bundles_that_do_not_cut_say_nothing_of_it() -> None:
    assert "silence_db" not in OMNI_SPEC.to_json() and FeatureSpec.from_json(OMNI_SPEC.to_json()) == OMNI_SPEC
    assert FeatureSpec.from_json(CUTTING.to_json()) == CUTTING
    for wrong in (-1, 97, 10.5, True, "50"):
        with pytest.raises(ValueError, match="silence_db"):
            FeatureSpec.from_json({**OMNI_SPEC.to_json(), "silence_db": wrong})
