"""Tiny random training runs on disk, in the form that training leaves.

A run is a ``train.yaml``, a DeepSpeed ``mp_rank_00_model_states.pt`` and the folders that train.yaml names. Every
tensor is random and none is degenerate: biases are not zero, norms are not one, the backbone folder has other weights
than the checkpoint and claims tied embeddings, and ``stream_emb`` row 0 is not zero although the model treats it as
zero.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen2AudioEncoder, Qwen2AudioEncoderConfig, XcodecConfig, XcodecModel
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniAudioEncoderConfig
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniAudioEncoder

STREAMS = 8
SPECIALS = 256
CHECKPOINT = "mp_rank_00_model_states.pt"
OMNI_TAG = "Qwen/Qwen2.5-Omni-7B"
NAMED_IDS = {"eos": 2, "eot": 3, "text": 7, "audio": 8, "image": 10, "video": 11, "toolcall": 12}


@dataclass(frozen=True)
class Run:
    """The paths of a run's parts, and its layout of ids. ``folder`` is what a user would pass to the exporter."""

    folder: Path
    train_yaml: Path
    checkpoint: Path
    backbone: Path
    codec: Path
    encoder: Path
    text_start: int
    text_size: int
    audio_start: int
    codebook_size: int
    vocabulary: int


def make_run(
    folder: Path,
    *,
    seed: int = 0,
    encoder: str = "omni",
    hidden: int = 32,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int | None = None,
    ffn: int = 48,
    text_size: int | None = None,
    io_order: tuple[str, ...] = ("text", "discrete_audio", "continuous_audio"),
    codebook_size: int = 16,
    quantizers: int = 8,
    codec_ratios: tuple[int, ...] = (5, 2),
    codec_width: int = 16,
    encoder_width: int = 16,
    encoder_heads: int = 2,
    encoder_output: int = 20,
    mel_bins: int = 128,
    n_window: int = 10,
    whisper_seconds: int = 1,
    dtype: str = "bfloat16",
    weight_norm: str = "folded",
    layout: str = "flat",
    steps: tuple[int, ...] = (9, 10),
    gain: float = 2.0,
    lean: Mapping[str, float] | None = None,
) -> Run:
    """Write a run into ``folder`` (made if missing).

    encoder: "omni" or "afwhisper" (which ignores ``n_window`` and ``encoder_output``). head_dim: None takes hidden /
    heads, as Qwen2.5 does; a number is written into config.json. text_size: V, the padded text vocabulary; None is the
    tokenizer's size and 9 more. quantizers: how many the codec has; the model uses 8. weight_norm: how the codec's
    acoustic convolutions are stored, "folded", "weight_g" or "parametrizations". layout: "flat", or "tree" with
    ``conf/train.yaml`` and ``checkpoints/step_N/global_stepN``, N in ``steps``; only the highest N holds the run's
    weights. The folders that train.yaml names lie beside it. gain: standard deviation of the logits, about. lean:
    logits to add, about, by name: a special token ("eos", "eot", or a modality), "pad" for stream 0's own pad, or
    "padded_text" for the ids beyond the tokenizer; eos, eot and pad are at -10 unless given.
    """
    if encoder not in ("omni", "afwhisper"):
        raise ValueError(f"encoder is {encoder!r}")
    rng = np.random.default_rng(seed)
    root = folder if layout == "flat" else folder / "conf"
    root.mkdir(parents=True, exist_ok=True)
    backbone, codec = root / "Qwen" / "Qwen2.5-tiny", root / "hf-audio" / "xcodec-tiny"
    encoder_folder = root / OMNI_TAG if encoder == "omni" else root / "afwhisper"

    tokenizer_size = _write_tokenizer(backbone)
    text_size = tokenizer_size + 9 if text_size is None else text_size
    audio_size = STREAMS * (codebook_size + 1)
    text_first = io_order.index("text") < io_order.index("discrete_audio")
    text_start = SPECIALS if text_first else SPECIALS + audio_size
    audio_start = SPECIALS + text_size if text_first else SPECIALS
    vocabulary = SPECIALS + text_size + audio_size

    body = _backbone_config(hidden, layers, heads, kv_heads, head_dim, ffn, text_size)
    _write_json(backbone / "config.json", body)
    other = np.random.default_rng(seed + 1_000_003)
    save_file(_body_state(other, body, text_size, steer=False), backbone / "model.safetensors", {"format": "pt"})

    state = _body_state(rng, body, vocabulary, steer=True)
    state["stream_emb.weight"] = _normal(rng, (STREAMS, hidden), 0.4)
    head = _normal(rng, (vocabulary, hidden), gain / math.sqrt(hidden))
    head[:, 0] = 0.2 * head[:, 0]
    ids = {name: [index] for name, index in NAMED_IDS.items()} | {
        "pad": [audio_start],
        "padded_text": list(range(text_start + tokenizer_size, text_start + text_size)),
    }
    # by default a sound goes on: only max_steps ends it
    for name, logit in ({"eos": -10.0, "eot": -10.0, "pad": -10.0} | dict(lean or {})).items():
        head[ids[name], 0] += logit / STEADY
    state["lm_head.weight"] = head

    ratios = list(codec_ratios)
    state |= _codec_part(rng, codec, ratios, codec_width, codebook_size, quantizers, weight_norm)
    width = encoder_output if encoder == "omni" else encoder_width
    state["adaptor.continuous_audio.weight"] = _normal(rng, (hidden, width), 0.7 / math.sqrt(width))
    state["adaptor.continuous_audio.bias"] = _normal(rng, (hidden,), 0.2)
    shape = {"d_model": encoder_width, "encoder_attention_heads": encoder_heads, "encoder_ffn_dim": 2 * encoder_width}
    shape |= {"encoder_layers": 2, "num_mel_bins": mel_bins}
    if encoder == "omni":
        state |= _omni_part(rng, encoder_folder, shape | {"n_window": n_window, "output_dim": encoder_output})
    else:
        state |= _whisper_part(rng, encoder_folder, shape, whisper_seconds)

    train = _train_config(root, backbone, codec, encoder_folder, encoder, io_order)
    (root / "train.yaml").write_text(yaml.safe_dump(train, sort_keys=False))
    module = {name: value.to(getattr(torch, dtype)) for name, value in state.items()}
    if layout == "flat":
        checkpoint = folder / CHECKPOINT
        _write_checkpoint(checkpoint, module, 10)
    else:
        for step in steps:
            checkpoint = folder / "checkpoints" / f"step_{step}" / f"global_step{step}" / CHECKPOINT
            checkpoint.parent.mkdir(parents=True)
            (checkpoint.parents[1] / "latest").write_text(f"global_step{step}")
            last = step == max(steps)
            early = module | {"lm_head.weight": module["lm_head.weight"].flip(0)}
            _write_checkpoint(checkpoint, module if last else early, step)
        checkpoint = folder / "checkpoints" / f"step_{max(steps)}" / f"global_step{max(steps)}" / CHECKPOINT
    return Run(
        folder, root / "train.yaml", checkpoint, backbone, codec, encoder_folder,
        text_start, text_size, audio_start, codebook_size, vocabulary,
    )  # fmt: skip


