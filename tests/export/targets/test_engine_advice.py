"""The advice if a bundle has no engine for the GPU: the builder accepts every command that is named."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from support.bundles import changed_manifest
from support.tensorrt.fake import fake_library
from ualm.bench.planner.devices import DEVICES
from ualm.export.targets.tensorrt import target as tensorrt_target
from ualm.runtime import EngineError
from ualm.runtime.bundle.bundle import Bundle
from ualm.runtime.bundle.compiled import EngineFile
from ualm.runtime.engines.build_commands import RTX_SMS
from ualm.runtime.engines.device.facts import CudaFacts, GpuFacts
from ualm.runtime.engines.onnxruntime import cuda as onnxruntime_cuda
from ualm.runtime.engines.tensorrt.context import CompiledParts
from ualm.runtime.engines.tensorrt.engine import refusal
from ualm.runtime.engines.tensorrt.library import Library, no_engines_for

Command = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).resolve().parents[3]
_KERNELS = re.search(r"foreach\(architecture ([\d ]+)\)", (ROOT / "csrc/cuda/build.cmake").read_text())
assert _KERNELS is not None
#: Every compute capability that the code names: of the kernels, of TensorRT-RTX, and of the planner's devices.
SMS = sorted(
    {int(sm) for sm in _KERNELS[1].split()}
    | set(RTX_SMS)
    | {int(device.sm.replace(".", "")) for device in DEVICES.values()}
)
LIBRARIES = {
    "tensorrt-rtx": fake_library(),
    "tensorrt": Library("tensorrt", fake_library().module),
    "tensorrt of JetPack 6": fake_library("appended"),
}


def facts_of(sm: int) -> CudaFacts:
    return CudaFacts(None, (sm,), None, 13000, 13000, "580.65.06", (GpuFacts("A GPU", sm, 1 << 36, 1 << 36),))


def commands(reason: str) -> list[list[str]]:
    """The ``ualm export`` commands in a sentence, as lists of words."""
    return [
        shlex.split(found)[1:] for found in re.findall(r"ualm export .*? --engine .*? -o (?:'[^']*'|[^\s;,]+)", reason)
    ]


@pytest.fixture
def accepts(ualm: Command, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str], int], None]:
    """Runs a command as on a machine with the GPU, with all argument checks of the builder, but without building."""

    def run(command: list[str], sm: int) -> None:
        built: list[tuple[int, ...]] = []

        def add_engines(bundle: Bundle, library: Library, sms: tuple[int, ...], **options: Any) -> dict[str, Any]:
            built.append(sms)
            return {}

        monkeypatch.setattr(tensorrt_target, "add_engines", add_engines)
        monkeypatch.setattr(tensorrt_target, "local_sm", lambda: sm)
        monkeypatch.setattr(tensorrt_target, "find_library", LIBRARIES.__getitem__)
        status, _, err = ualm(*command)
        assert (status, err) == (0, ""), err
        assert len(built) == 1 and sm in built[0]

    return run


def test_the_capabilities_are_those_that_tensorrt_rtx_takes_and_those_that_it_refuses():
    assert {87, 90, 100, 110} <= set(SMS) - set(RTX_SMS) and set(RTX_SMS) <= set(SMS)


def stored_in(bundle: Path, precision: str) -> Bundle:
    """The bundle as if its body were stored in another format."""
    opened = Bundle(bundle, verify="never")
    precisions = {**opened.manifest.precision, "backbone": precision}
    opened.manifest = dataclasses.replace(opened.manifest, precision=precisions)
    return opened


@pytest.mark.parametrize("precision", ["fp32", "fp8"])
@pytest.mark.parametrize("name", list(LIBRARIES))
@pytest.mark.parametrize("sm", SMS)
def test_what_is_advised_is_not_refused(tiny_bundle, accepts, sm, name, precision):
    bundle = stored_in(tiny_bundle, precision)
    reason = refusal(LIBRARIES[name], facts_of(sm), bundle)
    assert reason is not None and "\n" not in reason
    if precision == "fp8" and sm < 89:
        assert reason.endswith(f"fp8 body, which sm{sm} cannot multiply: export the run with --precision int8")
        assert commands(reason) == []
        return
    (command,) = commands(reason)
    engine = "tensorrt-rtx" if name == "tensorrt-rtx" and sm in RTX_SMS else "tensorrt"
    assert command[command.index("--engine") + 1] == engine
    accepts(command, sm)


@pytest.mark.parametrize("sm", SMS)
def test_what_is_advised_for_fp8_under_onnxruntime_is_not_refused(tiny_bundle, accepts, monkeypatch, sm):
    bundle = stored_in(tiny_bundle, "fp8")
    monkeypatch.setattr(onnxruntime_cuda, "cuda_facts", lambda: facts_of(sm))
    monkeypatch.setattr(onnxruntime_cuda.ort, "get_available_providers", lambda: [onnxruntime_cuda.PROVIDER])
    reason = onnxruntime_cuda.why_not(bundle, 64)
    assert reason is not None and "--precision int8" in reason
    assert len(commands(reason)) == (sm >= 89)
    for command in commands(reason):
        accepts(command, sm)


@pytest.mark.parametrize("sm", SMS)
def test_without_a_bundle_it_is_told_which_gpus_a_library_serves(sm):
    reason = refusal(LIBRARIES["tensorrt-rtx"], facts_of(sm), None)
    assert (reason is None) == (sm in RTX_SMS)
    if reason is not None:
        assert (
            reason == f"TensorRT-RTX 99.1 builds for sm75, sm80, sm86, sm89, sm120, sm121, and the GPU here is sm{sm}"
        )
    assert refusal(LIBRARIES["tensorrt"], facts_of(sm), None) is None


def test_a_library_says_itself_which_gpus_it_builds_for():
    members = {"NONE": 0, "CURRENT": 1, "SM86": 2, "SM130": 3}
    module = SimpleNamespace(__version__="2.0", ComputeCapability=SimpleNamespace(__members__=members))
    assert Library("tensorrt-rtx", module).builds_for == (86, 130)
    assert no_engines_for(Library("tensorrt-rtx", module), 130) is None
    assert no_engines_for(Library("tensorrt-rtx", module), 89) is not None
    assert Library("tensorrt", module).builds_for == ()


def engine_of(sms: tuple[int, ...]) -> dict[str, Any]:
    return EngineFile("backbone", "tensorrt-rtx", "codec.onnx", "98.0", sms, "0", "0", 64, (), "in_place").to_json()


def test_gpus_that_the_library_has_given_up_are_not_named_again(tiny_bundle, tmp_path, accepts):
    """A bundle built by another version, also for a GPU that this version does not know."""
    folder = changed_manifest(
        tiny_bundle, tmp_path / "bundle", lambda document: document.update(engines=[engine_of((70, 86))])
    )
    reason = refusal(LIBRARIES["tensorrt-rtx"], facts_of(89), Bundle(folder, verify="never"))
    assert reason is not None
    (command,) = commands(reason)
    assert command[command.index("--target") + 1] == "sm86,sm89"
    accepts(command, 89)


def test_an_engine_that_does_not_load_is_built_again_for_its_gpus(tiny_bundle, tmp_path, accepts):
    folder = changed_manifest(
        tiny_bundle, tmp_path / "my bundle", lambda document: document.update(engines=[engine_of((86, 89))])
    )
    (entry,) = Bundle(folder, verify="never").manifest.engines
    with pytest.raises(EngineError, match="build it again") as refused:
        CompiledParts(LIBRARIES["tensorrt-rtx"]).load(folder / entry.file, entry)
    (command,) = commands(str(refused.value))
    assert command[command.index("--target") + 1] == "sm86,sm89"
    accepts(command, 86)
