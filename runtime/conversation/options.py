"""Sampling options by name, as ``generate("rain", seed=7)`` takes them: their types, and what they change."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from numbers import Integral, Real
from typing import Any, TypedDict, TypeVar

from ..bundle.manifest import CodecIdentity
from ..errors import InputError
from ..files.reading import shown
from ..sampling import AudioSampling, TextSampling
from ..vocabulary import STREAMS

#: Beyond this a float no longer counts frames exactly; no context holds that many.
_MOST_FRAMES = 1 << 53

_Sampling = TypeVar("_Sampling", AudioSampling, TextSampling)


class _Options(TypedDict, total=False):
    temperature: float
    top_k: int | None
    top_p: float
    guidance: float
    max_steps: int
    seed: int | None


class AudioOptions(_Options, total=False):
    """Fields of :class:`AudioSampling`; ``max_seconds`` is ``max_steps`` in seconds of sound, None changes nothing."""

    max_seconds: float | None


class TextOptions(_Options, total=False):
    """Fields of :class:`TextSampling`; ``max_tokens`` is another name of ``max_steps``, None changes nothing."""

    max_tokens: int | None


def changed(options: _Sampling, values: Mapping[str, Any], codec: CodecIdentity, max_context: int) -> _Sampling:
    """``options`` with single fields replaced; :class:`InputError` for one that is unknown or cannot be used."""
    limit = "max_seconds" if isinstance(options, AudioSampling) else "max_tokens"
    known: list[str] = [field.name for field in fields(options)]
    for name in values:
        if name not in (*known, limit):
            kind = type(options).__name__
            raise InputError(f"{kind}: unknown option {name!r}; known: {', '.join([*known, limit])}")
    found = {name: value for name, value in values.items() if name != limit}
    if (value := values.get(limit)) is not None:
        if "max_steps" in found:
            raise InputError(f"{limit} = {value!r}: limits what max_steps limits; give one of them")
        found["max_steps"] = _tokens(value) if limit == "max_tokens" else rows_within(value, codec, max_context)
    return type(options).from_mapping({**vars(options), **found})


def _tokens(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or not 1 <= int(value) < 2**31:
        raise InputError(f"max_tokens = {shown(value)}: give a whole number of at least 1")
    return int(value)


def rows_of_sound(seconds: object, codec: CodecIdentity, name: str = "max_seconds = ") -> int:
    """Rows that a sound of ``seconds`` takes. ``name``: the start of an error message."""
    frame_seconds = codec.hop_length / codec.sample_rate
    try:
        number = float(seconds) if isinstance(seconds, Real) and not isinstance(seconds, bool) else math.nan
    except OverflowError:
        number = math.inf
    if not frame_seconds <= number < _MOST_FRAMES * frame_seconds:
        length = f"{seconds:g}" if isinstance(seconds, float) else shown(seconds)
        least, most = f"{frame_seconds:g} s", f"{_MOST_FRAMES * frame_seconds:g}"
        raise InputError(
            f"{name}{length}: give a number of seconds that holds one frame, {least}, and less than {most}"
        )
    return int(number / frame_seconds + 1e-6) + STREAMS - 1


def rows_within(seconds: float, codec: CodecIdentity, max_context: int) -> int:
    """:func:`rows_of_sound`, refused if a conversation of ``max_context`` rows has no room for them."""
    rows = rows_of_sound(seconds, codec)
    if rows >= max_context:
        raise InputError(
            f"max_seconds = {float(seconds):g}: needs {rows} rows beside the prompt's, but only {max_context} are "
            "reserved; open the model with a larger max_context"
        )
    return rows
