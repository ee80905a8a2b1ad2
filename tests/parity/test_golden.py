"""The golden vector recorded at export, recomputed by engines of every arithmetic."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from support.bundles import changed_part
from support.cuda.device import cpu_engine, device_engine
from support.golden import CHECKS
from support.half import HalfEngine
from support.runs import make_run
from ualm.export.bundle import export_run
from ualm.runtime import BundleError
from ualm.runtime.bundle.bundle import Bundle
from ualm.runtime.diagnostics.golden import GOLDEN_CONTEXT, Check, check_golden
from ualm.runtime.engines.arithmetic import UNIT, logits_tolerance
from ualm.runtime.engines.onnxruntime.cpu import OnnxRuntimeEngine

HALF = {"fp16": "float16", "bf16": "bfloat16", "int8": "float16", "int4": "float16"}


@pytest.fixture(scope="module")
def checks(tiny_bundle: Path) -> dict[str, Check]:
    bundle = Bundle(tiny_bundle, verify="never")
    engine = OnnxRuntimeEngine(bundle, threads=1, max_context=GOLDEN_CONTEXT)
    return {check.name: check for check in check_golden(bundle, engine)}


@pytest.mark.parametrize("name", CHECKS)
def test_the_engine_gives_the_golden_vector(checks: dict[str, Check], name: str) -> None:
    """The null branch of the golden vector was a dense prefill, the engine's is the constant vector."""
    check = checks[name]
    assert check.problem is None and check.error is not None
    assert check.error <= check.tolerance == 1e-4


def test_every_output_of_the_golden_vector_is_checked(checks: dict[str, Check], tiny_bundle: Path) -> None:
    outputs = set(Bundle(tiny_bundle, verify="never").golden_vector()) - {"rows", "codes", "sound"}
    assert {name.split(" ")[0] for name in checks} == outputs


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int, int], Bundle]:
    """A bundle of a run whose layers each add as much as passes through them: format, layers, seed."""

    @functools.cache
    def run(layers: int, seed: int) -> Path:
        folder = tmp_path_factory.mktemp("run")
        return make_run(folder / "run", seed=seed, hidden=128, heads=4, kv_heads=2, ffn=192, layers=layers).folder

    @functools.cache
    def export(precision: str, layers: int, seed: int) -> Bundle:
        folder = tmp_path_factory.mktemp("bundle") / precision
        export_run(run(layers, seed), folder, precision=precision, encoder_precision="fp16", accept_quality=True)
        return Bundle(folder, verify="never")

    return export


def logits_checks(bundle: Bundle, engine: Any) -> list[Check]:
    checks = [check for check in check_golden(bundle, engine) if check.name.startswith("logits")]
    engine.close()
    assert len(checks) == 5
    return checks


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("layers", [2, 8])
@pytest.mark.parametrize("precision", HALF)
def test_the_device_loop_passes_in_the_bundles_half_precision(exported: Any, precision: str, layers: int, seed: int):
    bundle = exported(precision, layers, seed)
    engine = HalfEngine(bundle, GOLDEN_CONTEXT)
    assert engine.arithmetic["body"] == HALF[precision] and engine.arithmetic["heads"] == "float32"
    checks = check_golden(bundle, engine)
    engine.close()
    assert [check.name for check in checks] == CHECKS
    assert all(check.passed for check in checks), checks
    spoken = [check for check in checks[1:5] if check.error is not None]
    # it does round: none of these is a float32 engine, which any tolerance would accept
    assert max(check.error or 0 for check in spoken) > 0.02 * UNIT[engine.arithmetic["body"]]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_the_device_loop_on_the_cpu_provider_passes_with_and_without_our_heads(
    exported: Any, precision: str, fused: bool
) -> None:
    """ONNX Runtime has no product in bfloat16 on a CPU."""
    for seed in range(3):
        bundle = exported(precision, 2, seed)
        engine = device_engine(bundle, GOLDEN_CONTEXT, fused_heads=fused)
        rounds_rows = precision in ("int8", "int4")
        assert engine.arithmetic["body"] == {"fp32": "float32", "fp16": "float16"}.get(precision, "int8")
        assert engine.arithmetic["heads"] == ("int8" if rounds_rows and not fused else "float32")
        assert all(check.passed for check in check_golden(bundle, engine))
        engine.close()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "fp8", "int8", "int4"])
def test_the_cpu_engine_says_what_it_computes_in(exported: Any, precision: str) -> None:
    engine = OnnxRuntimeEngine(exported(precision, 2, 0), threads=1, max_context=GOLDEN_CONTEXT)
    assert engine.arithmetic["body"] == {"fp8": "float8", "int8": "int8", "int4": "int8"}.get(precision, "float32")
    assert engine.arithmetic["encoder"] == engine.arithmetic["codec"] == "float32"
    assert all(check.passed for check in logits_checks(exported(precision, 2, 0), engine))
    engine.close()


