"""Exports the audio encoder, its feature-extractor config and the adaptor as a Transformers folder.

A Qwen2ForCausalLM has no place for them. To serve sounds, compute their feature rows with this folder and put them into
the prompt as embeddings: docs/huggingface.md shows how.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ....runtime.bundle.feature_spec import FeatureSpec
from ...formats.safetensors_writer import Stacked, write_stacked
from ...formats.store import WeightStore
from ...parts.encoders.af_whisper import plan_encoder as plan_afwhisper
from ...parts.encoders.omni import plan_encoder as plan_omni
from ...parts.encoders.whisper import ADAPTOR_PREFIX, CHECKPOINT_PREFIX, audio_config
from ..text_side import TextSide

#: Where a checkpoint has the tensors of each encoder, and transformers' names for its class and its configuration.
_KINDS = {
    "qwen2.5-omni": (f"{CHECKPOINT_PREFIX}audio_tower.", "Qwen2_5OmniAudioEncoder", "qwen2_5_omni_audio_encoder"),
    "af-whisper": (CHECKPOINT_PREFIX, "Qwen2AudioEncoder", "qwen2_audio_encoder"),
}


def write_listening(side: TextSide, folder: Path) -> Iterator[int]:
    """Write encoder and adaptor into ``folder``, which is created; yields the bytes written after each block.

    The encoder's class in transformers loads ``config.json`` and ``model.safetensors``, WhisperFeatureExtractor loads
    ``preprocessor_config.json``; ``adaptor.safetensors`` holds ``weight`` [H, output of the encoder] and ``bias`` [H].
    Raises :class:`ExportError`, naming the field or tensor.
    """
    recipe = side.recipe
    prefix, name, model_type = _KINDS[recipe.encoder_kind]
    plan = plan_omni if recipe.encoder_kind == "qwen2.5-omni" else plan_afwhisper
    part = plan(
        side.checkpoint,
        dict(recipe.encoder),
        dict(recipe.features),
        WeightStore("checked, never written"),
        side.shape.hidden_size,
    )
    folder.mkdir()
    config = {**audio_config(recipe.encoder), "architectures": [name], "model_type": model_type}
    config["torch_dtype"] = side.dtype
    _write_json(folder / "config.json", config)
    _write_json(folder / "preprocessor_config.json", _extractor(part.features))
    adaptor = {f"{ADAPTOR_PREFIX}.{part}": part for part in ("weight", "bias")}
    encoder = {tensor: tensor.removeprefix(prefix) for tensor in sorted(part.tensors - set(adaptor))}
    for file, names in (("model.safetensors", encoder), ("adaptor.safetensors", adaptor)):
        tensors = [Stacked(new, side.checkpoint.shape(old), (old,)) for old, new in names.items()]
        yield from write_stacked(folder / file, tensors, side.checkpoint, side.dtype)


def _extractor(spec: FeatureSpec) -> dict[str, Any]:
    return {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "chunk_length": spec.max_samples // spec.sample_rate,
        "dither": 0.0,
        "feature_size": spec.n_mels,
        "hop_length": spec.hop_length,
        "n_fft": spec.n_fft,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
        "sampling_rate": spec.sample_rate,
        **({"silence_db": spec.silence_db} if spec.silence_db else {}),  # transformers ignores it
    }


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
