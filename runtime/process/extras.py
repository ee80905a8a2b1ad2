"""How to install the optional parts of ualm. It is on no package index, so the commands name a folder or a file."""

from __future__ import annotations

from typing import Literal

#: The optional parts that pyproject.toml names and that a message may ask for.
Extra = Literal["export", "tensorrt", "tensorrt-rtx", "plot", "play", "av", "judge"]


def install_hint(*extras: Extra) -> str:
    """The command that installs ualm with ``extras``, from a checkout and from a wheel."""
    wanted = f"[{','.join(extras)}]" if extras else ""
    return f'pip install ".{wanted}" in a checkout of ualm, or pip install "WHEEL{wanted}" with the file of its wheel'
