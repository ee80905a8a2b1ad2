"""Engines of the packaged bundle are really built with TensorRT-RTX, and a network that differs from its graph is
detected.

Building needs no GPU; no engine is run here.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from ualm.export.targets.registry import ExportRequest
from ualm.export.targets.tensorrt.build import BuildReport, build, find_library, known_sms
from ualm.export.targets.tensorrt.compare import differences
from ualm.export.targets.tensorrt.parts import plan_body, plan_parts
from ualm.export.targets.tensorrt.positions import load_graph, with_own_positions
from ualm.export.targets.tensorrt.target import add_engines, tensorrt, tensorrt_rtx
from ualm.runtime.bundle.bundle import Bundle
from ualm.runtime.bundle.compiled import CacheKind
from ualm.runtime.bundle.packaged import default_bundle
from ualm.runtime.engines.build_commands import RTX_SMS
from ualm.runtime.engines.tensorrt.engine import ROLES, find_engines
from ualm.runtime.engines.tensorrt.library import Library, load_library, make_logger
from ualm.runtime.errors import BundleError, EngineError, ExportError, InputError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="TensorRT-RTX is not installed: pip install '.[tensorrt-rtx]'",
)
SMS = (86, 89, 120)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A copy of the packaged bundle."""
    shutil.copytree(default_bundle(), tmp_path / "bundle", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    return Bundle(tmp_path / "bundle", verify="never")


def order(run: Path, output: Path, **changes: Any) -> ExportRequest:
    return ExportRequest(**{"run": run, "output": output, "target": "sm86,sm89,sm120"} | changes)


def quiet(stage: str, done: int, total: int) -> None:
    """No progress."""


@pytest.mark.parametrize("sm", SMS)
def test_every_part_of_the_packaged_bundle_builds(sm: int) -> None:
    library, packaged = find_library("tensorrt-rtx"), Bundle(default_bundle(), verify="never")
    for plan in plan_parts(packaged):
        report = build(library, plan.path, plan.model, plan.profiles, sms=(sm,))
        assert report.size_bytes > packaged.manifest.parts[plan.role].weight_bytes
        if plan.role == "backbone":
            layers = packaged.manifest.model.layers
            assert (report.layers["KV_CACHE_UPDATE"], report.layers["ATTENTION_INPUT"]) == (2 * layers, layers)
            assert report.layers["DEQUANTIZE"] == 4 * layers  # int8 weights stay int8


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The packaged bundle with engines for three GPUs at once, made as the command does."""
    folder = tmp_path_factory.mktemp("compiled") / "bundle"
    made = tensorrt_rtx(order(default_bundle(), folder, max_context=1024), quiet)
    assert made.result["built_not_run"] is True and made.result["sms"] == list(SMS)
    return Bundle(folder)  # verifies the hashes


def test_the_manifest_says_what_an_engine_was_made_of(compiled: Bundle) -> None:
    files, parts = compiled.manifest.files, compiled.manifest.parts
    assert {engine.role for engine in compiled.manifest.engines} == set(ROLES)
    for engine in compiled.manifest.engines:
        assert (engine.engine, engine.sms) == ("tensorrt-rtx", SMS)
        assert engine.library_version == find_library("tensorrt-rtx").version
        assert engine.onnx_sha256 == files[parts[engine.role].file].sha256
        assert engine.capacity == (1024 if engine.role == "backbone" else 0)
    body = next(engine for engine in compiled.manifest.engines if engine.role == "backbone")
    assert {profile.name: profile.shapes["columns"][2] for profile in body.profiles} == {
        "prefill": (1024,),
        "decode": (1024,),
    }


def test_engines_fit_the_gpus_that_they_were_built_for_and_no_other(compiled: Bundle) -> None:
    library = find_library("tensorrt-rtx")
    assert set(find_engines(compiled, library, 120)) == set(ROLES)
    with pytest.raises(EngineError, match=r"built for sm86, sm89, sm120, and the GPU here is sm90"):
        find_engines(compiled, library, 90)


def test_advice_names_the_gpus_that_the_library_builds_for() -> None:
    assert known_sms(find_library("tensorrt-rtx")) == RTX_SMS


def pretend(library: Library, path: Path, model: Any, profiles: Any, **options: Any) -> BuildReport:
    return BuildReport(path, (), library.title, 0.0, 6, {}, b"engine")


def test_engines_of_the_same_library_are_replaced(bundle: Bundle) -> None:
    library = find_library("tensorrt-rtx")
    add_engines(bundle, library, (86,), builder=pretend)
    first = Bundle(bundle.folder)
    add_engines(first, Library("tensorrt", library.module), (87,), builder=pretend)
    add_engines(Bundle(bundle.folder), library, (86,), builder=pretend)
    found = Bundle(bundle.folder).manifest.engines
    assert len(found) == 2 * len(ROLES) and len({engine.file for engine in found}) == len(found)
    assert {engine.file for engine in found} == {path.name for path in bundle.folder.glob("*.engine")}
    assert not {engine.file for engine in found} & {engine.file for engine in first.manifest.engines}


def test_a_build_that_fails_leaves_the_bundle_as_it_was(bundle: Bundle) -> None:
    before = {path.name: path.read_bytes() for path in bundle.folder.iterdir()}

    def failing(library: Library, path: Path, *rest: Any, **options: Any) -> BuildReport:
        if path.name == "encoder.onnx":
            raise ExportError("no")
        return pretend(library, path, *rest, **options)

    with pytest.raises(ExportError):
        add_engines(bundle, find_library("tensorrt-rtx"), (86,), builder=failing)
    assert {path.name: path.read_bytes() for path in bundle.folder.iterdir()} == before


def test_an_engine_that_the_manifest_lists_and_the_folder_lacks_is_refused(bundle: Bundle) -> None:
    add_engines(bundle, find_library("tensorrt-rtx"), (86,), builder=pretend)
    next(bundle.folder.glob("*.engine")).unlink()
    with pytest.raises(BundleError, match=r"\.engine: missing"):
        Bundle(bundle.folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": None}, r"--target: name the GPUs, for example sm89,sm120; .* sm75"),
        ({"target": "sm89,sm90"}, r"--target sm90: TensorRT-RTX [\d.]+ builds for sm75, .*--engine tensorrt on the"),
        ({"target": "ada"}, r"--target ada: "),
        ({"precision": "int4"}, r"--precision: .* is a bundle, and what is in it was chosen"),
        ({"max_context": 0}, r"--max-context 0: give a whole number from 1 to 4096"),
        ({"max_context": 5000}, r"--max-context 5000: "),
    ],
)
def test_options_that_do_not_fit_are_refused_and_nothing_is_left(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        tensorrt_rtx(order(default_bundle(), tmp_path / "out", **changes), quiet)
    assert list(tmp_path.iterdir()) == []


def test_tensorrt_is_refused_without_a_gpu_and_with_a_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"--target sm86.*: TensorRT builds for the GPU that it sees"):
        tensorrt(order(default_bundle(), tmp_path / "out"), quiet)

    def none() -> int:
        raise EngineError("no NVIDIA driver was found")

    monkeypatch.setattr("ualm.export.targets.tensorrt.target.local_sm", none)
    with pytest.raises(ExportError, match=r"builds on the machine where .* and here no NVIDIA driver was found"):
        tensorrt(order(default_bundle(), tmp_path / "out", target=None), quiet)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_is_compiled_without_torch() -> None:
    """As on a Jetson: the command gets as far as the search for a GPU."""
    code = "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers', 'safetensors', 'yaml')))\n"
    code += "from ualm.runtime.cli.main import main; sys.argv[0] = 'ualm'; main()"
    command = [sys.executable, "-c", code, "export", str(default_bundle()), "--engine", "tensorrt", "-o", "nowhere"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and "builds on the machine where the engine is to run, and here" in done.stderr


def test_a_library_that_is_missing_or_too_old_says_so() -> None:
    def missing(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    def old(version: str) -> Callable[[str], Any]:
        return lambda name: SimpleNamespace(__version__=version, INetworkDefinition=object)

    with pytest.raises(EngineError, match=r"TensorRT cannot be imported \(No module.*JetPack"):
        load_library("tensorrt", missing)
    for version in ("10.2.0.post1", "8.6.2", "10", "unknown"):
        with pytest.raises(
            EngineError, match=rf"TensorRT {version} is older than 10\.3, the first .*; install a newer"
        ):
            load_library("tensorrt", old(version))
    assert load_library("tensorrt", old("10.3.0")).cache == "appended"
    with pytest.raises(EngineError, match=r"TensorRT-RTX 1\.1\.1 has no layer that updates a KV cache in place"):
        load_library("tensorrt-rtx", old("1.1.1"))


def test_a_folder_that_only_bears_the_name_is_not_taken_for_tensorrt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python imports any folder on its path, also without ``__init__``."""
    (tmp_path / "tensorrt").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(EngineError, match=rf"'tensorrt' from {tmp_path}\S+ is not its Python package; install it: "):
        load_library("tensorrt")


def older(library: Library) -> Library:
    """A library without the features that TensorRT 10.3 lacks, as far as ualm uses them."""
    module = library.module
    kinds = {name: kind for name, kind in module.LayerType.__members__.items() if name != "ATTENTION_INPUT"}
    missing = {"INetworkDefinition": SimpleNamespace(), "LayerType": SimpleNamespace(**kinds)}
    return Library(library.name, SimpleNamespace(**vars(module) | missing))


def test_a_library_that_lacks_what_10_3_lacks_builds_engines_whose_rows_are_appended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ualm.export.targets.tensorrt.target.find_library", lambda name: older(find_library(name)))
    made = tensorrt_rtx(order(default_bundle(), tmp_path / "out", target="sm86", max_context=512), quiet)
    assert made.result["cache"] == "appended" and "cannot write a cache in place" in made.lines[-2]
    bundle = Bundle(tmp_path / "out")
    found = {engine.role: engine for engine in bundle.manifest.engines}
    assert set(found) == set(ROLES) and found["backbone"].cache == "appended"
    assert {profile.name: profile.shapes["row_offsets"][2] for profile in found["backbone"].profiles} == {
        "prefill": (128,),
        "decode": (1,),
    }
    again = add_engines(Bundle(bundle.folder), find_library("tensorrt-rtx"), (86,), builder=pretend)
    assert set(again) == set(ROLES)
    assert {engine.cache for engine in Bundle(bundle.folder).manifest.engines} == {"in_place"}


def test_an_int4_graph_that_an_older_library_cannot_build_says_what_would_do(tmp_path: Path) -> None:
    """Provoked with a GPU that has no product in float32."""
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["wide"], name="values", axis=0, block_size=32),
        helper.make_node("MatMul", ["x", "wide"], ["y"], name="product"),
    ]
    tensors = [
        helper.make_tensor("w", TensorProto.INT4, [32, 2], [1] * 64),
        numpy_helper.from_array(np.ones((1, 2), np.float32), "s"),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size]) for name, size in (("x", 32), ("y", 2))]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    library = find_library("tensorrt-rtx")
    with pytest.raises(ExportError, match=r"cannot build it .*; if it is the int4 weights .*--precision int8 or fp16$"):
        build(older(library), tmp_path / "g.onnx", model, [], sms=(75,))
    with pytest.raises(ExportError) as newer:
        build(library, tmp_path / "g.onnx", model, [], sms=(75,))
    assert "--precision" not in str(newer.value)


