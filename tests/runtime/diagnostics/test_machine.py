"""``ualm doctor`` and the golden check: what can run here, and detection of a bundle with wrong results."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from support.golden import CHECKS
from ualm.runtime import BundleError, EngineError, __version__, _native
from ualm.runtime.bundle.bundle import GOLDEN, WEIGHTS, Bundle
from ualm.runtime.diagnostics import machine as doctor
from ualm.runtime.engines import registry as selection
from ualm.runtime.engines.device.facts import CudaFacts, GpuFacts
from ualm.runtime.engines.onnxruntime.cpu import OnnxRuntimeEngine
from ualm.runtime.files.safetensors_reader import MappedTensors
from ualm.runtime.vocabulary import ROLES

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(ualm: Command) -> Command:
    """``ualm doctor`` in this process; returns exit status, standard output and standard error."""
    return functools.partial(ualm, "doctor")


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle that a test may damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def sign(bundle: Path, change: Callable[[dict[str, Any]], None] = lambda document: None) -> None:
    """Rewrite the manifest, so that all hashes and its digest match the files."""
    document = json.loads((bundle / "manifest.json").read_text())
    change(document)
    for name, file in document["files"].items():
        content = (bundle / name).read_bytes()
        file.update(size=len(content), sha256=hashlib.sha256(content).hexdigest())
    del document["digest"]
    body = json.dumps(document, sort_keys=True, separators=(",", ":"))
    document["digest"] = hashlib.sha256(body.encode()).hexdigest()
    (bundle / "manifest.json").write_text(json.dumps(document))
    Bundle(bundle, verify="always")


def alter_weight(bundle: Path, name: str, value: float, *, row: int = 0) -> None:
    """Put ``value`` at the start of a tensor's row, and sign the bundle as if it had been exported like this."""
    tensors = MappedTensors(bundle / WEIGHTS)
    offset = tensors[name][row:].ctypes.data - tensors._map.ctypes.data
    with open(bundle / WEIGHTS, "r+b") as file:
        file.seek(offset)
        file.write(np.float32(value).tobytes())
    sign(bundle)


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


def test_a_good_bundle_passes(run, tiny_bundle):
    status, out, err = run(tiny_bundle, "--json")
    assert (status, err) == (0, "")
    about = json.loads(out)["bundle"]
    assert (about["hashes"], about["engine"], about["problems"]) == ("verified", "onnxruntime", [])
    assert list(about["passed_over"]) == ["tensorrt", "tensorrt-rtx", "onnxruntime-cuda"]
    assert [check["name"] for check in about["checks"]] == CHECKS
    assert all(check["passed"] and 0 <= check["error"] <= check["tolerance"] for check in about["checks"])
    status, out, err = run(tiny_bundle)
    assert (status, err, out.count("  pass  ")) == (0, "", len(CHECKS))


@pytest.mark.parametrize(
    ("tensor", "failing"),
    [
        # the null branch sees no prompt
        ("embedding", ["logits.modality", "logits.audio (conditional)", "logits.text (conditional)"]),
        ("backbone.1.down", CHECKS[:5]),
        ("head.modality", ["logits.modality"]),
        ("head.audio", CHECKS[1:3]),
        ("head.text", CHECKS[3:5]),
        ("null.values", ["logits.audio (null)", "logits.text (null)"]),
        ("codec.rvq_bias", ["pcm"]),
        ("codec.conv2.weight", ["pcm"]),
        ("encoder.proj.weight", ["features"]),
    ],
)
def test_an_altered_weight_fails_the_golden_check_although_all_hashes_agree(run, copy, tensor, failing):
    alter_weight(copy, tensor, 3.0, row=ROLES["assistant"] if tensor == "embedding" else 0)
    status, out, err = run(copy, "--json")
    about = json.loads(out)
    assert status == 1 and not about["ok"] and about["bundle"]["hashes"] == "verified"
    found = [check["name"] for check in about["bundle"]["checks"] if not check["passed"]]
    assert found == failing
    assert err.startswith(f"ualm: {copy}: the golden vector fails: {found[0]} is off by ") and err.count("\n") == 1
    assert all(name in err for name in found)


def test_a_weight_that_is_nan_fails_and_the_json_stays_json(run, copy):
    alter_weight(copy, "backbone.norm", float("nan"))
    status, out, err = run(copy, "--json")
    checks = {check["name"]: check for check in json.loads(out, parse_constant=pytest.fail)["bundle"]["checks"]}
    assert status == 1 and err.count("\n") == 1
    assert checks["logits.modality"]["error"] is None and checks["logits.modality"]["problem"] == "NaN or infinity"
    assert "cannot be sampled" in checks["logits.audio (null)"]["problem"]
    assert checks["features"]["passed"] and checks["pcm"]["passed"]
    assert "FAIL" in run(copy)[1]


def test_a_part_that_cannot_be_loaded_fails_its_check_alone(run, copy):
    graph = (copy / "encoder.onnx").read_bytes()
    assert graph.count(b"Gelu") > 1
    (copy / "encoder.onnx").write_bytes(graph.replace(b"Gelu", b"Gala"))
    sign(copy)
    status, out, err = run(copy, "--json")
    checks = {check["name"]: check for check in json.loads(out)["bundle"]["checks"]}
    assert status == 1 and "encoder.onnx" in err and err.count("\n") == 1
    assert [name for name, check in checks.items() if not check["passed"]] == ["features"]
    assert "cannot load it" in checks["features"]["problem"]


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


def test_a_changed_byte_fails_the_hashes_and_nothing_is_computed(run, copy):
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


def test_a_golden_vector_that_lacks_an_output_is_refused(copy):
    tensors = dict(MappedTensors(copy / GOLDEN))
    tensors = {name: np.array(values) for name, values in tensors.items() if name != "pcm"}
    (copy / GOLDEN).write_bytes(safetensors.numpy.save(tensors))
    with pytest.raises(BundleError, match="lacks pcm; export the run again"):
        sign(copy)


def test_an_engine_of_another_shape_fails_its_check(tiny_bundle):
    bundle = Bundle(tiny_bundle, verify="never")
    engine = OnnxRuntimeEngine(bundle, threads=1, max_context=doctor.GOLDEN_CONTEXT)
    engine.decode_latents = lambda latents: np.zeros(3, np.float32)  # type: ignore[method-assign]
    engine.encode = lambda inputs: (_ for _ in ()).throw(EngineError("part encoder: out of memory"))  # type: ignore[method-assign]
    checks = {check.name: check for check in doctor.check_golden(bundle, engine)}
    assert (checks["pcm"].passed, checks["pcm"].problem) == (False, "the shape is [3], expected was [90]")
    assert (checks["features"].passed, checks["features"].problem) == (False, "part encoder: out of memory")
