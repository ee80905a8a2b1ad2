"""ONNX Runtime's parts with their inputs and outputs bound to memory of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import EngineError
from ..reading import first_line
from ..vocabulary import STREAMS
from .clock import Clock

if TYPE_CHECKING:
    from .onnxruntime import OnnxRuntimeEngine


class Binding:
    """A session with its inputs and outputs bound to numpy memory, which it keeps alive; ``clock`` times its calls."""

    def __init__(self, session: Any, role: str, clock: Clock) -> None:
        self._session, self._role, self._clock = session, role, clock
        self._binding = session.io_binding()
        self._kept: dict[str, np.ndarray] = {}

    def input(self, name: str, array: np.ndarray, shape: tuple[int, ...] | None = None) -> np.ndarray:
        self._kept[name] = array
        self._binding.bind_input(name, "cpu", 0, array.dtype.type, shape or array.shape, array.ctypes.data)
        return array

    def output(self, name: str, array: np.ndarray, shape: tuple[int, ...] | None = None) -> np.ndarray:
        self._kept[name] = array
        self._binding.bind_output(name, "cpu", 0, array.dtype.type, shape or array.shape, array.ctypes.data)
        return array

    def __call__(self) -> None:
        try:
            with self._clock:
                self._session.run_with_iobinding(self._binding)
        except Exception as error:
            raise EngineError(f"part {self._role}: ONNX Runtime failed ({first_line(error)})") from error


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
        """Append the rows behind ``held`` rows and attend over all of them."""
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

    def __init__(self, engine: OnnxRuntimeEngine, modality: str, hidden: np.ndarray, clock: Clock) -> None:
        role = f"head.{modality}"
        vocabulary = engine.vocabulary
        size = vocabulary.text_size if modality == "text" else STREAMS * (vocabulary.codebook_size + 1)
        self.run = Binding(engine.session(role), role, clock)
        self.run.input("hidden", hidden)
        self.logits = self.run.output("logits", np.zeros((len(hidden), 2 + size), np.float32))
