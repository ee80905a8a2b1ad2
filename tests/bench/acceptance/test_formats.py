"""The stage of the loop, rehearsed in every format that a bundle may have, with the tolerances of its arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.half import HalfEngine
from support.runs import make_run
from ualm.bench.acceptance.context import Ground
from ualm.bench.acceptance.findings import Findings
from ualm.bench.acceptance.loops import loop
from ualm.export.bundle import export_run
from ualm.runtime.bundle.bundle import Bundle
from ualm.runtime.engines.arithmetic import logits_tolerance

#: Format -> arithmetic of the body in it.
FORMATS = {"fp16": "float16", "bf16": "bfloat16", "int8": "int8", "int4": "int8"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    return make_run(folder, hidden=128, heads=4, kv_heads=2, ffn=192, layers=2).folder


@pytest.mark.parametrize("precision", FORMATS)
def test_the_loop_is_rehearsed_in_every_format(
    run: Path, ground: Ground, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / precision
    export_run(run, folder, precision=precision, encoder_precision="fp16", accept_quality=True)
    if precision in ("fp16", "bf16"):  # ONNX Runtime's CPU provider does not compute in them
        monkeypatch.setattr(Ground, "engine", lambda self, name, bundle, max_context: HalfEngine(bundle, max_context))
    there = Ground(tmp_path, 0, True, ground.shim, folder)
    engine: Any = there.engine("onnxruntime-cuda", there.bundle, 64)
    body, heads = engine.arithmetic["body"], engine.arithmetic["heads"]
    engine.close()
    assert body == FORMATS[precision]
    loop.check_loop(there, found := Findings("loop"))
    assert [(check.verdict, check.detail) for check in found.checks if check.verdict != "pass"] == []
    assert len(found.checks) == 4
    model = Bundle(folder).manifest.model
    allowed = (logits_tolerance(body, heads, model.layers, model.hidden_size, few=few) for few in (False, True))
    assert any(f"of {each:g} at most" in found.checks[0].detail for each in allowed), found.checks[0].detail
