"""Measures one thing, or two in turn: A B B A A B B A ..., so that a drift of the machine affects both equally."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

#: Number of pairs of blocks that repetitions are divided into; more than ``statistics.MIN_PAIRS``.
PAIRS = 12
#: Seconds of a block that is compared with readings beside it: as long as memory speed can be expected to stay
#: constant.
BLOCK_SECONDS = 0.075
#: Least number of such blocks if no number of repetitions is given, and the most repetitions of one.
PACED_BLOCKS, MOST = 24, 64

#: Seconds (or another unit) of each figure: one number per repetition.
Samples = Mapping[str, Sequence[float]]
#: Runs a number of repetitions and returns their samples.
Block = Callable[[int], Samples]
#: Called with what is being measured, for a live line.
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Measured:
    """Samples of each figure, block by block in the order of measurement.

    ``readings_around``: the readings before and after each block; empty if there were none.
    """

    blocks: Mapping[str, tuple[tuple[float, ...], ...]]
    readings_around: tuple[tuple[float, float], ...] = ()

    def samples(self, figure: str) -> list[float]:
        """All samples of a figure."""
        return [value for block in self.blocks[figure] for value in block]


def measure(
    cases: Sequence[Block],
    sizes: Sequence[int],
    text: str,
    progress: Progress,
    read: Callable[[], float] | None = None,
) -> list[Measured]:
    """Run each of one or two cases in blocks of ``sizes`` repetitions; returns their samples in the order of ``cases``.

    ``read``: takes a reading, before the first block and after each; a reading between two blocks counts for both.
    ``progress`` is called with ``text`` and the number of finished blocks.
    """
    taken: list[dict[str, list[tuple[float, ...]]]] = [{} for _ in cases]
    readings_around: list[list[tuple[float, float]]] = [[] for _ in cases]
    done = 0
    before = None if read is None else read()
    for at, size in enumerate(sizes):
        order = range(len(cases)) if at % 2 == 0 else reversed(range(len(cases)))
        for case in order:
            for figure, values in cases[case](size).items():
                taken[case].setdefault(figure, []).append(tuple(values))
            if read is not None and before is not None:
                after = read()
                readings_around[case].append((before, after))
                before = after
            done += 1
            progress(f"{text}: {done}/{len(sizes) * len(cases)}")
    return [
        Measured({figure: tuple(blocks) for figure, blocks in each.items()}, tuple(readings))
        for each, readings in zip(taken, readings_around, strict=True)
    ]


def block_sizes(repeat: int) -> list[int]:
    """Divide ``repeat`` into at most :data:`PAIRS` blocks whose sizes differ by at most one."""
    return _divided(repeat, min(repeat, PAIRS))


def paced_sizes(repeat: int | None, default: int, seconds: float) -> list[int]:
    """Blocks of about :data:`BLOCK_SECONDS` if a repetition takes ``seconds``; sizes differ by at most one.

    ``repeat``: total number of repetitions; they make at least :data:`PAIRS` blocks, shorter ones if necessary. None:
    ``default``, or as many more as make :data:`PACED_BLOCKS`.
    """
    most = min(MOST, max(1, round(BLOCK_SECONDS / seconds)))
    least = PAIRS
    if repeat is None:
        repeat, least = max(default, PACED_BLOCKS * most), PACED_BLOCKS
    return _divided(repeat, max(min(repeat, least), -(-repeat // most)))


def most_in_a_block(repeat: int | None) -> int:
    """The most repetitions that a block can have, however they are divided."""
    return MOST if repeat is None else max(block_sizes(repeat))


def _divided(repeat: int, count: int) -> list[int]:
    return [repeat // count + (at < repeat % count) for at in range(count)]
