"""Every precision of a bundle: what is stored, what an engine computes from it, and the reported quality."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from transformers import Qwen2Config, Qwen2Model

from support.tensorrt.build import build_part
from ualm.bench.random_run.run import SHAPES, write_random_run
from ualm.export.bundle import ExportReport, export_run
from ualm.export.formats.precision import BACKBONE, Precision
from ualm.export.parts.integer import integer_products
from ualm.export.quality.agreement import Agreement, cosine, signal_to_noise
from ualm.export.quality.reference_body import hidden_states
from ualm.export.run.checkpoint import Checkpoint
from ualm.export.run.qwen2 import BackboneShape
from ualm.runtime.bundle import quality as quality_of
from ualm.runtime.bundle.bundle import Bundle
from ualm.runtime.bundle.quality import misses
from ualm.runtime.diagnostics.golden import check_golden
from ualm.runtime.engines.registry import open_engine
from ualm.runtime.errors import ExportError
from ualm.runtime.files.safetensors_reader import widen


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training run whose matrices have whole blocks of 32."""
    folder = tmp_path_factory.mktemp("blocks") / "run"
    write_random_run(folder, SHAPES["tiny"])
    return folder


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ExportReport]:
    made: dict[str, ExportReport] = {}

    def export(precision: str) -> ExportReport:
        if precision not in made:
            folder = tmp_path_factory.mktemp("bundles") / precision
            made[precision] = export_run(run, folder, precision=precision, accept_quality=True)
        return made[precision]

    return export


@pytest.mark.parametrize("precision", BACKBONE)
def test_the_engine_computes_what_the_stored_weights_mean(exported: Any, precision: str) -> None:
    """The golden vector is float32 arithmetic on the weights as stored: narrow floats cost an engine nothing."""
    bundle = Bundle(exported(precision).bundle)
    engine = open_engine(None, bundle, threads=1, max_context=128)
    checks = check_golden(bundle, engine)
    engine.close()
    assert checks and all(check.passed for check in checks)
    exact = [check for check in checks if check.tolerance <= 1e-4]
    assert len(exact) == {"fp32": 8, "bf16": 8, "fp16": 8, "fp8": 3, "int8": 2, "int4": 2}[precision]


@pytest.mark.parametrize("precision", BACKBONE)
def test_quality_is_kept_and_ranks_the_formats(exported: Any, precision: str) -> None:
    report = exported(precision)
    kept = Bundle(report.bundle).manifest.quality
    assert kept == report.quality
    assert kept["audio"]["draws"] > 600 and kept["text"]["draws"] == 80
    if precision in ("fp32", "bf16", "fp16"):  # the run is bf16: fp32 and bf16 lose nothing, fp16 almost nothing
        for modality in ("audio", "text"):
            assert kept[modality]["top1"] == 1 and kept[modality]["kl"] < 1e-9
    else:
        assert 1e-5 < kept["audio"]["kl"] < 0.01 and 0.9 < kept["audio"]["top1"] < 1
        assert kept["features"]["cosine_least"] > 0.999
    assert kept["pcm"]["snr_db"] == 200 if precision == "fp32" else 60 < kept["pcm"]["snr_db"] < 140


def test_blob_sizes_shrink_with_the_format(exported: Any) -> None:
    def body(precision: str) -> int:
        return Bundle(exported(precision).bundle).manifest.parts["backbone"].weight_bytes

    sizes = {precision: body(precision) for precision in BACKBONE}
    assert sizes["fp32"] > 1.9 * sizes["bf16"] == 1.9 * sizes["fp16"]
    assert sizes["fp8"] / sizes["fp16"] == pytest.approx(1 / 2, rel=0.01)
    # 32 numbers and a scale of two bytes: 34 bytes, and 18 bytes, of 64
    assert sizes["int8"] / sizes["fp16"] == pytest.approx(34 / 64, rel=0.05)
    assert sizes["int4"] / sizes["fp16"] == pytest.approx(18 / 64, rel=0.1)


