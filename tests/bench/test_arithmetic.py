"""Tolerances of the golden vector against what every arithmetic costs, and against what damage does."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ualm.bench.arithmetic import Body, measure, measure_damage, rounded_rows, sized, with_gain
from ualm.bench.random_run import write_random_run
from ualm.runtime.engines.arithmetic import Arithmetic, logits_tolerance

ROOT = Path(__file__).parents[2]
EVIDENCE = json.loads((ROOT / "bench/results/golden_arithmetic.json").read_text())["results"]
KINDS: list[Arithmetic] = ["float16", "bfloat16", "int8", "float8"]


def worst(errors: Mapping[str, float], arithmetic: Arithmetic, layers: int) -> float:
    """The largest error of the three heads, as a share of what is allowed."""
    heads: Arithmetic = "int8" if arithmetic == "int8" else "float32"
    return max(
        error / logits_tolerance(arithmetic, heads, layers, few=name == "modality") for name, error in errors.items()
    )


def of_kind(arithmetic: Arithmetic) -> list[dict[str, Any]]:
    return [each for each in EVIDENCE if each.get("arithmetic") == arithmetic]


@pytest.mark.parametrize("arithmetic", KINDS)
def test_every_size_that_was_measured_is_well_within_its_tolerance(arithmetic: Arithmetic) -> None:
    kept = of_kind(arithmetic)
    assert {each["layers"] for each in kept} == {2, 4, 8, 16, 28} and {each["hidden"] for each in kept} == {128, 512}
    shares = [worst(each["errors"], arithmetic, each["layers"]) for each in kept]
    # neither near the edge, nor so far from it that the tolerance says nothing
    assert 0.3 < max(shares) < 0.75


@pytest.mark.parametrize("arithmetic", ["float16", "bfloat16"])
def test_half_precision_finds_what_is_wrong_in_any_layer(arithmetic: Arithmetic) -> None:
    damaged = [each for each in EVIDENCE if "damage" in each and each["gain"] >= 0.8]
    found = [each for each in damaged if worst(each["errors"], arithmetic, each["layers"]) > 1]
    wanted = ("qkv left", "o of", "half as large", "swapped", "rope", "all biases")
    certain = [each for each in damaged if any(word in each["damage"] for word in wanted)]
    certain = [each for each in certain if not ("tenth smaller" in each["damage"] or "one weight" in each["damage"])]
    assert len(certain) > 200 and all(each in found for each in certain)
    if arithmetic == "float16":
        assert all(each in found for each in damaged if "one weight" not in each["damage"])


def test_rows_in_8_bits_find_a_matrix_that_is_missing() -> None:
    for each in EVIDENCE:
        name = each.get("damage", "")
        missing = name.endswith("left out") and "bias" not in name
        if each["gain"] >= 0.8 and (missing or name == "all biases left out"):
            assert worst(each["errors"], "int8", each["layers"]) > 1, name


def test_float8_finds_an_engine_that_computes_something_else() -> None:
    for each in EVIDENCE:
        if each.get("damage") == "all biases left out" and each["gain"] >= 0.8:
            assert worst(each["errors"], "float8", each["layers"]) > 1


def check_sizes(tmp_path: Path, hidden: int, layers: int, seed: int) -> None:
    run = tmp_path / "run"
    write_random_run(run, sized(hidden, layers), seed=seed)
    plain = Body.of_run(run)
    for gain in (0.4, 1.2):
        body = with_gain(plain, gain)
        measured = list(measure(body))
        assert {each["arithmetic"] for each in measured} == set(KINDS)
        for each in measured:
            assert 0 < worst(each["errors"], each["arithmetic"], layers) < 1, (gain, each)
    for each in measure_damage(body):
        if each["damage"] == "two layers swapped":
            assert worst(each["errors"], "bfloat16", layers) > 1


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
