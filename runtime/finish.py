"""Why a sound or a text ends where it does, in the caller's terms."""

from __future__ import annotations

from typing import Literal

#: "stop": the model ended it. "max_seconds", "max_tokens": its limit cut it, whichever unit the limit was given in:
#: the rows of ``max_steps`` amount to a number of tokens of a text, and to a number of seconds of a sound.
FinishReason = Literal["stop", "max_seconds", "max_tokens"]


def finish_reason(modality: str, finish: str) -> FinishReason:
    """The reason for a segment, from how its frames ended (``loop.Finish``)."""
    if finish != "max_steps":
        return "stop"
    return "max_seconds" if modality == "audio" else "max_tokens"
