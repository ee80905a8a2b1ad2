"""Every part in the standard dialect parses and builds in TensorRT-RTX, and none of its inputs is lost.

Building needs no GPU; engines are not run here.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from support.runs import make_run
from support.tensorrt.build import BuildReport, build_engine, build_part
from ualm.export.bundle import export_run
from ualm.export.formats.store import WeightStore
from ualm.export.parts.codec.codec import PREFIX, plan_codec
from ualm.export.parts.codec.layers import decoder_convolutions
from ualm.export.targets.tensorrt.parts import Size
from ualm.runtime.bundle.bundle import Bundle
from ualm.runtime.bundle.entries import PartEntry
from ualm.runtime.errors import ExportError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="TensorRT-RTX is not installed: pip install '.[tensorrt-rtx]'",
)

#: Ampere, Ada and Blackwell consumer cards; Turing (7.5) has no float32 matrix product.
CAPABILITIES = ("8.6", "8.9", "12.0")
#: Sizes of the named dimensions of all parts.
SIZES: dict[str, Size] = {
    "batch": (1, 2, 2),
    "rows": (1, 1, 16),
    "total": (1, 16, 64),
    "capacity": 64,
    "frames": (1, 20, 40),
    "windows": (1, 2, 4),
    "first": (0, 0, 1),
    "last": (0, 0, 1),
}


def check_bundle_parts(
    folder: Path, manifest_parts: Mapping[str, PartEntry], *, compute_capability: str = "8.6"
) -> dict[str, BuildReport]:
    """Build every part of a bundle in standard operators; returns the reports by role."""
    reports = {}
    for role, part in manifest_parts.items():
        path = folder / part.file
        domains = {opset.domain for opset in onnx.load(path, load_external_data=False).opset_import}
        if domains <= {"", "ai.onnx"}:
            reports[role] = build_part(path, compute_capability=compute_capability, sizes=SIZES)
    return reports


@pytest.fixture(scope="module", params=["omni", "afwhisper"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp(request.param)
    make_run(folder / "run", encoder=request.param)
    export_run(folder / "run", folder / "bundle")
    return Bundle(folder / "bundle")


@pytest.mark.parametrize(
    "capability", ["8.9", *(pytest.param(each, marks=pytest.mark.full) for each in ("8.6", "12.0"))]
)
def test_every_standard_part_of_a_bundle_builds(bundle: Bundle, capability: str) -> None:
    parts = bundle.manifest.parts
    reports = check_bundle_parts(bundle.folder, parts, compute_capability=capability)
    assert set(reports) == {role for role in parts if role != "backbone.grouped"}
    assert all(report.size_bytes == len(report.engine) > 0 for report in reports.values())
    layers = bundle.manifest.model.layers
    kinds = reports["backbone"].layers
    # fused attention and in-place cache writes, not separate scatter and softmax layers
    assert (kinds["KV_CACHE_UPDATE"], kinds["ATTENTION_INPUT"]) == (2 * layers, layers)


@pytest.mark.parametrize("ratios", [[8, 5, 4, 2], [3, 2], [5]], ids=str)
@pytest.mark.parametrize("capability", [*CAPABILITIES, "7.5", CAPABILITIES])
def test_the_codec_builds_with_odd_and_even_ratios(
    ratios: list[int], capability: str | tuple[str, ...], tmp_path: Path
) -> None:
    path = write_codec(tmp_path, ratios)
    report = build_part(path, compute_capability=capability, sizes=SIZES)
    assert report.layers["DECONVOLUTION"] == len(ratios)
    assert report.compute_capability == ((capability,) if isinstance(capability, str) else capability)


@pytest.mark.parametrize(
    ("sizes", "static"),
    [
        ({"first": (0, 0, 1), "last": (0, 0, 1), "frames": (0, 10, 50)}, False),  # one engine for every call
        ({"first": 0, "last": 0, "frames": 10}, True),  # one engine per kind of call, with fixed chunks
        ({"first": 1, "last": 0, "frames": 11}, True),
        ({"first": 0, "last": 1, "frames": (0, 5, 10)}, False),
        ({"first": 1, "last": 1, "frames": (1, 5, 10)}, False),
    ],
    ids=["any call", "inner", "first", "last", "only"],
)
def test_the_streaming_codec_builds_for_any_call_and_for_fixed_chunks(
    sizes: dict[str, Size], static: bool, tmp_path: Path
) -> None:
    path = write_codec(tmp_path, [8, 5, 4, 2]).with_name("codec_stream.onnx")
    before = path.read_bytes()
    report = build_part(path, compute_capability="8.6", sizes=sizes)
    assert path.read_bytes() == before
    assert (report.layers["CONVOLUTION"], report.layers["DECONVOLUTION"]) == (26, 4)
    assert ("SHAPE" in report.layers) != static


@pytest.mark.parametrize("capability", ["7.5", CAPABILITIES])
def test_the_streaming_codec_builds_for_other_cards_and_ratios(capability: str, tmp_path: Path) -> None:
    path = write_codec(tmp_path, [3, 5]).with_name("codec_stream.onnx")
    assert build_part(path, compute_capability=capability, sizes=SIZES).layers["DECONVOLUTION"] == 2


def write_codec(folder: Path, ratios: list[int]) -> Path:
    """A tiny random codec part and its blob; weights are in the blob, so that a build must find them there."""
    hop, rng = int(np.prod(ratios)), np.random.default_rng(0)
    shapes = {"fc2.weight": (6, 10), "fc2.bias": (6,)}
    shapes |= {f"quantizer.quantizers.{n}.codebook.embed": (16, 10) for n in range(8)}
    for layer in decoder_convolutions(6, 16, ratios):
        name = f"acoustic_decoder.{layer.name}"
        shapes |= {f"{name}.weight": layer.weight_shape, f"{name}.bias": (layer.outputs,)}
        if layer.snake:
            shapes[f"acoustic_decoder.{layer.snake}.alpha"] = (1, layer.inputs, 1)
    tensors = {PREFIX + name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}

    class Source(dict[str, np.ndarray]):
        def shape(self, name: str) -> tuple[int, ...]:
            return self[name].shape

        def read(self, name: str) -> np.ndarray:
            return self[name]

    config = {
        "sample_rate": 50 * hop,
        "codebook_size": 16,
        "acoustic_model_config": {
            "hidden_size": 6,
            "decoder_hidden_size": 16,
            "upsampling_ratios": ratios,
            "downsampling_ratios": ratios,
        },
        "semantic_model_config": {"hidden_size": 4},
    }
    store = WeightStore("weights.safetensors")
    part = plan_codec(Source(tensors), config, store)
    store.lay_out()
    for _ in store.write(folder):
        pass
    part.graph.save(folder, "codec.onnx")
    part.stream.save(folder, "codec_stream.onnx")
    return folder / "codec.onnx"


def write_graph(
    folder: Path, nodes: list[onnx.NodeProto], inputs: dict[str, tuple[int, list[int | str]]], outputs: dict[str, Any]
) -> Path:
    def declare(values: dict[str, Any]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in values.items()]

    graph = helper.make_graph(nodes, "test", declare(inputs), declare(outputs))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)
    path = folder / "test.onnx"
    onnx.save(model, path)
    return path


HEADS = (TensorProto.FLOAT16, [1, 2, 4, 16])
ATTENTION_INPUTS = {"q": HEADS, "k": HEADS, "v": HEADS}


def attention(*inputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("Attention", ["q", "k", "v", *inputs], ["y"], name="attend", **attributes)


def test_an_input_that_no_layer_reads_fails_the_build(tmp_path: Path) -> None:
    inputs = {"x": (TensorProto.FLOAT, [2]), "idle": (TensorProto.FLOAT, [2])}
    path = write_graph(tmp_path, [helper.make_node("Sin", ["x"], ["y"])], inputs, {"y": inputs["x"]})
    with pytest.raises(ExportError, match=r"dropped graph input .idle.: no engine"):
        build_engine(path, compute_capability="8.6", profiles={})


def test_an_optional_input_that_the_parser_drops_fails_the_build(tmp_path: Path) -> None:
    held = {"held": (TensorProto.INT64, [1])}
    path = write_graph(tmp_path, [attention("", "", "", "held")], ATTENTION_INPUTS | held, {"y": HEADS})
    with pytest.raises(ExportError, match=r"graph input 'held'; input 6 \('held'\) of Attention 'attend'"):
        build_engine(path, compute_capability="8.6", profiles={})


def test_a_dropped_input_is_found_behind_a_layer_that_reads_it(tmp_path: Path) -> None:
    """The graph input feeds a cast, so a layer does read it, but the cast's output is unused."""
    cast = helper.make_node("Cast", ["held"], ["wide"], to=TensorProto.INT64)
    inputs = ATTENTION_INPUTS | {"held": (TensorProto.INT32, [1])}
    path = write_graph(tmp_path, [cast, attention("", "", "", "wide")], inputs, {"y": HEADS})
    with pytest.raises(ExportError, match=r"graph input 'held'; input 6 \('wide'\)"):
        build_engine(path, compute_capability="8.6", profiles={})


