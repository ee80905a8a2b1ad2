"""Tables that all engines compute in the same way: angles of positions, and sums of codebooks."""

from __future__ import annotations

import numpy as np

from .. import _native


def rotary_tables(inverse_frequencies: np.ndarray, positions: int) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of position x frequency, float32 [positions, head_dim / 2].

    The product is rounded to float32 before the cosine, as transformers does; the cosine itself is taken in float64.
    """
    angles = (np.arange(positions, dtype=np.float32)[:, None] * inverse_frequencies[None]).astype(np.float64)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def codes_to_latents(codes: np.ndarray, table: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Codebook sums: codes [T, 8] -> latents float32 [T, latent_size], of the bundle's ``codec.rvq_table`` and bias."""
    latents = np.empty((len(codes), len(bias)), np.float32)
    _native.codes_to_latents(np.ascontiguousarray(codes, np.int32), table, bias, latents)
    return latents