# ---- the body that counts its positions itself ----


@pytest.mark.parametrize(("batch", "rows", "held", "columns"), [(1, 5, 0, 16), (1, 3, 7, 10), (2, 1, 9, 16)])
def test_own_positions_give_what_the_told_ones_give(
    batch: int, rows: int, held: int, columns: int, tmp_path: Path
) -> None:
    """In ONNX Runtime, on a body with float32 arithmetic: the graph for TensorRT equals the bundle's."""
    from support.runs import make_run
    from ualm.export.bundle import export_run

    run = make_run(tmp_path / "run")
    export_run(run.folder, tmp_path / "bundle")
    made = Bundle(tmp_path / "bundle", verify="never")
    model, capacity, random = made.manifest.model, 16, np.random.default_rng(0)
    told = load_graph(made.part("backbone"))
    own = with_own_positions(told)
    place = made.folder / "own.onnx"
    onnx.save(own, place)
    half = model.head_dim // 2
    angles = random.uniform(0, 6, (capacity, half))
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    shared = {"embeddings": random.standard_normal((batch, rows, model.hidden_size), np.float32)}
    for layer in range(model.layers):
        for name in ("past_key", "past_value"):
            shape = (batch, model.kv_heads, capacity, model.head_dim)
            shared[f"{name}.{layer}"] = random.standard_normal(shape, np.float32)
    positions = held + np.arange(rows)
    mask = np.where(np.arange(columns)[None] <= positions[:, None], 0, -np.inf).astype(np.float32)
    given = {
        "write_index": np.full(batch, held, np.int64),
        "mask": np.broadcast_to(mask, (batch, 1, rows, columns)),
        "cos": np.broadcast_to(cos[positions], (batch, rows, half)),
        "sin": np.broadcast_to(sin[positions], (batch, rows, half)),
    }
    counted = {
        "position": np.array([held], np.int64),
        "row_offsets": np.arange(rows, dtype=np.int64),
        "columns": np.arange(columns, dtype=np.int64),
        "cos_table": cos,
        "sin_table": sin,
    }
    session = ort.InferenceSession(str(made.part("backbone")), providers=["CPUExecutionProvider"])
    expected = session.run(None, shared | {name: np.ascontiguousarray(each) for name, each in given.items()})
    got = ort.InferenceSession(str(place), providers=["CPUExecutionProvider"]).run(None, shared | counted)
    assert len(got) == len(expected) + 1 and got[-1].tolist() == [held + rows]
    for mine, other in zip(got, expected, strict=False):
        np.testing.assert_allclose(mine, other, atol=1e-6)


