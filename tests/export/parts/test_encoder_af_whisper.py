from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    AudioFlamingo3Encoder,
    AudioFlamingo3EncoderConfig,
    Qwen2AudioEncoder,
    Qwen2AudioEncoderConfig,
    WhisperFeatureExtractor,
)

from support.encoders import Tensors, WrittenEncoder, adapted, checkpoint, randomize
from support.sounds import make_sound
from ualm.export.formats.store import WeightStore
from ualm.export.parts.encoders.af_whisper import plan_encoder
from ualm.runtime.errors import ExportError

PREFIX = "multimodal_io_dict.continuous_audio.model."
HIDDEN = 12
#: One second in frames of 20 ms: 50 mel frames, 25 positions, an odd number.
FEATURES = {"feature_size": 9, "chunk_length": 1, "hop_length": 320}
SIZES = {"d_model": 24, "encoder_layers": 2, "encoder_attention_heads": 3, "encoder_ffn_dim": 20}
FIXED = {"num_mel_bins": 9, "max_source_positions": 25, "activation_function": "gelu"}


def build(kind: str = "qwen2_audio") -> tuple[torch.nn.Module, dict, Tensors]:
    if kind == "qwen2_audio":
        config = Qwen2AudioEncoderConfig(**SIZES, **FIXED)
        model = Qwen2AudioEncoder(config).eval()
    else:
        config = AudioFlamingo3EncoderConfig(
            hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=20, **FIXED
        )
        model = AudioFlamingo3Encoder(config).eval()
    randomize(model, seed=3)
    return model, config.to_dict(), checkpoint(model, PREFIX, 24, HIDDEN)


def written(kind: str, folder) -> tuple[torch.nn.Module, Tensors, WrittenEncoder]:
    model, config, tensors = build(kind)
    store = WeightStore("weights.safetensors")
    return model, tensors, WrittenEncoder(plan_encoder(tensors, config, FEATURES, store, HIDDEN), store, folder)


@pytest.fixture(scope="module", params=["qwen2_audio", "audioflamingo3"])
def pair(request, tmp_path_factory):
    return written(request.param, tmp_path_factory.mktemp("afwhisper"))


def reference(model: torch.nn.Module, tensors: Tensors, samples: np.ndarray) -> np.ndarray:
    """The published pipeline: zeros to the full length, extractor, every position attended, rows cut afterwards."""
    padded = np.pad(samples, (0, 16000 - len(samples)))
    mel = WhisperFeatureExtractor(**FEATURES)(padded, sampling_rate=16000, return_tensors="pt")["input_features"]
    everything = torch.ones(1, mel.shape[-1], dtype=torch.long)
    with torch.no_grad():
        more = {} if isinstance(model, Qwen2AudioEncoder) else {"input_features_mask": everything}
        rows = model(mel, **more).last_hidden_state[0].numpy()
    frames = len(samples) // 320
    length = ((frames - 1) // 2 + 1 - 2) // 2 + 1
    return adapted(tensors, rows)[:length]


@pytest.mark.parametrize("n", [960, 961, 1279, 2240, 5000, 8001, 15360, 15999, 16000])
def test_features_equal_the_reference(pair, n):
    model, tensors, encoder = pair
    samples = make_sound(n / 16000, seed=n)[0]
    expected = reference(model, tensors, samples)
    features = encoder.features(samples)
    assert features.shape == expected.shape
    # float32 rounding in another order of summation; about 1e-6 of the peak was measured
    np.testing.assert_allclose(features, expected, atol=1e-4 * np.abs(expected).max(), rtol=0)


def test_the_silence_behind_a_sound_is_attended(tmp_path):
    """No mask over the padding, as in training: the mask that one might expect changes the rows."""
    model, tensors, encoder = written("audioflamingo3", tmp_path)
    samples = make_sound(0.5)[0]
    padded = np.pad(samples, (0, 8000))
    mel = WhisperFeatureExtractor(**FEATURES)(padded, sampling_rate=16000, return_tensors="pt")["input_features"]
    with torch.no_grad():
        masked = model(mel, input_features_mask=(torch.arange(50) < 25).long()[None]).last_hidden_state[0].numpy()
    features = encoder.features(samples)
    assert np.abs(adapted(tensors, masked)[: len(features)] - features).max() > 0.01


def test_every_tensor_of_the_checkpoint_is_accounted_for():
    _, config, tensors = build()
    assert plan_encoder(tensors, config, FEATURES, WeightStore("w"), HIDDEN).tensors == set(tensors)


def test_planning_reads_no_values():
    _, config, tensors = build()
    tensors.read = None
    plan_encoder(tensors, config, FEATURES, WeightStore("w"), HIDDEN)


def test_the_configuration_is_found_in_that_of_a_whole_model():
    _, config, tensors = build()
    whole = {"model_type": "audioflamingo3", "audio_config": config, "text_config": {"hidden_size": 3}}
    assert plan_encoder(tensors, whole, FEATURES, WeightStore("w"), HIDDEN).features.fixed_frames == 50


def test_without_a_file_the_features_are_whispers_with_the_encoders_mel_bins():
    _, config, tensors = build()
    tensors[f"{PREFIX}embed_positions.weight"] = np.zeros((1500, 24), np.float32)
    part = plan_encoder(tensors, config | {"max_source_positions": 1500}, {}, WeightStore("w"), HIDDEN)
    features = part.features
    assert (features.sample_rate, features.n_fft, features.hop_length, features.n_mels) == (16000, 400, 160, 9)
    assert (features.max_samples, features.fixed_frames, features.normalize) == (480000, 3000, False)


@pytest.mark.parametrize(
    "config, features, said",
    [
        ({"max_source_positions": 26}, {}, "1 s of sound give 50 mel frames, but max_source_positions = 26 takes 52"),
        ({}, {"chunk_length": 2}, "2 s of sound give 100 mel frames, but max_source_positions = 25 takes 50"),
        ({"activation_function": "relu"}, {}, "activation_function = 'relu'"),
        ({"model_type": "whisper"}, {}, "model_type = 'whisper'"),
        ({"hidden_size": 25}, {}, "d_model = 24, hidden_size = 25"),
        ({}, {"dither": 1e-4}, "dither = 0.0001"),
        ({}, {"feature_size": 128}, "feature_size = 128, expected 9"),
    ],
)
def test_what_is_not_supported_is_refused_by_field_and_value(config, features, said):
    _, known, tensors = build()
    with pytest.raises(ExportError, match=said):
        plan_encoder(tensors, known | config, FEATURES | features, WeightStore("w"), HIDDEN)


def test_positions_of_another_length_are_refused_by_name():
    _, config, tensors = build()
    tensors[f"{PREFIX}embed_positions.weight"] = np.zeros((24, 24), np.float32)
    with pytest.raises(ExportError, match=r"embed_positions\.weight: shape \[24, 24\], expected \[25, 24\]"):
        plan_encoder(tensors, config, FEATURES, WeightStore("w"), HIDDEN)
