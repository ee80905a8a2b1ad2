"""What the command tells on standard error besides what a test is about."""

from __future__ import annotations


def but_cut(err: str) -> str:
    """Standard error without the line that says that a limit cut the result: a random model seldom ends by itself."""
    return "".join(line for line in err.splitlines(keepends=True) if not line.startswith("ualm: cut by its limit"))
