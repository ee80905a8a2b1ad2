"""Reasoning: the messages of each mode, when it stops, and what remains after a failure."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from support.bundles import changed_manifest
from support.choosing import choosing_what_it_can
from support.runs import Run
from support.scripted import Plays, Says, scripted
from support.told import but_cut
from ualm.export.bundle import export_run
from ualm.runtime import (
    AudioSampling,
    BundleError,
    ExportError,
    InputError,
    Model,
    ReasoningEnded,
    SegmentLimitError,
    SessionError,
    StageEnded,
    StageSound,
    StageStarted,
    StageText,
    TextSampling,
    Verdict,
)
from ualm.runtime.audio.feature_cache import FeatureCache
from ualm.runtime.bundle.bundle import Bundle
from ualm.runtime.bundle.templates import Templates

Command = Callable[..., tuple[int, str, str]]
CAPTION = "a dog barks, then a door"
#: Frames of a sound that is long enough to be heard again, at 10 samples a frame.
LONG = 300

pytestmark = pytest.mark.usefixtures("clean_environment")


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Iterator[Model]:
    with Model.open(tiny_bundle, threads=1, max_context=4096) as opened:
        yield opened


def kinds(stages: Any) -> list[str]:
    return [stage.kind for stage in stages]


# ---- enrichment ----


def test_a_caption_and_then_the_sound_in_one_turn(model):
    with scripted(model, Says(CAPTION, "eot"), Plays(LONG)) as script:
        reasoning = model.reason("a dog", seed=5)
        events = list(reasoning)
    result = events[-1].result
    assert script.heard == ["a dog"] and script.drawn == [("text", 5), ("audio", 5)]
    assert kinds(result.stages) == ["caption", "sound"] and result.caption == CAPTION and result.ended == "done"
    assert reasoning.session.turns == 1 == len(result.turns)
    assert [type(event) for event in events if not isinstance(event, (StageText, StageSound))] == [
        StageStarted, StageEnded, StageStarted, StageEnded, ReasoningEnded,
    ]  # fmt: skip
    assert "".join(event.text for event in events if isinstance(event, StageText)) == CAPTION
    chunks = [event.chunk.samples for event in events if isinstance(event, StageSound)]
    assert len(chunks) > 1 and np.array_equal(np.concatenate(chunks), result.sound.samples)
    assert [event.stage for event in events if isinstance(event, StageStarted)] == [0, 1]
    assert [event.result.index for event in events if isinstance(event, StageEnded)] == [0, 1]


def test_a_caption_that_ends_the_turn_is_given_back_to_be_played(model):
    with scripted(model, Says(CAPTION), Plays()) as script:
        result = model.reason("a dog", seed=2**64 - 1).result()
    assert script.heard == ["a dog", CAPTION]
    assert script.drawn == [("text", 2**64 - 1), ("audio", 0)], "each turn has its own seed"
    assert [turn.modality for turn in result.turns] == ["text", "audio"]
    assert result.sound is not None and result.caption == CAPTION


def test_an_empty_caption_gives_way_to_the_prompt(model):
    with scripted(model, Says(""), Plays()) as script:
        result = model.reason("a dog").result()
    assert script.heard == ["a dog", "a dog"] and result.sound is not None


# ---- dialogue ----


def test_a_dialogue_asks_plays_and_changes(model):
    taken = []

    def turns() -> Iterator[str]:
        for words in ("play something", "a dog", "slower"):
            taken.append((words, kinds(reasoning.stages)))
            yield words

    script = [Says("which animal?"), Says(CAPTION, "eot"), Plays(LONG), Plays(LONG, code=2)]
    with scripted(model, *script) as played:
        reasoning = model.reason(turns(), "dialogue", seed=7)
        result = reasoning.result()
    assert played.heard == ["play something", "a dog", "slower"]
    assert played.drawn == [("text", 7), ("text", 8), ("audio", 8), ("audio", 9)]
    # each turn of the user is requested once the previous answer is complete
    assert taken == [("play something", []), ("a dog", ["answer"]), ("slower", ["answer", "answer", "sound"])]
    assert [stage.turn for stage in result.stages] == [0, 1, 1, 2]
    assert result.sound is result.stages[-1].sound and set(result.sound.codes.flat) == {2}
    assert result.prompts == ("play something", "a dog", "slower")


def test_a_dialogue_may_bring_no_sound(model):
    with scripted(model, Says("hello")):
        result = model.reason("hi", "dialogue").result()
    assert result.sound is None and result.caption == "hello"


def test_a_session_goes_on(model):
    session = model.session()
    with scripted(model, Says("hello"), Says(CAPTION, "eot"), Plays()):
        session.ask("hi")
        reasoning = model.reason("a dog", session=session)
        assert reasoning.result().stages[0].index == 0
    assert reasoning.session is session and session.turns == 2


# ---- self-reflection ----

AGREES, DIFFERS = Says("heard a dog. IT matches the request."), "heard a cat. it differs."


def test_a_sound_that_agrees_is_heard_once_whatever_the_rounds(model):
    with scripted(model, Says(CAPTION, "eot"), Plays(), AGREES) as script:
        result = model.reason("a dog", "reflect", rounds=5).result()
    check = model.bundle.manifest.templates.reflect.check.replace("{prompt}", "a dog")
    assert script.heard == ["a dog", "[sound]", check], "the sound comes first, then the question"
    assert [(verdict.round, verdict.agrees) for verdict in result.verdicts] == [(1, True)]
    assert kinds(result.stages) == ["caption", "sound", "review"]
    assert result.sound is result.stages[1].sound
    assert result.turns[1].said == ("[sound of stage 1]", check)


def test_a_second_sound_of_the_review_is_the_repair_and_is_heard_in_the_next_round(model):
    said = [Says(CAPTION, "eot"), Plays(), Says(DIFFERS, "eot"), Plays(code=3), AGREES]
    with scripted(model, *said) as script:
        events = list(model.reason("a dog", "reflect", rounds=3, seed=1))
    result = events[-1].result
    assert script.drawn == [("text", 1), ("audio", 1), ("text", 2), ("audio", 2), ("text", 3)]
    assert [(verdict.agrees, verdict.review) for verdict in result.verdicts] == [(False, DIFFERS), (True, AGREES.text)]
    assert kinds(result.stages) == ["caption", "sound", "review", "repair", "review"]
    assert set(result.sound.codes.flat) == {3} and result.turns[2].said[0] == "[sound of stage 3]"
    told = [event for event in events if isinstance(event, (Verdict, StageStarted))]
    repair = next(at for at, event in enumerate(told) if isinstance(event, StageStarted) and event.kind == "repair")
    assert isinstance(told[repair - 1], Verdict), "the verdict is reported before the repair begins"


def test_rounds_are_the_most_that_are_heard(model):
    again = [Says(DIFFERS, "eot"), Plays()]
    with scripted(model, Says(CAPTION, "eot"), Plays(), *again, *again) as script:
        result = model.reason("a dog", "reflect", rounds=2).result()
    assert [verdict.agrees for verdict in result.verdicts] == [False, False]
    assert script.heard.count("[sound]") == 2 and kinds(result.stages)[-1] == "repair"


def test_a_model_that_differs_in_words_alone_is_asked_for_the_repair(model):
    with scripted(model, Says(CAPTION, "eot"), Plays(), Says(DIFFERS), Plays(code=4)) as script:
        result = model.reason("a dog", "reflect").result()
    assert script.heard[-1] == CAPTION and result.turns[-1].modality == "audio"
    assert [verdict.agrees for verdict in result.verdicts] == [False]
    assert result.stages[-1].kind == "repair" and set(result.sound.codes.flat) == {4}


def test_no_verdict_ends_it_and_the_sound_stays(model):
    with scripted(model, Says(CAPTION, "eot"), Plays(), Says("a dog barks")):
        result = model.reason("a dog", "reflect", rounds=2).result()
    assert [verdict.agrees for verdict in result.verdicts] == [None]
    assert result.sound is result.stages[1].sound


def test_a_sound_is_being_heard_before_its_turn_is_over(model, monkeypatch):
    started = []
    real = FeatureCache.start

    def start(self: FeatureCache, sound: Any) -> None:
        started.append(reasoning.session.turns)
        real(self, sound)

    monkeypatch.setattr(FeatureCache, "start", start)
    with scripted(model, Says(CAPTION, "eot"), Plays(), Says(DIFFERS, "eot"), Plays()):
        reasoning = model.reason("a dog", "reflect")
        reasoning.result()
    assert started == [0], "the repair of the last round is not heard again"


# ---- failures ----


@pytest.mark.parametrize("leave", [False, True])
def test_cancelling_takes_back_the_turn_under_way_alone(model, leave):
    session = model.session()
    with scripted(model, Says(CAPTION), Plays()):
        reasoning = model.reason("a dog", session=session)
        events = []
        for event in reasoning:
            events.append(event)
            if isinstance(event, StageSound):
                if leave:
                    break
                reasoning.cancel()
        session.truncate(1)  # waits for the turn to stop
    assert session.turns == 1
    if not leave:
        result = events[-1].result
        assert result.ended == "cancelled" and kinds(result.stages) == ["caption"] and len(result.turns) == 1
    with scripted(model, Says("still here")):
        assert session.ask("hello")[0].text == "still here"


def test_cancelled_before_it_begins(model):
    reasoning = model.reason("a dog")
    reasoning.cancel()
    with scripted(model):
        result = reasoning.result()
    assert result.ended == "cancelled" and result.stages == () and reasoning.session.turns == 0


def test_an_error_has_all_segments_and_the_session_its_whole_turns(model):
    session = model.session(max_segments=2)
    said = [Says(CAPTION, "eot"), Plays(), Says("one", "eot"), Says("two", "eot")]
    with scripted(model, *said):
        reasoning = model.reason("a dog", "reflect", session=session)
        with pytest.raises(SegmentLimitError) as caught:
            reasoning.result()
    assert [segment.text for segment in caught.value.segments] == [CAPTION, None, "one", "two"]
    assert session.turns == 1 and kinds(reasoning.stages) == ["caption", "sound"]


def test_a_sound_too_short_to_hear_is_told_by_the_turn_that_hears_it(model):
    with scripted(model, Says(CAPTION, "eot"), Plays(4)):
        reasoning = model.reason("a dog", "reflect")
        with pytest.raises(InputError, match="too short to hear") as caught:
            reasoning.result()
    assert len(caught.value.segments) == 2 and reasoning.session.turns == 1


@pytest.mark.parametrize(
    ("prompt", "options", "told"),
    [
        ("a", {"mode": "think"}, "mode = 'think'"),
        ("a", {"mode": "reflect", "rounds": 0}, "rounds = 0"),
        ("a", {"mode": "reflect", "rounds": 1.5}, "rounds = 1.5"),
        ("a", {"rounds": 2}, "only the mode 'reflect' has rounds"),
        ("", {}, "not empty"),
        ("  ", {"mode": "dialogue"}, "not empty"),
        (["a", "b"], {}, "takes one text"),
        ([], {"mode": "dialogue"}, "at least one turn"),
        (["a", 3], {"mode": "dialogue"}, "prompt = 3"),
        (3, {"mode": "dialogue"}, "prompt is a int"),
        ("a", {"seed": -1}, "seed = -1"),
        ("a", {"guidanc": 1}, "unknown option 'guidanc'"),
    ],
)
def test_bad_input_is_refused_at_once(model, prompt, options, told):
    with pytest.raises(InputError, match=told):
        model.reason(prompt, **options)


def test_it_is_read_once(model):
    with scripted(model, Says("hello")):
        reasoning = model.reason("hi", "dialogue")
        reasoning.result()
    with pytest.raises(SessionError, match="read once"):
        reasoning.result()


# ---- any model ----


@pytest.mark.parametrize("mode", ["enrich", "dialogue", "reflect"])
def test_a_random_model_gets_through_every_mode_and_twice_the_same(model, mode):
    options: dict[str, Any] = {"text": TextSampling(max_steps=6), "audio": AudioSampling(max_steps=320)}
    with choosing_what_it_can():
        first, second = (model.reason("rain", mode, seed=3, **options).result() for _ in range(2))
    assert first.ended == "done" and first.stages
    assert mode == "dialogue" or (first.sound is not None and first.stages[0].kind == "caption")
    assert len(first.verdicts) == (mode == "reflect")
    for one, other in zip(first.stages, second.stages, strict=True):
        assert one.kind == other.kind and np.array_equal(one.segment.rows, other.segment.rows)
    json.dumps(first.trace())


def test_the_trace_holds_everything_but_samples(model):
    with scripted(model, Says(CAPTION, "eot"), Plays(LONG), Says(DIFFERS, "eot"), Plays(LONG)):
        result = model.reason("a dog", "reflect", seed=4).result()
    trace = json.loads(json.dumps(result.trace()))
    assert (trace["format"], trace["mode"], trace["prompts"]) == ("ualm-reasoning", "reflect", ["a dog"])
    assert trace["model"] == model.identity and trace["sampling"]["audio"]["seed"] == 4
    caption, sound = trace["turns"][0]["stages"]
    assert (caption["text"], caption["finish"], caption["seed"]) == (CAPTION, "stop", 4)
    assert sound["finish"] == trace["finish"] == result.finish == "stop"
    assert {turn["reason"] for turn in trace["turns"]} == {"stop"}
    assert (sound["frames"], sound["codes"]) == (LONG, 8 * LONG)
    assert sound["seconds"] == pytest.approx(result.stages[1].sound.duration, abs=1e-4)
    assert [stage["seed"] for stage in trace["turns"][1]["stages"]] == [5, 5]
    assert trace["verdicts"] == [{"round": 1, "agrees": False, "review": DIFFERS}]
    assert set(trace["turns"][0]["seconds"]) == {"hear", "prefill", "first", "total"}


# ---- templates ----


def test_templates_of_the_run_are_kept_and_used(tiny_run: Run, tmp_path):
    run = shutil.copytree(tiny_run.folder, tmp_path / "run")
    words = {
        "enrich": {"system": "think first", "request": "wanted: {prompt}"},
        "reflect": {"check": "listen: {caption}", "agrees": ["good"], "differs": ["bad"], "repair": None},
    }
    places = list(run.rglob("train.yaml"))
    places[0].with_name("templates.json").write_text(json.dumps(words))
    bundle = export_run(run, tmp_path / "bundle").bundle
    kept = Bundle(bundle).manifest.templates
    assert kept == Templates.from_json(words) and kept.dialogue == Templates().dialogue
    said = [Says("{prompt} caption", "eot"), Plays(), Says("bad")]
    with Model.open(bundle, threads=1) as model, scripted(model, *said) as script:
        result = model.reason("a dog", "reflect").result()
    assert script.heard == ["think first", "wanted: a dog", "[sound]", "listen: {prompt} caption"]
    assert [verdict.agrees for verdict in result.verdicts] == [False] and result.stages[-1].kind == "review"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"reflct": {}}, "reflct: unknown"),
        ({"enrich": {"ask": "x"}}, "enrich.ask: unknown"),
        ({"enrich": []}, "is not an object"),
        ({"reflect": {"check": "{sound}?"}}, "{sound} is not a known placeholder"),
        ({"reflect": {"agrees": "yes"}}, "not a list of texts"),
        ({"dialogue": {"request": " "}}, "not a text"),
    ],
)
def test_templates_that_cannot_be_used_are_refused_by_name(tiny_run: Run, tiny_bundle, tmp_path, words, told):
    from ualm.export.bundle import read_templates

    path = tmp_path / "templates.json"
    path.write_text(json.dumps(words))
    with pytest.raises(ExportError) as caught:
        read_templates(path)
    assert told in str(caught.value) and str(path) in str(caught.value)
    bundle = changed_manifest(tiny_bundle, tmp_path / "bundle", lambda document: document.update(templates=words))
    with pytest.raises(BundleError) as refused:
        Bundle(bundle)
    assert told in str(refused.value) and "templates" in str(refused.value)


def test_a_bundle_from_before_templates_has_the_defaults(tiny_bundle, tmp_path):
    bundle = changed_manifest(tiny_bundle, tmp_path / "bundle", lambda document: document.pop("templates"))
    assert Bundle(bundle).manifest.templates == Templates()


# ---- the command ----


@pytest.fixture
def reason(ualm: Command, tiny_bundle: Path) -> Iterator[Command]:
    """``ualm reason`` with short answers from a random model."""

    def run(*arguments: object) -> tuple[int, str, str]:
        short = ("--threads", 1, "--max-seconds", 0.2, "--max-tokens", 6)
        return ualm("reason", *arguments, "-b", tiny_bundle, *short)

    with choosing_what_it_can():
        yield run


def test_the_command_shows_thoughts_and_writes_sound_and_trace(reason, tmp_path):
    sound, trace = tmp_path / "a.wav", tmp_path / "trace.json"
    status, out, err = reason("rain", "--mode", "reflect", "-o", sound, "--trace", trace, "--seed", 3)
    assert (status, but_cut(err)) == (0, "")
    assert len(set(err.splitlines())) == err.count("\n")  # a limit is reported once, however many texts it cuts
    lines = out.splitlines()
    assert lines[0].startswith("caption: ") and lines[-1].startswith(f"{sound}: ")
    written = json.loads(trace.read_text())
    assert written["mode"] == "reflect" and f"verdict 1: {'no verdict'}" in out
    last = [stage for turn in written["turns"] for stage in turn["stages"] if stage["modality"] == "audio"][-1]
    assert soundfile.info(sound).duration == pytest.approx(last["seconds"], abs=1e-4)


def test_the_command_prints_the_trace_as_one_object(reason):
    status, out, err = reason("rain", "--json")
    assert (status, err, out.count("\n")) == (0, "", 1)
    about = json.loads(out)
    assert about["output"] is None and about["turns"][0]["stages"][0]["kind"] == "caption"


def test_a_dialogue_reads_turns_from_standard_input(reason, monkeypatch):
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("and rain\n\n  and wind\n"))
    about = json.loads(reason("--mode", "dialogue", "thunder", "-", "--json")[1])
    assert about["prompts"] == ["thunder", "and rain", "and wind"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("rain", "wind"), "one PROMPT is expected"),
        (("rain", "--mode", "dream"), "mode = 'dream'"),
        (("rain", "--rounds", "2"), "only the mode 'reflect'"),
        (("rain", "--mode", "reflect", "--rounds", "0"), "rounds = 0"),
        (("rain", "--trace", "no/such/t.json"), "no/such/t.json: the folder no/such does not exist"),
        (("rain", "-o", "a.m4a"), ".m4a"),
        (("rain", "--plot", "a.gif"), ".gif"),
    ],
)
def test_the_command_refuses_in_one_line(reason, arguments, told):
    status, out, err = reason(*arguments)
    assert (status, out, err.count("\n")) == (1, "", 1) and told in err


def test_the_documentation_shows_the_default_templates():
    page = (Path(__file__).resolve().parents[3] / "docs" / "api.md").read_text(encoding="utf-8")
    shown = [json.loads(block.split("```")[0]) for block in page.split("```json\n")[1:]]
    assert Templates().to_json() in shown
