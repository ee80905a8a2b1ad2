"""The acceptance run for a GPU, rehearsed: every stage runs on the kernels' host shim, and failures are reported."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest

from support.cuda.sanitizer import stand_in_for_sanitizer
from support.cuda.shim import load_shim
from ualm.bench.acceptance import __main__ as acceptance
from ualm.bench.acceptance import machine, supervise
from ualm.bench.acceptance.context import Ground
from ualm.bench.acceptance.facts import NOT_READ, run_facts
from ualm.bench.acceptance.findings import WHOLE, Findings, Skip
from ualm.bench.acceptance.kernels import cache, expected, sampler, trials
from ualm.bench.acceptance.kernels.numbers import Numbers
from ualm.bench.acceptance.kernels.tables import DeviceTables, Tables
from ualm.bench.acceptance.loops import engines
from ualm.bench.acceptance.stages import CALLS, STAGES, of_call
from ualm.bench.meters.bandwidth import READINGS
from ualm.bench.meters.gpu import CopyMeter, ReadMeter, describe_gpu, gpu_of
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
    run: Run, tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in_for_sanitizer(tmp_path / "bin", monkeypatch)
    status, out = run("--bundle", tiny_bundle)
    assert status is None
    report = kept(tmp_path)
    assert report.run.dry_run and report.run.machine.gpu is None and report.run.bandwidth.memory == "host"
    assert [check.stage for check in report.checks] == sorted(
        (check.stage for check in report.checks), key=list(STAGES).index
    )
    assert not [check for check in report.checks if check.verdict == "fail"]
    assert verdicts(report, "environment")["GPU"] == "skipped"
    assert {check.stage for check in report.checks} == set(of_call(None))
    assert set(verdicts(report, "kernels").values()) == {"pass"} and len(verdicts(report, "kernels")) == 18
    assert set((verdicts(report, "memcheck") | verdicts(report, "racecheck")).values()) == {"pass"}
    assert list(verdicts(report, "published").values()) == ["pass"] * 3
    assert list(verdicts(report, "tensorrt-rtx").values()) == ["skipped", "pass", "pass"]
    assert set(verdicts(report, "loop").values()) == {"pass"}
    assert set(verdicts(report, "engines").values()) == {"skipped"} and len(verdicts(report, "engines")) == 2
    measured = {(each.scenario, each.figure) for each in report.measurements}
    assert {
        ("launch", "graph, device"),
        ("memory", "read"),
        ("decode", "frame"),
        ("stream", "first_sample"),
    } <= measured
    about = {each.subject.engine for each in report.measurements}
    assert {each.partition(",")[0].split()[0] for each in about} == {"host", "device", "torch"}
    took = [note for note in report.notes if note.startswith("stage ")]
    assert len(took) == len(of_call(None)) and all(" took " in note and ", of at most " in note for note in took)
    left = {path.name for path in tmp_path.iterdir()} - {"bin"}
    assert left == {WHOLE, *(f"stage_{name}.json" for name in of_call(None))}  # results and nothing else
    assert "DRY RUN" in out and str(tmp_path / WHOLE) in out
    assert "GPU 0" not in out and json.loads((tmp_path / WHOLE).read_text())["run"]["dry_run"] is True


@pytest.mark.full
def test_shapes_are_made_once_and_measured_against_torch(run: Run, tmp_path: Path) -> None:
    status, _ = run("--stage", "loop-1.5b")
    assert status is None
    (check,) = kept(tmp_path).checks
    assert check.verdict == "skipped" and "run the stage make-1.5b first" in check.detail
    work = tmp_path / "work"
    assert run("--stage", "make-1.5b", "loop-1.5b", "--work", work)[0] is None
    report = kept(tmp_path)
    assert set(verdicts(report, "make-1.5b").values()) == set(verdicts(report, "loop-1.5b").values()) == {"pass"}
    (comparison,) = report.comparisons
    assert (comparison.figure, comparison.other.name) == ("frame", "reference-fp32")
    before = (tmp_path / "work" / "bundle_tiny_fp32" / "manifest.json").stat().st_mtime_ns
    assert run("--stage", "make-1.5b", "--work", work)[0] is None
    assert (tmp_path / "work" / "bundle_tiny_fp32" / "manifest.json").stat().st_mtime_ns == before


def test_stages_of_several_calls_add_up(run: Run, tmp_path: Path) -> None:
    assert run("--stage", "limits")[0] is None
    assert run("--stage", "environment")[0] is None
    assert [check.stage for check in kept(tmp_path).checks][-1] == "limits"
    assert sorted(path.name for path in tmp_path.glob("stage_*")) == ["stage_environment.json", "stage_limits.json"]


def in_this_process(stage: Callable[[Ground, Findings], None]) -> Callable[..., supervise.Done]:
    """Runs ``stage`` instead of a process with the named one."""

    def run_stage(name: str, ground: Ground, limit: float, *, why: str) -> supervise.Done:
        found = Findings(name, notes=[f"stage {name} took 1 s, of at most {limit:.0f}"])
        stage(ground, found)
        return supervise.Done(found.report(run_facts(ground, NOT_READ, None)), whole=True)

    return run_stage


def test_a_failed_check_is_kept_and_the_command_fails(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(ground: Ground, found: Findings) -> None:
        found.check("one", lambda: "all is well")
        found.check("two", lambda: (_ for _ in ()).throw(AssertionError("row 3:\nother bits")))
        with found.checking("three"):
            raise Skip("not here")
        found.check("four", lambda: (_ for _ in ()).throw(EngineError("no memory is left")))
        found.check("five", lambda: __import__("no_such_library"))
        found.check("six", lambda: __import__("ualm.no_such_module"))

    monkeypatch.setattr(supervise, "run_stage", in_this_process(broken))
    status, out = run("--stage", "kernels")
    assert status == "ualm: a check failed"
    found = [(check.name, check.verdict, check.detail) for check in kept(tmp_path).checks]
    assert found == [
        ("one", "pass", "all is well"),
        ("two", "fail", "row 3: other bits"),
        ("three", "skipped", "not here"),
        ("four", "fail", "no memory is left"),
        ("five", "skipped", "needs no_such_library, which is not installed"),
        ("six", "fail", "No module named 'ualm.no_such_module'"),
    ]
    assert "other bits" in out


def test_a_report_that_is_repeated_takes_the_place_of_the_old_one(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/ualm", "bench", "acceptance", "--stage", "kernels"])
    for verdict in ("first", "second"):
        monkeypatch.setattr(
            supervise, "run_stage", in_this_process(lambda ground, found, v=verdict: found.check("one", lambda: v))
        )
        assert run("--stage", "kernels")[0] is None
    assert [check.detail for check in kept(tmp_path).checks] == ["second"]
    assert kept(tmp_path).run.command == "ualm bench acceptance --stage kernels"


def test_the_two_calls_fit_their_minutes() -> None:
    """4 and 5 minutes, whatever hangs; with a start, one call of three minutes more fits into fifteen."""
    assert CALLS == {1: 4.0, 2: 5.0}
    for call, minutes in CALLS.items():
        assert 0 < sum(STAGES[name].limit for name in of_call(call)) <= 60 * minutes
    assert of_call(None) == of_call(1) + of_call(2)
    assert list(STAGES)[: len(of_call(None))] == of_call(None)
    assert max(STAGES[name].limit for name in of_call(None)) <= 180


def test_a_call_runs_its_stages_within_its_minutes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, float, str]] = []

    def run_stage(name: str, ground: Ground, limit: float, *, why: str) -> supervise.Done:
        asked.append((name, limit, why))
        return in_this_process(lambda ground, found: None)(name, ground, limit, why=why)

    monkeypatch.setattr(supervise, "run_stage", run_stage)
    assert run("--call", 1)[0] is None
    assert [name for name, *_ in asked] == of_call(1)
    assert all(limit == STAGES[name].limit and why == "its limit" for name, limit, why in asked)
    asked.clear()
    assert run("--stage", "kernels", "--minutes", 0.5)[0] is None
    ((name, limit, why),) = asked
    assert name == "kernels" and 29 < limit <= 30 and why == "when the 0.5 minutes were over"


def test_the_help_says_what_each_call_runs_and_how_long(run: Run) -> None:
    status, out = run("--help")
    assert status == 0
    for name, stage in STAGES.items():
        assert f"  {name:<13} at most {stage.limit:4.0f} s  {stage.does}\n" in out + "\n"
    assert "call 1, 4 minutes" in out and "call 2, 5 minutes" in out


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
        (["--expected", "x"], "--expected x: no such file; make it with: python -m ualm.bench.acceptance prepare"),
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
    """The comparison itself: it must fail with tables that differ from the CPU's in one number."""
    shape = trials.Shape(16, 41, 24, 12)
    trial = trials.Trial("audio", "fixed", 3.0, 0.8, 20, 1.0)
    rows = expected.Expected(expected.draw(trials.Suite("one", shape, (trial,), ()), 1))
    device, tables = Device(load_shim(), kind="cpu"), Tables(shape, 1)
    assert sampler.same_as_cpu(DeviceTables(device, tables), trial, 0, 1, rows) > 8
    tables.rvq[:, :, 3] += np.float32(1e-6)
    with pytest.raises(AssertionError, match="row 7: the latent differs"):
        sampler.same_as_cpu(DeviceTables(device, tables), trial, 0, 1, rows)
    tables.embedding[:] ^= 1
    with pytest.raises(AssertionError, match="row 0: the next embedding differs"):
        sampler.same_as_cpu(DeviceTables(device, tables), trial, 0, 1, rows)


