"""Device memory, streams, events and graphs, over the compiled module of our kernels.

Deliberately thin: the same code runs on a GPU, and on the host shim that the tests build from the same kernels, where
device memory is host memory and everything enqueued on a stream has happened when the call returns.
"""

from __future__ import annotations

import gc
import re
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...errors import EngineError

#: Number formats in device memory.
Number = Literal["float32", "float16", "bfloat16"]
NUMBER_BYTES: dict[Number, int] = {"float32": 4, "float16": 2, "bfloat16": 2}


def number_code(cuda: Any, number: str) -> int:
    """The kernels' code of a number format: one of :data:`Number`, or "int8", blocks of 32 that share a scale."""
    code: int = {
        "float32": cuda.FLOAT32,
        "float16": cuda.FLOAT16,
        "bfloat16": cuda.BFLOAT16,
        "int8": cuda.INT8_BLOCKS,
    }[number]
    return code


@contextmanager
def translate_errors(cuda: Any) -> Iterator[None]:
    """Turn errors of the GPU, and a lack of memory, into an :class:`EngineError`."""
    try:
        yield
    except cuda.CudaError as error:
        raise EngineError(f"the GPU failed: {error}; open the model again, in a new process if it persists") from error
    except MemoryError as error:
        raise EngineError(
            f"there is not enough memory ({error or 'of the host'}); close a conversation, or open the model with a "
            "smaller max_context"
        ) from error


def _finally(owner: object, free: Callable[[int], None], handle: int) -> None:
    """Free with ``owner``, but not at interpreter exit: other libraries may still use the stream."""
    weakref.finalize(owner, free, handle).atexit = False


class Buffer:
    """Device memory, freed with this object: ``address`` of its first byte, ``nbytes`` of them."""

    def __init__(self, cuda: Any, nbytes: int) -> None:
        self.nbytes = nbytes
        try:
            self.address: int = cuda.malloc(max(nbytes, 1))
        except cuda.CudaError as error:
            if "cudaErrorMemoryAllocation" in str(error):
                raise MemoryError(str(error)) from error
            raise
        _finally(self, cuda.free, self.address)


