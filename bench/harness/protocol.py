"""What a measurement is made of: a scenario opens a case for each subject, and a case gives samples, block by block."""

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
    """What follows from a figure; see the fields of the same names in ``schema.Measurement``.

    ``note``: what a reader of the figure must know, a sentence.
    """

    real_time_factor: float | None = None
    outside_percent: float | None = None
    note: str | None = None


class Case(Protocol):
    """One subject under one setting, ready to be measured."""

    def block(self, count: int) -> Samples:
        """Repeat ``count`` times; samples of each figure, in the unit that the scenario names."""
        ...

    def derive(self, figure: str, summary: Summary) -> Derived:
        """What follows from all samples of a figure."""
        ...

    def close(self) -> None:
        """Free what measuring took; :meth:`derive` can still be called."""
        ...


@runtime_checkable
class CountedCase(Case, Protocol):
    """A case of which the bytes that a repetition must read are counted, and held against the bandwidth.

    Its blocks are as long as a bandwidth lasts, with a reading of it before and after each. A block begins with
    repetitions that are not timed and touch all that a repetition reads: a reading sweeps the caches.
    """

    #: The figure that bytes are counted for, a time in milliseconds.
    counted: str
    #: Seconds of a repetition, as the warm-up had it.
    pace: float

    def step_bytes(self) -> StepBytes:
        """Bytes of a repetition, the mean of all; can be called after :meth:`close`."""
        ...


class Measurable(Protocol):
    """What a scenario measures."""

    @property
    def about(self) -> Subject:
        """What it is; asked for when all is measured."""
        ...

    def close(self) -> None: ...


_Kind = TypeVar("_Kind", contravariant=True)


class Scenario(Protocol[_Kind]):
    """What is measured of a kind of subject."""

    name: ClassVar[str]
    #: Unit of each figure.
    units: ClassVar[Mapping[str, str]]
    #: Figures in which less is better and a ratio means something.
    compared: ClassVar[Sequence[str]]
    default_repeat: ClassVar[int]

    def open(self, subject: _Kind, setting: Mapping[str, Setting], *, block: int, seed: int) -> Case:
        """Make ready, warm-up included. ``block``: the most repetitions that will be asked for at once."""
        ...
