"""Graphs for TensorRT 10.3 to 10.14: JetPack 6 brings 10.3.

Their parser reads opset 20 and the block formats of 21, and has no Attention, RotaryEmbedding, RMSNormalization or
TensorScatter; their library supports block scales for int4 only. The bundle is not changed: the graphs to compile are
rewritten in primitives here, node by node, with no library but ``onnx``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from ....runtime.errors import ExportError
from .rewrite import Rewrite

#: Operator set of the graphs: it brought int4 blocks.
OPSET = 21


def in_primitives(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of any part's graph in operators of opset 21 that the parser of TensorRT 10.3 reads.

    Raises :class:`ExportError` for an operator that has no such form.
    """
    rewrite = Rewrite(model)
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


def _normalise(rewrite: Rewrite, node: onnx.NodeProto) -> bool:
    """RMSNormalization over the last axis, in float32, the type of the residual stream."""
    (x, weight), (out,) = node.input, node.output
    attributes = _attributes(node)
    epsilon = float(attributes.get("epsilon", 1e-5))
    if attributes.get("axis", -1) != -1 or rewrite.types[x] != TensorProto.FLOAT:
        raise ExportError(f"graph {rewrite.graph.name}: {node.name!r} is not a norm of a float32 row")

    def op(kind: str, *inputs: str, at: str, **more: Any) -> str:
        return rewrite.op(kind, *inputs, name=f"{node.name}.{at}", **more)

    last = rewrite.constant("last_axis", np.array([-1]))
    mean = op("ReduceMean", op("Mul", x, x, at="squares"), last, at="mean")
    above = op("Add", mean, rewrite.constant(f"epsilon.{epsilon}", np.float32(epsilon)), at="above")
    root = op("Sqrt", above, at="root")
    rewrite.op("Mul", op("Div", x, root, at="divided"), weight, name=node.name, output=out)
    return True


def _rotate(rewrite: Rewrite, node: onnx.NodeProto) -> bool:
    """RotaryEmbedding of [batch, heads, rows, head_dim], rotating the two halves of a head against each other."""
    x, *angles = node.input
    if node.attribute or len(angles) != 2:
        raise ExportError(f"graph {rewrite.graph.name}: {node.name!r} is not a standard rotary embedding")
    one = rewrite.constant("second", np.array([1]))
    cos, sin = (rewrite.once("Unsqueeze", angle, one, name=f"{angle}.by_head") for angle in angles)

    def op(kind: str, *inputs: str, at: str, **more: Any) -> str:
        return rewrite.op(kind, *inputs, name=f"{node.name}.{at}", **more)

    low, high = f"{node.name}.low", f"{node.name}.high"
    rewrite.keep(helper.make_node("Split", [x], [low, high], name=f"{node.name}.halves", axis=-1, num_outputs=2))
    turned = [
        op("Sub", op("Mul", low, cos, at="low_cos"), op("Mul", high, sin, at="high_sin"), at="turned_low"),
        op("Add", op("Mul", high, cos, at="high_cos"), op("Mul", low, sin, at="low_sin"), at="turned_high"),
    ]
    rewrite.op("Concat", *turned, name=node.name, output=node.output[0], axis=-1)
    return True


def _widen_blocks(rewrite: Rewrite, node: onnx.NodeProto) -> bool:
    """int8 blocks: dequantised with a scale of one, then multiplied by the scales of their blocks.

    The results are the same, rounded once. Whether the weights stay in eight bits until then is the library's choice.
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


#: Operator -> the function that rewrites it in primitives, which returns false if the node can stay.
_WRITERS: dict[str, Callable[[Rewrite, onnx.NodeProto], bool]] = {
    "RMSNormalization": _normalise,
    "RotaryEmbedding": _rotate,
    "DequantizeLinear": _widen_blocks,
}


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {each.name: helper.get_attribute_value(each) for each in node.attribute}
