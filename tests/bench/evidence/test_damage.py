"""The agreement gates separate correct exports of the model within ualm from damaged ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ualm.bench.evidence.damage import Trained, damages, sound
from ualm.export.formats.precision import Precision
from ualm.runtime.bundle.bundle import Bundle
from ualm.runtime.bundle.packaged import packaged_bundle
from ualm.runtime.bundle.quality import MEASURED_LAYERS, misses

ROOT = Path(__file__).parents[3]
#: Of the weights that the gates were set by, and of those that ualm brings now.
EVIDENCE = json.loads((ROOT / "docs/evidence/agreement_damage_tiny.json").read_text())["results"]
SHIPPED = json.loads((ROOT / "docs/evidence/agreement_damage_tiny_shipped.json").read_text())
#: Too mild to be distinguished from a correct export: the gates let these through, as docs/precision.md says.
BELOW_THE_GATES = {
    "int4": {"one scale a column", "qkv of layer 0 a tenth smaller", "qkv of layer 5 a tenth smaller"},
    "int8": {
        "zero point off by one",
        "rounded towards zero",
        "one bit fewer",
        "two bits fewer",
        "one scale a column",
        "qkv of layer 5 a tenth smaller",
    },
    "fp8": {
        "two bits of fraction for three",
        "scales half as large, cut off",
        "scales sixty-four times as large",
        "qkv of layer 5 a tenth smaller",
    },
}
#: What passes with the weights that ualm brings now, and did not with those that the gates were set by.
PASSES_NOW = {"fp8": {"qkv of layer 0 a tenth smaller"}, "int4": {"two blocks of qkv of layer 5 swapped"}}


@pytest.fixture(scope="module")
def trained() -> Trained:
    folder = packaged_bundle()
    assert folder is not None
    return Trained.of_bundle(Bundle(folder, verify="never"))


def missed(told: dict[str, Any], precision: str) -> list[str]:
    """Clauses about text and sound; encoder and codec are undamaged."""
    whole = {"features": {"cosine_least": 1.0}, "pcm": {"snr_db": 200.0}}
    return misses(told | whole, Precision.of(precision).to_json(), MEASURED_LAYERS)


@pytest.mark.parametrize("precision", ["int8", "int4", "fp8", "bf16", "fp16", "fp32"])
def test_a_sound_export_of_trained_weights_passes_its_gate(trained: Trained, precision: str) -> None:
    assert trained.shape.layers == MEASURED_LAYERS
    assert missed(trained.agreement(precision, sound(precision)), precision) == []


@pytest.mark.parametrize(
    ("precision", "damage"),
    [
        ("int4", "scales of neighbouring blocks swapped"),
        ("int4", "scales of neighbouring outputs swapped"),
        ("int4", "scales one block further"),
        ("int4", "zero point off by one"),
        ("int4", "rounded towards zero"),
        ("int4", "one bit fewer"),
        ("int4", "nibbles swapped"),
        ("int8", "scales one block further"),
        ("int8", "scales of neighbouring outputs swapped"),
        ("fp8", "two blocks of qkv of layer 0 swapped"),
        ("bf16", "two bits of fraction fewer"),
        ("fp16", "two bits of fraction fewer"),
    ],
)
def test_a_damaged_export_falls_below_its_gate(trained: Trained, precision: str, damage: str) -> None:
    store = dict(damages(precision, trained.shape.layers))[damage]
    assert missed(trained.agreement(precision, store), precision)


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp8", "int8", "int4"])
def test_the_kept_evidence_lies_on_the_two_sides_of_the_gates(precision: str) -> None:
    for evidence, more in ((EVIDENCE, {}), (SHIPPED["results"], PASSES_NOW)):
        kept = [each for each in evidence if each["precision"] == precision]
        names = {"sound", *(name for name, _ in damages(precision, MEASURED_LAYERS))}
        assert {each["export"] for each in kept} >= names
        passed = {each["export"] for each in kept if not missed(each, precision)}
        known: set[str] = BELOW_THE_GATES.get(precision, set()) | more.get(precision, set())
        assert {"sound"} <= passed <= {"sound", "sound, GPTQ"} | known


def test_the_newer_evidence_is_of_the_model_that_ualm_brings() -> None:
    folder = packaged_bundle()
    assert folder is not None and SHIPPED["bundle"] == Bundle(folder, verify="never").digest


def test_sound_exports_stand_off_from_the_gates() -> None:
    """By a factor of two or more; the gate grows with the number of layers, which covers deeper bodies."""
    for each in (*EVIDENCE, *SHIPPED["results"]):
        if each["export"].startswith("sound"):
            halved = {m: each[m] | {"kl": 2 * each[m]["kl"]} for m in ("audio", "text")}
            assert missed(halved, each["precision"]) == []
