"""Runs thousands of hostile inputs against one interface of the product, in separate processes, with limits.

A case is a function of a random generator and an empty folder: it makes its input, passes it on, and returns the
outcome in words. It may raise `UalmError` with a one-line message (a refusal); any other exception, also in callbacks
and threads, more than `MOST_SECONDS`, more than `MOST_BYTES` of memory and a process that dies are violations. Case
``i`` of seed ``s`` is the same input wherever it runs: ``run_case(case, s, i, folder)`` repeats it alone.

Memory is the kernel's count of the most that a case ever held, however briefly: each process reads it after each case
and reports it with the outcome. Observation from outside only ends a case before it exhausts the machine.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import importlib
import io
import json
import os
import random
import resource
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from ualm.bench.meters.memory import memory_of, peak_rss
from ualm.runtime.errors import UalmError

MOST_SECONDS = 10.0
"""Processor time, including processes that a case starts and waits for: on a busy machine wall-clock time is
meaningless."""
MOST_SILENCE = 60.0
"""Wall-clock seconds without an answer: waiting for something that never happens takes no processor time."""
MOST_BYTES = 1 << 30
"""Most memory of a case's process, libraries and mapped files included, and of each process that it starts."""
LONGEST_MESSAGE = 600
"""Most characters of a refusal: a line that a person reads."""

Case = Callable[[random.Random, Path], str]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of case ``number``: ``kind`` is its return value, 'refused' or 'violation'; ``text`` gives details.

    ``peak``: most bytes of memory held by its process, or by one that it started and waited for.
    """

    number: int
    kind: str
    text: str
    peak: int = 0

    def judged(self) -> Outcome:
        """This outcome, or a violation if it held too much memory."""
        if self.kind == "violation" or self.peak <= MOST_BYTES:
            return self
        return dataclasses.replace(self, kind="violation", text=f"held {self.peak >> 20} MiB: {self.kind} {self.text}")


class _Peak:
    """The most memory of this process since the last :meth:`reset`, and of its children since :meth:`__init__`."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Count from here on. If the kernel cannot reset its count, a process counts from its start, and none outlives
        a peak."""
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def bytes(self) -> int:
        own = peak_rss() or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)


def run_case(case: Case, seed: int, number: int, folder: Path) -> Outcome:
    """Case ``number`` of ``seed``, here and now, in ``folder`` (made, and empty)."""
    folder.mkdir(parents=True)
    memory = _Peak()
    unheard: list[str] = []
    sys.unraisablehook = lambda about: unheard.append(f"{about.err_msg}: {about.exc_value!r} in {about.object!r}")
    threading.excepthook = lambda about: unheard.append(f"a thread ended with {about.exc_value!r}")
    printed = io.StringIO()
    started = busy_seconds()
    try:
        with contextlib.redirect_stderr(printed):
            kind, text = case(random.Random(f"{seed}/{number}"), folder), ""
    except UalmError as error:
        kind, text = "refused", f"{type(error).__name__}: {error}"
        if "\n" in str(error).strip() or len(str(error)) > LONGEST_MESSAGE or not str(error).strip():
            kind = "violation"
    except BaseException:  # a case may do anything; all of it is an outcome
        kind, text = "violation", traceback.format_exc()
    finally:
        sys.unraisablehook, threading.excepthook = sys.__unraisablehook__, threading.__excepthook__
    if "Traceback" in printed.getvalue():
        unheard.append(printed.getvalue())
    if unheard:  # it was only printed
        kind, text = "violation", f"{unheard[0]}; {text}"
    if kind != "violation" and (took := busy_seconds() - started) > MOST_SECONDS:
        kind, text = "violation", f"took {took:.1f} s: {text}"
    return Outcome(number, kind, text, memory.bytes())


def busy_seconds() -> float:
    """Processor seconds of this process and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def run_cases(case: Case, count: int, seed: int, *, workers: int = 2) -> collections.Counter[str]:
    """Runs ``count`` cases of ``seed``; returns how many ended in which way. Raises AssertionError with the first
    violations.

    ``case`` must be a top-level function of a module below ``tests``.
    """
    with tempfile.TemporaryDirectory(prefix="ualm-fuzz-") as folder:
        outcomes = _Pool(case, count, seed, Path(folder)).drain(workers)
    counted = collections.Counter(outcome.kind for outcome in outcomes)
    most = max(outcome.peak for outcome in outcomes)
    name = f"{case.__module__.rpartition('.')[2]}.{case.__name__}"
    print(
        f"{name}, seed {seed}, {count} cases: "
        + ", ".join(f"{k} {n}" for k, n in sorted(counted.items()))
        + f"; at most {most >> 20} MiB"
    )
    bad = [outcome for outcome in outcomes if outcome.kind == "violation"]
    shown = "\n\n".join(f"case {outcome.number} of seed {seed}: {outcome.text}" for outcome in bad[:5])
    assert not bad, f"{name}: {len(bad)} of {count} cases violate the limits\n\n{shown}"
    return counted