@pytest.mark.parametrize("precision", BACKBONE)
def test_the_null_branch_is_that_of_the_stored_weights(exported: Any, precision: str) -> None:
    """Keys and values of a zero row match the golden vector's dense null branch: doctor compares its logits."""
    bundle = Bundle(exported(precision).bundle)
    keys = bundle.table("null.keys")
    fp32 = Bundle(exported("fp32").bundle).table("null.keys")
    assert keys.dtype == np.float32
    changed = np.abs(keys - fp32).max()
    assert (changed > 1e-4) == (precision in ("fp8", "int8", "int4"))


def test_tables_stay_as_the_checkpoint_has_them(exported: Any, run: Path) -> None:
    for precision in ("fp32", "int4"):
        table = Bundle(exported(precision).bundle).table("embedding")
        assert table.dtype == np.uint16  # bfloat16, as trained
        exact = Checkpoint(run / "mp_rank_00_model_states.pt").read("model.embed_tokens.weight")
        np.testing.assert_array_equal(widen(table), exact)


def test_a_format_below_its_gate_is_refused_and_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(quality_of.GATES, "int4", quality_of.Gate(top1=1.0, audio_kl=1e-9, text_kl=1e-9))
    with pytest.raises(
        ExportError, match=r"int4 does not agree with fp32: audio top-1 0\.\d+ < 1\.0.*--accept-quality"
    ):
        export_run(run, tmp_path / "bundle", precision="int4")
    assert not list(tmp_path.iterdir())
    report = export_run(run, tmp_path / "bundle", precision="int4", accept_quality=True)
    assert any("audio top-1" in clause for clause in report.missed)


def test_every_gate_can_be_missed() -> None:
    good = {"top1": 1.0, "kl": 0.0}
    quality: dict[str, Any] = {
        "audio": good, "text": good, "features": {"cosine_least": 1.0}, "pcm": {"snr_db": 200.0}
    }  # fmt: skip
    formats = Precision.of("int4").to_json()
    assert misses(quality, formats) == []
    for part, field, value, word in (
        ("audio", "top1", 0.5, "audio top-1"),
        ("text", "kl", 3.0, "text KL"),
        ("features", "cosine_least", 0.5, "cosine"),
        ("pcm", "snr_db", 3.0, "SNR"),
        ("audio", "top1", math.nan, "audio top-1"),
        ("audio", "kl", math.nan, "audio KL"),
        ("features", "cosine_least", math.nan, "cosine"),
        ("pcm", "snr_db", signal_to_noise(np.ones(3), np.array([1.0, math.nan, 1.0])), "-inf dB"),
    ):
        (clause,) = misses(quality | {part: quality[part] | {field: value}}, formats)
        assert word in clause


def test_encoder_and_codec_can_be_chosen_apart(run: Path, tmp_path: Path) -> None:
    made = export_run(
        run,
        tmp_path / "bundle",
        precision="int8",
        encoder_precision="fp32",
        codec_precision="fp32",
        accept_quality=True,
    )
    manifest = Bundle(made.bundle).manifest
    assert dict(manifest.precision) == {
        "backbone": "int8",
        "heads": "int8",
        "encoder": "fp32",
        "codec": "fp32",
        "prefill": "none",
    }
    assert manifest.quality["features"]["cosine_least"] > 0.999999 and manifest.quality["pcm"]["snr_db"] == 200
    assert "encoder.integer" not in manifest.parts and manifest.parts["encoder"].compute == "float32"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fp4",), "precision = 'fp4': choose fp32, bf16, fp16, fp8, int8, int4"),
        (("int8", "fp8"), "encoder precision = 'fp8': choose fp32, fp16, int8"),
        (("int4", "int4"), "encoder precision = 'int4': choose fp32, fp16, int8"),
        (("int4", None, "int8"), "codec precision = 'int8': choose fp32, fp16"),
    ],
)
def test_an_unknown_format_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        Precision.of(*arguments)


