"""Milliseconds to prefill a prompt, and to begin a segment after it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

from ...runtime.bundle.bundle import Bundle
from ...runtime.errors import InputError
from ...runtime.vocabulary import Modality
from ..harness.blocks import Samples
from ..harness.protocol import Case, Derived
from ..harness.subjects import AnySubject, BundleSubject, PeerSubject
from ..report.schema import Setting
from ..report.statistics import Summary
from .common import check_rows, fill, random_prompt, sampling_of
from .published import TorchPrefill

#: Rows besides those of the prompt: the modality row that begins a segment, and the first one drawn.
_SPARE = 2


@dataclass(frozen=True)
class Prefill:
    """``rows``: text rows of the prompt. ``contexts``: rows held before it. ``guidance``: None for the bundle's own.

    Figures: "prefill", the prompt; "row", a row of it; "begin", the start of a segment after it, which includes making
    the null branch.
    """

    rows: tuple[int, ...] = (64, 256)
    contexts: tuple[int, ...] = (0,)
    modality: Modality = "audio"
    guidance: float | None = None

    name: ClassVar[str] = "prefill"
    units: ClassVar[Mapping[str, str]] = {"prefill": "ms", "row": "ms", "begin": "ms"}
    compared: ClassVar[Sequence[str]] = ("prefill", "begin")
    default_repeat: ClassVar[int] = 12

    def settings(self, bundle: Bundle) -> Sequence[Mapping[str, Setting]]:
        check_rows("--rows", self.rows, 1, bundle)
        check_rows("--context", self.contexts, 0, bundle)
        guidance = sampling_of(bundle, self.modality, self.guidance).guidance
        return [
            {"rows": rows, "context": context, "modality": self.modality, "guidance": guidance}
            for context in self.contexts
            for rows in self.rows
        ]

    def open(self, subject: AnySubject, setting: Mapping[str, Setting], *, block: int, seed: int) -> Case:
        rows, context = cast(int, setting["rows"]), cast(int, setting["context"])
        if isinstance(subject, PeerSubject):
            if context:
                raise InputError(f"--context {context}: {subject.about.name} is measured from an empty cache only")
            return TorchPrefill(subject.reference, rows, cast(float, setting["guidance"]), seed)
        subject.engine(max(self.rows) + max(self.contexts) + _SPARE)
        return _EnginePrefill(subject, rows, context, self.modality, cast(float, setting["guidance"]), seed)


class _EnginePrefill:
    def __init__(
        self, subject: BundleSubject, rows: int, context: int, modality: Modality, guidance: float, seed: int
    ) -> None:
        bundle = subject.bundle
        self._context, self._modality = context, modality
        self._sampling = sampling_of(bundle, modality, guidance, seed)
        self._prompt = random_prompt(bundle.manifest.vocabulary, rows, seed)
        self._sequence = subject.engine(rows + context + _SPARE).open_sequence()
        if context:
            fill(self._sequence, bundle, context)
        self._seconds = self._library_seconds = 0.0
        self.block(1)
        self._seconds = self._library_seconds = 0.0

    def block(self, count: int) -> Samples:
        prefill, begin = [], []
        for _ in range(count):
            self._sequence.truncate(self._context)
            inside = self._sequence.library_seconds
            started = time.perf_counter()
            self._sequence.prefill([self._prompt])
            between = time.perf_counter()
            self._library_seconds += self._sequence.library_seconds - inside
            self._seconds += between - started
            self._sequence.begin_segment(self._modality, self._sampling, mode="fixed", segment=0)
            begin.append(1000 * (time.perf_counter() - between))
            prefill.append(1000 * (between - started))
        return {"prefill": prefill, "row": [each / len(self._prompt) for each in prefill], "begin": begin}

    def derive(self, figure: str, summary: Summary) -> Derived:
        if figure == "begin":
            return Derived()
        return Derived(outside_percent=100 * (1 - self._library_seconds / self._seconds))

    def close(self) -> None:
        del self._sequence
