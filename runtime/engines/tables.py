"""The angles of the rotary position embedding, as every engine computes them."""

from __future__ import annotations

import numpy as np


def rotary_tables(inverse_frequencies: np.ndarray, positions: int) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of position x frequency, float32 [positions, head_dim / 2].

    The product is rounded to float32 before the cosine, as transformers does; the cosine itself is taken in float64.
    """
    angles = (np.arange(positions, dtype=np.float32)[:, None] * inverse_frequencies[None]).astype(np.float64)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
