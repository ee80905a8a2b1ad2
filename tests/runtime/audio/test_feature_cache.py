"""Each distinct sound is encoded once, in the background if requested, and kept while there is room."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.sounds import make_sound, write_sound
from ualm.runtime import EngineError, InputError, Model, Sound, TextSampling
from ualm.runtime.audio.feature_cache import FeatureCache

RATE = 16000


class CountingEngine:
    """A model's engine that counts its encodings; ``before`` is called before each one."""

    def __init__(self, model: Model) -> None:
        self._engine, self.heard = model.resources.engine, 0
        self.before: Callable[[], object] = lambda: None

    def encode(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        self.heard += 1
        self.before()
        return self._engine.encode(inputs)


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Iterator[Model]:
    with Model.open(tiny_bundle, threads=1, max_context=256, verify="never") as opened:
        yield opened


@pytest.fixture
def engine(model: Model) -> CountingEngine:
    return CountingEngine(model)


@pytest.fixture
def listener(model: Model, engine: CountingEngine) -> Iterator[FeatureCache]:
    made = FeatureCache(model.resources.features._frontend, engine)  # type: ignore[arg-type]
    yield made
    made.close()


def sound(seed: int = 0, seconds: float = 0.3) -> Sound:
    return Sound(make_sound(seconds, RATE, seed=seed)[0], RATE)


def in_threads(count: int, call: Callable[[], Any]) -> list[Any]:
    """What ``call`` returns, or raises, on ``count`` threads at once."""
    results: list[Any] = [None] * count
    together = threading.Barrier(count)

    def work(index: int) -> None:
        together.wait()
        try:
            results[index] = call()
        except BaseException as error:
            results[index] = error

    threads = [threading.Thread(target=work, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    return results


def test_equal_contents_are_heard_once(listener: FeatureCache, engine: CountingEngine) -> None:
    first = listener.features(sound())
    assert listener.features(sound()) is first  # another object, the same samples
    assert engine.heard == 1 and not first.flags.writeable and first.base is None
    for other in (sound(1), Sound(sound().samples, 8000), Sound(-sound().samples, RATE)):
        assert listener.features(other) is not first
    assert engine.heard == 4


def test_equal_contents_are_heard_once_by_threads_at_the_same_time(
    listener: FeatureCache, engine: CountingEngine
) -> None:
    entered = threading.Event()
    engine.before = lambda: entered.wait(0.05)  # long enough for all to arrive
    found = in_threads(8, lambda: listener.features(sound()))
    assert engine.heard == 1 and all(features is found[0] for features in found)


def test_what_was_started_is_waited_for_and_not_heard_again(listener: FeatureCache, engine: CountingEngine) -> None:
    go, entered = threading.Event(), threading.Event()
    engine.before = lambda: (entered.set(), go.wait(20))
    listener.start(sound())
    listener.start(sound())
    assert entered.wait(20)
    waiter = threading.Thread(target=lambda: listener.features(sound()))
    waiter.start()
    waiter.join(0.05)
    assert waiter.is_alive()
    go.set()
    waiter.join(20)
    assert not waiter.is_alive() and engine.heard == 1


def test_features_are_forgotten_by_bytes_the_oldest_first(model: Model, engine: CountingEngine) -> None:
    one = len(model.resources.features.features(sound()).tobytes())
    listener = FeatureCache(model.resources.features._frontend, engine, capacity=2 * one)  # type: ignore[arg-type]
    for seed in (0, 1, 0, 2):  # 0 is used again: 1 is the oldest when 2 comes
        listener.features(sound(seed))
    assert engine.heard == 3
    listener.features(sound(0))
    listener.features(sound(2))
    assert engine.heard == 3
    listener.features(sound(1))
    assert engine.heard == 4
    listener.features(sound(3, seconds=3))  # larger than the cache: kept until the next one comes
    listener.features(sound(3, seconds=3))
    assert engine.heard == 5
    assert sum(heard.future.result().nbytes for heard in listener._known.values()) > 2 * one
    listener.features(sound(4))
    assert sum(heard.future.result().nbytes for heard in listener._known.values()) <= 2 * one


def test_a_failure_is_raised_each_time_and_not_kept(listener: FeatureCache, engine: CountingEngine) -> None:
    def fail() -> None:
        raise EngineError("out of order")

    engine.before = fail
    for _ in range(2):
        with pytest.raises(EngineError, match="out of order"):
            listener.features(sound())
    listener.start(sound())
    found = in_threads(4, lambda: listener.features(sound()))
    assert all(isinstance(error, EngineError) for error in found)
    tries = engine.heard
    assert tries >= 3
    engine.before = lambda: None
    assert listener.features(sound()).dtype == np.float32
    assert engine.heard == tries + 1


def test_ctrl_c_on_one_thread_is_not_another_threads(listener: FeatureCache, engine: CountingEngine) -> None:
    entered = threading.Event()

    def interrupt_first() -> None:
        if engine.heard == 1:
            entered.wait(0.05)
            raise KeyboardInterrupt

    engine.before = interrupt_first
    found = in_threads(3, lambda: listener.features(sound()))
    assert sum(isinstance(result, KeyboardInterrupt) for result in found) == 1
    assert sum(isinstance(result, np.ndarray) for result in found) == 2 and engine.heard == 2


@pytest.mark.parametrize(("seconds", "piece"), [(0.001, "too short"), (301, "longer than")])
def test_a_sound_that_cannot_be_heard_is_refused_at_once(
    listener: FeatureCache, model: Model, engine: CountingEngine, seconds: float, piece: str
) -> None:
    bad = Sound(np.full(round(seconds * RATE), 0.1, np.float32), RATE)
    for call in (listener.start, listener.check, listener.features, model.listen, model.session().turn):
        with pytest.raises(InputError, match=piece):
            call(bad)
    assert engine.heard == 0


def test_a_sound_that_was_listened_to_is_used_in_a_message(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_sound(tmp_path / "a.wav", make_sound(0.4, RATE, seed=9), RATE)
    short = TextSampling(max_steps=8)
    with Model.open(model.bundle.folder, threads=1, max_context=256, verify="never") as other:
        expected = other.ask(path, "What is it?", text=short)
    heard = model.listen(path)
    model.resources.features.features(heard)
    monkeypatch.setattr(model.resources.engine, "encode", lambda inputs: pytest.fail("heard again"))
    assert model.ask(heard, "What is it?", text=short) == expected
    assert model.listen(heard) is heard


def test_closing_leaves_no_thread_and_nothing_waiting(listener: FeatureCache, engine: CountingEngine) -> None:
    before = set(threading.enumerate())
    go, entered = threading.Event(), threading.Event()
    engine.before = lambda: (entered.set(), go.wait(20))
    for seed in range(3):
        listener.start(sound(seed))
    assert entered.wait(20)
    heard: list[np.ndarray] = []
    looks = threading.Semaphore(0)
    waiting = threading.Thread(target=lambda: heard.append(listener.features(sound(0), looks.release)))
    waiting.start()
    for _ in range(2):  # before it requests the sound, and while it waits for it
        assert looks.acquire(timeout=20)
    while not listener._closed:
        closing = threading.Thread(target=listener.close)
        closing.start()
        waiting.join(0.02)
    go.set()
    for thread in (closing, waiting):
        thread.join(20)
        assert not thread.is_alive()
    assert engine.heard == 1 and len(heard) == 1  # the running one was finished, the others were not started
    assert set(threading.enumerate()) <= before
    for call in (listener.start, listener.features):
        with pytest.raises(EngineError, match="closed"):
            call(sound())


def test_a_closed_model_leaves_no_thread(tiny_bundle: Path) -> None:
    before = set(threading.enumerate())
    with Model.open(tiny_bundle, threads=1, max_context=256, verify="never") as opened:
        opened.listen(sound())
        assert set(threading.enumerate()) > before
    assert set(threading.enumerate()) <= before


def test_a_sound_that_waits_in_the_background_is_heard_by_whoever_needs_it(
    listener: FeatureCache, engine: CountingEngine
) -> None:
    go, entered = threading.Event(), threading.Event()

    def first_waits() -> None:
        if not entered.is_set():
            entered.set()
            assert go.wait(20)

    engine.before = first_waits
    for seed in range(3):
        listener.start(sound(seed))
    assert entered.wait(20)
    assert len(listener.features(sound(2)))  # the background thread still encodes the first
    assert engine.heard == 2
    go.set()
    listener.close()


def test_a_background_that_cannot_begin_leaves_the_sound_to_be_heard(
    listener: FeatureCache, engine: CountingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("concurrent.futures.ThreadPoolExecutor.submit", refuse)
    with pytest.raises(RuntimeError, match="new thread"):
        listener.start(sound())
    assert len(listener.features(sound()))
    assert engine.heard == 1


def test_waiting_for_a_sound_heard_elsewhere_can_be_ended(listener: FeatureCache, engine: CountingEngine) -> None:
    go, entered = threading.Event(), threading.Event()
    engine.before = lambda: (entered.set(), go.wait(20))
    listener.start(sound())
    assert entered.wait(20)
    looks = iter(range(3))

    def look() -> None:
        if next(looks, None) is None:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        listener.features(sound(), look)
    go.set()
    assert len(listener.features(sound()))
    assert engine.heard == 1
