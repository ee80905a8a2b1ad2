"""float8 e4m3 (``fp8``): matrices of one byte per weight, with their inputs rounded to the same type.

E4M3 (Micikevicius et al. 2022, arXiv 2209.05433; FLOAT8E4M3FN in ONNX) has four bits of exponent, three of fraction and
no infinity: the largest number is 448, the smallest normal one 2^-6, and below that steps are 2^-9. Rounding is to the
nearest, ties to even; values beyond 448 saturate at 448, and NaN stays NaN.

A matrix has one scale, ``W ~ codes * scale``, and its input has another. Scales are powers of two: dividing
and multiplying by them is exact, whether an engine does so in float16 or in float32, by division or by the reciprocal.
They lie within float16's normal range, because GPUs hold them, and their reciprocals, in their compute type.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from ...runtime.errors import ExportError

#: Largest number of the type.
LARGEST = 448.0
#: Exponents of the smallest and the largest scale: float16's normal numbers begin at 2^-14, and the reciprocal of 2^15
#: would be below that.
EXPONENTS = (-14, 14)
#: Largest number of float16, in which GPUs hold a weight once it is widened, and a value before they round it.
LARGEST_FLOAT16 = 65504.0


def check_values(name: str, matrix: np.ndarray) -> None:
    """Refuse float32 values beyond float16's range, and NaN, which would pass unnoticed."""
    peak = float(np.abs(matrix).max(initial=0.0))
    if not np.isfinite(peak):
        raise ExportError(f"{name}: holds NaN or infinity; the checkpoint is damaged, use another step")
    held = float(round_values(np.array([peak], np.float32), scale_of(peak))[0])
    if held > LARGEST_FLOAT16:
        raise ExportError(
            f"{name}: its largest value is {peak:g}, {held:g} in fp8, and GPUs hold it in float16, whose largest "
            f"number is {LARGEST_FLOAT16:g}; export with precision bf16"
        )


def scale_of(peak: float) -> float:
    """The smallest scale with which ``peak`` is in range, clamped to the range of scales."""
    fraction, exponent = math.frexp(peak / LARGEST)  # peak / LARGEST = fraction * 2^exponent, 0.5 <= fraction < 1
    least = exponent - 1 if fraction == 0.5 else exponent
    return 2.0 ** min(max(least if peak > 0 else 0, EXPONENTS[0]), EXPONENTS[1])


def quantize(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes uint8 of the shape of ``matrix`` float32, and their scale float16 []."""
    scale = scale_of(float(np.abs(matrix).max(initial=0.0)))
    return _rounded(matrix, scale).view(torch.uint8).numpy(), np.array(scale, np.float16)


def dequantize(codes: np.ndarray, scale: float) -> np.ndarray:
    """float32 of ``codes`` uint8."""
    values: np.ndarray = torch.from_numpy(np.array(codes)).view(torch.float8_e4m3fn).float().numpy()
    return np.multiply(values, np.float32(scale), out=values)


def round_values(x: np.ndarray, scale: float) -> np.ndarray:
    """float32 values after a round trip through float8 with ``scale``."""
    return dequantize(_rounded(x, scale).view(torch.uint8).numpy(), scale)


def _rounded(x: np.ndarray, scale: float) -> torch.Tensor:
    # whether torch turns values beyond the range into NaN or saturates depends on its version
    scaled = torch.from_numpy(np.multiply(x, np.float32(1 / scale), dtype=np.float32))
    return scaled.clamp_(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
