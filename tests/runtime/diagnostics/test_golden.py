"""The golden check, through ``ualm doctor`` and by itself: a bundle with wrong results is detected."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from support.golden import CHECKS
from ualm.runtime import BundleError, EngineError
from ualm.runtime.bundle.bundle import GOLDEN, WEIGHTS, Bundle
from ualm.runtime.diagnostics.golden import GOLDEN_CONTEXT, check_golden
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


def test_a_golden_vector_that_lacks_an_output_is_refused(copy):
    tensors = dict(MappedTensors(copy / GOLDEN))
    tensors = {name: np.array(values) for name, values in tensors.items() if name != "pcm"}
    (copy / GOLDEN).write_bytes(safetensors.numpy.save(tensors))
    with pytest.raises(BundleError, match="lacks pcm; export the run again"):
        sign(copy)


def test_an_engine_of_another_shape_fails_its_check(tiny_bundle):
    bundle = Bundle(tiny_bundle, verify="never")
    engine = OnnxRuntimeEngine(bundle, threads=1, max_context=GOLDEN_CONTEXT)
    engine.decode_latents = lambda latents: np.zeros(3, np.float32)  # type: ignore[method-assign]
    engine.encode = lambda inputs: (_ for _ in ()).throw(EngineError("part encoder: out of memory"))  # type: ignore[method-assign]
    checks = {check.name: check for check in check_golden(bundle, engine)}
    assert (checks["pcm"].passed, checks["pcm"].problem) == (False, "the shape is [3], expected was [90]")
    assert (checks["features"].passed, checks["features"].problem) == (False, "part encoder: out of memory")
