"""Graphs as TensorRT 10.3 to 10.14 take them: JetPack 6 brings 10.3.

Their parser reads opset 20 and block formats of 21, and has no Attention, RotaryEmbedding, RMSNormalization or
TensorScatter; their library lets a block of weights share a scale in int4 alone. The bundle stays as it is: what is
compiled of it is written in primitives here, node by node, and ``onnx`` is all that this needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..runtime.engines.tensorrt_names import COLUMNS, OFFSETS, POSITION
from ..runtime.errors import ExportError

#: Operator set of the graphs: blocks of int4 came with it.
OPSET = 21
#: What hides a column. Finite, so that nowhere infinity is taken from infinity; no sum of a score with it rounds to
#: anything else, and its exponential beside any score is 0.
_HIDDEN = np.float32(-1e30)


def with_appended_cache(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the body that counts its positions (``with_own_positions``) whose cache is an input alone.

    The keys and values of the rows fed are outputs, ``new_key.i``, ``new_value.i`` [batch, kv_heads, rows, head_dim],
    which the engine's owner appends. A row looks at what is held, columns 0 .. position of the cache, and at the rows
    fed with it: two sets of scores under one softmax, so that neither the cache nor its keys are copied together with
    the new ones. ``columns`` says by its length how many rows of the cache are looked at, at least the position.

    Scores and sums are float32 whatever the cache is: Qwen's keys have biases of hundreds, which half precision's
    scores do not survive. Half operands reach a product behind a cast, which TensorRT reads as half operands summed in
    float32.
    """
    rewrite = _Rewrite(model)
    made_by = {out: node for node in model.graph.node for out in node.output}
    renamed: dict[str, str] = {}
    columns = _Columns(rewrite)
    for node in model.graph.node:
        if node.op_type == "Attention":
            q = node.input[0]
            slices = [made_by.get(name) for name in node.input[1:3]]
            writes = [made_by.get(each.input[0]) for each in slices if each is not None and each.op_type == "Slice"]
            if node.attribute or [write and write.op_type for write in writes] != ["TensorScatter"] * 2:
                raise ExportError(f"graph {model.graph.name}: {node.name!r} is no attention of the standard dialect")
            for write in filter(None, writes):
                renamed[write.input[1]] = write.output[0].replace("present_", "new_")
            pasts, new = ([write.input[index] for write in filter(None, writes)] for index in (0, 1))
            _attend(rewrite, columns, node, q, pasts, new)
        elif node.op_type not in ("TensorScatter", "Slice"):
            rewrite.keep(node)
    for output in rewrite.graph.output:
        if output.name.startswith("present_"):
            output.name = output.name.replace("present_", "new_")
            dimension = output.type.tensor_type.shape.dim[2]
            dimension.Clear()
            dimension.dim_param = "rows"
    return rewrite.finish(renamed)


class _Columns:
    """What all layers share: how many rows of the cache are looked at, and what hides columns of the scores."""

    def __init__(self, rewrite: _Rewrite) -> None:
        self._rewrite, op, constant = rewrite, rewrite.op, rewrite.constant
        seen, hidden = constant("seen", np.float32(0)), constant("hidden", _HIDDEN)
        self.looked_at = op("Shape", COLUMNS, name="appended.looked_at")
        # what is held lies before every row that is fed
        held = op("Less", COLUMNS, POSITION, name="appended.is_held")
        self.held = op("Where", held, seen, hidden, name="appended.held")
        across = op("Unsqueeze", OFFSETS, constant("first", np.array([0])), name="appended.across")
        down = op("Unsqueeze", OFFSETS, constant("second", np.array([1])), name="appended.down")
        earlier = op("LessOrEqual", across, down, name="appended.is_earlier")
        self._fed = op("Where", earlier, seen, hidden, name="appended.fed")
        self._by_group: dict[int, str] = {1: self._fed}

    def fed(self, group: int) -> str:
        """For ``group`` heads with the same keys, one below the other: [group x rows, rows]."""
        if group not in self._by_group:
            repeats = self._rewrite.constant(f"repeats.{group}", np.array([group, 1]))
            self._by_group[group] = self._rewrite.op("Tile", self._fed, repeats, name=f"appended.fed.{group}")
        return self._by_group[group]


