"""Sizes of training runs with random weights; nothing is imported that a machine without an exporter may lack."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RunShape:
    """Sizes of a run; the codec and the encoder are given as overrides of their published configurations."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    text_size: int
    codec: Mapping[str, Any]
    encoder: Mapping[str, Any]


_SMALL_HUBERT = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": [16, 16, 16, 16, 16, 16, 16],
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
SHAPES = {
    "tiny": RunShape(
        hidden=128,
        layers=4,
        heads=4,
        kv_heads=2,
        ffn=384,
        text_size=320,
        codec={
            "acoustic_model_config": {"decoder_hidden_size": 64, "encoder_hidden_size": 8, "hidden_size": 32},
            "semantic_model_config": _SMALL_HUBERT,
        },
        encoder={
            "d_model": 64,
            "encoder_layers": 2,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 128,
            "output_dim": 96,
        },
    ),
    "1.5b": RunShape(
        hidden=1536, layers=28, heads=12, kv_heads=2, ffn=8960, text_size=151936, codec={}, encoder={"output_dim": 3584}
    ),
    "7b": RunShape(
        hidden=3584,
        layers=28,
        heads=28,
        kv_heads=4,
        ffn=18944,
        text_size=152064,
        codec={},
        encoder={"output_dim": 3584},
    ),
}
