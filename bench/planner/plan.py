"""What a bundle would need of a device: computed, without opening an engine or measuring anything.

A decode step reads every weight of the body and of the head once, whatever it computes, and the cached keys and values
of each branch of guidance: bytes / bandwidth is the least time that a frame can take. It is a bound. An engine reads at
a part of the bandwidth, computes, and has launch overhead; none can be faster.

Precisions other than the bundle's own are computed from the shapes of its tensors, by the rules of docs/precision.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...runtime.audio.pacing import PROFILES
from ...runtime.bundle.bundle import WEIGHTS, Bundle
from ...runtime.bundle.precision import BLOCK, POLICY, WEIGHT_BYTES
from ...runtime.engines.build_commands import FP8_SM
from ...runtime.files.safetensors_reader import MappedTensors
from ...runtime.files.writing import resolved
from ..harness.subjects import precisions_of
from ..meters.traffic import weight_bytes
from ..scenarios.common import check_rows, sampling_of
from .devices import Device

#: Bytes of the scales of an fp8 matrix: its own, and its input's.
_FP8_SCALES = 4
#: Rows of a prompt that are prefilled at once: their activations are the largest.
PREFILL_ROWS = 512
#: Bytes that a library, its context on the device and its scratch take: an assumption.
LIBRARY = 512 * 2**20
#: Frames that a codec call makes in the middle of a sound: its weights are read once for all of them.
CHUNK = PROFILES["first_sound"].most

BOUND = "a bound, computed from the bundle and the device's data sheet, not a measurement: every engine is slower"


@dataclass(frozen=True)
class Sizes:
    """Bytes of weights, in one precision. ``tables``: embedding, codebooks, null branch and the text and modality
    heads, which are held but hardly read."""

    body: int
    head: int
    encoder: int
    codec: int
    tables: int

    @property
    def total(self) -> int:
        return self.body + self.head + self.encoder + self.codec + self.tables


@dataclass(frozen=True)
class PlanRow:
    """One precision with one context. ``own``: this is the bundle's precision.

    ``body_bytes`` .. ``codec_bytes``: read for a frame. ``ms``: the least time of a frame; ``frames_per_second``: the
    most frames. ``real_time_percent``: share of the bandwidth needed for the codec's frame rate. ``memory_bytes``:
    weights, KV cache, workspace. ``real_time``: it fits, and the share is not above 100.
    """

    precision: str
    own: bool
    context: int
    body_bytes: int
    head_bytes: int
    kv_bytes: int
    codec_bytes: int
    ms: float
    frames_per_second: float
    real_time_percent: float
    weight_bytes: int
    kv_memory_bytes: int
    workspace_bytes: int
    memory_bytes: int
    fits: bool
    real_time: bool


@dataclass(frozen=True)
class Plan:
    """``branches``: 2 with guidance. ``frame_rate``: frames per second of sound. ``notes``: remarks for the reader."""

    bundle: str
    digest: str
    device: Device
    branches: int
    frame_rate: float
    bound: str
    rows: tuple[PlanRow, ...]
    notes: tuple[str, ...]


def make_plan(folder: Path, device: Device, contexts: Sequence[int], guidance: float | None = None) -> Plan:
    """The plan of a bundle for a device, with ``contexts`` rows held; ``guidance`` None: the bundle's own."""
    bundle = Bundle(folder)
    check_rows("--context", contexts, 1, bundle)
    branches = 2 if sampling_of(bundle, "audio", guidance).guidance > 1 else 1
    codec = bundle.manifest.codec
    rate = codec.sample_rate / codec.hop_length
    own = precisions_of(bundle)["backbone"]
    shown = [name for name in WEIGHT_BYTES if name != {"fp16": "bf16"}.get(own, "fp16")]  # equal in bytes
    shapes = _Shapes(bundle)
    rows, notes = [], []
    needs = f"fp8 needs compute capability {FP8_SM / 10}"
    if device.sm == "unknown":
        notes.append(f"{needs}, and this device's is not known")
    elif float(device.sm) < FP8_SM / 10:
        shown.remove("fp8")
        notes.append(f"{needs}: {device.name} cannot multiply it{' and so not run this bundle' * (own == 'fp8')}")
    for precision in shown:
        sizes = shapes.own() if precision == own else shapes.sizes(precision)
        if sizes is None:
            notes.append(f"{precision} cannot hold this model: its matrices are not whole blocks of {BLOCK} inputs")
            continue
        for context in contexts:
            rows.append(_row(shapes, sizes, precision, precision == own, context, branches, rate, device))
    taken = f"{device.reserve_gib:g} GiB of the memory are taken as the system's"
    notes += [
        f"{taken}, and {LIBRARY / 2**20:.0f} MiB of the workspace as the library's: assumptions",
        f"the workspace holds the activations of {PREFILL_ROWS} rows",
        "memory counts the cache of the rows held; a TensorRT engine allocates that of all its --max-context rows: for "
        "its memory, give those as --context",
        f"the codec's weights are read once for {CHUNK} frames",
        "computing, launching and the speed of the codec and the encoder are not counted",
    ]
    return Plan(resolved(folder).name, bundle.digest, device, branches, rate, BOUND, tuple(rows), tuple(notes))


