"""The codec part against transformers' XcodecModel in float32, its tables against float64, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import XcodecConfig, XcodecModel

from ualm.export.formats.store import WeightStore
from ualm.export.parts.codec.codec import PREFIX, CodecPart, plan_codec
from ualm.export.parts.codec.layers import decoder_convolutions, frame_context, frame_reach
from ualm.export.run.checkpoint import weight_norm_names
from ualm.runtime.errors import ExportError

STREAMS = 8
#: Share of the peak by which two float32 evaluations in different orders may differ; 1.3e-7 to 3.0e-6 were measured.
TOLERANCE = 1e-5


class Tensors:
    """A TensorSource over a dictionary."""

    def __init__(self, tensors: dict[str, np.ndarray]) -> None:
        self.tensors = tensors

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __iter__(self):
        return iter(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self.tensors:
            raise ExportError(f"tensor {name} is missing")
        return self.tensors[name].shape

    def read(self, name: str) -> np.ndarray:
        return self.tensors[name]


def tiny_config(ratios: list[int], *, width: int = 32, **changes: Any) -> dict[str, Any]:
    """A config.json with few channels: 50 frames per second, 16 codes per codebook, 20 codebooks."""
    hop = int(np.prod(ratios))
    config = {
        "sample_rate": 50 * hop,
        "codebook_size": 16,
        "target_bandwidths": [1, 4],
        "acoustic_model_config": {
            "model_type": "dac",
            "encoder_hidden_size": 4,
            "hidden_size": 12,
            "decoder_hidden_size": width,
            "upsampling_ratios": ratios,
            "downsampling_ratios": ratios,
        },
        "semantic_model_config": {
            "model_type": "hubert",
            "hidden_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 8,
            "conv_dim": [4],
            "conv_stride": [2],
            "conv_kernel": [2],
            "num_conv_pos_embeddings": 4,
            "num_conv_pos_embedding_groups": 2,
        },
    }
    return config | changes


def random_model(config: dict[str, Any], *, seed: int = 0) -> XcodecModel:
    """An XcodecModel in which every tensor matters: alphas, biases and codebooks are also drawn, signals stay near
    one."""
    torch.manual_seed(seed)
    model = XcodecModel(XcodecConfig.from_dict(config)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("acoustic_decoder.") and name.endswith(".alpha"):
                parameter.uniform_(0.3, 2.0)
                parameter[:, ::5] *= -1
            elif name.startswith("acoustic_decoder.") and name.endswith(".weight"):
                taps = 2 * parameter.shape[0] if "conv_t1" in name else parameter[0].numel()
                parameter.normal_(std=0.7 / taps**0.5)
            elif name.startswith(("acoustic_decoder.", "fc2.")):
                parameter.normal_(std=0.3)
        for quantizer in model.quantizer.quantizers:
            quantizer.codebook.embed.normal_()
    return model


def checkpoint_of(model: XcodecModel) -> dict[str, np.ndarray]:
    return {PREFIX + name: tensor.detach().numpy().copy() for name, tensor in model.state_dict().items()}


class Exported:
    """A part written to ``folder``, with its blob read back and a session on its graph."""

    def __init__(self, tensors: dict[str, np.ndarray], config: dict[str, Any], folder: Path) -> None:
        store = WeightStore("weights.safetensors")
        self.part: CodecPart = plan_codec(Tensors(tensors), config, store)
        store.lay_out()
        for _ in store.write(folder):
            pass
        self.part.graph.save(folder, "codec.onnx")
        onnx.checker.check_model(str(folder / "codec.onnx"), full_check=True)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            str(folder / "codec.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self.table = self._read(store, folder, "codec.rvq_table")
        self.bias = self._read(store, folder, "codec.rvq_bias")

    @staticmethod
    def _read(store: WeightStore, folder: Path, name: str) -> np.ndarray:
        offset, length = store.place(name)
        raw = (folder / store.filename).read_bytes()[offset : offset + length]
        return np.frombuffer(raw, np.float32).reshape(store[name].shape)

    def latents(self, codes: np.ndarray) -> np.ndarray:
        """codes [streams, T] -> float32 [1, latent_size, T]."""
        rows = self.table[np.arange(STREAMS)[:, None], codes].sum(axis=0) + self.bias
        return np.ascontiguousarray(rows.T[None])

    def pcm(self, latents: np.ndarray) -> np.ndarray:
        return self.session.run(["pcm"], {"latents": latents})[0]


CONFIGS = {
    "8-5-4-2": tiny_config([8, 5, 4, 2]),
    "3-2": tiny_config([3, 2], width=12),
    "5-4": tiny_config([5, 4], width=16),
    "7": tiny_config([7], width=10),
}


@pytest.fixture(scope="module", params=CONFIGS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[XcodecModel, Exported]:
    config = CONFIGS[request.param]
    model = random_model(config)
    return model, Exported(checkpoint_of(model), config, tmp_path_factory.mktemp("codec"))


@pytest.mark.parametrize("frames", [1, 2, 7, 23])
def test_codes_to_pcm_equals_transformers(case: tuple[XcodecModel, Exported], frames: int) -> None:
    model, exported = case
    codes = np.random.default_rng(frames).integers(0, exported.part.codebook_size, (STREAMS, frames))
    with torch.no_grad():
        expected = model.decode(torch.from_numpy(codes)[None]).audio_values[0].numpy()
    found = exported.pcm(exported.latents(codes))
    assert found.shape == expected.shape == (1, frames * exported.part.hop_length)
    assert expected.std() > 0.05, "a silent decoder would agree with anything"
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


def test_tables_equal_codebooks_through_fc2_in_float64(case: tuple[XcodecModel, Exported]) -> None:
    model, exported = case
    codes = np.random.default_rng(5).integers(0, exported.part.codebook_size, (STREAMS, 50))
    books = np.stack([q.codebook.embed.double().numpy() for q in model.quantizer.quantizers[:STREAMS]])
    summed = books[np.arange(STREAMS)[:, None], codes].sum(axis=0)
    expected = summed @ model.fc2.weight.detach().double().numpy().T + model.fc2.bias.detach().double().numpy()
    table, bias = exported.table.astype(np.float64), exported.bias.astype(np.float64)
    found = table[np.arange(STREAMS)[:, None], codes].sum(axis=0) + bias
    # each of the 8 entries was rounded once to float32: half a unit in the last place, 2^-25 of its size
    bound = STREAMS * 2.0**-24 * np.abs(table).max()
    assert np.abs(found - expected).max() <= bound
    assert exported.table.shape == (STREAMS, 16, exported.part.latent_size)


def test_every_tensor_of_a_model_is_accounted_for(case: tuple[XcodecModel, Exported]) -> None:
    model, exported = case
    assert exported.part.tensors == {PREFIX + name for name in model.state_dict()}


def test_samples_depend_on_exactly_the_stated_context(case: tuple[XcodecModel, Exported]) -> None:
    """A NaN in one latent frame makes exactly the samples that depend on it NaN."""
    model, exported = case
    part, hop = exported.part, exported.part.hop_length
    left, right = part.context
    frame = left + right + 3
    latents = np.ones((1, part.latent_size, 2 * frame), np.float32)
    latents[:, :, frame] = np.nan
    touched = np.flatnonzero(np.isnan(exported.pcm(latents)[0])) - frame * hop
    first, last = frame_reach(layers_of(model))
    assert np.array_equal(touched, np.arange(first, last + 1))
    # a frame influences later samples as far as later frames look back
    assert (touched[-1] // hop, -(touched[0] // hop)) == (left, right)


def layers_of(model: XcodecModel):
    acoustic = model.config.acoustic_model_config
    return decoder_convolutions(acoustic.hidden_size, acoustic.decoder_hidden_size, acoustic.upsampling_ratios)


def test_the_published_codec_needs_ten_frames_on_each_side() -> None:
    layers = decoder_convolutions(256, 1024, [8, 5, 4, 2])
    assert frame_reach(layers) == (-3141, 3452)
    assert frame_context(layers) == (10, 10)
    assert sum(int(np.prod(layer.weight_shape)) for layer in layers) == pytest.approx(20.2e6, rel=0.01)


@pytest.mark.parametrize("spelling", [0, 1], ids=["parametrizations", "weight_g-weight_v"])
def test_weight_normed_checkpoints_are_folded(spelling: int, tmp_path: Path) -> None:
    config = CONFIGS["3-2"]
    model = random_model(config)
    model.apply_weight_norm()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("original0"):
                parameter *= torch.linspace(0.5, 1.5, parameter.numel()).reshape(parameter.shape)
    tensors = checkpoint_of(model)
    if spelling == 1:
        for layer in layers_of(model):
            prefix = f"{PREFIX}acoustic_decoder.{layer.name}"
            new, old = weight_norm_names(prefix)
            for source, target in zip(new, old, strict=True):
                tensors[target] = tensors.pop(source)
    exported = Exported(tensors, config, tmp_path)
    codes = np.random.default_rng(1).integers(0, 16, (STREAMS, 9))
    with torch.no_grad():
        expected = model.decode(torch.from_numpy(codes)[None]).audio_values[0].numpy()
    assert np.abs(exported.pcm(exported.latents(codes)) - expected).max() <= TOLERANCE * np.abs(expected).max()
    assert exported.part.tensors == set(tensors)


def test_an_alpha_of_zero_is_the_identity_as_in_torch(tmp_path: Path) -> None:
    model = random_model(CONFIGS["3-2"])
    with torch.no_grad():
        model.acoustic_decoder.block[0].snake1.alpha[0, ::2] = 0
    exported = Exported(checkpoint_of(model), CONFIGS["3-2"], tmp_path)
    codes = np.random.default_rng(2).integers(0, 16, (STREAMS, 5))
    with torch.no_grad():
        expected = model.decode(torch.from_numpy(codes)[None]).audio_values[0].numpy()
    assert np.abs(exported.pcm(exported.latents(codes)) - expected).max() <= TOLERANCE * np.abs(expected).max()


def test_defaults_fill_an_empty_config() -> None:
    with pytest.raises(ExportError, match=r"quantizers\.0\.codebook\.embed has shape \[16, 20\].*\[1024, 1024\]"):
        plan_codec(Tensors(checkpoint_of(random_model(CONFIGS["3-2"]))), {}, WeightStore("w"))


@pytest.fixture(scope="module")
def small() -> dict[str, np.ndarray]:
    return checkpoint_of(random_model(CONFIGS["3-2"]))


def changed(**acoustic: Any) -> dict[str, Any]:
    config = CONFIGS["3-2"]
    return config | {"acoustic_model_config": config["acoustic_model_config"] | acoustic}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (changed(upsampling_ratios=[3, 3]), r"upsampling_ratios is \[3, 3\], 9 samples a frame.*hop_length of 6"),
        (changed(upsampling_ratios=[6, 1]), r"upsampling_ratios is \[6, 1\]; a list of whole numbers from 2 up"),
        (changed(upsampling_ratios="32"), r"upsampling_ratios is '32'"),
        (changed(decoder_hidden_size=3), r"decoder_hidden_size is 3.*at least 4"),
        ({**CONFIGS["3-2"], "model_type": "dac"}, r"model_type = 'dac', only 'xcodec'"),
        (changed(hidden_size=0), r"acoustic_model_config.hidden_size is 0"),
        (tiny_config([3, 2], width=12, target_bandwidths=[1]), r"target_bandwidths ending in 1 .* 5 quantizers"),
        (tiny_config([3, 2], width=12, codebook_size=1), r"not a configuration that XcodecModel takes"),
        (tiny_config([3, 2], width=12, codebook_dim=7), r"codebook_dim is 7.*20"),
        (tiny_config([3, 2], width=12, sample_rate="fast"), r"sample_rate.*fast"),
        (tiny_config([3, 2], width=16), r"conv1\.weight has shape \[12, 12, 7\].*\[16, 12, 7\]"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    config: dict[str, Any], message: str, small: dict[str, np.ndarray]
) -> None:
    with pytest.raises(ExportError, match=message):
        plan_codec(Tensors(small), config, WeightStore("w"))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("fc2.weight", (12, 19)),
        ("fc2.bias", (11,)),
        ("quantizer.quantizers.3.codebook.embed", (15, 20)),
        ("acoustic_decoder.conv1.bias", (13,)),
        ("acoustic_decoder.block.1.conv_t1.weight", (6, 3, 5)),
        ("acoustic_decoder.block.0.res_unit2.conv1.weight", (6, 6, 5)),
        ("acoustic_decoder.block.0.res_unit2.snake2.alpha", (1, 1, 1)),
        ("acoustic_decoder.conv2.weight", (2, 3, 7)),
    ],
)
def test_a_tensor_of_another_shape_is_refused_by_name(
    name: str, shape: tuple[int, ...], small: dict[str, np.ndarray]
) -> None:
    broken = small | {PREFIX + name: np.ones(shape, np.float32)}
    with pytest.raises(ExportError) as error:
        plan_codec(Tensors(broken), CONFIGS["3-2"], WeightStore("w"))
    assert PREFIX + name in str(error.value)
    assert str(list(shape)) in str(error.value)


def test_a_magnitude_that_would_broadcast_is_refused(small: dict[str, np.ndarray]) -> None:
    prefix = f"{PREFIX}acoustic_decoder.conv1"
    broken = dict(small)
    broken[f"{prefix}.weight_v"] = broken.pop(f"{prefix}.weight")
    broken[f"{prefix}.weight_g"] = np.ones((1, 1, 1), np.float32)
    with pytest.raises(ExportError, match=r"conv1\.weight_g has shape \[1, 1, 1\].*\[12, 1, 1\]"):
        plan_codec(Tensors(broken), CONFIGS["3-2"], WeightStore("w"))


@pytest.mark.parametrize("name", ["acoustic_decoder.conv2.weight", "acoustic_decoder.snake1.alpha", "fc2.bias"])
def test_a_missing_tensor_is_refused_by_name(name: str, small: dict[str, np.ndarray]) -> None:
    broken = {key: value for key, value in small.items() if key != PREFIX + name}
    with pytest.raises(ExportError, match=name.replace(".", r"\.")):
        plan_codec(Tensors(broken), CONFIGS["3-2"], WeightStore("w"))


def test_a_checkpoint_with_fewer_quantizers_than_streams_is_refused(small: dict[str, np.ndarray]) -> None:
    broken = {key: value for key, value in small.items() if "quantizers.6." not in key}
    with pytest.raises(ExportError, match=r"quantizers\.6\.codebook\.embed is missing: .* holds 6 quantizers"):
        plan_codec(Tensors(broken), CONFIGS["3-2"], WeightStore("w"))


@pytest.mark.parametrize(
    "name",
    [
        "acoustic_decoder.block.2.conv_t1.weight",
        "acoustic_decoder.conv1.weight_v",
        "quantizer.quantizers.20.codebook.embed",
        "quantizer.quantizers.0.codebook.other",
        "post.weight",
    ],
)
def test_an_unknown_tensor_is_left_out_of_the_known_names(name: str, small: dict[str, np.ndarray]) -> None:
    extended = small | {PREFIX + name: np.ones(1, np.float32)}
    part = plan_codec(Tensors(extended), CONFIGS["3-2"], WeightStore("w"))
    assert set(extended) - part.tensors == {PREFIX + name}
