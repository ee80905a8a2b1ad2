"""A thin builder over ``onnx.helper``: one graph, its operators by name, its weights in the bundle's blob.

The graphs are written by hand, not traced: an engine sees exactly what the modules of this folder say.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ...runtime.bundle.entries import Compute
from ...runtime.bundle.precision import BLOCK
from ..formats.precision import FLOAT8
from ..formats.store import SCALED_DTYPES, WeightStore

#: Operator set of the parts: 23 brought Attention, RotaryEmbedding and RMSNormalization, and ONNX Runtime 1.23, the
#: last for Python 3.10, reads it. Only graphs with TensorScatter require 24.
OPSET = 23
#: IR version that all our engines read.
IR_VERSION = 10

Shape = Sequence[int | str]


class Graph:
    """One ONNX graph under construction. Values are identified by name; every method that makes one returns its
    name."""

    def __init__(
        self,
        name: str,
        weights: WeightStore,
        *,
        opset: int = OPSET,
        contrib: bool = False,
        compute: Compute = "float32",
    ) -> None:
        self.name, self.opset = name, opset
        #: The type in which matrices are multiplied: float32, float16 or bfloat16.
        self.compute = compute
        self._weights = weights
        self._contrib = contrib
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._external: dict[str, None] = {}
        self._constants: dict[str, np.ndarray] = {}
        self._casts: set[str] = set()

    def input(self, name: str, shape: Shape, dtype: str = "float32") -> str:
        """Declare a graph input. Dimensions are numbers, or names if they vary."""
        self._inputs.append(helper.make_tensor_value_info(name, _element_type(dtype), shape))
        return name

    def output(self, value: str, name: str, shape: Shape, dtype: str = "float32") -> str:
        """Declare ``value``, made by a node of this graph, as the output called ``name``.

        The value itself is renamed, also where it is read: TensorRT requires a cache update to be the output, not a
        copy of it.
        """
        for node in self._nodes:
            for names in (node.input, node.output):
                for index, existing in enumerate(names):
                    if existing == value:
                        names[index] = name
        self._outputs.append(helper.make_tensor_value_info(name, _element_type(dtype), shape))
        return name

    def weight(self, name: str, dtype: str = "float32") -> str:
        """Refer to a float tensor of the blob (planned with ``WeightStore.add``), widened or rounded to ``dtype``."""
        planned = self._weights[name]
        self._external[name] = None
        return self.cast(name, planned.dtype, dtype)

    def cast(self, value: str, source: str, target: str) -> str:
        """``value`` of dtype ``source`` as ``target``; cast once, or not at all if the types are the same."""
        if source == target:
            return value
        key = f"{value}.{target}"
        if key not in self._casts:
            self._casts.add(key)
            self.op("Cast", value, name=key, to=_element_type(target))
        return key

    def matrix(self, name: str) -> str:
        """A matrix of the blob in any format (planned with ``WeightStore.add_matrix``), in the graph's ``compute``."""
        planned = self._weights[name]
        if planned.dtype not in (*SCALED_DTYPES, FLOAT8):
            return self.weight(name, self.compute)
        self._external[name] = None
        scale = self.weight(f"{name}.scale", self.compute)
        layouts: dict[str, dict[str, Any]] = {"int8column": {"axis": 1}, FLOAT8: {}}
        layout = layouts.get(planned.dtype, {"axis": 0, "block_size": BLOCK})
        return self.op("DequantizeLinear", name, scale, name=f"{name}.values", **layout)

    def constant(self, values: np.ndarray | Sequence[int] | Sequence[float] | int | float, dtype: str) -> str:
        """A small inline constant; equal constants are stored once."""
        array = np.asarray(values, dtype=dtype)
        key = f"const.{array.dtype}.{'x'.join(map(str, array.shape))}.{array.tobytes().hex()[:64]}"
        if key in self._constants and not np.array_equal(self._constants[key], array):
            key = f"{key}.{len(self._constants)}"
        self._constants[key] = array
        return key

    def ints(self, *values: int) -> str:
        """A one-dimensional int64 constant: shapes, axes, starts."""
        return self.constant(list(values), "int64")

    def op(self, op_type: str, *inputs: str, name: str = "", domain: str = "", **attributes: Any) -> str:
        """Add a node with one output."""
        return self.op_n(op_type, 1, *inputs, name=name, domain=domain, **attributes)[0]

    def op_n(
        self, op_type: str, outputs: int, *inputs: str, name: str = "", domain: str = "", **attributes: Any
    ) -> list[str]:
        """Add a node with several outputs. An empty string stands for an optional input left out."""
        label = name or f"{op_type}.{len(self._nodes)}"
        names = [label] if outputs == 1 else [f"{label}:{index}" for index in range(outputs)]
        self._nodes.append(helper.make_node(op_type, inputs, names, name=label, domain=domain, **attributes))
        return names

    def linear(self, x: str, weight: str, bias: str | None = None, *, name: str = "") -> str:
        """``x @ weight + bias`` with the weight stored [in, out]; all in the graph's ``compute``, except that ``x`` is
        rounded to float8 where the weight is float8."""
        if self._weights[weight].dtype == FLOAT8:
            x = self._as_float8(x, weight)
        y = self.op("MatMul", x, self.matrix(weight), name=name and f"{name}.matmul")
        return self.op("Add", y, self.weight(bias, self.compute), name=name and f"{name}.add") if bias else y

    def _as_float8(self, x: str, weight: str) -> str:
        """``x`` rounded for a product: with these two nodes before it TensorRT multiplies in float8."""
        scale = self.weight(f"{weight}.input_scale", self.compute)
        codes = self.op("QuantizeLinear", x, scale, name=f"{weight}.input_codes", output_dtype=TensorProto.FLOAT8E4M3FN)
        return self.op("DequantizeLinear", codes, scale, name=f"{weight}.input")

    @property
    def weight_bytes(self) -> int:
        """Bytes of the blob that one run reads."""
        return sum(self._weights[name].nbytes for name in self._external)

    def model(self) -> onnx.ModelProto:
        """The finished model; weights are references into the blob, which must be laid out."""
        initializers = [numpy_helper.from_array(array, name) for name, array in self._constants.items()]
        for name in self._external:
            tensor = self._weights[name]
            offset, length = self._weights.place(name)
            proto = TensorProto(name=name, data_type=_element_type(tensor.dtype), dims=tensor.shape)
            proto.data_location = TensorProto.EXTERNAL
            for key, value in (("location", self._weights.filename), ("offset", offset), ("length", length)):
                proto.external_data.add(key=key, value=str(value))
            initializers.append(proto)
        graph = helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, initializers)
        opsets = [helper.make_opsetid("", self.opset)]
        if self._contrib:
            opsets.append(helper.make_opsetid("com.microsoft", 1))
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="ualm")

    def save(self, folder: Path, filename: str) -> None:
        """Write the graph beside the blob."""
        (folder / filename).write_bytes(self.model().SerializeToString(deterministic=True))


def _element_type(dtype: str) -> int:
    names = {"float32": "FLOAT", "int8column": "INT8"}
    return TensorProto.DataType.Value(names.get(dtype, dtype.upper()))
