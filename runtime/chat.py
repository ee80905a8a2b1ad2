"""Messages to rows, and drawn rows back to text: the chat layout that UALM was trained with.

``bos``, then per message: role, modality, content, and ``eot`` if the next message has the same role, else ``eos``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypedDict, Union

import numpy as np

from .errors import BundleError, InputError
from .reading import first_line, shown
from .sound import Sound, Speech
from .tokenizer_file import MOST_IDS, of_the_library, read_tokenizer
from .vocabulary import BOS, EOS, EOT, MODALITIES, ROLES, Vocabulary, check_codes

#: What can be read again: a text, or a sound (made, or in a file), which may be marked as speech.
Kept = Union[str, Sound, Speech, "os.PathLike[str]"]
#: What a message can carry: that, or the bytes or the open file of a sound.
Content = Kept | bytes | bytearray | memoryview | BinaryIO


class MessageDict(TypedDict):
    """A message as other libraries write it."""

    role: str
    content: Content


#: Who says what: a (role, content) pair, or ``{"role": ..., "content": ...}``.
Message = tuple[str, Content] | MessageDict

#: Clean-up of spaces that the published code asks the tokenizer for (as transformers 4.57 does it).
_CLEAN_UP = [(f" {mark}", mark) for mark in (".", "?", "!", ",")]
_CLEAN_UP += [(" ' ", "'")]
_CLEAN_UP += [(f" {ending}", ending) for ending in ("n't", "'m", "'s", "'ve", "'re")]


class TextCodec:
    """Text to ids and back, with the bundle's tokenizer."""

    def __init__(self, path: Path, ids: int = MOST_IDS) -> None:
        """``ids``: how many of them the model has rows for."""
        try:
            self._tokenizer = read_tokenizer(path, ids)
        except (OSError, ValueError) as error:
            reason = first_line(error)
            raise BundleError(f"{path}: not a readable tokenizer ({reason}); export the run again") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def encode(self, text: str) -> list[int]:
        """Tokenizer ids of a text."""
        if not text:
            raise InputError("text is empty; write what the model should do")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"text is not valid UTF-8 (character {error.start} is a lone surrogate, {text[error.start]!r}); "
                "decode the bytes with the right encoding first"
            ) from error
        try:
            ids = self._tokenizer.encode(text).ids
        except BaseException as error:
            if not of_the_library(error):
                raise
            raise InputError(f"text {shown(text)}: the tokenizer gives up on it ({first_line(error)})") from error
        if not ids:
            raise InputError(f"text {shown(text)} has no tokens; write what the model should do")
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of tokenizer ids; special tokens and ids beyond the tokenizer decode to nothing."""
        return self.clean_up(self.decode_raw(ids))

    def decode_raw(self, ids: Sequence[int]) -> str:
        """Like :meth:`decode`, before the clean-up of spaces."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    @staticmethod
    def clean_up(text: str) -> str:
        """Remove the spaces that the published code has its tokenizer remove."""
        for found, replacement in _CLEAN_UP:
            text = text.replace(found, replacement)
        return text


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

    ``check_sound`` refuses a sound that the encoder cannot take. ``longest``: seconds of a file that are read at most.
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
    """Messages whose bytes and open files are read: as (role, Sound). All others stay as they are, and unchecked."""
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
            if role == "assistant":  # what the model made it knows as codes; only a user's sound is heard
                assert content.codes is not None
                rows.append(vocabulary.delayed_rows(content.codes))
            else:
                parts += [np.concatenate(rows), hear(content)]
                rows = []
        same_role = index + 1 < len(messages) and messages[index + 1][0] == role
        tokens.append(EOT if same_role else EOS)
    return [*parts, np.concatenate([*rows, vocabulary.special_rows(tokens)])]


def as_pair(message: Any) -> tuple[Any, Any]:
    """Role and content of a message, however it was written; neither is checked."""
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
