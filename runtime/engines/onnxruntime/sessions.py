"""A bundle's parts as ONNX Runtime sessions, each loaded on first use, and what all users of them share."""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...bundle.bundle import Bundle
from ...errors import EngineError
from ...files.reading import first_line
from ...files.safetensors_reader import widen
from ...process.cores import library_threads
from ...process.stopping import raise_interrupt
from ..arithmetic import Arithmetic, Part, arithmetic_of
from ..tables import codes_to_latents

try:
    from .library import ort
except ImportError as error:
    raise_interrupt(error)
    raise EngineError(
        f"engine onnxruntime cannot be loaded ({error}); install it with: pip install onnxruntime"
    ) from error


class OnnxRuntimeParts:
    """The parts of an engine that runs on ONNX Runtime, and the tables that every such engine keeps on the host."""

    #: Role of the encoder.
    encoder_role = "encoder"

    def __init__(self, bundle: Bundle, *, threads: int | None, max_context: int) -> None:
        self.bundle, self.max_context = bundle, max_context
        self._threads = library_threads() if threads is None else threads
        self._sessions: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._closed = False
        self.model, self.vocabulary = bundle.manifest.model, bundle.manifest.vocabulary
        self.rvq_table, self.rvq_bias = widen(bundle.table("codec.rvq_table")), bundle.table("codec.rvq_bias")

    def providers(self, role: str) -> Sequence[Any]:
        """ONNX Runtime's execution providers for a part, in order of preference."""
        return ["CPUExecutionProvider"]

    def arithmetic_on_cpu(self, body: str) -> Mapping[Part, Arithmetic]:
        """The arithmetic of each part on the CPU provider; ``body``: the body's role.

        Block formats are multiplied with rows in 8 bits if this build of ONNX Runtime has such products for this CPU,
        else in float32: the coarser is reported.
        """
        parts = self.bundle.manifest.parts
        return {
            "body": arithmetic_of(parts[body], rounds_rows=True),
            "heads": arithmetic_of(parts["head.audio"], rounds_rows=True),
            "encoder": arithmetic_of(parts[self.encoder_role], rounds_rows=True),
            "codec": arithmetic_of(parts["codec"]),
        }

    def session_options(self, role: str) -> Any:
        """Options of a part's session."""
        options = ort.SessionOptions()
        options.log_severity_level = 3
        # every part has its own threads: if they kept spinning after a call, the next part would lack their cores
        options.add_session_config_entry("session.force_spinning_stop", "1")
        # block formats: multiply rows rounded to 8 bits, block by block (docs/precision.md has what that costs)
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "4")
        if self.bundle.manifest.parts[role].precision == "fp8":
            # its matrices would be widened at every run; this widens them once, at loading, as with narrow floats
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        options.intra_op_num_threads = self._threads
        return options

    def session(self, role: str) -> Any:
        """The session of a part, loaded on first use."""
        # a loaded session is found without the lock: the caller may hold the device's lock, and a thread that is
        # loading may wait for that one, if the garbage collector runs on the remains of a conversation there
        found = self._sessions.get(role)
        if found is not None:
            return found
        with self._lock:
            self.check_open()
            if role not in self._sessions:
                self._sessions[role] = self._load(role)
            return self._sessions[role]

    def check_open(self) -> None:
        """:class:`EngineError` once the engine is closed."""
        if self._closed:
            raise EngineError("the model is closed; open it again")

    def _load(self, role: str) -> Any:
        path = self.bundle.part(role)
        options, providers = self.session_options(role), self.providers(role)
        try:
            # enable_fallback: a provider that fails is an error, not a line on standard output and another provider
            return ort.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
        except Exception as error:  # pybind11 raises several unrelated types here
            raise EngineError(f"{path}: ONNX Runtime {ort.__version__} cannot load it ({first_line(error)})") from error

    @functools.cached_property
    def codec_silence(self) -> Mapping[str, np.ndarray]:
        """The codec's states before a sound, zeros by name: streams start from them and never write to them."""
        inputs = self.session("codec.stream").get_inputs()
        states = {i.name: np.zeros(i.shape, np.float32) for i in inputs if i.name.startswith("left.")}
        for state in states.values():
            state.flags.writeable = False
        return states

    def unload(self, *parts: str) -> None:
        """Free the sessions of parts ("backbone", "head", "encoder", "codec"); they are loaded again when needed."""
        with self._lock:
            self._sessions = {role: s for role, s in self._sessions.items() if role.partition(".")[0] not in parts}

    def run(self, role: str, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Run a part with one output."""
        return self.run_all(role, inputs)[0]

    def run_all(self, role: str, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run a part; its outputs in order."""
        try:
            return self.session(role).run(None, dict(inputs))
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(f"part {role}: ONNX Runtime failed ({first_line(error)})") from error

    def encode(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        return self.run(self.encoder_role, inputs)

    def decode_latents(self, latents: np.ndarray) -> np.ndarray:
        return self.run("codec", {"latents": np.ascontiguousarray(latents.T[None])})[0]

    def codes_to_latents(self, codes: np.ndarray) -> np.ndarray:
        return codes_to_latents(codes, self.rvq_table, self.rvq_bias)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._sessions.clear()
