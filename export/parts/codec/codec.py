"""The X-Codec decoder as two ONNX parts, for whole sounds and for a stream, and the codebook tables that feed them.

Decoding a frame is: sum the eight code vectors, apply ``fc2``, run the DAC decoder without its tanh. The first two
steps are linear, so they fold into one small table per codebook (``codec.rvq_table``); the graphs are the third.
HuBERT and the semantic branches serve encoding only; their tensors are recognised and skipped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import XcodecConfig

from ....runtime.errors import ExportError
from ....runtime.files.reading import first_line, shown
from ....runtime.vocabulary import STREAMS
from ...formats.store import WeightStore
from ...run.checkpoint import TensorSource, read_conv, weight_norm_names
from ...run.config import MOST_SIZE
from ..graph import Graph
from .graphs import draw_stream, draw_whole
from .layers import Convolution, decoder_convolutions, frame_context, lookahead_samples

PREFIX = "multimodal_io_dict.discrete_audio.codec_model."
#: Modules used by encoding only.
ENCODER_SIDE = ("acoustic_encoder.", "encoder_semantic.", "decoder_semantic.", "semantic_model.", "fc.", "fc1.")
#: Upper limits for a configuration: Hz, upsampling ratio of one block, and number of blocks.
MOST_RATE = 768_000
MOST_RATIO = 1024
MOST_BLOCKS = 16
_CODEBOOK = re.compile(r"quantizer\.quantizers\.(\d+)\.codebook\.(?:embed|inited|cluster_size|embed_avg)")


@dataclass(frozen=True)
class CodecPart:
    """The planned decoder.

    ``graph``: ``latents`` float32 [1, latent_size, frames] -> ``pcm`` float32 [1, frames * hop_length]. ``stream``: the
    same piece by piece, see :func:`graphs.draw_stream`; after n frames it has returned n * hop_length - ``lookahead``
    samples.
    ``context``: how many frames before and after a frame its samples depend on.
    ``tensors``: names in the checkpoint that are used here, or are known to be unnecessary for decoding.
    """

    graph: Graph
    stream: Graph
    sample_rate: int
    hop_length: int
    codebook_size: int
    latent_size: int
    context: tuple[int, int]
    lookahead: int
    tensors: set[str]


def plan_codec(
    source: TensorSource, config: Mapping[str, Any], store: WeightStore, dtype: str = "float32"
) -> CodecPart:
    """Check the codec's tensors, plan the decoder's weights and tables in ``store``, and draw its graph.

    ``config`` is the parsed ``config.json`` of an ``XcodecModel``; fields left out take transformers' defaults.
    ``dtype``: how the table and the convolutions' weights are stored; arithmetic is float32.
    Plans, besides the graph's weights, ``codec.rvq_table`` float32 [8, K, D] with
    ``table[n] = C_n @ fc2.weight.T`` and ``codec.rvq_bias`` float32 [D], so that a frame's latent is
    ``sum_n table[n, code_n] + bias``. Raises ExportError naming the field or tensor that does not fit.
    """
    full, ratios = _read_config(config)
    acoustic = full.acoustic_model_config
    if full.num_quantizers < STREAMS:
        raise ExportError(
            f"codec config: target_bandwidths ending in {full.target_bandwidths[-1]} kbit/s make {full.num_quantizers} "
            f"quantizers at {full.frame_rate} frames/s; the {STREAMS} streams of a row need {STREAMS}"
        )
    layers = decoder_convolutions(acoustic.hidden_size, acoustic.decoder_hidden_size, ratios)
    planner = _Planner(source, store, dtype)
    planner.plan_tables(STREAMS, full.codebook_size, full.codebook_dim, acoustic.hidden_size)
    for layer in layers:
        planner.plan_convolution(layer)
    planner.ignore(full.num_quantizers)
    return CodecPart(
        graph=draw_whole(layers, store),
        stream=draw_stream(layers, store),
        sample_rate=full.sample_rate,
        hop_length=full.hop_length,
        codebook_size=full.codebook_size,
        latent_size=acoustic.hidden_size,
        context=frame_context(layers),
        lookahead=lookahead_samples(layers),
        tensors=planner.tensors,
    )


def _read_config(config: Mapping[str, Any]) -> tuple[Any, list[int]]:
    """An XcodecConfig with defaults filled in; and the upsampling ratios, which transformers does not check."""
    if config.get("model_type", "xcodec") != "xcodec":
        raise ExportError(f"codec config: model_type = {shown(config['model_type'])}, only 'xcodec' is supported")
    try:
        full: Any = XcodecConfig.from_dict(dict(config))
        acoustic, hop, _ = full.acoustic_model_config, full.hop_length, full.num_quantizers
    except Exception as error:  # transformers' computations on the fields may raise any built-in exception
        reason = first_line(error)
        raise ExportError(f"codec config: not a configuration that XcodecModel takes ({reason})") from error
    sizes = {
        "sample_rate": full.sample_rate,
        "codebook_size": full.codebook_size,
        "codebook_dim": full.codebook_dim,
        "acoustic_model_config.hidden_size": acoustic.hidden_size,
        "acoustic_model_config.decoder_hidden_size": acoustic.decoder_hidden_size,
    }
    for field, value in sizes.items():
        if type(value) is not int or value < 1:
            raise ExportError(f"codec config: {field} is {shown(value)}; a positive whole number is expected")
        if value > (most := MOST_RATE if field == "sample_rate" else MOST_SIZE):
            raise ExportError(f"codec config: {field} is {shown(value)}; at most {most} is supported")
    ratios = acoustic.upsampling_ratios
    field = f"codec config: acoustic_model_config.upsampling_ratios is {shown(ratios)}"
    # a ratio of 1 would need an output padding as large as the stride, which no framework accepts
    if not isinstance(ratios, (list, tuple)) or not ratios or any(type(r) is not int or r < 2 for r in ratios):
        raise ExportError(f"{field}; a list of whole numbers from 2 up is expected")
    if len(ratios) > MOST_BLOCKS or max(ratios) > MOST_RATIO:
        raise ExportError(f"{field}; at most {MOST_BLOCKS} numbers up to {MOST_RATIO} are supported")
    if math.prod(ratios) != hop:
        raise ExportError(
            f"{field}, {math.prod(ratios)} samples a frame, but downsampling_ratios "
            f"{shown(acoustic.downsampling_ratios)} make a hop_length of {shown(hop)}; the two must agree"
        )
    if acoustic.decoder_hidden_size < 2 ** len(ratios):
        raise ExportError(
            f"codec config: acoustic_model_config.decoder_hidden_size is {acoustic.decoder_hidden_size}, which "
            f"{len(ratios)} blocks cannot halve; at least {2 ** len(ratios)} is needed"
        )
    if full.codebook_dim != full.hidden_size:
        raise ExportError(
            f"codec config: codebook_dim is {full.codebook_dim}, but fc2 takes the acoustic and semantic hidden sizes "
            f"together, {full.hidden_size}; the two must agree"
        )
    return full, list(ratios)


class _Planner:
    """Checks tensors against the shapes expected, plans them, and notes their names."""

    def __init__(self, source: TensorSource, store: WeightStore, dtype: str) -> None:
        self.source, self.store, self.dtype = source, store, dtype
        self.tensors: set[str] = set()

    def plan_tables(self, streams: int, codebook_size: int, codebook_dim: int, latent_size: int) -> None:
        codebooks = [f"{PREFIX}quantizer.quantizers.{n}.codebook.embed" for n in range(streams)]
        held = next((n for n, name in enumerate(codebooks) if name not in self.source), streams)
        if held < streams:
            raise ExportError(
                f"tensor {codebooks[held]} is missing: the checkpoint holds {held} quantizers, the {streams} streams "
                f"of a row need {streams}"
            )
        for name in codebooks:
            self._check(name, (codebook_size, codebook_dim))
        weight, bias = f"{PREFIX}fc2.weight", f"{PREFIX}fc2.bias"
        self._check(weight, (latent_size, codebook_dim))
        self._check(bias, (latent_size,))

        def make_table() -> np.ndarray:
            fc2 = self.source.read(weight).astype(np.float64).T
            table = np.empty((streams, codebook_size, latent_size), np.float32)
            for n, name in enumerate(codebooks):
                table[n] = self.source.read(name).astype(np.float64) @ fc2
            return table

        self.store.add("codec.rvq_table", (streams, codebook_size, latent_size), make_table, self.dtype)
        self.store.add("codec.rvq_bias", (latent_size,), lambda: self.source.read(bias))

    def plan_convolution(self, layer: Convolution) -> None:
        prefix, name = f"{PREFIX}acoustic_decoder.{layer.name}", f"codec.{layer.name}"
        self._check_weight(prefix, layer.weight_shape)
        self._check(f"{prefix}.bias", (layer.outputs,))
        self.store.add(f"{name}.weight", layer.weight_shape, lambda: read_conv(self.source, prefix), self.dtype)
        self.store.add(f"{name}.bias", (layer.outputs,), lambda: self.source.read(f"{prefix}.bias"))
        if layer.snake:
            self._plan_snake(layer.snake, layer.inputs)

    def ignore(self, quantizers: int) -> None:
        """Note the tensors that a whole XcodecModel has and decoding does not need."""
        for name in self.source:
            if not name.startswith(PREFIX):
                continue
            local = name[len(PREFIX) :]
            codebook = _CODEBOOK.fullmatch(local)
            if local.startswith(ENCODER_SIDE) or (codebook and int(codebook[1]) < quantizers):
                self.tensors.add(name)

    def _plan_snake(self, name: str, channels: int) -> None:
        tensor, shape = f"{PREFIX}acoustic_decoder.{name}.alpha", (1, channels, 1)
        self._check(tensor, shape)
        self.store.add(f"codec.{name}.alpha", shape, lambda: self.source.read(tensor))

        def make_gain() -> np.ndarray:
            shifted = self.source.read(tensor) + np.float32(1e-9)
            if not shifted.all():
                raise ExportError(f"tensor {tensor}: an alpha of -1e-9 makes Snake divide by zero")
            return 1 / shifted

        self.store.add(f"codec.{name}.gain", shape, make_gain)

    def _check_weight(self, prefix: str, expected: tuple[int, ...]) -> None:
        """Check a convolution's weight, or the weight-normed pair that stands for it."""
        for magnitude, direction in weight_norm_names(prefix):
            if direction in self.source and f"{prefix}.weight" not in self.source:
                self._check(direction, expected)
                # any other magnitude might broadcast silently
                return self._check(magnitude, (expected[0], 1, 1))
        return self._check(f"{prefix}.weight", expected)

    def _check(self, name: str, expected: tuple[int, ...]) -> None:
        found = self.source.shape(name)
        if found != expected:
            raise ExportError(
                f"tensor {name} has shape {list(found)}, the codec's config.json asks for {list(expected)}"
            )
        self.tensors.add(name)
