"""A GPU as the bench sees it: what it is, and how fast it copies within its memory."""

from __future__ import annotations

import os
import subprocess

import numpy as np

from ..runtime.bundle import Bundle
from ..runtime.engines.device import Device
from ..runtime.engines.device_check import driver_version, load_kernels
from ..runtime.engines.selection import CPU, ENGINES, VARIABLE, why_not
from .schema import Bandwidth, Gpu

#: Bytes of a copy, far beyond any cache of a GPU, and copies a measurement.
COPY_BYTES, COPIES = 1 << 30, 12


class CopyMeter:
    """Copies one buffer into another on the device, timed by its own clock; see ``scenario.Meter``."""

    def __init__(self, device: Device, *, nbytes: int = COPY_BYTES) -> None:
        free, _ = device.memory()
        self._device, self._bytes = device, min(nbytes, free // 4)
        self._rates: list[float] = []

    def measure(self) -> None:
        device, size = self._device, self._bytes
        source, target = device.allocate(size), device.allocate(size)
        marks = [device.event(timed=True) for _ in range(2)]
        for each in range(COPIES + 1):
            marks[0].record()
            device.copy(target.address, source.address, size)
            marks[1].record()
            marks[1].wait()
            if each:  # the first meets memory that was never touched
                self._rates.append(2 * size / max(marks[1].since(marks[0]), 1e-6) / 1e6)

    @property
    def result(self) -> Bandwidth:
        """What all copies so far say."""
        return Bandwidth(0, self._bytes, len(self._rates), max(self._rates), float(np.median(self._rates)), "device")


def describe_gpu(device: Device) -> Gpu:
    """The GPU as a result describes it."""
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

    None where that is the CPU, and where the engine cannot run, of which opening it will tell.
    """
    engine = engine or os.environ.get(VARIABLE)
    names = ENGINES if not engine else [engine] if engine in ENGINES else []
    found = next((name for name in names if why_not(name, bundle, max_context) is None), CPU)
    return None if found == CPU else Device(load_kernels())


def _clocks() -> dict[str, int]:
    """Highest clocks in MHz, by nvidia-smi; empty where it does not say."""
    query = ["nvidia-smi", "--query-gpu=clocks.max.sm,clocks.max.mem", "--format=csv,noheader,nounits", "-i", "0"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout
        processors, memory = (int(part) for part in said.split(","))
    except (OSError, subprocess.SubprocessError, ValueError):
        return {}
    return {"processors": processors, "memory": memory}