# ---- random values ----

STEADY = 2.5  # approximate value of component 0 of the final hidden state (see _body_state)


def _normal(rng: np.random.Generator, shape: tuple[int, ...], scale: float, mean: float = 0.0) -> torch.Tensor:
    return torch.from_numpy((mean + scale * rng.standard_normal(shape)).astype(np.float32))


def _body_state(
    rng: np.random.Generator, config: dict[str, Any], vocabulary: int, steer: bool
) -> dict[str, torch.Tensor]:
    """``model.*`` of a Qwen2. With ``steer``, the last layer's value bias writes a constant into component 0.

    Attention weights sum to one, so a bias on a value passes through attention unchanged at every position: component 0
    of the final hidden state hardly varies (even when guidance mixes the branches), and column 0 of the head acts as
    the bias that the head lacks.
    """
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim", hidden // heads)
    state = {"model.embed_tokens.weight": _normal(rng, (vocabulary, hidden), 0.6)}
    if steer:
        state["model.embed_tokens.weight"][0] = 0.0
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        for name, outputs, inputs in (
            ("self_attn.q_proj", heads * head_dim, hidden),
            ("self_attn.k_proj", kv_heads * head_dim, hidden),
            ("self_attn.v_proj", kv_heads * head_dim, hidden),
            ("self_attn.o_proj", hidden, heads * head_dim),
            ("mlp.gate_proj", ffn, hidden),
            ("mlp.up_proj", ffn, hidden),
            ("mlp.down_proj", hidden, ffn),
        ):
            scale = {"self_attn.q_proj": 1.6, "self_attn.k_proj": 1.6, "mlp.gate_proj": 1.5}.get(name, 1.2)
            state[f"{at}{name}.weight"] = _normal(rng, (outputs, inputs), scale / math.sqrt(inputs))
            if name[-6:] in ("q_proj", "k_proj", "v_proj"):
                state[f"{at}{name}.bias"] = _normal(rng, (outputs,), 0.4)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            state[f"{at}{norm}.weight"] = _normal(rng, (hidden,), 0.2, 1.0)
    state["model.norm.weight"] = _normal(rng, (hidden,), 0.2, 1.0)
    if steer:
        at = f"model.layers.{config['num_hidden_layers'] - 1}."
        state[f"{at}self_attn.v_proj.weight"][0] *= 0.2
        state[f"{at}self_attn.v_proj.bias"][0] = 2.0
        state[f"{at}self_attn.o_proj.weight"][0] *= 0.5
        state[f"{at}self_attn.o_proj.weight"][0, 0] = 10.0
        for norm, first in ((f"{at}post_attention_layernorm.weight", 0.1), ("model.norm.weight", 0.5)):
            state[norm] *= 2.3  # component 0 now dominates the norm, so the others are small
            state[norm][0] = first
    return state


