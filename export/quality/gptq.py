"""Calibration: integer weights chosen by the inputs of a matrix, not one by one.

GPTQ (Frantar et al. 2023, arXiv 2210.17323, algorithm 1): input rows of a matrix are rounded in turn, and the error of
each is compensated in the rows that are not rounded yet, using the second moments of the activations. Layers are
processed in order, each on the output of the layers before it as already rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from ...runtime import _native
from ...runtime.audio.features import LogMelFrontend
from ...runtime.bundle.bundle import Bundle
from ...runtime.bundle.precision import BLOCK
from ...runtime.conversation.prompt import Message
from ...runtime.engines.onnxruntime.cpu import OnnxRuntimeEngine
from ...runtime.engines.onnxruntime.sessions import OnnxRuntimeParts
from ...runtime.sound.sound import Sound
from ..formats.blocks import DIVISORS, LIMITS, pack_int4
from ..formats.store import WeightStore
from ..run.qwen2 import BackboneShape
from .agreement import branches, embed_parts, hold_rows, read_rows
from .reference_body import hidden_states

#: Damping added to the diagonal of the second moments, as a share of its mean (GPTQ's own value).
DAMPING = 0.01
#: Most rows of a conversation.
CONTEXT = 8192


def rows_read(bundle: Bundle, conversations: Sequence[Sequence[Message]]) -> list[np.ndarray]:
    """Input embeddings float32 [n, H] of what the model reads before it answers, and a row of the null branch's."""
    parts = OnnxRuntimeParts(bundle, threads=None, max_context=_context(bundle))
    table = bundle.table("embedding")
    try:
        read = [embed_parts(table, each) for each in read_rows(bundle, conversations, _sound_encoder(bundle, parts))]
    finally:
        parts.close()
    return [*read, np.zeros((1, table.shape[1]), np.float32)]


def rows_generated(bundle: Bundle, conversations: Sequence[Sequence[Message]]) -> list[np.ndarray]:
    """Input embeddings float32 [n, H] of what the model reads and answers, both branches of guidance."""
    engine = OnnxRuntimeEngine(bundle, max_context=_context(bundle))
    try:
        held = hold_rows(engine, bundle, conversations, _sound_encoder(bundle, engine))
    finally:
        engine.close()
    table = bundle.table("embedding")
    return [sequence for segment in held for sequence in branches(segment, table)]


def _context(bundle: Bundle) -> int:
    return min(CONTEXT, bundle.manifest.model.max_positions)


def _sound_encoder(bundle: Bundle, parts: OnnxRuntimeParts) -> Callable[[Sound], np.ndarray]:
    hearing = LogMelFrontend(bundle.manifest.features, bundle.table("encoder.mel_filters"))

    def hear(sound: Sound) -> np.ndarray:
        prepared = hearing.prepare(sound)
        return parts.encode(prepared.inputs)[: prepared.rows]

    return hear


def calibrate(
    folder: Path,
    store: WeightStore,
    shape: BackboneShape,
    dtype: str,
    sequences: Sequence[np.ndarray],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Round the body's matrices again, in the blob in ``folder``.

    ``sequences``: input embeddings float32 [n, H] of what the model reads and says, both branches of guidance.
    """
    total, done = 4 * shape.layers, 0

    def round_matrix(name: str, x: torch.Tensor) -> None:
        nonlocal done
        whole, scales = gptq(store.exact(name), x, dtype)
        store.rewrite(folder, name, pack_int4(whole) if dtype == "int4" else whole)
        store.rewrite(folder, f"{name}.scale", scales)
        done += 1
        progress(done, total)

    hidden_states(lambda name: store.read_back(folder, name), shape, sequences, on_product=round_matrix)


def gptq(matrix: np.ndarray, x: torch.Tensor, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Integers int8 [in, out] and scales float16 [in / 32, out] of ``matrix`` float32 [in, out], so that
    ``x @ matrix`` changes little for ``x`` float32 [rows, in]."""
    inputs, outputs = matrix.shape
    low, high = LIMITS[dtype]
    divisors = np.array(DIVISORS[dtype], np.float32)
    moments = (x.T @ x) / len(x)
    importance = moments.diagonal().clone().numpy()
    factor = _inverse_factor(moments)
    weights = torch.from_numpy(np.array(matrix, np.float32))
    whole = np.empty((inputs, outputs), np.int8)
    scales = np.empty((inputs // BLOCK, outputs), np.float32)
    for first in range(0, inputs, BLOCK):
        rows = slice(first, first + BLOCK)
        block = weights[rows]
        # the scale is fixed before the first row of the block is rounded, from the weights as updated so far
        _native.quantize_blocks(
            block.numpy(),
            block=BLOCK,
            divisors=divisors,
            low=low,
            high=high,
            importance=np.maximum(importance[rows], np.float32(1e-30)),
            whole=whole[rows],
            scales=scales[first // BLOCK : first // BLOCK + 1],
            threads=1,
        )
        scale = torch.from_numpy(scales[first // BLOCK])
        errors = torch.empty_like(block)
        for i in range(BLOCK):
            row = first + i
            q = torch.round(block[i] / scale).clamp_(low, high)
            whole[row] = q.numpy()
            errors[i] = (block[i] - q * scale) / factor[row, row]
            block[i + 1 :] -= factor[row, row + 1 : first + BLOCK, None] * errors[i]
        weights[first + BLOCK :] -= factor[rows, first + BLOCK :].T @ errors
    return whole, scales.astype(np.float16)


def _inverse_factor(moments: torch.Tensor) -> torch.Tensor:
    """Upper Cholesky factor of the inverse of ``moments`` [n, n], damped so that it exists."""
    diagonal = moments.diagonal()
    diagonal[diagonal == 0] = 1  # an input that is always zero: any rounding will do
    diagonal += DAMPING * diagonal.mean()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments.double())).float()
    return torch.linalg.cholesky(inverse.double(), upper=True).float()
