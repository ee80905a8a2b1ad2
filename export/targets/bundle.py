"""The target ``onnxruntime``: a bundle, which the runtime opens."""

from __future__ import annotations

import shlex
from typing import Any

from ...runtime.shown import in_bytes
from ...runtime.terminal.tables import table
from ..bundle import export_run
from .registry import ExportRequest, ExportResult, Progress, refuse_others


def target(request: ExportRequest, progress: Progress) -> ExportResult:
    """Export a bundle for ONNX Runtime; raises as :func:`export_run`."""
    refuse_others(request, "onnxruntime")
    return export_bundle(request, progress)


def export_bundle(request: ExportRequest, progress: Progress) -> ExportResult:
    """Export the bundle that every engine of ualm opens; raises as :func:`export_run`."""
    made = export_run(
        request.run,
        request.output,
        config=request.config,
        weights=request.weights,
        step=request.step,
        precision=request.precision or "fp32",
        encoder_precision=request.encoder_precision,
        codec_precision=request.codec_precision,
        prefill_precision=request.prefill,
        calibration=request.calibrate,
        accept_quality=request.accept_quality,
        post_codec=request.post_codec,
        progress=progress,
    )
    size, seconds = sum(made.sizes.values()), sum(made.seconds.values())
    following = f"ualm generate rain -o rain.wav -b {shlex.quote(str(made.bundle))}"
    result: dict[str, Any] = {
        "bundle": str(made.bundle),
        "config": str(made.run.config),
        "weights": str(made.run.weights),
        "step": made.run.step,
        "bytes": dict(made.sizes),
        "seconds": {name: round(value, 3) for name, value in made.seconds.items()},
        "quality": dict(made.quality),
        "verdicts": [verdict.to_json() for verdict in made.verdicts],
        "missed": list(made.missed),
        "total_bytes": size,
        "total_seconds": round(seconds, 3),
        "next": following,
    }
    lines = [f"{name:<26}{in_bytes(each):>16}" for name, each in made.sizes.items()]
    lines += [f"{stage:<26}{each:>12.1f} s" for stage, each in made.seconds.items()]
    gates = [verdict.row() for verdict in made.verdicts]
    title = "agreement with fp32" + (", BELOW ITS GATES, accepted as it is" if made.missed else "")
    lines.append(table(title, gates))
    summary = f"{made.bundle}: exported, {in_bytes(size).strip()} in {seconds:.1f} s; next: {following}"
    return ExportResult(result, (*lines, summary))
