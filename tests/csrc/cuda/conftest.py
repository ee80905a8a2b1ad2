from __future__ import annotations

from types import ModuleType

import pytest

from support.cuda.shim import load_shim


@pytest.fixture(scope="session")
def cuda() -> ModuleType:
    """The CUDA module, compiled for the CPU."""
    return load_shim()
