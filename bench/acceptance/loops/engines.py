"""Engines of TensorRT-RTX and TensorRT, built for this GPU, and the whole loop in them."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from ....runtime.bundle.bundle import Bundle
from ....runtime.engines.build_commands import sm_name
from ....runtime.engines.registry import why_not
from ....runtime.engines.tensorrt.library import load_library, local_sm
from ....runtime.errors import EngineError
from ....runtime.process.extras import install_hint
from ....runtime.process.stopping import raise_interrupt
from ..findings import Findings, Skip
from .loop import check_bundle, measure_bundle

if TYPE_CHECKING:
    from pathlib import Path

    from ....runtime.engines.build_commands import LibraryName
    from ..context import Ground

#: Cache rows that the engines are compiled for: more than any measurement of the loop holds.
_CAPACITY = 4096
_LIBRARIES: tuple[LibraryName, ...] = ("tensorrt-rtx", "tensorrt")


def check_engines(ground: Ground, found: Findings) -> None:
    """The stage: the checks of ``loop``, on a copy of its bundle that each library has compiled here."""
    for name in _LIBRARIES:
        folder = ground.work / f"engines_{name}"
        with found.checking(f"{name}: engines for this GPU") as details:
            details.append(_build(ground, name, folder))
        if found.checks[-1].verdict == "pass":
            check_bundle(ground, found, name, Bundle(folder))
            measure_bundle(ground, found, name, folder, contexts=(256, 1024))


def _build(ground: Ground, name: LibraryName, folder: Path) -> str:
    """Make ``folder`` again: the bundle and its engines. Raises :class:`Skip` without the library or a supported
    GPU."""
    try:
        library = load_library(name)
        if ground.dry_run:
            raise Skip(f"a dry run: there is no GPU that {library.title} could build for")
        sm = local_sm()
    except EngineError as error:
        raise Skip(str(error)) from error
    try:
        from ....export.targets.registry import ExportRequest
        from ....export.targets.tensorrt.build import known_sms
        from ....export.targets.tensorrt.target import TARGETS
    except ImportError as error:
        raise_interrupt(error)
        raise Skip(f"needs onnx ({error}); install it with: {install_hint(name)}") from error
    if library.compiles_for_others and sm not in known_sms(library):
        raise Skip(f"{library.title} does not build for {sm_name(sm)}")
    if folder.exists():  # engines of an older library, or for another GPU
        shutil.rmtree(folder)
    order = ExportRequest(
        ground.bundle.folder,
        folder,
        target=sm_name(sm) if library.compiles_for_others else None,
        max_context=min(_CAPACITY, ground.bundle.manifest.model.max_positions),
    )
    parts = TARGETS[name](order, lambda stage, done, total: ground.progress(stage)).result["parts"]
    reason = why_not(name, Bundle(folder, verify="never"), order.max_context or 0)
    assert reason is None, f"built, but {reason}"
    seconds, size = (sum(part[what] for part in parts.values()) for what in ("seconds", "bytes"))
    return f"{library.title}, {sm_name(sm)}: {len(parts)} parts in {seconds:.0f} s, {size / 2**20:.0f} MiB"
