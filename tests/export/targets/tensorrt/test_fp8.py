"""A bundle in fp8 through TensorRT-RTX: every product of its body is in float8, on GPUs that support it, or there is no
engine. Building needs no GPU; no engine is run here."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto

from ualm.bench.random_run.run import SHAPES, write_random_run
from ualm.bench.scenarios.tensorrt_build import measure_builds
from ualm.export.targets.registry import ExportRequest
from ualm.export.targets.tensorrt import target as tensorrt_target
from ualm.export.targets.tensorrt.build import _profile, build, find_library
from ualm.export.targets.tensorrt.compare import differences
from ualm.export.targets.tensorrt.parts import plan_parts
from ualm.export.targets.tensorrt.target import tensorrt, tensorrt_rtx
from ualm.runtime.bundle.bundle import Bundle
from ualm.runtime.engines.tensorrt.engine import ROLES, find_engines
from ualm.runtime.engines.tensorrt.library import make_logger
from ualm.runtime.errors import InputError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="TensorRT-RTX is not installed: pip install '.[tensorrt-rtx]'",
)
LAYERS = SHAPES["tiny"].layers


def quiet(stage: str, done: int, total: int) -> None:
    """No progress."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fp8") / "run"
    write_random_run(folder, SHAPES["tiny"])
    return folder


def order(run: Path, output: Path, **changes: Any) -> ExportRequest:
    fields = {"precision": "fp8", "target": "sm89,sm120", "accept_quality": True, "max_context": 1024} | changes
    return ExportRequest(run=run, output=output, **fields)


@pytest.fixture(scope="module")
def bundle(run: Path) -> Bundle:
    """As made by the command: exported in fp8, with engines for two GPUs at once."""
    tensorrt_rtx(order(run, run.parent / "bundle"), quiet)
    return Bundle(run.parent / "bundle")  # verifies the hashes


def test_a_run_becomes_a_bundle_with_engines(bundle: Bundle) -> None:
    assert bundle.manifest.precision["backbone"] == "fp8"
    for sm in (89, 120):
        assert set(find_engines(bundle, find_library("tensorrt-rtx"), sm)) == set(ROLES)


@pytest.mark.parametrize("sm", [89, 120])
def test_the_network_has_what_the_graph_has(bundle: Bundle, sm: int) -> None:
    """Both sides of each product are rounded; the network is compared with the graph before each build."""
    library = find_library("tensorrt-rtx")
    (plan,) = plan_parts(bundle, 1024, roles=("backbone",))
    report = build(library, plan.path, plan.model, plan.profiles, sms=(sm,))
    assert (report.layers["QUANTIZE"], report.layers["DEQUANTIZE"]) == (4 * LAYERS, 8 * LAYERS)
    assert report.layers["KV_CACHE_UPDATE"] == 2 * LAYERS


@pytest.mark.parametrize("sm", [89, 120])
def test_every_product_is_one_of_float8_numbers(bundle: Bundle, sm: int) -> None:
    """The builder's report of its engine: float8 on both sides, one byte per weight, and none widened."""
    trt = find_library("tensorrt-rtx").module
    (plan,) = plan_parts(bundle, 1024, roles=("backbone",))

    class FeatureCache(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.told = ""

        def log(self, severity: Any, message: str) -> None:
            self.told += message + "\n"

    listener = FeatureCache()
    builder = trt.Builder(listener)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, listener)
    assert parser.parse(plan.model.SerializeToString(), str(plan.path))
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.__members__[f"SM{sm}"], 0)
    for profile in plan.profiles:
        config.add_optimization_profile(_profile(builder, network, profile, plan.path, make_logger(trt)))
    assert builder.build_serialized_network(network, config) is not None

    products = [line for line in listener.told.splitlines() if ", LayerType: gemm," in line]
    assert len(products) == 4 * LAYERS * len(plan.profiles)
    for product in products:
        reads, rest = product.split("Constants: ")
        assert re.findall(r"Datatype: (\w+)", reads) == ["FP8"], product
        assert "FP8" in re.findall(r"Datatype: (\w+)", rest.split("Outputs: ")[0]), product


# ---- networks that differ from their graph ----

Change = Callable[[onnx.ModelProto], None]


def node_of(model: onnx.ModelProto, kind: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == kind)


