"""The acceptance run for a GPU, rehearsed: every stage runs on the kernels' host shim, and failures are reported."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest

from support.cuda.shim import load_shim
from ualm.bench.acceptance import __main__ as acceptance
from ualm.bench.acceptance import engines, kernels, machine
from ualm.bench.acceptance import sampler_trials as trials
from ualm.bench.acceptance.context import Ground
from ualm.bench.acceptance.findings import WHOLE, Findings, Skip
from ualm.bench.meters.bandwidth import READINGS
from ualm.bench.meters.gpu import CopyMeter, describe_gpu, gpu_of
from ualm.bench.report.formats import read_report
from ualm.bench.report.schema import Report
from ualm.export.targets import registry as targets
from ualm.export.targets.tensorrt import build as tensorrt_build
from ualm.export.targets.tensorrt import target as tensorrt_target
from ualm.runtime import EngineError, InputError, UalmError
from ualm.runtime.bundle.bundle import Bundle
from ualm.runtime.engines.device.cache import CacheShape
from ualm.runtime.engines.device.device import Device, Event
from ualm.runtime.engines.tensorrt.library import Library
from ualm.runtime.engines.tensorrt.rows import Appended

Run = Callable[..., tuple[str | int | None, str]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command as a rehearsal; returns its exit status and standard output."""
    shim = load_shim().__file__

    def call(*arguments: object) -> tuple[str | int | None, str]:
        status: str | int | None = None
        try:
            acceptance.main(["--dry-run", "--shim", str(shim), "--out", str(tmp_path), *map(str, arguments)])
        except SystemExit as stop:
            status = stop.code
        return status, capsys.readouterr().out

    return call


def kept(folder: Path) -> Report:
    (report,) = read_report(folder / WHOLE)
    return report


def verdicts(report: Report, stage: str) -> dict[str, str]:
    return {check.name: check.verdict for check in report.checks if check.stage == stage}


def test_every_stage_is_rehearsed_and_the_result_says_that_it_is_a_rehearsal(
    run: Run, tmp_path: Path, tiny_bundle: Path
) -> None:
    stages = ["environment", "limits", "kernels", "tensorrt-rtx", "loop", "engines"]
    status, out = run("--stage", *stages, "--bundle", tiny_bundle)
    assert status is None
    report = kept(tmp_path)
    assert report.run.dry_run and report.run.machine.gpu is None and report.run.bandwidth.memory == "host"
    assert [check.stage for check in report.checks] == sorted(
        (check.stage for check in report.checks), key=list(acceptance.STAGES).index
    )
    assert not [check for check in report.checks if check.verdict == "fail"]
    assert verdicts(report, "environment")["GPU"] == "skipped"
    assert set(verdicts(report, "kernels").values()) == {"pass"} and len(verdicts(report, "kernels")) == 12
    assert list(verdicts(report, "tensorrt-rtx").values()) == ["skipped", "pass", "pass"]
    assert set(verdicts(report, "loop").values()) == {"pass"}
    assert set(verdicts(report, "engines").values()) == {"skipped"} and len(verdicts(report, "engines")) == 2
    measured = {(each.scenario, each.figure) for each in report.measurements}
    assert {("launch", "graph, device"), ("decode", "frame"), ("stream", "first_sample")} <= measured
    assert all("rehearsal" in each.subject.engine or "shim" in each.subject.engine for each in report.measurements)
    assert "DRY RUN" in out and str(tmp_path / WHOLE) in out
    assert "GPU 0" not in out and json.loads((tmp_path / WHOLE).read_text())["run"]["dry_run"] is True


