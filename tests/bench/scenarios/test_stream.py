"""The player that starts with the first chunk, compared with one that counts sample by sample."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ualm.bench.scenarios.stream import PLAYABLE_SECONDS, Heard, heard

RATE = 100  # Hz; arrivals are whole samples, so that the slow player below is exact


def slow_player(arrivals: list[tuple[int, int]]) -> tuple[int, int]:
    """Underruns and silent samples of a player that takes one sample per tick from the first arrival on."""
    buffer = underruns = silent = 0
    running = True
    at, waiting = arrivals[0][0], list(arrivals)
    while waiting or buffer:
        while waiting and waiting[0][0] <= at:
            buffer += waiting.pop(0)[1]
        if buffer:
            buffer -= 1
            running = True
        else:
            underruns, silent = underruns + running, silent + 1
            running = False
        at += 1
    return underruns, silent


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 25)), min_size=1, max_size=12))
def test_underruns_and_silence_are_those_of_a_player_that_counts(steps):
    arrivals, at = [], 5
    for wait, samples in steps:
        at += wait
        arrivals.append((at, samples))
    found = heard([(tick / RATE, samples) for tick, samples in arrivals], RATE)
    underruns, silent = slow_player(arrivals)
    assert found.underruns == underruns
    assert found.stall * RATE == pytest.approx(silent, abs=1e-6)


def test_a_chunk_is_playable_when_a_tenth_of_a_second_is_there_or_all_of_it():
    wanted = int(PLAYABLE_SECONDS * RATE)
    assert heard([(1.0, wanted - 1), (2.0, 1), (3.0, 50)], RATE) == Heard(2.0, 2, pytest.approx(1.9))
    assert heard([(1.0, 2), (2.0, 3)], RATE).playable == 2.0
    assert heard([(1.0, wanted)], RATE) == Heard(1.0, 0, 0.0)
