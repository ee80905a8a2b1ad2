"""One safetensors file that every ONNX part of a bundle points into.

Tensors are planned first (name, dtype, shape, and a function that makes the values), laid out once, and then written
one after the other, so that the memory held at any moment is that of one tensor. The safetensors library can only save
tensors that are all in memory at once; that is why the writer is here. Format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

#: Every tensor starts at a multiple of this many bytes: a cache line, and enough for any vector load.
ALIGNMENT = 64
#: The first tensor starts at a page boundary, so that mapped offsets keep their alignment in memory.
PAGE = 4096

_SAFETENSORS_DTYPES = {
    "float32": "F32",
    "float16": "F16",
    "int32": "I32",
    "int64": "I64",
    "int8": "I8",
    "uint8": "U8",
}


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor of the blob: ``make()`` returns its values, of exactly ``dtype`` and ``shape``."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class WeightStore:
    """Plans, lays out and writes the tensors of one safetensors file."""

    def __init__(self, filename: str) -> None:
        self.filename = filename
        self._tensors: dict[str, PlannedTensor] = {}
        self._layout: dict[str, int] | None = None
        self._header = b""

    def add(self, name: str, shape: tuple[int, ...], make: Callable[[], np.ndarray], dtype: str = "float32") -> str:
        """Plan a tensor. Returns ``name``, so that a graph can refer to it in the same expression."""
        if self._layout is not None:
            raise RuntimeError(f"{name}: the blob is laid out already")
        if name in self._tensors:
            raise RuntimeError(f"{name}: planned twice")
        self._tensors[name] = PlannedTensor(name, np.dtype(dtype), tuple(int(n) for n in shape), make)
        return name

    def __getitem__(self, name: str) -> PlannedTensor:
        return self._tensors[name]

    @property
    def nbytes(self) -> int:
        """Bytes of all planned tensors, without header and padding."""
        return sum(tensor.nbytes for tensor in self._tensors.values())

    def lay_out(self) -> None:
        """Fix the place of every tensor in the file. Nothing can be added afterwards."""
        header: dict[str, object] = {"__metadata__": {"format": "ualm"}}
        starts: dict[str, int] = {}
        end = 0
        for tensor in self._tensors.values():
            gap = -end % ALIGNMENT
            if gap:
                # safetensors allows no holes: the gap is a tensor of its own
                header[f"_padding.{end}"] = {"dtype": "U8", "shape": [gap], "data_offsets": [end, end + gap]}
                end += gap
            starts[tensor.name] = end
            header[tensor.name] = {
                "dtype": _SAFETENSORS_DTYPES[tensor.dtype.name],
                "shape": list(tensor.shape),
                "data_offsets": [end, end + tensor.nbytes],
            }
            end += tensor.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % PAGE)
        self._header = len(text).to_bytes(8, "little") + text
        self._layout = {name: len(self._header) + start for name, start in starts.items()}

    def place(self, name: str) -> tuple[int, int]:
        """Offset from the start of the file, and length, of a tensor, in bytes."""
        if self._layout is None:
            raise RuntimeError("lay_out() comes first")
        return self._layout[name], self._tensors[name].nbytes

    def write(self, folder: Path) -> Iterator[int]:
        """Write the file tensor by tensor; yields the bytes written after each one."""
        if self._layout is None:
            self.lay_out()
        with open(folder / self.filename, "wb") as file:
            file.write(self._header)
            for tensor in self._tensors.values():
                offset, nbytes = self.place(tensor.name)
                file.write(b"\0" * (offset - file.tell()))
                values = np.ascontiguousarray(tensor.make())
                if values.dtype != tensor.dtype or values.shape != tensor.shape:
                    raise RuntimeError(
                        f"{tensor.name}: planned {tensor.dtype} {tensor.shape}, made {values.dtype} {values.shape}"
                    )
                file.write(values.data if values.ndim else values.tobytes())
                yield nbytes
