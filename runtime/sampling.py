"""Sampling options, one frozen dataclass per modality, checked once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar, get_args

from .errors import InputError
from .vocabulary import STREAMS

#: "fixed" repairs the defects of the published inference code, "reference" reproduces them (for parity tests).
Mode = Literal["fixed", "reference"]
#: The fewest rows that hold one frame: the frame and the drain of the delay pattern.
SHORTEST_SOUND_ROWS = STREAMS

_Options = TypeVar("_Options", bound="_Sampling")


@dataclass(frozen=True)
class _Sampling:
    temperature: float
    top_k: int | None
    top_p: float
    guidance: float
    max_steps: int
    seed: int

    def __post_init__(self) -> None:
        self._number("temperature", self.temperature, 0.0, math.inf, "0 takes the most likely token")
        self._number("top_p", self.top_p, 0.0, 1.0, "1 keeps all candidates")
        if self.top_p == 0:
            self._refuse("top_p", self.top_p, "must be greater than 0; 1 keeps all candidates")
        self._number("guidance", self.guidance, 1.0, math.inf, "1 turns guidance off")
        if self.top_k is not None:
            self._integer("top_k", self.top_k, 1, 2**31 - 1, "None keeps all candidates")
        self._integer("max_steps", self.max_steps, 1, 2**31 - 1, "it limits the rows of one segment")
        self._integer("seed", self.seed, 0, 2**64 - 1, "any number of 64 bits")

    def _number(self, name: str, value: object, low: float, high: float, hint: str) -> None:
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not low <= value <= high
            or value == math.inf
        ):
            bounds = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
            self._refuse(name, value, f"must be a number {bounds}; {hint}")

    def _integer(self, name: str, value: object, low: int, high: int, hint: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self._refuse(name, value, f"must be a whole number from {low} to {high}; {hint}")

    def _refuse(self, name: str, value: object, why: str) -> None:
        raise InputError(f"{type(self).__name__}: {name} = {value!r} {why}")

    @classmethod
    def from_mapping(cls: type[_Options], values: Mapping[str, Any]) -> _Options:
        """Options from a mapping; an unknown key is an :class:`InputError`."""
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise InputError(f"{cls.__name__}: unknown option {name!r}; known: {', '.join(known)}")
        return cls(**values)


@dataclass(frozen=True)
class AudioSampling(_Sampling):
    """How a sound is drawn; the defaults are those of the published inference configuration.

    ``temperature`` 0 is greedy; ``top_k`` None keeps all candidates; ``guidance`` is the classifier-free guidance
    scale, 1 turns it off; ``max_steps`` limits the rows of a segment (a sound of T frames takes T + 7 rows, 50 frames
    a second); equal ``seed`` and input give equal sound.
    """

    temperature: float = 0.8
    top_k: int | None = 20
    top_p: float = 1.0
    guidance: float = 3.0
    max_steps: int = 1024
    seed: int = 0


@dataclass(frozen=True)
class TextSampling(_Sampling):
    """How a text is drawn; greedy without guidance by default. Fields as in :class:`AudioSampling`."""

    temperature: float = 0.0
    top_k: int | None = 20
    top_p: float = 1.0
    guidance: float = 1.0
    max_steps: int = 1024
    seed: int = 0


def check_mode(mode: str, audio: AudioSampling) -> None:
    """Refuse an unknown mode, and a step limit too small for the shortest sound."""
    if mode not in get_args(Mode):
        raise InputError(f'mode = {mode!r}: choose "fixed" or "reference"')
    if mode == "fixed" and audio.max_steps < SHORTEST_SOUND_ROWS:
        raise InputError(
            f"AudioSampling: max_steps = {audio.max_steps} cannot hold one frame; at least {SHORTEST_SOUND_ROWS} rows "
            "are needed"
        )
