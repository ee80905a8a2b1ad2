"""What the stages stand on: the device, its meter, engines on it, or, in a dry run, what stands in for them."""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType

from ...runtime.bundle import Bundle
from ...runtime.engines.base import Engine
from ...runtime.engines.device import Device
from ...runtime.engines.device_check import CudaFacts, cuda_facts, driver_version, gpu_problem, load_kernels
from ...runtime.engines.onnxruntime_cuda import NAME, OnnxRuntimeCudaEngine, open_engine
from ...runtime.engines.selection import why_not
from ...runtime.errors import EngineError, InputError
from ...runtime.packaged import default_bundle
from ..bandwidth import BandwidthMeter
from ..environment import cores
from ..scenario import Meter
from ..schema import Gpu, Subject
from ..subjects import BundleSubject, Request, precisions_of
from .limits import CopyMeter

#: What a rehearsal reads, to have a figure where a GPU's copy bandwidth would stand.
_REHEARSAL_BYTES = 16 << 20


@dataclass(frozen=True)
class Ground:
    """Where and how the stages run.

    ``shim``: in a dry run, the module that holds the kernels compiled for the CPU (tests/cuda builds it). ``bundle``:
    what the loop is tried with, None for the model that comes with ualm. ``work``: where large files may lie.
    """

    out: Path
    work: Path
    seed: int
    dry_run: bool
    shim: Path | None = None
    bundle_folder: Path | None = None
    progress: Callable[[str], None] = lambda text: None

    @cached_property
    def facts(self) -> CudaFacts:
        return cuda_facts()

    @cached_property
    def device(self) -> Device:
        """The GPU, or the host shim; :class:`EngineError` where there is none."""
        if self.dry_run:
            return Device(self._shim(), kind="cpu")
        problem = gpu_problem(self.facts)
        if problem is not None:
            raise EngineError(f"{problem}; --dry-run rehearses without a GPU")
        return Device(load_kernels())

    def _shim(self) -> ModuleType:
        if self.shim is None or not self.shim.is_file():
            raise InputError(f"--shim {self.shim}: no such file; docs/gpu.md says how to build one")
        # a name of its own, which is the tests': pybind11 gives a process one module of a name, whatever its file
        spec = importlib.util.spec_from_file_location("ualm_cuda_shim._cuda", self.shim)
        try:
            if spec is None or spec.loader is None:
                raise ImportError("no Python module")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        except ImportError as error:
            raise InputError(f"--shim {self.shim}: {error}; docs/gpu.md says how to build one") from error
        return module

    @cached_property
    def meter(self) -> Meter:
        """The bandwidth that figures are held against: of copies on the GPU, in a dry run of reads on the host."""
        meter: Meter = (
            BandwidthMeter(cores(), buffer_bytes=_REHEARSAL_BYTES) if self.dry_run else CopyMeter(self.device)
        )
        meter.measure()
        return meter

    @cached_property
    def gpu(self) -> Gpu | None:
        """The GPU as a result describes it; None in a dry run."""
        if self.dry_run:
            return None
        about = self.device.cuda.device_properties(self.device.index)
        cuda = self.facts.driver_cuda
        return Gpu(
            name=about["name"],
            compute_capability="{}.{}".format(*about["capability"]),
            memory_bytes=about["memory_bytes"],
            multiprocessors=about["multiprocessors"],
            driver=driver_version(),
            cuda=None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
            clocks_mhz=_clocks(),
        )

    @cached_property
    def bundle(self) -> Bundle:
        return Bundle(default_bundle() if self.bundle_folder is None else self.bundle_folder)

    def engine(self, bundle: Bundle, max_context: int) -> OnnxRuntimeCudaEngine:
        """The engine under test; in a dry run with ONNX Runtime's CPU provider in place of the other."""
        if self.dry_run:
            return OnnxRuntimeCudaEngine(bundle, self.device, max_context=max_context)
        problem = why_not(NAME, bundle, max_context)
        if problem is not None:
            raise EngineError(problem)
        return open_engine(bundle, threads=None, max_context=max_context)

    @property
    def torch_device(self) -> str:
        """torch's name of the same device."""
        return "cpu" if self.dry_run else "cuda"

    def subject(self, folder: Path) -> DeviceSubject:
        """A bundle that scenarios measure on this ground."""
        return DeviceSubject(folder, self)


class DeviceSubject(BundleSubject):
    """A bundle in the engine under test."""

    def __init__(self, folder: Path, ground: Ground) -> None:
        super().__init__(folder, Request(folder, seed=ground.seed), folder.resolve().name)
        self._ground = ground

    def open(self, max_context: int) -> Engine:
        return self._ground.engine(self.bundle, max_context)

    @cached_property
    def about(self) -> Subject:
        engine = "device loop on the CPU, a rehearsal" if self._ground.dry_run else NAME
        return Subject(self.bundle.folder.name, engine, self.bundle.digest, precisions_of(self.bundle))


def _clocks() -> dict[str, int]:
    """Highest clocks in MHz, by nvidia-smi; empty where it does not say."""
    query = ["nvidia-smi", "--query-gpu=clocks.max.sm,clocks.max.mem", "--format=csv,noheader,nounits", "-i", "0"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout
        processors, memory = (int(part) for part in said.split(","))
    except (OSError, subprocess.SubprocessError, ValueError):
        return {}
    return {"processors": processors, "memory": memory}
