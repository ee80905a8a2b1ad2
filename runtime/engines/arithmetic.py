"""The arithmetic of an engine, and how far that takes it from the golden vector, which is float32.

Where the numbers come from: docs/precision.md, "The golden vector"; ``ualm.bench.evidence.arithmetic`` measures them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from ..bundle.entries import PartEntry

#: How the matrix products of a part are computed, regardless of the storage format of the weights:
#:
#: - ``float32``: weights widened, products and everything between them in float32.
#: - ``float16``, ``bfloat16``: weights, rows, sums once they leave a product, attention and cache in that type;
#:   norms and residual stream in float32.
#: - ``int8``: rows rounded to 8 bits, with a scale for each 32 values or for each row, everything else in float32.
#: - ``float8``: rows rounded to float8 with a scale known in advance, everything else in float32 or float16.
Arithmetic = Literal["float32", "float16", "bfloat16", "int8", "float8"]
#: ``body``: of the transformer, when it decodes. ``heads``: of sound and text; the modality head is always float32.
Part = Literal["body", "heads", "encoder", "codec"]

#: Largest error, relative to the largest value, that one rounding is allowed; ``float32``: a whole part.
UNIT: Mapping[Arithmetic, float] = {
    "float32": 1e-4,
    "float16": 2e-3,
    "bfloat16": 0.018,
    "int8": 0.03,
    "float8": 0.11,
}
#: The same for an encoder's features, at any depth.
ROWS_IN_8_BITS = 0.05
#: The largest of five logits may happen to be small, and then every error is large relative to it.
FEW = 2.0
#: In a narrower body one rounding weighs more, since there are fewer to average out. Above it, width changes nothing.
NARROW = 128


def arithmetic_of(part: PartEntry, *, rounds_rows: bool = False) -> Arithmetic:
    """The arithmetic of a part of a bundle according to its graph.

    ``rounds_rows``: the library multiplies block formats with rows in 8 bits.
    """
    if part.precision == "fp8":
        return "float8"
    if rounds_rows and part.precision in ("int8", "int4"):
        return "int8"
    return part.multiplies_in


def logits_tolerance(body: Arithmetic, heads: Arithmetic, layers: int, hidden: int, *, few: bool = False) -> float:
    """Largest error of an engine's logits, relative to the largest of them; ``few``: those of the modality.

    The roundings of the layers are independent: errors add up as the root of their number.
    """
    if body == heads == "float32":
        return UNIT["float32"]
    roundings = UNIT[body] * (1 + math.sqrt(layers)) if body != "float32" else UNIT[body]
    allowed = FEW * roundings if few else roundings + (UNIT[heads] if heads != "float32" else 0.0)
    return allowed * max(1.0, NARROW / hidden)


def part_tolerance(arithmetic: Arithmetic) -> float:
    """Largest error of features or samples, relative to the largest of them. Neither part is ever in half precision."""
    return ROWS_IN_8_BITS if arithmetic == "int8" else UNIT[arithmetic]