# ---- networks that differ from their graph ----

Change = Callable[[onnx.ModelProto], None]


def packaged_network(part: str = "backbone.onnx", cache: CacheKind = "in_place") -> tuple[onnx.ModelProto, Any, Any]:
    """A part of the packaged bundle, the network parsed from it, and the library's module (kept alive with it)."""
    trt = find_library("tensorrt-rtx").module
    path = default_bundle() / part
    model = load_graph(path)
    if part == "backbone.onnx":
        model = plan_body(path, 64, cache).model
    logger = make_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(model.SerializeToString(), str(path)), parser.get_error(0).desc()
    network_and_owners = network, (logger, builder, parser)
    return model, network_and_owners, trt


def node_of(model: onnx.ModelProto, kind: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == kind)


def another_node(model: onnx.ModelProto) -> None:
    """As if the network had lost a node: the graph has one more."""
    last = node_of(model, "Add")
    kept = last.output[0]
    last.output[0] = "lost"
    model.graph.node.append(helper.make_node("Tanh", ["lost"], [kept], name="clamp"))


def wider_weight(model: onnx.ModelProto) -> None:
    """As if a quantised weight had been widened: the graph says int4 where the network has int8."""
    name = node_of(model, "DequantizeLinear").input[0]
    next(each for each in model.graph.initializer if each.name == name).data_type = TensorProto.INT4


