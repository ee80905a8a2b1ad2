"""The body for libraries that cannot write a cache in place (TensorRT before 10.15): new rows are separate outputs.

The bundle's graph takes the cache as input and returns it updated. Without a layer that does so in place, every step
would copy all of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from ....runtime.engines.tensorrt.names import COLUMNS, OFFSETS, POSITION
from ....runtime.errors import ExportError
from .rewrite import Rewrite

#: Mask value for a column. Finite, so that infinity is never subtracted from infinity; adding any score to it rounds
#: back to it, and its exponential relative to any score is 0.
_HIDDEN = np.float32(-1e30)


def with_appended_cache(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the body that counts its positions (``with_own_positions``), with the cache only as an input.

    The keys and values of the rows fed are outputs, ``new_key.i``, ``new_value.i`` [batch, kv_heads, rows, head_dim],
    which the engine's owner appends. A row attends to columns 0 .. position of the cache and to the rows fed with it:
    two sets of scores under one softmax, so that old and new keys are never copied into one tensor. The length of
    ``columns``, at least the position, is how many rows of the cache are read.

    Scores and sums are float32 for any cache type: Qwen's keys have biases of hundreds, with which half-precision
    scores overflow. Half-precision operands are cast to float32 right before each MatMul, so that a library may fuse
    the cast and read halves while accumulating in float32.
    """
    rewrite = Rewrite(model)
    made_by = {out: node for node in model.graph.node for out in node.output}
    renamed: dict[str, str] = {}
    columns = _Columns(rewrite)
    for node in model.graph.node:
        if node.op_type == "Attention":
            writes = [write for name in node.input[1:3] if (write := _write_behind(name, made_by)) is not None]
            if node.attribute or len(writes) != 2:
                raise ExportError(f"graph {model.graph.name}: {node.name!r} is not attention of the standard dialect")
            for write in writes:
                renamed[write.input[1]] = write.output[0].replace("present_", "new_")
            pasts, new = ([write.input[index] for write in writes] for index in (0, 1))
            _attend(rewrite, columns, node, node.input[0], pasts, new)
        else:
            rewrite.keep(node)
    for output in rewrite.graph.output:
        if output.name.startswith("present_"):
            output.name = output.name.replace("present_", "new_")
            dimension = output.type.tensor_type.shape.dim[2]
            dimension.Clear()
            dimension.dim_param = "rows"
    return rewrite.finish(renamed)


def _write_behind(held: str, made_by: Mapping[str, onnx.NodeProto]) -> onnx.NodeProto | None:
    """The node that writes the cache whose slice is ``held``, if there is one."""
    cut = made_by.get(held)
    write = made_by.get(cut.input[0]) if cut is not None and cut.op_type == "Slice" else None
    return write if write is not None and write.op_type == "TensorScatter" else None


class _Columns:
    """Shared by all layers: how many rows of the cache are read, and the masks of the scores' columns."""

    def __init__(self, rewrite: Rewrite) -> None:
        self._rewrite, op, constant = rewrite, rewrite.op, rewrite.constant
        seen, hidden = constant("seen", np.float32(0)), constant("hidden", _HIDDEN)
        self.looked_at = op("Shape", COLUMNS, name="appended.looked_at")
        # cached rows precede every row that is fed
        held = op("Less", COLUMNS, POSITION, name="appended.is_held")
        self.held = op("Where", held, seen, hidden, name="appended.held")
        across = op("Unsqueeze", OFFSETS, constant("first", np.array([0])), name="appended.across")
        down = op("Unsqueeze", OFFSETS, constant("second", np.array([1])), name="appended.down")
        earlier = op("LessOrEqual", across, down, name="appended.is_earlier")
        self._fed = op("Where", earlier, seen, hidden, name="appended.fed")
        self._by_group: dict[int, str] = {1: self._fed}

    def fed(self, group: int) -> str:
        """For ``group`` heads with the same keys, stacked: [group x rows, rows]."""
        if group not in self._by_group:
            repeats = self._rewrite.constant(f"repeats.{group}", np.array([group, 1]))
            self._by_group[group] = self._rewrite.op("Tile", self._fed, repeats, name=f"appended.fed.{group}")
        return self._by_group[group]


def _attend(
    rewrite: Rewrite, columns: _Columns, node: onnx.NodeProto, q: str, pasts: Sequence[str], new: Sequence[str]
) -> None:
    """Attention of ``q`` [batch, heads, rows, head_dim] over cached and new keys and values.

    Heads that share keys are stacked, [batch, kv_heads, group x rows, head_dim], so that keys are not repeated.
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
