"""Tensors of a safetensors file as views of one read-only map of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from ..errors import BundleError
from .reading import MOST_HEADER, MOST_HEADER_VALUES, check_file, first_line, parse_json, shown

_DTYPES = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,  # numpy has no bfloat16: its bits
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "F8_E4M3": np.uint8,  # its bits, likewise
}


def widen(values: np.ndarray) -> np.ndarray:
    """float32 of float32, float16, or the bits of bfloat16 (uint16), exactly."""
    if values.dtype != np.uint16:
        return values.astype(np.float32, copy=False)
    return (values.astype(np.uint32) << 16).view(np.float32)


class MappedTensors(Mapping[str, np.ndarray]):
    """Tensors of a safetensors file as views of one read-only map."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            check_file(path)
            self._map = np.memmap(path, np.uint8, mode="r")
            length = int.from_bytes(self._map[:8].tobytes(), "little")
            if not 2 <= length <= min(len(self._map) - 8, MOST_HEADER):
                raise ValueError(f"header of {length} bytes")
            self._header = parse_json(self._map[8 : 8 + length].tobytes(), MOST_HEADER_VALUES)
            if not isinstance(self._header, dict):
                raise ValueError("header without names")
        except (OSError, ValueError) as error:
            reason = first_line(error)
            raise BundleError(f"{path}: not a readable safetensors file ({reason}); copy the bundle again") from error
        self._start = 8 + length
        hidden = {name for name in self._header if name == "__metadata__" or name.startswith("_padding.")}
        self._names = {name: None for name in self._header if name not in hidden}

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def stored_as(self, name: str) -> str:
        """Safetensors' name of a tensor's type, also where numpy has none: "BF16", "F8_E4M3"."""
        try:
            return str(self._header[name]["dtype"])
        except (KeyError, TypeError) as error:
            raise BundleError(f"{self.path}: tensor {shown(name)} has no dtype; export the run again") from error

    def place(self, name: str) -> tuple[int, int]:
        """Offset from the start of the file, and length, of a tensor, in bytes."""
        begin, end = self._header[name]["data_offsets"]
        return self._start + begin, end - begin

    def check_whole(self) -> None:
        """:class:`BundleError` unless every byte belongs to one tensor, readable and in its place, or to padding."""
        hidden = [name for name in self._header if name.startswith("_padding.")]
        at = self._start
        try:
            for name in sorted([*self, *hidden], key=lambda name: self._header[name]["data_offsets"]):
                self[name]
                begin, length = self.place(name)
                if begin != at:
                    raise ValueError(f"{shown(name)} begins at byte {begin}, what is before it ends at {at}")
                at += length
            if at != len(self._map):
                raise ValueError(f"{len(self._map) - at} bytes behind its last tensor")
        except (KeyError, TypeError, ValueError) as error:
            reason = first_line(error)
            raise BundleError(f"{self.path}: not a whole safetensors file ({reason}); export the run again") from error

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            entry = self._header[name]
            begin, end = (self._start + offset for offset in entry["data_offsets"])
            if not isinstance(stored := entry["dtype"], str) or stored not in _DTYPES:
                raise ValueError(f"dtype = {shown(stored)}; known are {', '.join(_DTYPES)}")
            dtype, shape = np.dtype(_DTYPES[stored]), tuple(entry["shape"])
            if not all(type(size) is int and size >= 0 for size in shape):  # numpy would guess a size of -1
                raise ValueError(f"shape = {shown(entry['shape'])}")
            if not self._start <= begin <= end <= len(self._map) or end - begin != math.prod(shape) * dtype.itemsize:
                raise ValueError("offsets and shape disagree")
            if begin % dtype.itemsize:
                raise ValueError(f"it begins at byte {begin}, between two numbers of {dtype.itemsize} bytes")
            return self._map[begin:end].view(dtype).reshape(shape)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            reason = first_line(error)
            raise BundleError(
                f"{self.path}: tensor {shown(name)} cannot be read ({reason}); export the run again"
            ) from error