def _fill(rng: np.random.Generator, shapes: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Random values for a codec or encoder, by the kind of tensor that the name indicates."""
    filled: dict[str, torch.Tensor] = {}
    for name, like in shapes.items():
        shape = tuple(like.shape)
        if name.endswith("embed_avg"):
            filled[name] = filled[name.replace("embed_avg", "embed")].clone()
        elif name.endswith(("inited", "cluster_size")):
            filled[name] = torch.ones(shape)
        elif name.endswith((".embed", "masked_spec_embed")):
            filled[name] = _normal(rng, shape, 0.5)
        elif name.endswith("alpha"):
            filled[name] = torch.from_numpy(rng.uniform(0.3, 2.0, shape).astype(np.float32))
        elif "norm" in name.split(".")[-2] or "ln_post" in name or name.endswith("original0"):
            filled[name] = _normal(rng, shape, 0.1 if name.endswith("bias") else 0.2, float(not name.endswith("bias")))
        elif name.endswith("bias"):
            filled[name] = _normal(rng, shape, 0.1)
        else:
            filled[name] = _normal(rng, shape, 0.9 / math.sqrt(max(math.prod(shape[1:]), 1)))
    return filled


# ---- parts ----


def _backbone_config(
    hidden: int, layers: int, heads: int, kv_heads: int, head_dim: int | None, ffn: int, vocabulary: int
) -> dict[str, Any]:
    config: dict[str, Any] = {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": ffn,
        "max_position_embeddings": 131072,
        "max_window_layers": layers,
        "model_type": "qwen2",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 131072,
        "tie_word_embeddings": True,  # as in the public 1.5B; only the checkpoint's two tables matter
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": vocabulary,
    }
    return config if head_dim is None else config | {"head_dim": head_dim}


def _codec_part(
    rng: np.random.Generator,
    folder: Path,
    ratios: list[int],
    width: int,
    codebook_size: int,
    quantizers: int,
    weight_norm: str,
) -> dict[str, torch.Tensor]:
    hop = math.prod(ratios)
    bits = math.ceil(math.log2(codebook_size))
    # half a quantizer more than needed: the count is a floored quotient
    bandwidth = (quantizers + 0.5) * math.ceil(16000 / hop) * bits / 1000
    dac = {
        "model_type": "dac",
        "encoder_hidden_size": 4,
        "downsampling_ratios": ratios,
        "upsampling_ratios": ratios,
        "decoder_hidden_size": width,
        "hidden_size": 12,
        "hop_length": hop,
        "sampling_rate": 16000,
    }
    hubert = {
        "model_type": "hubert",
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 12,
        "conv_dim": [6] * len(ratios),
        "conv_stride": ratios,
        "conv_kernel": [2 * ratio for ratio in ratios],
        "num_conv_pos_embeddings": 4,
        "num_conv_pos_embedding_groups": 2,
    }
    config: dict[str, Any] = {
        "architectures": ["XcodecModel"],
        "model_type": "xcodec",
        "target_bandwidths": [bandwidth / 2, bandwidth],
        "sample_rate": 16000,
        "codebook_size": codebook_size,
        "acoustic_model_config": dac,
        "semantic_model_config": hubert,
    }
    _write_json(folder / "config.json", config)
    with torch.device("meta"):
        model = XcodecModel(XcodecConfig(**json.loads(json.dumps(config))))
    if model.config.num_quantizers != quantizers or model.config.hop_length != hop:
        raise ValueError(
            f"the codec came out with {model.config.num_quantizers} quantizers, hop {model.config.hop_length}"
        )
    weights = _fill(rng, model.state_dict())
    weights["acoustic_decoder.conv2.weight"] *= 0.1  # sounds of about -16 dBFS
    for name in [name for name in weights if name.startswith("acoustic") and name.endswith(".weight")]:
        if weight_norm == "folded":
            break
        whole = weights.pop(name)
        size = whole.pow(2).sum(dim=tuple(range(1, whole.dim())), keepdim=True).sqrt()
        direction = whole * torch.from_numpy(rng.uniform(0.5, 2.0, tuple(size.shape)).astype(np.float32))
        newer = f"{name.removesuffix('weight')}parametrizations.weight.original"
        spelling = {"weight_g": (f"{name}_g", f"{name}_v"), "parametrizations": (f"{newer}0", f"{newer}1")}
        weights |= dict(zip(spelling[weight_norm], (size, direction), strict=True))
    return {f"multimodal_io_dict.discrete_audio.codec_model.{name}": value for name, value in weights.items()}


def _omni_part(rng: np.random.Generator, folder: Path, shape: dict[str, int]) -> dict[str, torch.Tensor]:
    audio: dict[str, Any] = {"model_type": "qwen2_5_omni_audio_encoder", "activation_function": "gelu"}
    audio |= {"max_source_positions": 1500}
    audio |= {"dropout": 0.0, "scale_embedding": False, **shape}
    config: dict[str, Any] = {
        "architectures": ["Qwen2_5OmniModel"],
        "model_type": "qwen2_5_omni",
        "enable_audio_output": True,
        "thinker_config": {
            "model_type": "qwen2_5_omni_thinker",
            "audio_config": audio,
            "text_config": {"model_type": "qwen2_5_omni_text", "hidden_size": shape["output_dim"]},
            "vision_config": {"model_type": "qwen2_5_omni_vision_encoder"},
        },
        "talker_config": {"model_type": "qwen2_5_omni_talker"},
        "token2wav_config": {"model_type": "qwen2_5_omni_token2wav"},
    }
    _write_json(folder / "config.json", config)
    _write_json(folder / "preprocessor_config.json", _extractor_config(shape["num_mel_bins"], 300, True))
    with torch.device("meta"):
        model = Qwen2_5OmniAudioEncoder(Qwen2_5OmniAudioEncoderConfig(**audio))
    weights = _fill(rng, model.state_dict())
    return {f"multimodal_io_dict.continuous_audio.model.audio_tower.{name}": value for name, value in weights.items()}


def _whisper_part(
    rng: np.random.Generator, folder: Path, shape: dict[str, int], seconds: int
) -> dict[str, torch.Tensor]:
    config: dict[str, Any] = {
        "model_type": "qwen2_audio_encoder",
        "activation_function": "gelu",
        "max_source_positions": 50 * seconds,
    }
    config |= {"architectures": ["AFWhisperEncoder"], "dropout": 0.0, "scale_embedding": False, **shape}
    _write_json(folder / "config.json", config)
    _write_json(folder / "preprocessor_config.json", _extractor_config(shape["num_mel_bins"], seconds, False))
    with torch.device("meta"):
        model = Qwen2AudioEncoder(Qwen2AudioEncoderConfig(**config))
    weights = _fill(rng, model.state_dict())
    weights["embed_positions.weight"] = _normal(rng, tuple(weights["embed_positions.weight"].shape), 0.7)
    return {f"multimodal_io_dict.continuous_audio.model.{name}": value for name, value in weights.items()}


def _extractor_config(mel_bins: int, seconds: int, mask: bool) -> dict[str, Any]:
    return {
        "chunk_length": seconds,
        "dither": 0.0,
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": mel_bins,
        "hop_length": 160,
        "n_fft": 400,
        "n_samples": 16000 * seconds,
        "nb_max_frames": 100 * seconds,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": mask,
        "sampling_rate": 16000,
    }


def _train_config(
    root: Path, backbone: Path, codec: Path, encoder_folder: Path, encoder: str, io_order: tuple[str, ...]
) -> dict[str, Any]:
    """The contents of the recipe's conf/train.yaml, with the tiny folders' names."""
    name = str(backbone.relative_to(root))
    continuous: dict[str, Any] = {"encoder_choice": "huggingface", "encoder_hf_model_tag": OMNI_TAG}
    if encoder == "afwhisper":
        continuous = {"encoder_choice": "AFWhisper", "encoder_local_path": str(encoder_folder.relative_to(root))}
    parts: dict[str, dict[str, Any]] = {
        "text": {"tokenizer_name": name},
        "discrete_audio": {
            "codec_choice": "Xcodec",
            "codec_hf_model_tag": str(codec.relative_to(root)),
            "ssl_choice": None,
            "ssl_hf_model_tag": None,
            "delay_interleave": True,
            "stream_weights": [1 / STREAMS] * STREAMS,
        },
        "continuous_audio": continuous | {"attn_implementation": "flash_attention_2", "dtype": "bfloat16"},
    }
    loading = {"attn_implementation": "flash_attention_2", "dtype": "bfloat16", "local_files_only": True}
    frozen = ["multimodal_io_dict.discrete_audio", "multimodal_io_dict.continuous_audio"]
    return {
        "job_type": "ualm",
        "multimodal_io": {part: parts[part] for part in io_order},
        "model": {
            "model_choice": "parallel",
            "model_hf_tag": name,
            "model_conf": loading,
            "activation_checkpointing": True,
        },
        "preprocessor": {
            "audio_input": "continuous_audio",
            "audio_output": "discrete_audio",
            "loss_region": "assistant",
            "audio_cfg": 0.05,
        },
        "data_loading": {"batchfy_method": "bucket", "batch_size": 16000, "seed": 42, "num_workers": 6},
        "trainer": {
            "deepspeed_config": "conf/deepspeed.json",
            "freeze_param": frozen,
            "max_step": 1000000,
            "save_interval": 1000,
            "log_interval": 10,
        },
    }


def _write_checkpoint(path: Path, module: dict[str, torch.Tensor], step: int) -> None:
    saved = {
        "module": module,
        "buffer_names": [],
        "optimizer": None,
        "param_shapes": [{name: value.shape for name, value in module.items()}],
        "frozen_param_shapes": None,
        "shared_params": {},
        "lr_scheduler": None,
        "sparse_tensor_module_names": [],
        "skipped_steps": 0,
        "global_steps": step,
        "global_samples": 8 * step,
        "dp_world_size": 8,
        "mp_world_size": 1,
        "ds_config": {"train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": True}},
        "ds_version": "0.17.5",
        "global_step": step,
    }
    torch.save(saved, path)


# ---- tokenizer ----

_SENTENCES = (
    "A dog barks twice, and then a door slams shut in the distance!",
    "What instrument is playing in this recording? It is a piano.",
    "Rain falls on a tin roof while somebody whistles; it's quiet.",
    "The bell rings three times, isn't it loud, and then people clap.",
    "Transcribe the speech. Describe the sound that you hear in detail.",
)
_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@functools.cache
def _tokenizer_json() -> tuple[str, int]:
    """A byte-level BPE built like Qwen2.5's: bytes first (id 0 is "!"), then merges, special tokens last."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(_QWEN_WORDS), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_SENTENCES, trainer)
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    if tokenizer.token_to_id("!") != 0:
        raise ValueError("id 0 is not '!'")
    return tokenizer.to_str(), tokenizer.get_vocab_size()


def _write_tokenizer(folder: Path) -> int:
    content, size = _tokenizer_json()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(content)
    settings = {
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|endoftext|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    _write_json(folder / "tokenizer_config.json", settings)
    return size


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2))
