"""The checkpoint for TensorRT-LLM 1.2's engine workflow, by our reading of its sources; TensorRT-LLM is not run
here."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import linear, scaled_dot_product_attention, silu
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from support.runs import Run, make_run
from ualm.export.targets.huggingface.target import target as huggingface
from ualm.export.targets.registry import ExportRequest
from ualm.export.targets.tensorrt_llm import UNVERIFIED, WEIGHTS, check_checkpoint, target
from ualm.runtime import ExportError, InputError


@pytest.fixture(scope="module", params=[None, 16], ids=["plain", "heads wider than hidden / heads"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("llm") / "run", seed=3, head_dim=request.param)


@pytest.fixture(scope="module")
def folder(run: Run) -> Path:
    made = target(ExportRequest(run=run.folder, output=run.folder.parent / "llm", precision="fp32"), _silent)
    assert made.result["notes"] == [UNVERIFIED]
    assert any(UNVERIFIED in line for line in made.lines)
    assert made.result["next"].startswith(f"trtllm-build --checkpoint_dir {run.folder.parent / 'llm'} ")
    assert re.search(rf"; [\d.]+ (bytes|KiB|MiB) in [\d.]+ s; next: {re.escape(made.result['next'])}$", made.lines[-1])
    return run.folder.parent / "llm"


def _silent(stage: str, done: int, total: int) -> None:
    pass


def test_a_forward_pass_over_its_names_gives_the_logits_of_the_folder_for_transformers(run: Run, folder: Path) -> None:
    """The names have the meaning that we assume: qkv stacked, fc activated and multiplied by gate."""
    output = folder.parent / "hf"
    huggingface(ExportRequest(run=run.folder, output=output, precision="fp32"), _silent)
    network: Any = AutoModelForCausalLM.from_pretrained(output)
    ids = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer").apply_chat_template(
        [{"role": "user", "content": "A dog barks twice!"}], return_dict=True, return_tensors="pt"
    )["input_ids"]
    with torch.no_grad():
        expected = network(ids).logits[0]
        found = forward(folder, ids[0])
    assert (found - expected).abs().max() < 1e-4 * expected.std()


def forward(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """Logits float32 [rows, vocabulary] of a Qwen2 as TensorRT-LLM's module tree names and configures it."""
    config, w = json.loads((folder / "config.json").read_text()), load_file(folder / WEIGHTS)
    heads, kv, size = config["num_attention_heads"], config["num_key_value_heads"], config["head_size"]
    rates = config["rotary_base"] ** (-torch.arange(0, size, 2) / size)
    angles = torch.arange(len(ids))[:, None] * rates
    cos, sin = torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x * (x.square().mean(-1, keepdim=True) + config["norm_epsilon"]).rsqrt() * w[f"{name}.weight"]

    def rotated(x: torch.Tensor) -> torch.Tensor:  # "rope_gpt_neox": rotates the two halves of a head
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    x = w["transformer.vocab_embedding.weight"][ids]
    for index in range(config["num_hidden_layers"]):
        at = f"transformer.layers.{index}"
        qkv = linear(norm(x, f"{at}.input_layernorm"), w[f"{at}.attention.qkv.weight"], w[f"{at}.attention.qkv.bias"])
        q, k, v = (
            part.unflatten(-1, (-1, size)).transpose(0, 1)
            for part in qkv.split([heads * size, kv * size, kv * size], dim=-1)
        )
        y = scaled_dot_product_attention(rotated(q), rotated(k), v, is_causal=True, enable_gqa=True)
        x = x + linear(y.transpose(0, 1).flatten(1), w[f"{at}.attention.dense.weight"])
        y = norm(x, f"{at}.post_layernorm")
        y = silu(linear(y, w[f"{at}.mlp.fc.weight"])) * linear(y, w[f"{at}.mlp.gate.weight"])
        x = x + linear(y, w[f"{at}.mlp.proj.weight"])
    return linear(norm(x, "transformer.ln_f"), w["lm_head.weight"])


def test_one_dtype_throughout_and_that_of_the_checkpoint_by_default(run: Run, tmp_path: Path) -> None:
    made = target(ExportRequest(run=run.folder, output=tmp_path / "llm"), _silent)
    assert made.result["dtype"] == json.loads((tmp_path / "llm" / "config.json").read_text())["dtype"] == "bfloat16"
    assert {tensor.dtype for tensor in load_file(tmp_path / "llm" / WEIGHTS).values()} == {torch.bfloat16}
    assert sorted(path.name for path in (tmp_path / "llm").iterdir()) == [
        "config.json", WEIGHTS, "tokenizer", "ualm_text.json",
    ]  # fmt: skip


def _config(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text()) | values
        (folder / "config.json").write_text(json.dumps(config))

    return change


def _weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        (folder / WEIGHTS).unlink()
        save_file(tensors, folder / WEIGHTS)

    return rewrite


def _cut(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).write_bytes(content[:-5])


_DENSE = "transformer.layers.1.attention.dense.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_config(num_hidden_layers=3), "transformer.layers.2.attention.dense.weight is missing"),
        (_config(num_hidden_layers=1), "transformer.layers.1.attention.dense.weight is not part of"),
        (_config(intermediate_size=50), "mlp.fc.weight is F32 [48, 32], F32 [50, 32]"),
        (_config(num_key_value_heads=3), "num_key_value_heads = 3"),
        (_config(dtype="float16"), "F16"),
        (_config(dtype="int8"), "dtype = 'int8'"),
        (_config(architecture="QWenForCausalLM"), "architecture"),
        (_config(tie_word_embeddings=True), "tie_word_embeddings"),
        (_config(mapping={"world_size": 2, "tp_size": 2, "pp_size": 1}), "mapping.world_size = 2"),
        (_config(quantization={"quant_algo": "W8A16"}), "quantization.quant_algo"),
        (_weights(lambda w: w.pop(_DENSE)), f"{_DENSE} is missing"),
        (_weights(lambda w: w.update(score=torch.zeros(1))), "score is not part of"),
        (_weights(lambda w: w.update({_DENSE: w[_DENSE].half()})), f"{_DENSE} is F16"),
        (_cut, "its header says"),
        (lambda folder: (folder / WEIGHTS).unlink(), "missing"),
        (lambda folder: (folder / WEIGHTS).unlink() or (folder / WEIGHTS).write_bytes(b"{}"), "not a readable"),
    ],
)
def test_a_checkpoint_that_the_model_would_not_take_is_named(
    folder: Path, tmp_path: Path, change: Callable[[Path], None], said: str
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    check_checkpoint(copy)
    change(copy)
    with pytest.raises(ExportError) as caught:
        check_checkpoint(copy)
    assert said in str(caught.value)
    assert str(copy) in str(caught.value)


def test_options_that_do_not_apply_are_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--codec-precision: does not apply to --engine tensorrt-llm"):
        target(ExportRequest(run=run.folder, output=tmp_path / "llm", codec_precision="fp16"), _silent)
    with pytest.raises(ExportError, match="precision = 'int4'"):
        target(ExportRequest(run=run.folder, output=tmp_path / "llm", precision="int4"), _silent)
    assert list(tmp_path.iterdir()) == []
