"""Why a sound or a text ends where it does, in the words of whoever asked for it."""

from __future__ import annotations

from typing import Literal

#: "stop": the model ended it. "max_seconds", "max_tokens": its limit cut it, whatever the limit was given in: the rows
#: of ``max_steps`` are so many tokens of a text, and so many seconds of a sound.
FinishReason = Literal["stop", "max_seconds", "max_tokens"]


def finish_reason(modality: str, finish: str) -> FinishReason:
    """Of a segment, from how its frames ended (``generate.Finish``)."""
    if finish != "max_steps":
        return "stop"
    return "max_seconds" if modality == "audio" else "max_tokens"
