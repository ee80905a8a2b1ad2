"""The harness of the fuzzers sees what it is there to see."""

import os
import random
import time
from pathlib import Path

import pytest

from support import fuzzing
from ualm.runtime.errors import InputError

pytestmark = pytest.mark.fuzz


def mixed(rng: random.Random, folder: Path) -> str:
    if rng.random() < 0.5:
        raise InputError("no such sound")
    return "heard"


def two_lines(rng: random.Random, folder: Path) -> str:
    raise InputError("one line\nand another")


def surprised(rng: random.Random, folder: Path) -> str:
    raise IndexError("list index out of range")


class Fragile:
    def __del__(self) -> None:
        raise KeyError("where nobody listens")


def unheard(rng: random.Random, folder: Path) -> str:
    Fragile()
    return "well"


def dies(rng: random.Random, folder: Path) -> str:
    os.abort()


def grows(rng: random.Random, folder: Path) -> str:
    held = bytearray(fuzzing.MOST_BYTES + (100 << 20))
    time.sleep(3)
    return str(len(held))


def test_outcomes_are_counted_and_the_same_for_a_seed() -> None:
    counted = fuzzing.run_cases(mixed, 60, 1)
    assert counted == fuzzing.run_cases(mixed, 60, 1, workers=3)
    assert set(counted) == {"heard", "refused"}
    assert counted.total() == 60


@pytest.mark.parametrize(
    ("case", "said"),
    [
        (two_lines, "one line"),
        (surprised, "IndexError"),
        (dies, "ended with -6"),
        (grows, "holds 1"),
        (unheard, "KeyError"),
    ],
)
def test_violations_fail_and_every_case_is_counted(case: fuzzing.Case, said: str) -> None:
    with pytest.raises(AssertionError, match=f"3 of 3 cases violate the limits(.|\n)*{said}"):
        fuzzing.run_cases(case, 3, 0)
