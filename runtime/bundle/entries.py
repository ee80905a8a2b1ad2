"""Entries of a manifest, each as a type of its own: a part, the sampling defaults, what the body was calibrated with.

Each is parsed from JSON values with every field checked, and written back as it was. ``ValueError`` names the field.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from ..files.reading import MOST_SIZE, shown
from ..sampling import AudioSampling, TextSampling, check_options
from .precision import STORED

#: What the matrices of a graph are multiplied in.
Compute = Literal["float32", "float16", "bfloat16", "int8"]


def check_names(
    where: str, values: object, required: Collection[str], optional: Collection[str] = ()
) -> Mapping[str, Any]:
    """``values`` as an object with the required names and no others but the optional ones."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} = {shown(values)} is not an object")
    missing = sorted(set(required) - set(values))
    unknown = sorted(set(values) - set(required) - set(optional), key=str)
    if missing or unknown:
        raise ValueError(f"{where}: missing {shown(missing)}, unknown {shown(unknown)}")
    return values


def check_sizes(where: str, values: object, names: Collection[str]) -> Mapping[str, int]:
    """``values`` as an object of these names, each a whole number that is not negative."""
    entry = check_names(where, values, names)
    for name, value in entry.items():
        if type(value) is not int or value < 0:
            raise ValueError(f"{where}.{name} = {shown(value)}")
    return entry


@dataclass(frozen=True)
class PartEntry:
    """A part as an ONNX graph.

    ``file``: the graph. ``precision``: format of its weights, a key of :data:`STORED`. ``compute``: what its matrices
    are multiplied in. ``weight_bytes``: of the blob, read by one run. The last two are None where an older export did
    not record them.
    """

    file: str
    precision: str
    compute: Compute | None = None
    weight_bytes: int | None = None

    @property
    def multiplies_in(self) -> Compute:
        """``compute``; what an older export did not record is float32."""
        return self.compute or "float32"

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value is not None}

    @classmethod
    def from_json(cls, where: str, values: object) -> PartEntry:
        entry = check_names(where, values, ("file", "precision"), ("compute", "weight_bytes"))
        file, stored, compute, size = map(entry.get, ("file", "precision", "compute", "weight_bytes"))
        if not isinstance(file, str):
            raise ValueError(f"{where}.file = {shown(file)}")
        if not isinstance(stored, str) or stored not in STORED:
            raise ValueError(f"{where}.precision = {shown(stored)} must be one of {', '.join(STORED)}")
        known = get_args(Compute)
        if "compute" in entry and (not isinstance(compute, str) or compute not in known):
            raise ValueError(f"{where}.compute = {shown(compute)} must be one of {', '.join(known)}")
        if "weight_bytes" in entry and (type(size) is not int or size < 0):
            raise ValueError(f"{where}.weight_bytes = {shown(size)}")
        return cls(**entry)


@dataclass(frozen=True)
class SamplingDefaults:
    """How a model draws where a caller does not say otherwise."""

    audio: AudioSampling = field(default_factory=AudioSampling)
    text: TextSampling = field(default_factory=TextSampling)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, where: str, values: object) -> SamplingDefaults:
        entry = check_names(where, values, ("audio", "text"))
        for name, options in entry.items():
            if not isinstance(options, Mapping):
                raise ValueError(f"{where}.{name} = {shown(options)}")
        defaults = cls(AudioSampling.from_mapping(entry["audio"]), TextSampling.from_mapping(entry["text"]))
        check_options("fixed", defaults.audio, defaults.text)
        return defaults


@dataclass(frozen=True)
class Calibration:
    """What the body was calibrated with at export: so many prompts and sounds.

    ``source``: the name of the file or folder that they came from; None for the export's own.
    """

    source: str | None
    prompts: int
    sounds: int

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))

    @classmethod
    def from_json(cls, where: str, values: object) -> Calibration:
        entry = check_names(where, values, ("source", "prompts", "sounds"))
        if not (entry["source"] is None or isinstance(entry["source"], str)):
            raise ValueError(f"{where}.source = {shown(entry['source'])}")
        for name in ("prompts", "sounds"):
            if type(entry[name]) is not int or not 0 <= entry[name] <= MOST_SIZE:
                raise ValueError(f"{where}.{name} = {shown(entry[name])}")
        return cls(**entry)
