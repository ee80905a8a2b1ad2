"""The one safetensors file that all ONNX parts of a bundle refer to.

Tensors are planned first (name, dtype, shape, and a function that makes the values), laid out once, and then written
one after the other, so that only one tensor is in memory at any time. The safetensors library can only save tensors
that are all in memory at once, hence this writer. Format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...runtime.errors import ExportError
from ...runtime.files.safetensors_reader import widen
from . import float8
from .blocks import block_of, check_matrix, check_values, dequantize, pack_int4, quantize, unpack_int4
from .precision import FLOAT8

#: Every tensor starts at a multiple of this many bytes: a cache line, and enough for any vector load.
ALIGNMENT = 64
#: The first tensor starts at a page boundary, so that mapped offsets stay aligned in memory.
PAGE = 4096

#: How each dtype is stored in the file: safetensors' name, numpy's dtype, and how many elements make one of those.
#: numpy has neither bfloat16 nor float8, whose bits are kept as uint16 and uint8; int4, which neither library has, is
#: packed two to a byte.
_STORED = {
    "float32": ("F32", np.float32, 1),
    "float16": ("F16", np.float16, 1),
    "bfloat16": ("BF16", np.uint16, 1),
    "int64": ("I64", np.int64, 1),
    "int32": ("I32", np.int32, 1),
    "int8": ("I8", np.int8, 1),
    "int8column": ("I8", np.int8, 1),
    "uint8": ("U8", np.uint8, 1),
    "int4": ("U8", np.uint8, 2),
    FLOAT8: ("F8_E4M3", np.uint8, 1),
}
#: Integer dtypes that have scales beside them, see ``blocks``.
SCALED_DTYPES = ("int8", "int8column", "int4")
#: Plain number formats: dtypes in which a matrix or a convolution can be stored without a scale.
FLOAT_DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor of the blob: ``make()`` returns its values, of exactly ``shape``.

    A float tensor is made in float32 and rounded to ``dtype`` when it is written; other values are made as they are
    stored.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape in the file; the last dimension of an int4 matrix is half as long."""
        return (*self.shape[:-1], self.shape[-1] // _STORED[self.dtype][2]) if self.shape else ()

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.stored_shape) * np.dtype(_STORED[self.dtype][1]).itemsize


