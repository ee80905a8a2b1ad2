from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniAudioEncoderConfig
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniAudioEncoder, SinusoidsPositionEmbedding

from support.encoders import Tensors, WrittenEncoder, adapted, checkpoint, randomize
from support.sounds import make_sound
from ualm.export.formats.store import WeightStore
from ualm.export.parts.encoders.omni import plan_encoder, sinusoidal_positions
from ualm.export.parts.encoders.whisper import MEL_FILTERS
from ualm.runtime.errors import ExportError
from ualm.runtime.sound.sound import Sound

PREFIX = "multimodal_io_dict.continuous_audio.model.audio_tower."
HIDDEN = 12
FEATURES = {"feature_size": 9, "chunk_length": 3}
SIZES = {
    "d_model": 24, "encoder_layers": 2, "encoder_attention_heads": 3, "encoder_ffn_dim": 20, "num_mel_bins": 9,
    "n_window": 5, "output_dim": 14, "max_source_positions": 30, "activation_function": "gelu",
}  # fmt: skip


def build(n_window: int) -> tuple[Qwen2_5OmniAudioEncoder, dict, Tensors]:
    config = Qwen2_5OmniAudioEncoderConfig(**{**SIZES, "n_window": n_window})
    model = Qwen2_5OmniAudioEncoder(config).eval()
    randomize(model, seed=n_window)
    return model, config.to_dict(), checkpoint(model, PREFIX, config.output_dim, HIDDEN)


@pytest.fixture(scope="module", params=[5, 10], ids=lambda n: f"n_window {n}")
def pair(request, tmp_path_factory):
    """(transformers' model, its checkpoint, the written encoder)."""
    model, config, tensors = build(request.param)
    store = WeightStore("weights.safetensors")
    part = plan_encoder(tensors, config, FEATURES, store, HIDDEN)
    return model, tensors, WrittenEncoder(part, store, tmp_path_factory.mktemp("omni"))


def reference(model: Qwen2_5OmniAudioEncoder, tensors: Tensors, samples: np.ndarray) -> np.ndarray:
    """The published pipeline: extractor, frames within its mask, tower, adaptor. One sound, float32."""
    out = WhisperFeatureExtractor(**FEATURES)(
        [samples], truncation=False, return_tensors="pt", do_normalize=True, max_length=len(samples),
        return_attention_mask=True, sampling_rate=16000,
    )  # fmt: skip
    frames = out["attention_mask"].sum()
    with torch.no_grad():
        rows = model(out["input_features"][0, :, :frames], feature_lens=frames[None]).last_hidden_state
    return adapted(tensors, rows.numpy())


def windows(n_window: int, count: int, more: int) -> int:
    """Samples of ``count`` windows and ``more`` mel frames, and a few that make no further frame."""
    return 160 * (2 * n_window * count + more) + 90


@pytest.mark.parametrize("count, more", [(0, 3), (0, 4), (1, -1), (1, 0), (1, 1), (1, 2), (2, 3), (3, 0), (5, 7)])
def test_features_equal_the_reference(pair, count, more):
    model, tensors, encoder = pair
    samples = make_sound(windows(model.n_window, count, more) / 16000, seed=count + more)[0]
    expected = reference(model, tensors, samples)
    features = encoder.features(samples)
    assert features.shape == expected.shape
    # float32 rounding in another order of summation; about 1e-6 of the peak was measured
    np.testing.assert_allclose(features, expected, atol=1e-4 * np.abs(expected).max(), rtol=0)


