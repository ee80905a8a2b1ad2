"""Writes a trained network as a UALM training run, which ``ualm export`` reads."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from tokenizers import Tokenizer
from transformers import XcodecModel

from ....runtime.bundle.knowledge import Knowledge, content_words
from ....runtime.files.writing import replacing_folder
from ...bundle import KNOWS_FILE, TEMPLATES_FILE
from ..corpus.domain import DRUMS, INSTRUMENTS, MAX_EVENTS, NOTES, random_clip
from ..corpus.language import ADVERBS, COUNTS, PHRASES, TIMES, loose_prompt, question_and_answer, text_only
from ..corpus.tokens import TEXT_SIZE
from ..corpus.writer import FEATURES
from ..judging.examine import FRAMES
from .network import TinyShape, TinyUalm

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

    ``codes``: int64 [frames of the domain, 8], stored beside the run in ``frames.npy`` for the gates.
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
        features = {"feature_size": 128, "chunk_length": 300, "sampling_rate": 16000, "silence_db": FEATURES.silence_db}
        _write_json(run / "encoder" / "preprocessor_config.json", features)
        _write_json(run / TEMPLATES_FILE, templates())
        _write_json(run / KNOWS_FILE, knowledge().to_json())
        (run / "train.yaml").write_text(yaml.safe_dump(_train_yaml(), sort_keys=False), encoding="utf-8")
        torch.save({"module": module_states(network, codec), "global_steps": step}, run / "mp_rank_00_model_states.pt")
        np.save(run / FRAMES, codes.astype(np.int16))
        for name, content in documents.items():
            (run / name).write_text(content, encoding="utf-8")


def templates() -> dict[str, Any]:
    """The prompts of the reasoning modes for this model (``runtime.bundle.templates``): the words it was trained
    with."""
    reflection = PHRASES["reflection"]
    agrees, differs = (_last_words(reflection[kind]) for kind in ("match", "differ"))
    return {"reflect": {"check": reflection["check"], "agrees": [agrees], "differs": [differs]}}


#: Entries of phrases.json that a user says; the model says the others.
_SAID_BY_USERS = (
    *("exact", "exact_drum", "short", "short_drum", "bare", "bare_tempo", "mood", "shape", "register", "any_drum"),
    *("open", "open_mood", "answer_sound", "answer_both", "change", "recall", "questions"),
)
#: Prompts drawn to collect the words that only code inserts: far more than there are kinds of prompts.
_DRAWN = 3000
_NUMBERS = dict(enumerate(("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"), start=1))


def knowledge() -> Knowledge:
    """What the model knows: its domain in a sentence, and every word of the prompts that it was trained on."""
    first, last = NOTES[min(NOTES)], NOTES[max(NOTES)]
    instruments, drums, events = (_NUMBERS[count] for count in (len(INSTRUMENTS), len(DRUMS), MAX_EVENTS))
    about = (
        f"renders of one soundfont: {instruments} instruments from {first} to {last}, {drums} drums, "
        f"up to {events} notes or hits"
    )
    words = {word for prompt in _prompts() for word in content_words(prompt)}
    return Knowledge(about, tuple(sorted(words)))


def _prompts() -> Iterator[str]:
    """What the model is asked: the patterns without their placeholders, what fills these, and prompts as drawn."""
    yield from (
        *INSTRUMENTS,
        *DRUMS,
        *NOTES.values(),
        *COUNTS.values(),
        *TIMES.values(),
        *ADVERBS.values(),
        *PHRASES["moods"],
    )
    yield PHRASES["reflection"]["check"]
    for name in _SAID_BY_USERS:
        yield from (re.sub(r"\{\w+\}", " ", pattern) for pattern in _texts(PHRASES[name]))
    rng = random.Random(0)
    for _ in range(_DRAWN):
        yield from (loose_prompt(rng)[0], question_and_answer(random_clip(rng), rng)[0], text_only(rng)[0])


def _texts(phrases: Any) -> Iterator[str]:
    """The texts of an entry of phrases.json, however deep."""
    if isinstance(phrases, str):
        yield phrases
        return
    for each in phrases.values() if isinstance(phrases, Mapping) else phrases:
        yield from _texts(each)


def _last_words(review: str) -> str:
    """The sentence in the pattern of a review that says whether the sound is right."""
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
