"""Which engine opens a bundle: the fastest that can run here, or the one that is named.

An engine says in a sentence why it cannot run. Nothing of an engine is imported before its turn comes, and an engine
whose library is missing or broken is passed over; that never keeps the CPU from working.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ..errors import EngineError, InputError
from ..process.native_module import check_native
from ..process.stopping import raise_interrupt
from .device.facts import cuda_facts, gpu_problem
from .presence import gpu_is_there

if TYPE_CHECKING:
    from ..bundle.bundle import Bundle
    from .build_commands import LibraryName
    from .protocol import Engine

logger = logging.getLogger(__name__)

#: Environment variable that names the engine if no argument does.
VARIABLE = "UALM_ENGINE"
#: How many of a bundle's engine files a line names.
_MOST_FILES = 3


@dataclass(frozen=True)
class Choice:
    """The engine that was opened, and why each before it in :data:`ENGINES` was not.

    ``gpu``: whether this machine has an NVIDIA GPU, in which case the user is informed. ``named``: where the engine was
    named, in which case none is passed over; None: it was chosen. ``compiled``: names of the files that the bundle
    holds for each engine, so that the user learns why they are not run.
    """

    engine: Engine
    passed_over: Mapping[str, str] = field(default_factory=dict)
    gpu: bool = False
    named: Literal["argument", "environment"] | None = None
    compiled: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def notice(self) -> str | None:
        """Which engine runs and why the others do not, in one line; None if there is no GPU, and the bundle has no
        files of an engine that does not run."""
        over = self._worth_reporting()
        if not self.gpu and not over:
            return None
        if self.named is not None:
            return f"engine {self.engine.name}, as {'asked for' if self.named == 'argument' else f'{VARIABLE} says'}"
        # engines that are passed over for the same reason are listed together
        engines: dict[str, list[str]] = {}
        for each, reason in over.items():
            engines.setdefault(" ".join(reason.split()), []).append(each + _files(self.compiled.get(each, ())))
        others = "".join(f"; not {', '.join(names)}: {reason}" for reason, names in engines.items())
        return f"engine {self.engine.name}{others}"

    def to_json(self) -> dict[str, Any]:
        """The engine, and those that were passed over with the reasons, as in :meth:`notice`; ``files``: those of the
        bundle that are not run, if there are any."""
        over: list[dict[str, Any]] = []
        for each, reason in self._worth_reporting().items():
            files = {"files": list(self.compiled[each])} if each in self.compiled else {}
            over.append({"engine": each, "reason": reason, **files})
        return {"engine": self.engine.name, "passed_over": over}

    def _worth_reporting(self) -> Mapping[str, str]:
        """Of the engines passed over: all if there is a GPU, else those that the bundle was compiled for."""
        return {each: reason for each, reason in self.passed_over.items() if self.gpu or each in self.compiled}


def _files(names: tuple[str, ...]) -> str:
    """A clause about engine files, to follow the engine's name."""
    if not names:
        return ""
    more = len(names) - _MOST_FILES
    shown = ", ".join(names[:_MOST_FILES]) + (f" and {more} more" if more > 0 else "")
    return f" (the bundle holds {len(names)} engine file{'s' if len(names) > 1 else ''} of it: {shown})"


@dataclass(frozen=True)
class _Candidate:
    """``why_not``: a sentence why it cannot run here or cannot open the bundle, None if no obstacle is known.

    ``takes_threads``: whether any of its parts computes on CPU threads, so that their number can be chosen.
    """

    why_not: Callable[[Bundle | None, int], str | None]
    open: Callable[[Bundle, int | None, int], Engine]
    takes_threads: bool = True


def _tensorrt(name: LibraryName) -> _Candidate:
    def why_not(bundle: Bundle | None, max_context: int) -> str | None:
        from .tensorrt import engine as tensorrt

        return tensorrt.why_not(name, bundle)

    def open_(bundle: Bundle, threads: int | None, max_context: int) -> Engine:
        from .tensorrt import engine as tensorrt

        return tensorrt.open_engine(name, bundle, max_context=max_context)

    return _Candidate(why_not, open_, takes_threads=False)


def _cuda_why_not(bundle: Bundle | None, max_context: int) -> str | None:
    from .onnxruntime import cuda as onnxruntime_cuda

    return onnxruntime_cuda.why_not(bundle, max_context)


