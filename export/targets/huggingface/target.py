"""The target ``huggingface``: a Qwen2ForCausalLM folder that generates text, for transformers and other readers of its
folders.

Exported: the body, the whole embedding table and the whole head, untied, with the model's own ids, and in a folder
beside them the audio encoder. Sound generation is left out: the architecture has no place for eight streams, guidance
or a codec. See docs/huggingface.md. Greedy text equals the runtime's with ``modality="text"``, token by token, if
weights and arithmetic are float32.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ....runtime.files.writing import replacing_folder
from ....runtime.sampling import TextSampling
from ....runtime.shown import in_bytes
from ....runtime.vocabulary import BOS, EOS, EOT, SPECIALS
from ...formats.safetensors_writer import Stacked, in_files, write_stacked
from ..registry import ExportRequest, ExportResult, Progress, refuse_others
from ..text_side import TextSide, read_text_side
from .encoder import write_listening
from .tokenizer import PADDING, rebuilt_otherwise, write_hf_tokenizer

#: Most bytes of a file of weights.
SHARD = 4 * 10**9
#: Folder of the encoder and the adaptor.
LISTENING = "listening"
#: Facts that other engines need, for which no Hugging Face file has a field: see :func:`vocabulary_facts`.
FACTS = "ualm_text.json"


def target(request: ExportRequest, progress: Progress) -> ExportResult:
    """Write the folder ``request.output``, complete or not at all. ``request.precision``: fp32, bf16 or fp16; the
    checkpoint's own by default. Raises :class:`ExportError`, naming the field or tensor."""
    began = time.perf_counter()
    refuse_others(request, "huggingface")
    side = read_text_side(request)
    with replacing_folder(request.output) as folder:
        write_hf_tokenizer(side.recipe, side.vocabulary, folder)
        _write_json(folder / "config.json", model_config(side))
        _write_json(folder / "generation_config.json", generation_config(side))
        _write_json(folder / FACTS, vocabulary_facts(side))
        write_weights(side, folder, progress)
        for _ in write_listening(side, folder / LISTENING):
            progress("listening", 0, 0)
        replaced = rebuilt_otherwise(folder)
        files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        sizes = {str(file.relative_to(folder)): file.stat().st_size for file in files}
    notes: tuple[str, ...] = ()
    if replaced:
        notes = (
            f"this run's {' and '.join(replaced)} differ from Qwen's, which AutoTokenizer of transformers 5 takes: "
            "load this tokenizer with PreTrainedTokenizerFast",
        )
    code = (
        "from transformers import pipeline; "
        f"pipe = pipeline('text-generation', {str(request.output)!r}); "
        "print(pipe([{'role': 'user', 'content': 'Hello.'}])[0]['generated_text'][-1]['content'])"
    )
    return made(request, side, sizes, "huggingface", notes, began, f"python -c {shlex.quote(code)}")


def made(
    request: ExportRequest,
    side: TextSide,
    sizes: Mapping[str, int],
    engine: str,
    notes: tuple[str, ...],
    began: float,
    following: str,
) -> ExportResult:
    """The report on a folder for another engine. ``began``: ``time.perf_counter()`` at the start of the work;
    ``following``: the command to run next."""
    size, seconds = sum(sizes.values()), time.perf_counter() - began
    result = {
        "folder": str(request.output),
        "engine": engine,
        "config": str(side.files.config),
        "weights": str(side.files.weights),
        "step": side.files.step,
        "dtype": side.dtype,
        "bytes": dict(sizes),
        "notes": list(notes),
        "total_bytes": size,
        "total_seconds": round(seconds, 3),
        "next": following,
    }
    lines = [f"{name:<34}{in_bytes(size):>16}" for name, size in sizes.items()]
    summary = (
        f"{request.output}: exported for {engine} in {side.dtype}, no sound comes out of it; {in_bytes(size).strip()} "
        f"in {seconds:.1f} s; next: {following}"
    )
    return ExportResult(result, (*lines, *notes, summary))


def model_config(side: TextSide) -> dict[str, Any]:
    """``config.json``, in a form that both transformers 4 and 5 read."""
    s = side.shape
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "attention_dropout": 0.0,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "hidden_act": "silu",
        "hidden_size": s.hidden_size,
        "head_dim": s.head_dim,
        "initializer_range": 0.02,
        "intermediate_size": s.ffn_size,
        "max_position_embeddings": s.max_positions,
        "num_attention_heads": s.heads,
        "num_hidden_layers": s.layers,
        "num_key_value_heads": s.kv_heads,
        "rms_norm_eps": s.rms_norm_eps,
        "rope_theta": s.rope_theta,
        "tie_word_embeddings": False,
        "torch_dtype": side.dtype,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": side.vocabulary.size,
    }


def generation_config(side: TextSide) -> dict[str, Any]:
    """``generation_config.json``: greedy, as UALM generates text, and restricted to the ids that a text may hold."""
    return {
        "bos_token_id": BOS,
        "eos_token_id": [EOS, EOT],
        "pad_token_id": PADDING,
        "do_sample": False,
        "max_new_tokens": TextSampling().max_steps,
        "suppress_tokens": [index for span in side.suppressed for index in span],
    }


def vocabulary_facts(side: TextSide) -> dict[str, Any]:
    """The meanings of ids. ``suppress``: first and last + 1 of each span that must not be drawn; an engine that does
    not read ``suppress_tokens`` must be given them in its own way."""
    v = side.vocabulary
    return {
        "special": [0, SPECIALS],
        "text": [side.text_ids.start, side.text_ids.stop],
        "audio": [v.audio_base, v.audio_base + v.audio_size],
        "stop": [EOS, EOT],
        "suppress": [[span.start, span.stop] for span in side.suppressed],
        # arguments of the feature extractor for which preprocessor_config.json has no field
        "normalize_sound": side.recipe.encoder_kind == "qwen2.5-omni",
        "step": side.files.step,
        "weights": side.files.weights.name,
    }


def write_weights(side: TextSide, folder: Path, progress: Progress, shard: int = SHARD) -> None:
    """Stream the weights into files of at most ``shard`` bytes, with an index if there are several."""
    tensors = [Stacked(name, shape, (name,)) for name, shape in side.tensors.items()]
    files = in_files(tensors, side.dtype, shard)
    total = sum(tensor.nbytes(side.dtype) for tensor in tensors)
    names = ["model.safetensors"]
    if len(files) > 1:
        names = [f"model-{index + 1:05}-of-{len(files):05}.safetensors" for index in range(len(files))]
        placed = {tensor.name: name for name, file in zip(names, files, strict=True) for tensor in file}
        _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": placed})
    done = 0
    progress("weights", 0, total)
    for name, file in zip(names, files, strict=True):
        for written in write_stacked(folder / name, file, side.checkpoint, side.dtype):
            done += written
            progress("weights", done, total)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
