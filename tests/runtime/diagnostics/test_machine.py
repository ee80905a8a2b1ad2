"""``ualm doctor``: what can run here, and a bundle that is damaged or that an engine cannot take."""

from __future__ import annotations

import functools
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ualm.runtime import __version__, _native
from ualm.runtime.bundle.bundle import WEIGHTS
from ualm.runtime.diagnostics import machine as doctor
from ualm.runtime.engines import registry as selection
from ualm.runtime.engines.device.facts import CudaFacts, GpuFacts

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(ualm: Command) -> Command:
    """``ualm doctor`` in this process; returns exit status, standard output and standard error."""
    return functools.partial(ualm, "doctor")


def test_without_a_bundle_it_tells_versions_machine_and_engines(run):
    status, out, err = run("--json")
    assert (status, err, out.count("\n")) == (0, "", 1)
    about = json.loads(out)
    assert about["ok"] and "bundle" not in about
    assert about["versions"]["ualm"] == __version__ and about["versions"]["numpy"] == np.__version__
    assert all(value not in ("", "unknown", "not installed") for value in about["versions"].values())
    assert about["machine"]["cores"] >= 1 and about["machine"]["memory_bytes"] > 2**28
    architectures = about["native_module"].pop("cuda_architectures")
    assert architectures == _native.CUDA_ARCHITECTURES
    assert (importlib.util.find_spec("ualm.runtime._cuda") is not None) == bool(architectures)
    assert about["native_module"] == {"loads": True, "problem": None}
    assert about["engines"]["onnxruntime"] == {"runs": True, "reasons": []}
    assert list(about["engines"]) == ["tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime"]
    for name in ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda"):
        assert not about["engines"][name]["runs"]
        assert [len(reason) > 10 for reason in about["engines"][name]["reasons"]] == [True]
    assert about["machine"]["gpus"] == []


def test_as_text_it_tells_the_same(run):
    status, out, err = run()
    assert (status, err) == (0, "")
    for piece in ("versions\n", "machine\n", "cpu features", "onnxruntime       yes", "onnxruntime-cuda  no: "):
        assert piece in out


def test_the_gpus_that_cuda_shows_are_told(run, monkeypatch):
    gpu = GpuFacts("A GPU", 89, 24 << 30, 20 << 30)
    facts = CudaFacts(None, (80, 89), None, 13000, 13000, "580.65.06", (gpu,))
    monkeypatch.setattr(doctor, "cuda_facts", lambda: facts)
    told = "A GPU, compute capability 8.9, 24.0 GiB, driver 580.65.06"
    assert json.loads(run("--json")[1])["machine"]["gpus"] == [told]
    assert f"gpu           {told}" in run()[1]


def test_it_fails_where_nothing_can_run(run, monkeypatch):
    monkeypatch.setattr(doctor, "why_not", lambda name: f"{name} cannot be loaded")
    status, out, err = run("--json")
    about = json.loads(out)
    assert (status, err) == (1, "ualm: no engine can run here\n")
    assert not about["ok"] and about["engines"]["onnxruntime"]["reasons"] == ["onnxruntime cannot be loaded"]


@pytest.mark.parametrize(
    ("text", "model", "features"),
    [
        (
            "processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\nflags\t\t: fpu avx2 amx_int8 avx512f sse4_2\n",
            "Some CPU @ 3 GHz",
            ["sse4_2", "avx2", "avx512f", "amx_int8"],
        ),
        ("processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\n", None, ["asimd", "asimddp", "i8mm"]),
        ("processor\t: 0\n", None, "unknown"),
        (None, None, "unknown"),
    ],
    ids=["x86", "arm", "nothing", "no file"],
)
def test_cpu_features_are_those_of_the_system(tmp_path, text, model, features):
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    found = doctor.machine(tmp_path / "cpuinfo")
    assert found["cpu_features"] == features
    assert found["cpu"] == model if model else found["cpu"]


def test_an_engine_that_could_run_but_not_with_this_bundle_is_told_with_the_reason(run, tiny_bundle, monkeypatch):
    gpu = GpuFacts("A GPU", 89, 24 << 30, 20 << 30)
    facts = CudaFacts(None, (89,), None, 13000, 13000, None, (gpu,))
    monkeypatch.setattr(selection, "cuda_facts", lambda: facts)
    candidate = selection._Candidate(lambda bundle, rows: "its engines are stale" if bundle else None, None)
    monkeypatch.setitem(selection.ENGINES, "tensorrt", candidate)
    out = run(tiny_bundle)[1]
    assert "passed over for this bundle\n  tensorrt  its engines are stale\n\n" in out
    assert json.loads(run(tiny_bundle, "--json")[1])["bundle"]["passed_over"]["tensorrt"] == "its engines are stale"


def test_an_engine_that_is_named_and_cannot_run_fails_with_the_reason(run, tiny_bundle):
    status, out, err = run(tiny_bundle, "--engine", "onnxruntime-cuda", "--json")
    assert status == 1 and err.startswith("ualm: engine onnxruntime-cuda cannot run here: ") and err.count("\n") == 1
    assert json.loads(out)["bundle"]["engine"] is None
    assert run(tiny_bundle, "--engine", "onnxruntime", "--json")[0] == 0
    assert "available: tensorrt, tensorrt-rtx, onnxruntime-cuda, onnxruntime" in run(tiny_bundle, "--engine", "x")[2]


def test_a_changed_byte_fails_the_hashes_and_nothing_is_computed(run, tiny_bundle, tmp_path):
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    with open(copy / WEIGHTS, "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    status, out, err = run(copy, "--json")
    about = json.loads(out)["bundle"]
    assert status == 1 and err.count("\n") == 1 and WEIGHTS in err and "SHA-256" in err
    assert (about["hashes"], about["checks"], about["engine"]) == ("failed", [], None)


def test_a_folder_that_is_no_bundle_is_one_line_below_the_report(run, tmp_path):
    status, out, err = run(tmp_path / "none")
    assert status == 1 and out.startswith("versions\n")
    assert err.startswith(f"ualm: {tmp_path / 'none'}: no bundle here") and err.count("\n") == 1
