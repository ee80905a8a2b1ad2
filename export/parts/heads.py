"""The output heads, each restricted to the ids that can ever be drawn, with the stream embeddings folded in.

``lm_head (h + s_n) = lm_head h + lm_head s_n``: the second term is constant, so each stream's embedding becomes a bias
of that stream's rows, and stream 0, whose embedding the model treats as zero, has none.
"""

from __future__ import annotations

import itertools

import numpy as np

from ...runtime.errors import ExportError
from ...runtime.vocabulary import CHOOSABLE, EOS, EOT, MODALITIES, STREAMS, Vocabulary
from ..formats.store import WeightStore
from ..run.checkpoint import TensorSource
from .graph import Graph

#: Rows of the head read at a time.
BLOCK = 8192
EMBEDDING, HEAD, STREAM_EMBEDDING = "model.embed_tokens.weight", "lm_head.weight", "stream_emb.weight"


class HeadsPlan:
    """Plans the embedding table and the three heads, and draws the heads' graphs."""

    def __init__(
        self,
        source: TensorSource,
        vocabulary: Vocabulary,
        hidden_size: int,
        store: WeightStore,
        dtype: str = "float32",
    ) -> None:
        self.hidden_size, self.store, self.dtype = hidden_size, store, dtype
        self.tensors = {
            EMBEDDING: (vocabulary.size, hidden_size),
            HEAD: (vocabulary.size, hidden_size),
            STREAM_EMBEDDING: (STREAMS, hidden_size),
        }
        for name, expected in self.tensors.items():
            found = source.shape(name)
            if found != expected:
                what = "vocabulary size" if found[1:] == expected[1:] and name != STREAM_EMBEDDING else "shape"
                raise ExportError(
                    f"tensor {name}: wrong {what}: found {list(found)}, but train.yaml's tokenizer, codec and backbone "
                    f"make it {list(expected)} (256 special + {vocabulary.text_size} text + "
                    f"{STREAMS} x {vocabulary.codebook_size + 1} audio ids, hidden size {hidden_size})"
                )
        text = np.r_[EOS, EOT, vocabulary.text_base : vocabulary.text_base + vocabulary.text_size]
        spans = vocabulary.pads[:, None] + np.arange(vocabulary.codebook_size + 1)
        audio = np.r_[EOS, EOT, spans.reshape(-1)]
        self.sizes = {"text": len(text), "audio": len(audio), "modality": len(CHOOSABLE)}
        store.add("embedding", (vocabulary.size, hidden_size), lambda: _embedding(source), _table_dtype(source))
        self._add_rows(source, "audio", audio)
        self._add_rows(source, "text", text)
        self._add_rows(source, "modality", np.array([MODALITIES[name] for name in CHOOSABLE]))
        store.add("head.audio.bias", (len(audio),), lambda: _stream_bias(source, spans))

    def _add_rows(self, source: TensorSource, head: str, ids: np.ndarray) -> None:
        shape = (self.hidden_size, len(ids))
        dtype = "float32" if head == "modality" else self.dtype  # as Precision.of_part says
        self.store.add_matrix(f"head.{head}", shape, lambda: _head_columns(source, ids), dtype)

    def graph(self, head: str) -> Graph:
        """Head "audio", "text" or "modality": ``hidden`` [B, H] -> ``logits`` [B, n].

        Order of the logits: audio: eos, eot, then stream 0's pad and codes, stream 1's, ...; text: eos, eot, text ids;
        modality: as in ``runtime.vocabulary.CHOOSABLE``.
        """
        g = Graph(f"head_{head}", self.store)
        hidden = g.input("hidden", ["batch", self.hidden_size])
        logits = g.linear(hidden, f"head.{head}", "head.audio.bias" if head == "audio" else None, name=f"head.{head}")
        g.output(logits, "logits", ["batch", self.sizes[head]])
        return g


def _table_dtype(source: TensorSource) -> str:
    """The embedding in bfloat16 if the checkpoint has it so: nothing is lost, at half the bytes."""
    return "bfloat16" if source.dtype(EMBEDDING) == "bfloat16" else "float32"


def _embedding(source: TensorSource) -> np.ndarray:
    table = source.read(EMBEDDING)
    if table[0].any():
        raise ExportError(f"tensor {EMBEDDING}: row 0 (padding) is not zero; this is not a UALM embedding table")
    return table


def _head_columns(source: TensorSource, ids: np.ndarray) -> np.ndarray:
    """Rows ``ids`` (ascending) of the head as columns, [H, n], block by block: the table is the largest tensor."""
    columns = np.empty((source.shape(HEAD)[1], len(ids)), np.float32)
    # eos and eot are far from the rest: a block ends where the ids jump
    starts = np.r_[0, np.flatnonzero(np.diff(ids) > 1) + 1, len(ids)]
    for start, end in itertools.pairwise(starts):
        for first in range(start, end, BLOCK):
            block = ids[first : min(first + BLOCK, end)]
            rows = source.read(HEAD, slice(int(block[0]), int(block[-1]) + 1))
            columns[:, first : first + len(block)] = rows.T
    return columns


def _stream_bias(source: TensorSource, spans: np.ndarray) -> np.ndarray:
    streams = source.read(STREAM_EMBEDDING).astype(np.float64)
    bias = np.zeros(2 + spans.size, np.float32)
    width = spans.shape[1]
    for stream in range(1, STREAMS):
        rows = source.read(HEAD, slice(int(spans[stream, 0]), int(spans[stream, -1]) + 1)).astype(np.float64)
        bias[2 + stream * width : 2 + (stream + 1) * width] = rows @ streams[stream]
    return bias
