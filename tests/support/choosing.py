"""Random models that choose only modalities for which they have parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from ualm.runtime.engines.onnxruntime.cpu import OnnxRuntimeSequence
from ualm.runtime.vocabulary import CHOOSABLE


@contextmanager
def choosing_what_it_can() -> Iterator[None]:
    """A model with random weights would occasionally choose an image: here the likelier of text and audio is chosen."""
    real = OnnxRuntimeSequence.modality_logits
    able = [name in ("text", "audio") for name in CHOOSABLE]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            OnnxRuntimeSequence, "modality_logits", lambda self: np.where(able, real(self), np.float32(-np.inf))
        )
        yield