@pytest.mark.full
def test_shapes_are_made_once_and_measured_against_torch(run: Run, tmp_path: Path) -> None:
    status, _ = run("--stage", "loop-1.5b")
    assert status is None
    (check,) = kept(tmp_path).checks
    assert check.verdict == "skipped" and "run the stage make-1.5b first" in check.detail
    assert run("--stage", "make-1.5b", "loop-1.5b")[0] is None
    report = kept(tmp_path)
    assert set(verdicts(report, "make-1.5b").values()) == set(verdicts(report, "loop-1.5b").values()) == {"pass"}
    (comparison,) = report.comparisons
    assert (comparison.figure, comparison.other.name) == ("frame", "reference-fp32")
    before = (tmp_path / "work" / "bundle_tiny_fp32" / "manifest.json").stat().st_mtime_ns
    assert run("--stage", "make-1.5b")[0] is None
    assert (tmp_path / "work" / "bundle_tiny_fp32" / "manifest.json").stat().st_mtime_ns == before


def test_stages_of_several_calls_add_up(run: Run, tmp_path: Path) -> None:
    assert run("--stage", "limits")[0] is None
    assert run("--stage", "environment")[0] is None
    assert [check.stage for check in kept(tmp_path).checks][-1] == "limits"
    assert sorted(path.name for path in tmp_path.glob("stage_*")) == ["stage_environment.json", "stage_limits.json"]


def test_a_failed_check_is_kept_and_the_command_fails(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(ground: object) -> Findings:
        found = Findings("kernels")
        found.check("one", lambda: "all is well")
        found.check("two", lambda: (_ for _ in ()).throw(AssertionError("row 3:\nother bits")))
        with found.checking("three"):
            raise Skip("not here")
        return found

    monkeypatch.setitem(acceptance.STAGES, "kernels", broken)
    monkeypatch.setitem(
        acceptance.STAGES, "limits", lambda ground: (_ for _ in ()).throw(EngineError("no memory is left"))
    )
    status, out = run("--stage", "kernels", "limits")
    assert status == "ualm: a check failed"
    found = [(check.name, check.verdict, check.detail) for check in kept(tmp_path).checks]
    assert found == [
        ("the stage as a whole", "fail", "no memory is left"),
        ("one", "pass", "all is well"),
        ("two", "fail", "row 3: other bits"),
        ("three", "skipped", "not here"),
    ]
    assert "other bits" in out


def test_what_does_not_fit_the_time_is_named(run: Run) -> None:
    status, out = run("--stage", "limits", "environment", "--minutes", 0)
    assert status is None
    assert "0 minutes are over; go on with: --stage limits environment" in out


def test_a_rehearsal_and_a_gpu_are_not_mixed(run: Run, tmp_path: Path) -> None:
    assert run("--stage", "limits")[0] is None
    path = tmp_path / "stage_limits.json"
    document = json.loads(path.read_text())
    document["run"]["dry_run"] = False
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match="was made on a GPU, this run was not; give another --out"):
        run("--stage", "environment")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--shim", "x"], "--shim: only --dry-run"),
        ([], "no NVIDIA driver was found|built without CUDA kernels"),
        (["--dry-run"], "--shim None: no such file"),
        (["--dry-run", "--shim", str(Path(__file__).with_name("__init__.txt"))], "no such file"),
        (["--dry-run", "--shim", str(Path(__file__).parents[3] / "LICENSE")], "no Python module; docs/gpu.md"),
    ],
)
def test_what_cannot_be_is_one_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UalmError, match=said):
        acceptance.main(["--out", str(tmp_path / "out"), *arguments])
    assert not (tmp_path / "out").exists()


def test_a_kernel_that_draws_otherwise_is_found_out() -> None:
    """The comparison itself: it must fail with tables that differ from the CPU's in one number, and with another
    seed."""
    tables = kernels.Tables(Device(load_shim(), kind="cpu"), trials.Shape(16, 41, 24, 12), 0)
    trial = trials.Trial("audio", "fixed", 3.0, 0.8, 20, 1.0)
    assert kernels.same_as_cpu(tables, trial, 1) > 8
    tables.rvq[:, :, 3] += np.float32(1e-6)
    with pytest.raises(AssertionError, match="row 7: the latent differs"):
        kernels.same_as_cpu(tables, trial, 1)
    tables.embedding[:] ^= 1
    with pytest.raises(AssertionError, match="row 0: the next embedding differs"):
        kernels.same_as_cpu(tables, trial, 1)


