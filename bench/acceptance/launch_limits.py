"""The device's limits: copies within its memory and reads of it, and launches of a kernel and of captured graphs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ...runtime.engines.device.device import Device
from ..meters.gpu import ReadMeter
from ..report.schema import Bandwidth, Measurement, Subject
from ..report.statistics import summarize
from .findings import Findings

if TYPE_CHECKING:
    from .context import Ground

#: Launches of a batch, and batches.
_LAUNCHES, _BATCHES = 200, 30
#: Launches in the graph of many: about those of a step of the 1.5B shape.
_NODES = 200
#: Readings of the bandwidth, and bytes of one in a rehearsal.
_READINGS, _REHEARSAL_BYTES = 25, 4 << 20
#: GB/s that no memory reaches: a higher figure means that the clock is broken.
_IMPOSSIBLE = 1e5


def measure_limits(ground: Ground, found: Findings) -> None:
    """The stage: copies are part of the run's facts; reads and launches are measurements."""
    device = ground.device
    with found.checking("copy bandwidth") as details:
        details.append(_rates(ground.meter.result))
    with found.checking("read bandwidth") as details:
        reading = _read_meter(ground)
        rates = [reading.read() for _ in range(_READINGS)]
        details.append(_rates(reading.result))
        subject = Subject("a kernel that reads and writes nothing", _name(device), None, {})
        size = {"bytes": reading.result.bytes}
        found.measurements.append(Measurement("memory", subject, size, "read", "GB/s", summarize(rates)))
    with found.checking("launches") as details:
        launches = _launches(device)
        subject = Subject("one small kernel", _name(device), None, {})
        for figure, samples in launches.items():
            summary = summarize(samples)
            assert 0 < summary.p50 < math.inf, f"{figure}: {summary.p50:g} us: the clock is broken"
            found.measurements.append(Measurement("launch", subject, {"batch": _LAUNCHES}, figure, "us", summary))
            details.append(f"{figure} {summary.p50:.2f} us")


def _name(device: Device) -> str:
    return "CUDA" if device.kind == "cuda" else "host shim"


def _read_meter(ground: Ground) -> ReadMeter:
    return ReadMeter(ground.device, nbytes=_REHEARSAL_BYTES) if ground.dry_run else ReadMeter(ground.device)


def _rates(found: Bandwidth) -> str:
    for rate in (found.best, found.median):
        assert 0 < rate < _IMPOSSIBLE, f"{rate:g} GB/s: the {found.kernel}, or the clock that timed it, is broken"
    return f"{found.best:.0f} GB/s, median {found.median:.0f}, over {found.bytes >> 20} MiB"


def _launches(device: Device) -> dict[str, list[float]]:
    """Microseconds per launch: on the device and in the host's call, as a plain launch, as a graph of one, and as one
    of many in a graph; and the round trip.

    The kernel is the one that begins a segment: one thread, so that the time is the cost of a launch.
    """
    cuda, state, word = device.cuda, device.allocate(device.cuda.STATE_BYTES), device.allocate(8)
    options = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "guidance": 1.0, "max_steps": 9, "seed": 0, "segment": 0}

    def plain() -> None:
        cuda.begin_segment(
            state=state.address, progress=word.address, kind="text", stream=device.stream.handle, **options
        )

    def many() -> None:
        for _ in range(_NODES):
            plain()

    graph, chain = device.capture(plain), device.capture(many)
    figures: dict[str, list[float]] = {}
    for name, launch, nodes in (("plain", plain, 1), ("graph", graph.launch, 1), ("node", chain.launch, _NODES)):
        on_device, on_host, around = _timed(device, launch, _LAUNCHES // nodes)
        figures[f"{name}, device"] = [each / nodes for each in on_device]
        if nodes == 1:
            figures[f"{name}, host call"], figures[f"{name}, there and back"] = on_host, around
    return figures


def _timed(device: Device, launch: Callable[[], None], count: int) -> tuple[list[float], list[float], list[float]]:
    begin, end = (device.event(timed=True) for _ in range(2))
    on_device, on_host, around = [], [], []
    for _ in range(_BATCHES):
        begin.record()
        started = time.perf_counter()
        for _ in range(count):
            launch()
        host = time.perf_counter() - started
        end.record()
        end.wait()
        on_device.append(1000 * end.since(begin) / count)
        on_host.append(1e6 * host / count)
        started = time.perf_counter()
        launch()
        end.record()
        end.wait()
        around.append(1e6 * (time.perf_counter() - started))
    return on_device, on_host, around
