"""The kernel of the heads, in its documented order of additions (docs/cuda.md), and the sums of a prompt's rows."""

from __future__ import annotations

import numpy as np

from ....runtime.engines.device.cache import narrow
from ....runtime.engines.device.device import Device, number_code
from ....runtime.engines.device.head import BLOCK, FusedHead
from ....runtime.files.safetensors_reader import widen
from ....runtime.vocabulary import STREAMS
from .numbers import Numbers
from .tables import float_bits
from .trials import Shape

#: Warps that share the inputs of a column.
WARPS = 16
#: Rows of a prompt whose embeddings are summed.
_PROMPT = 37


def head(device: Device, number: str, shape: Shape, branches: int, seed: int) -> str:
    """Logits of both branches, or of one, against the same additions one by one; AssertionError if a bit differs."""
    random, inputs, columns = Numbers(seed), shape.hidden, shape.columns("audio")
    exact = random.normal((inputs, columns)) / np.float32(inputs**0.5)
    bias, hidden = random.normal((columns,)), random.normal((branches, inputs))
    scales = None
    if number == "int8":
        blocks = exact.reshape(-1, BLOCK, columns)
        scales = (np.abs(blocks).max(1) / 127).astype(np.float16)
        stored = np.round(blocks / scales[:, None].astype(np.float32)).clip(-127, 127).astype(np.int8)
        stored = stored.reshape(inputs, columns)
        wide = stored.astype(np.float64)
    else:
        stored = narrow(exact, number)  # type: ignore[arg-type]
        wide = widen(stored).astype(np.float64)
    fused = FusedHead(device, stored, scales, bias, number)
    place, logits = device.uploaded(hidden), device.allocate(branches * columns * 4)
    fused.bound(place, logits, branches)()
    found = np.empty((branches, columns), np.float32)
    device.download(found, logits.address)
    device.synchronize()
    expected = added_in_order(hidden, wide, scales, bias)
    same = float_bits(found) == float_bits(expected)
    worst = float(np.abs(found - expected).max() / np.abs(expected).max())
    assert same.all(), f"{int((~same).sum())} logits differ, by {worst:.1e} of the largest at most"
    return f"{found.size} logits are equal bit for bit"


def added_in_order(hidden: np.ndarray, weights: np.ndarray, scales: np.ndarray | None, bias: np.ndarray) -> np.ndarray:
    """Logits float32 [branches, columns] of ``hidden`` float32 [branches, inputs], inputs a multiple of 32, and
    ``weights`` float64 [inputs, columns], which for int8 are whole numbers."""
    branches, inputs = hidden.shape
    warps = np.zeros((WARPS, branches, len(bias)), np.float32)
    wide = hidden.astype(np.float64)
    for block in range(inputs // BLOCK):
        local = np.zeros((branches, len(bias)), np.float32)
        for i in range(block * BLOCK, (block + 1) * BLOCK):
            local = fused(wide[:, i, None], weights[i], local)
        warp = warps[block % WARPS]
        if scales is None:
            warp += local
        else:
            warp[...] = fused(local.astype(np.float64), scales[block].astype(np.float64), warp)
    total = warps[0]
    for warp in warps[1:]:
        total = total + warp
    return total + bias


def fused(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """float32 fused multiply-add: ``a * b``, exact in float64, plus ``c``, rounded once.

    The sum in float64 is first rounded to odd: of its two neighbours the one with an odd last bit, from which float32
    rounds as from the exact sum (Boldo and Melquiond, 2008).
    """
    product, addend = a * b, c.astype(np.float64)
    total = product + addend
    back = total - product
    error = (product - (total - back)) + (addend - back)
    bits = total.view(np.int64)
    towards = np.where((error > 0) == (total > 0), 1, -1)
    bits += np.where((error != 0) & (bits & 1 == 0), towards, 0)
    return total.astype(np.float32)


def embedded_rows(device: Device, number: str, shape: Shape, seed: int) -> str:
    """Sums of the embeddings of a prompt's rows, ids 0 among them, once and twice; AssertionError if a bit differs."""
    random = Numbers(seed)
    table = random.bfloat16((shape.vocabulary, shape.hidden))
    if number == "float32":
        table = random.normal(table.shape)
    rows = random.below(shape.vocabulary, (_PROMPT, STREAMS))
    rows[random.uniform(rows.shape) < 0.3] = 0
    place, ids = device.uploaded(table), device.uploaded(rows)
    cuda = device.cuda
    tables = cuda.Tables(
        embedding=place.address,
        embedding_number=number_code(cuda, number),
        rvq=0,
        rvq_bias=0,
        vocabulary=shape.vocabulary,
        hidden=shape.hidden,
        latent=0,
    )
    expected = np.zeros((_PROMPT, shape.hidden), np.float32)
    wide = widen(table)
    for stream in range(STREAMS):
        present = rows[:, stream] != 0
        expected[present] += wide[rows[present, stream]]
    for copies in (1, 2):
        out = device.uploaded(np.full((_PROMPT, copies, shape.hidden), np.nan, np.float32))
        cuda.embed_rows(
            tables, rows=ids.address, count=_PROMPT, copies=copies, out=out.address, stream=device.stream.handle
        )
        found = np.empty((_PROMPT, copies, shape.hidden), np.float32)
        device.download(found, out.address)
        device.synchronize()
        same = (float_bits(found) == float_bits(expected)[:, None]).all(-1)
        wrong = np.argwhere(~same)
        assert same.all(), f"{copies} copies: row {wrong[0][0]}, copy {wrong[0][1]}: the sum of its embeddings differs"
    return f"{_PROMPT} rows are equal bit for bit"
