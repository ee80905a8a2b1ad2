"""ONNX Runtime's parts over our device memory: the body and the heads for the device loop.

The standard form of the body needs no memory that a step would have to update: a decode step attends to all rows held,
so its mask is all zeros, and the angles and the row to write come from tables. A step binds each at the offset of its
row, and nothing is copied.

ONNX Runtime's own CUDA graphs are off. They require fixed shapes, while a step's attention here is as long as the rows
held; one graph per length would mean as many captures as frames. Nor can a caller capture a run of ONNX Runtime. So it
runs beside our graph, which holds the head and the sampler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ...errors import EngineError
from ...files.reading import first_line
from ...vocabulary import CHOOSABLE, Modality
from ..device.cache import CacheShape, DeviceCache
from ..device.device import Buffer, Device, Grown, Number
from ..device.head import FusedHead
from ..device.protocol import DeviceStep
from .cpu import PREFILL_ROWS

#: ONNX's number for bfloat16, which numpy lacks (onnx.TensorProto.BFLOAT16).
_BFLOAT16 = 16
_TYPES: dict[Number, Any] = {"float32": np.float32, "float16": np.float16, "bfloat16": _BFLOAT16}

#: A session of a part of the bundle, by its role.
Sessions = Callable[[str], Any]


class DeviceBinding:
    """A part whose inputs and outputs are bound to addresses on the device; calling it enqueues a run."""

    def __init__(self, session: Any, role: str, device: Device, options: Any) -> None:
        self._session, self._role, self._options = session, role, options
        self._kind, self._index = device.kind, device.index
        self._binding = session.io_binding()

    def input(self, name: str, address: int, shape: tuple[int, ...], dtype: Any = np.float32) -> None:
        self._binding.bind_input(name, self._kind, self._index, dtype, shape, address)

    def output(self, name: str, address: int, shape: tuple[int, ...], dtype: Any = np.float32) -> None:
        self._binding.bind_output(name, self._kind, self._index, dtype, shape, address)

    def __call__(self) -> None:
        try:
            self._session.run_with_iobinding(self._binding, self._options)
        except Exception as error:  # pybind11 raises several unrelated types here
            raise EngineError(f"part {self._role}: ONNX Runtime failed ({first_line(error)})") from error


class PositionTables:
    """What a call of the body needs to know about positions, for all positions, in device memory."""

    def __init__(self, device: Device, cos: np.ndarray, sin: np.ndarray) -> None:
        positions, half = cos.shape
        #: [position, branch, head_dim / 2]: a step of two branches finds both side by side, prefill takes ``single``.
        self.double = [device.uploaded(np.repeat(table[:, None], 2, axis=1)) for table in (cos, sin)]
        self.single = [device.uploaded(table) for table in (cos, sin)]
        self.index = device.uploaded(np.repeat(np.arange(positions, dtype=np.int64)[:, None], 2, axis=1))
        self.zeros = device.uploaded(np.zeros(2 * positions, np.float32))
        self.row_bytes = half * 4
        self.half = half

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in (*self.double, *self.single, self.index, self.zeros))


class BodyBinding:
    """The body for a number of branches, or for the rows of a prompt."""

    def __init__(
        self, body: OnnxRuntimeBody, cache: DeviceCache, embeddings: Buffer, hidden: Buffer, *, branches: int, rows: int
    ) -> None:
        self._body, self._tables, self._branches, self._rows = body, body.tables, branches, rows
        shape, width = cache.shape, body.hidden_size
        self._call = DeviceBinding(body.sessions("backbone"), "backbone", body.device, body.run_options)
        self._call.input("embeddings", embeddings.address, (branches, rows, width))
        self._call.output("hidden", hidden.address, (branches, width))
        bound, dtype = (branches, shape.kv_heads, shape.capacity, shape.head_dim), _TYPES[shape.number]
        for layer, halves in enumerate(cache.layers):
            for name, buffer in zip(("key", "value"), halves, strict=True):
                self._call.input(f"past_{name}.{layer}", buffer.address, bound, dtype)
                self._call.output(f"present_{name}.{layer}", buffer.address, bound, dtype)

    def run(self, held: int) -> None:
        """Append the rows after ``held`` rows and attend over all of them."""
        call, tables, branches, rows = self._call, self._tables, self._branches, self._rows
        call.input("write_index", tables.index.address + held * 16, (branches,), np.int64)
        angles = tables.double if branches == 2 else tables.single
        step = tables.row_bytes * branches
        for name, table in zip(("cos", "sin"), angles, strict=True):
            call.input(name, table.address + held * step, (branches, rows, tables.half))
        if rows == 1:
            call.input("mask", tables.zeros.address, (branches, 1, 1, held + 1))
            call()
            return
        mask = np.triu(np.full((rows, held + rows), -np.inf, np.float32), held + 1)
        call.input("mask", self._body.scratch(mask), (branches, 1, *mask.shape))
        call()


class OnnxRuntimeBody:
    """See :class:`device.protocol.DeviceBody`."""

    prefill_rows = PREFILL_ROWS

    def __init__(
        self,
        device: Device,
        sessions: Sessions,
        shape: CacheShape,
        tables: PositionTables,
        *,
        hidden_size: int,
        columns: Mapping[Modality, int],
        heads: Mapping[Modality, FusedHead],
        run_options: Any,
    ) -> None:
        """``columns``: logits of each head. ``heads``: those of our own kernels; ONNX Runtime runs the others."""
        self.device, self.sessions, self.shape, self.tables = device, sessions, shape, tables
        self.hidden_size, self.run_options = hidden_size, run_options
        self._columns, self._heads = columns, heads
        self._scratch = Grown(device)

    def scratch(self, values: np.ndarray) -> int:
        """Address of a copy of ``values``, valid for what is put on the stream before the next such call."""
        buffer = self._scratch.of(values.nbytes)
        self.device.upload(buffer.address, values)
        return buffer.address

    def open_cache(self) -> DeviceCache:
        return DeviceCache(self.device, self.shape)

    def prefill(self, cache: DeviceCache, embeddings: Buffer, rows: int, held: int, hidden: Buffer) -> None:
        BodyBinding(self, cache, embeddings, hidden, branches=1, rows=rows).run(held)

    def modality_logits(self, hidden: Buffer, out: Buffer) -> None:
        head = DeviceBinding(self.sessions("head.modality"), "head.modality", self.device, self.run_options)
        head.input("hidden", hidden.address, (1, self.hidden_size))
        head.output("logits", out.address, (1, len(CHOOSABLE)))
        head()

    def open_step(self, cache: DeviceCache, modality: Modality, branches: int) -> DeviceStep:
        return OnnxRuntimeStep(self, cache, modality, branches, self._columns[modality], self._heads.get(modality))


class OnnxRuntimeStep:
    """See :class:`device.protocol.DeviceStep`."""

    def __init__(
        self,
        body: OnnxRuntimeBody,
        cache: DeviceCache,
        modality: Modality,
        branches: int,
        columns: int,
        fused: FusedHead | None,
    ) -> None:
        device, width = body.device, body.hidden_size
        self.embeddings = device.allocate(branches * width * 4)
        self.logits = device.allocate(branches * columns * 4)
        self._hidden = device.allocate(branches * width * 4)
        self._body = BodyBinding(body, cache, self.embeddings, self._hidden, branches=branches, rows=1)
        self._head: Callable[[], None]
        self._fused = fused is not None
        if fused is not None:
            self._head = fused.bound(self._hidden, self.logits, branches)
        else:
            role = f"head.{modality}"
            head = DeviceBinding(body.sessions(role), role, device, body.run_options)
            head.input("hidden", self._hidden.address, (branches, width))
            head.output("logits", self.logits.address, (branches, columns))
            self._head = head

    def begin(self, held: int) -> None:
        """Nothing is counted on the device: each run is given its position."""

    def before(self, held: int) -> None:
        self._body.run(held)
        if not self._fused:
            self._head()

    def bucket(self, held: int) -> int | None:
        """One graph for all lengths, since the head does not depend on them. None if ONNX Runtime runs the head too."""
        return 0 if self._fused else None

    def enqueue(self, held: int) -> None:
        if self._fused:
            self._head()
