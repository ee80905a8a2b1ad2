"""What is compiled of a bundle: the parts, their graphs for TensorRT, and the sizes they are optimised for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from ....runtime.bundle.bundle import Bundle
from ....runtime.bundle.compiled import CacheKind, EngineProfile, Range
from ....runtime.bundle.feature_spec import AF_WHISPER
from ....runtime.engines.tensorrt import names as names
from ....runtime.errors import ExportError, InputError
from .appended import with_appended_cache
from .positions import dimensions, fix_dimensions, load_graph, with_own_positions
from .primitives import in_primitives

#: Rows of the cache by default: the context that a model is opened with if none is given.
DEFAULT_CONTEXT = 16384
#: Most rows of a prompt in one call, by how the cache is written. Without an attention layer the scores of all heads
#: are held in memory, and an engine's scratch is sized for the maximum: 12 heads x 128 rows x 16384 columns are 96 MiB.
PREFILL_ROWS: dict[CacheKind, int] = {"in_place": 512, "appended": 128}
#: Frames of a piece of sound: what the balanced profile of ``runtime.audio.pacing`` begins with, and the most in one
# call.
LIKELY_FRAMES, MOST_FRAMES = 10, 64
#: Seconds of sound covered by the encoder's first profile.
SHORT_SECONDS = 30

#: The range of a named dimension, or of a number that sizes depend on: one number, or smallest, most likely and
#: largest.
Size = int | tuple[int, int, int]
#: For every profile, sizes of the named dimensions and values of the inputs that sizes depend on.
_Sizes = Mapping[str, Size]


@dataclass(frozen=True)
class PartPlan:
    """A part to compile: its graph, whose weights are beside ``path``, and profiles in the engine's order."""

    role: str
    path: Path
    model: onnx.ModelProto
    profiles: tuple[EngineProfile, ...]
    #: Rows of the cache (0: no cache), and how it is written.
    capacity: int = 0
    cache: CacheKind = "in_place"


def plan_parts(
    bundle: Bundle, max_context: int | None = None, *, cache: CacheKind = "in_place", roles: tuple[str, ...] = ()
) -> list[PartPlan]:
    """The parts of ``bundle`` that an engine runs, or only ``roles``.

    ``max_context``: rows of the cache, fixed in the engine; by default the smaller of 16384 and the model's limit.
    Raises :class:`InputError` if the model does not allow it. ``cache``: "appended" for a library that cannot write it
    in place, whose graphs are in primitives.
    """
    limit = bundle.manifest.model.max_positions
    capacity = min(DEFAULT_CONTEXT, limit) if max_context is None else max_context
    if not 1 <= capacity <= limit:
        raise InputError(f"--max-context {capacity}: give a whole number from 1 to {limit}, this model's limit")
    others = [_head(bundle, head) for head in ("text", "audio", "modality")]
    others += [_encoder(bundle), _codec(bundle)]
    if cache == "appended":
        others = [replace(plan, model=in_primitives(plan.model)) for plan in others]
    plans = [plan_body(bundle.part("backbone"), capacity, cache), *others]
    return [plan for plan in plans if not roles or plan.role in roles]


def plan_body(path: Path, capacity: int, cache: CacheKind = "in_place") -> PartPlan:
    """The body in ``path``: one engine for prompts and for steps of one and two branches, which share its weights.

    The number of rows read is the length of an input, so that the cost of attention follows the rows in the cache.
    """
    model = with_own_positions(load_graph(path))
    if cache == "appended":
        model = in_primitives(with_appended_cache(model))
    fix_dimensions(model, {"capacity": capacity}, path)
    rows, few = min(PREFILL_ROWS[cache], capacity), min(256, capacity)
    likely = min(1024, capacity)
    profiles: dict[str, _Sizes] = {
        names.PREFILL: {"batch": 1, "rows": (1, min(64, rows), rows), "total": (1, few, capacity)},
        names.DECODE: {"batch": (1, 2, 2), "rows": 1, "total": (1, likely, capacity)},
    }
    return PartPlan("backbone", path, model, _profiles(model, path, profiles), capacity, cache)


def _head(bundle: Bundle, head: str) -> PartPlan:
    role = f"head.{head}"
    path = bundle.part(role)
    model = load_graph(path)
    batch: Size = 1 if head == "modality" else (1, 2, 2)  # the modality is chosen without guidance
    profiles: dict[str, _Sizes] = {names.HEAD: {"batch": batch}}
    return PartPlan(role, path, model, _profiles(model, path, profiles))


def _encoder(bundle: Bundle) -> PartPlan:
    path = bundle.part("encoder")
    model = load_graph(path)
    features = bundle.manifest.features
    if features.kind == AF_WHISPER:  # always the same length
        return PartPlan("encoder", path, model, (EngineProfile(names.SHORT, {}, {}),))
    second = features.sample_rate / features.hop_length / features.window_frames
    most = -(-features.max_samples // features.hop_length // features.window_frames)
    short = min(most, int(SHORT_SECONDS * second))
    profiles: dict[str, _Sizes] = {names.SHORT: {"windows": (1, min(short, int(10 * second)), short)}}
    if most > short:
        profiles[names.LONG] = {"windows": (short, min(most, 2 * short), most)}
    return PartPlan("encoder", path, model, _profiles(model, path, profiles))


def _codec(bundle: Bundle) -> PartPlan:
    """The streaming decoder; whole sounds are decoded with it piece by piece, which gives the same samples."""
    path = bundle.part("codec.stream")
    model = load_graph(path)
    profiles: dict[str, _Sizes] = {
        names.INNER: {"frames": (1, LIKELY_FRAMES, MOST_FRAMES), "first": (0, 0, 0), "last": (0, 0, 0)},
        names.EDGE: {"frames": (0, LIKELY_FRAMES, MOST_FRAMES), "first": (0, 0, 1), "last": (0, 0, 1)},
    }
    return PartPlan("codec.stream", path, model, _profiles(model, path, profiles))


def _profiles(model: onnx.ModelProto, path: Path, wanted: Mapping[str, _Sizes]) -> tuple[EngineProfile, ...]:
    """Profiles by name, from the sizes of the named dimensions in each."""
    made = []
    for name, sizes in wanted.items():
        shapes, values = {}, {}
        for value in model.graph.input:
            shape = dimensions(value)
            missing = [d for d in shape if isinstance(d, str) and d not in sizes]
            if missing:
                raise ExportError(f"{path}: input {value.name!r} has a dimension {missing[0]!r} that no profile knows")
            spread = {d: _spread(sizes[d]) for d in shape if isinstance(d, str)}
            ranged = shape_range(shape, spread)
            if ranged is not None:
                shapes[value.name] = ranged
            if value.name in sizes:
                low, likely, high = _spread(sizes[value.name])
                values[value.name] = (low,), (likely,), (high,)
        made.append(EngineProfile(name, shapes, values))
    return tuple(made)


def _spread(size: Size) -> tuple[int, int, int]:
    return (size, size, size) if isinstance(size, int) else size


def shape_range(shape: Sequence[int | str], sizes: Mapping[str, Size]) -> Range | None:
    """Smallest, most likely and largest shape of an input; None if its shape is fixed."""
    known = [d if isinstance(d, int) else sizes[d] for d in shape]
    if all(isinstance(size, int) for size in known):
        return None
    low, likely, high = (tuple(d if isinstance(d, int) else d[which] for d in known) for which in range(3))
    return low, likely, high
