"""The rival with random weights: its body is transformers' Qwen2, and equal seeds give equal weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DynamicCache, Qwen2Config, Qwen2Model

from ualm.bench.peers.random_reference import RMS_EPSILON, ROPE_THETA, Cache, RandomReference
from ualm.bench.random_run.shapes import SHAPES
from ualm.runtime import AudioSampling

SHAPE = replace(SHAPES["tiny"], layers=3)


def qwen2(mine: RandomReference) -> Any:
    """transformers' body with the same weights."""
    settings: dict[str, Any] = {
        "hidden_size": SHAPE.hidden,
        "intermediate_size": SHAPE.ffn,
        "num_hidden_layers": SHAPE.layers,
        "num_attention_heads": SHAPE.heads,
        "num_key_value_heads": SHAPE.kv_heads,
        "vocab_size": 8,
        "rms_norm_eps": RMS_EPSILON,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
        "attn_implementation": "sdpa",
    }
    body = Qwen2Model(Qwen2Config(**settings))
    state = {"norm.weight": mine.norm, "embed_tokens.weight": torch.zeros(8, SHAPE.hidden)}
    for at, layer in enumerate(mine.layers):
        name = f"layers.{at}"
        for letter, weight, bias in zip("qkv", layer.projections, layer.biases, strict=True):
            state |= {f"{name}.self_attn.{letter}_proj.weight": weight, f"{name}.self_attn.{letter}_proj.bias": bias}
        state |= {
            f"{name}.self_attn.o_proj.weight": layer.output,
            f"{name}.input_layernorm.weight": layer.attention_norm,
            f"{name}.post_attention_layernorm.weight": layer.feed_norm,
            f"{name}.mlp.gate_proj.weight": layer.gate,
            f"{name}.mlp.up_proj.weight": layer.up,
            f"{name}.mlp.down_proj.weight": layer.down,
        }
    body.load_state_dict(state, strict=True)
    return body.eval()


@torch.inference_mode()
def test_the_body_is_that_of_transformers() -> None:
    """A prompt of two sequences, then rows one by one, in float32."""
    mine = RandomReference(SHAPE, "float32", seed=3)
    theirs, caches = qwen2(mine), (Cache(), DynamicCache())
    random = torch.Generator().manual_seed(0)
    for rows in (19, 1, 1, 1):
        embeddings = torch.randn(2, rows, SHAPE.hidden, generator=random)
        found = mine.through(embeddings, caches[0])
        output = theirs(None, None, None, caches[1], embeddings, use_cache=True)
        expected = output.last_hidden_state[:, -1]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert caches[0].rows == caches[1].get_seq_length() == 22


def test_weights_follow_the_seed() -> None:
    first, again, other = (RandomReference(SHAPE, "bfloat16", seed=seed) for seed in (1, 1, 2))
    for name in ("gate", "output"):
        one, two, three = (getattr(each.layers[2], name) for each in (first, again, other))
        assert one.dtype == torch.bfloat16 and torch.equal(one, two) and not torch.equal(one, three)
    assert first.body_bytes == other.body_bytes > 0
    embedded = first.embedding_rows(np.array([0, 5]))
    assert (embedded[0] == 0).all() and (embedded[1] != 0).all()


def test_what_is_drawn_is_a_sound() -> None:
    mine = RandomReference(SHAPE, "bfloat16", seed=0)
    cache, random = mine.noise(9, 2), mine.generator(4)
    row = mine.marker("audio")
    for rows in range(10, 15):
        row = mine.frame(row, cache, "audio", AudioSampling(), random)
        assert cache.rows == rows and cache.layers[0][0].shape[0] == 2
        codes = row - mine.vocabulary.pads
        assert ((codes[1:] >= 0) & (codes[1:] <= 1024)).all()


def test_a_prompt_begins_a_cache() -> None:
    mine = RandomReference(SHAPE, "float32", seed=0)
    with pytest.raises(AssertionError, match="a prompt begins a cache"):
        mine.through(torch.zeros(1, 2, SHAPE.hidden), mine.noise(3, 1))
