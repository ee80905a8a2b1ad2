"""``ualm bench export``: what an export took and produced, and what is reported if it fails."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support.runs import Run
from ualm.bench.meters.bandwidth import BandwidthMeter
from ualm.bench.report.formats import read_report
from ualm.bench.report.schema import Measurement
from ualm.bench.scenarios.export import Export
from ualm.runtime.bundle.bundle import WEIGHTS, Bundle
from ualm.runtime.bundle.quality import misses

Command = Callable[..., tuple[int, str, str]]

MIB = 2**20
needs_smaps = pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux to report private memory"
)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def assert_refused(result: tuple[int, str, str], *pieces: object) -> None:
    status, out, err = result
    assert (status, out) == (1, "")
    assert err.startswith("ualm: ") and err.count("\n") == 1
    for piece in pieces:
        assert str(piece) in err


@needs_smaps
def test_an_export_tells_time_memory_sizes_and_agreement(
    ualm: Command, small_buffer: None, tiny_run: Run, tmp_path: Path, temporary: Path
) -> None:
    keep, file = tmp_path / "kept" / "bundle", tmp_path / "export.json"
    options = ("--precision", "fp16", "--codec-precision", "fp32", "--repeat", 2, "--keep", keep, "--output", file)
    status, table, err = ualm("bench", "export", tiny_run.folder, *options)
    assert (status, err) == (0, "") and "stage.agreement" in table
    (report,) = read_report(file)
    found = {each.figure: each for each in report.measurements}
    assert {each.scenario for each in report.measurements} == {"export"}
    assert all(dict(m.settings) == {"precision": "fp16", "codec_precision": "fp32"} for m in report.measurements)
    assert {each.summary.n for each in report.measurements} == {2}

    kept = Bundle(keep, verify="always")
    subject = report.measurements[0].subject
    assert (subject.name, subject.engine, subject.digest) == (tiny_run.folder.name, "export", kept.digest)
    assert subject.precisions["backbone"] == "fp16" and subject.precisions["head.modality"] == "fp32"
    assert subject.precisions["codec"] == "fp32" and subject.precisions["encoder"] == "fp16"
    assert sorted(path.name for path in keep.parent.iterdir()) == ["bundle"] and list(temporary.iterdir()) == []

    stages = [each for each in report.measurements if each.figure.startswith("stage.")]
    assert [each.figure for each in stages][:3] == ["stage.read", "stage.write", "stage.golden_vector"]
    assert {each.unit for each in (*stages, found["export"], found["rest"])} == {"s"}
    assert sum(each.summary.mean for each in stages) + mean(found["rest"]) == pytest.approx(mean(found["export"]))
    assert all(each.summary.min >= 0 for each in stages) and found["rest"].summary.min > 0.1  # it imports torch

    peaks = [found[f"peak_{kind}"] for kind in ("anonymous", "private", "rss")]
    assert {each.unit for each in peaks} == {"MiB"} and mean(peaks[0]) > 50
    assert mean(peaks[0]) <= mean(peaks[2]) and mean(peaks[1]) <= mean(peaks[2])
    files = {path.name: path.stat().st_size for path in keep.iterdir()}
    assert mean(found["bundle"]) == pytest.approx(sum(files.values()) / MIB)
    assert mean(found["weights"]) == pytest.approx(files[WEIGHTS] / MIB)
    for role, part in kept.manifest.parts.items():
        assert mean(found[f"weights.{role}"]) == pytest.approx((part.weight_bytes or 0) / MIB)
    assert 0 <= found["cached"].summary.min <= found["cached"].summary.max <= 100

    quality = kept.manifest.quality
    for modality in ("audio", "text"):
        assert mean(found[f"{modality}_top1"]) == pytest.approx(100 * quality[modality]["top1"])
        assert mean(found[f"{modality}_kl"]) == pytest.approx(quality[modality]["kl"])
    assert mean(found["feature_cosine_least"]) == pytest.approx(quality["features"]["cosine_least"])
    assert (mean(found["sample_snr"]), found["sample_snr"].unit) == (pytest.approx(quality["pcm"]["snr_db"]), "dB")
    missed = misses(quality, kept.manifest.precision)
    assert [note for note in report.notes if "below its gates" in note] == (
        [f"this bundle is below its gates ({'; '.join(missed)}): ualm export makes it with --accept-quality only"]
        if missed
        else []
    )
    assert {"torch", "transformers", "onnx"} <= report.run.versions.keys()


def mean(measured: Measurement) -> float:
    return measured.summary.mean


# ---- exports that fail ----


def test_a_run_that_cannot_be_exported_is_told_as_the_export_tells_it(
    ualm: Command, small_buffer: None, tiny_run: Run, tmp_path: Path, temporary: Path
) -> None:
    run = shutil.copytree(tiny_run.folder, tmp_path / "run")
    (checkpoint,) = run.rglob("mp_rank_00_model_states.pt")
    checkpoint.write_bytes(b"no checkpoint")
    told = ualm("export", run, "-o", tmp_path / "bundle")[2].removeprefix("ualm: ")
    assert str(checkpoint) in told
    result = ualm("bench", "export", run, "--keep", tmp_path / "new" / "bundle", "--output", tmp_path / "a.json")
    assert_refused(result, f"{run}: the export failed: {told}")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == ["run", "temporary"]
    assert list(temporary.iterdir()) == []


def test_a_full_disk_is_told_with_the_name_of_the_bundle(
    ualm: Command, small_buffer: None, tiny_run: Run, tmp_path: Path
) -> None:
    resource = pytest.importorskip("resource")
    keep = tmp_path / "kept"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        result = ualm("bench", "export", tiny_run.folder, "--keep", keep)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_refused(result, f"the export failed: {keep}: not written (File too large)")
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == []


@pytest.mark.parametrize(
    ("script", "pieces"),
    [
        ("kill -9 $$", ["SIGKILL", "no memory left"]),
        ('mkdir "$5"; echo "ualm: $5: not written" >&2; exit 1', ["bundle: not written", "TMPDIR"]),
        ("exit 3", ["ended with status 3"]),
    ],
    ids=["killed", "full", "silent"],
)
def test_an_export_that_ends_badly_is_one_line_and_leaves_nothing(
    ualm: Command,
    small_buffer: None,
    tiny_run: Run,
    tmp_path: Path,
    temporary: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    pieces: list[str],
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))
    assert_refused(ualm("bench", "export", tiny_run.folder), f"{tiny_run.folder}: the export failed: ", *pieces)
    assert list(temporary.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux to list the children of a process")
def test_a_bench_that_is_ended_ends_its_export_and_leaves_nothing(tiny_run: Run, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ualm.runtime.cli", "bench", "export", str(tiny_run.folder)]
    command += ["--keep", str(tmp_path / "new" / "bundle")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as bench:
        export = None
        while export is None and bench.poll() is None:
            export = next((child for child in children(bench.pid) if b"ualm.export" in command_of(child)), None)
            time.sleep(0.02)
        bench.terminate()
        bench.communicate(timeout=60)
    assert export is not None and bench.returncode == 128 + signal.SIGTERM
    assert b"ualm.export" not in command_of(export)
    assert list(tmp_path.iterdir()) == []


def children(process: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{process}/task").iterdir())
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:  # a thread or the process has just ended
        return []


def command_of(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


# ---- what is refused before anything is measured ----


@pytest.mark.parametrize(
    ("options", "pieces"),
    [
        (["--precision", "int3"], ["'int3'", "int4"]),
        (["--encoder-precision", "int4"], ["'int4'", "int8"]),
        (["--calibrate", "nowhere"], ["--calibrate nowhere: no such file"]),
        (["--repeat", "0"], ["--repeat 0"]),
        (["--keep", "full"], ["full: exists already and is not an empty folder"]),
        (["--output", "a.xml"], ["a.xml", "suffix"]),
    ],
    ids=" ".join,
)
def test_a_bad_option_is_refused_first(
    ualm: Command,
    tiny_run: Run,
    tmp_path: Path,
    temporary: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    pieces: list[str],
) -> None:
    monkeypatch.setattr(BandwidthMeter, "measure", lambda self: pytest.fail("something was measured"))
    (tmp_path / "full" / "of").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert_refused(ualm("bench", "export", tiny_run.folder, *options), *pieces)
    assert_refused(ualm("bench", "export", tmp_path / "nowhere"), tmp_path / "nowhere", "no such folder")
    assert os.listdir(tmp_path / "full") == ["of"] and list(temporary.iterdir()) == []


def test_without_the_export_extra_the_mend_is_told(
    ualm: Command, tiny_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ualm.export.run.recipe", None)
    assert_refused(ualm("bench", "export", tiny_run.folder), 'pip install ".[export]"')


def test_figures_of_stages_and_parts_have_the_unit_of_their_kind() -> None:
    assert (Export.units["stage.calibrate"], Export.units["weights.head.audio"]) == ("s", "MiB")
    for unknown in ("nothing", "nothing.at_all"):
        with pytest.raises(KeyError):
            Export.units[unknown]
