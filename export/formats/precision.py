"""The precision policy: which weights are stored in which format.

Tables, norms, biases and the modality head are never narrowed; the encoder and the heads never use fewer than 8 bits,
because guidance multiplies an error in the logits by up to twice its scale, and errors in what is heard cannot be
repaired later. An fp8 body has int8 heads: they are as small, and their steps are finer (docs/precision.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...runtime.bundle.entries import Compute
from ...runtime.bundle.precision import POLICY
from ...runtime.errors import ExportError

#: The name of ``float8`` among the dtypes of ``store``: ONNX's, in lower case.
FLOAT8 = "float8e4m3fn"
#: Format as ``ualm export`` names it -> dtype that its tensors are stored in (see ``store``).
BACKBONE = {
    "fp32": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp8": FLOAT8,
    "int8": "int8",
    "int4": "int4",
}
ENCODER = {"fp32": "float32", "fp16": "float16", "int8": "int8column"}
PREFILL = {"none": None, "int8": "int8column"}
CODEC = {"fp32": "float32", "fp16": "float16"}
#: Formats of the text side for other engines -> dtype of all weights.
TEXT_PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def check_text_precision(precision: str | None) -> None:
    """Raise :class:`ExportError` for a format that the text side cannot be stored in; None stands for the checkpoint's
    own."""
    if precision is not None and precision not in TEXT_PRECISIONS:
        raise ExportError(f"precision = {precision!r}: choose {', '.join(TEXT_PRECISIONS)}")


@dataclass(frozen=True)
class Precision:
    """Format of each part, as ``ualm export`` names it."""

    backbone: str = "fp32"
    heads: str = "fp32"
    encoder: str = "fp32"
    codec: str = "fp32"
    #: Format of a second set of the body's matrices, for long prompts; "none": the backbone's own are used.
    prefill: str = "none"

    @classmethod
    def of(
        cls, backbone: str, encoder: str | None = None, codec: str | None = None, prefill: str | None = None
    ) -> Precision:
        """The policy for a backbone; the others override it. An unknown name is an ExportError."""
        for field, value, known in (
            ("precision", backbone, BACKBONE),
            ("prefill precision", prefill, PREFILL),
            ("encoder precision", encoder, ENCODER),
            ("codec precision", codec, CODEC),
        ):
            if value is not None and value not in known:
                raise ExportError(f"{field} = {value!r}: choose {', '.join(known)}")
        heads, policy_encoder, policy_codec = POLICY[backbone]
        return cls(backbone, heads, encoder or policy_encoder, codec or policy_codec, prefill or "none")

    def of_part(self, role: str) -> str:
        """Format of the part with the role ``role``."""
        if role == "head.modality":  # five columns are too few for a block format, and a whole turn depends on them
            return "fp32"
        if role == "backbone.prefill":
            return self.prefill
        fields = {"head": self.heads, "encoder": self.encoder, "codec": self.codec}
        return fields.get(role.partition(".")[0], self.backbone)

    @property
    def compute(self) -> Compute:
        """The type in which the graphs for GPUs multiply."""
        types: dict[str, Compute] = {"fp32": "float32", "bf16": "bfloat16"}
        return types.get(self.backbone, "float16")

    def to_json(self) -> Mapping[str, str]:
        return dict(vars(self))
