"""The whole loop on a bundle: golden vector, launching ahead, milliseconds per frame, time to first audio."""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ....runtime.bundle.bundle import Bundle
from ....runtime.diagnostics.golden import GOLDEN_CONTEXT, check_golden
from ....runtime.engines.protocol import Engine
from ....runtime.files.writing import resolved
from ....runtime.process.cores import cores
from ....runtime.sampling import AudioSampling, TextSampling
from ...harness.measure import BundleScenario, measure_subjects
from ...harness.subjects import AnySubject, BundleSubject, Request, precisions_of
from ...meters.environment import current_load
from ...report.schema import Report, Subject
from ...scenarios.decode import Decode
from ...scenarios.stream import Stream
from ..findings import Findings

if TYPE_CHECKING:
    from ..context import Ground

#: Rows of context for the checks, which draw at most 60.
_CONTEXT = 256


class DeviceSubject(BundleSubject):
    """A bundle in the engine under test."""

    #: Engine files fix the context they were built for, and a GPU allocates what is reserved.
    least_context = 2048

    def __init__(self, folder: Path, ground: Ground, engine: str) -> None:
        super().__init__(folder, Request(folder, seed=ground.seed), resolved(folder).name)
        self._ground, self._name_of_engine = ground, engine

    def open(self, max_context: int) -> Engine:
        return self._ground.engine(self._name_of_engine, self.bundle, max_context)

    @cached_property
    def about(self) -> Subject:
        engine = "device loop on the CPU, a rehearsal" if self._ground.dry_run else self._name_of_engine
        return Subject(self.bundle.folder.name, engine, self.bundle.digest, precisions_of(self.bundle))


def check_loop(ground: Ground, found: Findings) -> None:
    """The stage: the bundle that comes with ualm, or the one that was given."""
    for name in ground.engines(ground.bundle, _CONTEXT):
        check_bundle(ground, found, name, ground.bundle)
        measure_bundle(ground, found, name, ground.bundle.folder, contexts=(64,) if ground.dry_run else (256, 1024))


def check_bundle(ground: Ground, found: Findings, name: str, bundle: Bundle) -> None:
    """Check the golden vector in the engine ``name``, and that rows do not depend on how they were launched."""
    with found.checking(f"{name}: golden vector of {bundle.folder.name}") as details:
        engine = ground.engine(name, bundle, GOLDEN_CONTEXT)
        try:
            checks = check_golden(bundle, engine)
        finally:
            engine.close()
        wrong = [
            f"{check.name}: {check.problem or f'off by {check.error:.1e}'}" for check in checks if not check.passed
        ]
        assert not wrong, "; ".join(wrong)
        nearest = max(checks, key=lambda check: (check.error or 0.0) / check.tolerance)
        details.append(f"{len(checks)} outputs; {nearest.name} {nearest.error:.1e} of {nearest.tolerance:g} at most")
    with found.checking(f"{name}: rows of {bundle.folder.name} do not depend on launching ahead") as details:
        engine = ground.engine(name, bundle, _CONTEXT)
        try:
            details.append(_ahead_changes_nothing(engine))
        finally:
            engine.close()


def _ahead_changes_nothing(engine: Any) -> str:
    """``engine``: one with a ``device_model``."""
    results: list[list[np.ndarray]] = []
    for ahead in (0, 3, 3):  # the repeated run shows whether the device gives equal bits for equal work
        engine.device_model.ahead = ahead
        results.append(_draw(engine))
    for other in results[1:]:
        for mine, theirs in zip(results[0], other, strict=True):
            assert mine.shape == theirs.shape and (mine == theirs).all(), "other rows, latents or logits"
    return f"{sum(len(rows) for rows in results[0][::2])} rows and their latents are equal bit for bit"


def _draw(engine: Engine) -> list[np.ndarray]:
    """Rows and latents of a sound with guidance and of a text without."""
    drawn: list[np.ndarray] = []
    for options in (AudioSampling(max_steps=24, seed=3), TextSampling(temperature=0.9, max_steps=24, seed=3)):
        sequence = engine.open_sequence()
        sequence.prefill([np.array([[260 + row % 8, 0, 0, 0, 0, 0, 0, 0] for row in range(40)], np.int32)])
        modality = "audio" if isinstance(options, AudioSampling) else "text"
        sequence.begin_segment(modality, options, mode="fixed", segment=0)  # type: ignore[arg-type]
        pieces = [sequence.run_frames(5)]
        while pieces[-1].end is None:
            pieces.append(sequence.run_frames(5))
        drawn.append(np.concatenate([piece.rows for piece in pieces]))
        drawn.append(np.concatenate([piece.latents for piece in pieces]))
    return drawn


def measure_bundle(ground: Ground, found: Findings, name: str, folder: Path, *, contexts: tuple[int, ...]) -> None:
    """Milliseconds per frame with rows held, and what a listener waits for."""
    seconds = 0.3 if ground.dry_run else 5.0
    repeat = (4, 1) if ground.dry_run else (240, 12)
    decode, stream = Decode(contexts), Stream((seconds,))
    scenarios: tuple[tuple[str, BundleScenario, int], ...] = (
        ("milliseconds a frame", decode, repeat[0]),
        ("first sound", stream, repeat[1]),
    )
    for what, scenario, count in scenarios:
        with found.checking(f"{name}: {what}, {folder.name}") as details:
            report = measure(ground, scenario, [DeviceSubject(folder, ground, name)], repeat=count)
            found.take(report)
            figures = [each for each in report.measurements if each.figure in ("frame", "first_row", "first_sample")]
            assert figures, "nothing was measured"
            for each in figures:
                assert 0 < each.summary.p50 < math.inf, f"{each.figure}: {each.summary.p50:g} {each.unit} is no time"
            details += [
                f"{each.figure} p50 {each.summary.p50:.3g} p99 {each.summary.p99:.3g} {each.unit}"
                + ("" if each.traffic is None else f", {100 * each.traffic.fraction:.0f} % of the bandwidth")
                for each in figures
            ]


def measure(ground: Ground, scenario: BundleScenario, subjects: list[AnySubject], *, repeat: int) -> Report:
    """Run a scenario of the bench in this context, against the device's copy bandwidth."""
    first = subjects[0]
    bundle = first.bundle if hasattr(first, "bundle") else ground.bundle
    return measure_subjects(
        scenario,
        subjects,
        scenario.settings(bundle),
        threads=cores(),
        repeat=repeat,
        seed=ground.seed,
        load_average=current_load(),
        libraries=("torch", "transformers") if len(subjects) > 1 else (),
        progress=ground.progress,
        meter=ground.meter,
        gpu=ground.gpu,
        dry_run=ground.dry_run,
    )