def test_padding_has_no_influence_on_the_rows_that_count(pair):
    model, _, encoder = pair
    prepared = encoder.hearing.prepare(Sound(make_sound(windows(model.n_window, 2, 3) / 16000)[0], 16000))
    expected = encoder.run(prepared.inputs)[: prepared.rows]
    frames = int(prepared.inputs["frame_mask"].sum())
    size = 2 * model.n_window
    mel, frame_mask, attention_bias = (prepared.inputs[name] for name in ("mel", "frame_mask", "attention_bias"))
    # the convolution at the last frame sees the first frame after the sound, which is zero as in the reference
    mel = mel.copy()
    mel[-1, :, frames % size + 1 :] = 50
    # and whole empty windows after it
    mel = np.concatenate([mel, np.full((2, *mel.shape[1:]), -50, np.float32)])
    frame_mask = np.concatenate([frame_mask, np.zeros((2, *frame_mask.shape[1:]), np.float32)])
    attention_bias = np.concatenate([attention_bias, np.full((2, *attention_bias.shape[1:]), -30000, np.float32)])
    padded = encoder.run({"mel": mel, "frame_mask": frame_mask, "attention_bias": attention_bias})
    # not bit for bit: the matrix products may be blocked differently
    np.testing.assert_allclose(padded[: prepared.rows], expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


def test_every_tensor_of_the_checkpoint_is_accounted_for():
    _, config, tensors = build(5)
    part = plan_encoder(tensors, config, FEATURES, WeightStore("w"), HIDDEN)
    assert f"{PREFIX}audio_bos_eos_token.weight" in tensors
    assert part.tensors == set(tensors)
    del tensors[f"{PREFIX}audio_bos_eos_token.weight"]
    assert plan_encoder(tensors, config, FEATURES, WeightStore("w"), HIDDEN).tensors == set(tensors)


def test_planning_reads_no_values():
    _, config, tensors = build(5)
    tensors.read = None
    plan_encoder(tensors, config, FEATURES, WeightStore("w"), HIDDEN)


@pytest.mark.parametrize("length, width", [(100, 1280), (7, 24), (3, 4)])
def test_positions_are_exactly_those_of_transformers(length, width):
    expected = SinusoidsPositionEmbedding(1500, width).positional_embedding[:length].numpy()
    np.testing.assert_array_equal(sinusoidal_positions(length, width), expected)


def test_the_configuration_is_found_in_that_of_the_thinker_and_of_the_whole_model():
    _, config, tensors = build(5)
    thinker = {"model_type": "qwen2_5_omni_thinker", "audio_config": config, "d_model": 1}
    for nested in (thinker, {"model_type": "qwen2_5_omni", "thinker_config": thinker, "talker_config": {}}):
        part = plan_encoder(tensors, nested, FEATURES, WeightStore("w"), HIDDEN)
        assert part.features.window_frames == 10


def test_the_settings_of_the_features_come_from_the_file_or_are_qwens():
    _, config, tensors = build(5)
    features = plan_encoder(tensors, config, FEATURES, WeightStore("w"), HIDDEN).features
    assert (features.sample_rate, features.n_fft, features.hop_length, features.n_mels) == (16000, 400, 160, 9)
    assert features.max_samples == 48000 and features.normalize
    tensors[f"{PREFIX}conv1.weight"] = np.zeros((24, 128, 3), np.float32)
    features = plan_encoder(tensors, config | {"num_mel_bins": 128}, {}, WeightStore("w"), HIDDEN).features
    assert (features.n_mels, features.max_samples) == (128, 4_800_000)


def test_the_mel_filters_are_transformers_own():
    _, config, tensors = build(5)
    store = WeightStore("w")
    plan_encoder(tensors, config, FEATURES, store, HIDDEN)
    np.testing.assert_array_equal(
        store[MEL_FILTERS].make(), WhisperFeatureExtractor(**FEATURES).mel_filters.astype(np.float32)
    )


def test_scale_embedding_changes_nothing_as_in_the_reference():
    _, config, tensors = build(5)
    plan_encoder(tensors, config | {"scale_embedding": True}, FEATURES, WeightStore("w"), HIDDEN)


@pytest.mark.parametrize(
    "config, features, said",
    [
        ({"activation_function": "gelu_new"}, {}, "activation_function = 'gelu_new'"),
        ({"model_type": "qwen3_omni_moe_audio_encoder"}, {}, "model_type = 'qwen3_omni_moe_audio_encoder'"),
        ({"n_window": 31}, {}, "n_window = 31 exceeds max_source_positions = 30"),
        ({"n_window": 0}, {}, "n_window = 0"),
        ({"encoder_attention_heads": 5}, {}, "d_model = 24 is not a multiple of 5"),
        ({"d_model": "24"}, {}, "d_model = '24'"),
        ({"num_hidden_layers": 3}, {}, "encoder_layers = 2, num_hidden_layers = 3"),
        ({}, {"dither": 0.1}, "dither = 0.1"),
        ({}, {"padding_value": -1.0}, "padding_value = -1.0"),
        ({}, {"padding_value": None}, "padding_value = None"),
        ({}, {"feature_size": 80}, "feature_size = 80, expected 9"),
        ({}, {"sampling_rate": 8000}, "sampling_rate = 8000"),
        ({}, {"hop_length": 401}, "hop_length = 401"),
        ({}, {"hop_length": 0}, "hop_length = 0"),
        ({}, {"n_fft": 401}, "n_fft = 401"),
        ({}, {"chunk_length": 1.5}, "chunk_length = 1.5"),
        ({}, {"feature_extractor_type": "ClapFeatureExtractor"}, "feature_extractor_type = 'ClapFeatureExtractor'"),
        ({}, {"silence_db": 97}, "silence_db: 97 is not a number of decibels from 0 to 96"),
        ({}, {"silence_db": "50"}, "silence_db: '50' is not of type int"),
    ],
)
def test_what_is_not_supported_is_refused_by_field_and_value(config, features, said):
    _, known, tensors = build(5)
    with pytest.raises(ExportError, match=said):
        plan_encoder(tensors, known | config, FEATURES | features, WeightStore("w"), HIDDEN)


def test_silence_is_cut_where_the_run_says_so_and_nowhere_else():
    _, config, tensors = build(5)
    for features, expected in ({}, 0), ({"silence_db": 50}, 50):
        part = plan_encoder(tensors, config, FEATURES | features, WeightStore("w"), HIDDEN)
        assert part.features.silence_db == expected


@pytest.mark.parametrize(
    "name, shape",
    [
        (f"{PREFIX}conv2.weight", (24, 24, 5)),
        (f"{PREFIX}layers.1.fc1.weight", (24, 20)),
        (f"{PREFIX}proj.bias", (15,)),
        ("adaptor.continuous_audio.weight", (HIDDEN, 24)),
    ],
)
def test_a_tensor_of_another_shape_or_none_is_refused_by_name(name, shape):
    _, config, tensors = build(5)
    found = list(tensors[name].shape)
    tensors[name] = np.zeros(shape, np.float32)
    with pytest.raises(ExportError) as refusal:
        plan_encoder(tensors, config, FEATURES, WeightStore("w"), HIDDEN)
    assert name in str(refusal.value) and str(list(shape)) in str(refusal.value) and str(found) in str(refusal.value)
    del tensors[name]
    with pytest.raises(ExportError, match=name):
        plan_encoder(tensors, config, FEATURES, WeightStore("w"), HIDDEN)
