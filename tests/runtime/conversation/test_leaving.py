"""Streams, turns, sessions, reasoning runs: read with ``async for``, cancelled from outside, left with a ``with``
block."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from support.scripted import Plays, Says, scripted
from ualm.runtime import (
    Model,
    ReasoningEnded,
    SegmentEnded,
    SessionError,
    SoundChunk,
    SoundStream,
    StageSound,
    StageText,
    TextDelta,
    TurnEnded,
)

LONG = Plays(1500)


@pytest.fixture(autouse=True)
def nothing_goes_on() -> Iterator[None]:
    """No test leaves a thread that computes."""
    _others.extend(thread for thread in working() if thread not in _others)  # left by other tests
    yield
    assert stopped()


#: Threads of tests of other files, which last until their turns are collected.
_others: list[threading.Thread] = []


def working() -> list[threading.Thread]:
    alive = [thread for thread in threading.enumerate() if thread.name == "ualm-turn" and thread.is_alive()]
    return [thread for thread in alive if thread not in _others]


def stopped() -> bool:
    """Whether no turn is still running: its thread ends a moment after it has released the cache. One that is not
    stopped waits for its reader forever."""
    until = time.monotonic() + 10
    while working() and time.monotonic() < until:
        time.sleep(0.01)
    return not working()


def test_a_stream_is_read_with_async_for(model: Model) -> None:
    async def read() -> list[SoundChunk]:
        return [chunk async for chunk in model.stream("a trumpet plays C5", seed=3)]

    whole = model.generate("a trumpet plays C5", seed=3).samples
    chunks = asyncio.run(read())
    assert len(chunks) > 1 and all(type(chunk) is SoundChunk for chunk in chunks)
    np.testing.assert_allclose(
        np.concatenate([chunk.samples for chunk in chunks]), whole, rtol=0, atol=1e-5 * np.abs(whole).max()
    )


def test_a_stream_waits_without_holding_up_the_event_loop(model: Model) -> None:
    async def both() -> list[int]:
        async def length() -> int:
            return sum([len(chunk.samples) async for chunk in model.stream("a trumpet plays C5", seed=3)])

        return await asyncio.gather(length(), length())

    first, second = asyncio.run(both())
    assert first == second > 0


def test_a_stream_has_the_whole_sound_in_the_end(model: Model) -> None:
    stream = model.stream("a trumpet plays C5", seed=3)
    assert stream.sound is None and stream.segment is None and stream.seed == 3
    samples = np.concatenate([chunk.samples for chunk in stream])
    assert stream.sound is not None and stream.segment is not None
    np.testing.assert_array_equal(stream.sound.samples, samples)
    assert (stream.sound.finish, stream.segment.finish, stream.sound.seed) == ("stop", "eos", 3)
    assert next(stream, None) is None


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_stream_is_cancelled_from_another_thread(model: Model, asynchronous: bool) -> None:
    with scripted(model, LONG):
        stream = model.stream("rain", profile="first_sound")
        chunks = 0

        def cancel() -> None:
            thread = threading.Thread(target=stream.cancel)
            thread.start()
            thread.join()

        async def read() -> None:
            nonlocal chunks
            async for _ in stream:
                chunks += 1
                cancel()

        if asynchronous:
            asyncio.run(read())
        else:
            for _ in stream:
                chunks += 1
                cancel()
    assert chunks == 1 and stream.sound is None


def test_a_stream_cancelled_before_it_begins_gives_nothing(model: Model) -> None:
    stream = model.stream("rain")
    stream.cancel()
    assert list(stream) == []


def test_leaving_a_with_block_of_a_stream_stops_it(model: Model) -> None:
    with scripted(model, LONG), model.stream("rain", profile="first_sound") as stream:
        assert isinstance(stream, SoundStream)
        next(stream)
        assert working()
    assert stopped()
    assert next(stream, None) is None

    async def leave() -> None:
        async with model.stream("rain", profile="first_sound") as again:
            async for _ in again:
                break
            assert working()
        assert stopped()

    with scripted(model, LONG):
        asyncio.run(leave())


def test_cancelling_the_task_that_reads_a_stream_stops_it(model: Model) -> None:
    async def read() -> None:
        stream = model.stream("rain", profile="first_sound")
        begun = asyncio.Event()

        async def consume() -> None:
            async for _ in stream:
                begun.set()

        task = asyncio.create_task(consume())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await stream.aclose()

    with scripted(model, LONG):
        asyncio.run(read())


def test_a_stream_is_read_in_one_way(model: Model) -> None:
    async def first(stream: SoundStream) -> SoundChunk:
        return await stream.__anext__()

    with scripted(model, LONG, LONG):
        with model.stream("rain", profile="first_sound") as stream:
            next(stream)
            with pytest.raises(SessionError, match="read with `for`"):
                asyncio.run(first(stream))

        async def other_way() -> None:
            async with model.stream("rain", profile="first_sound") as stream:
                await stream.__anext__()
                with pytest.raises(SessionError, match="read with `async for`"):
                    next(stream)

        asyncio.run(other_way())


def test_leaving_a_with_block_of_a_turn_takes_it_back(model: Model) -> None:
    session = model.session()
    with scripted(model, Says("yes"), LONG):
        with session.turn("one", modality="text") as turn:
            assert [type(event) for event in turn][-1] is TurnEnded
        with session.turn("two", modality="audio", profile="first_sound") as turn:
            assert any(isinstance(event, SoundChunk) for event in turn)
            assert working()
        assert stopped()
    assert session.turns == 1
    with session.turn("three"):
        pass  # never started
    assert session.turns == 1


def test_leaving_a_with_block_of_a_session_closes_it(model: Model) -> None:
    with scripted(model, Says("yes"), LONG):
        with model.session() as session:
            session.ask("one", modality="text")
            other = session.fork()
            turn = iter(session.turn("two", modality="audio", profile="first_sound"))
            assert any(isinstance(event, SoundChunk) for event in turn)
            assert working()
        assert stopped()
    assert session.turns == 1 and not hasattr(session, "_sequence")
    calls: list[Callable[[], object]] = [
        lambda: session.turn("three"),
        lambda: session.ask("three"),
        session.fork,
        lambda: session.truncate(0),
        lambda: session.save("x.npz"),
    ]
    for call in calls:
        with pytest.raises(SessionError, match="the session is closed; begin another"):
            call()
    session.close()
    with scripted(model, Says("still there")):
        assert other.ask("four", modality="text")[0].text == "still there"


def test_a_reasoning_is_read_with_async_for(model: Model) -> None:
    async def read() -> list[object]:
        return [event async for event in model.reason("a trumpet plays C5", seed=3)]

    whole = model.reason("a trumpet plays C5", seed=3).result()
    events = asyncio.run(read())
    assert isinstance(events[-1], ReasoningEnded) and events[-1].result.ended == "done"
    assert events[-1].result.caption == whole.caption
    assert whole.sound is not None and events[-1].result.sound is not None
    np.testing.assert_array_equal(events[-1].result.sound.codes, whole.sound.codes)
    assert "".join(event.text for event in events if isinstance(event, StageText)) == whole.caption


def test_a_dialogue_asks_for_its_turns_while_it_is_read_with_async_for(model: Model) -> None:
    async def read() -> list[str]:
        return [event.text async for event in model.reason(iter(["one", "two"]), "dialogue") if hasattr(event, "text")]

    with scripted(model, Says("first"), Says("second")):
        assert "".join(asyncio.run(read())) == "firstsecond"


@pytest.mark.parametrize("way", ["left", "cancelled task", "cancel"])
def test_leaving_a_reasoning_that_is_read_with_async_for_stops_it(model: Model, way: str) -> None:
    async def read() -> None:
        reasoning = model.reason("rain")
        begun = asyncio.Event()

        async def consume() -> bool:
            async for event in reasoning:
                if isinstance(event, StageSound):
                    begun.set()
                    if way == "left":
                        return True
                    if way == "cancel":
                        reasoning.cancel()
                if isinstance(event, ReasoningEnded):
                    return event.result.ended == "cancelled"
            return False

        task = asyncio.create_task(consume())
        if way == "cancelled task":
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            assert await task
        await asyncio.to_thread(reasoning.join)  # cancelled already: this only waits
        assert reasoning.session.turns == 0

    with scripted(model, Says("a caption", finish="eot"), LONG):
        asyncio.run(read())


def test_leaving_a_with_block_of_a_reasoning_stops_it(model: Model) -> None:
    with scripted(model, Says("a caption", finish="eot"), LONG):
        with model.reason("rain") as reasoning:
            assert any(isinstance(event, StageSound) for event in reasoning)
            assert working()
        assert stopped()
    assert reasoning.session.turns == 0


def test_what_was_read_to_its_end_keeps_counting_when_its_block_is_left(model: Model) -> None:
    with scripted(model, Says("yes")), model.session() as session:
        with session.turn("one", modality="text") as turn:
            events = list(turn)
        assert [type(event) for event in events[-2:]] == [SegmentEnded, TurnEnded]
        assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "yes"
        assert session.turns == 1


def test_an_async_block_of_a_session_stops_its_turn_and_gives_the_cache_back(model: Model) -> None:
    async def read() -> None:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        beside = asyncio.create_task(tick())
        async with model.session() as session:
            async for event in session.turn("rain", modality="audio", profile="first_sound"):
                if isinstance(event, SoundChunk):
                    break
            before = ticks
        assert ticks > before, "the event loop runs while the turn is awaited"
        beside.cancel()
        assert stopped()
        with pytest.raises(SessionError, match="the session is closed"):
            session.turn("rain")
        await session.aclose()  # nothing happens

    with scripted(model, LONG):
        asyncio.run(read())
