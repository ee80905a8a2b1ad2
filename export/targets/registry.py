"""What `ualm export --engine` can make of a training run: a name for each, and the function that makes it.

A target takes an :class:`ExportRequest` and returns an :class:`ExportResult`. Its module is imported on demand, because
each may need its own libraries.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ...runtime.bundle.manifest import CodecIdentity, PostCodecIdentity
from ...runtime.errors import InputError

#: Called with a stage's name, the bytes done and the total bytes (0: unknown).
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ExportRequest:
    """The options of an export. A field that holds its default was not given."""

    run: Path | None
    output: Path
    config: Path | None = None
    weights: Path | None = None
    step: int | None = None
    precision: str | None = None
    encoder_precision: str | None = None
    codec_precision: str | None = None
    prefill: str | None = None
    calibrate: Path | None = None
    accept_quality: bool = False
    post_codec: Callable[[CodecIdentity], PostCodecIdentity] | None = None
    #: GPUs to compile for ("sm89,sm120"), and cache rows to compile the body for.
    target: str | None = None
    max_context: int | None = None


@dataclass(frozen=True)
class ExportResult:
    """The report of an export: an object for ``--json``, and lines to print."""

    result: Mapping[str, Any]
    lines: tuple[str, ...]


Target = Callable[[ExportRequest, Progress], ExportResult]

#: Name for ``--engine`` -> module in this folder, and its function that is a :data:`Target`.
TARGETS: dict[str, tuple[str, str]] = {
    "onnxruntime": ("bundle", "target"),
    "huggingface": ("huggingface.target", "target"),
    "tensorrt-llm": ("tensorrt_llm", "target"),
    "tensorrt-rtx": ("tensorrt.target", "tensorrt_rtx"),
    "tensorrt": ("tensorrt.target", "tensorrt"),
}

#: The options that locate a training run, which every target takes.
RUN_OPTIONS = ("run", "output", "config", "weights", "step")
#: Options that determine what is in a bundle.
BUNDLE_OPTIONS = (
    "precision",
    "encoder_precision",
    "codec_precision",
    "prefill",
    "calibrate",
    "accept_quality",
    "post_codec",
)

#: Name for ``--engine`` -> fields of the request that it takes besides :data:`RUN_OPTIONS`.
TAKES: dict[str, tuple[str, ...]] = {
    "onnxruntime": BUNDLE_OPTIONS,
    "huggingface": ("precision",),
    "tensorrt-llm": ("precision",),
    "tensorrt-rtx": (*BUNDLE_OPTIONS, "target", "max_context"),
    "tensorrt": (*BUNDLE_OPTIONS, "max_context"),
}
#: Targets that export only the text side.
TEXT_TARGETS = ("huggingface", "tensorrt-llm")

#: Field of a request -> its option on the command line, if that is not ``--field-name``.
_OPTIONS = {"post_codec": "--sound-rate and --sound-channels"}


def find_target(engine: str) -> Target:
    """The function behind ``--engine``; :class:`InputError` for an unknown name, ``ImportError`` if a library is
    missing."""
    if engine not in TARGETS:
        raise InputError(f"--engine {engine}: choose {', '.join(TARGETS)}")
    module, function = TARGETS[engine]
    target: Target = getattr(importlib.import_module(f"{__package__}.{module}"), function)
    return target


def refuse_others(request: ExportRequest, engine: str) -> None:
    """Raise :class:`InputError` for an option that was given but that the target neither takes nor may ignore."""
    if engine == "tensorrt" and request.target is not None:
        raise InputError(
            f"--target {request.target}: TensorRT builds for the GPU that it sees, and for no other; leave it out, and "
            "run this on the machine where the engine is to run"
        )
    for field in fields(request):
        if field.name not in (*RUN_OPTIONS, *TAKES[engine]) and getattr(request, field.name) != field.default:
            raise InputError(f"{_option_name(field.name)}: does not apply to --engine {engine}; leave it out")


def refuse_built(request: ExportRequest) -> None:
    """Raise :class:`InputError` for an export option if the input is already a bundle that is only to be compiled."""
    for name in ("config", "weights", "step", *BUNDLE_OPTIONS):
        value = getattr(request, name)
        if value is not None and value is not False:
            raise InputError(
                f"{_option_name(name)}: {request.run} is a bundle, and what is in it was chosen when it was exported; "
                "leave it out, or give the training run"
            )


def _option_name(field: str) -> str:
    return _OPTIONS.get(field, f"--{field.replace('_', '-')}")
