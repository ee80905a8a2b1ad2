"""The embedded engine: ONNX Runtime on the CPU, with the frame sampler and the KV cache in our own memory.

The cache of a layer is two allocations, each bound as past and present at the same time: a step writes its row in
place, and nothing is ever copied. Pages that no row has reached are never touched, so a large ``max_context`` costs
only address space.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ... import _native
from ...bundle.bundle import Bundle
from ...errors import EngineError
from ...sampling import AudioSampling, Mode, TextSampling
from ...vocabulary import MODALITIES, Modality
from ..arithmetic import Arithmetic, Part
from ..protocol import check_room
from ..sequence import SequenceBase
from ..tables import rotary_tables
from ..timing import Clock
from .binding import Binding
from .codec import OnnxRuntimeCodecStream
from .sessions import OnnxRuntimeParts

#: Rows prefilled at a time: bounds the attention scores held (heads x rows x context), at no measurable cost.
PREFILL_ROWS = 256
#: From this many rows on, a bundle's body for prefill is used, if it has one; for fewer the other body is faster.
PREFILL_BODY_ROWS = 16
#: The bodies that this engine can run, the fastest first. The last computes in float32 only where that is stored.
BODIES = ("backbone.grouped", "backbone.float32", "backbone")


class OnnxRuntimeEngine(OnnxRuntimeParts):
    """A bundle loaded into ONNX Runtime. Sequences of one engine may run on several threads at once."""

    name = "onnxruntime"

    def __init__(self, bundle: Bundle, *, threads: int | None = None, max_context: int) -> None:
        super().__init__(bundle, threads=threads, max_context=max_context)
        parts = bundle.manifest.parts
        #: Role of the body: with ONNX Runtime's own attention operator where the head size allows it, else with the
        #: standard operators, in float32 either way.
        self.body = next(role for role in BODIES if role in parts)
        self._has_prefill_body = "backbone.prefill" in parts
        self.encoder_role = "encoder.integer" if "encoder.integer" in parts else "encoder"
        self.session(self.body)
        self.embedding = bundle.table("embedding")
        self.null_keys, self.null_values = bundle.table("null.keys"), bundle.table("null.values")
        self.cos, self.sin = rotary_tables(bundle.table("rope.inverse_frequencies"), max_context)

    @property
    def grouped(self) -> bool:
        """Whether the body uses ONNX Runtime's attention operator, which holds the angles of all positions itself."""
        return self.body == "backbone.grouped"

    def prefill_body(self, rows: int) -> str:
        """Role of the body that reads ``rows`` rows at once."""
        return "backbone.prefill" if self._has_prefill_body and rows >= PREFILL_BODY_ROWS else self.body

    @property
    def arithmetic(self) -> Mapping[Part, Arithmetic]:
        return self.arithmetic_on_cpu(self.body)

    @property
    def bytes_per_row(self) -> int:
        model = self.model
        return 2 * 2 * model.layers * model.kv_heads * model.head_dim * np.dtype(np.float32).itemsize

    def open_sequence(self) -> OnnxRuntimeSequence:
        self.check_open()
        return OnnxRuntimeSequence(self)

    def open_codec_stream(self) -> OnnxRuntimeCodecStream:
        return OnnxRuntimeCodecStream(self)


