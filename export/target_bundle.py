"""The target ``onnxruntime``: a bundle, which the runtime opens."""

from __future__ import annotations

from ..runtime.cli_common import in_bytes
from .exporter import export_run
from .targets import BUNDLE_OPTIONS, Made, Order, Progress, refuse_others


def target(order: Order, progress: Progress) -> Made:
    """Export a bundle for ONNX Runtime; raises as :func:`export_run`."""
    refuse_others(order, "onnxruntime", *BUNDLE_OPTIONS)
    return export_bundle(order, progress)


def export_bundle(order: Order, progress: Progress) -> Made:
    """Export the bundle that every engine of ours opens; raises as :func:`export_run`."""
    made = export_run(
        order.run,
        order.output,
        config=order.config,
        weights=order.weights,
        step=order.step,
        precision=order.precision or "fp32",
        encoder_precision=order.encoder_precision,
        codec_precision=order.codec_precision,
        prefill_precision=order.prefill,
        calibration=order.calibrate,
        accept_quality=order.accept_quality,
        post_codec=order.post_codec,
        progress=progress,
    )
    result = {
        "bundle": str(made.bundle),
        "config": str(made.run.config),
        "weights": str(made.run.weights),
        "step": made.run.step,
        "bytes": dict(made.sizes),
        "seconds": {name: round(value, 3) for name, value in made.seconds.items()},
        "quality": dict(made.quality),
        "missed": list(made.missed),
    }
    lines = [f"{name:<26}{in_bytes(size):>16}" for name, size in made.sizes.items()]
    lines += [f"{stage:<26}{seconds:>12.1f} s" for stage, seconds in made.seconds.items()]
    for part, values in made.quality.items():
        agreed = ", ".join(f"{name} {_numbers(value)}" for name, value in values.items())
        lines.append(f"{f'agreement, {part}':<26}  {agreed}")
    lines += [f"below its gate, accepted: {clause}" for clause in made.missed]
    return Made(result, (*lines, f"{made.bundle}: exported"))


def _numbers(value: object) -> str:
    """A value of the agreement; of a list, what each of the streams has."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
