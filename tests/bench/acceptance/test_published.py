"""The stage of the published algorithm in torch: each of its checks can fail, and what is missing is no fault."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch

from ualm.bench.acceptance import published
from ualm.bench.acceptance.context import Ground
from ualm.bench.acceptance.findings import Findings
from ualm.bench.peers.random_reference import RandomReference
from ualm.bench.scenarios.published import TorchDecode


def checks(ground: Ground) -> list[tuple[str, str]]:
    published.measure_published(ground, found := Findings("published"))
    return [(check.verdict, check.detail) for check in found.checks]


def test_a_frame_is_measured_against_the_bandwidth_beside_it(ground: Ground) -> None:
    published.measure_published(ground, found := Findings("published"))
    assert [check.verdict for check in found.checks] == ["pass"] * 3
    (frame,) = found.measurements
    assert (frame.scenario, frame.figure, frame.unit, frame.settings["context"]) == ("decode", "frame", "ms", 64)
    assert frame.traffic is not None and len(frame.traffic.pairs) == 2 and frame.summary.n == 6
    # 4 layers of 128: 2 * 128 * 128 + 2 * 64 * 128 + 3 * 384 * 128 weights, biases and norms; float32
    assert frame.traffic.body_bytes == 4 * (4 * (196608 + 256 + 256) + 128)
    assert frame.traffic.head_bytes == 4 * 128 * (256 + 320 + 8 * 1025)
    assert 64 < frame.traffic.kv_bytes / (2 * 2 * 4 * 64 * 4) < 72


@pytest.mark.parametrize("error", [ImportError("no torch"), OSError("libcudart.so.13: cannot open")])
def test_without_torch_it_is_skipped(ground: Ground, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
            if name == "ualm.bench.peers.random_reference":
                raise error

    monkeypatch.delitem(sys.modules, "ualm.bench.peers.random_reference")
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    ((verdict, said),) = checks(ground)
    assert verdict == "skipped" and str(error) in said and "LD_LIBRARY_PATH" in said


def test_a_torch_without_cuda_is_skipped(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ground, "torch_device", "cuda")
    ((verdict, said),) = checks(ground)
    assert verdict == "skipped" and said.startswith(f"torch {torch.__version__} ")
    assert "was built without CUDA" in said or "finds no GPU" in said


def test_attention_that_goes_wrong_is_told(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values that change while they are held give other logits row by row than at once."""
    through = RandomReference.through

    def shifted(self: RandomReference, embeddings: Any, cache: Any) -> Any:
        hidden = through(self, embeddings, cache)
        keys, values = cache.layers[1]
        cache.layers[1] = keys, values * 1.1
        return hidden

    monkeypatch.setattr(RandomReference, "through", shifted)
    found = checks(ground)
    assert [verdict for verdict, _ in found] == ["pass", "fail", "pass"]
    assert "is what float32 explains" in found[1][1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_told(ground: Ground, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = RandomReference.logits
    monkeypatch.setattr(RandomReference, "logits", lambda self, hidden: logits(self, hidden) * value)
    assert [verdict for verdict, _ in checks(ground)] == ["pass", "fail", "fail"]


@pytest.mark.parametrize(("stream", "id_"), [(0, 4), (3, 300), (7, 10**6)])
def test_a_row_of_other_ids_is_told(ground: Ground, stream: int, id_: int, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = RandomReference.frame

    def other(self: RandomReference, row: np.ndarray, *given: Any) -> np.ndarray:
        drawn = frame(self, np.minimum(row, 500), *given)
        drawn[stream] = id_
        return drawn

    monkeypatch.setattr(RandomReference, "frame", other)
    verdict, said = checks(ground)[2]
    assert verdict == "fail" and "which is no row of sound" in said


@pytest.mark.parametrize("time", [0.0, -1.0, float("nan")])
def test_a_frame_that_took_no_time_is_told(ground: Ground, time: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TorchDecode, "block", lambda self, count: {"frame": [time] * count})
    assert checks(ground)[2] == ("fail", f"{time:g} ms is no time")
