"""The compiled module, ``ualm.runtime._native``, without which nothing computes: whether it loads, and why not."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from pathlib import Path

from ..errors import EngineError
from .extras import install_hint
from .stopping import raise_interrupt

MODULE = "ualm.runtime._native"


def native_problem() -> str | None:
    """None if the compiled module loads, else why it does not."""
    try:
        importlib.import_module(MODULE)
    except ImportError as error:
        raise_interrupt(error)
        if find_spec(MODULE) is None:
            folder = Path(__file__).parents[1]
            return f"{folder} has none for this Python: these are ualm's sources, or it was installed for another one"
        return str(error)
    return None


def check_native() -> None:
    """Refuse to go on without the compiled module, before code that needs it fails for another reason."""
    if (problem := native_problem()) is not None:
        raise EngineError(f"ualm's compiled module {MODULE} cannot be loaded: {problem}; install it: {install_hint()}")
