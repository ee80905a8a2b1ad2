"""The device's limits: copies within its memory, and launches of a captured graph."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ...runtime.engines.device.device import Device
from ..report.schema import Measurement, Subject
from ..report.statistics import summarize
from .findings import Findings

if TYPE_CHECKING:
    from .context import Ground

#: Launches of a batch, and batches.
_LAUNCHES, _BATCHES = 200, 30
#: GB/s that no memory reaches: a higher figure means that the clock is broken.
_IMPOSSIBLE = 1e5


def measure_limits(ground: Ground) -> Findings:
    """The stage: bandwidth is part of the run's facts; launches are measurements."""
    found, device = Findings("limits"), ground.device
    with found.checking("copy bandwidth") as details:
        best = ground.meter.result
        for rate in (best.best, best.median):
            assert 0 < rate < _IMPOSSIBLE, f"{rate:g} GB/s: the copies, or the clock that timed them, are broken"
        details.append(f"{best.best:.0f} GB/s, median {best.median:.0f}, over {best.bytes >> 20} MiB")
    with found.checking("launches") as details:
        launches = _launches(device)
        subject = Subject("one small kernel", "CUDA" if device.kind == "cuda" else "host shim", None, {})
        for figure, samples in launches.items():
            summary = summarize(samples)
            assert 0 < summary.p50 < math.inf, f"{figure}: {summary.p50:g} us: the clock is broken"
            found.measurements.append(Measurement("launch", subject, {"batch": _LAUNCHES}, figure, "us", summary))
            details.append(f"{figure} {summary.p50:.2f} us")
    return found


def _launches(device: Device) -> dict[str, list[float]]:
    """Microseconds per launch: on the device and in the host's call, as a plain launch and as a graph; and the round
    trip.

    The kernel clears 4 bytes, so that the time is the cost of a launch.
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
