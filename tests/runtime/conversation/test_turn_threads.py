"""Turns that are cancelled, abandoned, fail or run beside others: the session is unchanged, and no thread survives."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from support.choosing import choosing_what_it_can
from support.runs import make_run
from support.sounds import make_sound
from ualm.export.bundle import export_run
from ualm.runtime import (
    AudioSampling,
    ContextError,
    EngineError,
    InputError,
    MemoryLimitError,
    ModalityError,
    Model,
    OutputError,
    Segment,
    SegmentLimitError,
    Session,
    SessionError,
    Sound,
    TextSampling,
    TimeLimitError,
    Turn,
    _native,
)
from ualm.runtime.audio.pacing import PROFILES, Pace, Pacer
from ualm.runtime.conversation import worker as worker_module
from ualm.runtime.conversation.events import Event, SegmentEnded, SegmentStarted, SoundChunk, TurnEnded
from ualm.runtime.conversation.resources import Resources
from ualm.runtime.conversation.state import Limits
from ualm.runtime.conversation.turn import open_turn
from ualm.runtime.conversation.worker import Worker
from ualm.runtime.engines.onnxruntime.cpu import OnnxRuntimeSequence
from ualm.runtime.engines.protocol import Frames
from ualm.runtime.vocabulary import CHOOSABLE

ABLE = {"text": 4.0, "audio": 4.0}
HEARD = Sound(make_sound(0.4)[0], 16000)
#: Seconds after which a thread that should have ended counts as hung.
HUNG = 20


def open_model(folder: Path, max_context: int, **run: Any) -> Model:
    make_run(folder / "run", **run)
    bundle = export_run(folder / "run", folder / "bundle").bundle
    return Model.open(bundle, threads=1, max_context=max_context, verify="never")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """Its turns have several segments, of both kinds."""
    lean = ABLE | {"eos": 2.0, "eot": 3.0}
    with open_model(tmp_path_factory.mktemp("threads"), 1024, seed=2, lean=lean) as opened:
        yield opened


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """Its segments end only by max_steps."""
    lean = ABLE | {"eos": -40.0, "eot": -40.0, "pad": -40.0}
    with open_model(tmp_path_factory.mktemp("endless"), 16384, seed=1, lean=lean) as opened:
        yield opened


@pytest.fixture(scope="module", autouse=True)
def able_models() -> Iterator[None]:
    with choosing_what_it_can():
        yield


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + HUNG
    while not set(threading.enumerate()) <= before:
        assert time.monotonic() < deadline, threading.enumerate()
        time.sleep(0.01)


def options(seed: int = 0, steps: int = 40, modality: str | None = None, guidance: float = 3.0) -> dict[str, Any]:
    drawn = {"temperature": 0.8, "top_k": 20, "guidance": guidance, "max_steps": steps, "seed": seed}
    return {"modality": modality, "audio": AudioSampling(**drawn), "text": TextSampling(**drawn)}


FIRST, LATER = ("A dog barks.", options(1)), ([("user", HEARD), ("user", "What is it?")], options(2, modality="audio"))
#: A turn for the endless model: it takes many seconds, and would not fit into the context.
LONG = (
    "A dog barks.",
    {"modality": "audio", "audio": AudioSampling(temperature=0, guidance=1, max_steps=100_000), "text": TextSampling()},
)


def begun(model: Model, **limits: Any) -> Session:
    """A session after one turn."""
    session = model.session(**{"max_segments": 50} | limits)
    session.ask(FIRST[0], **FIRST[1])
    return session


def turn_of(session: Session, said: tuple[Any, dict[str, Any]] = LATER) -> Turn:
    return session.turn(said[0], **said[1])


def tokens(segments: list[Segment]) -> list[list[list[int]]]:
    return [segment.rows.tolist() for segment in segments]


@pytest.fixture(scope="module")
def expected(model: Model) -> list[Event]:
    """The events of ``LATER`` in an undisturbed session."""
    events = list(turn_of(begun(model)))
    assert sum(isinstance(event, SegmentEnded) for event in events) > 2 and len(events) > 12
    return events


def whole(events: list[Event]) -> list[list[list[int]]]:
    return tokens([event.result for event in events if isinstance(event, SegmentEnded)])


def assert_as_before(session: Session, expected: list[Event]) -> None:
    """The session holds only ``FIRST``, and ``LATER`` said now gives the same as without the disturbance."""
    assert session.turns == 1
    assert tokens(turn_of(session).segments()) == whole(expected)
    assert session.turns == 2


# ---- cancel ----


def test_cancel_at_any_event_takes_the_turn_back(model: Model, expected: list[Event]) -> None:
    session = begun(model)
    rows = session.rows
    for at in range(len(expected) - 1):
        turn, events = turn_of(session), []
        for event in turn:
            events.append(event)
            if len(events) == at + 1:
                turn.cancel()
                turn.cancel()
        assert [type(event) for event in events] == [*(type(event) for event in expected[: at + 1]), TurnEnded]
        assert events[-1].reason == "cancelled" and set(events[-1].seconds) >= {"total"}
        assert (session.turns, session.rows) == (1, rows)
    assert_as_before(session, expected)


@pytest.mark.parametrize("leave", ["break", "close", "error", "drop"])
def test_leaving_at_any_event_takes_the_turn_back(model: Model, expected: list[Event], leave: str) -> None:
    """Also after the last segment, when the turn's thread may have finished already."""
    session = begun(model)
    for at in range(len(expected) - 1):
        events = iter(turn_of(session))
        if leave in ("break", "error"):
            try:
                for count, _ in enumerate(turn_of(session)):
                    if count == at and leave == "break":
                        break
                    assert count < at
            except AssertionError:
                assert leave == "error"
        else:
            for _ in range(at + 1):
                next(events)
            if leave == "close":
                events.close()  # type: ignore[attr-defined]
            del events
        if at % 2:
            time.sleep(0.01)
        assert session.turns == 1
    assert_as_before(session, expected)


