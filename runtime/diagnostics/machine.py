"""What this machine can run, and whether a bundle computes here what it computed at its export."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..audio.features import LogMelFrontend
from ..bundle.bundle import GOLDEN, Bundle
from ..bundle.contents import GOLDEN_CONTEXT as GOLDEN_CONTEXT
from ..bundle.contents import GOLDEN_TENSORS
from ..engines.arithmetic import logits_tolerance, part_tolerance
from ..engines.device.facts import cuda_facts
from ..engines.protocol import Engine
from ..engines.registry import ENGINES, why_not
from ..errors import BundleError, EngineError, UalmError
from ..process.cores import cores
from ..process.native_module import native_problem
from ..process.stopping import raise_interrupt
from ..sampling import AudioSampling, TextSampling
from ..sound.sound import Sound

#: Features that decide the speed of matrix products, by their names in Linux's /proc/cpuinfo.
_CPU_FEATURES = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni"),
    *("avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "amx_fp16"),
    *("neon", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"),
)


@dataclass(frozen=True)
class Check:
    """One output of the golden vector.

    ``error``: largest difference relative to the largest expected value, None where nothing could be compared;
    ``problem`` then says why.
    """

    name: str
    error: float | None
    tolerance: float
    problem: str | None = None

    @property
    def passed(self) -> bool:
        return self.error is not None and self.error <= self.tolerance


@dataclass(frozen=True)
class EngineReport:
    """Whether an engine can run here; if not, ``reasons`` says why in sentences."""

    name: str
    runs: bool
    reasons: tuple[str, ...]


def check_golden(bundle: Bundle, engine: Engine) -> list[Check]:
    """Recompute the bundle's golden vector: logits of all heads and both branches, sound, features.

    The null branch was recorded with a dense prefill of zeros; the engine computes it in its own way. "pcm (streamed)"
    compares a longer sound that the engine decodes in pieces with the same sound decoded at once. Tolerances follow
    from what the engine computes in; those in the bundle's manifest are for an older ualm. ``engine`` must hold
    :data:`GOLDEN_CONTEXT` rows. A part that fails or gives NaN is a failed check, not an exception; an incomplete
    golden vector is a :class:`BundleError`.
    """
    golden = bundle.golden_vector()
    missing = [name for name in GOLDEN_TENSORS if name not in golden]
    if missing:
        raise BundleError(f"{bundle.folder / GOLDEN}: lacks {', '.join(missing)}; export the run again")
    tolerances = _tolerances(bundle, engine)
    checks: list[Check] = []

    def compare(name: str, compute: Callable[[], np.ndarray], branches: tuple[str, ...] = ()) -> None:
        names = [f"{name} ({branch})" for branch in branches] or [name]
        compare_with(lambda: golden[name], tolerances[name], names, compute, bool(branches))

    def compare_with(
        expect: Callable[[], np.ndarray],
        tolerance: float,
        names: list[str],
        compute: Callable[[], np.ndarray],
        branches: bool,
    ) -> None:
        try:
            expected, found = expect(), compute()
            if found.shape != expected.shape:
                raise EngineError(f"the shape is {list(found.shape)}, expected was {list(expected.shape)}")
        except UalmError as error:
            checks.extend(Check(each, None, tolerance, str(error)) for each in names)
            return
        scale = float(np.abs(expected).max()) or 1.0
        pairs = zip(names, found, expected, strict=True) if branches else [(names[0], found, expected)]
        for each, mine, theirs in pairs:
            worst = float(np.abs(mine.astype(np.float64) - theirs).max()) / scale
            finite = bool(np.isfinite(worst))
            checks.append(Check(each, worst if finite else None, tolerance, None if finite else "NaN or infinity"))

    def logits(modality: str) -> np.ndarray:
        sequence = engine.open_sequence()
        sequence.prefill([golden["rows"]])
        if modality == "modality":
            return sequence.modality_logits()[None]
        options = AudioSampling(guidance=2.0) if modality == "audio" else TextSampling(guidance=2.0)
        sequence.begin_segment(modality, options, mode="fixed", segment=0)  # type: ignore[arg-type]
        sequence.run_frames(1)
        return sequence.logits

    first = bundle.manifest.codec.first_frames

    def long_latents() -> np.ndarray:
        return engine.codes_to_latents(np.resize(golden["codes"], (2 * first + 9, golden["codes"].shape[1])))

    def streamed() -> np.ndarray:
        stream, pieces = engine.open_codec_stream(), np.split(long_latents(), [first, first + 1, 2 * first])
        return np.concatenate([stream.decode(piece, last=piece is pieces[-1]) for piece in pieces])

    def features() -> np.ndarray:
        spec = bundle.manifest.features
        heard = LogMelFrontend(spec, bundle.table("encoder.mel_filters")).prepare(
            Sound(golden["sound"], spec.sample_rate)
        )
        return engine.encode(heard.inputs)[: heard.rows]

    compare("logits.modality", partial(logits, "modality"))
    for modality in ("audio", "text"):
        compare(f"logits.{modality}", partial(logits, modality), ("conditional", "null"))
    compare("pcm", lambda: engine.decode_latents(engine.codes_to_latents(golden["codes"])))
    compare_with(
        lambda: engine.decode_latents(long_latents()), tolerances["pcm"], ["pcm (streamed)"], streamed, branches=False
    )
    compare("features", features)
    return checks


def _tolerances(bundle: Bundle, engine: Engine) -> dict[str, float]:
    """The tolerance of each output of the golden vector."""
    computes, model = engine.arithmetic, bundle.manifest.model
    body, heads, size = computes["body"], computes["heads"], (model.layers, model.hidden_size)
    spoken = logits_tolerance(body, heads, *size)
    return {
        "logits.modality": logits_tolerance(body, heads, *size, few=True),
        "logits.audio": spoken,
        "logits.text": spoken,
        "pcm": part_tolerance(computes["codec"]),
        "features": part_tolerance(computes["encoder"]),
    }


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