def test_rows_that_are_appended_elsewhere_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """It must fail if the position does not move between launches, or if one layer's rows are missing."""
    device = Device(load_shim(), kind="cpu")
    cache.append_rows(device, "bfloat16", 0)
    write, still = Appended.write, device.uploaded(np.array([3], np.int64))
    with monkeypatch.context() as patch:
        patch.setattr(Appended, "write", lambda self, cache, rows, position: write(self, cache, rows, still))
        with pytest.raises(AssertionError, match=r"new_key\.0, appended at position \d+: the cache differs"):
            cache.append_rows(device, "float16", 0)
    layout = CacheShape.layout
    with monkeypatch.context() as patch:
        patch.setattr(CacheShape, "layout", lambda self, cuda: layout(replace(self, layers=2), cuda))
        with pytest.raises(AssertionError, match=r"new_(key|value)\.2, appended at position \d+: the cache differs"):
            cache.append_rows(device, "float16", 0)


@pytest.mark.parametrize("kind", ["NaN", "+inf", "all -inf", "ties", "mostly -inf", "stops"])
def test_the_trials_are_what_they_say(kind: str) -> None:
    trial = trials.Trial("audio", "fixed", 1.0, 0.8, 20, 1.0, logits=kind)
    values = np.stack(list(trials.draw_logits(trial, (1, 1, 138), Numbers(0))))
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


