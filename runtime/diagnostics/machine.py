"""Facts about this machine: versions, processor, GPUs, and which engines can run here."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..bundle.contents import GOLDEN_CONTEXT as GOLDEN_CONTEXT
from ..engines.device.facts import cuda_facts
from ..engines.registry import ENGINES, why_not
from ..process.cores import cores
from ..process.native_module import native_problem
from ..process.stopping import raise_interrupt

#: Features that decide the speed of matrix products, by their names in Linux's /proc/cpuinfo.
_CPU_FEATURES = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni"),
    *("avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "amx_fp16"),
    *("neon", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"),
)


@dataclass(frozen=True)
class EngineReport:
    """Whether an engine can run here; if not, ``reasons`` says why in sentences."""

    name: str
    runs: bool
    reasons: tuple[str, ...]


def versions() -> dict[str, str]:
    """Versions of ualm, Python, the platform and every library that the runtime loads, or which of them is missing."""
    found = {"ualm": _version("ualm"), "python": platform.python_version(), "platform": platform.platform()}
    for name in ("numpy", "onnxruntime", "tokenizers", "soundfile", "soxr"):
        found[name] = _version(name)
    for name, module, field in (
        ("libsndfile", "soundfile", "__libsndfile_version__"),
        ("libsoxr", "soxr", "__libsoxr_version__"),
    ):
        found[name] = str(getattr(sys.modules.get(module), field, "unknown"))
    return found


def machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, Any]:
    """CPU model, the instruction sets that matter, cores that may be used, and memory in bytes.

    "unknown" (None for memory) where the system does not say.
    """
    model, features = _cpu(cpuinfo)
    return {
        "cpu": model,
        "architecture": platform.machine() or "unknown",
        "cpu_features": features,
        "cores": cores(),
        "memory_bytes": _memory(),
    }


def engines() -> list[EngineReport]:
    """Every engine, in the order in which they are tried, and whether it can run here, regardless of the bundle."""
    found = {name: why_not(name) for name in ENGINES}
    return [EngineReport(name, reason is None, () if reason is None else (reason,)) for name, reason in found.items()]


def gpus() -> list[str]:
    """The NVIDIA GPUs that CUDA lists, in words; none if this ualm was built without CUDA."""
    facts = cuda_facts()
    driver = "" if facts.driver is None else f", driver {facts.driver}"
    return [
        f"{gpu.name}, compute capability {gpu.sm // 10}.{gpu.sm % 10}, {gpu.total / 2**30:.1f} GiB{driver}"
        for gpu in facts.gpus
    ]


def cuda_build() -> str:
    """What this build of ualm holds CUDA kernels for, e.g. "80-real 90-real 90-virtual"; empty if it holds none."""
    try:
        return str(importlib.import_module("ualm.runtime._native").CUDA_ARCHITECTURES)
    except ImportError as error:
        raise_interrupt(error)
        return ""


def native_module() -> str | None:
    """None if the compiled module loads, else why it does not."""
    problem = native_problem()
    return None if problem is None else f"{problem}; install ualm again"


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpu(cpuinfo: Path) -> tuple[str, list[str] | str]:
    model = platform.processor() or "unknown"
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return model, "unknown"
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        fields.setdefault(name.strip().lower(), value.strip())
    flags = set((fields.get("flags") or fields.get("features") or "").split())
    return fields.get("model name", model), [name for name in _CPU_FEATURES if name in flags] if flags else "unknown"


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not on Windows
        return None
