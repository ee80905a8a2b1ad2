"""The golden vector recorded at export, recomputed by the engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.golden import CHECKS
from ualm.runtime.bundle import Bundle
from ualm.runtime.doctor import GOLDEN_CONTEXT, Check, check_golden
from ualm.runtime.engines.onnxruntime import OnnxRuntimeEngine


@pytest.fixture(scope="module")
def checks(tiny_bundle: Path) -> dict[str, Check]:
    bundle = Bundle(tiny_bundle, verify="never")
    engine = OnnxRuntimeEngine(bundle, threads=1, max_context=GOLDEN_CONTEXT)
    return {check.name: check for check in check_golden(bundle, engine)}


@pytest.mark.parametrize("name", CHECKS)
def test_the_engine_gives_the_golden_vector(checks: dict[str, Check], name: str) -> None:
    """The null branch of the golden vector was prefilled densely, the engine's is the constant vector."""
    check = checks[name]
    assert check.problem is None and check.error is not None
    assert check.error <= check.tolerance == 1e-4


def test_every_output_of_the_golden_vector_is_checked(checks: dict[str, Check], tiny_bundle: Path) -> None:
    outputs = set(Bundle(tiny_bundle, verify="never").golden_vector()) - {"rows", "codes", "sound"}
    assert {name.split(" ")[0] for name in checks} == outputs
