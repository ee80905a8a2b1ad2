"""Writing what was trained as a UALM training run, which ``ualm export`` reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from tokenizers import Tokenizer
from transformers import XcodecModel

from ...runtime.files import replacing_folder
from ..exporter import TEMPLATES_FILE
from .examine import FRAMES
from .language import PHRASES
from .network import TinyShape, TinyUalm
from .tokens import TEXT_SIZE

CODEC_PREFIX = "multimodal_io_dict.discrete_audio.codec_model."
ENCODER_PREFIX = "multimodal_io_dict.continuous_audio.model.audio_tower."
ADAPTOR_PREFIX = "adaptor.continuous_audio."


def write_run(
    folder: Path,
    network: TinyUalm,
    codec: XcodecModel,
    tokenizer: Tokenizer,
    *,
    codes: np.ndarray,
    step: int,
    documents: Mapping[str, str],
) -> None:
    """Write the run to ``folder``, which must not exist yet.

    ``codes``: int64 [frames of the domain, 8], kept beside the run in ``frames.npy`` for the gates.
    ``documents``: further text files, by name.
    """
    shape = network.shape
    with replacing_folder(folder) as run:
        _write_json(run / "backbone" / "config.json", backbone_config(shape))
        tokenizer.save(str(run / "backbone" / "tokenizer.json"))
        _write_json(run / "backbone" / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
        _write_json(run / "codec" / "config.json", codec.config.to_dict())
        omni = {"model_type": "qwen2_5_omni", "thinker_config": {"audio_config": shape.encoder_config().to_dict()}}
        _write_json(run / "encoder" / "config.json", omni)
        features = {"feature_size": 128, "chunk_length": 300, "sampling_rate": 16000}
        _write_json(run / "encoder" / "preprocessor_config.json", features)
        _write_json(run / TEMPLATES_FILE, templates())
        (run / "train.yaml").write_text(yaml.safe_dump(_train_yaml(), sort_keys=False), encoding="utf-8")
        torch.save({"module": module_states(network, codec), "global_steps": step}, run / "mp_rank_00_model_states.pt")
        np.save(run / FRAMES, codes.astype(np.int16))
        for name, content in documents.items():
            (run / name).write_text(content, encoding="utf-8")


def templates() -> dict[str, Any]:
    """What the modes of reasoning say to this model (``runtime.templates``): the words it was trained with."""
    reflection = PHRASES["reflection"]
    agrees, differs = (_last_words(reflection[kind]) for kind in ("match", "differ"))
    return {"reflect": {"check": reflection["check"], "agrees": [agrees], "differs": [differs]}}


def _last_words(review: str) -> str:
    """Of the pattern of a review the sentence that says whether the sound is right."""
    return review.split(". ")[2].partition(":")[0].rstrip(".")


def module_states(network: TinyUalm, codec: XcodecModel) -> dict[str, torch.Tensor]:
    """The checkpoint's flat state dict, in bf16."""
    states: dict[str, torch.Tensor] = {}
    for name, tensor in network.state_dict().items():
        if name.startswith("probe."):
            continue
        if name.startswith("audio_tower."):
            name = ENCODER_PREFIX + name.removeprefix("audio_tower.")
        elif name.startswith("adaptor."):
            name = ADAPTOR_PREFIX + name.removeprefix("adaptor.")
        states[name] = tensor
    states |= {CODEC_PREFIX + name: tensor for name, tensor in codec.state_dict().items()}
    return {
        name: (tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor).contiguous().clone()
        for name, tensor in states.items()
    }


def backbone_config(shape: TinyShape) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": shape.max_positions,
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_theta": shape.rope_theta,
        "vocab_size": TEXT_SIZE,
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
            "continuous_audio": {"encoder_choice": "huggingface", "encoder_hf_model_tag": "encoder"},
        },
        "model": {"model_choice": "parallel", "model_hf_tag": "backbone"},
        "preprocessor": {"audio_input": "continuous_audio", "audio_output": "discrete_audio"},
    }


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1), encoding="utf-8")
