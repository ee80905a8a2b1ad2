"""The build with and without CUDA: what the settings select, and the message if they cannot be met."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
import pytest

from support.cuda.resources import ARCHITECTURES, nvcc

ROOT = Path(__file__).parents[3]

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed (pip brings its own for a build)"),
]
needs_nvcc = pytest.mark.skipif(nvcc() is None, reason="nvcc is not installed")


def configure(folder: Path, *options: str, **environment: str) -> tuple[int, str]:
    """Exit status and cmake's output; nothing is compiled beyond its checks of the compilers."""
    command = ["cmake", "-S", ROOT, "-B", folder, f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    command += [f"-DPython_EXECUTABLE={sys.executable}", *(f"-D{option}" for option in options)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("UALM_")}
    done = subprocess.run(command, capture_output=True, text=True, env=clean | environment)
    return done.returncode, re.sub(r"\s+", " ", done.stdout + done.stderr)


def targets(folder: Path) -> str:
    done = subprocess.run(["cmake", "--build", folder, "--target", "help"], capture_output=True, text=True, check=True)
    return done.stdout


def test_off_leaves_the_module_out_and_needs_no_compiler(tmp_path):
    status, said = configure(tmp_path, UALM_CUDA="OFF")
    assert status == 0, said
    assert "_native" in targets(tmp_path) and "_cuda" not in targets(tmp_path)


def test_a_compiler_that_does_not_run_is_passed_over_unless_it_was_asked_for(tmp_path):
    status, said = configure(tmp_path / "auto", "CMAKE_CUDA_COMPILER=/bin/false")
    assert status == 0 and "/bin/false does not run, so no CUDA module" in said
    assert "_cuda" not in targets(tmp_path / "auto")
    status, said = configure(tmp_path / "on", "CMAKE_CUDA_COMPILER=/bin/false", "UALM_CUDA=ON")
    assert status != 0 and "UALM_CUDA = ON, but /bin/false does not run" in said


def test_a_setting_that_means_nothing_is_refused(tmp_path):
    status, said = configure(tmp_path, "UALM_CUDA=perhaps")
    assert status != 0 and "UALM_CUDA = perhaps: must be AUTO, ON or OFF" in said


@needs_nvcc
@pytest.mark.parametrize(
    ("environment", "built"),
    [
        ({}, [*(f"{each}-real" for each in ARCHITECTURES), f"{ARCHITECTURES[-1]}-virtual"]),
        ({"UALM_CUDA_ARCHITECTURES": "90-real,90-virtual"}, ["90-real", "90-virtual"]),
    ],
)
def test_the_architectures_are_all_eight_or_those_named(tmp_path, environment, built):
    status, said = configure(tmp_path, "CMAKE_EXPORT_COMPILE_COMMANDS=ON", **environment)
    assert status == 0, said
    assert "_cuda" in targets(tmp_path)
    commands = (tmp_path / "compile_commands.json").read_text()
    assert " ".join(built) in commands  # what the modules report about themselves
    machine_code = {each.removesuffix("-real") for each in built if each.endswith("-real")}
    assert set(re.findall(r"code=\[?(?:compute_\d+,)?sm_(\d+)", commands)) == machine_code
