"""Formats of weights: their names, sizes, blocks, and which part has which (docs/precision.md has the reasons)."""

from __future__ import annotations

#: Formats by their name in the manifest, and what safetensors calls the type of a matrix in each.
STORED = {"fp32": "F32", "fp16": "F16", "bf16": "BF16", "fp8": "F8_E4M3", "int8": "I8", "int4": "U8"}
#: Bytes of a weight of a matrix, without scales.
WEIGHT_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.5}
#: Inputs of a matrix that share a scale in int8 and int4.
BLOCK = 32
#: Body -> heads, encoder, codec.
POLICY = {
    "fp32": ("fp32", "fp32", "fp32"),
    "bf16": ("bf16", "fp16", "fp16"),
    "fp16": ("fp16", "fp16", "fp16"),
    "fp8": ("int8", "fp16", "fp16"),
    "int8": ("int8", "int8", "fp16"),
    "int4": ("int8", "int8", "fp16"),
}
