"""Tolerances of the golden vector, against the errors of every arithmetic and against those of damage."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ualm.bench.evidence.arithmetic import Body, measure, measure_damage, rounded_rows, sized, with_gain
from ualm.bench.random_run.run import write_random_run
from ualm.runtime.engines.arithmetic import Arithmetic, logits_tolerance

ROOT = Path(__file__).parents[3]
EVIDENCE = json.loads((ROOT / "docs/evidence/golden_arithmetic.json").read_text())["results"]
KINDS: list[Arithmetic] = ["float16", "bfloat16", "int8", "float8"]


def worst(each: Mapping[str, Any], arithmetic: Arithmetic) -> float:
    """The largest error of the three heads, as a share of its tolerance."""
    heads: Arithmetic = "int8" if arithmetic == "int8" else "float32"
    return max(
        error / logits_tolerance(arithmetic, heads, each["layers"], each["hidden"], few=name == "modality")
        for name, error in each["errors"].items()
    )


def of_kind(arithmetic: Arithmetic) -> list[dict[str, Any]]:
    return [each for each in EVIDENCE if each.get("arithmetic") == arithmetic]


@pytest.mark.parametrize("arithmetic", KINDS)
def test_every_size_that_was_measured_is_well_within_its_tolerance(arithmetic: Arithmetic) -> None:
    kept = of_kind(arithmetic)
    assert {each["layers"] for each in kept} == {2, 4, 8, 16, 28} and {each["hidden"] for each in kept} == {
        64,
        128,
        256,
        512,
    }
    shares = [worst(each, arithmetic) for each in kept]
    # neither near the limit, nor so far from it that the tolerance is meaningless
    assert 0.6 < max(shares) < 0.95


def damaged(*words: str) -> list[dict[str, Any]]:
    """Cases of damage whose name holds one of the words, where layers count."""
    found = [each for each in EVIDENCE if "damage" in each and (each["gain"] or 0) >= 0.8]
    return [each for each in found if not words or any(word in each["damage"] for word in words)]


def share_found(cases: list[dict[str, Any]], arithmetic: Arithmetic) -> float:
    assert len(cases) >= 12
    return sum(worst(each, arithmetic) > 1 for each in cases) / len(cases)


MATRICES = tuple(f"{part} of layer" for part in ("qkv", "o", "gate_up", "down"))
MISSING = [each for each in damaged(*MATRICES) if each["damage"].endswith("left out")]


def test_float16_finds_all_that_is_wrong_with_a_tensor_of_any_layer() -> None:
    whole = [each for each in damaged() if not each["damage"].startswith("one weight")]
    assert len(whole) > 450 and share_found(whole, "float16") == 1
    assert share_found(damaged("one weight"), "float16") > 0.8


def test_bfloat16_finds_a_matrix_that_is_missing_and_most_that_are_halved() -> None:
    assert share_found(MISSING + damaged("rope left out", "all biases"), "bfloat16") == 1
    assert share_found(damaged("half as large"), "bfloat16") > 0.8
    assert share_found(damaged("two layers swapped", "tenth of its base"), "bfloat16") > 0.8


def test_rows_in_8_bits_find_most_matrices_that_are_missing() -> None:
    assert share_found(MISSING, "int8") > 0.8
    assert share_found(damaged("two layers swapped"), "int8") >= 0.75
    assert share_found(damaged("all biases"), "int8") == 1


def test_float8_finds_an_engine_that_computes_something_else() -> None:
    assert share_found(damaged("all biases"), "float8") == 1


def check_sizes(tmp_path: Path, hidden: int, layers: int, seed: int) -> None:
    run = tmp_path / "run"
    write_random_run(run, sized(hidden, layers), seed=seed)
    plain, size = Body.of_run(run), {"hidden": hidden, "layers": layers}
    for gain in (0.4, 1.2):
        body = with_gain(plain, gain)
        measured = list(measure(body))
        assert {each["arithmetic"] for each in measured} == set(KINDS)
        for each in measured:
            assert 0 < worst(size | each, each["arithmetic"]) < 1, (gain, each)
    for each in measure_damage(body):
        if each["damage"] == "two layers swapped":
            assert worst(size | each, "bfloat16") > 1


@pytest.mark.parametrize("seed", [7, 8])
def test_other_seeds_pass(tmp_path: Path, seed: int) -> None:
    check_sizes(tmp_path, 128, 2, seed)


@pytest.mark.full
@pytest.mark.parametrize(
    ("hidden", "layers", "seed"),
    [*itertools.product([128, 256], [2, 4, 8, 16, 28], [3, 4, 5, 6]), (512, 28, 3), (1024, 28, 3)],
)
def test_other_sizes_and_seeds_pass(tmp_path: Path, hidden: int, layers: int, seed: int) -> None:
    check_sizes(tmp_path, hidden, layers, seed)


def test_rows_in_8_bits_are_rounded_block_by_block() -> None:
    x = np.zeros((2, 64), np.float32)
    x[0, 0], x[0, 1], x[0, 32] = 127.0, 0.6, 0.6
    assert rounded_rows(x)[0, [0, 1, 32]].tolist() == pytest.approx([127.0, 1.0, 0.6])
    assert not rounded_rows(x)[1].any()
