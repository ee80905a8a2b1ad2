"""The device loop on this machine: the kernels of the host shim, and ONNX Runtime's CPU provider instead of CUDA's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from support.cuda.shim import load_shim
from ualm.runtime import Model
from ualm.runtime.bundle.bundle import WEIGHTS, Bundle
from ualm.runtime.engines.device.device import Device
from ualm.runtime.engines.onnxruntime.cpu import OnnxRuntimeEngine
from ualm.runtime.engines.onnxruntime.cuda import OnnxRuntimeCudaEngine
from ualm.runtime.files.safetensors_reader import MappedTensors


def device_engine(bundle: Bundle, max_context: int = 256, **options: Any) -> OnnxRuntimeCudaEngine:
    """The engine under test; heads run in ONNX Runtime by default, so that logits are the CPU engine's."""
    options = {"fused_heads": False} | options
    return OnnxRuntimeCudaEngine(bundle, Device(load_shim(), kind="cpu"), threads=1, max_context=max_context, **options)


def cpu_engine(bundle: Bundle, max_context: int = 256) -> OnnxRuntimeEngine:
    """The engine that it is compared with, with the body's standard dialect, as on the device."""
    engine = OnnxRuntimeEngine(bundle, threads=1, max_context=max_context)
    engine.body = "backbone"
    return engine


def both_models(bundle: Bundle, max_context: int = 256) -> tuple[Model, Model]:
    """The same bundle on the CPU and in the device loop."""
    engines = cpu_engine(bundle, max_context), device_engine(bundle, max_context)
    return Model(bundle, engines[0], max_context), Model(bundle, engines[1], max_context)


def spoil_embedding(folder: Path, row: int) -> None:
    """Make a row of a bundle's embedding table NaN (bfloat16); its hashes no longer agree."""
    table = MappedTensors(folder / WEIGHTS)
    offset = table["embedding"][row:].ctypes.data - table._map.ctypes.data
    with open(folder / WEIGHTS, "r+b") as file:
        file.seek(offset)
        file.write(np.uint16(0x7FC0).tobytes())
