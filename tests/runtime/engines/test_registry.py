"""Which engine runs: by argument, by environment, by choice; and on a machine with a GPU it is reported, with the
reasons."""

from __future__ import annotations

import ctypes
import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import soundfile

from support.bundles import changed_manifest
from support.choosing import choosing_what_it_can
from support.sounds import make_sound
from support.told import but_cut
from ualm.bench.meters.gpu import gpu_of
from ualm.runtime import EngineError, Model
from ualm.runtime.bundle.bundle import Bundle
from ualm.runtime.engines import registry as selection
from ualm.runtime.engines.device.facts import CudaFacts, GpuFacts
from ualm.runtime.engines.onnxruntime.cpu import OnnxRuntimeEngine
from ualm.runtime.engines.presence import gpu_is_there

Command = Callable[..., tuple[int, str, str]]
SHORT = ("--threads", 1, "--max-seconds", 0.05)
FACTS = CudaFacts(None, (89,), None, 13000, 13000, None, (GpuFacts("A GPU", 89, 24 << 30, 20 << 30),))
TOLD = (
    "ualm: engine onnxruntime; not tensorrt, tensorrt-rtx: no library; not onnxruntime-cuda: the GPU failed: it broke"
)
OVER = [
    {"engine": "tensorrt", "reason": "no library"},
    {"engine": "tensorrt-rtx", "reason": "no library"},
    {"engine": "onnxruntime-cuda", "reason": "the GPU failed:\nit broke"},
]


@pytest.fixture(autouse=True)
def unnamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UALM_ENGINE", raising=False)


@pytest.fixture
def broken_gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with a GPU whose engine fails while it is opened."""

    def fail(*arguments: Any) -> Any:
        raise EngineError("the GPU failed:\nit broke")

    monkeypatch.setattr(selection, "cuda_facts", lambda: FACTS)
    monkeypatch.setattr(selection, "gpu_is_there", lambda: True)
    for name in ("tensorrt", "tensorrt-rtx"):
        monkeypatch.setitem(selection.ENGINES, name, selection._Candidate(lambda *given: "no library", fail))
    monkeypatch.setitem(selection.ENGINES, "onnxruntime-cuda", selection._Candidate(lambda *given: None, fail))
    return monkeypatch


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(
        selection, "cuda_facts", lambda: CudaFacts("built without kernels", (), None, 0, None, None, ())
    )
    monkeypatch.setattr(selection, "gpu_is_there", lambda: False)
    return monkeypatch


@pytest.fixture
def verbs(tmp_path: Path) -> dict[str, tuple[object, ...]]:
    heard = tmp_path / "heard.wav"
    soundfile.write(heard, make_sound(0.1).T, 16000)
    return {
        "generate": ("rain", "-o", tmp_path / "a.wav", *SHORT),
        "ask": (heard, "what is it?", "--threads", 1, "--max-tokens", 4),
        "chat": (*SHORT, "--max-tokens", 4),
        "reason": ("rain", "--max-tokens", 4, *SHORT),
    }


# ---- what is reported ----


def test_every_verb_tells_which_engine_ran_and_why_no_other_did(ualm: Command, tiny_bundle, verbs, broken_gpu):
    with choosing_what_it_can():
        for verb, arguments in verbs.items():
            broken_gpu.setattr("sys.stdin", io.StringIO("hello\n"))
            status, out, err = ualm(verb, *arguments, "-b", tiny_bundle, "--json")
            assert (status, but_cut(err)) == (0, TOLD + "\n"), verb
            about = json.loads(out.splitlines()[0])
            assert (about["engine"], about["passed_over"]) == ("onnxruntime", OVER), verb


def test_a_machine_without_a_gpu_is_quiet(ualm: Command, tiny_bundle, verbs, no_gpu):
    with choosing_what_it_can():
        for verb, arguments in verbs.items():
            no_gpu.setattr("sys.stdin", io.StringIO("hello\n"))
            status, out, err = ualm(verb, *arguments, "-b", tiny_bundle, "--json")
            about = json.loads(out.splitlines()[0])
            assert (status, but_cut(err), about["engine"], about["passed_over"]) == (0, "", "onnxruntime", []), verb


@pytest.fixture
def compiled(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle that holds four engine files of TensorRT-RTX."""
    common = {"engine": "tensorrt-rtx", "library_version": "1.7", "sms": [89], "capacity": 64, "profiles": []}
    hashes = {"onnx_sha256": "0" * 64, "weights_sha256": "0" * 64}

    def add(document: dict[str, Any]) -> None:
        names = ["backbone.onnx", "codec.onnx", "encoder.onnx", "head_text.onnx"]  # any files of the bundle will do
        document["engines"] = [{"role": "codec", "file": name, **common, **hashes} for name in names]

    return changed_manifest(tiny_bundle, tmp_path / "compiled", add)


