"""A stand-in for TensorRT's Python module, written by us: its engines are the ONNX graphs, computed by ONNX Runtime.

It shows that our calls fit together: which profile takes which shape, what is bound where, what a step leaves in device
memory for the next; and that no two threads use one context, or put runs that share scratch memory on the stream, at
the same time (:data:`misuse`). It says nothing about TensorRT. Device memory is that of the kernels' host shim, so an
address belongs to this process.
"""

from __future__ import annotations

import ctypes
import functools
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from ualm.export.targets.tensorrt.build import BuildReport
from ualm.runtime.bundle.compiled import CacheKind, EngineProfile
from ualm.runtime.engines.device.device import Device
from ualm.runtime.engines.tensorrt.library import Library

VERSION = "99.1"
_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
}


#: Calls whose behaviour TensorRT leaves undefined; a test that finds any must fail, see :func:`watched`.
misuse: list[str] = []
#: Extra seconds for every run while it is put on the stream, so that threads collide.
linger = 0.0
_busy: dict[object, int] = {}
_guard = threading.Lock()


@contextmanager
def watched() -> Iterator[None]:
    """Fails if code within uses a context or scratch memory on two threads at once."""
    misuse.clear()
    yield
    assert not misuse, misuse


@contextmanager
def _alone(what: object, name: str) -> Iterator[None]:
    """No other thread may use ``what`` meanwhile."""
    me = threading.get_ident()
    with _guard:
        other = _busy.setdefault(what, me)
    if other != me:
        misuse.append(f"{name} is used by two threads at once")
        raise AssertionError(misuse[-1])
    try:
        yield
    finally:
        with _guard:
            _busy.pop(what, None)


def _bound_by_one(method: Callable[..., Any]) -> Callable[..., Any]:
    """A call of a context: from the first binding until the run is enqueued, only one thread may use it."""

    @functools.wraps(method)
    def call(self: Context, *arguments: Any, **options: Any) -> Any:
        me = threading.get_ident()
        with _guard:
            self.owner = other = self.owner or me
        if other != me:
            misuse.append(f"{method.__name__}: the context is used by two threads at once")
            raise AssertionError(misuse[-1])
        return method(self, *arguments, **options)

    return call


class ILogger:
    ERROR = 1

    def __init__(self) -> None:
        pass


class Runtime:
    """TensorRT 10.3 makes contexts without their own configuration."""

    engines: type[Engine]

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, serialized: Any) -> Engine | None:
        try:
            return self.engines(json.loads(bytes(serialized)), self.logger)
        except ValueError:
            self.logger.log(ILogger.ERROR, "the plan is damaged")
            return None


class Engine:
    device_memory_size_v2 = 1000

    def __init__(self, plan: dict[str, Any], logger: Any) -> None:
        self.plan, self.logger = plan, logger
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.session = ort.InferenceSession(plan["onnx"], options, providers=["CPUExecutionProvider"])
        self.values = {value.name: value for value in (*self.session.get_inputs(), *self.session.get_outputs())}
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.num_io_tensors = len(self.values)

    def get_tensor_name(self, index: int) -> str:
        return list(self.values)[index]

    def get_tensor_mode(self, name: str) -> str:
        return "INPUT" if name in self.inputs else "OUTPUT"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else -1 for size in self.values[name].shape)

    def get_aliased_input_tensor(self, name: str) -> str:
        return name.replace("present_", "past_") if name.startswith("present_") else ""

    def create_execution_context(
        self, strategy: str | None = None, *, runtime_config: RuntimeConfig | None = None
    ) -> Context:
        assert (strategy if runtime_config is None else runtime_config.strategy) == "USER_MANAGED"
        return Context(self)


class NewerEngine(Engine):
    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig()


Runtime.engines = Engine


