"""No driver, an old one, an unsupported GPU, too little memory, no provider: one line each, and the CPU works."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import ualm.runtime
from support.cuda.device import device_engine
from support.cuda.shim import load_shim
from support.tensorrt.fake import fake_library
from ualm.bench.harness.subjects import BundleSubject, Request
from ualm.runtime import EngineError, InputError, Model
from ualm.runtime.bundle.bundle import Bundle
from ualm.runtime.engines import registry as selection
from ualm.runtime.engines.device.device import Device, free_bytes
from ualm.runtime.engines.device.facts import (
    CudaFacts,
    GpuFacts,
    MemoryNeed,
    architectures,
    cuda_facts,
    driver_version,
    gpu_problem,
    load_kernels,
    memory_need,
    memory_problem,
)
from ualm.runtime.engines.onnxruntime import cuda as onnxruntime_cuda
from ualm.runtime.engines.onnxruntime.cuda import OnnxRuntimeCudaEngine
from ualm.runtime.engines.tensorrt import engine as tensorrt

GIB = 1 << 30
GPU = GpuFacts("A GPU", 89, 24 * GIB, 20 * GIB)
FACTS = CudaFacts(None, (80, 86, 89, 90), None, 13000, 13000, "580.65.06", (GPU,))


@pytest.fixture
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle(tiny_bundle, verify="never")


@pytest.fixture
def shim(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The kernels' host shim in place of the CUDA module; environment variables set the machine that it simulates."""
    cuda = load_shim()
    monkeypatch.setitem(sys.modules, "ualm.runtime._cuda", cuda)
    monkeypatch.setattr(ualm.runtime, "_cuda", cuda, raising=False)
    monkeypatch.setattr(cuda, "ARCHITECTURES", "80-real 90-real", raising=False)
    return monkeypatch


def test_a_gpu_that_can_serve_has_no_problem():
    assert gpu_problem(FACTS) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"module_problem": "no kernels"}, "no kernels"),
        ({"driver_cuda": None}, r"no NVIDIA driver was found; install one"),
        (
            {"driver_cuda": 12080, "driver": "570.86.10"},
            r"driver 570.86.10 supports CUDA 12.8, this ualm was built with CUDA 13.0, which needs driver 580.65.06 or",
        ),
        ({"driver_cuda": 12080, "driver": None}, r"the NVIDIA driver supports CUDA 12.8"),
        ({"gpus": ()}, "it shows no GPU; see whether nvidia-smi lists a GPU"),
        ({"gpus": (), "trouble": "it is asleep"}, "the NVIDIA driver is there, but it is asleep"),
        (
            {"gpus": (replace(GPU, sm=75),)},
            r"capability 7.5, and this ualm holds kernels for 8.0, 8.6, 8.9, 9.0; build",
        ),
        ({"gpus": (replace(GPU, sm=120),)}, r"UALM_CUDA_ARCHITECTURES=120"),
    ],
)
def test_what_is_wrong_is_one_line_with_the_mend(changes, said):
    problem = gpu_problem(replace(FACTS, **changes))
    assert problem is not None and "\n" not in problem

    assert re.search(said, problem)


@pytest.mark.parametrize(
    ("built", "portable", "sm", "runs"),
    [
        ((80,), None, 80, True),
        ((80,), None, 86, True),  # machine code runs on later minor versions
        ((86,), None, 80, False),
        ((80,), None, 90, False),
        ((80,), 90, 90, True),  # the driver compiles portable code
        ((80,), 90, 121, True),
        ((), 120, 90, False),
    ],
)
def test_which_gpus_a_build_serves(built, portable, sm, runs):
    facts = replace(FACTS, built_for=built, portable_from=portable, gpus=(replace(GPU, sm=sm),))
    assert (gpu_problem(facts) is None) == runs


def test_architectures_are_read_as_cmake_names_them():
    assert architectures("80-real 90-real 120-virtual") == ((80, 90), 120)
    assert architectures("89") == ((89,), 89)
    assert architectures("") == ((), None)


def test_the_drivers_version_is_the_kernels(tmp_path):
    place = tmp_path / "version"
    assert driver_version(place) is None
    place.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\nGCC 13.2\n")
    assert driver_version(place) == "580.65.06"


