"""Measuring one thing, or two in turn: A B B A A B B A ..., so that a drift of the machine falls on both alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

#: Pairs of blocks that repetitions are divided into; more than ``statistics.MIN_PAIRS``.
PAIRS = 12

#: Seconds (or another unit) of each figure: one number a repetition.
Samples = Mapping[str, Sequence[float]]
#: Runs a number of repetitions and returns their samples.
Block = Callable[[int], Samples]
#: Told what is being measured, for a live line.
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Measured:
    """Samples of each figure, block by block in the order of measurement."""

    blocks: Mapping[str, tuple[tuple[float, ...], ...]]

    def samples(self, figure: str) -> list[float]:
        """All samples of a figure."""
        return [value for block in self.blocks[figure] for value in block]


def measure(cases: Sequence[Block], repeat: int, text: str, progress: Progress) -> list[Measured]:
    """Run each of one or two cases ``repeat`` times, in blocks; returns what each gave, in the order of ``cases``.

    ``progress`` is told ``text`` with the number of blocks that are done.
    """
    sizes = block_sizes(repeat)
    taken: list[dict[str, list[tuple[float, ...]]]] = [{} for _ in cases]
    done = 0
    for at, size in enumerate(sizes):
        order = range(len(cases)) if at % 2 == 0 else reversed(range(len(cases)))
        for case in order:
            for figure, values in cases[case](size).items():
                taken[case].setdefault(figure, []).append(tuple(values))
            done += 1
            progress(f"{text}: {done}/{len(sizes) * len(cases)}")
    return [Measured({figure: tuple(blocks) for figure, blocks in each.items()}) for each in taken]


def block_sizes(repeat: int) -> list[int]:
    """``repeat`` in at most :data:`PAIRS` blocks whose sizes differ by one at most."""
    count = min(repeat, PAIRS)
    return [repeat // count + (at < repeat % count) for at in range(count)]
