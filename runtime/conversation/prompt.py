"""Messages to rows, and drawn rows back to text: the chat layout that UALM was trained with.

``bos``, then per message: role, modality, content, and ``eot`` if the next message has the same role, else ``eos``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO, TypedDict, Union

import numpy as np

from ..errors import InputError
from ..files.reading import shown
from ..sound.sound import Sound, Speech
from ..text.tokenizer import TextCodec
from ..vocabulary import BOS, EOS, EOT, MODALITIES, ROLES, Vocabulary, check_codes

#: Content that can be read more than once: a text, or a sound (made, or in a file), which may be marked as speech.
Kept = Union[str, Sound, Speech, "os.PathLike[str]"]
#: The content of a message: that, or the bytes or the open file of a sound.
Content = Kept | bytes | bytearray | memoryview | BinaryIO


class MessageDict(TypedDict):
    """A message in the form that other libraries use."""

    role: str
    content: Content


#: A message: a (role, content) pair, or ``{"role": ..., "content": ...}``.
Message = tuple[str, Content] | MessageDict


#: A checked message: role, modality, and a sound or the tokenizer ids of a text.
CheckedMessage = tuple[str, str, Sound | list[int]]


def check_messages(
    messages: Sequence[Message],
    vocabulary: Vocabulary,
    text: TextCodec,
    check_sound: Callable[[Sound], object],
    longest: float | None = None,
) -> list[CheckedMessage]:
    """Read files, encode texts, and refuse what cannot be used, before anything is computed.

    ``check_sound`` refuses a sound that the encoder cannot take. ``longest``: the most seconds of a file to read.
    """
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence) or not messages:
        raise InputError("messages: give a list of (role, content) pairs, at least one")
    checked: list[CheckedMessage] = []
    for index, message in enumerate(messages):
        try:
            role, modality, content = _check_message(message, text, longest)
            if isinstance(content, Sound) and role == "assistant":
                check_codes(np.asarray(content.codes), vocabulary.codebook_size)
            elif isinstance(content, Sound):
                check_sound(content)
            checked.append((role, modality, content))
        except InputError as error:
            raise InputError(f"messages[{index}]: {error}") from error
    return checked


def read_sources(messages: Sequence[Any], longest: float | None = None) -> Sequence[Any]:
    """The messages, with bytes and open files read: these as (role, Sound). All others stay as they are, unchecked."""
    if not isinstance(messages, (list, tuple)):
        return messages
    found: list[Any] = []
    for index, message in enumerate(messages):
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(message, (list, tuple)) and len(message) == 2:
            content = message[1]
        if isinstance(content, (bytes, bytearray, memoryview)) or callable(getattr(content, "read", None)):
            try:
                message = as_pair(message)[0], _read(content, longest)
            except InputError as error:
                raise InputError(f"messages[{index}]: {error}") from error
        found.append(message)
    return found


def _read(content: Any, longest: float | None) -> Sound:
    try:
        return Sound.from_file(content, longest=longest)
    except InputError as error:
        if not isinstance(content, bytes):
            raise
        raise InputError(f"{error}; of a text, give a str, not its bytes") from error


def prompt_parts(
    messages: Sequence[CheckedMessage],
    vocabulary: Vocabulary,
    hear: Callable[[Sound], np.ndarray],
    *,
    first: bool = True,
) -> list[np.ndarray]:
    """Rows (int32 [n, 8]) and sound features (float32 [L, H]), in order, of a conversation's input.

    ``hear`` turns a sound into feature rows. ``first``: a conversation begins (only its first turn has a ``bos``).
    """
    parts: list[np.ndarray] = []
    rows: list[np.ndarray] = []
    tokens = [BOS] if first else []  # stream 0 of what follows ``rows``
    for index, (role, modality, content) in enumerate(messages):
        tokens += [ROLES[role], MODALITIES[modality]]
        if not isinstance(content, Sound):
            tokens += vocabulary.text_tokens(content)
        else:
            rows.append(vocabulary.special_rows(tokens))
            tokens = []
            if role == "assistant":  # the model knows its own sounds as codes; only a user's sound is encoded
                assert content.codes is not None
                rows.append(vocabulary.delayed_rows(content.codes))
            else:
                parts += [np.concatenate(rows), hear(content)]
                rows = []
        same_role = index + 1 < len(messages) and messages[index + 1][0] == role
        tokens.append(EOT if same_role else EOS)
    return [*parts, np.concatenate([*rows, vocabulary.special_rows(tokens)])]


def as_pair(message: Any) -> tuple[Any, Any]:
    """Role and content of a message in either form; neither is checked."""
    if isinstance(message, Mapping):
        if set(message) != {"role", "content"}:
            keys = ", ".join(map(repr, message))
            raise InputError(f"a message has the keys 'role' and 'content', not {keys:.80}")
        return message["role"], message["content"]
    if not isinstance(message, (tuple, list)) or len(message) != 2:
        raise InputError(f"a (role, content) pair is expected, not {shown(message)}")
    return message[0], message[1]


def _check_message(message: Any, text: TextCodec, longest: float | None) -> CheckedMessage:
    role, content = as_pair(message)
    if not isinstance(role, str) or role not in ROLES:
        raise InputError(f"role {shown(role)} is unknown; choose {', '.join(ROLES)}")
    if isinstance(content, str):
        return role, "text", text.encode(content)
    modality = "audio"
    if isinstance(content, Speech):
        modality, content = "speech", content.content
    if isinstance(content, (str, os.PathLike)):  # what Speech holds is never a text
        content = Sound.from_file(content, longest=longest)
    if not isinstance(content, Sound):
        raise InputError(
            f"content is a {type(content).__name__}; give a str, a Sound, a pathlib.Path, or the "
            "bytes or the open file of a sound"
        )
    if role == "assistant" and (modality == "speech" or content.codes is None):
        raise InputError("an assistant's sound must be one that this model made (with its codes), not marked as speech")
    return role, modality, content
