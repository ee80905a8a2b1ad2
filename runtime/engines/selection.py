"""Which engine opens a bundle: the fastest that can run here, or the one that is named.

An engine says in a sentence why it cannot run. Nothing of an engine is imported before it is its turn, and a library
that is missing or broken passes its engine over; it never keeps the CPU from working.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import EngineError
from .device_check import cuda_facts, gpu_problem

if TYPE_CHECKING:
    from ..bundle import Bundle
    from .base import Engine
    from .tensorrt_names import LibraryName

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """The engine that was opened, and why each that comes before it in :data:`ENGINES` was not."""

    engine: Engine
    passed_over: Mapping[str, str]


@dataclass(frozen=True)
class _Candidate:
    """``why_not``: a sentence why it cannot run here or cannot open the bundle, None if it can (as far as is known)."""

    why_not: Callable[[Bundle | None, int], str | None]
    open: Callable[[Bundle, int | None, int], Engine]


def _tensorrt(name: LibraryName) -> _Candidate:
    def why_not(bundle: Bundle | None, max_context: int) -> str | None:
        from . import tensorrt

        return tensorrt.why_not(name, bundle)

    def open_(bundle: Bundle, threads: int | None, max_context: int) -> Engine:
        from . import tensorrt

        return tensorrt.open_engine(name, bundle, max_context=max_context)

    return _Candidate(why_not, open_)


def _cuda_why_not(bundle: Bundle | None, max_context: int) -> str | None:
    from . import onnxruntime_cuda

    return onnxruntime_cuda.why_not(bundle, max_context)


def _cuda_open(bundle: Bundle, threads: int | None, max_context: int) -> Engine:
    from . import onnxruntime_cuda

    return onnxruntime_cuda.open_engine(bundle, threads=threads, max_context=max_context)


def _cpu_why_not(bundle: Bundle | None, max_context: int) -> str | None:
    importlib.import_module(f"{__package__}.onnxruntime")  # only loading shows whether its own libraries are there
    return None


def _cpu_open(bundle: Bundle, threads: int | None, max_context: int) -> Engine:
    from .onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(bundle, threads=threads, max_context=max_context)


#: The engine that needs no GPU.
CPU = "onnxruntime"
#: Every engine, the fastest first.
ENGINES: dict[str, _Candidate] = {
    "tensorrt": _tensorrt("tensorrt"),
    "tensorrt-rtx": _tensorrt("tensorrt-rtx"),
    "onnxruntime-cuda": _Candidate(_cuda_why_not, _cuda_open),
    CPU: _Candidate(_cpu_why_not, _cpu_open),
}


def why_not(name: str, bundle: Bundle | None = None, max_context: int = 0) -> str | None:
    """Why the engine ``name`` cannot run here, or cannot open ``bundle`` with so many rows; None if it can."""
    try:
        return ENGINES[name].why_not(bundle, max_context)
    except (EngineError, ImportError, OSError) as error:  # OSError: a library's own library cannot be loaded
        return str(error)


def choose(name: str | None, bundle: Bundle, *, threads: int | None, max_context: int) -> Choice:
    """Open ``bundle`` in the engine ``name``; None: in the first of :data:`ENGINES` that can run here.

    :class:`EngineError` for an unknown name, for a named engine that cannot run, and where none can.
    """
    if name is not None:
        if name not in ENGINES:
            raise EngineError(f"engine {name!r} is unknown; available: {', '.join(ENGINES)}")
        reason = why_not(name, bundle, max_context)
        if reason is not None:
            raise EngineError(f"engine {name} cannot run here: {reason}")
        return Choice(ENGINES[name].open(bundle, threads, max_context), {})
    passed_over: dict[str, str] = {}
    lacking = gpu_problem(cuda_facts())  # asked once, before any engine's library is imported
    for each, candidate in ENGINES.items():
        reason = lacking if lacking is not None and each != CPU else why_not(each, bundle, max_context)
        if reason is None:
            try:
                engine = candidate.open(bundle, threads, max_context)
            except EngineError as error:
                if each == CPU:
                    raise  # the bundle itself may be what is wrong
                reason = str(error)
            else:
                logger.info("engine %s%s", each, "".join(f"; not {n}: {why}" for n, why in passed_over.items()))
                return Choice(engine, passed_over)
        passed_over[each] = reason
    raise EngineError("no engine can run here: " + "; ".join(f"{each}: {why}" for each, why in passed_over.items()))