def test_without_kernels_it_says_how_to_get_them():
    def missing(name):
        raise ModuleNotFoundError(name)

    def broken(name):
        raise ImportError("libfoo.so: no such file")

    with pytest.raises(EngineError, match=r"built without CUDA kernels.*nvcc"):
        load_kernels(missing)
    with pytest.raises(EngineError, match="libfoo"):
        load_kernels(broken)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"UALM_SHIM_DRIVER": "0"}, "no NVIDIA driver was found"),
        ({"UALM_SHIM_DRIVER": "12020"}, "supports CUDA 12.2, this ualm was built with CUDA 13.0"),
        ({"UALM_SHIM_DEVICES": "0"}, "finds no device"),
        ({"UALM_SHIM_CAPABILITY": "7.5"}, "compute capability 7.5, and this ualm holds kernels for 8.0, 9.0"),
        ({}, "has no CUDA provider; replace it: pip uninstall onnxruntime"),
    ],
)
def test_what_the_machine_lacks_is_told_and_the_cpu_engine_works(shim, bundle, settings, said):
    for name, value in settings.items():
        shim.setenv(name, value)
    reason = selection.why_not("onnxruntime-cuda")
    assert reason is not None and said in reason and "\n" not in reason
    with pytest.raises(EngineError, match="engine onnxruntime-cuda cannot run here: "):
        selection.choose("onnxruntime-cuda", bundle, threads=1, max_context=64)
    chosen = selection.choose(None, bundle, threads=1, max_context=64)
    assert chosen.engine.name == "onnxruntime" and said in chosen.passed_over["onnxruntime-cuda"]
    assert chosen.engine.decode_latents(chosen.engine.codes_to_latents([[1] * 8] * 12)).any()


def test_facts_are_what_cuda_says(shim):
    facts = cuda_facts()
    assert (facts.module_problem, facts.built_for, facts.driver_cuda) == (None, (80, 90), 13000)
    assert [gpu.sm for gpu in facts.gpus] == [90] and facts.gpus[0].total == 8 * GIB


