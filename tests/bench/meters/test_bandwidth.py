"""The memory read really reads: its sum is correct for any size and number of threads."""

from __future__ import annotations

import math
import platform
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from ualm.bench.meters import bandwidth
from ualm.bench.meters.bandwidth import BandwidthMeter
from ualm.runtime import UalmError, _native


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 63, 64, 65, 1000, 100_003])
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("kernel", _native.READ_KERNELS)
def test_every_word_is_read_once(kernel, count, threads):
    words = np.random.default_rng(count).integers(0, 2**64, count + 3, dtype=np.uint64)
    for start in range(4 if threads == 1 else 1):  # wherever a cache line begins
        part = words[start : start + count]
        total, seconds = _native.read_once(part, threads, kernel)
        assert total == int(part.sum(dtype=np.uint64)) and seconds >= 0


@pytest.mark.parametrize("kernel", _native.READ_KERNELS)
def test_the_sum_tells_a_single_word(kernel):
    words = np.zeros(4096, np.uint64)
    for at in (0, 1, 2047, 2048, 4095):
        words[at] = 1 << at % 64
        assert _native.read_once(words, 2, kernel)[0] == 1 << at % 64
        words[at] = 0


def test_kernels_are_those_that_this_cpu_has():
    names = _native.READ_KERNELS
    assert names[-1] == "portable" and len(set(names)) == len(names)
    if platform.system() == "Linux" and platform.machine() == "x86_64":
        flags = set(Path("/proc/cpuinfo").read_text().split())
        assert ("avx512" in names, "avx2" in names) == ("avx512f" in flags, "avx2" in flags)
    elif platform.machine() == "aarch64":
        assert names == ("neon", "neonx4", "portable")


def test_a_kernel_that_this_cpu_has_not_is_refused_with_those_that_it_has():
    missing = "neon" if "neon" not in _native.READ_KERNELS else "avx2"
    with pytest.raises(ValueError, match=f"kernel = '{missing}': this CPU runs .*portable"):
        _native.read_once(np.zeros(8, np.uint64), 1, missing)


@pytest.mark.parametrize(
    ("words", "threads", "kind", "piece"),
    [
        (np.zeros(8, np.int64), 1, TypeError, "uint64"),
        (np.zeros((2, 8), np.uint64), 1, ValueError, "shape"),
        (np.zeros(16, np.uint64)[::2], 1, ValueError, "contiguous"),
        (np.zeros(8, np.uint64), 0, ValueError, "threads = 0"),
        (np.zeros(8, np.uint64), 1 << 20, ValueError, "threads"),
    ],
)
def test_bad_arguments_are_refused(words, threads, kind, piece):
    with pytest.raises(kind, match=piece):
        _native.read_once(words, threads)


def test_other_python_threads_run_meanwhile():
    words, ticks, over = np.ones(32 << 20, np.uint64), [0], threading.Event()

    def tick() -> None:
        while not over.is_set():
            ticks[0] += 1
            time.sleep(0.0005)

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        before = ticks[0]
        for _ in range(4):
            _native.read_once(words, 1)
        assert ticks[0] > before
    finally:
        over.set()
        thread.join()


def test_the_meter_gives_bytes_over_seconds(monkeypatch):
    monkeypatch.setattr(_native, "read_once", lambda words, threads, kernel: (len(words), words.nbytes / 20e9))
    meter = BandwidthMeter(3, buffer_bytes=1 << 20)
    meter.measure()
    assert meter.read() == pytest.approx(20)
    found, passes = meter.result, math.ceil(bandwidth.READING_SECONDS / ((1 << 20) / 20e9))
    assert (found.threads, found.bytes, found.readings) == (3, 1 << 20, bandwidth.READINGS + 1)
    assert found.passes == passes * (bandwidth.READINGS + 1) and 0.025 <= bandwidth.READING_SECONDS <= 0.1
    assert found.best == found.median == found.worst == pytest.approx(20)


def test_only_kernels_of_this_cpu_are_tried_and_the_fastest_is_named(monkeypatch):
    seconds, tried = {"wide": 1.2e-3, "odd": 1e-3, "portable": 2e-3}, set()

    def read_once(words: np.ndarray, threads: int, kernel: str) -> tuple[int, float]:
        tried.add(kernel)
        return len(words), seconds[kernel]

    monkeypatch.setattr(_native, "read_once", read_once)
    for names, best in ((("wide", "odd", "portable"), "odd"), (("wide", "portable"), "wide")):
        monkeypatch.setattr(_native, "READ_KERNELS", names)
        meter = BandwidthMeter(1, buffer_bytes=1 << 20)
        meter.measure()
        assert meter.result.kernel == best and tried == set(names)
        assert meter.result.best == pytest.approx((1 << 20) / seconds[best] / 1e9)
        tried.clear()


def test_memory_is_held_between_readings_and_not_behind_a_measurement():
    meter = BandwidthMeter(1, buffer_bytes=1 << 20, reading_seconds=1e-4)
    meter.read()
    held = meter._words
    meter.read()
    assert held is not None and meter._words is held
    meter.measure()
    assert meter._words is None


def test_a_wrong_sum_is_no_bandwidth(monkeypatch):
    monkeypatch.setattr(_native, "read_once", lambda words, threads, kernel: (len(words) - 1, 0.1))
    with pytest.raises(UalmError, match="sum"):
        BandwidthMeter(1, buffer_bytes=1 << 16).measure()
