"""The codec's stateful graph in ONNX Runtime on a device: the state of a sound never leaves it.

Frames come from the host, where they arrive with the rows (a kilobyte each), and this hand-over orders the codec after
the frames that produced them: the two streams need no event between them, and neither ever waits for the other.

Sounds of several threads may be decoded at once: an ONNX Runtime session may be run from any number of threads, and
each run has its own binding and scratch memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...errors import EngineError
from ...files.reading import first_line
from ..device.device import Device
from .codec import NO, ROLE, YES


class DeviceCodecStream:
    """See :class:`protocol.CodecStream`. States: the graph's inputs ``left.*`` and, in the same order, its outputs."""

    def __init__(self, session: Any, device: Device) -> None:
        """``session``: of the part :data:`ROLE`, on ``device``."""
        self._session = session
        self._kind, self._index = device.kind, device.index
        inputs = [value for value in self._session.get_inputs() if value.name.startswith("left.")]
        self._shapes: dict[str, tuple[int, ...]] = {value.name: tuple(value.shape) for value in inputs}
        self._outputs: list[str] = [value.name for value in self._session.get_outputs()]
        self._zeros = {name: np.zeros(shape, np.float32) for name, shape in self._shapes.items()}
        self.reset()

    def reset(self) -> None:
        #: ONNX Runtime values in its own device memory; none before a sound's first call.
        self._states: dict[str, Any] | None = None

    def decode(self, latents: np.ndarray, *, last: bool) -> np.ndarray:
        binding = self._session.io_binding()
        binding.bind_cpu_input("latents", np.ascontiguousarray(latents.T[None], np.float32))
        binding.bind_cpu_input("first", YES if self._states is None else NO)
        binding.bind_cpu_input("last", YES if last else NO)
        for name in self._shapes:
            if self._states is None:
                binding.bind_cpu_input(name, self._zeros[name])
            else:
                binding.bind_ortvalue_input(name, self._states[name])
        pcm, *states = self._outputs
        binding.bind_output(pcm, "cpu")
        for name in states:
            binding.bind_output(name, self._kind, self._index)
        try:
            self._session.run_with_iobinding(binding)
            binding.synchronize_outputs()
        except Exception as error:
            raise EngineError(f"part {ROLE}: ONNX Runtime failed ({first_line(error)})") from error
        first, *rest = binding.get_outputs()
        self._states = None if last else dict(zip(self._shapes, rest, strict=True))
        samples: np.ndarray = first.numpy()[0]
        return samples
