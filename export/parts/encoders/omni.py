"""The audio tower of Qwen2.5-Omni, followed by the adaptor, as one graph over windows of mel frames.

The tower cuts the sound into windows that do not attend to each other, so each window is a batch element. Masks are
plain inputs: the graph does no arithmetic on lengths, and padding does not influence any valid row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ....runtime.bundle.feature_spec import OMNI
from ....runtime.errors import ExportError
from ...formats.store import WeightStore
from ...run.checkpoint import TensorSource
from ..graph import Graph
from .whisper import (
    CHECKPOINT_PREFIX,
    EncoderPart,
    EncoderWriter,
    FeatureSettings,
    audio_config,
    check_model_type,
    encoder_shape,
    plan_mel_filters,
    positive_int,
)

_PREFIX = f"{CHECKPOINT_PREFIX}audio_tower."
_POSITIONS = "encoder.positions"
#: Embeddings of the tokens that enclose a sound in Qwen's own chat format; the tower itself never reads them.
_UNUSED = (f"{_PREFIX}audio_bos_eos_token.weight",)
#: Qwen2.5-Omni's own preprocessor_config.json, where it differs from Whisper's defaults.
_FEATURES = {"feature_size": 128, "chunk_length": 300}


def plan_encoder(
    source: TensorSource,
    config: Mapping[str, Any],
    features: Mapping[str, Any],
    store: WeightStore,
    hidden_size: int,
    dtype: str = "float32",
) -> EncoderPart:
    """Plan the encoder's graph and weights.

    ``config``: ``config.json`` of the tower, of the thinker or of the whole model. ``features``:
    ``preprocessor_config.json``, or ``{}`` for Qwen2.5-Omni's own. ``hidden_size``: width of the language model.
    ``dtype``: how matrices are stored.

    Graph inputs, float32: ``mel`` [windows, n_mels, 2 * n_window], zeros after the last frame; ``frame_mask`` [windows,
    1, 2 * n_window], 1 for a frame and 0 for padding; ``attention_bias`` [windows, 1, 1, n_window], 0 for a position
    and very negative for padding. Output: ``features`` [windows * n_window // 2, hidden_size], of which the first
    ``LogMelFrontend.feature_rows(mel frames)`` belong to the sound. Pairs are averaged over all windows as one
    sequence: if n_window is odd, some pairs straddle two windows.
    """
    config = audio_config(config)
    check_model_type(config, ("qwen2_5_omni_audio_encoder",))
    shape = encoder_shape(config)
    n_window = positive_int(config, ("n_window",), 100)
    output_dim = positive_int(config, ("output_dim",), 3584)
    if n_window > shape.max_positions:
        raise ExportError(f"encoder config: n_window = {n_window} exceeds max_source_positions = {shape.max_positions}")
    if shape.width % 2 or shape.width < 4:
        raise ExportError(f"encoder config: d_model = {shape.width}, sinusoidal positions need an even number above 2")
    spec = FeatureSettings(features, shape, _FEATURES).spec(OMNI, window_frames=2 * n_window, normalize=True)
    plan_mel_filters(spec, store)
    store.add(_POSITIONS, (n_window, shape.width), lambda: sinusoidal_positions(n_window, shape.width))

    graph = Graph("encoder", store)
    write = EncoderWriter(graph, source, store, _PREFIX, dtype)
    x = graph.input("mel", ["windows", shape.n_mels, 2 * n_window])
    frame_mask = graph.input("frame_mask", ["windows", 1, 2 * n_window])
    attention_bias = graph.input("attention_bias", ["windows", 1, 1, n_window])
    x = write.convolution(x, "conv1", shape.n_mels, shape.width, stride=1)
    x = graph.op("Mul", x, frame_mask, name="conv1.masked")
    x = write.convolution(x, "conv2", shape.width, shape.width, stride=2)
    x = graph.op("Transpose", x, name="conv2.channels_last", perm=[0, 2, 1])
    x = graph.op("Add", x, graph.weight(_POSITIONS), name="positions.add")
    for index in range(shape.layers):
        x = write.transformer_layer(x, index, shape, attention_bias)
    x = write.layer_norm(write.pooled_pairs(x, shape.width), "ln_post", shape.width)
    x = write.linear(x, "proj", shape.width, output_dim)
    graph.output(write.adaptor(x, output_dim, hidden_size), "features", ["rows", hidden_size])
    return EncoderPart(graph, spec, write.tensors | {name for name in _UNUSED if name in source})


def sinusoidal_positions(length: int, width: int) -> np.ndarray:
    """Positions ``[length, width]``: sines, then cosines, wavelengths from 2 pi to 2 pi * 10000 (Vaswani et al. 2017).

    In float32 and with torch's ``exp``, as in training; no checkpoint contains them.
    """
    half = width // 2
    rates = torch.exp(torch.arange(half, dtype=torch.float32) * -(np.log(10000.0) / (half - 1)))
    angles = torch.arange(length, dtype=torch.float32)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1).numpy()
