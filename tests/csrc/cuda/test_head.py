"""The output head as a kernel: against float64, in its documented order of additions."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from support.cuda.pairs import address
from ualm.export.formats.blocks import quantize

WARPS, BLOCK = 16, 32


class Weights:
    """A random matrix [inputs, columns] in a format of the bundle, and its values in float64."""

    def __init__(self, cuda: ModuleType, rng: np.random.Generator, inputs: int, columns: int, name: str) -> None:
        matrix = (rng.normal(size=(inputs, columns)) / np.sqrt(inputs)).astype(np.float32)
        stride = columns + columns % 2 + 2
        self.scales = None
        if name == "int8":
            whole, scales = quantize(matrix, "int8")
            self.number, stored = cuda.INT8_BLOCKS, whole
            self.scales = np.zeros((len(scales), stride), np.float16)
            self.scales[:, :columns] = scales
            self.exact = whole * np.repeat(scales.astype(np.float64), BLOCK, axis=0)
        elif name == "bfloat16":
            self.number, stored = cuda.BFLOAT16, (matrix.view(np.uint32) >> 16).astype(np.uint16)
            self.exact = (stored.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        else:
            stored = matrix.astype(name)
            self.number = cuda.FLOAT16 if name == "float16" else cuda.FLOAT32
            self.exact = stored.astype(np.float64)
        self.numbers = np.zeros((inputs, stride), stored.dtype)
        self.numbers[:, :columns] = stored
        self.stride, self.columns = stride, columns


def run(
    cuda: ModuleType,
    weights: Weights,
    hidden: np.ndarray,
    *,
    bias: np.ndarray | None = None,
) -> np.ndarray:
    """Logits [sequences, branches, columns + 3] of ``hidden`` [.., .., inputs]; NaN where none was written."""
    sequences, branches, inputs = hidden.shape
    logits = np.full((sequences, branches, weights.columns + 3), np.nan, np.float32)
    cuda.HeadLaunch(
        hidden=address(hidden),
        sequences=sequences,
        branches=branches,
        inputs=inputs,
        columns=weights.columns,
        weights=address(weights.numbers),
        number=weights.number,
        weight_stride=weights.stride,
        scales=address(weights.scales),
        scale_stride=0 if weights.scales is None else weights.stride,
        bias=address(bias),
        logits=address(logits),
        logits_stride=logits.shape[2],
    )(0)
    return logits


FORMATS = ["float32", "float16", "bfloat16", "int8"]


@pytest.mark.parametrize("branches", [1, 2])
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("inputs", "columns", "sequences"), [(32, 1, 1), (64, 63, 3), (96, 65, 2), (1536, 129, 1), (544, 200, 5)]
)
def test_logits_are_those_of_float64_within_the_rounding_of_float32(cuda, name, inputs, columns, sequences, branches):
    rng = np.random.default_rng(inputs + columns)
    weights = Weights(cuda, rng, inputs, columns, name)
    hidden = rng.normal(size=(sequences, branches, inputs)).astype(np.float32)
    bias = rng.normal(size=columns).astype(np.float32)
    logits = run(cuda, weights, hidden, bias=bias)
    exact = hidden.astype(np.float64) @ weights.exact + bias
    # No term is rounded more often than this, each time by at most half an ulp of a partial sum.
    roundings = BLOCK + -(-inputs // (BLOCK * WARPS)) + WARPS + 2
    bound = roundings * 2.0**-24 * (np.abs(hidden.astype(np.float64)) @ np.abs(weights.exact) + np.abs(bias))
    assert (np.abs(logits[..., :columns] - exact) <= bound).all()
    assert np.isnan(logits[..., columns:]).all(), "written beyond the columns"


@pytest.mark.parametrize("inputs", [1, 31, 33, 111, 989])
@pytest.mark.parametrize("name", FORMATS[:3])
def test_inputs_need_not_be_whole_blocks_where_there_are_no_scales(cuda, name, inputs):
    rng = np.random.default_rng(inputs)
    weights = Weights(cuda, rng, inputs, 66, name)
    hidden = rng.normal(size=(1, 2, inputs)).astype(np.float32)
    logits = run(cuda, weights, hidden)
    np.testing.assert_allclose(logits[..., :66], hidden.astype(np.float64) @ weights.exact, atol=2e-6, rtol=0)


def in_order(weights: Weights, hidden: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """The documented additions one by one.

    A float32 fused multiply-add is computed in float64, where the product is exact; rounding twice differs from
    rounding once about once in 2^29 cases.
    """
    warps = np.zeros((WARPS, len(bias)), np.float32)
    for block in range(len(hidden) // BLOCK):
        local = np.zeros(len(bias))
        scale = 1.0 if weights.scales is None else weights.scales[block, : len(bias)].astype(np.float64)
        for i in range(block * BLOCK, (block + 1) * BLOCK):
            local = (hidden[i].astype(np.float64) * (weights.exact[i] / scale) + local).astype(np.float32)
        if weights.scales is None:
            warps[block % WARPS] += local
        else:
            warps[block % WARPS] = (local.astype(np.float64) * scale + warps[block % WARPS]).astype(np.float32)
    total = warps[0]
    for warp in warps[1:]:
        total = total + warp
    return total + bias


@pytest.mark.parametrize("name", FORMATS)
def test_the_order_of_additions_is_the_documented_one(cuda, name):
    rng = np.random.default_rng(4)
    weights = Weights(cuda, rng, 1536, 70, name)
    hidden = rng.normal(size=(1, 1, 1536)).astype(np.float32)
    bias = rng.normal(size=70).astype(np.float32)
    logits = run(cuda, weights, hidden, bias=bias)
    np.testing.assert_array_equal(logits[0, 0, :70], in_order(weights, hidden[0, 0], bias))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sequences": 65}, "sequences: must be 1 to 64"),
        ({"branches": 3}, "branches: must be 1 or 2"),
        ({"weight_stride": 7}, "weight_stride: must be even and at least columns"),
        ({"weight_stride": 4}, "weight_stride: must be even and at least columns"),
        ({"logits_stride": 5}, "logits_stride: must be at least columns"),
        ({"number": 3}, "scales: int8 weights need them"),
        ({"number": 9}, "number: must be float32"),
        ({"hidden": 0}, "hidden, weights, logits: must not be null"),
        ({"weights": 12}, "weights: must be aligned to 8 bytes"),
    ],
)
def test_what_cannot_be_computed_is_refused(cuda, change, message):
    good = {"hidden": 8, "sequences": 1, "branches": 2, "inputs": 33, "columns": 6, "weights": 8, "number": 0}
    good |= {"weight_stride": 6, "logits": 8, "logits_stride": 6}
    with pytest.raises(ValueError, match=message):
        cuda.HeadLaunch(**(good | change))(0)
