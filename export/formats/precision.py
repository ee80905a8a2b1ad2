"""Which weights are stored in what: the precision policy.

Tables, norms, biases and the modality head are never narrowed; the encoder and the heads never go under 8 bits, because
guidance multiplies an error of the logits by up to twice its scale, and what is misheard cannot be repaired. Beside an
fp8 body the heads are int8: that is as small, and its steps are finer (docs/precision.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...runtime.errors import ExportError

#: The name of ``float8`` among the dtypes of ``weights``; ONNX's, in small letters.
FLOAT8 = "float8e4m3fn"
#: What ``ualm export`` calls a format -> what a tensor of it is stored in (see ``weights``).
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
#: Backbone -> heads, encoder, codec.
_POLICY = {
    "fp32": ("fp32", "fp32", "fp32"),
    "bf16": ("bf16", "fp16", "fp16"),
    "fp16": ("fp16", "fp16", "fp16"),
    "fp8": ("int8", "fp16", "fp16"),
    "int8": ("int8", "int8", "fp16"),
    "int4": ("int8", "int8", "fp16"),
}

#: Formats of the text side for other engines -> dtype of all weights.
TEXT_PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def check_text_precision(precision: str | None) -> None:
    """:class:`ExportError` for a format that the text side is not stored in; None stands for the checkpoint's own."""
    if precision is not None and precision not in TEXT_PRECISIONS:
        raise ExportError(f"precision = {precision!r}: choose {', '.join(TEXT_PRECISIONS)}")


@dataclass(frozen=True)
class Precision:
    """Format of each part, by its name in ``ualm export``."""

    backbone: str = "fp32"
    heads: str = "fp32"
    encoder: str = "fp32"
    codec: str = "fp32"
    #: Of a second set of the body's matrices that long prompts are read with; "none": the backbone's serve.
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
        heads, policy_encoder, policy_codec = _POLICY[backbone]
        return cls(backbone, heads, encoder or policy_encoder, codec or policy_codec, prefill or "none")

    def of_part(self, role: str) -> str:
        """Format of the part that plays ``role``."""
        if role == "head.modality":  # five columns are too few for a block format, and a whole turn hangs on them
            return "fp32"
        if role == "backbone.prefill":
            return self.prefill
        fields = {"head": self.heads, "encoder": self.encoder, "codec": self.codec}
        return fields.get(role.partition(".")[0], self.backbone)

    @property
    def compute(self) -> str:
        """What the graphs for GPUs multiply in."""
        return {"fp32": "float32", "bf16": "bfloat16"}.get(self.backbone, "float16")

    def to_json(self) -> Mapping[str, str]:
        return dict(vars(self))
