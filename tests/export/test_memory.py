"""Memory of an export of the true 1.5B shape; slow, and needs 14 GB of disk."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from support.runs import CHECKPOINT
from ualm.bench.random_run.run import SHAPES, write_random_run

GIB = 2**30


@pytest.mark.full
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux to report private memory")
@pytest.mark.parametrize("form", ["states", "shards"])
def test_an_export_holds_no_more_than_the_running_body_and_the_largest_tensors(tmp_path: Path, form: str) -> None:
    shape = SHAPES["1.5b"]
    if shutil.disk_usage(tmp_path).free < 20 * GIB:
        pytest.skip("needs 20 GiB of free disk")
    write_random_run(tmp_path / "run", shape)
    if form == "shards":
        shard(tmp_path / "run" / CHECKPOINT)
    largest = 160_392 * shape.hidden * 4  # the embedding table, as fp32
    command = [sys.executable, "-m", "ualm.export", str(tmp_path / "run"), "-o", str(tmp_path / "bundle")]
    peak = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as export:
        while export.poll() is None:
            peak = max(peak, anonymous_bytes(export.pid))
            time.sleep(0.02)
    assert export.returncode == 0
    # the finished bundle runs to measure its agreement: ONNX Runtime packs a copy of the body and the text head
    parts = json.loads((tmp_path / "bundle" / "manifest.json").read_text())["parts"]
    running = parts["backbone.grouped"]["weight_bytes"] + parts["head.text"]["weight_bytes"]
    assert GIB // 2 < peak <= running + 2 * largest + GIB


def shard(checkpoint: Path) -> None:
    """Replace a file of DeepSpeed by safetensors in shards of 1 GiB or a tensor, and their index."""
    module = torch.load(checkpoint, mmap=True, weights_only=True)["module"]
    parts: list[dict[str, torch.Tensor]] = [{}]
    for name, tensor in module.items():
        if parts[-1] and sum(each.nbytes for each in parts[-1].values()) + tensor.nbytes > GIB:
            parts.append({})
        parts[-1][name] = tensor
    listed = {}
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05}-of-{len(parts):05}.safetensors"
        save_file({name: tensor.clone() for name, tensor in part.items()}, checkpoint.with_name(file))
        listed |= dict.fromkeys(part, file)
    checkpoint.with_name("model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    checkpoint.unlink()


def anonymous_bytes(process: int) -> int:
    """Private memory not backed by a file; mapped checkpoints and weights belong to the page cache."""
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:  # it has just ended
        return 0
    match = re.search(r"^Anonymous:\s+(\d+) kB", text, re.MULTILINE)
    return int(match[1]) * 1024 if match else 0
