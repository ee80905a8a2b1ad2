"""Shared by the two audio encoders: reading their configurations, and writing a Whisper-shaped transformer.

Both are the Whisper encoder (Radford et al. 2022, section 2.2: two convolutions, positions, pre-norm layers) followed
by an average over pairs. They differ in the attention mask and in the order of the last steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers.audio_utils import mel_filter_bank

from ....runtime.bundle.feature_spec import FeatureSpec
from ....runtime.errors import ExportError
from ....runtime.files.reading import shown
from ...formats.store import WeightStore
from ...run.checkpoint import TensorSource
from ...run.config import MOST_SIZE
from ..graph import Graph

#: Where a UALM checkpoint keeps the encoder, and the linear layer from its width to the language model's.
CHECKPOINT_PREFIX = "multimodal_io_dict.continuous_audio.model."
ADAPTOR_PREFIX = "adaptor.continuous_audio"
#: Prefix of this part's tensors in the bundle, which include the filters of the log-mel spectrogram.
STORE_PREFIX = "encoder."
MEL_FILTERS = "encoder.mel_filters"

#: Upper limits for ``preprocessor_config.json``: Hz, samples of a Fourier transform, seconds of a sound.
MOST_FEATURES = {"sampling_rate": 768_000, "n_fft": 65_536, "chunk_length": 3600}
#: Limit on the positions of a window, a minute of sound: all of them attend to each other, whatever the checkpoint
#: holds.
MOST_POSITIONS = 3000

#: ``torch.nn.LayerNorm``'s default; no configuration of these encoders sets another.
_LAYER_NORM_EPS = 1e-5
#: Upper edge of Whisper's filter bank, for any sample rate.
_MEL_MAX_HZ = 8000
#: Defaults of transformers' WhisperFeatureExtractor for fields missing from preprocessor_config.json.
_EXTRACTOR_DEFAULTS = {
    "feature_size": 80, "sampling_rate": 16000, "hop_length": 160, "chunk_length": 30, "n_fft": 400, "dither": 0.0,
    "padding_value": 0.0,
}  # fmt: skip


@dataclass(frozen=True)
class EncoderPart:
    """A planned encoder.

    ``tensors``: every tensor of the checkpoint that belongs to this part: those in the graph, and those known to be
    unused in inference.
    """

    graph: Graph
    features: FeatureSpec
    tensors: set[str]


@dataclass(frozen=True)
class EncoderShape:
    """Sizes of an encoder. ``max_positions``: positions after the second convolution, one per two mel frames."""

    width: int
    layers: int
    heads: int
    ffn_size: int
    n_mels: int
    max_positions: int


def audio_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The encoder's own configuration, extracted from a ``config.json`` that may be that of a whole model."""
    for name in ("thinker_config", "audio_config"):
        inner = config.get(name)
        if isinstance(inner, Mapping):
            config = inner
    return config


