"""Graphs for TensorRT 10.3 compute what the bundle's do, in ONNX Runtime, and contain nothing that its parser lacks.

TensorRT 10.3 itself was not run. TensorRT-RTX, which builds the networks, shows that they are valid.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from support.runs import make_run
from ualm.export.bundle import export_run
from ualm.export.formats.blocks import dequantize, quantize
from ualm.export.targets.tensorrt.appended import with_appended_cache
from ualm.export.targets.tensorrt.build import build, find_library
from ualm.export.targets.tensorrt.parts import plan_parts
from ualm.export.targets.tensorrt.positions import load_graph, with_own_positions
from ualm.export.targets.tensorrt.primitives import OPSET, in_primitives
from ualm.runtime.bundle.bundle import Bundle
from ualm.runtime.bundle.packaged import default_bundle
from ualm.runtime.errors import ExportError

CAPACITY = 48
#: Operators that our graphs may contain: those that the parser lists as supported in 10.1 (its docs/operators.md;
#: `axes`, if any, as initializers), none of which was removed up to 10.3.
PARSED = {
    *(
        "Add",
        "Cast",
        "Div",
        "Exp",
        "Gelu",
        "Less",
        "LessOrEqual",
        "Max",
        "Mul",
        "Sigmoid",
        "Sin",
        "Sqrt",
        "Sub",
        "Where",
    ),
    *("Concat", "Expand", "Gather", "Reshape", "Shape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
    *("LayerNormalization", "ReduceMax", "ReduceMean", "ReduceSum", "Softmax"),
    *("AveragePool", "Conv", "ConvTranspose", "DequantizeLinear", "MatMul", "QuantizeLinear"),
}
NUMBERS = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16}


def exported(folder: Path, precision: str, **sizes: Any) -> Bundle:
    run = make_run(folder / "run", hidden=64, ffn=96, **sizes)
    export_run(run.folder, folder / "bundle", precision=precision, accept_quality=True)
    return Bundle(folder / "bundle", verify="never")


def session_of(bundle: Bundle, model: onnx.ModelProto, name: str) -> Any:
    place = bundle.folder / name
    onnx.save(model, place)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    # if fused, blocks of weights would be multiplied as integers
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(place), options, providers=["CPUExecutionProvider"])


class Body:
    """A graph of the body that counts its positions, in ONNX Runtime, and the cache of two branches."""

    def __init__(self, bundle: Bundle, model: onnx.ModelProto, name: str) -> None:
        self.session = session_of(bundle, model, name)
        self.outputs = [value.name for value in self.session.get_outputs()]
        self.model, random = bundle.manifest.model, np.random.default_rng(7)
        angles = random.uniform(0, 6, (CAPACITY, self.model.head_dim // 2))
        self.cos, self.sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        kind = next(value for value in model.graph.input if value.name == "past_key.0").type.tensor_type.elem_type
        shape = (2, self.model.kv_heads, CAPACITY, self.model.head_dim)
        self.cache = {
            f"past_{half}.{layer}": np.zeros(shape, NUMBERS[kind])
            for layer in range(self.model.layers)
            for half in ("key", "value")
        }

    def feed(self, rows: np.ndarray, position: int, columns: int, branch: slice = slice(0, 1)) -> np.ndarray:
        """Hidden state after ``rows`` float32 [branches, rows, H]; their keys and values go into the cache."""
        fed = rows.shape[1]
        inputs = {name: np.ascontiguousarray(cache[branch]) for name, cache in self.cache.items()}
        inputs |= {"embeddings": rows} | self.counted(position, fed, columns)
        got = dict(zip(self.outputs, self.session.run(None, inputs), strict=True))
        assert got.get("next_position", np.array([position + fed])).tolist() == [position + fed]
        for name, cache in self.cache.items():
            new = got.get(name.replace("past_", "new_"))
            if new is None:
                new = got[name.replace("past_", "present_")][:, :, position : position + fed]
            assert new.shape[2] == fed and new.dtype == cache.dtype
            cache[branch, :, position : position + fed] = new
        return got["hidden"]

    def counted(self, position: int, fed: int, columns: int) -> dict[str, np.ndarray]:
        return {
            "position": np.array([position]),
            "row_offsets": np.arange(fed),
            "columns": np.arange(columns),
            "cos_table": self.cos,
            "sin_table": self.sin,
        }


class Grouped(Body):
    """The body for the CPU: the same stored weights, in float32 arithmetic."""

    def counted(self, position: int, fed: int, columns: int) -> dict[str, np.ndarray]:
        last = position + fed
        return {
            "last_position": np.array([last - 1], np.int32),
            "total_rows": np.array(last, np.int32),
            "cos": self.cos,
            "sin": self.sin,
        }


def both(bundle: Bundle) -> tuple[Body, Body]:
    """The body for a library that writes the cache in place, and the body in primitives."""
    told = with_own_positions(load_graph(bundle.part("backbone")))
    appended = in_primitives(with_appended_cache(told))
    onnx.save(appended, bundle.folder / "checked.onnx")
    onnx.checker.check_model(str(bundle.folder / "checked.onnx"), full_check=True)
    return Body(bundle, told, "in_place.onnx"), Body(bundle, appended, "appended.onnx")


@pytest.fixture(
    scope="module",
    params=[(4, 2, None), (4, 4, None), (6, 1, 8)],
    ids=["2 heads a key", "a key each", "one key, heads of 8"],
)
def bodies(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Body, Body]:
    heads, kv_heads, head_dim = request.param
    folder = tmp_path_factory.mktemp("primitives")
    return both(exported(folder, "fp32", heads=heads, kv_heads=kv_heads, head_dim=head_dim))


def test_a_conversation_is_the_same(bodies: tuple[Body, Body]) -> None:
    """A prompt in pieces, then steps of one branch and of two, to the last row of the cache.

    float32 sums in another order: 3e-5 of values up to 9 (seen: 8e-6).
    """
    random = np.random.default_rng(1)
    width, position = bodies[0].model.hidden_size, 0
    # rows, and columns that the appended form reads: at least those held, at a bucket's edge and beyond
    pieces = [(1, 1), (5, 1), (7, 16), (3, 13), (12, 32)]
    for rows, columns in pieces:
        fed = random.standard_normal((1, rows, width), np.float32)
        expected = bodies[0].feed(fed, position, max(columns, position + rows))
        np.testing.assert_allclose(bodies[1].feed(fed, position, columns), expected, atol=3e-5)
        position += rows
    for body in bodies:  # the null branch gets its prefix in another way
        for cache in body.cache.values():
            cache[1, :, :position] = np.random.default_rng(2).standard_normal(cache[1, :, :position].shape)
    for step in range(position, CAPACITY):
        branches = slice(0, 1 + step % 2)
        fed = random.standard_normal((branches.stop, 1, width), np.float32)
        expected = bodies[0].feed(fed, step, min(CAPACITY, (step // 8 + 1) * 8), branches)
        got = bodies[1].feed(fed, step, step if step % 3 else CAPACITY, branches)
        np.testing.assert_allclose(got, expected, atol=3e-5)
    for name, cache in bodies[0].cache.items():
        np.testing.assert_allclose(bodies[1].cache[name], cache, atol=3e-5)


@pytest.mark.parametrize(("rows", "position", "branches"), [(1, 0, 1), (4, 0, 1), (4, 9, 1), (1, 9, 2)])
def test_what_lies_behind_the_rows_held_counts_for_nothing(
    bodies: tuple[Body, Body], rows: int, position: int, branches: int
) -> None:
    """Not even in the last bit, for values up to the largest of the format."""
    body, random = bodies[1], np.random.default_rng(3)
    fed = random.standard_normal((branches, rows, body.model.hidden_size), np.float32)
    hidden = []
    for behind in (0.0, 1e15):
        for cache in body.cache.values():
            cache[:, :, :position] = 0.5
            cache[:, :, position:] = behind
        hidden.append(body.feed(fed, position, CAPACITY, slice(0, branches)))
    np.testing.assert_array_equal(*hidden)


@pytest.mark.parametrize(("precision", "bound"), [("fp16", 5e-3), ("int8", 5e-3), ("int4", 5e-3), ("fp8", 0.2)])
def test_half_precision_is_as_near_as_it_is(precision: str, bound: float, tmp_path: Path) -> None:
    """It is no farther from float32 arithmetic on the same weights than the form for newer libraries, whose scores are
    half precision in ONNX Runtime; a fifth is allowed for the order of sums. fp8 rounds rows to three bits of fraction,
    and half precision and float32 sometimes round differently: 0.2, of values of 2 (seen: 0.14 in both)."""
    bundle = exported(tmp_path, precision)
    grouped = Grouped(bundle, load_graph(bundle.part("backbone.grouped")), "grouped.onnx")
    standard, primitives = both(bundle)
    random, position = np.random.default_rng(4), 0
    errors = []
    for rows in (9, *[1] * 6, 4, *[1] * 12):
        fed = random.standard_normal((1, rows, standard.model.hidden_size), np.float32)
        exact = grouped.feed(fed, position, 0)
        got = standard.feed(fed, position, position + rows), primitives.feed(fed, position, max(1, position))
        errors.append([float(np.sqrt(np.mean((each - exact) ** 2))) for each in got])
        position += rows
    in_place, appended = np.mean(errors, axis=0)
    assert appended < 1.2 * in_place and appended < bound


def test_keys_with_large_biases_keep_their_scores_apart(tmp_path: Path) -> None:
    """Half-precision scores would be infinite: keys of 300 times queries of 300 over 16 numbers exceed 1e6."""
    body = both(exported(tmp_path, "fp16"))[1]
    for cache in body.cache.values():
        cache[:, :, :20] = 6e4
        cache[:, :, 10] = 6.1e4
    hidden = body.feed(np.ones((1, 2, body.model.hidden_size), np.float32), 20, 20)
    assert np.isfinite(hidden).all()


@pytest.mark.parametrize("number", ["float32", "float16"])
def test_blocks_of_int8_are_widened_to_the_same_numbers(number: str) -> None:
    random = np.random.default_rng(5)
    whole, scales = quantize(random.standard_normal((96, 20), np.float32), "int8")
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(number))
    node = helper.make_node("DequantizeLinear", ["w", "s"], ["y"], name="values", axis=0, block_size=32)
    out = helper.make_tensor_value_info("y", kind, [96, 20])
    tensors = [numpy_helper.from_array(whole, "w"), numpy_helper.from_array(scales.astype(number), "s")]
    model = helper.make_model(
        helper.make_graph([node], "g", [], [out], tensors), opset_imports=[helper.make_opsetid("", 23)], ir_version=10
    )
    made = in_primitives(model)
    assert all(helper.get_attribute_value(a) != 32 for n in made.graph.node for a in n.attribute)
    session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {})[0], dequantize(whole, scales).astype(number))


# ---- operators ----


@pytest.fixture(scope="module", params=["packaged", "omni int4", "omni bf16", "omni fp8", "afwhisper fp32"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    if request.param == "packaged":
        return Bundle(default_bundle(), verify="never")
    encoder, precision = request.param.split()
    return exported(tmp_path_factory.mktemp("bundle"), precision, encoder=encoder)


def test_no_part_holds_an_operator_that_the_parser_lacks(bundle: Bundle) -> None:
    plans = plan_parts(bundle, cache="appended")
    assert len(plans) == 6
    for plan in plans:
        assert {node.op_type for node in plan.model.graph.node} <= PARSED, plan.role
        assert [(each.domain, each.version) for each in plan.model.opset_import] == [("", OPSET)]
        stored = {tensor.name: tensor for tensor in plan.model.graph.initializer}
        for node in plan.model.graph.node:
            blocked = any(each.name == "block_size" and each.i for each in node.attribute)
            assert not blocked or stored[node.input[0]].data_type == TensorProto.INT4, node.name
            if node.op_type in ("ReduceMax", "ReduceMean", "ReduceSum", "Squeeze", "Unsqueeze"):
                assert node.input[1] in stored, node.name
            if node.op_type == "Slice":
                assert node.input[3] in stored, node.name


def test_the_bundles_own_graphs_are_left_as_they_are(bundle: Bundle) -> None:
    path = bundle.part("backbone")
    before, told = path.read_bytes(), with_own_positions(load_graph(path))
    kept = told.SerializeToString(deterministic=True)
    in_primitives(with_appended_cache(told))
    assert told.SerializeToString(deterministic=True) == kept and path.read_bytes() == before


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="TensorRT-RTX is not installed: pip install '.[tensorrt-rtx]'",
)
def test_tensorrt_rtx_builds_every_part_in_primitives(bundle: Bundle) -> None:
    """The network equals the graph, and a builder accepts it. This is TensorRT-RTX, not 10.3."""
    library = find_library("tensorrt-rtx")
    for plan in plan_parts(bundle, min(512, bundle.manifest.model.max_positions), cache="appended"):
        report = build(library, plan.path, plan.model, plan.profiles, sms=(89,))  # the first that supports fp8
        assert not {"KV_CACHE_UPDATE", "ROTARY_EMBEDDING", "ATTENTION_INPUT"} & set(report.layers), plan.role
        for layer, operator in (("QUANTIZE", "QuantizeLinear"), ("DEQUANTIZE", "DequantizeLinear")):
            nodes = [node for node in plan.model.graph.node if node.op_type == operator]
            assert report.layers.get(layer, 0) == len(nodes), plan.role


# ---- refusals ----


def graph_of(*nodes: onnx.NodeProto, inputs: dict[str, list[int]]) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, shape) for name, shape in inputs.items()]
    graph = helper.make_graph(nodes, "g", values, [helper.make_tensor_value_info("y", TensorProto.FLOAT16, None)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)


def refused() -> Iterator[tuple[Any, str]]:
    heads = {"q": [1, 2, 3, 8], "k": [1, 2, 3, 8], "v": [1, 2, 3, 8]}
    attention = graph_of(helper.make_node("Attention", ["q", "k", "v"], ["y"], name="attend"), inputs=heads)
    yield lambda: in_primitives(attention), r"Attention 'attend' has no form that TensorRT before 10\.15 reads"
    cut = [helper.make_node("Identity", [name], [f"{name}0"]) for name in "kv"]
    cut.append(helper.make_node("Attention", ["q", "k0", "v0", "q"], ["y"], name="attend"))
    yield lambda: with_appended_cache(graph_of(*cut, inputs=heads)), r"'attend' is not attention of the standard"
    norm = graph_of(helper.make_node("RMSNormalization", ["q", "k"], ["y"], name="norm"), inputs=heads)
    yield lambda: in_primitives(norm), r"'norm' is not a norm of a float32 row"
    rotary = helper.make_node("RotaryEmbedding", ["q", "k", "v"], ["y"], name="turn", interleaved=1)
    yield lambda: in_primitives(graph_of(rotary, inputs=heads)), r"'turn' is not a standard rotary embedding"


@pytest.mark.parametrize(("make", "message"), list(refused()))
def test_a_graph_that_cannot_be_written_so_is_refused_by_name(make: Any, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        make()
