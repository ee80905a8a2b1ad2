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


def in_bytes(size: int) -> str:
    """A number of bytes, as wide as any other, for a column of a table."""
    value, unit = float(size), "bytes"
    for larger in ("KiB", "MiB", "GiB"):
        if value >= 1024:
            value, unit = value / 1024, larger
    return f"{value:>7.0f} {unit}" if unit == "bytes" else f"{value:>7.1f} {unit}"