def unrounded_rows(model: onnx.ModelProto) -> None:
    """As if the rounding of the inputs were missing from the network, replaced by something else."""
    node = node_of(model, "QuantizeLinear")
    node.output[0] = "lost"
    node_of(model, "DequantizeLinear").input[0] = "lost"


def whole_numbers(model: onnx.ModelProto) -> None:
    """As if the weights were float8 by accident: the graph says int8."""
    name = next(each.name for each in model.graph.initializer if each.data_type == TensorProto.FLOAT8E4M3FN)
    next(each for each in model.graph.initializer if each.name == name).data_type = TensorProto.INT8


def other_rounding(model: onnx.ModelProto) -> None:
    """As if rows were rounded to float8 where the graph says int8."""
    for attribute in node_of(model, "QuantizeLinear").attribute:
        if attribute.name == "output_dtype":
            attribute.i = TensorProto.INT8


def scales_of_columns(model: onnx.ModelProto) -> None:
    """As if one scale had become many."""
    name = "backbone.0.qkv.scale"
    next(each for each in model.graph.initializer if each.name == name).dims.append(2)


def scale_of_rows(model: onnx.ModelProto) -> None:
    name = "backbone.0.qkv.input_scale"
    next(each for each in model.graph.initializer if each.name == name).dims.append(2)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (unrounded_rows, r"QuantizeLinear 'backbone\.0\.qkv\.input_codes' left no layer \('lost'"),
        (whole_numbers, r"weight 'backbone\.0\.qkv' has \d+ numbers in FP8, the graph says \d+ in INT8"),
        (other_rounding, r"value 'backbone\.0\.qkv\.input_codes' is FP8, the graph says INT8"),
        (scales_of_columns, r"'backbone\.0\.qkv\.values' has scales \[\], the graph says \[2\]"),
        (scale_of_rows, r"'backbone\.0\.qkv\.input_codes' has scales \[\], the graph says \[2\]"),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_a_network_that_computes_otherwise_is_named(change: Change, named: str, bundle: Bundle) -> None:
    trt = find_library("tensorrt-rtx").module
    (plan,) = plan_parts(bundle, 1024, roles=("backbone",))
    logger = make_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(plan.model.SerializeToString(), str(plan.path))
    assert differences(plan.model, network, trt) == []
    change(plan.model)
    found = "; ".join(differences(plan.model, network, trt))
    assert re.search(named, found), found


# ---- GPUs without float8 ----


@pytest.mark.parametrize("target", ["sm86", "sm86,sm89"])
def test_older_gpus_are_refused_by_name_before_anything_is_written(run: Path, target: str, tmp_path: Path) -> None:
    said = r"--precision fp8: sm86 cannot multiply fp8, which takes sm89 or newer; leave .* --target, or choose int8"
    with pytest.raises(InputError, match=said):
        tensorrt_rtx(order(run, tmp_path / "out", target=target), quiet)
    assert list(tmp_path.iterdir()) == []


def test_an_fp8_bundle_is_refused_for_them_too(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ExportRequest(run=bundle.folder, output=tmp_path / "out", target="sm80,sm89")
    with pytest.raises(InputError, match=r"bundle has an fp8 body: sm80 cannot .*give a bundle exported with"):
        tensorrt_rtx(given, quiet)
    # a Jetson Orin
    monkeypatch.setattr(tensorrt_target, "local_sm", lambda: 87)
    monkeypatch.setattr(tensorrt_target, "find_library", lambda name: find_library("tensorrt-rtx"))
    for run, what in ((bundle.folder, "has an fp8 body"), (Path("run"), "--precision fp8")):
        precision = None if run == bundle.folder else "fp8"
        with pytest.raises(InputError, match=rf"{what}: sm87 cannot multiply fp8, .* newer; (choose|give)"):
            tensorrt(ExportRequest(run=run, output=tmp_path / "out", precision=precision), quiet)
    assert list(tmp_path.iterdir()) == []


def test_the_body_alone_is_built_with_scales_of_its_own_rows(run: Path) -> None:
    report = measure_builds(run, precision="fp8", max_context=256)
    figures = {each.figure: each.summary.mean for each in report.measurements}
    assert figures["engine"] > figures["stored"] > 0
    assert dict(report.measurements[0].subject.precisions) == {"backbone": "fp8"}
