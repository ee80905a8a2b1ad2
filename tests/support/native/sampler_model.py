"""A slow, obvious model of the frame sampler, written from the rules alone: whole histories, sorting, float64.

Where float64 and the sampler's float32 may legitimately differ (two candidates closer than rounding, or a cumulative
probability on the edge of top-p), the model sets ``ambiguous`` instead of naming a winner.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

EOS, EOT = 2, 3
STOP, LIMIT, LATENT = 1, 2, 4
MASK32 = 2**32 - 1

# Scores are logit/T + noise, both within a few float32 ulp of a number below about 40: 40 * 2^-24 * 3 = 7e-6.
SCORE_MARGIN = 2e-5
# exp is within 1 ulp, so a sum of probabilities is within about 1e-6 of the exact one.
TOP_P_MARGIN = 4e-6


class BadLogits(Exception):
    def __init__(self, row: int, stream: int) -> None:
        super().__init__(row, stream)
        self.row, self.stream = row, stream


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10 with Python integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c0, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c2, 2**32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & MASK32, (k1 + 0xBB67AE85) & MASK32
    return c0, c1, c2, c3


def gumbel(seed: int, segment: int, row: int, stream: int, token: int) -> float:
    word = philox((token, stream, row, segment), (seed & MASK32, seed >> 32))[0]
    return gumbel_of_bits(word)


def gumbel_of_bits(word: int) -> float:
    u = ((word >> 8) + 0.5) * 2.0**-24
    return -math.log(-math.log(u))


@dataclass
class Tables:
    """Sizes and tables of a small model, with text ids before audio ids."""

    codebook_size: int
    text_size: int
    audio_base: int
    text_base: int
    embedding: np.ndarray
    rvq_table: np.ndarray
    rvq_bias: np.ndarray

    @classmethod
    def random(
        cls, rng: np.random.Generator, codebook_size: int, text_size: int, hidden: int = 5, latent: int = 3
    ) -> Tables:
        text_base = 256
        audio_base = text_base + text_size
        rows = audio_base + 8 * (codebook_size + 1)
        embedding = rng.normal(size=(rows, hidden)).astype(np.float32)
        embedding[0] = 0
        rvq_table = rng.normal(size=(8, codebook_size, latent)).astype(np.float32)
        rvq_bias = rng.normal(size=latent).astype(np.float32)
        return cls(codebook_size, text_size, audio_base, text_base, embedding, rvq_table, rvq_bias)

    def pad(self, stream: int) -> int:
        return self.audio_base + stream * (self.codebook_size + 1)

    def stream_ids(self, stream: int) -> list[int]:
        ids = list(range(self.pad(stream), self.pad(stream) + self.codebook_size + 1))
        return [EOS, EOT, *ids] if stream == 0 else ids

    def audio_columns(self) -> list[int]:
        """The id of each column of an audio step."""
        return [EOS, EOT, *range(self.audio_base, self.audio_base + 8 * (self.codebook_size + 1))]

    def text_columns(self) -> list[int]:
        return [EOS, EOT, *range(self.text_base, self.text_base + self.text_size)]


@dataclass
class Options:
    kind: str  # "text", "fixed" or "reference"
    temperature: float = 0.8
    top_k: int = 20
    top_p: float = 1.0
    guidance: float = 3.0
    max_steps: int = 1024
    seed: int = 0
    segment: int = 0


def mixed_logits(options: Options, logits: np.ndarray) -> np.ndarray:
    """float32, rounded after each operation, as torch computes cond * g + null * (1 - g)."""
    if options.guidance == 1:
        return logits[0]
    conditional = logits[0] * np.float32(options.guidance)
    null = logits[1] * np.float32(1.0 - options.guidance)
    return conditional + null


def probabilities(options: Options, values: np.ndarray) -> np.ndarray:
    """The exact distribution (float64) of a draw among ``values``, after top-k and top-p."""
    order = sorted(range(len(values)), key=lambda i: (-float(values[i]), i))
    order = [i for i in order if values[i] > -np.inf]
    if options.top_k:
        order = order[: options.top_k]
    scaled = values[order].astype(np.float64) / float(np.float32(options.temperature))
    p = np.exp(scaled - scaled[0])
    p /= p.sum()
    count = int(np.searchsorted(np.cumsum(p), options.top_p)) + 1 if options.top_p < 1 else len(order)
    p = p[:count]
    result = np.zeros(len(values))
    result[order[:count]] = p / p.sum()
    return result


@dataclass
class SlowSampler:
    tables: Tables
    options: Options
    history: list[list[int]] = field(default_factory=list)
    end_row: int | None = None  # T, once the sound has ended
    end_id: int | None = None  # eos or eot, if one ended it
    ambiguous: bool = False

    def step(self, logits: np.ndarray) -> tuple[list[int], int, np.ndarray, np.ndarray | None]:
        """Row, flags, embedding [H] and latent [D] or None; float32 sums in stream order."""
        row = len(self.history)
        if self.options.kind == "text":
            ids = self._text_row(row, logits)
            stop = ids[0] in (EOS, EOT)
        elif self.options.kind == "reference":
            ids = [self._draw(row, n, self.tables.stream_ids(n), logits) for n in range(8)]
            stop = ids[0] in (EOS, EOT)
        else:
            ids = self._fixed_row(row, logits)
            stop = self.end_row is not None and row == self.end_row + 7
        self.history.append(ids)
        last = row == self.options.max_steps - 1
        flags = STOP if stop else LIMIT if last else 0
        latent = None
        if self.options.kind != "text" and not stop and row >= 7:
            flags |= LATENT
            latent = self._latent(row - 7)
        stream0_only = stop or (last and self.options.kind == "reference")
        return ids, flags, self.embedding(ids[:1] if stream0_only else ids), latent

    def embedding(self, ids: list[int]) -> np.ndarray:
        total = np.zeros(self.tables.embedding.shape[1], np.float32)
        for token in ids:
            total = total + self.tables.embedding[token]
        return total

    def _latent(self, frame: int) -> np.ndarray:
        total = self.tables.rvq_bias
        for n in range(8):
            code = self.history[frame + n][n] - 1 - self.tables.pad(n)
            total = total + self.tables.rvq_table[n, max(code, 0)]
        return total

    def _text_row(self, row: int, logits: np.ndarray) -> list[int]:
        return [self._draw(row, 0, self.tables.text_columns(), logits)] + [0] * 7

    def _fixed_row(self, row: int, logits: np.ndarray) -> list[int]:
        pads = [self.tables.pad(n) for n in range(8)]
        if self.end_row is not None and row == self.end_row + 7:
            return [self.end_id or self._better_end(row, logits), *pads[1:]]
        ids = list(pads)
        if self.end_row is None:
            if row == self.options.max_steps - 7:
                self.end_row = row
            elif row == 0:
                ids[0] = self._draw(row, 0, self.tables.stream_ids(0)[3:], logits)
            else:
                ids[0] = self._draw(row, 0, self.tables.stream_ids(0), logits)
                if ids[0] in (EOS, EOT, pads[0]):
                    self.end_row = row
                    self.end_id = ids[0] if ids[0] != pads[0] else None
                    ids[0] = pads[0]
        for n in range(1, 8):
            before_sound = row < n
            after_sound = self.end_row is not None and row >= self.end_row + n
            if not before_sound and not after_sound:
                ids[n] = self._draw(row, n, self.tables.stream_ids(n), logits)
        return ids

    def _values(self, row: int, stream: int, ids: list[int], logits: np.ndarray) -> np.ndarray:
        columns = self.tables.text_columns() if self.options.kind == "text" else self.tables.audio_columns()
        where = {token: column for column, token in enumerate(columns)}
        values = mixed_logits(self.options, logits)[[where[token] for token in ids]]
        if np.isnan(values).any() or np.isposinf(values).any() or np.isneginf(values).all():
            raise BadLogits(row, stream)
        return values

    def _better_end(self, row: int, logits: np.ndarray) -> int:
        eos, eot = self._values(row, 0, [EOS, EOT], logits)
        return EOS if eos >= eot else EOT

    def _draw(self, row: int, stream: int, ids: list[int], logits: np.ndarray) -> int:
        options = self.options
        values = self._values(row, stream, ids, logits)
        ranked = sorted(zip((-values).tolist(), ids, strict=True))
        ranked = [(-value, token) for value, token in ranked if value < math.inf]
        if options.temperature == 0:
            return ranked[0][1]
        if options.top_k:
            ranked = ranked[: options.top_k]
        temperature = float(np.float32(options.temperature))
        scaled = np.array([value for value, _ in ranked]) / temperature
        scaled -= scaled[0]
        if options.top_p < 1:
            cumulative = np.cumsum(np.exp(scaled) / np.exp(scaled).sum())
            # The sum is float64 here, integers in the sampler: at the edge either answer is correct.
            if np.min(np.abs(cumulative[:-1] - options.top_p), initial=1.0) < TOP_P_MARGIN:
                self.ambiguous = True
            count = int(np.argmax(cumulative >= options.top_p)) + 1 if cumulative[-1] >= options.top_p else len(ranked)
            ranked, scaled = ranked[:count], scaled[:count]
        noise = [gumbel(options.seed, options.segment, row, stream, token) for _, token in ranked]
        scores = scaled + np.array(noise)
        best = int(np.argmax(scores))
        others = np.delete(scores, best)
        if others.size and scores[best] - others.max() < SCORE_MARGIN:
            self.ambiguous = True
        return ranked[best][1]
