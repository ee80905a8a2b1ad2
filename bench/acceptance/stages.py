"""The stages in the order in which they run: which call each belongs to, and how long it may take.

The two calls are for a machine that is rented for a quarter of an hour: a new one must start, and one call of three
minutes may be needed again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .context import Ground
    from .findings import Findings

#: Minutes of each call; its stages' limits stay within them.
CALLS = {1: 4.0, 2: 5.0}


@dataclass(frozen=True)
class Stage:
    """``call``: the call that it belongs to; None: it runs only if it is named. ``limit``: seconds after which its
    process is ended."""

    does: str
    run: Callable[[Ground, Findings], None]
    limit: float
    call: int | None = None


def _environment(ground: Ground, found: Findings) -> None:
    from .machine import describe

    describe(ground, found)


def _limits(ground: Ground, found: Findings) -> None:
    from .launch_limits import measure_limits

    measure_limits(ground, found)


def _kernels(ground: Ground, found: Findings) -> None:
    from .kernels.stage import check_kernels

    check_kernels(ground, found)


def _sanitized(ground: Ground, found: Findings, tool: str) -> None:
    from .kernels.sanitizer import check_under

    check_under(tool, ground, found)


def _loop(ground: Ground, found: Findings) -> None:
    from .loops.loop import check_loop

    check_loop(ground, found)


def _tensorrt_rtx(ground: Ground, found: Findings) -> None:
    from .machine import try_tensorrt_rtx

    try_tensorrt_rtx(ground, found)


def _engines(ground: Ground, found: Findings) -> None:
    from .loops.engines import check_engines

    check_engines(ground, found)


def _published(ground: Ground, found: Findings) -> None:
    from .published import measure_published

    measure_published(ground, found)


def _make(ground: Ground, found: Findings, shape: str) -> None:
    from .loops.shapes import make_shape

    make_shape(ground, found, shape)


def _shape(ground: Ground, found: Findings, shape: str) -> None:
    from .loops.shapes import check_shape

    check_shape(ground, found, shape)


#: Every stage by its name. What needs only ualm and the driver comes first.
STAGES: dict[str, Stage] = {
    "environment": Stage("the GPU, and which engines can run", _environment, 20, 1),
    "limits": Stage("copy and read bandwidth, launches and graphs", _limits, 20, 1),
    "kernels": Stage("kernels against what the CPU drew", _kernels, 80, 1),
    "memcheck": Stage("kernels under compute-sanitizer: memory", partial(_sanitized, tool="memcheck"), 60, 1),
    "racecheck": Stage("kernels under compute-sanitizer: races", partial(_sanitized, tool="racecheck"), 60, 1),
    "loop": Stage("golden vector, frame and first sound in each engine", _loop, 70, 2),
    "tensorrt-rtx": Stage("whether an engine of TensorRT-RTX loads", _tensorrt_rtx, 60, 2),
    "engines": Stage("the same as loop in engines compiled here", _engines, 70, 2),
    "published": Stage("the published algorithm in torch, 1.5B shape", _published, 100, 2),
}
for _name in ("1.5b", "7b"):
    STAGES[f"make-{_name}"] = Stage(f"bundles of the {_name} shape", partial(_make, shape=_name), 3600)
    STAGES[f"loop-{_name}"] = Stage(f"loop and torch, {_name} shape", partial(_shape, shape=_name), 1800)


def of_call(call: int | None) -> list[str]:
    """Names of the stages of a call; None: of both."""
    return [name for name, stage in STAGES.items() if stage.call is not None and call in (None, stage.call)]