def test_a_dropped_input_is_found_although_another_output_needs_it(tmp_path: Path) -> None:
    held = {"held": (TensorProto.INT64, [1])}
    nodes = [attention("", "", "", "held"), helper.make_node("Add", ["held", "held"], ["twice"])]
    path = write_graph(tmp_path, nodes, ATTENTION_INPUTS | held, {"y": HEADS, "twice": held["held"]})
    with pytest.raises(ExportError, match=r"dropped input 6 \('held'\) of Attention .attend.: no engine"):
        build_engine(path, compute_capability="8.6", profiles={})


def test_a_mask_is_read(tmp_path: Path) -> None:
    mask = {"mask": (TensorProto.BOOL, [1, 1, 4, 4])}
    path = write_graph(tmp_path, [attention("mask")], ATTENTION_INPUTS | mask, {"y": HEADS})
    assert build_engine(path, compute_capability="8.6", profiles={}).layers["ATTENTION_INPUT"] == 1


def test_what_the_parser_refuses_is_reported_in_its_words(tmp_path: Path) -> None:
    path = write_graph(tmp_path, [attention(softcap=5.0)], ATTENTION_INPUTS, {"y": HEADS})
    with pytest.raises(ExportError, match=r"test\.onnx: TensorRT-RTX [\d.]+ cannot parse it: .*softcap"):
        build_engine(path, compute_capability="8.6", profiles={})


