"""What Linux reports about a process and the page cache."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ualm.bench.meters import memory
from ualm.bench.meters.memory import LOOK, Memory, Watcher, cached_fraction, drop_pages, memory_of, peak_rss

pytestmark = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux")


def test_memory_grows_by_what_is_taken_and_the_peak_stays():
    before = memory_of()
    taken = np.ones(8 << 20, np.uint64)
    held = memory_of()
    peak = peak_rss()
    assert before is not None and held is not None and peak is not None
    for kind in ("rss", "private", "anonymous"):
        grown = getattr(held, kind) - getattr(before, kind)
        assert 0.9 * taken.nbytes < grown < 1.5 * taken.nbytes
    del taken
    after = memory_of()
    assert after is not None and after.rss < held.rss
    assert peak_rss() >= held.rss - (2 << 20)  # the kernel counts in batches of a few pages per processor


def test_a_process_that_is_gone_has_no_memory():
    assert memory_of(2**22 + 1) is None


def test_a_watcher_sees_what_a_process_held_for_a_moment():
    code = "import time; a = bytearray(b'x') * (64 << 20); time.sleep(0.3); del a; time.sleep(0.3)"
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        watcher = Watcher(process.pid)
        process.wait()
        watcher.stop()
    assert set(watcher.peak) == {"private", "anonymous", "rss"}
    for size in watcher.peak.values():
        assert 64 << 20 <= size < 128 << 20


def test_looks_that_take_long_are_seldom(monkeypatch):
    looks = []

    def slow(process):
        looks.append(process)
        time.sleep(0.03)
        return Memory(rss=3, private=7 << 40, anonymous=5 << 40)

    monkeypatch.setattr(memory, "memory_of", slow)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        watcher = Watcher(process.pid, share=0.1)  # a sample every 0.3 s
        time.sleep(1)
        watcher.stop()
        process.kill()
    assert 2 <= len(looks) <= 4
    assert (watcher.peak["private"], watcher.peak["anonymous"]) == (7 << 40, 5 << 40)


def test_a_watcher_of_a_process_that_is_gone_has_seen_nothing():
    watcher = Watcher(2**22 + 1)
    time.sleep(3 * LOOK)
    watcher.stop()
    assert watcher.peak == {}


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_dropped_pages_are_gone_and_read_pages_are_there(tmp_path):
    file, empty = tmp_path / "a", tmp_path / "empty"
    file.write_bytes(bytes(4 << 20))
    empty.write_bytes(b"")
    drop_pages([file, empty])
    dropped = cached_fraction([file, empty])
    if dropped is None or dropped > 0.9:
        pytest.skip("this file system keeps its pages")
    assert dropped < 0.05
    with open(file, "rb") as opened:
        opened.read(2 << 20)
    half = cached_fraction([file])
    assert half is not None and 0.45 < half <= 1.0
    file.read_bytes()
    assert cached_fraction([file]) == 1.0
    assert cached_fraction([]) == 0.0
