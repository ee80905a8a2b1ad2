"""How gates are counted, and how the model card shows them."""

from __future__ import annotations

from typing import Any

from ualm.export.tiny.judging.card import model_card
from ualm.export.tiny.judging.gates import ALLOWED_LOSS, WANTED, Tally, losses, lost_too_much
from ualm.export.tiny.training.loop import HELD_OUT_PERCENT

TRAINING = {"step": 10, "rows": 20000, "cpu_seconds": 1800.0, "held_out_percent": HELD_OUT_PERCENT}


def _tally(right: int, total: int) -> Tally:
    tally = Tally()
    for number in range(total):
        tally.add(number < right, f"case {number}")
    return tally


def _examined(**gates: dict[str, Any]) -> dict[str, Any]:
    sampling = {"temperature": 0.8, "top_k": 20, "guidance": 3.0}
    return {"sampling": sampling, "gates": {name.replace("_", " "): values for name, values in gates.items()}}


def test_a_gate_is_met_from_its_share_on() -> None:
    assert WANTED["two notes"] == 0.92
    assert _tally(92, 100).to_json("two notes")["met"] is True
    assert _tally(91, 100).to_json("two notes")["met"] is False
    assert _tally(1, 100).to_json("text")["met"] is None
    assert Tally().to_json("two notes")["met"] is None


def test_what_is_broken_must_stay_below_its_share() -> None:
    name = "reflection: right ones broken"
    assert _tally(3, 100).to_json(name)["met"] is True
    assert _tally(4, 100).to_json(name)["met"] is False


def test_a_narrower_format_may_lose_two_points_to_fp32_and_no_more() -> None:
    assert ALLOWED_LOSS == 0.02
    broken = "reflection: right ones broken"
    wide = {"drums": _tally(98, 100).to_json("drums"), broken: _tally(1, 100).to_json(broken)}
    held = {"drums": _tally(96, 100).to_json("drums"), broken: _tally(3, 100).to_json(broken)}
    lost = {"drums": _tally(95, 100).to_json("drums"), broken: _tally(4, 100).to_json(broken)}
    assert losses(wide, held) == {"drums": 0.02, broken: 0.02} and lost_too_much(losses(wide, held)) == []
    assert lost_too_much(losses(wide, lost)) == ["drums", broken]
    assert lost_too_much(losses(lost, wide)) == []
    other = {"text": _tally(0, 10).to_json("text"), "one note": Tally().to_json("one note")}
    assert losses(other, other) == {}, "a gate that is not required, or was not asked, cannot be lost"


def test_the_cases_that_went_wrong_are_told() -> None:
    assert _tally(1, 3).to_json("drums")["wrong"] == ["case 1", "case 2"]
    broken = Tally()
    broken.add(True, "broke", wrong=True)
    broken.add(False, "held", wrong=False)
    assert broken.wrong == ["broke"] and broken.right == 1 and broken.total == 2


def test_the_card_has_the_measured_figures_and_names_what_was_missed() -> None:
    exact = _examined(drums=_tally(40, 40).to_json("drums"), two_notes=_tally(9, 10).to_json("two notes"))
    narrow = _examined(drums=_tally(39, 40).to_json("drums"))
    card = model_card(TRAINING, [("fp32", exact), ("int8", narrow)], "A note.")
    assert "| drums | at least 95 % | 100.0 % of 40 | 97.5 % of 40 |" in card
    assert "| two notes | at least 92 % | 90.0 % of 10 (missed) |  |" in card
    assert "Gates missed: fp32 misses two notes; int8 loses 2.5 points to fp32 in drums." in card and "A note." in card
    assert "10 steps, 20,000 rows, 0.5 h" in card and "MIT" in card


def test_the_card_says_what_this_training_did_not_hold_out() -> None:
    gates = [("fp32", _examined(drums=_tally(40, 40).to_json("drums")))]
    whole = " ".join(model_card(TRAINING, gates, "A note.").split())
    assert "20 % of the changes in a dialogue" in whole and "Not held out" not in whole
    older = model_card(TRAINING | {"held_out_percent": {"sequences": 15}}, gates, "A note.")
    assert "Not held out, so that these gates may ask for what training met: of the prompts" in " ".join(older.split())


def test_a_card_without_misses_says_so() -> None:
    card = model_card(TRAINING, [("fp32", _examined(drums=_tally(40, 40).to_json("drums")))], "A note.")
    assert "Every gate is met." in card
