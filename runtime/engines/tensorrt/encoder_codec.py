"""The encoder and the streaming codec as TensorRT engines, on the stream that is not captured."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Mapping

import numpy as np

from ...errors import EngineError
from ..device.device import Buffer, Device, Grown, translate_errors
from . import names as names
from .context import Call, CompiledPart, Scratch

_FLOAT = 4
#: Codec voices of finished sounds that are kept.
SPARE = 4


class Side:
    """Encoder and codec: memory and calls on ``device.codec_stream``.

    Sounds of several threads are processed at once. Each has its own buffers and contexts, but the contexts of a part
    share its scratch memory, which is safe as long as each run is enqueued as a whole: see :class:`Scratch`.
    """

    def __init__(self, device: Device) -> None:
        self.device, self.stream = device, device.codec_stream
        self._lock = threading.Lock()
        self._scratch: dict[str, Scratch] = {}
        self._spare: deque[_Voice] = deque()

    def scratch(self, part: CompiledPart) -> Scratch:
        """Scratch memory of a part, which all its contexts share."""
        with self._lock:
            if part.entry.role not in self._scratch:
                made = Scratch(self.device, self.stream, part.scratch_bytes, threading.Lock())
                self._scratch[part.entry.role] = made
            return self._scratch[part.entry.role]

    def take_voice(self, part: CompiledPart, *, hop_length: int, first_frames: int) -> _Voice:
        """What a sound needs on the device: taken over from a finished sound, or newly made."""
        try:
            return self._spare.popleft()
        except IndexError:
            return _Voice(self, part, hop_length=hop_length, first_frames=first_frames)

    def give_back(self, voice: _Voice) -> None:
        """A sound has ended. What it may still have on the stream comes before the work of the next."""
        if len(self._spare) < SPARE:
            self._spare.append(voice)

    def upload(self, buffer: Buffer, values: np.ndarray) -> None:
        source = np.ascontiguousarray(values)
        self.device.cuda.copy_to_device(buffer.address, source.ctypes.data, source.nbytes, self.stream.handle)

    def download(self, values: np.ndarray, buffer: Buffer) -> None:
        """Wait for what is on the stream, and for ``values`` to come."""
        self.device.cuda.copy_to_host(values.ctypes.data, buffer.address, values.nbytes, self.stream.handle)
        self.stream.synchronize()


class TensorRtEncoder:
    """The encoder of a bundle. One sound at a time: others wait, since they share its buffers and contexts."""

    def __init__(self, side: Side, part: CompiledPart) -> None:
        self._side, self._part = side, part
        self._scratch = side.scratch(part)
        self._calls: dict[str, Call] = {}
        self._buffers = {name: Grown(side.device) for name in (*part.inputs, *part.outputs)}
        self._lock = threading.Lock()

    def encode(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """See :meth:`protocol.Engine.encode`."""
        with self._lock:
            call = self._call(inputs)
            for name, values in inputs.items():
                array = np.ascontiguousarray(values, np.float32)
                buffer = self._buffers[name].of(array.nbytes)
                self._side.upload(buffer, array)
                call.input(name, buffer.address, array.shape)
            features = np.empty(call.output_shape("features"), np.float32)
            out = self._buffers["features"].of(features.nbytes)
            call.output("features", out.address)
            call()
            self._side.download(features, out)
            return features

    def _call(self, inputs: Mapping[str, np.ndarray]) -> Call:
        """A call in the first profile that accepts the inputs."""
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


class _Voice:
    """What one sound needs for the codec: contexts and device buffers, kept from sound to sound."""

    def __init__(self, side: Side, part: CompiledPart, *, hop_length: int, first_frames: int) -> None:
        self.path, self.most, self.width = part.path, *_limits(part)
        lefts = [name for name in part.inputs if name.startswith("left.")]
        #: State inputs, and the outputs that become the next ones.
        self.pairs = [(name, f"next.{name.removeprefix('left.')}") for name in lefts]
        sizes = [int(np.prod(part.static_shape(name))) * _FLOAT for name in lefts]
        self.states = [[side.device.allocate(size) for size in sizes] for _ in range(2)]
        self.latents = side.device.allocate(self.most * self.width * _FLOAT)
        # a piece completes the samples of as many frames as it has, and the last also those that were held back
        self.samples = side.device.allocate((self.most + first_frames + 1) * hop_length * _FLOAT)
        self.flags = np.zeros(2, np.int64)  # read by the library while it enqueues
        scratch = side.scratch(part)
        self.calls = {name: part.call(name, scratch) for name in (names.INNER, names.EDGE)}


def _limits(part: CompiledPart) -> tuple[int, int]:
    """Frames that the codec takes at most, and the size of their latents."""
    for profile in part.entry.profiles:
        if profile.name == names.EDGE:
            _, width, frames = profile.shapes["latents"][2]
            return frames, width
    raise EngineError(f"{part.path}: has no profile {names.EDGE!r}; build it again with this ualm")


class TensorRtCodecStream:
    """See :class:`protocol.CodecStream`. The state of a sound stays on the device, in two sets that take turns."""

    def __init__(self, side: Side, part: CompiledPart, *, hop_length: int, first_frames: int) -> None:
        self._side, self._first_frames = side, first_frames
        self._voice = side.take_voice(part, hop_length=hop_length, first_frames=first_frames)
        weakref.finalize(self, side.give_back, self._voice).atexit = False
        self.reset()

    def reset(self) -> None:
        self._begun = False
        self._turn = 0

    def decode(self, latents: np.ndarray, *, last: bool) -> np.ndarray:
        most = self._voice.most
        pieces = [latents[at : at + most] for at in range(0, len(latents), most)] or [latents]
        if not last and len(pieces) > 1 and not self._begun and len(pieces[0]) < self._first_frames:
            raise EngineError(f"{self._voice.path}: takes {most} frames, too few to begin a sound with")
        with translate_errors(self._side.device.cuda):
            made = [self._piece(piece, last=last and index == len(pieces) - 1) for index, piece in enumerate(pieces)]
        return np.concatenate(made) if len(made) > 1 else made[0]

    def _piece(self, latents: np.ndarray, *, last: bool) -> np.ndarray:
        side, voice, first = self._side, self._voice, not self._begun
        call = voice.calls[names.EDGE if first or last else names.INNER]
        old, new = voice.states[self._turn], voice.states[1 - self._turn]
        if first:
            for buffer in old:
                side.device.cuda.set_bytes(buffer.address, 0, buffer.nbytes, side.stream.handle)
        side.upload(voice.latents, np.ascontiguousarray(latents.T, np.float32))
        call.input("latents", voice.latents.address, (1, voice.width, len(latents)))
        voice.flags[:] = first, last
        for index, name in enumerate(("first", "last")):
            call.input(name, voice.flags.ctypes.data + 8 * index)
        for (left, following), before, after in zip(voice.pairs, old, new, strict=True):
            call.input(left, before.address)
            call.output(following, after.address)
        samples = np.empty(call.output_shape("pcm")[-1], np.float32)
        if samples.nbytes > voice.samples.nbytes:
            raise EngineError(f"{voice.path}: {len(latents)} frames gave {len(samples)} samples; report this")
        call.output("pcm", voice.samples.address)
        call()
        side.download(samples, voice.samples)
        self._begun, self._turn = not last, 1 - self._turn
        return samples
