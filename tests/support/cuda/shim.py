"""The CUDA module compiled for the CPU: the same kernels, launches and bindings over a stand-in for CUDA.

Memory is the host's, so a numpy array's address is a device address; a stream runs what it is given at once.
``tests/csrc/cuda/shim/`` says what the stand-in does and which environment variables change the machine that it
pretends.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import os
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pybind11
import pytest

ROOT = Path(__file__).parents[3]
SOURCES, SHIM = ROOT / "csrc", ROOT / "tests" / "csrc" / "cuda" / "shim"
CACHE = ROOT / "build/cuda_shim"

KERNELS = sorted((SOURCES / "cuda").glob("*.cu"))
BINDINGS = [SOURCES / "python" / name for name in ("cuda_launches.cpp", "cuda_runtime.cpp")]
STAND_IN = [SHIM / name for name in ("blocks.cpp", "runtime.cpp")]

_COMMON = ["-std=c++17", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-U_FORTIFY_SOURCE"]
_INCLUDES = [f"-I{SHIM}", f"-I{SOURCES}"]

compiler = os.environ.get("CXX", "g++")


def compile_all(sources: list[Path], flags: list[str], link: list[str], name: str) -> Path:
    """Compile and link ``sources``; cached in ``build/`` under a hash of all files and flags."""
    inputs = sorted({*SOURCES.rglob("*.h"), *SOURCES.rglob("*.cu"), *SOURCES.rglob("*.cpp"), *SHIM.iterdir()})
    digest = hashlib.sha256(repr((compiler, flags, link, name, sys.version)).encode())
    for path in inputs:
        digest.update(path.read_bytes())
    folder = CACHE / digest.hexdigest()[:16]
    target = folder / name
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    tag = os.getpid()  # two test processes may build at once: each in its own files, then renamed

    def compile_one(source: Path) -> Path:
        out = folder / f"{source.stem}.{tag}.o"
        optimise = "-O0" if source in BINDINGS else "-O2"
        _run([compiler, *_COMMON, optimise, *flags, *_INCLUDES, "-x", "c++", "-c", str(source), "-o", str(out)])
        return out

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources))
    made = folder / f"{name}.{tag}"
    _run([compiler, *flags, *map(str, objects), "-o", str(made), *link])
    for each in objects:
        each.unlink()
    made.rename(target)
    return target


def load_shim() -> ModuleType:
    """The module, under a separate name: pybind11 gives a process one module per name, whatever its file."""
    flags = ["-fPIC", "-fvisibility=hidden", '-DUALM_CUDA_ARCHITECTURES="host shim"']
    flags += [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    name = "_cuda" + importlib.machinery.EXTENSION_SUFFIXES[0]
    path = compile_all([*KERNELS, *BINDINGS, *STAND_IN], flags, ["-shared"], name)
    spec = importlib.util.spec_from_file_location("ualm_cuda_shim._cuda", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.fail(f"{' '.join(command)}\n{done.stderr}", pytrace=False)
