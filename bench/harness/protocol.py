"""The protocol of measurements: a scenario opens a case for each subject, and a case returns samples, block by
block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeVar, runtime_checkable

from ..meters.traffic import StepBytes
from ..report.schema import Setting, Subject
from ..report.statistics import Summary
from .blocks import Samples


@dataclass(frozen=True)
class Derived:
    """Values derived from a figure; see the fields of the same names in ``schema.Measurement``.

    ``note``: a sentence that a reader of the figure must know.
    """

    real_time_factor: float | None = None
    outside_percent: float | None = None
    note: str | None = None


class Case(Protocol):
    """One subject under one setting, ready to be measured."""

    def block(self, count: int) -> Samples:
        """Repeat ``count`` times; returns samples of each figure, in the unit that the scenario names."""
        ...

    def derive(self, figure: str, summary: Summary) -> Derived:
        """The values derived from all samples of a figure."""
        ...

    def close(self) -> None:
        """Free the resources of measuring; :meth:`derive` can still be called."""
        ...


@runtime_checkable
class CountedCase(Case, Protocol):
    """A case that counts the bytes that a repetition must read, to be compared with the bandwidth.

    Its blocks are no longer than a bandwidth stays constant, with a reading before and after each. A block begins with
    untimed repetitions that touch everything a repetition reads, because a reading sweeps the caches.
    """

    #: The figure that the bytes belong to, a time in milliseconds.
    counted: str
    #: Seconds of a repetition, measured in the warm-up.
    pace: float

    def step_bytes(self) -> StepBytes:
        """Bytes of a repetition, averaged over all; can be called after :meth:`close`."""
        ...


class Measurable(Protocol):
    """Something that a scenario measures."""

    @property
    def about(self) -> Subject:
        """Its description; read after everything is measured."""
        ...

    def close(self) -> None: ...


_Kind = TypeVar("_Kind", contravariant=True)


class Scenario(Protocol[_Kind]):
    """A kind of measurement for one kind of subject."""

    name: ClassVar[str]
    #: Unit of each figure.
    units: ClassVar[Mapping[str, str]]
    #: Figures in which less is better and a ratio is meaningful.
    compared: ClassVar[Sequence[str]]
    default_repeat: ClassVar[int]

    def open(self, subject: _Kind, setting: Mapping[str, Setting], *, block: int, seed: int) -> Case:
        """Prepare a case, warm-up included. ``block``: the most repetitions that will be requested at once."""
        ...