def test_equal_runs_give_equal_bundles(exported: Any, run: Path, tmp_path: Path) -> None:
    again = export_run(run, tmp_path / "again", precision="int4", accept_quality=True)
    first = json.loads((exported("int4").bundle / "manifest.json").read_text())
    second = json.loads((again.bundle / "manifest.json").read_text())
    assert first["digest"] == second["digest"]


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp8", "int8", "int4"])
def test_every_standard_part_builds_with_tensorrt_rtx(exported: Any, precision: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    bundle = Bundle(exported(precision).bundle)
    sizes = {
        "batch": (1, 2, 2), "rows": (1, 1, 8), "total": (1, 16, 64), "capacity": 64, "windows": (1, 1, 2),
        "frames": (1, 20, 40),
    }  # fmt: skip
    for role in ("backbone", "head.audio", "head.text", "encoder", "codec"):
        model = onnx.load(bundle.part(role), load_external_data=False)
        named = {d.dim_param for value in model.graph.input for d in value.type.tensor_type.shape.dim} - {""}
        report = build_part(bundle.part(role), compute_capability="8.9", sizes={name: sizes[name] for name in named})
        assert report.size_bytes > 1000
        if role == "backbone":
            assert report.layers.get("KV_CACHE_UPDATE") == 2 * bundle.manifest.model.layers
            assert bundle.manifest.parts[role].compute == ("bfloat16" if precision == "bf16" else "float16")


def test_the_yardstick_equals_transformers() -> None:
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96,
        vocab_size=8, rope_theta=1e6, rms_norm_eps=1e-6,
    )  # fmt: skip
    model = Qwen2Model(config).double().eval()
    states = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    for tensor in states.values():
        tensor.copy_(tensor + 0.1 * torch.randn_like(tensor))

    def read(name: str) -> np.ndarray:
        if name == "rope.inverse_frequencies":
            return (1e6 ** -(np.arange(0, 16, 2) / 16)).astype(np.float32)
        if name == "backbone.norm":
            return states["norm.weight"].float().numpy()
        _, layer, what = name.split(".", 2)
        at = f"layers.{layer}."
        parts = {
            "input_norm": ["input_layernorm.weight"],
            "post_norm": ["post_attention_layernorm.weight"],
            "qkv": [f"self_attn.{letter}_proj.weight" for letter in "qkv"],
            "qkv_bias": [f"self_attn.{letter}_proj.bias" for letter in "qkv"],
            "o": ["self_attn.o_proj.weight"],
            "gate_up": ["mlp.gate_proj.weight", "mlp.up_proj.weight"],
            "down": ["mlp.down_proj.weight"],
        }[what]
        joined = torch.cat([states[at + part] for part in parts]).float()
        return (joined.T if joined.ndim == 2 else joined).numpy()

    shape = BackboneShape(
        hidden_size=64, layers=3, heads=4, kv_heads=2, head_dim=16, ffn_size=96, rms_norm_eps=1e-6, rope_theta=1e6,
        max_positions=128,
    )  # fmt: skip
    random = np.random.default_rng(0)
    sequences = [random.standard_normal((n, 64)).astype(np.float32) for n in (7, 1, 12)]
    seen: list[str] = []
    found = hidden_states(read, shape, sequences, on_product=lambda name, x: seen.append(name))
    for sequence, hidden in zip(sequences, found, strict=True):
        with torch.inference_mode():
            exact = model(inputs_embeds=torch.from_numpy(sequence).double()[None]).last_hidden_state[0].numpy()
        np.testing.assert_allclose(hidden, exact, atol=3e-5)
    assert seen[:4] == ["backbone.0.qkv", "backbone.0.o", "backbone.0.gate_up", "backbone.0.down"] and len(seen) == 12


