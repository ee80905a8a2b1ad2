"""The encoder and the streaming codec as TensorRT engines, on the stream that is not captured."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..errors import EngineError
from . import tensorrt_names as names
from .device import Buffer, Device
from .tensorrt_context import Call, CompiledPart, Scratch

_FLOAT = 4


class Side:
    """What is heard and spoken: memory and calls on ``device.codec_stream``."""

    def __init__(self, device: Device) -> None:
        self.device, self.stream = device, device.codec_stream
        self._scratch: dict[str, Scratch] = {}

    def scratch(self, part: CompiledPart) -> Scratch:
        """Scratch memory of a part, which all its contexts share: the stream runs them one after the other."""
        scratch = self._scratch.setdefault(part.entry.role, Scratch(self.device, self.stream))
        scratch.reserve(part.scratch_bytes)
        return scratch

    def upload(self, buffer: Buffer, values: np.ndarray) -> None:
        source = np.ascontiguousarray(values)
        self.device.cuda.copy_to_device(buffer.address, source.ctypes.data, source.nbytes, self.stream.handle)

    def download(self, values: np.ndarray, buffer: Buffer) -> None:
        """Wait for what is on the stream, and for ``values`` to come."""
        self.device.cuda.copy_to_host(values.ctypes.data, buffer.address, values.nbytes, self.stream.handle)
        self.stream.synchronize()


class TensorRtEncoder:
    """The encoder of a bundle. One sound at a time."""

    def __init__(self, side: Side, part: CompiledPart) -> None:
        self._side, self._part = side, part
        self._scratch = side.scratch(part)
        self._calls: dict[str, Call] = {}

    def encode(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """See :meth:`base.Engine.encode`."""
        call = self._call(inputs)
        kept = []
        for name, values in inputs.items():
            array = np.ascontiguousarray(values, np.float32)
            buffer = self._side.device.allocate(array.nbytes)
            self._side.upload(buffer, array)
            call.input(name, buffer.address, array.shape)
            kept.append(buffer)
        features = np.empty(call.output_shape("features"), np.float32)
        out = self._side.device.allocate(features.nbytes)
        call.output("features", out.address)
        call()
        self._side.download(features, out)
        return features

    def _call(self, inputs: Mapping[str, np.ndarray]) -> Call:
        """The first profile that takes the inputs."""
        for profile in self._part.entry.profiles:
            ranges = profile.shapes.items()
            if all(_between(low, inputs[name].shape, high) for name, (low, _, high) in ranges):
                if profile.name not in self._calls:
                    self._calls[profile.name] = self._part.call(profile.name, self._scratch)
                return self._calls[profile.name]
        shapes = ", ".join(f"{name} {list(values.shape)}" for name, values in inputs.items())
        raise EngineError(f"{self._part.path}: no profile takes {shapes}; build it again with this ualm")


def _between(low: tuple[int, ...], shape: tuple[int, ...], high: tuple[int, ...]) -> bool:
    return len(shape) == len(low) and all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))


class TensorRtCodecStream:
    """See :class:`base.CodecStream`. The state of a sound stays on the device, in two sets that take turns."""

    def __init__(self, side: Side, part: CompiledPart, *, hop_length: int, first_frames: int) -> None:
        self._side, self._part, self._first_frames = side, part, first_frames
        states = [name for name in part.inputs if name.startswith("left.")]
        self._pairs = [(name, f"next.{name.removeprefix('left.')}") for name in states]
        sizes = [int(np.prod(part.static_shape(name))) * _FLOAT for name in states]
        self._states = [[side.device.allocate(size) for size in sizes] for _ in range(2)]
        self._most, self._width = self._limits()
        self._latents = side.device.allocate(self._most * self._width * _FLOAT)
        # a piece makes as many samples certain as it has frames, and the last those that were held back as well
        self._samples = side.device.allocate((self._most + first_frames + 1) * hop_length * _FLOAT)
        self._flags = np.zeros(2, np.int64)  # read by the library while it enqueues
        scratch = side.scratch(part)
        self._calls = {name: part.call(name, scratch) for name in (names.INNER, names.EDGE)}
        self.reset()

    def _limits(self) -> tuple[int, int]:
        for profile in self._part.entry.profiles:
            if profile.name == names.EDGE:
                _, width, frames = profile.shapes["latents"][2]
                return frames, width
        raise EngineError(f"{self._part.path}: has no profile {names.EDGE!r}; build it again with this ualm")

    def reset(self) -> None:
        self._begun = False
        self._turn = 0

    def decode(self, latents: np.ndarray, *, last: bool) -> np.ndarray:
        pieces = [latents[at : at + self._most] for at in range(0, len(latents), self._most)] or [latents]
        if not last and len(pieces) > 1 and not self._begun and len(pieces[0]) < self._first_frames:
            raise EngineError(f"{self._part.path}: takes {self._most} frames, too few to begin a sound with")
        made = [self._piece(piece, last=last and index == len(pieces) - 1) for index, piece in enumerate(pieces)]
        return np.concatenate(made) if len(made) > 1 else made[0]

    def _piece(self, latents: np.ndarray, *, last: bool) -> np.ndarray:
        side, first = self._side, not self._begun
        call = self._calls[names.EDGE if first or last else names.INNER]
        old, new = self._states[self._turn], self._states[1 - self._turn]
        if first:
            for buffer in old:
                side.device.cuda.set_bytes(buffer.address, 0, buffer.nbytes, side.stream.handle)
        side.upload(self._latents, np.ascontiguousarray(latents.T, np.float32))
        call.input("latents", self._latents.address, (1, self._width, len(latents)))
        self._flags[:] = first, last
        for index, name in enumerate(("first", "last")):
            call.input(name, self._flags.ctypes.data + 8 * index)
        for (left, following), before, after in zip(self._pairs, old, new, strict=True):
            call.input(left, before.address)
            call.output(following, after.address)
        samples = np.empty(call.output_shape("pcm")[-1], np.float32)
        if samples.nbytes > self._samples.nbytes:
            raise EngineError(f"{self._part.path}: {len(latents)} frames gave {len(samples)} samples; report this")
        call.output("pcm", self._samples.address)
        call()
        side.download(samples, self._samples)
        self._begun, self._turn = not last, 1 - self._turn
        return samples
