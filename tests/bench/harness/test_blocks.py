"""Two things are measured in turn, and no repetition is lost."""

from __future__ import annotations

import pytest

from ualm.bench.harness.blocks import (
    BLOCK_SECONDS,
    MOST,
    PACED_BLOCKS,
    PAIRS,
    block_sizes,
    measure,
    most_in_a_block,
    paced_sizes,
)
from ualm.bench.report.statistics import MIN_PAIRS


class Recorder:
    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log, self.asked = name, log, []

    def block(self, count: int) -> dict[str, list[float]]:
        self.log.append(self.name)
        start = sum(self.asked)
        self.asked.append(count)
        return {"frame": [float(start + at) for at in range(count)]}


@pytest.mark.parametrize("repeat", [1, 2, 7, 12, 13, 96, 100])
def test_two_cases_alternate_as_abba_and_every_sample_is_kept(repeat):
    log: list[str] = []
    told: list[str] = []
    cases = [Recorder("a", log), Recorder("b", log)]
    found = measure([case.block for case in cases], block_sizes(repeat), "decode", told.append)
    pairs = min(repeat, PAIRS)
    assert "".join(log) == ("abba" * pairs)[: 2 * pairs]
    for case, measured in zip(cases, found, strict=True):
        assert measured.samples("frame") == [float(at) for at in range(repeat)]
        assert [len(block) for block in measured.blocks["frame"]] == case.asked == block_sizes(repeat)
    assert max(block_sizes(repeat)) - min(block_sizes(repeat)) <= 1
    assert told[-1] == f"decode: {2 * pairs}/{2 * pairs}"


def test_a_reading_is_taken_before_the_first_block_and_after_each():
    log: list[str] = []
    cases = [Recorder("a", log), Recorder("b", log)]
    readings = iter(range(100))

    def read() -> float:
        log.append("-")
        return float(next(readings))

    mine, other = measure([case.block for case in cases], [2, 2], "decode", lambda text: None, read)
    assert "".join(log) == "-a-b-b-a-"
    assert (mine.readings_around, other.readings_around) == (((0, 1), (3, 4)), ((1, 2), (2, 3)))


@pytest.mark.parametrize("seconds", [1e-5, 0.002, 0.0124, 0.0401, 0.06, 0.0999, 0.181, 2.0])
@pytest.mark.parametrize("repeat", [None, 1, 7, 12, 24, 48, 96, 240, 5000])
def test_paced_blocks_last_as_long_as_memory_stays_the_same(seconds, repeat):
    sizes = paced_sizes(repeat, 96, seconds)
    assert max(sizes) - min(sizes) <= 1 and min(sizes) >= 1 and max(sizes) <= most_in_a_block(repeat)
    assert sum(sizes) == repeat if repeat else sum(sizes) >= 96
    assert max(sizes) == 1 or max(sizes) * seconds <= 0.1
    if repeat is None:
        assert len(sizes) >= PACED_BLOCKS > MIN_PAIRS
        assert min(sizes) * seconds >= 0.025 or min(sizes) == MOST
    else:
        assert len(sizes) >= min(repeat, PAIRS)
        assert len(sizes) == min(repeat, PAIRS) or min(sizes) * seconds >= 0.025 or max(sizes) == MOST
    assert BLOCK_SECONDS < 0.1
