"""Weight formats of a bundle, and the arithmetic of the block formats.

``int8`` and ``int4`` hold a matrix W [in, out] as integers q and one scale for every 32 inputs of an output:
``W[i, o] ~ q[i, o] * scale[i // 32, o]``, symmetric, without zero point. This is the blocked ``DequantizeLinear`` of
ONNX (opset 21, axis 0), and the layout that every engine reads: q row by row (int4: two neighbouring outputs per byte,
the even one in the low half), ``scale`` float16 [in / 32, out].

``int8column`` has one scale per output, float16 [out], over all inputs (axis 1), as integer products need.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...runtime import _native
from ...runtime.bundle.precision import BLOCK
from ...runtime.errors import ExportError
from ...runtime.process.cores import cores

#: Smallest and largest integer of each block format.
LIMITS = {"int8": (-127, 127), "int8column": (-127, 127), "int4": (-8, 7)}
#: Divisors that turn the largest value of a block into its scale. int4 tries each and keeps the one with the least
#: squared error: for some blocks a scale that clips the largest value, or leaves the ends unused, is better.
DIVISORS: dict[str, Sequence[float]] = {
    "int8": (127.0,),
    "int8column": (127.0,),
    "int4": (7.0, 7.5, 8.0, 8.5, 9.25),
}


def check_matrix(name: str, shape: tuple[int, ...], dtype: str) -> None:
    """Refuse a matrix that the block format cannot hold."""
    if shape[0] % block_of(dtype, shape[0]) or (dtype == "int4" and shape[1] % 2):
        raise ExportError(
            f"{name}: {dtype} needs inputs in whole blocks of {BLOCK} and an even number of outputs, this matrix is "
            f"{shape[0]} x {shape[1]}; export with precision fp16 or bf16"
        )


def check_values(name: str, matrix: np.ndarray, dtype: str) -> None:
    """Refuse float32 values that no block can hold: NaN, infinity, and values whose scale exceeds float16."""
    largest = 65504.0 * LIMITS[dtype][1]
    peak = float(np.abs(matrix).max(initial=0.0))
    if not np.isfinite(peak):
        raise ExportError(f"{name}: holds NaN or infinity; the checkpoint is damaged, use another step")
    if peak > largest:
        raise ExportError(
            f"{name}: its largest value is {peak:g}, {dtype} holds up to {largest:g}; export with precision bf16"
        )


def block_of(dtype: str, inputs: int) -> int:
    """Inputs that share a scale."""
    return inputs if dtype == "int8column" else BLOCK


def quantize(matrix: np.ndarray, dtype: str, importance: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Integers int8 [in, out] and scales float16 [blocks, out] of ``matrix`` float32 [in, out].

    ``importance`` float32 [in]: how much an error at each input counts (mean square of its activations); equally if
    None.
    """
    inputs, outputs = matrix.shape
    block = block_of(dtype, inputs)
    whole = np.empty((inputs, outputs), np.int8)
    scales = np.empty((inputs // block, outputs), np.float32)
    low, high = LIMITS[dtype]
    _native.quantize_blocks(
        np.ascontiguousarray(matrix, np.float32),
        block=block,
        divisors=np.array(DIVISORS[dtype], np.float32),
        low=low,
        high=high,
        importance=importance,
        whole=whole,
        scales=scales,
        threads=cores(),
    )
    return whole, scales.astype(np.float16)


def dequantize(whole: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """float32 [in, out] from integers int8 [in, out] and ``scales`` float16 [blocks, out] or [out]."""
    scales = scales.reshape(-1, whole.shape[1])
    blocks = whole.astype(np.float32).reshape(len(scales), -1, whole.shape[1])
    blocks *= scales.astype(np.float32)[:, None]
    return blocks.reshape(whole.shape)


def pack_int4(whole: np.ndarray) -> np.ndarray:
    """Pack neighbours of int8 [in, out] in -8 .. 7 into uint8 [in, out / 2], the even one in the low half."""
    low, high = whole[:, 0::2].view(np.uint8) & 0x0F, whole[:, 1::2].view(np.uint8) & 0x0F
    return low | (high << 4)


def unpack_int4(packed: np.ndarray) -> np.ndarray:
    """Integers int8 [in, out] from what :func:`pack_int4` returned."""
    whole = np.empty((packed.shape[0], packed.shape[1] * 2), np.int8)
    whole[:, 0::2] = (packed << 4).view(np.int8) >> 4
    whole[:, 1::2] = packed.view(np.int8) >> 4
    return whole