class _Pool:
    """Child processes that run the cases ``first, first + step, ...``; one that dies or hangs is replaced."""

    def __init__(self, case: Case, count: int, seed: int, folder: Path) -> None:
        self._file = sys.modules[case.__module__].__file__
        self._arguments = (case.__name__, str(seed), str(count))
        self._count = count
        self._folder = folder

    def drain(self, workers: int) -> list[Outcome]:
        outcomes: list[Outcome] = []
        selector = selectors.DefaultSelector()
        children = [_Child(self._start(first, workers), first, workers) for first in range(min(workers, self._count))]
        for child in children:
            selector.register(child.out, selectors.EVENT_READ, child)
        while selector.get_map():
            ready = {key.data for key, _ in selector.select(timeout=0.2)}
            for child in [key.data for key in selector.get_map().values()]:
                line = child.process.stdout.readline() if child in ready else None
                if line:
                    outcomes.append(child.heard(line))
                    if outcomes[-1].peak <= MOST_BYTES:
                        continue
                else:
                    violation = child.violation(ended=line is not None)
                    if violation is None and line is None:
                        continue
                    if violation is not None:
                        outcomes.append(Outcome(child.number, "violation", violation))
                        child.number += child.step
                selector.unregister(child.out)
                child.end()
                if child.number < self._count:
                    again = _Child(self._start(child.number, child.step), child.number, child.step)
                    selector.register(again.out, selectors.EVENT_READ, again)
        return sorted(outcomes, key=lambda outcome: outcome.number)

    def _start(self, first: int, step: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, __file__, str(self._file), *self._arguments, str(first), str(step)]
        return subprocess.Popen(
            [*command, tempfile.mkdtemp(dir=self._folder)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0
        )


class _Child:
    def __init__(self, process: subprocess.Popen[bytes], first: int, step: int) -> None:
        self.process = process
        self.number = first
        self.step = step
        self.since = time.monotonic()
        assert process.stdout is not None
        self.out = process.stdout

    def heard(self, line: bytes) -> Outcome:
        outcome = Outcome(**json.loads(line)).judged()
        assert outcome.number == self.number
        self.number += self.step
        self.since = time.monotonic()
        return outcome

    def violation(self, ended: bool) -> str | None:
        """Why case ``number`` is a violation: its process died, hangs or grew; None if it is none (so far)."""
        if ended:
            status = self.process.wait()
            return None if status == 0 else f"its process ended with {status}"
        if time.monotonic() - self.since > MOST_SILENCE:
            return f"no answer after {MOST_SILENCE:.0f} s"
        memory = memory_of(self.process.pid)
        # the process itself reports what it held; only what may never end is ended from here
        if memory is None or memory.anonymous <= 2 * MOST_BYTES:
            return None
        return f"holds {memory.anonymous >> 20} MiB"

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.out.close()


def _main() -> None:
    file, name, seed, count, first, step, folder = sys.argv[1:]
    # What a case prints is not an outcome.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    sys.path[0] = str(Path(__file__).parents[1])  # in place of this folder, which is no place to import from
    sys.path.insert(0, str(Path(file).parent))
    case: Case = getattr(importlib.import_module(Path(file).stem), name)
    for number in range(int(first), int(count), int(step)):
        place = Path(folder) / str(number)
        print(json.dumps(dataclasses.asdict(run_case(case, int(seed), number, place))), file=answers)
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    _main()
