"""Builds one part and reports what it took: the process that ``tensorrt_build`` watches.

Arguments: folder of a bundle, or of only a body; part; targets (sm89,sm120); rows of the cache, and how it is written.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from ...export.targets.tensorrt.build import build, find_library
from ...export.targets.tensorrt.parts import plan_body, plan_parts
from ...runtime.bundle.bundle import MANIFEST, Bundle
from ...runtime.bundle.compiled import CacheKind
from ...runtime.errors import UalmError


def main(folder: str, part: str, targets: str, max_context: str, cache: CacheKind) -> None:
    """Print one JSON object: total seconds and those of the build, bytes of the engine and of the stored weights."""
    started = time.perf_counter()
    place, capacity = Path(folder), int(max_context)
    if (place / MANIFEST).is_file():
        (plan,) = plan_parts(Bundle(place, verify="never"), capacity, cache=cache, roles=(part,))
    else:
        plan = plan_body(place / f"{part}.onnx", capacity, cache)
    sms = [int(target.removeprefix("sm")) for target in targets.split(",")]
    report = build(find_library("tensorrt-rtx"), plan.path, plan.model, plan.profiles, sms=sms)
    stored = sum(
        int(entry.value)
        for tensor in plan.model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "length"
    )
    figures = {"build": report.seconds, "engine": report.size_bytes, "stored": stored}
    print(json.dumps(figures | {"process": time.perf_counter() - started}))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])  # type: ignore[arg-type]
    except UalmError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