def test_cancel_from_another_thread_at_any_time(model: Model, expected: list[Event]) -> None:
    """Complete or taken back, never in between; and what follows is correct either way."""
    session, random = begun(model), np.random.default_rng(0)
    took = expected[-1].seconds["total"]
    outcomes = set()
    for _ in range(60):
        session.truncate(1)
        turn = turn_of(session)
        timer = threading.Timer(random.uniform(0, 1.3 * took), turn.cancel)
        timer.start()
        events = list(turn)
        timer.join()
        outcomes.add(events[-1].reason)
        if events[-1].reason == "cancelled":
            assert session.turns == 1
        else:
            assert session.turns == 2 and whole(events) == whole(expected)
    assert "cancelled" in outcomes
    session.truncate(1)
    assert_as_before(session, expected)


def test_cancel_before_the_first_event_and_after_the_last(model: Model, expected: list[Event]) -> None:
    session = begun(model)
    turn = turn_of(session)
    turn.cancel()
    assert [type(event) for event in turn] == [TurnEnded] and turn_of(session) is not turn
    cancelled = turn_of(session)
    cancelled.cancel()
    assert cancelled.segments() == []
    turn = turn_of(session)
    assert whole(list(turn)) == whole(expected)
    turn.cancel()
    assert session.turns == 2
    session.truncate(1)
    assert_as_before(session, expected)


def test_a_turn_that_is_never_iterated_costs_nothing(model: Model, expected: list[Event]) -> None:
    session = begun(model)
    for _ in range(3):
        turn_of(session)
        iter(turn_of(session))
    assert_as_before(session, expected)


@pytest.mark.parametrize("leave", ["cancel", "close"])
def test_a_slow_consumer_makes_the_turn_wait_and_loses_nothing(
    model: Model, expected: list[Event], leave: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "QUEUE_EVENTS", 2)
    session = begun(model)
    turn = turn_of(session)
    events = iter(turn)
    next(events)
    for _ in range(2):  # the queue is full, and stays full
        time.sleep(0.15)
        assert turn._worker._queue.qsize() == 2 and turn._worker._thread is not None and turn._worker._thread.is_alive()
    if leave == "cancel":
        turn.cancel()
        assert next(events) == TurnEnded("cancelled", turn._worker.seconds)
    else:
        events.close()  # type: ignore[attr-defined]
    found = []
    for event in turn_of(session):
        time.sleep(0.002)
        found.append(event)
    assert whole(found) == whole(expected) and list(map(type, found)) == list(map(type, expected))


def test_no_more_than_the_stated_number_of_events_waits(endless: Model) -> None:
    turn = endless.session().turn("A dog barks.", **options(steps=5000, modality="text", guidance=1))
    events = iter(turn)
    next(events)
    deadline = time.monotonic() + HUNG
    while turn._worker._queue.qsize() < worker_module.QUEUE_EVENTS:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.1)
    assert turn._worker._queue.qsize() == worker_module.QUEUE_EVENTS == 64


def test_cancel_while_a_sound_is_heard(model: Model, expected: list[Event], monkeypatch: pytest.MonkeyPatch) -> None:
    session = begun(model)
    other = Sound(make_sound(0.4, seed=5)[0], 16000)
    entered, go, encode = threading.Event(), threading.Event(), model.resources.engine.encode
    monkeypatch.setattr(
        model.resources.engine, "encode", lambda inputs: (entered.set(), go.wait(HUNG), encode(inputs))[-1]
    )
    turn = session.turn([("user", other), ("user", "What?")], **LATER[1])
    found: list[Event] = []
    consumer = threading.Thread(target=lambda: found.extend(turn))
    consumer.start()
    assert entered.wait(HUNG)
    turn.cancel()
    go.set()
    consumer.join(HUNG)
    assert [type(event) for event in found] == [TurnEnded] and found[0].reason == "cancelled"
    monkeypatch.setattr(model.resources.engine, "encode", encode)
    assert_as_before(session, expected)


