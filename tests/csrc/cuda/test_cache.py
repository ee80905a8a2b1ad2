"""Cache rows as kernels, against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from support.cuda.pairs import address


def pointers(arrays: list[np.ndarray]) -> np.ndarray:
    return np.array([each.ctypes.data for each in arrays], np.uint64)


def bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """Rounds to nearest, ties to even."""
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def write_rows(
    cuda: Any,
    number: str,
    caches: list[np.ndarray],
    new: list[np.ndarray],
    *,
    position: int,
    device_position: int,
    stream: int = 0,
) -> list[np.ndarray]:
    """Append ``new`` [branches, heads, rows, head_dim] to ``caches`` [branches, heads, capacity, head_dim].

    Keys of all layers come first, then values. Returns the address tables, which a captured launch still reads.
    """
    layers, (branches, heads, capacity, head_dim) = len(caches) // 2, caches[0].shape
    rows = new[0].shape[2]
    tables = [pointers(part) for part in (caches[:layers], caches[layers:], new[:layers], new[layers:])]
    cache = cuda.CacheLayout(
        number=getattr(cuda, number),
        layers=layers,
        kv_heads=heads,
        head_dim=head_dim,
        capacity=capacity,
        head_stride=capacity * head_dim,
        position_stride=head_dim,
    )
    cuda.write_kv_rows(
        cache,
        branches=branches,
        branch_stride=heads * capacity * head_dim,
        keys=address(tables[0]),
        values=address(tables[1]),
        new_keys=address(tables[2]),
        new_values=address(tables[3]),
        new_branch_stride=heads * rows * head_dim,
        new_head_stride=rows * head_dim,
        new_row_stride=head_dim,
        rows=rows,
        position=position,
        device_position=device_position,
        stream=stream,
    )
    return tables


STORED = {"FLOAT32": np.float32, "FLOAT16": np.float16, "BFLOAT16": np.uint16}


def stored(values: np.ndarray, number: str) -> np.ndarray:
    return bfloat16_bits(values) if number == "BFLOAT16" else values.astype(STORED[number])


@pytest.mark.parametrize("heads_first", [True, False])
@pytest.mark.parametrize("number", STORED)
@pytest.mark.parametrize(("first", "last"), [(0, 1), (0, 40), (3, 37), (39, 40), (17, 17)])
def test_the_null_prefix_is_the_rotated_constant_key_and_the_value(cuda, number, first, last, heads_first):
    """For both orders of heads and positions; the results equal the CPU's in float32 bit for bit."""
    layers, heads, head_dim, capacity = 3, 2, 12, 40
    rng = np.random.default_rng(first + last)
    null_keys, null_values = rng.normal(size=(2, layers, heads, head_dim)).astype(np.float32)
    angles = np.arange(capacity)[:, None] * 10.0 ** -np.arange(head_dim // 2)
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    shape = (2, heads, capacity, head_dim) if heads_first else (2, capacity, heads, head_dim)
    fresh = np.full(shape, 7, STORED[number])
    caches = {name: [fresh.copy() for _ in range(layers)] for name in ("keys", "values")}
    tables = {name: pointers([each[1] for each in caches[name]]) for name in caches}
    cache = cuda.CacheLayout(
        number=getattr(cuda, number),
        layers=layers,
        kv_heads=heads,
        head_dim=head_dim,
        capacity=capacity,
        head_stride=capacity * head_dim if heads_first else head_dim,
        position_stride=head_dim if heads_first else heads * head_dim,
    )
    cuda.fill_null_prefix(
        cache,
        keys=address(tables["keys"]),
        values=address(tables["values"]),
        null_keys=address(null_keys),
        null_values=address(null_values),
        cos=address(cos),
        sin=address(sin),
        first=first,
        last=last,
        stream=0,
    )
    half, at = head_dim // 2, slice(first, last)
    for layer in range(layers):
        expected = {name: fresh.copy() for name in caches}
        low, high = null_keys[layer, :, None, :half], null_keys[layer, :, None, half:]
        rotated = np.concatenate([low * cos[at] - high * sin[at], high * cos[at] + low * sin[at]], axis=2)
        held = np.broadcast_to(null_values[layer, :, None], rotated.shape)
        for name, values in (("keys", rotated), ("values", held)):
            if heads_first:
                expected[name][1][:, at] = stored(values, number)
            else:
                expected[name][1][at] = stored(values, number).transpose(1, 0, 2)
            np.testing.assert_array_equal(caches[name][layer], expected[name])


def test_half_precision_rounds_as_numpy_rounds(cuda):
    """Normal, subnormal, overflowing and halfway numbers pass through the cache's formats (as values, unrotated)."""
    rng = np.random.default_rng(0)
    values = np.concatenate(
        [
            (rng.normal(size=4000) * 10.0 ** rng.integers(-9, 6, size=4000)).astype(np.float32),
            np.float32([0, -0.0, 65504, 65519.996, 65520, -65520, 2.0**-24, 2.0**-25, 3 * 2.0**-26, np.inf, -np.inf]),
            (np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64) * (1 + 2.0**-11)).astype(
                np.float32
            ),
        ]
    )
    values = values[: len(values) // 2 * 2]
    zeros, one = np.zeros_like(values), np.ones((1, len(values) // 2), np.float32)
    for number in ("FLOAT16", "BFLOAT16"):
        keys = np.zeros((2, len(values)), np.uint16)
        cache = cuda.CacheLayout(
            number=getattr(cuda, number),
            layers=1,
            kv_heads=1,
            head_dim=len(values),
            capacity=1,
            head_stride=len(values),
            position_stride=len(values),
        )
        tables = [pointers([keys[0]]), pointers([keys[1]])]
        cuda.fill_null_prefix(
            cache,
            keys=address(tables[0]),
            values=address(tables[1]),
            null_keys=address(zeros),
            null_values=address(values),
            cos=address(one),
            sin=address(one),
            first=0,
            last=1,
            stream=0,
        )
        with np.errstate(over="ignore"):
            expected = stored(values, number).view(np.uint16)
        np.testing.assert_array_equal(keys[1], expected)


@pytest.mark.parametrize("branches", [1, 2])
@pytest.mark.parametrize("number", STORED)
@pytest.mark.parametrize(("rows", "position", "moved"), [(1, 0, 0), (1, 12, 3), (5, 2, 0), (0, 4, 0), (1, 15, 0)])
def test_new_rows_are_copied_to_their_positions(cuda, number, branches, rows, position, moved):
    heads, head_dim, capacity = 3, 10, 16
    rng = np.random.default_rng(position)
    caches = [(rng.normal(size=(branches, heads, capacity, head_dim)) * 9).astype(STORED[number]) for _ in range(4)]
    new = [(rng.normal(size=(branches, heads, rows, head_dim)) * 9).astype(STORED[number]) for _ in range(4)]
    expected = [each.copy() for each in caches]
    at = position + moved
    for target, source in zip(expected, new, strict=True):
        target[:, :, at : at + rows] = source
    on_device = np.array([moved], np.int64)
    write_rows(cuda, number, caches, new, position=position, device_position=address(on_device) if moved else 0)
    for found, wanted in zip(caches, expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_a_captured_launch_appends_where_the_position_says_when_it_runs(cuda):
    """As in a decode step: the position advances between two launches of one graph."""
    layers, heads, head_dim, capacity = 2, 2, 8, 6
    caches = [np.zeros((2, heads, capacity, head_dim), np.float16) for _ in range(2 * layers)]
    new = [np.zeros((2, heads, 1, head_dim), np.float16) for _ in range(2 * layers)]
    position, stream = np.array([0], np.int64), cuda.create_stream()
    cuda.begin_capture(stream)
    tables = write_rows(cuda, "FLOAT16", caches, new, position=0, device_position=address(position), stream=stream)
    graph = cuda.end_capture(stream)
    expected = [each.copy() for each in caches]
    for step in range(capacity):
        position[0] = step
        for place, (target, source) in enumerate(zip(expected, new, strict=True)):
            source[...] = np.random.default_rng(7 * step + place).normal(size=source.shape)
            target[:, :, step] = source[:, :, 0]
        cuda.launch_graph(graph, stream)
        for found, wanted in zip(caches, expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
    cuda.destroy_graph(graph)
    cuda.destroy_stream(stream)
    del tables  # the graph read them
