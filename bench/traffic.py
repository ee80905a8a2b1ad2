"""Bytes that one decode step cannot help reading, counted from the bundle.

    body: the tensors of the transformer body, once for both branches
    head: the tensors of the modality's head, once for both branches
    KV:   keys and values of the rows held, of each branch

Not counted: activations, the row that is written, the eight rows of the embedding table, and the scratch of the engine.
An engine that reads more than this, or reads it twice, reaches a smaller fraction of the machine's bandwidth.
"""

from __future__ import annotations

from ..runtime.bundle import MANIFEST, Bundle
from ..runtime.errors import BundleError
from .schema import Traffic

#: Dialects of the body that ONNX Runtime prefers to the standard one.
_OWN_DIALECTS = ("backbone.grouped", "backbone.float32")


def body_role(bundle: Bundle) -> str:
    """Role of the transformer body that is computed with, where several dialects of it are in the bundle."""
    return next(role for role in (*_OWN_DIALECTS, "backbone") if role in bundle.manifest.parts or role == "backbone")


def weight_bytes(bundle: Bundle, role: str) -> int:
    """Bytes of weights that one run of a part reads, as the export counted them."""
    bundle.part(role)  # refuses a role that is not there
    found = bundle.manifest.parts[role].get("weight_bytes")
    if type(found) is not int or found < 0:
        raise BundleError(
            f"{bundle.folder / MANIFEST}: parts.{role}.weight_bytes = {found!r}: a step cannot be counted; "
            "this bundle was made before exports told them: export the run again"
        )
    return found


def step_traffic(
    bundle: Bundle, modality: str, *, kv_bytes: float, seconds: float, bandwidth_gb_per_second: float
) -> Traffic:
    """Traffic of a decode step of ``seconds`` with ``kv_bytes`` of keys and values held, all branches together."""
    body, head = weight_bytes(bundle, body_role(bundle)), weight_bytes(bundle, f"head.{modality}")
    rate = (body + head + kv_bytes) / seconds / 1e9
    return Traffic(body, head, round(kv_bytes), rate, rate / bandwidth_gb_per_second)