def check_model_type(config: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Refuse the configuration of another encoder; one without a type is accepted."""
    if config.get("model_type") not in (None, *known):
        raise ExportError(f"encoder config: model_type = {shown(config['model_type'])}, expected {' or '.join(known)}")


def positive_int(config: Mapping[str, Any], names: tuple[str, ...], default: int) -> int:
    """A size, under the names that configurations use for it; all that are present must agree."""
    found = {name: config[name] for name in names if config.get(name) is not None}
    for name, value in found.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ExportError(f"encoder config: {name} = {shown(value)}, expected a positive whole number")
        if value > MOST_SIZE:
            raise ExportError(f"encoder config: {name} = {shown(value)}: at most {MOST_SIZE} is supported")
    if len(set(found.values())) > 1:
        spelled = ", ".join(f"{name} = {value}" for name, value in found.items())
        raise ExportError(f"encoder config: {spelled} contradict each other; they name the same size")
    return next(iter(found.values()), default)


def encoder_shape(config: Mapping[str, Any]) -> EncoderShape:
    """Sizes that both encoders spell the same way. Absent fields take transformers' defaults (Whisper large v3)."""
    shape = EncoderShape(
        width=positive_int(config, ("d_model", "hidden_size"), 1280),
        layers=positive_int(config, ("encoder_layers", "num_hidden_layers"), 32),
        heads=positive_int(config, ("encoder_attention_heads", "num_attention_heads"), 20),
        ffn_size=positive_int(config, ("encoder_ffn_dim", "intermediate_size"), 5120),
        n_mels=positive_int(config, ("num_mel_bins",), 128),
        max_positions=positive_int(config, ("max_source_positions",), 1500),
    )
    if shape.max_positions > MOST_POSITIONS:
        raise ExportError(
            f"encoder config: max_source_positions = {shape.max_positions}: at most {MOST_POSITIONS} is supported"
        )
    if shape.width % shape.heads:
        raise ExportError(f"encoder config: d_model = {shape.width} is not a multiple of {shape.heads} heads")
    # scale_embedding is ignored: the reference computes a factor from it and never applies it
    activation = config.get("activation_function", "gelu")
    if activation != "gelu":
        found = shown(activation)
        raise ExportError(f"encoder config: activation_function = {found}, only 'gelu' (exact) is supported")
    return shape


class FeatureSettings:
    """``preprocessor_config.json`` of a WhisperFeatureExtractor, checked. ``{}`` stands for ``defaults``."""

    def __init__(self, features: Mapping[str, Any], shape: EncoderShape, defaults: Mapping[str, Any]) -> None:
        kind = features.get("feature_extractor_type", "WhisperFeatureExtractor")
        if kind != "WhisperFeatureExtractor":
            raise _feature_error("feature_extractor_type", kind, "'WhisperFeatureExtractor'")
        given = {**_EXTRACTOR_DEFAULTS, **(features or defaults)}
        for name in ("feature_size", "sampling_rate", "hop_length", "chunk_length", "n_fft"):
            if isinstance(given[name], bool) or not isinstance(given[name], int) or given[name] < 1:
                raise _feature_error(name, given[name], "a positive whole number")
            if given[name] > (most := MOST_FEATURES.get(name, MOST_SIZE)):
                raise _feature_error(name, given[name], f"at most {most}")
        if given["dither"] != 0:
            raise _feature_error("dither", given["dither"], "0: features must not depend on chance")
        if given["padding_value"] != 0:
            raise _feature_error("padding_value", given["padding_value"], "0: what is added to a sound is silence")
        if given["feature_size"] != shape.n_mels:
            raise _feature_error("feature_size", given["feature_size"], f"{shape.n_mels}, the encoder's num_mel_bins")
        if given["sampling_rate"] < 2 * _MEL_MAX_HZ:
            expected = f"at least {2 * _MEL_MAX_HZ}: the mel filters reach to {_MEL_MAX_HZ} Hz"
            raise _feature_error("sampling_rate", given["sampling_rate"], expected)
        if given["n_fft"] % 2:
            raise _feature_error("n_fft", given["n_fft"], "an even number: frames are centred on a sample")
        if given["hop_length"] > given["n_fft"]:
            raise _feature_error("hop_length", given["hop_length"], f"at most n_fft = {given['n_fft']}")
        #: A field that ualm added: see ``FeatureSpec.silence_db``, which checks it.
        self.silence_db: Any = given.get("silence_db", 0)
        self.n_mels: int = given["feature_size"]
        self.sample_rate: int = given["sampling_rate"]
        self.hop_length: int = given["hop_length"]
        self.n_fft: int = given["n_fft"]
        #: Samples of the longest sound. A file may also call it ``n_samples``; transformers overwrites that as well.
        self.max_samples: int = given["chunk_length"] * given["sampling_rate"]

    def spec(self, kind: str, **more: Any) -> FeatureSpec:
        """The settings as the runtime reads them; ``more`` are the fields of this kind of encoder."""
        try:
            return FeatureSpec(
                kind=kind,
                sample_rate=self.sample_rate,
                n_fft=self.n_fft,
                hop_length=self.hop_length,
                n_mels=self.n_mels,
                max_samples=self.max_samples,
                silence_db=self.silence_db,
                **more,
            )
        except ValueError as error:
            raise ExportError(f"preprocessor_config.json: {error}") from error


def plan_mel_filters(spec: FeatureSpec, store: WeightStore) -> None:
    """Plan Whisper's filter bank as ``encoder.mel_filters``, float32 ``[n_fft // 2 + 1, n_mels]``."""
    bins = spec.n_fft // 2 + 1

    def make() -> np.ndarray:
        filters = mel_filter_bank(
            bins, spec.n_mels, 0.0, _MEL_MAX_HZ, spec.sample_rate, norm="slaney", mel_scale="slaney"
        )
        return filters.astype(np.float32)

    store.add(MEL_FILTERS, (bins, spec.n_mels), make)


class EncoderWriter:
    """Writes layers into a graph and plans their weights. The bundle names a tensor ``encoder.`` followed by its name
    in the checkpoint; linear weights are stored [in, out]."""

    def __init__(self, graph: Graph, source: TensorSource, store: WeightStore, prefix: str, dtype: str) -> None:
        self.graph = graph
        self.tensors: set[str] = set()
        self._dtype = dtype
        self._source, self._store, self._prefix = source, store, prefix

    def weight(self, name: str, shape: tuple[int, ...]) -> str:
        """Plan a tensor of the encoder unchanged."""
        return self._plan(self._prefix + name, STORE_PREFIX + name, shape)

    def linear(self, x: str, name: str, inputs: int, outputs: int, *, bias: bool = True) -> str:
        """``x @ W + b`` with a layer of the encoder."""
        return self._linear(x, self._prefix + name, STORE_PREFIX + name, inputs, outputs, bias)

    def adaptor(self, x: str, inputs: int, outputs: int) -> str:
        """The checkpoint's linear layer between encoder and language model."""
        return self._linear(x, ADAPTOR_PREFIX, f"{STORE_PREFIX}adaptor", inputs, outputs, True)

    def convolution(self, x: str, name: str, inputs: int, outputs: int, stride: int) -> str:
        """A convolution with kernel 3 and zero padding at both ends, then GELU; ``x`` is [batch, channels, time]."""
        weight = self.graph.weight(self.weight(f"{name}.weight", (outputs, inputs, 3)))
        bias = self.graph.weight(self.weight(f"{name}.bias", (outputs,)))
        y = self.graph.op("Conv", x, weight, bias, name=name, kernel_shape=[3], pads=[1, 1], strides=[stride])
        return self._gelu(y, f"{name}.gelu")

    def layer_norm(self, x: str, name: str, width: int) -> str:
        scale = self.graph.weight(self.weight(f"{name}.weight", (width,)))
        bias = self.graph.weight(self.weight(f"{name}.bias", (width,)))
        return self.graph.op("LayerNormalization", x, scale, bias, name=name, axis=-1, epsilon=_LAYER_NORM_EPS)

    def transformer_layer(self, x: str, index: int, shape: EncoderShape, attention_bias: str = "") -> str:
        """A pre-norm layer over ``x`` [batch, time, width]; the bias, if any, is added to the attention scores."""
        name, width = f"layers.{index}", shape.width
        normed = self.layer_norm(x, f"{name}.self_attn_layer_norm", width)
        query = self.linear(normed, f"{name}.self_attn.q_proj", width, width)
        key = self.linear(normed, f"{name}.self_attn.k_proj", width, width, bias=False)
        value = self.linear(normed, f"{name}.self_attn.v_proj", width, width)
        attended = self._attention(query, key, value, f"{name}.attention", shape, attention_bias)
        attended = self.linear(attended, f"{name}.self_attn.out_proj", width, width)
        x = self.graph.op("Add", x, attended, name=f"{name}.after_attention")
        hidden = self.linear(
            self.layer_norm(x, f"{name}.final_layer_norm", width), f"{name}.fc1", width, shape.ffn_size
        )
        hidden = self.linear(self._gelu(hidden, f"{name}.gelu"), f"{name}.fc2", shape.ffn_size, width)
        return self.graph.op("Add", x, hidden, name=f"{name}.after_ffn")

    def pooled_pairs(self, x: str, width: int) -> str:
        """Averages of two neighbours: [batch, time, width] -> [batch * time // 2, width], over the batches as one."""
        x = self.graph.op("Reshape", x, self.graph.ints(1, -1, width), name="pool.flat")
        x = self.graph.op("Transpose", x, name="pool.time_last", perm=[0, 2, 1])
        x = self.graph.op("AveragePool", x, name="pool", kernel_shape=[2], strides=[2])
        x = self.graph.op("Transpose", x, name="pool.time_first", perm=[0, 2, 1])
        return self.graph.op("Reshape", x, self.graph.ints(-1, width), name="pool.rows")

    def _attention(self, query: str, key: str, value: str, name: str, shape: EncoderShape, bias: str) -> str:
        """Attention of every position to every other, over [batch, time, width].

        Written in primitives, because TensorRT-RTX 1.7 builds the ``Attention`` operator with a mask in float16 only.
        """
        op, ints = self.graph.op, self.graph.ints
        head_dim = shape.width // shape.heads
        heads = ints(0, 0, shape.heads, head_dim)
        scaled = op("Mul", query, self.graph.constant(head_dim**-0.5, "float32"), name=f"{name}.scaled")
        query = op(
            "Transpose", op("Reshape", scaled, heads, name=f"{name}.q"), name=f"{name}.q.heads", perm=[0, 2, 1, 3]
        )
        key = op("Transpose", op("Reshape", key, heads, name=f"{name}.k"), name=f"{name}.k.heads", perm=[0, 2, 3, 1])
        value = op(
            "Transpose", op("Reshape", value, heads, name=f"{name}.v"), name=f"{name}.v.heads", perm=[0, 2, 1, 3]
        )
        scores = op("MatMul", query, key, name=f"{name}.scores")
        if bias:
            scores = op("Add", scores, bias, name=f"{name}.biased")
        mixed = op("MatMul", op("Softmax", scores, name=f"{name}.softmax", axis=-1), value, name=f"{name}.mixed")
        mixed = op("Transpose", mixed, name=f"{name}.time", perm=[0, 2, 1, 3])
        return op("Reshape", mixed, ints(0, 0, shape.width), name=name)

    def _gelu(self, x: str, name: str) -> str:
        return self.graph.op("Gelu", x, name=name, approximate="none")

    def _linear(self, x: str, origin: str, name: str, inputs: int, outputs: int, bias: bool) -> str:
        self._check(f"{origin}.weight", (outputs, inputs))
        weight = self._store.add_matrix(
            f"{name}.weight", (inputs, outputs), lambda: self._source.read(f"{origin}.weight").T, self._dtype
        )
        added = self._plan(f"{origin}.bias", f"{name}.bias", (outputs,)) if bias else None
        return self.graph.linear(x, weight, added, name=name.removeprefix(STORE_PREFIX))

    def _plan(self, origin: str, name: str, shape: tuple[int, ...]) -> str:
        self._check(origin, shape)
        return self._store.add(name, shape, lambda: self._source.read(origin))

    def _check(self, origin: str, shape: tuple[int, ...]) -> None:
        found = self._source.shape(origin)
        if found != shape:
            raise ExportError(f"tensor {origin}: shape {list(found)}, expected {list(shape)} from the encoder's config")
        self.tensors.add(origin)


def _feature_error(name: str, value: object, expected: str) -> ExportError:
    return ExportError(f"preprocessor_config.json: {name} = {shown(value)}, expected {expected}")
