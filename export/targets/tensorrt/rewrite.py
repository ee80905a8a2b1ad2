"""Rewrites a graph node by node; the forms for older TensorRT are made with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ....runtime.errors import ExportError


class Rewrite:
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

    def constant(self, name: str, values: np.ndarray | np.generic) -> str:
        """A small constant, stored once under its name."""
        full = f"primitives.{name}"
        if full not in self._constants:
            self._constants.add(full)
            self.graph.initializer.append(numpy_helper.from_array(np.asarray(values), full))
        return full

    def op(self, kind: str, *inputs: str, name: str, output: str | None = None, **attributes: Any) -> str:
        """Add a node; its output has the node's name."""
        out = output or name
        self.graph.node.append(helper.make_node(kind, inputs, [out], name=name, **attributes))
        return out

    def once(self, kind: str, *inputs: str, name: str) -> str:
        """As :meth:`op`, for values that several nodes share."""
        if name not in self._made:
            self._made.add(name)
            self.op(kind, *inputs, name=name)
        return name

    def finish(self, renamed: dict[str, str]) -> onnx.ModelProto:
        """The graph with values renamed, without nodes and constants that are no longer read."""
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
