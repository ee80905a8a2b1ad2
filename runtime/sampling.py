"""Sampling options, one frozen dataclass per modality, checked once."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar, get_args

from .errors import InputError
from .process.native_module import check_native
from .vocabulary import STREAMS

#: "fixed" repairs the defects of the published inference code, "reference" reproduces them (for parity tests).
Mode = Literal["fixed", "reference"]
#: The fewest rows that hold one frame: the frame and the drain of the delay pattern.
SHORTEST_SOUND_ROWS = STREAMS
#: Bits of a seed that is drawn: few enough to write down, and enough never to draw the same one twice.
_DRAWN_BITS = 32

_Options = TypeVar("_Options", bound="_Sampling")


@cache
def _limits() -> dict[str, tuple[float, float]]:
    """The least and the largest value of each option, as the compiled sampler has them; not loaded before they are
    asked for, since this module is imported where a missing sampler is yet to be reported."""
    check_native()
    from . import _native

    return _native.SAMPLING_LIMITS


@dataclass(frozen=True)
class _Sampling:
    temperature: float
    top_k: int | None
    top_p: float
    guidance: float
    max_steps: int
    seed: int

    def __post_init__(self) -> None:
        self._number("temperature", "0 takes the most likely token", low=0.0)
        if 0 < self.temperature < _limits()["temperature"][0]:
            self._refuse("temperature", "is too small to divide by; 0 takes the most likely token")
        self._number("top_p", "1 keeps all candidates")
        if self.top_p == 0:
            self._refuse("top_p", "must be greater than 0; 1 keeps all candidates")
        self._number("guidance", "1 turns guidance off")
        if self.top_k is not None:
            self._integer("top_k", "None keeps all candidates")
        self._integer("max_steps", "it limits the rows of one segment")
        if self.seed is None:
            object.__setattr__(self, "seed", secrets.randbits(_DRAWN_BITS))
        self._integer("seed", "any number of 64 bits; None draws one")

    def _number(self, name: str, hint: str, *, low: float | None = None) -> None:
        value, (least, high) = getattr(self, name), _limits()[name]
        low = least if low is None else low
        try:
            number = float(value) if _is_number(value, Real) else math.nan
        except OverflowError:
            number = math.inf
        if not low <= number <= high:
            self._refuse(name, f"must be a number from {low:g} to {high:g}; {hint}")
        object.__setattr__(self, name, number)  # numpy's numbers become Python's, which JSON can hold

    def _integer(self, name: str, hint: str) -> None:
        value, (low, high) = getattr(self, name), _limits()[name]
        if not _is_number(value, Integral) or not low <= value <= high:
            self._refuse(name, f"must be a whole number from {low} to {high}; {hint}")
        object.__setattr__(self, name, int(value))

    def _refuse(self, name: str, why: str) -> NoReturn:
        raise InputError(f"{type(self).__name__}: {name} = {getattr(self, name)!r} {why}")

    @classmethod
    def from_mapping(cls: type[_Options], values: Mapping[str, Any]) -> _Options:
        """Make options from a mapping of field names to values.

        Parameters
        ----------
        values : mapping of str to value
            The fields to set; those left out have their defaults.

        Returns
        -------
        AudioSampling or TextSampling
            An object of the class that the method was called on.

        Raises
        ------
        InputError
            For an unknown name, or a value that cannot be used.

        Examples
        --------
        >>> AudioSampling.from_mapping({"temperature": 0.5, "seed": 7})
        AudioSampling(temperature=0.5, top_k=20, top_p=1.0, guidance=3.0, max_steps=1024, seed=7)
        """
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise InputError(f"{cls.__name__}: unknown option {name!r}; known: {', '.join(known)}")
        return cls(**values)


def _is_number(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


@dataclass(frozen=True)
class AudioSampling(_Sampling):
    """How a sound is drawn.

    Attributes
    ----------
    temperature : float, default 0.8
        Divides the logits, at least 0; 0 takes the most likely code of each stream (greedy).
    top_k : int or None, default 20
        Candidates that are kept, at least 1; None keeps all.
    top_p : float, default 1.0
        Share of the probability that the kept candidates have at least, above 0; 1 keeps all.
    guidance : float, default 3.0
        Scale of classifier-free guidance, at least 1; 1 turns it off, which halves the work of a row.
    max_steps : int, default 1024
        Most rows of a segment. A sound of T frames takes T + 7 rows, at 50 frames a second for X-Codec; 1024 rows are
        20.3 s. At least 8 in mode "fixed".
    seed : int, default 0
        0 to 2^64 - 1; equal seed and input give equal sound. None, when the object is made, draws one, which the field
        then holds.

    Raises
    ------
    InputError
        For a value that cannot be used; it names the field, the value and the range.

    Notes
    -----
    The defaults are those of the published inference configuration. Options left out of a call come from the bundle,
    which may have defaults of its own.

    Examples
    --------
    >>> model.generate("a trumpet plays C5", audio=AudioSampling(guidance=1, max_steps=12)).duration
    0.1
    >>> AudioSampling(seed=None) == AudioSampling(seed=None)
    False
    """

    temperature: float = 0.8
    top_k: int | None = 20
    top_p: float = 1.0
    guidance: float = 3.0
    max_steps: int = 1024
    seed: int = 0

    if TYPE_CHECKING:  # as dataclass generates it, but None is accepted for the seed, which the field never holds

        def __init__(
            self,
            temperature: float = ...,
            top_k: int | None = ...,
            top_p: float = ...,
            guidance: float = ...,
            max_steps: int = ...,
            seed: int | None = ...,
        ) -> None: ...


@dataclass(frozen=True)
class TextSampling(_Sampling):
    """How a text is drawn; greedy without guidance by default.

    Attributes
    ----------
    temperature : float, default 0.0
        Divides the logits, at least 0; 0 takes the most likely token (greedy).
    top_k : int or None, default 20
        Candidates that are kept, at least 1; None keeps all.
    top_p : float, default 1.0
        Share of the probability that the kept candidates have at least, above 0; 1 keeps all.
    guidance : float, default 1.0
        Scale of classifier-free guidance, at least 1; 1 turns it off, which halves the work of a row.
    max_steps : int, default 1024
        Most rows of a segment, one a token, at least 1.
    seed : int, default 0
        0 to 2^64 - 1; equal seed and input give equal text. None, when the object is made, draws one, which the field
        then holds.

    Raises
    ------
    InputError
        For a value that cannot be used; it names the field, the value and the range.

    Examples
    --------
    >>> model.ask(sound, "what is played?", text=TextSampling(max_steps=2)).finish
    'max_tokens'
    """

    temperature: float = 0.0
    top_k: int | None = 20
    top_p: float = 1.0
    guidance: float = 1.0
    max_steps: int = 1024
    seed: int = 0

    if TYPE_CHECKING:  # as dataclass generates it, but None is accepted for the seed, which the field never holds

        def __init__(
            self,
            temperature: float = ...,
            top_k: int | None = ...,
            top_p: float = ...,
            guidance: float = ...,
            max_steps: int = ...,
            seed: int | None = ...,
        ) -> None: ...


def check_kind(wanted: type[AudioSampling] | type[TextSampling], options: object) -> None:
    """Refuse options of another type, such as those of the other modality."""
    if not isinstance(options, wanted):
        name = "audio" if wanted is AudioSampling else "text"
        raise InputError(
            f"{name} is a {type(options).__name__}; give {wanted.__name__}(...), or None for the bundle's defaults"
        )


def check_options(mode: str, audio: AudioSampling, text: TextSampling) -> None:
    """Refuse an unknown mode, options of another type, and a step limit too small for the shortest sound."""
    check_kind(AudioSampling, audio)
    check_kind(TextSampling, text)
    if mode not in get_args(Mode):
        raise InputError(f'mode = {mode!r}: choose "fixed" or "reference"')
    if mode == "fixed" and audio.max_steps < SHORTEST_SOUND_ROWS:
        raise InputError(
            f"AudioSampling: max_steps = {audio.max_steps} cannot hold one frame; at least {SHORTEST_SOUND_ROWS} rows "
            "are needed"
        )
