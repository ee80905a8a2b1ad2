"""The target ``tensorrt-llm``: a checkpoint of TensorRT-LLM 1.2's engine workflow, for ``trtllm-build``.

UNVERIFIED: written from the published sources of 1.2 (its Qwen2 model and ``convert_checkpoint.py``) and never loaded
by TensorRT-LLM. Only our own reading of its schema is checked (:func:`check_checkpoint`) and, by a test, that a forward
pass over these names gives the logits of the folder that ``huggingface`` writes. TensorRT-LLM dropped this workflow
after 1.2; its PyTorch backend reads the ``huggingface`` folder.

Names: ``transformer.layers.N.`` has ``attention.qkv`` (queries, keys, values stacked, with bias), ``attention.dense``,
``mlp.fc`` (the gate, which is activated), ``mlp.gate`` (what it multiplies: transformers' ``up_proj``), ``mlp.proj``,
``input_layernorm`` and ``post_layernorm``; around them ``transformer.vocab_embedding``, ``transformer.ln_f`` and
``lm_head``. Linear weights are [out, in], everything has one dtype, and one GPU holds it all.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...runtime.errors import ExportError
from ...runtime.files.writing import replacing_folder
from ..formats.safetensors_writer import STORED, Stacked, write_stacked
from ..parts.heads import EMBEDDING, HEAD
from ..run.config import Fields, read_json
from .huggingface.target import FACTS, made, vocabulary_facts
from .huggingface.tokenizer import write_hf_tokenizer
from .registry import ExportRequest, ExportResult, Progress, refuse_others
from .text_side import TextSide, read_text_side

WEIGHTS = "rank0.safetensors"
#: Folder of the tokenizer, which the workflow keeps separate from the checkpoint.
TOKENIZER = "tokenizer"
UNVERIFIED = "unverified: never loaded by TensorRT-LLM; names and shapes were only checked by ualm's own rules"


def target(request: ExportRequest, progress: Progress) -> ExportResult:
    """Write the folder ``request.output``, complete or not at all. ``request.precision``: fp32, bf16 or fp16; the
    checkpoint's own by default. Raises :class:`ExportError`, naming the field or tensor."""
    began = time.perf_counter()
    refuse_others(request, "tensorrt-llm")
    side = read_text_side(request)
    tensors = stacked_tensors(side)
    total = sum(tensor.nbytes(side.dtype) for tensor in tensors)
    with replacing_folder(request.output) as folder:
        (folder / TOKENIZER).mkdir()
        write_hf_tokenizer(side.recipe, side.vocabulary, folder / TOKENIZER)
        for name, values in (("config.json", checkpoint_config(side)), (FACTS, vocabulary_facts(side))):
            (folder / name).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        done = 0
        progress("weights", 0, total)
        for written in write_stacked(folder / WEIGHTS, tensors, side.checkpoint, side.dtype):
            done += written
            progress("weights", done, total)
        check_checkpoint(folder)
        files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        sizes = {str(file.relative_to(folder)): file.stat().st_size for file in files}
    place = str(request.output)
    following = f"trtllm-build --checkpoint_dir {shlex.quote(place)} --output_dir {shlex.quote(f'{place}_engine')}"
    return made(request, side, sizes, "tensorrt-llm", (UNVERIFIED,), began, following)


def stacked_tensors(side: TextSide) -> list[Stacked]:
    """The tensors of the checkpoint, and the run's tensors that they are made of."""
    shape, rows = side.tensors, side.shape.qkv_size
    found = [Stacked("transformer.vocab_embedding.weight", shape[EMBEDDING], (EMBEDDING,))]
    for index in range(side.shape.layers):
        ours, theirs = f"model.layers.{index}", f"transformer.layers.{index}"
        for kind in ("weight", "bias"):
            sources = tuple(f"{ours}.self_attn.{letter}_proj.{kind}" for letter in "qkv")
            stack = (rows, *shape[sources[0]][1:])
            found.append(Stacked(f"{theirs}.attention.qkv.{kind}", stack, sources))
        for old, new in (
            ("self_attn.o_proj", "attention.dense"),
            ("mlp.gate_proj", "mlp.fc"),
            ("mlp.up_proj", "mlp.gate"),
            ("mlp.down_proj", "mlp.proj"),
            ("input_layernorm", "input_layernorm"),
            ("post_attention_layernorm", "post_layernorm"),
        ):
            source = f"{ours}.{old}.weight"
            found.append(Stacked(f"{theirs}.{new}.weight", shape[source], (source,)))
    found.append(Stacked("transformer.ln_f.weight", shape["model.norm.weight"], ("model.norm.weight",)))
    return [*found, Stacked("lm_head.weight", shape[HEAD], (HEAD,))]


