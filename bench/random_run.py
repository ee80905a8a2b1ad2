"""Write a UALM training run with random weights: ``python -m ualm.bench.random_run FOLDER --shape tiny|1.5b``.

The run has the true structure (checkpoint, train.yaml, tokenizer, backbone, codec and encoder folders), so that export
and speed can be tried where no trained weights are at hand. What such a model says and sounds like means nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import XcodecConfig, XcodecModel
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniAudioEncoderConfig
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniAudioEncoder

from ..runtime.errors import UalmError
from ..runtime.files import replacing_folder
from ..runtime.vocabulary import STREAMS, Vocabulary

ENCODER_TAG = "Qwen/Qwen2.5-Omni-7B"
CODEC_PREFIX = "multimodal_io_dict.discrete_audio.codec_model."
ENCODER_PREFIX = "multimodal_io_dict.continuous_audio.model.audio_tower."


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
}


def write_random_run(folder: Path, shape: RunShape, *, seed: int = 0) -> None:
    """Write the run to ``folder``, which must not exist yet."""
    torch.manual_seed(seed)
    codec_config = XcodecConfig(**shape.codec)
    encoder_config = Qwen2_5OmniAudioEncoderConfig(**shape.encoder)
    vocabulary = Vocabulary.in_order(("text", "discrete_audio"), shape.text_size, codec_config.codebook_size)
    with replacing_folder(folder) as run:
        _write_json(run / "backbone" / "config.json", _backbone_config(shape))
        _byte_tokenizer().save(str(run / "backbone" / "tokenizer.json"))
        _write_json(run / "backbone" / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
        _write_json(run / "codec" / "config.json", codec_config.to_dict())
        omni = {"model_type": "qwen2_5_omni", "thinker_config": {"audio_config": encoder_config.to_dict()}}
        _write_json(run / ENCODER_TAG / "config.json", omni)
        features = {"feature_size": encoder_config.num_mel_bins, "chunk_length": 300, "sampling_rate": 16000}
        _write_json(run / ENCODER_TAG / "preprocessor_config.json", features)
        (run / "train.yaml").write_text(yaml.safe_dump(_train_yaml(), sort_keys=False))
        states = _backbone_states(shape, vocabulary.size)
        states |= _adaptor_states(shape, encoder_config.output_dim)
        states |= _codec_states(codec_config)
        encoder = Qwen2_5OmniAudioEncoder(encoder_config)
        states |= {ENCODER_PREFIX + name: _stored(tensor) for name, tensor in encoder.state_dict().items()}
        torch.save({"module": states, "global_steps": 0}, run / "mp_rank_00_model_states.pt")


def _backbone_config(shape: RunShape) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "vocab_size": shape.text_size,
    }


def _train_yaml() -> dict[str, Any]:
    return {
        "job_type": "ualm",
        "multimodal_io": {
            "text": {"tokenizer_name": "backbone"},
            "discrete_audio": {
                "codec_choice": "Xcodec",
                "codec_hf_model_tag": "codec",
                "ssl_choice": None,
                "delay_interleave": True,
            },
            "continuous_audio": {"encoder_choice": "huggingface", "encoder_hf_model_tag": ENCODER_TAG},
        },
        "model": {"model_choice": "parallel", "model_hf_tag": "backbone"},
        "preprocessor": {"audio_input": "continuous_audio", "audio_output": "discrete_audio"},
    }


def _byte_tokenizer() -> Tokenizer:
    """Every byte is a token: enough for any text, and nothing to train."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _random(*shape: int, scale: float = 0.02) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.bfloat16).normal_(std=scale)


def _stored(tensor: torch.Tensor) -> torch.Tensor:
    # training writes everything that has a fraction in bf16
    return tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor


def _backbone_states(shape: RunShape, vocabulary: int) -> dict[str, torch.Tensor]:
    h, kv = shape.hidden, shape.hidden // shape.heads * shape.kv_heads
    states = {
        "model.embed_tokens.weight": _random(vocabulary, h, scale=1.0),
        "lm_head.weight": _random(vocabulary, h, scale=2.0 / h**0.5),
        "stream_emb.weight": _random(STREAMS, h, scale=1.0),
        "model.norm.weight": 1.0 + _random(h),
    }
    states["model.embed_tokens.weight"][0] = 0.0
    for i in range(shape.layers):
        p = f"model.layers.{i}"
        states |= {f"{p}.{norm}.weight": 1.0 + _random(h) for norm in ("input_layernorm", "post_attention_layernorm")}
        for letter, rows in (("q", h), ("k", kv), ("v", kv)):
            states[f"{p}.self_attn.{letter}_proj.weight"] = _random(rows, h)
            states[f"{p}.self_attn.{letter}_proj.bias"] = _random(rows, scale=0.1)
        states[f"{p}.self_attn.o_proj.weight"] = _random(h, h)
        states |= {f"{p}.mlp.{part}_proj.weight": _random(shape.ffn, h) for part in ("gate", "up")}
        states[f"{p}.mlp.down_proj.weight"] = _random(h, shape.ffn)
    return states


def _adaptor_states(shape: RunShape, features: int) -> dict[str, torch.Tensor]:
    return {
        "adaptor.continuous_audio.weight": _random(shape.hidden, features),
        "adaptor.continuous_audio.bias": _random(shape.hidden),
    }


def _codec_states(config: XcodecConfig) -> dict[str, torch.Tensor]:
    codec = XcodecModel(config)
    states = codec.state_dict()
    for name, tensor in states.items():
        if name.endswith("codebook.embed"):  # zero when new: every code would sound the same
            tensor.normal_(std=0.3)
    return {CODEC_PREFIX + name: _stored(tensor) for name, tensor in states.items()}


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        write_random_run(arguments.folder, SHAPES[arguments.shape], seed=arguments.seed)
    except UalmError as error:
        sys.exit(f"random_run: {error}")
    print(f"{arguments.folder}: random {arguments.shape} run, seed {arguments.seed}")


if __name__ == "__main__":
    main()
