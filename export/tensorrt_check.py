"""Building a part with TensorRT-RTX, to prove that the parser takes every operator and drops none of its inputs.

TensorRT-RTX compiles for a compute capability that it is told, so this needs no GPU; running the engine does. Its ONNX
parser passes over some optional inputs without a word (``Attention``'s ``nonpad_kv_seqlen``): the network that it made
is therefore walked back from its outputs and compared with the ONNX graph, edge by edge.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from ..runtime.errors import ExportError

Shape = tuple[int, ...]
#: Smallest, most likely and largest shape of an input.
Profile = tuple[Shape, Shape, Shape]
#: What a named dimension, or a number that sizes depend on, is in an engine: one number, or its smallest, most likely
#: and largest value.
Size = int | tuple[int, int, int]


@dataclass(frozen=True)
class BuildReport:
    """An engine that was built. ``layers``: layers by type; ``seconds``: of parsing and building together."""

    onnx_path: Path
    compute_capability: tuple[str, ...]
    library: str
    seconds: float
    size_bytes: int
    layers: Mapping[str, int]
    engine: bytes = field(repr=False)


def build_part(onnx_path: Path, *, compute_capability: str | Sequence[str], sizes: Mapping[str, Size]) -> BuildReport:
    """Build a part whose named dimensions are given once, by name, for all inputs.

    A dimension given as one number is fixed in the graph: cache capacities must be, because TensorRT keeps a cache's
    length static. An integer input that ``sizes`` names decides about shapes (the codec's ``first`` and ``last``): one
    number makes it a constant and so gives the engine for these calls alone; three give its range.
    """
    model = _load(onnx_path)
    values = {value.name: sizes[value.name] for value in model.graph.input if value.name in sizes}
    symbols = sorted({d for value in model.graph.input for d in _shape(value) if isinstance(d, str)})
    missing = [symbol for symbol in symbols if symbol not in sizes]
    if missing:
        raise ExportError(f"{onnx_path}: no size given for dimension {missing[0]!r}; it has {', '.join(symbols)}")
    fixed = {symbol: size for symbol in symbols if isinstance(size := sizes[symbol], int)}
    ranges = {symbol: size for symbol in symbols if not isinstance(size := sizes[symbol], int)}
    profiles: dict[str, Profile] = {}
    for value in model.graph.input:
        shape = [fixed.get(d, d) if isinstance(d, str) else d for d in _shape(value)]
        if any(isinstance(d, str) for d in shape):
            low, likely, high = (
                tuple(d if isinstance(d, int) else ranges[d][which] for d in shape) for which in range(3)
            )
            profiles[value.name] = low, likely, high
    return build_engine(onnx_path, compute_capability=compute_capability, profiles=profiles, fixed=fixed, values=values)


def build_engine(
    onnx_path: Path,
    *,
    compute_capability: str | Sequence[str],
    profiles: Mapping[str, Profile],
    fixed: Mapping[str, int] | None = None,
    values: Mapping[str, Size] | None = None,
) -> BuildReport:
    """Parse and build ``onnx_path``, strongly typed, for one or several compute capabilities ("8.6").

    ``profiles`` gives each input with a varying dimension its smallest, most likely and largest shape. ``fixed`` gives
    named dimensions a number before parsing; ``values`` gives integer inputs that shapes depend on their number, which
    makes them constants, or their range. The file itself is not changed.
    Raises ExportError with TensorRT-RTX's own messages when parsing or building fails, and with the names when an
    input of the graph, or of any node, reaches no output of the network.
    """
    trt = _import()
    capabilities = (compute_capability,) if isinstance(compute_capability, str) else tuple(compute_capability)
    targets = [_target(trt, capability) for capability in capabilities]
    model = _load(onnx_path)
    _fix(model, dict(fixed or {}), onnx_path)
    ranges = {name: value for name, value in (values or {}).items() if not isinstance(value, int)}
    _make_constant(model, {name: value for name, value in (values or {}).items() if isinstance(value, int)})

    started = time.perf_counter()
    logger = _make_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    library = f"TensorRT-RTX {trt.__version__}"
    # the path tells the parser where the weights lie
    if not parser.parse(model.SerializeToString(), str(onnx_path)):
        errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise ExportError(f"{onnx_path}: {library} cannot parse it: {_join(errors)}")
    dropped = dropped_inputs(model, network)
    if dropped:
        raise ExportError(f"{onnx_path}: {library} dropped {'; '.join(dropped)}: the engine would ignore these values")

    _allow_decomposed_attention(trt, network)
    config = builder.create_builder_config()
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        if not config.set_compute_capability(target, index):
            raise ExportError(f"compute capability {capabilities[index]}: {library} refused it: {logger.text()}")
    config.add_optimization_profile(_profile(builder, network, profiles, ranges, onnx_path, logger))
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ExportError(
            f"{onnx_path}: {library} cannot build it for compute capability {', '.join(capabilities)}: {logger.text()}"
        )
    kinds = Counter(layer.type.name for layer in _layers(network))
    content = bytes(engine)
    return BuildReport(
        onnx_path, capabilities, library, time.perf_counter() - started, len(content), dict(kinds), content
    )


def dropped_inputs(model: onnx.ModelProto, network: Any) -> list[str]:
    """What an ONNX graph reads and the network parsed from it does not: inputs of the graph, and inputs of nodes.

    Only inputs whose values depend on the graph's inputs count; constants are folded, and so are shapes.
    """
    producers = {out.name: layer for layer in _layers(network) for out in _outputs(layer)}
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
            # the parser leaves out operators that do nothing; what they read then stands for what they made
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


def _behind(starts: Sequence[str], producers: Mapping[str, Any], borders: set[str]) -> set[str]:
    """Names of the tensors that ``starts`` are made from, found without walking past ``borders``."""
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


def _layers(network: Any) -> Iterator[Any]:
    return (network.get_layer(index) for index in range(network.num_layers))


def _inputs(layer: Any) -> list[Any]:
    tensors = (layer.get_input(index) for index in range(layer.num_inputs))
    return [tensor for tensor in tensors if tensor is not None]


def _outputs(layer: Any) -> list[Any]:
    return [layer.get_output(index) for index in range(layer.num_outputs)]


def _import() -> Any:
    try:
        import tensorrt_rtx
    except ImportError as error:
        raise ExportError(f"tensorrt_rtx cannot be imported ({error}); pip install 'ualm[tensorrt-rtx]'") from error
    return tensorrt_rtx


def _make_logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        """Keeps errors for our message instead of printing them."""

        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.errors.append(message)

        def text(self) -> str:
            return _join(self.errors)

    return Logger()


def _join(messages: Sequence[str]) -> str:
    """One line of the library's messages; without a driver it adds to each error that there is none, which is noise."""
    lines = [line for message in messages for line in message.splitlines() if "cudaError 35" not in line]
    return " | ".join(lines) or "it gave no reason"


def _target(trt: Any, capability: str) -> Any:
    known = {
        f"{name[2:-1]}.{name[-1]}": member
        for name, member in trt.ComputeCapability.__members__.items()
        if name.startswith("SM")
    }
    if capability not in known:
        raise ExportError(
            f"compute capability {capability!r}: TensorRT-RTX {trt.__version__} builds for {', '.join(known)}"
        )
    return known[capability]


def _load(onnx_path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(onnx_path, load_external_data=False)
    except FileNotFoundError as error:
        raise ExportError(f"{onnx_path}: no such file; export the run again") from error


def _shape(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def _fix(model: onnx.ModelProto, fixed: dict[str, int], onnx_path: Path) -> None:
    unknown = set(fixed)
    for value in (*model.graph.input, *model.graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in fixed:
                unknown.discard(dimension.dim_param)
                dimension.dim_value = fixed[dimension.dim_param]
    if unknown:
        raise ExportError(f"{onnx_path}: no input or output has a dimension called {sorted(unknown)[0]!r}")


def _make_constant(model: onnx.ModelProto, values: Mapping[str, int]) -> None:
    for name, number in values.items():
        declared = next(value for value in model.graph.input if value.name == name)
        model.graph.input.remove(declared)
        model.graph.initializer.append(
            numpy_helper.from_array(np.full([int(d) for d in _shape(declared)], number, np.int64), name)
        )


def _allow_decomposed_attention(trt: Any, network: Any) -> None:
    """Let attention that has no fused kernel (float32, heads under 16) be built from its parts.

    Attention that has one keeps it.
    """
    for layer in _layers(network):
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True


def _profile(
    builder: Any,
    network: Any,
    profiles: Mapping[str, Profile],
    ranges: Mapping[str, tuple[int, int, int]],
    onnx_path: Path,
    logger: Any,
) -> Any:
    profile = builder.create_optimization_profile()
    for name, (low, likely, high) in ranges.items():
        profile.set_shape_input(name, [low], [likely], [high])
    inputs = {(tensor := network.get_input(index)).name: tuple(tensor.shape) for index in range(network.num_inputs)}
    for name in profiles:
        if name not in inputs:
            raise ExportError(f"{onnx_path}: profile for {name!r}, which is no input; it has {', '.join(inputs)}")
    for name, shape in inputs.items():
        if name in profiles:
            try:
                profile.set_shape(name, *profiles[name])
            except (ValueError, RuntimeError, TypeError) as error:
                raise ExportError(f"{onnx_path}: input {name!r}: profile {profiles[name]}: {error}") from error
        elif -1 in shape:
            raise ExportError(f"{onnx_path}: input {name!r} has varying dimensions {list(shape)} and no profile")
    if not profile:
        raise ExportError(f"{onnx_path}: the profiles do not fit the inputs: {logger.text()}")
    return profile
