"""The body's graph for TensorRT, which counts its positions itself.

The bundle's graph takes the mask, the angles and the write position as inputs. A captured CUDA graph cannot be given
new ones: here all of them are computed from one number in device memory, and the number for the next call is an output,
which the engine's owner copies over the first. A prompt's mask, rows x cached rows, need not be sent to the device
either.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ....runtime.engines.tensorrt.names import COLUMNS, COS, NEXT_POSITION, OFFSETS, POSITION, SIN
from ....runtime.errors import ExportError

#: Inputs of the bundle's graph that are computed within this one.
_REPLACED = ("write_index", "mask", "cos", "sin")


def with_own_positions(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the standard body (see ``backbone``) with other inputs in place of ``write_index``, ``mask``,
    ``cos`` and ``sin``.

    ``position`` int64 [1]: of the first row fed. ``row_offsets`` int64 [rows] and ``columns`` int64 [total], both
    0, 1, 2, ...: the length of the second, at least the position + rows, is how many rows of the cache are read.
    ``cos_table``, ``sin_table`` float32 [capacity, head_dim / 2]. Further output: ``next_position`` int64 [1].
    """
    own = onnx.ModelProto()
    own.CopyFrom(model)
    graph = own.graph
    replaced = {value.name: value for value in graph.input if value.name in _REPLACED}
    if len(replaced) != len(_REPLACED):
        missing = next(name for name in _REPLACED if name not in replaced)
        raise ExportError(f"graph {graph.name}: has no input {missing!r}; it is not a body in the standard dialect")
    half = replaced["cos"].type.tensor_type.shape.dim[2].dim_value
    for value in replaced.values():
        graph.input.remove(value)
    graph.input.extend(
        [
            helper.make_tensor_value_info(POSITION, TensorProto.INT64, [1]),
            helper.make_tensor_value_info(OFFSETS, TensorProto.INT64, ["rows"]),
            helper.make_tensor_value_info(COLUMNS, TensorProto.INT64, ["total"]),
            helper.make_tensor_value_info(COS, TensorProto.FLOAT, ["capacity", half]),
            helper.make_tensor_value_info(SIN, TensorProto.FLOAT, ["capacity", half]),
        ]
    )
    graph.output.append(helper.make_tensor_value_info(NEXT_POSITION, TensorProto.INT64, [1]))
    constants: dict[str, np.ndarray] = {
        "positions.half": np.array([half], np.int64),
        "positions.seen": np.array(0, np.float32),
        "positions.hidden": np.array(-np.inf, np.float32),
        "positions.last_axis": np.array([-1], np.int64),
        "positions.outer_axes": np.array([0, 1], np.int64),
    }
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    nodes = [
        helper.make_node("Add", [OFFSETS, POSITION], ["positions.rows"]),
        helper.make_node("Shape", ["embeddings"], ["positions.batch"], start=0, end=1),
        helper.make_node("Shape", [OFFSETS], ["positions.fed"]),
        helper.make_node(
            "Concat", ["positions.batch", "positions.fed", "positions.half"], ["positions.angles"], axis=0
        ),
        helper.make_node("Gather", [COS, "positions.rows"], ["positions.cos"], axis=0),
        helper.make_node("Gather", [SIN, "positions.rows"], ["positions.sin"], axis=0),
        helper.make_node("Expand", ["positions.cos", "positions.angles"], ["cos"]),
        helper.make_node("Expand", ["positions.sin", "positions.angles"], ["sin"]),
        helper.make_node("Expand", [POSITION, "positions.batch"], ["write_index"]),
        helper.make_node("Unsqueeze", ["positions.rows", "positions.last_axis"], ["positions.column"]),
        helper.make_node("LessOrEqual", [COLUMNS, "positions.column"], ["positions.looks"]),
        helper.make_node("Where", ["positions.looks", "positions.seen", "positions.hidden"], ["positions.mask"]),
        helper.make_node("Unsqueeze", ["positions.mask", "positions.outer_axes"], ["mask"]),
        helper.make_node("Add", [POSITION, "positions.fed"], [NEXT_POSITION]),
    ]
    for node in nodes:
        node.name = node.output[0]
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])
    return own


def load_graph(onnx_path: Path) -> onnx.ModelProto:
    """A part's graph without its weights; raises :class:`ExportError` if there is no such file."""
    try:
        return onnx.load(onnx_path, load_external_data=False)
    except FileNotFoundError as error:
        raise ExportError(f"{onnx_path}: no such file; export the run again") from error


def dimensions(value: onnx.ValueInfoProto) -> list[int | str]:
    """Sizes of an input or output; names for those that vary."""
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def fix_dimensions(model: onnx.ModelProto, fixed: Mapping[str, int], onnx_path: Path) -> None:
    """Fix named dimensions to a number; raises :class:`ExportError` for a name that no input or output has."""
    unknown = set(fixed)
    for value in (*model.graph.input, *model.graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in fixed:
                unknown.discard(dimension.dim_param)
                dimension.dim_value = fixed[dimension.dim_param]
    if unknown:
        raise ExportError(f"{onnx_path}: no input or output has a dimension called {sorted(unknown)[0]!r}")


def make_constant(model: onnx.ModelProto, values: Mapping[str, int]) -> None:
    """Turn integer inputs into constants."""
    for name, number in values.items():
        declared = next(value for value in model.graph.input if value.name == name)
        model.graph.input.remove(declared)
        shape = [int(d) for d in dimensions(declared)]
        model.graph.initializer.append(numpy_helper.from_array(np.full(shape, number, np.int64), name))