def test_another_turn_may_begin_at_once_after_a_cancel(model: Model, endless: Model, expected: list[Event]) -> None:
    """Barge-in: the cancelled turn still computes, and its consumer has not returned for its end."""
    session = begun(model)
    events = iter(turn := turn_of(session))
    next(events)
    turn.cancel()
    assert whole(list(turn_of(session))) == whole(expected)
    assert [event.reason for event in events] == ["cancelled"]
    assert session.turns == 2
    for use in (Session.fork, lambda session: session.truncate(0), lambda session: session.save(os.devnull + "/x")):
        session = endless.session()
        events = iter(turn := turn_of(session, LONG))
        next(events)
        turn.cancel()
        with contextlib.suppress(OutputError):  # it got as far as the path that is not a folder
            use(session)
        assert session.turns == 0 and session.state.running is None
        assert [event.reason for event in events] == ["cancelled"]


def test_two_threads_that_cancel_and_begin_leave_a_session_that_is_whole(model: Model, expected: list[Event]) -> None:
    session = begun(model)
    stop = threading.Event()
    running: list[Turn] = []

    def interrupt() -> None:
        while not stop.wait(0.003):
            if running:
                running[-1].cancel()

    other = threading.Thread(target=interrupt)
    other.start()
    for _ in range(40):
        session.truncate(1)
        running.append(turn_of(session))
        events = list(running[-1])
        assert session.turns == (1 if events[-1].reason == "cancelled" else 2)
    stop.set()
    other.join()
    session.truncate(1)
    assert_as_before(session, expected)


def test_a_generator_that_the_garbage_collector_closes_on_the_turns_own_thread(
    model: Model, expected: list[Event]
) -> None:
    session = begun(model)
    turn = turn_of(session)
    events = iter(turn)
    next(events)
    assert turn._worker._thread is not None
    worker = turn._worker
    real, worker._put = worker._put, lambda event: (holder.clear(), gc.collect(), real(event))[-1]  # type: ignore[assignment]
    holder = [events]
    cycle: list[Any] = [events]
    cycle.append(cycle)
    del events, cycle
    turn._worker._thread.join(HUNG)
    assert not turn._worker._thread.is_alive()
    del turn
    assert_as_before(session, expected)


