"""AF-Whisper, the encoder of Audio Flamingo 3, followed by the adaptor, as one graph over a sound of fixed length.

The sound is padded with silence to 30 s and every position attends to every other, silence included, as in training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ....runtime.bundle.feature_spec import AF_WHISPER
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
)

#: transformers has the same encoder under two names; Audio Flamingo 3 was published as either.
_MODEL_TYPES = ("qwen2_audio_encoder", "audioflamingo3_encoder")


def plan_encoder(
    source: TensorSource,
    config: Mapping[str, Any],
    features: Mapping[str, Any],
    store: WeightStore,
    hidden_size: int,
    dtype: str = "float32",
) -> EncoderPart:
    """Plan the encoder's graph and weights.

    ``config``: ``config.json`` of the encoder or of a model that contains it. ``features``:
    ``preprocessor_config.json``, or ``{}`` for Whisper's defaults with the encoder's number of mel bins.
    ``hidden_size``: width of the language model. ``dtype``: how matrices are stored.

    Graph input, float32: ``mel`` [1, n_mels, 2 * max_source_positions]. Output: ``features``
    [max_source_positions // 2, hidden_size], of which the first ``LogMelFrontend.feature_rows(mel frames)`` belong to
    the sound.
    """
    config = audio_config(config)
    check_model_type(config, _MODEL_TYPES)
    shape = encoder_shape(config)
    frames = 2 * shape.max_positions
    settings = FeatureSettings(features, shape, {"feature_size": shape.n_mels})
    if settings.max_samples != frames * settings.hop_length:
        seconds = settings.max_samples / settings.sample_rate
        raise ExportError(
            f"preprocessor_config.json: {seconds:g} s of sound give {settings.max_samples / settings.hop_length:g} mel "
            f"frames, but max_source_positions = {shape.max_positions} takes {frames}; give the encoder's own file"
        )
    spec = settings.spec(AF_WHISPER, fixed_frames=frames, normalize=False)
    plan_mel_filters(spec, store)

    graph = Graph("encoder", store)
    write = EncoderWriter(graph, source, store, CHECKPOINT_PREFIX, dtype)
    x = graph.input("mel", [1, shape.n_mels, frames])
    x = write.convolution(x, "conv1", shape.n_mels, shape.width, stride=1)
    x = write.convolution(x, "conv2", shape.width, shape.width, stride=2)
    x = graph.op("Transpose", x, name="conv2.channels_last", perm=[0, 2, 1])
    positions = write.weight("embed_positions.weight", (shape.max_positions, shape.width))
    x = graph.op("Add", x, graph.weight(positions), name="positions.add")
    for index in range(shape.layers):
        x = write.transformer_layer(x, index, shape)
    x = write.layer_norm(write.pooled_pairs(x, shape.width), "layer_norm", shape.width)
    graph.output(write.adaptor(x, shape.width, hidden_size), "features", [shape.max_positions // 2, hidden_size])
    return EncoderPart(graph, spec, write.tensors)
