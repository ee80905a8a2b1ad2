"""The input scales of fp8 matrices.

A GPU multiplies in float8 only if both operands are float8, and rounds the input rows of a product with one scale that
is fixed when the engine is built. The scale is taken from rows that the model really reads and says: twice the largest
value seen is still in range, and values beyond that saturate. Float8 keeps its three bits of fraction over 2^15, so
that this headroom costs only the smallest values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from ...runtime.bundle.feature_spec import FeatureSpec
from ...runtime.conversation.prompt import Message
from ...runtime.errors import ExportError
from ..formats.float8 import LARGEST_FLOAT16, scale_of
from ..formats.store import WeightStore
from ..run.qwen2 import BackboneShape
from .agreement import probe_sound
from .calibration_set import QUESTION
from .reference_body import hidden_states

#: Headroom: how much larger than the values seen an input may be.
MARGIN = 2.0
#: Prompts, used along with a sound; none of them is among the prompts that agreement is measured with.
PROMPTS = (
    "Waves break on a rocky shore while the wind rises.",
    "A train rattles over a bridge, and its horn sounds twice.",
    "An acoustic guitar plays a slow waltz, softly, with a singer humming.",
    "In a busy kitchen pans clatter, water boils over, somebody laughs and calls for salt; outside a siren passes, and "
    "when it has gone only the ticking of a clock on the wall is left.",
)


def built_in_conversations(spec: FeatureSpec) -> list[list[Message]]:
    """The conversations that every bundle is scaled by, with or without a calibration set."""
    asked: list[list[Message]] = [[("user", prompt)] for prompt in PROMPTS]
    return [*asked, [("user", probe_sound(spec)), ("user", QUESTION)]]


class InputScales:
    """Records the inputs of a written blob's float8 matrices, and sets their scales accordingly."""

    def __init__(
        self,
        folder: Path,
        store: WeightStore,
        shape: BackboneShape,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self._folder, self._store, self._shape, self._progress = folder, store, shape, progress
        #: Name of a matrix -> largest magnitude of its inputs.
        self.peaks: dict[str, float] = {}

    def see(self, sequences: Sequence[np.ndarray]) -> None:
        """Run input embeddings float32 [n, H] through the body as it is stored, and write the scales.

        Values seen earlier still count. Raises :class:`ExportError` for values that a GPU could not hold.
        """
        total, done = 4 * self._shape.layers, 0

        def look(name: str, x: torch.Tensor) -> None:
            nonlocal done
            peak = float(x.abs().max())
            if not peak <= LARGEST_FLOAT16:
                raise ExportError(
                    f"{name}: is multiplied with values up to {peak:g}, and before rounding to fp8 GPUs hold them in "
                    f"float16, whose largest number is {LARGEST_FLOAT16:g}; export with precision bf16"
                )
            self.peaks[name] = max(self.peaks.get(name, 0.0), peak)
            done += 1
            self._progress(done, total)

        hidden_states(lambda name: self._store.read_back(self._folder, name), self._shape, sequences, on_product=look)
        for name, peak in self.peaks.items():
            scale = np.array(scale_of(MARGIN * peak), np.float16)
            self._store.rewrite(self._folder, f"{name}.input_scale", scale)
