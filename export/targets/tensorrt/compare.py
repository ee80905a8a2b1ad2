"""Compares a network parsed by TensorRT with the ONNX graph that it was parsed from.

The parser silently ignores inputs of some operators that it does not know (``Attention``'s ``nonpad_kv_seqlen``), and
narrows types that it lacks (double) with a warning. An engine made of such a network runs, but computes something else.
The network is therefore walked, and every difference is named. The names of values help: the parser keeps them for what
a node makes and for constants.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

#: ONNX type -> TensorRT's. A type that is missing here cannot be preserved.
_TYPES: dict[int, str] = {
    TensorProto.FLOAT: "FLOAT",
    TensorProto.FLOAT16: "HALF",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.FLOAT8E4M3FN: "FP8",
    TensorProto.INT8: "INT8",
    TensorProto.UINT8: "UINT8",
    TensorProto.INT4: "INT4",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.BOOL: "BOOL",
}
#: Types whose width affects the result.
_NUMBERS = ("FLOAT", "HALF", "BF16", "FP8", "INT8", "INT4", "FP4")
_FLOATS = ("FLOAT", "HALF", "BF16")
#: Operators that must be preserved: operator -> the layer that must implement it.
_LAYERS = {
    "Attention": "ATTENTION_OUTPUT",
    "Conv": "CONVOLUTION",
    "ConvTranspose": "DECONVOLUTION",
    "DequantizeLinear": "DEQUANTIZE",
    "MatMul": "MATRIX_MULTIPLY",
    "QuantizeLinear": "QUANTIZE",
    "RotaryEmbedding": "ROTARY_EMBEDDING",
    "TensorScatter": "KV_CACHE_UPDATE",
}
#: Operators that may leave no layer, because they change nothing.
_IDLE = ("Identity", "Dropout")


def differences(model: onnx.ModelProto, network: Any, trt: Any) -> list[str]:
    """What ``network`` does differently from ``model``, one clause per difference; empty if they agree.

    Compared: each input of the graph and of each node is read; each node has left a layer, of the required kind where
    that matters; every value and every intermediate of a node has its type; quantised weights are present as they are
    stored, with their scales. ``trt``: the library's module.
    """
    walk = _Network(network)
    dropped = dropped_inputs(model, network)
    if dropped:
        return [f"it dropped {'; '.join(dropped)}"]
    return [*_lost_nodes(model, walk), *_changed_types(model, walk), *_changed_weights(model, walk, trt)]


class _Network:
    """Layers and tensors of a network by name."""

    def __init__(self, network: Any) -> None:
        self.layers = list(layers_of(network))
        self.producers = {out.name: layer for layer in self.layers for out in _outputs(layer)}
        self.types = {out.name: out.dtype.name for layer in self.layers for out in _outputs(layer)}
        for index in range(network.num_inputs):
            self.types[network.get_input(index).name] = network.get_input(index).dtype.name
        self.constants = {layer.name: layer for layer in self.layers if layer.type.name == "CONSTANT"}

    def layers_behind(self, outputs: Iterable[str], borders: set[str]) -> list[Any]:
        """The layers that compute ``outputs`` from ``borders``."""
        names = _behind(list(outputs), self.producers, borders)
        inner = [name for name in names if name in self.producers and name not in borders]
        return list({self.producers[name].name: self.producers[name] for name in inner}.values())


def _lost_nodes(model: onnx.ModelProto, walk: _Network) -> Iterator[str]:
    """Nodes that left no layer, and nodes that became layers that cannot be equivalent."""
    values = _values(model)
    for node in model.graph.node:
        lost = [out for out in node.output if out and out not in walk.types]
        if lost and node.op_type not in _IDLE:
            yield f"{node.op_type} {node.name!r} left no layer ({lost[0]!r} is not in the network)"
            continue
        wanted = _LAYERS.get(node.op_type)
        if wanted is None:
            continue
        kinds = {layer.type.name for layer in walk.layers_behind(node.output, values - set(node.output))}
        if wanted not in kinds:
            yield f"{node.op_type} {node.name!r} became {', '.join(sorted(kinds))}, without {wanted}"


def _changed_types(model: onnx.ModelProto, walk: _Network) -> Iterator[str]:
    """Values of another type than in the graph, and nodes that compute in a type that none of their values has."""
    declared = _types(model)
    for name, kind in declared.items():
        wanted = _TYPES.get(kind)
        found = walk.types.get(name)
        if found is not None and found != wanted:
            yield f"value {name!r} is {found}, the graph says {_type_name(kind)}"
    values = _values(model)
    for node in model.graph.node:
        named = [name for name in (*node.input, *node.output) if name in declared]
        own = {_TYPES.get(declared[name]) for name in named}
        for layer in walk.layers_behind([out for out in node.output if out], values - set(node.output)):
            for out in _outputs(layer):
                kind = out.dtype.name
                if kind in _FLOATS and kind not in own:
                    types = ", ".join(sorted(_type_name(declared[name]) for name in set(named)))
                    yield f"{node.op_type} {node.name!r} computes in {kind} ({layer.name!r}), the graph says {types}"


def _changed_weights(model: onnx.ModelProto, walk: _Network, trt: Any) -> Iterator[str]:
    """Weights that the network does not hold as they are stored."""
    values = _values(model)
    readers = {name: node for node in model.graph.node for name in node.input}
    stored = {each.name: each for each in model.graph.initializer}
    for name, tensor in stored.items():
        wanted = _TYPES.get(tensor.data_type)
        if name not in readers or (wanted is not None and wanted not in _NUMBERS):
            continue
        if wanted is None:
            yield f"weight {name!r} is {_type_name(tensor.data_type)}, which the library has no type for"
            continue
        node = readers[name]
        behind = {each.name: each for each in walk.layers_behind(node.output, values - set(node.output))}
        constant = behind.get(name)
        if constant is not None:
            kept = constant.get_output(0)
            found: tuple[str, int] | None = (kept.dtype.name, _count(kept.shape))
        else:
            found = _within(behind.values(), list(node.input).index(name), trt)
        if found is None:
            yield f"weight {name!r} of {node.op_type} {node.name!r} is not read"
        elif found != (wanted, _count(tensor.dims)):
            yield (
                f"weight {name!r} has {found[1]} numbers in {found[0]}, the graph says {_count(tensor.dims)} in "
                f"{_type_name(tensor.data_type)}"
            )
    for node in model.graph.node:
        if node.op_type not in ("DequantizeLinear", "QuantizeLinear") or node.output[0] not in walk.producers:
            continue
        layer = walk.producers[node.output[0]]
        scale = stored.get(node.input[1])
        if layer.type.name == _LAYERS[node.op_type] and scale is not None:
            found = tuple(layer.get_input(1).shape)
            if found != tuple(scale.dims):
                yield f"{node.op_type} {node.name!r} has scales {list(found)}, the graph says {list(scale.dims)}"


def _within(layers: Iterable[Any], index: int, trt: Any) -> tuple[str, int] | None:
    """Type and count of the kernel (``index`` 1) or bias (2) that a convolution holds itself."""
    classes = {"CONVOLUTION": trt.IConvolutionLayer, "DECONVOLUTION": trt.IDeconvolutionLayer}
    for layer in layers:
        if layer.type.name in classes and index in (1, 2):
            layer.__class__ = classes[layer.type.name]
            weights = layer.kernel if index == 1 else layer.bias
            kinds = {np.dtype(np.float32): "FLOAT", np.dtype(np.float16): "HALF"}
            return (kinds.get(weights.dtype, str(weights.dtype)), int(weights.size)) if weights.size else None
    return None


def dropped_inputs(model: onnx.ModelProto, network: Any) -> list[str]:
    """Inputs, of the graph and of nodes, that the ONNX graph reads and the network parsed from it does not.

    Only inputs whose values depend on the graph's inputs count; constants are folded, and so are shapes.
    """
    producers = {out.name: layer for layer in layers_of(network) for out in _outputs(layer)}
    graph_inputs = [value.name for value in model.graph.input]
    present = producers.keys() | {network.get_input(index).name for index in range(network.num_inputs)}

    live = _behind([network.get_output(index).name for index in range(network.num_outputs)], producers, set())
    dropped = [f"graph input {name!r}" for name in graph_inputs if name not in live]

    varying, stands_for = set(graph_inputs), {name: {name} for name in graph_inputs}
    for node in model.graph.node:
        reads = [name for name in node.input if name in varying]
        if node.op_type in ("Shape", "Size") or not reads:
            continue
        sources = {name for read in reads for name in stands_for[read]}
        for out in node.output:
            varying.add(out)
            # the parser omits operators that do nothing; their input then stands for their output
            stands_for[out] = {out} if out in present else sources
        made = [out for out in node.output if out in producers]
        if not made:
            continue
        reached = _behind(made, producers, {name for names in stands_for.values() for name in names} - set(made))
        dropped += [
            f"input {list(node.input).index(read)} ({read!r}) of {node.op_type} {node.name!r}"
            for read in dict.fromkeys(reads)
            if not stands_for[read] & reached
        ]
    return dropped


def layers_of(network: Any) -> Iterator[Any]:
    """The layers of a network, in order."""
    return (network.get_layer(index) for index in range(network.num_layers))


def _behind(starts: Sequence[str], producers: Mapping[str, Any], borders: set[str]) -> set[str]:
    """Names of the tensors that ``starts`` are computed from, found without walking past ``borders``."""
    found: set[str] = set()
    waiting = list(starts)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        if name in producers and name not in borders:
            waiting += [tensor.name for tensor in _inputs(producers[name])]
    return found


def _inputs(layer: Any) -> list[Any]:
    tensors = (layer.get_input(index) for index in range(layer.num_inputs))
    return [tensor for tensor in tensors if tensor is not None]


def _outputs(layer: Any) -> list[Any]:
    return [layer.get_output(index) for index in range(layer.num_outputs)]


def _count(shape: Iterable[int]) -> int:
    return math.prod(shape)


def _values(model: onnx.ModelProto) -> set[str]:
    return {value.name for value in model.graph.input} | {out for node in model.graph.node for out in node.output}


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every value of a graph and of its initializers."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.input, *graph.output, *graph.value_info)
    types = {value.name: int(value.type.tensor_type.elem_type) for value in values}
    return types | {tensor.name: int(tensor.data_type) for tensor in graph.initializer}


def _type_name(kind: int) -> str:
    return TensorProto.DataType.Name(kind)
