"""The KV cache of one conversation in device memory.

A layer has keys and values, each [2, kv_heads, capacity, head_dim]: branch 0 is conditional, branch 1
the null branch of guidance. The contents after the rows held are undefined.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...files.safetensors_reader import widen
from .device import NUMBER_BYTES, Device, Memory, Number, Part, number_code

if TYPE_CHECKING:
    from ...bundle.bundle import Bundle

#: Every layer's keys and values begin at a multiple of this many bytes, as separate allocations would.
ALIGNMENT = 256


@dataclass(frozen=True)
class CacheShape:
    """Sizes of a cache; ``number``: the type it is stored in."""

    layers: int
    kv_heads: int
    head_dim: int
    capacity: int
    number: Number

    @classmethod
    def of(cls, bundle: Bundle, capacity: int) -> CacheShape:
        """The cache as the standard form of the body declares it: in the type that the body computes in."""
        model, number = bundle.manifest.model, bundle.manifest.parts["backbone"].multiplies_in
        assert number != "int8", "refused when the bundle was opened"
        return cls(model.layers, model.kv_heads, model.head_dim, capacity, number)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of one head."""
        return self.head_dim * NUMBER_BYTES[self.number]

    @property
    def head_bytes(self) -> int:
        return self.capacity * self.row_bytes

    @property
    def branch_bytes(self) -> int:
        return self.kv_heads * self.head_bytes

    @property
    def bytes_per_row(self) -> int:
        """Of both branches, all layers, keys and values."""
        return 2 * 2 * self.layers * self.kv_heads * self.row_bytes

    @property
    def nbytes(self) -> int:
        return self.capacity * self.bytes_per_row

    def layout(self, cuda: Any) -> Any:
        """Its description for the kernels."""
        return cuda.CacheLayout(
            number=number_code(cuda, self.number),
            layers=self.layers,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            capacity=self.capacity,
            head_stride=self.capacity * self.head_dim,
            position_stride=self.head_dim,
        )


class DeviceCache:
    """Keys and values of every layer, and the operations of the loop on them other than attention."""

    def __init__(self, device: Device, shape: CacheShape) -> None:
        self.shape, self._device = shape, device
        half = 2 * shape.branch_bytes
        stride = -(-half // ALIGNMENT) * ALIGNMENT
        # one allocation, since each takes the driver time when a conversation begins
        whole = device.allocate(2 * shape.layers * stride)
        parts = [Part(whole, at * stride, half) for at in range(2 * shape.layers)]
        #: Keys and values of each layer.
        self.layers: list[tuple[Memory, Memory]] = list(zip(parts[::2], parts[1::2], strict=True))
        #: Addresses of every layer, and those of branch 1, int64 [2, layers] in device memory: keys, then values.
        addresses = np.array([[layer[half].address for layer in self.layers] for half in (0, 1)], np.int64)
        self.addresses = device.uploaded(addresses)
        self.null_addresses = device.uploaded(addresses + shape.branch_bytes)

    def copy_rows(self, source: DeviceCache, rows: int) -> None:
        """Copy the first ``rows`` rows of branch 0 of another cache of this shape."""
        for target, first in self._heads():
            origin = source.layers[first[0]][first[1]].address + first[2] * self.shape.head_bytes
            self._device.copy(target, origin, rows * self.shape.row_bytes)

    def clear(self, first: int) -> None:
        """Zero the rows from ``first`` on, of both branches."""
        shape, cuda, stream = self.shape, self._device.cuda, self._device.stream.handle
        nbytes = (shape.capacity - first) * shape.row_bytes
        for parts in self.layers:
            for part in parts:
                for head in range(2 * shape.kv_heads if nbytes else 0):
                    place = part.address + head * shape.head_bytes + first * shape.row_bytes
                    cuda.set_bytes(place, 0, nbytes, stream)

    def save(self, rows: int) -> np.ndarray:
        """Branch 0, float32 [layers, 2, kv_heads, rows, head_dim]."""
        held = self._host(rows)
        for (address, _), part in zip(self._heads(), self._by_head(held), strict=True):
            self._device.download(part, address)
        self._device.synchronize()
        return widen(held)

    def restore(self, cache: np.ndarray) -> None:
        """Write rows from :meth:`save` to branch 0, rounded to the type of the cache."""
        parts = self._by_head(narrow(cache, self.shape.number))
        for (address, _), part in zip(self._heads(), parts, strict=True):
            self._device.upload(address, part)

    def _host(self, rows: int) -> np.ndarray:
        s = self.shape
        dtype = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}[s.number]
        return np.empty((s.layers, 2, s.kv_heads, rows, s.head_dim), dtype)

    def _by_head(self, cache: np.ndarray) -> np.ndarray:
        """Rows from :meth:`save`, which may be none, as [layers x 2 x kv_heads, rows, head_dim]."""
        return cache.reshape(math.prod(cache.shape[:3]), *cache.shape[3:])

    def _heads(self) -> list[tuple[int, tuple[int, int, int]]]:
        """Address of each head of branch 0, and (layer, keys or values, head), in the order of :meth:`save`."""
        s = self.shape
        return [
            (self.layers[layer][half].address + head * s.head_bytes, (layer, half, head))
            for layer in range(s.layers)
            for half in (0, 1)
            for head in range(s.kv_heads)
        ]


def narrow(values: np.ndarray, number: Number) -> np.ndarray:
    """float32 rounded to nearest, ties to even, to ``number``; bfloat16 as its bits, uint16. NaN stays NaN."""
    if number == "float32":
        return np.ascontiguousarray(values, np.float32)
    if number == "float16":
        return values.astype(np.float16)
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)