class BodyCall:
    """The transformer body for ``batch`` branches and ``rows`` new rows: fill ``embeddings``, run, read ``hidden``."""

    def __init__(
        self,
        engine: OnnxRuntimeEngine,
        cache: list[tuple[np.ndarray, np.ndarray]],
        clock: Clock,
        *,
        batch: int,
        rows: int,
        role: str,
    ) -> None:
        self._engine, self._rows, self._batch = engine, rows, batch
        model = engine.model
        bind = self._bind = Binding(engine.session(role), role, clock)
        self.embeddings = bind.input("embeddings", np.zeros((batch, rows, model.hidden_size), np.float32))
        self.hidden = bind.output("hidden", np.zeros((batch, model.hidden_size), np.float32))
        shape = (batch, model.kv_heads, engine.max_context, model.head_dim)
        for layer, (keys, values) in enumerate(cache):
            for name, array in (("key", keys), ("value", values)):
                bind.input(f"past_{name}.{layer}", array, shape)
                bind.output(f"present_{name}.{layer}", array, shape)
        if engine.grouped:
            self._last = bind.input("last_position", np.zeros(batch, np.int32))
            self._total = bind.input("total_rows", np.zeros((), np.int32))
            bind.input("cos", engine.cos)
            bind.input("sin", engine.sin)
        else:
            self._index = bind.input("write_index", np.zeros(batch, np.int64))
            self._rotary = [
                bind.input(name, np.zeros((batch, rows, model.head_dim // 2), np.float32)) for name in ("cos", "sin")
            ]

    def run(self, held: int) -> None:
        """Append the rows after ``held`` rows and attend over all of them."""
        if self._engine.grouped:
            self._last[:] = held + self._rows - 1
            self._total[...] = held + self._rows
        else:
            self._index[:] = held
            rows = slice(held, held + self._rows)
            self._rotary[0][:], self._rotary[1][:] = self._engine.cos[rows], self._engine.sin[rows]
            mask = np.triu(np.full((self._rows, held + self._rows), -np.inf, np.float32), held + 1)
            self._bind.input("mask", np.ascontiguousarray(np.broadcast_to(mask, (self._batch, 1, *mask.shape))))
        self._bind()


class HeadCall:
    """An output head bound to the hidden state of a step."""

    def __init__(self, engine: OnnxRuntimeEngine, modality: Modality, hidden: np.ndarray, clock: Clock) -> None:
        role = f"head.{modality}"
        columns = engine.vocabulary.head_columns(modality)
        self.run = Binding(engine.session(role), role, clock)
        self.run.input("hidden", hidden)
        self.logits = self.run.output("logits", np.zeros((len(hidden), columns), np.float32))


class OnnxRuntimeSequence(SequenceBase):
    """KV cache, frame sampler and bindings of one conversation. Branch 0 is conditional, branch 1 the null branch."""

    def __init__(self, engine: OnnxRuntimeEngine) -> None:
        super().__init__(engine.model, max_context=engine.max_context, latent_size=len(engine.rvq_bias))
        self._engine = engine
        model, vocabulary = engine.model, engine.vocabulary
        shape = (2, model.kv_heads, engine.max_context, model.head_dim)
        try:
            self._cache = [(_reserve(shape), _reserve(shape)) for _ in range(model.layers)]
        except (MemoryError, OSError) as error:
            need = engine.bytes_per_row * engine.max_context / 2**30
            raise EngineError(
                f"the cache of {engine.max_context} rows needs {need:.1f} GiB of address space, which this machine "
                "refuses; open the model with a smaller max_context"
            ) from error
        self._sampler = _native.FrameSampler(
            codebook_size=vocabulary.codebook_size,
            text_size=vocabulary.text_size,
            audio_base=vocabulary.audio_base,
            text_base=vocabulary.text_base,
            embedding=engine.embedding,
            rvq_table=engine.rvq_table,
            rvq_bias=engine.rvq_bias,
        )
        self._hidden = np.zeros((1, model.hidden_size), np.float32)
        self._steps: dict[int, BodyCall] = {}
        self._heads: dict[tuple[str, int], HeadCall] = {}
        self._head: HeadCall | None = None

    def prefill(self, parts: Sequence[np.ndarray]) -> None:
        embeddings = np.concatenate([self._embed(part) for part in parts])
        check_room(self._length, len(embeddings), self._engine.max_context, most=self._sizes.max_positions)
        for first in range(0, len(embeddings), PREFILL_ROWS):
            chunk = np.ascontiguousarray(embeddings[None, first : first + PREFILL_ROWS])
            role = self._engine.prefill_body(chunk.shape[1])
            call = BodyCall(self._engine, self._cache, self._clock, batch=1, rows=chunk.shape[1], role=role)
            call.embeddings[:] = chunk
            call.run(self._length)
            self._hidden = call.hidden
            self._length += chunk.shape[1]

    def _embed(self, part: np.ndarray) -> np.ndarray:
        if part.dtype == np.float32:
            return part
        out = np.empty((len(part), self._engine.model.hidden_size), np.float32)
        self._sampler.embed(np.ascontiguousarray(part, np.int32), out)
        return out

    def fork(self) -> OnnxRuntimeSequence:
        other = OnnxRuntimeSequence(self._engine)
        for mine, theirs in zip(self._cache, other._cache, strict=True):
            for source, target in zip(mine, theirs, strict=True):
                target[0, :, : self._length] = source[0, :, : self._length]
        other._length, other._hidden = self._length, self._hidden.copy()
        return other

    def save(self) -> np.ndarray:
        return np.stack([[part[0, :, : self._length] for part in layer] for layer in self._cache])

    def _write_cache(self, cache: np.ndarray) -> None:
        rows = cache.shape[3]
        for layer, parts in zip(self._cache, cache, strict=True):
            for target, source in zip(layer, parts, strict=True):
                target[0, :, :rows] = source

    def modality_logits(self) -> np.ndarray:
        with self._clock:
            return self._engine.run("head.modality", {"hidden": self._hidden})[0]

    def begin_segment(
        self, modality: Modality, sampling: AudioSampling | TextSampling, *, mode: Mode, segment: int
    ) -> None:
        options: dict[str, Any] = {
            "temperature": float(sampling.temperature),
            "top_k": sampling.top_k or 0,
            "top_p": float(sampling.top_p),
            "guidance": float(sampling.guidance),
            "max_steps": sampling.max_steps,
            "seed": sampling.seed,
            "segment": segment,
        }
        if modality == "audio":
            self._sampler.begin_audio(mode=mode, **options)
        else:
            self._sampler.begin_text(**options)
        self._branches = 2 if sampling.guidance > 1 else 1
        if self._branches == 2:
            self._fill_null_branch()
        step = self._step(self._branches)
        marker = self._engine.vocabulary.special_row(MODALITIES[modality])
        self._sampler.embed(marker[None], step.embeddings[0])
        step.embeddings[1:] = step.embeddings[0]
        key = (modality, self._branches)
        if key not in self._heads:
            self._heads[key] = HeadCall(self._engine, modality, step.hidden, self._clock)
        self._head, self._running = self._heads[key], True

    def _draw(self, row: np.ndarray, latent: np.ndarray, *, wanted: int) -> int:
        head = self._head
        assert head is not None  # a segment is in progress
        step = self._step(self._branches)
        step.run(self._length)
        self._length += 1
        head.run()
        try:
            flags: int = self._sampler.step(head.logits, row, step.embeddings[0, 0], latent)
        except ValueError as error:
            raise EngineError(f"the model's logits cannot be sampled: {error}") from error
        if self._branches == 2:
            step.embeddings[1] = step.embeddings[0]
        return flags

    def follow(self, rows: np.ndarray) -> np.ndarray:
        """Feed ``rows`` int32 [n, 8] as if the current segment had drawn them (teacher forcing), to compare models on
        equal rows. Returns the logits before mixing, float32 [n, branches, L], that each row would have been drawn
        from. The segment is over then; truncate before the next."""
        if self._head is None or not self._running:
            raise EngineError("follow: no segment is under way")
        step, head = self._step(self._branches), self._head
        found = []
        for row in np.ascontiguousarray(rows, np.int32):
            check_room(self._length, 1, self._engine.max_context, most=self._sizes.max_positions)
            step.run(self._length)
            self._length += 1
            head.run()
            found.append(head.logits.copy())
            self._sampler.embed(row[None], step.embeddings[0])
            step.embeddings[1:] = step.embeddings[0]
        self._running = False
        return np.stack(found)

    @property
    def logits(self) -> np.ndarray:
        if self._head is None:
            raise EngineError("logits: no segment has begun")
        return self._head.logits

    def _step(self, branches: int) -> BodyCall:
        if branches not in self._steps:
            role = self._engine.body
            self._steps[branches] = BodyCall(self._engine, self._cache, self._clock, batch=branches, rows=1, role=role)
        return self._steps[branches]

    def _fill_null_branch(self) -> None:
        """Null prefix of the rows held: constant keys, rotated to each position, and constant values (no prefill)."""
        first, last = self._null_rows, self._length
        engine = self._engine
        half = engine.model.head_dim // 2
        cos, sin = engine.cos[first:last], engine.sin[first:last]
        for layer, (keys, values) in enumerate(self._cache):
            low, high = engine.null_keys[layer, :, None, :half], engine.null_keys[layer, :, None, half:]
            keys[1, :, first:last, :half] = low * cos - high * sin
            keys[1, :, first:last, half:] = high * cos + low * sin
            values[1, :, first:last] = engine.null_values[layer, :, None]
        # a later segment writes its rows after these: they stay valid for the next null branch
        self._null_rows = last


def _reserve(shape: tuple[int, ...]) -> np.ndarray:
    """Zeros, float32, of which only touched pages take memory.

    numpy requests huge pages, and the first row of every layer, branch and head would touch one: 336 MB for one row of
    the 1.5B shape.
    """
    if not hasattr(mmap, "MADV_NOHUGEPAGE"):
        return np.zeros(shape, np.float32)
    memory = mmap.mmap(-1, math.prod(shape) * 4, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, np.float32).reshape(shape)
