"""From the start of a fresh process to the first row, with the bundle's pages in memory or on disk; and its memory."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from ...runtime.bundle.bundle import Bundle
from ...runtime.errors import EngineError, InputError
from ..harness.blocks import Samples
from ..harness.protocol import Case, Derived
from ..harness.subjects import AnySubject, PeerSubject
from ..meters.memory import Watcher, cached_fraction, can_drop_pages, drop_pages
from ..report.schema import Setting
from ..report.statistics import Summary

#: A start is cold if no more than this share of the bundle's pages was in memory.
_COLD = 0.01


@dataclass(frozen=True)
class Load:
    """``pages``: "warm" and "cold", with the bundle's files in the page cache or dropped from it.

    Figures: "import" of the runtime; "open", from mapping the bundle until the engine is loaded; "first_row", a prompt
    of 16 rows and a row; "ready", from the start of the process to that row. Memory, each from one process: after
    "open" and in the steady state, after 50 rows; "peak_rss" is the kernel's count (VmHWM), mapped files included;
    "peak_private" was sampled every 20 ms in a separate process, whose times are discarded. "cached": how much of the
    bundle was in memory when the process started. Figures that the system does not report are left out.
    """

    pages: tuple[str, ...] = ("warm", "cold")

    name: ClassVar[str] = "load"
    units: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("import", "open", "first_row", "ready"), "ms"),
        **dict.fromkeys(("rss_loaded", "private_loaded", "anonymous_loaded"), "MiB"),
        **dict.fromkeys(("rss_steady", "private_steady", "anonymous_steady"), "MiB"),
        **dict.fromkeys(("peak_rss", "peak_private", "peak_anonymous"), "MiB"),
        "cached": "%",
    }
    compared: ClassVar[Sequence[str]] = ("open", "first_row", "ready")
    default_repeat: ClassVar[int] = 8

    def settings(self, bundle: Bundle) -> Sequence[Mapping[str, Setting]]:
        for pages in self.pages:
            if pages not in ("warm", "cold"):
                raise InputError(f"--pages {pages}: choose warm, cold, or both as warm,cold")
        if "cold" in self.pages and not can_drop_pages():
            raise InputError("--pages cold: this system cannot drop the pages of a file; measure --pages warm")
        return [{"pages": pages} for pages in self.pages]

    def open(self, subject: AnySubject, setting: Mapping[str, Setting], *, block: int, seed: int) -> Case:
        if isinstance(subject, PeerSubject):
            raise InputError(f"--versus {subject.about.name}: measures decode and prefill only; name a bundle")
        subject.close()  # pages that are mapped here cannot be dropped
        return _Loads(subject.bundle, subject.command_options, cast(str, setting["pages"]) == "cold")


class _Loads:
    def __init__(self, bundle: Bundle, options: Sequence[str], cold: bool) -> None:
        self._files = [bundle.path(name) for name in bundle.manifest.files]
        self._folder, self._cold = bundle.folder, cold
        self._command = [sys.executable, "-m", "ualm.bench.scenarios.load_child", str(bundle.folder), *options]
        self._once = self._memory(self._load(look=True))

    def block(self, count: int) -> Samples:
        figures: dict[str, list[float]] = {}
        for _ in range(count):
            for figure, value in self._times(self._load(look=False)).items():
                figures.setdefault(figure, []).append(value)
        figures |= {figure: [value] for figure, value in self._once.items()}
        self._once = {}
        return figures

    def derive(self, figure: str, summary: Summary) -> Derived:
        if not self._cold or figure != "cached" or summary.max <= 100 * _COLD:
            return Derived()
        return Derived(
            note=f"cold: the system kept up to {summary.max:.1f} % of {self._folder.name} in memory although its pages "
            "were dropped: these are not the times of a cold start"
        )

    def close(self) -> None:
        """Nothing to do: each process has ended."""

    def _load(self, *, look: bool) -> dict[str, Any]:
        """Run one process, sampling its memory while it runs or not."""
        if self._cold:
            drop_pages(self._files)
        cached = cached_fraction(self._files)
        started = time.perf_counter()
        with subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            watcher = Watcher(process.pid) if look else None
            assert process.stdout is not None and process.stderr is not None
            first = process.stdout.readline()
            ready = time.perf_counter() - started
            rest, errors = process.communicate()
        if watcher is not None:
            watcher.stop()
        if process.returncode or first != "ready\n":
            why = errors.strip().splitlines()[-1] if errors.strip() else f"status {process.returncode}"
            raise EngineError(f"load: the process that loads {self._folder} failed: {why}")
        found: dict[str, Any] = json.loads(rest)
        found |= {"ready": ready - found["looking"], "cached": cached, "peak": watcher and watcher.peak}
        return found

    def _times(self, found: Mapping[str, Any]) -> dict[str, float]:
        times = {figure: 1000 * found[figure] for figure in ("import", "open", "first_row", "ready")}
        return times if found["cached"] is None else times | {"cached": 100 * found["cached"]}

    def _memory(self, found: Mapping[str, Any]) -> dict[str, float]:
        bytes_of = {
            f"{kind}_{when}": found[when][kind]
            for when in ("loaded", "steady")
            if found[when]
            for kind in ("rss", "private", "anonymous")
        }
        if found["peak_rss"] is not None:
            bytes_of["peak_rss"] = found["peak_rss"]
        peak = found["peak"] or {}
        bytes_of |= {f"peak_{kind}": peak[kind] for kind in ("private", "anonymous") if kind in peak}
        return {figure: size / 2**20 for figure, size in bytes_of.items()}