def test_engine_files_that_are_not_run_are_told_also_without_a_gpu(ualm: Command, compiled, verbs, no_gpu):
    files = "backbone.onnx, codec.onnx, encoder.onnx and 1 more"
    told = f"ualm: engine onnxruntime; not tensorrt-rtx (the bundle holds 4 engine files of it: {files}): "
    told += "built without kernels\n"
    with choosing_what_it_can():
        for verb, arguments in verbs.items():
            no_gpu.setattr("sys.stdin", io.StringIO("hello\n"))
            status, out, err = ualm(verb, *arguments, "-b", compiled, "--json")
            assert (status, err) == (0, told), verb
            (over,) = json.loads(out.splitlines()[0])["passed_over"]
            assert (over["engine"], over["reason"]) == ("tensorrt-rtx", "built without kernels")
            assert over["files"] == ["backbone.onnx", "codec.onnx", "encoder.onnx", "head_text.onnx"]
    assert ualm("generate", *verbs["generate"], "-b", compiled, "-q")[2] == ""
    assert ualm("generate", *verbs["generate"], "-b", compiled, "--engine", "onnxruntime")[2] == ""


def test_with_a_gpu_the_files_are_told_with_the_reason(ualm: Command, compiled, verbs, broken_gpu):
    err = ualm("generate", *verbs["generate"], "-b", compiled)[2]
    assert err.startswith(
        "ualm: engine onnxruntime; not tensorrt, tensorrt-rtx (the bundle holds 4 engine files of it: "
    )
    assert err.endswith(" and 1 more): no library; not onnxruntime-cuda: the GPU failed: it broke\n")


def test_an_engine_that_was_asked_for_is_told_as_such(ualm: Command, tiny_bundle, verbs, broken_gpu):
    arguments = ("generate", *verbs["generate"], "-b", tiny_bundle)
    assert ualm(*arguments, "--engine", "onnxruntime")[2] == "ualm: engine onnxruntime, as asked for\n"
    broken_gpu.setenv("UALM_ENGINE", "onnxruntime")
    assert ualm(*arguments)[2] == "ualm: engine onnxruntime, as UALM_ENGINE says\n"


def test_the_bench_tells_it_once_and_keeps_it(ualm: Command, tiny_bundle, broken_gpu, tmp_path):
    arguments = ("bench", "codec", tiny_bundle, "--seconds", "0.1", "--repeat", 2, "--threads", 1, "--format", "json")
    broken_gpu.setattr("ualm.bench.harness.measure.gpu_of", lambda *given: None)
    status, out, err = ualm(*arguments)
    assert (status, err) == (0, TOLD + "\n")
    report = json.loads(out)
    assert f"{tiny_bundle.name}: {TOLD.removeprefix('ualm: ')}" in report["notes"]
    assert report["measurements"][0]["subject"]["engine"] == "onnxruntime"


def test_a_model_says_it_to_programs(tiny_bundle, broken_gpu, capsys):
    with Model.open(tiny_bundle, threads=1, max_context=64) as model:
        assert model.engine == "onnxruntime"
        assert list(model.passed_over) == ["tensorrt", "tensorrt-rtx", "onnxruntime-cuda"]
        assert "it broke" in model.passed_over["onnxruntime-cuda"]
    with Model.open(tiny_bundle, threads=1, max_context=64, engine="onnxruntime") as model:
        assert (model.engine, dict(model.passed_over)) == ("onnxruntime", {})
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("error", [ImportError("no module"), OSError("libfoo.so: no such file")])
def test_a_library_that_breaks_while_its_engine_is_opened_leaves_the_cpu(tiny_bundle, broken_gpu, error):
    def fail(*arguments: Any) -> Any:
        raise error

    broken_gpu.setitem(selection.ENGINES, "onnxruntime-cuda", selection._Candidate(lambda *given: None, fail))
    chosen = selection.choose(None, Bundle(tiny_bundle, verify="never"), threads=1, max_context=64)
    assert chosen.engine.name == "onnxruntime" and chosen.passed_over["onnxruntime-cuda"] == str(error)


