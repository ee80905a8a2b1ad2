"""The codec's stateful graph in ONNX Runtime: the state of one sound between the calls, on the host or on a device.

On a device the state never leaves it. Frames come from the host, where they arrive with the rows (a kilobyte each), and
this transfer orders the codec after the frames that produced them: the two streams need no event between them, and
neither ever waits for the other.

Sounds of several threads may be decoded at once: an ONNX Runtime session may be run from any number of threads, and
each run has its own scratch memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...errors import EngineError
from ...files.reading import first_line
from ..device.device import Device
from .sessions import OnnxRuntimeParts

ROLE = "codec.stream"
NO, YES = np.array([0], np.int64), np.array([1], np.int64)


class OnnxRuntimeCodecStream:
    """See :class:`protocol.CodecStream`. States: the graph's inputs ``left.*`` and, in the same order, its outputs."""

    def __init__(self, engine: OnnxRuntimeParts, device: Device | None = None) -> None:
        """``device``: where the states stay; None: in arrays on the host, where a binding would cost more per call."""
        self._engine, self._device = engine, device
        # loaded, or refused, now rather than when the first frames arrive
        session = engine.session(ROLE)
        #: On a device, kept for as long as the states, which lie in its memory.
        self._session = None if device is None else session
        self._outputs: list[str] = [value.name for value in session.get_outputs()]
        self.reset()

    def reset(self) -> None:
        #: By input: arrays, or ONNX Runtime values on the device. A sound begins with zeros from the host.
        self._states: Mapping[str, Any] = self._engine.codec_silence
        self._begun = False

    def decode(self, latents: np.ndarray, *, last: bool) -> np.ndarray:
        flags = {"first": NO if self._begun else YES, "last": YES if last else NO}
        inputs = {"latents": np.ascontiguousarray(latents.T[None], np.float32), **flags, **self._states}
        if self._device is None:
            pcm, *states = self._engine.run_all(ROLE, inputs)
        else:
            pcm, *states = self._run_bound(self._device, inputs)
        if last:
            self.reset()
        else:
            self._begun = True
            self._states = dict(zip(self._states, states, strict=True))
        samples: np.ndarray = pcm[0]
        return samples

    def _run_bound(self, device: Device, inputs: Mapping[str, Any]) -> list[Any]:
        """The outputs in order: samples as an array, states as values on the device."""
        assert self._session is not None
        binding = self._session.io_binding()
        for name, value in inputs.items():
            if isinstance(value, np.ndarray):
                binding.bind_cpu_input(name, value)
            else:
                binding.bind_ortvalue_input(name, value)
        pcm, *states = self._outputs
        binding.bind_output(pcm, "cpu")
        for name in states:
            binding.bind_output(name, device.kind, device.index)
        try:
            self._session.run_with_iobinding(binding)
            binding.synchronize_outputs()
        except Exception as error:
            raise EngineError(f"part {ROLE}: ONNX Runtime failed ({first_line(error)})") from error
        samples, *values = binding.get_outputs()
        return [samples.numpy(), *values]