def _cuda_open(bundle: Bundle, threads: int | None, max_context: int) -> Engine:
    from .onnxruntime import cuda as onnxruntime_cuda

    return onnxruntime_cuda.open_engine(bundle, threads=threads, max_context=max_context)


def _cpu_why_not(bundle: Bundle | None, max_context: int) -> str | None:
    importlib.import_module(f"{__package__}.onnxruntime.cpu")  # only loading shows whether its libraries are there
    return None


def _cpu_open(bundle: Bundle, threads: int | None, max_context: int) -> Engine:
    from .onnxruntime.cpu import OnnxRuntimeEngine

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
    """Why the engine ``name`` cannot run here, or cannot open ``bundle`` with ``max_context`` rows; None if it can."""
    try:
        return ENGINES[name].why_not(bundle, max_context)
    except (EngineError, ImportError, OSError) as error:  # OSError: a shared library that it needs cannot be loaded
        raise_interrupt(error)
        return str(error)


def choose(name: str | None, bundle: Bundle, *, threads: int | None, max_context: int) -> Choice:
    """Open ``bundle`` in the engine ``name``; None: in the one that the environment variable :data:`VARIABLE` names,
    and if that is not set or empty, in the first of :data:`ENGINES` that can run here.

    :class:`EngineError` for an unknown name, for a named engine that cannot run, and if none can;
    :class:`InputError` for a number of ``threads`` if the engine has no use for it.
    """
    check_native()
    if name is not None:
        return Choice(_named(name, "", bundle, threads, max_context), {}, gpu_is_there(), "argument")
    if name := os.environ.get(VARIABLE):
        by = f" (named by {VARIABLE} in the environment)"
        return Choice(_named(name, by, bundle, threads, max_context), {}, gpu_is_there(), "environment")
    passed_over: dict[str, str] = {}
    facts = cuda_facts()
    gpu = bool(facts.gpus) or gpu_is_there()
    lacking = gpu_problem(facts)  # asked once, before any engine's library is imported
    for each, candidate in ENGINES.items():
        reason = lacking if lacking is not None and each != CPU else why_not(each, bundle, max_context)
        if reason is None:
            _check_threads(each, threads)
            try:
                engine = candidate.open(bundle, threads, max_context)
            except (EngineError, ImportError, OSError) as error:
                raise_interrupt(error)
                if each == CPU:
                    raise  # the bundle itself may be at fault
                reason = str(error)
            else:
                logger.info("engine %s%s", each, "".join(f"; not {n}: {why}" for n, why in passed_over.items()))
                return Choice(engine, passed_over, gpu, compiled=_compiled(bundle))
        passed_over[each] = reason
    raise EngineError("no engine can run here: " + "; ".join(f"{each}: {why}" for each, why in passed_over.items()))


def open_engine(name: str | None, bundle: Bundle, *, threads: int | None, max_context: int) -> Engine:
    """The engine that :func:`choose` opens, without the reasons."""
    return choose(name, bundle, threads=threads, max_context=max_context).engine


def _compiled(bundle: Bundle) -> dict[str, tuple[str, ...]]:
    """The engine files of a bundle, by engine."""
    found: dict[str, tuple[str, ...]] = {}
    for each in bundle.manifest.engines:
        found[each.engine] = (*found.get(each.engine, ()), each.file)
    return found


def _named(name: str, by: str, bundle: Bundle, threads: int | None, max_context: int) -> Engine:
    """The engine ``name``, opened; ``by``: where it was named, for messages."""
    if name not in ENGINES:
        raise EngineError(f"engine {name!r}{by} is unknown; available: {', '.join(ENGINES)}")
    _check_threads(name, threads)
    reason = why_not(name, bundle, max_context)
    if reason is not None:
        raise EngineError(f"engine {name}{by} cannot run here: {reason}")
    return ENGINES[name].open(bundle, threads, max_context)


def _check_threads(name: str, threads: int | None) -> None:
    if threads is not None and not ENGINES[name].takes_threads:
        raise InputError(
            f"threads = {threads}: the engine {name} computes on the GPU alone and has no use for threads of the CPU; "
            f"leave them out, or choose the engine {CPU}"
        )
