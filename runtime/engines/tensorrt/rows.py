"""How the keys and values of the rows that the body was fed get into the cache.

An engine writes them there itself if its library can update a cache in place. If not, the engine outputs them
separately, and our kernel appends them to those held, before the position moves on.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ...bundle.compiled import CacheKind
from ..device.cache import ALIGNMENT, CacheShape, DeviceCache
from ..device.device import Buffer, Device
from .context import Call


class RowWriter(Protocol):
    """Writes the rows of calls with a fixed number of branches and a maximum number of rows."""

    def bind(self, call: Call, cache: DeviceCache) -> None:
        """Bind the call's outputs of keys and values."""
        ...

    def write(self, cache: DeviceCache, rows: int, position: Buffer) -> None:
        """Enqueue the write after a call of ``rows`` rows, the first at ``position``, int64 in device memory."""
        ...


def open_writer(kind: CacheKind, device: Device, shape: CacheShape, *, branches: int, rows: int) -> RowWriter:
    return InPlace() if kind == "in_place" else Appended(device, shape, branches=branches, rows=rows)


class InPlace:
    """The engine's outputs are the cache."""

    def bind(self, call: Call, cache: DeviceCache) -> None:
        for layer, halves in enumerate(cache.layers):
            for name, buffer in zip(("key", "value"), halves, strict=True):
                call.output(f"present_{name}.{layer}", buffer.address)

    def write(self, cache: DeviceCache, rows: int, position: Buffer) -> None:
        """They are there already."""


class Appended:
    """The engine's outputs are the new rows, [branches, kv_heads, rows, head_dim] in each layer."""

    def __init__(self, device: Device, shape: CacheShape, *, branches: int, rows: int) -> None:
        self._device, self._shape, self._branches = device, shape, branches
        self._layout = shape.layout(device.cuda)
        stride = -(-branches * shape.kv_heads * rows * shape.row_bytes // ALIGNMENT) * ALIGNMENT
        self._rows = device.allocate(2 * shape.layers * stride)
        self._places = self._rows.address + stride * np.arange(2 * shape.layers, dtype=np.int64).reshape(2, -1)
        self._addresses = device.uploaded(self._places)

    def bind(self, call: Call, cache: DeviceCache) -> None:
        for name, places in zip(("key", "value"), self._places.tolist(), strict=True):
            for layer, place in enumerate(places):
                call.output(f"new_{name}.{layer}", place)

    def write(self, cache: DeviceCache, rows: int, position: Buffer) -> None:
        shape, values = self._shape, 8 * self._shape.layers
        self._device.cuda.write_kv_rows(
            self._layout,
            branches=self._branches,
            branch_stride=shape.kv_heads * shape.capacity * shape.head_dim,
            keys=cache.addresses.address,
            values=cache.addresses.address + values,
            new_keys=self._addresses.address,
            new_values=self._addresses.address + values,
            new_branch_stride=shape.kv_heads * rows * shape.head_dim,
            new_head_stride=rows * shape.head_dim,
            new_row_stride=shape.head_dim,
            rows=rows,
            position=0,
            device_position=position.address,
            stream=self._device.stream.handle,
        )
