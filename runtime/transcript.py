"""What was said in a session, and how a saved session holds it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .chat import Content, as_pair
from .segment import Segment
from .sound import Sound, Speech

#: A message: its role, and what it carries.
Said = tuple[str, Content]


def said_in_turn(messages: Iterable[Any], segments: Sequence[Segment]) -> tuple[Said, ...]:
    """A whole turn: the messages as they were given, then the answer, a text or sound a segment."""
    answers: list[Said] = []
    for segment in segments:
        content = segment.sound if segment.text is None else segment.text
        if content is not None:
            answers.append(("assistant", content))
    return (*(as_pair(message) for message in messages), *answers)


def packed(turns: Sequence[Sequence[Said]]) -> tuple[list[list[dict[str, Any]]], dict[str, np.ndarray]]:
    """Turns as JSON holds them, and the arrays that it refers to: a sound is kept once, however often it was said."""
    sounds: dict[int, str] = {}
    arrays: dict[str, np.ndarray] = {}

    def pack(role: str, content: Content) -> dict[str, Any]:
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


def unpacked(turns: Sequence[Sequence[Mapping[str, Any]]], arrays: Mapping[str, np.ndarray]) -> list[tuple[Said, ...]]:
    """Turns from :func:`packed`; whatever does not fit raises."""
    sounds: dict[str, Sound] = {}

    def unpack(about: Mapping[str, Any]) -> Said:
        role = str(about["role"])
        if "text" in about:
            return role, str(about["text"])
        content: Sound | os.PathLike[str]
        if "path" in about:
            content = Path(about["path"])
        else:
            name = about["sound"]
            if name not in sounds:
                codes = arrays.get(f"{name}_codes")
                notes, finish, seed = tuple(map(str, about["notes"])), about["finish"], about["seed"]
                sounds[name] = Sound(arrays[name], about["rate"], codes, notes, finish, seed)
            content = sounds[name]
        return role, Speech(content) if about.get("speech") else content

    return [tuple(unpack(about) for about in turn) for turn in turns]
