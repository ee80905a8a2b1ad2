"""Engines that a library has compiled from a bundle's parts, as the manifest lists them.

A compiled engine is valid for one version of its library, for the GPUs it was compiled for, and for the graph and the
weights that it was made from. All of these are recorded with it, and an engine that does not match is never run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

Shape = tuple[int, ...]
#: How the rows that the body was fed get into the cache: the engine writes them there itself, or it outputs them
#: separately and the runtime appends them (TensorRT before 10.15).
CacheKind = Literal["in_place", "appended"]
#: Smallest, most likely and largest.
Range = tuple[Shape, Shape, Shape]


@dataclass(frozen=True)
class EngineProfile:
    """Input shapes that an engine is optimised for, and the range of those that it takes.

    ``shapes``: of the inputs with a varying dimension. ``values``: the values of inputs that sizes depend on.
    """

    name: str
    shapes: Mapping[str, Range]
    values: Mapping[str, Range]

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "shapes": _listed(self.shapes), "values": _listed(self.values)}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> EngineProfile:
        return cls(str(entry["name"]), _ranges(entry["shapes"]), _ranges(entry["values"]))


@dataclass(frozen=True)
class EngineFile:
    """A part, compiled.

    ``engine``: the library, by its name in ``--engine``. ``sms``: compute capabilities, 89 for 8.9. ``onnx_sha256``,
    ``weights_sha256``: of the files that it was made from. ``capacity``: rows of the cache that the body is made for,
    and ``cache``: how it is written; 0 and irrelevant for other parts.
    """

    role: str
    engine: str
    file: str
    library_version: str
    sms: tuple[int, ...]
    onnx_sha256: str
    weights_sha256: str
    capacity: int
    profiles: tuple[EngineProfile, ...]
    cache: CacheKind = "in_place"

    def to_json(self) -> dict[str, Any]:
        profiles = [profile.to_json() for profile in self.profiles]
        entry = {**vars(self), "sms": list(self.sms), "profiles": profiles}
        if self.cache == "in_place":  # left out, as before there was another kind: older readers accept it
            del entry["cache"]
        return entry

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> EngineFile:
        """Parse the manifest's entry; ValueError, KeyError or TypeError if it is invalid."""
        known = dict(entry)
        sms = tuple(known.pop("sms"))
        profiles = tuple(EngineProfile.from_json(each) for each in known.pop("profiles"))
        engine = cls(sms=sms, profiles=profiles, **known)
        if not sms or any(type(sm) is not int or sm < 1 for sm in sms):
            raise ValueError(f"engines: sms = {list(sms)!r}")
        if type(engine.capacity) is not int or engine.capacity < 0:
            raise ValueError(f"engines: capacity = {engine.capacity!r}")
        if engine.cache not in get_args(CacheKind):
            raise ValueError(f"engines: cache = {engine.cache!r}")
        for name in ("role", "engine", "file", "library_version", "onnx_sha256", "weights_sha256"):
            if not isinstance(getattr(engine, name), str):
                raise ValueError(f"engines: {name} = {getattr(engine, name)!r}")
        return engine

    def why_stale(self, *, library_version: str, sm: int, onnx_sha256: str, weights_sha256: str) -> str | None:
        """Why this engine must not be run, a clause; None if it fits."""
        if self.library_version != library_version:
            return f"{self.file} was built by version {self.library_version}, and {library_version} is installed"
        if sm not in self.sms:
            built = ", ".join(f"sm{each}" for each in self.sms)
            return f"{self.file} was built for {built}, and the GPU here is sm{sm}"
        if self.onnx_sha256 != onnx_sha256:
            return f"{self.file} was built from another graph than the bundle's {self.role}"
        if self.weights_sha256 != weights_sha256:
            return f"{self.file} was built from other weights than the bundle's"
        return None


def _listed(ranges: Mapping[str, Range]) -> dict[str, list[list[int]]]:
    return {name: [list(shape) for shape in each] for name, each in ranges.items()}


def _ranges(entry: Mapping[str, Sequence[Sequence[int]]]) -> dict[str, Range]:
    ranges = {}
    for name, shapes in entry.items():
        low, likely, high = (tuple(shape) for shape in shapes)
        if any(type(size) is not int or size < 0 for size in (*low, *likely, *high)):
            raise ValueError(f"engines: profile of {name!r}: {shapes!r}")
        ranges[name] = low, likely, high
    return ranges
