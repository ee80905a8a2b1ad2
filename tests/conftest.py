from __future__ import annotations

from pathlib import Path

import pytest
import torch

from support.runs import Run, make_run
from ualm.export.exporter import export_run

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A tiny random training run; read-only, copy it before changing anything."""
    return make_run(tmp_path_factory.mktemp("tiny") / "run")


@pytest.fixture(scope="session")
def tiny_bundle(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of ``tiny_run``; read-only, copy it before changing anything."""
    return export_run(tiny_run.folder, tmp_path_factory.mktemp("bundle") / "tiny").bundle
