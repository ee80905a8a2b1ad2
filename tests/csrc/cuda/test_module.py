"""The module's calls besides kernels: on a machine without a GPU (the real module), and on simulated ones (the
shim)."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from support.cuda.pairs import Kernel, address
from support.native.harness import Native
from support.native.sampler_model import Options, Tables
from ualm.runtime import _native

built = pytest.mark.skipif(not _native.CUDA_ARCHITECTURES, reason="this build of ualm has no CUDA kernels")


@built
def test_the_real_module_loads_anywhere_and_says_what_is_missing():
    """In a separate process with no GPU visible, even if there is one."""
    program = (
        "from ualm.runtime import _cuda, _native\n"
        "assert _cuda.ARCHITECTURES == _native.CUDA_ARCHITECTURES\n"
        "count, reason = _cuda.device_count()\n"
        "print(count, reason)\n"
        "try:\n    _cuda.malloc(16)\n"
        "except _cuda.CudaError as error:\n    print(error)\n"
    )
    environment = {"CUDA_VISIBLE_DEVICES": "", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    missing = "no NVIDIA driver was found|the NVIDIA driver (finds no device|is too old: .*; update the driver)"
    assert re.fullmatch(f"0 ({missing})", first)
    assert second.startswith("CUDA cannot allocate device memory: ")


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"UALM_SHIM_DEVICES": "0"}, "the NVIDIA driver finds no device"),
        ({"UALM_SHIM_DRIVER": "0"}, "no NVIDIA driver was found"),
        (
            {"UALM_SHIM_DRIVER": "12040"},
            "the NVIDIA driver is too old: it offers CUDA 12.4, this build of ualm needs 13.0; update the driver",
        ),
    ],
)
def test_why_there_is_no_device(cuda, monkeypatch, environment, reason):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cuda.device_count() == (0, reason)
    with pytest.raises(cuda.CudaError, match=r"CUDA cannot create a stream: .*\(cudaError"):
        cuda.create_stream()
    assert cuda.CudaError.__mro__[1] is RuntimeError


def test_a_device_tells_its_properties(cuda, monkeypatch):
    monkeypatch.setenv("UALM_SHIM_CAPABILITY", "8.7")
    monkeypatch.setenv("UALM_SHIM_MEMORY", str(2**30))
    about = cuda.device_properties(0)
    assert (about["name"], about["capability"], about["memory_bytes"]) == ("host shim", (8, 7), 2**30)
    with pytest.raises(cuda.CudaError, match="CUDA cannot read the device's properties"):
        cuda.device_properties(1)


def test_memory_runs_out_by_name_and_comes_back(cuda, monkeypatch):
    monkeypatch.setenv("UALM_SHIM_MEMORY", str(2**20))
    free = cuda.device_properties(0)["free_bytes"]
    pointer = cuda.malloc(free)
    with pytest.raises(cuda.CudaError, match="CUDA cannot allocate device memory: out of memory"):
        cuda.malloc(1)
    assert cuda.device_properties(0)["free_bytes"] == 0
    cuda.free(pointer)
    cuda.free(cuda.malloc(free))
    with pytest.raises(cuda.CudaError, match="cannot free device memory"):
        cuda.free(pointer)


def test_bytes_travel_and_a_graph_plays_them_again(cuda):
    host, seen = cuda.malloc_pinned(64)
    view = np.frombuffer(cuda.pinned_view(host, 64), np.uint8)
    device, stream = cuda.malloc(64), cuda.create_stream()
    view[:] = np.arange(64)
    cuda.begin_capture(stream)
    cuda.copy_to_device(device, host, 32, stream)
    cuda.copy_on_device(device + 32, device + 8, 16, stream)
    cuda.set_bytes(seen, 9, 64, stream)
    cuda.copy_to_host(host, device, 48, stream)
    graph = cuda.end_capture(stream)
    np.testing.assert_array_equal(view, np.arange(64))
    cuda.launch_graph(graph, stream)
    cuda.synchronize(stream)
    np.testing.assert_array_equal(view, [*range(32), *range(8, 24), *[9] * 16])
    events = [cuda.create_event(timing=True) for _ in range(2)]
    for event in events:
        cuda.record_event(event, stream)
        cuda.synchronize_event(event)
    assert cuda.elapsed_ms(*events) >= 0
    for event in events:
        cuda.destroy_event(event)
    cuda.destroy_graph(graph)
    cuda.destroy_stream(stream)
    cuda.free(device)
    cuda.free_pinned(host)


def test_a_write_behind_an_allocation_is_found(cuda):
    """The other kernel tests rely on it."""
    pointer, stream = cuda.malloc(10), cuda.create_stream()
    cuda.set_bytes(pointer, 0, 11, stream)
    with pytest.raises(cuda.CudaError, match="cudaErrorIllegalAddress"):
        cuda.free(pointer)
    cuda.destroy_stream(stream)


#: Arguments of each call that may wait: a pointer to device memory, one to pinned memory, a stream, an event, a graph.
WAITING = {
    "device_count": lambda cuda, have: cuda.device_count(),
    "device_properties": lambda cuda, have: cuda.device_properties(0),
    "driver_version": lambda cuda, have: cuda.driver_version(),
    "set_device": lambda cuda, have: cuda.set_device(0),
    "malloc": lambda cuda, have: cuda.malloc(8),
    "free": lambda cuda, have: cuda.free(have.device),
    "malloc_pinned": lambda cuda, have: cuda.malloc_pinned(8),
    "free_pinned": lambda cuda, have: cuda.free_pinned(have.pinned),
    "copy_to_device": lambda cuda, have: cuda.copy_to_device(have.device, have.pinned, 8, have.stream),
    "copy_to_host": lambda cuda, have: cuda.copy_to_host(have.pinned, have.device, 8, have.stream),
    "copy_on_device": lambda cuda, have: cuda.copy_on_device(have.device + 8, have.device, 8, have.stream),
    "set_bytes": lambda cuda, have: cuda.set_bytes(have.device, 0, 8, have.stream),
    "create_stream": lambda cuda, have: cuda.create_stream(),
    "destroy_stream": lambda cuda, have: cuda.destroy_stream(have.stream),
    "synchronize": lambda cuda, have: cuda.synchronize(have.stream),
    "synchronize_event": lambda cuda, have: cuda.synchronize_event(have.event),
    "end_capture": lambda cuda, have: cuda.end_capture(have.captured),
    "destroy_graph": lambda cuda, have: cuda.destroy_graph(have.graph),
}
#: Calls that return at once on any device, and keep Python's lock: see ``csrc/python/cuda_runtime.cpp``.
AT_ONCE = {
    *("runtime_version", "pinned_view", "create_event", "destroy_event", "record_event", "elapsed_ms"),
    *(
        "begin_capture",
        "launch_graph",
        "begin_segment",
        "embed_rows",
        "fill_null_prefix",
        "write_kv_rows",
        "read_memory",
    ),
}


@pytest.mark.parametrize("name", WAITING)
def test_other_threads_run_while_a_call_waits(cuda, monkeypatch, name):
    """Waiting for the device, or for the driver: the shim sleeps instead."""
    stream, captured = cuda.create_stream(), cuda.create_stream()
    cuda.begin_capture(stream)
    graph = cuda.end_capture(stream)
    cuda.begin_capture(captured)
    pinned, _ = cuda.malloc_pinned(16)
    have = SimpleNamespace(
        device=cuda.malloc(16), pinned=pinned, stream=stream, event=cuda.create_event(), graph=graph, captured=captured
    )
    ticks, stop = [], threading.Event()

    def tick():
        while not stop.wait(0.001):
            ticks.append(time.perf_counter())

    thread = threading.Thread(target=tick)
    thread.start()
    monkeypatch.setenv("UALM_SHIM_WAIT", "150")
    began = time.perf_counter()
    WAITING[name](cuda, have)
    ended = time.perf_counter()
    monkeypatch.delenv("UALM_SHIM_WAIT")
    stop.set()
    thread.join()
    assert ended - began >= 0.15
    # a thread that ran only at the very beginning or end does not count
    assert [at for at in ticks if began + 0.02 < at < ended - 0.02]


def test_every_call_of_the_module_is_known_to_wait_or_not_to(cuda):
    calls = {name for name, each in vars(cuda).items() if inspect.isroutine(each) and not name.startswith("_")}
    assert calls == WAITING.keys() | AT_ONCE and not WAITING.keys() & AT_ONCE


def test_an_error_of_a_call_that_let_others_run_is_still_told(cuda):
    def fails(_):
        with pytest.raises(cuda.CudaError, match="cannot free device memory"):
            cuda.free(8)
        with pytest.raises(cuda.CudaError, match="read the device's properties"):
            cuda.device_properties(5)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(fails, range(200)))


SMALL = Tables.random(np.random.default_rng(0), 5, text_size=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "speech"}, "kind = 'speech': must be 'text', 'fixed' or 'reference'"),
        ({"state": 0}, "state: must not be null"),
    ],
)
def test_a_segment_that_cannot_begin_is_refused(cuda, change, message):
    with pytest.raises(ValueError, match=message):
        cuda.begin_segment(**({"state": 8, "progress": 0, "kind": "text", "stream": 0} | OPTIONS | change))


OPTIONS = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "guidance": 1.0, "max_steps": 9, "seed": 0, "segment": 0}


@pytest.mark.parametrize(
    "change",
    [
        *({"temperature": value} for value in (-1.0, 1e-60, 1e39, float("inf"), float("nan"))),
        *({"top_p": value} for value in (0.0, 1.5, float("nan"))),
        *({"guidance": value} for value in (0.5, 1e39, float("nan"))),
        *({"max_steps": value} for value in (0, 7, 2**31)),
        *({"segment": value} for value in (-1, 2**32)),
        {"top_k": -1},
    ],
)
def test_an_option_out_of_its_limits_is_refused_in_the_words_of_the_cpus_sampler(cuda, change):
    with pytest.raises(ValueError) as expected:
        Native(SMALL).sampler.begin_audio(mode="fixed", **(OPTIONS | change))
    with pytest.raises(ValueError) as found:
        cuda.begin_segment(state=8, progress=0, kind="fixed", stream=0, **(OPTIONS | change))
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sequences": 0}, "sequences: must be 1 to 64"),
        ({"sequences": 65}, "sequences: must be 1 to 64"),
        ({"branches": 0}, "branches: must be 1 or 2"),
        ({"embedding_copies": 3}, "embedding_copies: must be 1 or 2"),
        ({"row_capacity": 0}, "row_capacity: must be at least 1"),
        ({"logits_stride": 49}, "logits_stride: must be at least the head's columns"),
        ({"latents": 0}, "latents: must not be null"),
        ({"latent_capacity": 0}, "latent_capacity at least 1"),
        ({"progress": 0}, "embeddings, rows, progress: must not be null"),
        ({"states": 0}, "states, logits: must not be null"),
    ],
)
def test_a_sampler_launch_that_cannot_be_is_refused_and_writes_nothing(cuda, change, message):
    kernel = Kernel(cuda, SMALL, [Options("fixed")])
    before = kernel.state.copy()
    good = {
        "states": address(kernel.state),
        "logits": address(kernel.logits),
        "logits_stride": kernel.logits.shape[2],
        "sequences": 1,
        "branches": 2,
        "text": False,
        "layout": kernel.layout,
        "tables": kernel.tables,
        "embeddings": address(kernel.embeddings),
        "embedding_copies": 2,
        "rows": address(kernel.rows),
        "row_capacity": 3,
        "latents": address(kernel.latents),
        "latent_capacity": 3,
        "progress": address(kernel.progress),
    }
    with pytest.raises(ValueError, match=message):
        cuda.SampleLaunch(**(good | change))(0)
    np.testing.assert_array_equal(kernel.state, before)
    assert kernel.progress_of(0) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"number": 3}, "cache: number must be float32, float16 or bfloat16"),
        ({"layers": 0}, "cache: layers and kv_heads must be at least 1"),
        ({"head_dim": 5}, "cache: head_dim must be even"),
        ({"position_stride": 2}, "cache: position_stride must be at least head_dim"),
        ({"capacity": 9}, "first, last: must be positions of the cache"),
        ({"layers": 40_000}, "layers x kv_heads must be at most 65535"),
    ],
)
def test_a_cache_that_cannot_be_is_refused(cuda, change, message):
    good = {"number": 0, "layers": 1, "kv_heads": 2, "head_dim": 4, "capacity": 10, "head_stride": 40}
    cache = cuda.CacheLayout(**(good | {"position_stride": 4} | change))
    with pytest.raises(ValueError, match=message):
        cuda.fill_null_prefix(
            cache, keys=8, values=8, null_keys=8, null_values=8, cos=8, sin=8, first=0, last=10, stream=0
        )
