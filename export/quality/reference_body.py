"""The body in torch, float32, layer by layer: the reference for an export's agreement, and what calibration observes.

Weights are asked for by their names in the bundle and dropped after use, so that a body of any size needs the memory of
one layer's largest matrix. Nothing here is fast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn import functional

from ..run.qwen2 import BackboneShape

#: Called with a matrix's name in the bundle and its input, float32 [rows, in].
OnProduct = Callable[[str, torch.Tensor], None]
#: Likewise; returns the input to use instead, as an engine rounds it.
RoundInput = Callable[[str, np.ndarray], np.ndarray]
#: Rounds a float32 value to a narrower type.
RoundValue = Callable[[torch.Tensor], torch.Tensor]


@torch.inference_mode()
def hidden_states(
    read: Callable[[str], np.ndarray],
    shape: BackboneShape,
    sequences: Sequence[np.ndarray],
    on_product: OnProduct = lambda name, x: None,
    round_input: RoundInput = lambda name, x: x,
    round_value: RoundValue | None = None,
) -> list[np.ndarray]:
    """Final-norm hidden states float32 [n, H] of each sequence of input embeddings float32 [n, H], from position 0.

    ``read`` returns the body's tensors in float32, matrices [in, out], by the names that ``BackbonePlan`` gives them.
    ``round_value`` is applied to every value that the graph for GPUs holds in its ``compute``, matrices included, and
    also to attention scores and weights, which some kernels hold in that type and others in float32.
    """
    rounded: RoundValue = round_value or (lambda value: value)
    s = shape
    lengths = [len(sequence) for sequence in sequences]
    x = torch.from_numpy(np.concatenate(sequences))
    angles = np.concatenate([np.arange(n, dtype=np.float32) for n in lengths])[:, None] * read(
        "rope.inverse_frequencies"
    )
    cos, sin = (
        rounded(torch.from_numpy(f(angles.astype(np.float64)).astype(np.float32)))[:, None] for f in (np.cos, np.sin)
    )

    def product(name: str, rows: torch.Tensor) -> torch.Tensor:
        on_product(name, rows)
        rows = torch.from_numpy(round_input(name, rounded(rows).numpy()))
        return rounded(rows @ rounded(torch.from_numpy(np.require(read(name), requirements=("C", "W")))))

    def norm(name: str, rows: torch.Tensor) -> torch.Tensor:
        scale = torch.rsqrt(rows.double().square().mean(-1, keepdim=True) + s.rms_norm_eps)
        return torch.from_numpy(np.array(read(name))) * (rows * scale).float()

    def rotate(heads: torch.Tensor) -> torch.Tensor:
        low, high = heads.chunk(2, dim=-1)
        return rounded(torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1))

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if round_value is None:
            return functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        k, v = (part.repeat_interleave(s.heads // s.kv_heads, dim=1) for part in (k, v))
        scores = rounded(q @ k.transpose(-1, -2) / s.head_dim**0.5)
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        weights = rounded(scores.masked_fill(hidden, -torch.inf).softmax(-1))
        return rounded(weights @ v)

    q_size, kv_size = s.heads * s.head_dim, s.kv_heads * s.head_dim
    for i in range(s.layers):
        o = f"backbone.{i}"
        bias = rounded(torch.from_numpy(np.array(read(f"{o}.qkv_bias"))))
        qkv = rounded(product(f"{o}.qkv", norm(f"{o}.input_norm", x)) + bias)
        q, k, v = torch.split(qkv, [q_size, kv_size, kv_size], dim=-1)
        q = rotate(q.reshape(len(q), s.heads, s.head_dim))
        k = rotate(k.reshape(len(k), s.kv_heads, s.head_dim))
        v = v.reshape(len(v), s.kv_heads, s.head_dim)
        attended = []
        for parts in zip(*(torch.split(heads, lengths) for heads in (q, k, v)), strict=True):
            by_head = (part.transpose(0, 1)[None] for part in parts)
            attended.append(attend(*by_head)[0].transpose(0, 1))
        x = x + product(f"{o}.o", torch.cat(attended).flatten(1))
        gate, up = product(f"{o}.gate_up", norm(f"{o}.post_norm", x)).chunk(2, dim=-1)
        opened = functional.silu(gate) if round_value is None else rounded(gate * rounded(torch.sigmoid(gate)))
        x = x + product(f"{o}.down", rounded(opened * up))
    return [part.numpy() for part in torch.split(norm("backbone.norm", x), lengths)]
