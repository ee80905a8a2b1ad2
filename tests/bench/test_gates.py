"""The gates by their command: the model that comes with ualm makes and says what it is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ualm.export.tiny.gates import WANTED
from ualm.runtime import packaged

Command = Callable[..., tuple[int, str, str]]
SHIPPED = packaged.packaged_bundle()

#: The full judgement of the shipped model, as its card tells it.
KEPT = json.loads((Path(__file__).resolve().parents[2] / "export" / "tiny" / "gates_int8.json").read_text())
#: How many more may be wrong in a sample: of 20 reflections, which the whole gate breaks 2.0 % of, two break here.
_SLACK = 2


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
    assert result["bundle"] == KEPT["bundle"], "the card tells of another model than the one that is shipped"
    gates = result["gates"]
    assert set(WANTED) <= set(gates) and all(name in told for name in gates)
    for name, gate in gates.items():
        if gate["wanted"] is None or KEPT["gates"][name]["met"] is False:
            continue
        wrong = gate["right"] if name.endswith("broken") else gate["total"] - gate["right"]
        allowed = gate["wanted"] if name.endswith("broken") else 1 - gate["wanted"]
        assert gate["total"] and wrong <= allowed * gate["total"] + _SLACK, (name, gate)


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
