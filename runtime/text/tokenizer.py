"""The bundle's tokenizer: text to ids and back, as the published code does it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import BundleError, InputError
from ..files.reading import first_line, shown
from .tokenizer_file import MOST_IDS, of_the_library, read_tokenizer

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
