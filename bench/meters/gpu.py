"""A GPU for the bench: its facts, and how fast it copies within its memory and reads it."""

from __future__ import annotations

import os
import subprocess
from functools import cached_property

import numpy as np

from ...runtime.bundle.bundle import Bundle
from ...runtime.engines.device.device import Buffer, Device
from ...runtime.engines.device.facts import driver_version, load_kernels
from ...runtime.engines.registry import CPU, ENGINES, VARIABLE, why_not
from ...runtime.errors import UalmError
from ..report.schema import Bandwidth, Gpu
from .bandwidth import READING_SECONDS, Meter

#: Bytes of a copy or a reading, far beyond any cache of a GPU.
COPY_BYTES = 1 << 30
#: Blocks of the kernel that reads, for each multiprocessor: as many as one holds.
_BLOCKS = 4


class _DeviceMeter(Meter):
    """Passes over buffers on a device, timed by its own clock.

    The buffers are held only during a reading: a GPU allocates quickly, and an engine may need all of its memory.
    """

    def __init__(self, device: Device, *, nbytes: int = COPY_BYTES, reading_seconds: float = READING_SECONDS) -> None:
        super().__init__(reading_seconds)
        free, _ = device.memory()
        self._device, self._bytes = device, min(nbytes, free // 4) // 16 * 16
        self._buffers: tuple[Buffer, Buffer] | None = None

    def read(self) -> float:
        try:
            return super().read()
        finally:
            self.release()

    def release(self) -> None:
        self._buffers = None

    def _pass(self) -> tuple[int, float]:
        if self._buffers is None:
            self._buffers = self._allocate()
            # the first passes touch fresh memory, wait for frames that an engine launched ahead, and raise the clocks
            spent = 0.0
            while spent < self._reading_seconds / 2:
                spent += self._time(*self._buffers)
        return self._traffic, self._time(*self._buffers)

    @property
    def _traffic(self) -> int:
        """Bytes that a pass reads and writes."""
        return self._bytes

    def _allocate(self) -> tuple[Buffer, Buffer]:
        raise NotImplementedError

    def _time(self, first: Buffer, second: Buffer) -> float:
        """Seconds of one pass."""
        raise NotImplementedError


class CopyMeter(_DeviceMeter):
    """Copies one buffer into another; each byte counts twice, read and written."""

    @property
    def result(self) -> Bandwidth:
        return self._summary(0, self._bytes, "device", "copy")

    @property
    def _traffic(self) -> int:
        return 2 * self._bytes

    def _allocate(self) -> tuple[Buffer, Buffer]:
        return self._device.allocate(self._bytes), self._device.allocate(self._bytes)

    def _time(self, first: Buffer, second: Buffer) -> float:
        begin, end = (self._device.event(timed=True) for _ in range(2))
        begin.record()
        self._device.copy(second.address, first.address, self._bytes)
        end.record()
        end.wait()
        return max(end.since(begin) / 1000, 1e-9)


class ReadMeter(_DeviceMeter):
    """Reads one buffer with a kernel of ours and writes nothing.

    A step of a model reads its weights and writes next to nothing: this is its limit, a copy only comes near it. A
    reading raises :class:`UalmError` if the sum of what was read is wrong.
    """

    @property
    def result(self) -> Bandwidth:
        return self._summary(0, self._bytes, "device", "read")

    @cached_property
    def _blocks(self) -> int:
        return _BLOCKS * int(self._device.cuda.device_properties(self._device.index)["multiprocessors"])

    def _allocate(self) -> tuple[Buffer, Buffer]:
        data, total = self._device.allocate(self._bytes), self._device.allocate(8)
        self._device.cuda.set_bytes(data.address, 1, self._bytes, self._device.stream.handle)
        return data, total

    def _time(self, first: Buffer, second: Buffer) -> float:
        device = self._device
        begin, end = (device.event(timed=True) for _ in range(2))
        device.cuda.set_bytes(second.address, 0, 8, device.stream.handle)
        begin.record()
        device.cuda.read_memory(
            data=first.address,
            bytes=self._bytes,
            blocks=self._blocks,
            total=second.address,
            stream=device.stream.handle,
        )
        end.record()
        found = np.zeros(1, np.uint64)
        device.download(found, second.address)
        device.synchronize()
        expected = self._bytes // 8 * 0x0101010101010101 % 2**64
        if int(found[0]) != expected:
            raise UalmError(f"reading memory on the GPU gave the sum {found[0]}, {expected} is right")
        return max(end.since(begin) / 1000, 1e-9)


def describe_gpu(device: Device) -> Gpu:
    """The description of the GPU for a result."""
    about, cuda = device.cuda.device_properties(device.index), device.cuda.driver_version()
    return Gpu(
        name=about["name"],
        compute_capability="{}.{}".format(*about["capability"]),
        memory_bytes=about["memory_bytes"],
        multiprocessors=about["multiprocessors"],
        driver=driver_version(),
        cuda=f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else None,
        clocks_mhz=_clocks(),
    )


def gpu_of(engine: str | None, bundle: Bundle, max_context: int) -> Device | None:
    """The GPU that ``engine`` computes on (None: the engine that the environment names or that would be chosen).

    None if that is the CPU, or if the engine cannot run, which opening it will report.
    """
    engine = engine or os.environ.get(VARIABLE)
    names = ENGINES if not engine else [engine] if engine in ENGINES else []
    found = next((name for name in names if why_not(name, bundle, max_context) is None), CPU)
    return None if found == CPU else Device(load_kernels())


def _clocks() -> dict[str, int]:
    """Highest clocks in MHz, from nvidia-smi; empty if it does not say."""
    query = ["nvidia-smi", "--query-gpu=clocks.max.sm,clocks.max.mem", "--format=csv,noheader,nounits", "-i", "0"]
    try:
        output = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout
        processors, memory = (int(part) for part in output.split(","))
    except (OSError, subprocess.SubprocessError, ValueError):
        return {}
    return {"processors": processors, "memory": memory}
