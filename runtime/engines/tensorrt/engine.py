"""The engine on TensorRT or TensorRT-RTX: a bundle's compiled parts in the device loop. Needs no ONNX Runtime."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ...bundle.bundle import WEIGHTS, Bundle
from ...bundle.compiled import EngineFile
from ...errors import EngineError
from ...files.cache import cache_folder
from ...files.safetensors_reader import widen
from ...vocabulary import Modality
from ..arithmetic import Arithmetic, Part, arithmetic_of
from ..build_commands import LibraryName, build_command, sm_name
from ..device.cache import CacheShape
from ..device.device import Device, translate_errors
from ..device.engine import DeviceEngine
from ..device.facts import CudaFacts, GpuFacts, cuda_facts, gpu_problem, load_kernels, memory_need, memory_problem
from ..protocol import CodecStream, EngineSequence
from ..tables import codes_to_latents
from .body import BodyParts, TensorRtBody
from .context import CompiledPart, CompiledParts
from .encoder_codec import Side, TensorRtCodecStream, TensorRtEncoder
from .library import Library, build_advice, load_library, no_engines_for
from .names import OFFSETS

#: Parts that an engine needs.
ROLES = ("backbone", "head.text", "head.audio", "head.modality", "encoder", "codec.stream")
_HEADS: tuple[Modality, ...] = ("audio", "text")


def find_engines(bundle: Bundle, library: Library, sm: int) -> dict[str, EngineFile]:
    """The engine file of each role for a GPU; :class:`EngineError` if one is missing or must not be run."""
    files, parts = bundle.manifest.files, bundle.manifest.parts
    found: dict[str, EngineFile] = {}
    reasons: list[str] = []
    for engine in bundle.manifest.engines:
        if engine.engine != library.name or engine.role not in parts:
            continue
        reason = engine.why_stale(
            library_version=library.version,
            sm=sm,
            onnx_sha256=files[parts[engine.role].file].sha256,
            weights_sha256=files[WEIGHTS].sha256,
        )
        if reason is None:
            found[engine.role] = engine
        else:
            reasons.append(reason)
    missing = [role for role in ROLES if role not in found]
    if not missing:
        return found
    why = reasons[0] if reasons else f"the bundle has no {library.name} engine of {missing[0]}"
    raise EngineError(f"{why}; {build_advice(bundle, library, sm)}")


def _memory_problem(bundle: Bundle, library: Library, engines: Mapping[str, EngineFile], gpu: GpuFacts) -> str | None:
    """Why the engines, their scratch and a conversation do not fit, and what would; None if they do.

    Scratch is known only once an engine is loaded, which takes memory: here it is the most that prompts can need.
    """
    body = engines["backbone"]

    def fewer_rows(rows: int) -> str:
        command = build_command(bundle, library.name, gpu.sm, "--max-context", str(rows), able=library.builds_for)
        return f"build the engines for {rows} rows or fewer: {command}"

    prefill_rows = max((each.shapes[OFFSETS][2][0] for each in body.profiles if OFFSETS in each.shapes), default=0)
    need = memory_need(
        bundle,
        body.capacity,
        number=CacheShape.of(bundle, body.capacity).number,
        prefill_rows=prefill_rows,
        weights=sum(bundle.manifest.files[engine.file].size for engine in engines.values()),
        # without an attention layer: scores and their exponentials in float32, and the latter narrowed. A fused layer
        # holds none, and whether it is fused is the library's choice: no engine that may fit is refused
        score_bytes=4 + 4 + 2 if body.cache == "appended" else 0,
    )
    return memory_problem(need, gpu, bundle.manifest.precision, fewer_rows=fewer_rows)


def why_not(name: LibraryName, bundle: Bundle | None) -> str | None:
    """Why the engine cannot run here, a sentence; None if it can."""
    library = load_library(name)
    return refusal(library, cuda_facts(), bundle)


def refusal(library: Library, facts: CudaFacts, bundle: Bundle | None) -> str | None:
    """As :func:`why_not`, for a library and a machine."""
    problem = gpu_problem(facts)
    if problem is not None:
        return problem
    if bundle is None:
        return no_engines_for(library, facts.gpus[0].sm)
    try:
        engines = find_engines(bundle, library, facts.gpus[0].sm)
    except EngineError as error:
        return str(error)
    return _memory_problem(bundle, library, engines, facts.gpus[0])


def open_engine(name: LibraryName, bundle: Bundle, *, max_context: int) -> TensorRtEngine:
    """The engine on the first GPU."""
    library, facts = load_library(name), cuda_facts()
    problem = gpu_problem(facts)
    if problem is not None:
        raise EngineError(f"engine {name}: {problem}")
    cuda = load_kernels()
    with translate_errors(cuda):
        return TensorRtEngine(bundle, Device(cuda), library, sm=facts.gpus[0].sm, max_context=max_context)


class TensorRtEngine(DeviceEngine):
    """See :class:`protocol.Engine`. Sequences of one engine may run on several threads at once."""

    def __init__(self, bundle: Bundle, device: Device, library: Library, *, sm: int, max_context: int) -> None:
        self.name: str = library.name
        self.bundle = bundle
        self._files = find_engines(bundle, library, sm)
        capacity = self._files["backbone"].capacity
        if max_context > capacity:
            raise EngineError(
                f"the {library.name} engines of this bundle hold {capacity} rows, and max_context = {max_context} were "
                f"asked for; open it with {capacity} or less, or build them with --max-context {max_context}"
            )
        self._parts = CompiledParts(library, _kernel_cache(bundle, library, sm))
        self._loaded: dict[str, CompiledPart] = {}
        self._lock, self._closed = threading.Lock(), False
        self.rvq_table, self.rvq_bias = widen(bundle.table("codec.rvq_table")), bundle.table("codec.rvq_bias")
        model, vocabulary = bundle.manifest.model, bundle.manifest.vocabulary
        shape = CacheShape.of(bundle, capacity)
        on_device = self.use_device(device, bundle, shape, max_context=max_context)
        heads = {head: self._part(f"head.{head}") for head in ("audio", "text", "modality")}
        with on_device.explained_memory():
            on_device.body = TensorRtBody(
                device,
                BodyParts(self._part("backbone"), heads),
                shape,
                (on_device.cos, on_device.sin),
                hidden_size=model.hidden_size,
                columns={modality: vocabulary.head_columns(modality) for modality in _HEADS},
            )
        self._side = Side(device)
        self._side_lock = threading.Lock()
        self._encoder: TensorRtEncoder | None = None

    def _part(self, role: str) -> CompiledPart:
        """The compiled part, loaded on first use."""
        with self._lock:
            if self._closed:
                raise EngineError("the model is closed; open it again")
            if role not in self._loaded:
                entry = self._files[role]
                self._loaded[role] = self._parts.load(self.bundle.path(entry.file), entry)
            return self._loaded[role]

    @property
    def arithmetic(self) -> Mapping[Part, Arithmetic]:
        # networks are strongly typed: every value has the type that the graph gives it
        parts = self.bundle.manifest.parts
        roles: dict[Part, str] = {
            "body": "backbone", "heads": "head.audio", "encoder": "encoder", "codec": "codec.stream"
        }  # fmt: skip
        return {part: arithmetic_of(parts[role]) for part, role in roles.items()}

    def open_sequence(self) -> EngineSequence:
        self._part("backbone")
        return self.new_sequence()

    def encode(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        with translate_errors(self.device.cuda):
            with self._side_lock:
                part = self._part("encoder")
                if self._encoder is None:
                    self._encoder = TensorRtEncoder(self._side, part)
                encoder = self._encoder
            return encoder.encode(inputs)  # without the lock, so that codec streams can be opened meanwhile

    def open_codec_stream(self) -> CodecStream:
        codec = self.bundle.manifest.codec
        with self._side_lock, translate_errors(self.device.cuda):
            part = self._part("codec.stream")
            return TensorRtCodecStream(self._side, part, hop_length=codec.hop_length, first_frames=codec.first_frames)

    def decode_latents(self, latents: np.ndarray) -> np.ndarray:
        return self.open_codec_stream().decode(latents, last=True)

    def codes_to_latents(self, codes: np.ndarray) -> np.ndarray:
        return codes_to_latents(codes, self.rvq_table, self.rvq_bias)

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._parts.save_cache()
            self._closed = True
        self.finish_device()
        self._loaded.clear()
        with self._side_lock:
            # codec streams that are still open keep their shared memory alive
            self._encoder, self._side = None, Side(self.device)
        self.release_device()


def _kernel_cache(bundle: Bundle, library: Library, sm: int) -> Path | None:
    """File of the kernels that TensorRT-RTX has compiled for this bundle here; None without a home directory."""
    cache, name = cache_folder(), f"{bundle.digest[:32]}.{library.version}.{sm_name(sm)}.kernels"
    return None if cache is None else cache / library.name / name
