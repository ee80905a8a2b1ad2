"""Whether an NVIDIA GPU can run a bundle here: driver, architecture and memory, in one line that says what to do.

The facts about the machine come as :class:`CudaFacts`, so that every answer can be tested without a GPU.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...bundle.bundle import Bundle
from ...errors import EngineError
from ...process.stopping import raise_interrupt
from .cache import CacheShape
from .device import NUMBER_BYTES, Number, free_bytes

#: Memory beyond weights and cache that a body needs: the libraries' own code and handles (about what CUDA 13's runtime,
#: cuBLAS and cuDNN take on any card), and scratch for the attention and the feed-forward part of a prompt.
LIBRARY_BYTES = 600 << 20
#: Bits of a weight in each format, scales included (docs/precision.md), for advice about other formats.
_BITS = {"fp32": 32.0, "bf16": 16.0, "fp16": 16.0, "fp8": 8.0, "int8": 8.5, "int4": 4.5}
#: Parts that a GPU engine loads, and tables that it keeps on the device.
_LOADED = ("backbone", "head.audio", "head.text", "head.modality", "encoder", "codec", "codec.stream")
_TABLES = ("embedding", "codec.rvq_table", "codec.rvq_bias", "null.keys", "null.values")
#: Least driver of a CUDA major version on Linux, by NVIDIA's compatibility tables.
_LEAST_DRIVERS = {11: "450.80.02", 12: "525.60.13", 13: "580.65.06"}


@dataclass(frozen=True)
class GpuFacts:
    """A GPU: ``sm`` is its compute capability as one number, 89 for 8.9; bytes of memory in total and free."""

    name: str
    sm: int
    total: int
    free: int


@dataclass(frozen=True)
class CudaFacts:
    """The CUDA support of this ualm and this machine.

    ``module_problem``: why the kernels cannot be loaded, None if they can. ``built_for``: compute capabilities that
    they hold machine code for; ``portable_from``: the lowest of those that the driver can compile them for, if any.
    ``needs_cuda`` and ``driver_cuda``: CUDA versions as 1000 x major + 10 x minor, of the module and the newest that
    the driver supports (None: no driver); ``driver``: its own version. ``gpus``: the first, which is the one that
    engines use; empty if there is none, and ``trouble`` says why, if CUDA does.
    """

    module_problem: str | None
    built_for: tuple[int, ...]
    portable_from: int | None
    needs_cuda: int
    driver_cuda: int | None
    driver: str | None
    gpus: tuple[GpuFacts, ...]
    trouble: str = ""


def gpu_problem(facts: CudaFacts, index: int = 0) -> str | None:
    """Why our kernels cannot run here, a sentence; None if they can."""
    if facts.module_problem is not None:
        return facts.module_problem
    if facts.driver_cuda is None:
        return "no NVIDIA driver was found; install one (nvidia-smi then lists the GPU)"
    if facts.driver_cuda // 1000 < facts.needs_cuda // 1000:
        have = "" if facts.driver is None else f" {facts.driver}"
        return (
            f"the NVIDIA driver{have} supports CUDA {_version(facts.driver_cuda)}, this ualm was built with CUDA "
            f"{_version(facts.needs_cuda)}, which needs driver {least_driver(facts.needs_cuda)} or newer; update it"
        )
    if index >= len(facts.gpus):
        why = facts.trouble or "it shows no GPU"
        return f"the NVIDIA driver is there, but {why}; see whether nvidia-smi lists a GPU"
    gpu = facts.gpus[index]
    if gpu.sm not in _runnable(facts, gpu.sm):
        built = ", ".join(f"{sm // 10}.{sm % 10}" for sm in facts.built_for) or "none"
        return (
            f"{gpu.name} has compute capability {gpu.sm // 10}.{gpu.sm % 10}, and this ualm holds kernels for {built}; "
            f"build it again with UALM_CUDA_ARCHITECTURES={gpu.sm} in the environment"
        )
    return None


def cuda_facts() -> CudaFacts:
    """The facts of this machine."""
    try:
        cuda = load_kernels()
    except EngineError as error:
        return CudaFacts(str(error), (), None, 0, None, None, ())
    try:
        return _ask(cuda)
    except cuda.CudaError as error:  # a broken driver must not keep the CPU from working
        return CudaFacts(
            f"CUDA does not start here ({error}); see whether nvidia-smi works", (), None, 0, None, None, ()
        )


def _ask(cuda: Any) -> CudaFacts:
    built, portable = architectures(str(cuda.ARCHITECTURES))
    count, trouble = cuda.device_count()
    gpus = []
    for index in range(min(count, 1)):  # a query of its memory uses some of it, which others may need
        about = cuda.device_properties(index)
        major, minor = about["capability"]
        gpus.append(GpuFacts(about["name"], 10 * major + minor, about["memory_bytes"], free_bytes(about)))
    return CudaFacts(
        module_problem=None,
        built_for=built,
        portable_from=portable,
        needs_cuda=cuda.runtime_version(),
        driver_cuda=cuda.driver_version() or None,
        driver=driver_version(),
        gpus=tuple(gpus),
        trouble=trouble,
    )


def architectures(words: str) -> tuple[tuple[int, ...], int | None]:
    """Compute capabilities with machine code, and the lowest with portable code, of "80-real 86-real 86-virtual"."""
    found = [(int(number), kind) for number, kind in re.findall(r"(\d+)(?:-(real|virtual))?", words)]
    portable = [number for number, kind in found if kind != "real"]
    return tuple(number for number, kind in found if kind != "virtual"), min(portable, default=None)


def least_driver(cuda: int) -> str:
    """The oldest driver known to support a CUDA version."""
    return _LEAST_DRIVERS.get(cuda // 1000, f"of CUDA {_version(cuda)}")


def _runnable(facts: CudaFacts, sm: int) -> tuple[int, ...]:
    """``(sm,)`` if it can run: machine code runs on the same major version from its own minor version on."""
    binary = any(each // 10 == sm // 10 and each <= sm for each in facts.built_for)
    compiled = facts.portable_from is not None and facts.portable_from <= sm
    return (sm,) if binary or compiled else ()


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes of GPU memory that a bundle takes with one conversation; ``row``: per row of its ``rows`` of context."""

    weights: int
    tables: int
    workspace: int
    row: int
    rows: int

    @property
    def fixed(self) -> int:
        return self.weights + self.tables + self.workspace

    @property
    def total(self) -> int:
        return self.fixed + self.rows * self.row


