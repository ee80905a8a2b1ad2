"""The machine, what each engine says about it, and whether TensorRT-RTX engines load here."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from typing import TYPE_CHECKING

from ...runtime.engines.registry import ENGINES, why_not
from ...runtime.process.extras import install_hint
from .findings import Findings, Skip

if TYPE_CHECKING:
    from .context import Ground

#: Targets to build engines for: this GPU, older architectures, and several at once.
_TARGETS = ("default", "8.0", "8.0,8.6,8.9")
#: Seconds that an attempt may take.
_PATIENCE = 18
#: TensorFloat-32 keeps ten bits of a factor.
_TOLERANCE = 2e-3


def describe(ground: Ground, found: Findings) -> None:
    """The stage; versions are part of the run's facts."""
    with found.checking("GPU") as details:
        gpu = ground.gpu
        if gpu is None:
            raise Skip("a dry run: the kernels are compiled for the CPU")
        clocks = ", ".join(f"{name} {value} MHz" for name, value in gpu.clocks_mhz.items()) or "clocks not readable"
        details.append(
            f"{gpu.name}, compute capability {gpu.compute_capability}, driver {gpu.driver}, CUDA {gpu.cuda}, {clocks}"
        )
    for name in ENGINES:
        with found.checking(f"engine {name}") as details:
            reason = why_not(name, ground.bundle, 1024)
            if reason is not None:
                raise Skip(reason)
            details.append("can run here")


def try_tensorrt_rtx(ground: Ground, found: Findings) -> None:
    """The stage: does an engine built for each of the targets load and run here?"""
    for target in _TARGETS:
        with found.checking(f"an engine built for {target}") as details:
            if importlib.util.find_spec("tensorrt_rtx") is None:
                raise Skip(f"tensorrt_rtx is not installed; install it with: {install_hint('tensorrt-rtx')}")
            if ground.dry_run and target == "default":
                raise Skip("a dry run: there is no GPU to build for")
            details.append(_try(target, build_only=ground.dry_run))


def _try(target: str, *, build_only: bool) -> str:
    command = [sys.executable, "-m", f"{__package__}.rtx_probe", target, *(["build"] if build_only else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"ended after {_PATIENCE} s, its limit") from None
    lines = done.stdout.strip().splitlines()
    words = " ".join(done.stderr.split())[-300:]
    assert done.returncode == 0 and lines, f"the process ended with status {done.returncode}: {words}"
    about = json.loads(lines[-1])
    if "refused" in about:
        raise Skip(about["refused"])
    assert "problem" not in about, f"{about['problem']}, after: {about['reached']}; {words}"
    if build_only:
        return f"TensorRT-RTX {about['library']} built {about['bytes']} bytes; not loaded, not run"
    assert about["worst"] < _TOLERANCE, f"it runs, but is off by {about['worst']:.1e} of the largest value"
    return f"TensorRT-RTX {about['library']}: {about['bytes']} bytes, loads and runs, off by {about['worst']:.1e}"
