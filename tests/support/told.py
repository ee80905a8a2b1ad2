"""Removes notices of the command that a test is not about from standard error."""

from __future__ import annotations


def but_cut(err: str) -> str:
    """Standard error without the line that says that a limit cut the result: a random model rarely ends by itself."""
    return "".join(line for line in err.splitlines(keepends=True) if not line.startswith("ualm: cut by its limit"))
