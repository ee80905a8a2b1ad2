"""One attempt with TensorRT-RTX in a separate process, which may crash: build a product, load it, run it.

``python -m ualm.bench.acceptance.rtx_probe default|8.0|8.0,8.6,8.9`` prints a JSON object: how far it got; if it got no
further, the library's own message; "refused" if this GPU is none that it is for. Building needs no GPU, except for the
default target; loading and running do.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

from ...runtime.engines.build_commands import sm_name
from ...runtime.engines.tensorrt.library import local_sm

ROWS, INPUTS, OUTPUTS = 2, 64, 48


def probe(target: str, *, run: bool) -> dict[str, Any]:
    """Build for compute capabilities, "default" for this machine's GPU; with ``run``, also load and run the engine."""
    import tensorrt_rtx as trt

    found: dict[str, Any] = {"target": target, "library": trt.__version__, "reached": "import"}
    here = local_sm() if run else None
    known = sorted(int(name[2:]) for name in dir(trt.ComputeCapability) if name.startswith("SM"))
    if here is not None and known and here not in known:
        able = ", ".join(map(sm_name, known))
        return found | {"refused": f"TensorRT-RTX {trt.__version__} runs on {able}; the GPU here is {sm_name(here)}"}
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    weights = np.random.default_rng(0).standard_normal((INPUTS, OUTPUTS)).astype(np.float32)
    x = network.add_input("x", trt.float32, (ROWS, INPUTS))
    matrix = network.add_constant(weights.shape, trt.Weights(weights)).get_output(0)
    plain = trt.MatrixOperation.NONE
    y = network.add_matrix_multiply(x, plain, matrix, plain).get_output(0)
    y.name = "y"
    network.mark_output(y)
    config = builder.create_builder_config()
    if target != "default":
        names = [f"SM{each.replace('.', '')}" for each in target.split(",")]
        config.num_compute_capabilities = len(names)
        for index, name in enumerate(names):
            config.set_compute_capability(getattr(trt.ComputeCapability, name), index)
    content = builder.build_serialized_network(network, config)
    if content is None:
        return found | {"problem": "it was not built"}
    found |= {"reached": "build", "bytes": content.nbytes}
    if not run:
        return found
    engine = trt.Runtime(logger).deserialize_cuda_engine(content)
    if engine is None:
        others = target != "default" and here not in {int(each.replace(".", "")) for each in target.split(",")}
        why = "problem" if not others else "refused"
        return found | {why: f"the engine does not load on this GPU{', which it is not for' if others else ''}"}
    found["reached"] = "load"
    return found | _run(engine, weights)


def _run(engine: Any, weights: np.ndarray) -> dict[str, Any]:
    from ...runtime.engines.device.device import Device
    from ...runtime.engines.device.facts import load_kernels

    device = Device(load_kernels())
    x = np.random.default_rng(1).standard_normal((ROWS, INPUTS)).astype(np.float32)
    y = np.empty((ROWS, OUTPUTS), np.float32)
    places = device.uploaded(x), device.allocate(y.nbytes)
    context = engine.create_execution_context()
    context.set_tensor_address("x", places[0].address)
    context.set_tensor_address("y", places[1].address)
    if not context.execute_async_v3(device.stream.handle):
        return {"problem": "the engine does not run"}
    device.download(y, places[1].address)
    device.synchronize()
    expected = x.astype(np.float64) @ weights
    return {"reached": "run", "worst": float(np.abs(y - expected).max() / np.abs(expected).max())}


if __name__ == "__main__":
    print(json.dumps(probe(sys.argv[1], run=sys.argv[2:] != ["build"])))