def memory_need(
    bundle: Bundle,
    max_context: int,
    *,
    number: Number,
    prefill_rows: int,
    weights: int | None = None,
    score_bytes: int | None = None,
) -> MemoryNeed:
    """The memory that ``bundle`` takes on a GPU, counted from its manifest and tables, with a cache in ``number``.

    ``weights``: bytes of the engines that hold them; None counts them as they are stored. ``score_bytes``: of one
    attention score and what is computed from it; None: one ``number``.
    """
    parts, model = bundle.manifest.parts, bundle.manifest.model
    if weights is None:
        weights = sum(parts[role].weight_bytes or 0 for role in _LOADED if role in parts)
    tables = sum(bundle.table(name).nbytes for name in _TABLES)
    # a prompt's rows at once: three times the widest activation, which is no wider than 8 hidden states
    activations = 3 * 8 * model.hidden_size * prefill_rows * 4
    # per row of context: its cache; its angles, single and double, its position and its zero of a mask (see
    # onnxruntime.cuda_body.PositionTables); and its column of a prompt's scores and mask
    positions = 6 * 4 * (model.head_dim // 2) + 2 * 8 + 2 * 4
    scores = prefill_rows * (model.heads * (NUMBER_BYTES[number] if score_bytes is None else score_bytes) + 4)
    cache = CacheShape(model.layers, model.kv_heads, model.head_dim, max_context, number).bytes_per_row
    return MemoryNeed(weights, tables, LIBRARY_BYTES + activations, cache + positions + scores, max_context)


def memory_problem(
    need: MemoryNeed,
    gpu: GpuFacts,
    precisions: Mapping[str, str],
    *,
    fewer_rows: Callable[[int], str] = lambda rows: f"open it with a max_context of {rows} or less",
) -> str | None:
    """Why ``need`` does not fit, and what would; None if it does. ``precisions``: the manifest's, by part.

    ``fewer_rows``: how to limit the rows to a number.
    """
    if need.total <= gpu.free:
        return None
    says = (
        f"{gpu.name} has {_gib(gpu.free)} free of {_gib(gpu.total)}, and this bundle needs {_gib(need.total)} with one "
        f"conversation of max_context = {need.rows} rows (weights {_gib(need.weights)}, tables {_gib(need.tables)}, "
        f"workspace {_gib(need.workspace)}, rows {_gib(need.rows * need.row)})"
    )
    rows = (gpu.free - need.fixed) // need.row // 256 * 256
    if rows >= 256:
        return f"{says}; {fewer_rows(rows)}"
    bits = _BITS.get(precisions.get("backbone", "fp32"), 32.0)
    for name, fewer in _BITS.items():
        smaller = need.total - int(need.weights * (1 - fewer / bits))
        # fp8 is never advised: not every GPU and not every engine multiplies it
        if name != "fp8" and fewer < bits and smaller <= gpu.free:
            return f"{says}; export it with --precision {name}, which needs about {_gib(smaller)}"
    return f"{says}; no precision of this model fits: use a GPU with more memory, or the CPU (engine onnxruntime)"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _version(cuda: int) -> str:
    return f"{cuda // 1000}.{cuda % 1000 // 10}"


def driver_version(place: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    """Version of the NVIDIA kernel driver, as Linux shows it; None if it does not."""
    try:
        found = re.search(r"\s(\d{3}\.\d+(?:\.\d+)?)\s", place.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    return None if found is None else found.group(1)


def load_kernels(find: Callable[[str], Any] = importlib.import_module) -> Any:
    """The compiled module of our kernels; :class:`EngineError` if this ualm has none."""
    try:
        return find("ualm.runtime._cuda")
    except ModuleNotFoundError as error:
        raise EngineError(
            "this ualm was built without CUDA kernels: nvcc was missing; put nvcc on the PATH and install ualm again"
        ) from error
    except ImportError as error:
        raise_interrupt(error)
        raise EngineError(f"the CUDA kernels cannot be loaded ({error}); install ualm again on this machine") from error
