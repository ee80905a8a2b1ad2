"""Cores pass a cache line to each other; the time is reported, and if it changes meanwhile a note says so."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

from ualm.bench.harness import measure as scenario
from ualm.bench.harness.protocol import Derived
from ualm.bench.meters import core_distance
from ualm.bench.meters.core_distance import BATCHES, DistanceMeter
from ualm.bench.report.schema import RoundTrip, Subject
from ualm.runtime import _native


def test_a_line_takes_its_time_there_and_back():
    """No upper bound: on a busy machine the threads wait for a core."""
    for turns in (1, 200, 4000):
        started = time.perf_counter()
        mean = _native.core_round_trip(turns)
        assert 1e-9 < mean <= (time.perf_counter() - started) / turns


def test_other_python_threads_run_meanwhile():
    done = threading.Event()

    def turns() -> None:
        for _ in range(20):
            _native.core_round_trip(2000)
        done.set()

    thread = threading.Thread(target=turns)
    thread.start()
    ticks = 0
    while not done.is_set():
        ticks += 1
        time.sleep(0.0002)
    thread.join()
    assert ticks > 1


@pytest.mark.parametrize("turns", [0, -3])
def test_no_turns_are_refused(turns):
    with pytest.raises(ValueError, match=f"turns = {turns}"):
        _native.core_round_trip(turns)


def meter_of(monkeypatch: pytest.MonkeyPatch, seconds: list[float], threads: int = 2, cores: int = 2) -> DistanceMeter:
    left = iter(seconds)
    monkeypatch.setattr(_native, "core_round_trip", lambda turns: next(left))
    monkeypatch.setattr(core_distance, "cores", lambda: cores)
    return DistanceMeter(threads)


def test_a_sample_is_its_best_batch(monkeypatch):
    batches = [9e-8] * (BATCHES - 1) + [5e-8] + [5e-5] * (BATCHES - 1) + [3e-7] + [6e-8] * BATCHES
    waited = [3e-4] * BATCHES  # a thread waited for a core: not a distance
    meter = meter_of(monkeypatch, [*waited, *batches])
    for _ in range(4):
        meter.measure()
    found = meter.result
    assert found is not None and found.samples == 3
    assert (found.best, found.median, found.worst) == pytest.approx((50, 60, 300))


@pytest.mark.parametrize(("threads", "cores"), [(1, 8), (4, 1)])
def test_one_thread_or_one_core_has_no_distance(monkeypatch, threads, cores):
    meter = meter_of(monkeypatch, [], threads, cores)
    meter.measure()
    assert meter.result is None


class _Instant:
    """A scenario, a subject and a case in one, which do nothing."""

    name, units, compared, default_repeat = "instant", {"figure": "ms"}, (), 3
    about = Subject("nothing", "none", None, {})

    def open(self, *_: Any, **__: Any) -> _Instant:
        return self

    def block(self, count: int) -> dict[str, list[float]]:
        return {"figure": [1.0] * count}

    def derive(self, *_: Any) -> Derived:
        return Derived()

    def close(self) -> None: ...


@pytest.mark.parametrize(("far", "told"), [(3.4e-7, True), (7e-8, False)])
def test_cores_that_moved_are_told(monkeypatch, small_buffer, far, told):
    """One sample before the blocks and one after each."""
    meter_of(monkeypatch, [5e-8] * 2 * BATCHES + [far] * 2 * BATCHES)
    report = scenario.measure_subjects(
        _Instant(), [_Instant()], [{}], threads=2, repeat=3, seed=0, load_average=None, libraries=(),
        progress=lambda text: None,
    )  # fmt: skip
    trip = report.run.core_round_trip
    assert isinstance(trip, RoundTrip) and trip.samples == 4
    assert np.allclose((trip.best, trip.worst), (50, 1e9 * far))
    assert any("between two cores" in note for note in report.notes) == told
