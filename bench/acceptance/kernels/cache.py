"""The kernels of the KV cache: the null branch's prefix, and rows that an engine gives separately."""

from __future__ import annotations

import itertools

import numpy as np

from ....runtime.engines.device.cache import CacheShape, DeviceCache, narrow
from ....runtime.engines.device.device import Device, Number
from ....runtime.engines.device.sampler import fill_null_prefix
from ....runtime.engines.tables import rotary_tables
from ....runtime.engines.tensorrt.rows import open_writer
from .numbers import Numbers


def null_prefix(device: Device, number: Number, seed: int) -> str:
    """Rotated keys and constant values of the null branch, against numpy's float32 and one rounding; nothing else may
    change."""
    random, shape = Numbers(seed), CacheShape(3, 2, 64, 96, number)
    keys, values = random.normal((2, shape.layers, shape.kv_heads, shape.head_dim))
    cos, sin = rotary_tables((1e4 ** -np.linspace(0, 1, 32)).astype(np.float32), shape.capacity)
    cache = DeviceCache(device, shape)
    cache.clear(0)
    places = [device.uploaded(table) for table in (keys, values, cos, sin)]
    first, last = 5, 91
    fill_null_prefix(device, cache, (places[0], places[1]), (places[2], places[3]), first, last)
    low, high = keys[..., None, :32], keys[..., None, 32:]
    turn = cos[first:last], sin[first:last]
    rotated = np.concatenate([low * turn[0] - high * turn[1], high * turn[0] + low * turn[1]], -1)
    constant = np.broadcast_to(values[..., None, :], rotated.shape)
    for layer, half in itertools.product(range(shape.layers), (0, 1)):
        filled = narrow((rotated if half == 0 else constant)[layer], number)
        expected = np.zeros((2, shape.kv_heads, shape.capacity, shape.head_dim), filled.dtype)
        expected[1, :, first:last] = filled
        held = np.empty_like(expected)
        device.download(held, cache.layers[layer][half].address)
        device.synchronize()
        bits = {2: np.uint16, 4: np.uint32}[expected.dtype.itemsize]
        same = held.view(bits) == expected.view(bits)
        assert same.all(), f"layer {layer}, {'keys' if half == 0 else 'values'}: {int((~same).sum())} numbers differ"
    return f"{last - first} positions of {shape.layers} layers are equal bit for bit"


class _Places:
    """The addresses that an engine would be given for its separate outputs."""

    def __init__(self) -> None:
        self.of: dict[str, int] = {}

    def output(self, name: str, address: int) -> None:
        self.of[name] = address


def append_rows(device: Device, number: Number, seed: int) -> str:
    """One captured launch, as in a decode step, puts both branches' rows at the position that holds when it runs, and
    changes nothing else; AssertionError if a bit differs."""
    random, shape = Numbers(seed), CacheShape(3, 2, 64, 40, number)
    cache, position, places = DeviceCache(device, shape), device.allocate(8), _Places()
    writer = open_writer("appended", device, shape, branches=2, rows=1)
    writer.bind(places, cache)  # type: ignore[arg-type]

    def drawn(rows: int) -> np.ndarray:
        return narrow(random.normal((2, shape.kv_heads, rows, shape.head_dim)), number)

    held = {}
    for layer, (half, name) in itertools.product(range(shape.layers), enumerate(("key", "value"))):
        place, values = cache.layers[layer][half].address, drawn(shape.capacity)
        device.upload(place, values)
        held[f"new_{name}.{layer}"] = place, values
    device.synchronize()
    step = device.capture(lambda: writer.write(cache, 1, position))
    for at in np.argsort(random.uniform((shape.capacity,))).tolist():
        device.upload(position.address, np.array([at], np.int64))
        for name, place in places.of.items():
            new = drawn(1)
            device.upload(place, new)
            held[name][1][:, :, at] = new[:, :, 0]
        step.launch()
        for name, (place, expected) in held.items():
            got = np.empty_like(expected)
            device.download(got, place)
            device.synchronize()
            assert got.tobytes() == expected.tobytes(), f"{name}, appended at position {at}: the cache differs"
    return f"{shape.capacity} launches of one graph: {shape.layers} layers are equal bit for bit"
