"""The codec's stateful graph in ONNX Runtime: the state of one sound between the calls."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .sessions import OnnxRuntimeParts

ROLE = "codec.stream"
NO, YES = np.array([0], np.int64), np.array([1], np.int64)


class OnnxRuntimeCodecStream:
    """See :class:`protocol.CodecStream`. States: the graph's inputs ``left.*`` and, in the same order, its outputs."""

    def __init__(self, engine: OnnxRuntimeParts) -> None:
        self._engine = engine
        engine.session(ROLE)  # loaded, or refused, now rather than when the first frames arrive
        self.reset()

    def reset(self) -> None:
        self._states: Mapping[str, np.ndarray] = self._engine.codec_silence
        self._begun = False

    def decode(self, latents: np.ndarray, *, last: bool) -> np.ndarray:
        flags = {"first": NO if self._begun else YES, "last": YES if last else NO}
        columns = np.ascontiguousarray(latents.T[None], np.float32)
        pcm, *states = self._engine.run_all(ROLE, {"latents": columns, **flags, **self._states})
        if last:
            self.reset()
        else:
            self._begun = True
            self._states = dict(zip(self._states, states, strict=True))
        samples: np.ndarray = pcm[0]
        return samples
