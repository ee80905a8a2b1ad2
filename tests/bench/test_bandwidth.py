"""The read of memory does read: its sum is right, whatever the size and the number of threads."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from ualm.bench import bandwidth
from ualm.bench.bandwidth import BandwidthMeter
from ualm.runtime import UalmError, _native


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 63, 64, 65, 1000, 100_003])
@pytest.mark.parametrize("threads", [1, 2, 3, 16])
def test_every_word_is_read_once(count, threads):
    words = np.random.default_rng(count).integers(0, 2**64, count, dtype=np.uint64)
    total, seconds = _native.read_once(words, threads)
    assert total == int(words.sum(dtype=np.uint64)) and seconds >= 0


def test_the_sum_tells_a_single_word():
    words = np.zeros(4096, np.uint64)
    for at in (0, 1, 2047, 2048, 4095):
        words[at] = 1 << at % 64
        assert _native.read_once(words, 2)[0] == 1 << at % 64
        words[at] = 0


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
    monkeypatch.setattr(_native, "read_once", lambda words, threads: (len(words), words.nbytes / 20e9))
    meter = BandwidthMeter(3, buffer_bytes=1 << 20)
    meter.measure()
    meter.measure()
    found = meter.result
    assert (found.threads, found.bytes, found.passes) == (3, 1 << 20, 2 * bandwidth.PASSES)
    assert found.best == pytest.approx(20) and found.median == pytest.approx(20)


def test_a_wrong_sum_is_no_bandwidth(monkeypatch):
    monkeypatch.setattr(_native, "read_once", lambda words, threads: (len(words) - 1, 0.1))
    with pytest.raises(UalmError, match="sum"):
        BandwidthMeter(1, buffer_bytes=1 << 16).measure()