def test_what_the_builder_refuses_is_reported_in_its_words(tmp_path: Path) -> None:
    square = (TensorProto.FLOAT, [32, 32])
    path = write_graph(
        tmp_path, [helper.make_node("MatMul", ["a", "b"], ["y"])], {"a": square, "b": square}, {"y": square}
    )
    with pytest.raises(ExportError, match=r"cannot build it for compute capability 7\.5: .*FP32 GEMM is not supported"):
        build_engine(path, compute_capability="7.5", profiles={})


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    held, new = (TensorProto.FLOAT, ["batch", 2, "capacity", 8]), (TensorProto.FLOAT, ["batch", 2, "rows", 8])
    node = helper.make_node("TensorScatter", ["past", "new", "index"], ["present"], axis=2, mode="linear")
    inputs = {"past": held, "new": new, "index": (TensorProto.INT64, ["batch"])}
    return write_graph(tmp_path, [node], inputs, {"present": held})


def test_a_cache_builds_once_its_capacity_is_fixed(cache: Path) -> None:
    before = cache.read_bytes()
    assert build_part(cache, compute_capability="8.6", sizes=SIZES).layers["KV_CACHE_UPDATE"] == 1
    assert cache.read_bytes() == before
    with pytest.raises(ExportError, match="static sequence length"):
        build_part(cache, compute_capability="8.6", sizes=SIZES | {"capacity": (1, 32, 64)})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"compute_capability": "8.7"}, r"compute capability '8\.7': .* builds for 7\.5, 8\.0, 8\.6"),
        ({"fixed": {"length": 4}}, r"no input or output has a dimension called 'length'"),
        ({"profiles": {"y": ((1,), (1,), (1,))}}, r"profile for 'y', which is not an input; it has x"),
        ({}, r"input 'x' has varying dimensions \[-1\] and no profile"),
        ({"profiles": {"x": ((1,), (9,), (4,))}}, r"the profiles do not fit the inputs: .*MIN<=OPT<=MAX"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    value = (TensorProto.FLOAT, ["n"])
    path = write_graph(tmp_path, [helper.make_node("Sin", ["x"], ["y"])], {"x": value}, {"y": value})
    with pytest.raises(ExportError, match=message):
        build_engine(path, **({"compute_capability": "8.6", "profiles": {}} | arguments))


def test_a_part_needs_a_size_for_each_named_dimension(cache: Path) -> None:
    with pytest.raises(ExportError, match=r"no size given for dimension 'rows'; it has batch, capacity, rows"):
        build_part(cache, compute_capability="8.6", sizes={"batch": 1, "capacity": 4})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"none\.onnx: no such file"):
        build_engine(tmp_path / "none.onnx", compute_capability="8.6", profiles={})
