"""The text of a segment while it is being drawn: only text that will not change any more."""

from __future__ import annotations

import re

from .tokenizer import TextCodec

#: What could still become part of a clean-up pattern (" 's", " n't", " ' ", ...): spaces and its first characters, with
#: spaces between them that another pattern may remove. Behind any other end, no pattern can reach back.
_OPEN_END = re.compile(r" +(?:n(?: *')?|'(?: *[vr])?)? *$")


class TextStream:
    """Tokenizer ids in, text out, piece by piece; the pieces together are the text of all ids.

    Held back: an unfinished UTF-8 character, and words that clean-up of spaces could still change.
    """

    def __init__(self, codec: TextCodec) -> None:
        self._codec = codec
        self._ids: list[int] = []
        self._sent = 0

    def push(self, ids: list[int]) -> str:
        """Add ids; returns what became certain, possibly nothing."""
        self._ids += ids
        raw = self._codec.decode_raw(self._ids)
        # an unfinished character decodes to one replacement mark, which the next id may turn into something else
        end = len(raw) - 1 if raw.endswith("\ufffd") else len(raw)
        while opened := _OPEN_END.search(raw, 0, end):
            end = opened.start()
        return self._send(self._codec.clean_up(raw[:end]))

    def finish(self) -> str:
        """The rest, after the last id."""
        return self._send(self.text)

    @property
    def text(self) -> str:
        """Text of all ids so far."""
        return self._codec.decode(self._ids)

    def _send(self, text: str) -> str:
        delta = text[self._sent :]
        self._sent = max(self._sent, len(text))
        return delta
