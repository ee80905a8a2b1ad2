"""Compiled parts in memory, and calls of them over addresses on the device.

A call is an execution context set to one profile. Contexts get their scratch memory from us, and several share one
allocation. That is correct while their runs come one after the other: all are enqueued on one stream, each as a whole,
which the scratch memory's lock ensures. A context itself has one owner, which no two threads use at once.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ...bundle.compiled import EngineFile
from ...errors import EngineError
from ..build_commands import export_command
from ..device.device import Buffer, Device, Stream
from .library import Library, make_logger


class Scratch:
    """Memory that the contexts of one stream share, ``nbytes`` for the one that needs most.

    Its address and size are fixed, since contexts hold them. ``lock`` is held while a run is enqueued: two threads
    enqueueing at once would interleave the kernels of two runs, which then overwrite each other's scratch.
    """

    def __init__(self, device: Device, stream: Stream, nbytes: int, lock: AbstractContextManager[bool]) -> None:
        self.stream, self.lock = stream, lock
        self._buffer: Buffer = device.allocate(nbytes)

    def place(self) -> tuple[int, int]:
        return self._buffer.address, self._buffer.nbytes


class CompiledParts:
    """Loads engines of one library. ``cache``: file of what TensorRT-RTX has compiled here before, if any."""

    def __init__(self, library: Library, cache: Path | None = None) -> None:
        self.library, self._cache_file = library, cache
        self.logger = make_logger(library.module)
        self._runtime = library.module.Runtime(self.logger)
        self._cache: Any = None
        self._cache_lock = threading.Lock()

    def load(self, path: Path, entry: EngineFile) -> CompiledPart:
        """The engine in ``path``; :class:`EngineError` with the library's reason if it refuses it."""
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            engine = self._runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise EngineError(
                f"{path}: {self.library.title} cannot load it ({self.logger.text()}); build it again: "
                f"{export_command(path.parent, self.library.name, entry.sms)}"
            )
        return CompiledPart(self, engine, path, entry)

    def context(self, engine: Any, *, steady: bool) -> Any:
        """An execution context without its own memory. ``steady``: it will see one shape, so kernels specialised for
        that shape are worth compiling before the first run; others use kernels for any shape."""
        trt = self.library.module
        by_us = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not hasattr(engine, "create_runtime_config"):  # TensorRT 10.3
            return engine.create_execution_context(by_us)
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(by_us)
        if hasattr(config, "dynamic_shapes_kernel_specialization_strategy"):  # TensorRT-RTX compiles where it runs
            strategies = trt.DynamicShapesKernelSpecializationStrategy
            config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER if steady else strategies.NONE
            config.set_runtime_cache(self._runtime_cache(config))
        return engine.create_execution_context(runtime_config=config)

    def _runtime_cache(self, config: Any) -> Any:
        """One cache for all contexts, whichever thread makes the first."""
        with self._cache_lock:
            if self._cache is None:
                self._cache = config.create_runtime_cache()
                if self._cache_file is not None and self._cache_file.is_file():
                    # it rejects what another driver, GPU or version wrote, and starts empty
                    self._cache.deserialize(self._cache_file.read_bytes())
            return self._cache

    def save_cache(self) -> None:
        """Save what was compiled, so that the next start need not wait for it."""
        if self._cache is None or self._cache_file is None:
            return
        try:
            self._cache_file.parent.mkdir(parents=True, exist_ok=True)
            beside = self._cache_file.with_suffix(".new")
            beside.write_bytes(bytes(self._cache.serialize()))
            beside.replace(self._cache_file)
        except OSError:  # a read-only home only costs the compilation next time
            return


class CompiledPart:
    """A part's engine. Contexts of it may be made at any time."""

    def __init__(self, parts: CompiledParts, engine: Any, path: Path, entry: EngineFile) -> None:
        self._parts, self._engine, self.path, self.entry = parts, engine, path, entry
        trt = parts.library.module
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self.inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self.outputs = [name for name in names if name not in self.inputs]

    @property
    def scratch_bytes(self) -> int:
        """The most scratch memory that any of its profiles takes."""
        return int(self._engine.device_memory_size_v2)

    @property
    def profiles(self) -> Sequence[str]:
        return [profile.name for profile in self.entry.profiles]

    def static_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._engine.get_tensor_shape(name))

    def call(self, profile: str, scratch: Scratch, *, steady: bool = False) -> Call:
        """A context for ``profile`` on the scratch memory's stream."""
        if profile not in self.profiles:
            raise EngineError(f"{self.path}: has no profile {profile!r}; build it again with this ualm")
        context = self._parts.context(self._engine, steady=steady)
        if context is None:
            raise EngineError(f"{self.path}: no execution context ({self._parts.logger.text()})")
        address, nbytes = scratch.place()
        if nbytes < self.scratch_bytes:
            raise EngineError(
                f"{self.path}: needs {self.scratch_bytes} bytes of scratch memory, {nbytes} were reserved"
            )
        context.set_device_memory(address, nbytes)
        call = Call(self, context, scratch, self._parts)
        with scratch.lock:
            chosen = context.set_optimization_profile_async(self.profiles.index(profile), scratch.stream.handle)
        call.check(chosen, f"profile {profile!r}")
        return call


class Call:
    """A part whose inputs and outputs are bound to addresses; calling it enqueues a run on its stream.

    From the first binding until the run is enqueued it belongs to one thread; other threads' calls may go on meanwhile.
    """

    def __init__(self, part: CompiledPart, context: Any, scratch: Scratch, parts: CompiledParts) -> None:
        self._part, self._context, self._scratch, self._parts = part, context, scratch, parts

    def input(self, name: str, address: int, shape: Sequence[int] | None = None) -> None:
        """Bind an input; ``shape`` if it varies. An input that sizes depend on is read from host memory."""
        if shape is not None:
            self.check(self._context.set_input_shape(name, tuple(shape)), f"input {name!r} of shape {list(shape)}")
        self.check(self._context.set_tensor_address(name, address), f"input {name!r}")

    def output(self, name: str, address: int) -> None:
        self.check(self._context.set_tensor_address(name, address), f"output {name!r}")

    def output_shape(self, name: str) -> tuple[int, ...]:
        """Shape of an output for the bound inputs."""
        missing = self._context.infer_shapes()
        if missing:
            raise EngineError(f"{self._part.path}: no shape was given for {', '.join(missing)}")
        return tuple(self._context.get_tensor_shape(name))

    def __call__(self) -> None:
        with self._scratch.lock:
            enqueued = self._context.execute_async_v3(self._scratch.stream.handle)
        self.check(enqueued, "the run")

    @property
    def can_be_captured(self) -> bool:
        """Whether the library allows the next run to be captured into a graph; TensorRT always does."""
        asks = getattr(self._context, "is_stream_capturable", None)
        return True if asks is None else bool(asks(self._scratch.stream.handle))

    def check(self, accepted: bool, what: str) -> None:
        """:class:`EngineError` if the library refused ``what``."""
        if not accepted:
            raise EngineError(
                f"{self._part.path}: {self._parts.library.title} refused {what} ({self._parts.logger.text()})"
            )
