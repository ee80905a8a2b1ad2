"""The fuzzing harness detects what it should."""

import mmap
import os
import random
import subprocess
import sys
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
    """Without end."""
    held = []
    while True:
        held.append(bytearray(100 << 20))
        time.sleep(0.1)


def grows_and_shrinks(rng: random.Random, folder: Path) -> str:
    """Only for a moment, too short to be seen from outside."""
    return str(len(bytearray(fuzzing.MOST_BYTES + (100 << 20))))


def maps(rng: random.Random, folder: Path) -> str:
    """A file of zeros, all of it in memory."""
    with open(folder / "zeros", "wb") as file:
        file.truncate(fuzzing.MOST_BYTES + (100 << 20))
    with open(folder / "zeros", "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return str(sum(mapped[at] for at in range(0, len(mapped), mmap.PAGESIZE)))


def starts_what_grows(rng: random.Random, folder: Path) -> str:
    subprocess.run([sys.executable, "-c", f"bytearray({fuzzing.MOST_BYTES + (100 << 20)})"], check=True)
    return "well"


def grows_once(rng: random.Random, folder: Path) -> str:
    return str(len(bytearray(rng.choice([1, 1, 1, fuzzing.MOST_BYTES]))))


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
        (grows, "holds 2"),
        (grows_and_shrinks, "held 11"),
        (maps, "held 11"),
        (starts_what_grows, "held 11"),
        (unheard, "KeyError"),
    ],
)
def test_violations_fail_and_every_case_is_counted(case: fuzzing.Case, said: str) -> None:
    with pytest.raises(AssertionError, match=f"3 of 3 cases violate the limits(.|\n)*{said}"):
        fuzzing.run_cases(case, 3, 0)


def test_a_peak_is_that_of_one_case_and_not_of_those_after_it() -> None:
    large = [number for number in range(12) if random.Random(f"3/{number}").choice([1, 1, 1, 2]) == 2]
    assert 0 < len(large) < 12
    with pytest.raises(AssertionError, match=f"{len(large)} of 12 cases violate the limits"):
        fuzzing.run_cases(grows_once, 12, 3, workers=1)