def _row(
    shapes: _Shapes,
    sizes: Sizes,
    precision: str,
    own: bool,
    context: int,
    branches: int,
    rate: float,
    device: Device,
) -> PlanRow:
    held = branches * context * shapes.row_bytes(precision)
    read = sizes.body, sizes.head, held, round(sizes.codec / CHUNK)
    seconds = sum(read) / (device.bandwidth * 1e9)
    share = 100 * rate * seconds
    workspace = LIBRARY + shapes.activations
    memory = sizes.total + held + workspace
    fits = memory <= (device.memory_gib - device.reserve_gib) * 2**30
    return PlanRow(
        precision,
        own,
        context,
        *read,
        ms=1000 * seconds,
        frames_per_second=1 / seconds,
        real_time_percent=share,
        weight_bytes=sizes.total,
        kv_memory_bytes=held,
        workspace_bytes=workspace,
        memory_bytes=memory,
        fits=fits,
        real_time=fits and share <= 100,
    )


class _Shapes:
    """The tensors of a bundle, as numbers of weights."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._tensors = MappedTensors(bundle.path(WEIGHTS))

    def row_bytes(self, precision: str) -> int:
        """Keys and values of a row of one branch, in the graph for GPUs."""
        model = self._bundle.manifest.model
        return 2 * model.layers * model.kv_heads * model.head_dim * (4 if precision == "fp32" else 2)

    @property
    def activations(self) -> int:
        """Bytes, in float32, of the widest part of a layer over a prompt: residual, norm, qkv and the gated pair."""
        hidden = self._bundle.manifest.model.hidden_size
        widths = [self._columns(f"backbone.0.{name}") for name in ("qkv", "gate_up")]
        return 4 * PREFILL_ROWS * (2 * hidden + sum(widths))

    def own(self) -> Sizes:
        """The bytes as the bundle has them."""
        return Sizes(
            body=weight_bytes(self._bundle, "backbone"),
            head=weight_bytes(self._bundle, "head.audio"),
            encoder=weight_bytes(self._bundle, "encoder"),
            codec=weight_bytes(self._bundle, "codec"),
            tables=self._tables(self._precision("head.text"), self._precision("codec")),
        )

    def sizes(self, precision: str) -> Sizes | None:
        """The bytes as an export to ``precision`` would have them; None if the export would refuse."""
        head, encoder, codec = POLICY[precision]
        formats = {"backbone.": precision, "head.": head}
        for prefix, stored in formats.items():
            matrices = [name for name in self._named(prefix) if self._is_matrix(name)]
            if stored in ("int8", "int4") and any(self._inputs(name) % BLOCK for name in matrices):
                return None
            if stored == "int4" and any(self._columns(name) % 2 for name in matrices):
                return None
        return Sizes(
            body=sum(self._bytes(name, precision) for name in self._named("backbone.")),
            head=sum(self._bytes(name, head) for name in self._named("head.audio")),
            encoder=sum(self._bytes(name, encoder, column=True) for name in self._encoder()),
            codec=sum(self._bytes(name, codec) for name in self._named("codec.") if "rvq" not in name),
            tables=self._tables(head, codec),
        )

    def _tables(self, head: str, codec: str) -> int:
        plain = sum(self._tensors[name].nbytes for name in ("embedding", "null.keys", "null.values", "head.modality"))
        text = sum(self._bytes(name, head) for name in self._named("head.text"))
        return plain + text + sum(self._bytes(name, codec) for name in self._named("codec.rvq"))

    def _precision(self, role: str) -> str:
        return precisions_of(self._bundle)[role]

    def _named(self, *prefixes: str) -> Iterator[str]:
        """Tensors by prefix; scales belong to their matrix."""
        scales = (".scale", ".input_scale")
        return (name for name in self._tensors if name.startswith(prefixes) and not name.endswith(scales))

    def _encoder(self) -> Iterator[str]:
        return (name for name in self._named("encoder.") if name != "encoder.mel_filters")

    def _is_matrix(self, name: str) -> bool:
        """Whether a precision narrows a tensor: matrices, and convolutions of the codec."""
        shape = self._tensors[name].shape
        if name.startswith("codec."):
            return name.endswith((".weight", "rvq_table"))
        return len(shape) == 2 and name not in ("head.modality", "encoder.positions", "encoder.embed_positions.weight")

    def _columns(self, name: str) -> int:
        """Outputs of a matrix; a byte holds two int4 values."""
        return self._tensors[name].shape[1] * (2 if self._tensors.stored_as(name) == "U8" else 1)

    def _inputs(self, name: str) -> int:
        return self._tensors[name].shape[0]

    def _bytes(self, name: str, precision: str, *, column: bool = False) -> int:
        """``column``: int8 has one scale per output, as in the encoder."""
        tensor = self._tensors[name]
        if not self._is_matrix(name):
            return math.prod(tensor.shape) * 4
        if tensor.ndim != 2:
            return round(math.prod(tensor.shape) * WEIGHT_BYTES[precision])
        inputs, outputs = self._inputs(name), self._columns(name)
        numbers = round(inputs * outputs * WEIGHT_BYTES[precision])
        if precision == "fp8":
            return numbers + _FP8_SCALES
        scales = 0 if WEIGHT_BYTES[precision] > 1 else outputs * (1 if column else inputs // BLOCK)
        return numbers + 2 * scales
