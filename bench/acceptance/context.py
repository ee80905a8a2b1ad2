"""Shared context of the stages: the device, its meter, and engines on it, or, in a dry run, their stand-ins."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from ...runtime.bundle.bundle import Bundle
from ...runtime.bundle.packaged import default_bundle
from ...runtime.engines.device.device import Device
from ...runtime.engines.device.facts import CudaFacts, cuda_facts, gpu_problem, load_kernels
from ...runtime.engines.registry import CPU, ENGINES, choose, why_not
from ...runtime.errors import EngineError, InputError
from ...runtime.process.cores import cores
from ...runtime.process.stopping import raise_interrupt
from ..meters.bandwidth import BandwidthMeter, Meter
from ..meters.gpu import CopyMeter, describe_gpu
from ..report.schema import Gpu
from .findings import Skip

if TYPE_CHECKING:
    from ...runtime.engines.protocol import Engine

#: The engine whose loop a rehearsal runs.
_REHEARSED = "onnxruntime-cuda"
#: Bytes that a rehearsal reads, to have a figure in place of a GPU's copy bandwidth.
_REHEARSAL_BYTES = 16 << 20


@dataclass(frozen=True)
class Ground:
    """How a stage runs.

    ``shim``: in a dry run, the module with the kernels compiled for the CPU (tests/csrc/cuda builds it). ``bundle``:
    what the loop runs, None for the model that comes with ualm. ``work``: folder for large files. ``expected``: what
    the CPU drew, None for the file that comes with ualm. ``few``: only the trials of the kernels that show most.
    """

    work: Path
    seed: int
    dry_run: bool
    shim: Path | None = None
    bundle_folder: Path | None = None
    expected: Path | None = None
    few: bool = False
    progress: Callable[[str], None] = lambda text: None

    @property
    def short(self) -> bool:
        """Whether the kernels run fewer trials: in a rehearsal, and under a tool that slows them down."""
        return self.few or self.dry_run

    @cached_property
    def facts(self) -> CudaFacts:
        return cuda_facts()

    @cached_property
    def device(self) -> Device:
        """The GPU, or the host shim; raises :class:`EngineError` if there is none."""
        if self.dry_run:
            return Device(self._shim(), kind="cpu")
        problem = gpu_problem(self.facts)
        if problem is not None:
            raise EngineError(f"{problem}; --dry-run rehearses without a GPU")
        return Device(load_kernels())

    def _shim(self) -> ModuleType:
        if self.shim is None or not self.shim.is_file():
            raise InputError(f"--shim {self.shim}: no such file; docs/gpu.md says how to build one")
        # the same separate name as in the tests: pybind11 gives a process one module per name, whatever its file
        spec = importlib.util.spec_from_file_location("ualm_cuda_shim._cuda", self.shim)
        try:
            if spec is None or spec.loader is None:
                raise ImportError("no Python module")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        except ImportError as error:
            raise_interrupt(error)
            raise InputError(f"--shim {self.shim}: {error}; docs/gpu.md says how to build one") from error
        return module

    @cached_property
    def meter(self) -> Meter:
        """The bandwidth that figures are compared with: of copies on the GPU, or in a dry run of reads on the host."""
        meter: Meter = (
            BandwidthMeter(cores(), buffer_bytes=_REHEARSAL_BYTES) if self.dry_run else CopyMeter(self.device)
        )
        meter.measure()
        return meter

    @cached_property
    def gpu(self) -> Gpu | None:
        """The description of the GPU for a result; None in a dry run."""
        if self.dry_run:
            return None
        return describe_gpu(self.device)

    @cached_property
    def bundle(self) -> Bundle:
        return Bundle(default_bundle() if self.bundle_folder is None else self.bundle_folder)

    def engines(self, bundle: Bundle, max_context: int) -> list[str]:
        """Engines on the GPU that can open ``bundle``; raises :class:`Skip` with all reasons if none can."""
        if self.dry_run:
            return [_REHEARSED]
        reasons = {name: why_not(name, bundle, max_context) for name in ENGINES if name != CPU}
        found = [name for name, reason in reasons.items() if reason is None]
        if not found:
            raise Skip("; ".join(f"{name}: {reason}" for name, reason in reasons.items()))
        return found

    def engine(self, name: str, bundle: Bundle, max_context: int) -> Engine:
        """An engine under test; in a dry run with ONNX Runtime's CPU provider instead of CUDA's."""
        if self.dry_run:
            from ...runtime.engines.onnxruntime.cuda import OnnxRuntimeCudaEngine

            return OnnxRuntimeCudaEngine(bundle, self.device, max_context=max_context)
        return choose(name, bundle, threads=None, max_context=max_context).engine

    @property
    def torch_device(self) -> str:
        """torch's name for the same device."""
        return "cpu" if self.dry_run else "cuda"
