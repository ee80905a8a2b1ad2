"""How objects are shown where one line must do: in a notebook, a debugger, a log."""

from __future__ import annotations

#: Characters of a text that are shown.
_LETTERS = 40


def in_a_line(error: BaseException) -> str:
    """The message of one of our errors on one line; what it quotes from other libraries may have several."""
    return " ".join(str(error).splitlines())


def shortened(text: str, letters: int = _LETTERS) -> str:
    """A text, or as much of it as fits, followed by an ellipsis."""
    return text if len(text) <= letters else text[: letters - 3] + "..."


def in_bytes(size: int) -> str:
    """A number of bytes at a fixed width, for a column of a table."""
    value, unit = float(size), "bytes"
    for larger in ("KiB", "MiB", "GiB"):
        if value >= 1024:
            value, unit = value / 1024, larger
    return f"{value:>7.0f} {unit}" if unit == "bytes" else f"{value:>7.1f} {unit}"
