"""The layout of all ids: 256 special tokens, the text ids, and 8 streams of codec ids, in one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from .errors import InputError

STREAMS = 8
SPECIALS = 256

PAD, BOS, EOS, EOT = 0, 1, 2, 3
ROLES = {"system": 4, "user": 5, "assistant": 6}
#: Modality markers that may precede a message; the model itself chooses among ``CHOOSABLE``.
MODALITIES = {"text": 7, "audio": 8, "speech": 9, "image": 10, "video": 11, "toolcall": 12}
CHOOSABLE = ("text", "audio", "image", "video", "toolcall")

#: What a segment is made of.
Modality = Literal["audio", "text"]


@dataclass(frozen=True)
class Vocabulary:
    """Id layout of one model.

    Text id i is ``text_base + i`` (0 <= i < text_size). Stream n owns ``codebook_size + 1`` ids from
    ``audio_base + n * (codebook_size + 1)``: its pad, then its codes.
    """

    text_base: int
    text_size: int
    audio_base: int
    codebook_size: int

    @property
    def size(self) -> int:
        """Rows of the embedding table."""
        return SPECIALS + self.text_size + self.audio_size

    @property
    def pads(self) -> np.ndarray:
        """Pad id of each stream, int32 [8]."""
        return (self.audio_base + np.arange(STREAMS) * (self.codebook_size + 1)).astype(np.int32)

    @classmethod
    def in_order(cls, order: tuple[str, ...], text_size: int, codebook_size: int) -> Vocabulary:
        """Lay the modalities ("text", "discrete_audio") out after the special tokens, in the order of train.yaml."""
        sizes = {"text": text_size, "discrete_audio": STREAMS * (codebook_size + 1)}
        bases, start = {}, SPECIALS
        for name in order:
            bases[name] = start
            start += sizes[name]
        return cls(bases["text"], text_size, bases["discrete_audio"], codebook_size)

    def special_row(self, token: int) -> np.ndarray:
        """A row with ``token`` in stream 0, int32 [8]."""
        return self.special_rows([token])[0]

    @property
    def audio_size(self) -> int:
        """Ids of all codebooks: the pad and the codes of each."""
        return STREAMS * (self.codebook_size + 1)

    def head_columns(self, modality: Modality) -> int:
        """Logits of a head: eos, eot, then what the modality can draw."""
        return 2 + (self.text_size if modality == "text" else self.audio_size)

    def special_rows(self, tokens: Sequence[int]) -> np.ndarray:
        """Rows with ``tokens`` in stream 0, int32 [n, 8]."""
        rows = np.zeros((len(tokens), STREAMS), np.int32)
        rows[:, 0] = tokens
        return rows

    def text_rows(self, token_ids: list[int]) -> np.ndarray:
        """Rows of an input text, int32 [n, 8]; see :meth:`text_tokens`."""
        return self.special_rows(self.text_tokens(token_ids))

    def text_tokens(self, token_ids: list[int]) -> list[int]:
        """Stream 0 ids of an input text.

        Tokenizer id 0 becomes pad, not ``text_base``: the training preprocessor does so, and the weights expect it.
        """
        return [PAD if token == 0 else token + self.text_base for token in token_ids]

    def codes(self, rows: np.ndarray) -> np.ndarray:
        """Undo the delay pattern: audio rows [T + 7, 8] without stop row -> codes int16 [T, 8]; a pad is code 0."""
        frames = max(len(rows) - (STREAMS - 1), 0)
        offsets = np.arange(STREAMS)
        delayed = rows[np.arange(frames)[:, None] + offsets, offsets]
        # below a stream's first code lie its pad and, in reference mode, special ids
        return np.maximum(delayed - 1 - self.pads, 0).astype(np.int16)

    def delayed_rows(self, codes: np.ndarray) -> np.ndarray:
        """Apply the delay pattern: codes [T, 8] -> rows int32 [T + 7, 8]."""
        codes = check_codes(codes, self.codebook_size)
        rows = np.tile(self.pads, (len(codes) + STREAMS - 1, 1))
        for stream in range(STREAMS):
            rows[stream : stream + len(codes), stream] += 1 + codes[:, stream]
        return rows

    def to_json(self) -> dict[str, int]:
        return asdict(self)


def check_codes(codes: np.ndarray, codebook_size: int) -> np.ndarray:
    """Codes as int16 [T, 8]; :class:`InputError` for another shape, type or range."""
    try:
        codes = np.asarray(codes)
    except (TypeError, ValueError) as error:
        raise InputError(f"codes: a {type(codes).__name__} makes no array ({error}); give a NumPy array") from error
    if codes.ndim != 2 or codes.shape[1] != STREAMS or not np.issubdtype(codes.dtype, np.integer):
        raise InputError(
            f"codes: {codes.dtype} {list(codes.shape)}; integers of shape [frames, {STREAMS}] are expected"
        )
    if len(codes) == 0:
        raise InputError("codes: no frames; at least one is needed")
    if codes.min() < 0 or codes.max() >= codebook_size:
        bad = codes[(codes < 0) | (codes >= codebook_size)][0]
        raise InputError(f"codes: {bad} is outside 0 .. {codebook_size - 1}")
    return codes.astype(np.int16)
