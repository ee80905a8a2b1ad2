"""The facts of a run, as every stage records them."""

from __future__ import annotations

from ...runtime.process.cores import cores
from ..meters.environment import current_load, describe_run
from ..report.schema import Bandwidth, Gpu, Run
from .context import Ground

#: Distributions whose versions are recorded besides the runtime's own.
PEERS = ("onnxruntime-gpu", "tensorrt-rtx", "tensorrt", "torch", "transformers", "cuda-python")
#: In place of a bandwidth that was not read.
NOT_READ = Bandwidth(0, 0, 0, 0.0, 0.0, "device", "none", 0, 0.0)


def run_facts(ground: Ground, bandwidth: Bandwidth, gpu: Gpu | None) -> Run:
    """The facts of this run."""
    return describe_run(
        seed=ground.seed,
        threads=cores(),
        bandwidth=bandwidth,
        load_average=current_load(),
        others_percent=None,
        peers=PEERS,
        gpu=gpu,
        dry_run=ground.dry_run,
    )
