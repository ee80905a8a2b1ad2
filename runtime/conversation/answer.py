"""What ``Model.ask`` returns: a text that also records how it ended."""

from __future__ import annotations

from ..finish import FinishReason


class Answer(str):
    """The answer to a question: a ``str``.

    ``finish``: "stop", or "max_tokens" where its limit cut it. ``seed``: what it was drawn with.
    """

    finish: FinishReason
    seed: int

    def __new__(cls, text: str, finish: FinishReason = "stop", seed: int = 0) -> Answer:
        made = super().__new__(cls, text)
        made.finish, made.seed = finish, seed
        return made
