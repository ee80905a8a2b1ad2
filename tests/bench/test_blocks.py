"""Two things are measured in turn, and no repetition is lost."""

from __future__ import annotations

import pytest

from ualm.bench.blocks import PAIRS, block_sizes, measure


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
    found = measure([case.block for case in cases], repeat, "decode", told.append)
    pairs = min(repeat, PAIRS)
    assert "".join(log) == ("abba" * pairs)[: 2 * pairs]
    for case, measured in zip(cases, found, strict=True):
        assert measured.samples("frame") == [float(at) for at in range(repeat)]
        assert [len(block) for block in measured.blocks["frame"]] == case.asked == block_sizes(repeat)
    assert max(block_sizes(repeat)) - min(block_sizes(repeat)) <= 1
    assert told[-1] == f"decode: {2 * pairs}/{2 * pairs}"