class RuntimeConfig:
    strategy = "STATIC"

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.profile: dict[str, Any] | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.scratch: tuple[int, int] | None = None
        self.owner: int | None = None

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory and size >= self.engine.device_memory_size_v2
        self.scratch = memory, size

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert self.scratch is not None
        with _alone(self.scratch[0], "a scratch memory's stream"):
            self.profile = self.engine.plan["profiles"][profile_index]
        return True

    @_bound_by_one
    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.profile is not None and self.profile["name"] is not None
        low, _, high = self.profile["shapes"].get(name, [self.engine.get_tensor_shape(name)] * 3)
        if len(shape) != len(low) or not all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
            self.engine.logger.log(ILogger.ERROR, f"{name}: {shape} is outside {low} .. {high}")
            return False
        self.shapes[name] = shape
        return True

    @_bound_by_one
    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert name in self.engine.values, name
        self.addresses[name] = memory
        return True

    @_bound_by_one
    def infer_shapes(self) -> list[str]:
        varying = [name for name in self.engine.inputs if -1 in self.engine.get_tensor_shape(name)]
        return [name for name in varying if name not in self.shapes]

    @_bound_by_one
    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._run()[name].shape

    @_bound_by_one
    def execute_async_v3(self, stream_handle: int) -> bool:
        assert self.scratch is not None
        with _alone(self.scratch[0], "a scratch memory"):
            time.sleep(linger)
            for name, values in self._run().items():
                alias = self.engine.get_aliased_input_tensor(name)
                assert not alias or self.addresses[name] == self.addresses[alias], name
                ctypes.memmove(self.addresses[name], values.ctypes.data, values.nbytes)
        self.owner = None
        return True

    def _run(self) -> dict[str, np.ndarray]:
        for name, (low, _, high) in (self.profile or {})["values"].items():
            assert low <= [int(each) for each in self._input(name)] <= high, name
        outputs = self.engine.session.run(None, {name: self._input(name) for name in self.engine.inputs})
        names = [value.name for value in self.engine.session.get_outputs()]
        return {name: np.ascontiguousarray(values) for name, values in zip(names, outputs, strict=True)}

    def _input(self, name: str) -> np.ndarray:
        shape = self.shapes.get(name, self.engine.get_tensor_shape(name))
        dtype = np.dtype(_DTYPES[self.engine.values[name].type])
        nbytes = int(np.prod(shape)) * dtype.itemsize
        return np.frombuffer(ctypes.string_at(self.addresses[name], nbytes), dtype).reshape(shape)


class NewerRuntime(Runtime):
    engines = NewerEngine


def fake_library(cache: CacheKind = "in_place") -> Library:
    """The stand-in: as the library ``tensorrt-rtx``, and with an appended cache as a ``tensorrt`` like 10.3."""
    newer = cache == "in_place"
    module = SimpleNamespace(
        __version__=VERSION,
        ILogger=ILogger,
        Runtime=NewerRuntime if newer else Runtime,
        TensorIOMode=SimpleNamespace(INPUT="INPUT", OUTPUT="OUTPUT"),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="USER_MANAGED"),
        INetworkDefinition=SimpleNamespace(add_kv_cache_update=None) if newer else SimpleNamespace(),
    )
    return Library("tensorrt-rtx" if newer else "tensorrt", module)


def fake_build(
    library: Library,
    onnx_path: Path,
    model: onnx.ModelProto,
    profiles: Sequence[EngineProfile],
    *,
    sms: Sequence[int],
    timing_cache: Path | None = None,
) -> BuildReport:
    """As ``build.build``: the engine names a graph beside the bundle's weights."""
    place = onnx_path.with_name(f"fake.{onnx_path.name}")
    onnx.save(model, place)
    plan = {"onnx": str(place), "profiles": [profile.to_json() for profile in profiles]}
    engine = json.dumps(plan).encode()
    return BuildReport(onnx_path, tuple(map(str, sms)), library.title, 0.0, len(engine), {}, engine)


class ReplayingDevice(Device):
    """A device whose graphs replay what was enqueued during capture, with the same arguments.

    The shim records only its own kernels; here the engines' runs must be part of a graph as well.
    """

    captured = 0

    def capture(self, enqueue: Any) -> Any:
        self.captured += 1
        return SimpleNamespace(launch=enqueue)
