"""Compiles an ONNX graph into an engine, in the same way for TensorRT and TensorRT-RTX.

Networks are strongly typed, so that every value has the type that the graph gives it, and TF32 is off, so that float32
means float32. The parsed network is first compared with the graph (``compare``): an engine that would compute something
else is not built.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto

from ....runtime.bundle.compiled import EngineProfile
from ....runtime.engines.build_commands import LibraryName
from ....runtime.engines.tensorrt.library import Library, joined, load_library, make_logger
from ....runtime.errors import EngineError, ExportError
from .compare import differences, layers_of


@dataclass(frozen=True)
class BuildReport:
    """A built engine. ``layers``: layers by type; ``seconds``: time for parsing and building."""

    onnx_path: Path
    compute_capability: tuple[str, ...]
    library: str
    seconds: float
    size_bytes: int
    layers: Mapping[str, int]
    engine: bytes = field(repr=False)


def find_library(name: LibraryName) -> Library:
    """The library to build with; raises :class:`ExportError` if it cannot be used."""
    try:
        return load_library(name)
    except EngineError as error:
        raise ExportError(str(error)) from error


def build(
    library: Library,
    onnx_path: Path,
    model: onnx.ModelProto,
    profiles: Sequence[EngineProfile],
    *,
    sms: Sequence[int] = (),
    timing_cache: Path | None = None,
) -> BuildReport:
    """Parse and build ``model``, whose weights are beside ``onnx_path``.

    ``sms``: compute capabilities to build for (86), with TensorRT-RTX; TensorRT builds for this machine's GPU.
    ``timing_cache``: a file in which TensorRT keeps its measurements for the next build.
    Raises :class:`ExportError` with the library's own messages if parsing or building fails, and with names if the
    network differs from the graph.
    """
    trt = library.module
    targets = [_capability(library, sm) for sm in sms] if library.compiles_for_others else []
    started = time.perf_counter()
    logger = make_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    # the parser finds the weights by the path
    if not parser.parse(model.SerializeToString(), str(onnx_path)):
        errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise ExportError(f"{onnx_path}: {library.title} cannot parse it: {joined(errors)}")
    changed = differences(model, network, trt)
    if changed:
        raise ExportError(
            f"{onnx_path}: {library.title} would compute something else: {'; '.join(changed)}: no engine was built"
        )

    _allow_decomposed_attention(trt, network)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    if targets:
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            if not config.set_compute_capability(target, index):
                raise ExportError(f"compute capability {_spelled(sms[index])}: refused: {logger.text()}")
    for profile in profiles or [EngineProfile("fixed", {}, {})]:
        config.add_optimization_profile(_profile(builder, network, profile, onnx_path, logger))
    if timing_cache is not None:
        known = timing_cache.read_bytes() if timing_cache.is_file() else b""
        config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=True)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        where = f"compute capability {', '.join(map(_spelled, sms))}" if sms else "this GPU"
        # it is unknown whether an older library accepts blocks of 32, so the message says what to do if not
        narrow = library.cache == "appended" and any(t.data_type == TensorProto.INT4 for t in model.graph.initializer)
        fix = "; if it is the int4 weights that it cannot build, export with --precision int8 or fp16" if narrow else ""
        raise ExportError(f"{onnx_path}: {library.title} cannot build it for {where}: {logger.text()}{fix}")
    if timing_cache is not None:
        timing_cache.parent.mkdir(parents=True, exist_ok=True)
        timing_cache.write_bytes(bytes(config.get_timing_cache().serialize()))
    kinds = Counter(layer.type.name for layer in layers_of(network))
    content = bytes(engine)
    spelled = tuple(map(_spelled, sms))
    return BuildReport(
        onnx_path, spelled, library.title, time.perf_counter() - started, len(content), dict(kinds), content
    )


def known_sms(library: Library) -> tuple[int, ...]:
    """Compute capabilities that a library can build for on any machine; none if it builds only for the GPU it sees."""
    return library.builds_for


def _capability(library: Library, sm: int) -> Any:
    known = known_sms(library)
    if sm not in known:
        raise ExportError(
            f"compute capability {_spelled(sm)!r}: {library.title} builds for {', '.join(map(_spelled, known))}; for "
            "others, use --engine tensorrt on the machine itself"
        )
    return library.module.ComputeCapability.__members__[f"SM{sm}"]


def _spelled(sm: int) -> str:
    return f"{sm // 10}.{sm % 10}"


def _allow_decomposed_attention(trt: Any, network: Any) -> None:
    """Let attention that has no fused kernel (float32, heads under 16) be decomposed.

    Attention with a fused kernel keeps it. A library without attention was given primitives already.
    """
    if not hasattr(trt.LayerType, "ATTENTION_INPUT"):
        return
    for layer in layers_of(network):
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True


def _profile(builder: Any, network: Any, profile: EngineProfile, onnx_path: Path, logger: Any) -> Any:
    made = builder.create_optimization_profile()
    for name, values in profile.values.items():
        made.set_shape_input(name, *map(list, values))
    inputs = {(tensor := network.get_input(index)).name: tuple(tensor.shape) for index in range(network.num_inputs)}
    for name in (*profile.shapes, *profile.values):
        if name not in inputs:
            raise ExportError(f"{onnx_path}: profile for {name!r}, which is not an input; it has {', '.join(inputs)}")
    for name, shape in inputs.items():
        if name in profile.shapes:
            try:
                made.set_shape(name, *profile.shapes[name])
            except (ValueError, RuntimeError, TypeError) as error:
                raise ExportError(f"{onnx_path}: input {name!r}: profile {profile.shapes[name]}: {error}") from error
        elif -1 in shape:
            raise ExportError(f"{onnx_path}: input {name!r} has varying dimensions {list(shape)} and no profile")
    if not made:
        raise ExportError(f"{onnx_path}: the profiles do not fit the inputs: {logger.text()}")
    return made
