"""One stage in a process of its own, which may crash or hang: ``python -m ualm.bench.acceptance.child FOLDER``.

It reads its request in the folder, and after every check leaves there what it has found so far.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from ...runtime.errors import EngineError, InputError, UalmError
from ...runtime.process.stopping import raise_interrupt
from ..report.schema import Gpu, Run
from .facts import NOT_READ, run_facts
from .findings import Findings
from .request import Exchange
from .stages import STAGES


class StageProcess:
    """A stage at work."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange, self._request = exchange, exchange.asked()
        self._check = ""
        self._ground = self._request.ground(self._progress)
        self._found = Findings(self._request.stage, watch=self._watch)

    def run(self) -> None:
        try:
            _ = self._ground.device
        except (EngineError, InputError) as error:
            self._exchange.refuse(str(error))
            return
        self._exchange.keep(self._found.report(self._facts))
        before = len(self._found.checks)
        with self._found.checking("the stage as a whole") as details:
            STAGES[self._request.stage].run(self._ground, self._found)
            details.append(f"{len(self._found.checks) - before} checks")
        if self._found.checks[-1].verdict == "pass":
            del self._found.checks[-1]  # it went through to its end, which is worth no line
        bandwidth = self._facts.bandwidth if self._facts.bandwidth is NOT_READ else self._ground.meter.result
        self._exchange.keep(self._found.report(replace(self._facts, bandwidth=bandwidth)))

    @cached_property
    def _facts(self) -> Run:
        try:
            bandwidth = self._ground.meter.result
        except (UalmError, RuntimeError, MemoryError) as error:  # the stage of the limits says what is wrong
            raise_interrupt(error)
            bandwidth = NOT_READ
        return run_facts(self._ground, bandwidth, self._gpu())

    def _gpu(self) -> Gpu | None:
        try:
            return self._ground.gpu
        except (UalmError, RuntimeError) as error:  # the stage of the environment says what is wrong
            raise_interrupt(error)
            return None

    def _watch(self, name: str | None) -> None:
        if name is None:
            self._exchange.keep(self._found.report(self._facts))
        self._check = name or ""
        self._exchange.arrive(self._check)

    def _progress(self, text: str) -> None:
        self._exchange.arrive(f"{self._check}: {text}" if self._check else text)


if __name__ == "__main__":
    StageProcess(Exchange(Path(sys.argv[1]))).run()