def _attend(
    rewrite: _Rewrite, columns: _Columns, node: onnx.NodeProto, q: str, pasts: Sequence[str], new: Sequence[str]
) -> None:
    """Attention of ``q`` [batch, heads, rows, head_dim] over held and new keys and values.

    Heads that share keys lie one below the other, [batch, kv_heads, group x rows, head_dim], so that keys are not
    repeated.
    """
    kind = rewrite.types[q]
    heads, head_dim = rewrite.size(q, 1), rewrite.size(q, 3)
    kv_heads = rewrite.size(pasts[0], 1)
    name = node.name

    def op(kind: str, *inputs: str, at: str, **attributes: Any) -> str:
        return rewrite.op(kind, *inputs, name=f"{name}.{at}", **attributes)

    def wide(value: str, at: str) -> str:
        return value if kind == TensorProto.FLOAT else op("Cast", value, at=f"{at}.wide", to=TensorProto.FLOAT)

    def narrow(value: str, at: str) -> str:
        return value if kind == TensorProto.FLOAT else op("Cast", value, at=f"{at}.narrow", to=kind)

    begin, rows = rewrite.constant("begin", np.array([0])), rewrite.constant("row_axis", np.array([2]))
    last = rewrite.constant("last_axis", np.array([-1]))
    scale = rewrite.constant(f"scale.{head_dim}", np.float32(1 / np.sqrt(head_dim)))
    grouped = rewrite.constant(f"grouped.{kv_heads}.{head_dim}", np.array([0, kv_heads, -1, head_dim]))
    query = wide(op("Reshape", q, grouped, at="query"), "query")

    held_key, held_value = (
        op("Slice", past, begin, columns.looked_at, rows, at=f"held_{letter}")
        for letter, past in zip("kv", pasts, strict=True)
    )
    parts = ("held", "fed")
    scores, values = [], []
    for at, key, value, mask in (
        ("held", held_key, held_value, columns.held),
        ("fed", new[0], new[1], columns.fed(heads // kv_heads)),
    ):
        key = wide(op("Transpose", key, at=f"{at}_key", perm=[0, 1, 3, 2]), f"{at}_key")
        score = op("Mul", op("MatMul", query, key, at=f"{at}_products"), scale, at=f"{at}_scaled")
        scores.append(op("Add", score, mask, at=f"{at}_scores"))
        values.append(wide(value, f"{at}_value"))
    highest = [op("ReduceMax", score, last, at=f"{at}_highest") for at, score in zip(parts, scores, strict=True)]
    peak = op("Max", *highest, at="peak")
    sums, products = [], []
    for at, score, value in zip(parts, scores, values, strict=True):
        weight = op("Exp", op("Sub", score, peak, at=f"{at}_below"), at=f"{at}_weights")
        sums.append(op("ReduceSum", weight, last, at=f"{at}_sum"))
        half = wide(narrow(weight, f"{at}_weights"), f"{at}_weights")
        products.append(op("MatMul", half, value, at=f"{at}_values"))
    mixed = op("Div", op("Add", *products, at="mixed"), op("Add", *sums, at="sum"), at="divided")
    by_head = rewrite.constant(f"by_head.{heads}.{head_dim}", np.array([0, heads, -1, head_dim]))
    rewrite.op("Reshape", narrow(mixed, "mixed"), by_head, name=name, output=node.output[0])


def in_primitives(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of any part's graph in operators of opset 21 that the parser of TensorRT 10.3 reads.

    :class:`ExportError` for an operator that has none.
    """
    rewrite = _Rewrite(model)
    for node in model.graph.node:
        write = _WRITERS.get(node.op_type)
        if write is None or not write(rewrite, node):
            rewrite.keep(node)
    made = rewrite.finish({})
    for node in made.graph.node:
        if not onnx.defs.has(node.op_type, OPSET):
            raise ExportError(
                f"graph {model.graph.name}: {node.op_type} {node.name!r} has no form that TensorRT before 10.15 reads; "
                "use a newer TensorRT"
            )
    del made.opset_import[:]
    made.opset_import.append(helper.make_opsetid("", OPSET))
    return made


def _normalise(rewrite: _Rewrite, node: onnx.NodeProto) -> bool:
    """RMSNormalization over the last axis, in the float32 that the residual stream is kept in."""
    (x, weight), (out,) = node.input, node.output
    attributes = _attributes(node)
    epsilon = float(attributes.get("epsilon", 1e-5))
    if attributes.get("axis", -1) != -1 or rewrite.types[x] != TensorProto.FLOAT:
        raise ExportError(f"graph {rewrite.graph.name}: {node.name!r} is no norm of a float32 row")

    def op(kind: str, *inputs: str, at: str, **more: Any) -> str:
        return rewrite.op(kind, *inputs, name=f"{node.name}.{at}", **more)

    last = rewrite.constant("last_axis", np.array([-1]))
    mean = op("ReduceMean", op("Mul", x, x, at="squares"), last, at="mean")
    above = op("Add", mean, rewrite.constant(f"epsilon.{epsilon}", np.float32(epsilon)), at="above")
    root = op("Sqrt", above, at="root")
    rewrite.op("Mul", op("Div", x, root, at="divided"), weight, name=node.name, output=out)
    return True


def _rotate(rewrite: _Rewrite, node: onnx.NodeProto) -> bool:
    """RotaryEmbedding of [batch, heads, rows, head_dim], halves turned against each other."""
    x, *angles = node.input
    if node.attribute or len(angles) != 2:
        raise ExportError(f"graph {rewrite.graph.name}: {node.name!r} is no rotary embedding of the standard dialect")
    one = rewrite.constant("second", np.array([1]))
    cos, sin = (rewrite.once("Unsqueeze", angle, one, name=f"{angle}.by_head") for angle in angles)

    def op(kind: str, *inputs: str, at: str, **more: Any) -> str:
        return rewrite.op(kind, *inputs, name=f"{node.name}.{at}", **more)

    low, high = (f"{node.name}.low", f"{node.name}.high")
    rewrite.add(helper.make_node("Split", [x], [low, high], name=f"{node.name}.halves", axis=-1, num_outputs=2))
    turned = [
        op("Sub", op("Mul", low, cos, at="low_cos"), op("Mul", high, sin, at="high_sin"), at="turned_low"),
        op("Add", op("Mul", high, cos, at="high_cos"), op("Mul", low, sin, at="low_sin"), at="turned_high"),
    ]
    rewrite.op("Concat", *turned, name=node.name, output=node.output[0], axis=-1)
    return True


def _widen_blocks(rewrite: _Rewrite, node: onnx.NodeProto) -> bool:
    """int8 blocks: the numbers as they are, by a scale of one, times the scales of their blocks.

    The same numbers come out, rounded once. Whether the library keeps eight bits until then is its choice.
    """
    (whole, scale), (out,) = node.input, node.output
    block = int(_attributes(node).get("block_size", 0))
    if not block or rewrite.types[whole] != TensorProto.INT8:
        return False
    inputs, outputs = rewrite.size(whole, 0), rewrite.size(whole, 1)
    kind = rewrite.types[scale]
    one = rewrite.constant(f"one.{kind}", np.ones((), helper.tensor_dtype_to_np_dtype(kind)))

    def op(kind: str, *inputs: str, at: str) -> str:
        return rewrite.op(kind, *inputs, name=f"{node.name}.{at}")

    blocks = rewrite.constant(f"blocks.{block}.{outputs}", np.array([-1, block, outputs]))
    flat = rewrite.constant(f"flat.{inputs}.{outputs}", np.array([inputs, outputs]))
    numbers = op("Reshape", op("DequantizeLinear", whole, one, at="whole"), blocks, at="blocks")
    scales = op("Unsqueeze", scale, rewrite.constant("second", np.array([1])), at="scales")
    rewrite.op("Reshape", op("Mul", numbers, scales, at="scaled"), flat, name=node.name, output=out)
    return True


#: Operator -> what writes it in primitives; false where it can stay.
_WRITERS: dict[str, Callable[[_Rewrite, onnx.NodeProto], bool]] = {
    "RMSNormalization": _normalise,
    "RotaryEmbedding": _rotate,
    "DequantizeLinear": _widen_blocks,
}


class _Rewrite:
    """A copy of a graph under construction."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = onnx.ModelProto()
        self._model.CopyFrom(model)
        self.graph = self._model.graph
        del self.graph.node[:]
        inferred = onnx.shape_inference.infer_shapes(model).graph
        values = (*inferred.input, *inferred.output, *inferred.value_info)
        self._shapes = {value.name: value.type.tensor_type.shape for value in values}
        self.types = {value.name: int(value.type.tensor_type.elem_type) for value in values}
        for tensor in model.graph.initializer:
            self.types[tensor.name] = int(tensor.data_type)
            self._shapes[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, tensor.dims).tensor_type.shape
        self._constants = {tensor.name for tensor in model.graph.initializer}
        self._made: set[str] = set()

    def size(self, value: str, axis: int) -> int:
        """A dimension that does not vary."""
        shape = self._shapes[value].dim if value in self._shapes else ()
        if len(shape) <= axis or not shape[axis].dim_value:
            raise ExportError(f"graph {self.graph.name}: the size of {value!r} along axis {axis} is not known")
        return int(shape[axis].dim_value)

    def keep(self, node: onnx.NodeProto) -> None:
        self.graph.node.append(node)

    add = keep

    def constant(self, name: str, values: np.ndarray | np.generic) -> str:
        """A small constant, kept once under its name."""
        full = f"primitives.{name}"
        if full not in self._constants:
            self._constants.add(full)
            self.graph.initializer.append(numpy_helper.from_array(np.asarray(values), full))
        return full

    def op(self, kind: str, *inputs: str, name: str, output: str | None = None, **attributes: Any) -> str:
        """A node, and the value that it makes, which has its name."""
        out = output or name
        self.graph.node.append(helper.make_node(kind, inputs, [out], name=name, **attributes))
        return out

    def once(self, kind: str, *inputs: str, name: str) -> str:
        """As :meth:`op`, for what several nodes share."""
        if name not in self._made:
            self._made.add(name)
            self.op(kind, *inputs, name=name)
        return name

    def finish(self, renamed: dict[str, str]) -> onnx.ModelProto:
        """The graph with values renamed, without nodes and constants that nothing reads any longer."""
        live = {value.name for value in self.graph.output}
        kept = []
        for node in reversed(self.graph.node):
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    names[index] = renamed.get(name, name)
            if live & set(node.output):
                live |= set(node.input)
                kept.append(node)
        tensors = [tensor for tensor in self.graph.initializer if tensor.name in live]
        del self.graph.node[:], self.graph.initializer[:], self.graph.value_info[:]
        self.graph.node.extend(reversed(kept))
        self.graph.initializer.extend(tensors)
        return self._model


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {each.name: helper.get_attribute_value(each) for each in node.attribute}