def test_the_process_may_end_in_the_middle_of_a_turn(endless: Model) -> None:
    """The iterator is alive but is not read."""
    program = (
        "import sys; from ualm.runtime import *; model = Model.open(sys.argv[1], threads=1, verify='never')\n"
        "sampling = AudioSampling(max_steps=16000, temperature=0, guidance=1)\n"
        "turns = [iter(model.session().turn('hi', modality='audio', audio=sampling)) for count in range(3)]\n"
        "for events in turns: next(events)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(endless.bundle.folder)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


# ---- one at a time ----


def test_a_session_that_is_busy_says_so(model: Model, tmp_path: Path, expected: list[Event]) -> None:
    session = begun(model)
    later = turn_of(session)
    events = iter(turn_of(session))
    next(events)
    uses: dict[str, Callable[[], object]] = {
        "begin a turn": lambda: turn_of(session),
        "truncate": lambda: session.truncate(0),
        "fork": session.fork,
        "save": lambda: session.save(tmp_path / "a.npz"),
    }
    for what, use in uses.items():
        with pytest.raises(SessionError, match=f"cannot {what} while a turn is under way; .*cancel it"):
            use()
    with pytest.raises(SessionError, match="cannot begin a turn"):
        next(iter(later))
    assert not list(tmp_path.iterdir())
    assert len(list(events)) == len(expected) - 1 and session.turns == 2
    assert later.segments() and session.turns == 3  # it was refused before, and can be read now


def test_a_turn_is_read_once(model: Model) -> None:
    session = begun(model)
    turn = turn_of(session)
    list(turn)
    with pytest.raises(SessionError, match="once; begin another"):
        list(turn)
    assert session.turns == 2
    left = turn_of(session)
    for _ in left:
        break
    with pytest.raises(SessionError, match="once"):
        left.segments()
    assert turn_of(session).segments() and session.turns == 3


def test_a_thread_that_cannot_be_started_leaves_the_session_usable(
    model: Model, expected: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = begun(model)

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            list(turn_of(session))
    assert_as_before(session, expected)


@pytest.mark.parametrize("ran", [True, False], ids=["begun", "not begun"])
@pytest.mark.parametrize("asynchronous", [False, True], ids=["for", "async for"])
def test_an_interrupt_while_a_turn_starts_leaves_no_turn_behind(
    model: Model, expected: list[Event], monkeypatch: pytest.MonkeyPatch, ran: bool, asynchronous: bool
) -> None:
    session = begun(model)
    start = threading.Thread.start

    def interrupted(self: threading.Thread) -> None:
        if self.name == "ualm-turn":
            if ran:
                start(self)
            raise KeyboardInterrupt
        start(self)

    async def read() -> None:
        async for _ in turn_of(session):
            pass

    monkeypatch.setattr(worker_module, "_START_SECONDS", 0.2)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(read()) if asynchronous else list(turn_of(session))
    assert_as_before(session, expected)


def test_time_runs_out_for_a_turn_whose_consumer_is_gone(endless: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "QUEUE_EVENTS", 1)
    turn = endless.session(time_limit=0.3).turn(LONG[0], **LONG[1])
    events = iter(turn)
    next(events)
    assert turn._worker._done.wait(HUNG)  # its thread does not wait forever for a slot in the queue
    with pytest.raises(TimeLimitError, match="time_limit"):
        list(events)


# ---- failures and limits ----


def kept(session: Session) -> str:
    return f"the turn is taken back; the session keeps its {session.turns} whole turns ({session.rows} rows)"


def test_a_choice_without_parts_keeps_the_finished_segments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = np.float32([name == "video" for name in CHOOSABLE])
    monkeypatch.setattr(OnnxRuntimeSequence, "modality_logits", lambda self: video)
    with open_model(tmp_path, 1024, seed=1, lean={"eot": 1.5}) as model:
        session = model.session()
        short = options(1, steps=8, modality="audio", guidance=1)
        assert session.ask("hello", **short)[-1].finish in ("eos", "max_steps")
        before = session.state.sequence.save()
        with pytest.raises(ModalityError, match="'video'") as error:
            session.ask("hello", **options(2, steps=900, modality="text", guidance=1))
        assert str(error.value).endswith(kept(session))
        assert [(segment.modality, segment.finish) for segment in error.value.segments] == [("text", "eot")]
        session.fork()
        np.testing.assert_array_equal(session.state.sequence.save(), before)
        assert session.ask("hello", **short) and session.turns == 2


def test_a_context_that_ends_in_the_middle(endless: Model) -> None:
    with Model.open(endless.bundle.folder, threads=1, max_context=200, verify="never") as model:
        session, other = model.session(), model.session()
        said = ("A dog barks.", options(1, steps=20, modality="text"))
        first = tokens(turn_of(session, said).segments())
        with pytest.raises(ContextError, match=r"needs 201 rows.*max_context = 200") as error:
            list(turn_of(session, LONG))
        assert str(error.value).endswith(kept(session)) and error.value.segments == []
        assert isinstance(error.value.__cause__, ContextError)
        with pytest.raises(ContextError, match="max_context = 200"):
            session.ask("!" * 300)
        assert tokens(turn_of(other, said).segments()) == first
        assert tokens(turn_of(session, said).segments()) == tokens(turn_of(other, said).segments())


@pytest.mark.parametrize("error", [EngineError, RuntimeError, MemoryError])
@pytest.mark.parametrize("part", ["encode", "open_codec_stream", "prefill", "run_frames", "begin_segment"])
def test_an_engine_that_fails_leaves_the_session_as_it_was(
    model: Model, expected: list[Event], monkeypatch: pytest.MonkeyPatch, part: str, error: type[Exception]
) -> None:
    session = begun(model)
    engine_part = part in ("encode", "open_codec_stream")
    owner = model.resources.engine if engine_part else session.state.sequence
    real, calls = getattr(owner, part), []

    def fail_late(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == (1 if engine_part else 2):
            raise error("out of order")
        return real(*arguments, **named)

    monkeypatch.setattr(owner, part, fail_late)
    heard = Sound(make_sound(0.4, seed=len(part))[0], 16000)  # not heard before
    events: list[Event] = []
    with pytest.raises(error, match="out of order") as caught:
        for event in session.turn([("user", heard), ("user", "What is it?")], **LATER[1]):
            events.append(event)
    monkeypatch.setattr(owner, part, real)
    assert not any(isinstance(event, TurnEnded) for event in events)
    if error is EngineError:
        assert str(caught.value) == f"out of order; {kept(session)}"
        assert tokens(caught.value.segments) == whole(events)
    assert_as_before(session, expected)


def test_memory_is_limited_to_the_byte(model: Model, expected: list[Event]) -> None:
    session = begun(model)
    list(turn_of(session))
    row, rows = model.resources.engine.bytes_per_row, session.rows
    enough = begun(model, memory_limit=rows * row)
    assert tokens(turn_of(enough).segments()) == whole(expected) and enough.rows == rows
    scarce = begun(model, memory_limit=rows * row - 1)
    with pytest.raises(MemoryLimitError, match=rf"needs {rows * row} bytes.*memory_limit = {rows * row - 1};") as error:
        list(turn_of(scarce))
    assert str(error.value).endswith(kept(scarce)) and scarce.turns == 1
    assert tokens(error.value.segments) == whole(expected)[: len(error.value.segments)] and error.value.segments
    tiny = model.session(memory_limit=row)
    events = []
    with pytest.raises(MemoryLimitError, match=rf"\d+ rows\), but memory_limit = {row};"):
        for event in tiny.turn("A dog."):
            events.append(event)
    assert not events and tiny.state.sequence.length == 0


@pytest.mark.parametrize("modality", ["audio", "text"])
def test_memory_of_the_closing_rows_counts(endless: Model, modality: str) -> None:
    """A segment cut by max_steps is closed with two rows."""
    said = ("A dog barks.", options(steps=20, modality=modality))
    session = endless.session()
    list(turn_of(session, said))
    limit = session.rows * endless.resources.engine.bytes_per_row
    list(turn_of(endless.session(memory_limit=limit), said))
    with pytest.raises(MemoryLimitError, match=f"needs {limit} bytes"):
        list(turn_of(endless.session(memory_limit=limit - 1), said))


def test_time_is_limited(endless: Model) -> None:
    session = endless.session(time_limit=0.15)
    started, events = time.perf_counter(), []
    with pytest.raises(TimeLimitError, match=r"time_limit = 0\.15 s;") as error:
        for event in turn_of(session, LONG):
            events.append(event)
    assert 0.15 < time.perf_counter() - started < 5 and len(events) > 2
    assert str(error.value).endswith(kept(session)) and error.value.segments == []
    instant = endless.session(time_limit=1e-9)
    with pytest.raises(TimeLimitError, match="1e-09 s"):
        list(turn_of(instant, LONG))
    assert instant.state.sequence.length == 0


def test_segments_are_limited(model: Model, expected: list[Event]) -> None:
    count = len(whole(expected))
    enough = begun(model, max_segments=50)
    enough.limits = Limits(segments=count)
    assert tokens(turn_of(enough).segments()) == whole(expected)
    scarce = begun(model)
    scarce.limits = Limits(segments=count - 1)
    with pytest.raises(SegmentLimitError, match=f"within {count - 1} segments, its max_segments;") as error:
        list(turn_of(scarce))
    assert tokens(error.value.segments) == whole(expected)[:-1] and str(error.value).endswith(kept(scarce))
    scarce.limits = Limits(segments=50)
    assert_as_before(scarce, expected)


@pytest.mark.parametrize(
    "limits",
    [{"memory_limit": value} for value in (0, -1, 1.5, True, "1")]
    + [{"time_limit": value} for value in (0, -1.0, float("nan"), True, "1", None)]
    + [{"max_segments": value} for value in (0, -1, 1.0, True, None)],
    ids=str,
)
def test_limits_that_are_none_are_refused(model: Model, limits: dict[str, Any], tmp_path: Path) -> None:
    ((name, value),) = limits.items()
    model.session().save(tmp_path / "a.npz")
    for call in (model.session, lambda **named: model.restore(tmp_path / "a.npz", **named)):
        with pytest.raises(InputError) as error:
            call(**limits)
        assert f"{name} = {value!r}: give a" in str(error.value)


# ---- limits that fall inside a call of many rows ----


@dataclass
class Calls:
    """Calls of ``run_frames``: rows held before, rows asked for and rows drawn. ``during`` is called in each."""

    made: list[tuple[int, int, int]] = field(default_factory=list)
    during: Callable[[int], object] = lambda rows: None

    @property
    def held(self) -> int:
        return max(before + drawn for before, _, drawn in self.made)


ROW_SECONDS, ROWS_A_CALL = 0.0005, 40


def in_calls(session: Session) -> Turn:
    """A turn for the endless model; at any pace, no piece is due for more rows than a call may draw."""
    drawn = options(3, steps=300, modality="audio", guidance=1.0)
    return open_turn(session.state, "A dog.", **drawn, profile="throughput", live=False)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Rows are assumed to take half a millisecond each, so that calls draw as many as they may."""
    monkeypatch.setattr(Pace, "row_seconds", ROW_SECONDS)
    found, real = Calls(), OnnxRuntimeSequence.run_frames

    def noted(self: OnnxRuntimeSequence, count: int) -> Frames:
        before = self.length
        frames = real(self, count)
        found.made.append((before, count, len(frames.rows)))
        found.during(len(frames.rows))
        return frames

    monkeypatch.setattr(OnnxRuntimeSequence, "run_frames", noted)
    return found


def test_a_sound_is_played_meanwhile_only_where_its_events_are_read(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[bool] = []
    real = Resources.builder

    def noted(self: Resources, *given: Any, live: bool) -> Any:
        found.append(live)
        return real(self, *given, live=live)

    monkeypatch.setattr(Resources, "builder", noted)
    session, drawn = model.session(), options(3, steps=12, modality="audio")
    list(session.turn("A dog.", **drawn))
    assert set(found) == {True}
    found.clear()
    turn = session.turn("A dog.", **drawn)
    before = turn._worker.options
    turn.segments()
    assert turn._worker.options is before
    session.ask("A dog.", **drawn)
    assert set(found) == {False}


def test_a_call_draws_as_many_rows_as_nobody_waits_for(endless: Model, calls: Calls) -> None:
    list(in_calls(endless.session()))
    assert calls.made[0][1] == 1 and max(asked for _, asked, _ in calls.made) == ROWS_A_CALL
    assert all(asked == drawn for _, asked, drawn in calls.made[:-1])


@pytest.mark.parametrize("inside", [1, 7, ROWS_A_CALL - 1])
def test_the_cache_outgrows_no_memory_limit_inside_a_call(endless: Model, calls: Calls, inside: int) -> None:
    list(in_calls(endless.session()))
    limit = calls.made[3][0] + inside  # rows: the fourth call would exceed it
    assert calls.made[3][1] > inside
    calls.made.clear()
    row = endless.resources.engine.bytes_per_row
    session, said = endless.session(memory_limit=limit * row), rf"needs {(limit + 1) * row} bytes.*{limit + 1} rows"
    with pytest.raises(MemoryLimitError, match=said) as told:
        list(in_calls(session))
    assert calls.held == limit and str(told.value).endswith(kept(session))
    assert max(asked for _, asked, _ in calls.made) > inside


def test_rows_before_a_context_that_ends_inside_a_call_are_handed_over(endless: Model, calls: Calls) -> None:
    with Model.open(endless.bundle.folder, threads=1, max_context=150, verify="never") as model:
        session, events = model.session(), []
        with pytest.raises(ContextError, match=r"needs 151 rows.*max_context = 150") as told:
            for event in in_calls(session):
                events.append(event)
        assert str(told.value).endswith(kept(session))
    # the call in which the context would have ended returned what it drew
    assert calls.held == 150 and calls.made[-1][2] == calls.made[-1][1] < ROWS_A_CALL
    assert [event for event in events if isinstance(event, SoundChunk)]


def test_time_that_runs_out_inside_a_call_ends_the_turn_behind_it(
    endless: Model, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    calls.during = lambda rows: clock.__setitem__(0, clock[0] + rows * ROW_SECONDS)
    monkeypatch.setattr(worker_module, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    session = endless.session(time_limit=0.1)
    with pytest.raises(TimeLimitError, match=r"time_limit = 0\.1 s;"):
        list(in_calls(session))
    drawn = sum(rows for _, _, rows in calls.made)
    *_, (_, _, last) = calls.made
    assert (drawn - last) * ROW_SECONDS <= 0.1 < drawn * ROW_SECONDS and last > 1


def test_a_turn_that_is_cancelled_inside_a_call_ends_behind_it(endless: Model, calls: Calls) -> None:
    session = endless.session()
    turn = in_calls(session)
    calls.during = lambda rows: turn.cancel() if len(calls.made) == 3 else None
    assert [type(event) for event in turn][-1] is TurnEnded
    session.truncate(0)  # waits for the turn's thread
    assert len(calls.made) == 3 and calls.made[-1][2] > 1 and session.turns == 0


@pytest.mark.parametrize(
    ("wanted", "known", "expected"),
    [
        (500, {}, 40),
        (7, {}, 7),
        (500, {"row_seconds": 0.003}, 6),
        (500, {"row_seconds": 0.03}, 1),
        (500, {"row_seconds": 0.0}, 1),
        (500, {"max_context": 112}, 12),
        (500, {"max_context": 100}, 1),
        (500, {"memory": 10 * 113 + 9}, 13),
        (500, {"memory": 10 * 99}, 1),
        (500, {"memory": 10 * 113, "max_context": 105}, 5),
    ],
)
def test_rows_of_a_call(wanted: int, known: dict[str, Any], expected: int) -> None:
    """With 100 rows held, of 10 bytes each."""
    known = {"row_seconds": ROW_SECONDS, "max_context": 1000, "memory": None} | known
    resources = SimpleNamespace(
        pace=SimpleNamespace(row_seconds=known["row_seconds"]),
        engine=SimpleNamespace(bytes_per_row=10),
        max_context=known["max_context"],
    )
    limits = SimpleNamespace(memory=known["memory"])
    state = SimpleNamespace(resources=resources, sequence=SimpleNamespace(length=100), limits=limits)
    builder: Any = SimpleNamespace(rows_to_wait=lambda: wanted)
    worker: Any = SimpleNamespace(_state=state)
    assert Worker._rows_a_call(worker, builder) == expected


# ---- many at once ----


def in_threads(calls: list[Callable[[], Any]]) -> list[Any]:
    results: list[Any] = [None] * len(calls)
    together = threading.Barrier(len(calls))

    def work(index: int) -> None:
        together.wait()
        try:
            results[index] = calls[index]()
        except BaseException as error:
            results[index] = error

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * HUNG)
        assert not thread.is_alive()
    return results


def test_eight_sessions_on_eight_threads_say_what_each_says_alone(model: Model) -> None:
    def talk(index: int) -> list[Any]:
        session = model.session(max_segments=50)
        heard = Sound(make_sound(0.3, seed=index % 3)[0], 16000)
        first = session.ask(f"Sound number {index}!" + "!" * index, **options(index))
        second = session.ask([("user", heard), ("user", "What is it?")], **options(100 + index, modality="text"))
        fork = session.fork()
        return [tokens(first), tokens(second), tokens(fork.ask("Again.", **options(index, modality="audio")))]

    def run(index: int) -> Any:
        return tokens(model.run([("user", f"Run {index}.")], max_segments=50, **options(index)))

    alone = [talk(index) for index in range(8)], [run(index) for index in range(4)]
    assert len({str(said) for said in alone[0]}) == 8
    model.resources.features._known.clear()  # encode again, immediately
    together = in_threads(
        [lambda index=index: talk(index) for index in range(8)] + [lambda index=index: run(index) for index in range(4)]
    )
    assert together == [*alone[0], *alone[1]]


def assert_others_run_during(call: Callable[[], object]) -> None:
    """Python code on this thread runs while another makes ``call``, and does not wait for its end."""
    lasted = longest = 0.0
    for _ in range(5):
        times: list[float] = []
        done = threading.Event()

        def work(times: list[float] = times, done: threading.Event = done) -> None:
            times.append(time.perf_counter())
            call()
            times.append(time.perf_counter())
            done.set()

        thread = threading.Thread(target=work)
        last, gap = time.perf_counter(), 0.0
        thread.start()
        while not done.is_set():
            now = time.perf_counter()
            gap, last = max(gap, now - last), now
        thread.join()
        lasted, longest = times[1] - times[0], gap
        if longest < lasted / 2:  # a busy machine may have kept this thread waiting, so try again
            break
    assert lasted > 0.005, "too short to judge"
    assert longest < lasted / 2


@pytest.mark.parametrize("call", ["embed", "step", "codes_to_latents"])
def test_native_calls_let_other_threads_run(call: str) -> None:
    """Python code on another thread runs during a call of a fraction of a second, and does not wait for its end."""
    rows = 1 << 20
    table, bias = np.zeros((8, 16, 64), np.float32), np.zeros(64, np.float32)

    def sampler_of(text_size: int, hidden: int) -> _native.FrameSampler:
        return _native.FrameSampler(
            codebook_size=16,
            text_size=text_size,
            audio_base=256 + text_size,
            text_base=256,
            embedding=np.zeros((256 + text_size + 8 * 17, hidden), np.float32),
            rvq_table=table,
            rvq_bias=bias,
        )

    sampler, wide = sampler_of(rows, 8), sampler_of(64, 512)
    sampler.begin_text(temperature=0.8, top_k=0, top_p=1.0, guidance=1.0, max_steps=9, seed=0, segment=0)
    logits = np.random.default_rng(0).standard_normal((1, 2 + rows)).astype(np.float32)
    ids, out = np.ones((1 << 15, 8), np.int32), np.empty((1 << 15, 512), np.float32)
    codes, latents = np.zeros((rows, 8), np.int32), np.empty((rows, 64), np.float32)
    out_of_step = np.empty(8, np.int32), np.empty(8, np.float32), np.empty(64, np.float32)
    calls = {
        "embed": lambda: wide.embed(ids, out),
        "step": lambda: sampler.step(logits, *out_of_step),
        "codes_to_latents": lambda: _native.codes_to_latents(codes, table, bias, latents),
    }
    assert_others_run_during(calls[call])


@pytest.mark.parametrize("call", ["encode", "decode_latents", "codec_stream", "prefill"])
def test_engine_calls_let_other_threads_run(endless: Model, call: str) -> None:
    engine, random = endless.resources.engine, np.random.default_rng(0)
    codec, hidden = endless.bundle.manifest.codec, endless.bundle.manifest.model.hidden_size
    heard = endless.resources.features._frontend.prepare(
        Sound(random.standard_normal(16000 * 250).astype(np.float32), 16000)
    )
    latents = random.standard_normal((60_000, codec.latent_size)).astype(np.float32)
    prompt = random.standard_normal((6_000, hidden)).astype(np.float32)
    calls = {
        "encode": lambda: engine.encode(heard.inputs),
        "decode_latents": lambda: engine.decode_latents(latents),
        "codec_stream": lambda: engine.open_codec_stream().decode(latents, last=True),
        "prefill": lambda: engine.open_sequence().prefill([prompt]),
    }
    assert_others_run_during(calls[call])


# ---- asyncio ----


def test_async_for_gives_the_same_events(model: Model, expected: list[Event]) -> None:
    async def read(session: Session) -> list[Event]:
        return [event async for event in turn_of(session)]

    session = begun(model)
    found = asyncio.run(read(session))
    assert list(map(type, found)) == list(map(type, expected)) and whole(found) == whole(expected)
    assert session.turns == 2


def test_two_sessions_take_turns_on_one_event_loop(endless: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both run at the same time: neither waits for the other's end."""
    monkeypatch.setattr(worker_module, "QUEUE_EVENTS", 2)
    order: list[int] = []
    sayings = [("One.", options(1, 300, "text")), ("Two.", options(2, 300, "text"))]

    async def read(index: int) -> list[Event]:
        events = []
        async for event in turn_of(endless.session(), sayings[index]):
            order.append(index)
            events.append(event)
            await asyncio.sleep(0)
        return events

    async def both() -> list[list[Event]]:
        return await asyncio.gather(read(0), read(1))

    found = asyncio.run(both())
    for events, said in zip(found, sayings, strict=True):
        assert whole(events) == tokens(turn_of(endless.session(), said).segments())
    changes = sum(first != second for first, second in pairwise(order))
    assert changes > 5


def test_more_async_turns_than_the_executor_has_threads(endless: Model) -> None:
    """A waiting turn takes none."""
    many = (os.cpu_count() or 1) + 10

    async def read() -> int:
        return len([event async for event in turn_of(endless.session(), ("Hi.", options(1, 8, "text")))])

    async def all_of_them() -> list[int]:
        return await asyncio.gather(*(read() for _ in range(many)))

    assert len(set(asyncio.run(all_of_them()))) == 1


@pytest.mark.parametrize("how", ["break", "aclose", "task", "timeout", "error", "cancel"])
def test_leaving_an_async_turn_takes_it_back(model: Model, endless: Model, expected: list[Event], how: str) -> None:
    session = begun(endless)
    again = begun(endless)
    said = ("Again!", options(5, 12, "text"))
    wanted = tokens(turn_of(again, said).segments())

    async def leave() -> None:
        turn = turn_of(session, LONG)
        events = turn.__aiter__()
        if how == "break":
            async for _ in turn:
                break
        elif how == "aclose":
            await events.__anext__()
            await events.aclose()
            assert [event async for event in events] == []
        elif how == "cancel":
            await events.__anext__()
            turn.cancel()
            assert [event.reason async for event in events] == ["cancelled"]
        else:
            with pytest.raises((asyncio.CancelledError, asyncio.TimeoutError, ZeroDivisionError)):
                await leave_by_exception(turn)
        # immediately, before the event loop has run again
        assert tokens([event.result async for event in turn_of(session, said) if type(event) is SegmentEnded]) == wanted

    async def leave_by_exception(turn: Turn) -> None:
        async def read() -> None:
            async for _ in turn:
                if how == "error":
                    raise ZeroDivisionError

        if how == "timeout":
            await asyncio.wait_for(read(), 0.05)
        task = asyncio.ensure_future(read())
        if how == "task":
            await asyncio.sleep(0.05)
            task.cancel()
        await task

    asyncio.run(asyncio.wait_for(leave(), HUNG))
    assert session.turns == 2


def test_an_event_loop_that_closes_in_the_middle_of_a_turn(endless: Model) -> None:
    session = endless.session()

    async def begin() -> Event:
        return await turn_of(session, LONG).__aiter__().__anext__()

    assert isinstance(asyncio.run(begin()), SegmentStarted)
    assert session.ask("Hi.", **options(1, 8, "text")) and session.turns == 1


def test_failures_come_out_of_async_for(endless: Model) -> None:
    async def read() -> None:
        async for _ in turn_of(endless.session(time_limit=0.05), LONG):
            pass

    with pytest.raises(TimeLimitError, match="0 whole turns"):
        asyncio.run(read())


# ---- memory ----


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_memory_stays_flat_over_200_turns(model: Model) -> None:
    """Warm-up: 100 turns; then 200 more. A turn makes about 40 kB of cache rows, samples and events, a new session
    touches 100 kB: keeping one of them each time would be 8 MB or more. 3 MB are allowed, for the allocator's holes.
    """
    session = model.session(max_segments=50)
    heard = [Sound(make_sound(0.3, seed=seed)[0], 16000) for seed in range(4)]

    def turns(count: int) -> None:
        nonlocal session
        for index in range(count):
            said = [("user", heard[index % 4]), ("user", "What is it?")]
            kind = index % 5
            if kind == 0:
                session.truncate(0)
            elif kind == 1:
                session.fork().ask("!", **options(index % 7, 8, "text"))
            elif kind == 2:
                session = model.session(max_segments=50)
            elif kind == 3:
                for event in session.turn(said, **options(index % 7, 40, "audio")):
                    if isinstance(event, SegmentEnded):
                        break
            session.ask(said, **options(index % 7, 40, "audio"))

    turns(100)
    gc.collect()
    before = resident()
    turns(200)
    gc.collect()
    assert resident() - before < 3 << 20


@pytest.mark.parametrize("ending", ["whole", "cancelled", "failed"])
def test_a_dropped_session_frees_its_cache_at_once(model: Model, ending: str) -> None:
    """By reference counts: nothing waits for the garbage collector, which may not run for a long time."""
    session = begun(model)
    turn = turn_of(session)
    if ending == "failed":
        session.limits = Limits(seconds=1e-9)
        with pytest.raises(TimeLimitError):
            list(turn)
    elif ending == "cancelled":
        turn.cancel()
        list(turn)
    else:
        list(turn)
    thread, cache = turn._worker._thread, weakref.ref(session.state.sequence)
    assert thread is not None
    thread.join(HUNG)
    gc.disable()
    try:
        del session, turn, thread
        assert cache() is None
    finally:
        gc.enable()


def test_the_first_samples_come_with_the_first_row_that_decides_them(
    endless: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pacer, "_steady", lambda self: None)  # whatever the pace was in earlier tests
    codec = endless.bundle.manifest.codec
    turn = endless.session().turn("A dog barks.", modality="audio", audio=AudioSampling(max_steps=60, guidance=1.0))
    first = PROFILES["balanced"].first
    # the delay pattern completes a frame 7 rows after its first one
    needed = first + math.ceil(codec.lookahead / codec.hop_length) + 7
    drawn: list[int] = []
    worker, put = turn._worker, turn._worker._put_piece
    worker._put_piece = lambda piece: (drawn.append(len(piece.builder.rows)), put(piece))  # type: ignore[assignment]
    chunks = [event for event in turn if isinstance(event, SoundChunk)]
    assert len(chunks[0].samples) == (needed - 7) * codec.hop_length - codec.lookahead
    assert first * codec.hop_length <= len(chunks[0].samples) < (first + 1) * codec.hop_length
    assert drawn[0] == 1 and needed in drawn  # several rows per call, and never past the one that was waited for
