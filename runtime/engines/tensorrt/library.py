"""TensorRT and TensorRT-RTX as one: their Python interfaces are the same, and this module knows the exceptions.

TensorRT-RTX compiles for the GPUs it is given, on any machine. TensorRT compiles for the GPU that it finds, and so
needs one. Both are imported here and nowhere else.
"""

from __future__ import annotations

import ctypes
import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ...bundle.bundle import Bundle
from ...bundle.compiled import CacheKind
from ...errors import EngineError
from ...process.extras import install_hint
from ...process.stopping import raise_interrupt
from ..build_commands import EXPORT_INT8, FP8_SM, RTX_SMS, LibraryName, build_command, sm_name

_MODULES: dict[LibraryName, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_TITLES: dict[LibraryName, str] = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
#: The oldest TensorRT whose parser and bindings were checked: that of JetPack 6.
_OLDEST = (10, 3)
_INSTALL: dict[LibraryName, str] = {
    "tensorrt": f"{install_hint('tensorrt')} (on Jetson it comes with JetPack)",
    "tensorrt-rtx": install_hint("tensorrt-rtx"),
}


@dataclass(frozen=True)
class Library:
    """One of the two libraries: its name in ``--engine``, and its module."""

    name: LibraryName
    module: Any

    @property
    def version(self) -> str:
        return str(self.module.__version__)

    @property
    def title(self) -> str:
        """Name and version, for messages."""
        return f"{_TITLES[self.name]} {self.version}"

    @property
    def compiles_for_others(self) -> bool:
        """Whether it builds for GPUs that are not here."""
        return self.name == "tensorrt-rtx"

    @property
    def builds_for(self) -> tuple[int, ...]:
        """Compute capabilities that it can build for on any machine; none if it builds for the local GPU only."""
        if not self.compiles_for_others:
            return ()
        members = getattr(getattr(self.module, "ComputeCapability", None), "__members__", None)
        if members is None:
            return RTX_SMS
        return tuple(sorted(int(name[2:]) for name in members if name.startswith("SM")))

    @property
    def cache(self) -> CacheKind:
        """How its engines write the cache. Libraries that cannot write it in place lack newer operators as well, and
        get their graphs in primitives."""
        return "in_place" if hasattr(self.module.INetworkDefinition, "add_kv_cache_update") else "appended"


def load_library(name: LibraryName, find: Callable[[str], Any] = importlib.import_module) -> Library:
    """Import a library; :class:`EngineError` if it is missing, broken or too old for our graphs."""
    try:
        module = find(_MODULES[name])
    except (ImportError, OSError) as error:  # OSError: a shared library of it cannot be loaded
        raise_interrupt(error)
        raise EngineError(f"{_TITLES[name]} cannot be imported ({error}); install it: {_INSTALL[name]}") from error
    if not hasattr(module, "INetworkDefinition"):  # such as any folder of that name on the path
        place = next(iter(getattr(module, "__path__", ())), None)
        found = f"the module {_MODULES[name]!r} {'' if place is None else f'from {place} '}is not"
        raise EngineError(f"{_TITLES[name]} cannot be used: {found} its Python package; install it: {_INSTALL[name]}")
    library = Library(name, module)
    if library.cache == "appended":
        if name == "tensorrt-rtx":
            raise EngineError(
                f"{library.title} has no layer that updates a KV cache in place, which our engines are built with; "
                f"install a newer one: {_INSTALL[name]}"
            )
        if _release(library.version) < _OLDEST:
            raise EngineError(
                f"{library.title} is older than {_OLDEST[0]}.{_OLDEST[1]}, the first that our engines are built with; "
                f"install a newer one: {_INSTALL[name]}"
            )
    return library


def _release(version: str) -> tuple[int, int]:
    """Major and minor number of "10.3.0"; (0, 0) if it is not a version."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found.group(1)), int(found.group(2))) if found else (0, 0)


def make_logger(module: Any) -> Any:
    """A logger that keeps errors for our own messages instead of printing them; ``text()`` gives them in one line."""

    class Logger(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= module.ILogger.ERROR:
                self.errors.append(message)

        def text(self) -> str:
            return joined(self.errors)

    return Logger()


def joined(messages: Sequence[str]) -> str:
    """The library's messages in one line, without its note in each error that there is no driver, which is noise."""
    lines = [line for message in messages for line in message.splitlines() if "cudaError 35" not in line]
    return " | ".join(lines) or "it gave no reason"


def local_sm(index: int = 0, load: Callable[[str], Any] = ctypes.CDLL) -> int:
    """Compute capability of a GPU of this machine, 89 for 8.9; :class:`EngineError` if there is none.

    Only the driver is asked, so that engines can be built where our own kernels were not.
    """
    try:
        driver = load("libcuda.so.1")
    except OSError as error:
        raise EngineError("no NVIDIA driver was found; install one (nvidia-smi then lists the GPU)") from error
    count, major, minor = ctypes.c_int(0), ctypes.c_int(0), ctypes.c_int(0)
    device = ctypes.c_int(0)
    # CUdevice_attribute 75 and 76: COMPUTE_CAPABILITY_MAJOR and _MINOR (cuda.h)
    calls: list[tuple[str, tuple[Any, ...]]] = [
        ("cuInit", (0,)),
        ("cuDeviceGetCount", (ctypes.byref(count),)),
        ("cuDeviceGet", (ctypes.byref(device), index)),
        ("cuDeviceGetAttribute", (ctypes.byref(major), 75, device)),
        ("cuDeviceGetAttribute", (ctypes.byref(minor), 76, device)),
    ]
    for name, arguments in calls:
        status = getattr(driver, name)(*arguments)
        if status:
            raise EngineError(f"the NVIDIA driver shows no GPU ({name} gave CUDA error {status}); see nvidia-smi")
    return major.value * 10 + minor.value


def no_engines_for(library: Library, sm: int) -> str | None:
    """Why a library does not support a compute capability, a sentence; None if it does."""
    able = library.builds_for
    if not able or sm in able:
        return None
    return f"{library.title} builds for {', '.join(map(sm_name, able))}, and the GPU here is {sm_name(sm)}"


def build_advice(bundle: Bundle, library: Library, sm: int) -> str:
    """How to get engines of a bundle for a GPU: a command that will not be refused, or what else would help."""
    if bundle.manifest.precision["backbone"] == "fp8" and sm < FP8_SM:
        return f"none can be built for an fp8 body, which {sm_name(sm)} cannot multiply: {EXPORT_INT8}"
    problem = no_engines_for(library, sm)
    if problem is not None:
        return f"{problem}; build TensorRT's engines on this machine: {build_command(bundle, 'tensorrt', sm)}"
    return f"build them with: {build_command(bundle, library.name, sm, able=library.builds_for)}"