def checkpoint_config(side: TextSide) -> dict[str, Any]:
    """``config.json`` of the checkpoint: what 1.2's QWenConfig takes, with defaults that matter written out."""
    s = side.shape
    return {
        "architecture": "Qwen2ForCausalLM",
        "qwen_type": "qwen2",
        "dtype": side.dtype,
        "logits_dtype": "float32",
        "vocab_size": side.vocabulary.size,
        "max_position_embeddings": s.max_positions,
        "hidden_size": s.hidden_size,
        "intermediate_size": s.ffn_size,
        "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads,
        "num_key_value_heads": s.kv_heads,
        "head_size": s.head_dim,
        "hidden_act": "silu",
        "norm_epsilon": s.rms_norm_eps,
        "position_embedding_type": "rope_gpt_neox",
        "rotary_embedding_dim": s.head_dim,
        "rotary_base": s.rope_theta,
        "rotary_scaling": None,
        "attn_bias": True,
        "mlp_bias": False,
        "qk_layernorm": False,
        "use_logn_attn": False,
        "tie_word_embeddings": False,
        "use_parallel_embedding": False,
        "embedding_sharding_dim": 0,
        "disable_weight_only_quant_plugin": False,
        "moe_intermediate_size": 0,
        "moe_shared_expert_intermediate_size": 0,
        "mapping": {"world_size": 1, "tp_size": 1, "pp_size": 1},
        "quantization": {"quant_algo": None, "kv_cache_quant_algo": None},
    }


def check_checkpoint(folder: Path) -> None:
    """Refuse a folder whose tensors are not those that the model requires with its ``config.json``.

    This is only ualm's reading of 1.2's model: see the top of this file. Raises :class:`ExportError` that names
    the file, the field or tensor, and what was expected.
    """
    path = folder / "config.json"
    fields = Fields(path, read_json(path))
    for name, value in (
        ("architecture", "Qwen2ForCausalLM"),
        ("qwen_type", "qwen2"),
        ("hidden_act", "silu"),
        ("position_embedding_type", "rope_gpt_neox"),
        ("attn_bias", True),
        ("mlp_bias", False),
        ("tie_word_embeddings", False),
    ):
        fields.expect(name, value, None, f"{value!r} is expected")
    for name in ("world_size", "tp_size", "pp_size"):
        fields.section("mapping").expect(name, 1, None, "one GPU holds the whole model")
    fields.section("quantization").expect("quant_algo", None, None, "weights are plain numbers")
    dtype = fields.name("dtype", "name the format of the weights")
    if dtype not in STORED:
        fields.refuse("dtype", f"choose {', '.join(STORED)}")
    file = folder / WEIGHTS
    found = _header(file)
    wanted = _wanted(fields)
    for name in sorted(wanted.keys() | found.keys()):
        if name not in found:
            raise ExportError(f"{file}: tensor {name} is missing; export the run again")
        if name not in wanted:
            raise ExportError(f"{file}: tensor {name} is not part of this model; export the run again")
        entry = (found[name].get("dtype"), tuple(found[name].get("shape", ())))
        if entry != (STORED[dtype][0], wanted[name]):
            raise ExportError(
                f"{file}: tensor {name} is {entry[0]} {list(entry[1])}, {STORED[dtype][0]} {list(wanted[name])} is "
                "expected; export the run again"
            )


def _wanted(fields: Fields) -> dict[str, tuple[int, ...]]:
    hidden, ffn, head = fields.size("hidden_size"), fields.size("intermediate_size"), fields.size("head_size")
    heads, kv_heads = fields.size("num_attention_heads"), fields.size("num_key_value_heads")
    if heads % kv_heads:
        fields.refuse("num_key_value_heads", f"must divide num_attention_heads = {heads}")
    if fields.size("rotary_embedding_dim") != head:
        fields.refuse("rotary_embedding_dim", f"must be head_size = {head}")
    table = (fields.size("vocab_size"), hidden)
    wanted: dict[str, tuple[int, ...]] = {"transformer.vocab_embedding.weight": table, "lm_head.weight": table}
    wanted["transformer.ln_f.weight"] = (hidden,)
    for index in range(fields.size("num_hidden_layers")):
        layer = f"transformer.layers.{index}"
        wanted |= {
            f"{layer}.attention.qkv.weight": ((heads + 2 * kv_heads) * head, hidden),
            f"{layer}.attention.qkv.bias": ((heads + 2 * kv_heads) * head,),
            f"{layer}.attention.dense.weight": (hidden, heads * head),
            f"{layer}.mlp.fc.weight": (ffn, hidden),
            f"{layer}.mlp.gate.weight": (ffn, hidden),
            f"{layer}.mlp.proj.weight": (hidden, ffn),
            f"{layer}.input_layernorm.weight": (hidden,),
            f"{layer}.post_layernorm.weight": (hidden,),
        }
    return wanted


def _header(path: Path) -> dict[str, Mapping[str, Any]]:
    """Names in a safetensors file, with dtype and shape; the data must be complete."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except FileNotFoundError:
        raise ExportError(f"{path}: missing; export the run again") from None
    except (OSError, ValueError, AttributeError, KeyError, TypeError, IndexError, OverflowError, MemoryError) as error:
        raise ExportError(f"{path}: not a readable safetensors file ({error}); export the run again") from error
    if path.stat().st_size != 8 + length + end:
        raise ExportError(
            f"{path}: {path.stat().st_size} bytes, its header says {8 + length + end}; export the run again"
        )
    return header
