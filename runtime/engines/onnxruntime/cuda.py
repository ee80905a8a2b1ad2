"""The engine on NVIDIA GPUs through ONNX Runtime's CUDA provider: its parts in the device loop, in our memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...bundle.bundle import Bundle
from ...errors import EngineError
from ...vocabulary import Modality
from ..arithmetic import Arithmetic, Part, arithmetic_of
from ..build_commands import EXPORT_INT8, FP8_SM, RTX_SMS, build_command
from ..device.cache import CacheShape
from ..device.device import Device, translate_errors
from ..device.engine import DeviceEngine
from ..device.facts import GpuFacts, cuda_facts, gpu_problem, load_kernels, memory_need, memory_problem
from ..device.head import FusedHead, fused_head
from ..protocol import EngineSequence
from .codec import OnnxRuntimeCodecStream
from .cpu import PREFILL_ROWS
from .cuda_body import OnnxRuntimeBody, PositionTables
from .library import ort
from .sessions import OnnxRuntimeParts

NAME = "onnxruntime-cuda"
PROVIDER = "CUDAExecutionProvider"
#: Parts that are in the frame loop: none of their nodes may run on the CPU.
_LOOP = ("backbone", "head.audio", "head.text")
_HEADS: tuple[Modality, ...] = ("audio", "text")


class OnnxRuntimeCudaEngine(DeviceEngine, OnnxRuntimeParts):
    """A bundle in ONNX Runtime's CUDA provider. Sequences of one engine may run on several threads at once."""

    name = NAME

    def __init__(
        self,
        bundle: Bundle,
        device: Device,
        *,
        threads: int | None = None,
        max_context: int,
        fused_heads: bool = True,
    ) -> None:
        """``device``: on the host shim (``kind`` "cpu"), ONNX Runtime's CPU provider stands in for the CUDA provider.

        ``fused_heads``: our kernels for the heads that they support; ONNX Runtime's otherwise.
        """
        super().__init__(bundle, threads=threads, max_context=max_context)
        self.device = device
        self.session("head.modality")  # a small part first: it shows whether the provider can be loaded at all
        shape = CacheShape.of(bundle, max_context)
        model = self.use_device(device, bundle, shape)
        columns = {modality: self.vocabulary.head_columns(modality) for modality in _HEADS}
        with model.explained_memory():
            heads = self._fused_heads(columns) if fused_heads else {}
            self._fused_heads_held = heads
            tables = PositionTables(device, model.cos, model.sin)
        model.body = OnnxRuntimeBody(
            device,
            self.session,
            shape,
            tables,
            hidden_size=self.model.hidden_size,
            columns=columns,
            heads=heads,
            run_options=_run_options(),
        )
        self.session("backbone")

    def _fused_heads(self, columns: Mapping[Modality, int]) -> dict[Modality, FusedHead]:
        found = {modality: fused_head(self.device, self.bundle, modality, columns[modality]) for modality in _HEADS}
        return {modality: head for modality, head in found.items() if head is not None}

    def providers(self, role: str) -> Sequence[Any]:
        if self.device.kind == "cpu":
            return super().providers(role)
        # sounds are encoded on a separate thread, which must not enqueue work into a graph that is being captured
        stream = self.device.stream if role.startswith(("backbone", "head")) else self.device.codec_stream
        options = {
            "device_id": str(self.device.index),
            "user_compute_stream": str(stream.handle),
            "use_tf32": "0",  # float32 means float32, as at export
            "cudnn_conv_algo_search": "HEURISTIC",  # an exhaustive search at every new length would cost seconds
            "arena_extend_strategy": "kSameAsRequested",
        }
        return [(PROVIDER, options)] if role in _LOOP else [(PROVIDER, options), "CPUExecutionProvider"]

    def session_options(self, role: str) -> Any:
        options = super().session_options(role)
        # ONNX Runtime keeps a memory plan per shape, and every number of rows held is a new shape
        options.enable_mem_pattern = False
        if self.device.kind == "cuda" and role in _LOOP:
            # a node that fell back to the CPU would silently copy to the host and back in every frame
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        return options

    def _load(self, role: str) -> Any:
        try:
            session = super()._load(role)
        except EngineError as error:
            if "fallback to CPU EP" not in str(error):
                raise
            raise EngineError(
                f"{self.bundle.part(role)}: ONNX Runtime {ort.__version__} has no CUDA kernel for some of its nodes, "
                f"which would copy to the host within every frame; use a newer onnxruntime-gpu ({error})"
            ) from error
        if self.device.kind == "cuda" and PROVIDER not in session.get_providers():
            raise EngineError(
                f"ONNX Runtime {ort.__version__} could not load its CUDA provider, usually since CUDA's or cuDNN's "
                'libraries are missing; install them with: pip install "onnxruntime-gpu[cuda,cudnn]"'
            )
        return session

    @property
    def arithmetic(self) -> Mapping[Part, Arithmetic]:
        parts = self.bundle.manifest.parts
        if self.device.kind == "cpu":
            found = self.arithmetic_on_cpu("backbone")
        else:
            roles: dict[Part, str] = {"body": "backbone", "heads": "head.audio", "encoder": "encoder", "codec": "codec"}
            found = {part: arithmetic_of(parts[role]) for part, role in roles.items()}
        ours = self._fused_heads_held.keys() >= set(_HEADS)  # our kernel multiplies and adds in float32
        return {**found, "heads": "float32"} if ours else found

    def open_sequence(self) -> EngineSequence:
        self.check_open()
        return self.new_sequence()

    def open_codec_stream(self) -> OnnxRuntimeCodecStream:
        return OnnxRuntimeCodecStream(self, self.device)

    def close(self) -> None:
        self.finish_device()
        super().close()
        self.release_device()


