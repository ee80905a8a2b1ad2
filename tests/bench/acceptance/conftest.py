from __future__ import annotations

from pathlib import Path

import pytest

from support.cuda.shim import load_shim
from ualm.bench.acceptance.context import Ground


@pytest.fixture
def ground(tmp_path: Path, tiny_bundle: Path) -> Ground:
    """A rehearsal on the tiny bundle."""
    shim = Path(str(load_shim().__file__))
    return Ground(work=tmp_path, seed=0, dry_run=True, shim=shim, bundle_folder=tiny_bundle)
