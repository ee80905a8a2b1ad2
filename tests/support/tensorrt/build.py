"""Builds one graph with TensorRT-RTX for given sizes, to prove that the parser accepts all its operators and drops none
of its inputs. This needs no GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ualm.export.targets.tensorrt.build import BuildReport, build, find_library
from ualm.export.targets.tensorrt.parts import Size, shape_range
from ualm.export.targets.tensorrt.positions import dimensions, fix_dimensions, load_graph, make_constant
from ualm.runtime.bundle.compiled import EngineProfile, Range
from ualm.runtime.errors import ExportError


def build_part(onnx_path: Path, *, compute_capability: str | Sequence[str], sizes: Mapping[str, Size]) -> BuildReport:
    """Build a part, with named dimensions given once, by name, for all inputs.

    A dimension given as one number is fixed in the graph: cache capacities must be, because TensorRT keeps a cache's
    length static. An integer input that ``sizes`` names determines shapes (the codec's ``first`` and ``last``): one
    number makes it a constant and so gives the engine for only these calls; three give its range.
    """
    model = load_graph(onnx_path)
    inputs = {value.name: dimensions(value) for value in model.graph.input}
    values = {name: sizes[name] for name in inputs if name in sizes}
    symbols = sorted({d for shape in inputs.values() for d in shape if isinstance(d, str)})
    missing = [symbol for symbol in symbols if symbol not in sizes]
    if missing:
        raise ExportError(f"{onnx_path}: no size given for dimension {missing[0]!r}; it has {', '.join(symbols)}")
    fixed = {symbol: size for symbol in symbols if isinstance(size := sizes[symbol], int)}
    profiles = {name: each for name, shape in inputs.items() if (each := shape_range(shape, sizes)) is not None}
    return build_engine(onnx_path, compute_capability=compute_capability, profiles=profiles, fixed=fixed, values=values)


def build_engine(
    onnx_path: Path,
    *,
    compute_capability: str | Sequence[str],
    profiles: Mapping[str, Range],
    fixed: Mapping[str, int] | None = None,
    values: Mapping[str, Size] | None = None,
) -> BuildReport:
    """Parse and build ``onnx_path``, for one or several compute capabilities ("8.6"); raises as :func:`build`.

    ``profiles`` gives each input with a varying dimension its smallest, most likely and largest shape. ``fixed`` gives
    named dimensions a number before parsing; ``values`` gives integer inputs that shapes depend on their number, which
    makes them constants, or their range. The file itself is not changed.
    """
    library = find_library("tensorrt-rtx")
    capabilities = (compute_capability,) if isinstance(compute_capability, str) else tuple(compute_capability)
    model = load_graph(onnx_path)
    fix_dimensions(model, dict(fixed or {}), onnx_path)
    ranges: dict[str, Range] = {}
    for name, value in (values or {}).items():
        if not isinstance(value, int):
            ranges[name] = (value[0],), (value[1],), (value[2],)
    make_constant(model, {name: value for name, value in (values or {}).items() if isinstance(value, int)})
    sms = [_number(capability) for capability in capabilities]
    return build(library, onnx_path, model, [EngineProfile("only", dict(profiles), ranges)], sms=sms)


def _number(capability: str) -> int:
    major, _, minor = capability.partition(".")
    return int(major) * 10 + int(minor)
