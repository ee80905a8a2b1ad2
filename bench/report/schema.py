"""The results of a bench run: one versioned schema, of which every output format is a rendering.

A :class:`Report` is a :class:`Run` (when, where, with what), measurements and comparisons. Each measurement fully names
what was measured, so that a line of a CSV or JSONL file is self-contained.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from .statistics import Summary

NAME, VERSION = "ualm-bench", 4
#: Versions that can be read. 2 added GPUs (facts, checks, memory bandwidth) and rehearsals, 3 the distance of the
#: cores, 4 readings of the bandwidth beside each block, on which shares are based since then.
READ = (1, 2, 3, VERSION)

#: A setting of a scenario: the rows held, the modality, ...
Setting = int | float | str | bool

_Record = TypeVar("_Record")


@dataclass(frozen=True)
class Bandwidth:
    """Bandwidth of this machine in GB/s (1e9 bytes), of ``readings`` in the run: ``passes`` over ``bytes`` of memory.

    ``worst`` and ``best`` show how much it changed meanwhile. ``memory``: "host", read with ``threads`` threads; or
    "device", copied within a GPU's memory, where each byte counts twice, read and written, and ``threads`` is 0.
    ``kernel``: the loop that read, the fastest one on this machine. Before version 4, each pass was a separate reading,
    all of them before and after the figures, ``best`` was the limit for fractions, and the last three fields are None.
    """

    threads: int
    bytes: int
    passes: int
    best: float
    median: float
    memory: str = "host"
    kernel: str | None = None
    readings: int | None = None
    worst: float | None = None


@dataclass(frozen=True)
class RoundTrip:
    """Nanoseconds that a cache line takes from one core to another and back, sampled before and after each block.

    If ``worst`` is several times ``best``, the cores were moved apart during the measurement, and figures of several
    threads mix both cases.
    """

    samples: int
    best: float
    median: float
    worst: float


@dataclass(frozen=True)
class Gpu:
    """The GPU that a run used. None: not reported by the driver.

    ``driver``: its version; ``cuda``: the newest CUDA version that it supports. ``clocks_mhz``: maximum clocks of the
    processors and the memory.
    """

    name: str
    compute_capability: str
    memory_bytes: int
    multiprocessors: int
    driver: str | None
    cuda: str | None
    clocks_mhz: Mapping[str, int]


@dataclass(frozen=True)
class Machine:
    """The machine of a run. None: not reported by the system. ``load_average``: over one minute, before the run."""

    cpu: str
    architecture: str
    cpu_features: tuple[str, ...]
    cores: int
    governor: str | None
    memory_bytes: int | None
    load_average: float | None
    gpu: Gpu | None = None


@dataclass(frozen=True)
class Run:
    """Facts that all figures of a report share.

    ``commit``: of the checkout, or the version of the package. ``others_percent``: share of the processors' time that
    went to other processes during the measurement; None if the system does not say. ``dry_run``: a rehearsal of GPU
    code on a machine without a GPU: its figures say nothing about any GPU. ``core_round_trip``: None for a single
    thread, and if other processes never left two cores free.
    """

    created: str
    command: str
    commit: str
    seed: int
    threads: int
    versions: Mapping[str, str]
    machine: Machine
    bandwidth: Bandwidth
    others_percent: float | None
    dry_run: bool = False
    core_round_trip: RoundTrip | None = None


@dataclass(frozen=True)
class Subject:
    """The subject of a measurement: a bundle in an engine, or a baseline. ``digest`` is the bundle's; a baseline names
    its weights."""

    name: str
    engine: str
    digest: str | None
    precisions: Mapping[str, str]


@dataclass(frozen=True)
class BandwidthPair:
    """A block's figure, the median of its samples in the measurement's unit, and the bandwidth beside it in GB/s: the
    readings ``before`` and ``after`` the block."""

    before: float
    after: float
    figure: float

    @property
    def bandwidth(self) -> float:
        """The bandwidth that the block is compared with: the mean of both."""
        return (self.before + self.after) / 2


@dataclass(frozen=True)
class Traffic:
    """Bytes that one step must read, counted from the bundle, and the rates that follow from its time.

    ``gb_per_second``: of the median time. ``fraction``: share of the bandwidth that was reached, the median over
    ``pairs``; ``fraction_near_best``: the same over the ``near_best`` pairs whose readings are both within 10 % of the
    run's best, None if there are none. ``kernel``: as in :class:`Bandwidth`. Before version 4 there are no pairs, and
    the share is that of the median time against the run's best pass.
    """

    body_bytes: int
    head_bytes: int
    kv_bytes: int
    gb_per_second: float
    fraction: float
    fraction_near_best: float | None = None
    near_best: int | None = None
    kernel: str | None = None
    pairs: tuple[BandwidthPair, ...] = ()

    @property
    def bytes(self) -> int:
        return self.body_bytes + self.head_bytes + self.kv_bytes


@dataclass(frozen=True)
class Measurement:
    """One figure of one subject under one setting, in ``unit``.

    ``real_time_factor``: mean seconds of work per second of sound. ``outside_percent``: share of the time spent outside
    the inference library.
    """

    scenario: str
    subject: Subject
    settings: Mapping[str, Setting]
    figure: str
    unit: str
    summary: Summary
    traffic: Traffic | None = None
    real_time_factor: float | None = None
    outside_percent: float | None = None


@dataclass(frozen=True)
class Comparison:
    """One figure of ``subject`` against that of ``other``, measured in turn; see ``statistics.PairedTest``.

    ``speedup`` above 1: the subject is faster. The verdict is about the subject.
    """

    scenario: str
    subject: Subject
    other: Subject
    settings: Mapping[str, Setting]
    figure: str
    pairs: int
    speedup: float
    low: float | None
    high: float | None
    p: float
    test: str
    verdict: str
    ratios: tuple[float, ...]


@dataclass(frozen=True)
class Check:
    """Something that holds or does not: ``verdict`` "pass", "fail" or "skipped"; ``detail`` says what was found or why.

    ``seconds``: how long the check took.
    """

    stage: str
    name: str
    verdict: str
    detail: str
    seconds: float = 0.0


@dataclass(frozen=True)
class Report:
    """Everything from one run. ``notes``: sentences that a reader of the figures must know."""

    run: Run
    measurements: tuple[Measurement, ...]
    comparisons: tuple[Comparison, ...] = ()
    notes: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()


def to_json(value: Any) -> Any:
    """A record as JSON values."""
    if dataclasses.is_dataclass(value):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): to_json(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(each) for each in value]
    return value


def from_json(kind: type[_Record], value: Any, where: str = "") -> _Record:
    """The record of class ``kind`` that :func:`to_json` wrote; raises ``ValueError`` naming the wrong field.

    Fields may be missing if the class has a default; unknown ones are refused.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{where or kind.__name__} is not an object")
    hints, arguments = typing.get_type_hints(kind), {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        name = f"{where}.{field.name}" if where else field.name
        if field.name in value:
            arguments[field.name] = _parse(hints[field.name], value[field.name], name)
        elif field.default is dataclasses.MISSING:
            raise ValueError(f"{name} is missing")
    unknown = [name for name in value if name not in hints]
    if unknown:
        raise ValueError(f"{where or kind.__name__} has the unknown field {unknown[0]!r}")
    return kind(**arguments)


def _parse(hint: Any, value: Any, where: str) -> Any:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        kinds = [each for each in inner if each is not type(None)]
        if len(kinds) == 1:
            return _parse(kinds[0], value, where)
        if type(value) in kinds:
            return value
    elif dataclasses.is_dataclass(hint):
        return from_json(hint, value, where)  # type: ignore[arg-type]
    elif origin is tuple and isinstance(value, list):
        return tuple(_parse(inner[0], each, f"{where}[{at}]") for at, each in enumerate(value))
    elif origin is not None and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return {str(name): _parse(inner[1], each, f"{where}.{name}") for name, each in value.items()}
    elif hint is float and type(value) in (int, float):
        return float(value)
    elif type(value) is hint:
        return value
    raise ValueError(f"{where} = {value!r} is not of type {getattr(hint, '__name__', hint)}")
