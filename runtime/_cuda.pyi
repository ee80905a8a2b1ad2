"""The CUDA side of the frame loop: kernel launches, and the few calls of the CUDA runtime that they need.

Present only if ualm was built with nvcc (``_native.CUDA_ARCHITECTURES``); it loads without a driver. Addresses,
streams, events and graphs are integers, 0 is none or the default stream; the caller keeps and frees memory. What CUDA
refuses is a :class:`CudaError`, what a launch refuses (nothing is launched then) a ValueError. ``csrc/cuda/launch.h``
says what each kernel reads and writes, under the same names as the arguments here.

Other Python threads run while a call waits for the device or the driver (memory, copies, creating, destroying and
waiting for streams, creating and destroying graphs, device queries), not during launches and events, which return at
once.
"""

from typing import Any, Literal

ARCHITECTURES: str
"""As ``_native.CUDA_ARCHITECTURES``."""
STATE_BYTES: int
"""Bytes of one sequence's state in device memory."""
MAX_SEQUENCES: int
FLOAT32: int
FLOAT16: int
BFLOAT16: int
INT8_BLOCKS: int

class CudaError(RuntimeError): ...

# Devices

def device_count() -> tuple[int, str]:
    """The number of devices, and if there are none, why: a clause such as "no NVIDIA driver was found"."""

def device_properties(device: int) -> dict[str, Any]:
    """``name``, ``capability`` (major, minor), ``multiprocessors``, ``memory_bytes``, ``free_bytes``, ``l2_bytes``,
    ``integrated``: whether its memory is the host's."""

def driver_version() -> int:
    """The newest CUDA that the driver supports, 1000 major + 10 minor; 0 without a driver."""

def runtime_version() -> int:
    """The CUDA that this module was built with."""

def set_device(device: int) -> None: ...

# Memory. Copies are asynchronous where the host's side is pinned.

def malloc(bytes: int) -> int: ...
def free(pointer: int) -> None: ...
def malloc_pinned(bytes: int) -> tuple[int, int]:
    """Address of pinned host memory, and the address under which the device sees it."""

def free_pinned(pointer: int) -> None:
    """``pointer``: the host's address."""

def pinned_view(pointer: int, bytes: int) -> memoryview:
    """Writable; invalid once the memory is freed."""

def copy_to_device(to: int, from_: int, bytes: int, stream: int) -> None: ...
def copy_to_host(to: int, from_: int, bytes: int, stream: int) -> None: ...
def copy_on_device(to: int, from_: int, bytes: int, stream: int) -> None: ...
def set_bytes(pointer: int, value: int, bytes: int, stream: int) -> None: ...

# Streams, events, graphs

def create_stream() -> int:
    """A stream that does not wait for the default stream."""

def destroy_stream(stream: int) -> None: ...
def synchronize(stream: int) -> None: ...
def create_event(*, timing: bool = False) -> int: ...
def destroy_event(event: int) -> None: ...
def record_event(event: int, stream: int) -> None: ...
def synchronize_event(event: int) -> None: ...
def elapsed_ms(from_: int, to: int) -> float: ...
def begin_capture(stream: int) -> None: ...
def end_capture(stream: int) -> int:
    """A graph, ready to launch, of what was enqueued on the stream since :func:`begin_capture`."""

def launch_graph(graph: int, stream: int) -> None: ...
def destroy_graph(graph: int) -> None: ...

# The frame

class Layout:
    def __init__(self, *, codebook_size: int, text_size: int, audio_base: int, text_base: int) -> None: ...

class Tables:
    """Addresses of a model's tables in device memory."""

    def __init__(
        self,
        *,
        embedding: int,
        embedding_number: int,
        rvq: int,
        rvq_bias: int,
        vocabulary: int,
        hidden: int,
        latent: int,
    ) -> None: ...

def begin_segment(
    *,
    state: int,
    progress: int,
    kind: Literal["text", "fixed", "reference"],
    temperature: float,
    top_k: int,
    top_p: float,
    guidance: float,
    max_steps: int,
    seed: int,
    segment: int,
    stream: int,
) -> None:
    """Begin a segment; options as in ``_native.FrameSampler.begin_audio`` and ``begin_text``.

    ``progress`` becomes 0 when the stream reaches this point, not before.
    """

class SampleLaunch:
    """One row of each sequence per call.

    A progress word is uint64: bits 0-31 rows drawn, 32-39 flags of the last row (``_native.STOP`` and so on), 40-47
    fault (a key of ``_native.FAULTS``; 0: none), 48-55 the fault's stream.
    """

    def __init__(
        self,
        *,
        states: int,
        logits: int,
        logits_stride: int,
        sequences: int,
        branches: int,
        text: bool,
        layout: Layout,
        tables: Tables,
        embeddings: int,
        embedding_copies: int,
        rows: int,
        row_capacity: int,
        latents: int,
        latent_capacity: int,
        progress: int,
    ) -> None: ...
    def __call__(self, stream: int) -> None: ...

class HeadLaunch:
    """Hidden states to logits, at every call."""

    def __init__(
        self,
        *,
        hidden: int,
        sequences: int,
        branches: int,
        inputs: int,
        columns: int,
        weights: int,
        number: int,
        weight_stride: int,
        scales: int = 0,
        scale_stride: int = 0,
        bias: int = 0,
        logits: int,
        logits_stride: int,
    ) -> None: ...
    def __call__(self, stream: int) -> None: ...

def embed_rows(tables: Tables, *, rows: int, count: int, copies: int, out: int, stream: int) -> None: ...

# The KV cache. ``keys``, ``values`` and so on are addresses of tables in device memory: a uint64 per layer.

class CacheLayout:
    def __init__(
        self,
        *,
        number: int,
        layers: int,
        kv_heads: int,
        head_dim: int,
        capacity: int,
        head_stride: int,
        position_stride: int,
    ) -> None: ...

def fill_null_prefix(
    cache: CacheLayout,
    *,
    keys: int,
    values: int,
    null_keys: int,
    null_values: int,
    cos: int,
    sin: int,
    first: int,
    last: int,
    stream: int,
) -> None: ...
def write_kv_rows(
    cache: CacheLayout,
    *,
    branches: int,
    branch_stride: int,
    keys: int,
    values: int,
    new_keys: int,
    new_values: int,
    new_branch_stride: int,
    new_head_stride: int,
    new_row_stride: int,
    rows: int,
    position: int,
    device_position: int = 0,
    stream: int,
) -> None: ...

# Bandwidth

def read_memory(*, data: int, bytes: int, blocks: int, total: int, stream: int) -> None:
    """Read memory with ``blocks`` blocks of 512 threads, and add the sum of its 64-bit words, modulo 2^64, to the
    uint64 at ``total``. ``data`` is aligned to 16 bytes, and ``bytes`` a multiple of 16."""
