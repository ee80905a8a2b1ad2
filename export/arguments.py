"""Checks of an export request that need no torch and so take a moment: its options, and the files that it names.

The targets check everything again where they use it; these checks save users seconds of waiting for a simple mistake.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..runtime.bundle.bundle import MANIFEST
from ..runtime.bundle.manifest import CodecIdentity
from ..runtime.errors import InputError, OutputError
from ..runtime.files.writing import check_new_folder, resolved
from .formats.precision import Precision, check_text_precision
from .quality.calibration_set import calibration_files, check_calibrated
from .targets.registry import TARGETS, TEXT_TARGETS, ExportRequest, refuse_built, refuse_others


def check_request(request: ExportRequest, engine: str) -> None:
    """Raise what ``--engine`` ``engine`` would raise for the request's options and paths: an ``InputError``,
    ``ExportError`` or ``OutputError``."""
    if engine not in TARGETS:
        raise InputError(f"--engine {engine}: choose {', '.join(TARGETS)}")
    refuse_others(request, engine)
    if engine in TEXT_TARGETS:
        check_text_precision(request.precision)
    else:
        precision = request.precision or "fp32"
        Precision.of(precision, request.encoder_precision, request.codec_precision, request.prefill)
        if request.calibrate is not None:
            check_calibrated(precision)
            calibration_files(request.calibrate)
    if request.max_context is not None and request.max_context < 1:
        raise InputError(f"--max-context {request.max_context}: give a whole number of at least 1")
    if engine.startswith("tensorrt") and request.run is not None and (request.run / MANIFEST).is_file():
        refuse_built(request)
        if resolved(request.output) != resolved(request.run):  # otherwise the bundle's engines are built again
            _check_output(request.output)
        return
    # these need yaml, which is not installed where a bundle is only compiled
    from .run.recipe import find_run, read_recipe
    from .run.shards import weight_files

    files = find_run(request.run, config=request.config, weights=request.weights, step=request.step)
    recipe = read_recipe(files.config)
    weight_files(files.weights)
    limit, given = recipe.backbone.max_positions, request.max_context
    if given is not None and given > limit:
        raise InputError(f"--max-context {given}: give a whole number from 1 to {limit}, this model's limit")
    rate = recipe.codec.get("sample_rate", 16000)
    if request.post_codec is not None and type(rate) is int and rate > 0:  # any other rate is refused by the codec
        request.post_codec(CodecIdentity(rate, 1, 1, 0, 0, 0))
    _check_output(request.output)


def _check_output(folder: Path) -> None:
    check_new_folder(folder)
    place = next(place for place in (resolved(folder), *resolved(folder).parents) if place.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        why = "not allowed to" if place.is_dir() else f"{place} is a file"
        raise OutputError(f"{resolved(folder)}: cannot write here ({why}); choose a writable folder")
