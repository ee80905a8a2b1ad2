"""How to install what ualm leaves out by default. ualm is on no package index: a folder or a file is named."""

from __future__ import annotations

from typing import Literal

#: The optional parts that pyproject.toml names and that a message may ask for.
Extra = Literal["export", "tensorrt", "tensorrt-rtx", "plot", "play", "av", "judge"]


def install_hint(*extras: Extra) -> str:
    """The command that installs ualm with ``extras``, from a checkout and from a wheel."""
    wanted = f"[{','.join(extras)}]" if extras else ""
    return f'pip install ".{wanted}" in a checkout of ualm, or pip install "WHEEL{wanted}" with the file of its wheel'
