"""What the device can do at best: copies within its memory, and launches of a captured graph."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ...runtime.engines.device import Device
from ..schema import Bandwidth, Measurement, Subject
from ..statistics import summarize
from .findings import Findings

if TYPE_CHECKING:
    from .ground import Ground

#: Bytes of a copy, far beyond any cache of a GPU, and copies a measurement.
COPY_BYTES, COPIES = 1 << 30, 12
#: Launches of a batch, and batches.
_LAUNCHES, _BATCHES = 200, 30


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
        return Bandwidth(0, self._bytes, len(self._rates), max(self._rates), float(np.median(self._rates)), "device")


def measure_limits(ground: Ground) -> Findings:
    """The stage: bandwidth is in the run's facts; launches are measurements."""
    found, device = Findings("limits"), ground.device
    with found.checking("copy bandwidth") as said:
        best = ground.meter.result
        said.append(f"{best.best:.0f} GB/s, median {best.median:.0f}, over {best.bytes >> 20} MiB")
    with found.checking("launches") as said:
        launches = _launches(device)
        subject = Subject("one small kernel", "CUDA" if device.kind == "cuda" else "host shim", None, {})
        for figure, samples in launches.items():
            summary = summarize(samples)
            found.measurements.append(Measurement("launch", subject, {"batch": _LAUNCHES}, figure, "us", summary))
            said.append(f"{figure} {summary.p50:.2f} us")
    return found


def _launches(device: Device) -> dict[str, list[float]]:
    """Microseconds a launch: on the device and in the host's call, launched plainly and as a graph; and there and back.

    The kernel clears 4 bytes: what is left is the cost of a launch.
    """
    word = device.allocate(4)

    def plain() -> None:
        device.cuda.set_bytes(word.address, 0, 4, device.stream.handle)

    graph = device.capture(plain)
    figures: dict[str, list[float]] = {}
    for name, launch in (("plain", plain), ("graph", graph.launch)):
        on_device, on_host, around = _timed(device, launch)
        figures[f"{name}, device"], figures[f"{name}, host call"] = on_device, on_host
        figures[f"{name}, there and back"] = around
    return figures


def _timed(device: Device, launch: Callable[[], None]) -> tuple[list[float], list[float], list[float]]:
    begin, end = (device.event(timed=True) for _ in range(2))
    on_device, on_host, around = [], [], []
    for _ in range(_BATCHES):
        begin.record()
        started = time.perf_counter()
        for _ in range(_LAUNCHES):
            launch()
        host = time.perf_counter() - started
        end.record()
        end.wait()
        on_device.append(1000 * end.since(begin) / _LAUNCHES)
        on_host.append(1e6 * host / _LAUNCHES)
        started = time.perf_counter()
        launch()
        end.record()
        end.wait()
        around.append(1e6 * (time.perf_counter() - started))
    return on_device, on_host, around