class Grown:
    """Device memory that is kept from use to use, for one user at a time.

    Allocating and freeing wait for everything that the device is doing: if a use needs more, twice as much is taken.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._buffer: Buffer | None = None

    def of(self, nbytes: int) -> Buffer:
        """``nbytes`` or more of it, uninitialised; valid until the next call."""
        if self._buffer is None or self._buffer.nbytes < nbytes:
            self._buffer = None  # free it first: both might not fit
            self._buffer = self._device.allocate(1 << max(nbytes - 1, 0).bit_length())
        return self._buffer


class Part:
    """A section of a buffer, which it keeps alive."""

    def __init__(self, owner: Buffer, offset: int, nbytes: int) -> None:
        self._owner, self.address, self.nbytes = owner, owner.address + offset, nbytes


#: Device memory, a whole buffer or a section of one.
Memory = Buffer | Part


class Pinned:
    """Host memory that the device reads and writes while it works, initially zero.

    ``array`` is the host's view of it, ``address`` the device's. The memory is freed with this object, not with the
    array, once the device's work is done: frames that were launched ahead may still write to it.
    """

    def __init__(self, device: Device, shape: tuple[int, ...], dtype: Any) -> None:
        cuda, lock, stream = device.cuda, device.lock, device.stream

        def free(place: int) -> None:
            with lock:  # not during a capture: a stream that is being captured cannot be waited for
                stream.synchronize()
            cuda.free_pinned(place)

        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        place, self.address = cuda.malloc_pinned(nbytes)
        _finally(self, free, place)
        self.array = np.frombuffer(cuda.pinned_view(place, nbytes), dtype).reshape(shape)
        self.array[...] = 0


class Stream:
    """A queue of work on the device. ``handle``: its address, for libraries."""

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda
        self.handle: int = cuda.create_stream()
        _finally(self, cuda.destroy_stream, self.handle)

    def synchronize(self) -> None:
        """Wait until everything enqueued on it is done; other threads run meanwhile."""
        self._cuda.synchronize(self.handle)


class Event:
    """A mark on a stream."""

    def __init__(self, cuda: Any, stream: Stream, *, timed: bool) -> None:
        self._cuda, self._stream = cuda, stream
        self.handle: int = cuda.create_event(timing=timed)
        _finally(self, cuda.destroy_event, self.handle)

    def record(self) -> None:
        """Put the mark after what is on the stream now."""
        self._cuda.record_event(self.handle, self._stream.handle)

    def wait(self) -> None:
        """Wait until the work before the mark is done; other threads run meanwhile."""
        self._cuda.synchronize_event(self.handle)

    def since(self, earlier: Event) -> float:
        """Milliseconds on the device between two marks that have passed, both made with ``timed``."""
        elapsed: float = self._cuda.elapsed_ms(earlier.handle, self.handle)
        return elapsed


class Graph:
    """Work that was captured once and is launched as one."""

    def __init__(self, cuda: Any, stream: Stream, handle: int) -> None:
        self._cuda, self._stream, self._handle = cuda, stream, handle
        _finally(self, cuda.destroy_graph, handle)

    def launch(self) -> None:
        self._cuda.launch_graph(self._handle, self._stream.handle)


class Device:
    """One device with two streams: ``stream`` for the frame loop, ``codec_stream`` for the encoder and the codec.

    Callers hold ``lock`` while they enqueue work on ``stream``: sequences of several threads share it, and the work of
    one must not end up in a graph that another captures. Calls that name no stream use ``stream``.
    """

    def __init__(self, cuda: Any, *, kind: Literal["cuda", "cpu"] = "cuda", index: int = 0) -> None:
        """``cuda``: the compiled module. ``kind``: ONNX Runtime's name of the memory; "cpu" for the host shim."""
        self.cuda, self.kind, self.index = cuda, kind, index
        cuda.set_device(index)
        self.stream, self.codec_stream = Stream(cuda), Stream(cuda)
        self.lock = threading.RLock()

    def allocate(self, nbytes: int) -> Buffer:
        """Uninitialised memory; MemoryError if there is not enough."""
        return Buffer(self.cuda, nbytes)

    def uploaded(self, values: np.ndarray) -> Buffer:
        """A copy of ``values`` on the device."""
        buffer = self.allocate(values.nbytes)
        with self.lock:
            self.upload(buffer.address, values)
            self.synchronize()
        return buffer

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> Pinned:
        return Pinned(self, shape, dtype)

    def upload(self, address: int, values: np.ndarray) -> None:
        """Copy values to the device; they may change as soon as this returns: CUDA stages memory that is not pinned."""
        source = np.ascontiguousarray(values)
        self.cuda.copy_to_device(address, source.ctypes.data, source.nbytes, self.stream.handle)

    def download(self, target: np.ndarray, address: int) -> None:
        """Copy from the device into a contiguous array, which holds it after the next :meth:`synchronize`."""
        self.cuda.copy_to_host(target.ctypes.data, address, target.nbytes, self.stream.handle)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Copy within the device."""
        self.cuda.copy_on_device(target, source, nbytes, self.stream.handle)

    def synchronize(self) -> None:
        self.stream.synchronize()

    def finish(self) -> None:
        """Wait until both streams are idle."""
        with self.lock:  # a stream that is being captured cannot be waited for
            self.stream.synchronize()
        self.codec_stream.synchronize()

    def event(self, *, timed: bool = False) -> Event:
        return Event(self.cuda, self.stream, timed=timed)

    def capture(self, enqueue: Callable[[], None]) -> Graph:
        """A graph of what ``enqueue`` puts on the stream; none of it runs yet."""
        collecting = gc.isenabled()
        gc.disable()  # memory freed while a stream captures would invalidate the capture
        try:
            self.cuda.begin_capture(self.stream.handle)
            try:
                enqueue()
            finally:
                handle = self.cuda.end_capture(self.stream.handle)
        finally:
            if collecting:
                gc.enable()
        return Graph(self.cuda, self.stream, handle)

    def memory(self) -> tuple[int, int]:
        """Bytes free and in total."""
        about = self.cuda.device_properties(self.index)
        return free_bytes(about), about["memory_bytes"]


def free_bytes(about: Mapping[str, Any], meminfo: Path = Path("/proc/meminfo")) -> int:
    """Bytes that can be allocated, from a device's properties.

    A GPU that shares the host's memory (Jetson) counts the system's page cache as used, although it is given back on
    demand: there the system's own count is used.
    """
    free = int(about["free_bytes"])
    if not about["integrated"]:
        return free
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return free
    return max(free, int(found.group(1)) << 10) if found else free