def test_whole_number_products_stay_near_the_exact_ones(exported: Any, run: Path) -> None:
    """Each row is rounded by its own largest value: a large row does not affect a small one."""
    bundle = Bundle(exported("int8").bundle)
    whole, exact = (onnx.load(bundle.part(role)) for role in ("encoder.integer", "encoder"))
    kinds = [node.op_type for node in whole.graph.node]
    matrices = sum(node.op_type == "DequantizeLinear" for node in exact.graph.node)
    assert kinds.count("MatMulInteger") == matrices and "DequantizeLinear" not in kinds
    assert kinds.count("ReduceMax") < matrices, "query, key and value share their rows"

    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(2)
    q = random.integers(-127, 128, (64, 32)).astype(np.int8)
    scale = random.uniform(1e-3, 1e-2, 32).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("DequantizeLinear", ["q", "s"], ["w"], axis=1),
            helper.make_node("MatMul", ["x", "w"], ["y"], "product"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 32])],
        [numpy_helper.from_array(q, "q"), numpy_helper.from_array(scale, "s")],
    )
    model = integer_products(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10))
    x = random.standard_normal((4, 64)) * np.array([[1e-3], [1.0], [1e3], [0.0]])
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x.astype(np.float32)})
    product = x @ (q * scale.astype(np.float64))
    error = np.abs(found - product)[:3] / np.abs(product)[:3].max(axis=1, keepdims=True)
    assert error.max() < 0.02
    np.testing.assert_array_equal(found[3], 0)


def test_agreement_is_counted_as_defined() -> None:
    counted = Agreement()
    p, q = np.log([0.7, 0.2, 0.1]), np.log([0.1, 0.6, 0.3])
    counted.add(0, p + 5, p - 3)
    counted.add(0, p, q)
    told = counted.to_json()
    assert told["draws"] == 2 and told["top1"] == 0.5
    assert told["kl"] == pytest.approx(np.sum(np.exp(p) * (p - q)) / 2, rel=1e-2)
    assert cosine(np.eye(2), np.array([[1.0, 0.0], [1.0, 1.0]])) == {
        "cosine": pytest.approx((1 + 2**-0.5) / 2, abs=1e-6), "cosine_least": pytest.approx(2**-0.5, abs=1e-6)
    }  # fmt: skip
    assert signal_to_noise(np.ones(100, np.float32), np.full(100, 1.1, np.float32)) == pytest.approx(20, abs=0.01)
    assert signal_to_noise(np.ones(4, np.float32), np.ones(4, np.float32)) == 200


def test_long_prompts_can_be_read_with_weights_of_their_own(run: Path, tmp_path: Path) -> None:
    made = export_run(run, tmp_path / "bundle", precision="int4", prefill_precision="int8", accept_quality=True)
    bundle = Bundle(made.bundle)
    part = bundle.manifest.parts["backbone.prefill"]
    assert (part.precision, part.compute) == ("int8", "int8")
    plain = export_run(run, tmp_path / "plain", precision="int4", accept_quality=True)
    exact = export_run(run, tmp_path / "exact", accept_quality=True)
    rows = np.zeros((40, 8), np.int32)
    rows[:, 0] = np.random.default_rng(0).integers(300, 500, 40)

    def cache_after(bundle: Bundle, chunks: list[np.ndarray]) -> np.ndarray:
        engine = open_engine(None, bundle, threads=1, max_context=64)
        sequence = engine.open_sequence()
        for chunk in chunks:
            sequence.prefill([chunk])
        cache = sequence.save()
        engine.close()
        return cache

    reference = cache_after(Bundle(exact.bundle), [rows])
    by_int4 = cache_after(Bundle(plain.bundle), [rows])
    by_int8 = cache_after(bundle, [rows])
    assert np.square(by_int8 - reference).mean() < 0.2 * np.square(by_int4 - reference).mean()
    # short prompts go through the body that also decodes
    short = [rows[first : first + 10] for first in range(0, 40, 10)]
    np.testing.assert_array_equal(cache_after(bundle, short), cache_after(Bundle(plain.bundle), short))


def test_a_prefill_body_needs_head_sizes_that_its_operator_takes(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    write_random_run(folder, dataclasses.replace(SHAPES["tiny"], heads=16, kv_heads=16))
    with pytest.raises(ExportError, match="--prefill int8: needs heads of a multiple of 16, this model's have 8"):
        export_run(folder, tmp_path / "bundle", precision="int4", prefill_precision="int8")
    assert not (tmp_path / "bundle").exists()
