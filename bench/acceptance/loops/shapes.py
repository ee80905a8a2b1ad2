"""The true shapes with random weights, against the published algorithm in torch on the same card."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ....runtime.bundle.bundle import Bundle
from ....runtime.errors import UalmError
from ....runtime.process.extras import install_hint
from ....runtime.process.stopping import raise_interrupt
from ...harness.subjects import AnySubject, PeerSubject
from ...scenarios.decode import Decode
from ..findings import Findings, Skip
from .loop import DeviceSubject, check_bundle, measure, measure_bundle

if TYPE_CHECKING:
    from pathlib import Path

    from ..context import Ground

#: Shape -> precisions to try, the first one against torch in bf16. "tiny" is for rehearsals.
SHAPES = {"1.5b": ("bf16", "int4"), "7b": ("bf16", "int4"), "tiny": ("fp32",)}


def make_shape(ground: Ground, found: Findings, shape: str) -> None:
    """Write a run with random weights and its bundles into the work folder; existing ones are kept."""
    try:
        from ....export.bundle import export_run
        from ...random_run.run import SHAPES as RUNS
        from ...random_run.run import write_random_run
    except ImportError as error:
        raise_interrupt(error)
        raise Skip(f"needs the extra export ({error}); install it with: {install_hint('export')}") from error
    kind = "tiny" if ground.dry_run else shape
    run = _run(ground, kind)
    with found.checking(f"a training run of the {kind} shape") as details:
        if not run.exists():
            write_random_run(run, RUNS[kind], seed=ground.seed)
        details.append(run.name)
    for precision in SHAPES[kind]:
        with found.checking(f"its bundle in {precision}") as details:
            bundle = _bundle(ground, kind, precision)
            if not bundle.exists():
                # random logits are noise, on which narrow formats disagree; the gates mean nothing here
                export_run(run, bundle, precision=precision, accept_quality=True)
            details.append(bundle.name)


def check_shape(ground: Ground, found: Findings, shape: str) -> None:
    """Golden vector and speed of each bundle, and the first one's frame against torch's."""
    kind = "tiny" if ground.dry_run else shape
    contexts = (64,) if ground.dry_run else (256, 1024)
    for precision in SHAPES[kind]:
        folder = _bundle(ground, kind, precision)
        if not folder.exists():
            raise Skip(f"there is no {folder.name} in the work folder; run the stage make-{shape} first")
        bundle = Bundle(folder, verify="never")
        for name in ground.engines(bundle, contexts[-1]):
            check_bundle(ground, found, name, bundle)
            measure_bundle(ground, found, name, folder, contexts=contexts)
    first = _bundle(ground, kind, SHAPES[kind][0])
    for name in ground.engines(Bundle(first, verify="never"), contexts[-1]):
        _against_torch(ground, found, name, kind, first, contexts[0])


def _against_torch(ground: Ground, found: Findings, name: str, kind: str, folder: Path, context: int) -> None:
    with found.checking(f"{name}: a frame against torch on the same device") as details:
        peer = "reference-fp32" if ground.dry_run else "reference-bf16"
        try:
            other = PeerSubject(peer, _run(ground, kind), 1 if ground.dry_run else 8, ground.torch_device)
        except UalmError as error:
            raise Skip(str(error)) from error
        subjects: list[AnySubject] = [DeviceSubject(folder, ground, name), other]
        report = measure(ground, Decode((context,)), subjects, repeat=4 if ground.dry_run else 96)
        found.take(report)
        assert report.comparisons, "nothing was compared"
        details += [f"{each.speedup:.2f} times as fast ({each.verdict})" for each in report.comparisons]


def _run(ground: Ground, kind: str) -> Path:
    return ground.work / f"run_{kind}"


def _bundle(ground: Ground, kind: str, precision: str) -> Path:
    return ground.work / f"bundle_{kind}_{precision}"