def test_an_engine_that_computes_in_float32_is_not_let_off_by_a_bundle_in_half_precision(exported: Any) -> None:
    """The tolerance depends on the engine's arithmetic, not on the stored format."""
    bundle = exported("fp16", 2, 0)
    exact, half = cpu_engine(bundle, GOLDEN_CONTEXT), HalfEngine(bundle, GOLDEN_CONTEXT)
    exact.body = "backbone.grouped"
    assert {check.tolerance for check in logits_checks(bundle, exact)} == {1e-4}
    assert all(check.tolerance > 1e-3 for check in logits_checks(bundle, half))


def test_tolerances_grow_with_depth_and_with_what_a_rounding_costs() -> None:
    kinds = ["float32", "float16", "bfloat16", "int8", "float8"]
    for layers in (2, 28):
        allowed = [logits_tolerance(kind, "float32", layers, 128) for kind in kinds]  # type: ignore[arg-type]
        assert allowed == sorted(allowed) and len(set(allowed)) == len(kinds)
    assert logits_tolerance("float16", "float32", 28, 128) > logits_tolerance("float16", "float32", 2, 128)
    assert logits_tolerance("float32", "float32", 28, 128) == 1e-4
    assert logits_tolerance("float16", "float32", 2, 64) == 2 * logits_tolerance("float16", "float32", 2, 128)
    assert logits_tolerance("float16", "float32", 2, 4096) == logits_tolerance("float16", "float32", 2, 128)
    assert logits_tolerance("int8", "int8", 4, 128) > logits_tolerance("int8", "float32", 4, 128)


def _two_layers_swapped(model: onnx.ModelProto, layers: int) -> None:
    middle = f"backbone.{layers // 2}.", f"backbone.{layers // 2 - 1}."
    places = {each.name: list(each.external_data) for each in model.graph.initializer}
    for each in model.graph.initializer:
        for mine, other in (middle, middle[::-1]):
            if each.name.startswith(mine):
                del each.external_data[:]
                each.external_data.extend(places[other + each.name.removeprefix(mine)])


def _without_bias(model: onnx.ModelProto, layers: int) -> None:
    for node in model.graph.node:
        if node.name == f"backbone.{layers // 2}.qkv.add":
            node.op_type, node.input[1] = "Mul", _constant(model, "one", 1.0, node.input[1])


def _no_angles(model: onnx.ModelProto, layers: int) -> None:
    """Keys are not rotated; queries are."""
    for node in model.graph.node:
        if node.op_type == "RotaryEmbedding" and node.name.endswith(".k_rotary"):
            node.op_type = "Identity"
            del node.input[1:]


def _half_a_matrix(model: onnx.ModelProto, layers: int) -> None:
    """The contribution of one matrix in the middle is halved."""
    for node in model.graph.node:
        if node.name == f"backbone.{layers // 2}.ffn_residual":
            half = _constant(model, "half", 0.5, "")
            scaled = f"{node.input[1]}/half"
            position = list(model.graph.node).index(node)
            model.graph.node.insert(position, helper.make_node("Mul", [node.input[1], half], [scaled], scaled))
            model.graph.node[position + 1].input[1] = scaled
            return


def _constant(model: onnx.ModelProto, name: str, value: float, like: str) -> str:
    """A scalar constant, in float16 or bfloat16 if ``like`` names a value that was cast to it."""
    types = {node.output[0]: node.attribute[0].i for node in model.graph.node if node.op_type == "Cast"}
    types |= {each.name: each.data_type for each in model.graph.initializer}
    kind = types.get(like, TensorProto.FLOAT)
    model.graph.initializer.append(helper.make_tensor(name, kind, [], [value]))
    return name


DAMAGES = [_two_layers_swapped, _without_bias, _no_angles, _half_a_matrix]


@pytest.mark.parametrize("layers", [2, 8])
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("precision", HALF)
def test_what_is_wrong_fails_the_check_in_every_half_precision(
    exported: Any, precision: str, damage: Callable[[onnx.ModelProto, int], None], layers: int
) -> None:
    bundle = exported(precision, layers, 0)
    engine = HalfEngine(bundle, GOLDEN_CONTEXT, change=lambda model: damage(model, layers))
    assert not all(check.passed for check in logits_checks(bundle, engine))


@pytest.mark.parametrize("layers", [2, 8])
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_what_is_wrong_fails_the_check_with_rows_in_8_bits(
    exported: Any, precision: str, damage: Callable[[onnx.ModelProto, int], None], layers: int, tmp_path: Path
) -> None:
    """The graph for GPUs, on ONNX Runtime's CPU provider."""
    bundle = exported(precision, layers, 0)
    model = onnx.load(bundle.part("backbone"), load_external_data=False)
    damage(model, layers)
    folder = changed_part(bundle, tmp_path / "bundle", "backbone", model.SerializeToString())
    if damage is _two_layers_swapped:  # detected before anything is computed
        with pytest.raises(BundleError, match=r"weight 'backbone.* is not where weights\.safetensors has it"):
            Bundle(folder, verify="never")
        return
    wrong = Bundle(folder, verify="never")
    engine = device_engine(wrong, GOLDEN_CONTEXT)
    assert engine.arithmetic["body"] == "int8"
    assert not all(check.passed for check in logits_checks(wrong, engine))
