"""Names shared by the builder of TensorRT engines and their runner: profiles, inputs and outputs."""

from __future__ import annotations

#: Inputs and outputs of the body that stand for its positions, see ``export/targets/tensorrt/positions.py``.
POSITION, OFFSETS, COLUMNS = "position", "row_offsets", "columns"
COS, SIN = "cos_table", "sin_table"
NEXT_POSITION = "next_position"

#: Optimisation profiles of the body: prompts, and steps of one branch or of both branches of guidance. A profile of
#: one row alone would make the library lay out fp16 weights a second time (docs/tensorrt.md).
PREFILL, DECODE = "prefill", "decode"
#: Profile of the heads: the hidden state of one branch or of both.
HEAD = "head"
#: Profiles of the encoder: up to half a minute, and longer sounds.
SHORT, LONG = "short", "long"
#: Profiles of the streaming codec: a piece within a sound, and one that begins or ends it.
INNER, EDGE = "inner", "edge"
