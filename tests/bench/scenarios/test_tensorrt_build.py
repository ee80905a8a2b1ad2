"""Measuring the cost of compiling a part."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from support.runs import make_run
from ualm.bench.scenarios.tensorrt_build import measure_builds
from ualm.runtime.bundle.packaged import default_bundle
from ualm.runtime.errors import ExportError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="TensorRT-RTX is not installed: pip install '.[tensorrt-rtx]'",
)


def test_a_part_of_a_bundle_is_measured_in_a_process_of_its_own() -> None:
    report = measure_builds(default_bundle(), parts=("head.audio",), targets=("sm86,sm89",), max_context=512)
    found = {each.figure: each.summary.p50 for each in report.measurements}
    assert {each.settings["targets"] for each in report.measurements} == {"sm86,sm89"}
    assert 0 < found["build"] < found["process"]
    assert found["stored"] < found["engine"] < 2 * found["stored"] and found["peak_rss"] > found["engine"]
    assert report.run.versions["tensorrt-rtx"].startswith("1.")


def test_the_body_of_a_training_run_is_built_without_the_rest(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    report = measure_builds(run.folder, precision="fp16", max_context=64, cache="appended")
    assert {each.settings["cache"] for each in report.measurements} == {"appended"}
    assert report.measurements[0].subject.precisions == {"backbone": "fp16"}
    with pytest.raises(ExportError, match=r"of a training run only the backbone is built"):
        measure_builds(run.folder, parts=("encoder",))


def test_a_build_that_fails_says_why() -> None:
    with pytest.raises(ExportError, match=r"head\.text was not built: .*FP32 GEMM is not supported"):
        measure_builds(default_bundle(), parts=("head.text",), targets=("sm75",), max_context=512)