def _run_options() -> Any:
    options = ort.RunOptions()
    # everything is ordered by the loop's stream, and the loop waits for the frames that it reads
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return options


def why_not(bundle: Bundle | None, max_context: int) -> str | None:
    """Why this engine cannot run here, or cannot hold ``bundle`` with ``max_context`` rows; None if it can."""
    facts = cuda_facts()
    problem = gpu_problem(facts)
    if problem is not None:
        return problem
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # CUDA's and cuDNN's libraries, if they were installed as Python packages
    if PROVIDER not in ort.get_available_providers():
        return (
            f"the onnxruntime that is installed ({ort.__version__}) has no CUDA provider; replace it: "
            'pip uninstall onnxruntime, then pip install "onnxruntime-gpu[cuda,cudnn]"'
        )
    if bundle is None:
        return None
    if bundle.manifest.precision["backbone"] == "fp8":
        return _fp8_problem(bundle, facts.gpus[0])
    number = CacheShape.of(bundle, max_context).number
    need = memory_need(bundle, max_context, number=number, prefill_rows=PREFILL_ROWS)
    return memory_problem(need, facts.gpus[0], bundle.manifest.precision)


def _fp8_problem(bundle: Bundle, gpu: GpuFacts) -> str:
    """Why an fp8 body does not run here, and what would run it on this GPU."""
    if gpu.sm < FP8_SM:
        return (
            f"this bundle's body is fp8, which {gpu.name} (compute capability {gpu.sm // 10}.{gpu.sm % 10}) cannot "
            f"multiply; {EXPORT_INT8}"
        )
    command = build_command(bundle, "tensorrt-rtx" if gpu.sm in RTX_SMS else "tensorrt", gpu.sm)
    return (
        f"this bundle's body is fp8, which ONNX Runtime does not multiply on a GPU; compile it for this one: {command} "
        f"(docs/tensorrt.md), or {EXPORT_INT8}"
    )


def open_engine(bundle: Bundle, *, threads: int | None, max_context: int) -> OnnxRuntimeCudaEngine:
    """The engine on the first GPU."""
    cuda = load_kernels()
    with translate_errors(cuda):
        return OnnxRuntimeCudaEngine(bundle, Device(cuda), threads=threads, max_context=max_context)
