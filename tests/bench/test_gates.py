"""The gates through their command: the model that comes with ualm generates what it is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from scipy.stats import binom

from ualm.export.tiny.judging.gates import WANTED
from ualm.runtime.bundle import packaged

Command = Callable[..., tuple[int, str, str]]
SHIPPED = packaged.packaged_bundle()

#: The full judgement of the shipped model, as given in its card.
KEPT = json.loads((Path(__file__).resolve().parents[2] / "export" / "tiny" / "judging" / "gates_int8.json").read_text())
#: A sample may be worse than the full judgement by what chance explains in 99 of 100 samples.
_CHANCE = 0.99


def test_a_sample_of_the_gates_is_met_by_the_shipped_model(
    ualm: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert SHIPPED is not None
    monkeypatch.setattr(packaged, "PACKAGED", SHIPPED)
    kept = tmp_path / "gates.json"
    status, told, err = ualm("bench", "gates", "--share", 0.1, "--threads", 1, "--output", kept)
    assert (status, err) == (0, "")
    result = json.loads(kept.read_text())
    assert result["precisions"]["backbone"] == "int8" and result["share"] == 0.1
    assert result["bundle"] == KEPT["bundle"], "the card describes another model than the shipped one"
    gates = result["gates"]
    assert set(WANTED) <= set(gates) and all(name in told for name in gates)
    for name, gate in gates.items():
        if gate["wanted"] is None or KEPT["gates"][name]["met"] is False:
            continue
        whole = KEPT["gates"][name]
        wrong, kept = (g["right"] if name.endswith("broken") else g["total"] - g["right"] for g in (gate, whole))
        # one more for a share that may be 0 only because the whole is not large
        most = binom.ppf(_CHANCE, gate["total"], (kept + 1) / (whole["total"] + 1))
        assert gate["total"] and wrong <= most, (name, gate, most)


@pytest.mark.parametrize(
    ("arguments", "pieces"),
    [
        (("--share", "0"), ["--share 0", "at most 1"]),
        (("--share", "1.5"), ["--share 1.5", "at most 1"]),
        (("bundle",), ["--run", "bundle"]),
        (("bundle", "--run", "nowhere"), ["nowhere/frames.npy", "no such file"]),
        (("--output", "nowhere/gates.json"), ["nowhere", "does not exist"]),
    ],
    ids=str,
)
def test_a_bad_option_is_refused(ualm: Command, arguments: tuple[str, ...], pieces: list[str]) -> None:
    status, out, err = ualm("bench", "gates", *arguments)
    assert (status, out, err.count("\n")) == (1, "", 1) and err.startswith("ualm: ")
    assert all(piece in err for piece in pieces)
