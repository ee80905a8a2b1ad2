"""Accesses by two threads of a block are ordered by a barrier: ThreadSanitizer watches blocks run with real threads."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

from support.cuda.shim import KERNELS, SHIM, STAND_IN, compile_all

SOURCES = [*KERNELS, *STAND_IN, SHIM / "race.cpp"]
FLAGS = ["-fsanitize=thread", "-g", "-DUALM_SHIM_THREADS", "-pthread"]


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=300)
    if "unexpected memory mapping" in done.stderr:  # an old ThreadSanitizer and strong address randomisation
        done = subprocess.run(["setarch", "-R", program, *arguments], capture_output=True, text=True, timeout=300)
    return done


@functools.cache
def watched() -> subprocess.CompletedProcess[str]:
    return run(compile_all(SOURCES, FLAGS, [], "race"))


def test_no_kernel_has_a_race():
    done = watched()
    assert done.returncode == 0, done.stderr[:4000]
    rows = [line.split(":") for line in done.stdout.splitlines()]
    assert [int(count) for count, _ in rows] == [1, 1, 1]
    assert all(int(token) >= 256 for _, ids in rows for token in ids.split())


def test_a_barrier_left_out_is_noticed():
    """Otherwise the test above would prove nothing."""
    program = compile_all(SOURCES, [*FLAGS, "-DUALM_TEST_WITHOUT_BARRIER"], [], "race")
    # It remembers only a few accesses per word: if they happen in a lucky order, a run may see nothing.
    runs = (run(program, "first") for _ in range(6))
    noticed = next((done for done in runs if "WARNING: ThreadSanitizer: data race" in done.stderr), None)
    assert noticed is not None and noticed.returncode != 0
    assert "draw.h" in noticed.stderr


def test_without_thread_sanitizer_the_rows_are_the_same_under_fibers_and_threads():
    fibers = run(compile_all(SOURCES, ["-pthread"], [], "race"))
    assert fibers.returncode == 0
    assert fibers.stdout == watched().stdout
