"""Where ualm keeps what it can make again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path | None:
    """``$XDG_CACHE_HOME/ualm``, or ``~/.cache/ualm`` if that is not set; None if it is needed and there is no home."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "ualm"
    except RuntimeError:
        return None