def test_rows_that_are_appended_elsewhere_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """It must fail if the position does not move between launches, or if one layer's rows are missing."""
    device = Device(load_shim(), kind="cpu")
    kernels.append_rows(device, "bfloat16", 0)
    write, still = Appended.write, device.uploaded(np.array([3], np.int64))
    with monkeypatch.context() as patch:
        patch.setattr(Appended, "write", lambda self, cache, rows, position: write(self, cache, rows, still))
        with pytest.raises(AssertionError, match=r"new_key\.0, appended at position \d+: the cache differs"):
            kernels.append_rows(device, "float16", 0)
    layout = CacheShape.layout
    with monkeypatch.context() as patch:
        patch.setattr(CacheShape, "layout", lambda self, cuda: layout(replace(self, layers=2), cuda))
        with pytest.raises(AssertionError, match=r"new_(key|value)\.2, appended at position \d+: the cache differs"):
            kernels.append_rows(device, "float16", 0)


@pytest.mark.parametrize("kind", ["NaN", "+inf", "all -inf", "ties", "mostly -inf", "stops"])
def test_the_trials_are_what_they_say(kind: str) -> None:
    trial = trials.Trial("audio", "fixed", 1.0, 0.8, 20, 1.0, logits=kind)
    values = np.stack(list(trials.draw_logits(trial, (1, 1, 138), np.random.default_rng(0))))
    found = {
        "NaN": np.isnan(values).any(),
        "+inf": np.isposinf(values).any(),
        "all -inf": np.isneginf(values[9]).all(),
        "ties": len(np.unique(values)) < 40,
        "mostly -inf": 0.5 < np.isneginf(values).mean() < 1,
        "stops": values[..., :3].mean() > 1,
    }
    assert found[kind]


def test_copies_are_counted_twice() -> None:
    meter = CopyMeter(Device(load_shim(), kind="cpu"), nbytes=1 << 20, reading_seconds=1e-3)
    meter.measure()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Event, "since", lambda self, earlier: 0.25)
        assert meter.read() == pytest.approx(2 * (1 << 20) / 0.25e-3 / 1e9)
    result = meter.result
    assert (result.memory, result.bytes, result.readings, result.threads) == ("device", 1 << 20, READINGS + 1, 0)
    assert result.kernel == "copy" and result.best >= result.median >= (result.worst or 0) > 0