@pytest.mark.parametrize(
    ("initialised", "count", "there"),
    [(0, 1, True), (0, 0, False), (100, 0, False), (34, 0, False), (999, 0, True), (803, 0, True)],
    ids=["one", "none", "no device", "stub", "unknown error", "driver of another version"],
)
def test_whether_there_is_a_gpu_is_asked_of_the_driver(initialised, count, there):
    def tell(where: Any) -> int:
        where._obj.value = count
        return 0

    driver = SimpleNamespace(cuInit=lambda flags: initialised, cuDeviceGetCount=tell)
    assert gpu_is_there(lambda name: driver) == there


def test_without_a_driver_there_is_no_gpu():
    def missing(name: str) -> ctypes.CDLL:
        raise OSError(f"{name}: cannot open shared object file")

    assert not gpu_is_there(missing)


# ---- how it is named ----


@pytest.fixture
def rival(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another engine that can run: the CPU's, under the name tensorrt."""

    def open_(bundle: Bundle, threads: int | None, max_context: int) -> OnnxRuntimeEngine:
        engine = OnnxRuntimeEngine(bundle, threads=threads, max_context=max_context)
        engine.name = "tensorrt"
        return engine

    monkeypatch.setitem(selection.ENGINES, "tensorrt", selection._Candidate(lambda *given: None, open_))


def opened(bundle: Path, engine: str | None = None) -> str:
    with Model.open(bundle, engine=engine, threads=1, max_context=64) as model:
        return model.engine


def test_the_argument_goes_before_the_environment_and_that_before_the_choice(tiny_bundle, rival, monkeypatch):
    assert opened(tiny_bundle) == "onnxruntime"
    monkeypatch.setenv("UALM_ENGINE", "tensorrt")
    assert opened(tiny_bundle) == "tensorrt"
    assert opened(tiny_bundle, "onnxruntime") == "onnxruntime"
    monkeypatch.setenv("UALM_ENGINE", "")
    assert opened(tiny_bundle) == "onnxruntime"


def test_a_wrong_value_names_the_variable(ualm: Command, tiny_bundle, monkeypatch):
    monkeypatch.setenv("UALM_ENGINE", "cuda")
    said = r"engine 'cuda' \(named by UALM_ENGINE in the environment\) is unknown; available: tensorrt, .*onnxruntime$"
    with pytest.raises(EngineError, match=said):
        Model.open(tiny_bundle, threads=1)
    status, out, err = ualm("generate", "rain", "-o", tiny_bundle.parent / "a.wav", "-b", tiny_bundle)
    assert (status, out, err.count("\n")) == (1, "", 1) and "UALM_ENGINE" in err
    assert "UALM_ENGINE" in json.loads(ualm("doctor", tiny_bundle, "--json")[1])["bundle"]["problems"][0]
    with pytest.raises(EngineError) as refused:
        Model.open(tiny_bundle, threads=1, engine="gpu")
    assert "UALM_ENGINE" not in str(refused.value)


def test_one_that_cannot_run_names_the_variable_too(tiny_bundle, no_gpu):
    no_gpu.setenv("UALM_ENGINE", "onnxruntime-cuda")
    with pytest.raises(EngineError, match=r"engine onnxruntime-cuda \(named by UALM_ENGINE in .*\) cannot run here: "):
        Model.open(tiny_bundle, threads=1)


def test_the_bench_looks_for_the_gpu_of_the_engine_that_is_named(tiny_bundle, rival, monkeypatch):
    """The CPU's bandwidth is measured for the CPU's engine, however it was named."""
    device = object()
    monkeypatch.setattr("ualm.bench.meters.gpu.load_kernels", lambda: None)
    monkeypatch.setattr("ualm.bench.meters.gpu.Device", lambda cuda: device)
    bundle = Bundle(tiny_bundle, verify="never")
    assert gpu_of(None, bundle, 64) is device and gpu_of("onnxruntime", bundle, 64) is None
    monkeypatch.setenv("UALM_ENGINE", "onnxruntime")
    assert gpu_of(None, bundle, 64) is None and gpu_of("tensorrt", bundle, 64) is device
    monkeypatch.setenv("UALM_ENGINE", "")
    assert gpu_of(None, bundle, 64) is device