def coarser_scales(model: onnx.ModelProto) -> None:
    name = f"{node_of(model, 'DequantizeLinear').input[0]}.scale"
    scale = next(each for each in model.graph.initializer if each.name == name)
    scale.dims[0] *= 2


def float_cache(model: onnx.ModelProto) -> None:
    """As if the cache had been narrowed: the graph says float32."""
    for value in (*model.graph.input, *model.graph.output):
        if "_key.0" in value.name:
            value.type.tensor_type.elem_type = TensorProto.FLOAT


def other_operator(model: onnx.ModelProto) -> None:
    """As if a cache update had become something else: the graph has one where the network adds."""
    node = node_of(model, "Add")
    node.op_type = "TensorScatter"


def another_bias(model: onnx.ModelProto) -> None:
    """As if a weight were not read."""
    model.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float16), "forgotten"))
    node_of(model, "Mul").input.append("forgotten")


def float_row(model: onnx.ModelProto) -> None:
    """As if the new keys had been narrowed."""
    next(each for each in model.graph.output if each.name == "new_key.0").type.tensor_type.elem_type = TensorProto.FLOAT


def another_mask(model: onnx.ModelProto) -> None:
    """As if the mask of columns were not read: the graph reads it where the network does not."""
    next(each for each in model.graph.node if each.name == "backbone.0.attention.held_scaled").input[1] = (
        "appended.held"
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (another_node, r"Add '.*' left no layer \('lost'"),
        (wider_weight, r"weight 'backbone\.0\.qkv' has \d+ numbers in INT8, the graph says \d+ in INT4"),
        (coarser_scales, r"'backbone\.0\.qkv\.values' has scales \[8, 512\], the graph says \[16, 512\]"),
        (float_cache, r"value 'past_key\.0' is HALF, the graph says FLOAT"),
        (other_operator, r"TensorScatter '.*' became ELEMENTWISE.*, without KV_CACHE_UPDATE"),
        (another_bias, r"weight 'forgotten' of Mul '.*' is not read"),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_a_network_that_is_not_its_graph_is_named(change: Change, named: str) -> None:
    assert_named("in_place", change, named)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (another_node, r"Add '.*' left no layer \('lost'"),
        (wider_weight, r"weight 'backbone\.0\.qkv' has \d+ numbers in INT8, the graph says \d+ in INT4"),
        (coarser_scales, r"weight 'backbone\.0\.qkv\.scale' has 4096 numbers in HALF, the graph says 8192 in FLOAT16"),
        (float_cache, r"value 'past_key\.0' is HALF, the graph says FLOAT"),
        (float_row, r"value 'new_key\.0' is HALF, the graph says FLOAT"),
        (another_mask, r"input 1 \('appended\.held'\) of Mul 'backbone\.0\.attention\.held_scaled'"),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_a_network_that_is_not_its_graph_in_primitives_is_named(change: Change, named: str) -> None:
    assert_named("appended", change, named)


def assert_named(cache: CacheKind, change: Change, named: str) -> None:
    model, (network, _owners), trt = packaged_network(cache=cache)
    assert differences(model, network, trt) == []
    change(model)
    found = "; ".join(differences(model, network, trt))
    assert re.search(named, found), found


def test_a_convolution_keeps_its_weights() -> None:
    model, (network, _owners), trt = packaged_network("encoder.onnx")
    assert differences(model, network, trt) == []
    name = node_of(model, "Conv").input[1]
    next(each for each in model.graph.initializer if each.name == name).data_type = TensorProto.FLOAT16
    assert any("in FLOAT, the graph says" in each for each in differences(model, network, trt))


def test_a_precision_that_the_parser_narrows_fails_the_build(tmp_path: Path) -> None:
    """The parser narrows double to float, with a warning that is easily missed."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], name="widen", to=TensorProto.DOUBLE),
        helper.make_node("Mul", ["wide", "factor"], ["scaled"], name="scale"),
        helper.make_node("Cast", ["scaled"], ["y"], name="narrow", to=TensorProto.FLOAT),
    ]
    factor = numpy_helper.from_array(np.array([1 / 3], np.float64), "factor")
    graph = helper.make_graph(nodes, "g", [x], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])], [factor])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    path = tmp_path / "double.onnx"
    onnx.save(model, path)
    with pytest.raises(ExportError, match=r"value 'wide' is FLOAT, the graph says DOUBLE; .*weight 'factor' is DOUBLE"):
        build(find_library("tensorrt-rtx"), path, model, [], sms=(89,))


@pytest.mark.parametrize(
    ("part", "cache", "on_host"),
    [
        ("backbone.onnx", "in_place", set()),
        ("backbone.onnx", "appended", set()),
        ("codec_stream.onnx", "in_place", {"first", "last"}),
    ],
    ids=["body", "body in primitives", "codec"],
)
def test_positions_are_read_on_the_device_and_the_codecs_flags_on_the_host(
    part: str, cache: CacheKind, on_host: set[str]
) -> None:
    """The engine binds them so; a position needed on the host could not advance within a captured step."""
    _, (network, _owners), _trt = packaged_network(part, cache)
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    assert {tensor.name for tensor in inputs if tensor.is_shape_tensor} == on_host
    assert {tensor.name for tensor in inputs if tensor.is_execution_tensor} == {t.name for t in inputs} - on_host
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    assert all(tensor.is_execution_tensor for tensor in outputs)
