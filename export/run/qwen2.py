"""Reads a Qwen2 ``config.json``: the sizes of the transformer body."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runtime.bundle.contents import MOST_LAYERS
from .config import Fields


@dataclass(frozen=True)
class BackboneShape:
    """Sizes of a Qwen2 body."""

    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_size: int
    rms_norm_eps: float
    rope_theta: float
    max_positions: int

    @property
    def qkv_size(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def grouped_attention(self) -> bool:
        """Whether ONNX Runtime's GroupQueryAttention supports this head size."""
        return self.head_dim % 16 == 0


def backbone_shape(path: Path, config: Mapping[str, Any]) -> BackboneShape:
    """Check a backbone's ``config.json`` and read its sizes; absent fields take the defaults of transformers' Qwen2."""
    fields = Fields(path, config)
    if config.get("architectures") != ["Qwen2ForCausalLM"]:
        fields.refuse("architectures", "only Qwen2ForCausalLM backbones (dense, no mixture of experts) are supported")
    fields.expect("model_type", "qwen2", "qwen2", "only qwen2 is supported")
    fields.expect("hidden_act", "silu", "silu", "only silu is supported")
    fields.expect("use_sliding_window", False, False, "sliding-window attention is not supported")
    layer_types = fields.get("layer_types", [])
    if not isinstance(layer_types, list) or any(kind != "full_attention" for kind in layer_types):
        fields.refuse("layer_types", "only full_attention layers are supported")
    fields.size("vocab_size")
    heads = fields.size("num_attention_heads")
    kv_heads = fields.size("num_key_value_heads", 32)
    if heads % kv_heads:
        fields.refuse("num_key_value_heads", f"must divide num_attention_heads = {heads}", 32)
    hidden_size = fields.size("hidden_size")
    return BackboneShape(
        hidden_size=hidden_size,
        layers=fields.size("num_hidden_layers", most=MOST_LAYERS),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=fields.size("head_dim", max(hidden_size // heads, 1)),
        ffn_size=fields.size("intermediate_size"),
        rms_norm_eps=fields.positive("rms_norm_eps", 1e-6),
        rope_theta=_rope_theta(fields),
        max_positions=fields.size("max_position_embeddings", 32768),
    )


def _rope_theta(fields: Fields) -> float:
    """The base of the rotary embedding: a separate field (transformers 4) or one of ``rope_parameters`` (5)."""
    thetas = [fields.positive("rope_theta", 10000.0)] if fields.get("rope_theta") is not None else []
    for name in ("rope_parameters", "rope_scaling"):
        rope = fields.get(name, {})
        if not isinstance(rope, Mapping) or rope.get("rope_type", rope.get("type", "default")) != "default":
            fields.refuse(name, "only unscaled rotary embeddings are supported")
        if rope.get("rope_theta") is not None:
            thetas.append(fields.section(name).positive("rope_theta", 10000.0))
    if len(set(thetas)) > 1:
        fields.refuse("rope_theta", f"differs from the one in rope_parameters ({thetas[-1]:g}); correct one of them")
    return thetas[0] if thetas else 10000.0
