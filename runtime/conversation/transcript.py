"""What was said in a session, and how a saved session holds it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from ..errors import InputError
from ..files.reading import first_line, shown
from ..files.saved_arrays import SavedArrays
from ..finish import FinishReason
from ..sound.limits import DECODED_BYTES
from ..sound.sound import Sound, Speech
from .prompt import Kept, as_pair
from .segment import Segment

#: A message: its role and content.
Entry = tuple[str, Kept]


def turn_entries(messages: Iterable[Any], segments: Sequence[Segment]) -> tuple[Entry, ...]:
    """A whole turn: the messages as they were given, then the answer, a text or sound a segment."""
    answers: list[Entry] = []
    for segment in segments:
        content = segment.sound if segment.text is None else segment.text
        if content is not None:
            answers.append(("assistant", content))
    return (*(as_pair(message) for message in messages), *answers)


def packed(turns: Sequence[Sequence[Entry]]) -> tuple[list[list[dict[str, Any]]], dict[str, np.ndarray]]:
    """Turns as JSON holds them, and the arrays that it refers to: a sound is kept once, however often it was said."""
    sounds: dict[int, str] = {}
    arrays: dict[str, np.ndarray] = {}

    def pack(role: str, content: Kept) -> dict[str, Any]:
        about: dict[str, Any] = {"role": role}
        if isinstance(content, str):
            return about | {"text": content}
        if isinstance(content, Speech):
            about["speech"], content = True, content.content
        if not isinstance(content, Sound):
            return about | {"path": os.fspath(content)}
        if id(content) not in sounds:
            name = sounds[id(content)] = f"sound_{len(sounds)}"
            arrays[name] = content.samples
            if content.codes is not None:
                arrays[f"{name}_codes"] = content.codes
        heard = {"rate": content.sample_rate, "finish": content.finish, "seed": content.seed}
        return about | heard | {"sound": sounds[id(content)], "notes": list(content.notes)}

    return [[pack(role, content) for role, content in turn] for turn in turns], arrays


def unpacked(turns: Any, arrays: SavedArrays) -> list[tuple[Entry, ...]]:
    """Turns from :func:`packed`; ValueError for anything malformed."""
    sounds: dict[str, Sound] = {}

    def unpack(about: Any) -> Entry:
        role = _text(about["role"])
        if "text" in about:
            return role, _text(about["text"])
        content: Sound | os.PathLike[str]
        if "path" in about:
            content = Path(_text(about["path"]))
        else:
            name = _text(about["sound"])
            if name not in sounds:
                sounds[name] = _sound(name, about, arrays)
            content = sounds[name]
        return role, Speech(content) if about.get("speech") is True else content

    try:
        return [tuple(unpack(about) for about in turn) for turn in turns]
    except (KeyError, TypeError, AttributeError, InputError) as error:
        raise ValueError(f"the record of what was said is malformed ({first_line(error)})") from error


def _sound(name: str, about: Mapping[str, Any], arrays: SavedArrays) -> Sound:
    samples = arrays.read(name, DECODED_BYTES)
    codes = arrays.read(f"{name}_codes", DECODED_BYTES) if f"{name}_codes" in arrays else None
    notes, finish, seed = tuple(_text(note) for note in about["notes"]), about["finish"], about["seed"]
    if finish not in (None, *get_args(FinishReason)) or not (seed is None or type(seed) is int):
        raise ValueError(f"{name}: finish = {shown(finish)}, seed = {shown(seed)}")
    return Sound(samples, about["rate"], codes, notes, finish, seed)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{shown(value)} in place of a text")
    return value
