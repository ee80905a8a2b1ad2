"""Commands that build engines for a GPU, for messages, and the names used in them."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from ..bundle.bundle import Bundle

#: The two TensorRT libraries, by the names of ``--engine``.
LibraryName = Literal["tensorrt", "tensorrt-rtx"]


#: First compute capability that multiplies float8.
FP8_SM = 89
#: Compute capabilities that TensorRT-RTX 1.7 builds for, for advice where it is not installed.
RTX_SMS = (75, 80, 86, 89, 120, 121)


#: What to do with an fp8 body where fp8 products are not available.
EXPORT_INT8 = "export the run with --precision int8"


def build_command(bundle: Bundle, name: LibraryName, sm: int, *options: str, able: tuple[int, ...] = RTX_SMS) -> str:
    """The command that builds a bundle's engines for a GPU. It replaces those of ``name``, so it names their GPUs as
    well, those that the library is still ``able`` to build for."""
    before = {each for engine in bundle.manifest.engines if engine.engine == name for each in engine.sms}
    return export_command(bundle.folder, name, {sm} | before & set(able), *options)


def export_command(folder: Path, name: LibraryName, sms: Collection[int], *options: str) -> str:
    """The command that builds the engines of the bundle in ``folder`` again, in place."""
    target = ("--target", ",".join(map(sm_name, sorted(sms)))) if name == "tensorrt-rtx" else ()
    return shlex.join(("ualm", "export", str(folder), "--engine", name, *target, *options, "-o", str(folder)))


def sm_name(sm: int) -> str:
    """A compute capability as ``--target`` spells it: 89 -> "sm89"."""
    return f"sm{sm}"
