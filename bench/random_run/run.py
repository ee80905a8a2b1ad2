"""Write a UALM training run with random weights: ``ualm bench random-run FOLDER --shape tiny|1.5b|7b``.

The run has the true structure (checkpoint, train.yaml, tokenizer, backbone, codec and encoder folders), so that export
and speed can be tried where no trained weights are available. The output of such a model means nothing.

The checkpoint (17 GB for 7b) is streamed (:mod:`checkpoint`), each tensor drawn and written block by block, so that
only the codec and one block are in memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import XcodecConfig, XcodecModel
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniAudioEncoderConfig
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniAudioEncoder

from ...runtime.errors import InputError
from ...runtime.files.writing import replacing_folder
from ...runtime.terminal.live import live_bytes
from ...runtime.vocabulary import STREAMS, Vocabulary
from .checkpoint import Filling, Progress, check_space, lay_out
from .shapes import SHAPES as SHAPES
from .shapes import RunShape as RunShape

CHECKPOINT = "mp_rank_00_model_states.pt"
ENCODER_TAG = "Qwen/Qwen2.5-Omni-7B"
CODEC_PREFIX = "multimodal_io_dict.discrete_audio.codec_model."
ENCODER_PREFIX = "multimodal_io_dict.continuous_audio.model.audio_tower."
#: Values drawn and written at a time.
BLOCK = 1 << 22


def write_random_run(
    folder: Path, shape: RunShape, *, seed: int = 0, progress: Progress = lambda stage, done, total: None
) -> None:
    """Write the run to ``folder``, which must not exist yet, and appears complete or not at all.

    Equal seeds give equal files. Raises :class:`InputError` for a seed or a number of layers out of range, and
    :class:`OutputError` when the run cannot be written or does not fit on the disk.
    """
    if not 0 <= seed < 2**32:  # torch's CPU generator uses 32 bits of a seed
        raise InputError(f"seed = {seed}: give a whole number from 0 to {2**32 - 1}")
    if shape.layers < 1:
        raise InputError(f"layers = {shape.layers}: give 1 or more")
    codec_config = XcodecConfig(**shape.codec)
    encoder_config = Qwen2_5OmniAudioEncoderConfig(**shape.encoder)
    vocabulary = Vocabulary.in_order(("text", "discrete_audio"), shape.text_size, codec_config.codebook_size)
    drawn = _backbone_states(shape, vocabulary.size) | _adaptor_states(shape, encoder_config.output_dim)
    with replacing_folder(folder) as run, torch.random.fork_rng(devices=[]):
        layout = _layout(drawn, codec_config, encoder_config)
        check_space(folder, run, layout)
        _write_json(run / "backbone" / "config.json", _backbone_config(shape))
        _byte_tokenizer().save(str(run / "backbone" / "tokenizer.json"))
        _write_json(run / "backbone" / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
        _write_json(run / "codec" / "config.json", codec_config.to_dict())
        omni = {"model_type": "qwen2_5_omni", "thinker_config": {"audio_config": encoder_config.to_dict()}}
        _write_json(run / ENCODER_TAG / "config.json", omni)
        features = {"feature_size": encoder_config.num_mel_bins, "chunk_length": 300, "sampling_rate": 16000}
        _write_json(run / ENCODER_TAG / "preprocessor_config.json", features)
        (run / "train.yaml").write_text(yaml.safe_dump(_train_yaml(), sort_keys=False))
        torch.manual_seed(seed)
        lay_out(run / CHECKPOINT, layout)
        with open(run / CHECKPOINT, "r+b") as file:
            filling = Filling(file, layout, progress)
            for name, normal in drawn.items():
                filling.write(name, normal.blocks())
            for name, tensor in itertools.chain(_codec_states(codec_config), _encoder_states(shape.encoder)):
                filling.write(name, [tensor])
            filling.finish()


def _layout(
    drawn: Mapping[str, _Normal], codec_config: XcodecConfig, encoder_config: Qwen2_5OmniAudioEncoderConfig
) -> dict[str, torch.Tensor]:
    """All tensors of the checkpoint in order, on the meta device: shapes and types, no values."""
    with torch.device("meta"):
        layout = {name: torch.empty(normal.shape, dtype=torch.bfloat16) for name, normal in drawn.items()}
        codec, encoder = XcodecModel(codec_config), Qwen2_5OmniAudioEncoder(encoder_config)
    layout |= {CODEC_PREFIX + name: _stored(tensor) for name, tensor in codec.state_dict().items()}
    return layout | {ENCODER_PREFIX + name: _stored(tensor) for name, tensor in encoder.state_dict().items()}


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
    """A tokenizer in which every byte is a token: enough for any text, with nothing to train."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@dataclass(frozen=True)
