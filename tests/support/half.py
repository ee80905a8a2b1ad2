"""The device loop with a body that really computes in half precision, for a machine without a GPU.

ONNX Runtime's CPU provider has hardly any operators in float16 and no product in bfloat16: it computes a float16 graph
in float32, rounding only what goes through the cache and attention, and refuses a bfloat16 graph. So the body is
rewritten: every half-precision value is computed in float32 and rounded at once, at every operator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from support.cuda.shim import load_shim
from ualm.runtime.bundle.bundle import Bundle
from ualm.runtime.engines.arithmetic import Arithmetic, Part, arithmetic_of
from ualm.runtime.engines.device.device import Device
from ualm.runtime.engines.onnxruntime.cuda import OnnxRuntimeCudaEngine

#: Bits of a fraction, the leading one included.
_BITS = {TensorProto.FLOAT16: 11, TensorProto.BFLOAT16: 8}
#: Operators whose outputs are values of their inputs.
_MOVES = {"Split", "Reshape", "Transpose", "Slice", "Gather"}


class _Rounding:
    """Rewrites the nodes of a graph in ``half``; only weights and the cache stay in that type."""

    def __init__(self, graph: onnx.GraphProto, half: int) -> None:
        self.half, self.nodes = half, list[onnx.NodeProto]()
        self.stored = {each.name for each in graph.initializer if each.data_type == half}
        self.stored |= {each.name for each in graph.input if each.type.tensor_type.elem_type == half}
        self.rounded: set[str] = set()
        self._wide: dict[str, str] = {}

    def take(self, node: onnx.NodeProto) -> None:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        if node.op_type == "TensorScatter":
            copy.input[1] = self._add("Cast", [node.input[1]], f"{node.input[1]}/stored", to=self.half)
            self.nodes.append(copy)
            self.stored.add(node.output[0])
            return
        narrow = any(name in self.stored or name in self.rounded for name in node.input)
        copy.input[:] = [self._widened(name) for name in node.input]
        if node.op_type == "Cast":
            narrow = node.attribute[0].i == self.half
            copy.op_type = "Identity"
            del copy.attribute[:]
        # the mask contains only zeros and infinities
        if not narrow or node.op_type in _MOVES or node.input[0] == "mask":
            self.nodes.append(copy)
            self.rounded.update(node.output if narrow else [])
            return
        (output,) = node.output
        copy.name = copy.output[0] = f"{output}/exact"
        self.nodes.append(copy)
        self._round(copy.output[0], output)
        self.rounded.add(output)

    def _round(self, value: str, output: str) -> None:
        """Dekker's splitting, because casts there and back would be optimised away. Rounds to nearest, for values
        within range."""
        large = self._add("Mul", [value, "splitting"], f"{output}/large")
        rest = self._add("Sub", [large, value], f"{output}/rest")
        self._add("Sub", [large, rest], output)

    def _widened(self, name: str) -> str:
        if name not in self.stored:
            return name
        if name not in self._wide:
            self._wide[name] = self._add("Cast", [name], f"{name}/wide", to=TensorProto.FLOAT)
        return self._wide[name]

    def _add(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output


def rounding_body(model: onnx.ModelProto, half: int) -> onnx.ModelProto:
    """The body of ``model``, which computes in ``half``, for a provider that computes in float32."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    rewritten = _Rounding(model.graph, half)
    for node in model.graph.node:
        rewritten.take(node)
    del made.graph.node[:]
    made.graph.node.extend(rewritten.nodes)
    splitting = np.array(2.0 ** (24 - _BITS[half]) + 1, np.float32)
    made.graph.initializer.append(numpy_helper.from_array(splitting, "splitting"))
    return made


class HalfEngine(OnnxRuntimeCudaEngine):
    """The engine for NVIDIA GPUs in the device loop: the bundle's own half precision, and our kernel for the heads."""

    def __init__(
        self, bundle: Bundle, max_context: int = 64, *, change: Callable[[onnx.ModelProto], None] = lambda model: None
    ) -> None:
        """``change``: damages the bundle's body before it is rewritten."""
        self._change = change
        super().__init__(bundle, Device(load_shim(), kind="cpu"), threads=1, max_context=max_context)

    @property
    def arithmetic(self) -> dict[Part, Arithmetic]:
        parts = self.bundle.manifest.parts
        return dict(super().arithmetic) | {"body": arithmetic_of(parts["backbone"])}

    def _load(self, role: str) -> Any:
        if role != "backbone":
            return super()._load(role)
        compute = self.bundle.manifest.parts[role].multiplies_in
        half = TensorProto.DataType.Value(compute.upper())
        model = onnx.load(self.bundle.part(role), load_external_data=False)
        self._change(model)
        model = rounding_body(model, half)
        options = self.session_options(role)
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(self.bundle.folder)
        )
        # matrices in a block format are widened, as on a GPU: their input rows are not rounded to 8 bits
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