def test_a_gpu_is_described_and_known_by_its_engine(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = describe_gpu(Device(load_shim(), kind="cpu"))
    assert (gpu.name, gpu.compute_capability, gpu.cuda) == ("host shim", "9.0", "13.0") and gpu.memory_bytes == 8 << 30
    bundle = Bundle(tiny_bundle, verify="never")
    for name in (None, "onnxruntime", "onnxruntime-cuda", "abacus"):
        assert gpu_of(name, bundle, 64) is None
    monkeypatch.setattr("ualm.bench.meters.gpu.load_kernels", load_shim)
    monkeypatch.setattr("ualm.bench.meters.gpu.why_not", lambda name, bundle, rows: None if "cuda" in name else "no")
    assert isinstance(gpu_of(None, bundle, 64), Device)
    assert isinstance(gpu_of("onnxruntime-cuda", bundle, 64), Device)


@pytest.mark.parametrize(
    ("code", "output", "said"),
    [
        (-11, "", "the process ended with status -11"),
        (0, '{"reached": "build", "problem": "the engine does not load on this GPU"}', "does not load.*after: build"),
        (0, '{"reached": "run", "bytes": 9, "library": "1.7", "worst": 0.5}', "off by 5.0e-01"),
        (0, '{"reached": "run", "bytes": 9, "library": "1.7", "worst": 1e-4}', None),
    ],
)
def test_a_tensorrt_engine_that_crashes_or_errs_is_told(
    code: int, output: str, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = subprocess.CompletedProcess([], code, output, "some words of the library")
    monkeypatch.setattr(machine.subprocess, "run", lambda *arguments, **options: done)
    if said is None:
        assert "loads and runs" in machine._try("8.0", build_only=False)
    else:
        with pytest.raises(AssertionError, match=said):
            machine._try("8.0", build_only=False)


@pytest.fixture
def with_library(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A library that supports only sm89, on a machine with such a GPU; engines are not really built or run.

    Returns what the stage requested, in order.
    """
    asked: list[str] = []

    def load(name: str) -> Library:
        if name == "tensorrt":
            raise EngineError("TensorRT cannot be imported")
        return Library("tensorrt-rtx", SimpleNamespace(__version__="1.7"))

    def make(order: targets.ExportRequest, progress: object) -> targets.ExportResult:
        assert order.run is not None and not order.output.exists()
        shutil.copytree(order.run, order.output)
        asked.append(f"build {order.target} {order.max_context}")
        return targets.ExportResult({"parts": {"backbone": {"seconds": 2.0, "bytes": 3 << 20}}}, ())

    monkeypatch.setattr(engines, "load_library", load)
    monkeypatch.setattr(engines, "local_sm", lambda: 89)
    monkeypatch.setattr(tensorrt_build, "known_sms", lambda library: (89,))
    monkeypatch.setitem(tensorrt_target.TARGETS, "tensorrt-rtx", make)
    monkeypatch.setattr(engines, "why_not", lambda name, bundle, rows: None)
    monkeypatch.setattr(
        engines, "check_bundle", lambda ground, found, name, bundle: asked.append(f"check {name} {bundle.folder.name}")
    )
    monkeypatch.setattr(
        engines, "measure_bundle", lambda ground, found, name, folder, contexts: asked.append(f"measure {folder.name}")
    )
    return asked


def test_engines_are_built_anew_for_the_gpu_at_hand_and_then_tried(
    with_library: list[str], tmp_path: Path, tiny_bundle: Path
) -> None:
    ground = Ground(out=tmp_path, work=tmp_path / "work", seed=0, dry_run=False, bundle_folder=tiny_bundle)
    rows = min(4096, ground.bundle.manifest.model.max_positions)
    for _ in range(2):  # the result of an earlier call is replaced
        built, missing = engines.check_engines(ground).checks
        assert (built.verdict, built.detail) == ("pass", "TensorRT-RTX 1.7, sm89: 1 parts in 2 s, 3 MiB")
        assert (missing.verdict, missing.detail) == ("skipped", "TensorRT cannot be imported")
    folder = "engines_tensorrt-rtx"
    assert with_library == [f"build sm89 {rows}", f"check tensorrt-rtx {folder}", f"measure {folder}"] * 2


@pytest.mark.parametrize(
    ("changed", "verdict", "said"),
    [
        ({"local_sm": 90}, "skipped", "TensorRT-RTX 1.7 does not build for sm90"),
        ({"local_sm": EngineError("no NVIDIA driver was found")}, "skipped", "no NVIDIA driver was found"),
        ({"why_not": "it is for another GPU"}, "fail", "built, but it is for another GPU"),
    ],
)
def test_engines_that_are_not_there_are_not_tried(
    changed: dict[str, object],
    verdict: str,
    said: str,
    with_library: list[str],
    tmp_path: Path,
    tiny_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, result in changed.items():
        raised = result if isinstance(result, EngineError) else None
        monkeypatch.setattr(engines, name, Mock(return_value=result, side_effect=raised))
    ground = Ground(out=tmp_path, work=tmp_path / "work", seed=0, dry_run=False, bundle_folder=tiny_bundle)
    check = engines.check_engines(ground).checks[0]
    assert (check.verdict, check.detail) == (verdict, said)
    assert not [each for each in with_library if not each.startswith("build")]