def test_reads_are_counted_once() -> None:
    meter = ReadMeter(Device(load_shim(), kind="cpu"), nbytes=1 << 20, reading_seconds=1e-3)
    meter.measure()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Event, "since", lambda self, earlier: 0.25)
        assert meter.read() == pytest.approx((1 << 20) / 0.25e-3 / 1e9)
    assert (meter.result.memory, meter.result.kernel, meter.result.bytes) == ("device", "read", 1 << 20)


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


def test_a_tensorrt_engine_that_hangs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.subprocess, "run", Mock(side_effect=subprocess.TimeoutExpired([], 18)))
    with pytest.raises(AssertionError, match="ended after 18 s, its limit"):
        machine._try("8.0", build_only=False)


def test_a_gpu_that_tensorrt_is_not_for_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.CompletedProcess([], 0, '{"reached": "import", "refused": "runs on sm86"}', "")
    monkeypatch.setattr(machine.subprocess, "run", lambda *arguments, **options: done)
    with pytest.raises(Skip, match=r"^runs on sm86$"):
        machine._try("default", build_only=False)


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
    ground = Ground(work=tmp_path / "work", seed=0, dry_run=False, bundle_folder=tiny_bundle)
    rows = min(4096, ground.bundle.manifest.model.max_positions)
    for _ in range(2):  # the result of an earlier call is replaced
        engines.check_engines(ground, found := Findings("engines"))
        built, missing = found.checks
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
    ground = Ground(work=tmp_path / "work", seed=0, dry_run=False, bundle_folder=tiny_bundle)
    engines.check_engines(ground, found := Findings("engines"))
    check = found.checks[0]
    assert (check.verdict, check.detail) == (verdict, said)
    assert not [each for each in with_library if not each.startswith("build")]