class _Normal:
    """A bf16 tensor to draw: independent normal values; ``zero_row``: its first row is zero."""

    shape: tuple[int, ...]
    std: float = 0.02
    mean: float = 0.0
    zero_row: bool = False

    def blocks(self) -> Iterator[torch.Tensor]:
        """The values in order, at most ``BLOCK`` at a time, from torch's global generator."""
        size = math.prod(self.shape)
        for start in range(0, size, BLOCK):
            # drawn in fp32: faster than in bf16, and rounded once
            values = torch.empty(min(BLOCK, size - start)).normal_(self.mean, self.std)
            if self.zero_row:
                values[: max(0, self.shape[1] - start)] = 0.0
            yield values.to(torch.bfloat16)


def _stored(tensor: torch.Tensor) -> torch.Tensor:
    # training writes all floating-point values in bf16
    return tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor


def _backbone_states(shape: RunShape, vocabulary: int) -> dict[str, _Normal]:
    h, kv = shape.hidden, shape.hidden // shape.heads * shape.kv_heads
    states = {
        "model.embed_tokens.weight": _Normal((vocabulary, h), std=1.0, zero_row=True),
        "lm_head.weight": _Normal((vocabulary, h), std=2.0 / h**0.5),
        "stream_emb.weight": _Normal((STREAMS, h), std=1.0),
        "model.norm.weight": _Normal((h,), mean=1.0),
    }
    for i in range(shape.layers):
        p = f"model.layers.{i}"
        states |= {
            f"{p}.{norm}.weight": _Normal((h,), mean=1.0) for norm in ("input_layernorm", "post_attention_layernorm")
        }
        for letter, rows in (("q", h), ("k", kv), ("v", kv)):
            states[f"{p}.self_attn.{letter}_proj.weight"] = _Normal((rows, h))
            states[f"{p}.self_attn.{letter}_proj.bias"] = _Normal((rows,), std=0.1)
        states[f"{p}.self_attn.o_proj.weight"] = _Normal((h, h))
        states |= {f"{p}.mlp.{part}_proj.weight": _Normal((shape.ffn, h)) for part in ("gate", "up")}
        states[f"{p}.mlp.down_proj.weight"] = _Normal((h, shape.ffn))
    return states


def _adaptor_states(shape: RunShape, features: int) -> dict[str, _Normal]:
    return {
        "adaptor.continuous_audio.weight": _Normal((shape.hidden, features)),
        "adaptor.continuous_audio.bias": _Normal((shape.hidden,)),
    }


def _codec_states(config: XcodecConfig) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in XcodecModel(config).state_dict().items():
        if name.endswith("codebook.embed"):  # zero when initialised: every code would sound the same
            tensor.normal_(std=0.3)
        yield CODEC_PREFIX + name, _stored(tensor)


def _encoder_states(overrides: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """A new encoder's tensors, made one layer at a time: all of the published one takes 2.5 GB."""
    single = Qwen2_5OmniAudioEncoderConfig(**{**overrides, "encoder_layers": 1})
    for layer in range(Qwen2_5OmniAudioEncoderConfig(**overrides).encoder_layers):
        for name, tensor in Qwen2_5OmniAudioEncoder(single).state_dict().items():
            if name.startswith("layers.0."):
                yield f"{ENCODER_PREFIX}layers.{layer}.{name.removeprefix('layers.0.')}", _stored(tensor)
            elif layer == 0:
                yield ENCODER_PREFIX + name, _stored(tensor)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1))


def main(arguments: Sequence[str] | None = None, program: str = "python -m ualm.bench.random_run") -> None:
    parser = argparse.ArgumentParser(
        prog=program,
        description="Write a UALM training run with random weights, to try an export and its speed where there are no "
        "trained ones. The output of such a model means nothing.",
        epilog="Then: ualm export FOLDER -o BUNDLE --precision int4 --accept-quality (random weights fall below the "
        "gates of fp8, int8 and int4), and: ualm bench decode BUNDLE. See docs/bench.md.",
    )
    parser.add_argument("folder", type=Path, help="training run to write; must not exist yet")
    parser.add_argument(
        "--shape",
        choices=SHAPES,
        default="tiny",
        help="sizes: tiny (default), or those of UALM-1.5B or UALM-7B, whose checkpoints weigh what the true ones do",
    )
    parser.add_argument("--layers", type=int, help="layers of the backbone, if not those of the shape")
    parser.add_argument("--seed", type=int, default=0, help="of the weights; equal seeds give equal files (default: 0)")
    given = parser.parse_args(arguments)
    shape = SHAPES[given.shape]
    if given.layers is not None:
        shape = dataclasses.replace(shape, layers=given.layers)
    with live_bytes() as progress:
        write_random_run(given.folder, shape, seed=given.seed, progress=progress)
    print(f"{given.folder}: random {given.shape} run, {shape.layers} layers, seed {given.seed}")
