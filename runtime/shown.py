"""How objects show themselves where a line must do: in a notebook, a debugger, a log."""

from __future__ import annotations

#: Letters of a text that are shown.
_LETTERS = 40


def in_a_line(error: BaseException) -> str:
    """All that an error of ours says: what it quotes of other libraries may run over several lines."""
    return " ".join(str(error).splitlines())


def shortened(text: str, letters: int = _LETTERS) -> str:
    """A text, or as much of it as fits, and then an ellipsis."""
    return text if len(text) <= letters else text[: letters - 3] + "..."