class WeightStore:
    """Plans, lays out and writes the tensors of one safetensors file."""

    def __init__(self, filename: str) -> None:
        self.filename = filename
        self._tensors: dict[str, PlannedTensor] = {}
        self._layout: dict[str, int] | None = None
        self._header = b""
        self._exact: dict[str, Callable[[], np.ndarray]] = {}

    def add(self, name: str, shape: tuple[int, ...], make: Callable[[], np.ndarray], dtype: str = "float32") -> str:
        """Plan a tensor. Returns ``name``, so that a graph can refer to it in the same expression."""
        if self._layout is not None:
            raise RuntimeError(f"{name}: the blob is laid out already")
        if name in self._tensors:
            raise RuntimeError(f"{name}: planned twice")
        self._tensors[name] = PlannedTensor(name, dtype, tuple(int(n) for n in shape), make)
        return name

    def add_matrix(self, name: str, shape: tuple[int, int], make: Callable[[], np.ndarray], dtype: str) -> str:
        """Plan a matrix [in, out] in any format; ``make`` returns float32. Block formats get a second tensor,
        ``name.scale``, float8 a third (see :meth:`_add_float8`). Raises ExportError if the format cannot hold the
        shape."""
        if dtype == FLOAT8:
            return self._add_float8(name, shape, make)
        if dtype not in SCALED_DTYPES:
            return self.add(name, shape, make, dtype)
        check_matrix(name, shape, dtype)

        blocks = shape[0] // block_of(dtype, shape[0])
        scale_shape = (shape[1],) if dtype == "int8column" else (blocks, shape[1])

        @functools.cache  # both tensors come from one pass; the second call reuses the first one's result
        def halves() -> list[np.ndarray]:
            matrix = make()
            check_values(name, matrix, dtype)
            whole, scales = quantize(matrix, dtype)
            return [pack_int4(whole) if dtype == "int4" else whole, scales]

        def take_scale() -> np.ndarray:
            scales = halves().pop()
            halves.cache_clear()
            return scales.reshape(scale_shape)

        self._exact[name] = make
        self.add(name, shape, lambda: halves().pop(0), dtype)
        self.add(f"{name}.scale", scale_shape, take_scale, "float16")
        return name

    def _add_float8(self, name: str, shape: tuple[int, int], make: Callable[[], np.ndarray]) -> str:
        """Plan codes, ``name.scale`` and ``name.input_scale``, both float16 []: the second is the scale of the matrix's
        input. It is NaN until :mod:`input_scales` has seen such input."""

        @functools.cache
        def halves() -> list[np.ndarray]:
            matrix = make()
            float8.check_values(name, matrix)
            return list(float8.quantize(matrix))

        def take_scale() -> np.ndarray:
            scale = halves().pop()
            halves.cache_clear()
            return scale

        self._exact[name] = make
        self.add(name, shape, lambda: halves().pop(0), FLOAT8)
        self.add(f"{name}.scale", (), take_scale, "float16")
        self.add(f"{name}.input_scale", (), lambda: np.array(np.nan, np.float16), "float16")
        return name

    def exact(self, name: str) -> np.ndarray:
        """A float tensor or matrix in float32, before any rounding; made again at every call."""
        make = self._exact.get(name) or self._tensors[name].make
        return make()

    def __getitem__(self, name: str) -> PlannedTensor:
        return self._tensors[name]

    @property
    def nbytes(self) -> int:
        """Bytes of all planned tensors, without header and padding."""
        return sum(tensor.nbytes for tensor in self._tensors.values())

    def lay_out(self) -> None:
        """Fix the offset of every tensor in the file. Nothing can be added afterwards."""
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
                "dtype": _STORED[tensor.dtype][0],
                "shape": list(tensor.stored_shape),
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
                values = np.asarray(_as_stored(tensor.make(), tensor.dtype), order="C")
                _check_stored(tensor, values)
                file.write(values.data if values.ndim else values.tobytes())
                file.flush()  # later tensors may be computed from those already written
                yield nbytes

    def read_back(self, folder: Path, name: str) -> np.ndarray:
        """A float tensor or matrix of the written file as float32: what an engine multiplies with."""
        tensor = self._tensors[name]
        stored = self._map(folder, tensor)
        if tensor.dtype == FLOAT8:
            return float8.dequantize(stored, float(self.read_back(folder, f"{name}.scale")[0]))
        if tensor.dtype not in SCALED_DTYPES:
            return widen(stored) if tensor.dtype in FLOAT_DTYPES else stored
        whole = unpack_int4(stored) if tensor.dtype == "int4" else stored
        return dequantize(whole, self._map(folder, self._tensors[f"{name}.scale"]))

    def round_input(self, folder: Path, name: str, x: np.ndarray) -> np.ndarray:
        """``x`` float32 as an engine multiplies it with a matrix of the written file: rounded if that is float8."""
        if self._tensors[name].dtype != FLOAT8:
            return x
        return float8.round_values(x, float(self.read_back(folder, f"{name}.input_scale")[0]))

    def rewrite(self, folder: Path, name: str, values: np.ndarray) -> None:
        """Replace a tensor of the written file; ``values`` as :class:`PlannedTensor` makes them."""
        tensor = self._tensors[name]
        stored = np.asarray(_as_stored(values, tensor.dtype), order="C")
        _check_stored(tensor, stored)
        with open(folder / self.filename, "r+b") as file:
            file.seek(self.place(name)[0])
            file.write(stored.data if stored.ndim else stored.tobytes())

    def _map(self, folder: Path, tensor: PlannedTensor) -> np.ndarray:
        offset, _ = self.place(tensor.name)
        dtype = _STORED[tensor.dtype][1]
        return np.memmap(folder / self.filename, dtype, mode="r", offset=offset, shape=tensor.stored_shape or (1,))


def _check_stored(tensor: PlannedTensor, values: np.ndarray) -> None:
    if values.dtype != _STORED[tensor.dtype][1] or values.shape != tensor.stored_shape:
        raise RuntimeError(f"{tensor.name}: planned {tensor.dtype} {tensor.shape}, made {values.dtype} {values.shape}")


def _as_stored(values: np.ndarray, dtype: str) -> np.ndarray:
    if values.dtype != np.float32 or dtype not in FLOAT_DTYPES[1:]:
        return values
    if dtype == "float16":
        return _float16(values)
    rounded = torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16)
    return rounded.view(torch.int16).numpy().view(np.uint16)


def _float16(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float16)
    if not np.isfinite(rounded.max(initial=0)) or not np.isfinite(rounded.min(initial=0)):
        raise ExportError(
            f"a weight of {np.abs(values).max():g} does not fit float16, whose largest number is 65504; export with "
            "precision bf16"
        )
    return rounded
