"""Encoders with random weights for tests: a tensor source over a dictionary, and running a planned encoder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from ualm.export.formats.store import WeightStore
from ualm.export.parts.encoders.whisper import ADAPTOR_PREFIX, MEL_FILTERS, EncoderPart
from ualm.runtime.audio.features import LogMelFrontend
from ualm.runtime.errors import ExportError
from ualm.runtime.sound.sound import Sound


class Tensors(dict):
    """A TensorSource over a dictionary of arrays."""

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self:
            raise ExportError(f"tensor {name} is missing")
        return tuple(self[name].shape)

    def read(self, name: str) -> np.ndarray:
        return self[name]

    def __iter__(self) -> Iterator[str]:
        return super().__iter__()


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Every parameter random and none degenerate, including biases and norms, so that a missing one shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            norm_weight = "norm.weight" in name or "ln_post.weight" in name
            parameter.copy_(1 + 0.3 * noise if norm_weight else 0.3 * noise)


def checkpoint(model: torch.nn.Module, prefix: str, width: int, hidden_size: int, seed: int = 5) -> Tensors:
    """The model's tensors under ``prefix``, and a random adaptor from ``width`` to ``hidden_size``."""
    rng = np.random.default_rng(seed)
    tensors = Tensors({prefix + name: value.numpy() for name, value in model.state_dict().items()})
    tensors[f"{ADAPTOR_PREFIX}.weight"] = rng.normal(0, 0.3, (hidden_size, width)).astype(np.float32)
    tensors[f"{ADAPTOR_PREFIX}.bias"] = rng.normal(0, 0.3, hidden_size).astype(np.float32)
    return tensors


def adapted(tensors: Tensors, rows: np.ndarray) -> np.ndarray:
    """The checkpoint's linear layer over the encoder's rows."""
    return rows @ tensors[f"{ADAPTOR_PREFIX}.weight"].T + tensors[f"{ADAPTOR_PREFIX}.bias"]


class WrittenEncoder:
    """A planned encoder, written into a folder and opened from there, like a bundle's."""

    def __init__(self, part: EncoderPart, store: WeightStore, folder: Path) -> None:
        store.lay_out()
        part.graph.save(folder, "encoder.onnx")
        list(store.write(folder))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(folder / "encoder.onnx", options)
        self.hearing = LogMelFrontend(part.features, store[MEL_FILTERS].make())

    def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """All rows of the graph's output."""
        return self.session.run(["features"], inputs)[0]

    def features(self, samples: np.ndarray, rate: int = 16000) -> np.ndarray:
        """The sound's rows, float32 ``[rows, hidden_size]``."""
        prepared = self.hearing.prepare(Sound(samples, rate))
        return self.run(prepared.inputs)[: prepared.rows]