def test_a_gpu_with_the_hosts_memory_has_what_the_system_would_give_back(shim, tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal:  9 kB\nMemFree:  1 kB\nMemAvailable:    6291456 kB\n")
    about = {"free_bytes": GIB, "integrated": True}
    assert free_bytes(about, tmp_path / "meminfo") == 6 * GIB
    assert free_bytes(about | {"free_bytes": 7 * GIB}, tmp_path / "meminfo") == 7 * GIB
    assert free_bytes(about | {"integrated": False}, tmp_path / "meminfo") == GIB
    assert free_bytes(about, tmp_path / "none") == GIB
    shim.setenv("UALM_SHIM_INTEGRATED", "1")
    assert load_kernels().device_properties(0)["integrated"] is True


def test_only_the_gpu_that_is_used_is_asked(shim):
    cuda, asked = load_kernels(), []
    real = cuda.device_properties
    shim.setattr(cuda, "device_properties", lambda index: (asked.append(index), real(index))[1])
    shim.setenv("UALM_SHIM_DEVICES", "3")
    assert len(cuda_facts().gpus) == 1 and asked == [0]


def test_memory_is_counted_from_the_bundle(bundle):
    need = memory_need(bundle, 1000, number="float32", prefill_rows=256)
    model = bundle.manifest.model
    cache = 2 * 2 * model.layers * model.kv_heads * model.head_dim * 4
    assert need.weights == sum(part.weight_bytes for part in bundle.manifest.parts.values())
    assert need.tables >= bundle.table("embedding").nbytes and need.row > cache
    twice = memory_need(bundle, 2000, number="float32", prefill_rows=256)
    assert twice.total - need.total == 1000 * need.row and twice.fixed == need.fixed
    assert memory_need(bundle, 1000, number="float16", prefill_rows=256).row < need.row


NEED = MemoryNeed(weights=3 * GIB, tables=GIB, workspace=GIB, row=GIB // 4096, rows=16384)


@pytest.mark.parametrize(
    ("free", "precision", "said"),
    [
        (9 * GIB, "bf16", None),
        (8 * GIB, "bf16", "needs 9.0 GiB .* max_context = 16384 rows .*; open it with a max_context of 12288 or less"),
        (5 * GIB + 100 * (GIB // 4096), "bf16", "export it with --precision int8, which needs about 3.8 GiB"),
        (GIB * 16 // 5, "bf16", "export it with --precision int4"),
        (3 * GIB, "bf16", "no precision of this model fits"),
        (4 * GIB, "int4", "no precision of this model fits"),
        (4 * GIB, "fp8", "export it with --precision int4, which needs about 3.9 GiB"),
        (GIB * 7 // 2, "fp8", "no precision of this model fits"),
    ],
)
def test_what_does_not_fit_says_what_would(free, precision, said):
    need = NEED if said is None or "max_context of" in said else replace(NEED, rows=1024)
    problem = memory_problem(need, replace(GPU, free=free), {"backbone": precision})
    if said is None:
        assert problem is None
    else:
        assert problem is not None and re.search(said, problem), problem


def test_a_context_that_does_not_fit_passes_the_gpu_over(shim, bundle):
    shim.setattr(onnxruntime_cuda.ort, "get_available_providers", lambda: [onnxruntime_cuda.PROVIDER])
    shim.setenv("UALM_SHIM_MEMORY", str(700 << 20))
    assert selection.why_not("onnxruntime-cuda") is None
    reason = selection.why_not("onnxruntime-cuda", bundle, 131072)
    assert reason is not None and "open it with a max_context of" in reason
    with Model.open(bundle.folder, threads=1, max_context=131072, verify="never") as model:
        assert model.resources.engine.name == "onnxruntime"


def test_a_provider_that_does_not_load_is_told_from_one_that_is_missing(shim, bundle):
    with pytest.warns(UserWarning), pytest.raises(EngineError, match="could not load its CUDA provider"):
        OnnxRuntimeCudaEngine(bundle, Device(load_kernels()), max_context=64)


def test_nodes_without_a_kernel_are_no_silent_copies(shim, bundle):
    """The options given to ONNX Runtime, and the message if a node of the frame loop would fall back to the CPU."""
    asked: dict[str, tuple[list, str]] = {}

    def load(path, options, providers, enable_fallback):
        entry = options.get_session_config_entry("session.disable_cpu_ep_fallback") if len(providers) == 1 else "0"
        asked[Path(path).stem] = providers, entry
        assert enable_fallback == 0
        if len(providers) == 1:
            raise RuntimeError("graph nodes are assigned to the default CPU EP, but fallback to CPU EP is disabled")
        return SimpleNamespace(get_providers=lambda: [onnxruntime_cuda.PROVIDER, "CPUExecutionProvider"])

    shim.setattr(onnxruntime_cuda.ort, "InferenceSession", load)
    device = Device(load_kernels())
    with pytest.raises(EngineError, match=r"backbone.onnx: .*no CUDA kernel for some of its nodes.*newer onnxruntime-"):
        OnnxRuntimeCudaEngine(bundle, device, max_context=64)
    providers, entry = asked["backbone"]
    ((name, options),) = providers
    assert (name, entry, options["user_compute_stream"]) == (onnxruntime_cuda.PROVIDER, "1", str(device.stream.handle))
    assert asked["head_modality"][0][1] == "CPUExecutionProvider"


def test_what_is_heard_and_spoken_has_a_stream_of_its_own(bundle):
    engine = device_engine(bundle)
    engine.device.kind = "cuda"
    roles = ("backbone", "head.audio", "encoder", "codec", "codec.stream")
    streams = [engine.providers(role)[0][1]["user_compute_stream"] for role in roles]
    loop, side = str(engine.device.stream.handle), str(engine.device.codec_stream.handle)
    assert streams == [loop, loop, side, side, side] and loop != side


def test_memory_that_ends_on_the_way_is_an_error_that_counts(bundle, monkeypatch):
    engine = device_engine(bundle, 4096)
    first = engine.open_sequence()
    need = engine.device_model.shape.nbytes
    free, total = engine.device.memory()
    monkeypatch.setenv("UALM_SHIM_MEMORY", str(total - free + need // 2))
    with pytest.raises(EngineError, match=r"each conversation takes .* GiB of cache \(4096 rows of \d+ bytes\); close"):
        engine.open_sequence()
    del first
    assert engine.open_sequence().length == 0
    with pytest.raises(EngineError, match="not enough"):
        device_engine(bundle, 65536)


def test_engines_are_tried_in_order_and_unknown_ones_are_refused(bundle, shim):
    assert list(selection.ENGINES) == ["tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime"]
    with pytest.raises(EngineError, match="engine 'cuda' is unknown; available: tensorrt, tensorrt-rtx, onnxruntime-"):
        selection.choose("cuda", bundle, threads=1, max_context=64)
    opened: list[str] = []

    def refuse(*arguments):
        opened.append("refused")
        raise EngineError("its engine is stale")

    candidate = selection._Candidate(lambda bundle, rows: None, refuse)
    shim.setitem(selection.ENGINES, "tensorrt-rtx", candidate)
    chosen = selection.choose(None, bundle, threads=1, max_context=64)
    assert (opened, chosen.engine.name) == (["refused"], "onnxruntime")
    assert chosen.passed_over["tensorrt-rtx"] == "its engine is stale"
    assert list(chosen.passed_over) == ["tensorrt", "tensorrt-rtx", "onnxruntime-cuda"]
    with pytest.raises(EngineError, match="stale"):
        selection.choose("tensorrt-rtx", bundle, threads=1, max_context=64)


@pytest.mark.parametrize("named", ["tensorrt", "tensorrt-rtx", None])
def test_a_number_of_threads_is_refused_where_it_would_be_ignored(bundle, shim, ualm, named):
    """Given anywhere: in the API, on the command line, and in the bench; also for an engine that was not named."""
    chosen = named or "tensorrt-rtx"
    candidate = replace(selection.ENGINES[chosen], why_not=lambda bundle, rows: None)
    shim.setitem(selection.ENGINES, chosen, replace(candidate, open=lambda *given: pytest.fail("opened")))
    said = f"threads = 1: the engine {chosen} computes on the GPU alone.*leave them out, or choose .* onnxruntime"
    with pytest.raises(InputError, match=said):
        Model.open(bundle.folder, named, threads=1, max_context=64)
    with pytest.raises(InputError, match=said):
        BundleSubject(bundle.folder, Request(bundle.folder, named, threads=1), "a").engine(64)
    engine = ["--engine", named] if named else []
    commands = [
        ["generate", "rain", "-o", "never.wav", "-b", bundle.folder],
        ["ask", "never.wav", "what?", "-b", bundle.folder],
        ["reason", "rain", "-o", "never.wav", "-b", bundle.folder],
        ["chat", "-b", bundle.folder],
        ["bench", "decode", bundle.folder],
    ]
    for command in commands:
        status, _, told = ualm(*command, *engine, "--threads", 1)
        assert status != 0 and re.search(said, " ".join(told.split())), (command, told)


def test_engines_that_compute_on_the_cpu_as_well_take_a_number_of_threads():
    takes = {name: candidate.takes_threads for name, candidate in selection.ENGINES.items()}
    assert takes == {"tensorrt": False, "tensorrt-rtx": False, "onnxruntime-cuda": True, "onnxruntime": True}


def test_without_a_gpu_no_library_of_one_is_asked(bundle, shim):
    shim.setenv("UALM_SHIM_DRIVER", "0")
    for name in selection.ENGINES:
        if name != selection.CPU:
            shim.setitem(selection.ENGINES, name, selection._Candidate(lambda *given: pytest.fail("asked"), None))
    chosen = selection.choose(None, bundle, threads=1, max_context=64)
    assert chosen.engine.name == "onnxruntime" and len(set(chosen.passed_over.values())) == 1


def test_a_driver_that_is_broken_leaves_the_cpu(bundle, shim):
    cuda = load_kernels()

    def fail():
        raise cuda.CudaError("CUDA cannot ask for a version: unknown error")

    shim.setattr(cuda, "driver_version", fail)
    chosen = selection.choose(None, bundle, threads=1, max_context=64)
    assert chosen.engine.name == "onnxruntime" and "CUDA does not start here" in chosen.passed_over["onnxruntime-cuda"]


@pytest.mark.parametrize(
    ("kind", "said"), [("CudaError", "the GPU failed: out of it"), ("MemoryError", r"not enough memory \(out of it\)")]
)
def test_a_gpu_that_fails_while_a_bundle_is_opened_leaves_the_cpu(bundle, shim, kind, said):
    cuda = load_kernels()

    def fail():
        raise (MemoryError if kind == "MemoryError" else cuda.CudaError)("out of it")

    shim.setattr(cuda, "create_stream", fail)
    shim.setattr(onnxruntime_cuda.ort, "get_available_providers", lambda: [onnxruntime_cuda.PROVIDER])
    shim.setattr(tensorrt, "load_library", lambda name: fake_library())
    chosen = selection.choose(None, bundle, threads=1, max_context=64)
    assert chosen.engine.name == "onnxruntime"
    assert re.search(said, chosen.passed_over["onnxruntime-cuda"])
    with pytest.raises(EngineError, match=said):
        selection.choose("onnxruntime-cuda", bundle, threads=1, max_context=64)
    with pytest.raises(EngineError, match=said):
        tensorrt.open_engine("tensorrt-rtx", bundle, max_context=64)


def test_where_no_engine_runs_all_reasons_are_told(bundle, shim):
    for name in selection.ENGINES:
        shim.setitem(selection.ENGINES, name, selection._Candidate(lambda bundle, rows, name=name: f"no {name}", None))
    with pytest.raises(EngineError, match=r"no engine can run here: tensorrt: no tensorrt; .*onnxruntime: no onnxr"):
        selection.choose(None, bundle, threads=1, max_context=64)


def test_a_bad_option_stays_the_error_that_it_was(tiny_bundle):
    with pytest.raises(InputError, match="max_context"):
        Model.open(tiny_bundle, engine="onnxruntime-cuda", max_context=0)
