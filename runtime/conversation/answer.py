"""What ``Model.ask`` returns: a text that also records how it ended."""

from __future__ import annotations

from ..finish import FinishReason


class Answer(str):
    """The answer to a question: a ``str`` that also records how it ended.

    Made by :meth:`Model.ask`. What ``str`` methods return is a plain ``str``.

    Parameters
    ----------
    text : str
        The answer.
    finish : str, default "stop"
        How it ended.
    seed : int, default 0
        What it was drawn with.

    Attributes
    ----------
    finish : str
        "stop", or "max_tokens" where its limit cut it.
    seed : int
        What it was drawn with, also where the seed was drawn.

    Examples
    --------
    >>> answer = model.ask(sound, "what is played?", max_tokens=2)
    >>> isinstance(answer, str), answer.finish, answer.seed
    (True, 'max_tokens', 0)
    """

    finish: FinishReason
    seed: int

    def __new__(cls, text: str, finish: FinishReason = "stop", seed: int = 0) -> Answer:
        made = super().__new__(cls, text)
        made.finish, made.seed = finish, seed
        return made
