"""Bytes that one decode step must read at least, counted from the bundle.

    body: the tensors of the transformer body, once for both branches
    head: the tensors of the modality's head, once for both branches
    KV:   keys and values of the rows held, of each branch

Not counted: activations, the row that is written, the eight rows of the embedding table, and the engine's scratch.
An engine that reads more, or reads something twice, reaches a smaller fraction of the machine's bandwidth.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ...runtime.bundle.bundle import MANIFEST, Bundle
from ...runtime.errors import BundleError
from ..report.schema import Bandwidth, BandwidthPair, Traffic

#: Dialects of the body that ONNX Runtime prefers over the standard one.
_OWN_DIALECTS = ("backbone.grouped", "backbone.float32")
#: A reading counts as near the run's best if it reaches this share of it.
NEAR_BEST = 0.9


def body_role(bundle: Bundle) -> str:
    """Role of the transformer body that runs, if the bundle has several dialects of it."""
    return next(role for role in (*_OWN_DIALECTS, "backbone") if role in bundle.manifest.parts or role == "backbone")


def weight_bytes(bundle: Bundle, role: str) -> int:
    """Bytes of weights that one run of a part reads, as counted by the export."""
    bundle.part(role)  # refuses a role that is not there
    found = bundle.manifest.parts[role].weight_bytes
    if found is None:
        raise BundleError(
            f"{bundle.folder / MANIFEST}: parts.{role}.weight_bytes = None: a step cannot be counted; "
            "this bundle was made before exports recorded them: export the run again"
        )
    return found


@dataclass(frozen=True)
class StepBytes:
    """Bytes of one step; ``kv``: of all branches together."""

    body: int
    head: int
    kv: float

    @property
    def total(self) -> float:
        return self.body + self.head + self.kv


def step_bytes(bundle: Bundle, modality: str, *, kv_bytes: float) -> StepBytes:
    """Bytes of a decode step with ``kv_bytes`` of keys and values held, all branches together."""
    return StepBytes(weight_bytes(bundle, body_role(bundle)), weight_bytes(bundle, f"head.{modality}"), kv_bytes)


def held_against(step: StepBytes, median_ms: float, pairs: Sequence[BandwidthPair], run: Bandwidth) -> Traffic:
    """The share of the bandwidth that a step of ``median_ms`` reaches, block by block: ``pairs``, at least one, in
    milliseconds.

    ``run``: summary of all readings of the run.
    """

    def share(of: Sequence[BandwidthPair]) -> float:
        return statistics.median(step.total / (pair.figure * 1e6) / pair.bandwidth for pair in of)

    near = [pair for pair in pairs if min(pair.before, pair.after) >= NEAR_BEST * run.best]
    return Traffic(
        body_bytes=step.body,
        head_bytes=step.head,
        kv_bytes=round(step.kv),
        gb_per_second=step.total / (median_ms * 1e6),
        fraction=share(pairs),
        fraction_near_best=share(near) if near else None,
        near_best=len(near),
        kernel=run.kernel,
        pairs=tuple(pairs),
    )
